//! A tree of a mount as files of this machine.
//!
//! Never writes outside of the directory, follows no link, and takes over nothing that was there. The idea: the directory is new or
//! empty, every name is made by a call that fails if there is one, relative to a directory that was made here and is held open; what
//! only root may do is done by root, and told to everybody else.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, open, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::io::BoxFuture;
use crate::tree::Kind;
use crate::view::{Attributes, Namespace, NodeId};

use super::archive::{AHEAD, Advance};
use super::copy::{Target, fill};
use super::tree_tar::opened;
use super::walk::{Step, Walk};
use super::{ExportError, compared};

/// Names of which a report tells why they are not as recorded.
const TOLD: usize = 16;

/// What could not be made as it is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirReport {
    /// How many names there are.
    pub names: u64,
    /// Whether owners were left out, because only root may set them.
    pub unowned: bool,
    /// How many names are missing or incomplete.
    pub incomplete: u64,
    /// The first of them, and why.
    pub told: Vec<(String, String)>,
}

impl DirReport {
    fn note(&mut self, path: &[u8], what: &str, errno: Errno) {
        self.incomplete += 1;
        if self.told.len() < TOLD {
            self.told.push((String::from_utf8_lossy(path).into_owned(), format!("{what}: {errno}")));
        }
    }
}

/// What is being written.
struct Writer<'a> {
    namespace: &'a Namespace,
    directory: &'a Path,
    made: Made<'a>,
    /// The directories on the way down: their paths, and they themselves.
    above: Vec<(Vec<u8>, OwnedFd)>,
    is_root: bool,
    report: DirReport,
}

/// A file that is whole.
struct Done {
    file: File,
    node: NodeId,
    path: Vec<u8>,
    attributes: Attributes,
}

/// Writes what is below the directory at `path` of `namespace` to `directory`, which is not there yet or empty. If that fails, or is
/// given up, what was written is removed.
pub async fn write_tree(
    namespace: &Namespace,
    path: &[u8],
    directory: &Path,
    advance: Advance<'_>,
) -> Result<DirReport, ExportError> {
    let start = namespace.resolve(path).await?;
    // Looked at before anything is made: what is no directory has nothing below it.
    let mut walk = Walk::below(namespace, start).await?;
    let made = Made::at(directory)?;
    let is_new = made.is_new;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let top =
        open(directory, flags, Mode::empty()).map_err(|errno| ExportError::file(directory)(errno.into()))?;
    let mut writer = Writer {
        namespace,
        directory,
        made,
        above: vec![(Vec::new(), top)],
        is_root: nix::unistd::geteuid().is_root(),
        report: DirReport::default(),
    };
    let mut files: FuturesUnordered<BoxFuture<'_, Result<Done, ExportError>>> = FuturesUnordered::new();
    let mut directories: Vec<(Vec<u8>, NodeId, Attributes)> = Vec::new();
    while let Some(step) = walk.next().await? {
        writer.report.names += 1;
        if matches!(step.attributes.kind, Kind::Directory | Kind::Graft(_)) {
            directories.push((step.path.clone(), step.node, step.attributes));
        }
        if let Some(file) = writer.make(&step)? {
            files.push(Box::pin(copy(namespace, directory, file, step, advance)));
        }
        while files.len() >= AHEAD
            && let Some(done) = files.next().await
        {
            writer.finish(done?)?;
        }
    }
    while let Some(done) = files.next().await {
        writer.finish(done?)?;
    }
    // From the innermost out: whatever is made in a directory changes its time, and it may not be ours to write then.
    for (path, node, attributes) in directories.iter().rev() {
        writer.finish_directory(path, *node, attributes)?;
    }
    if is_new && let Some(attributes) = namespace.attributes(start) {
        writer.finish_directory(b"", start, &attributes)?;
    }
    compared(namespace).await?;
    let Writer { made, mut report, is_root, .. } = writer;
    report.unowned = !is_root;
    made.keep();
    Ok(report)
}

async fn copy(
    namespace: &Namespace,
    directory: &Path,
    file: File,
    step: Step,
    advance: Advance<'_>,
) -> Result<Done, ExportError> {
    let bytes = opened(namespace, step.node, &step.path).await?;
    let name = directory.join(String::from_utf8_lossy(&step.path).as_ref());
    fill(&bytes, &Target { file: &file, path: &name }, 1, advance).await?;
    Ok(Done { file, node: step.node, path: step.path, attributes: step.attributes })
}

impl Writer<'_> {
    fn failed(&self, path: &[u8]) -> impl FnOnce(Errno) -> ExportError + use<> {
        let path = self.directory.join(String::from_utf8_lossy(path).as_ref());
        move |errno| ExportError::file(&path)(errno.into())
    }

    /// Makes one name; a file is given back to be filled.
    fn make(&mut self, step: &Step) -> Result<Option<File>, ExportError> {
        let cut = step.path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match cut {
            Some(slash) => (&step.path[..slash], &step.path[slash + 1..]),
            None => (&b""[..], &step.path[..]),
        };
        // The walk comes back to a directory only after all that is below it.
        while self.above.last().is_some_and(|(path, _)| path != parent) && self.above.len() > 1 {
            self.above.pop();
        }
        let failed = self.failed(&step.path);
        let Some((_, directory)) = self.above.last() else { return Ok(None) };
        if let Some(before) = &step.before {
            let (_, top) = &self.above[0];
            match linkat(top, &before[..], directory, name, AtFlags::empty()) {
                // Another name of a device that could not be made.
                Err(errno @ Errno::NOENT) if self.report.incomplete > 0 => {
                    self.report.note(&step.path, "the link is missing", errno);
                }
                linked => {
                    linked.map_err(failed)?;
                    self.made.remember(&step.path);
                }
            }
            return Ok(None);
        }
        match step.attributes.kind {
            Kind::Directory | Kind::Graft(_) => {
                // Nobody else looks into it before it is as recorded.
                mkdirat(directory, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                self.made.remember(&step.path);
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
                let failed = self.failed(&step.path);
                let opened = openat(directory, name, flags, Mode::empty()).map_err(failed)?;
                self.above.push((step.path.clone(), opened));
            }
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(directory, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
                self.made.remember(&step.path);
                return Ok(Some(file.into()));
            }
            Kind::Symlink => {
                let target = self.namespace.link(step.node).unwrap_or_default();
                symlinkat(target, directory, name).map_err(failed)?;
                self.made.remember(&step.path);
                self.finish_special(step, name)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match step.attributes.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let mode = Mode::from_raw_mode(u32::from(step.attributes.mode));
                let device = makedev(step.attributes.rdev.major, step.attributes.rdev.minor);
                match mknodat(directory, name, kind, mode, device) {
                    // Only root makes devices, and not everywhere.
                    Err(errno @ (Errno::PERM | Errno::ACCESS)) if kind != FileType::Fifo => {
                        self.report.note(&step.path, "the device is missing", errno);
                    }
                    made => {
                        made.map_err(failed)?;
                        self.made.remember(&step.path);
                        self.finish_special(step, name)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Owner, time and attributes of what cannot be opened.
    fn finish_special(&mut self, step: &Step, name: &[u8]) -> Result<(), ExportError> {
        let Some((_, directory)) = self.above.last() else { return Ok(()) };
        let attributes = &step.attributes;
        if self.is_root {
            let (uid, gid) = owner(attributes);
            let changed = chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
            changed.map_err(self.failed(&step.path))?;
            if !matches!(attributes.kind, Kind::Symlink) {
                // The owner is set first, which takes bits of the mode away. Nothing but us writes here, so that this is no link.
                let mode = Mode::from_raw_mode(u32::from(attributes.mode));
                let changed = rustix::fs::chmodat(directory, name, mode, AtFlags::empty());
                changed.map_err(self.failed(&step.path))?;
            }
        }
        let attrs: Vec<_> =
            self.namespace.xattrs(step.node).map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        let path = [format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).as_bytes(), name].concat();
        for (key, value) in attrs {
            if let Err(errno) = lsetxattr(&path[..], &key[..], &value, XattrFlags::empty()) {
                self.report.note(&step.path, &String::from_utf8_lossy(&key), errno);
            }
        }
        let Some((_, directory)) = self.above.last() else { return Ok(()) };
        let changed = utimensat(directory, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW);
        changed.map_err(self.failed(&step.path))
    }

    fn finish(&mut self, done: Done) -> Result<(), ExportError> {
        self.finish_open(&done.file, &done.path, done.node, &done.attributes)
    }

    fn finish_directory(
        &mut self,
        path: &[u8],
        node: NodeId,
        attributes: &Attributes,
    ) -> Result<(), ExportError> {
        let (_, top) = &self.above[0];
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let here: &[u8] = if path.is_empty() { b"." } else { path };
        let opened = openat(top, here, flags, Mode::empty()).map_err(self.failed(path))?;
        self.finish_open(&opened.into(), path, node, attributes)
    }

    /// Owner, mode, attributes and time, in this order: each takes something of the next away.
    fn finish_open(
        &mut self,
        file: &File,
        path: &[u8],
        node: NodeId,
        attributes: &Attributes,
    ) -> Result<(), ExportError> {
        if self.is_root {
            let (uid, gid) = owner(attributes);
            fchown(file, uid, gid).map_err(self.failed(path))?;
        }
        for (key, value) in self.namespace.xattrs(node) {
            if let Err(errno) = rustix::fs::fsetxattr(file, key, value, XattrFlags::empty()) {
                self.report.note(path, &String::from_utf8_lossy(key), errno);
            }
        }
        fchmod(file, Mode::from_raw_mode(u32::from(attributes.mode))).map_err(self.failed(path))?;
        futimens(file, &times(attributes)).map_err(self.failed(path))
    }
}

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

fn times(attributes: &Attributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.mtime.secs, tv_nsec: i64::from(attributes.mtime.nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// The directory that is written to. When it is dropped, what was made in it is removed again, and nothing else.
struct Made<'a> {
    directory: &'a Path,
    is_new: bool,
    kept: bool,
    /// What was made in the directory itself.
    names: Vec<Vec<u8>>,
}

impl<'a> Made<'a> {
    fn at(directory: &'a Path) -> Result<Self, ExportError> {
        let made = |is_new| Self { directory, is_new, kept: false, names: Vec::new() };
        match std::fs::create_dir(directory) {
            Ok(()) => return Ok(made(true)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(ExportError::file(directory)(error)),
        }
        let found = std::fs::metadata(directory).map_err(ExportError::file(directory))?;
        if !found.is_dir() {
            return Err(ExportError::place(directory, "is no directory"));
        }
        let mut entries = std::fs::read_dir(directory).map_err(ExportError::file(directory))?;
        match entries.next() {
            None => Ok(made(false)),
            Some(_) => Err(ExportError::place(directory, "is not empty")),
        }
    }

    /// Takes note of a name that was made; what is below another goes with it.
    fn remember(&mut self, path: &[u8]) {
        if !path.contains(&b'/') {
            self.names.push(path.to_vec());
        }
    }

    fn keep(mut self) {
        self.kept = true;
    }

    fn clear(&self) -> std::io::Result<()> {
        for name in &self.names {
            let path = self.directory.join(OsStr::from_bytes(name));
            let removed = std::fs::symlink_metadata(&path).and_then(|found| match found.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            });
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Somebody else's files keep it.
        if self.is_new { std::fs::remove_dir(self.directory) } else { Ok(()) }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.clear()
        {
            tracing::warn!(directory = %self.directory.display(), %error, "what was written before the error stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_takes_only_what_was_made_there() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["new", "empty"] {
            let directory = dir.path().join(name);
            if name == "empty" {
                std::fs::create_dir(&directory).unwrap();
            }
            let begin = |foreign: bool| {
                let mut made = Made::at(&directory).unwrap();
                std::fs::create_dir(directory.join("d")).unwrap();
                made.remember(b"d");
                std::fs::write(directory.join("d/f"), b"f").unwrap();
                made.remember(b"d/f");
                std::os::unix::fs::symlink("d", directory.join("l")).unwrap();
                made.remember(b"l");
                if foreign {
                    std::fs::write(directory.join("mine"), b"mine").unwrap();
                    std::fs::create_dir(directory.join("f")).unwrap();
                }
            };
            begin(false);
            assert_eq!(directory.exists(), name == "empty");
            begin(true);
            let mut left: Vec<_> =
                std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            left.sort();
            assert_eq!(left, ["f", "mine"], "{name}");
        }
    }
}
