//! The FUSE server of one mount, before and after its content is known.
//!
//! Decides nothing about content. The kernel gets replies from its first request on. Requests that need no registry
//! (statfs, attributes of the root, progress of the mount) are answered at once. A request for any name waits until
//! the image is resolved.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, OnceLock};

use fuser::{
    FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::view::MountNamespace;

use super::caller::CallerThread;
use super::errno;
use super::filesystem::ShownTree;
use super::handles::FileHandles;
use super::waiting::{self, PendingMount};

/// Background requests (readahead) that the kernel may have under way. Its default of 12 starves a cold sequential
/// reader.
pub(super) const MAX_BACKGROUND: u16 = 64;

/// The filesystem of one mount. Cheap to clone.
#[derive(Clone)]
pub(super) struct OcifsFilesystem {
    gate: Arc<ContentGate>,
}

struct ContentGate {
    /// The content; unset until the image is resolved.
    shown: OnceLock<ShownTree>,
    /// Answers requests until then.
    waiting: Arc<PendingMount>,
    /// Wakes the waiting requests.
    open: watch::Sender<()>,
    handles: Arc<FileHandles>,
    runtime: Handle,
    /// Filesystem levels below passed-through files, this mount included; `None` without passthrough.
    stack_depth: Option<u32>,
}

impl OcifsFilesystem {
    /// `earlier`: number of processes that served the mount before, whose handles the kernel may still use.
    pub(super) fn new(
        waiting: Arc<PendingMount>,
        runtime: Handle,
        stack_depth: Option<u32>,
        earlier: u64,
    ) -> Self {
        let (handles, open) = (Arc::new(FileHandles::after(earlier)), watch::Sender::new(()));
        Self {
            gate: Arc::new(ContentGate {
                shown: OnceLock::new(),
                waiting,
                open,
                handles,
                runtime,
                stack_depth,
            }),
        }
    }

    /// Serves `namespace` from now on, to waiting requests too.
    pub(super) fn show(&self, namespace: Arc<MountNamespace>) {
        let ContentGate { shown, open, handles, runtime, .. } = &*self.gate;
        shown.get_or_init(|| ShownTree::new(namespace, runtime.clone(), handles.clone()));
        open.send_replace(());
    }

    /// The content, if the image is resolved.
    fn shown(&self) -> Option<&ShownTree> {
        self.gate.shown.get()
    }

    /// Calls `answer` with the content: now, or once the image is resolved, unless the caller is killed before that.
    fn with(&self, caller: CallerThread, answer: impl FnOnce(&ShownTree) + Send + 'static) {
        if let Some(shown) = self.shown() {
            return answer(shown);
        }
        let gate = Arc::clone(&self.gate);
        self.gate.runtime.spawn(async move {
            let mut opened = gate.open.subscribe();
            let known = opened.wait_for(|()| gate.shown.get().is_some());
            tokio::select! {
                _ = known => {}
                // Dropping a reply sends an error, which ends the wait of the kernel.
                () = caller.given_up() => {}
            }
            if let Some(shown) = gate.shown.get() {
                answer(shown);
            }
        });
    }

    /// The placeholder that answers until the image is resolved; `None` afterwards.
    fn waiting(&self) -> Option<&PendingMount> {
        self.shown().is_none().then_some(&*self.gate.waiting)
    }
}

fn caller(request: &Request) -> CallerThread {
    CallerThread(request.pid())
}

impl Filesystem for OcifsFilesystem {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Without AUTO: reading attributes one by one costs a round trip per file.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_ASYNC_DIO,
            // The kernel may ask for a number that it has forgotten: NFS servers, overlays and open_by_handle_at(2)
            // hold such numbers.
            InitFlags::FUSE_EXPORT_SUPPORT,
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
        if let Some(depth) = self.gate.stack_depth {
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(|_| depth);
            match offered.and_then(|()| config.set_max_stack_depth(depth)) {
                Ok(_) => self.gate.handles.offer_files(),
                Err(_) => tracing::debug!(depth, "the kernel does not offer passthrough"),
            }
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let caller = caller(req);
        let Some(reply) = (match self.waiting() {
            Some(waiting) => waiting.lookup(parent, name.as_bytes(), reply),
            None => Some(reply),
        }) else {
            return;
        };
        let name = name.to_owned();
        self.with(caller, move |shown| shown.lookup(caller, parent, &name, reply));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let caller = caller(req);
        if let Some(waiting) = self.waiting()
            && let Some(attributes) = waiting.attributes(ino)
        {
            return reply.attr(&waiting::PENDING_TTL, &attributes);
        }
        self.with(caller, move |shown| shown.getattr(caller, ino, reply));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let caller = caller(req);
        self.with(caller, move |shown| shown.readlink(caller, ino, reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(req);
        if let Some(waiting) = self.waiting()
            && waiting.is_status(ino)
        {
            return waiting.open(reply);
        }
        self.with(caller, move |shown| shown.open(caller, ino, reply));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if waiting::is_handle(fh) && self.gate.waiting.is_status(ino) {
            return self.gate.waiting.read(fh, offset, size, reply);
        }
        let caller = caller(req);
        self.with(caller, move |shown| shown.read(caller, ino, fh, offset, size, reply));
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
        if waiting::is_handle(fh) {
            self.gate.waiting.release(fh);
        } else if let Some(shown) = self.shown() {
            shown.release(fh);
        }
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(errno::NEVER_ASK);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let caller = caller(req);
        if let Some(waiting) = self.waiting()
            && waiting.is_directory(ino)
        {
            return waiting.list(offset, reply);
        }
        self.with(caller, move |shown| shown.readdir(caller, ino, offset, reply));
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let caller = caller(req);
        if let Some(waiting) = self.waiting()
            && waiting.is_directory(ino)
        {
            return waiting.list_plus(offset, reply);
        }
        self.with(caller, move |shown| shown.readdirplus(caller, ino, offset, reply));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.shown() {
            Some(shown) => shown.statfs(reply),
            None => waiting::statfs(reply),
        }
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let caller = caller(req);
        if let Some(waiting) = self.waiting()
            && waiting.attributes(ino).is_some()
        {
            return waiting.xattr(ino, name.as_bytes(), size, reply);
        }
        let name = name.to_owned();
        self.with(caller, move |shown| shown.getxattr(caller, ino, &name, size, reply));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = caller(req);
        if let Some(waiting) = self.waiting()
            && waiting.attributes(ino).is_some()
        {
            return waiting::no_xattrs(size, reply);
        }
        self.with(caller, move |shown| shown.listxattr(caller, ino, size, reply));
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let caller = caller(req);
        self.with(caller, move |shown| shown.lseek(caller, ino, fh, (offset, whence), reply));
    }
}

impl std::fmt::Debug for OcifsFilesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ocifs({})", self.gate.waiting.reference())
    }
}
