//! Inventory of a cache directory: every content by its name, with the facts in its files.
//!
//! The name alone states the type of a file, so a walk holds one directory entry at a time. Only a caller that wants
//! more opens the files. Files are not made, changed or removed, and only `v1` is read.

use std::collections::HashSet;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;

use super::directory_walk::{self, CacheSection, UnreadablePolicy, is_of_root, plain_name};
use super::files::BlockPaths;
use super::layout::{
    ALGORITHMS, CLAIM_DIGITS, ItemKind, MAP_EXTENSION, ORIGIN_DIGITS, STREAM_DIGITS, VERSION_DIR,
    check_owned, check_parent,
};
use super::lock::try_alone;
use super::remove::occupied;
use super::sidecar::{SidecarFile, VerificationState};
use super::{BlockCache, CacheError};
use crate::oci::{Digest, MAX_DOCUMENT, ManifestDocument};

/// Name extensions of the files beside an index.
const BESIDE_INDEX: [&str; 2] = ["stream", "content"];

/// The name of one content, from the directory alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentName {
    /// Its type.
    pub kind: ItemKind,
    /// The digest in its name: of the stored blob, of the document, or of the manifest.
    pub digest: Digest,
    /// Digits that name its origin; `None` for content shared by all origins.
    pub place: Option<String>,
    /// Distinguishes contents of one digest and origin: the digits of a claim or a stream, `stream` or `content` of
    /// an index.
    pub part: Option<String>,
    /// The path without `.map`.
    pub(super) path: PathBuf,
}

/// One content, with the facts in its files.
#[derive(Clone, Debug)]
pub struct ContentItem {
    /// Its name.
    pub entry: ContentName,
    /// Bytes of the content; `None` when the sidecar does not record them.
    pub size: Option<u64>,
    /// Bytes of the disk that its files take.
    pub on_disk: u64,
    /// State in the sidecar; `None` without a sidecar, or with a damaged one.
    pub state: Option<VerificationState>,
    /// Last recorded use, in seconds since 1970.
    pub last_used: u64,
    /// Whether a process has it open.
    pub in_use: bool,
}

/// An entry that a walk visits.
#[derive(Clone, Debug)]
pub enum ScannedFile {
    /// Content.
    Content(ContentName),
    /// A file that is not content: a lock, a temporary file, a private cache.
    Other(AuxiliaryFile),
    /// A file whose name is not of this program.
    Unknown(PathBuf),
}

/// A file of the cache that is not content.
#[derive(Clone, Debug)]
pub enum AuxiliaryFile {
    /// The lock of a process that decodes a layer.
    Lock(PathBuf),
    /// A file that is being written, or that a dead process left.
    Temporary(PathBuf),
    /// The private cache of a process that must not share or retain content.
    Private(PathBuf),
}

/// A cache directory opened for inspection only.
pub struct CacheInventory {
    /// `<cache-dir>/v1`.
    pub(super) root: PathBuf,
}

impl CacheInventory {
    /// The cache in `dir`; `None` when it does not exist. A directory that another user owns or may write is refused.
    pub fn open(dir: &Path) -> Result<Option<Self>, CacheError> {
        let root = dir.join(VERSION_DIR);
        match fs::symlink_metadata(&root) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CacheError::io("stat", &root, error)),
        }
        check_parent(dir)?;
        check_owned(&root)?;
        Ok(Some(Self { root }))
    }

    /// Visits everything below `v1`, until `visit` breaks off. A file that is made or removed meanwhile may or may
    /// not be visited. Holds one entry at a time.
    pub fn walk<B>(
        &self,
        mut visit: impl FnMut(ScannedFile) -> Result<ControlFlow<B>, CacheError>,
    ) -> Result<Option<B>, CacheError> {
        directory_walk::walk(&self.root, UnreadablePolicy::Fail, |section, entry| {
            match scanned(section, entry) {
                Some(found) => visit(found),
                None => Ok(ControlFlow::Continue(())),
            }
        })
    }

    /// Looks at the files of one content; `None` when they are gone.
    pub fn look(&self, entry: &ContentName, used: &OpenContents) -> Result<Option<ContentItem>, CacheError> {
        let Some(kind) = entry.kind.paired() else { return look_at_file(entry, used.touches(entry)) };
        let files = entry.files();
        let data = stat(&files.data)?;
        let Some(map) = stat(&files.map)? else {
            // Data without a sidecar.
            return Ok(data.map(|data| ContentItem {
                entry: entry.clone(),
                size: None,
                on_disk: occupied(&data),
                state: None,
                last_used: seconds(data.mtime()),
                in_use: false,
            }));
        };
        let sidecar = SidecarFile::existing(&files.map, kind, &entry.digest)?;
        let whole = |sidecar: &&SidecarFile| sidecar.is_whole(kind, &entry.digest).unwrap_or(false);
        let status = sidecar.as_ref().filter(whole).and_then(SidecarFile::status);
        Ok(Some(ContentItem {
            entry: entry.clone(),
            size: status.and_then(|status| status.size),
            on_disk: occupied(&map) + data.map_or(0, |data| occupied(&data)),
            state: status.map(|status| status.state),
            last_used: sidecar.and_then(|sidecar| sidecar.last_used()).unwrap_or(seconds(map.mtime())),
            in_use: is_in_use(&files.map)?,
        }))
    }

    /// The contents that running processes have open now.
    pub fn used(&self) -> Result<OpenContents, CacheError> {
        let mut open = HashSet::new();
        self.walk(|found| {
            if let ScannedFile::Content(entry) = found
                && entry.kind.paired().is_some()
                && !open.contains(&entry.digest)
                && is_in_use(&entry.files().map)?
            {
                open.insert(entry.digest);
            }
            Ok(ControlFlow::<()>::Continue(()))
        })?;
        let mut documents = HashSet::new();
        if !open.is_empty() {
            self.note_documents(&open, &mut documents)?;
        }
        Ok(OpenContents { open, documents })
    }

    /// Adds the manifests that name a digest of `open`, and the indexes that name such a manifest. An index of
    /// indexes is found only one level down: a missed one costs one request when it is removed.
    fn note_documents(
        &self,
        open: &HashSet<Digest>,
        documents: &mut HashSet<Digest>,
    ) -> Result<(), CacheError> {
        for round in 0..2 {
            self.walk(|found| {
                if let ScannedFile::Content(entry) = found
                    && entry.kind == ItemKind::Document
                {
                    let named = match self.document(&entry)? {
                        Some(ManifestDocument::Manifest(manifest)) if round == 0 => {
                            manifest.blobs().any(|blob| open.contains(&blob.digest))
                        }
                        Some(ManifestDocument::Index(index)) if round == 1 => {
                            index.manifests.iter().any(|named| documents.contains(&named.digest))
                        }
                        _ => false,
                    };
                    if named {
                        documents.insert(entry.digest);
                    }
                }
                Ok(ControlFlow::<()>::Continue(()))
            })?;
        }
        Ok(())
    }

    /// A document without comparing its digest, for the names in it.
    fn document(&self, entry: &ContentName) -> Result<Option<ManifestDocument>, CacheError> {
        use io::Read as _;
        let Some(file) = open_file(&entry.path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        if file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).is_err() {
            return Ok(None);
        }
        Ok(ManifestDocument::parse(&bytes, None).ok())
    }
}

/// Content in use by running processes. Its size is bounded by the files that they have open.
#[derive(Debug, Default)]
pub struct OpenContents {
    open: HashSet<Digest>,
    documents: HashSet<Digest>,
}

impl OpenContents {
    /// Whether a file without a sidecar, and so without a lock of its own, belongs to content in use.
    pub(super) fn touches(&self, entry: &ContentName) -> bool {
        match entry.kind {
            ItemKind::Index | ItemKind::Offer | ItemKind::Proof => self.open.contains(&entry.digest),
            ItemKind::Document | ItemKind::Trace | ItemKind::Signatures => {
                self.documents.contains(&entry.digest) || self.open.contains(&entry.digest)
            }
            ItemKind::Blob | ItemKind::Stream | ItemKind::Claim => false,
        }
    }
}

impl ContentName {
    /// Both files of content with a sidecar.
    pub(super) fn files(&self) -> BlockPaths {
        BlockPaths::of(self.path.clone())
    }
}

impl BlockCache {
    /// The inventory of this cache.
    pub fn inventory(&self) -> CacheInventory {
        CacheInventory { root: self.root().to_owned() }
    }
}

/// The file of a content that a name belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PairHalf {
    Data,
    Map,
    /// The only file of a content without a sidecar.
    Whole,
}

/// Parses the name of a file in the directory of that kind.
fn parse(kind: ItemKind, algorithm: &str, name: &str, path: &Path) -> Option<(ContentName, PairHalf)> {
    let mut ends = name.split('.');
    let digest: Digest = format!("{algorithm}:{}", ends.next()?).parse().ok()?;
    let mut ends: Vec<&str> = ends.take(4).collect();
    let half = match (kind.paired(), ends.last()) {
        (None, _) => PairHalf::Whole,
        (Some(_), Some(&MAP_EXTENSION)) => {
            ends.pop();
            PairHalf::Map
        }
        (Some(_), _) => PairHalf::Data,
    };
    let hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let (part, place) = match (kind, &ends[..]) {
        (ItemKind::Claim, [claim]) if hex(claim, CLAIM_DIGITS) => (Some(*claim), None),
        (ItemKind::Claim, [claim, place]) if hex(claim, CLAIM_DIGITS) && hex(place, ORIGIN_DIGITS) => {
            (Some(*claim), Some(*place))
        }
        (ItemKind::Claim, _) => return None,
        (ItemKind::Stream, [id]) if hex(id, STREAM_DIGITS) => (Some(*id), None),
        (ItemKind::Stream, [id, place]) if hex(id, STREAM_DIGITS) && hex(place, ORIGIN_DIGITS) => {
            (Some(*id), Some(*place))
        }
        (_, []) => (None, None),
        (ItemKind::Index, [part]) if BESIDE_INDEX.contains(part) => (Some(*part), None),
        (
            ItemKind::Blob
            | ItemKind::Stream
            | ItemKind::Document
            | ItemKind::Offer
            | ItemKind::Signatures
            | ItemKind::Proof,
            [place],
        ) if hex(place, ORIGIN_DIGITS) => (None, Some(*place)),
        _ => return None,
    };
    let path = if half == PairHalf::Map { path.with_extension("") } else { path.to_owned() };
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Some((ContentName { kind, digest, place: owned(place), part: owned(part), path }, half))
}

/// The meaning of an entry of a walk; `None` for a directory of this program, and for files for which another entry
/// stands.
fn scanned(section: CacheSection, entry: &DirEntry) -> Option<ScannedFile> {
    let path = entry.path();
    let name = plain_name(entry);
    let name = name.as_deref();
    match section {
        CacheSection::Root if name.is_some_and(is_of_root) => None,
        CacheSection::Kind(_) if name.is_some_and(|name| ALGORITHMS.contains(&name)) => None,
        CacheSection::Foreign(_) | CacheSection::Locks => None,
        CacheSection::Root | CacheSection::Kind(_) => Some(ScannedFile::Unknown(path)),
        CacheSection::Contents(kind, algorithm) => {
            match name.and_then(|name| parse(kind, algorithm, name, &path)) {
                // The sidecar stands for both files.
                Some((_, PairHalf::Data)) if BlockPaths::of(path.clone()).map.exists() => None,
                Some((entry, _)) => Some(ScannedFile::Content(entry)),
                None => Some(ScannedFile::Unknown(path)),
            }
        }
        CacheSection::LockFiles(algorithm) => {
            // The name has the digest and the place of the decoding process.
            let is_lock = name.is_some_and(|name| parse(ItemKind::Blob, algorithm, name, &path).is_some());
            Some(match is_lock {
                true => ScannedFile::Other(AuxiliaryFile::Lock(path)),
                false => ScannedFile::Unknown(path),
            })
        }
        CacheSection::Temporary => Some(ScannedFile::Other(AuxiliaryFile::Temporary(path))),
        CacheSection::Private => Some(ScannedFile::Other(AuxiliaryFile::Private(path))),
    }
}

fn look_at_file(entry: &ContentName, in_use: bool) -> Result<Option<ContentItem>, CacheError> {
    Ok(stat(&entry.path)?.map(|found| ContentItem {
        entry: entry.clone(),
        size: Some(found.len()),
        on_disk: occupied(&found),
        state: None,
        // The kernel records reads in the access time, at least once a day where it records them at all.
        last_used: seconds(found.mtime().max(found.atime())),
        in_use,
    }))
}

fn seconds(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

/// The metadata under a name; `None` when it is gone.
pub(super) fn stat(path: &Path) -> Result<Option<fs::Metadata>, CacheError> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CacheError::io("stat", path, error)),
    }
}

/// Opens a plain file for reading; `None` when it is gone. A link is not followed.
pub(super) fn open_file(path: &Path) -> Result<Option<File>, CacheError> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CacheError::io("open", path, error)),
    }
}

/// Whether a process holds the use lock on this sidecar. The check itself takes the lock for an instant, and a
/// process that opens the content meanwhile tries again.
pub(super) fn is_in_use(map: &Path) -> Result<bool, CacheError> {
    let Some(file) = open_file(map)? else { return Ok(false) };
    Ok(!try_alone(&file, map)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(kind: ItemKind, end: &str) -> Option<(Option<String>, Option<String>, bool)> {
        let name = format!("{HEX}{end}");
        let (entry, half) = parse(kind, "sha256", &name, Path::new(&name))?;
        assert!(entry.path.to_str().unwrap().starts_with(HEX));
        assert!(!entry.path.to_str().unwrap().ends_with(".map"));
        Some((entry.part, entry.place, half == PairHalf::Map))
    }

    #[test]
    fn cache_file_names_parse_to_their_kind_or_to_none() {
        let place = "0123456789abcdef";
        let claim = "00112233445566778899aabbccddeeff";
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read(ItemKind::Blob, ""), Some((None, None, false)));
        assert_eq!(read(ItemKind::Blob, ".map"), Some((None, None, true)));
        assert_eq!(read(ItemKind::Stream, &format!(".{place}")), Some((None, some(place), false)));
        assert_eq!(read(ItemKind::Blob, &format!(".{place}.map")), Some((None, some(place), true)));
        assert_eq!(
            read(ItemKind::Claim, &format!(".{claim}.{place}.map")),
            Some((some(claim), some(place), true))
        );
        assert_eq!(read(ItemKind::Index, ".stream"), Some((some("stream"), None, false)));
        for (kind, end) in [
            (ItemKind::Blob, ".MAP"),
            (ItemKind::Blob, ".tmp"),
            (ItemKind::Blob, ".map.map"),
            (ItemKind::Blob, "x"),
            (ItemKind::Claim, ""),
            (ItemKind::Claim, ".map"),
            (ItemKind::Document, ".map"),
            (ItemKind::Index, ".other"),
            (ItemKind::Blob, ".0123456789abcdeg"),
        ] {
            assert_eq!(read(kind, end), None, "{kind:?} {end}");
        }
    }
}
