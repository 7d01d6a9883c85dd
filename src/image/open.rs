//! From a location to an image: resolve once, pin, choose the platform.

use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::OnceCell;

use crate::cache::Cache;
use crate::disk::{self, PartOrder};
use crate::layer::{Hints, IndexPolicy, Layer, Offers};
use crate::oci::{self, Choice, Descriptor, Digest, Document, Manifest, OciError, Platform};
use crate::registry::Registry;
use crate::source::{self, Location, Root, Source};

use super::beside::Beside;
use super::publish::Publisher;
use super::{Image, ImageError, Prefetch};

/// How deep indexes may be nested; real ones are one deep.
const MAX_NESTING: usize = 4;

/// Whether the source may be asked for what the cache does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Yes.
    #[default]
    Online,
    /// No: only a digest whose documents are cached can be opened, and only cached bytes can be read.
    Offline,
}

/// What to open.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where the image lives.
    pub location: Location,
    /// The platform to choose from an index; this machine's when absent.
    pub platform: Option<Platform>,
    /// Whether the source may be asked.
    pub network: Network,
    /// How the parts of a split disk are ordered.
    pub part_order: PartOrder,
    /// Whose indexes of layers are used.
    pub index: IndexPolicy,
    /// What is fetched before anybody asks.
    pub prefetch: Prefetch,
    /// Whether reads are noted.
    pub recording: Recording,
}

impl OpenOptions {
    /// Everything but the location as it is when nobody says otherwise.
    pub fn new(location: Location) -> Self {
        Self {
            location,
            platform: None,
            network: Network::default(),
            part_order: PartOrder::default(),
            index: IndexPolicy::default(),
            prefetch: Prefetch::default(),
            recording: Recording::default(),
        }
    }
}

/// Whether the reads of an image are noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recording {
    /// No.
    #[default]
    Off,
    /// Yes: [`Image::trace`] tells them.
    On,
}

impl Image {
    /// Opens a reference. Costs the manifest, and the index above it if there is one; nothing that the cache has under the
    /// digest the user gave.
    pub async fn open(options: &OpenOptions, registry: &Registry, cache: Cache) -> Result<Self, ImageError> {
        let source = match options.network {
            Network::Online => source::open(&options.location, registry),
            Network::Offline => source::offline(&options.location),
        };
        let cache = cache.for_origin(&options.location.place());
        let documents = Documents { source: &*source, cache: &cache };
        let root = documents.root(options.location.digest()).await?;
        let pinned = options.location.pinned(&root.digest);
        let digest = root.digest.clone();
        let document = parse(&root)?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let mut index = None;
        let (mut current, mut bytes) = (document.clone(), root.bytes.clone());
        let mut manifest_digest = digest.clone();
        let mut depth = 0;
        let manifest = loop {
            match current {
                Document::Manifest(manifest) => break manifest,
                Document::Index(ref choice) => {
                    depth += 1;
                    if depth > MAX_NESTING {
                        return Err(ImageError::Nesting { place: pinned, limit: MAX_NESTING });
                    }
                    index.get_or_insert_with(|| bytes.clone());
                    let entry = match oci::choose(&choice.manifests, &platform) {
                        Choice::One(entry) => entry,
                        Choice::None(available) => {
                            let available =
                                if available.is_empty() { "nothing".into() } else { available.join(", ") };
                            let source = OciError::NoPlatform { wanted: platform.to_string(), available };
                            return Err(ImageError::Platform { place: pinned, source });
                        }
                    };
                    let root = documents.document(entry).await?;
                    current = parse(&root)?;
                    bytes = root.bytes;
                    manifest_digest = root.digest;
                }
            }
        };

        let detection = disk::detect(&manifest, options.part_order);
        let image = Image {
            files: oci::file_names(file_layers(&manifest)),
            layers: Vec::new(),
            inspections: detection.disks.iter().map(|_| OnceCell::new()).collect(),
            detection,
            pinned,
            digest,
            index,
            document,
            manifest_bytes: bytes,
            manifest_digest,
            manifest,
            source,
            beside: None,
            publisher: match &options.location {
                Location::Registry(reference) => {
                    Some(Publisher { registry: registry.clone(), reference: reference.clone() })
                }
                Location::Layout { .. } => None,
            },
            cache,
            blobs: Mutex::default(),
            merged: OnceCell::new(),
            unmergeable: OnceLock::new(),
            errors: Mutex::default(),
            prefetch: options.prefetch.clone(),
            recorder: match options.recording {
                Recording::Off => None,
                Recording::On => Some(Arc::default()),
            },
            tasks: Mutex::default(),
        };
        image.with_layers(options.index)
    }

    /// Opens the archive layers in the cache; reads nothing.
    fn with_layers(mut self, policy: IndexPolicy) -> Result<Self, ImageError> {
        self.beside = policy.takes_foreign().then(|| Arc::new(Beside::new(&self, policy)));
        let offers = self.beside.clone().map(|beside| -> Arc<dyn Offers> { beside });
        let layers = self.manifest.layers.iter().map(|descriptor| {
            if !descriptor.media_type.claims_tar() || descriptor.digest.algorithm().is_none() {
                return Ok(None);
            }
            let hints = Hints { policy, annotations: descriptor.annotations.clone(), offers: offers.clone() };
            Ok(Some(Layer::new(self.cached(descriptor)?, self.cache.clone(), hints)))
        });
        self.layers = layers.collect::<Result<_, ImageError>>()?;
        Ok(self)
    }
}

/// The layers that are files, by number: whatever has a title, and whatever is no archive.
fn file_layers(manifest: &Manifest) -> impl Iterator<Item = (usize, &Descriptor)> {
    let is_file = |layer: &Descriptor| {
        !layer.media_type.is_empty_descriptor() && (layer.title().is_some() || !layer.media_type.claims_tar())
    };
    manifest.layers.iter().enumerate().filter(move |(_, layer)| is_file(layer))
}

fn parse(root: &Root) -> Result<Document, ImageError> {
    Document::parse(&root.bytes, root.content_type.as_deref()).map_err(|source| ImageError::Document {
        what: "document",
        digest: root.digest.clone(),
        source,
    })
}

/// Documents by way of the cache: what has a digest is asked for only once.
struct Documents<'a> {
    source: &'a dyn Source,
    cache: &'a Cache,
}

impl Documents<'_> {
    async fn root(&self, digest: Option<&Digest>) -> Result<Root, ImageError> {
        if let Some(digest) = digest
            && let Some(bytes) = self.cache.document(digest)?
        {
            return Ok(Root { bytes, digest: digest.clone(), content_type: None });
        }
        Ok(self.keep(self.source.root().await?))
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Root, ImageError> {
        if let Some(bytes) = self.cache.document(&descriptor.digest)? {
            let content_type =
                Some(descriptor.media_type.as_written().to_owned()).filter(|kind| !kind.is_empty());
            return Ok(Root { bytes, digest: descriptor.digest.clone(), content_type });
        }
        Ok(self.keep(self.source.document(descriptor).await?))
    }

    fn keep(&self, root: Root) -> Root {
        if let Err(error) = self.cache.put_document(&root.digest, &root.bytes) {
            // The mount has the document; the next one asks for it again.
            tracing::warn!(digest = %root.digest, %error, "document not kept");
        }
        root
    }
}
