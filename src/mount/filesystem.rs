//! FUSE request handlers of a mount with known content.
//!
//! A reply from memory is sent at once, on the thread that read the request. Any other is sent from the runtime,
//! while its caller is alive.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Instant;

use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
};
use tokio::runtime::Handle;

use crate::io::{ByteRange, FaultClass, ReadAt as _, ReadError, SharedReader, printable_name};
use crate::metrics;
use crate::view::{AttributeLifetime, MountNamespace, NodeAttributes, NodeId, OpenNode};

use super::attributes::{UNNUMBERED, file_attr, file_type, generation, negative, node, number, ttl};
use super::buffer_pool::BufferPool;
use super::caller::CallerThread;
use super::errno;
use super::failed_reads::FailedReads;
use super::handles::FileHandles;
use super::open_file_cache::OpenFileCache;
use super::passthrough::ReadServer;
use super::replies::{reply_xattr, seek};

/// A read as the kernel requests it, and its start.
struct ReadRequest {
    offset: u64,
    size: u32,
    begun: Instant,
}

/// The content of one mount. Cheap to clone.
#[derive(Clone)]
pub(super) struct ShownTree {
    shared: Arc<SharedState>,
}

struct SharedState {
    namespace: Arc<MountNamespace>,
    handles: Arc<FileHandles>,
    /// Replaces handles where the kernel need not send an open; `None` where it does.
    recent: Option<OpenFileCache>,
    runtime: Handle,
    spare: BufferPool,
    failed_reads: FailedReads,
}

thread_local! {
    /// The reply buffer of a FUSE thread. It is reused because clearing a fresh one costs as much as the copy.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl ShownTree {
    /// `handles` are the open handles of the mount.
    pub(super) fn new(namespace: Arc<MountNamespace>, runtime: Handle, handles: Arc<FileHandles>) -> Self {
        let recent = namespace.opens_freely().then(OpenFileCache::default);
        let (spare, failed_reads) = (BufferPool::default(), FailedReads::default());
        Self { shared: Arc::new(SharedState { namespace, handles, recent, runtime, spare, failed_reads }) }
    }

    fn namespace(&self) -> &MountNamespace {
        &self.shared.namespace
    }

    fn node(&self, ino: INodeNo) -> NodeId {
        node(self.namespace(), ino)
    }

    /// Calls `answer` on the runtime with the result of `work`, unless the caller is killed before that. The work
    /// then still runs to its end, because other readers may wait for its result.
    fn later<T: Send + 'static>(
        &self,
        caller: CallerThread,
        work: impl Future<Output = T> + Send + 'static,
        answer: impl FnOnce(T) + Send + 'static,
    ) {
        self.shared.runtime.spawn(async move {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                done = &mut work => return answer(done),
                () = caller.given_up() => {}
            }
            // Dropping a reply sends an error, which ends the wait of the kernel.
            drop(answer);
            work.await;
        });
    }

    /// Calls `answer` once the subtree of `node` is built: now, or on the runtime after building it.
    fn when_built(
        &self,
        caller: CallerThread,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<(), Errno>) + Send + 'static,
    ) {
        if self.namespace().is_built(node) {
            return answer(self, Ok(()));
        }
        if !self.namespace().is_possible(node) {
            // A number that was never assigned, as in a forged file handle.
            return answer(self, Err(errno::NO_SUCH_NAME));
        }
        let (this, builder) = (self.clone(), self.clone());
        let work = async move { builder.namespace().build_path(node).await };
        self.later(caller, work, move |built| {
            answer(&this, built.map_err(|error| this.failed(what, node, &error, errno::of_read)));
        });
    }

    /// Calls `answer` once it is decided whether `node` exists: now, or after building its subtree. Building is
    /// needed only for a number from an earlier process, or from a file handle.
    fn when_known(
        &self,
        caller: CallerThread,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<(), Errno>) + Send + 'static,
    ) {
        match self.namespace().attributes(node) {
            Some(_) => answer(self, Ok(())),
            None => self.when_built(caller, node, what, answer),
        }
    }

    /// The same, once the attributes recorded for a root directory are read.
    fn when_rooted(
        &self,
        caller: CallerThread,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<(), Errno>) + Send + 'static,
    ) {
        if self.namespace().is_rooted(node) {
            return self.when_known(caller, node, what, answer);
        }
        // Reading the first blocks takes a second at most.
        let (this, settling) = (self.clone(), self.clone());
        let work = async move { settling.namespace().settle_root(node).await };
        self.later(caller, work, move |()| answer(&this, Ok(())));
    }

    /// Logs the error's chain once, records it for the status, and chooses the errno.
    fn failed(
        &self,
        what: &'static str,
        node: NodeId,
        error: &ReadError,
        choose: fn(FaultClass) -> Errno,
    ) -> Errno {
        let chain = error.chain();
        let path = match self.namespace().path_of(node) {
            Some(path) if path.is_empty() => "/".to_owned(),
            Some(path) => printable_name(&path),
            None => format!("inode {}", self.namespace().number(node)),
        };
        tracing::warn!(op = what, path, error = chain);
        self.namespace().note_error(node, format!("{what} of {path}: {chain}"));
        choose(error.fault())
    }

    /// Calls `answer` with the attributes of `node`: now, or on the runtime once its size is resolved.
    fn when_settled(
        &self,
        caller: CallerThread,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(Result<NodeAttributes, Errno>) + Send + 'static,
    ) {
        let attributes = move |this: &Self| this.namespace().attributes(node).ok_or(errno::NO_SUCH_NAME);
        if self.namespace().is_settled(node) {
            return answer(attributes(self));
        }
        let (this, settling) = (self.clone(), self.clone());
        let work = async move { settling.namespace().settle(node).await };
        self.later(caller, work, move |settled| {
            let settled = settled.map_err(|error| this.failed(what, node, &error, errno::of_read));
            answer(settled.and_then(|()| attributes(&this)));
        });
    }

    fn reply_entry(&self, caller: CallerThread, parent: NodeId, name: &[u8], reply: ReplyEntry) {
        match self.namespace().lookup(parent, name) {
            Some(node) => self.reply_node(caller, node, reply),
            None => reply.entry(&ttl(AttributeLifetime::Forever), &negative(), UNNUMBERED),
        }
    }

    fn reply_node(&self, caller: CallerThread, node: NodeId, reply: ReplyEntry) {
        let ino = number(self.namespace(), node);
        let generation = generation(self.namespace(), ino);
        self.when_settled(caller, node, "lookup", move |attributes| match attributes {
            Ok(attributes) => {
                let attr = file_attr(ino, &attributes);
                reply.entry_with_ttls(
                    &ttl(AttributeLifetime::Forever),
                    &ttl(attributes.fresh),
                    &attr,
                    generation,
                );
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn reply_open(&self, ino: INodeNo, opened: OpenNode, reply: ReplyOpen) {
        let handles = &self.shared.handles;
        match opened.fresh {
            AttributeLifetime::Forever => {
                let (handle, served) =
                    handles.insert_counted(ino.0, opened.bytes, |file| reply.open_backing(file));
                match served {
                    ReadServer::Cached => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
                    // Pages of this file in the page cache came through this process; from now on they only take
                    // memory.
                    ReadServer::Through(backing) => {
                        reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
                    }
                }
            }
            // The size may differ from the one in an earlier reply to stat.
            AttributeLifetime::Now => {
                let handle = handles.insert_direct(opened.bytes);
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
        }
    }

    /// Calls `answer` with the bytes of an open file, or of a file that the kernel reads without an open. Calls it
    /// now, or on the runtime when an earlier process opened the file and it has to be reopened.
    fn with_bytes(
        &self,
        caller: CallerThread,
        ino: INodeNo,
        fh: FileHandle,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<SharedReader, Errno>) + Send + 'static,
    ) {
        let node = self.node(ino);
        if let Some(bytes) = self.bytes_at_hand(ino, fh) {
            return answer(self, bytes);
        }
        let (this, opening) = (self.clone(), self.clone());
        let work = async move {
            opening.namespace().build_path(node).await?;
            opening.namespace().open_file(node).await
        };
        self.later(caller, work, move |opened: Result<_, ReadError>| {
            let opened = opened.map_err(|error| this.failed(what, node, &error, errno::of_read));
            let bytes = opened.map(|opened| match &this.shared.recent {
                Some(recent) => {
                    recent.put(ino.0, opened.bytes.clone());
                    opened.bytes
                }
                None => this.shared.handles.adopt(fh.0, opened.bytes),
            });
            answer(&this, bytes);
        });
    }

    /// The bytes of a file, if no waiting is needed.
    fn bytes_at_hand(&self, ino: INodeNo, fh: FileHandle) -> Option<Result<SharedReader, Errno>> {
        let handles = &self.shared.handles;
        let Some(recent) = &self.shared.recent else {
            let bytes = handles.get(fh.0).ok_or(errno::NO_SUCH_HANDLE);
            return Some(bytes).filter(|bytes| bytes.is_ok() || !handles.is_inherited(fh.0));
        };
        if let Some(bytes) = recent.get(ino.0) {
            return Some(Ok(bytes));
        }
        let node = self.node(ino);
        match self.namespace().open_now(node) {
            Some(Ok(opened)) => {
                recent.put(ino.0, opened.bytes.clone());
                Some(Ok(opened.bytes))
            }
            Some(Err(error)) => Some(Err(self.failed("read", node, &error, errno::of_read))),
            // The kernel knows an inode only from a directory that was built, by this process or an earlier one.
            None => self.namespace().is_built(node).then_some(Err(errno::NO_SUCH_HANDLE)),
        }
    }

    /// Replies to a read of an open file.
    fn reply_read(
        &self,
        caller: CallerThread,
        node: NodeId,
        bytes: SharedReader,
        ReadRequest { offset, size, begun }: ReadRequest,
        reply: ReplyData,
    ) {
        let len = bytes.size().saturating_sub(offset).min(u64::from(size)) as usize;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            match bytes.read_ready(offset.min(bytes.size()), &mut buffer[..len]) {
                Ok(true) => {
                    note_read(begun, Some(len));
                    reply.data(&buffer[..len]);
                }
                Err(error) => {
                    note_read(begun, None);
                    reply.error(self.failed("read", node, &error, errno::of_read));
                }
                Ok(false) => {
                    let (this, mut buffer) = (self.clone(), self.shared.spare.take(len));
                    let work = async move {
                        let done = bytes.read_at(offset, &mut buffer[..len]).await;
                        (done, buffer)
                    };
                    self.later(caller, work, move |(done, buffer)| {
                        match done {
                            Ok(()) => {
                                note_read(begun, Some(len));
                                reply.data(&buffer[..len]);
                            }
                            Err(error) => {
                                note_read(begun, None);
                                let errno = this.failed("read", node, &error, errno::of_read);
                                if error.fault() == FaultClass::Unavailable {
                                    let range = ByteRange::new(offset, offset + len as u64);
                                    this.shared.failed_reads.note(
                                        this.namespace().number(node),
                                        range,
                                        begun,
                                        errno,
                                    );
                                }
                                reply.error(errno);
                            }
                        }
                        this.shared.spare.give(buffer);
                    });
                }
            }
        });
    }

    /// Replies with the position of data or a hole in an open file.
    fn reply_lseek(
        &self,
        caller: CallerThread,
        node: NodeId,
        bytes: SharedReader,
        (offset, whence): (i64, i32),
        reply: ReplyLseek,
    ) {
        let Some(offset) = u64::try_from(offset).ok().filter(|&offset| offset < bytes.size()) else {
            return reply.error(errno::PAST_END);
        };
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return reply.error(errno::BAD_SEEK);
        }
        if bytes.learn_holes().is_none() {
            return seek(&bytes, offset, whence, reply);
        }
        let (this, learner) = (self.clone(), bytes.clone());
        let work = async move {
            match learner.learn_holes() {
                Some(learning) => learning.await,
                None => Ok(()),
            }
        };
        self.later(caller, work, move |learnt| match learnt {
            Ok(()) => seek(&bytes, offset, whence, reply),
            Err(error) => reply.error(this.failed("lseek", node, &error, errno::of_read)),
        });
    }

    /// Lists `directory` from entry `offset` on. `add` gets the entry's inode number, the offset behind the entry,
    /// and its name; it returns whether the reply is full. Entries 0 and 1 are `.` and `..`.
    fn list(
        &self,
        directory: NodeId,
        offset: u64,
        mut add: impl FnMut(INodeNo, u64, &[u8], &NodeAttributes) -> bool,
    ) {
        let namespace = self.namespace();
        for (at, name, node) in [(0, &b"."[..], directory), (1, &b".."[..], namespace.parent(directory))] {
            if offset <= at
                && let Some(attributes) = namespace.attributes(node)
                && add(number(namespace, node), at + 1, name, &attributes)
            {
                return;
            }
        }
        let skip = offset.saturating_sub(2);
        namespace.entries(directory, usize::try_from(skip).unwrap_or(usize::MAX), |entry| {
            let next = entry.at as u64 + 3;
            !add(number(namespace, entry.node), next, entry.name, &entry.attributes)
        });
    }
}

/// The requests, by their names in the protocol.
impl ShownTree {
    /// The names `.` and `..` resolve to the node and its parent: the owner of a file handle may ask for a node that
    /// the kernel has forgotten.
    pub(super) fn lookup(&self, caller: CallerThread, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (self.node(parent), name.as_bytes().to_vec());
        self.when_built(caller, parent, "lookup", move |this, built| match (built, &name[..]) {
            (Err(errno), _) => reply.error(errno),
            (Ok(()), b"." | b"..") if this.namespace().attributes(parent).is_none() => {
                reply.error(errno::NO_SUCH_NAME);
            }
            (Ok(()), b".") => this.reply_node(caller, parent, reply),
            (Ok(()), b"..") => this.reply_node(caller, this.namespace().parent(parent), reply),
            (Ok(()), name) => this.reply_entry(caller, parent, name, reply),
        });
    }

    pub(super) fn getattr(&self, caller: CallerThread, ino: INodeNo, reply: ReplyAttr) {
        let node = self.node(ino);
        self.when_known(caller, node, "getattr", move |this, known| match known {
            Ok(()) => this.when_settled(caller, node, "getattr", move |attributes| match attributes {
                Ok(attributes) => reply.attr(&ttl(attributes.fresh), &file_attr(ino, &attributes)),
                Err(errno) => reply.error(errno),
            }),
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn readlink(&self, caller: CallerThread, ino: INodeNo, reply: ReplyData) {
        let node = self.node(ino);
        self.when_known(caller, node, "readlink", move |this, known| {
            match known.map(|()| this.namespace().link(node)) {
                Ok(Some(target)) => reply.data(target),
                Ok(None) => reply.error(errno::NOT_A_LINK),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn open(&self, caller: CallerThread, ino: INodeNo, reply: ReplyOpen) {
        if self.shared.recent.is_some() {
            // Saves two requests per file, most of the time that a read of a small file takes.
            return reply.error(errno::NEVER_ASK);
        }
        let node = self.node(ino);
        match self.namespace().open_now(node) {
            Some(Ok(opened)) => self.reply_open(ino, opened, reply),
            Some(Err(error)) => reply.error(self.failed("open", node, &error, errno::of_open)),
            None => {
                let (this, opening) = (self.clone(), self.clone());
                let work = async move { opening.namespace().open_file(node).await };
                self.later(caller, work, move |opened| match opened {
                    Ok(opened) => this.reply_open(ino, opened, reply),
                    Err(error) => reply.error(this.failed("open", node, &error, errno::of_open)),
                });
            }
        }
    }

    pub(super) fn read(
        &self,
        caller: CallerThread,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        reply: ReplyData,
    ) {
        let begun = Instant::now();
        let node = self.node(ino);
        if let Some(errno) = self.shared.failed_reads.take(self.namespace().number(node), offset) {
            note_read(begun, None);
            return reply.error(errno);
        }
        self.with_bytes(caller, ino, fh, "read", move |this, bytes| match bytes {
            Ok(bytes) => this.reply_read(caller, node, bytes, ReadRequest { offset, size, begun }, reply),
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn release(&self, fh: FileHandle) {
        self.shared.handles.remove(fh.0);
    }

    pub(super) fn readdir(&self, caller: CallerThread, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let directory = self.node(ino);
        self.when_built(caller, directory, "readdir", move |this, built| match built {
            Ok(()) => {
                this.list(directory, offset, |ino, next, name, attributes| {
                    reply.add(ino, next, file_type(attributes.kind), OsStr::from_bytes(name))
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn readdirplus(
        &self,
        caller: CallerThread,
        ino: INodeNo,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let directory = self.node(ino);
        self.when_built(caller, directory, "readdirplus", move |this, built| match built {
            Ok(()) => {
                this.list(directory, offset, |ino, next, name, attributes| {
                    let (name, attr) = (OsStr::from_bytes(name), file_attr(ino, attributes));
                    reply.add(
                        ino,
                        next,
                        name,
                        &ttl(attributes.fresh),
                        &attr,
                        generation(this.namespace(), ino),
                    )
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn statfs(&self, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        let bytes = self.namespace().family().stored_bytes();
        reply.statfs(bytes.div_ceil(BLOCK), 0, 0, 0, 0, BLOCK as u32, 255, BLOCK as u32);
    }

    pub(super) fn getxattr(
        &self,
        caller: CallerThread,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (node, name) = (self.node(ino), name.as_bytes().to_vec());
        self.when_rooted(caller, node, "getxattr", move |this, known| {
            match known.map(|()| this.namespace().xattr(node, &name)) {
                Ok(Some(value)) => reply_xattr(&value, size, reply),
                Ok(None) => reply.error(errno::NO_SUCH_XATTR),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn listxattr(&self, caller: CallerThread, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let node = self.node(ino);
        self.when_rooted(caller, node, "listxattr", move |this, known| {
            if let Err(errno) = known {
                return reply.error(errno);
            }
            let mut names = Vec::new();
            for (name, _) in this.namespace().xattrs(node) {
                names.extend_from_slice(name);
                names.push(0);
            }
            reply_xattr(&names, size, reply);
        });
    }

    pub(super) fn lseek(
        &self,
        caller: CallerThread,
        ino: INodeNo,
        fh: FileHandle,
        place: (i64, i32),
        reply: ReplyLseek,
    ) {
        let node = self.node(ino);
        self.with_bytes(caller, ino, fh, "lseek", move |this, bytes| match bytes {
            Ok(bytes) => this.reply_lseek(caller, node, bytes, place, reply),
            Err(errno) => reply.error(errno),
        });
    }
}

/// Counts a read that began at `begun` and returned `given` bytes; `None` for an error.
///
/// Called before the reply, so that a process that has its bytes finds them counted.
pub(super) fn note_read(begun: Instant, given: Option<usize>) {
    metrics::READS.note(begun.elapsed());
    match given {
        Some(len) => metrics::BYTES_SERVED.add(len as u64),
        None => metrics::READ_ERRORS.add(1),
    }
}
