//! Directories and files of what was opened.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use crate::io::{ByteRange, ReadAt as _, Shared, read_vec};
use crate::tree::Kind;
use crate::view::{Namespace, NodeId, ViewError};

use super::Error;

/// A directory.
#[derive(Clone)]
pub struct Directory {
    namespace: Arc<Namespace>,
    node: NodeId,
    /// Below the top of the tree.
    path: Vec<u8>,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Where a symbolic link points.
    pub link: Option<OsString>,
}

impl Directory {
    pub(super) fn new(namespace: Arc<Namespace>, node: NodeId, path: Vec<u8>) -> Self {
        Self { namespace, node, path }
    }

    /// Everything in it, in the order of a mount. Sizes that only unpacking tells are waited for.
    ///
    /// # Errors
    /// When what is in it cannot be known: an archive that cannot be read, or cannot be had.
    pub async fn entries(&self) -> Result<Vec<Entry>, Error> {
        self.namespace.build(self.node).await?;
        let mut nodes = Vec::new();
        self.namespace.entries(self.node, 0, |entry| {
            nodes.push((entry.name.to_vec(), entry.node));
            true
        });
        let mut entries = Vec::with_capacity(nodes.len());
        for (name, node) in nodes {
            // A disk that is not given out has a name all the same.
            self.namespace.settle(node).await.ok();
            let Some(attributes) = self.namespace.attributes(node) else { continue };
            entries.push(Entry {
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
    /// When there is none.
    pub async fn directory(&self, path: impl AsRef<Path>) -> Result<Directory, Error> {
        let (node, path) = self.find(path.as_ref()).await?;
        match self.namespace.attributes(node).map(|attributes| attributes.kind) {
            Some(Kind::Directory) => Ok(Self { namespace: self.namespace.clone(), node, path }),
            _ => Err(wrong(&path, "directory")),
        }
    }

    /// A file below this directory. Symbolic links are followed.
    ///
    /// # Errors
    /// When there is none, or it cannot be given out.
    pub async fn open(&self, path: impl AsRef<Path>) -> Result<File, Error> {
        let (node, path) = self.find(path.as_ref()).await?;
        match self.namespace.attributes(node).map(|attributes| attributes.kind) {
            Some(Kind::File) => Ok(File { bytes: self.namespace.open_file(node).await?.bytes }),
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

/// A file. Its bytes never change.
#[derive(Clone)]
pub struct File {
    bytes: Shared,
}

impl File {
    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.bytes.size()
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// When the range is not inside the file, or its bytes cannot be had, or are not what they should be. Nothing in `buf` counts
    /// then.
    pub async fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        Ok(self.bytes.read_at(offset, buf).await?)
    }

    /// The bytes from `offset` on, at most `len`; fewer only where the file ends.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        let range = ByteRange::at(offset, len).intersect(ByteRange::new(0, self.size()));
        Ok(read_vec(&*self.bytes, range).await?)
    }

    /// The bytes for whatever reads such: the same trait as everything in this crate that has bytes.
    pub fn bytes(&self) -> &Shared {
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
