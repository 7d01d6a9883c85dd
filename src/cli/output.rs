//! Standard output and the log.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::exit::Failure;

/// Standard output, buffered.
pub(super) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// The result of printing: a closed pipe ends the command quietly.
pub(super) fn printed(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::closed_pipe(),
        _ => Failure::local("writing to standard output", &error),
    })
}

/// Under this name numbers that somebody asked for are logged, whatever else is.
const STATISTICS: &str = "ocifs::statistics";

/// Writes all counters to the log, in one line.
pub(super) fn statistics() {
    tracing::info!(target: STATISTICS, "{}", super::metrics::json());
}

/// Starts the log: to `file`, or to standard error. `OCIFS_LOG` says what is logged, warnings and errors by default.
pub(super) fn start_log(file: Option<&Path>) -> Result<(), Failure> {
    let always = || Failure::usage("the log filter for statistics is none");
    let filter = match std::env::var("OCIFS_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| Failure::usage(format!("OCIFS_LOG={text:?} is not a log filter: {error}")))?,
        Err(_) => EnvFilter::new("warn"),
    };
    let filter = filter.add_directive(format!("{STATISTICS}=info").parse().map_err(|_| always())?);
    // Who reads the log may go away, and a complaint about that on standard error would end the process.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    // A second start in one process keeps the first log.
    match file {
        None if is_journal() => builder.event_format(Journal).with_writer(io::stderr).try_init().ok(),
        None => builder.with_writer(io::stderr).try_init().ok(),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                Failure::local(format!("opening the log file {}", path.display()), &error)
            })?;
            builder.with_writer(file).try_init().ok()
        }
    };
    Ok(())
}

/// What a line on standard error begins with that says why a command failed: in the journal the level of an error (sd-daemon(3)),
/// else nothing.
pub(super) fn error_prefix() -> &'static str {
    if is_journal() { "<3>" } else { "" }
}

/// Whether standard error is the journal's, by systemd.exec(5): device and inode of the stream are in the environment.
fn is_journal() -> bool {
    use std::os::fd::AsFd as _;
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let ours = nix::sys::stat::fstat(io::stderr().as_fd());
    ours.is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Lines for the journal: it has a clock of its own, and takes the level from the number in front (sd-daemon(3)).
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{level}>{}: ", metadata.target())?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// A size for people: whole bytes below 10 KiB, then three digits.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Writes bytes of an image so that they cannot act on a terminal: control characters and what is not UTF-8 are escaped.
pub(super) fn safe(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { write!(out, "{}", c.escape_default())? } else { write!(out, "{c}")? }
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn lines_for_the_journal_have_their_level_and_no_time() {
        let room = tempfile::tempdir().unwrap();
        let file = Arc::new(std::fs::File::create(room.path().join("log")).unwrap());
        let builder = tracing_subscriber::fmt().with_ansi(false).event_format(Journal);
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
}
