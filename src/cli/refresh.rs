//! `mount --refresh`: a mount that follows a tag.
//!
//! A mount carries its digest, so one request decides whether the reference still names it. A current mount is left
//! alone. An outdated one is unmounted only when the new image is open and can take its place.

use std::io::Write as _;
use std::path::PathBuf;

use crate::image::{self, OpenOptions};
use crate::mount::{self, MountState};

use super::args::MountArgs;
use super::exit::CliError;
use super::output;
use super::setup::{self, cache, registry, scope, start};

/// Whether the mount at the directory shows the content that the arguments name now; then there is nothing to do.
pub(super) fn is_current(args: &MountArgs) -> Result<bool, CliError> {
    let Some((dir, reference)) = standing(args)? else { return Ok(false) };
    let runtime = start(&args.image)?;
    let registry = registry(&args.image)?;
    // The digest of an index is that of the mount, whichever entry is shown: the entry is in the scope.
    let options =
        OpenOptions { select: Vec::new(), ..setup::options(&args.image, &args.image.location, &registry)? };
    let resolved = runtime.block_on(image::resolve(&options, &registry, cache(&args.image)?))?;
    if resolved.pinned != reference || mount::status(&dir)?.scope != scope(args).to_string() {
        return Ok(false);
    }
    let mut out = output::stdout();
    let line = format!("{reference} is mounted at {} already\n", dir.display());
    output::printed(out.write_all(line.as_bytes()).and_then(|()| out.flush()))?;
    Ok(true)
}

/// The ocifs mount at the directory that answers, and its reference. `None` for a dead mount, which every mount
/// replaces. A mount that does not answer is never replaced.
pub(super) fn standing(args: &MountArgs) -> Result<Option<(PathBuf, String)>, CliError> {
    let dir = mount::resolved(&args.dir).unwrap_or_else(|| args.dir.clone());
    let Some(found) = mount::list_at(&dir)?.pop() else { return Ok(None) };
    match found.state {
        MountState::Served => Ok(Some((found.dir, found.reference))),
        MountState::Dead => Ok(None),
        // Its future content is unknown, and readers wait for it: it must not be unmounted.
        MountState::Waiting | MountState::Unknown => {
            Ok(mount::check(&args.dir, args.serve.nonempty).map(|_| None)?)
        }
    }
}
