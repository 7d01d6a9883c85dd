//! Layout of the cache directory: names of its parts, and checks of its owner and mode.
//!
//! docs/cache-format.md lists the names. The checks refuse a directory that another user owns or may write.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::CacheError;
use super::sidecar::ContentKind;
use crate::owner::{is_trusted_user, untrusted_above};

/// The version of docs/cache-format.md.
pub(super) const VERSION_DIR: &str = "v1";
/// Extension of the sidecar of a data file.
pub(super) const MAP_EXTENSION: &str = "map";
/// Hex digits that name an origin.
pub(super) const ORIGIN_DIGITS: usize = 16;
/// Hex digits of an index that name the files of its claim: 128 bits, so that two indexes with one name cannot be
/// found.
pub(super) const CLAIM_DIGITS: usize = 32;
/// Hex digits of the checksums of a stream that name its files: 128 bits, and each block is also compared with its
/// checksum.
pub(super) const STREAM_DIGITS: usize = 32;
/// Group and others may write.
const FOREIGN_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// Algorithms of the digests that name files.
pub(super) const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// Type of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKind {
    /// A stored blob, whole or partial.
    Blob,
    /// The decoded stream of a layer.
    Stream,
    /// The decoded stream of a layer, as described by an index made elsewhere.
    Claim,
    /// A manifest, index or config.
    Document,
    /// An index that a pass over a layer made.
    Index,
    /// An index made elsewhere.
    Offer,
    /// The recorded reads of an image.
    Trace,
    /// The valid signatures of an image.
    Signatures,
    /// The proof that an origin has a blob.
    Proof,
}

impl ItemKind {
    /// All kinds, in the order in which they are listed.
    pub const ALL: [ItemKind; 9] = [
        ItemKind::Blob,
        ItemKind::Stream,
        ItemKind::Claim,
        ItemKind::Document,
        ItemKind::Index,
        ItemKind::Offer,
        ItemKind::Trace,
        ItemKind::Signatures,
        ItemKind::Proof,
    ];

    /// In one word, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            ItemKind::Blob => "blob",
            ItemKind::Stream => "stream",
            ItemKind::Claim => "claim",
            ItemKind::Document => "document",
            ItemKind::Index => "index",
            ItemKind::Offer => "offer",
            ItemKind::Trace => "trace",
            ItemKind::Signatures => "signatures",
            ItemKind::Proof => "proof",
        }
    }

    /// Its directory in `v1`.
    pub(super) fn directory(self) -> &'static str {
        match self {
            ItemKind::Blob => "blobs",
            ItemKind::Stream => "streams",
            ItemKind::Claim => "claims",
            ItemKind::Document => "documents",
            ItemKind::Index => "indexes",
            ItemKind::Offer => "offers",
            ItemKind::Trace => "traces",
            ItemKind::Signatures => "signatures",
            ItemKind::Proof => "proofs",
        }
    }

    /// The kind in the sidecar; `None` for a type without one.
    pub(super) fn paired(self) -> Option<ContentKind> {
        match self {
            ItemKind::Blob => Some(ContentKind::Blob),
            ItemKind::Stream => Some(ContentKind::Stream),
            ItemKind::Claim => Some(ContentKind::Claim),
            ItemKind::Document
            | ItemKind::Index
            | ItemKind::Offer
            | ItemKind::Trace
            | ItemKind::Signatures
            | ItemKind::Proof => None,
        }
    }
}

/// The directory in `v1` of the files of that kind.
pub(super) fn directory(kind: ContentKind) -> &'static str {
    match kind {
        ContentKind::Blob => "blobs",
        ContentKind::Stream => "streams",
        ContentKind::Claim => "claims",
    }
}

pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

pub(super) fn make_dir(path: &Path) -> Result<(), CacheError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(CacheError::NotADirectory { path: path.to_owned() })
        }
        Err(error) => Err(CacheError::io("create", path, error)),
    }
}

/// Checks the parent: a process that may write it could replace our `v1`, unless the sticky bit forbids it.
pub(super) fn check_parent(path: &Path) -> Result<(), CacheError> {
    let found = fs::metadata(path).map_err(|error| CacheError::io("stat", path, error))?;
    let user = nix::unistd::geteuid().as_raw();
    let mode = found.permissions().mode() & 0o7777;
    if found.uid() != user && found.uid() != 0 {
        return Err(CacheError::NotOurs { path: path.to_owned(), owner: found.uid(), user });
    }
    if mode & FOREIGN_WRITE != 0 && mode & STICKY == 0 {
        return Err(CacheError::Mode { path: path.to_owned(), mode });
    }
    let above = untrusted_above(path).map_err(|error| CacheError::io("stat", path, error))?;
    match above {
        None => Ok(()),
        Some((above, owner)) => {
            let changed_by = match is_trusted_user(owner.uid) {
                true => "others".to_owned(),
                false => format!("user {}", owner.uid),
            };
            Err(CacheError::Above { path: path.to_owned(), above, changed_by })
        }
    }
}

pub(super) fn check_owned(path: &Path) -> Result<(), CacheError> {
    // Not following a link: it could point to another user's directory tomorrow.
    let found = fs::symlink_metadata(path).map_err(|error| CacheError::io("stat", path, error))?;
    let user = nix::unistd::geteuid().as_raw();
    let mode = found.permissions().mode() & 0o7777;
    if !found.is_dir() {
        return Err(CacheError::NotADirectory { path: path.to_owned() });
    }
    if found.uid() != user {
        return Err(CacheError::NotOurs { path: path.to_owned(), owner: found.uid(), user });
    }
    if mode & FOREIGN_WRITE != 0 {
        return Err(CacheError::Mode { path: path.to_owned(), mode });
    }
    if mode & 0o077 != 0 {
        // No other user could write, but private images were readable.
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|error| CacheError::io("change the mode of", path, error))?;
    }
    Ok(())
}
