//! `mount --refresh`: a mount that follows a tag.
//!
//! The idea: what is mounted bears its digest, so that one request tells whether it is still what the reference names; a mount
//! that is current is not touched, and one that is not is taken away only when the new one is opened and can be put in its place.

use std::io::Write as _;
use std::path::PathBuf;

use crate::image::{self, OpenOptions};
use crate::mount::{self, State};

use super::args::MountArgs;
use super::commands::{cache, registry, scope, start};
use super::exit::Failure;
use super::{network, output};

/// Whether the mount at the directory shows what the arguments name now; then there is nothing to do.
pub(super) fn is_current(args: &MountArgs) -> Result<bool, Failure> {
    let Some((dir, reference)) = standing(args)? else { return Ok(false) };
    let runtime = start(&args.image)?;
    let registry = registry(&args.image)?;
    let options = OpenOptions::new(network::in_full(&args.image.location, &registry)?);
    let resolved = runtime.block_on(image::resolve(&options, &registry, cache(&args.image)?))?;
    if resolved.pinned != reference || mount::status(&dir)?.scope != scope(&args.serve).to_string() {
        return Ok(false);
    }
    let mut out = output::stdout();
    let line = format!("{reference} is mounted at {} already\n", dir.display());
    output::printed(out.write_all(line.as_bytes()).and_then(|()| out.flush()))?;
    Ok(true)
}

/// The mount of ours at the directory that answers, and what it shows. A dead one is replaced by every mount, and one that does not
/// answer by none.
pub(super) fn standing(args: &MountArgs) -> Result<Option<(PathBuf, String)>, Failure> {
    let mounted = mount::list()?;
    let dir = mount::resolved(&args.dir).unwrap_or_else(|| args.dir.clone());
    let Some(found) = mounted.into_iter().rfind(|mount| mount.dir == dir) else { return Ok(None) };
    match found.state {
        State::Served => Ok(Some((found.dir, found.reference))),
        State::Dead => Ok(None),
        // What it will show is not known, and it may not be taken away under those that wait.
        State::Waiting | State::Unknown => Ok(mount::check(&args.dir, args.serve.nonempty).map(|_| None)?),
    }
}
