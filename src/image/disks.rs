//! The disks of an image: their parts unpacked and joined, their raw forms, and how large they are.
//!
//! Nothing is unpacked before somebody asks for a size that only unpacking tells, or for a byte. The idea: a part that is
//! packed is read through the same engine as a layer, and where the manifest says how large it is, its neighbours need not wait
//! for it.

use std::sync::{Arc, PoisonError};

use tokio::sync::OnceCell;

use crate::artifact::{File, FileBody};
use crate::disk::{self, Body, Detection, DiskPlan, Format, Inspection, Packing, PartPlan, Qcow2Raw};
use crate::io::{BoxFuture, ByteRange, Concat, Deferred, Fault, ReadAt as _, ReadError, Shared, read_vec};
use crate::layer::{self, Content, Hints, Layer};

use crate::oci::Digest;
use crate::tree::{FileRef, Tree};

use super::Image;

/// What is found out about one disk, when it is first needed.
#[derive(Default)]
pub(super) struct Found {
    bytes: OnceCell<Shared>,
    inspection: OnceCell<Inspection>,
    raw: OnceCell<Shared>,
}

impl Image {
    /// The disks that the manifest packs, as far as it says, or those of a containerDisk, as far as they are known.
    pub fn detection(&self) -> &Detection {
        self.members.get().map_or(&self.detection, |(detection, _)| detection)
    }

    fn found(&self) -> &[Found] {
        self.members.get().map_or(&self.disks, |(_, disks)| disks)
    }

    /// Whether the disks are files of the image, so that only the whole tree has all of them.
    pub fn is_container_disk(&self) -> bool {
        self.detection.disks.iter().any(|plan| matches!(plan.body, Body::Member { .. }))
    }

    /// Adds the disks of a containerDisk that stand behind the first bytes of its layer. Later calls find them there.
    pub async fn find_members(self: &Arc<Self>) -> Result<(), ReadError> {
        if !self.is_container_disk() {
            return Ok(());
        }
        let find = || async {
            let detection = disk::member_disks(&self.members_of(&*self.merged().await?).await?);
            let disks = detection.disks.iter().map(|_| Found::default()).collect();
            Ok((detection, disks))
        };
        self.members.get_or_try_init(find).await.map(drop)
    }

    async fn members_of(&self, tree: &Tree) -> Result<Vec<disk::Member>, ReadError> {
        let Some(directory) = tree.lookup(Tree::ROOT, b"disk") else { return Ok(Vec::new()) };
        let mut members = Vec::new();
        for (name, node) in tree.entries(directory, 0) {
            let Some(file) = tree.file(node).filter(|file| disk::is_member(name, file.size)) else {
                continue;
            };
            let Ok(name) = std::str::from_utf8(name) else { continue };
            let bytes = self.file_at(&file)?;
            let head = read_vec(&*bytes, ByteRange::new(0, file.size.min(disk::HEAD))).await?;
            members.push(disk::Member::new(format!("disk/{name}"), file.size, &head));
        }
        Ok(members)
    }

    /// Looks whether the largest layer of an image starts as a containerDisk does.
    pub(super) async fn find_container_disk(&mut self) {
        let Some(at) = disk::container_disk_layer(&self.manifest).filter(|at| self.selected[*at]) else {
            return;
        };
        let Some(layer) = self.archive(at) else { return };
        match layer.peek(disk::HEAD).await {
            Ok(head) => {
                let members = disk::container_disks(&head);
                if !members.is_empty() {
                    self.detection = disk::member_disks(&members);
                    self.disks = self.detection.disks.iter().map(|_| Found::default()).collect();
                }
            }
            // It may be an archive that cannot be read: whoever looks into it gets the error.
            Err(error) => tracing::debug!(layer = at, error = error.chain(), "not looked for a disk"),
        }
    }

    fn plan(&self, at: usize) -> Result<(&DiskPlan, &Found), ReadError> {
        let missing = || ReadError::new(Fault::NotFound, format!("there is no disk {at}"));
        self.detection().disks.get(at).zip(self.found().get(at)).ok_or_else(missing)
    }

    /// How large a disk is, when that is known by now.
    pub fn disk_size(&self, at: usize) -> Option<u64> {
        let (plan, found) = self.plan(at).ok()?;
        plan.size.or_else(|| Some(found.bytes.get()?.size()))
    }

    /// The bytes of a disk that is here already.
    pub fn disk_ready(&self, at: usize) -> Option<Shared> {
        self.found().get(at)?.bytes.get().cloned()
    }

    /// The bytes of a disk, whatever they are. Unpacks as much as it takes to know the size.
    pub async fn disk(self: &Arc<Self>, at: usize) -> Result<Shared, ReadError> {
        let (plan, found) = self.plan(at)?;
        let bytes = found.bytes.get_or_try_init(|| async {
            match &plan.body {
                Body::Parts(parts) => self.joined(parts).await,
                Body::Member { path } => Ok(self.member(path, plan.size)),
                Body::File { layer } => self.file_of(*layer),
            }
        });
        Ok(bytes.await?.clone())
    }

    /// The file that a layer is in `files/`.
    fn file_of(self: &Arc<Self>, layer: usize) -> Result<Shared, ReadError> {
        let of_layer = |file: &&File| matches!(file.body, FileBody::Layer(at) | FileBody::Sparse { layer: at, .. } if at == layer);
        match self.contents.files.iter().position(|file| of_layer(&file)) {
            Some(at) if matches!(self.contents.files[at].body, FileBody::Sparse { .. }) => {
                self.artifact_file(at)
            }
            Some(_) => self.blob(&self.manifest.layers[layer]),
            None => Err(ReadError::new(Fault::NotFound, format!("layer {layer} is no file"))),
        }
    }

    async fn joined(self: &Arc<Self>, parts: &[PartPlan]) -> Result<Shared, ReadError> {
        let mut joined = Concat::new();
        for part in parts {
            joined.push(self.part(part).await?);
        }
        if joined.size() > i64::MAX as u64 {
            let message = "its parts have more than 2^63 - 1 bytes together";
            return Err(ReadError::new(Fault::Unsupported, message));
        }
        Ok(Arc::new(joined))
    }

    /// One part of a disk, unpacked when it is read.
    async fn part(self: &Arc<Self>, part: &PartPlan) -> Result<Shared, ReadError> {
        let descriptor = &self.manifest.layers[part.layer];
        if part.packing == Packing::Stored {
            return self.blob(descriptor);
        }
        let layer = self.packed(part.layer, part.content.as_ref())?;
        let size = match part.size {
            Some(claimed) => Some(claimed),
            None => layer.quick_size().await?,
        };
        match size {
            Some(size) => self.unpacked(part.layer, size, part.content.as_ref()),
            None => unpacked(&layer).await,
        }
    }

    /// The `size` bytes that are packed in the layer with this number, unpacked when they are read.
    pub(super) fn unpacked(
        &self,
        at: usize,
        size: u64,
        content: Option<&Digest>,
    ) -> Result<Shared, ReadError> {
        let layer = self.packed(at, content)?;
        let open = Box::new(move || -> BoxFuture<'static, _> {
            let layer = layer.clone();
            Box::pin(async move { unpacked(&layer).await })
        });
        Ok(Arc::new(Deferred::new(size, open)))
    }

    /// What unpacks a layer. The first that asks says what its bytes have to hash to.
    fn packed(&self, at: usize, content: Option<&Digest>) -> Result<Arc<Layer>, ReadError> {
        let descriptor = &self.manifest.layers[at];
        // Guards only the map; opening a blob touches two local files and no network.
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = packed.get(&at) {
            return Ok(layer.clone());
        }
        let hints = Hints {
            policy: self.index_policy,
            annotations: descriptor.annotations.clone(),
            offers: None,
            verify: self.verify,
            content: content.cloned(),
        };
        let layer = Arc::new(Layer::packed(self.cached(descriptor)?, self.cache.clone(), hints));
        packed.insert(at, layer.clone());
        Ok(layer)
    }

    /// The parts of disks that were looked into: number of the layer, and what unpacks it.
    pub(super) fn unpacking(&self) -> Vec<(usize, Arc<Layer>)> {
        let packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packed: Vec<_> = packed.iter().map(|(at, layer)| (*at, layer.clone())).collect();
        packed.sort_unstable_by_key(|(at, _)| *at);
        packed
    }

    /// A file of the merged tree, looked for when it is read.
    fn member(self: &Arc<Self>, path: &str, size: Option<u64>) -> Shared {
        let (image, path) = (Arc::downgrade(self), path.to_owned());
        let open = Box::new(move || -> BoxFuture<'static, _> {
            let (image, path) = (image.clone(), path.clone());
            Box::pin(async move {
                let gone = || ReadError::new(Fault::Io, "the image was closed");
                image.upgrade().ok_or_else(gone)?.merged_file(&path).await
            })
        });
        Arc::new(Deferred::new(size.unwrap_or_default(), open))
    }

    async fn merged_file(&self, path: &str) -> Result<Shared, ReadError> {
        let tree = self.merged().await?;
        let mut node = Tree::ROOT;
        let missing = || ReadError::new(Fault::Malformed, format!("{path} is not in the merged tree"));
        for name in path.split('/') {
            node = tree.lookup(node, name.as_bytes()).ok_or_else(missing)?;
        }
        self.file_at(&tree.file(node).ok_or_else(missing)?)
    }

    fn file_at(&self, file: &FileRef<'_>) -> Result<Shared, ReadError> {
        let runs = file.runs.map(<[_]>::to_vec);
        self.file(file.origin as usize, &Content { size: file.size, offset: file.offset, runs })
    }

    /// What the first bytes of a disk say about it; read once.
    pub async fn inspect_disk(self: &Arc<Self>, at: usize) -> Result<&Inspection, ReadError> {
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
            // What the disk ends with may not be known, and nothing at its start depends on that.
            let mut seen = disk::inspect(&head, size.unwrap_or(i64::MAX as u64), &plan.label);
            seen.size = size;
            seen.encoding = self.compression(plan).await?.map(str::to_owned);
            Ok(seen)
        });
        inspection.await
    }

    /// What the first part of a disk is compressed with, if it is.
    async fn compression(&self, plan: &DiskPlan) -> Result<Option<&'static str>, ReadError> {
        let Body::Parts(parts) = &plan.body else { return Ok(None) };
        match parts.first() {
            Some(part) if part.packing == Packing::Packed => {
                self.packed(part.layer, part.content.as_ref())?.compression().await
            }
            _ => Ok(None),
        }
    }

    /// The first bytes of a disk, without unpacking or fetching more than them; `None` where only the disk itself has them.
    async fn peek(&self, plan: &DiskPlan) -> Result<Option<Vec<u8>>, ReadError> {
        let Body::Parts(parts) = &plan.body else { return Ok(None) };
        let Some(first) = parts.first() else { return Ok(None) };
        let head = match first.packing {
            Packing::Packed => self.packed(first.layer, first.content.as_ref())?.peek(disk::HEAD).await?,
            Packing::Stored => {
                let descriptor = &self.manifest.layers[first.layer];
                if plan.size.is_none() || descriptor.data.is_some() {
                    return Ok(None);
                }
                // Its names are listed by this look; its bytes are given out by `disk`.
                let looked_at = self.cached(descriptor)?.looked_at();
                let bytes = self.observed(looked_at, &descriptor.digest, || Arc::new(|range| vec![range]));
                read_vec(&*bytes, ByteRange::new(0, bytes.size().min(disk::HEAD))).await?
            }
        };
        // A first part that is shorter than that is joined with the next one.
        Ok((parts.len() == 1 || head.len() as u64 == disk::HEAD).then_some(head))
    }

    /// The disk's inspection if it was done before.
    pub fn inspected(&self, at: usize) -> Option<&Inspection> {
        self.found().get(at)?.inspection.get()
    }

    /// The raw form of a disk whose inspection says that it has one.
    pub async fn raw_disk(self: &Arc<Self>, at: usize) -> Result<Shared, ReadError> {
        let (plan, found) = self.plan(at)?;
        let raw = found.raw.get_or_try_init(|| async {
            let inspection = self.inspect_disk(at).await?;
            let refused = |reason: &str| {
                ReadError::new(Fault::Denied, format!("disk {} has no raw form: {reason}", plan.name))
            };
            if let Some(reason) = inspection.refusal.as_ref().or(inspection.raw.as_ref()) {
                return Err(refused(reason));
            }
            let Some(header) = inspection.qcow2.clone() else { return Err(refused("it is no qcow2")) };
            let raw: Shared = Arc::new(Qcow2Raw::open(self.disk(at).await?, &header)?);
            // What the disk holds is of the same author, and a program that probes formats believes it as well.
            let head = read_vec(&*raw, ByteRange::new(0, raw.size().min(disk::HEAD))).await?;
            match disk::inspect(&head, raw.size(), &Format::Raw).refusal {
                Some(reason) => Err(refused(&format!("what it holds is not given out: {reason}"))),
                None => Ok(raw),
            }
        });
        Ok(raw.await?.clone())
    }

    /// The raw form of a disk, if it was opened before.
    pub fn raw_ready(&self, at: usize) -> Option<Shared> {
        self.found().get(at)?.raw.get().cloned()
    }
}

/// The bytes that are packed in a layer.
async fn unpacked(layer: &Layer) -> Result<Shared, ReadError> {
    layer.index().await?;
    let stream = layer.stream().ok_or_else(|| ReadError::new(Fault::Io, "a layer without a stream"))?;
    // All of the stream as a file, which is fetched ahead for who reads it in order.
    layer::file(&stream, &Content { size: stream.size(), offset: 0, runs: None }, layer.fetcher())
}
