//! Rejects an image that cannot satisfy `--verify`.
//!
//! The check reads nothing, and fails before any content is shown. In mode `toc` parts are verified one by one. A
//! large blob as stored has no such parts, so it is served only after it was verified as a whole.

use std::sync::Arc;

use crate::cache::{BlockCache, CachedFile, VerificationState, VerifyMode};
use crate::io::{BoxFuture, FaultClass, ReadAt, ReadError, SharedReader, forward_reads};
use crate::layer;

use super::{ImageError, OpenImage};

impl OpenImage {
    /// Fails if the requested mode is impossible for any shown layer.
    pub(super) fn check_trust(&self) -> Result<(), ImageError> {
        if self.verify != VerifyMode::Toc {
            return Ok(());
        }
        let layers = self.manifest.layers.iter().zip(&self.selected).enumerate();
        for (at, (descriptor, _)) in layers.filter(|(_, (_, selected))| **selected) {
            let is_whole = self.cache.is_whole_first(descriptor.size) || descriptor.data.is_some();
            let is_archive = self.layers.get(at).is_some_and(Option::is_some);
            if !(is_whole || is_archive && layer::parts_named(&descriptor.annotations).is_some()) {
                return Err(ImageError::NoParts {
                    place: self.pinned.clone(),
                    layer: at,
                    digest: descriptor.digest.clone(),
                });
            }
        }
        Ok(())
    }

    /// The bytes of a blob as stored, for readers.
    pub(super) fn as_stored(&self, blob: Arc<CachedFile>) -> SharedReader {
        stored(self.verify, &self.cache, blob)
    }
}

/// The bytes of a blob of `cache` as stored, for readers with this mode.
pub(super) fn stored(verify: VerifyMode, cache: &BlockCache, blob: Arc<CachedFile>) -> SharedReader {
    match verify {
        VerifyMode::Lazy | VerifyMode::Strict => blob,
        VerifyMode::Toc if cache.is_whole_first(blob.size()) => blob,
        VerifyMode::Toc => Arc::new(VerifiedFirst(blob)),
    }
}

/// A large blob as stored that is readable only after it was verified as a whole.
struct VerifiedFirst(Arc<CachedFile>);

impl VerifiedFirst {
    fn refuse(&self) -> Result<(), ReadError> {
        if matches!(self.0.state(), VerificationState::Verified | VerificationState::Poisoned) {
            // A poisoned blob reports its own error.
            return Ok(());
        }
        let message = format!(
            "--verify=toc serves parts that have digests of their own; {} as stored has none and was not compared as a whole",
            self.0.digest()
        );
        Err(ReadError::new(FaultClass::Unsupported, message))
    }
}

impl ReadAt for VerifiedFirst {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.refuse()?;
            self.0.read_at(offset, buf).await?;
            self.refuse()
        })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.refuse()?;
            self.0.read_exactly(offset, buf).await?;
            self.refuse()
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.refuse()?;
        let is_ready = self.0.read_ready(offset, buf)?;
        self.refuse()?;
        Ok(is_ready)
    }

    forward_reads!(0: size, next_data, next_hole, learn_holes, verified, backing);
}
