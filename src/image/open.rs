//! Opening: resolves a location once, pins it, and builds images from manifests.
//!
//! No blob is read, with two exceptions: a small config, for types of artifacts whose config describes the layers,
//! and the head of a layer that may be a containerDisk. Choosing among several manifests is in `several.rs`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::OnceCell;

use crate::archive_source;
use crate::artifact::{self, ArtifactContents, FileBody};
use crate::cache::BlockCache;
use crate::disk;
use crate::io::{FaultClass, ReadError, lock};
use crate::layer::{IndexPolicy, IndexProvider, LayerOptions, StoredLayer};
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT, Manifest, ManifestDocument, Reference};
use crate::registry::RegistryClient;
use crate::source::{
    self, ForeignLayers, ImageLocation, ImageSource, RootDocument, SourceError, holding, naming,
};

use super::disks::{OpenedDisk, packed_parts};
use super::image_set::OpenContext;
use super::index_repositories::{IndexRepositories, SignatureProof, host_of};
use super::published_indexes::{PublishedIndexes, small_blob};
use super::signature_state::SignatureState;
use super::{
    ImageError, ImageSet, NetworkAccess, OpenImage, OpenOptions, PlatformScope, PrefetchMode, ReadRecording,
    ReferrerScope,
};

/// Limit of the documents read besides the one that the reference names; their total size is limited as well. Real
/// indexes name some dozens of manifests, of some kilobytes.
pub(super) const MAX_DOCUMENTS: usize = 1024;
const MAX_BYTES: u64 = 64 * 1024 * 1024;

impl ImageSet {
    /// Opens a reference. Reads the manifest, and the indexes above it if there are any. Documents that are cached
    /// under the requested digest cost no request.
    pub async fn open(
        options: &OpenOptions,
        registry: &RegistryClient,
        cache: BlockCache,
    ) -> Result<ImageSet, ImageError> {
        ImageOpener::new(options, registry, cache).family().await
    }
}

impl OpenContext {
    /// An opener for the same source and cache.
    pub(super) fn opener(&self) -> ImageOpener<'_> {
        ImageOpener {
            options: &self.options,
            registry: &self.registry,
            source: self.source.clone(),
            cache: self.cache.clone(),
            documents: Mutex::default(),
            trust: SignatureState::default(),
        }
    }
}

/// State of opening one reference.
pub(super) struct ImageOpener<'a> {
    pub(super) options: &'a OpenOptions,
    registry: &'a RegistryClient,
    pub(super) source: Arc<dyn ImageSource>,
    pub(super) cache: BlockCache,
    /// Number and total bytes of the documents read besides the first.
    documents: Mutex<(usize, u64)>,
    pub(super) trust: SignatureState,
}

impl<'a> ImageOpener<'a> {
    /// Creates the opener. Makes no request.
    pub(super) fn new(options: &'a OpenOptions, registry: &'a RegistryClient, cache: BlockCache) -> Self {
        let location = &options.location;
        let source = match options.network {
            // A local location needs no network.
            NetworkAccess::Offline if !location.is_local() => source::offline(location),
            NetworkAccess::Online | NetworkAccess::Offline => {
                archive_source::open(location, registry, &cache)
            }
        };
        // A content store asks for no proof that an origin has a blob.
        let holds = !location.is_local() && cache.shares_all();
        let source = if holds { holding(source, &options.content_stores) } else { source };
        let foreign = match options.network {
            NetworkAccess::Online => options.foreign_layers,
            NetworkAccess::Offline => ForeignLayers::Named,
        };
        let source = naming(source, location, registry, foreign);
        let cache = cache.for_origin(&location.place()).verifying(options.verify, options.small);
        ImageOpener {
            options,
            registry,
            source,
            cache,
            documents: Mutex::default(),
            trust: SignatureState::default(),
        }
    }
}

impl ImageOpener<'_> {
    async fn family(&self) -> Result<ImageSet, ImageError> {
        let location = &self.options.location;
        let root = match (self.root(location.digest()).await, location.digest()) {
            (Ok(root), _) => root,
            (Err(error), Some(digest)) if is_absent(&error) => {
                self.demand_document(digest)?;
                return self.blob_alone(digest, error).await;
            }
            (Err(error), _) => return Err(error),
        };
        let pinned = location.pinned(&root.digest);
        let document = parse(&root)?;
        self.demand(&root, &document).await?;
        let index = matches!(document, ManifestDocument::Index(_)).then(|| root.bytes.clone());
        let mut family = ImageSet {
            pinned: pinned.clone(),
            digest: root.digest.clone(),
            document: document.clone(),
            index,
            main: None,
            members: Vec::new(),
            warnings: Vec::new(),
            unlisted: Vec::new(),
            signed_by: None,
            root: None,
        };
        let archived = root.clone();
        match (&document, &self.options.platforms) {
            (ManifestDocument::Manifest(manifest), _) => {
                let manifest = manifest.clone();
                family.main = Some(Arc::new(self.image(root, manifest, pinned, LayerFilter::Layers).await?));
            }
            (ManifestDocument::Index(index), PlatformScope::All) => {
                let found = self.search(index, None).await?;
                self.all(&mut family, found).await?;
            }
            (ManifestDocument::Index(index), PlatformScope::Host) => {
                family.main = Some(Arc::new(self.one(index, None, pinned).await?));
            }
            (ManifestDocument::Index(index), PlatformScope::One(wanted)) => {
                family.main = Some(Arc::new(self.one(index, Some(wanted), pinned).await?));
            }
        }
        if self.options.referrers == ReferrerScope::Shown {
            self.referrers(&mut family).await?;
        }
        family.signed_by = self.signed_by();
        if !self.trust.lacks_index() {
            let opened = OpenContext {
                options: OpenOptions { prefetch: PrefetchMode::None, ..self.options.clone() },
                registry: self.registry.clone(),
                source: self.source.clone(),
                cache: self.cache.clone(),
            };
            family.root = Some((archived, opened));
        }
        Ok(family)
    }

    /// Builds the image of a manifest. The config is read only if it describes the layers.
    pub(super) async fn image(
        &self,
        root: RootDocument,
        manifest: Manifest,
        pinned: String,
        select: LayerFilter,
    ) -> Result<OpenImage, ImageError> {
        self.demand_image(&root).await?;
        let (mut warnings, mut undecided) = (Vec::new(), None);
        let config = match &manifest.config {
            Some(config)
                if artifact::needs_config(&manifest) || disk::container_disk_layer(&manifest).is_some() =>
            {
                match small_blob(&self.cache, &*self.source, config, MAX_DOCUMENT).await {
                    Ok(bytes) => Some(bytes),
                    Err(error) => {
                        let error = self.lasting(format!("config {}", config.digest), error)?;
                        warnings.push(error.chain());
                        undecided = Some(error).filter(is_refusal);
                        None
                    }
                }
            }
            _ => None,
        };
        let mut image = self.assemble(Some(root), manifest, config.as_deref(), pinned, select)?;
        if disk::may_be_container_disk(&image.manifest, config.as_deref())
            && let Err(error) = image.find_container_disk().await
        {
            let error = self.lasting("looking for disks".to_owned(), error)?;
            if is_refusal(&error) {
                warnings.push(error.chain());
                undecided = Some(error);
            }
        }
        (image.warnings, image.undecided) = (warnings, undecided);
        Ok(image)
    }

    /// `error` of reading content that decides which names an image has. One that may pass is an error of opening: the
    /// names would be wrong for as long as the image is open.
    pub(super) fn lasting(&self, subject: String, error: ReadError) -> Result<ReadError, ImageError> {
        let error = ReadError::caused(error.fault(), subject, error);
        if self.may_pass(error.fault()) { Err(ImageError::Read(error)) } else { Ok(error) }
    }

    /// Whether the same request may have another answer soon.
    pub(super) fn may_pass(&self, fault: FaultClass) -> bool {
        fault == FaultClass::Unavailable && self.options.network == NetworkAccess::Online
    }

    /// Builds the image of a manifest without reading any document; `root` is the manifest's own, if it has one.
    pub(super) fn assemble(
        &self,
        root: Option<RootDocument>,
        manifest: Manifest,
        config: Option<&[u8]>,
        pinned: String,
        select: LayerFilter,
    ) -> Result<OpenImage, ImageError> {
        let options = self.options;
        let index = match options.index {
            IndexPolicy::Auto | IndexPolicy::All if !options.signed_by.is_empty() => IndexPolicy::Bound,
            index => index,
        };
        let (manifest_bytes, manifest_digest) = match root {
            Some(root) => (Some(root.bytes), root.digest),
            // A synthetic manifest is identified by its only blob.
            None => (
                None,
                manifest.layers.first().map_or_else(|| Digest::sha256(b""), |layer| layer.digest.clone()),
            ),
        };
        // Planning sees only the selected layers; their numbers stay.
        let masked = match select {
            LayerFilter::Layers => options
                .layers
                .mask(&manifest)
                .map_err(|source| ImageError::Choice { place: pinned.clone(), source })?,
            LayerFilter::Everything => manifest.clone(),
        };
        let contents = artifact::contents(&masked, config);
        let detection = disk::detect(&masked, options.part_order);
        let detection = detection.with_file_sizes(|wanted| {
            contents.files.iter().find_map(|file| match &file.body {
                FileBody::Layer(layer) if *layer == wanted => Some(manifest.layers[*layer].size),
                FileBody::Sparse { layer, size, .. } if *layer == wanted => Some(*size),
                _ => None,
            })
        });
        let repositories = match options.index {
            // A signature of the image does not cover indexes of others.
            _ if index == IndexPolicy::Bound && options.index_keys.is_empty() => None,
            index if !index.takes_foreign() => None,
            _ => {
                // Layers that are never decoded need no index.
                let mut decoded: BTreeSet<usize> = archive_layers(&contents).into_keys().collect();
                decoded.extend(packed_parts(&detection).map(|part| part.layer));
                for file in &contents.files {
                    if let FileBody::Joined(segments) = &file.body {
                        decoded.extend(segments.iter().map(|segment| segment.layer));
                    }
                }
                let layers = decoded.into_iter().filter_map(|at| manifest.layers.get(at)).cloned().collect();
                IndexRepositories::new(self.registry, options, &self.cache, layers, |registry, reference| {
                    proof(options, registry, reference, &self.cache)
                })
            }
        };
        let image = OpenImage {
            contents,
            layers: Vec::new(),
            disks: detection.disks.iter().map(|_| OpenedDisk::default()).collect(),
            members: OnceCell::new(),
            packed: Mutex::default(),
            index_policy: index,
            verify: options.verify,
            on_conflict: options.on_conflict,
            layer_name: options.layer_name.clone(),
            lone_files: Mutex::default(),
            conflicts: OnceLock::new(),
            left_out: Mutex::default(),
            incomplete: OnceLock::new(),
            undecided: None,
            detection,
            pinned,
            manifest_bytes,
            manifest_digest,
            manifest,
            selected: masked.layers.iter().map(|layer| !layer.media_type.is_empty_descriptor()).collect(),
            warnings: Vec::new(),
            source: self.source.clone(),
            beside: None,
            repositories: repositories.map(Arc::new),
            publisher: options.location.reference().cloned(),
            registry: self.registry.clone(),
            host: host_of(&options.location).map(str::to_owned),
            cache: self.cache.clone(),
            blobs: Mutex::default(),
            merged: OnceCell::new(),
            roots: Mutex::default(),
            learning_roots: tokio::sync::Mutex::default(),
            unmergeable: OnceLock::new(),
            errors: Mutex::default(),
            prefetch: options.prefetch.clone(),
            recorder: match options.recording {
                ReadRecording::Off => None,
                ReadRecording::On => Some(Arc::default()),
            },
            tasks: Mutex::default(),
        };
        image.with_layers(index)
    }

    /// The document that the location names, through the cache: a document with a digest is fetched once for each
    /// origin.
    pub(super) async fn root(&self, digest: Option<&Digest>) -> Result<RootDocument, ImageError> {
        if let Some(digest) = digest
            && let Some(bytes) = self.cache.document(digest)?
        {
            return Ok(RootDocument { bytes, digest: digest.clone(), content_type: None });
        }
        Ok(self.keep(self.source.root().await?))
    }

    /// Another document, through the cache.
    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<RootDocument, ImageError> {
        let root = match self.cache.document(&descriptor.digest)? {
            Some(bytes) => {
                let content_type =
                    Some(descriptor.media_type.as_written().to_owned()).filter(|kind| !kind.is_empty());
                RootDocument { bytes, digest: descriptor.digest.clone(), content_type }
            }
            None => self.keep(self.source.document(descriptor).await?),
        };
        let mut documents = lock(&self.documents);
        *documents = (documents.0 + 1, documents.1 + root.bytes.len() as u64);
        if documents.0 > MAX_DOCUMENTS || documents.1 > MAX_BYTES {
            return Err(ImageError::TooMany {
                place: self.options.location.to_string(),
                limit: MAX_DOCUMENTS,
            });
        }
        Ok(root)
    }

    fn keep(&self, root: RootDocument) -> RootDocument {
        if let Err(error) = self.cache.put_document(&root.digest, &root.bytes) {
            // This mount has the document; the next one fetches it again.
            tracing::warn!(digest = %root.digest, %error, "cannot cache the document");
        }
        root
    }
}

/// Whether the content is there for a caller with more rights, or online.
fn is_refusal(error: &ReadError) -> bool {
    matches!(error.fault(), FaultClass::Denied | FaultClass::Unavailable)
}

/// The layers that are read as archives, with the digests of their streams where the artifact gives them.
fn archive_layers(contents: &ArtifactContents) -> HashMap<usize, Option<Digest>> {
    let archives = contents.archives.iter().map(|archive| (archive.layer, None));
    let trees = contents.files.iter().filter_map(|file| match &file.body {
        FileBody::Tree(tree) => Some((tree.layer, tree.content.clone())),
        _ => None,
    });
    archives.chain(trees).collect()
}

/// The check of manifests in an index repository against the keys in `options`.
fn proof(
    options: &OpenOptions,
    registry: &RegistryClient,
    repository: &Reference,
    cache: &BlockCache,
) -> SignatureProof {
    let options = OpenOptions {
        location: ImageLocation::Registry(repository.clone()),
        signed_by: options.index_keys.clone(),
        ..options.clone()
    };
    let (registry, cache) = (registry.clone(), cache.clone());
    Box::new(move |root| {
        let (options, registry, cache) = (options.clone(), registry.clone(), cache.clone());
        Box::pin(async move { ImageOpener::new(&options, &registry, cache).prove(&root).await })
    })
}

/// The layers of a manifest to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerFilter {
    /// Those that the options select.
    Layers,
    /// All layers.
    Everything,
}

/// Whether the source answered that it has no such document.
fn is_absent(error: &ImageError) -> bool {
    match error {
        ImageError::Source(SourceError::Registry(error)) => error.is_no_document(),
        ImageError::Source(error) => error.fault() == FaultClass::NotFound,
        _ => false,
    }
}

impl OpenImage {
    /// Opens the archive layers in the cache; reads nothing.
    fn with_layers(mut self, policy: IndexPolicy) -> Result<Self, ImageError> {
        self.beside = policy.takes_foreign().then(|| Arc::new(PublishedIndexes::new(&self, policy)));
        let offers = self.beside.clone().map(|beside| -> Arc<dyn IndexProvider> { beside });
        let repositories = self.repositories.clone().map(|it| -> Arc<dyn IndexProvider> { it });
        let archives = archive_layers(&self.contents);
        let layers = self.manifest.layers.iter().enumerate().map(|(at, descriptor)| {
            let Some(content) = archives.get(&at) else { return Ok(None) };
            if descriptor.digest.algorithm().is_none() {
                return Ok(None);
            }
            let hints = LayerOptions {
                policy,
                annotations: descriptor.annotations.clone(),
                offers: offers.clone(),
                repositories: repositories.clone(),
                verify: self.verify,
                content: content.clone(),
                size: None,
            };
            Ok(Some(StoredLayer::new(self.cached(descriptor)?, self.cache.clone(), hints)))
        });
        self.layers = layers.collect::<Result<_, ImageError>>()?;
        self.check_trust()?;
        Ok(self)
    }
}

pub(super) fn parse(root: &RootDocument) -> Result<ManifestDocument, ImageError> {
    ManifestDocument::parse(&root.bytes, root.content_type.as_deref())
        .map_err(|source| ImageError::Document { what: "document", digest: root.digest.clone(), source })
}
