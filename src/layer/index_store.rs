//! Cached layer index and stream digest, for the next mount.
//!
//! They are stored only for a verified blob, because they outlive its bytes. The archive of a blob and its bare
//! stream have separate indexes, because only the archive's has names.

use std::time::Duration;

use crate::cache::{BlockCache, BuildLock, LayerMetadata, StreamWriter, VerificationState};
use crate::io::{FaultClass, ReadError, compute};
use crate::oci::Digest;

use super::index::LayerIndex;
use super::layer_shared::LayerShared;

/// Maximum wait for another process that decodes a layer, before this one decodes it too.
const FOREIGN_PASS_TIMEOUT: Duration = Duration::from_secs(60);

impl LayerShared {
    /// Lock for decoding a layer: one process decodes, and the others find its index once they get the lock. A
    /// stopped holder, or a disk without locks, must not block the others: decoding twice costs only time.
    pub(super) async fn build_lock(&self) -> Result<Option<BuildLock>, ReadError> {
        match tokio::time::timeout(FOREIGN_PASS_TIMEOUT, self.cache().build_lock(self.blob.digest())).await {
            Ok(Ok(lock)) => Ok(Some(lock)),
            Ok(Err(error)) if error.is_disk() => Ok(None),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                tracing::warn!(layer = %self.blob.digest(), "another process decodes the layer for too long; decoding it in this one too");
                Ok(None)
            }
        }
    }

    /// Stores the index for other mounts, and publishes the stream that the pass wrote.
    pub(super) async fn keep(
        &self,
        index: LayerIndex,
        stream: Option<StreamWriter>,
    ) -> Result<LayerIndex, ReadError> {
        self.blob.compared().await?;
        let is_verified = self.blob.state() == VerificationState::Verified;
        let (cache, digest, form) = (self.cache().clone(), self.blob.digest().clone(), self.form);
        // Encoded, written and synced on a blocking thread.
        let kept = tokio::task::spawn_blocking(move || {
            if is_verified {
                let kept = index.to_charged_bytes().and_then(|bytes| {
                    cache.put_learnt(form, &digest, &bytes).map_err(|error| error.to_string())
                });
                if let Err(error) = kept {
                    // The index still serves this mount; the next one builds it again.
                    tracing::warn!(layer = %digest, error, "cannot store the index");
                }
            }
            // After the index, because the stream belongs to the index.
            let published =
                stream.map(|stream| stream.publish(&index.blocks, index.spans.stream_size())).transpose();
            if let Err(error) = published {
                // Reads decode the missing bytes.
                tracing::warn!(layer = %digest, %error, "cannot store the decoded stream");
            }
            index
        });
        kept.await.map_err(|error| ReadError::caused(FaultClass::Io, "storing the index", error))
    }

    /// The cached index. Only a verified blob has one.
    pub(super) async fn kept(&self) -> Result<Option<LayerIndex>, ReadError> {
        if !self.cache().shares_all() {
            // The proof that our origin has the blob comes before its names.
            self.blob.locate().await;
        }
        let (cache, digest, size) = (self.cache().clone(), self.blob.digest().clone(), self.size());
        let form = self.form;
        let found = tokio::task::spawn_blocking(move || find(&cache, form, &digest, size)).await;
        found.map_err(|error| ReadError::caused(FaultClass::Io, "reading the stored index", error))?
    }

    /// Whether there is a cached index of this version, undamaged. Decodes nothing.
    pub(super) fn has_kept(&self) -> bool {
        match self.cache().learnt_file(self.form, self.blob.digest()) {
            Ok(Some(kept)) => LayerIndex::is_of_version(kept),
            Ok(None) | Err(_) => false,
        }
    }

    /// The stream digest that an earlier mount computed.
    pub(super) async fn kept_content(&self) -> Result<Option<Digest>, ReadError> {
        let (cache, digest) = (self.cache().clone(), self.blob.digest().clone());
        compute(move || {
            let text = cache.learnt(LayerMetadata::Content, &digest)?;
            Ok(text.and_then(|text| String::from_utf8(text).ok()?.parse().ok()))
        })
        .await
    }

    /// Stores the digest of the whole stream, so that the next mount need not hash it.
    pub(super) async fn keep_content(&self, content: &Digest) -> Result<(), ReadError> {
        self.blob.compared().await?;
        if self.blob.state() != VerificationState::Verified {
            return Ok(());
        }
        let (cache, digest, content) = (self.cache().clone(), self.blob.digest().clone(), content.clone());
        compute(move || {
            if let Err(error) = cache.put_learnt(LayerMetadata::Content, &digest, content.as_str().as_bytes())
            {
                // The next mount hashes again.
                tracing::warn!(layer = %digest, %error, "cannot store the digest of its content");
            }
            Ok(())
        })
        .await
    }
}

fn find(
    cache: &BlockCache,
    form: LayerMetadata,
    digest: &Digest,
    size: u64,
) -> Result<Option<LayerIndex>, ReadError> {
    let Some(kept) = cache.learnt_file(form, digest)? else { return Ok(None) };
    let index = LayerIndex::from_kept(kept, size, cache);
    if index.is_none() {
        tracing::warn!(layer = %digest, "stored index is unusable; building it again");
    }
    Ok(index)
}
