//! Sidecar: the `.map` file beside a data file, with its identity, state, and one checksum per block.
//!
//! Every part is checked before it is trusted (docs/cache-format.md), and an invalid sidecar is made new. Fixed
//! offsets, aligned small writes, and a hash over each keep it truthful after a crash or writes in any order.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use super::error::CacheResult;
use super::files::BlockPaths;
use super::lock::{LockBackoff, try_lock_byte, try_share_byte, try_shared, unlock_byte};
use super::remove::{occupied, remove_open};
use super::{CacheError, lock};
use crate::oci::Digest;

/// A block is 256 KiB: 64 bytes of sidecar each are 0.024 %, and one is read in the time of a round trip.
pub(super) const BLOCK_SHIFT: u32 = 18;
/// Bytes of a block, except of the last one.
pub(super) const BLOCK_BYTES: u64 = 1 << BLOCK_SHIFT;
/// Offsets stay below `LOCKS`, so that the offset of every record, lock and byte of data fits `off_t`.
pub(super) const MAX_SIZE: u64 = 1 << 61;

const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"ocifsmap";
const HEADER: u64 = 4096;
const RECORD: usize = 64;
const IDENTITY: usize = 160;
/// The markers of a record.
const PRESENT: u8 = 1;
const KNOWN: u8 = 2;
/// Records read at a time: 64 KiB.
const RECORDS_AT_ONCE: usize = 1024;
const STATUS_AT: u64 = 512;
const STATUS: usize = 64;
/// Written at each open by programs without a [`USE_LOCK`], and by no other.
pub(super) const OLD_USE_AT: u64 = 1024;
const LAST_USED_AT: u64 = 1032;
const LOCKS: u64 = 1 << 62;
const STATUS_LOCK: u64 = LOCKS - 1;
/// Read lock: blocks of this content are trusted. Write lock: blocks of it are being evicted.
pub(super) const USE_LOCK: u64 = LOCKS - 2;
/// Longest time that the status lock, held only around a few small writes, may be held before its holder counts as
/// stuck.
pub(super) const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// blake3 of a block's bytes.
pub(super) type BlockChecksum = [u8; 32];

/// Content of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ContentKind {
    Blob = 1,
    Stream = 2,
    /// A decoded stream, as described by an index made elsewhere.
    Claim = 3,
}

/// State of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerificationState {
    /// Some blocks may be present.
    Partial = 1,
    /// Every block was stored; a blob's digest was not compared yet, a stream has none.
    Complete = 2,
    /// Every byte was compared with the digest.
    Verified = 3,
    /// The bytes do not match the digest; every read fails.
    Poisoned = 4,
}

impl VerificationState {
    /// The transition table of docs/cache-format.md, "States".
    fn may_become(self, next: VerificationState) -> bool {
        use VerificationState::{Complete, Partial, Poisoned, Verified};
        match self {
            Partial => matches!(next, Complete | Verified | Poisoned),
            Complete => matches!(next, Partial | Verified | Poisoned),
            Verified => matches!(next, Partial),
            Poisoned => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SidecarStatus {
    pub(super) state: VerificationState,
    /// Size in bytes; `None` only for a stream that is being decoded for the first time.
    pub(super) size: Option<u64>,
}

/// The record of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRecord {
    /// Whether the data should be present; if not, only the checksum is known.
    pub(super) present: bool,
    pub(super) len: u32,
    pub(super) sum: BlockChecksum,
}

/// Whether a visitor wants to see more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VisitNext {
    More,
    Enough,
}

pub(super) struct SidecarFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    identity: BlockChecksum,
    pub(super) access: SidecarAccess,
    /// Whether this open created it.
    is_new: bool,
    /// Guards the read-change-write of the status among threads (the lock between processes belongs to the open
    /// file).
    status_change: Mutex<()>,
}

/// Whether the file system lets us write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SidecarAccess {
    Write,
    Read,
}

impl SidecarFile {
    /// Opens or makes the sidecar at `path`, and holds the shared lock that keeps evictors away.
    pub(super) fn open(path: &Path, kind: ContentKind, digest: &Digest) -> Result<Self, CacheError> {
        let head = identity_bytes(kind, digest);
        let identity: BlockChecksum = blake3::hash(&head).into();
        let (file, access) = open_locked(path)?;
        let (path_of, status_change) = (path.to_owned(), Mutex::new(()));
        let mut sidecar = Self { file, path: path_of, identity, access, is_new: false, status_change };
        if !sidecar.is_valid(&head)? {
            if access == SidecarAccess::Read {
                let source = Errno::EROFS.into();
                return Err(CacheError::ReadOnly { path: path.to_owned(), source });
            }
            sidecar.is_new = sidecar.with_status_lock(|| {
                // Another process may have made it valid while we waited for the lock.
                let broken = !sidecar.is_valid(&head)?;
                if broken {
                    sidecar.make_new(&head).map_err(|error| CacheError::io("write", path, error))?;
                }
                Ok(broken)
            })?;
        }
        Ok(sidecar)
    }

    /// The sidecar at `path` in its present state: it is not made, repaired or locked, so it must not be trusted
    /// before [`is_whole`](Self::is_whole). `None` when it does not exist.
    pub(super) fn existing(
        path: &Path,
        kind: ContentKind,
        digest: &Digest,
    ) -> Result<Option<Self>, CacheError> {
        let open = |write: bool| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(path)
        };
        let opened = match open(true) {
            Err(error) if error.raw_os_error() == Some(Errno::EROFS as i32) => {
                open(false).map(|file| (file, SidecarAccess::Read))
            }
            opened => opened.map(|file| (file, SidecarAccess::Write)),
        };
        let (file, access) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CacheError::io("open", path, error)),
        };
        let identity = blake3::hash(&identity_bytes(kind, digest)).into();
        Ok(Some(Self {
            file,
            path: path.to_owned(),
            identity,
            access,
            is_new: false,
            status_change: Mutex::new(()),
        }))
    }

    /// Whether identity and status are valid; an error when they are those of another program version.
    pub(super) fn is_whole(&self, kind: ContentKind, digest: &Digest) -> Result<bool, CacheError> {
        self.is_valid(&identity_bytes(kind, digest))
    }

    /// Time of the last use, in seconds since 1970. Unchecked: it may be any number.
    pub(super) fn last_used(&self) -> Option<u64> {
        let mut bytes = [0; 16];
        read_fully(&self.file, &mut bytes, OLD_USE_AT)
            .then(|| u64::from_le_bytes(field(&bytes, 0)).max(u64::from_le_bytes(field(&bytes, 8))))
    }

    /// Visits the slot of every record in order, except for holes of the file. Passes its block, whether any byte of
    /// it is set, and the record if it is valid. Ends when `visit` returns `false`.
    pub(super) fn each_record(
        &self,
        mut visit: impl FnMut(u64, bool, Option<BlockRecord>) -> bool,
    ) -> io::Result<()> {
        let mut batch = vec![0; RECORDS_AT_ONCE * RECORD];
        let mut at = HEADER;
        while let Some((start, len)) = self.next_records(at, &mut batch)? {
            for (index, bytes) in batch[..len].as_chunks::<RECORD>().0.iter().enumerate() {
                let block = (start - HEADER) / RECORD as u64 + index as u64;
                if !visit(block, bytes.iter().any(|&byte| byte != 0), self.parse(bytes, block)) {
                    return Ok(());
                }
            }
            at = start + len as u64;
        }
        Ok(())
    }

    /// Deletes the record of `block`.
    pub(super) fn drop_record(&self, block: u64) -> io::Result<()> {
        self.file.write_all_at(&[0; RECORD], record_at(block))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this open created it.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether identity and status are valid; an error when they are those of another program version.
    fn is_valid(&self, head: &[u8; IDENTITY]) -> Result<bool, CacheError> {
        let mut bytes = [0; IDENTITY + 32];
        if !read_fully(&self.file, &mut bytes, 0) {
            return Ok(false);
        }
        let (found, sum) = bytes.split_at(IDENTITY);
        if blake3::hash(found).as_bytes() != sum {
            return Ok(false);
        }
        let version = u32::from_le_bytes(field(found, 8));
        if found.starts_with(MAGIC) && (version != VERSION || u32::from(found[13]) != BLOCK_SHIFT) {
            return Err(CacheError::Version { path: self.path.clone(), version, shift: found[13] });
        }
        Ok(found == head && self.status().is_some())
    }

    fn make_new(&self, head: &[u8; IDENTITY]) -> io::Result<()> {
        let mut old_use = [0; 8];
        let is_noted = read_fully(&self.file, &mut old_use, OLD_USE_AT);
        self.file.set_len(0)?;
        self.file.set_len(HEADER)?;
        if is_noted {
            self.file.write_all_at(&old_use, OLD_USE_AT)?;
        }
        self.file.write_all_at(head, 0)?;
        self.file.write_all_at(&self.identity, IDENTITY as u64)?;
        self.write_status(SidecarStatus { state: VerificationState::Partial, size: None })
    }

    /// The status, or `None` when it is damaged.
    pub(super) fn status(&self) -> Option<SidecarStatus> {
        let mut bytes = [0; STATUS];
        if !read_fully(&self.file, &mut bytes, STATUS_AT) || self.check(&bytes[..32])[..] != bytes[32..] {
            return None;
        }
        let state = match bytes[0] {
            1 => VerificationState::Partial,
            2 => VerificationState::Complete,
            3 => VerificationState::Verified,
            4 => VerificationState::Poisoned,
            _ => return None,
        };
        let size = (bytes[1] == 1).then(|| u64::from_le_bytes(field(&bytes, 8)));
        Some(SidecarStatus { state, size })
    }

    pub(super) fn is_verified(&self) -> bool {
        self.status().is_some_and(|status| status.state == VerificationState::Verified)
    }

    fn write_status(&self, status: SidecarStatus) -> io::Result<()> {
        let mut bytes = [0; STATUS];
        bytes[0] = status.state as u8;
        bytes[1] = u8::from(status.size.is_some());
        bytes[8..16].copy_from_slice(&status.size.unwrap_or(0).to_le_bytes());
        let check = self.check(&bytes[..32]);
        bytes[32..].copy_from_slice(&check);
        self.file.write_all_at(&bytes, STATUS_AT)
    }

    /// Moves to `next` where the transition table allows it, and returns the resulting state.
    pub(super) fn advance(&self, next: VerificationState) -> Result<VerificationState, CacheError> {
        self.with_status_lock(|| {
            let status =
                self.status().unwrap_or(SidecarStatus { state: VerificationState::Partial, size: None });
            if status.state == next || !status.state.may_become(next) {
                return Ok(status.state);
            }
            self.write_status(SidecarStatus { state: next, ..status })
                .map_err(|error| CacheError::io("write", &self.path, error))?;
            Ok(next)
        })
    }

    /// Settles the size of the content: the first caller writes it, and every later size must be equal.
    pub(super) fn settle_size(&self, digest: &Digest, size: u64) -> Result<(), CacheError> {
        let agree = |status: Option<SidecarStatus>| match status.and_then(|status| status.size) {
            Some(cached) if cached == size => Ok(true),
            Some(cached) => Err(CacheError::SizeConflict { digest: digest.clone(), cached, given: size }),
            None => Ok(false),
        };
        if agree(self.status())? || self.access == SidecarAccess::Read {
            return Ok(());
        }
        self.with_status_lock(|| {
            let status = self.status();
            if agree(status)? {
                return Ok(());
            }
            let state = status.map_or(VerificationState::Partial, |status| status.state);
            self.write_status(SidecarStatus { state, size: Some(size) })
                .map_err(|error| CacheError::io("write", &self.path, error))
        })
    }

    /// Runs `change` while no other process and no other thread changes the status.
    pub(super) fn with_status_lock<T>(&self, change: impl FnOnce() -> CacheResult<T>) -> CacheResult<T> {
        let _thread = lock(&self.status_change);
        let deadline = Instant::now() + STATUS_PATIENCE;
        let mut backoff = LockBackoff::new();
        while !try_lock_byte(&self.file, STATUS_LOCK)
            .map_err(|error| CacheError::io("lock", &self.path, error))?
        {
            if Instant::now() > deadline {
                return Err(CacheError::Busy { path: self.path.clone() });
            }
            std::thread::sleep(backoff.next());
        }
        let result = change();
        unlock_byte(&self.file, STATUS_LOCK);
        result
    }

    /// The record of `block`; `None` without a valid one.
    pub(super) fn record(&self, block: u64) -> Option<BlockRecord> {
        let mut bytes = [0; RECORD];
        if !read_fully(&self.file, &mut bytes, record_at(block)) {
            return None;
        }
        self.parse(&bytes, block)
    }

    fn parse(&self, bytes: &[u8; RECORD], block: u64) -> Option<BlockRecord> {
        let present = match bytes[0] {
            PRESENT => true,
            KNOWN => false,
            _ => return None,
        };
        if u64::from_le_bytes(field(bytes, 8)) != block || self.check(&bytes[..48])[..16] != bytes[48..] {
            return None;
        }
        Some(BlockRecord { present, len: u32::from_le_bytes(field(bytes, 4)), sum: field(bytes, 16) })
    }

    /// Records `block` as present; its data must have been written before.
    pub(super) fn put_record(&self, block: u64, len: u32, sum: &BlockChecksum) -> io::Result<()> {
        self.write_record(block, BlockRecord { present: true, len, sum: *sum })
    }

    /// Records that the data of `block` is absent, and its checksum; the data must be removed afterwards.
    pub(super) fn mark_evicted(&self, block: u64, record: BlockRecord) -> io::Result<()> {
        self.write_record(block, BlockRecord { present: false, ..record })
    }

    fn write_record(&self, block: u64, record: BlockRecord) -> io::Result<()> {
        let BlockRecord { present, len, sum } = record;
        let mut bytes = [0; RECORD];
        bytes[0] = if present { PRESENT } else { KNOWN };
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..16].copy_from_slice(&block.to_le_bytes());
        bytes[16..48].copy_from_slice(&sum);
        let check = self.check(&bytes[..48]);
        bytes[48..].copy_from_slice(&check[..16]);
        self.file.write_all_at(&bytes, record_at(block))
    }

    /// Sum of the lengths of all present blocks.
    pub(super) fn bytes_present(&self) -> io::Result<u64> {
        let mut total = 0;
        self.each_present(0..u64::MAX, |_, record| {
            total += u64::from(record.len);
            VisitNext::More
        })?;
        Ok(total)
    }

    /// Visits every present block among `blocks` in order, until `visit` returns [`VisitNext::Enough`]. Skips holes of the
    /// file: a sidecar may be sparse.
    pub(super) fn each_present(
        &self,
        blocks: Range<u64>,
        mut visit: impl FnMut(u64, BlockRecord) -> VisitNext,
    ) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        let mut batch = vec![0; RECORDS_AT_ONCE * RECORD];
        let mut at = HEADER + blocks.start.min(end) * RECORD as u64;
        while at < end {
            let Some((start, len)) = self.next_records(at, &mut batch)? else { break };
            at = start;
            for (index, bytes) in batch[..len].as_chunks::<RECORD>().0.iter().enumerate() {
                let block = (at - HEADER) / RECORD as u64 + index as u64;
                if block >= blocks.end {
                    return Ok(());
                }
                let present = self.parse(bytes, block).filter(|record| record.present);
                if present.is_some_and(|record| visit(block, record) == VisitNext::Enough) {
                    return Ok(());
                }
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Reads the next records from `at` on that do not lie in a hole: their offset, and their length in bytes.
    fn next_records(&self, at: u64, batch: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        use nix::unistd::{Whence, lseek};
        // Offsets of an existing file fit off_t.
        let data = match lseek(&self.file, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let start = at.max(data - data % RECORD as u64);
        let len = self.file.read_at(batch, start)? / RECORD * RECORD;
        Ok((len > 0).then_some((start, len)))
    }

    /// Whether the page with the record of `block` has any byte set: otherwise it may be a hole.
    pub(super) fn has_page_of(&self, block: u64) -> bool {
        let mut page = [0; HEADER as usize];
        let read = self.file.read_at(&mut page, record_at(block) / HEADER * HEADER);
        read.is_ok_and(|len| page[..len].iter().any(|&byte| byte != 0))
    }

    /// Disk bytes that it takes.
    pub(super) fn on_disk(&self) -> u64 {
        self.file.metadata().map_or(0, |found| occupied(&found))
    }

    /// Removes both names of the content, unless they lead to another one by now. The disk bytes freed.
    pub(super) fn without_name(&self, files: &BlockPaths) -> Result<u64, CacheError> {
        self.with_status_lock(|| remove_open(&self.file, files))
    }

    /// Drops the records of all blocks.
    pub(super) fn drop_records(&self) -> io::Result<()> {
        self.file.set_len(HEADER)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Records that the content was used now.
    pub(super) fn touch(&self) -> io::Result<()> {
        if self.access == SidecarAccess::Read {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.file.write_all_at(&now.to_le_bytes(), LAST_USED_AT)
    }

    /// Tries to become the only process that fetches and stores `block`.
    pub(super) fn try_claim(&self, block: u64) -> io::Result<bool> {
        // Without write access there are no write locks, and nothing to protect: no process can store.
        if self.access == SidecarAccess::Read {
            return Ok(true);
        }
        try_lock_byte(&self.file, LOCKS + block)
    }

    /// Releases the claim on `block`.
    pub(super) fn release(&self, block: u64) {
        if self.access == SidecarAccess::Write {
            unlock_byte(&self.file, LOCKS + block);
        }
    }

    /// Binds a check to this content, so that the bytes of another file or another offset do not pass.
    pub(super) fn check(&self, bytes: &[u8]) -> BlockChecksum {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.identity).update(bytes);
        hasher.finalize().into()
    }
}

fn record_at(block: u64) -> u64 {
    HEADER + RECORD as u64 * block
}

fn identity_bytes(kind: ContentKind, digest: &Digest) -> [u8; IDENTITY] {
    let text = digest.as_str().as_bytes();
    let mut head = [0; IDENTITY];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12] = kind as u8;
    head[13] = BLOCK_SHIFT as u8;
    // Only sha256 and sha512 reach this point: at most 135 bytes of text.
    head[14..16].copy_from_slice(&(text.len() as u16).to_le_bytes());
    head[16..16 + text.len()].copy_from_slice(text);
    head
}

/// The `N` bytes at `at`.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Reads all of `buf`; `false` for a file that ends early or cannot be read, because both mean absent.
pub(super) fn read_fully(file: &File, buf: &mut [u8], at: u64) -> bool {
    file.read_exact_at(buf, at).is_ok()
}

/// Opens the file and takes its shared locks, again when an evictor removed it in between.
fn open_locked(path: &Path) -> Result<(File, SidecarAccess), CacheError> {
    let fail = |action| move |error| CacheError::io(action, path, error);
    let deadline = Instant::now() + STATUS_PATIENCE;
    let mut backoff = LockBackoff::new();
    loop {
        let (file, access) = open_for_writing(path).map_err(fail("open"))?;
        match try_shared(&file, path)? {
            true if file.metadata().map_err(fail("stat"))?.nlink() == 0 => {}
            true if try_share_byte(&file, USE_LOCK).map_err(fail("lock"))? => return Ok((file, access)),
            // It is being removed, or blocks of it are being evicted.
            _ => std::thread::sleep(backoff.next()),
        }
        if Instant::now() > deadline {
            return Err(CacheError::Busy { path: path.to_owned() });
        }
    }
}

/// Opens or creates a file of the cache; on a read-only file system opens the existing one.
pub(super) fn open_for_writing(path: &Path) -> io::Result<(File, SidecarAccess)> {
    match OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path) {
        Ok(file) => Ok((file, SidecarAccess::Write)),
        Err(error) if error.raw_os_error() == Some(Errno::EROFS as i32) => match File::open(path) {
            Ok(file) => Ok((file, SidecarAccess::Read)),
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}
