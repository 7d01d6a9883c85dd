//! Running tools and timing them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, stop};

/// A command that gets no input.
pub(crate) fn tool(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Whether `program` can be started.
pub(crate) fn installed(program: &str) -> bool {
    tool("sh").args(["-c", "command -v \"$0\"", program]).output().is_ok_and(|output| output.status.success())
}

/// Fails with the first of these programs that is missing.
pub(crate) fn need(programs: &[&str]) -> Result<()> {
    match programs.iter().find(|program| !installed(program)) {
        Some(missing) => Err(format!("{missing} is not installed").into()),
        None => Ok(()),
    }
}

/// Runs `command` to its end. Its output is shown only when it fails.
pub(crate) fn run(command: &mut Command) -> Result<Duration> {
    Ok(finish(command)?.0)
}

/// Runs `command` to its end and returns what it wrote.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(finish(command)?.1)
}

/// Runs a command that takes something down: also after a signal, and whatever comes of it.
pub(crate) fn clean(command: &mut Command) {
    command.output().ok();
}

fn finish(command: &mut Command) -> Result<(Duration, String)> {
    stop::check()?;
    let start = Instant::now();
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let time = start.elapsed();
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} ended with {}\n{stdout}{stderr}", output.status).into());
    }
    Ok((time, stdout.into_owned()))
}

/// What a command wrote, and how long it took.
pub(crate) struct Drained {
    pub(crate) time: Duration,
    pub(crate) bytes: u64,
    pub(crate) lines: usize,
}

/// Runs `command` to its end, reads what it writes and returns the bytes and the lines of it.
pub(crate) fn drain(command: &mut Command) -> Result<Drained> {
    stop::check()?;
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().ok_or("the child has no output")?;
    let mut buf = vec![0; 1 << 20];
    let (mut bytes, mut lines) = (0, 0);
    loop {
        let len = output.read(&mut buf)?;
        if len == 0 {
            break;
        }
        bytes += len as u64;
        lines += buf[..len].iter().filter(|byte| **byte == b'\n').count();
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("{command:?} ended with {status}").into());
    }
    Ok(Drained { time: start.elapsed(), bytes, lines })
}

/// Names every entry under `tree`.
pub(crate) fn find(tree: &Path) -> Result<Drained> {
    drain(tool("find").arg(tree))
}

/// Reads every byte under `tree`. The archive goes through a pipe: GNU tar reads no file when it writes to /dev/null.
pub(crate) fn read_all(tree: &Path) -> Result<Drained> {
    drain(tool("tar").args(["--create", "--file=-", "--directory"]).arg(tree).arg("."))
}

/// Reads one file.
pub(crate) fn cat(file: &Path) -> Result<Drained> {
    drain(tool("cat").arg(file))
}

/// Writes back what is dirty, so that it does not disturb what is measured next.
pub(crate) fn settle() -> Result<()> {
    run(&mut tool("sync")).map(drop)
}

/// Forgets the page cache. Only root may.
pub(crate) fn drop_page_cache() -> Result<()> {
    settle()?;
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// Reads a whole file from its start, 1 MiB at a time.
pub(crate) fn read_sequentially(file: &Path) -> Result<Duration> {
    let start = Instant::now();
    let mut file = File::open(file)?;
    let mut buf = vec![0; 1 << 20];
    while file.read(&mut buf)? > 0 {}
    Ok(start.elapsed())
}

/// Reads so many blocks of 4 KiB at places that are the same every time.
pub(crate) fn read_randomly(path: &Path, reads: u64) -> Result<Duration> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / 4096;
    if blocks == 0 {
        return Err(format!("{} is shorter than 4 KiB", path.display()).into());
    }
    let mut buf = [0; 4096];
    let start = Instant::now();
    for number in 0..reads {
        // A Weyl sequence with the golden ratio visits the file evenly and without order.
        let block = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
        file.read_exact_at(&mut buf, block * 4096)?;
    }
    Ok(start.elapsed())
}
