//! Comparing the whole uncompressed stream with a digest that the artifact gives for it.
//!
//! The pass over a layer hashes the stream that it decodes anyway. A layer whose index was already cached is
//! decoded once in order. The result is stored beside the index, so that the next mount hashes nothing. No byte of
//! the stream is stored.

use std::sync::Mutex;

use crate::io::{ByteRange, FaultClass, ReadAt as _, ReadError, SharedReader, compute, read_vec};
use crate::oci::{Digest, HashAlgorithm, Hasher};

use super::foreign::IndexKind;
use super::index::LayerIndex;
use super::layer_shared::LayerShared;
use super::layer_state::LayerState;
use super::sniff::StreamEncoding;

/// Stream bytes hashed at once.
const DIGEST_READ_BYTES: u64 = 4 * 1024 * 1024;

impl LayerShared {
    /// Fails when the hash of the stream that `index` describes is not `expected`.
    pub(super) async fn compare_content(
        &self,
        expected: &Digest,
        index: &LayerIndex,
        kind: IndexKind,
        state: &Mutex<LayerState>,
    ) -> Result<(), ReadError> {
        let Some(algorithm) = expected.algorithm() else {
            let message =
                format!("its content has digest {expected}, of an algorithm that cannot be checked");
            return Err(ReadError::new(FaultClass::Unsupported, message));
        };
        let is_stored = index.spans.encoding() == StreamEncoding::Plain && !index.spans.is_made_up();
        if is_stored && expected == self.blob.digest() {
            // The digest of the blob covers the same bytes.
            return Ok(());
        }
        let is_wanted = |found: &Digest| found.algorithm_name() == expected.algorithm_name();
        let actual = match self.kept_content().await?.filter(is_wanted) {
            Some(kept) => kept,
            None => {
                let actual = self.hash(algorithm, index, state).await?;
                if actual != *expected {
                    // Only the digest of the blob shows whether the author or the source is at fault.
                    self.blob.ensure(ByteRange::new(0, self.size())).await?;
                }
                // Only the layer's own index proves anything about the layer.
                if kind == IndexKind::Local {
                    self.keep_content(&actual).await?;
                }
                actual
            }
        };
        if actual == *expected {
            return Ok(());
        }
        let message = format!("its uncompressed content has digest {actual}, the artifact states {expected}");
        Err(ReadError::new(FaultClass::Mismatch, message))
    }

    async fn hash(
        &self,
        algorithm: HashAlgorithm,
        index: &LayerIndex,
        state: &Mutex<LayerState>,
    ) -> Result<Digest, ReadError> {
        if !index.spans.is_made_up() {
            return self.hash_by(algorithm, index).await;
        }
        // Chunks are not the stream: that needs the layer's own index.
        let own = self.own_index(state).await?;
        self.hash_by(algorithm, &own).await
    }

    async fn hash_by(&self, algorithm: HashAlgorithm, index: &LayerIndex) -> Result<Digest, ReadError> {
        let is_wanted = |found: &&Digest| found.algorithm() == Some(algorithm);
        if let Some(found) = self.hashed.get().filter(is_wanted) {
            return Ok(found.clone());
        }
        let stream: SharedReader = self.uncached(index);
        let mut hasher = Hasher::new(algorithm);
        let mut at = 0;
        while at < stream.size() {
            let range = ByteRange::new(at, stream.size().min(at.saturating_add(DIGEST_READ_BYTES)));
            let bytes = read_vec(&*stream, range).await?;
            hasher = compute(move || {
                hasher.update(&bytes);
                Ok(hasher)
            })
            .await?;
            at = range.end;
        }
        Ok(hasher.finish())
    }
}
