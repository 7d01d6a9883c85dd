//! Child command of `run` and `record`: its arguments, signal forwarding and exit code.
//!
//! The caller of ocifs sees the command itself: its exit code, and its reaction to signals.

use std::ffi::{OsStr, OsString};
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::sandbox::PRIVATE_VARIABLES;

use super::exit::CliError;

/// The variable that holds the mount point in the environment of the command.
const MOUNT_VARIABLE: &str = "OCIFS_MOUNT";

/// The signals that are forwarded to the command.
pub(super) struct ForwardedSignals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl ForwardedSignals {
    /// Catches the signals from now on. Signals that are ignored at the start, as under nohup, stay ignored, also in
    /// the command.
    pub(super) fn new() -> Result<Self, CliError> {
        let ignored = ignored();
        let kinds = [
            (Signal::SIGINT, SignalKind::interrupt()),
            (Signal::SIGTERM, SignalKind::terminate()),
            (Signal::SIGHUP, SignalKind::hangup()),
            (Signal::SIGQUIT, SignalKind::quit()),
            (Signal::SIGUSR1, SignalKind::user_defined1()),
            (Signal::SIGUSR2, SignalKind::user_defined2()),
        ];
        let kinds = kinds.into_iter().filter(|(number, _)| !has(ignored, *number));
        let caught = kinds.map(|(number, kind)| Ok((number, signal(kind)?)));
        caught
            .collect::<Result<_, Error>>()
            .map(Self)
            .map_err(|error| CliError::local("catching signals", &error))
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, caught) in &mut self.0 {
                if caught.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The signals that this process ignores, from proc_pid_status(5): the lowest bit is signal 1.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

fn has(mask: u64, signal: Signal) -> bool {
    mask >> (signal as u32 - 1) & 1 == 1
}

/// Whether this process ignores a signal, as its parent has set up.
pub(super) fn is_ignored(signal: Signal) -> bool {
    has(ignored(), signal)
}

/// Whether a signal may come from a key of our terminal. The terminal sends it to the command as well, as both are in
/// its foreground process group.
fn is_typed(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
        && std::fs::File::open("/dev/tty").is_ok_and(|terminal| {
            nix::unistd::tcgetpgrp(terminal).is_ok_and(|group| group == nix::unistd::getpgrp())
        })
}

/// Runs `command` to its end. Returns its exit code, or 128 plus the number of the signal that ended it, as a shell
/// does. Every `{}` in its words stands for `dir`.
pub(super) async fn run(
    command: &[OsString],
    dir: &Path,
    signals: &mut ForwardedSignals,
) -> Result<u8, CliError> {
    let mut words = command.iter().map(|word| put_in(word, dir));
    let program = words.next().unwrap_or_default();
    let failed = |error: Error| CliError::not_run(&program, &error);
    let mut child = tokio::process::Command::new(&program);
    // The credentials and the role are those of ocifs, not of the command.
    PRIVATE_VARIABLES.iter().for_each(|variable| {
        child.env_remove(variable);
    });
    let mut child = child.args(words).env(MOUNT_VARIABLE, dir).kill_on_drop(true).spawn().map_err(failed)?;
    loop {
        let caught = tokio::select! {
            status = child.wait() => {
                let status = status.map_err(failed)?;
                let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
                return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
            }
            caught = signals.next() => caught,
        };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
            && !is_typed(caught)
        {
            // The command may have ended by now.
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), caught).ok();
        }
    }
}

/// The word with the mount point instead of every `{}`, as in find and xargs.
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

/// A temporary directory for a mount, removed on drop.
pub(super) struct TemporaryMountpoint {
    /// A new directory with access for this user alone.
    room: PathBuf,
    /// The mount point: the directory above, or one in it.
    dir: PathBuf,
}

impl TemporaryMountpoint {
    /// A new and empty directory as the mount point.
    pub(super) fn new() -> Result<Self, CliError> {
        let base = std::env::temp_dir();
        let failed = |error: Error| {
            CliError::local(format!("making a directory for the mount in {}", base.display()), &error)
        };
        let template = base.join("ocifs-XXXXXX");
        let made = nix::unistd::mkdtemp(OsStr::new(&template)).map_err(|errno| failed(errno.into()))?;
        let room = std::path::absolute(made).map_err(failed)?;
        Ok(Self { dir: room.clone(), room })
    }

    /// A new directory with the mount point in a subdirectory of this name, so that files can lie beside the mount.
    pub(super) fn with(name: &str) -> Result<Self, CliError> {
        let mut place = Self::new()?;
        let dir = place.room.join(name);
        std::fs::create_dir(&dir)
            .map_err(|error| CliError::local(format!("making the directory {}", dir.display()), &error))?;
        place.dir = dir;
        Ok(place)
    }

    /// The mount point: an absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// The temporary directory: the mount point, or the directory around it.
    pub(super) fn room(&self) -> &Path {
        &self.room
    }
}

impl Drop for TemporaryMountpoint {
    fn drop(&mut self) {
        let dirs = [&self.dir, &self.room];
        for dir in dirs {
            // The process that mounted may have removed it first.
            if let Err(error) = std::fs::remove_dir(dir)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, dir = %dir.display(), "cannot remove the directory of the mount");
            }
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
