//! Mounting in the background, with a truthful answer.
//!
//! The command starts itself again with the same arguments. That child mounts, tells over its standard output that the mount
//! answers, and stays; the command prints what it was told and ends. Nothing is forked, so there is no state to repair.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;

use crate::mount::TEMPORARY;

use super::exit::Failure;
use super::secret;

/// Set in the child, to the number of the process that started it.
const MARK: &str = "OCIFS_BACKGROUND";
/// Set in a child that is to end with the process of this number; and by who wants a command to do so, until it has mounted.
const OWNER: &str = "OCIFS_OWNER";

/// Whether this process is the one that stays.
pub(super) fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the child and waits until it has mounted or failed. The exit code is the child's.
pub(super) fn launch(argv: &[OsString], input: secret::Input) -> Result<(), Failure> {
    // The child sees that we are gone for as long as it has not mounted, and is on its own from then on.
    follow_owner()?;
    let (_, said) = start(argv, input, Life::Own)?.mounted()?;
    // The mount is there, whether or not anybody can be told.
    if let Err(error) = std::io::stdout().write_all(&said)
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        // This process has no log; when standard error is closed too, nobody is left to tell.
        std::io::stderr().write_all(format!("ocifs: mounted, but cannot say so: {error}\n").as_bytes()).ok();
    }
    Ok(())
}

/// How long the mount of a child lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Until somebody takes it away.
    Own,
    /// No longer than the thread that started it.
    Bound,
}

/// A child that may not have mounted yet.
pub(super) struct Started(Child);

/// Starts this program with these arguments, its name first, as a child that mounts.
pub(super) fn start(argv: &[OsString], input: secret::Input, life: Life) -> Result<Started, Failure> {
    let mut command = secret::command(argv.get(1..).unwrap_or_default(), input)?;
    match life {
        Life::Own => command.env_remove(OWNER).env_remove(TEMPORARY),
        Life::Bound => command.env(OWNER, std::process::id().to_string()).env(TEMPORARY, "1"),
    };
    let child =
        command.env(MARK, std::process::id().to_string()).envs(arenas()).stdout(Stdio::piped()).spawn();
    child.map(Started).map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> Failure {
    let failure = Failure::local("starting in the background", error);
    match std::path::Path::new("/proc/self/exe").exists() {
        true => failure,
        // The program finds itself there, and its mounts.
        false => Failure::local("starting in the background: /proc is not mounted", error)
            .hinting(Some("mount -t proc proc /proc".to_owned())),
    }
}

impl Started {
    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has mounted, and gives the line that says so.
    pub(super) fn mounted(mut self) -> Result<(Child, Vec<u8>), Failure> {
        let mut said = Vec::new();
        if let Some(stdout) = &mut self.0.stdout {
            stdout.read_to_end(&mut said).map_err(|error| failed(&error))?;
        }
        if said.ends_with(b"\n") {
            return Ok((self.0, said));
        }
        // It closed its output without a word: it failed and has said why on standard error, which it shares with us.
        let status = self.0.wait().map_err(|error| failed(&error))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0);
        Err(match code {
            Some(code) => Failure::already_reported(code),
            None => Failure::local(
                format!("the background process ended with {status}"),
                &std::io::Error::other("no mount"),
            ),
        })
    }
}

/// How many heaps the child's allocator may have, unless the user has said so: with one for every thread, as glibc has it, a
/// mount keeps twice the memory that it needs (88 instead of 47 MiB for an image of 30 000 entries), at the same speed.
fn arenas() -> Option<(&'static str, &'static str)> {
    const VARIABLE: &str = "MALLOC_ARENA_MAX";
    std::env::var_os(VARIABLE).is_none().then_some((VARIABLE, "2"))
}

/// In the child, before anything else: lets go of what it inherited, as daemon(7) has it. One that is bound to its owner is asked to
/// end when that is gone, however it went.
pub(super) fn detach() -> Result<(), Failure> {
    follow_owner()?;
    close_inherited();
    Ok(())
}

/// Closes every descriptor above standard error: a lock of the caller would be held, and a pipe of the caller stay open, for as long
/// as there is a mount. Called before this process has opened anything.
fn close_inherited() {
    /// More than enough where the kernel does not list them.
    const MAX_UNLISTED: i32 = 1024;
    let listed: Vec<i32> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
        Err(_) => (0..MAX_UNLISTED).collect(),
    };
    for descriptor in listed.into_iter().filter(|descriptor| *descriptor > 2) {
        // The list itself was one of them, and is closed by now.
        nix::unistd::close(descriptor).ok();
    }
}

/// Lets signals through that the caller had blocked: nothing else ends a mount.
pub(super) fn unblock_signals() -> Result<(), Failure> {
    SigSet::all().thread_unblock().map_err(|errno| Failure::local("unblocking signals", &errno))
}

/// Leaves the terminal's session, so that its signals do not reach the mount. Only once there is a mount: the kernel lets nobody but
/// the process group of an automounter past its trap (autofs(5)).
fn leave_session() -> Result<(), Failure> {
    if nix::unistd::getpgrp() == nix::unistd::getpid() {
        // It leads a group of its own already, which is as good, and a leader cannot start a session.
        return Ok(());
    }
    nix::unistd::setsid().map(|_| ()).map_err(|error| Failure::local("starting a session", &error))
}

/// Has this process asked to end when its owner does, if it has one.
fn follow_owner() -> Result<(), Failure> {
    let Some(owner) = std::env::var_os(OWNER) else { return Ok(()) };
    let failed = |errno: nix::Error| Failure::local("following the process that wants the mount", &errno);
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(failed)?;
    // It may have gone before there was anything to follow.
    match owner.to_str() == Some(&nix::unistd::getppid().to_string()) {
        true => Ok(()),
        false => Err(Failure::interrupted()),
    }
}

/// In the child: returns when the command that started it is gone.
pub(super) async fn abandoned() {
    /// How long after the command its child may last.
    const LOOK: Duration = Duration::from_millis(200);
    // As it was told: it may have gone before it could be looked at.
    let started_by = std::env::var_os(MARK);
    while started_by.as_deref() == Some(OsStr::new(&nix::unistd::getppid().to_string())) {
        tokio::time::sleep(LOOK).await;
    }
}

/// In the child: tells that the mount answers, and lets go of everything that is the caller's.
pub(super) fn ready(message: &str) -> Result<(), Failure> {
    leave_session()?;
    let failed = |error: std::io::Error| Failure::local("telling that the mount is there", &error);
    // Nothing that can fail comes after the report: the command would report a mount that then goes.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    // The command ends when it sees the outputs close, and the caller may then look at the directories in use.
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
