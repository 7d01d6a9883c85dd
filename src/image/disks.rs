//! Disks of an image: their parts unpacked and joined, their raw forms, and their sizes.
//!
//! Unpacking starts on the first request for a byte, or for a size that only unpacking reveals. A packed part is read
//! through the same engine as a layer. If the manifest declares the size of a part, the parts after it do not wait
//! for it.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::artifact::{ArtifactFile, FileBody};
use crate::disk::{
    self, DiskBody, DiskDetection, DiskFormat, DiskInspection, DiskPacking, DiskPlan, PartPlan, Qcow2Raw,
};
use crate::io::{
    BoxFuture, ByteRange, ConcatReader, DeferredReader, FaultClass, ReadAt as _, ReadError, SharedReader,
    lock, read_vec,
};
use crate::layer::{self, FileContent, IndexProvider, LayerOptions, StoredLayer};

use crate::oci::Digest;
use crate::tree::{FileRef, FrozenTree};

use super::OpenImage;

/// State of one disk, computed on first use.
#[derive(Default)]
pub(super) struct OpenedDisk {
    bytes: OnceCell<SharedReader>,
    inspection: OnceCell<DiskInspection>,
    raw: OnceCell<SharedReader>,
}

impl OpenImage {
    /// The disks that the manifest declares, or those of a containerDisk found so far.
    pub fn detection(&self) -> &DiskDetection {
        self.members.get().map_or(&self.detection, |(detection, _)| detection)
    }

    fn found(&self) -> &[OpenedDisk] {
        self.members.get().map_or(&self.disks, |(_, disks)| disks)
    }

    /// Whether the disks are files of the image, so that only the whole tree shows all of them.
    pub fn is_container_disk(&self) -> bool {
        self.detection.disks.iter().any(|plan| matches!(plan.body, DiskBody::Member { .. }))
    }

    /// Adds the disks of a containerDisk that are beyond the first bytes of its layer. Later calls return at once.
    pub async fn find_members(self: &Arc<Self>) -> Result<(), ReadError> {
        if !self.is_container_disk() {
            return Ok(());
        }
        let find = || async {
            let detection = disk::member_disks(&self.members_of(&*self.merged().await?).await?);
            let disks = detection.disks.iter().map(|_| OpenedDisk::default()).collect();
            Ok((detection, disks))
        };
        self.members.get_or_try_init(find).await.map(drop)
    }

    async fn members_of(&self, tree: &FrozenTree) -> Result<disk::DiskMembers<disk::DiskMember>, ReadError> {
        let Some(directory) = tree.lookup(FrozenTree::ROOT, b"disk") else {
            return Ok(std::iter::empty().collect());
        };
        let files = tree.entries(directory, 0).filter_map(|(name, node)| {
            let file = tree.file(node).filter(|file| disk::is_member(name, file.size))?;
            Some((std::str::from_utf8(name).ok()?, file))
        });
        let disk::DiskMembers { shown, omitted } = files.collect();
        let mut members = Vec::new();
        for (name, file) in shown {
            let bytes = self.file_at(&file)?;
            let head = read_vec(&*bytes, ByteRange::new(0, file.size.min(disk::HEAD))).await?;
            members.push(disk::DiskMember::new(format!("disk/{name}"), file.size, &head));
        }
        Ok(disk::DiskMembers { shown: members, omitted })
    }

    /// Checks whether the largest layer of an image starts like a containerDisk.
    pub(super) async fn find_container_disk(&mut self) -> Result<(), ReadError> {
        let Some(at) = disk::container_disk_layer(&self.manifest).filter(|at| self.selected[*at]) else {
            return Ok(());
        };
        let Some(layer) = self.archive(at) else { return Ok(()) };
        let members = disk::container_disks(&layer.peek(disk::HEAD).await?);
        if !members.shown.is_empty() {
            self.detection = disk::member_disks(&members);
            self.disks = self.detection.disks.iter().map(|_| OpenedDisk::default()).collect();
        }
        Ok(())
    }

    /// Why content that decides which names there are could not be read; `None` if all of it was, or none does.
    pub fn undecided(&self) -> Option<&ReadError> {
        self.undecided.as_ref()
    }

    fn plan(&self, at: usize) -> Result<(&DiskPlan, &OpenedDisk), ReadError> {
        let missing = || ReadError::new(FaultClass::NotFound, format!("disk {at} does not exist"));
        self.detection().disks.get(at).zip(self.found().get(at)).ok_or_else(missing)
    }

    /// The size of a disk; `None` before it is known.
    pub fn disk_size(&self, at: usize) -> Option<u64> {
        let (plan, found) = self.plan(at).ok()?;
        plan.size.or_else(|| Some(found.bytes.get()?.size()))
    }

    /// The bytes of a disk; `None` before the disk is opened.
    pub fn disk_ready(&self, at: usize) -> Option<SharedReader> {
        self.found().get(at)?.bytes.get().cloned()
    }

    /// Opens a disk without inspecting it. Unpacks only as much as the size requires.
    pub async fn disk(self: &Arc<Self>, at: usize) -> Result<SharedReader, ReadError> {
        let (plan, found) = self.plan(at)?;
        let bytes = found.bytes.get_or_try_init(|| async {
            match &plan.body {
                DiskBody::Parts(parts) => self.joined(parts).await,
                DiskBody::Member { path } => Ok(self.member(path, plan.size)),
                DiskBody::File { layer } => self.file_of(*layer),
            }
        });
        Ok(bytes.await?.clone())
    }

    /// The file in `files/` that shows a layer.
    fn file_of(self: &Arc<Self>, layer: usize) -> Result<SharedReader, ReadError> {
        let of_layer = |file: &&ArtifactFile| matches!(file.body, FileBody::Layer(at) | FileBody::Sparse { layer: at, .. } if at == layer);
        match self.contents.files.iter().position(|file| of_layer(&file)) {
            Some(at) if matches!(self.contents.files[at].body, FileBody::Sparse { .. }) => {
                self.artifact_file(at)
            }
            Some(_) => self.blob(&self.manifest.layers[layer]),
            None => Err(ReadError::new(FaultClass::NotFound, format!("layer {layer} is no file"))),
        }
    }

    async fn joined(self: &Arc<Self>, parts: &[PartPlan]) -> Result<SharedReader, ReadError> {
        let mut joined = ConcatReader::new();
        for part in parts {
            joined.push(self.part(part).await?);
        }
        if joined.size() > i64::MAX as u64 {
            let message = "its parts have more than 2^63 - 1 bytes together";
            return Err(ReadError::new(FaultClass::Unsupported, message));
        }
        Ok(Arc::new(joined))
    }

    /// One part of a disk, unpacked when it is read.
    async fn part(self: &Arc<Self>, part: &PartPlan) -> Result<SharedReader, ReadError> {
        let descriptor = &self.manifest.layers[part.layer];
        if part.packing == DiskPacking::Stored {
            return self.blob(descriptor);
        }
        let layer = self.packed(part.layer, part.content.as_ref(), part.size)?;
        let size = match part.size {
            Some(claimed) => Some(claimed),
            None => layer.quick_size().await?,
        };
        match size {
            Some(size) => self.unpacked(part.layer, size, part.content.as_ref()),
            None => unpacked(&layer).await,
        }
    }

    /// The `size` bytes that are packed in layer `at`, unpacked when they are read.
    pub(super) fn unpacked(
        &self,
        at: usize,
        size: u64,
        content: Option<&Digest>,
    ) -> Result<SharedReader, ReadError> {
        let layer = self.packed(at, content, Some(size))?;
        let open = Box::new(move || -> BoxFuture<'static, _> {
            let layer = layer.clone();
            Box::pin(async move { unpacked(&layer).await })
        });
        Ok(Arc::new(DeferredReader::new(size, open)))
    }

    /// The unpacker of a layer. The first call decides the digest that its content must have, and its claimed size.
    fn packed(
        &self,
        at: usize,
        content: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Arc<StoredLayer>, ReadError> {
        let descriptor = &self.manifest.layers[at];
        // The lock guards only the map; opening a blob touches two local files and no network.
        let mut packed = lock(&self.packed);
        if let Some(layer) = packed.get(&at) {
            return Ok(layer.clone());
        }
        let hints = LayerOptions {
            policy: self.index_policy,
            annotations: descriptor.annotations.clone(),
            offers: None,
            repositories: self.repositories.clone().map(|it| -> Arc<dyn IndexProvider> { it }),
            verify: self.verify,
            content: content.cloned(),
            size,
        };
        let layer = Arc::new(StoredLayer::packed(self.cached(descriptor)?, self.cache.clone(), hints));
        packed.insert(at, layer.clone());
        Ok(layer)
    }

    /// The packed parts of disks, each layer once.
    pub(super) fn packed_parts(&self) -> impl Iterator<Item = &PartPlan> {
        packed_parts(&self.detection)
    }

    /// The unpacker of a part.
    pub(super) fn packed_part(&self, part: &PartPlan) -> Result<Arc<StoredLayer>, ReadError> {
        self.packed(part.layer, part.content.as_ref(), part.size)
    }

    /// The opened parts of disks: number of the layer, and its unpacker.
    pub(super) fn unpacking(&self) -> Vec<(usize, Arc<StoredLayer>)> {
        let packed = lock(&self.packed);
        let mut packed: Vec<_> = packed.iter().map(|(at, layer)| (*at, layer.clone())).collect();
        packed.sort_unstable_by_key(|(at, _)| *at);
        packed
    }

    /// A file of the merged tree, looked up when it is read.
    fn member(self: &Arc<Self>, path: &str, size: Option<u64>) -> SharedReader {
        let (image, path) = (Arc::downgrade(self), path.to_owned());
        let open = Box::new(move || -> BoxFuture<'static, _> {
            let (image, path) = (image.clone(), path.clone());
            Box::pin(async move {
                let gone = || ReadError::new(FaultClass::Io, "the image was closed");
                image.upgrade().ok_or_else(gone)?.merged_file(&path).await
            })
        });
        Arc::new(DeferredReader::new(size.unwrap_or_default(), open))
    }

    async fn merged_file(&self, path: &str) -> Result<SharedReader, ReadError> {
        let tree = self.merged().await?;
        let mut node = FrozenTree::ROOT;
        let missing = || ReadError::new(FaultClass::Malformed, format!("{path} is not in the merged tree"));
        for name in path.split('/') {
            node = tree.lookup(node, name.as_bytes()).ok_or_else(missing)?;
        }
        self.file_at(&tree.file(node).ok_or_else(missing)?)
    }

    fn file_at(&self, file: &FileRef<'_>) -> Result<SharedReader, ReadError> {
        let runs = file.runs.cloned();
        self.file(file.origin as usize, &FileContent { size: file.size, offset: file.offset, runs })
    }

    /// Inspects the first bytes of a disk; read once.
    pub async fn inspect_disk(self: &Arc<Self>, at: usize) -> Result<&DiskInspection, ReadError> {
        let (plan, found) = self.plan(at)?;
        let inspection = found.inspection.get_or_try_init(|| async {
            let (head, size) = match self.peek(plan).await? {
                Some(head) => (head, self.disk_size(at)),
                None => {
                    let bytes = self.disk(at).await?;
                    let head = read_vec(&*bytes, ByteRange::new(0, bytes.size().min(disk::HEAD))).await?;
                    (head, Some(bytes.size()))
                }
            };
            // The disk's size may be unknown; the start of a disk does not depend on it.
            let mut seen = disk::inspect(&head, size.unwrap_or(i64::MAX as u64), &plan.label);
            seen.size = size;
            seen.encoding = self.compression(plan).await?.map(str::to_owned);
            Ok(seen)
        });
        inspection.await
    }

    /// The compression of a disk's first part, if any.
    async fn compression(&self, plan: &DiskPlan) -> Result<Option<&'static str>, ReadError> {
        let DiskBody::Parts(parts) = &plan.body else { return Ok(None) };
        match parts.first() {
            Some(part) if part.packing == DiskPacking::Packed => {
                self.packed(part.layer, part.content.as_ref(), part.size)?.compression().await
            }
            _ => Ok(None),
        }
    }

    /// The first bytes of a disk, fetching and unpacking no more than those; `None` if only the disk itself has them.
    async fn peek(&self, plan: &DiskPlan) -> Result<Option<Vec<u8>>, ReadError> {
        let DiskBody::Parts(parts) = &plan.body else { return Ok(None) };
        let Some(first) = parts.first() else { return Ok(None) };
        let head = match first.packing {
            DiskPacking::Packed => {
                self.packed(first.layer, first.content.as_ref(), first.size)?.peek(disk::HEAD).await?
            }
            DiskPacking::Stored => {
                let descriptor = &self.manifest.layers[first.layer];
                if plan.size.is_none() || descriptor.data.is_some() {
                    return Ok(None);
                }
                // This peek lists names only; the bytes for readers come from `disk`.
                let looked_at = self.cached(descriptor)?.looked_at();
                let bytes = self.observed(looked_at, &descriptor.digest, || Arc::new(|range| vec![range]));
                read_vec(&*bytes, ByteRange::new(0, bytes.size().min(disk::HEAD))).await?
            }
        };
        // A shorter first part is joined with the next one.
        Ok((parts.len() == 1 || head.len() as u64 == disk::HEAD).then_some(head))
    }

    /// The disk's inspection; `None` before it is done.
    pub fn inspected(&self, at: usize) -> Option<&DiskInspection> {
        self.found().get(at)?.inspection.get()
    }

    /// The raw form of a disk; an error if its inspection finds that it has none.
    pub async fn raw_disk(self: &Arc<Self>, at: usize) -> Result<SharedReader, ReadError> {
        let (plan, found) = self.plan(at)?;
        let raw = found.raw.get_or_try_init(|| async {
            let inspection = self.inspect_disk(at).await?;
            let refused = |reason: &str| {
                ReadError::new(FaultClass::Denied, format!("disk {} has no raw form: {reason}", plan.name))
            };
            if let Some(reason) = inspection.refusal.as_ref().or(inspection.raw.as_ref()) {
                return Err(refused(reason));
            }
            let Some(header) = inspection.qcow2.clone() else { return Err(refused("it is no qcow2")) };
            let raw: SharedReader = Arc::new(Qcow2Raw::open(self.disk(at).await?, &header)?);
            // The content has the same author, and a program that probes formats would trust it as well.
            let head = read_vec(&*raw, ByteRange::new(0, raw.size().min(disk::HEAD))).await?;
            match disk::inspect(&head, raw.size(), &DiskFormat::Raw).refusal {
                Some(reason) => Err(refused(&format!("its content is refused: {reason}"))),
                None => Ok(raw),
            }
        });
        Ok(raw.await?.clone())
    }

    /// The raw form of a disk; `None` before it is opened.
    pub fn raw_ready(&self, at: usize) -> Option<SharedReader> {
        self.found().get(at)?.raw.get().cloned()
    }
}

/// The packed parts of disks, each layer once.
pub(super) fn packed_parts(detection: &DiskDetection) -> impl Iterator<Item = &PartPlan> {
    let parts = detection.disks.iter().flat_map(|disk| match &disk.body {
        DiskBody::Parts(parts) => parts.as_slice(),
        DiskBody::File { .. } | DiskBody::Member { .. } => &[],
    });
    let mut seen = HashSet::new();
    parts.filter(move |part| part.packing == DiskPacking::Packed && seen.insert(part.layer))
}

/// The bytes that are packed in a layer.
async fn unpacked(layer: &StoredLayer) -> Result<SharedReader, ReadError> {
    layer.index().await?;
    let stream = layer.stream().ok_or_else(|| ReadError::new(FaultClass::Io, "a layer without a stream"))?;
    // The whole stream as one file, with readahead for sequential readers.
    layer::file(&stream, &FileContent { size: stream.size(), offset: 0, runs: None }, layer.readahead())
}
