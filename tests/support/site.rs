//! One user of ocifs: a home, a cache and mount points of its own, and the binary under test.
//!
//! Never reads the caller's configuration and never leaves a daemon running. The idea: a [`Mount`] cannot exist unless
//! the mount came up, and cannot end well unless its process ended too.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::proc_files::holds_nothing;
use crate::process::{
    CONDITION_TIMEOUT, Finished, becomes_true, let_signals_through, run, run_within, signal,
};
use crate::scratch::{MountLine, Scratch, mounted_at};

/// An unmount has nothing to wait for but the scheduler of a loaded machine.
const PROMPT: Duration = CONDITION_TIMEOUT;

/// The binary under test; `OCIFS_BIN` names an installed one instead of cargo's.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("OCIFS_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ocifs")), PathBuf::from)
}

/// Copies the binary under test, to run the copy. By a program of its own: one that another test starts holds the files
/// of this process from its fork to its exec, and no file runs while it is open for writing (ETXTBSY, execve(2)).
#[track_caller]
pub(crate) fn copy_binary(to: &Path) {
    run(Command::new("cp").arg(binary()).arg(to)).ok();
}

/// A user with an empty home and an empty cache.
pub(crate) struct Site {
    scratch: Scratch,
}

impl Site {
    /// A new user.
    pub(crate) fn new() -> Self {
        let_signals_through();
        let scratch = Scratch::new();
        scratch.subdir("home");
        Self { scratch }
    }

    /// Where files of the test may go.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The cache directory.
    pub(crate) fn cache(&self) -> PathBuf {
        self.scratch.join("cache")
    }

    /// The binary with this user's home and cache and nobody's configuration.
    pub(crate) fn command(&self) -> Command {
        self.tool(binary())
    }

    /// Another program of this user, such as one that starts the binary.
    pub(crate) fn tool(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.scratch.join("home")).env("OCIFS_CACHE_DIR", self.cache());
        command.current_dir(self.scratch.path());
        command
    }

    /// Runs the binary with these arguments to its end.
    #[track_caller]
    pub(crate) fn ocifs(&self, args: &[&str]) -> Finished {
        run_within(self.command().args(args), Duration::from_secs(120))
    }

    /// An empty directory to mount on.
    pub(crate) fn mount_point(&self, name: &str) -> PathBuf {
        self.scratch.subdir(name)
    }

    /// Mounts `reference` at the directory `mnt`, in the background.
    #[track_caller]
    pub(crate) fn mount(&self, reference: &str, options: &[&str]) -> Mount {
        self.mount_at("mnt", reference, options)
    }

    /// Mounts `reference` at the directory called `name`, in the background.
    #[track_caller]
    pub(crate) fn mount_at(&self, name: &str, reference: &str, options: &[&str]) -> Mount {
        let dir = self.mount_point(name);
        let mut command = self.command();
        command.arg("mount").args(options).arg(reference).arg(&dir);
        Mount::up(&mut command, dir)
    }

    /// Tries to mount and expects to be refused: nothing may be mounted and no process may be left.
    #[track_caller]
    pub(crate) fn mount_refused(&self, reference: &str, options: &[&str], codes: &[i32], words: &[&str]) {
        let dir = self.mount_point("refused");
        let mut command = self.command();
        command.arg("mount").args(options).arg(reference).arg(&dir);
        let finished = run_within(&mut command, Duration::from_secs(120));
        finished.refused(codes, words);
        assert!(mounted_at(&dir).is_none(), "a refused mount left {dir:?} mounted");
        assert!(fs::read_dir(&dir).expect("the mount point is there").next().is_none());
        assert!(becomes_true(PROMPT, || daemons(&dir).is_empty()), "a process is left for {dir:?}");
    }

    /// Mounts with `-f` and returns the process once it has announced the mount. Before that its own first access may
    /// keep the mount in use.
    #[track_caller]
    pub(crate) fn mount_foreground(&self, reference: &str, options: &[&str]) -> (Child, PathBuf) {
        let dir = self.mount_point("foreground");
        let mut command = self.command();
        command.args(["mount", "-f"]).args(options).arg(reference).arg(&dir);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let line = announcement(&mut child);
        assert!(line.contains(" mounted at ") && mounted_at(&dir).is_some(), "{command:?} printed {line:?}");
        (child, dir)
    }
}

/// The first line that a child with a piped standard output prints, as a foreground mount that is ready does; empty when
/// none comes. What it prints later is read and dropped.
pub(crate) fn announcement(child: &mut Child) -> String {
    let mut stdout = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    let (announce, announced) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        stdout.read_line(&mut line).ok();
        announce.send(line).ok();
        io::copy(&mut stdout, &mut io::sink()).ok();
    });
    announced.recv_timeout(CONDITION_TIMEOUT).unwrap_or_default()
}

/// A mount that came up.
pub(crate) struct Mount {
    dir: PathBuf,
    pid: u32,
    printed: String,
    ended: bool,
}

impl Mount {
    /// Runs a mounting command that goes to the background, and holds it to its word: exit code 0 means that the
    /// directory is mounted and served by one process.
    #[track_caller]
    pub(crate) fn up(command: &mut Command, dir: PathBuf) -> Self {
        let finished = run_within(command, Duration::from_secs(120)).ok();
        let line = mounted_at(&dir);
        assert!(line.is_some(), "{command:?} ended with 0 and mounted nothing: {}", finished.stderr);
        let pids = daemons(&dir);
        assert_eq!(pids.len(), 1, "{command:?} is served by processes {pids:?}");
        Self { dir, pid: pids[0], printed: finished.text(), ended: false }
    }

    /// The mount point.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the mount.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// What the mounting command printed.
    pub(crate) fn printed(&self) -> &str {
        &self.printed
    }

    /// The digest that the mounting command printed, `sha256:...`.
    #[track_caller]
    pub(crate) fn digest(&self) -> String {
        let (_, tail) =
            self.printed.split_once('@').unwrap_or_else(|| panic!("no digest in {:?}", self.printed));
        tail.split_whitespace().next().unwrap_or_default().to_owned()
    }

    /// The process that serves it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its line in the mount table.
    #[track_caller]
    pub(crate) fn line(&self) -> MountLine {
        mounted_at(&self.dir).expect("it is mounted")
    }

    /// `.ocifs/status.json`.
    pub(crate) fn status(&self) -> String {
        fs::read_to_string(self.join(".ocifs/status.json")).expect("every mount has a status")
    }

    /// Unmounts with `ocifs umount` and waits for the process to end.
    #[track_caller]
    pub(crate) fn unmount(mut self) {
        self.end(Command::new(binary()).arg("umount"));
    }

    /// Unmounts with the system's own tool, as an outsider would.
    #[track_caller]
    pub(crate) fn unmount_from_outside(mut self) {
        self.end(&mut Command::new("umount"));
    }

    /// Kills the process as a crash would and clears the dead mount away.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.ended = true;
        signal(self.pid, Signal::SIGKILL);
        assert!(becomes_true(PROMPT, || self.is_over()), "process {} survived", self.pid);
        run(Command::new("umount").arg("-l").arg(&self.dir)).ok();
    }

    /// Leaves the rest to the caller, who has ended it in a way of its own.
    pub(crate) fn forget(mut self) {
        self.ended = true;
    }

    #[track_caller]
    fn end(&mut self, umount: &mut Command) {
        self.ended = true;
        unmounts(umount.arg(&self.dir));
        assert!(mounted_at(&self.dir).is_none(), "{:?} is still mounted", self.dir);
        assert!(becomes_true(PROMPT, || self.is_over()), "process {} outlived its mount", self.pid);
    }

    /// Whether no process serves it, and the one that did has let go of the cache.
    fn is_over(&self) -> bool {
        daemons(&self.dir).is_empty() && holds_nothing(self.pid)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if thread::panicking() {
            // The test has failed already: only leave nothing behind.
            Command::new("umount").arg("-l").arg(&self.dir).status().ok();
            signal(self.pid, Signal::SIGKILL);
            return;
        }
        self.end(Command::new(binary()).arg("umount"));
    }
}

/// Runs a command that unmounts and must succeed. A program that another test starts holds our open files from its fork to its
/// exec, and the kernel calls that busy; nothing else here can.
#[track_caller]
pub(crate) fn unmounts(command: &mut Command) {
    let mut finished = run(command);
    becomes_true(CONDITION_TIMEOUT, || {
        let busy = finished.stderr.contains("in use") || finished.stderr.contains("busy");
        if busy {
            finished = run(command);
        }
        !busy
    });
    finished.ok();
}

/// The processes of the binary under test whose arguments name `dir`.
pub(crate) fn daemons(dir: &Path) -> Vec<u32> {
    let image = fs::canonicalize(binary()).expect("the binary is there");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(arguments) = fs::read(entry.path().join("cmdline")) else { continue };
        if !arguments.split(|byte| *byte == 0).any(|word| word == dir.as_os_str().as_bytes()) {
            continue;
        }
        let is_ours = match fs::read_link(entry.path().join("exe")) {
            Ok(exe) => exe == image,
            // Without CAP_SYS_PTRACE the link of a process that gave up rights is hidden, and its name is not.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                fs::read(entry.path().join("comm")).is_ok_and(|name| name == b"ocifs\n")
            }
            Err(_) => false,
        };
        if is_ours {
            found.push(pid);
        }
    }
    found
}

/// The process that mounts and unmounts for the process `pid`, which has given up the right to.
pub(crate) fn monitor(pid: u32) -> Option<u32> {
    let parent = format!("\nPPid:\t{pid}\n");
    let of = |entry: fs::DirEntry| {
        let found = entry.file_name().to_str()?.parse().ok()?;
        let ours = fs::read(entry.path().join("cmdline")).ok()?.starts_with(b"ocifs-monitor\0");
        (ours && fs::read_to_string(entry.path().join("status")).ok()?.contains(&parent)).then_some(found)
    };
    fs::read_dir("/proc").expect("proc is mounted").flatten().find_map(of)
}
