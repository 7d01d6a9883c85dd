//! An opened reference: the platform chosen, and source, cache, layers, trees and disks wired together lazily.
//!
//! This is the only place where the lower modules meet. Opening costs the index and the manifest, never a blob byte;
//! everything else is found out on first use and then kept.

mod beside;
mod error;
mod open;
mod prefetch;
mod publish;
mod status;
mod trace;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

pub use error::ImageError;
pub use open::{Network, OpenOptions, Recording};
pub use prefetch::Prefetch;
pub use publish::BuiltIndex;
pub use status::{BlobStatus, LayerStatus, Status};
pub use trace::{MAX_TRACE, Trace, TraceRead};

use crate::cache::{Cache, Cached};
use crate::disk::{self, Detection, Inspection};
use crate::io::{
    BoxFuture, ByteRange, Concat, Fault, Memory, ReadAt as _, ReadError, Shared, compute, read_vec,
};
use crate::layer::{self, Content, Layer, LayerIndex, Toc};
use crate::oci::{Descriptor, Digest, Document, FileNames, Manifest};
use crate::source::Source;
use crate::tree::{Builder, Tree};

use beside::Beside;
use publish::Publisher;
use trace::{Observed, Recorder, Stored};

/// One image or artifact, at one digest, for the life of a mount.
pub struct Image {
    pinned: String,
    digest: Digest,
    index: Option<Bytes>,
    document: Document,
    manifest_bytes: Bytes,
    manifest_digest: Digest,
    manifest: Manifest,
    source: Arc<dyn Source>,
    /// What lies beside the image, if that is used.
    beside: Option<Arc<Beside>>,
    /// Where things can be published beside the image.
    publisher: Option<Publisher>,
    cache: Cache,
    /// Every blob that was opened, kept open for the life of the image: readers share it, and nobody evicts it meanwhile.
    blobs: Mutex<HashMap<Digest, Arc<Cached>>>,
    /// One slot per layer of the manifest, `None` for those that are no archives by their label.
    layers: Vec<Option<Layer>>,
    merged: OnceCell<Arc<Tree>>,
    /// Why the layers can never be merged.
    unmergeable: OnceLock<ReadError>,
    /// What went wrong lately, oldest first.
    errors: Mutex<VecDeque<String>>,
    files: FileNames,
    detection: Detection,
    inspections: Vec<OnceCell<Inspection>>,
    prefetch: Prefetch,
    /// Notes what is read, while that is recorded.
    recorder: Option<Arc<Recorder>>,
    /// Background work that ends with the image.
    tasks: Mutex<JoinSet<()>>,
}

impl Image {
    /// The reference with the digest of the document it named when it was opened.
    pub fn pinned(&self) -> &str {
        &self.pinned
    }

    /// The digest of the document that the reference named: of the index if there is one.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The bytes of the index, when the reference named one.
    pub fn index_bytes(&self) -> Option<&Bytes> {
        self.index.as_ref()
    }

    /// The bytes of the manifest, exactly as hashed.
    pub fn manifest_bytes(&self) -> &Bytes {
        &self.manifest_bytes
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the reference named, parsed.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Seconds since 1970 of the `org.opencontainers.image.created` annotation, or 0: the time of everything that has no
    /// time of its own.
    pub fn created(&self) -> i64 {
        let created = self.manifest.annotations.get("org.opencontainers.image.created");
        created
            .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok())
            .map_or(0, |time| time.timestamp())
    }

    /// Notes what a reader was refused, for the status.
    pub fn note_error(&self, error: String) {
        /// How many are remembered.
        const KEPT: usize = 32;
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() == KEPT {
            errors.pop_front();
        }
        errors.push_back(error);
    }

    /// A blob of the manifest as stored. Nothing is read here.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Shared, ReadError> {
        match &descriptor.data {
            Some(data) => Ok(Arc::new(Memory::new(data.clone()))),
            None => {
                let blob = self.cached(descriptor)?;
                Ok(self.observed(blob, &descriptor.digest, || Arc::new(|range| vec![range])))
            }
        }
    }

    /// `bytes`, whose reads are noted while a trace is recorded; `stored` makes what tells which bytes of `blob` a read needs.
    fn observed(&self, bytes: Shared, blob: &Digest, stored: impl FnOnce() -> Stored) -> Shared {
        match &self.recorder {
            None => bytes,
            Some(recorder) => {
                Arc::new(Observed { bytes, blob: blob.clone(), stored: stored(), recorder: recorder.clone() })
            }
        }
    }

    /// What was read so far, when the image was opened to record it.
    pub fn trace(&self) -> Option<Trace> {
        let recorder = self.recorder.as_ref()?;
        let size_of =
            |digest: &Digest| self.manifest.blobs().find(|blob| blob.digest == *digest).map(|blob| blob.size);
        Some(Trace {
            schema_version: 1,
            reference: self.pinned.clone(),
            manifest: self.manifest_digest.to_string(),
            reads: recorder.reads(size_of),
        })
    }

    /// The digest of the manifest: of the platform that was chosen, if the reference named an index.
    pub fn manifest_digest(&self) -> &Digest {
        &self.manifest_digest
    }

    fn cached(&self, descriptor: &Descriptor) -> Result<Arc<Cached>, ReadError> {
        // Guards only the map; opening a blob touches two local files and no network.
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = blobs.get(&descriptor.digest).filter(|blob| blob.size() == descriptor.size) {
            return Ok(blob.clone());
        }
        let blob = self.cache.blob(&descriptor.digest, self.source.blob(descriptor))?;
        blobs.insert(descriptor.digest.clone(), blob.clone());
        Ok(blob)
    }

    /// The archive layers by their labels: number in the manifest, and layer. Lowest first.
    pub fn archives(&self) -> impl Iterator<Item = (usize, &Layer)> {
        self.layers.iter().enumerate().filter_map(|(at, layer)| Some((at, layer.as_ref()?)))
    }

    /// The layer with this number, if it is an archive by its label.
    pub fn archive(&self, at: usize) -> Option<&Layer> {
        self.layers.get(at)?.as_ref()
    }

    /// The union of all archive layers. `origin` of its files is the number of the layer in the manifest.
    pub async fn merged(&self) -> Result<Arc<Tree>, ReadError> {
        if let Some(error) = self.unmergeable.get() {
            return Err(error.clone());
        }
        let merged = self.merged.get_or_try_init(|| self.merge()).await;
        if let Err(error) = &merged
            && matches!(error.fault(), Fault::Malformed | Fault::Unsupported | Fault::Mismatch)
        {
            // Wrong for ever: the next lookup need not find it out again.
            self.unmergeable.get_or_init(|| error.clone());
        }
        merged.cloned()
    }

    async fn merge(&self) -> Result<Arc<Tree>, ReadError> {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        // Side by side, but no more at once than can decode: a pass holds megabytes in flight. Applied in order as they
        // come, so that only a few tables of contents are in memory.
        let pending: Vec<BoxFuture<'_, Result<(usize, Toc), ReadError>>> = self
            .archives()
            .map(|(at, layer)| -> BoxFuture<'_, _> {
                Box::pin(async move {
                    let LayerIndex { toc, prefetch, .. } = layer.index().await?;
                    self.fetch_landmark(at, layer, prefetch);
                    Ok((at, toc))
                })
            })
            .collect();
        let mut indexes = futures_util::stream::iter(pending).buffered(cores);
        let mut builder = Builder::new();
        while let Some(next) = indexes.next().await {
            let (at, toc) = next?;
            builder = compute(move || {
                builder.apply(at as u32, &toc).map(|()| builder).map_err(|error| {
                    ReadError::caused(error.fault(), format!("layer {at} cannot be merged"), error)
                })
            })
            .await?;
        }
        Ok(Arc::new(compute(move || Ok(builder.freeze())).await?))
    }

    /// The tree of one archive layer alone, whiteouts as the files they are.
    pub async fn layer_tree(&self, at: usize) -> Result<Tree, ReadError> {
        let Some(layer) = self.archive(at) else {
            return Err(ReadError::new(Fault::NotFound, format!("layer {at} is no archive")));
        };
        let toc = layer.index().await?.toc;
        compute(move || {
            let mut builder = Builder::new();
            let omitted = builder.apply_alone(at as u32, &toc).map_err(|error| {
                ReadError::caused(error.fault(), format!("layer {at} cannot be shown"), error)
            })?;
            for path in omitted {
                let path = String::from_utf8_lossy(&path);
                tracing::info!(layer = at, %path, "hard link into a lower layer is not shown in layers/");
            }
            Ok(builder.freeze())
        })
        .await
    }

    /// The bytes of a file whose tree said `content`, in the layer with number `origin`.
    pub fn file(&self, origin: usize, content: &Content) -> Result<Shared, ReadError> {
        let missing = || ReadError::new(Fault::Io, format!("layer {origin} was not opened before its files"));
        let layer = self.archive(origin).ok_or_else(missing)?;
        let stream = layer.stream().ok_or_else(missing)?;
        let digest = &self.manifest.layers[origin].digest;
        let stream = self.observed(stream, digest, || Arc::new(layer.stored_ranges()));
        layer::file(&stream, content, layer.fetcher())
    }

    /// The names of the layers that are files.
    pub fn files(&self) -> &FileNames {
        &self.files
    }

    /// The disks that the manifest packs, as far as it says.
    pub fn detection(&self) -> &Detection {
        &self.detection
    }

    /// The bytes of a disk, whatever they are.
    pub fn disk(&self, at: usize) -> Result<Shared, ReadError> {
        let Some(plan) = self.detection.disks.get(at) else {
            return Err(ReadError::new(Fault::NotFound, format!("there is no disk {at}")));
        };
        let parts: Result<Vec<_>, _> =
            plan.parts.iter().map(|&part| self.blob(&self.manifest.layers[part])).collect();
        Ok(Arc::new(Concat::of(parts?)))
    }

    /// What the first bytes of a disk say about it; read once.
    pub async fn inspect_disk(&self, at: usize) -> Result<&Inspection, ReadError> {
        let Some(cell) = self.inspections.get(at) else {
            return Err(ReadError::new(Fault::NotFound, format!("there is no disk {at}")));
        };
        cell.get_or_try_init(|| async {
            let (plan, bytes) = (&self.detection.disks[at], self.disk(at)?);
            let head = read_vec(&*bytes, ByteRange::new(0, bytes.size().min(disk::HEAD))).await?;
            Ok(disk::inspect(&head, plan.size, &plan.label))
        })
        .await
    }

    /// The disk's inspection if it was done before.
    pub fn inspected(&self, at: usize) -> Option<&Inspection> {
        self.inspections.get(at)?.get()
    }
}
