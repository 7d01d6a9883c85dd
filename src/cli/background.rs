//! Mounting in the background, with a truthful answer.
//!
//! The command starts itself again with the same arguments. That child mounts, tells over its standard output that the mount
//! answers, and stays; the command prints what it was told and ends. Nothing is forked, so there is no state to repair.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use super::exit::Failure;
use super::secret;

/// Set in the child.
const MARK: &str = "OCIFS_BACKGROUND";

/// Whether this process is the one that stays.
pub(super) fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the child and waits until it has mounted or failed. The exit code is the child's.
pub(super) fn launch(argv: &[OsString]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::local("starting in the background", &error);
    let mut child = secret::command(argv.get(1..).unwrap_or_default())?
        .env(MARK, "1")
        .envs(arenas())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = Vec::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut said).map_err(failed)?;
    }
    if said.ends_with(b"\n") {
        // The mount is there, whether or not anybody can be told.
        if let Err(error) = std::io::stdout().write_all(&said)
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            // This process has no log; when standard error is closed too, nobody is left to tell.
            std::io::stderr()
                .write_all(format!("ocifs: mounted, but cannot say so: {error}\n").as_bytes())
                .ok();
        }
        return Ok(());
    }
    // It closed its output without a word: it failed and has said why on standard error, which it shares with us.
    let status = child.wait().map_err(failed)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0);
    match code {
        Some(code) => Err(Failure::already_reported(code)),
        None => Err(Failure::local(
            format!("the background process ended with {status}"),
            &std::io::Error::other("no mount"),
        )),
    }
}

/// How many heaps the child's allocator may have, unless the user has said so: with one for every thread, as glibc has it, a
/// mount keeps twice the memory that it needs (88 instead of 47 MiB for an image of 30 000 entries), at the same speed.
fn arenas() -> Option<(&'static str, &'static str)> {
    const VARIABLE: &str = "MALLOC_ARENA_MAX";
    std::env::var_os(VARIABLE).is_none().then_some((VARIABLE, "2"))
}

/// In the child, before anything else: leaves the terminal's session, so that its signals do not reach the mount.
pub(super) fn detach() -> Result<(), Failure> {
    if nix::unistd::getpgrp() == nix::unistd::getpid() {
        // It leads a group of its own already, which is as good, and a leader cannot start a session.
        return Ok(());
    }
    nix::unistd::setsid().map(|_| ()).map_err(|error| Failure::local("starting a session", &error))
}

/// In the child: returns when the command that started it is gone.
pub(super) async fn abandoned() {
    /// How long after the command its child may last.
    const LOOK: Duration = Duration::from_millis(200);
    let started_by = nix::unistd::getppid();
    while nix::unistd::getppid() == started_by {
        tokio::time::sleep(LOOK).await;
    }
}

/// In the child: tells that the mount answers, and lets go of everything that is the caller's.
pub(super) fn ready(message: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::local("telling that the mount is there", &error);
    let mut stdout = std::io::stdout();
    stdout
        .write_all(message.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(failed)?;
    // Before the outputs: the command ends when it sees them close, and whoever waited for it may look where we are.
    std::env::set_current_dir("/").map_err(failed)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    let moved = nix::unistd::dup2_stdout(&null).and_then(|()| nix::unistd::dup2_stderr(&null));
    moved.map_err(|errno| failed(errno.into()))
}
