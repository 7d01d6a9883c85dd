//! Work that takes a processor for longer than an async worker may be held.

use super::{Fault, ReadError};

/// Runs a computation on a blocking thread. A panic there is an error of ours that must not take the mount down.
pub(crate) async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ReadError::caused(Fault::Io, "computing thread failed", error)),
    }
}
