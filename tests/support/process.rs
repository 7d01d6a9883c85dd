//! Runs other programs with a deadline, and captures their output.
//!
//! Never waits without a limit: a program that keeps a pipe open or never ends fails its test by name instead of
//! hanging the suite. The idea: output goes to files, not pipes, so a daemon that inherits them cannot block us.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proc_files::status_field;

/// Long enough for the slowest single step on two busy cores, short enough to fail inside a CI run.
const PATIENCE: Duration = Duration::from_secs(300);

/// Time limit for a condition that a working program meets at once: only a failing test waits so long. A process may
/// stand still for a minute while two cores run other suites.
pub(crate) const CONDITION_TIMEOUT: Duration = Duration::from_secs(120);

/// What a program left behind.
pub(crate) struct Finished {
    /// The command line, for messages.
    line: String,
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output, as bytes.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error, as text.
    pub(crate) stderr: String,
}

impl Finished {
    /// Passes the result on if the program ended with 0, and fails the test with its words otherwise.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}{}", self.line, self.text(), self.stderr);
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the program ended with one of `codes` and said each of `words` on standard error, in one
    /// message without a panic.
    #[track_caller]
    pub(crate) fn refused(&self, codes: &[i32], words: &[&str]) {
        let stderr = &self.stderr;
        assert!(
            self.code.is_some_and(|code| codes.contains(&code)),
            "{} ended with {:?} instead of one of {codes:?}: {stderr}",
            self.line,
            self.code
        );
        assert!(!stderr.contains("panicked"), "{} panicked: {stderr}", self.line);
        let folded = stderr.to_lowercase();
        for word in words {
            assert!(folded.contains(&word.to_lowercase()), "{} did not say {word:?}: {stderr}", self.line);
        }
    }
}

/// Runs `command` to its end, within [`PATIENCE`].
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Finished {
    run_within(command, PATIENCE)
}

/// Runs `command` to its end; one that is not done after `limit` is killed and fails the test.
#[track_caller]
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Finished {
    let line = format!("{command:?}");
    let mut stdout = tempfile::tempfile().expect("a file for standard output");
    let mut stderr = tempfile::tempfile().expect("a file for standard error");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("a second handle"))
        .stderr(stderr.try_clone().expect("a second handle"))
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let pid = child.id();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(child.wait()));
    let status = match ended.recv_timeout(limit) {
        Ok(status) => status.expect("a child of ours can be waited for"),
        Err(_) => {
            signal(pid, Signal::SIGKILL);
            panic!("{line} was not done after {limit:?}: {}", String::from_utf8_lossy(&whole(&mut stderr)));
        }
    };
    Finished {
        line,
        code: status.code(),
        stdout: whole(&mut stdout),
        stderr: String::from_utf8_lossy(&whole(&mut stderr)).into_owned(),
    }
}

/// Runs a shell script that must succeed, with `args` as `$1`, `$2`, ...
#[track_caller]
pub(crate) fn sh(script: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Finished {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "sh"]);
    for arg in args {
        command.arg(arg.as_ref());
    }
    run(&mut command).ok()
}

/// Sends a signal to one process; one that is already gone is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("process ids are below 2^22"));
    if let Err(errno) = kill(pid, signal) {
        assert_eq!(errno, nix::errno::Errno::ESRCH, "signal {signal} to {pid}");
    }
}

/// Gives programs that are started from now on the usual answers to signals. A suite that runs under nohup, or in the background of a
/// shell, ignores some, and what is ignored is inherited; what is caught is not (execve(2)). Other signals stay as they are.
pub(crate) fn let_signals_through() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mask = status_field(Path::new("/proc/self"), "SigIgn").expect("proc is mounted");
        let mask = u64::from_str_radix(&mask, 16).expect("a mask");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        for number in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ] {
            if mask >> (number as u32 - 1) & 1 == 1 {
                let kind = tokio::signal::unix::SignalKind::from_raw(number as i32);
                // The handler stays for the life of the process.
                tokio::signal::unix::signal(kind).map(drop).expect("a handler");
            }
        }
    });
}

/// Asks `condition` until it is true, up to `limit`; the answer says whether it became true.
pub(crate) fn becomes_true(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + limit;
    while !condition() {
        if std::time::Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(3));
    }
    true
}

/// What a test needs of the machine.
#[derive(Clone, Copy)]
pub(crate) enum Need<'a> {
    /// The rights of root: mounts, device nodes, foreign owners.
    Root,
    /// The kernel's FUSE device.
    Fuse,
    /// A program on the search path.
    Tool(&'a str),
    /// A directory or file that is not part of the project.
    Path(&'a std::path::Path),
}

/// Whether the machine has all of `needs`. What is missing is said on the real standard error (a passing test's own is
/// swallowed); on a CI machine it is a failure, because `tests/run` installs everything.
#[track_caller]
pub(crate) fn able(needs: &[Need<'_>]) -> bool {
    let_signals_through();
    let missing: Vec<String> = needs.iter().filter_map(lacking).collect();
    if missing.is_empty() {
        return true;
    }
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let why = format!("skipped {name}: needs {}", missing.join(", "));
    assert!(std::env::var_os("CI").is_none(), "{why}");
    writeln!(std::io::stderr(), "{why}").expect("standard error is open");
    // `tests/ran` reads it.
    if let Some(file) = std::env::var_os("OCIFS_SKIPPED") {
        let file = File::options().append(true).create(true).open(file);
        writeln!(file.expect("the file can be written"), "{name}").expect("the file takes a line");
    }
    false
}

fn lacking(need: &Need<'_>) -> Option<String> {
    let (there, name) = match need {
        Need::Root => (nix::unistd::geteuid().is_root(), "root".to_owned()),
        Need::Fuse => (Path::new("/dev/fuse").exists(), "/dev/fuse".to_owned()),
        Need::Tool(tool) => (on_path(tool), (*tool).to_owned()),
        Need::Path(path) => (path.exists(), path.display().to_string()),
    };
    (!there).then_some(name)
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).exists())
        || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists())
}

fn whole(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("a plain file");
    file.read_to_end(&mut bytes).expect("a plain file");
    bytes
}
