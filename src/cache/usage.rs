//! Disk usage account: bytes that the cache directory takes, in one small file that all processes share.
//!
//! A process adds to the account before it writes, and subtracts after it removed something. Each change holds a lock
//! for an instant. So a crash in between leaves an account that is too high, and a later count of the files corrects
//! it. A count that ends between the two halves of a change may have seen either half. A [`CountMark`] from before
//! the change shows that; the change then counts as the half that leaves the account too high. A file that fails its
//! check counts as unknown.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;
use super::lock::{LockBackoff, try_lock_byte, unlock_byte};

const MAGIC: &[u8; 8] = b"ocifsuse";
const VERSION: u32 = 1;
const LENGTH: usize = 64;
const CHECKED: usize = 48;
/// Byte lock that guards changes of the file; beyond its end.
const LOCK_AT: u64 = 1 << 62;
/// Tries without a pause: the lock is held for two system calls.
const SPINS: u32 = 200;
/// After this long the holder of the lock counts as stuck, and nothing is stored.
const USAGE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Content of the account file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Bytes of the disk that the directory takes, or is about to take.
    pub(super) used: u64,
    /// Sum of all bytes ever added; a count derives from it how much was written while it ran. Wraps around.
    pub(super) added: u64,
    /// Time of the last count of the files, in seconds since 1970.
    pub(super) counted: u64,
    /// Boot during which that count ran.
    pub(super) boot: [u8; 8],
}

/// The count that an account starts from; a new count of the files changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CountMark(Option<(u64, [u8; 8])>);

impl Usage {
    pub(super) fn mark(&self) -> CountMark {
        CountMark(Some((self.counted, self.boot)))
    }
}

/// The file `account`, opened on first use, and again after a failed open.
pub(super) struct UsageFile {
    path: PathBuf,
    /// Guards the file among threads: the lock between processes belongs to the open file.
    file: Mutex<Option<File>>,
}

impl UsageFile {
    pub(super) fn new(root: &Path) -> Self {
        Self { path: root.join("account"), file: Mutex::default() }
    }

    /// Reads the tally, passes it to `change`, and writes the tally that `change` returns. `None` is an unknown
    /// account: the files have to be counted.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(Option<Usage>) -> (Option<Usage>, T),
    ) -> io::Result<T> {
        let mut slot = lock(&self.file);
        let file = match slot.take() {
            Some(file) => file,
            None => OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&self.path)?,
        };
        take_turn(&file)?;
        let known = read(&file);
        let (next, out) = change(known);
        let written = match next {
            Some(next) if Some(next) != known => file.write_all_at(&encode(&next), 0),
            Some(_) | None => Ok(()),
        };
        unlock_byte(&file, LOCK_AT);
        *slot = Some(file);
        written.map(|()| out)
    }

    /// The count that the account starts from now. Takes no file lock: a mark that is read during a change is
    /// invalid.
    pub(super) fn mark(&self) -> CountMark {
        let slot = lock(&self.file);
        let known = match &*slot {
            Some(file) => read(file),
            None => File::open(&self.path).ok().and_then(|file| read(&file)),
        };
        known.map_or(CountMark(None), |tally| tally.mark())
    }

    /// Subtracts `bytes` that were removed after `since` was read. A count that ended in between may have left them
    /// out already: then the account stays, at worst too high.
    pub(super) fn give_back(&self, bytes: u64, since: CountMark) {
        if bytes == 0 {
            return;
        }
        let subtract = |known: Option<Usage>| {
            let same = known.filter(|tally| tally.mark() == since);
            (same.map(|tally| Usage { used: tally.used.saturating_sub(bytes), ..tally }), ())
        };
        if let Err(error) = self.change(subtract) {
            // The account stays too high until the next count.
            tracing::debug!(%error, path = %self.path.display(), "cannot record bytes removed from the cache");
        }
    }
}

fn take_turn(file: &File) -> io::Result<()> {
    for _ in 0..SPINS {
        if try_lock_byte(file, LOCK_AT)? {
            return Ok(());
        }
        std::thread::yield_now();
    }
    let deadline = Instant::now() + USAGE_LOCK_TIMEOUT;
    let mut backoff = LockBackoff::new();
    while !try_lock_byte(file, LOCK_AT)? {
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the account of the cache is locked by a process that does not release it",
            ));
        }
        std::thread::sleep(backoff.next());
    }
    Ok(())
}

fn read(file: &File) -> Option<Usage> {
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (head, check) = bytes.split_at(CHECKED);
    if !head.starts_with(MAGIC) || blake3::hash(head).as_bytes()[..LENGTH - CHECKED] != *check {
        return None;
    }
    let number = |at: usize| {
        let mut field = [0; 8];
        field.copy_from_slice(&bytes[at..at + 8]);
        field
    };
    if number(8) != u64::from(VERSION).to_le_bytes() {
        return None;
    }
    Some(Usage {
        used: u64::from_le_bytes(number(16)),
        added: u64::from_le_bytes(number(24)),
        counted: u64::from_le_bytes(number(32)),
        boot: number(40),
    })
}

fn encode(tally: &Usage) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&u64::from(VERSION).to_le_bytes());
    bytes[16..24].copy_from_slice(&tally.used.to_le_bytes());
    bytes[24..32].copy_from_slice(&tally.added.to_le_bytes());
    bytes[32..40].copy_from_slice(&tally.counted.to_le_bytes());
    bytes[40..48].copy_from_slice(&tally.boot);
    let check = blake3::hash(&bytes[..CHECKED]);
    bytes[CHECKED..].copy_from_slice(&check.as_bytes()[..LENGTH - CHECKED]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_file_is_shared_and_a_damaged_one_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (UsageFile::new(dir.path()), UsageFile::new(dir.path()));
        let look = |account: &UsageFile| account.change(|known| (None, known)).unwrap();
        assert_eq!(look(&one), None);
        let tally = Usage { used: 70, added: 9, counted: 5, boot: *b"abcdefgh" };
        one.change(|_| (Some(tally), ())).unwrap();
        assert_eq!(look(&other), Some(tally));
        let mark = other.mark();
        other.give_back(20, mark);
        assert_eq!(look(&one), Some(Usage { used: 50, ..tally }));
        other.give_back(200, mark);
        assert_eq!(look(&one).unwrap().used, 0);
        one.change(|_| (Some(Usage { counted: 6, ..tally }), ())).unwrap();
        other.give_back(20, mark);
        assert_eq!(look(&one).unwrap().used, 70, "a count since then left it out, or did not");
        for at in 0..LENGTH as u64 {
            one.change(|_| (Some(tally), ())).unwrap();
            let file = OpenOptions::new().read(true).write(true).open(dir.path().join("account")).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert_eq!(look(&one), None, "byte {at}");
        }
    }

    #[test]
    fn no_addition_of_many_threads_and_open_files_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        UsageFile::new(dir.path()).change(|_| (Some(Usage::default()), ())).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let account = UsageFile::new(dir.path());
                    for _ in 0..500 {
                        let add = |known: Option<Usage>| {
                            (known.map(|tally| Usage { used: tally.used + 3, ..tally }), ())
                        };
                        account.change(add).unwrap();
                    }
                });
            }
        });
        let used = UsageFile::new(dir.path()).change(|known| (None, known.unwrap().used)).unwrap();
        assert_eq!(used, 6000);
    }
}
