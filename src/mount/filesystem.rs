//! One FUSE request, one answer.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Instant;

use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use crate::io::{Fault, ReadAt as _, ReadError, Shared};
use crate::meter;
use crate::view::{Attributes, Freshness, Namespace, NodeId, Opened};

use super::attributes::{file_attr, file_type, negative, node, number, ttl};
use super::errno;
use super::handles::Handles;
use super::passthrough::Served;
use super::recent::Recent;
use super::spare::Spare;

/// Nodes never change, so there is only one generation.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have under way in the background (readahead). Its default of 12 starves a cold sequential
/// reader.
const MAX_BACKGROUND: u16 = 64;

/// The filesystem of one mount. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ocifs {
    shared: Arc<SharedState>,
}

struct SharedState {
    namespace: Arc<Namespace>,
    handles: Handles,
    /// In the place of handles, where the kernel need not ask to open a file.
    recent: Option<Recent>,
    runtime: Handle,
    spare: Spare,
    /// What the kernel is told when files are to be passed through.
    stack_depth: Option<u32>,
}

thread_local! {
    /// The buffer of answers that are given on the FUSE thread, kept because clearing a fresh one costs as much as the copy.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Ocifs {
    /// `stack_depth`: how many levels of filesystems lie below files that are passed through, ours included, if any are.
    /// `earlier`: how many processes have served the mount before, whose handles the kernel knows and we do not.
    pub(super) fn new(
        namespace: Arc<Namespace>,
        runtime: Handle,
        stack_depth: Option<u32>,
        earlier: u64,
    ) -> Self {
        let (handles, spare) = (Handles::after(earlier), Spare::default());
        let recent = namespace.opens_freely().then(Recent::default);
        Self { shared: Arc::new(SharedState { namespace, handles, recent, runtime, spare, stack_depth }) }
    }

    fn namespace(&self) -> &Namespace {
        &self.shared.namespace
    }

    fn node(&self, ino: INodeNo) -> NodeId {
        node(self.namespace(), ino)
    }

    /// Calls `answer` when what is inside `node` is known: now, or on the runtime after building it.
    fn when_built(
        &self,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<(), Errno>) + Send + 'static,
    ) {
        if self.namespace().is_built(node) {
            return answer(self, Ok(()));
        }
        let this = self.clone();
        self.shared.runtime.spawn(async move {
            let built = this.namespace().build_path(node).await;
            answer(&this, built.map_err(|error| this.failed(what, node, &error, errno::of_read)));
        });
    }

    /// Calls `answer` when `node` is known to exist or not: now, or after building what is around it, which is needed only when
    /// an earlier process told the kernel its number.
    fn when_known(
        &self,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<(), Errno>) + Send + 'static,
    ) {
        match self.namespace().attributes(node) {
            Some(_) => answer(self, Ok(())),
            None => self.when_built(node, what, answer),
        }
    }

    /// Logs the error's chain once, notes it for the status, and chooses the errno.
    fn failed(
        &self,
        what: &'static str,
        node: NodeId,
        error: &ReadError,
        choose: fn(Fault) -> Errno,
    ) -> Errno {
        let chain = error.chain();
        tracing::warn!(op = what, inode = node.to_u64() + 1, error = chain);
        self.namespace().note_error(node, format!("{what} of inode {}: {chain}", node.to_u64() + 1));
        choose(error.fault())
    }

    /// Calls `answer` with what `stat` says about `node`: now, or on the runtime once that is known.
    fn when_settled(
        &self,
        node: NodeId,
        what: &'static str,
        answer: impl FnOnce(Result<Attributes, Errno>) + Send + 'static,
    ) {
        let attributes = move |this: &Self| this.namespace().attributes(node).ok_or(errno::NO_SUCH_NAME);
        if self.namespace().is_settled(node) {
            return answer(attributes(self));
        }
        let this = self.clone();
        self.shared.runtime.spawn(async move {
            let settled = this.namespace().settle(node).await;
            let settled = settled.map_err(|error| this.failed(what, node, &error, errno::of_read));
            answer(settled.and_then(|()| attributes(&this)));
        });
    }

    fn reply_entry(&self, parent: NodeId, name: &[u8], reply: ReplyEntry) {
        let Some(node) = self.namespace().lookup(parent, name) else {
            return reply.entry(&ttl(Freshness::Forever), &negative(), GENERATION);
        };
        let ino = number(self.namespace(), node);
        self.when_settled(node, "lookup", move |attributes| match attributes {
            Ok(attributes) => {
                let attr = file_attr(ino, &attributes);
                reply.entry_with_ttls(&ttl(Freshness::Forever), &ttl(attributes.fresh), &attr, GENERATION);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn reply_open(&self, ino: INodeNo, opened: Opened, reply: ReplyOpen) {
        let handles = &self.shared.handles;
        match opened.fresh {
            Freshness::Forever => {
                let (handle, served) =
                    handles.insert_counted(ino.0, opened.bytes, |file| reply.open_backing(file));
                match served {
                    Served::Cached => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
                    // What the page cache has of it was read through us, and only takes room from now on.
                    Served::Through(backing) => {
                        reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
                    }
                }
            }
            // Its size may differ from what stat said a moment ago.
            Freshness::Now => {
                let handle = handles.insert_direct(opened.bytes);
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
        }
    }

    /// Calls `answer` with the bytes of an open file, or of one that the kernel does not ask to open: now, or on the runtime
    /// when it was opened by an earlier process and has to be opened again.
    fn with_bytes(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        what: &'static str,
        answer: impl FnOnce(&Self, Result<Shared, Errno>) + Send + 'static,
    ) {
        let node = self.node(ino);
        if let Some(bytes) = self.bytes_at_hand(ino, fh) {
            return answer(self, bytes);
        }
        let this = self.clone();
        self.shared.runtime.spawn(async move {
            let opened = match this.namespace().build_path(node).await {
                Ok(()) => this.namespace().open_file(node).await,
                Err(error) => Err(error),
            };
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

    /// The bytes of a file, if nothing has to be waited for.
    fn bytes_at_hand(&self, ino: INodeNo, fh: FileHandle) -> Option<Result<Shared, Errno>> {
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
            // The kernel knows an inode only from a directory that was built, by us or by an earlier process.
            None => self.namespace().is_built(node).then_some(Err(errno::NO_SUCH_HANDLE)),
        }
    }

    /// Answers a read of an open file.
    fn reply_read(
        &self,
        node: NodeId,
        bytes: Shared,
        offset: u64,
        size: u32,
        begun: Instant,
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
                    let this = self.clone();
                    self.shared.runtime.spawn(async move {
                        let mut buffer = this.shared.spare.take(len);
                        match bytes.read_at(offset, &mut buffer[..len]).await {
                            Ok(()) => {
                                note_read(begun, Some(len));
                                reply.data(&buffer[..len]);
                            }
                            Err(error) => {
                                note_read(begun, None);
                                reply.error(this.failed("read", node, &error, errno::of_read));
                            }
                        }
                        this.shared.spare.give(buffer);
                    });
                }
            }
        });
    }

    /// Answers where data or a hole is in an open file.
    fn reply_lseek(&self, node: NodeId, bytes: Shared, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(offset) = u64::try_from(offset).ok().filter(|&offset| offset < bytes.size()) else {
            return reply.error(errno::PAST_END);
        };
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return reply.error(errno::BAD_SEEK);
        }
        if bytes.learn_holes().is_none() {
            return seek(&bytes, offset, whence, reply);
        }
        let this = self.clone();
        self.shared.runtime.spawn(async move {
            if let Some(learning) = bytes.learn_holes()
                && let Err(error) = learning.await
            {
                return reply.error(this.failed("lseek", node, &error, errno::of_read));
            }
            seek(&bytes, offset, whence, reply);
        });
    }

    /// Lists `directory` from entry `offset` on: `add` gets the entry's number, the offset behind it, and its name; it
    /// answers whether the reply is full. Entries 0 and 1 are `.` and `..`.
    fn list(
        &self,
        directory: NodeId,
        offset: u64,
        mut add: impl FnMut(INodeNo, u64, &[u8], &Attributes) -> bool,
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

impl Filesystem for Ocifs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Without AUTO: reading attributes one by one costs a round trip per file.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "the kernel does not offer a capability");
            }
        }
        for result in [
            config.set_max_background(MAX_BACKGROUND).map(u32::from).map_err(u32::from),
            config.set_max_readahead(1 << 20).or_else(|most| config.set_max_readahead(most)),
        ] {
            if let Err(nearest) = result {
                tracing::debug!(nearest, "the kernel refused a limit");
            }
        }
        if let Some(depth) = self.shared.stack_depth {
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(|_| depth);
            match offered.and_then(|()| config.set_max_stack_depth(depth)) {
                Ok(_) => self.shared.handles.offer_files(),
                Err(_) => tracing::debug!(depth, "the kernel does not offer passthrough"),
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (self.node(parent), name.as_bytes().to_vec());
        self.when_built(parent, "lookup", move |this, built| match built {
            Ok(()) => this.reply_entry(parent, &name, reply),
            Err(errno) => reply.error(errno),
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let node = self.node(ino);
        self.when_known(node, "getattr", move |this, known| match known {
            Ok(()) => this.when_settled(node, "getattr", move |attributes| match attributes {
                Ok(attributes) => reply.attr(&ttl(attributes.fresh), &file_attr(ino, &attributes)),
                Err(errno) => reply.error(errno),
            }),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let node = self.node(ino);
        self.when_known(node, "readlink", move |this, known| {
            match known.map(|()| this.namespace().link(node)) {
                Ok(Some(target)) => reply.data(target),
                Ok(None) => reply.error(errno::NOT_A_LINK),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.shared.recent.is_some() {
            // Two requests less for every file, which is most of the time that it takes to read a small one.
            return reply.error(errno::NEVER_ASK);
        }
        let node = self.node(ino);
        match self.namespace().open_now(node) {
            Some(Ok(opened)) => self.reply_open(ino, opened, reply),
            Some(Err(error)) => reply.error(self.failed("open", node, &error, errno::of_open)),
            None => {
                let this = self.clone();
                self.shared.runtime.spawn(async move {
                    match this.namespace().open_file(node).await {
                        Ok(opened) => this.reply_open(ino, opened, reply),
                        Err(error) => reply.error(this.failed("open", node, &error, errno::of_open)),
                    }
                });
            }
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let begun = Instant::now();
        let node = self.node(ino);
        self.with_bytes(ino, fh, "read", move |this, bytes| match bytes {
            Ok(bytes) => this.reply_read(node, bytes, offset, size, begun, reply),
            Err(errno) => reply.error(errno),
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.handles.remove(fh.0);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(errno::NEVER_ASK);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let directory = self.node(ino);
        self.when_built(directory, "readdir", move |this, built| match built {
            Ok(()) => {
                this.list(directory, offset, |ino, next, name, attributes| {
                    reply.add(ino, next, file_type(attributes.kind), OsStr::from_bytes(name))
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let directory = self.node(ino);
        self.when_built(directory, "readdirplus", move |this, built| match built {
            Ok(()) => {
                this.list(directory, offset, |ino, next, name, attributes| {
                    let (name, attr) = (OsStr::from_bytes(name), file_attr(ino, attributes));
                    reply.add(ino, next, name, &ttl(attributes.fresh), &attr, GENERATION)
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        let bytes = self.namespace().family().stored_bytes();
        reply.statfs(bytes.div_ceil(BLOCK), 0, 0, 0, 0, BLOCK as u32, 255, BLOCK as u32);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (node, name) = (self.node(ino), name.as_bytes().to_vec());
        self.when_known(node, "getxattr", move |this, known| {
            match known.map(|()| this.namespace().xattr(node, &name)) {
                Ok(Some(value)) => reply_xattr(&value, size, reply),
                Ok(None) => reply.error(errno::NO_SUCH_XATTR),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let node = self.node(ino);
        self.when_known(node, "listxattr", move |this, known| {
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

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let node = self.node(ino);
        self.with_bytes(ino, fh, "lseek", move |this, bytes| match bytes {
            Ok(bytes) => this.reply_lseek(node, bytes, offset, whence, reply),
            Err(errno) => reply.error(errno),
        });
    }
}

/// Counts a read that began then and gave this many bytes, or none for an error.
///
/// Before it is answered: who has read a byte finds it counted.
fn note_read(begun: Instant, given: Option<usize>) {
    meter::READS.note(begun.elapsed());
    match given {
        Some(len) => meter::BYTES_SERVED.add(len as u64),
        None => meter::READ_ERRORS.add(1),
    }
}

/// Answers where the next data or hole is, at or after an offset inside the file.
fn seek(bytes: &Shared, offset: u64, whence: i32, reply: ReplyLseek) {
    let found = match whence {
        libc::SEEK_DATA => bytes.next_data(offset),
        _ => Some(bytes.next_hole(offset)),
    };
    match found.and_then(|found| i64::try_from(found).ok()) {
        Some(found) => reply.offset(found),
        None => reply.error(errno::PAST_END),
    }
}

/// The two-step protocol of xattr(7): size 0 asks for the size.
fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match (size, value.len()) {
        (0, len) => reply.size(len as u32),
        (size, len) if len > size as usize => reply.error(errno::XATTR_TOO_BIG),
        _ => reply.data(value),
    }
}

impl std::fmt::Debug for Ocifs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ocifs({})", self.namespace().family().pinned())
    }
}
