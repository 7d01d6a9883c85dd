//! Whole-first reads: a blob is compared with its digest before any of it is handed out.
//!
//! A reader first waits until the whole blob is present and verified, and then reads from disk alone. Where the disk
//! stores nothing, a small blob is verified in memory. A large one is an error there, because it cannot be verified
//! and read again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::cached::{CachedFile, ReaderFollow};
use super::content_state::ContentState;
use super::sidecar::{ContentKind, VerificationState};
use super::verify_policy::{VerifyMode, VerifyPolicy};
use crate::io::{BoxFuture, ByteRange, FaultClass, ReadAt, ReadError, forward_reads, plain_reads};

/// Bytes up to which a blob is compared as a whole in every mode: on a gigabit link it takes a tenth of a second.
pub const VERIFY_FIRST_BYTES: u64 = 8 * 1024 * 1024;

/// Number of tries to fetch blocks again that were damaged on disk, for one read. A lost record takes one try to find,
/// one in the shared copy and one in the origin's own.
const MAX_REFETCH_ROUNDS: usize = 5;

impl ContentState {
    /// Whether the whole is compared before any of it is handed out.
    pub(super) fn is_whole_first(&self) -> bool {
        self.kind == ContentKind::Blob && self.verify.is_some_and(|when| when.is_whole_first(self.size))
    }
}

impl CachedFile {
    /// Whether the whole is compared with its digest before any of it is handed out, or was compared already.
    pub fn is_proven_first(&self) -> bool {
        self.inner.is_whole_first() || self.state() == VerificationState::Verified
    }

    /// Reads from content that was compared as a whole, and compares it first if necessary.
    pub(super) async fn read_whole_first(&self, range: ByteRange, buf: &mut [u8]) -> Result<(), ReadError> {
        for _ in 0..MAX_REFETCH_ROUNDS {
            if self.inner.state() != VerificationState::Verified {
                self.ensure(ByteRange::new(0, self.size())).await?;
            }
            if self.inner.state() != VerificationState::Verified {
                // Otherwise a copy that lost a record changed its state or its file meanwhile.
                if self.inner.pair().is_none_or(|pair| pair.is_tight()) {
                    break;
                }
                continue;
            }
            let missing = self.inner.read_or_hash(range, buf);
            // Checked last: a block whose record was lost makes the content partial again when it is stored anew.
            if missing.is_empty() && self.inner.state() == VerificationState::Verified {
                self.inner.note_served(range);
                return Ok(());
            }
            self.ensure(range).await?;
        }
        let whole = self.in_memory().await?;
        // Its length was compared with the size of the content, and the range lies inside of that.
        buf.copy_from_slice(&whole[range.start as usize..range.end as usize]);
        self.inner.note_served(range);
        Ok(())
    }

    /// All bytes, compared, where the disk does not store them.
    async fn in_memory(&self) -> Result<Bytes, ReadError> {
        let inner = &self.inner;
        if inner.size > VERIFY_FIRST_BYTES {
            let message = format!(
                "{} has {} bytes, and the cache cannot hold all of them: they cannot be verified before the first is served",
                inner.digest, inner.size
            );
            return Err(ReadError::new(FaultClass::Io, message));
        }
        // One fetch for all waiters.
        let _filling = inner.filling.lock().await;
        if let Some(whole) = inner.shelf.get(&inner.digest) {
            return Ok(whole);
        }
        let range = ByteRange::new(0, inner.size);
        let mut delivery = inner.fetch.fetch(range).await?;
        let misbehaved =
            |what: &str| ReadError::new(FaultClass::Misbehaved, format!("{}: {what}", inner.digest));
        if delivery.range != range {
            return Err(misbehaved("the delivered range is not the requested one"));
        }
        let mut whole = BytesMut::new();
        while let Some(chunk) = delivery.body.next().await {
            let chunk = chunk?;
            inner.note_fetched(chunk.len() as u64);
            if whole.len() as u64 + chunk.len() as u64 > inner.size {
                return Err(misbehaved("the delivery goes on after its end"));
            }
            whole.extend_from_slice(&chunk);
        }
        if whole.len() as u64 != inner.size {
            return Err(misbehaved("the delivery ended early"));
        }
        match inner.digest.same_algorithm(&whole) {
            Some(actual) if actual == inner.digest => {}
            Some(actual) => inner.poison(&actual),
            None => return Err(misbehaved("its digest cannot be checked")),
        }
        inner.refuse_poisoned()?;
        let whole = whole.freeze();
        inner.shelf.put(&inner.digest, whole.clone());
        Ok(whole)
    }

    /// For format detection only: skips the whole-blob check of a small blob, so these bytes must not be served. In
    /// strict mode the check is not skipped.
    pub fn looked_at(self: &Arc<Self>) -> Arc<dyn ReadAt> {
        Arc::new(LookedAt(Arc::clone(self)))
    }
}

struct LookedAt(Arc<CachedFile>);

impl LookedAt {
    fn look<'a>(
        &'a self,
        offset: u64,
        buf: &'a mut [u8],
        follow: ReaderFollow,
    ) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            match self.0.inner.verify {
                Some(VerifyPolicy { verify: VerifyMode::Strict, .. }) => {
                    self.0.read(offset, buf, follow).await
                }
                _ => {
                    self.0.try_again();
                    self.0.inner.is_looked_at.store(true, Ordering::Release);
                    self.0.read_as_it_comes(offset, buf, follow).await
                }
            }
        })
    }
}

impl ReadAt for LookedAt {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        self.look(offset, buf, ReaderFollow::Ahead)
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        self.look(offset, buf, ReaderFollow::Alone)
    }

    forward_reads!(0: size, read_ready, next_data, next_hole, learn_holes);

    // Bytes for detection are never served.
    plain_reads!(verified, backing);
}
