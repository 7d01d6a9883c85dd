//! Background mounts: a child process that reports whether the mount succeeded.
//!
//! The command starts itself again with the same arguments. The child mounts, reports on its standard output that the
//! mount answers, and stays; the command prints that line and ends. Nothing is forked, so there is no state to
//! repair.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;

use crate::sandbox::{BACKGROUND_VARIABLE, OWNER_VARIABLE, TEMPORARY_VARIABLE};

use super::exit::CliError;
use super::{output, secret};

/// Whether this process is the background child.
pub(super) fn is_child() -> bool {
    std::env::var_os(BACKGROUND_VARIABLE).is_some()
}

/// Starts the child and waits until it has mounted or failed. The exit code is the child's.
pub(super) fn launch(argv: &[OsString], input: secret::SecretInput) -> Result<(), CliError> {
    // Until it has mounted, the child ends with this process; afterwards it is independent.
    follow_owner()?;
    let (_, output) = start(argv, input, MountLifetime::Own)?.mounted()?;
    // The mount exists, whether or not its line can be printed.
    if let Err(error) = std::io::stdout().write_all(&output)
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        // This process has no log; standard error may be closed too.
        std::io::stderr()
            .write_all(format!("ocifs: mounted, but cannot report it: {error}\n").as_bytes())
            .ok();
    }
    Ok(())
}

/// The lifetime of a child's mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MountLifetime {
    /// Until it is unmounted.
    Own,
    /// At most as long as the thread that started the child.
    Bound,
}

/// A child that may not have mounted yet.
pub(super) struct BackgroundChild(Child);

/// Starts this program with these arguments, its name first, as a child that mounts.
pub(super) fn start(
    argv: &[OsString],
    input: secret::SecretInput,
    life: MountLifetime,
) -> Result<BackgroundChild, CliError> {
    let mut command = secret::command(argv.get(1..).unwrap_or_default(), input)?;
    match life {
        MountLifetime::Own => command.env_remove(OWNER_VARIABLE).env_remove(TEMPORARY_VARIABLE),
        MountLifetime::Bound => {
            command.env(OWNER_VARIABLE, std::process::id().to_string()).env(TEMPORARY_VARIABLE, "1")
        }
    };
    let child =
        command.env(BACKGROUND_VARIABLE, std::process::id().to_string()).stdout(Stdio::piped()).spawn();
    child.map(BackgroundChild).map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> CliError {
    let failure = CliError::local("starting in the background", error);
    match std::path::Path::new("/proc/self/exe").exists() {
        true => failure,
        // The program finds itself in /proc, and its mounts.
        false => CliError::local("starting in the background: /proc is not mounted", error)
            .hinting(Some("mount -t proc proc /proc".to_owned())),
    }
}

impl BackgroundChild {
    /// The PID of the child.
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until the child has mounted. Returns it with the line that it reported.
    pub(super) fn mounted(mut self) -> Result<(Child, Vec<u8>), CliError> {
        let mut output = Vec::new();
        if let Some(stdout) = &mut self.0.stdout {
            stdout.read_to_end(&mut output).map_err(|error| failed(&error))?;
        }
        if output.ends_with(b"\n") {
            return Ok((self.0, output));
        }
        // The child closed its output without a line: it failed, and has reported the reason on the shared standard
        // error.
        let status = self.0.wait().map_err(|error| failed(&error))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0);
        Err(match code {
            Some(code) => CliError::already_reported(code),
            None => CliError::local(
                format!("the background process ended with {status}"),
                &std::io::Error::other("no mount"),
            ),
        })
    }
}

/// In the child, first of all: closes inherited descriptors, as daemon(7) describes. A bound child gets a signal when
/// its owner ends, for any reason.
pub(super) fn detach() -> Result<(), CliError> {
    follow_owner()?;
    close_inherited();
    Ok(())
}

/// Closes every descriptor above standard error. Otherwise a lock of the caller would be held, and a pipe of the
/// caller stay open, for the lifetime of the mount. Called before this process has opened anything.
fn close_inherited() {
    /// Limit for the case that /proc does not list the descriptors; more than enough.
    const MAX_UNLISTED: i32 = 1024;
    let listed: Vec<i32> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
        Err(_) => (0..MAX_UNLISTED).collect(),
    };
    for descriptor in listed.into_iter().filter(|descriptor| *descriptor > 2) {
        // The descriptor of the listing itself is among them, and is closed by now.
        nix::unistd::close(descriptor).ok();
    }
}

/// Unblocks signals that the caller had blocked: only signals and an unmount end a mount.
pub(super) fn unblock_signals() -> Result<(), CliError> {
    SigSet::all().thread_unblock().map_err(|errno| CliError::local("unblocking signals", &errno))
}

/// Leaves the terminal's session, so that its signals do not reach the mount. Called only once the mount exists: an
/// automounter's trap lets only its own process group pass (autofs(5)).
fn leave_session() -> Result<(), CliError> {
    if nix::unistd::getpgrp() == nix::unistd::getpid() {
        // The process leads its own group already. That is as good, and a group leader cannot start a session.
        return Ok(());
    }
    nix::unistd::setsid().map(|_| ()).map_err(|error| CliError::local("starting a session", &error))
}

/// Requests SIGTERM for the end of the owner, if this process has one.
fn follow_owner() -> Result<(), CliError> {
    let Some(owner) = std::env::var_os(OWNER_VARIABLE) else { return Ok(()) };
    let failed = |errno: nix::Error| CliError::local("watching the process that requested the mount", &errno);
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(failed)?;
    // The owner may have ended before the request.
    match owner.to_str() == Some(&nix::unistd::getppid().to_string()) {
        true => Ok(()),
        false => Err(CliError::interrupted()),
    }
}

/// In the child: returns when the command that started it has ended.
pub(super) async fn abandoned() {
    /// Poll interval: the longest time that the child outlives the command.
    const PARENT_POLL_INTERVAL: Duration = Duration::from_millis(200);
    // The PID from the variable: the command may have ended before a first getppid().
    let started_by = std::env::var_os(BACKGROUND_VARIABLE);
    while started_by.as_deref() == Some(OsStr::new(&nix::unistd::getppid().to_string())) {
        tokio::time::sleep(PARENT_POLL_INTERVAL).await;
    }
}

/// In the child: reports that the mount answers, and gives up the caller's output and directory.
pub(super) fn ready(message: &str) -> Result<(), CliError> {
    leave_session()?;
    let failed = |error: std::io::Error| CliError::local("reporting the mount as ready", &error);
    // Nothing that can fail comes after the report: otherwise the command would report a mount that then ends.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    // The command ends when the outputs close; the caller may then check which directories are in use.
    std::env::set_current_dir("/").map_err(failed)?;
    let mut stdout = std::io::stdout();
    stdout
        .write_all(crate::io::printable(message).as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(failed)?;
    let moved = nix::unistd::dup2_stdout(&null).and_then(|()| nix::unistd::dup2_stderr(&null));
    moved.map_err(|errno| failed(errno.into()))
}

/// Reports to the caller that the mount exists.
pub(super) fn say(message: &str, in_background: bool) -> Result<(), CliError> {
    if in_background { ready(message) } else { print_line(message) }
}

fn print_line(message: &str) -> Result<(), CliError> {
    let mut out = output::stdout();
    output::printed(writeln!(out, "{message}").and_then(|()| out.flush()))
}
