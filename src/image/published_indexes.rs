//! Artifacts published for an image in its repository: indexes of its layers, and traces.
//!
//! They are optional, so every failure becomes a warning and an empty answer. The repository is queried once, when
//! the first layer without an index is accessed. A listed index is read when its layer is accessed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::cache::{BlockCache, LayerMetadata};
use crate::io::{BoxFuture, ByteRange, MEMORY, MemoryShare, ReadError, read_all};
use crate::layer::{IndexKind, IndexOffer, IndexPolicy, IndexProvider};
use crate::oci::published::{self, INDEX_ARTIFACT, MAX_INDEX_BLOB, TRACE};
use crate::oci::{self, Descriptor, Digest, Manifest, ManifestDocument, SociIndex, SociVersion, Ztoc};
use crate::source::ImageSource;

use super::{OpenImage, ReadTrace};

/// Timeout of the listing: the first access to a layer waits for it, but does not need it.
const LIST_TIMEOUT: Duration = Duration::from_millis(900);
/// Manifests of one kind that are read: a longer list has been pushed to more often than is useful.
const MAX_MANIFESTS: usize = 8;

/// The published indexes of one image.
pub(super) struct PublishedIndexes {
    source: Arc<dyn ImageSource>,
    cache: BlockCache,
    subject: Digest,
    manifest: Manifest,
    policy: IndexPolicy,
    listed: OnceCell<Vec<IndexListing>>,
}

/// A published index.
struct IndexListing {
    layer: Digest,
    blob: Descriptor,
    kind: IndexKind,
    is_bound: bool,
}

impl PublishedIndexes {
    pub(super) fn new(image: &OpenImage, policy: IndexPolicy) -> Self {
        Self {
            source: image.source.clone(),
            cache: image.cache.clone(),
            subject: image.manifest_digest.clone(),
            manifest: image.manifest.clone(),
            policy,
            listed: OnceCell::new(),
        }
    }

    async fn list(&self) -> Vec<IndexListing> {
        let mut listed = Vec::new();
        match oci::soci_index_digest(&self.manifest) {
            Ok(None) => {}
            Ok(Some(digest)) => {
                listed.extend(self.soci_bound(digest).await.unwrap_or_else(|why| warn("SOCI", &why)));
            }
            Err(error) => listed.extend(warn("SOCI", &error.to_string())),
        }
        if self.policy == IndexPolicy::Bound {
            return listed;
        }
        let soci = async {
            match self.policy {
                IndexPolicy::All => self.documents(oci::SOCI_V1).await,
                _ => Vec::new(),
            }
        };
        let (published, soci) = tokio::join!(self.documents(INDEX_ARTIFACT), soci);
        for (number, manifest) in published.into_iter().enumerate() {
            match published::read_indexes(&manifest, &self.subject, &self.manifest.layers) {
                Ok(indexes) => listed.extend(indexes.into_iter().map(|index| IndexListing {
                    layer: index.layer,
                    blob: index.blob,
                    kind: IndexKind::Pushed,
                    is_bound: false,
                })),
                Err(error) => tracing::warn!(number, %error, "published indexes are not used"),
            }
        }
        for manifest in soci {
            let read = SociIndex::of(&manifest).map_err(|error| error.to_string());
            listed.extend(read.and_then(|index| self.soci(index)).unwrap_or_else(|why| warn("SOCI", &why)));
        }
        listed
    }

    /// The SOCI index of version 2 that the manifest names.
    async fn soci_bound(&self, digest: Digest) -> Result<Vec<IndexListing>, String> {
        let bytes = match self.cache.document(&digest) {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(_) => {
                let root = self.source.named(&digest).await.map_err(|error| error.to_string())?;
                if let Err(error) = self.cache.put_document(&root.digest, &root.bytes) {
                    tracing::warn!(%digest, %error, "cannot cache the document");
                }
                root.bytes
            }
        };
        let index = SociIndex::parse(&bytes, None).map_err(|error| format!("{digest}: {error}"))?;
        self.soci(index)
    }

    fn soci(&self, index: SociIndex) -> Result<Vec<IndexListing>, String> {
        if !index.is_about(&self.subject) {
            return Err(format!("it is not about {}", self.subject));
        }
        let is_bound = index.version == SociVersion::V2;
        let listed =
            |ztoc: Ztoc| IndexListing { layer: ztoc.layer, blob: ztoc.blob, kind: IndexKind::Soci, is_bound };
        Ok(index.ztocs.into_iter().map(listed).collect())
    }

    /// Referrers of the image of one artifact type, the last listed first.
    async fn documents(&self, artifact_type: &str) -> Vec<Manifest> {
        documents(&*self.source, &self.subject, artifact_type).await
    }

    async fn read(&self, listed: &IndexListing) -> Result<IndexOffer, String> {
        let layer = self.manifest.layers.iter().find(|layer| layer.digest == listed.layer);
        check_worth(listed.kind, &listed.blob, layer.map_or(0, |layer| layer.size))?;
        let bytes = blob(&self.cache, &*self.source, &listed.blob).await;
        let bytes = bytes.map_err(|error| error.chain())?;
        let form = LayerMetadata::Archive;
        Ok(IndexOffer { kind: listed.kind, bytes, is_bound: listed.is_bound, form, scope: None })
    }
}

impl IndexProvider for PublishedIndexes {
    fn offer<'a>(
        &'a self,
        digest: &'a Digest,
        number: usize,
    ) -> BoxFuture<'a, Option<Result<IndexOffer, String>>> {
        Box::pin(async move {
            let listed = self.listed.get_or_init(|| self.list()).await;
            let one = listed.iter().filter(|one| one.layer == *digest).nth(number)?;
            Some(self.read(one).await)
        })
    }

    fn scopes(&self) -> &[Arc<str>] {
        &[]
    }
}

fn warn(kind: &str, why: &str) -> Vec<IndexListing> {
    tracing::warn!(why, "{kind} index is not used");
    Vec::new()
}

/// Refuses an index that saves nothing for a layer of `stored` bytes. An index has about 1 % of its layer's size, more
/// if files are tiny.
pub(super) fn check_worth(kind: IndexKind, blob: &Descriptor, stored: u64) -> Result<(), String> {
    const MIN_INDEX_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
    let limit = stored / 2 + MIN_INDEX_LIMIT_BYTES;
    match blob.size <= limit {
        true => Ok(()),
        false => Err(format!("{kind} index {} has {} bytes, the limit is {limit}", blob.digest, blob.size)),
    }
}

/// Referrers of `subject` of one artifact type, the last listed first.
async fn documents(source: &dyn ImageSource, subject: &Digest, artifact_type: &str) -> Vec<Manifest> {
    let asked = tokio::time::timeout(LIST_TIMEOUT, source.referrers(subject, Some(artifact_type)));
    let listed = match asked.await {
        Ok(Ok(listed)) => listed,
        Ok(Err(error)) => {
            tracing::debug!(%subject, %error, "cannot list the referrers of the image");
            return Vec::new();
        }
        Err(_) => {
            let waited_ms = LIST_TIMEOUT.as_millis();
            tracing::warn!(%subject, artifact_type, waited_ms, "cannot list the referrers of the image in time");
            return Vec::new();
        }
    };
    let mut manifests = Vec::new();
    for descriptor in listed.iter().rev().take(MAX_MANIFESTS) {
        match source.document(descriptor).await {
            Ok(root) => match ManifestDocument::parse(&root.bytes, root.content_type.as_deref()) {
                Ok(ManifestDocument::Manifest(manifest)) => manifests.push(manifest),
                Ok(ManifestDocument::Index(_)) => {}
                Err(error) => tracing::warn!(digest = %root.digest, %error, "published manifest is not used"),
            },
            Err(error) => {
                tracing::warn!(digest = %descriptor.digest, %error, "published manifest is not used")
            }
        }
    }
    manifests
}

/// The bytes of an index or a trace, which hold their share of memory for as long as they are there.
pub(super) async fn blob(
    cache: &BlockCache,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Bytes, ReadError> {
    // Inline bytes came with a document, and are as small.
    if descriptor.size <= SMALL_BLOB_BYTES || descriptor.size > MAX_INDEX_BLOB || descriptor.data.is_some() {
        return small_blob(cache, source, descriptor, MAX_INDEX_BLOB).await;
    }
    let needed = PARSED_FACTOR * descriptor.size;
    let over = |error: crate::io::OverBudget| error.into_read("referrers of an image");
    // Nothing is fetched that cannot be held, and nothing is held while it is fetched.
    MEMORY.refuse_larger(needed).map_err(over)?;
    let stored = cache.blob(&descriptor.digest, source.blob(descriptor))?;
    stored.ensure(ByteRange::new(0, descriptor.size)).await?;
    let share = MEMORY.take(needed).await.map_err(over)?;
    // The parsed form takes memory too, and must not wait for this share.
    share.pin();
    let bytes = small_blob(cache, source, descriptor, MAX_INDEX_BLOB).await?;
    Ok(Bytes::from_owner(SharedBytes { bytes, _share: share }))
}

/// A blob of so many bytes is held without a share of the memory.
const SMALL_BLOB_BYTES: u64 = 1 << 20;
/// Bytes of memory for each byte of an index while it is parsed: itself, and its windows or entries.
const PARSED_FACTOR: u64 = 2;

/// Bytes with their share of the memory.
struct SharedBytes {
    bytes: Bytes,
    _share: MemoryShare,
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a blob of at most `limit` bytes through the cache, and compares it with its digest.
pub(super) async fn small_blob(
    cache: &BlockCache,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<Bytes, ReadError> {
    if descriptor.size > limit {
        let message = format!("{} bytes are over the limit of {limit}", descriptor.size);
        return Err(ReadError::new(crate::io::FaultClass::Unsupported, message));
    }
    let bytes: Bytes = match &descriptor.data {
        Some(data) => data.clone().into(),
        None => read_all(&*cache.blob(&descriptor.digest, source.blob(descriptor))?).await?.into(),
    };
    let checked = descriptor.check("blob", &bytes);
    checked.map_err(|error| ReadError::new(crate::io::FaultClass::Mismatch, error.to_string()))?;
    Ok(bytes)
}

impl OpenImage {
    /// The published indexes of layers: the layer, and the kind of its index. Queries the repository and the index
    /// repositories, once.
    pub async fn offered_indexes(&self) -> Vec<(Digest, IndexKind)> {
        let mut offered = Vec::new();
        if let Some(beside) = &self.beside {
            let listed = beside.listed.get_or_init(|| beside.list()).await;
            offered.extend(listed.iter().map(|one| (one.layer.clone(), one.kind)));
        }
        if let Some(repositories) = &self.repositories {
            offered.extend(repositories.listed().await);
        }
        offered
    }

    /// The recorded trace of this image: from this machine, else one published beside the image, else one of an index
    /// repository.
    pub async fn find_trace(&self) -> Result<Option<ReadTrace>, ReadError> {
        if let Some(bytes) = self.cache.trace(&self.manifest_digest)? {
            match ReadTrace::parse(&bytes) {
                Ok(trace) => return Ok(Some(trace)),
                Err(error) => tracing::warn!(error = error.chain(), "the recorded trace is not used"),
            }
        }
        for manifest in documents(&*self.source, &self.manifest_digest, TRACE).await {
            let read = async {
                let descriptor = published::read_trace(&manifest, &self.manifest_digest)
                    .map_err(|error| ReadError::new(error.fault(), error.to_string()))?;
                ReadTrace::parse(&blob(&self.cache, &*self.source, &descriptor).await?)
            };
            match read.await {
                Ok(trace) => return Ok(Some(trace)),
                Err(error) => tracing::warn!(error = error.chain(), "a published trace is not used"),
            }
        }
        match &self.repositories {
            Some(repositories) => Ok(repositories.trace(&self.manifest_digest).await),
            None => Ok(None),
        }
    }

    /// Stores a trace in the cache.
    pub fn keep_trace(&self, json: &[u8]) -> Result<(), ReadError> {
        Ok(self.cache.put_trace(&self.manifest_digest, json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FaultClass;
    use crate::source::offline;

    #[tokio::test]
    async fn an_index_that_memory_cannot_hold_is_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let source = offline(&"registry.test/an/image:v1".parse().unwrap());
        let mut descriptor = Descriptor::of(published::LAYER_INDEX, b"an index");
        descriptor.size = 8 << 20;
        let error = blob(&cache, &*source, &descriptor).await.unwrap_err();
        assert_ne!(error.fault(), FaultClass::Unsupported, "it is asked for: {}", error.chain());
        descriptor.size = 100 << 20;
        let error = blob(&cache, &*source, &descriptor).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Unsupported, "{}", error.chain());
        assert!(error.chain().contains("bytes of memory"), "{}", error.chain());
    }
}
