//! The naive model: a layer is unpacked onto a map from full path to inode, the way an applier unpacks it onto a disk.
//!
//! Slow and plain on purpose. Paths are lists of names; a link is followed by rewriting the path.

use std::collections::{BTreeMap, BTreeSet};

use ocifs::layer::{DeviceNumber, TableOfContents, TocEntry, TocEntryKind, UnixTime, XattrPair};

pub(crate) type Path = Vec<Vec<u8>>;

/// The layer cannot be applied.
#[derive(Debug, PartialEq)]
pub(crate) struct Rejected;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    File { origin: u32, offset: u64, size: u64 },
    Directory,
    Symlink(Vec<u8>),
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) what: What,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: UnixTime,
    pub(crate) xattrs: Vec<XattrPair>,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) names: BTreeMap<Path, usize>,
    pub(crate) inodes: Vec<Inode>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let mut model = Model { names: BTreeMap::new(), inodes: Vec::new() };
        model.put(Vec::new(), directory());
        model
    }

    pub(crate) fn apply(&mut self, origin: u32, toc: &TableOfContents) -> Result<(), Rejected> {
        for entry in toc.iter() {
            let path = clean(entry.path);
            let last = path.last().map(Vec::as_slice);
            let malformed = [&b".wh."[..], b".wh..", b".wh..."].iter().any(|name| last == Some(name));
            if malformed && !leftover(&path) {
                return Err(Rejected);
            }
            if path.is_empty() && entry.kind != TocEntryKind::Directory {
                return Err(Rejected);
            }
        }
        let below = self.clone();
        self.hide(toc);
        // A link may mean what its layer hides.
        let number_in = |model: &Self, target: &[u8]| {
            let place = model.place_of(&clean(target))?;
            model.names.get(&place).copied()
        };
        let mut hidden = BTreeMap::new();
        for entry in toc.iter() {
            if let TocEntryKind::HardLink(target) = &entry.to_entry().kind
                && number_in(self, target).is_none()
                && let Some(number) = number_in(&below, target)
            {
                hidden.insert(target.clone(), number);
            }
        }
        for entry in toc.iter() {
            let path = clean(entry.path);
            let hides = path.last().is_some_and(|name| name.starts_with(b".wh."));
            if !leftover(&path) && !hides {
                self.unpack(origin, &entry.to_entry(), path, &hidden)?;
            }
        }
        Ok(())
    }

    /// Archive semantics only: no name is special. Returns the links without target.
    pub(crate) fn apply_alone(
        &mut self,
        origin: u32,
        toc: &TableOfContents,
    ) -> Result<BTreeSet<Path>, Rejected> {
        let mut left_out = BTreeSet::new();
        for entry in toc.iter() {
            let path = clean(entry.path);
            if let TocEntryKind::HardLink(target) = &entry.kind {
                let there =
                    self.place_of(&clean(target)).is_some_and(|place| self.names.contains_key(&place));
                if !there && !path.is_empty() {
                    left_out.insert(path);
                    continue;
                }
            }
            if path.is_empty() && entry.kind != TocEntryKind::Directory {
                return Err(Rejected);
            }
            self.unpack(origin, &entry.to_entry(), path, &BTreeMap::new())?;
        }
        Ok(left_out)
    }

    /// Unpacks the archive alone, then lays what came of it over this, path by path. Returns which paths were taken from
    /// earlier archives, and the links without target. Every recorded entry has an owner, so a directory of owner 0 is implied.
    pub(crate) fn apply_plain(
        &mut self,
        origin: u32,
        toc: &TableOfContents,
    ) -> Result<(BTreeSet<Path>, BTreeSet<Path>), Rejected> {
        let mut alone = Model::new();
        let left_out = alone.apply_alone(origin, toc)?;
        let mut replaced = BTreeSet::new();
        let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
        // Parents come before what is in them.
        for (path, &number) in &alone.names {
            let inode = &alone.inodes[number];
            let is_directory = inode.what == What::Directory;
            if is_directory && self.what(path) == Some(&What::Directory) {
                if inode.uid != 0 {
                    self.inodes[self.names[path]] = inode.clone();
                }
                continue;
            }
            if self.names.contains_key(path) {
                replaced.insert(path.clone());
                self.remove(path);
            }
            let mapped = *numbers.entry(number).or_insert_with(|| {
                self.inodes.push(inode.clone());
                self.inodes.len() - 1
            });
            self.names.insert(path.clone(), mapped);
        }
        Ok((replaced, left_out))
    }

    fn hide(&mut self, toc: &TableOfContents) {
        let own: BTreeSet<Path> = toc
            .iter()
            .filter(|entry| entry.kind == TocEntryKind::Directory)
            .map(|entry| clean(entry.path))
            .collect();
        let mut gone = BTreeSet::new();
        for entry in toc.iter() {
            let mut parent = clean(entry.path);
            if leftover(&parent) {
                continue;
            }
            let Some(name) = parent.pop() else { continue };
            let Some(hidden) = name.strip_prefix(b".wh.") else { continue };
            let Some(dir) = self.lower(&parent, &own) else { continue };
            if hidden == b".wh..opq" {
                gone.extend(
                    self.names
                        .keys()
                        .filter(|path| path.len() == dir.len() + 1 && path.starts_with(&dir))
                        .cloned(),
                );
            } else {
                let mut path = dir;
                path.push(hidden.to_vec());
                gone.insert(path);
            }
        }
        for path in gone {
            self.remove(&path);
        }
    }

    /// The real directory below this layer that the parent of a whiteout is.
    fn lower(&self, parent: &Path, own: &BTreeSet<Path>) -> Option<Path> {
        // The shortest prefix that is a link below and a directory of this layer ends the search.
        let mut prefix = Path::new();
        let mut real = Path::new();
        for name in parent {
            prefix.push(name.clone());
            real.push(name.clone());
            if own.contains(&prefix) && matches!(self.what(&real), Some(What::Symlink(_))) {
                return None;
            }
            real = self.follow(&real)?;
        }
        // A chain of 41 links over several components cannot be seen from the pieces.
        let real = self.follow(parent)?;
        (self.what(&real) == Some(&What::Directory)).then_some(real)
    }

    /// `hidden` are the inodes of targets that the layer has hidden.
    fn unpack(
        &mut self,
        origin: u32,
        entry: &TocEntry,
        path: Path,
        hidden: &BTreeMap<Vec<u8>, usize>,
    ) -> Result<(), Rejected> {
        let mut inode = Inode {
            what: What::Directory,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        };
        let Some((name, parent)) = path.split_last() else {
            self.inodes[self.names[&Path::new()]] = inode;
            return Ok(());
        };
        if let TocEntryKind::HardLink(target) = &entry.kind {
            let there = self.place_of(&clean(target)).and_then(|place| self.names.get(&place));
            let number = *there.or_else(|| hidden.get(target)).ok_or(Rejected)?;
            let shared = self.inodes[number].clone();
            if shared.what == What::Directory {
                return Err(Rejected);
            }
            let mut place = self.make(parent)?;
            place.push(name.clone());
            self.remove(&place);
            self.names.insert(place, number);
            if inode.xattrs.is_empty() {
                inode.xattrs = shared.xattrs;
            }
            self.inodes[number] = Inode { what: shared.what, ..inode };
            return Ok(());
        }
        let mut place = self.make(parent)?;
        place.push(name.clone());
        inode.what = match &entry.kind {
            TocEntryKind::File(content) => What::File { origin, offset: content.offset, size: content.size },
            TocEntryKind::Directory => What::Directory,
            TocEntryKind::Symlink(target) => What::Symlink(target.clone()),
            TocEntryKind::CharDevice(device) => What::CharDevice(*device),
            TocEntryKind::BlockDevice(device) => What::BlockDevice(*device),
            TocEntryKind::Fifo => What::Fifo,
            TocEntryKind::HardLink(_) => unreachable!("handled above"),
        };
        if inode.what == What::Directory && self.what(&place) == Some(&What::Directory) {
            self.inodes[self.names[&place]] = inode;
        } else {
            self.remove(&place);
            self.put(place, inode);
        }
        Ok(())
    }

    /// The parent followed, the last name not.
    fn place_of(&self, path: &Path) -> Option<Path> {
        let Some((name, parent)) = path.split_last() else { return Some(Path::new()) };
        let mut place = self.follow(parent)?;
        if self.what(&place) != Some(&What::Directory) {
            return None;
        }
        place.push(name.clone());
        Some(place)
    }

    /// Where a path leads when every link is followed; what does not exist is kept as it is. `None` in a loop.
    fn follow(&self, path: &[Vec<u8>]) -> Option<Path> {
        let mut links = 0;
        let mut done = Path::new();
        let mut rest: Path = path.to_vec();
        while !rest.is_empty() {
            let name = rest.remove(0);
            match name.as_slice() {
                b"" | b"." => {}
                b".." => drop(done.pop()),
                _ => {
                    done.push(name);
                    if let Some(What::Symlink(target)) = self.what(&done) {
                        links += 1;
                        if links > 40 {
                            return None;
                        }
                        done.pop();
                        if target.first() == Some(&b'/') {
                            done.clear();
                        }
                        let mut names: Path =
                            target.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect();
                        names.append(&mut rest);
                        rest = names;
                    }
                }
            }
        }
        Some(done)
    }

    /// `mkdir -p`, inside.
    fn make(&mut self, parent: &[Vec<u8>]) -> Result<Path, Rejected> {
        let dir = self.follow(parent).ok_or(Rejected)?;
        for len in 1..=dir.len() {
            match self.what(&dir[..len]) {
                Some(What::Directory) => {}
                Some(_) => return Err(Rejected),
                None => self.put(dir[..len].to_vec(), directory()),
            }
        }
        Ok(dir)
    }

    /// `rm -rf`.
    fn remove(&mut self, path: &Path) {
        self.names.retain(|name, _| !name.starts_with(path));
    }

    fn put(&mut self, path: Path, inode: Inode) {
        self.inodes.push(inode);
        self.names.insert(path, self.inodes.len() - 1);
    }

    fn what(&self, path: &[Vec<u8>]) -> Option<&What> {
        self.names.get(path).map(|&number| &self.inodes[number].what)
    }

    pub(crate) fn nlink(&self, path: &Path) -> u32 {
        let number = self.names[path];
        if self.inodes[number].what != What::Directory {
            return self.names.values().filter(|&&other| other == number).count() as u32;
        }
        let subdirectory = |(child, number): (&Path, &usize)| {
            child.len() == path.len() + 1
                && child.starts_with(path)
                && self.inodes[*number].what == What::Directory
        };
        2 + self.names.iter().filter(|&entry| subdirectory(entry)).count() as u32
    }
}

fn directory() -> Inode {
    let mtime = UnixTime::default();
    Inode { what: What::Directory, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

/// Lexical cleaning, as `filepath.Clean("/" + path)`.
fn clean(path: &[u8]) -> Path {
    let mut cleaned = Path::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(cleaned.pop()),
            _ => cleaned.push(name.to_vec()),
        }
    }
    cleaned
}

/// Whether aufs left it there.
fn leftover(path: &Path) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    parents.iter().any(|name| name.starts_with(b".wh..wh."))
        || (last.starts_with(b".wh..wh.") && last != b".wh..wh..opq")
}
