//! Layer union: applies one layer's table of contents on top of a tree.
//!
//! Resolution stays inside the tree: every symbolic link is followed in it, and every `..` stops at its root. All
//! hidden paths are resolved in the tree as it was before the layer, then removed. Only then are the entries applied,
//! in archive order. So a whiteout cannot hit its own layer, whatever the order of the archive. The rules are those
//! of the image specification (layer.md, "Applying Changesets"); where it is silent, the behaviour on which the
//! appliers agree. A path is walked like their `SecureJoin`: a missing component counts as a directory to come.

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};

use crate::layer::{EntryRef, TableOfContents, TocEntryKind};

use super::builder::{DIRECTORY, InodeMeta, TreeBuilder, implied};
use super::error::{EntryProblem, TreeError, shown};
use super::frozen::NodeBody;
use super::limits::{LINK_STEP_BYTES, MAX_NAME, MAX_PATH};
use super::names::InodeId;
use super::path::{self, WhiteoutMark};
use crate::owner::MAX_LINKS;

impl TreeBuilder {
    /// Applies one layer on top by the rules of the union. `origin` is stored with the content of its files.
    ///
    /// After an error the tree is unusable. Errors that depend on names alone are found before any change.
    pub fn apply(&mut self, origin: u32, toc: &TableOfContents) -> Result<(), TreeError> {
        let (mut hides, mut cleaned) = (false, Vec::new());
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            let mark = check(&entry, &cleaned, WhiteoutCheck::Apply)
                .map_err(|problem| at(origin, &entry, problem))?;
            hides |= matches!(mark, WhiteoutMark::Whiteout(_) | WhiteoutMark::Opaque);
        }
        let mut placing = LayerApply::new(origin, &[]);
        if hides {
            placing.lower = self.lower_targets(toc);
            self.hide(origin, toc)?;
            // A target that is still in the tree is looked up later, since an entry of this layer may replace it for
            // its links as well.
            placing.lower.retain(|target, _| self.target_in(self.base, &path::clean(target)).is_none());
        }
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            let placed = match path::mark(&cleaned) {
                Ok(WhiteoutMark::Plain) => self.place(&mut placing, &entry, &cleaned),
                Ok(WhiteoutMark::Leftover) => self.set_aside(origin, &entry, &cleaned),
                Ok(WhiteoutMark::Whiteout(_) | WhiteoutMark::Opaque) | Err(_) => Ok(()),
            };
            placed.map_err(|problem| at(origin, &entry, problem))?;
        }
        Ok(())
    }

    /// Resolves the hard links of a layer in the layers below, before any path is hidden: a layer may give a file a
    /// second name and delete the first, in either order.
    fn lower_targets<'a>(&self, toc: &'a TableOfContents) -> HashMap<&'a [u8], InodeId> {
        let targets = toc.iter().filter_map(|entry| match entry.kind {
            TocEntryKind::HardLink(target) => Some(target),
            _ => None,
        });
        targets
            .filter_map(|target| Some((target, self.target_in(self.base, &path::clean(target))?)))
            .collect()
    }

    /// Stores an aufs bookkeeping entry in a detached directory, for hard links to it: Docker stored a file of
    /// several names in `.wh..wh.plnk` (moby go-archive `UnpackLayer`).
    fn set_aside(
        &mut self,
        origin: u32,
        entry: &EntryRef<'_>,
        cleaned: &[&[u8]],
    ) -> Result<(), EntryProblem> {
        let aside = self.aside.unwrap_or_else(|| self.detached());
        self.aside = Some(aside);
        let base = std::mem::replace(&mut self.base, aside);
        let placed = self.place(&mut LayerApply::new(origin, &[]), entry, cleaned);
        self.base = base;
        match placed {
            Err(
                problem @ (EntryProblem::TooManyNames { .. }
                | EntryProblem::TooManyBytes
                | EntryProblem::TooManySteps),
            ) => Err(problem),
            // Any other problem surfaces when a hard link needs the entry.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Applies one layer as a plain archive: whiteouts and aufs bookkeeping stay the files they are recorded as.
    ///
    /// Returns the cleaned paths of the hard links whose target does not exist when their entry comes. Their file is
    /// in a layer below, so they are omitted.
    pub fn apply_alone(&mut self, origin: u32, toc: &TableOfContents) -> Result<Vec<Vec<u8>>, TreeError> {
        self.unpack(&mut LayerApply::new(origin, &[]), toc)
    }

    /// Implements [`TreeBuilder::apply_alone`] for the options in `placing`.
    pub(super) fn unpack<'a>(
        &mut self,
        placing: &mut LayerApply<'a>,
        toc: &'a TableOfContents,
    ) -> Result<Vec<Vec<u8>>, TreeError> {
        let origin = placing.origin;
        let (mut left_out, mut cleaned) = (Vec::new(), Vec::new());
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            check(&entry, &cleaned, WhiteoutCheck::Keep).map_err(|problem| at(origin, &entry, problem))?;
        }
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            match self.place(placing, &entry, &cleaned) {
                Err(EntryProblem::LinkToNothing { .. }) => left_out.push(cleaned.join(&b'/')),
                placed => placed.map_err(|problem| at(origin, &entry, problem))?,
            }
        }
        Ok(left_out)
    }

    /// Removes the paths that the whiteouts and opaque markers of a layer name, resolved in the tree below that
    /// layer.
    fn hide(&mut self, origin: u32, toc: &TableOfContents) -> Result<(), TreeError> {
        // Evaluated only if a symbolic link is on the way, which is rare.
        let own: LayerDirectories<'_> = LazyCell::new(Box::new(|| {
            toc.iter()
                .filter(|entry| entry.kind == TocEntryKind::Directory)
                .map(|entry| path::clean(entry.path).join(&b'/'))
                .collect()
        }));
        let mut names: Vec<(InodeId, &[u8])> = Vec::new();
        let (mut opaque, mut cleaned): (Vec<InodeId>, _) = (Vec::new(), Vec::new());
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            let parents = &cleaned[..cleaned.len().saturating_sub(1)];
            let lower = || self.lower_directory(parents, &own).map_err(|problem| at(origin, &entry, problem));
            // Every name has passed all checks at this point.
            match path::mark(&cleaned) {
                Ok(WhiteoutMark::Whiteout(name)) => names.extend(lower()?.map(|dir| (dir, name))),
                Ok(WhiteoutMark::Opaque) => opaque.extend(lower()?),
                _ => {}
            }
        }
        for (dir, name) in names {
            self.detach(dir, name);
        }
        for dir in opaque {
            self.clear(dir);
        }
        Ok(())
    }

    /// The directory that contains a whiteout, in the layers below. `None` if there is none, or if the layer replaces
    /// a symbolic link on the way by its own directory: then nothing below is visible through the link.
    fn lower_directory(
        &self,
        parents: &[&[u8]],
        own: &LayerDirectories<'_>,
    ) -> Result<Option<InodeId>, EntryProblem> {
        let replaced = |depth: usize| own.contains(&parents[..=depth].join(&b'/'));
        match self.walk(parents, replaced) {
            Ok(walked) => Ok(walked.pending.is_empty().then(|| walked.directory())),
            Err(EntryProblem::TooManySteps) => Err(EntryProblem::TooManySteps),
            Err(_) => Ok(None),
        }
    }

    /// Adds one entry at the path that its name leads to.
    pub(super) fn place<'a>(
        &mut self,
        placing: &mut LayerApply<'a>,
        entry: &EntryRef<'a>,
        cleaned: &[&[u8]],
    ) -> Result<(), EntryProblem> {
        let Some((&name, parents)) = cleaned.split_last() else {
            // `check` has refused every other type.
            let meta = self.recorded(entry)?;
            self.set_meta(self.base, meta);
            placing.record(self.base);
            return Ok(());
        };
        // Before the parents are created: an omitted link must leave no trace.
        let linked = match entry.kind {
            TocEntryKind::HardLink(target) => Some(self.link_target(target, placing)?),
            _ => None,
        };
        let dir = self.directory_for(entry.path, parents, name, &mut placing.near)?;
        let meta = self.recorded(entry)?;
        let body = match entry.kind {
            TocEntryKind::HardLink(_) => {
                let Some(id) = linked else { return Ok(()) };
                self.attach(dir, name, id)?;
                self.set_link_meta(id, meta);
                return Ok(());
            }
            TocEntryKind::Directory => {
                let there = self.child(dir, name).filter(|&id| self.is_directory(id));
                let id = match there {
                    Some(id) => {
                        self.set_meta(id, meta);
                        id
                    }
                    None => self.attach_new(dir, name, DIRECTORY, meta)?,
                };
                placing.record(id);
                return Ok(());
            }
            TocEntryKind::File(content) => {
                return self.attach_file(dir, name, (placing.origin, content), meta);
            }
            TocEntryKind::Symlink(target) => self.symlink(target)?,
            TocEntryKind::CharDevice(device) => NodeBody::CharDevice(device),
            TocEntryKind::BlockDevice(device) => NodeBody::BlockDevice(device),
            TocEntryKind::Fifo => NodeBody::Fifo,
        };
        self.attach_new(dir, name, body, meta)?;
        Ok(())
    }

    /// The inode of a hard link's target: in the tree, in the aufs bookkeeping, or among the files that this layer
    /// hides.
    fn link_target(&self, target: &[u8], placing: &LayerApply<'_>) -> Result<InodeId, EntryProblem> {
        let (cleaned, below) = (path::clean(target), placing.below);
        let cleaned = path::within(&cleaned, below)
            .ok_or_else(|| EntryProblem::Outside { what: shown(target), below: shown(&below.join(&b'/')) })?;
        if cleaned.is_empty() {
            return Err(EntryProblem::LinkToDirectory { target: shown(target) });
        }
        let found = self
            .target_in(self.base, cleaned)
            .or_else(|| self.aside_target(cleaned))
            .or_else(|| placing.lower.get(target).copied());
        if self.link_steps.get() == 0 {
            // The walks behind `found` have failed, or those that filled `placing.lower`.
            return Err(EntryProblem::TooManySteps);
        }
        let id = found.ok_or_else(|| EntryProblem::LinkToNothing { target: shown(target) })?;
        match self.body(id) {
            NodeBody::Directory { .. } | NodeBody::Graft(_) => {
                Err(EntryProblem::LinkToDirectory { target: shown(target) })
            }
            _ => Ok(id),
        }
    }

    /// The inode of a path in the aufs bookkeeping. Parent directories that were created for it match no other path.
    fn aside_target(&self, cleaned: &[&[u8]]) -> Option<InodeId> {
        let aside = self.aside.filter(|_| path::mark(cleaned) == Ok(WhiteoutMark::Leftover))?;
        self.target_in(aside, cleaned)
    }

    /// The inode at a cleaned path below `base`. Links among its parents are followed; the last component is not.
    fn target_in(&self, base: InodeId, cleaned: &[&[u8]]) -> Option<InodeId> {
        let (name, parents) = cleaned.split_last()?;
        let walked =
            self.walk_from(base, parents, |_| false).ok().filter(|walked| walked.pending.is_empty())?;
        self.child(walked.directory(), name)
    }

    /// The parent directory of an entry; not walked again if the entry before had the same parent.
    fn directory_for<'a>(
        &mut self,
        recorded: &'a [u8],
        parents: &[&[u8]],
        name: &[u8],
        near: &mut Option<LastDirectory<'a>>,
    ) -> Result<InodeId, EntryProblem> {
        let recorded = recorded.strip_suffix(b"/").unwrap_or(recorded);
        // If only the name follows a slash, the text before it always stands for `parents`.
        let above = recorded.strip_suffix(name).filter(|above| above.is_empty() || above.ends_with(b"/"));
        if let (Some(above), Some(near)) = (above, &*near)
            && near.above == above
            && near.replaced == self.replaced
            && near.len + name.len() <= MAX_PATH
        {
            return Ok(near.dir);
        }
        let (dir, len) = self.make_directory(parents, name)?;
        *near = above.map(|above| LastDirectory { above, dir, len, replaced: self.replaced });
        Ok(dir)
    }

    /// The directory at `parents` and the length of its path in bytes. Missing directories on the way are created.
    fn make_directory(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(InodeId, usize), EntryProblem> {
        let walked = self.walk(parents, |_| false)?;
        if walked.blocked {
            return Err(EntryProblem::BelowNonDirectory);
        }
        // Links can lead deeper than the recorded name shows; an applier would hit the kernel's limit at this point.
        let above = walked.len();
        let len = above + name.len();
        if len > MAX_PATH {
            return Err(EntryProblem::PathTooLong { len });
        }
        let mut dir = walked.directory();
        let missing: Vec<Box<[u8]>> = walked.pending.iter().map(|&name| name.into()).collect();
        if let Some(name) = missing.iter().find(|name| name.len() > MAX_NAME) {
            return Err(EntryProblem::NameTooLong { len: name.len() });
        }
        for name in missing {
            dir = self.attach_new(dir, &name, DIRECTORY, implied(0o755))?;
        }
        Ok((dir, above))
    }

    /// Walks cleaned components from the root. `stop(i)` is called when component `i` is a symbolic link; if true,
    /// the walk fails instead of following it.
    fn walk<'a>(
        &'a self,
        cleaned: &[&'a [u8]],
        stop: impl Fn(usize) -> bool,
    ) -> Result<WalkEnd<'a>, EntryProblem> {
        self.walk_from(self.base, cleaned, stop)
    }

    /// Like `walk`, from the directory `base`.
    fn walk_from<'a>(
        &'a self,
        base: InodeId,
        cleaned: &[&'a [u8]],
        stop: impl Fn(usize) -> bool,
    ) -> Result<WalkEnd<'a>, EntryProblem> {
        let mut walked = WalkEnd { base, dirs: Vec::new(), pending: Vec::new(), blocked: false };
        // Remaining components, last first; components of link targets have no index in `cleaned`.
        let mut ahead: Vec<(&[u8], Option<usize>)> =
            cleaned.iter().enumerate().rev().map(|(place, &name)| (name, Some(place))).collect();
        let mut links = 0;
        while let Some((name, place)) = ahead.pop() {
            if name == b".." {
                walked.up();
                continue;
            }
            let child = if walked.pending.is_empty() { self.child(walked.directory(), name) } else { None };
            let Some(child) = child else {
                walked.pending.push(name);
                continue;
            };
            let body = self.body(child);
            match (body, self.target(body)) {
                (NodeBody::Directory { .. }, _) => walked.dirs.push((child, name.len())),
                (_, Some(target)) => {
                    links += 1;
                    // No kernel has a link longer than a path.
                    if links > MAX_LINKS || target.len() > MAX_PATH || place.is_some_and(&stop) {
                        return Err(EntryProblem::BelowNonDirectory);
                    }
                    if target.starts_with(b"/") {
                        walked.dirs.clear();
                    }
                    let before = ahead.len();
                    ahead.extend(path::components(target).rev().map(|name| (name, None)));
                    let steps = 1 + ahead.len() - before + target.len() / LINK_STEP_BYTES;
                    // `stop` joins the components in front of the link.
                    self.follow((steps + place.unwrap_or_default()) as u64)?;
                }
                _ => {
                    walked.pending.push(name);
                    walked.blocked = true;
                }
            }
        }
        Ok(walked)
    }

    /// Takes steps from the budget of the tree.
    fn follow(&self, steps: u64) -> Result<(), EntryProblem> {
        let left = self.link_steps.get().saturating_sub(steps);
        self.link_steps.set(left);
        if left == 0 { Err(EntryProblem::TooManySteps) } else { Ok(()) }
    }

    /// The attributes that an entry records.
    fn recorded(&mut self, entry: &EntryRef<'_>) -> Result<InodeMeta, EntryProblem> {
        let xattrs = self.intern(entry.xattrs)?;
        Ok(InodeMeta { mtime: entry.mtime, uid: entry.uid, gid: entry.gid, xattrs, mode: entry.mode })
    }

    /// Applies the attributes of a hard link entry to the shared inode. An entry without extended attributes removes
    /// none: GNU tar writes them with the first name only.
    fn set_link_meta(&mut self, id: InodeId, meta: InodeMeta) {
        let old = self.meta(id);
        let xattrs = if meta.xattrs == 0 { old.xattrs } else { meta.xattrs };
        self.set_meta(id, InodeMeta { xattrs, ..meta });
    }
}

/// Cleaned paths of the directories in a layer, computed on first use.
type LayerDirectories<'a> = LazyCell<HashSet<Vec<u8>>, Box<dyn FnOnce() -> HashSet<Vec<u8>> + 'a>>;

/// State for adding the entries of one layer.
pub(super) struct LayerApply<'a> {
    /// Number that is stored with the content of files.
    pub(super) origin: u32,
    /// The directory of the archive that becomes the root; targets of hard links are resolved in it.
    below: &'a [&'a [u8]],
    near: Option<LastDirectory<'a>>,
    /// The directories that have entries of their own; `None` if the caller does not need them.
    pub(super) recorded: Option<Vec<InodeId>>,
    /// Hard link targets that this layer hides, with their inodes in the layers below.
    lower: HashMap<&'a [u8], InodeId>,
}

impl<'a> LayerApply<'a> {
    pub(super) fn new(origin: u32, below: &'a [&'a [u8]]) -> Self {
        Self { origin, below, near: None, recorded: None, lower: HashMap::new() }
    }

    fn record(&mut self, id: InodeId) {
        if let Some(recorded) = &mut self.recorded {
            recorded.push(id);
        }
    }
}

/// The parent directory of the previous entry: archives list directories one after the other.
struct LastDirectory<'a> {
    /// Its path as recorded.
    above: &'a [u8],
    dir: InodeId,
    /// Length of its path in bytes, each component with a slash after it.
    len: usize,
    /// [`TreeBuilder::replaced`] when it was found: the same path can lead to another directory only after a name was
    /// replaced.
    replaced: u32,
}

/// The end of a walk.
struct WalkEnd<'a> {
    /// The directory where the walk started.
    base: InodeId,
    /// Directories below the root, each with the length of its name.
    dirs: Vec<(InodeId, usize)>,
    /// Components after `dirs` that are not directories at the moment.
    pending: Vec<&'a [u8]>,
    /// Whether the first of `pending` exists as something other than a directory; false when `pending` is empty.
    blocked: bool,
}

impl WalkEnd<'_> {
    /// The last directory that exists.
    fn directory(&self) -> InodeId {
        self.dirs.last().map_or(self.base, |&(id, _)| id)
    }

    fn up(&mut self) {
        if self.pending.pop().is_none() {
            self.dirs.pop();
        }
        self.blocked &= !self.pending.is_empty();
    }

    /// Length of the path so far in bytes, each component with a slash after it.
    fn len(&self) -> usize {
        let dirs: usize = self.dirs.iter().map(|(_, len)| len + 1).sum();
        dirs + self.pending.iter().map(|name| name.len() + 1).sum::<usize>()
    }
}

/// Treatment of names that start with `.wh.` in `check`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WhiteoutCheck {
    Apply,
    Keep,
}

/// Checks an entry for all problems that do not depend on the tree.
pub(super) fn check<'a>(
    entry: &EntryRef<'a>,
    cleaned: &[&'a [u8]],
    whiteouts: WhiteoutCheck,
) -> Result<WhiteoutMark<'a>, EntryProblem> {
    path::check(cleaned)?;
    if cleaned.is_empty() && entry.kind != TocEntryKind::Directory {
        return Err(EntryProblem::RootNotADirectory);
    }
    match whiteouts {
        WhiteoutCheck::Apply => path::mark(cleaned),
        WhiteoutCheck::Keep => Ok(WhiteoutMark::Plain),
    }
}

pub(super) fn at(layer: u32, entry: &EntryRef<'_>, problem: EntryProblem) -> TreeError {
    TreeError::Entry { layer, header: entry.header, entry: shown(entry.path), problem }
}
