//! systemd journal: detection of the stream, and the level in front of each line (sd-daemon(3)).

use std::io;

use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Prefix of the line that reports why a command failed: in the journal the level of an error (sd-daemon(3)), else
/// empty.
pub(super) fn error_prefix() -> &'static str {
    if is_journal() { "<3>" } else { "" }
}

/// Whether standard error goes to the journal. By systemd.exec(5) the environment names device and inode of the
/// stream.
pub(super) fn is_journal() -> bool {
    use std::os::fd::AsFd as _;
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let ours = nix::sys::stat::fstat(io::stderr().as_fd());
    ours.is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Line format for the journal, which adds the time and takes the level from the number in front (sd-daemon(3)).
pub(super) struct JournalFormat;

impl<S, N> FormatEvent<S, N> for JournalFormat
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
