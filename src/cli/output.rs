//! Standard output and the log, made printable.
//!
//! Text is escaped here whatever its source, also where a caller forgot to. Only `plain_stdout` expects printable
//! text.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;

use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::io::{message, printable, printable_bytes, printable_json, printable_name};

use super::exit::CliError;
use super::journal::{JournalFormat, is_journal};

/// Size of the output buffer in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Standard output, buffered. Everything except line ends is made printable.
pub(super) fn stdout() -> BufWriter<PrintableWriter<StdoutLock<'static>>> {
    BufWriter::with_capacity(BUFFER_BYTES, PrintableWriter(io::stdout().lock()))
}

/// Standard output for text with colours, or of ocifs alone. Untrusted text in it must be made printable before.
pub(super) fn plain_stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock())
}

/// A duplicate of the descriptor of standard output, for a writer that moves between threads.
pub(super) fn stdout_fd() -> Result<std::os::fd::OwnedFd, CliError> {
    use std::os::fd::AsFd as _;
    let duplicated = std::io::stdout().as_fd().try_clone_to_owned();
    duplicated.map_err(|error| CliError::local("opening standard output", &error))
}

/// A writer of printable lines.
pub(super) struct PrintableWriter<W>(W);

impl<W: Write> Write for PrintableWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = line.strip_suffix(b"\n");
            self.0.write_all(printable_bytes(text.unwrap_or(line)).as_bytes())?;
            if text.is_some() {
                self.0.write_all(b"\n")?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes a value as JSON, with a line break at the end.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{}", printable_json(text))
}

/// Writes a value as JSON on one line, without a line break.
pub(super) fn json_line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value)?;
    out.write_all(printable_json(text).as_bytes())
}

/// The log: one printable line of bounded length per event. Each event is written at once.
struct PrintableLog<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for PrintableLog<M> {
    type Writer = PrintableEvent<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        PrintableEvent(self.0.make_writer())
    }
}

/// The writer of one event.
struct PrintableEvent<W>(W);

impl<W: Write> Write for PrintableEvent<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(bytes));
        // The statistics are one long line.
        let line = if text.contains(STATISTICS) { printable(&text) } else { message(&text) };
        self.0.write_all(format!("{line}\n").as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The result of printing: a closed pipe ends the command quietly.
pub(super) fn printed(result: io::Result<()>) -> Result<(), CliError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::closed_pipe(),
        _ => CliError::local("writing to standard output", &error),
    })
}

/// Log target of the statistics, which are logged regardless of the filter.
const STATISTICS: &str = "ocifs::statistics";

/// Writes all counters to the log, in one line; `json` has them.
pub(super) fn statistics(json: &str) {
    tracing::info!(target: STATISTICS, "{json}");
}

/// Starts the log: to `file`, or to standard error. `OCIFS_LOG` sets the filter; the default is warnings and errors.
pub(super) fn start_log(file: Option<&Path>) -> Result<(), CliError> {
    let always = || CliError::usage("the log filter for statistics is invalid");
    let filter = match std::env::var("OCIFS_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| CliError::usage(format!("OCIFS_LOG={text:?} is not a log filter: {error}")))?,
        Err(_) => EnvFilter::new("warn"),
    };
    let filter = filter.add_directive(format!("{STATISTICS}=info").parse().map_err(|_| always())?);
    // The reader of the log may go away; an error message about that on standard error would end the process.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    // A second start in one process keeps the first log.
    match file {
        None if is_journal() => {
            builder.event_format(JournalFormat).with_writer(PrintableLog(io::stderr)).try_init().ok()
        }
        None => builder.with_writer(PrintableLog(io::stderr)).try_init().ok(),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                CliError::local(format!("opening the log file {}", path.display()), &error)
            })?;
            builder.with_writer(PrintableLog(file)).try_init().ok()
        }
    };
    Ok(())
}

/// A size for people: whole bytes below 1 KiB, then one decimal place.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Writes bytes of an image so that they cannot act on a terminal.
pub(super) fn safe(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(printable_bytes(bytes).as_bytes())
}

/// Writes a file name so that it cannot act on a terminal, and no other name looks like it.
pub(super) fn name(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(printable_name(bytes).as_bytes())
}

/// Writes warnings to standard error: each names a deviation from the author's intent, and its reason.
pub(super) fn warn(warnings: &[String]) {
    let mut text = Vec::new();
    for warning in warnings {
        let line = text.write_all(b"ocifs: warning: ").and_then(|()| safe(&mut text, warning.as_bytes()));
        if line.and_then(|()| text.write_all(b"\n")).is_err() {
            return;
        }
    }
    // Standard error may be closed.
    io::stderr().write_all(&text).ok();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn lines_for_the_journal_have_their_level_and_no_time() {
        let room = tempfile::tempdir().unwrap();
        let file = Arc::new(std::fs::File::create(room.path().join("log")).unwrap());
        let builder = tracing_subscriber::fmt().with_ansi(false).event_format(JournalFormat);
        tracing::subscriber::with_default(builder.with_writer(file).finish(), || {
            tracing::warn!(dir = "/mnt", "said");
            tracing::error!("failed");
        });
        let lines = std::fs::read_to_string(room.path().join("log")).unwrap();
        assert_eq!(
            lines,
            "<4>ocifs::cli::output::tests: said dir=\"/mnt\"\n<3>ocifs::cli::output::tests: failed\n"
        );
        assert!(!is_journal(), "the tests have no journal");
    }

    #[test]
    fn whatever_is_written_is_printable_lines() {
        let mut out = Vec::new();
        let mut writer = PrintableWriter(&mut out);
        writer.write_all("a\x1b[31m\u{202e}b\nc\td\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a\\u{1b}[31m\\u{202e}b\nc\\td\n");
        let mut out = Vec::new();
        json(&mut out, &"\u{202e}\u{7f}").unwrap();
        assert_eq!(out, b"\"\\u202e\\u007f\"\n");
    }

    #[test]
    fn an_event_of_the_log_is_one_printable_line_of_bounded_length() {
        let room = tempfile::tempdir().unwrap();
        let file = Arc::new(std::fs::File::create(room.path().join("log")).unwrap());
        let builder = tracing_subscriber::fmt().with_ansi(false).event_format(JournalFormat);
        tracing::subscriber::with_default(builder.with_writer(PrintableLog(file)).finish(), || {
            tracing::warn!(evil = %"a\nb\x1b[2J\u{202e}", "said");
            tracing::warn!("{}", "x".repeat(100_000));
        });
        let text = std::fs::read_to_string(room.path().join("log")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("said evil=a\\nb\\u{1b}[2J\\u{202e}"), "{}", lines[0]);
        assert!(lines[1].len() < 5000);
    }
}
