//! Decoded streams as they are served: no byte of them is handed out once it is known to be wrong.

use std::sync::Arc;

use crate::cache::{Cached, State};
use crate::io::{BoxFuture, Fault, ReadAt, ReadError, Shared, Verified};

use super::stored::Core;

/// What was decoded from bytes that turned out to be wrong is as wrong as they are.
pub(super) fn refuse_poisoned(blob: &Cached) -> Result<(), ReadError> {
    if blob.state() == State::Poisoned {
        let message = format!("blob {} does not match its digest", blob.digest());
        return Err(ReadError::new(Fault::Mismatch, message));
    }
    Ok(())
}

/// A decoded stream: as trustworthy as the stored bytes it was decoded from.
pub(super) struct Decoded {
    pub(super) stream: Arc<Cached>,
    pub(super) blob: Arc<Cached>,
}

impl ReadAt for Decoded {
    fn size(&self) -> u64 {
        self.stream.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            refuse_poisoned(&self.blob)?;
            self.stream.read_at(offset, buf).await
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        refuse_poisoned(&self.blob)?;
        self.stream.read_ready(offset, buf)
    }

    fn verified(&self) -> Verified {
        self.blob.verified()
    }
}

/// A stream as somebody else's index describes it: served until the index was found wrong, and trusted no further than it
/// was compared.
pub(super) struct Claimed {
    pub(super) stream: Shared,
    pub(super) core: Arc<Core>,
}

impl Claimed {
    fn refuse(&self) -> Result<(), ReadError> {
        refuse_poisoned(&self.core.blob)?;
        self.core.refuted.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl ReadAt for Claimed {
    fn size(&self) -> u64 {
        self.stream.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.refuse()?;
            self.stream.read_at(offset, buf).await?;
            self.refuse()
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.refuse()?;
        self.stream.read_ready(offset, buf)
    }

    fn verified(&self) -> Verified {
        match self.core.confirmed.get() {
            Some(()) => self.core.blob.verified(),
            None => Verified::None,
        }
    }
}
