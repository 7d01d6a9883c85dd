//! Built subtrees: their names, and the content of their files.

use std::sync::Arc;

use crate::image::Archive;
use crate::io::{ReadError, Shared};
use crate::layer::{Content, Time};
use crate::oci::Descriptor;
use crate::tree::{Builder, Kind, NewKind, NewNode, Tree, TreeError};

use super::rootfs::Rootfs;

/// The meaning of a file's `origin` in the tree.
#[derive(Clone)]
pub(super) enum Origins {
    /// `origin` is the number of an archive layer; the file has its offset in the layer's stream.
    Layers,
    /// `origin` is an index into this list of whole files.
    Made(Vec<Made>),
}

/// A file that is not inside a layer.
#[derive(Clone)]
pub(super) enum Made {
    /// Bytes in memory.
    Bytes(Shared),
    /// A blob of the manifest.
    Blob(Box<Descriptor>),
    /// The disk with this number, unless it is refused.
    Disk(usize),
    /// The raw form of the disk with this number.
    Raw(usize),
    /// A file inside the archive layer with this number.
    Inside(usize, Content),
    /// The artifact's file with this number, which is not one blob as stored.
    File(usize),
    /// The report on the disks, `info.json`.
    DiskInfo,
    /// Everything that the reference names, as one archive.
    Archive(Arc<Archive>, Shared),
    /// A tree as a disk.
    Rootfs(Arc<Rootfs>),
    /// The status of the mount; size and content change.
    Status,
}

/// A tree, and the content of its files.
pub(super) struct Subtree {
    pub(super) tree: Arc<Tree>,
    pub(super) origins: Origins,
}

/// Builds the subtree of a view whose files are not inside a layer.
pub(super) struct Listing {
    builder: Builder,
    files: Vec<Made>,
    mtime: Time,
}

impl Listing {
    /// An empty directory; all its entries get `mtime` as their time, in seconds since the epoch.
    pub(super) fn new(mtime: i64) -> Self {
        Self { builder: Builder::new(), files: Vec::new(), mtime: Time { secs: mtime, nanos: 0 } }
    }

    /// Adds a file of `size` bytes.
    pub(super) fn file(&mut self, path: &[u8], size: u64, made: Made) -> Result<(), ReadError> {
        self.file_with(path, size, 0o444, None, made)
    }

    /// Adds a file with its own mode, and with its own time unless `mtime` is `None`.
    pub(super) fn file_with(
        &mut self,
        path: &[u8],
        size: u64,
        mode: u16,
        mtime: Option<i64>,
        made: Made,
    ) -> Result<(), ReadError> {
        let origin = self.files.len() as u32;
        let mtime = mtime.map_or(self.mtime, |secs| Time { secs, nanos: 0 });
        self.insert_at(path, NewKind::File { origin, size }, mode, mtime)?;
        self.files.push(made);
        Ok(())
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &[u8], target: &str) -> Result<(), ReadError> {
        self.insert(path, NewKind::Symlink(target.as_bytes().to_vec()), 0o777)
    }

    /// Adds a directory whose content is another subtree.
    pub(super) fn graft(&mut self, path: &[u8], subtree: u32) -> Result<(), ReadError> {
        self.insert(path, NewKind::Graft(subtree), 0o555)
    }

    /// Adds all entries of an archive's tree. Existing entries stay.
    pub(super) fn tree(&mut self, tree: &Tree) -> Result<(), ReadError> {
        let mut above = vec![(Tree::ROOT, Vec::new())];
        while let Some((directory, prefix)) = above.pop() {
            for (name, node) in tree.entries(directory, 0) {
                let Some(attr) = tree.attr(node) else { continue };
                let path = if prefix.is_empty() { name.to_vec() } else { [&prefix[..], b"/", name].concat() };
                let mut made = None;
                let kind = match attr.kind {
                    Kind::Directory => {
                        above.push((node, path.clone()));
                        NewKind::Directory
                    }
                    Kind::Symlink => NewKind::Symlink(tree.link(node).unwrap_or_default().to_vec()),
                    _ => {
                        let Some(file) = tree.file(node) else { continue };
                        let runs = file.runs.map(<[_]>::to_vec);
                        let content = Content { size: file.size, offset: file.offset, runs };
                        made = Some(Made::Inside(file.origin as usize, content));
                        NewKind::File { origin: self.files.len() as u32, size: file.size }
                    }
                };
                let node = NewNode { kind, mode: attr.mode, uid: attr.uid, gid: attr.gid, mtime: attr.mtime };
                match self.builder.insert(&path, node) {
                    Ok(()) => self.files.extend(made),
                    Err(error) => {
                        let path = String::from_utf8_lossy(&path);
                        tracing::warn!(%path, %error, "entry of an archive not shown");
                    }
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &[u8], kind: NewKind, mode: u16) -> Result<(), ReadError> {
        self.insert_at(path, kind, mode, self.mtime)
    }

    fn insert_at(&mut self, path: &[u8], kind: NewKind, mode: u16, mtime: Time) -> Result<(), ReadError> {
        let node = NewNode { kind, mode, uid: 0, gid: 0, mtime };
        self.builder.insert(path, node).map_err(|error: TreeError| {
            let path = String::from_utf8_lossy(path).into_owned();
            ReadError::caused(error.fault(), format!("{path} cannot be shown"), error)
        })
    }

    pub(super) fn finish(self) -> Subtree {
        Subtree { tree: Arc::new(self.builder.freeze()), origins: Origins::Made(self.files) }
    }
}
