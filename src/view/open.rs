//! Opening files of a mount, and attributes that require waiting.
//!
//! Almost all files open without waiting. A disk is inspected first. If only unpacking reveals its size, it is
//! unpacked on the first request for the size.

use std::sync::Arc;

use crate::disk;
use crate::image::Image;
use crate::io::{Fault, Memory, ReadError, Shared, Verified};
use crate::layer::Content;

use super::namespace::{Attributes, Freshness, Namespace, NodeId, Opened};
use super::subtree::{Made, Origins};
use super::{slots, status};

impl Namespace {
    /// Opens a file of a built subtree without waiting; `None` if [`open_file`](Self::open_file) is needed.
    pub fn open_now(&self, node: NodeId) -> Option<Result<Opened, ReadError>> {
        let subtree = self.built(node)?;
        let file = subtree.tree.file(node.ino)?;
        let image = || self.image(node);
        let bytes = match &subtree.origins {
            Origins::Layers => {
                let runs = file.runs.map(<[_]>::to_vec);
                let content = Content { size: file.size, offset: file.offset, runs };
                image()?.file(file.origin as usize, &content)
            }
            Origins::Made(made) => match made.get(file.origin as usize)? {
                Made::Bytes(bytes) | Made::Archive(_, bytes) => Ok(bytes.clone()),
                Made::Blob(descriptor) => image()?.blob(descriptor),
                Made::File(at) => image()?.artifact_file(*at),
                Made::Inside(layer, content) => image()?.file(*layer, content),
                Made::Disk(at) => {
                    image()?.inspected(*at).filter(|inspection| inspection.refusal.is_none())?;
                    Ok(image()?.disk_ready(*at)?)
                }
                Made::Raw(at) => Ok(image()?.raw_ready(*at)?),
                Made::Rootfs(disk) => Ok(disk.ready()?),
                Made::DiskInfo => return None,
                Made::Status => return Some(Ok(self.status(node))),
            },
        };
        Some(bytes.map(|bytes| Opened { bytes, fresh: Freshness::Forever }))
    }

    /// Opens a file.
    pub async fn open_file(&self, node: NodeId) -> Result<Opened, ReadError> {
        self.build(node).await?;
        if let Some(Made::Rootfs(disk)) = self.made(node) {
            return Ok(Opened { bytes: disk.open().await?, fresh: Freshness::Forever });
        }
        let bytes = match self.image(node).zip(self.made(node)) {
            Some((image, Made::Disk(at))) => disk_bytes(image, *at).await?,
            Some((image, Made::Raw(at))) => image.raw_disk(*at).await?,
            Some((image, Made::DiskInfo)) => {
                for at in 0..image.detection().disks.len() {
                    if let Err(error) = image.inspect_disk(at).await {
                        tracing::warn!(disk = at, error = error.chain(), "disk not inspected");
                    }
                }
                return Ok(disk_info(image));
            }
            _ => {
                let no_file = || Err(ReadError::new(Fault::Usage, "only regular files can be opened"));
                return self.open_now(node).unwrap_or_else(no_file);
            }
        };
        Ok(Opened { bytes, fresh: Freshness::Forever })
    }

    /// The disks in a built directory, without their raw forms: names and nodes.
    pub fn disks(&self, directory: NodeId) -> Vec<(String, NodeId)> {
        let mut disks = Vec::new();
        self.entries(directory, 0, |entry| {
            if matches!(self.made(entry.node), Some(Made::Disk(_))) {
                disks.push((String::from_utf8_lossy(entry.name).into_owned(), entry.node));
            }
            true
        });
        disks
    }

    /// Whether all attributes of a node are known.
    pub fn is_settled(&self, node: NodeId) -> bool {
        if let Some(Made::Rootfs(disk)) = self.made(node) {
            return disk.size().is_some();
        }
        if !self.is_rooted(node) {
            return false;
        }
        match self.image(node).zip(self.made(node)) {
            Some((image, Made::Disk(at))) => image.disk_size(*at).is_some(),
            _ => true,
        }
    }

    /// Waits until all attributes of a node are known.
    pub async fn settle(&self, node: NodeId) -> Result<(), ReadError> {
        if let Some(Made::Rootfs(disk)) = self.made(node) {
            return disk.open().await.map(|_| ());
        }
        self.settle_root(node).await;
        match self.image(node).zip(self.made(node)) {
            Some((image, Made::Disk(at))) => image.disk(*at).await.map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Waits until the recorded attributes of a tree's root directory are known, or cannot be known before its names.
    pub async fn settle_root(&self, node: NodeId) {
        if !self.is_rooted(node)
            && let Some(image) = self.image(node)
        {
            image.learn_roots().await;
        }
    }

    /// Completes `attributes` of a synthetic file with values that the tree does not have.
    pub(super) fn settle_attributes(&self, node: NodeId, made: &Made, attributes: &mut Attributes) {
        match (made, self.image(node)) {
            // Like a file in /proc: its content is determined when it is opened.
            (Made::Status, _) => attributes.fresh = Freshness::Now,
            (Made::Rootfs(disk), _) => match disk.size() {
                Some(size) => (attributes.size, attributes.data) = size,
                None => attributes.fresh = Freshness::Now,
            },
            (Made::Disk(at), Some(image)) => match image.disk_size(*at) {
                Some(size) => (attributes.size, attributes.data) = (size, size),
                None => attributes.fresh = Freshness::Now,
            },
            (Made::File(at), Some(image)) => {
                attributes.data = image.artifact_data(*at).unwrap_or(attributes.size);
            }
            // An estimate: a qcow2 stores only data, and an exact number would require reading all its tables.
            (Made::Raw(at), Some(image)) => {
                attributes.data =
                    image.disk_size(*at).map_or(attributes.size, |stored| stored.min(attributes.size));
            }
            _ => {}
        }
    }

    /// The verification state of a file's bytes; `None` for other types.
    pub(super) fn verified(&self, node: NodeId) -> Option<Verified> {
        match self.made(node) {
            Some(Made::DiskInfo) => Some(Verified::Full),
            // A disk that was never opened was never compared.
            Some(Made::Disk(at)) => Some(verified(self.image(node)?.disk_ready(*at))),
            Some(Made::Raw(at)) => Some(verified(self.image(node)?.raw_ready(*at))),
            Some(Made::Rootfs(disk)) => Some(verified(disk.ready())),
            _ => Some(self.open_now(node)?.ok()?.bytes.verified()),
        }
    }

    fn status(&self, node: NodeId) -> Opened {
        let status = match self.image(node).filter(|_| node.slot >= slots::PER_IMAGE) {
            Some(image) => image.status(),
            None => self.family().status(),
        };
        Opened { bytes: Arc::new(Memory::new(status::text(&status))), fresh: Freshness::Now }
    }
}

fn verified(bytes: Option<Shared>) -> Verified {
    bytes.map_or(Verified::None, |bytes| bytes.verified())
}

/// The bytes of a disk, unless it is refused.
async fn disk_bytes(image: &Arc<Image>, at: usize) -> Result<Shared, ReadError> {
    let name = &image.detection().disks[at].name;
    let inspection = image.inspect_disk(at).await.map_err(|error| {
        // The disk exists in any case, so a failure to read its head is neither "not found" nor "denied".
        let fault = match error.fault() {
            Fault::NotFound | Fault::Denied => Fault::Unavailable,
            other => other,
        };
        ReadError::caused(fault, format!("the head of disk {name} cannot be read"), error)
    })?;
    if let Some(refusal) = &inspection.refusal {
        return Err(ReadError::new(Fault::Denied, format!("disk {name} is refused: {refusal}")));
    }
    image.disk(at).await
}

fn disk_info(image: &Image) -> Opened {
    let count = image.detection().disks.len();
    let inspections: Vec<_> = (0..count).map(|at| image.inspected(at).cloned()).collect();
    let text = disk::info_padded(image.manifest(), image.detection(), &inspections);
    // An inspection that failed now may succeed later.
    let fresh = if inspections.iter().all(Option::is_some) { Freshness::Forever } else { Freshness::Now };
    Opened { bytes: Arc::new(Memory::new(text)), fresh }
}
