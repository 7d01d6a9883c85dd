//! Opening files of a mount, and attributes that require waiting.
//!
//! Almost all files open without waiting. A disk is inspected first. If only unpacking reveals its size, it is
//! unpacked on the first request for the size.

use std::sync::Arc;

use crate::disk;
use crate::image::OpenImage;
use crate::io::{FaultClass, MemoryReader, ReadError, SharedReader, VerifiedLevel};
use crate::layer::FileContent;

use super::namespace::{MountNamespace, NodeId, OpenNode};
use super::node_attributes::{AttributeLifetime, NodeAttributes};
use super::subtree::{OriginMeaning, SyntheticFile};
use super::{status, subtree_ids};

impl MountNamespace {
    /// Opens a file of a built subtree without waiting; `None` if [`open_file`](Self::open_file) is needed.
    pub fn open_now(&self, node: NodeId) -> Option<Result<OpenNode, ReadError>> {
        let subtree = self.built(node)?;
        let file = subtree.tree.file(node.ino)?;
        let image = || self.image(node);
        let bytes = match &subtree.origins {
            OriginMeaning::Layers => {
                let runs = file.runs.cloned();
                let content = FileContent { size: file.size, offset: file.offset, runs };
                image()?.file(file.origin as usize, &content)
            }
            OriginMeaning::Made(made) => match made.get(file.origin as usize)? {
                SyntheticFile::Bytes(bytes) | SyntheticFile::Archive(_, bytes) => Ok(bytes.clone()),
                SyntheticFile::Blob(descriptor) => image()?.blob_file(descriptor),
                SyntheticFile::File(at) => image()?.artifact_file(*at),
                SyntheticFile::Inside(layer, content) => image()?.file(*layer, content),
                SyntheticFile::Disk(at) => {
                    image()?.inspected(*at).filter(|inspection| inspection.refusal.is_none())?;
                    Ok(image()?.disk_ready(*at)?)
                }
                SyntheticFile::Raw(at) => Ok(image()?.raw_ready(*at)?),
                SyntheticFile::Rootfs(disk) => Ok(disk.ready()?),
                SyntheticFile::DiskInfo => return None,
                SyntheticFile::Status => return Some(Ok(self.status(node))),
            },
        };
        Some(bytes.map(|bytes| OpenNode { bytes, fresh: AttributeLifetime::Forever }))
    }

    /// Opens a file.
    pub async fn open_file(&self, node: NodeId) -> Result<OpenNode, ReadError> {
        self.build(node).await?;
        if let Some(SyntheticFile::Rootfs(disk)) = self.made(node) {
            return Ok(OpenNode { bytes: disk.open().await?, fresh: AttributeLifetime::Forever });
        }
        let bytes = match self.image(node).zip(self.made(node)) {
            Some((image, SyntheticFile::Disk(at))) => disk_bytes(image, *at).await?,
            Some((image, SyntheticFile::Raw(at))) => image.raw_disk(*at).await?,
            Some((image, SyntheticFile::DiskInfo)) => {
                for at in 0..image.detection().disks.len() {
                    if let Err(error) = image.inspect_disk(at).await {
                        tracing::warn!(disk = at, error = error.chain(), "disk not inspected");
                    }
                }
                return Ok(disk_info(image));
            }
            _ => {
                let no_file = || Err(ReadError::new(FaultClass::Usage, "only regular files can be opened"));
                return self.open_now(node).unwrap_or_else(no_file);
            }
        };
        Ok(OpenNode { bytes, fresh: AttributeLifetime::Forever })
    }

    /// The disks in a built directory, without their raw forms: names and nodes.
    pub fn disks(&self, directory: NodeId) -> Vec<(String, NodeId)> {
        let mut disks = Vec::new();
        self.entries(directory, 0, |entry| {
            if matches!(self.made(entry.node), Some(SyntheticFile::Disk(_))) {
                disks.push((String::from_utf8_lossy(entry.name).into_owned(), entry.node));
            }
            true
        });
        disks
    }

    /// Whether all attributes of a node are known.
    pub fn is_settled(&self, node: NodeId) -> bool {
        if let Some(SyntheticFile::Rootfs(disk)) = self.made(node) {
            return disk.size().is_some();
        }
        if !self.is_rooted(node) {
            return false;
        }
        match self.image(node).zip(self.made(node)) {
            Some((image, SyntheticFile::Disk(at))) => image.disk_size(*at).is_some(),
            _ => true,
        }
    }

    /// Waits until all attributes of a node are known.
    pub async fn settle(&self, node: NodeId) -> Result<(), ReadError> {
        if let Some(SyntheticFile::Rootfs(disk)) = self.made(node) {
            return disk.open().await.map(|_| ());
        }
        self.settle_root(node).await;
        match self.image(node).zip(self.made(node)) {
            Some((image, SyntheticFile::Disk(at))) => image.disk(*at).await.map(|_| ()),
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
    pub(super) fn settle_attributes(
        &self,
        node: NodeId,
        made: &SyntheticFile,
        attributes: &mut NodeAttributes,
    ) {
        match (made, self.image(node)) {
            // Like a file in /proc: its content is determined when it is opened.
            (SyntheticFile::Status, _) => attributes.fresh = AttributeLifetime::Now,
            (SyntheticFile::Rootfs(disk), _) => match disk.size() {
                Some(size) => (attributes.size, attributes.data) = size,
                None => attributes.fresh = AttributeLifetime::Now,
            },
            (SyntheticFile::Disk(at), Some(image)) => match image.disk_size(*at) {
                Some(size) => (attributes.size, attributes.data) = (size, size),
                None => attributes.fresh = AttributeLifetime::Now,
            },
            (SyntheticFile::File(at), Some(image)) => {
                attributes.data = image.artifact_data(*at).unwrap_or(attributes.size);
            }
            // An estimate: a qcow2 stores only data, and an exact number would require reading all its tables.
            (SyntheticFile::Raw(at), Some(image)) => {
                attributes.data =
                    image.disk_size(*at).map_or(attributes.size, |stored| stored.min(attributes.size));
            }
            _ => {}
        }
    }

    /// The verification state of a file's bytes; `None` for other types.
    pub(super) fn verified(&self, node: NodeId) -> Option<VerifiedLevel> {
        match self.made(node) {
            Some(SyntheticFile::DiskInfo) => Some(VerifiedLevel::Full),
            // A disk that was never opened was never compared.
            Some(SyntheticFile::Disk(at)) => Some(verified(self.image(node)?.disk_ready(*at))),
            Some(SyntheticFile::Raw(at)) => Some(verified(self.image(node)?.raw_ready(*at))),
            Some(SyntheticFile::Rootfs(disk)) => Some(verified(disk.ready())),
            _ => Some(self.open_now(node)?.ok()?.bytes.verified()),
        }
    }

    fn status(&self, node: NodeId) -> OpenNode {
        let status = match self.image(node).filter(|_| node.slot >= subtree_ids::PER_IMAGE) {
            Some(image) => image.status(),
            None => self.family().status(),
        };
        OpenNode { bytes: Arc::new(MemoryReader::new(status::text(&status))), fresh: AttributeLifetime::Now }
    }
}

fn verified(bytes: Option<SharedReader>) -> VerifiedLevel {
    bytes.map_or(VerifiedLevel::None, |bytes| bytes.verified())
}

/// The bytes of a disk, unless it is refused.
async fn disk_bytes(image: &Arc<OpenImage>, at: usize) -> Result<SharedReader, ReadError> {
    let name = &image.detection().disks[at].name;
    let inspection = image.inspect_disk(at).await.map_err(|error| {
        // The disk exists in any case, so a failure to read its head is neither "not found" nor "denied".
        let fault = match error.fault() {
            FaultClass::NotFound | FaultClass::Denied => FaultClass::Unavailable,
            other => other,
        };
        ReadError::caused(fault, format!("the head of disk {name} cannot be read"), error)
    })?;
    if let Some(refusal) = &inspection.refusal {
        return Err(ReadError::new(FaultClass::Denied, format!("disk {name} is refused: {refusal}")));
    }
    image.disk(at).await
}

fn disk_info(image: &OpenImage) -> OpenNode {
    let count = image.detection().disks.len();
    let inspections: Vec<_> = (0..count).map(|at| image.inspected(at).cloned()).collect();
    let text = disk::info_padded(image.manifest(), image.detection(), &inspections);
    // An inspection that failed now may succeed later.
    let fresh = if inspections.iter().all(Option::is_some) {
        AttributeLifetime::Forever
    } else {
        AttributeLifetime::Now
    };
    OpenNode { bytes: Arc::new(MemoryReader::new(text)), fresh }
}
