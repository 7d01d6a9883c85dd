//! Small files: manifests and configs by their digest, indexes of layers, traces, and signatures.
//!
//! A file is written under a temporary name, synced, renamed, and checked when read. A file that fails its check is
//! removed and counts as absent. The content is not parsed at this level.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::block_data::PAGE;
use super::quota::WritePriority;
use super::remove::on_disk;
use super::{BlockCache, CacheError};
use crate::oci::{Digest, MAX_DOCUMENT};

const TRAILER: usize = 64;
const MAGIC: &[u8; 8] = b"ocifsidx";
const VERSION: u32 = 1;
/// An index is about 1 % of its layer; this bounds the memory for a file of a damaged directory.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// Index files of a layer whose stored blob was verified, each in a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerMetadata {
    /// The index of the archive in the layer.
    Archive,
    /// The index of its stream, whatever the stream holds.
    Stream,
    /// The digest of its whole stream.
    Content,
}

impl BlockCache {
    /// The document `digest`, when our origin once delivered it and it hashes to its name. A document of one origin
    /// is not served to a caller that knows its digest and asks at another one.
    pub fn document(&self, digest: &Digest) -> Result<Option<Bytes>, CacheError> {
        let path = self.scoped_path("documents", digest)?;
        let Some(bytes) = self.with_descriptors(|| read(&path, MAX_DOCUMENT))? else { return Ok(None) };
        if digest.same_algorithm(&bytes).as_ref() == Some(digest) {
            return Ok(Some(bytes.into()));
        }
        tracing::warn!(%digest, "cached document does not match its digest and is removed");
        self.remove_small(&path)?;
        Ok(None)
    }

    /// Stores the document `digest`, which our origin delivered.
    pub fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let path = self.scoped_path("documents", digest)?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            let size = bytes.len() as u64;
            return Err(CacheError::Oversized { digest: digest.clone(), size, limit: MAX_DOCUMENT });
        }
        match digest.same_algorithm(bytes) {
            Some(actual) if actual == *digest => match self.with_descriptors(|| renewed(&path, bytes)) {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => self.replace(&path, &[bytes]),
            },
            Some(actual) => Err(CacheError::Mismatch { expected: digest.clone(), actual }),
            None => Err(CacheError::Algorithm { digest: digest.clone() }),
        }
    }

    /// The index file of the layer whose stored blob is `digest`; `None` when absent or damaged, or where our origin
    /// has yet to prove that it has the blob.
    pub fn learnt(&self, what: LayerMetadata, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        if !self.may_share(digest) {
            return Ok(None);
        }
        self.sealed(&self.learnt_path(what, digest)?, digest)
    }

    /// The bytes that [`learnt`](Self::learnt) returns, to be read from the disk. They are compared with their checksum
    /// before, and replacing the file leaves them unchanged.
    pub fn learnt_file(
        &self,
        what: LayerMetadata,
        digest: &Digest,
    ) -> Result<Option<io::Take<fs::File>>, CacheError> {
        if !self.may_share(digest) {
            return Ok(None);
        }
        let path = self.learnt_path(what, digest)?;
        let opened = self.with_descriptors(|| match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(|error| CacheError::io("open", &path, error)),
        })?;
        let Some(mut file) = opened else { return Ok(None) };
        match sealed_len(&mut file, digest) {
            Ok(Some(len)) => Ok(Some(file.take(len))),
            Ok(None) => {
                tracing::warn!(%digest, path = %path.display(), "a file of the cache is damaged and is removed");
                self.remove_small(&path)?;
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read a file of the cache");
                Ok(None)
            }
        }
    }

    /// The size of the file that [`learnt`](Self::learnt) reads, with its trailer, in bytes; `None` when absent.
    /// Reads no content.
    pub fn learnt_len(&self, what: LayerMetadata, digest: &Digest) -> Option<u64> {
        let path = self.learnt_path(what, digest).ok().filter(|_| self.may_share(digest))?;
        fs::symlink_metadata(path).ok().map(|found| found.len())
    }

    /// Stores an index file of the layer whose stored blob is `digest`, and replaces an older one.
    pub fn put_learnt(&self, what: LayerMetadata, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        self.seal(&self.learnt_path(what, digest)?, digest, bytes)
    }

    /// Whether the layer whose stored blob is `digest` has an index: then the blob was verified.
    pub(super) fn is_learnt(&self, digest: &Digest) -> bool {
        let is_there =
            |what| self.learnt_path(what, digest).is_ok_and(|path| fs::symlink_metadata(path).is_ok());
        self.may_share(digest) && [LayerMetadata::Archive, LayerMetadata::Stream].into_iter().any(is_there)
    }

    fn learnt_path(&self, what: LayerMetadata, digest: &Digest) -> Result<PathBuf, CacheError> {
        let path = self.path("indexes", digest)?;
        Ok(match what {
            LayerMetadata::Archive => path,
            LayerMetadata::Stream => path.with_extension("stream"),
            LayerMetadata::Content => path.with_extension("content"),
        })
    }

    /// An index of the layer whose stored blob is `digest`, made elsewhere and offered by our origin.
    pub fn offer(&self, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        self.sealed(&self.scoped_path("offers", digest)?, digest)
    }

    /// Whether there is an index that our origin offered. Reads no content.
    pub fn has_offer(&self, digest: &Digest) -> bool {
        self.scoped_path("offers", digest).is_ok_and(|path| fs::symlink_metadata(path).is_ok())
    }

    /// Stores an index that our origin offered, and replaces an older one.
    pub fn put_offer(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        self.seal(&self.scoped_path("offers", digest)?, digest, bytes)
    }

    /// The recorded reads of the image whose manifest is `digest`, made on this machine.
    pub fn trace(&self, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        self.sealed(&self.path("traces", digest)?, digest)
    }

    /// Stores the recorded reads of the image whose manifest is `digest`, and replaces an older record.
    pub fn put_trace(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        self.seal(&self.path("traces", digest)?, digest, bytes)
    }

    /// Signatures of the manifest or index `digest` that our origin published, and that were valid when they were
    /// stored.
    pub fn signatures(&self, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        self.sealed(&self.scoped_path("signatures", digest)?, digest)
    }

    /// Stores signatures of the manifest or index `digest` that our origin published, and replaces older ones.
    pub fn put_signatures(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        self.seal(&self.scoped_path("signatures", digest)?, digest, bytes)
    }

    pub(super) fn seal(&self, path: &Path, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let size = bytes.len() as u64;
        let limit = MAX_INDEX_BYTES - TRAILER as u64;
        if size > limit {
            return Err(CacheError::Oversized { digest: digest.clone(), size, limit });
        }
        self.replace(path, &[bytes, &trailer(digest, bytes)])
    }

    /// The bytes before the trailer of a sealed file; `None` when absent or damaged.
    pub(super) fn sealed(&self, path: &Path, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(mut bytes) = self.with_descriptors(|| read(path, MAX_INDEX_BYTES))? else { return Ok(None) };
        let len = bytes.len().saturating_sub(TRAILER);
        if bytes.len() >= TRAILER && bytes[len..] == trailer(digest, &bytes[..len]) {
            bytes.truncate(len);
            return Ok(Some(bytes));
        }
        tracing::warn!(%digest, path = %path.display(), "a file of the cache is damaged and is removed");
        self.remove_small(path)?;
        Ok(None)
    }

    fn remove_small(&self, path: &Path) -> Result<(), CacheError> {
        match self.unlink_counted(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // The file will fail its check again.
            Err(error) if CacheError::io("remove", path, io::Error::from(error.kind())).is_disk() => Ok(()),
            Err(error) => Err(CacheError::io("remove", path, error)),
            Ok(()) => Ok(()),
        }
    }

    fn replace(&self, path: &Path, parts: &[&[u8]]) -> Result<(), CacheError> {
        let room = self.room();
        let len: usize = parts.iter().map(|part| part.len()).sum();
        // Files take whole pages of the disk.
        let cost = len.next_multiple_of(PAGE) as u64;
        let Some(reserved) = room.reserve(cost, WritePriority::Small) else {
            return Err(CacheError::NoRoom { path: path.to_owned() });
        };
        let older = on_disk(path);
        let removal = room.begin_removal(older);
        let replaced = match self.with_descriptors(|| self.replace_counted(path, parts)) {
            Err(CacheError::Full { .. }) if room.relieve(cost, WritePriority::Small) => {
                self.replace_counted(path, parts)
            }
            replaced => replaced,
        };
        match &replaced {
            Ok(()) => {
                reserved.confirm();
                removal.finish(older);
            }
            Err(_) => {
                reserved.give_back();
                removal.finish(0);
            }
        }
        replaced
    }

    fn replace_counted(&self, path: &Path, parts: &[&[u8]]) -> Result<(), CacheError> {
        let temporary = self.temporary();
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            for part in parts {
                file.write_all(part)?;
            }
            // Before the rename, or a power cut may leave the name with no content.
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error| {
            if let Err(left) = fs::remove_file(&temporary)
                && left.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(error = %left, "cannot remove a temporary file");
            }
            CacheError::io("write", path, error)
        })
    }
}

/// The 64 bytes after an index that bind it to its layer and check it.
fn trailer(digest: &Digest, bytes: &[u8]) -> [u8; TRAILER] {
    let mut sum = SealSum::new(digest);
    sum.0.update(bytes);
    sum.finish(bytes.len() as u64)
}

/// The checksum of a sealed file, piece by piece.
struct SealSum(blake3::Hasher);

impl SealSum {
    fn new(digest: &Digest) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(digest.as_str().as_bytes());
        Self(hasher)
    }

    /// The trailer after `len` bytes.
    fn finish(mut self, len: u64) -> [u8; TRAILER] {
        let mut trailer = [0; TRAILER];
        trailer[..8].copy_from_slice(MAGIC);
        trailer[8..12].copy_from_slice(&VERSION.to_le_bytes());
        trailer[16..24].copy_from_slice(&len.to_le_bytes());
        self.0.update(&trailer[..32]);
        trailer[32..].copy_from_slice(self.0.finalize().as_bytes());
        trailer
    }
}

/// The length of the content of a file with a trailer that matches it, and `file` at the first byte of it; `None` for
/// another trailer. Holds a little of the file at a time.
pub(super) fn sealed_len(file: &mut fs::File, digest: &Digest) -> io::Result<Option<u64>> {
    use std::io::{Seek as _, SeekFrom};
    let Some(len) = file.metadata()?.len().checked_sub(TRAILER as u64) else { return Ok(None) };
    let mut end = [0; TRAILER];
    file.seek(SeekFrom::Start(len))?;
    file.read_exact(&mut end)?;
    file.rewind()?;
    let mut sum = SealSum::new(digest);
    io::copy(&mut (&mut *file).take(len), &mut sum.0)?;
    file.rewind()?;
    Ok((sum.finish(len) == end).then_some(len))
}

/// Whether the file at `path` holds `bytes` already. Then it counts as used now, without a sync of the disk.
fn renewed(path: &Path, bytes: &[u8]) -> Result<bool, CacheError> {
    let renew = || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut found = Vec::with_capacity(bytes.len() + 1);
        (&file).take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
        let Some(first) = bytes.get(..1).filter(|_| found == bytes) else { return Ok(false) };
        // The age of a file decides when it is evicted, and the sandbox denies utimensat(2).
        file.write_all_at(first, 0).map(|()| true)
    };
    renew().map_err(|error| CacheError::io("renew", path, error))
}

/// All bytes of a file of at most `limit`; `None` for a missing, longer or unreadable one.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, CacheError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CacheError::io("open", path, error)),
    };
    let mut bytes = Vec::new();
    match file.take(limit + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 <= limit => Ok(Some(bytes)),
        Ok(_) => Ok(None),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "cannot read a file of the cache");
            Ok(None)
        }
    }
}
