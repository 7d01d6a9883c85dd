//! `record`, and the choice of what a mount fetches first.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::{Family, Image, MAX_TRACE, Prefetch, Recording, Trace};
use crate::mount::{self, MountOptions};
use crate::view::{Namespace, Scope};

use super::args::{PrefetchUse, RecordArgs};
use super::commands::{LAST_TASKS, Stop, only, open_with, registry, start};
use super::exit::Failure;

/// The variable that tells a command where its mount is.
const MOUNT_VARIABLE: &str = "OCIFS_MOUNT";

/// What a mount fetches before anybody asks. A trace that was asked for and is not there is an error.
pub(super) async fn chosen(
    family: &Family,
    wanted: PrefetchUse,
    file: Option<&Path>,
) -> Result<Prefetch, Failure> {
    if file.is_some() && wanted != PrefetchUse::Trace {
        return Err(Failure::usage("--trace is for --prefetch=trace"));
    }
    Ok(match wanted {
        PrefetchUse::None => Prefetch::None,
        PrefetchUse::Landmarks => Prefetch::Landmarks,
        PrefetchUse::All => Prefetch::All,
        PrefetchUse::Trace => Prefetch::Trace(match (file, only(family)?) {
            (Some(path), image) => load(path, image)?,
            (None, image) => image.find_trace().await?.ok_or_else(|| {
                let digest = image.manifest_digest();
                Failure::usage(format!(
                    "there is no trace of {digest}; make one with \"ocifs record\", or name a file with --trace"
                ))
            })?,
        }),
    })
}

fn load(path: &Path, image: &Image) -> Result<Trace, Failure> {
    use std::io::Read as _;
    let what = || format!("reading the trace {}", path.display());
    let failed = |error: std::io::Error| Failure::local(what(), &error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_TRACE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let trace =
        Trace::parse(&bytes).map_err(|error| Failure::read(&error.within(path.display().to_string())))?;
    if trace.manifest != image.manifest_digest().as_str() {
        let (of, wanted) = (&trace.manifest, image.manifest_digest());
        tracing::warn!(%of, %wanted, "the trace is of another image: only blobs that both have are fetched");
    }
    Ok(trace)
}

/// Runs a command on a mount and writes down what it reads. Its exit code becomes ours.
pub(super) fn record(args: &RecordArgs) -> Result<(), Failure> {
    let runtime = start(&args.image)?;
    let result = runtime.block_on(async {
        let family =
            Arc::new(open_with(&args.image, &registry(&args.image)?, Prefetch::None, Recording::On).await?);
        let image = only(&family)?;
        if args.push {
            image.check_publishable()?;
        }
        let scope = Scope { view: args.view.clone(), ..Scope::default() };
        let namespace = Arc::new(Namespace::open(family.clone(), &scope).await?);
        let options = MountOptions { source: image.pinned().to_owned(), ..MountOptions::default() };
        let mut stop = Stop::new()?;
        let place = Place::new()?;
        let (handle, dir) = (tokio::runtime::Handle::current(), place.0.clone());
        let mounted = tokio::task::spawn_blocking(move || mount::mount(namespace, &dir, &options, &handle))
            .await
            .map_err(|error| Failure::local("mounting", &error))??;
        let ran = run(&args.command, mounted.dir(), &mut stop).await;
        mounted.unmount().await?;
        let code = ran?;
        keep(image, args).await?;
        Ok::<_, Failure>(code)
    });
    runtime.shutdown_timeout(LAST_TASKS);
    match result? {
        0 => Ok(()),
        code => Err(Failure::already_reported(code)),
    }
}

/// Runs `command` to its end and gives its exit code, or 128 and the number of the signal that ended it, as a shell does.
async fn run(command: &[OsString], dir: &Path, stop: &mut Stop) -> Result<u8, Failure> {
    let mut words = command.iter().map(|word| put_in(word, dir));
    let program = words.next().unwrap_or_default();
    let failed = |error: std::io::Error| Failure::local(format!("running {}", program.display()), &error);
    let mut child = tokio::process::Command::new(&program)
        .args(words)
        .env(MOUNT_VARIABLE, dir)
        // It is ours, and no business of the command.
        .env_remove("OCIFS_CREDS")
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let status = tokio::select! {
        status = child.wait() => status.map_err(failed)?,
        () = stop.wait() => {
            // It may have got the signal from the terminal, too; what is asked to end twice ends once.
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).ok();
            }
            tokio::select! {
                status = child.wait() => status.map_err(failed)?,
                // A second signal does not wait.
                () = stop.wait() => {
                    child.start_kill().map_err(failed)?;
                    child.wait().await.map_err(failed)?
                }
            }
        }
    };
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

/// The word with the mount in the place of every `{}`, as find and xargs have it.
fn put_in(word: &OsStr, dir: &Path) -> OsString {
    let mut out = Vec::new();
    for (at, part) in word.as_bytes().split(|&byte| byte == b'{').enumerate() {
        match part.strip_prefix(b"}") {
            Some(rest) if at > 0 => {
                out.extend_from_slice(dir.as_os_str().as_bytes());
                out.extend_from_slice(rest);
            }
            _ => {
                out.extend_from_slice(if at > 0 { b"{" } else { b"" });
                out.extend_from_slice(part);
            }
        }
    }
    OsString::from_vec(out)
}

async fn keep(image: &Arc<Image>, args: &RecordArgs) -> Result<(), Failure> {
    let Some(trace) = image.trace() else { return Ok(()) };
    let json = trace.to_json();
    if let Some(path) = &args.output {
        let failed = |error| Failure::local(format!("writing the trace {}", path.display()), &error);
        std::fs::write(path, &json).map_err(failed)?;
    }
    image.keep_trace(&json)?;
    let bytes: u64 = trace.reads.iter().map(|read| read.end - read.start).sum();
    tracing::info!(ranges = trace.reads.len(), bytes, "recorded");
    if args.push {
        image.push_trace(json).await?;
    }
    Ok(())
}

/// An empty directory for a mount, removed when it is not needed any more.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        let failed = |error: std::io::Error| {
            Failure::local(format!("making a directory for the mount in {}", base.display()), &error)
        };
        let template = base.join("ocifs-XXXXXX");
        let made = nix::unistd::mkdtemp(OsStr::new(&template)).map_err(|errno| failed(errno.into()))?;
        Ok(Self(std::path::absolute(made).map_err(failed)?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "cannot remove the directory of the mount");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_stands_for_braces_anywhere_in_a_word() {
        let put = |word: &str| put_in(OsStr::new(word), Path::new("/m")).into_string().unwrap();
        assert_eq!(put("{}"), "/m");
        assert_eq!(put("{}/a:{}/b"), "/m/a:/m/b");
        assert_eq!(put("a{b}{{}"), "a{b}{/m");
        assert_eq!(put("}{"), "}{");
    }
}
