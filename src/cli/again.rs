//! Second attempt after a digest mismatch, for commands that read everything once.
//!
//! Only as long as no byte of the first attempt has left the process. The cache starts a blob anew that failed
//! verification. So the same command, with the image opened anew, depends on no byte of the first attempt.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::exit::CliError;

/// Size of the write buffer in bytes.
const BUFFER: usize = 1024 * 1024;

/// Runs `work`, and a second time on a digest mismatch if nothing has left by `door`.
pub(super) async fn once_more<T>(
    door: &OutputGuard,
    work: impl AsyncFn() -> Result<T, CliError>,
) -> Result<T, CliError> {
    match work().await {
        Err(failure) if failure.is_mismatch() && !door.is_used() => {
            tracing::warn!(error = %failure, "wrong bytes received; fetching them again");
            work().await
        }
        done => done,
    }
}

/// Whether anything was written to standard output, where it cannot be taken back.
#[derive(Default)]
pub(super) struct OutputGuard(AtomicBool);

impl OutputGuard {
    fn is_used(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A buffered writer to `file` that records in this door that bytes have left.
    pub(super) fn outgoing(&self, file: File) -> OutputBuffer<'_> {
        OutputBuffer { door: self, file, held: Vec::with_capacity(BUFFER) }
    }
}

/// A buffer before a file. It writes only when it is full or flushed.
pub(super) struct OutputBuffer<'a> {
    door: &'a OutputGuard,
    file: File,
    held: Vec<u8>,
}

impl OutputBuffer<'_> {
    fn let_out(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        self.door.0.store(true, Ordering::Relaxed);
        let written = self.file.write_all(&self.held);
        self.held.clear();
        written
    }
}

impl Write for OutputBuffer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.held.len() + bytes.len() > BUFFER {
            self.let_out()?;
        }
        self.held.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.let_out()?;
        self.file.flush()
    }
}

impl Drop for OutputBuffer<'_> {
    fn drop(&mut self) {
        // A reader that has the first bytes gets the bytes before an error, too.
        if self.door.is_used()
            && let Err(error) = self.let_out()
        {
            tracing::debug!(%error, "the last bytes before an error are not written");
        }
    }
}
