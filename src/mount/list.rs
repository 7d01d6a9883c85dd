//! Lists ocifs mounts and reads the status of one.
//!
//! Read-only. The kernel's mount table names the mounts, and each mount reports its own state, whichever process
//! serves it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::statfs::statfs;

use crate::image::ImageStatus;
use crate::view::{STATUS, unpack_status};

use super::dead_mount;
use super::error::MountError;
use super::mount_table::{self, MountEntry};

/// One ocifs mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMount {
    /// The mount point.
    pub dir: PathBuf,
    /// The reference with its digest, or the reference as written when the mount does not answer.
    pub reference: String,
    /// Whether it is served.
    pub state: MountState,
}

/// Whether a mount is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountState {
    /// The mount answers.
    Served,
    /// The mount answers, and waits for its registry.
    Waiting,
    /// The process of the mount is gone.
    Dead,
    /// The mount does not answer, belongs to another user, or is hidden by another mount.
    Unknown,
}

/// How long a mount may take to answer. A served mount answers from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// All ocifs mounts that this process sees, in mount order. A mount that does not answer delays no other: its query
/// waits on a thread of its own, which ends with the answer or with the process.
pub fn list() -> Result<Vec<ListedMount>, MountError> {
    listed(|_| true)
}

/// The ocifs mounts at `dir`, in mount order. Other mounts are not asked.
pub fn list_at(dir: &Path) -> Result<Vec<ListedMount>, MountError> {
    listed(|entry| entry == dir)
}

fn listed(is_wanted: impl Fn(&Path) -> bool) -> Result<Vec<ListedMount>, MountError> {
    let table = mount_table::table()?;
    let ours = table.iter().enumerate().filter(|(_, entry)| entry.is_ours() && is_wanted(&entry.dir));
    let mut listed = Vec::new();
    let (answer, answers) = mpsc::channel();
    for (at, entry) in ours {
        let number = listed.len();
        listed.push(ListedMount {
            dir: entry.dir.clone(),
            reference: entry.source.clone(),
            state: MountState::Unknown,
        });
        // Of several mounts at one directory only the last is visible.
        if table[at + 1..].iter().any(|other| other.dir == entry.dir) {
            continue;
        }
        let (entry, answer) = (entry.clone(), answer.clone());
        let asked = std::thread::Builder::new().name("ask".into()).spawn(move || {
            // The send fails when the caller has stopped waiting.
            let state = state(&entry.dir);
            answer.send((number, state, None)).ok();
            if state == MountState::Served {
                let state = if mount_table::is_waiting(&entry.dir) { MountState::Waiting } else { state };
                answer.send((number, state, mount_table::pinned_at(&entry))).ok();
            }
        });
        if let Err(error) = asked {
            tracing::debug!(%error, "cannot query the state of a mount");
        }
    }
    drop(answer);
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let left = || deadline.saturating_duration_since(Instant::now());
    while let Ok((number, state, reference)) = answers.recv_timeout(left()) {
        listed[number].state = state;
        if let Some(reference) = reference {
            listed[number].reference = reference;
        }
    }
    Ok(listed)
}

fn state(dir: &Path) -> MountState {
    match statfs(dir) {
        _ if dead_mount::is_dead(dir) => MountState::Dead,
        Ok(_) => MountState::Served,
        Err(_) => MountState::Unknown,
    }
}

/// The status of the mount at `dir`: from an extended attribute of its root, or by the record of a kernel-served
/// mount.
pub fn status(dir: &Path) -> Result<ImageStatus, MountError> {
    let owned = dir.to_owned();
    let failed = |source| MountError::Status { dir: owned.clone(), source };
    let (answer, answers) = mpsc::channel();
    let asked = owned.clone();
    // Without a server even the lookup of its name may hang.
    std::thread::Builder::new()
        .name("ask".into())
        .spawn(move || answer.send(ask_status(&asked)).ok())
        .map_err(&failed)?;
    let silence = "it does not answer: it waits for its registry, or its process hangs";
    answers
        .recv_timeout(ANSWER_TIMEOUT * 5)
        .unwrap_or_else(|_| Err(failed(io::Error::new(io::ErrorKind::TimedOut, silence))))
}

fn ask_status(dir: &Path) -> Result<ImageStatus, MountError> {
    let not_ours = || MountError::NotMounted { dir: dir.to_owned() };
    let entry = mount_table::find(&mount_table::name_of(dir)?)?.filter(MountEntry::is_ours);
    let entry = entry.ok_or_else(not_ours)?;
    let failed = |source| MountError::Status { dir: entry.dir.clone(), source };
    if let Some(record) = entry.record() {
        return record.ask_status().and_then(|packed| unpack_status(&packed)).map_err(failed);
    }
    let name = std::str::from_utf8(STATUS).map_err(|_| not_ours())?;
    let mut value = Vec::with_capacity(64 * 1024);
    rustix::fs::getxattr(&entry.dir, name, rustix::buffer::spare_capacity(&mut value))
        .map_err(|errno| failed(io::Error::from(errno)))?;
    unpack_status(&value).map_err(failed)
}
