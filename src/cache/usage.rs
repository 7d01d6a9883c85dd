//! Disk usage account: bytes that the cache directory takes, in one small file that all processes share.
//!
//! A process adds to the account before it writes, and subtracts after it removed something. Each change holds a lock
//! for an instant. So a crash in between leaves an account that is too high, and a later count of the files corrects
//! it. A count that ends between the two halves of a change may have seen either half. A [`CountMark`] from before
//! the change shows that; the change then counts as the half that leaves the account too high. The doubt sums up by
//! how much the account may be too high. A process holds a lock while it writes, so that a count finds a moment
//! without writers, and reservations of killed processes show. A file that fails its check counts as unknown.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::lock;
use super::lock::{LockBackoff, try_lock_byte, try_share_byte, unlock_byte};

const MAGIC: &[u8; 8] = b"ocifsuse";
const VERSION: u32 = 1;
const LENGTH: usize = 64;
const CHECKED: usize = 48;
/// The doubt lies behind the bytes that every version knows, and has a check of its own.
const DOUBT_AT: usize = LENGTH;
const DOUBT_CHECK_AT: usize = LENGTH + 8;
const WHOLE: usize = LENGTH + 16;
/// Byte lock that guards changes of the file; beyond its end.
const LOCK_AT: u64 = 1 << 62;
/// Read lock: reserved bytes are being written. Write lock, for an instant: no process writes.
const WRITERS_AT: u64 = (1 << 62) + 1;
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
    /// Bytes by which `used` may exceed the disk use: reserved and not yet confirmed, removed and not yet subtracted,
    /// or added to be safe.
    pub(super) doubt: u64,
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
    writers: Mutex<WriterCount>,
}

/// Writers of this process, and the open file that holds their lock, which is opened by the first.
#[derive(Default)]
struct WriterCount {
    count: usize,
    file: Option<File>,
}

/// A writer of this process, from before its reservation until its bytes are written or given up; or a remover.
pub(super) struct ActiveWriter<'a>(&'a UsageFile);

impl Drop for ActiveWriter<'_> {
    fn drop(&mut self) {
        let mut writers = lock(&self.0.writers);
        writers.count -= 1;
        if let (0, Some(file)) = (writers.count, &writers.file) {
            unlock_byte(file, WRITERS_AT);
        }
    }
}

/// Bytes in the account that are about to be written. Without a settlement they count as written, and as doubtful.
pub(super) struct SpaceReservation<'a> {
    writer: ActiveWriter<'a>,
    bytes: u64,
    since: CountMark,
}

impl<'a> SpaceReservation<'a> {
    /// `bytes` that were added to the account when it started from the count `since`.
    pub(super) fn new(writer: ActiveWriter<'a>, bytes: u64, since: CountMark) -> Self {
        Self { writer, bytes, since }
    }

    /// All bytes are written.
    pub(super) fn confirm(self) {
        self.settle(0);
    }

    /// Nothing is written.
    pub(super) fn give_back(self) {
        let all = self.bytes;
        self.settle(all);
    }

    /// All bytes but `unwritten` are written. A count that ended since may have missed them: then they are added
    /// again, and nothing is subtracted.
    pub(super) fn settle(self, unwritten: u64) {
        let written = self.bytes.saturating_sub(unwritten);
        let settle = |tally: Usage| match tally.mark() == self.since {
            true => Usage {
                used: tally.used.saturating_sub(unwritten),
                doubt: tally.doubt.saturating_sub(self.bytes),
                ..tally
            },
            false => Usage {
                used: tally.used.saturating_add(written),
                added: tally.added.wrapping_add(written),
                doubt: tally.doubt.saturating_sub(self.bytes).saturating_add(written),
                ..tally
            },
        };
        self.writer.0.note(|known| known.map(settle));
    }
}

/// A removal of files or blocks. Without a settlement their bytes stay in the account, as doubtful.
pub(super) struct SpaceRemoval<'a> {
    writer: ActiveWriter<'a>,
    expected: u64,
    since: CountMark,
}

impl SpaceRemoval<'_> {
    /// Subtracts `bytes` that were removed. A count that ended meanwhile may have left them out already: then the
    /// account stays, at worst too high.
    pub(super) fn finish(self, bytes: u64) {
        let subtract = |tally: Usage| {
            let doubt = tally.doubt.saturating_sub(self.expected);
            match tally.mark() == self.since {
                true => Usage { used: tally.used.saturating_sub(bytes), doubt, ..tally },
                false => Usage { doubt: doubt.saturating_add(bytes), ..tally },
            }
        };
        self.writer.0.note(|known| known.map(subtract));
    }
}

impl UsageFile {
    pub(super) fn new(root: &Path) -> Self {
        Self { path: root.join("account"), file: Mutex::default(), writers: Mutex::default() }
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

    /// Begins a write, before its bytes are reserved. Where the lock cannot be taken, a count may miss the bytes until
    /// they are confirmed.
    pub(super) fn begin_write(&self) -> ActiveWriter<'_> {
        let mut writers = lock(&self.writers);
        writers.count += 1;
        if writers.count == 1
            && let Some(file) = writers.opened(&self.path)
        {
            // A count holds the lock for an instant.
            let mut tries = 0..SPINS;
            while matches!(try_share_byte(file, WRITERS_AT), Ok(false)) && tries.next().is_some() {
                std::thread::yield_now();
            }
        }
        ActiveWriter(self)
    }

    /// Begins the removal of about `expected` bytes, before the first of them goes.
    pub(super) fn begin_removal(&self, expected: u64) -> SpaceRemoval<'_> {
        let writer = self.begin_write();
        let mut since = CountMark::default();
        self.note(|known| {
            let tally = known?;
            since = tally.mark();
            Some(Usage { doubt: tally.doubt.saturating_add(expected), ..tally })
        });
        SpaceRemoval { writer, expected, since }
    }

    /// Whether no process writes or removes at this moment.
    pub(super) fn is_quiet(&self) -> bool {
        let mut writers = lock(&self.writers);
        if writers.count > 0 {
            return false;
        }
        let Some(file) = writers.opened(&self.path) else { return false };
        let alone = try_lock_byte(file, WRITERS_AT).unwrap_or(false);
        if alone {
            unlock_byte(file, WRITERS_AT);
        }
        alone
    }

    /// Adds bytes that are written in any case.
    pub(super) fn charge(&self, bytes: u64) {
        let add = |tally: Usage| Usage {
            used: tally.used.saturating_add(bytes),
            added: tally.added.wrapping_add(bytes),
            ..tally
        };
        self.note(|known| known.map(add));
    }

    /// Changes the account, which stays as it is where that fails: the next count corrects it.
    fn note(&self, change: impl FnOnce(Option<Usage>) -> Option<Usage>) {
        if let Err(error) = self.change(|known| (change(known), ())) {
            tracing::debug!(%error, path = %self.path.display(), "cannot record a change of the cache");
        }
    }
}

impl WriterCount {
    /// The open file of the account; `None` where it cannot be opened.
    fn opened(&mut self, path: &Path) -> Option<&File> {
        if self.file.is_none() {
            self.file = OpenOptions::new().read(true).write(true).open(path).ok();
        }
        self.file.as_ref()
    }
}

/// The time in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// This boot of the machine: after a power cut the account may lack the latest additions.
pub(super) fn boot() -> [u8; 8] {
    let mut out = [0; 8];
    if let Ok(id) = std::fs::read("/proc/sys/kernel/random/boot_id") {
        out.copy_from_slice(&blake3::hash(&id).as_bytes()[..8]);
    }
    out
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
    let mut whole = [0; WHOLE];
    file.read_exact_at(&mut whole[..LENGTH], 0).ok()?;
    let has_doubt = file.read_exact_at(&mut whole[LENGTH..], LENGTH as u64).is_ok()
        && blake3::hash(&whole[..DOUBT_CHECK_AT]).as_bytes()[..8] == whole[DOUBT_CHECK_AT..];
    let bytes = &whole[..LENGTH];
    let (head, check) = bytes.split_at(CHECKED);
    if !head.starts_with(MAGIC) || blake3::hash(head).as_bytes()[..LENGTH - CHECKED] != *check {
        return None;
    }
    let number = |at: usize| {
        let mut field = [0; 8];
        field.copy_from_slice(&whole[at..at + 8]);
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
        // A program that does not know the doubt has written since.
        doubt: if has_doubt { u64::from_le_bytes(number(DOUBT_AT)) } else { u64::MAX },
    })
}

fn encode(tally: &Usage) -> [u8; WHOLE] {
    let mut bytes = [0; WHOLE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&u64::from(VERSION).to_le_bytes());
    bytes[16..24].copy_from_slice(&tally.used.to_le_bytes());
    bytes[24..32].copy_from_slice(&tally.added.to_le_bytes());
    bytes[32..40].copy_from_slice(&tally.counted.to_le_bytes());
    bytes[40..48].copy_from_slice(&tally.boot);
    let check = blake3::hash(&bytes[..CHECKED]);
    bytes[CHECKED..LENGTH].copy_from_slice(&check.as_bytes()[..LENGTH - CHECKED]);
    bytes[DOUBT_AT..DOUBT_CHECK_AT].copy_from_slice(&tally.doubt.to_le_bytes());
    let check = blake3::hash(&bytes[..DOUBT_CHECK_AT]);
    bytes[DOUBT_CHECK_AT..].copy_from_slice(&check.as_bytes()[..WHOLE - DOUBT_CHECK_AT]);
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
        let tally = Usage { used: 70, added: 9, counted: 5, boot: *b"abcdefgh", doubt: 3 };
        one.change(|_| (Some(tally), ())).unwrap();
        assert_eq!(look(&other), Some(tally));
        other.begin_removal(20).finish(20);
        assert_eq!(look(&one), Some(Usage { used: 50, ..tally }));
        other.begin_removal(20).finish(200);
        assert_eq!(look(&one), Some(Usage { used: 0, ..tally }));
        let removal = other.begin_removal(30);
        assert_eq!(look(&one).unwrap().doubt, 33);
        one.change(|_| (Some(Usage { counted: 6, ..tally }), ())).unwrap();
        removal.finish(20);
        let now = look(&one).unwrap();
        assert_eq!((now.used, now.doubt), (70, 20), "a count since then left it out, or did not");
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
