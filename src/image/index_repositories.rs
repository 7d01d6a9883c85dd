//! Index repositories: indexes of layers in repositories that the user names, found by the layers' digests.
//!
//! Each layer costs one small request to each repository, all of them concurrent and in one time budget. A repository
//! that fails is not asked again, and is one line of the status. An index from it is a claim like any other.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::OnceCell;

use crate::cache::{BlockCache, LayerMetadata};
use crate::io::{BoxFuture, ByteRange, FaultClass, ReadError, chain};
use crate::layer::{IndexKind, IndexOffer, IndexProvider, announces_index};
use crate::oci::published::{self, PublishedIndex, STREAM_INDEX};
use crate::oci::{Descriptor, Digest, Manifest, ManifestDocument, Reference};
use crate::registry::{FetchedDocument, RegistryClient};
use crate::source::{self, ImageLocation, ImageSource, RootDocument};

use super::published_indexes::{blob, check_worth};
use super::{ImageError, NetworkAccess, OpenOptions, ReadTrace};

/// Timeout of all requests for manifests: the first access to a layer waits for them, but does not need them.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(900);
/// Timeout of the search for the signature of a manifest: three requests, mostly.
const SIGNATURE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of an index without any byte of it.
const INDEX_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of a whole index.
const LONGEST_INDEX_TIMEOUT: Duration = Duration::from_secs(10);
/// The slowest useful delivery of an index: 64 KiB/s. It has about a hundredth of its layer's bytes.
const SLOWEST_BYTES_PER_MS: u64 = 64;

/// Checks that a manifest in an index repository is signed with an accepted key.
pub(super) type SignatureProof =
    Box<dyn Fn(RootDocument) -> BoxFuture<'static, Result<(), ImageError>> + Send + Sync>;

/// The index repositories of one image.
pub(super) struct IndexRepositories {
    repositories: Vec<IndexRepository>,
    scopes: Vec<Arc<str>>,
    cache: BlockCache,
    /// Whether the repositories may be asked; kept indexes are used in any case.
    network: NetworkAccess,
    /// The layers of the image that are decoded, each once.
    layers: Vec<Descriptor>,
    /// What the repositories have for each layer, once they were asked for it.
    found: HashMap<Digest, OnceCell<Vec<FoundIndex>>>,
    /// Set once all layers without an index were asked for.
    asked: OnceCell<()>,
}

/// A repository, and the reason why it is not asked any more.
struct IndexRepository {
    registry: RegistryClient,
    reference: Reference,
    source: Arc<dyn ImageSource>,
    /// The check of a manifest's signature; `None` where none is required.
    proof: Option<SignatureProof>,
    failed: OnceLock<String>,
}

/// An index in a repository, which is named by its number; or the reason why its manifest is refused.
struct FoundIndex {
    repository: usize,
    index: Result<PublishedIndex, String>,
}

impl IndexRepositories {
    /// The repositories that `options` name, in the order in which they are preferred; `None` without any. Makes no
    /// request.
    pub(super) fn new(
        registry: &RegistryClient,
        options: &OpenOptions,
        cache: &BlockCache,
        mut layers: Vec<Descriptor>,
        proof: impl Fn(&RegistryClient, &Reference) -> SignatureProof,
    ) -> Option<Self> {
        let repository = |reference: &Reference| {
            let registry = registry.beside(host_of(&options.location), reference);
            let source = source::open(&ImageLocation::Registry(reference.clone()), &registry)?;
            let proof = (!options.index_keys.is_empty()).then(|| proof(&registry, reference));
            let (reference, failed) = (reference.clone(), OnceLock::new());
            Some(IndexRepository { registry, reference, source, proof, failed })
        };
        // An index that was accepted without a key, or by another one, is not that of these keys.
        let keys: String =
            options.index_keys.iter().map(|key| format!(" signed by {}", key.fingerprint())).collect();
        let mut found = HashMap::new();
        layers.retain(|layer| {
            layer.digest.algorithm().is_some()
                && found.insert(layer.digest.clone(), OnceCell::new()).is_none()
        });
        let repositories: Vec<_> = options.index_from.iter().filter_map(repository).collect();
        (!repositories.is_empty()).then(|| Self {
            scopes: repositories.iter().map(|it| format!("{}{keys}", place(&it.reference)).into()).collect(),
            repositories,
            cache: cache.clone(),
            network: options.network,
            layers,
            found,
            asked: OnceCell::new(),
        })
    }

    /// The trace of the image whose manifest is `digest`, from the first repository that has one.
    pub(super) async fn trace(&self, digest: &Digest) -> Option<ReadTrace> {
        if self.network == NetworkAccess::Offline {
            return None;
        }
        for (repository, scope) in self.repositories.iter().zip(&self.scopes) {
            if repository.failed.get().is_some() {
                continue;
            }
            let Some(manifest) = repository.manifest(digest).await else { continue };
            let described = manifest.and_then(|manifest| {
                published::read_stored_trace(&manifest).map_err(|error| error.to_string())
            });
            let read = async {
                let cache = self.cache.for_origin(scope);
                let bytes = repository.fetch(&cache, &described?).await.map_err(|error| error.chain())?;
                let trace = ReadTrace::parse(&bytes).map_err(|error| error.chain())?;
                match trace.manifest == digest.as_str() {
                    true => Ok(trace),
                    false => Err(format!("it is a trace of {}", trace.manifest)),
                }
            };
            match read.await {
                Ok(trace) => return Some(trace),
                Err(why) => tracing::warn!(repository = &**scope, why, "trace is not used"),
            }
        }
        None
    }

    /// The repositories that failed, with the reasons.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.repositories.iter().filter_map(|repository| {
            let why = repository.failed.get()?;
            Some(format!("index repository {} is not used: {why}", place(&repository.reference)))
        })
    }

    /// The layers for which a repository has an index.
    pub(super) async fn listed(&self) -> Vec<(Digest, IndexKind)> {
        self.ask_all().await;
        let layers = self.layers.iter().map(|layer| &layer.digest).filter(|layer| self.has(layer));
        layers.map(|layer| (layer.clone(), IndexKind::Pushed)).collect()
    }

    /// Whether a repository has an index of the layer, as far as it was asked, or the cache has one of theirs.
    pub(super) fn has(&self, layer: &Digest) -> bool {
        let found = self.found.get(layer).and_then(OnceCell::get);
        found.is_some_and(|found| found.iter().any(|found| found.index.is_ok())) || self.keeps(layer)
    }

    /// Whether the cache has an index of the layer from one of the repositories.
    fn keeps(&self, layer: &Digest) -> bool {
        self.scopes.iter().any(|scope| self.cache.for_origin(scope).has_offer(layer))
    }

    /// Asks for every layer that has no index on this machine, and announces none.
    pub(super) async fn ask_all(&self) {
        let asked = self.asked.get_or_init(|| async {
            let lacks_index = |layer: &&Descriptor| {
                let kept = [LayerMetadata::Archive, LayerMetadata::Stream];
                let is_kept = kept.iter().any(|what| self.cache.learnt_len(*what, &layer.digest).is_some());
                !is_kept && !self.keeps(&layer.digest) && !announces_index(&layer.annotations)
            };
            let all: Vec<BoxFuture<'_, &[FoundIndex]>> = self
                .layers
                .iter()
                .filter(lacks_index)
                .map(|layer| -> BoxFuture<'_, _> { Box::pin(self.ask(layer)) })
                .collect();
            join_all(all).await;
        });
        asked.await;
    }

    /// The indexes of one layer, from all repositories.
    async fn ask(&self, layer: &Descriptor) -> &[FoundIndex] {
        let Some(found) = self.found.get(&layer.digest) else { return &[] };
        let ask = || async {
            if self.network == NetworkAccess::Offline {
                return Vec::new();
            }
            let mut all: Vec<BoxFuture<'_, Option<FoundIndex>>> = Vec::new();
            for (repository, at) in self.repositories.iter().enumerate() {
                all.push(Box::pin(
                    async move { Some(FoundIndex { repository, index: at.find(layer).await? }) },
                ));
            }
            join_all(all).await.into_iter().flatten().collect()
        };
        found.get_or_init(ask).await
    }
}

impl IndexProvider for IndexRepositories {
    fn offer<'a>(
        &'a self,
        digest: &'a Digest,
        number: usize,
    ) -> BoxFuture<'a, Option<Result<IndexOffer, String>>> {
        Box::pin(async move {
            let layer = self.layers.iter().find(|layer| layer.digest == *digest)?;
            if !announces_index(&layer.annotations) {
                self.ask_all().await;
            }
            for found in self.ask(layer).await.iter().skip(number) {
                let (repository, scope) =
                    (&self.repositories[found.repository], &self.scopes[found.repository]);
                let offer = match &found.index {
                    Ok(index) => repository.read(&self.cache, scope, layer, index).await,
                    Err(why) => Some(Err(why.clone())),
                };
                if let Some(offer) = offer {
                    return Some(offer.map_err(|why| format!("index repository {scope}: {why}")));
                }
            }
            None
        })
    }

    fn scopes(&self) -> &[Arc<str>] {
        &self.scopes
    }
}

impl IndexRepository {
    /// The index of `layer`, as its manifest names it; `None` where there is none, or no answer.
    async fn find(&self, layer: &Descriptor) -> Option<Result<PublishedIndex, String>> {
        let read = |manifest: Manifest| {
            published::read_layer_index(&manifest, layer).map_err(|error| error.to_string())
        };
        let index = self.manifest(&layer.digest).await?.and_then(read);
        Some(index.map_err(|why| format!("tag {}: {why}", published::layer_tag(&layer.digest))))
    }

    /// The manifest about the layer or image `digest`, with its signature checked where one is required; `None` where
    /// there is none, or no answer.
    async fn manifest(&self, digest: &Digest) -> Option<Result<Manifest, String>> {
        let tag = published::layer_tag(digest);
        let asked = self.registry.optional_manifest(&self.reference, &tag);
        let found = match tokio::time::timeout(LOOKUP_TIMEOUT, asked).await {
            Ok(Ok(found)) => found?,
            Ok(Err(error)) => {
                self.fail(chain(&error));
                return None;
            }
            Err(_) => {
                self.fail(format!("no answer within {} ms", LOOKUP_TIMEOUT.as_millis()));
                return None;
            }
        };
        let manifest = parse_manifest(&found);
        let Some(proof) = self.proof.as_ref().filter(|_| manifest.is_ok()) else { return Some(manifest) };
        let FetchedDocument { bytes, digest, content_type } = found;
        let root = RootDocument { bytes, digest, content_type };
        match tokio::time::timeout(SIGNATURE_TIMEOUT, proof(root)).await {
            Ok(Ok(())) => Some(manifest),
            Ok(Err(error)) => Some(Err(chain(&error))),
            Err(_) => {
                self.fail(format!("no signature within {} ms", SIGNATURE_TIMEOUT.as_millis()));
                None
            }
        }
    }

    /// The index of `layer`; `None` after a failure of the repository.
    async fn read(
        &self,
        cache: &BlockCache,
        scope: &Arc<str>,
        layer: &Descriptor,
        index: &PublishedIndex,
    ) -> Option<Result<IndexOffer, String>> {
        if let Err(why) = check_worth(IndexKind::Pushed, &index.blob, layer.size) {
            return Some(Err(why));
        }
        if self.failed.get().is_some() {
            return None;
        }
        match self.fetch(&cache.for_origin(scope), &index.blob).await {
            Ok(bytes) => {
                let form = match index.blob.media_type == STREAM_INDEX.into() {
                    true => LayerMetadata::Stream,
                    false => LayerMetadata::Archive,
                };
                let (kind, scope) = (IndexKind::Pushed, Some(scope.clone()));
                Some(Ok(IndexOffer { kind, bytes, is_bound: false, form, scope }))
            }
            Err(error) => {
                self.fail(format!("index {}: {}", index.blob.digest, error.chain()));
                None
            }
        }
    }

    /// The bytes of an index, as long as they arrive fast enough.
    async fn fetch(&self, cache: &BlockCache, descriptor: &Descriptor) -> Result<bytes::Bytes, ReadError> {
        let stored = cache.blob(&descriptor.digest, self.source.blob(descriptor))?;
        let (begun, before) = (Instant::now(), stored.fetched());
        let late = async {
            loop {
                let received = stored.fetched() - before;
                let allowed = INDEX_TIMEOUT + Duration::from_millis(received / SLOWEST_BYTES_PER_MS);
                let left = allowed.min(LONGEST_INDEX_TIMEOUT).saturating_sub(begun.elapsed());
                if left.is_zero() {
                    break received;
                }
                tokio::time::sleep(left).await;
            }
        };
        tokio::select! {
            fetched = stored.ensure(ByteRange::new(0, descriptor.size)) => fetched?,
            received = late => {
                let (size, waited_ms) = (descriptor.size, begun.elapsed().as_millis());
                let message = format!("{received} of {size} bytes arrived within {waited_ms} ms");
                return Err(ReadError::new(FaultClass::Unavailable, message));
            }
        }
        blob(cache, &*self.source, descriptor).await
    }

    /// Records the first failure, which ends the use of the repository.
    fn fail(&self, why: String) {
        if self.failed.set(why.clone()).is_ok() {
            tracing::warn!(repository = place(&self.reference), why, "index repository is not used");
        }
    }
}

/// The host of an image; `None` for one on this machine.
pub(super) fn host_of(location: &ImageLocation) -> Option<&str> {
    // The host of a web address is no registry, and equals none.
    (!location.is_local()).then(|| location.reference().map_or("", Reference::registry))
}

/// The repository without tag and digest.
fn place(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// The manifest of an artifact in an index repository.
pub(super) fn parse_manifest(found: &FetchedDocument) -> Result<Manifest, String> {
    let document = ManifestDocument::parse(&found.bytes, found.content_type.as_deref());
    match document.map_err(|error| error.to_string())? {
        ManifestDocument::Manifest(manifest) => Ok(manifest),
        ManifestDocument::Index(_) => Err("it is an index of manifests".to_owned()),
    }
}
