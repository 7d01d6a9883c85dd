//! FUSE server of one file: the EROFS image that the kernel mounts.
//!
//! The FUSE mount is in no tree, so EROFS is its only user. A read is answered in full or with an error: EROFS fills
//! the rest of a short answer with zeros.

use std::ffi::OsStr;
use std::time::{Instant, SystemTime};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use tokio::runtime::Handle;

use crate::io::{ReadAt as _, ReadError, SharedReader};

use super::attributes::UNCHANGING_TTL;
use super::errno;
use super::filesystem::note_read;
use super::gate::MAX_BACKGROUND;
use super::kernel_mount::IMAGE_NAME;

/// The inode number of the file.
const IMAGE_INODE: INodeNo = INodeNo(2);
/// Readahead of the file, in bytes.
const READAHEAD_BYTES: u32 = 1 << 20;
/// Every handle: reads depend on the offset alone, so that another process can take them over.
const HANDLE: FileHandle = FileHandle(0);

/// The file system of one file.
pub(super) struct ImageFile {
    bytes: SharedReader,
    runtime: Handle,
}

impl ImageFile {
    /// Serves `bytes`, which wait on `runtime`.
    pub(super) fn new(bytes: SharedReader, runtime: Handle) -> Self {
        Self { bytes, runtime }
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, size, nlink) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0, 2),
            IMAGE_INODE => (FileType::RegularFile, self.bytes.size(), 1),
            _ => return None,
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: 0o500,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// Replies to a read that began then.
fn answer(begun: Instant, read: Result<(), ReadError>, buffer: &[u8], reply: ReplyData) {
    note_read(begun, read.is_ok().then_some(buffer.len()));
    match read {
        Ok(()) => reply.data(buffer),
        Err(error) => {
            tracing::warn!(op = "read of the image", error = error.chain());
            reply.error(errno::of_read(error.fault()));
        }
    }
}

impl Filesystem for ImageFile {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Without passthrough: EROFS refuses a file of a stacked file system.
        if let Err(missing) = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO) {
            tracing::debug!(?missing, "the kernel does not offer a capability");
        }
        for result in [
            config.set_max_background(MAX_BACKGROUND).map(u32::from).map_err(u32::from),
            config.set_max_readahead(READAHEAD_BYTES).or_else(|most| config.set_max_readahead(most)),
        ] {
            if let Err(nearest) = result {
                tracing::debug!(nearest, "the kernel refused a limit");
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(IMAGE_INODE).filter(|_| parent == INodeNo::ROOT && name == IMAGE_NAME) {
            Some(attr) => reply.entry(&UNCHANGING_TTL, &attr, Generation(0)),
            None => reply.error(errno::NO_SUCH_NAME),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&UNCHANGING_TTL, &attr),
            None => reply.error(errno::NO_SUCH_NAME),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (begun, bytes) = (Instant::now(), self.bytes.clone());
        let offset = offset.min(bytes.size());
        let mut buffer = vec![0; (bytes.size() - offset).min(u64::from(size)) as usize];
        match bytes.read_ready(offset, &mut buffer) {
            Ok(true) => answer(begun, Ok(()), &buffer, reply),
            Err(error) => answer(begun, Err(error), &buffer, reply),
            Ok(false) => {
                self.runtime.spawn(async move {
                    let read = bytes.read_at(offset, &mut buffer).await;
                    answer(begun, read, &buffer, reply);
                });
            }
        }
    }
}
