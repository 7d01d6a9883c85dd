//! `ocifs run`: a mount that lasts as long as a command.
//!
//! A process of its own mounts, with the same options and the same sandbox as `mount`. It is bound to this process:
//! it unmounts when this one ends, however that happens. Only the command sees the overlay of `--rw`: it is in a
//! mount namespace that the kernel removes with its last process.

use std::ffi::OsString;
use std::path::Path;
use std::process::Child;

use clap::Args;
use nix::sys::signal::Signal;

use crate::mount::{self, MountError, UnmountMode, WritableOverlay};

use super::args::{ImageArgs, ServeArgs};
use super::background::{self, MountLifetime};
use super::exit::CliError;
use super::run_child::{self, ForwardedSignals, TemporaryMountpoint};
use super::{output, secret};

/// The arguments of `run`.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    #[command(flatten)]
    pub(super) serve: ServeArgs,

    /// Let the command write to a layer that is removed when it ends (needs root).
    #[arg(long)]
    pub(super) rw: bool,

    /// Command and its arguments. {} and the variable OCIFS_MOUNT stand for the mount.
    #[arg(value_name = "CMD", required = true, last = true)]
    pub(super) command: Vec<OsString>,
}

/// Runs the command on the mount. The exit code is the command's.
pub(super) fn run(args: &RunArgs, argv: &[OsString]) -> Result<(), CliError> {
    if secret::split(argv.get(1..).unwrap_or_default()).1.is_some() {
        return Err(CliError::usage(
            "run takes no --creds: others could read it for as long as the command runs; use --authfile, or the variable OCIFS_CREDS",
        ));
    }
    output::start_log(args.image.log_file.as_deref())?;
    secret::guard_memory();
    // One thread: the child is bound to the thread that starts it, and a mount namespace belongs to a thread.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::local("starting the event loop", &error))?;
    match runtime.block_on(on_a_mount(args, argv))? {
        0 => Ok(()),
        code => Err(CliError::already_reported(code)),
    }
}

async fn on_a_mount(args: &RunArgs, argv: &[OsString]) -> Result<u8, CliError> {
    let place = TemporaryMountpoint::with("mnt")?;
    let dir = place.path();
    let mut signals = ForwardedSignals::new()?;
    let started = background::start(
        &mount_instead(argv, dir),
        secret::SecretInput::of(&args.image.location),
        MountLifetime::Bound,
    )?;
    let pid = started.id();
    let mut mounting = tokio::task::spawn_blocking(move || started.mounted());
    let joined = |error| CliError::local("waiting for the mount", &error);
    let mut server = tokio::select! {
        mounted = &mut mounting => ServingChild { child: mounted.map_err(joined)??.0, dir },
        caught = signals.next() => {
            signal(pid, Signal::SIGTERM);
            // The process may have mounted in the meantime; it unmounts before it ends.
            let ended = tokio::select! {
                mounted = &mut mounting => mounted,
                _ = signals.next() => {
                    // A second signal kills at once. The monitor sees the end, unmounts and removes the directories.
                    signal(pid, Signal::SIGKILL);
                    mounting.await
                }
            };
            if let Ok((mut server, _)) = ended.map_err(joined)? {
                server.wait().map_err(|error| CliError::local("waiting for the mount to end", &error))?;
            }
            return Ok(128 + caught as u8);
        }
    };
    let ran = if args.rw {
        match WritableOverlay::over(dir, place.room()) {
            Ok(overlay) => run_child::run(&args.command, overlay.dir(), &mut signals).await,
            Err(error) => Err(error.into()),
        }
    } else {
        run_child::run(&args.command, dir, &mut signals).await
    };
    server.end()?;
    ran
}

/// The arguments of a `mount` at `dir` instead of those of `run`.
fn mount_instead(argv: &[OsString], dir: &Path) -> Vec<OsString> {
    let ours = argv.iter().take_while(|word| *word != "--");
    let words = ours.enumerate().map(|(at, word)| match at {
        1 => "mount".into(),
        _ if word == "--rw" => "--stackable".into(),
        _ => word.clone(),
    });
    words.chain([dir.as_os_str().to_owned()]).collect()
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // The process may have ended by itself.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).ok();
    }
}

/// The process that serves the mount.
struct ServingChild<'a> {
    child: Child,
    dir: &'a Path,
}

impl ServingChild<'_> {
    /// Ends the process, and makes sure that no mount is left.
    fn end(&mut self) -> Result<(), CliError> {
        signal(self.child.id(), Signal::SIGTERM);
        let status =
            self.child.wait().map_err(|error| CliError::local("waiting for the mount to end", &error))?;
        if !status.success() {
            tracing::warn!(%status, "the process that served the mount ended with an error");
        }
        // The mount goes away meanwhile: from this mount namespace after the others, and then its directory. So
        // retry.
        let mut last = Ok(());
        for _ in 0..20 {
            match mount::unmount(self.dir, UnmountMode::Lazy) {
                Ok(()) | Err(MountError::NotMounted { .. }) => return Ok(()),
                Err(error) => last = Err(error.into()),
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        last
    }
}

impl Drop for ServingChild<'_> {
    fn drop(&mut self) {
        // Only after an error: once `end` has waited, try_wait returns the exit status.
        if self.child.try_wait().is_ok_and(|status| status.is_none())
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, "cannot unmount; the mount may remain");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_run_are_those_of_a_mount_at_the_place() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let argv = words("ocifs run --rw --view merged ref:v1 -- sh -c --rw -- x");
        assert_eq!(
            mount_instead(&argv, Path::new("/tmp/p/mnt")),
            words("ocifs mount --stackable --view merged ref:v1 /tmp/p/mnt")
        );
    }
}
