//! Replies of a mount whose image is not resolved yet.
//!
//! Does not block. The root is a directory whatever its content, and the mount can report that it waits, for which
//! reference, and the last error. So `df`, `ls -l` of the parent directory, and `ocifs status` are answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, INodeNo, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr,
};

use crate::image::ImageStatus;
use crate::view::{self, NodeId, ViewScope};

use super::attributes::{UNNUMBERED, negative};
use super::errno;
use super::mount_table::{REFERENCE, WAITING};
use super::replies::reply_xattr;
use crate::io::lock;

/// TTL of all replies.
pub(super) const PENDING_TTL: Duration = Duration::ZERO;
/// The first handle of the status file until the content is known. No process allocates that many other handles.
const FIRST_HANDLE: u64 = 1 << 63;

const DIRECTORY: INodeNo = INodeNo(NodeId::STATUS_DIRECTORY);
/// The first name in a listing has the number behind that of its directory.
const STATUS: INodeNo = INodeNo(NodeId::STATUS_DIRECTORY + 1);
const DIRECTORY_NAME: &[u8] = b".ocifs";
const STATUS_NAME: &[u8] = b"status.json";

/// A mount that waits for its content.
#[derive(Debug)]
pub(super) struct PendingMount {
    /// The requested reference.
    reference: String,
    /// The part of the image that is mounted.
    scope: ViewScope,
    /// The error of the last attempt; `None` before one failed.
    error: Mutex<Option<String>>,
    /// The status as it was when a handle was opened: the reads of one handle are of one text.
    opened: Mutex<HashMap<u64, Arc<[u8]>>>,
    /// The next handle.
    next: AtomicU64,
}

impl PendingMount {
    /// A mount of `reference`, or of the part of it that `scope` names.
    pub(super) fn new(reference: String, scope: ViewScope) -> Self {
        let next = AtomicU64::new(FIRST_HANDLE);
        Self { reference, scope, error: Mutex::default(), opened: Mutex::default(), next }
    }

    /// Records why the last attempt to open the image failed.
    pub(super) fn note_error(&self, error: String) {
        *lock(&self.error) = Some(error);
    }

    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    fn status(&self) -> ImageStatus {
        let error = lock(&self.error).clone();
        ImageStatus::waiting(self.reference.clone(), self.scope.to_string(), error)
    }

    fn text(&self) -> Vec<u8> {
        view::status_text(&self.status())
    }

    /// Only a mount of all views has a directory for its status.
    fn is_whole(&self) -> bool {
        self.scope.view.is_none() && self.scope.subdir.is_none()
    }

    pub(super) fn is_status(&self, ino: INodeNo) -> bool {
        self.is_whole() && ino == STATUS
    }

    pub(super) fn is_directory(&self, ino: INodeNo) -> bool {
        self.is_whole() && ino == DIRECTORY
    }

    /// The attributes of an inode, as far as they are known.
    pub(super) fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        match ino {
            INodeNo::ROOT => Some(directory(ino)),
            _ if self.is_directory(ino) => Some(directory(ino)),
            _ if self.is_status(ino) => Some(FileAttr {
                size: self.text().len() as u64,
                perm: 0o444,
                nlink: 1,
                kind: FileType::RegularFile,
                ..directory(ino)
            }),
            _ => None,
        }
    }

    /// Answers a lookup of `name`; returns the reply if the lookup has to wait.
    pub(super) fn lookup(&self, parent: INodeNo, name: &[u8], reply: ReplyEntry) -> Option<ReplyEntry> {
        let found = match (parent, name) {
            (INodeNo::ROOT, b".") => INodeNo::ROOT,
            (INodeNo::ROOT, DIRECTORY_NAME) if self.is_whole() => DIRECTORY,
            (DIRECTORY, STATUS_NAME) if self.is_whole() => STATUS,
            (DIRECTORY, _) if self.is_whole() => {
                reply.entry(&PENDING_TTL, &negative(), UNNUMBERED);
                return None;
            }
            _ => return Some(reply),
        };
        match self.attributes(found) {
            Some(attributes) => reply.entry(&PENDING_TTL, &attributes, UNNUMBERED),
            None => reply.error(errno::NO_SUCH_NAME),
        }
        None
    }

    /// Opens the status file, whose size changes between two handles.
    pub(super) fn open(&self, reply: ReplyOpen) {
        reply.opened(self.open_status(), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn open_status(&self) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.opened).insert(handle, self.text().into());
        FileHandle(handle)
    }

    pub(super) fn release(&self, fh: FileHandle) {
        lock(&self.opened).remove(&fh.0);
    }

    /// The text of a handle; of one that an earlier process opened, the text of now.
    fn opened_text(&self, fh: FileHandle) -> Arc<[u8]> {
        let opened = lock(&self.opened).get(&fh.0).cloned();
        opened.unwrap_or_else(|| self.text().into())
    }

    pub(super) fn read(&self, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let text = self.opened_text(fh);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(size as usize).min(text.len());
        reply.data(&text[start..end]);
    }

    pub(super) fn list(&self, offset: u64, mut reply: ReplyDirectory) {
        for (at, (ino, name)) in (1..).zip(entries()).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = self.attributes(ino).map_or(FileType::RegularFile, |attributes| attributes.kind);
            if reply.add(ino, at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    pub(super) fn list_plus(&self, offset: u64, mut reply: ReplyDirectoryPlus) {
        for (at, (ino, name)) in (1..).zip(entries()).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if let Some(attributes) = self.attributes(ino)
                && reply.add(ino, at, name, &PENDING_TTL, &attributes, UNNUMBERED)
            {
                break;
            }
        }
        reply.ok();
    }

    pub(super) fn xattr(&self, ino: INodeNo, name: &[u8], size: u32, reply: ReplyXattr) {
        let value = match name {
            _ if ino != INodeNo::ROOT => None,
            view::STATUS => view::packed_status(&self.status()),
            name if name == WAITING.as_bytes() => Some(b"1".to_vec()),
            name if name == REFERENCE.as_bytes() => Some(self.reference.clone().into_bytes()),
            _ => None,
        };
        match value {
            Some(value) => reply_xattr(&value, size, reply),
            None => reply.error(errno::NO_SUCH_XATTR),
        }
    }
}

fn entries() -> [(INodeNo, &'static str); 3] {
    [(DIRECTORY, "."), (INodeNo::ROOT, ".."), (STATUS, "status.json")]
}

fn directory(ino: INodeNo) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        perm: 0o555,
        nlink: 2,
        kind: FileType::Directory,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        ..negative()
    }
}

/// Whether a handle is one of a [`PendingMount`].
pub(super) fn is_handle(fh: FileHandle) -> bool {
    fh.0 >= FIRST_HANDLE
}

pub(super) fn statfs(reply: ReplyStatfs) {
    reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
}

pub(super) fn no_xattrs(size: u32, reply: ReplyXattr) {
    reply_xattr(&[], size, reply);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_changes_between_two_reads_is_one_text_for_each_handle() {
        let pending = PendingMount::new("r.example/a:v1".into(), ViewScope::default());
        let early = pending.open_status();
        let before = pending.opened_text(early);
        pending.note_error("no route to r.example".into());
        assert_eq!(pending.opened_text(early), before);
        let late = pending.open_status();
        assert!(is_handle(early) && early != late);
        assert!(String::from_utf8_lossy(&pending.opened_text(late)).contains("no route"));
        pending.release(early);
        assert_eq!(lock(&pending.opened).len(), 1);
    }
}
