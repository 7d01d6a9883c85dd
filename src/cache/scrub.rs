//! Scrub: reads all stored blocks of a content and compares them with their checksums.
//!
//! A damaged block loses the present mark in its record and keeps its checksum, so the next reader fetches it again
//! and must get the same bytes. Content that a process uses is not changed, and nothing is fetched.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::CacheError;
use super::documents::sealed_len;
use super::gc::unlink;
use super::inventory::{CacheInventory, ContentName, OpenContents, open_file, stat};
use super::layout::ItemKind;
use super::remove::{RemoveOutcome, remove};
use super::sidecar::{BLOCK_BYTES, BlockRecord, ContentKind, SidecarFile, SidecarStatus, VerificationState};
use crate::oci::Hasher;

/// Damaged blocks that are dropped at a time. Checking them once more takes a fraction of a second, in which no
/// process can open the content.
const DAMAGED_BLOCK_BATCH: usize = 64;

/// Kind of damage to content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentDamage {
    /// Blocks that do not hash to their records, or whose records are damaged.
    Blocks(u64),
    /// The sidecar fails its check, or is missing.
    Sidecar,
    /// There is a sidecar, and no data.
    Data,
    /// The whole does not hash to its digest.
    Digest,
    /// A small file fails its check.
    File,
}

/// Result of a scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Bytes that were read and compared.
    pub bytes: u64,
    /// The damage found; `None` for sound content.
    pub damage: Option<ContentDamage>,
    /// Whether all damaged parts were dropped. Not while a process uses the content: it checks each block itself
    /// before it trusts it.
    pub dropped: bool,
}

impl ScrubReport {
    fn damaged(bytes: u64, damage: ContentDamage, removed: RemoveOutcome) -> Self {
        Self { bytes, damage: Some(damage), dropped: removed != RemoveOutcome::InUse }
    }
}

impl CacheInventory {
    /// Reads and compares all stored parts of one content. Damaged parts are dropped, so that they are fetched again.
    pub fn scrub(&self, entry: &ContentName, used: &OpenContents) -> Result<ScrubReport, CacheError> {
        match entry.kind.paired() {
            Some(kind) => scrub_pair(entry, kind),
            None => scrub_file(entry, used),
        }
    }
}

fn scrub_pair(entry: &ContentName, kind: ContentKind) -> Result<ScrubReport, CacheError> {
    let files = entry.files();
    let Some(sidecar) = SidecarFile::existing(&files.map, kind, &entry.digest)? else {
        return match stat(&files.data)? {
            Some(_) => Ok(ScrubReport::damaged(0, ContentDamage::Sidecar, remove(&files)?)),
            None => Ok(ScrubReport::default()),
        };
    };
    // As a user, so that no evictor removes the content meanwhile.
    if !sidecar.join()? {
        return Ok(ScrubReport::default());
    }
    let give_up = |sidecar: SidecarFile, bytes, damage| {
        // Our own lock would count as a user.
        drop(sidecar);
        Ok(ScrubReport::damaged(bytes, damage, remove(&files)?))
    };
    let status = if sidecar.is_whole(kind, &entry.digest)? { sidecar.status() } else { None };
    let Some(status) = status else { return give_up(sidecar, 0, ContentDamage::Sidecar) };
    if status.state == VerificationState::Poisoned {
        // No byte of poisoned content is served.
        return Ok(ScrubReport::default());
    }
    let Some(data) = open_file(&files.data)? else { return give_up(sidecar, 0, ContentDamage::Data) };
    let mut scrub = ContentScrub {
        sidecar: &sidecar,
        data,
        status,
        whole: match (kind, status.state, entry.digest.algorithm()) {
            (
                ContentKind::Blob,
                VerificationState::Complete | VerificationState::Verified,
                Some(algorithm),
            ) => Some(Hasher::new(algorithm)),
            _ => None,
        },
        next: 0,
        bytes: 0,
        damaged: 0,
        stay: 0,
        pending: Vec::new(),
    };
    scrub.all().map_err(|error| CacheError::io("read", &files.map, error))?;
    let ContentScrub { whole, next, bytes, damaged, stay, .. } = scrub;
    if damaged > 0 {
        return Ok(ScrubReport { bytes, damage: Some(ContentDamage::Blocks(damaged)), dropped: stay == 0 });
    }
    match whole {
        Some(hasher)
            if status.size.is_some_and(|size| size.div_ceil(BLOCK_BYTES) == next)
                && hasher.clone().finish() != entry.digest =>
        {
            give_up(sidecar, bytes, ContentDamage::Digest)
        }
        _ => Ok(ScrubReport { bytes, ..ScrubReport::default() }),
    }
}

/// A content while it is being read.
struct ContentScrub<'a> {
    sidecar: &'a SidecarFile,
    data: File,
    status: SidecarStatus,
    /// The hash of all blocks below `next`, as long as all of them are present.
    whole: Option<Hasher>,
    next: u64,
    bytes: u64,
    damaged: u64,
    /// Damaged blocks that could not be dropped.
    stay: u64,
    /// Damaged blocks that were not dropped yet.
    pending: Vec<u64>,
}

impl ContentScrub<'_> {
    fn all(&mut self) -> io::Result<()> {
        let mut failed = Ok(());
        let sidecar = self.sidecar;
        sidecar.each_record(|block, is_written, record| {
            failed = self.one(block, is_written, record);
            failed.is_ok()
        })?;
        failed?;
        self.give_up()
    }

    fn one(&mut self, block: u64, is_written: bool, record: Option<BlockRecord>) -> io::Result<()> {
        let is_sound = match record {
            Some(record) if record.present => self.is_sound(block, &record),
            // Recorded as absent.
            Some(_) => return Ok(()),
            None => !is_written,
        };
        // `give_up` releases the shared lock for an instant, so the block may have been evicted.
        let is_gone = || self.sidecar.record(block).is_some_and(|record| !record.present);
        if !is_sound && !is_gone() {
            self.damaged += 1;
            self.pending.push(block);
            if self.pending.len() == DAMAGED_BLOCK_BATCH {
                return self.give_up();
            }
        }
        Ok(())
    }

    fn is_sound(&mut self, block: u64, record: &BlockRecord) -> bool {
        let Some(bytes) = self.read(block, record) else { return false };
        self.bytes += bytes.len() as u64;
        if self.next == block
            && let Some(hasher) = &mut self.whole
        {
            hasher.update(&bytes);
            self.next += 1;
        }
        true
    }

    /// The block; `None` unless its length and checksum match its record.
    fn read(&self, block: u64, record: &BlockRecord) -> Option<Vec<u8>> {
        let start = block.checked_mul(BLOCK_BYTES)?;
        let expected = match self.status.size {
            Some(size) => size.checked_sub(start)?.min(BLOCK_BYTES),
            None => BLOCK_BYTES.min(u64::from(record.len)),
        };
        if expected == 0 || u64::from(record.len) != expected {
            return None;
        }
        // At most the length of a block.
        let mut bytes = vec![0; expected as usize];
        self.data.read_exact_at(&mut bytes, start).ok()?;
        (*blake3::hash(&bytes).as_bytes() == record.sum).then_some(bytes)
    }

    /// Drops the damaged blocks found so far, unless a process uses the content.
    fn give_up(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let busy = io::Error::other;
        if self.sidecar.leave_for_alone().map_err(busy)? {
            self.give_up_alone(pending)?;
        } else {
            self.stay += pending.len() as u64;
        }
        // Content that is being removed stays readable: it is only unlinked.
        self.sidecar.join().map_err(busy).map(|_| ())
    }

    fn give_up_alone(&self, pending: Vec<u64>) -> io::Result<()> {
        // Complete means that every block is present; verified, that every checksum is known.
        if self.status.state == VerificationState::Complete {
            self.sidecar.advance(VerificationState::Partial).map_err(io::Error::other)?;
        }
        for block in pending {
            // The block may have been written again since, by a process that is gone now.
            match self.sidecar.record(block) {
                Some(record) if !record.present || self.read(block, &record).is_some() => {}
                Some(record) => self.sidecar.mark_evicted(block, record)?,
                None => self.sidecar.drop_record(block)?,
            }
        }
        Ok(())
    }
}

fn scrub_file(entry: &ContentName, used: &OpenContents) -> Result<ScrubReport, CacheError> {
    let Some(mut file) = open_file(&entry.path)? else { return Ok(ScrubReport::default()) };
    let fail = |error| CacheError::io("stat", &entry.path, error);
    let found = file.metadata().map_err(fail)?;
    let is_sound = match entry.kind {
        ItemKind::Document => is_document(&mut file, entry),
        _ => sealed_len(&mut file, &entry.digest).map(|len| len.is_some()),
    };
    // An unreadable file counts as damaged.
    if is_sound.unwrap_or(false) {
        return Ok(ScrubReport { bytes: found.len(), ..ScrubReport::default() });
    }
    let same =
        stat(&entry.path)?.is_some_and(|named| (named.dev(), named.ino()) == (found.dev(), found.ino()));
    let removed = match same {
        // Another process replaced it.
        false => RemoveOutcome::Absent,
        true if used.touches(entry) => RemoveOutcome::InUse,
        true => unlink(&entry.path)?,
    };
    Ok(ScrubReport::damaged(found.len(), ContentDamage::File, removed))
}

fn is_document(file: &mut File, entry: &ContentName) -> io::Result<bool> {
    let Some(algorithm) = entry.digest.algorithm() else { return Ok(false) };
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish() == entry.digest),
            len => hasher.update(&buffer[..len]),
        }
    }
}
