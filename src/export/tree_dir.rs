//! Tree export to a directory: a tree of a mount as files of this machine.
//!
//! Writes stay inside the directory, follow no link, and take over no existing file. Every name is created by a call
//! that fails if the name exists. It is relative to a directory of our own, which no other user can enter before its
//! content is complete. Only root sets owners. Privileged metadata is written only on request.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod,
    fchown, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::io::BoxFuture;
use crate::tree::InodeKind;
use crate::view::{MountNamespace, NodeAttributes, NodeId};

use super::archive::{ExportProgress, READAHEAD_DEPTH};
use super::copy::{CopyTarget, fill};
use super::place::LIST;
use super::preserve::{PreservedMetadata, WithheldCounts};
use super::private_tree::PrivateTree;
use super::tree_tar::opened;
use super::walk::{ExportWalk, WalkStep};
use super::{ExportError, compared};

/// The most directories held open: those used last.
const MAX_HELD: usize = 32;

/// The most names listed with their reasons in a report.
const MAX_LISTED_NAMES: usize = 16;

/// The result of a tree export, with the deviations from the recorded tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirReport {
    /// The number of names in the tree.
    pub names: u64,
    /// Whether owners were left out, because only root may set them.
    pub unowned: bool,
    /// Metadata left out because it was not selected.
    pub withheld: WithheldCounts,
    /// The number of missing or incomplete names.
    pub incomplete: u64,
    /// The first of these names, each with its reason.
    pub listed: Vec<(String, String)>,
}

impl DirReport {
    fn note(&mut self, path: &[u8], what: &str, errno: Errno) {
        self.incomplete += 1;
        if self.listed.len() < MAX_LISTED_NAMES {
            self.listed.push((String::from_utf8_lossy(path).into_owned(), format!("{what}: {errno}")));
        }
    }
}

/// State of a running export.
struct DirectoryWriter<'a> {
    namespace: &'a MountNamespace,
    directory: &'a Path,
    tree: PrivateTree,
    preserve: PreservedMetadata,
    /// Directories by path, the last one opened last.
    held: VecDeque<(Vec<u8>, Arc<OwnedFd>)>,
    is_root: bool,
    report: DirReport,
}

/// A complete file, without owner, mode and time yet.
struct FinishedFile {
    file: File,
    node: NodeId,
    path: Vec<u8>,
    attributes: NodeAttributes,
}

/// Writes the content of the directory at `path` of `namespace` to `directory`, which is absent or empty. On an
/// error, or if the future is dropped, the files written are removed.
pub async fn write_tree(
    namespace: &MountNamespace,
    path: &[u8],
    directory: &Path,
    preserve: PreservedMetadata,
    advance: ExportProgress<'_>,
) -> Result<DirReport, ExportError> {
    let start = namespace.resolve(path).await?;
    // Checked before any write: `start` has to be a directory.
    let mut walk = ExportWalk::below(namespace, start).await?;
    let mut writer = DirectoryWriter {
        namespace,
        directory,
        tree: PrivateTree::make(directory)?,
        preserve,
        held: VecDeque::new(),
        is_root: nix::unistd::geteuid().is_root(),
        report: DirReport::default(),
    };
    let mut files: FuturesUnordered<BoxFuture<'_, Result<FinishedFile, ExportError>>> =
        FuturesUnordered::new();
    let mut directories: Vec<(Vec<u8>, NodeId, NodeAttributes)> = Vec::new();
    let mut others: Vec<Vec<u8>> = Vec::new();
    while let Some(step) = walk.next().await? {
        writer.report.names += 1;
        let is_directory = matches!(step.attributes.kind, InodeKind::Directory | InodeKind::Graft(_));
        match is_directory {
            true => directories.push((step.path.clone(), step.node, step.attributes)),
            false if !step.path.contains(&b'/') => others.push(step.path.clone()),
            false => {}
        }
        if let Some(file) = writer.make(&step)? {
            files.push(Box::pin(copy(namespace, directory, file, step, advance)));
        }
        while files.len() >= READAHEAD_DEPTH
            && let Some(done) = files.next().await
        {
            writer.finish(done?)?;
        }
    }
    while let Some(done) = files.next().await {
        writer.finish(done?)?;
    }
    drop(files);
    compared(namespace).await?;
    // Innermost first: a new name changes the time of its directory, whose final mode may forbid writing.
    for (path, node, attributes) in directories.iter().rev() {
        let opened = writer.open_directory(path)?;
        // Before the directory gets a mode that forbids moving it.
        if !path.contains(&b'/') {
            writer.tree.publish(path)?;
        }
        writer.finish_open(&opened.into(), path, *node, attributes)?;
    }
    for path in &others {
        if writer.was_made(path) {
            writer.tree.publish(path)?;
        }
    }
    // From now on other users may enter, so nothing is removed any more.
    writer.tree.keep();
    if writer.tree.is_new()
        && let Some(attributes) = namespace.attributes(start)
    {
        let top = openat(writer.tree.top(), ".", LIST, Mode::empty()).map_err(writer.failed(b""))?;
        writer.finish_open(&top.into(), b"", start, &attributes)?;
    }
    writer.report.unowned = !writer.is_root;
    Ok(writer.report)
}

async fn copy(
    namespace: &MountNamespace,
    directory: &Path,
    file: File,
    step: WalkStep,
    advance: ExportProgress<'_>,
) -> Result<FinishedFile, ExportError> {
    let bytes = opened(namespace, step.node, &step.path).await?;
    let name = directory.join(String::from_utf8_lossy(&step.path).as_ref());
    fill(&bytes, &CopyTarget { file: &file, path: &name }, 1, advance).await?;
    Ok(FinishedFile { file, node: step.node, path: step.path, attributes: step.attributes })
}

impl DirectoryWriter<'_> {
    fn failed(&self, path: &[u8]) -> impl FnOnce(Errno) -> ExportError + use<> {
        let path = self.directory.join(String::from_utf8_lossy(path).as_ref());
        move |errno| ExportError::file(&path)(errno.into())
    }

    /// Whether a name of the top was created, and not left out.
    fn was_made(&self, name: &[u8]) -> bool {
        rustix::fs::statat(self.tree.top(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Opens a directory of the tree, by a walk from the top that follows no link.
    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, ExportError> {
        let failed = |errno| self.failed(path)(errno);
        let mut here = openat(self.tree.top(), ".", LIST, Mode::empty()).map_err(failed)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            here = openat(&here, name, LIST, Mode::empty()).map_err(failed)?;
        }
        Ok(here)
    }

    /// Opens a directory of the tree, or reuses a held one.
    fn directory(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, ExportError> {
        if let Some((_, held)) = self.held.iter().rev().find(|(held, _)| held == path) {
            return Ok(held.clone());
        }
        let opened = self.open_directory(path)?;
        Ok(self.hold(path, opened))
    }

    fn hold(&mut self, path: &[u8], directory: OwnedFd) -> Arc<OwnedFd> {
        if self.held.len() >= MAX_HELD {
            self.held.pop_front();
        }
        let directory = Arc::new(directory);
        self.held.push_back((path.to_vec(), directory.clone()));
        directory
    }

    /// Creates one name. Returns a file to fill.
    fn make(&mut self, step: &WalkStep) -> Result<Option<File>, ExportError> {
        let (parent, name) = parted(&step.path);
        let failed = self.failed(&step.path);
        let directory = self.directory(parent)?;
        if let Some(before) = &step.before {
            let (parent, before) = parted(before);
            let first = self.directory(parent)?;
            match linkat(&first, before, &directory, name, AtFlags::empty()) {
                // A hard link to a device that was left out.
                Err(Errno::NOENT) if !self.preserve.makes(step.attributes.kind) => {
                    self.report.withheld.devices += 1;
                }
                Err(errno @ Errno::NOENT) if self.report.incomplete > 0 => {
                    self.report.note(&step.path, "the link is missing", errno);
                }
                linked => {
                    linked.map_err(failed)?;
                    self.tree.remember(&step.path);
                }
            }
            return Ok(None);
        }
        if !self.preserve.makes(step.attributes.kind) {
            self.report.withheld.devices += 1;
            return Ok(None);
        }
        match step.attributes.kind {
            InodeKind::Directory | InodeKind::Graft(_) => {
                // Closed to other users until it has its recorded mode.
                mkdirat(&directory, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                self.tree.remember(&step.path);
                let failed = self.failed(&step.path);
                let opened = openat(&directory, name, LIST, Mode::empty()).map_err(failed)?;
                self.hold(&step.path, opened);
            }
            InodeKind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&directory, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
                self.tree.remember(&step.path);
                return Ok(Some(file.into()));
            }
            InodeKind::Symlink => {
                let target = self.namespace.link(step.node).unwrap_or_default();
                symlinkat(target, &directory, name).map_err(failed)?;
                self.tree.remember(&step.path);
                self.finish_special(step, &directory, name)?;
            }
            InodeKind::CharDevice | InodeKind::BlockDevice | InodeKind::Fifo => {
                let kind = match step.attributes.kind {
                    InodeKind::CharDevice => FileType::CharacterDevice,
                    InodeKind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let mode = Mode::from_raw_mode(u32::from(step.attributes.mode));
                let device = makedev(step.attributes.rdev.major, step.attributes.rdev.minor);
                match mknodat(&directory, name, kind, mode, device) {
                    // Only root may create devices, and not on every file system.
                    Err(errno @ (Errno::PERM | Errno::ACCESS)) if kind != FileType::Fifo => {
                        self.report.note(&step.path, "the device is missing", errno);
                    }
                    made => {
                        made.map_err(failed)?;
                        self.tree.remember(&step.path);
                        self.finish_special(step, &directory, name)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Sets owner, time and attributes of a file that cannot be opened.
    fn finish_special(
        &mut self,
        step: &WalkStep,
        directory: &OwnedFd,
        name: &[u8],
    ) -> Result<(), ExportError> {
        let attributes = &step.attributes;
        if self.is_root {
            let (uid, gid) = owner(attributes);
            let changed = chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
            changed.map_err(self.failed(&step.path))?;
            if !matches!(attributes.kind, InodeKind::Symlink) {
                // Only after the owner, because chown clears bits of the mode. The held file is no link.
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let held = openat(directory, name, flags, Mode::empty()).map_err(self.failed(&step.path))?;
                let mode = Mode::from_raw_mode(u32::from(attributes.mode));
                let changed = chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), mode);
                changed.map_err(self.failed(&step.path))?;
            }
        }
        let path = [format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).as_bytes(), name].concat();
        for (key, value) in self.attributes(step.node) {
            if let Err(errno) = lsetxattr(&path[..], &key[..], &value, XattrFlags::empty()) {
                self.report.note(&step.path, &String::from_utf8_lossy(&key), errno);
            }
        }
        let changed = utimensat(directory, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW);
        changed.map_err(self.failed(&step.path))
    }

    /// The extended attributes to set; the others are counted as withheld.
    fn attributes(&mut self, node: NodeId) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut set = Vec::new();
        for (key, value) in self.namespace.xattrs(node) {
            match self.preserve.sets(key) {
                true => set.push((key.to_vec(), value.to_vec())),
                false => self.report.withheld.note_attribute(key),
            }
        }
        set
    }

    fn finish(&mut self, done: FinishedFile) -> Result<(), ExportError> {
        self.finish_open(&done.file, &done.path, done.node, &done.attributes)
    }

    /// Sets owner, attributes, mode and time, in this order: chown clears set-ID bits and file capabilities, and a
    /// restrictive mode can forbid setting attributes.
    fn finish_open(
        &mut self,
        file: &File,
        path: &[u8],
        node: NodeId,
        attributes: &NodeAttributes,
    ) -> Result<(), ExportError> {
        if self.is_root {
            let (uid, gid) = owner(attributes);
            fchown(file, uid, gid).map_err(self.failed(path))?;
        }
        for (key, value) in self.attributes(node) {
            if let Err(errno) = rustix::fs::fsetxattr(file, &key[..], &value, XattrFlags::empty()) {
                self.report.note(path, &String::from_utf8_lossy(&key), errno);
            }
        }
        let mode = self.preserve.mode(attributes);
        if mode != attributes.mode {
            self.report.withheld.set_id += 1;
        }
        fchmod(file, Mode::from_raw_mode(u32::from(mode))).map_err(self.failed(path))?;
        futimens(file, &times(attributes)).map_err(self.failed(path))
    }
}

/// The path of the parent directory, and the name in it.
fn parted(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn owner(attributes: &NodeAttributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

fn times(attributes: &NodeAttributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.mtime.secs, tv_nsec: i64::from(attributes.mtime.nanos) };
    Timestamps { last_access: time, last_modification: time }
}
