//! Block file: the data file and sidecar of one content; reads blocks against their records, and stores blocks in
//! crash-safe order.
//!
//! This process trusts a block once it wrote it or saw it hash to its record. Any failure makes a block absent; the
//! caller decides on the consequences, fetches and waits.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

use nix::errno::Errno;

use super::block_data::{BlockData, PAGE, is_zero};
use super::copy_number::CopyNumber;
use super::files::BlockPaths;
use super::promotion::promote;
use super::quota::{CacheQuota, WritePriority};
use super::remove::{is_same, occupied};
use super::sidecar::{
    BLOCK_BYTES, BLOCK_SHIFT, BlockChecksum, BlockRecord, ContentKind, SidecarFile, VerificationState,
    VisitNext, open_for_writing,
};
use super::trust::VerifiedBlocks;
use super::{BlockSums, CacheError, lock};
use crate::io::{LocalBytes, read_lock, write_lock};
use crate::oci::Digest;

/// Stores of one block exclude each other, those of different blocks rarely do.
const STRIPES: usize = 16;

/// Bytes in which a file system notes where one stretch of data lies: at most 16, in nodes that are half full.
pub(super) const EXTENT_BYTES: u64 = 32;
/// Disk bytes of a new sidecar without records: its header, and two names in half full directories.
const NEW_PAIR: u64 = PAGE as u64 + 2 * 160;

/// Longer than two renames take.
const PROMOTION_TIME: Duration = Duration::from_millis(5);

pub(super) struct BlockFile {
    /// Names of the files before and after promotion; `None` for content that is not promoted.
    pub(super) promotion: Option<(BlockPaths, BlockPaths)>,
    /// Called when the content was verified as a whole.
    once_verified: Option<Box<dyn Fn() + Send + Sync>>,
    /// Expected checksum of each block, where the names of the files are derived from them; `None` where only records
    /// vouch for blocks.
    expected: Option<BlockSums>,
    pub(super) data: BlockData,
    /// The name that the data file had when it was opened.
    pub(super) data_path: PathBuf,
    pub(super) kind: ContentKind,
    /// Whether this process found the bytes equal to the digest. The disk records that only after a sync, which takes
    /// longer.
    proven: AtomicBool,
    /// Whether this process saw the content verified: a block without a checksum takes no bytes since.
    pub(super) was_verified: AtomicBool,
    pub(super) sidecar: SidecarFile,
    trust: RwLock<VerifiedBlocks>,
    /// Guards: one thread at a time writes or evicts the data and the record of a block.
    stripes: [Mutex<()>; STRIPES],
    /// Reserves space before every write; `None` where usage is not accounted.
    pub(super) room: Option<Arc<CacheQuota>>,
    /// Time of the last use, in ticks of the room.
    pub(super) last_use: AtomicU64,
    /// The data file, while a reader uses it directly. Guards: nothing is evicted while it is handed out.
    pub(super) backing: Mutex<Weak<OwnedFd>>,
    /// The block at which the next search for blocks to evict begins.
    pub(super) hand: AtomicU64,
    /// The lowest block that was evicted since the last query of this value.
    pub(super) lowest_evicted: AtomicU64,
}

/// Reason why a block was not stored.
pub(super) enum StoreError {
    /// The content does not match its digest.
    Poisoned,
    /// These bytes differ from the earlier ones of the block, or from the expected ones.
    Contradicts,
    /// The verified copy lost the checksum of the block, and its data differs from these bytes.
    Unproven,
    /// The limit of the cache does not allow it, and nothing could be evicted.
    NoRoom,
    /// The disk did not take it.
    Disk(io::Error),
}

impl BlockFile {
    /// The lock under which the data and the record of `block` change.
    pub(super) fn stripe(&self, block: u64) -> &Mutex<()> {
        &self.stripes[block as usize % STRIPES]
    }

    /// Records the time of the last use on disk.
    pub(super) fn record_last_use(&self) {
        if let Err(error) = self.sidecar.touch() {
            tracing::debug!(%error, "cannot record the last use");
        }
    }

    /// Opens or makes both files; `map` is the sidecar's path.
    pub(super) fn open(
        data: &Path,
        map: &Path,
        kind: ContentKind,
        digest: &Digest,
    ) -> Result<Self, CacheError> {
        // The sidecar first: its shared lock keeps an evictor from removing the data file.
        let sidecar = SidecarFile::open(map, kind, digest)?;
        let fail = |error| CacheError::io("open", data, error);
        let (file, _) = open_for_writing(data).map_err(fail)?;
        // Promotion renames the data an instant before the sidecar: then this open created an empty file under the
        // old name.
        if file.metadata().map_err(fail)?.len() == 0 && sidecar.has_page_of(0) {
            std::thread::sleep(PROMOTION_TIME);
            if !sidecar.file.metadata().is_ok_and(|found| is_same(&found, map)) {
                drop(sidecar);
                return Self::open(data, map, kind, digest);
            }
        }
        let was_verified = AtomicBool::new(sidecar.is_verified());
        Ok(Self {
            promotion: None,
            once_verified: None,
            expected: None,
            data: BlockData::Own(file),
            data_path: data.to_owned(),
            kind,
            proven: AtomicBool::new(false),
            was_verified,
            sidecar,
            trust: RwLock::default(),
            stripes: Default::default(),
            room: None,
            last_use: AtomicU64::new(0),
            backing: Mutex::default(),
            hand: AtomicU64::new(0),
            // Earlier knowledge of records belongs to other files.
            lowest_evicted: AtomicU64::new(0),
        })
    }

    /// The blob `digest` that lies in `bytes`. Its checksums are kept in a file without a name, which is called `map` until it is made.
    pub(super) fn local(
        bytes: LocalBytes,
        map: &Path,
        digest: &Digest,
        room: &Arc<CacheQuota>,
    ) -> Result<Self, CacheError> {
        let sidecar = SidecarFile::open(map, ContentKind::Blob, digest)?;
        std::fs::remove_file(map).map_err(|error| CacheError::io("remove", map, error))?;
        sidecar.settle_size(digest, bytes.size())?;
        room.note_opened();
        let was_verified = AtomicBool::new(false);
        Ok(Self {
            promotion: None,
            once_verified: None,
            expected: None,
            data: BlockData::Local(bytes),
            data_path: PathBuf::new(),
            kind: ContentKind::Blob,
            proven: AtomicBool::new(false),
            was_verified,
            sidecar,
            trust: RwLock::default(),
            stripes: Default::default(),
            last_use: AtomicU64::new(room.tick()),
            room: Some(Arc::clone(room)),
            backing: Mutex::default(),
            hand: AtomicU64::new(0),
            lowest_evicted: AtomicU64::new(u64::MAX),
        })
    }

    /// Whether the data lies outside of the cache: it takes no room, and cannot be evicted.
    pub(super) fn is_local(&self) -> bool {
        self.data.own().is_none()
    }

    /// The number of this copy: of a local file it stays the same for as long as the file does.
    pub(super) fn copy_number(&self) -> Option<CopyNumber> {
        match &self.data {
            BlockData::Own(_) => self.sidecar.copy_number(),
            BlockData::Local(bytes) => bytes.identity().first_chunk().copied(),
        }
    }

    /// Makes the data survive a power cut.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.data.own().map_or(Ok(()), File::sync_data)
    }

    /// The same pair, which asks `room` before it writes.
    pub(super) fn in_room(mut self, room: &Arc<CacheQuota>) -> Self {
        if self.sidecar.is_new() {
            room.charge(NEW_PAIR);
        }
        room.note_opened();
        self.last_use = AtomicU64::new(room.tick());
        self.room = Some(Arc::clone(room));
        self
    }

    /// Whether blocks were refused in the last second: then only blocks that a reader waits for should be fetched.
    pub(super) fn is_tight(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.is_tight())
    }

    /// Longest readahead of one reader, in bytes.
    pub(super) fn reach(&self) -> u64 {
        self.room.as_ref().map_or(u64::MAX, |room| room.reach())
    }

    /// Makes the pair ignore every block whose checksum differs from the one in `sums`.
    pub(super) fn expecting(mut self, sums: BlockSums) -> Self {
        self.expected = Some(sums);
        self
    }

    /// Whether the block may have this checksum.
    fn is_expected(&self, block: u64, sum: &BlockChecksum) -> bool {
        let Some(expected) = &self.expected else { return true };
        usize::try_from(block).ok().and_then(|block| expected.get(block)) == Some(sum)
    }

    /// Makes the pair rename its files from `from` to `to` on promotion.
    pub(super) fn promoted_to(mut self, from: BlockPaths, to: BlockPaths) -> Self {
        self.promotion = Some((from, to));
        self
    }

    /// Makes the pair call `note` once its content was verified.
    pub(super) fn once_verified(mut self, note: Box<dyn Fn() + Send + Sync>) -> Self {
        self.once_verified = Some(note);
        self
    }

    /// Promotes verified content to the names that all origins use. Processes that have the files open keep them.
    pub(super) fn promote(&self) {
        if let Some((from, to)) = &self.promotion
            && let Some(room) = &self.room
            && let Err(error) = promote(from, to, room)
        {
            // Another process was faster, or the disk is full: other origins fetch the content again.
            tracing::debug!(%error, "verified content keeps its name");
        }
    }

    /// Whether the block, `len` bytes long, has a record and is not known as damaged.
    pub(super) fn is_recorded(&self, block: u64, len: u32) -> bool {
        if self.is_trusted(block) {
            return true;
        }
        self.sum(block, len).is_some() && !self.trust(|trust| trust.damaged.contains(&block))
    }

    /// Visits every block from `first` on that [`is_recorded`](Self::is_recorded), with its length, as long as
    /// `visit` wants more.
    pub(super) fn each_sound(&self, first: u64, mut visit: impl FnMut(u64, u32) -> bool) -> io::Result<()> {
        let damaged = self.trust(|trust| trust.damaged.clone());
        self.sidecar.each_present(first..u64::MAX, |block, record| {
            match !damaged.contains(&block) && visit(block, record.len) {
                true => VisitNext::More,
                false => VisitNext::Enough,
            }
        })
    }

    /// Number of `blocks` that this process has not seen hash to their records.
    pub(super) fn doubtful(&self, blocks: Range<u64>) -> usize {
        self.trust(|trust| blocks.filter(|block| !trust.proven.contains(*block)).count())
    }

    /// Whether this process has seen the block's data hash to its record.
    pub(super) fn is_trusted(&self, block: u64) -> bool {
        self.trust(|trust| trust.proven.contains(block))
    }

    /// The checksum in the block's record; `None` unless the block is present with that length.
    pub(super) fn sum(&self, block: u64, len: u32) -> Option<BlockChecksum> {
        let record = self.sidecar.record(block)?;
        (record.present && record.len == len && self.is_expected(block, &record.sum)).then_some(record.sum)
    }

    /// Whether the checksum of the block is known, whether or not its data is present.
    pub(super) fn is_known(&self, block: u64, len: u32) -> bool {
        self.sidecar.record(block).is_some_and(|record| record.len == len)
    }

    /// The checksum in the block's record, whether or not its data is present.
    pub(super) fn known_sum(&self, block: u64, len: u32) -> Option<BlockChecksum> {
        self.sidecar.record(block).filter(|record| record.len == len).map(|record| record.sum)
    }

    /// Fills `out` from `offset`. `false` when a touched block is not trusted, when the file lacks the bytes, or when
    /// a block was evicted meanwhile.
    pub(super) fn read_trusted(&self, offset: u64, out: &mut [u8]) -> bool {
        let blocks = offset >> BLOCK_SHIFT..(offset + out.len() as u64).div_ceil(BLOCK_BYTES);
        let before = self.trust(|trust| {
            let all = blocks.clone().all(|block| trust.proven.contains(block));
            all.then(|| (trust.evictions, blocks.clone().all(|block| trust.recent.contains(block))))
        });
        let Some((evictions, recent)) = before else { return false };
        match self.data.read_exact_at(out, offset) {
            Ok(()) if !self.data.is_unchanged() => {
                // From now on each block is compared with its checksum.
                self.distrust();
                false
            }
            // An evictor takes the trust away before it takes the data away.
            Ok(()) if self.trust(|trust| trust.evictions) != evictions => false,
            Ok(()) => {
                self.note_use();
                if !recent {
                    self.change_trust(|trust| blocks.for_each(|block| trust.recent.insert(block)));
                }
                true
            }
            Err(error) => {
                tracing::debug!(%error, map = %self.sidecar.path().display(), "cached data is gone");
                // The next write extends a truncated file with zeros: none of its blocks can be trusted.
                self.distrust();
                false
            }
        }
    }

    /// Reads the whole block of `len` bytes and compares it with its record.
    pub(super) fn load(&self, block: u64, len: u32) -> Option<(Vec<u8>, BlockChecksum)> {
        let evictions = self.trust(|trust| trust.evictions);
        let sum = self.sum(block, len)?;
        let mut bytes = vec![0; len as usize];
        let read = self.data.read_exact_at(&mut bytes, block * BLOCK_BYTES);
        if read.is_ok() && *blake3::hash(&bytes).as_bytes() == sum {
            self.note_use();
            self.change_trust(|trust| {
                // The bytes are right in any case; they are known to be still on disk only if no block was evicted
                // since.
                if trust.evictions == evictions {
                    trust.proven.insert(block);
                    trust.recent.insert(block);
                    trust.damaged.remove(&block);
                }
            });
            return Some((bytes, sum));
        }
        tracing::debug!(block, map = %self.sidecar.path().display(), "cached block does not match its record");
        self.change_trust(|trust| {
            trust.damaged.insert(block);
            trust.proven.remove(block);
        });
        None
    }

    /// Writes the data, then the record, if there is room for them. `sum` is blake3 of `bytes`.
    pub(super) fn store(&self, block: u64, bytes: &[u8], sum: &BlockChecksum) -> Result<(), StoreError> {
        if self.is_trusted(block) {
            return Ok(());
        }
        let Some(room) = self.room.as_ref().filter(|_| !self.is_local()) else {
            return self.put(block, bytes, sum).map(|_| ());
        };
        let cost = self.cost(block, bytes);
        // No lock is held at this point: to make room, blocks of this very content may be evicted.
        let reserved = room.reserve(cost, WritePriority::Block).ok_or(StoreError::NoRoom)?;
        let put = match self.put(block, bytes, sum) {
            Err(StoreError::Disk(error)) if is_full(&error) && room.relieve(cost, WritePriority::Block) => {
                self.put(block, bytes, sum)
            }
            put => put,
        };
        match &put {
            // A stream's last page is either one of its pages of data, or punched by now.
            Ok(StoreOutcome::Written) => {
                reserved.settle(if self.kind == ContentKind::Blob { 0 } else { PAGE as u64 })
            }
            Ok(StoreOutcome::There)
            | Err(
                StoreError::Poisoned | StoreError::Contradicts | StoreError::Unproven | StoreError::NoRoom,
            ) => reserved.give_back(),
            // Some of the data may be on disk, and stays: without a record only a count finds it, and no reader.
            Err(StoreError::Disk(_)) => reserved.settle(cost.saturating_sub(self.there(block, bytes.len()))),
        }
        put.map(|_| ())
    }

    /// Records the checksum of a block that was handed out and is not stored, so that no other bytes are stored for
    /// it later. `false` where that cannot be recorded.
    pub(super) fn note_known(&self, block: u64, len: u32, sum: &BlockChecksum) -> bool {
        let _writing = lock(self.stripe(block));
        let is_open = self.sidecar.status().is_some_and(|status| {
            matches!(status.state, VerificationState::Partial | VerificationState::Complete)
        });
        if !is_open || self.sidecar.record(block).is_some() {
            return is_open;
        }
        let room = self.room.as_ref().filter(|_| !self.is_local());
        // A count beside the write waits for it.
        let _writer = room.map(|room| room.account.begin_write());
        if let Some(room) = room {
            room.charge(if self.sidecar.has_page_of(block) { 0 } else { PAGE as u64 });
        }
        let record = BlockRecord { present: true, len, sum: *sum };
        self.sidecar.mark_evicted(block, record).is_ok()
    }

    /// Disk bytes that storing the block adds.
    fn cost(&self, block: u64, bytes: &[u8]) -> u64 {
        let (mut pages, mut stretches) = (bytes.len().div_ceil(PAGE), 1);
        if self.kind != ContentKind::Blob {
            let data: Vec<bool> = bytes.chunks(PAGE).map(|page| !is_zero(page)).collect();
            // The last page is written even if it is punched afterwards.
            pages = data.iter().filter(|is_data| **is_data).count() + 1;
            stretches += data.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        }
        let record = if self.sidecar.has_page_of(block) { 0 } else { PAGE as u64 };
        // The damaged data is still on disk, and was counted when it was written.
        let there = match self.trust(|trust| trust.damaged.contains(&block)) {
            true => self.there(block, bytes.len()),
            false => 0,
        };
        ((pages * PAGE) as u64).saturating_sub(there) + record + stretches as u64 * EXTENT_BYTES
    }

    /// Disk bytes that the data file takes in the range of the block's first `len` bytes.
    fn there(&self, block: u64, len: usize) -> u64 {
        let start = block * BLOCK_BYTES;
        self.data_in(start, start + (len as u64).next_multiple_of(PAGE as u64)).0
    }

    fn put(&self, block: u64, bytes: &[u8], sum: &BlockChecksum) -> Result<StoreOutcome, StoreError> {
        let _writing = lock(self.stripe(block));
        if self.is_trusted(block) {
            return Ok(StoreOutcome::There);
        }
        // A block is at most 256 KiB long.
        let len = bytes.len() as u32;
        if !self.is_expected(block, sum) {
            return Err(StoreError::Contradicts);
        }
        let known = self.sidecar.record(block).filter(|record| self.is_expected(block, &record.sum));
        match (self.sidecar.status().map(|status| status.state), known) {
            (Some(VerificationState::Poisoned), _) => return Err(StoreError::Poisoned),
            // A block has one checksum for as long as the files exist, so that facts derived from it stay true.
            (_, Some(known)) if known.sum != *sum || known.len != len => return Err(StoreError::Contradicts),
            (Some(VerificationState::Verified), None) => return self.put_lost(block, bytes, sum),
            (_, None) if self.was_verified.load(Ordering::Acquire) => {
                return self.put_lost(block, bytes, sum);
            }
            (
                Some(VerificationState::Verified | VerificationState::Partial | VerificationState::Complete)
                | None,
                _,
            ) => {}
        }
        self.data.write(self.kind, block * BLOCK_BYTES, bytes).map_err(StoreError::Disk)?;
        self.sidecar.put_record(block, len, sum).map_err(StoreError::Disk)?;
        self.set_trusted(block);
        Ok(StoreOutcome::Written)
    }

    /// Whether this process found the bytes equal to the digest.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Acquire)
    }

    pub(super) fn set_proven(&self, proven: VerificationState) {
        let is_verified = proven == VerificationState::Verified;
        if is_verified {
            self.was_verified.store(true, Ordering::Release);
        }
        // The note comes first: names of streams that are made of verified content depend on it.
        if is_verified && let Some(note) = &self.once_verified {
            note();
        }
        self.proven.store(is_verified, Ordering::Release);
    }

    /// Drops all data: status first, so that every reader that could see the truncation sees the reason.
    pub(super) fn poison(&self) -> Result<(), CacheError> {
        let path = self.sidecar.path();
        if self.sidecar.advance(VerificationState::Poisoned)? != VerificationState::Poisoned {
            // Another process verified it in the meantime, with other bytes.
            return Ok(());
        }
        self.sidecar.sync().map_err(|error| CacheError::io("sync", path, error))?;
        let removal = self.room.as_ref().map(|room| room.begin_removal(self.on_disk()));
        // One process at a time measures and truncates, so that freed bytes are subtracted once.
        let freed = self.sidecar.with_status_lock(|| {
            let before = self.on_disk();
            self.sidecar.drop_records().map_err(|error| CacheError::io("truncate", path, error))?;
            self.data.cut().map_err(|error| CacheError::io("truncate", path, error))?;
            Ok(before.saturating_sub(self.on_disk()))
        });
        self.distrust();
        if let Some(removal) = removal {
            removal.finish(*freed.as_ref().unwrap_or(&0));
        }
        freed.map(|_| ())
    }

    /// Whether any process found that the content does not match its digest.
    pub(super) fn is_poisoned(&self) -> bool {
        self.sidecar.status().is_some_and(|status| status.state == VerificationState::Poisoned)
    }

    /// Removes the names `files` of poisoned content and returns the disk bytes freed. Processes that have it open
    /// keep it and know that it is wrong; processes that open the content begin anew.
    pub(super) fn discard(&self, files: &BlockPaths) -> Result<u64, CacheError> {
        self.sidecar.without_name(files)
    }

    /// The room that reserves space for every write; `None` where usage is not accounted.
    pub(super) fn room(&self) -> Option<&Arc<CacheQuota>> {
        self.room.as_ref()
    }

    /// Whether the bytes are final: the content is verified, or every block has an expected checksum.
    pub(super) fn is_fixed(&self) -> bool {
        self.expected.is_some() || self.sidecar.is_verified()
    }

    /// Device and inode of the sidecar, which holds the locks.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        self.sidecar.file.metadata().ok().map(|found| (found.dev(), found.ino()))
    }

    /// The bytes that both files take of the room of the cache.
    pub(super) fn on_disk(&self) -> u64 {
        let data = self.data.own().map(File::metadata);
        data.map_or(0, |found| found.map_or(0, |found| occupied(&found)) + self.sidecar.on_disk())
    }

    fn note_use(&self) {
        if let Some(room) = &self.room {
            self.last_use.store(room.tick(), Ordering::Relaxed);
        }
    }

    pub(super) fn set_trusted(&self, block: u64) {
        self.note_use();
        self.change_trust(|trust| {
            trust.proven.insert(block);
            trust.recent.insert(block);
            trust.damaged.remove(&block);
        });
    }

    /// Drops the trust in all blocks.
    pub(super) fn distrust(&self) {
        // Concurrent readers compare this number, so it must not start over.
        self.change_trust(|trust| {
            *trust = VerifiedBlocks { evictions: trust.evictions + 1, ..VerifiedBlocks::default() }
        });
    }

    fn trust<T>(&self, look: impl FnOnce(&VerifiedBlocks) -> T) -> T {
        look(&read_lock(&self.trust))
    }

    pub(super) fn change_trust<T>(&self, change: impl FnOnce(&mut VerifiedBlocks) -> T) -> T {
        change(&mut write_lock(&self.trust))
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            room.note_closed();
        }
    }
}

/// Result of storing a block.
pub(super) enum StoreOutcome {
    Written,
    /// The block was stored already.
    There,
}

/// Whether an error means that the disk has no space left for us.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT))
}
