//! FUSE passthrough modes: which opens of an inode the kernel serves from a cache file, and which this process
//! serves.
//!
//! Independent of FUSE, files and errnos; `B` is the kernel's name of a file. To the kernel an inode is either cached
//! or passed through; mixing both fails the open with EIO in either order. So handles are counted here, under one
//! lock, from the decision on a reply until the kernel has reported the release. The kernel's set of handles is then
//! always a subset of ours, so it sees one mode, whatever the order of replies and releases.

use std::collections::{HashMap, HashSet};

/// The modes of all open inodes.
///
/// | state | open, no file offered | open, file offered | close |
/// |---|---|---|---|
/// | closed | cached, 1 | passed through, 1; cached, 1 if the kernel refuses the file | |
/// | cached, n | cached, n + 1 | cached, n + 1 | cached, n - 1; closed at 0 |
/// | passed through, m | the same file, m + 1 | the same file, m + 1 | m - 1; closed at 0, and the file is dropped |
///
/// Content that becomes complete while handles are cached stays cached until all of them are closed.
pub(super) struct InodeModes<B> {
    /// Invariant: every handle that was decided on and is not closed is counted in the mode of its inode; no count is
    /// 0.
    open: HashMap<u64, InodeMode<B>>,
    /// Inodes whose file the kernel refused: one attempt each.
    refused: HashSet<u64>,
    files: OfferPolicy,
}

enum InodeMode<B> {
    Cached { handles: u64 },
    Through { handles: u64, backing: B },
}

/// Whether files are offered to the kernel at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OfferPolicy {
    Offered,
    Withheld,
}

/// The server of the reads of a new handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadServer<B> {
    /// This process; the kernel caches pages.
    Cached,
    /// The kernel, from this file.
    Through(B),
}

/// The scope of the kernel's refusal of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusalReach {
    /// Every file: the kernel must not or cannot pass files through.
    EveryFile,
    /// This file alone is unsuitable.
    ThisFile,
}

impl<B> Default for InodeModes<B> {
    /// Passes nothing through until [`offer_files`](InodeModes::offer_files).
    fn default() -> Self {
        Self { open: HashMap::new(), refused: HashSet::new(), files: OfferPolicy::Withheld }
    }
}

impl<B: Clone> InodeModes<B> {
    /// Enables passthrough.
    pub(super) fn offer_files(&mut self) {
        self.files = OfferPolicy::Offered;
    }

    /// Whether a file for `inode` would be offered to the kernel if the inode is opened now.
    pub(super) fn wants_file(&self, inode: u64) -> bool {
        self.files == OfferPolicy::Offered
            && !self.open.contains_key(&inode)
            && !self.refused.contains(&inode)
    }

    /// Counts a new handle of `inode` and returns its server. `register` makes the inode's file known to the kernel.
    /// It is called at most once, and only for a closed inode.
    pub(super) fn open(
        &mut self,
        inode: u64,
        register: Option<impl FnOnce() -> Result<B, RefusalReach>>,
    ) -> ReadServer<B> {
        match self.open.get_mut(&inode) {
            Some(InodeMode::Cached { handles }) => {
                *handles += 1;
                return ReadServer::Cached;
            }
            Some(InodeMode::Through { handles, backing }) => {
                *handles += 1;
                return ReadServer::Through(backing.clone());
            }
            None => {}
        }
        let mode = match register.filter(|_| self.wants_file(inode)).map(|register| register()) {
            Some(Ok(backing)) => InodeMode::Through { handles: 1, backing },
            Some(Err(refusal)) => {
                match refusal {
                    RefusalReach::EveryFile => self.files = OfferPolicy::Withheld,
                    RefusalReach::ThisFile => {
                        self.refused.insert(inode);
                    }
                }
                InodeMode::Cached { handles: 1 }
            }
            None => InodeMode::Cached { handles: 1 },
        };
        let served = match &mode {
            InodeMode::Cached { .. } => ReadServer::Cached,
            InodeMode::Through { backing, .. } => ReadServer::Through(backing.clone()),
        };
        self.open.insert(inode, mode);
        served
    }

    /// Removes a handle that the kernel has released. The last one returns the file, for the caller to drop outside
    /// the lock.
    pub(super) fn close(&mut self, inode: u64) -> Option<B> {
        let left = match self.open.get_mut(&inode)? {
            InodeMode::Cached { handles } | InodeMode::Through { handles, .. } => {
                *handles -= 1;
                *handles
            }
        };
        if left > 0 {
            return None;
        }
        match self.open.remove(&inode)? {
            InodeMode::Cached { .. } => None,
            InodeMode::Through { backing, .. } => Some(backing),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Weak};

    use proptest::prelude::*;

    use super::*;

    /// Held like the real thing: whoever can still upgrade finds it in use.
    type Backing = Arc<u32>;

    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A request to open arrives and is decided on.
        Open(u64),
        /// The answer to an open that was decided on reaches the kernel, in any order.
        Deliver(usize),
        /// The kernel drops a handle.
        Drop(usize),
        /// Its release reaches us, in any order.
        Release(usize),
        /// The content becomes complete.
        Complete(u64),
        /// Somebody wants the content's room.
        Evict(u64),
        /// The kernel will refuse the inode's file.
        Refuse(u64),
        /// The kernel will refuse every file.
        RefuseAll,
    }

    fn event() -> impl Strategy<Value = Event> {
        let inode = 0..3_u64;
        let at = any::<usize>();
        prop_oneof![
            6 => inode.clone().prop_map(Event::Open),
            6 => at.prop_map(Event::Deliver),
            5 => at.prop_map(Event::Drop),
            5 => at.prop_map(Event::Release),
            3 => inode.clone().prop_map(Event::Complete),
            3 => inode.clone().prop_map(Event::Evict),
            1 => inode.prop_map(Event::Refuse),
            1 => Just(Event::RefuseAll),
        ]
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Stage {
        Decided,
        Open,
        Dropped,
    }

    /// A handle as an outside observer sees it: the file by its number, so that the observer keeps nothing alive.
    #[derive(Clone, Debug)]
    struct Seen {
        inode: u64,
        file: Option<u32>,
        stage: Stage,
    }

    /// The rules of the kernel and the plainest reading of ours, recomputed from all handles at every event.
    #[derive(Default)]
    struct Model {
        handles: Vec<Seen>,
        complete: HashSet<u64>,
        refused: HashSet<u64>,
        all_refused: bool,
        files: HashMap<u32, Weak<u32>>,
    }

    impl Model {
        fn nth(&self, stage: Stage, at: usize) -> Option<usize> {
            let of: Vec<usize> =
                (0..self.handles.len()).filter(|&handle| self.handles[handle].stage == stage).collect();
            (!of.is_empty()).then(|| of[at % of.len()])
        }

        /// What the kernel does with an answer: `false` is the EIO of a mixture.
        fn kernel_accepts(&self, answer: &Seen) -> bool {
            let known = answer.file.is_none_or(|file| self.files[&file].strong_count() > 0);
            let mut others =
                self.handles.iter().filter(|it| it.inode == answer.inode && it.stage == Stage::Open);
            known && others.all(|other| other.file == answer.file)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_order_of_opens_replies_and_releases_shows_the_kernel_a_mixture(
            events in proptest::collection::vec(event(), 1..120)
        ) {
            let mut modes: InodeModes<Backing> = InodeModes::default();
            modes.offer_files();
            let mut model = Model::default();
            for event in events {
                match event {
                    Event::Open(inode) => {
                        let open: Vec<_> = model.handles.iter().filter(|it| it.inode == inode).cloned().collect();
                        let number = model.files.len() as u32;
                        let refusal = match (model.all_refused, model.refused.contains(&inode)) {
                            (true, _) => Some(RefusalReach::EveryFile),
                            (false, true) => Some(RefusalReach::ThisFile),
                            (false, false) => None,
                        };
                        let mut made = None;
                        let register = || match refusal {
                            Some(refusal) => Err(refusal),
                            None => {
                                let backing = Arc::new(number);
                                made = Some(Arc::downgrade(&backing));
                                Ok(backing)
                            }
                        };
                        let offered = model.complete.contains(&inode);
                        let served = modes.open(inode, offered.then_some(register));
                        let expected = match open.first() {
                            Some(other) => other.file,
                            None => (offered && refusal.is_none()).then_some(number),
                        };
                        if let Some(made) = made {
                            model.files.insert(number, made);
                        }
                        let file = match served {
                            ReadServer::Cached => None,
                            ReadServer::Through(backing) => Some(*backing),
                        };
                        prop_assert_eq!(file, expected);
                        model.handles.push(Seen { inode, file, stage: Stage::Decided });
                    }
                    Event::Deliver(at) => if let Some(at) = model.nth(Stage::Decided, at) {
                        prop_assert!(model.kernel_accepts(&model.handles[at]), "EIO for {:?}", model.handles[at]);
                        model.handles[at].stage = Stage::Open;
                    }
                    Event::Drop(at) => if let Some(at) = model.nth(Stage::Open, at) {
                        model.handles[at].stage = Stage::Dropped;
                    }
                    Event::Release(at) => if let Some(at) = model.nth(Stage::Dropped, at) {
                        let gone = model.handles.remove(at);
                        let left = model.handles.iter().filter(|it| it.inode == gone.inode).count();
                        let freed = modes.close(gone.inode).map(|backing| *backing);
                        prop_assert_eq!(freed, gone.file.filter(|_| left == 0));
                    }
                    Event::Complete(inode) => { model.complete.insert(inode); }
                    Event::Evict(inode) => {
                        let held = model.files.values().filter_map(Weak::upgrade);
                        let in_use: HashSet<u32> = held.map(|backing| *backing).collect();
                        let wanted = model.handles.iter().filter(|it| it.inode == inode).filter_map(|it| it.file);
                        let wanted: HashSet<u32> = wanted.collect();
                        prop_assert!(wanted.is_subset(&in_use), "{wanted:?} could be evicted while open");
                        if wanted.is_empty() {
                            model.complete.remove(&inode);
                        }
                    }
                    Event::Refuse(inode) => { model.refused.insert(inode); }
                    Event::RefuseAll => model.all_refused = true,
                }
                // Nothing is held for longer than it is open.
                let needed: HashSet<u32> = model.handles.iter().filter_map(|it| it.file).collect();
                for (file, held) in &model.files {
                    prop_assert_eq!(held.strong_count() > 0, needed.contains(file), "file {}", file);
                }
            }
        }
    }

    fn gives(file: u32) -> Option<impl FnOnce() -> Result<u32, RefusalReach>> {
        Some(move || Ok(file))
    }

    fn refuses(refusal: RefusalReach) -> Option<impl FnOnce() -> Result<u32, RefusalReach>> {
        Some(move || Err(refusal))
    }

    #[test]
    fn nothing_is_offered_until_the_kernel_agreed() {
        let mut modes = InodeModes::default();
        assert!(!modes.wants_file(1));
        assert_eq!(modes.open(1, gives(7)), ReadServer::Cached);
    }

    #[test]
    fn content_that_completes_under_a_cached_handle_waits_for_its_close() {
        let mut modes = InodeModes::default();
        modes.offer_files();
        assert_eq!(modes.open(1, None::<fn() -> Result<u32, RefusalReach>>), ReadServer::Cached);
        assert!(!modes.wants_file(1));
        assert_eq!(modes.open(1, gives(7)), ReadServer::Cached);
        assert_eq!((modes.close(1), modes.close(1)), (None, None));
        assert_eq!(modes.open(1, gives(8)), ReadServer::Through(8));
        assert_eq!(modes.open(1, gives(9)), ReadServer::Through(8));
        assert_eq!((modes.close(1), modes.close(1)), (None, Some(8)));
        assert_eq!(modes.close(1), None);
    }

    #[test]
    fn a_refused_file_is_served_and_not_offered_again_and_others_still_are() {
        let mut modes = InodeModes::default();
        modes.offer_files();
        assert_eq!(modes.open(1, refuses(RefusalReach::ThisFile)), ReadServer::Cached);
        modes.close(1);
        assert!(!modes.wants_file(1) && modes.wants_file(2));
        assert_eq!(modes.open(1, gives(7)), ReadServer::Cached);
        assert_eq!(modes.open(2, refuses(RefusalReach::EveryFile)), ReadServer::Cached);
        assert!(!modes.wants_file(3));
        assert_eq!(modes.open(3, gives(7)), ReadServer::Cached);
    }
}
