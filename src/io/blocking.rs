//! Blocking thread pool for work that would hold an async worker too long.

use super::{FaultClass, ReadError};

/// Runs a computation on a blocking thread. A panic there becomes an error, so that the mount survives it.
pub(crate) async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ReadError::caused(FaultClass::Io, "computing thread failed", error)),
    }
}
