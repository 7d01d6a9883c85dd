//! Reading everything that is stored of a content and comparing it with what vouches for it.
//!
//! Nothing is fetched, and nothing of content that somebody uses is changed. The idea: a block that fails loses the mark that says
//! it is here and keeps its checksum, so that the next reader fetches it again and it must be what it was.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::CacheError;
use super::documents::is_sealed;
use super::inventory::{Entry, Inventory, ItemKind, Used, open_file, stat};
use super::remove::{Removed, remove};
use super::sidecar::{BLOCK, Kind, Record, Sidecar, State, Status};
use super::sweep::unlink;
use crate::oci::Hasher;

/// How many damaged blocks are given up at a time: looking at them once more takes a fraction of a second, in which nobody can open
/// the content.
const AT_ONCE: usize = 64;

/// What is wrong with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Blocks that do not hash to their records, or whose records are damaged.
    Blocks(u64),
    /// The sidecar cannot be believed, or is missing.
    Sidecar,
    /// There is a sidecar, and no data.
    Data,
    /// The whole does not hash to its digest.
    Digest,
    /// A small file does not prove itself.
    File,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes that were read and compared.
    pub bytes: u64,
    /// What was wrong.
    pub damage: Option<Damage>,
    /// Whether all of that is given up now. Not while somebody uses it: he compares it himself before he believes it.
    pub dropped: bool,
}

impl Scrubbed {
    fn damaged(bytes: u64, damage: Damage, removed: Removed) -> Self {
        Self { bytes, damage: Some(damage), dropped: removed != Removed::InUse }
    }
}

impl Inventory {
    /// Reads and compares all that is stored of one content. What is damaged is given up, so that it is fetched again.
    pub fn scrub(&self, entry: &Entry, used: &Used) -> Result<Scrubbed, CacheError> {
        match entry.kind.paired() {
            Some(kind) => scrub_pair(entry, kind),
            None => scrub_file(entry, used),
        }
    }
}

fn scrub_pair(entry: &Entry, kind: Kind) -> Result<Scrubbed, CacheError> {
    let files = entry.files();
    let Some(sidecar) = Sidecar::existing(&files.map, kind, &entry.digest)? else {
        return match stat(&files.data)? {
            Some(_) => Ok(Scrubbed::damaged(0, Damage::Sidecar, remove(&files)?)),
            None => Ok(Scrubbed::default()),
        };
    };
    // As a user, so that no evictor takes it away meanwhile.
    if !sidecar.join()? {
        return Ok(Scrubbed::default());
    }
    let give_up = |sidecar: Sidecar, bytes, damage| {
        // Our own lock would count as a user.
        drop(sidecar);
        Ok(Scrubbed::damaged(bytes, damage, remove(&files)?))
    };
    let status = if sidecar.is_whole(kind, &entry.digest)? { sidecar.status() } else { None };
    let Some(status) = status else { return give_up(sidecar, 0, Damage::Sidecar) };
    if status.state == State::Poisoned {
        // Nothing of it is served.
        return Ok(Scrubbed::default());
    }
    let Some(data) = open_file(&files.data)? else { return give_up(sidecar, 0, Damage::Data) };
    let mut scrub = Scrub {
        sidecar: &sidecar,
        data,
        status,
        whole: match (kind, status.state, entry.digest.algorithm()) {
            (Kind::Blob, State::Complete | State::Verified, Some(algorithm)) => Some(Hasher::new(algorithm)),
            _ => None,
        },
        next: 0,
        bytes: 0,
        damaged: 0,
        stay: 0,
        pending: Vec::new(),
    };
    scrub.all().map_err(|error| CacheError::io("read", &files.map, error))?;
    let Scrub { whole, next, bytes, damaged, stay, .. } = scrub;
    if damaged > 0 {
        return Ok(Scrubbed { bytes, damage: Some(Damage::Blocks(damaged)), dropped: stay == 0 });
    }
    match whole {
        Some(hasher)
            if status.size.is_some_and(|size| size.div_ceil(BLOCK) == next)
                && hasher.clone().finish() != entry.digest =>
        {
            give_up(sidecar, bytes, Damage::Digest)
        }
        _ => Ok(Scrubbed { bytes, ..Scrubbed::default() }),
    }
}

/// One content that is being read.
struct Scrub<'a> {
    sidecar: &'a Sidecar,
    data: File,
    status: Status,
    /// The hash of all blocks below `next`, as long as they are all here.
    whole: Option<Hasher>,
    next: u64,
    bytes: u64,
    damaged: u64,
    /// Damaged blocks that could not be given up.
    stay: u64,
    /// Damaged blocks that were not given up yet.
    pending: Vec<u64>,
}

impl Scrub<'_> {
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

    fn one(&mut self, block: u64, is_written: bool, record: Option<Record>) -> io::Result<()> {
        let is_sound = match record {
            Some(record) if record.present => self.is_sound(block, &record),
            // Not here, and nobody says that it is.
            Some(_) => return Ok(()),
            None => !is_written,
        };
        // Between two looks for damage it is not ours, and a block may have been evicted.
        let is_gone = || self.sidecar.record(block).is_some_and(|record| !record.present);
        if !is_sound && !is_gone() {
            self.damaged += 1;
            self.pending.push(block);
            if self.pending.len() == AT_ONCE {
                return self.give_up();
            }
        }
        Ok(())
    }

    fn is_sound(&mut self, block: u64, record: &Record) -> bool {
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

    /// The block, if it is what its record says.
    fn read(&self, block: u64, record: &Record) -> Option<Vec<u8>> {
        let start = block.checked_mul(BLOCK)?;
        let expected = match self.status.size {
            Some(size) => size.checked_sub(start)?.min(BLOCK),
            None => BLOCK.min(u64::from(record.len)),
        };
        if expected == 0 || u64::from(record.len) != expected {
            return None;
        }
        // At most the length of a block.
        let mut bytes = vec![0; expected as usize];
        self.data.read_exact_at(&mut bytes, start).ok()?;
        (*blake3::hash(&bytes).as_bytes() == record.sum).then_some(bytes)
    }

    /// Gives up the damaged blocks found so far, unless somebody uses the content.
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
        // If it is being removed, what is left to be read is so all the same: it is unlinked only.
        self.sidecar.join().map_err(busy).map(|_| ())
    }

    fn give_up_alone(&self, pending: Vec<u64>) -> io::Result<()> {
        // Complete means that every block is here; verified, that every checksum is known.
        if self.status.state == State::Complete {
            self.sidecar.advance(State::Partial).map_err(io::Error::other)?;
        }
        for block in pending {
            // It may have been written again since, by a process that is gone now.
            match self.sidecar.record(block) {
                Some(record) if !record.present || self.read(block, &record).is_some() => {}
                Some(record) => self.sidecar.mark_evicted(block, record)?,
                None => self.sidecar.drop_record(block)?,
            }
        }
        Ok(())
    }
}

fn scrub_file(entry: &Entry, used: &Used) -> Result<Scrubbed, CacheError> {
    let Some(mut file) = open_file(&entry.path)? else { return Ok(Scrubbed::default()) };
    let fail = |error| CacheError::io("stat", &entry.path, error);
    let found = file.metadata().map_err(fail)?;
    let is_sound = match entry.kind {
        ItemKind::Document => is_document(&mut file, entry),
        _ => is_sealed(&mut file, &entry.digest),
    };
    // What the disk does not give back is as good as damaged.
    if is_sound.unwrap_or(false) {
        return Ok(Scrubbed { bytes: found.len(), ..Scrubbed::default() });
    }
    let same =
        stat(&entry.path)?.is_some_and(|named| (named.dev(), named.ino()) == (found.dev(), found.ino()));
    let removed = match same {
        // Somebody wrote it anew.
        false => Removed::Absent,
        true if used.touches(entry) => Removed::InUse,
        true => unlink(&entry.path)?,
    };
    Ok(Scrubbed::damaged(found.len(), Damage::File, removed))
}

fn is_document(file: &mut File, entry: &Entry) -> io::Result<bool> {
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
