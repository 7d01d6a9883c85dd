//! Cache directory: opens it safely, and hands out its contents.
//!
//! One [`CachedFile`] per content and process, so that its threads share fetches; processes share the files. Only names
//! in `<cache-dir>/v1` are touched, and only validated digests become names in it.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::broadcast;

use super::blob_sharing::BlobSharing;
use super::block_file::BlockFile;
use super::content_state::ContentConfig;
use super::derived::{DerivedFiles, forget};
use super::directory_walk::{UnreadablePolicy, each_entry};
use super::fetch_permits::FetchPermits;
use super::files::BlockPaths;
use super::layout::{
    ALGORITHMS, CLAIM_DIGITS, ItemKind, ORIGIN_DIGITS, STREAM_DIGITS, VERSION_DIR, check_owned, check_parent,
    directory, exists, make_dir,
};
use super::memory_cache::MemoryCache;
use super::quota::CacheQuota;
use super::remove::on_disk;
use super::seat::BlockSeat;
use super::sidecar::{ContentKind, MAX_SIZE, VerificationState};
use super::slot::PairSlot;
use super::verify_policy::{VerifyMode, VerifyPolicy};
use super::wait::waiting;
use super::{BlockSums, BuildLock, CacheError, CachedFile, SizeLimit, lock};
use crate::io::RangeFetch;
use crate::oci::{Digest, HashAlgorithm};

/// Distrust notices that a receiver may lag behind; a later one gets a lag error instead.
const NEWS: usize = 64;
/// A temporary file lives for one write and one fsync; after an hour its writer is dead.
pub(super) const TMP_AGE: Duration = Duration::from_secs(3600);

/// A cache directory. Clones share everything.
#[derive(Clone)]
pub struct BlockCache {
    shared: Arc<CacheShared>,
    /// Origin whose unverified content this handle sees; empty for content without an origin.
    pub(super) origin: ContentOrigin,
    /// The origins that verified blobs serve.
    pub(super) sharing: BlobSharing,
    /// When the blobs that it opens are compared with their digests; `None` without a mode.
    verify: Option<VerifyPolicy>,
}

/// Name of the origin of content, fit for a file name.
type ContentOrigin = Arc<str>;

/// Identity of a content in this process: two of one kind and digest differ in the ends of their names, in their
/// origin, or in when they are compared. So every reader is served by the source of its own origin, also where the
/// files are shared.
type ContentKey = (ContentKind, Digest, Arc<str>, Option<VerifyPolicy>);

struct CacheShared {
    /// `<cache-dir>/v1`.
    root: PathBuf,
    /// Guards: at most one living [`CachedFile`] per content in this process.
    alive: Mutex<HashMap<ContentKey, Weak<CachedFile>>>,
    /// Readahead permits.
    places: Arc<FetchPermits>,
    /// Small blobs that could not be stored on disk.
    shelf: Arc<MemoryCache>,
    /// Announces blobs that must no longer be trusted, by their digests.
    distrusted: broadcast::Sender<Digest>,
    /// Reserves space before every write.
    room: Arc<CacheQuota>,
    /// Numbers temporary files.
    temporaries: AtomicU64,
}

impl BlockCache {
    /// Opens `dir`, making missing directories, without a limit: nothing is evicted until the disk is full.
    ///
    /// A directory that another user owns or may write is refused. A full or read-only disk is an error only for a
    /// new cache: otherwise cached content stays readable, and reads go on without storing.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        Self::open_limited(dir, SizeLimit::None)
    }

    /// Opens `dir` with a limit on the writes of this process: it writes nothing that would exceed the limit, and
    /// evicts least recently used content. Looks at no file of the directory, however many there are.
    pub fn open_limited(dir: &Path, limit: SizeLimit) -> Result<Self, CacheError> {
        let root = dir.join(VERSION_DIR);
        make_dir(dir)?;
        check_parent(dir)?;
        let is_new = !exists(&root);
        let made = make_tree(&root);
        if let Err(error) = made {
            if !(error.is_disk() && root.is_dir()) {
                return Err(error);
            }
            tracing::warn!(%error, path = %root.display(), "the cache cannot grow; reads continue uncached");
        }
        check_owned(&root)?;
        let room = CacheQuota::new(&root, limit, is_new);
        let shared = CacheShared {
            root,
            room,
            alive: Mutex::default(),
            places: Arc::new(FetchPermits::new()),
            shelf: Arc::default(),
            distrusted: broadcast::Sender::new(NEWS),
            temporaries: AtomicU64::new(0),
        };
        let cache =
            Self { shared: Arc::new(shared), origin: "".into(), sharing: BlobSharing::Always, verify: None };
        cache.probe()?;
        Ok(cache)
    }

    /// The same cache for content of the origin `place`. Until a blob was compared with its digest, its stored bytes
    /// are only a claim of their origin. Another origin with the same digest does not see them, and is not harmed by
    /// wrong ones.
    #[must_use]
    pub fn for_origin(&self, place: &str) -> Self {
        let name = blake3::hash(place.as_bytes()).to_hex();
        Self { origin: name[..ORIGIN_DIGITS].into(), ..self.clone() }
    }

    /// The same cache with a verification mode. Blobs of at most `small` bytes, usually [`SMALL`](super::VERIFY_FIRST_BYTES), are
    /// compared as a whole before their first byte in every mode. Without a mode, callers take blocks as they come.
    #[must_use]
    pub fn verifying(&self, verify: VerifyMode, small: u64) -> Self {
        Self { verify: Some(VerifyPolicy { verify, small }), ..self.clone() }
    }

    /// Whether a blob of `size` bytes is compared with its digest as a whole before any of it is handed out.
    pub fn is_whole_first(&self, size: u64) -> bool {
        self.verify.is_some_and(|when| when.is_whole_first(size))
    }

    /// Subscribes to the digests of blobs of which wrong bytes may have been handed out. Either the blob did not
    /// match its digest, or an index described it wrongly.
    pub fn distrusted(&self) -> broadcast::Receiver<Digest> {
        self.shared.distrusted.subscribe()
    }

    /// Announces that bytes of the blob `digest` that were handed out must no longer be trusted.
    pub fn distrust(&self, digest: &Digest) {
        // Fails only without a receiver.
        self.shared.distrusted.send(digest.clone()).ok();
    }

    /// The stored blob `digest`, whose missing blocks come from `fetch`.
    ///
    /// The same blob of one origin is the same `Arc` as long as one is held; it keeps the `fetch` of its first opener.
    pub fn blob(&self, digest: &Digest, fetch: Arc<dyn RangeFetch>) -> Result<Arc<CachedFile>, CacheError> {
        let (cache, name) = (self.clone(), digest.clone());
        self.cached(ContentKind::Blob, digest, fetch, self.origin.clone(), move || cache.blob_pair(&name))
    }

    /// The decoded stream of the layer whose stored blob is `digest`, by the checksums of its blocks; `fetch`
    /// produces decoded bytes.
    ///
    /// The files are named after the checksums, and a block with another checksum does not count: streams that differ
    /// in one byte share nothing.
    pub fn stream(
        &self,
        digest: &Digest,
        sums: BlockSums,
        fetch: Arc<dyn RangeFetch>,
    ) -> Result<Arc<CachedFile>, CacheError> {
        let end = self.stream_end(digest, &sums, fetch.size());
        let BlockPaths { data, map } = named(&self.path(directory(ContentKind::Stream), digest)?, &end);
        let (room, layer) = (Arc::clone(self.room()), digest.clone());
        // Origins share the files, and each decodes missing blocks from its own blob.
        let id = format!("{end}@{}", self.origin);
        self.cached(ContentKind::Stream, digest, fetch, id.into(), move || {
            let pair = BlockFile::open(&data, &map, ContentKind::Stream, &layer)?;
            Ok(pair.expecting(sums.clone()).in_room(&room))
        })
    }

    /// The files of the stream of `size` bytes with these checksums of its blocks.
    pub(super) fn stream_files(
        &self,
        digest: &Digest,
        sums: &[[u8; 32]],
        size: u64,
    ) -> Result<BlockPaths, CacheError> {
        Ok(named(&self.path(directory(ContentKind::Stream), digest)?, &self.stream_end(digest, sums, size)))
    }

    /// The end of the names of a stream: its checksum, and its origin until an index proves that its blob was
    /// verified.
    fn stream_end(&self, digest: &Digest, sums: &[[u8; 32]], size: u64) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&size.to_le_bytes()).update(sums.as_flattened());
        let id = hasher.finalize().to_hex();
        let id = &id[..STREAM_DIGITS];
        if self.origin.is_empty() || self.is_learnt(digest) {
            return id.to_owned();
        }
        format!("{id}.{}", self.origin)
    }

    /// The decoded stream of the layer whose stored blob is `digest`, as described by an index made elsewhere. `id`
    /// is the blake3 of that index, and `copy` the [number](CachedFile::copy_number) of the copy of the blob that it is
    /// decoded from. Until the layer was decoded as a whole, such an index is only a claim. Its stream has files of
    /// its own, is visible to this origin alone, and does not become the stream of the layer. The index vouches for
    /// no checksums of it, so it does not outlive the copy that it was decoded from.
    pub fn claimed_stream(
        &self,
        digest: &Digest,
        id: &[u8; 32],
        copy: &[u8; 16],
        fetch: Arc<dyn RangeFetch>,
    ) -> Result<Arc<CachedFile>, CacheError> {
        let hash = blake3::Hasher::new().update(id).update(copy).finalize();
        let mut name = hash.to_hex()[..CLAIM_DIGITS].to_owned();
        if !self.origin.is_empty() {
            name = format!("{name}.{}", self.origin);
        }
        let BlockPaths { data, map } = named(&self.path(directory(ContentKind::Claim), digest)?, &name);
        let (room, layer) = (Arc::clone(self.room()), digest.clone());
        self.cached(ContentKind::Claim, digest, fetch, name.as_str().into(), move || {
            Ok(BlockFile::open(&data, &map, ContentKind::Claim, &layer)?.in_room(&room))
        })
    }

    /// Waits for the exclusive right, over threads and processes of our origin, to decode the layer whose stored blob
    /// is `digest`. Decoding waits for the registry of the origin, so other origins do not wait for it.
    pub async fn build_lock(&self, digest: &Digest) -> Result<BuildLock, CacheError> {
        let path = self.scoped_path("locks", digest)?;
        loop {
            let file = self.with_descriptors(|| {
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&path)
                    .map_err(|error| CacheError::io("open", &path, error))
            })?;
            let lock = BuildLock::acquire(file, path.clone()).await?;
            // A cleanup may have removed the file while we waited: a lock without a name excludes no other process.
            if lock.has_a_name() {
                return Ok(lock);
            }
        }
    }

    /// The one living content of that kind, digest and end of its name, or a new one on the files that `open` finds.
    fn cached(
        &self,
        kind: ContentKind,
        digest: &Digest,
        fetch: Arc<dyn RangeFetch>,
        end: Arc<str>,
        open: impl Fn() -> Result<BlockFile, CacheError> + Send + Sync + 'static,
    ) -> Result<Arc<CachedFile>, CacheError> {
        let algorithm = served(digest)?;
        let size = fetch.size();
        if size > MAX_SIZE {
            return Err(CacheError::Oversized { digest: digest.clone(), size, limit: MAX_SIZE });
        }
        let key = (kind, digest.clone(), end, self.verify);
        // Poisoned content serves only its present holders, with an error.
        let serves = |cached: &Arc<CachedFile>| {
            kind != ContentKind::Blob || cached.state() != VerificationState::Poisoned
        };
        let living = |alive: &HashMap<ContentKey, Weak<CachedFile>>| {
            let Some(cached) = alive.get(&key).and_then(Weak::upgrade).filter(serves) else {
                return Ok(None);
            };
            let known = crate::io::ReadAt::size(&*cached);
            if known != size {
                return Err(CacheError::SizeConflict { digest: digest.clone(), cached: known, given: size });
            }
            Ok(Some(cached))
        };
        if let Some(cached) = living(&lock(&self.shared.alive))? {
            return Ok(cached);
        }
        // The files are opened without a lock: opens of other content do not wait for them.
        let (name, cache) = (digest.clone(), self.clone());
        let sized = move || match kind {
            ContentKind::Blob => cache.of_size(&name, size, &open),
            ContentKind::Stream | ContentKind::Claim => {
                let pair = open()?;
                pair.sidecar.settle_size(&name, size).map(|()| pair)
            }
        };
        let seat = match kind == ContentKind::Blob {
            true if size > 0 && self.has_files(digest) && !self.may_share(digest) => {
                self.unproven_seat(digest, size)
            }
            true if fetch.may_be_local() && !self.has_files(digest) => {
                self.open_seat(digest, size, Arc::new(sized))
            }
            true | false => BlockSeat::taken(self.slot(digest, Box::new(sized))?),
        };
        let content = ContentConfig {
            digest: digest.clone(),
            algorithm,
            kind,
            fetch,
            seat,
            derived: DerivedFiles {
                root: self.shared.root.clone(),
                origin: self.origin.clone(),
                room: self.room().clone(),
            },
            places: self.shared.places.clone(),
            verify: self.verify,
            shelf: self.shared.shelf.clone(),
            distrusted: self.shared.distrusted.clone(),
        };
        let cached = waiting(|| Arc::new(CachedFile::new(content)));
        let mut alive = lock(&self.shared.alive);
        // Another thread may have opened it meanwhile: then readers share that one.
        if let Some(cached) = living(&alive)? {
            return Ok(cached);
        }
        alive.retain(|_, weak| weak.strong_count() > 0);
        alive.insert(key.clone(), Arc::downgrade(&cached));
        Ok(cached)
    }

    /// The files of content; `None` where the disk makes none.
    pub(super) fn slot(
        &self,
        digest: &Digest,
        open: Box<dyn Fn() -> Result<BlockFile, CacheError> + Send + Sync>,
    ) -> Result<Option<Arc<PairSlot>>, CacheError> {
        waiting(|| match PairSlot::new(open, self.room()) {
            Ok(slot) => Ok(Some(slot)),
            Err(error) if error.is_disk() => {
                let error = crate::io::ReadError::from(error).chain();
                tracing::warn!(%digest, error, "cannot cache a blob; reads continue uncached");
                Ok(None)
            }
            Err(error) => Err(error),
        })
    }

    /// The quota that admits every write to this directory.
    pub(super) fn room(&self) -> &Arc<CacheQuota> {
        &self.shared.room
    }

    /// Disk bytes that the directory takes, as all its processes have recorded; `None` while they are being counted.
    pub fn used(&self) -> Option<u64> {
        self.shared.room.used()
    }

    /// Bytes of content that the directory can hold if it holds nothing else; `None` while unknown.
    pub fn capacity(&self) -> Option<u64> {
        // A record of 64 bytes for each block.
        self.shared.room.capacity().map(|bytes| bytes - bytes / 4096)
    }

    /// Disk bytes that this process has evicted to make room.
    pub fn evicted(&self) -> u64 {
        self.shared.room.evicted()
    }

    /// The files of a blob of `size` bytes. Files for another size begin anew, without the files derived from them: a
    /// wrong size that was claimed once leaves nothing behind. The size of verified content is proven.
    pub(super) fn of_size(
        &self,
        digest: &Digest,
        size: u64,
        open: impl Fn() -> Result<BlockFile, CacheError>,
    ) -> Result<BlockFile, CacheError> {
        let pair = open()?;
        let Err(conflict) = pair.sidecar.settle_size(digest, size) else { return Ok(pair) };
        if !matches!(conflict, CacheError::SizeConflict { .. })
            || pair.sidecar.is_verified()
            || !pair.retire()
        {
            return Err(conflict);
        }
        tracing::debug!(%digest, %conflict, "the cached part of a blob begins anew");
        if !self.origin.is_empty() {
            forget(self.root(), digest, &self.origin, &self.room().account);
        }
        let pair = open()?;
        pair.sidecar.settle_size(digest, size).map(|()| pair)
    }

    fn blob_pair(&self, digest: &Digest) -> Result<BlockFile, CacheError> {
        self.bare_blob_pair(digest).map(|pair| pair.in_room(self.room()))
    }

    /// The shared files once the blob was verified, and those of our origin before.
    pub(super) fn bare_blob_pair(&self, digest: &Digest) -> Result<BlockFile, CacheError> {
        match self.may_share(digest) {
            true => self.shared_or_own(digest),
            false => self.own_blob_pair(digest),
        }
    }

    /// The shared files, where there are verified ones; else those of our origin.
    pub(super) fn shared_or_own(&self, digest: &Digest) -> Result<BlockFile, CacheError> {
        let shared = BlockPaths::of(self.path(directory(ContentKind::Blob), digest)?);
        let open = |files: &BlockPaths| self.open_blob(files, digest);
        if self.origin.is_empty() {
            return open(&shared);
        }
        let is_verified = |pair: &BlockFile| pair.sidecar.is_verified();
        if exists(&shared.map)
            && let Some(pair) = open(&shared).ok().filter(is_verified)
        {
            return Ok(pair);
        }
        self.own_blob_pair(digest)
    }

    /// The files of our origin. Once verified, they become the shared ones, and our origin has proved to have them.
    pub(super) fn own_blob_pair(&self, digest: &Digest) -> Result<BlockFile, CacheError> {
        let data = self.path(directory(ContentKind::Blob), digest)?;
        let (scoped, shared) = (named(&data, &self.origin), BlockPaths::of(data));
        let pair = self.open_blob(&scoped, digest)?.promoted_to(scoped, shared);
        if self.shares_all() {
            return Ok(pair);
        }
        let (cache, digest) = (self.clone(), digest.clone());
        Ok(pair.once_verified(Box::new(move || cache.note_proven(&digest))))
    }

    /// The files of a blob. A poisoned blob begins anew, without the files derived from it.
    fn open_blob(&self, files: &BlockPaths, digest: &Digest) -> Result<BlockFile, CacheError> {
        loop {
            let pair = BlockFile::open(&files.data, &files.map, ContentKind::Blob, digest)?;
            if !pair.is_poisoned() {
                return Ok(pair);
            }
            let removal = self.room().begin_removal(pair.on_disk());
            let discarded = pair.discard(files);
            removal.finish(*discarded.as_ref().unwrap_or(&0));
            match discarded {
                Ok(_) => {}
                // It stays poisoned.
                Err(error) if error.is_disk() => return Ok(pair),
                Err(error) => return Err(error),
            }
            if !self.origin.is_empty() {
                forget(self.root(), digest, &self.origin, &self.room().account);
            }
        }
    }

    /// `<cache-dir>/v1`.
    pub(super) fn root(&self) -> &Path {
        &self.shared.root
    }

    /// The file of `digest` in the directory of its kind of content.
    pub(super) fn path(&self, directory: &str, digest: &Digest) -> Result<PathBuf, CacheError> {
        served(digest)?;
        // The encoded part of a supported digest is lower-case hex and nothing else.
        Ok(self.shared.root.join(directory).join(digest.algorithm_name()).join(digest.encoded()))
    }

    /// The file of `digest` for content that is only a claim of our origin.
    pub(super) fn scoped_path(&self, directory: &str, digest: &Digest) -> Result<PathBuf, CacheError> {
        let path = self.path(directory, digest)?;
        Ok(if self.origin.is_empty() { path } else { named(&path, &self.origin).data })
    }

    /// A name for a new temporary file that no other process and no other thread uses.
    pub(super) fn temporary(&self) -> PathBuf {
        let number = self.shared.temporaries.fetch_add(1, Ordering::Relaxed);
        // Process ids repeat between containers that share the directory, so the clock is part of the name.
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        self.shared.root.join("tmp").join(format!("{}-{clock:x}-{number}", std::process::id()))
    }

    /// Opens a file, and once more after closing idle ones if the process has reached its limit of descriptors.
    pub(super) fn with_descriptors<T>(
        &self,
        open: impl Fn() -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        match open() {
            Err(CacheError::Descriptors { .. }) if self.room().close_idle() > 0 => open(),
            opened => opened,
        }
    }

    /// Removes a file, and subtracts its disk space from the account.
    pub(super) fn unlink_counted(&self, path: &Path) -> io::Result<()> {
        let bytes = on_disk(path);
        let removal = self.room().begin_removal(bytes);
        let removed = fs::remove_file(path);
        removal.finish(if removed.is_ok() { bytes } else { 0 });
        removed
    }

    /// Checks now, and not in the first read, whether files can be made; removes the leftovers of dead writers.
    fn probe(&self) -> Result<(), CacheError> {
        let path = self.temporary();
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match made
            .and_then(|_| fs::remove_file(&path))
            .map_err(|error| CacheError::io("create", &path, error))
        {
            Ok(()) => {}
            Err(error) if error.is_disk() => {
                tracing::warn!(%error, "the cache cannot grow; reads continue uncached");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let directory = self.shared.root.join("tmp");
        each_entry(&directory, UnreadablePolicy::Fail, |entry| {
            let age = entry.metadata().and_then(|found| found.modified()).map(|time| time.elapsed());
            if !matches!(age, Ok(Ok(age)) if age > TMP_AGE) {
                return Ok(ControlFlow::<()>::Continue(()));
            }
            if let Err(error) = self.unlink_counted(&entry.path())
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(%error, path = %entry.path().display(), "cannot remove a stale temporary file");
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(())
    }
}

/// The files beside `data` with this end of their names.
fn named(data: &Path, end: &str) -> BlockPaths {
    let mut name = data.as_os_str().to_owned();
    name.push(format!(".{end}"));
    BlockPaths::of(name.into())
}

/// The algorithm of a digest whose content can be checked.
fn served(digest: &Digest) -> Result<HashAlgorithm, CacheError> {
    digest.algorithm().ok_or_else(|| CacheError::Algorithm { digest: digest.clone() })
}

fn make_tree(root: &Path) -> Result<(), CacheError> {
    make_dir(root)?;
    check_owned(root)?;
    make_dir(&root.join("tmp"))?;
    for kind in ItemKind::ALL.map(ItemKind::directory).into_iter().chain(["locks"]) {
        for algorithm in ALGORITHMS {
            make_dir(&root.join(kind).join(algorithm))?;
        }
    }
    Ok(())
}
