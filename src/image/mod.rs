//! Opened image: the chosen platform, with source, cache, layers, trees and disks connected lazily.
//!
//! Only this module combines the lower modules. Opening reads the index and the manifest, and no blob except those
//! that `open.rs` names. Everything else is computed on first use and then cached.

mod archive_writer;
mod bare_blob;
mod blob_file;
mod checksum_files;
mod disks;
mod error;
mod image_set;
mod index_repositories;
mod index_walk;
mod laziness;
mod merged;
mod open;
mod options;
mod prefetch;
mod publish;
mod published_indexes;
mod pull;
mod reachable;
mod resolve;
mod roots;
mod signature_policy;
mod signature_state;
mod status;
mod trace;
mod verify;
mod verify_policy;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

pub use archive_writer::{
    ArchiveForm, ArchiveMember, ArchiveName, ArchiveOptions, ArchiveSelection, ArchiveView, LeftOut,
    SelectedContent,
};
pub use error::ImageError;
pub use image_set::{ImageSet, SetMember};
pub use laziness::{BlobProbe, LayerLaziness};
pub use merged::{PathConflicts, TreeShape};
pub use options::{ConflictPolicy, NetworkAccess, OpenOptions, PlatformScope, ReadRecording, ReferrerScope};
pub use prefetch::{AheadCost, PrefetchMode};
pub use publish::{BuiltIndex, StoredIndex};
pub use pull::PullSummary;
pub use reachable::named;
pub use resolve::{ResolvedReference, resolve};
pub use roots::TreeRoot;
pub use status::{BlobStatus, ExtentsStatus, ImageStatus, LayerStatus, MemberStatus};
pub use trace::{MAX_TRACE, ReadTrace, TraceRead};
pub use verify::{CheckOutcome, VerifyCheck};

use crate::artifact::{self, ArtifactContents, FileBody};
use crate::cache::{BlockCache, CachedFile, VerifyMode};
use crate::disk::DiskDetection;
use crate::io::{
    BoxFuture, ByteRange, ConcatReader, DeferredReader, FaultClass, MemoryReader, ReadAt as _, ReadError,
    SharedReader, SliceReader, lock,
};
use crate::layer::{self, IndexPolicy, SharedContent, StoredLayer};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::registry::RegistryClient;
use crate::source::ImageSource;
use crate::tree::FrozenTree;

use blob_file::BlobFile;
use disks::OpenedDisk;
use index_repositories::IndexRepositories;
use published_indexes::PublishedIndexes;
use roots::KnownRoots;
use trace::{RecordingReader, StoredRanges, TraceRecorder};

/// One image or artifact, at one digest, for the life of a mount.
pub struct OpenImage {
    pinned: String,
    /// `None` for the synthetic manifest of a bare blob.
    manifest_bytes: Option<Bytes>,
    manifest_digest: Digest,
    manifest: Manifest,
    /// For each layer of the manifest, whether it is presented.
    selected: Vec<bool>,
    /// Problems while the image was opened.
    warnings: Vec<String>,
    source: Arc<dyn ImageSource>,
    /// Published indexes of its layers; `None` if the policy does not use them.
    beside: Option<Arc<PublishedIndexes>>,
    /// Index repositories for its layers; `None` if there are none, or the policy does not use them.
    repositories: Option<Arc<IndexRepositories>>,
    /// Where artifacts about the image can be published; `None` outside of a registry.
    publisher: Option<Reference>,
    /// The client for everything outside of the source.
    registry: RegistryClient,
    /// Host of the image; `None` for one on this machine.
    host: Option<String>,
    cache: BlockCache,
    /// Every opened blob, for the life of the image. Readers share it, and while its files are open no other process
    /// evicts it.
    blobs: Mutex<HashMap<Digest, Arc<CachedFile>>>,
    /// One slot for each layer of the manifest; `None` for a layer that is not an archive by its label.
    layers: Vec<Option<StoredLayer>>,
    merged: OnceCell<Arc<FrozenTree>>,
    /// The known root directories of trees.
    roots: Mutex<KnownRoots>,
    /// The turn to read the first blocks of layers: one search at a time.
    learning_roots: tokio::sync::Mutex<()>,
    /// The error if the layers can never be merged.
    unmergeable: OnceLock<ReadError>,
    /// The last errors of readers, oldest first.
    errors: Mutex<VecDeque<String>>,
    contents: ArtifactContents,
    /// Sizes of the archives in `files/` that contain one file, by the number of the file.
    lone_files: Mutex<HashMap<usize, u64>>,
    detection: DiskDetection,
    /// State of each disk.
    disks: Vec<OpenedDisk>,
    /// The disks of a containerDisk, set when the whole tree has been searched.
    members: OnceCell<(DiskDetection, Vec<OpenedDisk>)>,
    /// Unpackers of parts of disks, by the number of the layer.
    packed: Mutex<HashMap<usize, Arc<StoredLayer>>>,
    index_policy: IndexPolicy,
    /// When bytes are compared with their digests.
    verify: VerifyMode,
    on_conflict: ConflictPolicy,
    /// The annotation that names the directories in `layers/`; `None` to use the digest.
    layer_name: Option<String>,
    /// Paths where archives conflict, set by the first merge.
    conflicts: OnceLock<PathConflicts>,
    /// Omitted content, with the reasons: layers that are not archives, attributes that a disk cannot hold.
    left_out: Mutex<Vec<String>>,
    prefetch: PrefetchMode,
    /// The reason why a requested complete fetch is impossible.
    incomplete: OnceLock<String>,
    /// Why content that decides which names there are could not be read; `None` if all of it was, or none does.
    undecided: Option<ReadError>,
    /// Records reads; `None` unless recording is on.
    recorder: Option<Arc<TraceRecorder>>,
    /// Background work that ends with the image.
    tasks: Mutex<JoinSet<()>>,
}

impl OpenImage {
    /// The reference with a digest: that of the document it named when it was opened, or that of the manifest if that
    /// is another document.
    pub fn pinned(&self) -> &str {
        &self.pinned
    }

    /// The bytes of the manifest, exactly as hashed; `None` for a bare blob.
    pub fn manifest_bytes(&self) -> Option<&Bytes> {
        self.manifest_bytes.as_ref()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Seconds since 1970 of the `org.opencontainers.image.created` annotation, or 0. It is the time of every file
    /// without a time of its own.
    pub fn created(&self) -> i64 {
        created(&self.manifest.annotations)
    }

    /// Records an error that a reader received, for the status.
    pub fn note_error(&self, error: String) {
        /// Limit of recorded errors.
        const NODE_CACHE_CAPACITY: usize = 32;
        let mut errors = lock(&self.errors);
        if errors.len() == NODE_CACHE_CAPACITY {
            errors.pop_front();
        }
        errors.push_back(error);
    }

    /// Records omitted content for the status, each line once.
    pub fn warn(&self, line: String) {
        let mut lines = lock(&self.left_out);
        if !lines.contains(&line) {
            tracing::warn!("{line}");
            lines.push(line);
        }
    }

    /// A blob of the manifest as stored. Reads nothing.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<SharedReader, ReadError> {
        match &descriptor.data {
            Some(data) => Ok(Arc::new(MemoryReader::new(data.clone()))),
            None => {
                let blob = self.as_stored(self.cached(descriptor)?);
                Ok(self.observed(blob, &descriptor.digest, || Arc::new(|range| vec![range])))
            }
        }
    }

    /// The same as a file that is opened and closed: its readahead ends when the result is dropped.
    pub fn blob_file(&self, descriptor: &Descriptor) -> Result<SharedReader, ReadError> {
        let bytes = self.blob(descriptor)?;
        if descriptor.data.is_some() {
            return Ok(bytes);
        }
        Ok(Arc::new(BlobFile::new(bytes, self.cached(descriptor)?)))
    }

    /// Wraps `bytes` so that reads are recorded, if a trace is being recorded. `stored` maps a read to bytes of
    /// `blob`.
    fn observed(
        &self,
        bytes: SharedReader,
        blob: &Digest,
        stored: impl FnOnce() -> StoredRanges,
    ) -> SharedReader {
        match &self.recorder {
            None => bytes,
            Some(recorder) => Arc::new(RecordingReader {
                bytes,
                blob: blob.clone(),
                stored: stored(),
                recorder: recorder.clone(),
            }),
        }
    }

    /// Waits until every opened blob that is complete in the cache was compared with its digest. An error reports
    /// that one of them does not match, so that everything derived from it is wrong.
    pub async fn compared(&self) -> Result<(), ReadError> {
        let opened: Vec<_> = lock(&self.blobs).values().cloned().collect();
        for blob in opened {
            blob.compared().await?;
        }
        Ok(())
    }

    /// The trace so far; `None` unless the image was opened with recording on.
    pub fn trace(&self) -> Option<ReadTrace> {
        let recorder = self.recorder.as_ref()?;
        let size_of =
            |digest: &Digest| self.manifest.blobs().find(|blob| blob.digest == *digest).map(|blob| blob.size);
        Some(ReadTrace {
            schema_version: 1,
            reference: self.pinned.clone(),
            manifest: self.manifest_digest.to_string(),
            reads: recorder.reads(size_of),
        })
    }

    /// The digest of the manifest: of the chosen platform, if the reference named an index.
    pub fn manifest_digest(&self) -> &Digest {
        &self.manifest_digest
    }

    fn cached(&self, descriptor: &Descriptor) -> Result<Arc<CachedFile>, ReadError> {
        // The lock guards only the map; opening a blob touches two local files and no network.
        let mut blobs = lock(&self.blobs);
        if let Some(blob) = blobs.get(&descriptor.digest).filter(|blob| blob.size() == descriptor.size) {
            return Ok(blob.clone());
        }
        let blob = self.cache.blob(&descriptor.digest, self.source.blob(descriptor))?;
        blobs.insert(descriptor.digest.clone(), blob.clone());
        Ok(blob)
    }

    /// The layers that form the merged tree, by their labels: number in the manifest, and layer. Lowest first.
    pub fn archives(&self) -> impl Iterator<Item = (usize, &StoredLayer)> {
        self.contents
            .archives
            .iter()
            .filter_map(|archive| Some((archive.layer, self.archive(archive.layer)?)))
    }

    /// The name of an archive layer after its number, from the `layer_name` annotation or from the type of artifact;
    /// `None` to use its digest.
    pub fn layer_label(&self, at: usize) -> Option<String> {
        let descriptor = self.manifest.layers.get(at)?;
        let asked = self.layer_name.as_ref().and_then(|key| descriptor.annotations.get(key));
        let known = || self.contents.archives.iter().find(|archive| archive.layer == at)?.name.as_ref();
        artifact::component(asked.or_else(known)?)
    }

    /// Every layer that is an archive by its label, including those that are directories of their own.
    pub fn every_archive(&self) -> impl Iterator<Item = (usize, &StoredLayer)> {
        self.layers.iter().enumerate().filter_map(|(at, layer)| Some((at, layer.as_ref()?)))
    }

    /// The layer with this number, if it is an archive by its label.
    pub fn archive(&self, at: usize) -> Option<&StoredLayer> {
        self.layers.get(at)?.as_ref()
    }

    /// The bytes of a file with location `content` in layer `origin`.
    pub fn file(&self, origin: usize, content: &SharedContent) -> Result<SharedReader, ReadError> {
        let missing =
            || ReadError::new(FaultClass::Io, format!("layer {origin} was not opened before its files"));
        let layer = self.archive(origin).ok_or_else(missing)?;
        let stream = layer.stream().ok_or_else(missing)?;
        let digest = &self.manifest.layers[origin].digest;
        let stream = self.observed(stream, digest, || Arc::new(layer.stored_ranges()));
        layer::file(&stream, content, layer.readahead())
    }

    /// The interpretation of the layers: archives of one tree, and files.
    pub fn contents(&self) -> &ArtifactContents {
        &self.contents
    }

    /// Bytes of data, without holes, of the artifact's file `at`; `None` if it is not sparse.
    pub fn artifact_data(&self, at: usize) -> Option<u64> {
        match &self.contents.files.get(at)?.body {
            FileBody::Sparse { runs, .. } => Some(runs.iter().map(|(_, len)| len).sum()),
            _ => None,
        }
    }

    /// The bytes of a file of the artifact that is not one blob as stored.
    pub fn artifact_file(self: &Arc<Self>, at: usize) -> Result<SharedReader, ReadError> {
        let layers = &self.manifest.layers;
        match self.contents.files.get(at).map(|file| &file.body) {
            Some(FileBody::Joined(segments)) => {
                let parts = segments.iter().map(|segment| self.unpacked(segment.layer, segment.size, None));
                Ok(Arc::new(ConcatReader::of(parts.collect::<Result<Vec<_>, _>>()?)))
            }
            Some(FileBody::Sparse { layer, size, runs }) => {
                let packed = self.blob(&layers[*layer])?;
                let (mut file, mut stored) = (ConcatReader::new(), 0);
                for (offset, len) in runs {
                    file.push_hole(offset.saturating_sub(file.size()));
                    file.push(Arc::new(SliceReader::new(packed.clone(), ByteRange::at(stored, *len))?));
                    stored += len;
                }
                file.push_hole(size.saturating_sub(file.size()));
                Ok(Arc::new(file))
            }
            Some(FileBody::Tree(tree)) => {
                let sizes = lock(&self.lone_files);
                let size = sizes.get(&at).copied().unwrap_or_default();
                let (image, layer) = (Arc::downgrade(self), tree.layer);
                let open = Box::new(move || -> BoxFuture<'static, _> {
                    let image = image.clone();
                    Box::pin(async move {
                        let gone = || ReadError::new(FaultClass::Io, "the image was closed");
                        image.upgrade().ok_or_else(gone)?.lone_file(layer).await
                    })
                });
                Ok(Arc::new(DeferredReader::new(size, open)))
            }
            _ => Err(ReadError::new(FaultClass::NotFound, format!("file {at} does not exist"))),
        }
    }

    /// Records that a directory in `files/` is a file of `size` bytes.
    pub fn set_lone_file(&self, at: usize, size: u64) {
        lock(&self.lone_files).insert(at, size);
    }
}

/// Seconds since 1970 of the `org.opencontainers.image.created` annotation, or 0.
fn created(annotations: &BTreeMap<String, String>) -> i64 {
    let created = annotations.get("org.opencontainers.image.created");
    created
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok())
        .map_or(0, |time| time.timestamp())
}
