//! Running tools, timing them, and writing down the result.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// A command that gets no input.
pub(crate) fn tool(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs `command` to its end. Its output is shown only when it fails.
pub(crate) fn run(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let time = start.elapsed();
    if !output.status.success() {
        return Err(format!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(time)
}

/// Runs `command` to its end, reads what it writes and returns the bytes and the lines of it.
pub(crate) fn drain(command: &mut Command) -> Result<Drained> {
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

/// What a command wrote, and how long it took.
pub(crate) struct Drained {
    pub(crate) time: Duration,
    pub(crate) bytes: u64,
    pub(crate) lines: usize,
}

/// Names every entry under `tree`.
pub(crate) fn find(tree: &Path) -> Result<Drained> {
    drain(tool("find").arg(tree))
}

/// Reads every byte under `tree`. The archive goes through a pipe: GNU tar reads no file when it writes to /dev/null.
pub(crate) fn read_all(tree: &Path) -> Result<Drained> {
    drain(tool("tar").args(["--create", "--file=-", "--directory"]).arg(tree).arg("."))
}

/// Forgets the page cache. Only root may.
pub(crate) fn drop_page_cache() -> Result<()> {
    run(&mut tool("sync"))?;
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// The samples of one quantity, in seconds, bytes or whatever the column says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// The middle one, or nothing when there are none.
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// `median (least - most) unit`.
    fn shown(&self, unit: Unit) -> String {
        let Some(median) = self.median() else { return "not measured".into() };
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match unit {
            Unit::Seconds => format!("{median:.2} s ({least:.2} - {most:.2})"),
            Unit::MegaBytes => format!("{:.1} MB", median / 1e6),
            Unit::MebiBytes => format!("{:.1} MiB ({:.1} - {:.1})", median / MIB, least / MIB, most / MIB),
            Unit::Count => format!("{median:.0}"),
        }
    }
}

const MIB: f64 = (1 << 20) as f64;

/// What samples count.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Samples are seconds.
    Seconds,
    /// Samples are bytes, shown in the network's unit.
    MegaBytes,
    /// Samples are bytes, shown in the memory's unit.
    MebiBytes,
    /// Samples are numbers of something.
    Count,
}

/// A table in Markdown.
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new() -> Self {
        Self("| work | ocifs | peer | peer's figure | ratio | target |\n|---|---|---|---|---|---|\n".into())
    }

    /// One row. The ratio is ours to the peer's.
    pub(crate) fn row(
        &mut self,
        work: &str,
        ours: &Samples,
        unit: Unit,
        peer: Option<(&str, f64)>,
        target: &str,
    ) {
        let (name, figure, ratio) = match peer {
            Some((name, theirs)) => {
                let one = Samples(vec![theirs]);
                let figure = one.shown(unit);
                let figure = figure.split(" (").next().unwrap_or_default().to_owned();
                let ratio = ours.median().map_or_else(|| "-".into(), |ours| format!("{:.3}", ours / theirs));
                (name, figure, ratio)
            }
            None => ("-", "-".into(), "-".into()),
        };
        // Writing to a String cannot fail.
        writeln!(self.0, "| {work} | {} | {name} | {figure} | {ratio} | {target} |", ours.shown(unit)).ok();
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }
}
