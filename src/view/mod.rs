//! Which names appear in a mount, and what each one opens.
//!
//! A view is a top-level name plus a subtree that is built when it is first looked into. [`Namespace`] joins the subtrees
//! into one tree of nodes and answers everything a filesystem or an export asks; it knows no FUSE. To add a view: a file
//! here and a line in `VIEWS`.

mod blobs;
mod disk;
mod error;
mod export;
mod files;
mod layers;
mod merged;
mod namespace;
mod numbers;
mod open;
mod path_of;
mod rootfs;
mod shown;
mod slots;
mod status;
mod subtree;
mod top;
mod witness;

pub use error::ViewError;
pub use namespace::{Attributes, Entry, Freshness, Links, Namespace, NodeId, Opened, OverlayMarks, Scope};
pub use status::{STATUS, packed as packed_status, text as status_text, unpack_status};
pub use witness::Witness;

use std::sync::Arc;

use crate::image::{Image, TreeRoot};
use crate::io::{BoxFuture, ReadError};

use subtree::Subtree;

/// One top-level directory.
trait View: Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Whether it has content. Decided from the manifest alone.
    fn exists(&self, image: &Image) -> bool;

    /// Builds its tree. `first` is the number of the first of this view's own subtrees below it.
    fn build<'a>(&'a self, image: &'a Arc<Image>, first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>>;

    /// The subtrees that its tree grafts in, each built when it is first looked into: for every one a layer number.
    fn inner(&self, _image: &Image) -> Vec<usize> {
        Vec::new()
    }

    /// Builds the subtree of layer `layer`, one of [`inner`](Self::inner).
    fn build_inner<'a>(
        &'a self,
        image: &'a Arc<Image>,
        _layer: usize,
    ) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        self.build(image, 0)
    }

    /// The tree that it shows, if its root directory has attributes of its own.
    fn root(&self) -> Option<TreeRoot> {
        None
    }

    /// The same of the subtree of layer `layer`, one of [`inner`](Self::inner).
    fn inner_root(&self, _layer: usize) -> Option<TreeRoot> {
        None
    }

    /// Whether its files are files of archives, so that nothing is decided when one is opened.
    fn opens_freely(&self) -> bool {
        false
    }

    /// Whether building needs no blob byte, so that attributes are final from the first look.
    fn is_free(&self, _image: &Image) -> bool {
        false
    }
}

/// The directories that a mount of `image` has at its top.
pub fn directories(image: &Image) -> Vec<&'static str> {
    let names = VIEWS.iter().filter(|view| view.exists(image)).map(|view| view.name());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Where a mount of `image` has its merged tree as a disk, if it has one.
pub fn rootfs(image: &Image) -> Option<&'static str> {
    merged::Merged.exists(image).then_some(export::DISK_PATH)
}

/// The views in the order of their subtree numbers: part of every inode number, so new ones go to the end.
static VIEWS: &[&dyn View] =
    &[&blobs::Blobs, &layers::Layers, &merged::Merged, &files::Files, &disk::Disk, &status::StatusView];
