//! Progress line on a terminal.
//!
//! Shown only on a terminal, not in a file or a pipe, and cleared at the end. Workers count bytes; a thread draws the
//! count a few times a second.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;

use crate::io::message;

use super::output::human;
use super::table::is_dumb;

/// Interval between two drawings.
const REDRAW_INTERVAL: Duration = Duration::from_millis(250);
/// Clears a line of a terminal.
const CLEAR: &str = "\r\x1b[K";

/// Arguments for output beside the result.
#[derive(Args, Debug, Default)]
pub(super) struct ProgressArgs {
    /// Show no progress. It is shown on terminals alone.
    #[arg(long)]
    no_progress: bool,

    /// Print errors alone: no progress and no warnings.
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// A line on standard error that follows a count of bytes.
pub(super) struct ProgressLine {
    count: Arc<AtomicU64>,
    drawing: Option<(Sender<()>, JoinHandle<()>)>,
    begun: Instant,
    /// Whether standard error is a terminal and not silenced: then a summary follows at the end.
    is_watched: bool,
}

impl ProgressLine {
    /// Starts to count; `total` is the number of bytes, if it is known.
    pub(super) fn start(args: &ProgressArgs, total: Option<u64>) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let is_watched = !args.no_progress && !args.quiet && std::io::stderr().is_terminal();
        // A dumb terminal cannot rewrite a line.
        let is_shown = is_watched && !is_dumb();
        let begun = Instant::now();
        let drawing = is_shown.then(|| {
            let (over, ended) = channel();
            let count = count.clone();
            let drawer = std::thread::spawn(move || {
                while ended.recv_timeout(REDRAW_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    draw(&format!("{CLEAR}{}", line(count.load(Ordering::Relaxed), total, begun.elapsed())));
                }
                draw(CLEAR);
            });
            (over, drawer)
        });
        Self { count, drawing, begun, is_watched }
    }

    /// Ends, and prints a summary.
    pub(super) fn finish(mut self, subject: &str) {
        self.end();
        if self.is_watched {
            let line = summary(subject, self.count.load(Ordering::Relaxed), self.begun.elapsed());
            draw(&format!("{}\n", message(&line)));
        }
    }

    fn end(&mut self) {
        if let Some((over, drawer)) = self.drawing.take() {
            drop(over);
            // The thread can only have failed to draw.
            drawer.join().ok();
        }
    }

    /// Adds `bytes` to the count.
    pub(super) fn advance(&self, bytes: u64) {
        self.count.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.end();
    }
}

fn draw(text: &str) {
    let mut terminal = std::io::stderr();
    // The terminal may be gone.
    terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush()).ok();
}

fn line(done: u64, total: Option<u64>, taken: Duration) -> String {
    let speed = (done as f64 / taken.as_secs_f64().max(0.001)) as u64;
    match total {
        Some(total) => {
            let percent = (u128::from(done) * 100 / u128::from(total.max(1))).min(100);
            let left = left(total.saturating_sub(done), speed);
            format!("{percent:>3} %  {} of {}  {}/s{left}", human(done), human(total), human(speed))
        }
        None => format!("{}  {}/s", human(done), human(speed)),
    }
}

/// The remaining time at this speed; empty while it is unknown.
fn left(rest: u64, speed: u64) -> String {
    match rest.checked_div(speed) {
        Some(seconds) if rest > 0 && speed > 0 => format!("  {} left", duration(seconds)),
        _ => String::new(),
    }
}

fn summary(subject: &str, bytes: u64, taken: Duration) -> String {
    let speed = (bytes as f64 / taken.as_secs_f64().max(0.001)) as u64;
    let taken = match taken.as_secs() {
        0 => format!("{} ms", taken.as_millis()),
        seconds => duration(seconds),
    };
    format!("{subject}: {} in {taken}, {}/s", human(bytes), human(speed))
}

/// Seconds for people: `42 s`, `3 min 20 s`, `2 h 05 min`.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_line_shows_the_fraction_and_at_most_all() {
        let second = Duration::from_secs(1);
        let half = line(50 << 20, Some(100 << 20), second);
        assert_eq!(half, " 50 %  50.0 MiB of 100.0 MiB  50.0 MiB/s  1 s left");
        assert_eq!(left(7200 * 10, 10), "  2 h 00 min left");
        assert_eq!(left(10, 0), "");
        assert_eq!(summary("x", 10 << 20, Duration::from_secs(70)), "x: 10.0 MiB in 1 min 10 s, 146.3 KiB/s");
        assert_eq!(line(5, None, second), "5 B  5 B/s");
        assert!(line(7, Some(0), Duration::ZERO).starts_with("100 %"));
        assert!(line(u64::MAX, Some(u64::MAX), second).starts_with("100 %"));
    }
}
