//! A command that is given a mount: its words, the signals that are meant for it, and its end.
//!
//! Never mounts. The idea: whoever calls ocifs should see the command itself, its exit code, and that signals reach it.

use std::ffi::{OsStr, OsString};
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::Failure;

/// The variable that tells a command where its mount is.
const MOUNT_VARIABLE: &str = "OCIFS_MOUNT";

/// The signals that a command gets in place of ocifs.
pub(super) struct Forwarded(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Forwarded {
    /// From now on they are caught, but for those that whoever started us wants to be ignored, as nohup does: the command inherits that.
    pub(super) fn new() -> Result<Self, Failure> {
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
            .map_err(|error| Failure::local("catching signals", &error))
    }

    /// The next one.
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

/// The signals that this process ignores, by proc_pid_status(5): the bit of signal 1 is the lowest.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

fn has(mask: u64, signal: Signal) -> bool {
    mask >> (signal as u32 - 1) & 1 == 1
}

/// Whether this process ignores a signal, as whoever started it wants.
pub(super) fn is_ignored(signal: Signal) -> bool {
    has(ignored(), signal)
}

/// Whether a signal may come from the keys of our terminal, which sends it to the command as well: it is the one in front there.
fn is_typed(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
        && std::fs::File::open("/dev/tty").is_ok_and(|terminal| {
            nix::unistd::tcgetpgrp(terminal).is_ok_and(|group| group == nix::unistd::getpgrp())
        })
}

/// Runs `command` to its end and gives its exit code, or 128 and the number of the signal that ended it, as a shell does. Every
/// `{}` in its words stands for `dir`.
pub(super) async fn run(command: &[OsString], dir: &Path, signals: &mut Forwarded) -> Result<u8, Failure> {
    let mut words = command.iter().map(|word| put_in(word, dir));
    let program = words.next().unwrap_or_default();
    let failed = |error: Error| Failure::not_run(&program, &error);
    let mut child = tokio::process::Command::new(&program)
        .args(words)
        .env(MOUNT_VARIABLE, dir)
        // It is ours, and no business of the command.
        .env_remove("OCIFS_CREDS")
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
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
            // It may have ended by now.
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), caught).ok();
        }
    }
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

/// A directory for a mount, removed when it is not needed any more.
pub(super) struct Place {
    /// A new directory, for nobody else.
    room: PathBuf,
    /// It, or a directory in it.
    dir: PathBuf,
}

impl Place {
    /// A new and empty one.
    pub(super) fn new() -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        let failed = |error: Error| {
            Failure::local(format!("making a directory for the mount in {}", base.display()), &error)
        };
        let template = base.join("ocifs-XXXXXX");
        let made = nix::unistd::mkdtemp(OsStr::new(&template)).map_err(|errno| failed(errno.into()))?;
        let room = std::path::absolute(made).map_err(failed)?;
        Ok(Self { dir: room.clone(), room })
    }

    /// The same with the mount in a directory of this name, so that there is room beside it.
    pub(super) fn with(name: &str) -> Result<Self, Failure> {
        let mut place = Self::new()?;
        let dir = place.room.join(name);
        std::fs::create_dir(&dir)
            .map_err(|error| Failure::local(format!("making the directory {}", dir.display()), &error))?;
        place.dir = dir;
        Ok(place)
    }

    /// Where the mount goes: an absolute name.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// What is there for the mount and for what it needs beside it.
    pub(super) fn room(&self) -> &Path {
        &self.room
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let dirs = [&self.dir, &self.room];
        for dir in dirs {
            // The process that mounted may have been faster.
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
