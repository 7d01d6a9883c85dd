//! Handover journal: the facts that another process needs to take a mount over.
//!
//! Contains no content and no secret. It is an anonymous file that outlives its process beside the descriptor of the
//! mount. Each fact that the kernel holds and another process could not find out is a line: the digest, the
//! directory, and the meaning of the numbers of each subtree. The file only grows, by whole lines, so a process can
//! end at any moment. Each line begins with a hash of itself and of the line before it, so a changed, lost or moved
//! line is detected.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::io::{FaultClass, ReadError, lock};
use crate::view::InodeCheck;

/// The version of the journal format.
const FORMAT: u32 = 2;

/// The longest journal that is accepted: 100,000 subtrees.
const MAX_BYTES: u64 = 16 << 20;

/// Digits of the hash at the start of a line.
const HASH_DIGITS: usize = 16;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
enum JournalLine {
    /// The first line: the reference in the caller's words, and the pinned reference that it resolved to.
    Begun { format: u32, asked: String, pinned: String },
    /// The mount point, with the device number from the kernel.
    Mounted { dir: Vec<u8>, major: u32, minor: u32 },
    /// The kernel serves the mount from an EROFS image with this identity.
    Image { identity: [u8; 32] },
    /// One more process serves the mount.
    TakenOver,
    /// The fingerprint of a subtree.
    Subtree { number: u32, fingerprint: [u8; 32] },
}

/// A mount point and its device number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HandoverPlace {
    pub(super) dir: PathBuf,
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// The journal of one mount.
#[derive(Debug)]
pub struct HandoverJournal {
    file: File,
    asked: String,
    pinned: String,
    /// Guards the end of the file, and that `known` covers each line in it.
    known: Mutex<KnownState>,
}

#[derive(Debug, Default)]
struct KnownState {
    len: u64,
    /// The hash of the last line.
    hash: Vec<u8>,
    place: Option<HandoverPlace>,
    image: Option<[u8; 32]>,
    processes: u64,
    subtrees: HashMap<u32, [u8; 32]>,
}

impl HandoverJournal {
    /// Starts the journal of a mount of `asked`, resolved to `pinned`.
    pub fn new(asked: &str, pinned: &str) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("ocifs", MemfdFlags::CLOEXEC)?);
        let (asked, pinned) = (asked.to_owned(), pinned.to_owned());
        let record = Self { file, asked, pinned, known: Mutex::default() };
        let Self { asked, pinned, .. } = &record;
        let line = JournalLine::Begun { format: FORMAT, asked: asked.clone(), pinned: pinned.clone() };
        record.append(&mut record.known(), &line)?;
        Ok(record)
    }

    /// Reads the journal of another process.
    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let file = File::from(file);
        let len = file.metadata()?.len();
        if len > MAX_BYTES {
            return Err(bad("the record is too long"));
        }
        let mut text = vec![0; len as usize];
        file.read_exact_at(&mut text, 0)?;
        // The process ended while it wrote the bytes behind the last whole line.
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        file.set_len(text.len() as u64)?;
        let mut known = KnownState { len: text.len() as u64, ..KnownState::default() };
        let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
            let (hash, json) =
                line.split_at_checked(HASH_DIGITS).ok_or_else(|| bad("the record is damaged"))?;
            match hash_of(&known.hash, json) == hash {
                true => known.hash = hash.to_owned(),
                false => return Err(bad("the record is damaged")),
            }
            Ok(serde_json::from_slice::<JournalLine>(json)?)
        });
        let first = lines.next().ok_or_else(|| bad("the record is empty"))??;
        let JournalLine::Begun { format: FORMAT, asked, pinned } = first else {
            return Err(bad("the record has another form"));
        };
        let rest = lines.collect::<io::Result<Vec<_>>>()?;
        rest.iter().for_each(|line| known.learn(line));
        Ok(Self { file, asked, pinned, known: Mutex::new(known) })
    }

    /// The requested reference, in the words of the caller.
    pub fn asked(&self) -> &str {
        &self.asked
    }

    /// The reference with the digest that it resolved to.
    pub fn pinned(&self) -> &str {
        &self.pinned
    }

    /// Where it is mounted; `None` before the mount.
    pub(super) fn place(&self) -> Option<HandoverPlace> {
        self.known().place.clone()
    }

    /// Identity of the EROFS image from which the kernel serves the mount; `None` if FUSE serves it.
    pub fn image(&self) -> Option<[u8; 32]> {
        self.known().image
    }

    /// Records that the kernel serves the mount from an image.
    pub(super) fn note_image(&self, identity: [u8; 32]) -> io::Result<()> {
        self.append(&mut self.known(), &JournalLine::Image { identity })
    }

    /// Number of processes that served it before this one.
    pub(super) fn earlier(&self) -> u64 {
        self.known().processes
    }

    /// Records the mount point.
    pub(super) fn mounted(&self, dir: &Path, major: u32, minor: u32) -> io::Result<()> {
        let dir = dir.as_os_str().as_bytes().to_vec();
        self.append(&mut self.known(), &JournalLine::Mounted { dir, major, minor })
    }

    /// Records that another process serves it from now on.
    pub(super) fn taken_over(&self) -> io::Result<()> {
        self.append(&mut self.known(), &JournalLine::TakenOver)
    }

    /// Records every subtree, and rejects one that differs from its record.
    pub fn witness(self: &Arc<Self>) -> InodeCheck {
        let record = Arc::clone(self);
        Box::new(move |number, fingerprint| {
            let mut known = record.known();
            match known.subtrees.get(&number) {
                Some(before) if *before == fingerprint => Ok(()),
                Some(_) => Err(ReadError::new(
                    FaultClass::Mismatch,
                    "inode numbers that the kernel has from an earlier process would mean other files",
                )),
                None => record.append(&mut known, &JournalLine::Subtree { number, fingerprint }).map_err(
                    |error| {
                        ReadError::caused(FaultClass::Io, "cannot record the inode numbers of a mount", error)
                    },
                ),
            }
        })
    }

    fn append(&self, known: &mut KnownState, line: &JournalLine) -> io::Result<()> {
        let json = serde_json::to_vec(line)?;
        let hash = hash_of(&known.hash, &json);
        let text = [&hash[..], &json, b"\n"].concat();
        self.file.write_all_at(&text, known.len)?;
        known.len += text.len() as u64;
        known.hash = hash;
        known.learn(line);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, KnownState> {
        lock(&self.known)
    }
}

/// The hash of a line that follows one with the hash `before`.
fn hash_of(before: &[u8], json: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(json);
    hasher.finalize().to_hex().as_bytes()[..HASH_DIGITS].to_vec()
}

impl AsFd for HandoverJournal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl KnownState {
    fn learn(&mut self, line: &JournalLine) {
        match line {
            JournalLine::Begun { .. } => {}
            JournalLine::Mounted { dir, major, minor } => {
                let dir = PathBuf::from(std::ffi::OsString::from_vec(dir.clone()));
                self.place = Some(HandoverPlace { dir, major: *major, minor: *minor });
            }
            JournalLine::Image { identity } => self.image = Some(*identity),
            JournalLine::TakenOver => self.processes += 1,
            JournalLine::Subtree { number, fingerprint } => {
                self.subtrees.insert(*number, *fingerprint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(record: &HandoverJournal) -> HandoverJournal {
        HandoverJournal::read(record.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn next_process_reads_the_journal_of_the_last_one() {
        let record = Arc::new(HandoverJournal::new("ocifs mount x", "x@sha256:1").unwrap());
        assert_eq!((record.place(), record.earlier()), (None, 0));
        record.mounted(Path::new("/a b"), 0, 57).unwrap();
        record.witness()(7, [1; 32]).unwrap();
        let next = Arc::new(again(&record));
        assert_eq!((next.asked(), next.pinned()), ("ocifs mount x", "x@sha256:1"));
        assert_eq!(next.place(), Some(HandoverPlace { dir: "/a b".into(), major: 0, minor: 57 }));
        assert_eq!(next.image(), None);
        next.note_image([7; 32]).unwrap();
        assert_eq!(again(&next).image(), Some([7; 32]));
        next.taken_over().unwrap();
        assert!(next.witness()(7, [1; 32]).is_ok());
        assert!(next.witness()(7, [2; 32]).is_err());
        assert!(next.witness()(8, [2; 32]).is_ok());
        let third = Arc::new(again(&next));
        assert_eq!(third.earlier(), 1);
        assert!(third.witness()(8, [3; 32]).is_err());
    }

    #[test]
    fn a_line_that_was_not_finished_is_as_if_it_was_not_begun() {
        let record = Arc::new(HandoverJournal::new("a", "b").unwrap());
        record.witness()(1, [1; 32]).unwrap();
        let len = record.known().len;
        record.file.write_all_at(b"{\"Subtree\":{\"num", len).unwrap();
        let next = Arc::new(again(&record));
        assert_eq!(next.known().len, len);
        assert!(next.witness()(1, [2; 32]).is_err());
        next.witness()(2, [2; 32]).unwrap();
        assert!(Arc::new(again(&next)).witness()(2, [1; 32]).is_err());
    }

    #[test]
    fn a_bit_that_flipped_anywhere_and_a_line_that_is_missing_are_noticed() {
        let record = Arc::new(HandoverJournal::new("a", "b").unwrap());
        record.mounted(Path::new("/m"), 0, 1).unwrap();
        record.witness()(1, [1; 32]).unwrap();
        let mut text = vec![0; record.known().len as usize];
        record.file.read_exact_at(&mut text, 0).unwrap();
        let read = |text: &[u8]| {
            let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&file, text).unwrap();
            HandoverJournal::read(file)
        };
        assert!(read(&text).is_ok());
        // The end of the last line is what tells that it is whole.
        for at in 0..text.len() - 1 {
            let mut flipped = text.clone();
            flipped[at] ^= 4;
            assert!(read(&flipped).is_err(), "byte {at}");
        }
        let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
        assert!(read(&[lines[0], lines[2]].concat()).is_err());
    }

    #[test]
    fn malformed_handover_record_is_refused() {
        let whole = |json: &str| [&hash_of(b"", json.as_bytes())[..], json.as_bytes(), b"\n"].concat();
        for text in [
            b"".to_vec(),
            b"\n\n".to_vec(),
            b"{}\n".to_vec(),
            b"\xff\n".to_vec(),
            whole("{}"),
            whole("{\"Begun\":{\"format\":1,\"asked\":\"\",\"pinned\":\"\"}}"),
            whole("\"TakenOver\""),
        ] {
            let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&file, &text).unwrap();
            assert!(HandoverJournal::read(file).is_err(), "{text:?}");
        }
    }
}
