//! Sweep of a cache directory: removes named contents, least recently used ones, and needless files.
//!
//! Contents are removed through [`remove`], which proves that no process has them open. Removing the oldest holds the
//! names of a bounded number of them, and then walks again. Files whose names are unknown to this program stay, and
//! so does everything outside `v1`.

use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::derived::{forget, forget_decoded};
use super::files::BlockPaths;
use super::inventory::{
    AuxiliaryFile, CacheInventory, ContentItem, ContentName, OpenContents, ScannedFile, stat,
};
use super::layout::ItemKind;
use super::lock::try_alone;
use super::remove::{RemoveOutcome, occupied, on_disk, remove, remove_if};
use super::sidecar::{ContentKind, SidecarFile, VerificationState};
use super::store::TMP_AGE;
use super::usage::UsageFile;
use super::{CacheError, ephemeral};

/// Number of names held of the least recently used contents.
const OLDEST: usize = 8192;

/// Limits for unused contents.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrunePolicy {
    /// Removes contents that were not used for so long; `None`: no limit by age.
    pub older_than: Option<Duration>,
    /// Removes the least recently used contents until the rest takes at most so many disk bytes; `None`: no limit.
    pub keep: Option<u64>,
}

/// Result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Number of removed contents or files.
    pub removed: u64,
    /// Disk bytes that they took.
    pub bytes: u64,
    /// Number of selected contents that are in use and stay.
    pub in_use: u64,
}

/// Reason why a file is needless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GarbageReason {
    /// Its writer died.
    Stale,
    /// The shared content is present, so the one of this origin is not read.
    Superseded,
    /// No process decodes this layer.
    Unlocked,
    /// A sidecar without data, or data without a sidecar.
    Half,
    /// Its bytes do not match its digest.
    Poisoned,
    /// The blob that it was decoded from, or that it proves, is gone.
    Orphaned,
    /// The private cache of a process that was killed.
    Left,
}

impl GarbageReason {
    /// In a few words, for people.
    pub fn name(self) -> &'static str {
        match self {
            GarbageReason::Stale => "left by a crashed writer",
            GarbageReason::Superseded => "shared copy exists",
            GarbageReason::Unlocked => "lock without a holder",
            GarbageReason::Half => "data or sidecar is missing",
            GarbageReason::Poisoned => "poisoned",
            GarbageReason::Orphaned => "its blob is not cached",
            GarbageReason::Left => "left by a killed process",
        }
    }
}

impl GcReport {
    fn note(&mut self, removed: RemoveOutcome) -> Option<u64> {
        match removed {
            RemoveOutcome::Gone(bytes) => {
                self.removed += 1;
                self.bytes += bytes;
                return Some(bytes);
            }
            RemoveOutcome::InUse => self.in_use += 1,
            RemoveOutcome::Absent => {}
        }
        None
    }
}

impl CacheInventory {
    /// Removes the contents for which `wanted` holds. Reports each with its disk bytes, or `None` when it is in use
    /// and stays.
    pub fn remove(
        &self,
        wanted: impl Fn(&ContentName) -> bool,
        mut tell: impl FnMut(&ContentName, Option<u64>),
    ) -> Result<GcReport, CacheError> {
        let used = self.used()?;
        let account = UsageFile::new(&self.root);
        let mut swept = GcReport::default();
        self.walk(|found| {
            if let ScannedFile::Content(entry) = found
                && wanted(&entry)
            {
                let removed = self.remove_one(&entry, &used, &account)?;
                let bytes = swept.note(removed);
                if removed != RemoveOutcome::Absent {
                    tell(&entry, bytes);
                }
            }
            Ok(ControlFlow::<()>::Continue(()))
        })?;
        Ok(swept)
    }

    fn remove_one(
        &self,
        entry: &ContentName,
        used: &OpenContents,
        account: &UsageFile,
    ) -> Result<RemoveOutcome, CacheError> {
        if entry.kind.paired().is_none() {
            return match used.touches(entry) {
                true => Ok(RemoveOutcome::InUse),
                false => counted(account, on_disk(&entry.path), || unlink(&entry.path)),
            };
        }
        let files = entry.files();
        let removed = counted(account, files.on_disk(), || remove(&files))?;
        // Streams decoded from this copy of the blob are not read any more.
        Ok(match (removed, entry.kind, &entry.place) {
            (RemoveOutcome::Gone(bytes), ItemKind::Blob, Some(place)) => {
                RemoveOutcome::Gone(bytes + forget_decoded(&self.root, &entry.digest, place, account))
            }
            (removed, ..) => removed,
        })
    }

    /// Removes contents that were not used for long, the least recently used first.
    pub fn prune(
        &self,
        limits: PrunePolicy,
        mut tell: impl FnMut(&ContentName, u64),
    ) -> Result<GcReport, CacheError> {
        let used = self.used()?;
        let account = UsageFile::new(&self.root);
        let mut total = 0;
        self.each_item(&used, |item| total += item.on_disk)?;
        let before = limits.older_than.map(|age| now().saturating_sub(age.as_secs()));
        let mut swept = GcReport::default();
        loop {
            let is_old = |last_used: u64| before.is_some_and(|before| last_used < before);
            let is_too_much = |total: u64| limits.keep.is_some_and(|keep| total > keep);
            if before.is_none() && !is_too_much(total) {
                return Ok(swept);
            }
            // The youngest of the oldest is on top.
            let mut oldest = BinaryHeap::new();
            self.each_item(&used, |item| {
                if !item.in_use && (is_old(item.last_used) || is_too_much(total)) {
                    oldest.push((item.last_used, item.entry));
                    if oldest.len() > OLDEST {
                        oldest.pop();
                    }
                }
            })?;
            let (found, before_round) = (oldest.len(), swept.removed);
            for (last_used, entry) in oldest.into_sorted_vec() {
                if !is_old(last_used) && !is_too_much(total) {
                    return Ok(swept);
                }
                if let Some(bytes) = swept.note(self.remove_one(&entry, &used, &account)?) {
                    total = total.saturating_sub(bytes);
                    tell(&entry, bytes);
                }
            }
            if found < OLDEST || swept.removed == before_round {
                return Ok(swept);
            }
        }
    }

    fn each_item(&self, used: &OpenContents, mut visit: impl FnMut(ContentItem)) -> Result<(), CacheError> {
        self.walk(|found| {
            if let ScannedFile::Content(entry) = found
                && let Some(item) = self.look(&entry, used)?
            {
                visit(item);
            }
            Ok(ControlFlow::<()>::Continue(()))
        })
        .map(|_| ())
    }

    /// Removes needless files, and reports each file or content with the reason and its disk bytes.
    pub fn collect(&self, mut tell: impl FnMut(&Path, GarbageReason, u64)) -> Result<GcReport, CacheError> {
        let used = self.used()?;
        let account = UsageFile::new(&self.root);
        let mut swept = GcReport::default();
        self.walk(|found| {
            let (path, reason, removed) = match found {
                ScannedFile::Content(entry) => match self.collect_content(&entry, &used, &account)? {
                    Some((reason, removed)) => (entry.path, reason, removed),
                    None => return Ok(ControlFlow::<()>::Continue(())),
                },
                ScannedFile::Other(AuxiliaryFile::Temporary(path)) if is_older(&path, TMP_AGE)? => {
                    let removed = counted(&account, on_disk(&path), || unlink(&path))?;
                    (path, GarbageReason::Stale, removed)
                }
                ScannedFile::Other(AuxiliaryFile::Lock(path)) => match remove_lock(&path)? {
                    // A process is decoding the layer.
                    RemoveOutcome::InUse => return Ok(ControlFlow::Continue(())),
                    removed => (path, GarbageReason::Unlocked, removed),
                },
                // Private caches have accounts of their own.
                ScannedFile::Other(AuxiliaryFile::Private(path)) => match ephemeral::remove_left(&path)? {
                    Some(bytes) => (path, GarbageReason::Left, RemoveOutcome::Gone(bytes)),
                    None => return Ok(ControlFlow::Continue(())),
                },
                ScannedFile::Other(AuxiliaryFile::Temporary(_)) | ScannedFile::Unknown(_) => {
                    return Ok(ControlFlow::Continue(()));
                }
            };
            if let Some(bytes) = swept.note(removed) {
                tell(&path, reason, bytes);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(swept)
    }

    fn collect_content(
        &self,
        entry: &ContentName,
        used: &OpenContents,
        account: &UsageFile,
    ) -> Result<Option<(GarbageReason, RemoveOutcome)>, CacheError> {
        let Some(kind) = entry.kind.paired() else {
            let reason = match entry.kind {
                ItemKind::Offer if self.is_learnt(entry) => GarbageReason::Superseded,
                // It admits its origin to the blob, and to the names in the index.
                ItemKind::Proof if !self.is_learnt(entry) && !self.has_shared(entry)? => {
                    GarbageReason::Orphaned
                }
                _ => return Ok(None),
            };
            return Ok(Some((reason, self.remove_one(entry, used, account)?)));
        };
        let files = entry.files();
        let (data, map) = (stat(&files.data)?, stat(&files.map)?);
        if map.is_none() || data.is_none() {
            // The data gets its final name a moment before its sidecar does.
            if map.is_none() && data.is_some_and(|data| !is_past(data.ctime(), TMP_AGE)) {
                return Ok(None);
            }
            return Ok(Some((GarbageReason::Half, counted(account, files.on_disk(), || remove(&files))?)));
        }
        if self.is_superseded(entry)? {
            return Ok(Some((
                GarbageReason::Superseded,
                counted(account, files.on_disk(), || remove(&files))?,
            )));
        }
        let is_poisoned = |sidecar: &SidecarFile| {
            sidecar.is_whole(kind, &entry.digest).unwrap_or(false)
                && sidecar.status().is_some_and(|status| status.state == VerificationState::Poisoned)
        };
        match SidecarFile::existing(&files.map, kind, &entry.digest)? {
            Some(sidecar) if is_poisoned(&sidecar) => {
                let mut removed =
                    counted(account, files.on_disk(), || remove_if(&files, |_| is_poisoned(&sidecar)))?;
                if let (RemoveOutcome::Gone(bytes), ItemKind::Blob, Some(place)) =
                    (&mut removed, entry.kind, &entry.place)
                {
                    *bytes += forget(&self.root, &entry.digest, place, account);
                }
                Ok(Some((GarbageReason::Poisoned, removed)))
            }
            _ if self.is_orphaned(entry)? => {
                Ok(Some((GarbageReason::Orphaned, counted(account, files.on_disk(), || remove(&files))?)))
            }
            _ => Ok(None),
        }
    }

    /// Whether readers of this content read the shared one instead.
    fn is_superseded(&self, entry: &ContentName) -> Result<bool, CacheError> {
        match (entry.kind, &entry.place) {
            (ItemKind::Blob, Some(_)) => {}
            // Readers that have the index of the layer read the stream that belongs to it.
            (ItemKind::Stream, Some(_)) | (ItemKind::Claim, _) => return Ok(self.is_learnt(entry)),
            // Of an older form, which no reader opens.
            (ItemKind::Stream, None) => return Ok(entry.part.is_none()),
            _ => return Ok(false),
        }
        let files = BlockPaths::of(self.shared("blobs", entry));
        let Some(sidecar) = SidecarFile::existing(&files.map, ContentKind::Blob, &entry.digest)? else {
            return Ok(false);
        };
        Ok(stat(&files.data)?.is_some()
            && sidecar.is_whole(ContentKind::Blob, &entry.digest).unwrap_or(false)
            && sidecar.is_verified())
    }

    /// Whether the copy of the blob that this was decoded from is gone.
    fn is_orphaned(&self, entry: &ContentName) -> Result<bool, CacheError> {
        let (ItemKind::Stream | ItemKind::Claim, Some(place)) = (entry.kind, &entry.place) else {
            return Ok(false);
        };
        let shared = self.shared("blobs", entry);
        let mut scoped = shared.clone().into_os_string();
        scoped.push(format!(".{place}"));
        for data in [shared, scoped.into()] {
            if stat(&BlockPaths::of(data).map)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether there is a copy of the blob that serves all origins.
    fn has_shared(&self, entry: &ContentName) -> Result<bool, CacheError> {
        Ok(stat(&BlockPaths::of(self.shared("blobs", entry)).map)?.is_some())
    }

    /// Whether there is an index of the layer that was made on this machine.
    fn is_learnt(&self, entry: &ContentName) -> bool {
        let index = self.shared("indexes", entry);
        index.exists() || index.with_extension("stream").exists()
    }

    fn shared(&self, directory: &str, entry: &ContentName) -> PathBuf {
        self.root.join(directory).join(entry.digest.algorithm_name()).join(entry.digest.encoded())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether that time, in seconds since 1970, is longer ago than `age`. A future time is not.
fn is_past(time: i64, age: Duration) -> bool {
    u64::try_from(time).is_ok_and(|time| now().saturating_sub(time) > age.as_secs())
}

fn is_older(path: &Path, age: Duration) -> Result<bool, CacheError> {
    Ok(stat(path)?.is_some_and(|found| found.is_file() && is_past(found.mtime(), age)))
}

/// Removes `expected` bytes of the disk, and subtracts them from the account at once, so that a killed command has
/// recorded its part.
fn counted(
    account: &UsageFile,
    expected: u64,
    remove: impl FnOnce() -> Result<RemoveOutcome, CacheError>,
) -> Result<RemoveOutcome, CacheError> {
    let removal = account.begin_removal(expected);
    let removed = remove();
    removal.finish(match &removed {
        Ok(RemoveOutcome::Gone(bytes)) => *bytes,
        Ok(RemoveOutcome::InUse | RemoveOutcome::Absent) | Err(_) => 0,
    });
    removed
}

/// Removes one plain file without a lock.
pub(super) fn unlink(path: &Path) -> Result<RemoveOutcome, CacheError> {
    let Some(found) = stat(path)? else { return Ok(RemoveOutcome::Absent) };
    match fs::remove_file(path) {
        Ok(()) => Ok(RemoveOutcome::Gone(occupied(&found))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RemoveOutcome::Absent),
        Err(error) => Err(CacheError::io("remove", path, error)),
    }
}

/// Removes a lock file unless a process holds the lock. A process that waits for it sees that the file has no name
/// any more.
fn remove_lock(path: &Path) -> Result<RemoveOutcome, CacheError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RemoveOutcome::Absent),
        Err(error) => return Err(CacheError::io("open", path, error)),
    };
    if try_alone(&file, path)? { unlink(path) } else { Ok(RemoveOutcome::InUse) }
}
