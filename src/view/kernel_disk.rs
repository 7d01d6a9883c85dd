//! EROFS disk of a mount's root for the kernel: it returns only bytes that were compared.
//!
//! Pages that EROFS has read cannot be invalidated. So a read is returned only if every layer behind the disk compares
//! its bytes before delivery.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::image::{LayerLaziness, OpenImage};
use crate::io::{BoxFuture, FaultClass, ReadAt, ReadError, SharedReader, VerifiedLevel};
use crate::tree::{FrozenTree, InodeNumber};

use super::namespace::{LinkPolicy, MountNamespace, NodeId, OverlayMarks};
use super::rootfs::RootfsBytes;
use super::subtree_ids::SubtreeRole;

/// The view of single layers.
const LAYERS: &str = "layers";

/// An EROFS disk for a kernel mount.
#[derive(Clone)]
pub struct KernelDisk {
    /// The bytes of the image. A read of bytes that were not compared is an error.
    pub bytes: SharedReader,
    /// Bytes of metadata at the start of the image.
    pub metadata_bytes: u64,
    /// Hash of the metadata. Equal hashes mean equal images.
    pub identity: [u8; 32],
}

/// The tree that the root of a mount shows.
struct DiskTree<'a> {
    image: &'a Arc<OpenImage>,
    /// The only layer of the tree; `None` for the merged tree.
    layer: Option<usize>,
}

impl MountNamespace {
    /// The root of `layers/N` or `layers/NAME`, without building the listing of layers.
    pub(super) fn one_layer(&self, name: &str) -> Option<NodeId> {
        let layer = name.strip_prefix(LAYERS)?.strip_prefix('/')?.trim_end_matches('/');
        let is_named = |image: &OpenImage, at: usize| {
            let digest = || Some(image.manifest().layers.get(at)?.digest.short().to_owned());
            let label = image.layer_label(at).or_else(digest).unwrap_or_default();
            layer.parse() == Ok(at) || layer == format!("{at:02}-{label}")
        };
        let found = self.slots().iter().find(|slot| match (&slot.role, &slot.image) {
            (SubtreeRole::Inner { view, layer }, Some(image)) => {
                let is_main = self.family().main().is_some_and(|main| Arc::ptr_eq(main, image));
                is_main && view.name() == LAYERS && is_named(image, *layer)
            }
            _ => false,
        })?;
        Some(NodeId { slot: found.number, ino: FrozenTree::ROOT })
    }

    /// Why the kernel cannot mount the root; `None` for the merged tree or one layer, with all their names.
    pub fn kernel_refusal(&self) -> Option<&'static str> {
        match self.shown_tree() {
            None => Some("it is for --view merged or --view layers/N"),
            Some(_) if self.links == LinkPolicy::Hidden => {
                Some("EROFS shows every name, without --hide-symlinks")
            }
            Some(_) => None,
        }
    }

    /// The first layer of the tree whose names are known only after a pass over it, with the reason.
    pub fn unknown_layer(&self) -> Option<String> {
        let DiskTree { image, layer } = self.shown_tree()?;
        let wanted = layers_of(image, layer);
        wanted.into_iter().find_map(|at| match image.access(at, &[]) {
            LayerLaziness::Indexed(_) | LayerLaziness::Headers => None,
            other => Some(format!("layer {at}: {other}")),
        })
    }

    /// Has every layer of the tree compared, so that [`kernel_disk`](Self::kernel_disk) succeeds. Fetches what that
    /// takes.
    pub async fn compare_layers(&self) -> Result<(), ReadError> {
        let Some(DiskTree { image, layer }) = self.shown_tree() else { return Ok(()) };
        // First the names, which take a pass over several layers at once.
        match layer {
            None => drop(image.merged().await?),
            Some(at) => drop(image.layer_tree(at).await?),
        }
        for at in layers_of(image, layer) {
            if let Some(layer) = image.archive(at) {
                layer.compare_all().await.map_err(|error| error.within(format!("layer {at}")))?;
            }
        }
        Ok(())
    }

    /// Bytes of the layers that are cached, and all of them.
    pub fn cached_bytes(&self) -> (u64, u64) {
        let Some(DiskTree { image, layer }) = self.shown_tree() else { return (0, 0) };
        let layers = layers_of(image, layer).into_iter().filter_map(|at| image.archive(at));
        layers.map(|layer| layer.stored_bytes()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The root as a disk. An error if its reads are not all compared.
    pub async fn kernel_disk(&self) -> Result<KernelDisk, ReadError> {
        let refused = |why: &str| ReadError::new(FaultClass::Unsupported, why.to_owned());
        if let Some(why) = self.kernel_refusal() {
            return Err(refused(why));
        }
        let Some(DiskTree { image, layer }) = self.shown_tree() else {
            return Err(refused("no image is shown"));
        };
        let (tree, name) = match layer {
            None => (image.merged().await?, image.manifest_digest().to_string()),
            Some(at) => {
                (Arc::new(image.layer_tree(at).await?), image.manifest().layers[at].digest.to_string())
            }
        };
        if self.overlay_marks == OverlayMarks::Hidden && has_overlay_marks(&tree) {
            return Err(refused("EROFS shows every attribute, and those of overlayfs are to be hidden"));
        }
        let bytes = RootfsBytes::compute(image, tree, name).await?;
        let identity = *blake3::hash(bytes.head()).as_bytes();
        // The names come from every layer, also from those without a file.
        let layers = bytes.origins().iter().copied().chain(layers_of(image, layer)).collect();
        let metadata_bytes = bytes.head().len() as u64;
        let disk = ComparedDisk { bytes, image: image.clone(), layers };
        disk.check()?;
        Ok(KernelDisk { bytes: Arc::new(disk), metadata_bytes, identity })
    }

    fn shown_tree(&self) -> Option<DiskTree<'_>> {
        let root = self.root();
        let slot = self.slot(root.slot).filter(|_| root.ino == FrozenTree::ROOT)?;
        let image = slot.image.as_ref()?;
        match &slot.role {
            SubtreeRole::View { view, .. } if view.name() == "merged" => {
                Some(DiskTree { image, layer: None })
            }
            SubtreeRole::Inner { view, layer } if view.name() == LAYERS => {
                Some(DiskTree { image, layer: Some(*layer) })
            }
            _ => None,
        }
    }
}

/// The layers of a tree.
fn layers_of(image: &OpenImage, layer: Option<usize>) -> Vec<usize> {
    match layer {
        None => image.archives().map(|(at, _)| at).collect(),
        Some(at) => vec![at],
    }
}

/// Whether an inode has an attribute that overlayfs interprets.
fn has_overlay_marks(tree: &FrozenTree) -> bool {
    let is_mark = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    (0..tree.len() as InodeNumber).any(|ino| tree.xattrs(ino).any(|(name, _)| is_mark(name)))
}

/// A disk whose reads return compared bytes or an error.
struct ComparedDisk {
    bytes: RootfsBytes,
    image: Arc<OpenImage>,
    layers: Vec<usize>,
}

impl ComparedDisk {
    fn check(&self) -> Result<(), ReadError> {
        let is_compared = |at: usize| self.image.archive(at).is_some_and(|layer| layer.compares_reads());
        match self.layers.iter().find(|at| !is_compared(**at)) {
            None => Ok(()),
            Some(at) => {
                let digest = self.image.manifest().layers.get(*at).map(|layer| layer.digest.to_string());
                let digest = digest.unwrap_or_default();
                let message = format!("layer {at} ({digest}) was not compared with its digest");
                Err(ReadError::new(FaultClass::Unsupported, message))
            }
        }
    }
}

impl ReadAt for ComparedDisk {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.bytes.read_at(offset, buf).await?;
            // After the read, so that its own findings count.
            self.check()
        })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.bytes.read_exactly(offset, buf).await?;
            self.check()
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let is_read = self.bytes.read_ready(offset, buf)?;
        self.check().map(|()| is_read)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        self.bytes.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> u64 {
        self.bytes.next_hole(offset)
    }

    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        self.bytes.learn_holes()
    }

    fn verified(&self) -> VerifiedLevel {
        self.bytes.verified()
    }

    fn backing(&self) -> Option<Arc<OwnedFd>> {
        None
    }
}
