//! Blocking file work on behalf of readers, away from the other tasks of the runtime.

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::io::{FaultClass, ReadError};
use crate::oci::Digest;

/// Runs work that may wait for a disk on this thread; if that is a worker of the runtime, its other tasks move to
/// another thread first.
pub(super) fn waiting<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    digest: &Digest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        ReadError::caused(FaultClass::Io, format!("work on the cached blocks of {digest} was ended"), error)
    })
}
