//! Built subtrees: their names, and the content of their files.

use std::collections::HashSet;
use std::sync::Arc;

use crate::image::ArchiveView;
use crate::io::{ReadError, SharedReader};
use crate::layer::{SharedContent, UnixTime};
use crate::oci::Descriptor;
use crate::tree::{EntryProblem, FrozenTree, InodeKind, NewKind, NewNode, TreeBuilder, TreeError};

use super::rootfs::RootfsDisk;

/// The meaning of a file's `origin` in the tree.
#[derive(Clone)]
pub(super) enum OriginMeaning {
    /// `origin` is the number of an archive layer; the file has its offset in the layer's stream.
    Layers,
    /// `origin` is an index into this list of whole files.
    Made(Vec<SyntheticFile>),
}

/// A file that is not inside a layer.
#[derive(Clone)]
pub(super) enum SyntheticFile {
    /// Bytes in memory.
    Bytes(SharedReader),
    /// A blob of the manifest.
    Blob(Box<Descriptor>),
    /// The disk with this number, unless it is refused.
    Disk(usize),
    /// The raw form of the disk with this number.
    Raw(usize),
    /// A file inside the archive layer with this number.
    Inside(usize, SharedContent),
    /// The artifact's file with this number, which is not one blob as stored.
    File(usize),
    /// The report on the disks, `info.json`.
    DiskInfo,
    /// Everything that the reference names, as one archive.
    Archive(Arc<ArchiveView>, SharedReader),
    /// A tree as a disk.
    Rootfs(Arc<RootfsDisk>),
    /// The status of the mount; size and content change.
    Status,
}

/// A tree, and the content of its files.
pub(super) struct ViewSubtree {
    pub(super) tree: Arc<FrozenTree>,
    pub(super) origins: OriginMeaning,
}

/// Builds the subtree of a view whose files are not inside a layer.
pub(super) struct SubtreeBuilder {
    builder: TreeBuilder,
    files: Vec<SyntheticFile>,
    mtime: UnixTime,
}

impl SubtreeBuilder {
    /// An empty directory; all its entries get `mtime` as their time, in seconds since the epoch.
    pub(super) fn new(mtime: i64) -> Self {
        Self { builder: TreeBuilder::new(), files: Vec::new(), mtime: UnixTime { secs: mtime, nanos: 0 } }
    }

    /// Adds a file of `size` bytes.
    pub(super) fn file(&mut self, path: &[u8], size: u64, made: SyntheticFile) -> Result<(), ReadError> {
        self.file_with(path, size, 0o444, None, made)
    }

    /// Adds a file with its own mode, and with its own time unless `mtime` is `None`.
    pub(super) fn file_with(
        &mut self,
        path: &[u8],
        size: u64,
        mode: u16,
        mtime: Option<i64>,
        made: SyntheticFile,
    ) -> Result<(), ReadError> {
        let origin = self.files.len() as u32;
        let mtime = mtime.map_or(self.mtime, |secs| UnixTime { secs, nanos: 0 });
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
    pub(super) fn tree(&mut self, tree: &FrozenTree) -> Result<(), ReadError> {
        self.tree_at(b"", tree)
    }

    /// As [`tree`](Self::tree), below `path`.
    pub(super) fn tree_at(&mut self, path: &[u8], tree: &FrozenTree) -> Result<(), ReadError> {
        self.part_of(path, tree, None)
    }

    /// The directory of an archive's tree at `path` and those inside, without their files, except at paths in `taken`.
    pub(super) fn directories_at(
        &mut self,
        path: &[u8],
        tree: &FrozenTree,
        taken: &HashSet<&[u8]>,
    ) -> Result<(), ReadError> {
        if let Some(attr) = tree.attr(FrozenTree::ROOT) {
            let (kind, mtime) = (NewKind::Directory, attr.mtime);
            let root = NewNode { kind, mode: attr.mode, uid: attr.uid, gid: attr.gid, mtime };
            // A directory that exists stays.
            self.builder.insert(path, root).ok();
        }
        self.part_of(path, tree, Some(taken))
    }

    /// Adds the entries of a tree below `path`; with `taken`, only directories outside of it.
    fn part_of(
        &mut self,
        path: &[u8],
        tree: &FrozenTree,
        taken: Option<&HashSet<&[u8]>>,
    ) -> Result<(), ReadError> {
        let mut above = vec![(FrozenTree::ROOT, path.to_vec())];
        while let Some((directory, prefix)) = above.pop() {
            for (name, node) in tree.entries(directory, 0) {
                let Some(attr) = tree.attr(node) else { continue };
                let path = if prefix.is_empty() { name.to_vec() } else { [&prefix[..], b"/", name].concat() };
                let is_directory = attr.kind == InodeKind::Directory;
                if taken.is_some_and(|taken| !is_directory || taken.contains(&path[..])) {
                    continue;
                }
                let mut made = None;
                let kind = match attr.kind {
                    InodeKind::Directory => {
                        above.push((node, path.clone()));
                        NewKind::Directory
                    }
                    InodeKind::Symlink => NewKind::Symlink(tree.link(node).unwrap_or_default().to_vec()),
                    _ => {
                        let Some(file) = tree.file(node) else { continue };
                        let runs = file.runs.cloned();
                        let content = SharedContent { size: file.size, offset: file.offset, runs };
                        made = Some(SyntheticFile::Inside(file.origin as usize, content));
                        NewKind::File { origin: self.files.len() as u32, size: file.size }
                    }
                };
                let node = NewNode { kind, mode: attr.mode, uid: attr.uid, gid: attr.gid, mtime: attr.mtime };
                match self.builder.insert(&path, node) {
                    Ok(()) => self.files.extend(made),
                    Err(TreeError::Insert { problem: EntryProblem::Exists, .. }) if is_directory => {}
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

    fn insert_at(&mut self, path: &[u8], kind: NewKind, mode: u16, mtime: UnixTime) -> Result<(), ReadError> {
        let node = NewNode { kind, mode, uid: 0, gid: 0, mtime };
        self.builder.insert(path, node).map_err(|error: TreeError| {
            let path = String::from_utf8_lossy(path).into_owned();
            ReadError::caused(error.fault(), format!("{path} cannot be shown"), error)
        })
    }

    pub(super) fn finish(self) -> ViewSubtree {
        ViewSubtree { tree: Arc::new(self.builder.freeze()), origins: OriginMeaning::Made(self.files) }
    }
}
