//! Standard output and the log.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;

use tracing_subscriber::EnvFilter;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // A second start in one process keeps the first log.
    match file {
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
