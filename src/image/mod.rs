//! An opened reference: the platform chosen, and source, cache, layers, trees and disks wired together lazily.
//!
//! This is the only place where the lower modules meet. Opening costs the index and the manifest, never a blob byte;
//! everything else is found out on first use and then kept.

mod access;
mod archive;
mod beside;
mod disks;
mod error;
mod family;
mod merged;
mod named;
mod open;
mod prefetch;
mod publish;
mod pull;
mod resolve;
mod roots;
mod several;
mod signed;
mod single;
mod status;
mod sums;
mod trace;
mod trust;
mod verify;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

pub use access::{Access, Probe};
pub use archive::{
    Archive, ArchiveForm, ArchiveMember, ArchiveName, ArchiveOptions, LeftOut, Piece, Selection,
};
pub use error::ImageError;
pub use family::{Family, Member};
pub use merged::{Conflicts, TreeShape};
pub use named::named;
pub use open::{Network, OnConflict, OpenOptions, Platforms, Recording, Referrers};
pub use prefetch::{AheadCost, Prefetch};
pub use publish::BuiltIndex;
pub use pull::Pulled;
pub use resolve::{Resolved, resolve};
pub use roots::TreeRoot;
pub use status::{BlobStatus, ExtentsStatus, LayerStatus, MemberStatus, Status};
pub use trace::{MAX_TRACE, Trace, TraceRead};
pub use verify::{Check, Outcome};

use crate::artifact::{self, Contents, FileBody};
use crate::cache::{Cache, Cached, Verify};
use crate::disk::Detection;
use crate::io::{
    BoxFuture, ByteRange, Concat, Deferred, Fault, Memory, ReadAt as _, ReadError, Shared, Slice,
};
use crate::layer::{self, Content, IndexPolicy, Layer};
use crate::oci::{Descriptor, Digest, Manifest};
use crate::source::Source;
use crate::tree::Tree;

use beside::Beside;
use disks::Found;
use publish::Publisher;
use roots::KnownRoots;
use trace::{Observed, Recorder, Stored};

/// One image or artifact, at one digest, for the life of a mount.
pub struct Image {
    pinned: String,
    /// None for what was made up to show a blob alone.
    manifest_bytes: Option<Bytes>,
    manifest_digest: Digest,
    manifest: Manifest,
    /// For each layer of the manifest, whether it is presented.
    selected: Vec<bool>,
    /// What could not be found out when the image was opened.
    warnings: Vec<String>,
    source: Arc<dyn Source>,
    /// What lies beside the image, if that is used.
    beside: Option<Arc<Beside>>,
    /// Where things can be published beside the image.
    publisher: Option<Publisher>,
    cache: Cache,
    /// Every blob that was opened, for the life of the image: readers share it, and while its files are open no other process evicts it.
    blobs: Mutex<HashMap<Digest, Arc<Cached>>>,
    /// One slot per layer of the manifest, `None` for those that are no archives by their label.
    layers: Vec<Option<Layer>>,
    merged: OnceCell<Arc<Tree>>,
    /// What is known of the root directories of trees.
    roots: Mutex<KnownRoots>,
    /// Guards: one look at first blocks at a time.
    learning_roots: tokio::sync::Mutex<()>,
    /// Why the layers can never be merged.
    unmergeable: OnceLock<ReadError>,
    /// What went wrong lately, oldest first.
    errors: Mutex<VecDeque<String>>,
    contents: Contents,
    /// Sizes of the archives in `files/` that are one file each, by the number of the file.
    lone_files: Mutex<HashMap<usize, u64>>,
    detection: Detection,
    /// What was found out about each disk.
    disks: Vec<Found>,
    /// The disks of a containerDisk, once the whole tree was looked through.
    members: OnceCell<(Detection, Vec<Found>)>,
    /// What unpacks parts of disks, by the number of the layer.
    packed: Mutex<HashMap<usize, Arc<Layer>>>,
    index_policy: IndexPolicy,
    /// When bytes are compared with their digests.
    verify: Verify,
    on_conflict: OnConflict,
    /// The annotation after which the directories in `layers/` are called.
    layer_name: Option<String>,
    /// Which paths archives disagree about, once they were merged.
    conflicts: OnceLock<Conflicts>,
    /// What is missing of what is shown, with the reasons: layers that are no archives, attributes that a disk cannot hold.
    left_out: Mutex<Vec<String>>,
    prefetch: Prefetch,
    /// Why not everything can be fetched although that was asked for.
    incomplete: OnceLock<String>,
    /// Notes what is read, while that is recorded.
    recorder: Option<Arc<Recorder>>,
    /// Background work that ends with the image.
    tasks: Mutex<JoinSet<()>>,
}

impl Image {
    /// The reference with a digest: of the document it named when it was opened, or of the manifest where that is another one.
    pub fn pinned(&self) -> &str {
        &self.pinned
    }

    /// The bytes of the manifest, exactly as hashed; `None` where a blob is shown alone.
    pub fn manifest_bytes(&self) -> Option<&Bytes> {
        self.manifest_bytes.as_ref()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Seconds since 1970 of the `org.opencontainers.image.created` annotation, or 0: the time of everything that has no
    /// time of its own.
    pub fn created(&self) -> i64 {
        created(&self.manifest.annotations)
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

    /// Notes what is missing of what is shown, once, for the status.
    pub fn warn(&self, line: String) {
        let mut lines = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.contains(&line) {
            tracing::warn!("{line}");
            lines.push(line);
        }
    }

    /// A blob of the manifest as stored. Nothing is read here.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Shared, ReadError> {
        match &descriptor.data {
            Some(data) => Ok(Arc::new(Memory::new(data.clone()))),
            None => {
                let blob = self.as_stored(self.cached(descriptor)?);
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

    /// Waits until every blob that was opened and is whole in the cache was compared with its digest. An error says that one of
    /// them is not what its digest names, so that what was made of it is wrong.
    pub async fn compared(&self) -> Result<(), ReadError> {
        let opened: Vec<_> =
            self.blobs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for blob in opened {
            blob.compared().await?;
        }
        Ok(())
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

    /// The layers that are archives of one tree, by their labels: number in the manifest, and layer. Lowest first.
    pub fn archives(&self) -> impl Iterator<Item = (usize, &Layer)> {
        self.contents
            .archives
            .iter()
            .filter_map(|archive| Some((archive.layer, self.archive(archive.layer)?)))
    }

    /// What an archive layer is called behind its number, when that is not its digest: by the annotation that was asked for, or as
    /// the kind of artifact has it.
    pub fn layer_label(&self, at: usize) -> Option<String> {
        let descriptor = self.manifest.layers.get(at)?;
        let asked = self.layer_name.as_ref().and_then(|key| descriptor.annotations.get(key));
        let known = || self.contents.archives.iter().find(|archive| archive.layer == at)?.name.as_ref();
        artifact::component(asked.or_else(known)?)
    }

    /// Every layer that is an archive by its label, also those that are directories of their own.
    pub fn every_archive(&self) -> impl Iterator<Item = (usize, &Layer)> {
        self.layers.iter().enumerate().filter_map(|(at, layer)| Some((at, layer.as_ref()?)))
    }

    /// The layer with this number, if it is an archive by its label.
    pub fn archive(&self, at: usize) -> Option<&Layer> {
        self.layers.get(at)?.as_ref()
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

    /// What the layers are meant as.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Bytes of such a file that are data, not holes.
    pub fn artifact_data(&self, at: usize) -> Option<u64> {
        match &self.contents.files.get(at)?.body {
            FileBody::Sparse { runs, .. } => Some(runs.iter().map(|(_, len)| len).sum()),
            _ => None,
        }
    }

    /// The bytes of a file of the artifact that is more than one blob as stored.
    pub fn artifact_file(self: &Arc<Self>, at: usize) -> Result<Shared, ReadError> {
        let layers = &self.manifest.layers;
        match self.contents.files.get(at).map(|file| &file.body) {
            Some(FileBody::Joined(segments)) => {
                let parts = segments.iter().map(|segment| self.unpacked(segment.layer, segment.size, None));
                Ok(Arc::new(Concat::of(parts.collect::<Result<Vec<_>, _>>()?)))
            }
            Some(FileBody::Sparse { layer, size, runs }) => {
                let packed = self.blob(&layers[*layer])?;
                let (mut file, mut stored) = (Concat::new(), 0);
                for (offset, len) in runs {
                    file.push_hole(offset.saturating_sub(file.size()));
                    file.push(Arc::new(Slice::new(packed.clone(), ByteRange::at(stored, *len))?));
                    stored += len;
                }
                file.push_hole(size.saturating_sub(file.size()));
                Ok(Arc::new(file))
            }
            Some(FileBody::Tree(tree)) => {
                let sizes = self.lone_files.lock().unwrap_or_else(PoisonError::into_inner);
                let size = sizes.get(&at).copied().unwrap_or_default();
                let (image, layer) = (Arc::downgrade(self), tree.layer);
                let open = Box::new(move || -> BoxFuture<'static, _> {
                    let image = image.clone();
                    Box::pin(async move {
                        let gone = || ReadError::new(Fault::Io, "the image was closed");
                        image.upgrade().ok_or_else(gone)?.lone_file(layer).await
                    })
                });
                Ok(Arc::new(Deferred::new(size, open)))
            }
            _ => Err(ReadError::new(Fault::NotFound, format!("there is no file {at}"))),
        }
    }

    /// Notes that a directory in `files/` is a file of `size` bytes.
    pub fn set_lone_file(&self, at: usize, size: u64) {
        self.lone_files.lock().unwrap_or_else(PoisonError::into_inner).insert(at, size);
    }
}

/// Seconds since 1970 of the `org.opencontainers.image.created` annotation, or 0.
fn created(annotations: &BTreeMap<String, String>) -> i64 {
    let created = annotations.get("org.opencontainers.image.created");
    created
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok())
        .map_or(0, |time| time.timestamp())
}
