//! Views: the names in a mount, and the content behind each.
//!
//! A view is a top-level name and a subtree that is built on first access. [`MountNamespace`] joins the subtrees into one
//! tree of nodes, and answers every request of a file system or an export. It does not depend on FUSE. To add a view,
//! add a file to this directory and a line to `VIEWS`.

mod affected_files;
mod blobs;
mod disk;
mod error;
mod export;
mod files;
mod inode_stability;
mod kernel_disk;
mod layers;
mod merged;
mod namespace;
mod node_attributes;
mod numbers;
mod open;
mod path_of;
mod root;
mod rootfs;
mod status;
mod subtree;
mod subtree_ids;

pub use error::ViewError;
pub use kernel_disk::KernelDisk;
pub use namespace::{
    InodeCheck, LinkPolicy, MountNamespace, NamespaceEntry, NodeId, OpenNode, OverlayMarks, ViewScope,
};
pub use node_attributes::{AttributeLifetime, NodeAttributes};
pub use status::{STATUS, packed as packed_status, text as status_text, unpack_status};

use std::sync::Arc;

use crate::image::{OpenImage, TreeRoot};
use crate::io::{BoxFuture, ReadError};

use subtree::ViewSubtree;

/// One top-level directory.
trait TopView: Sync {
    fn name(&self) -> &'static str;

    /// Whether the view has content. Decided from the manifest alone.
    fn exists(&self, image: &OpenImage) -> bool;

    /// Builds the view's tree. `first` is the number of its first inner subtree.
    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>>;

    /// The subtrees grafted into the view's tree, each built on first access: a layer number for every one.
    fn inner(&self, _image: &OpenImage) -> Vec<usize> {
        Vec::new()
    }

    /// Builds the subtree of layer `layer`, one of [`inner`](Self::inner).
    fn build_inner<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        _layer: usize,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        self.build(image, 0)
    }

    /// The tree that the view shows, if its root directory has attributes of its own.
    fn root(&self) -> Option<TreeRoot> {
        None
    }

    /// Like `root`, for the subtree of layer `layer`, one of [`inner`](Self::inner).
    fn inner_root(&self, _layer: usize) -> Option<TreeRoot> {
        None
    }

    /// Whether all files of the view are files of archives, so that opening one decides nothing.
    fn opens_freely(&self) -> bool {
        false
    }

    /// Whether the view is built without any blob bytes, so that attributes are final from the start.
    fn is_free(&self, _image: &OpenImage) -> bool {
        false
    }
}

/// The top-level directories in a mount of `image`.
pub fn directories(image: &OpenImage) -> Vec<&'static str> {
    let names = VIEWS.iter().filter(|view| view.exists(image)).map(|view| view.name());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The path of the merged tree as a disk in a mount of `image`; `None` if it has no merged tree.
pub fn rootfs(image: &OpenImage) -> Option<&'static str> {
    merged::MergedView.exists(image).then_some(export::DISK_PATH)
}

/// The views in order of their subtree numbers. The order is part of every inode number, so new views go to the end.
static VIEWS: &[&dyn TopView] = &[
    &blobs::BlobsView,
    &layers::LayersView,
    &merged::MergedView,
    &files::FilesView,
    &disk::DiskView,
    &status::StatusView,
];
