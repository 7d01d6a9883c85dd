//! Directories and files of an opened image.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use crate::io::{ByteRange, ReadAt as _, SharedReader, read_vec};
use crate::tree::InodeKind;
use crate::view::{MountNamespace, NodeId, ViewError};

use super::Error;

/// A directory of an opened image.
#[derive(Clone)]
pub struct Directory {
    namespace: Arc<MountNamespace>,
    node: NodeId,
    /// The path below the root of the tree.
    path: Vec<u8>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirectoryEntry {
    /// The name.
    pub name: OsString,
    /// The file type.
    pub kind: InodeKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a file in bytes.
    pub size: u64,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// The target of a symbolic link; `None` for other types.
    pub link: Option<OsString>,
}

impl Directory {
    pub(super) fn new(namespace: Arc<MountNamespace>, node: NodeId, path: Vec<u8>) -> Self {
        Self { namespace, node, path }
    }

    /// All entries, in the order of a mount. Waits for sizes that need decompression.
    ///
    /// # Errors
    /// If the content of the directory is unavailable, as with an unreadable or unreachable archive.
    pub async fn entries(&self) -> Result<Vec<DirectoryEntry>, Error> {
        self.namespace.build(self.node).await?;
        let mut nodes = Vec::new();
        self.namespace.entries(self.node, 0, |entry| {
            nodes.push((entry.name.to_vec(), entry.node));
            true
        });
        let mut entries = Vec::with_capacity(nodes.len());
        for (name, node) in nodes {
            // A refused disk is listed too.
            self.namespace.settle(node).await.ok();
            let Some(attributes) = self.namespace.attributes(node) else { continue };
            entries.push(DirectoryEntry {
                name: OsString::from_vec(name),
                kind: attributes.kind,
                mode: attributes.mode,
                uid: attributes.uid,
                gid: attributes.gid,
                size: attributes.size,
                mtime: attributes.mtime.secs,
                link: self.namespace.link(node).map(|link| OsString::from_vec(link.to_vec())),
            });
        }
        Ok(entries)
    }

    /// A directory below this one. Symbolic links are followed.
    ///
    /// # Errors
    /// If the directory does not exist.
    pub async fn directory(&self, path: impl AsRef<Path>) -> Result<Directory, Error> {
        let (node, path) = self.find(path.as_ref()).await?;
        match self.namespace.attributes(node).map(|attributes| attributes.kind) {
            Some(InodeKind::Directory) => Ok(Self { namespace: self.namespace.clone(), node, path }),
            _ => Err(wrong(&path, "directory")),
        }
    }

    /// A file below this directory. Symbolic links are followed.
    ///
    /// # Errors
    /// If the file does not exist, or is refused.
    pub async fn open(&self, path: impl AsRef<Path>) -> Result<File, Error> {
        let (node, path) = self.find(path.as_ref()).await?;
        match self.namespace.attributes(node).map(|attributes| attributes.kind) {
            Some(InodeKind::File) => Ok(File { bytes: self.namespace.open_file(node).await?.bytes }),
            _ => Err(wrong(&path, "regular file")),
        }
    }

    async fn find(&self, path: &Path) -> Result<(NodeId, Vec<u8>), Error> {
        let mut full = self.path.clone();
        full.push(b'/');
        full.extend_from_slice(path.as_os_str().as_bytes());
        Ok((self.namespace.resolve(&full).await?, full))
    }
}

fn wrong(path: &[u8], wanted: &'static str) -> Error {
    ViewError::Wrong { path: String::from_utf8_lossy(path).into_owned(), wanted }.into()
}

/// A file with immutable content.
#[derive(Clone)]
pub struct File {
    bytes: SharedReader,
}

impl File {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.size()
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// If the range is outside the file, or its bytes are unavailable or do not match their digest. The content of
    /// `buf` is then undefined.
    pub async fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        Ok(self.bytes.read_at(offset, buf).await?)
    }

    /// The bytes from `offset` on, at most `len`; fewer only at the end of the file.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        let range = ByteRange::at(offset, len).intersect(ByteRange::new(0, self.size()));
        Ok(read_vec(&*self.bytes, range).await?)
    }

    /// The content as the reader trait that is common in this crate.
    pub fn bytes(&self) -> &SharedReader {
        &self.bytes
    }
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Directory").field(&String::from_utf8_lossy(&self.path)).finish()
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("size", &self.size()).finish()
    }
}
