//! Reads a directory tree as a user of it would see it, and names every difference between two such trees.
//!
//! Never knows anything of ocifs: lstat, readlink, listxattr and the bytes are all it asks for. Directory sizes and link
//! counts are left out, because every filesystem counts them its own way; so are xattrs called `user.ocifs.*`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::byte_text::hex;

/// The type bits of `st_mode`.
pub(crate) const TYPE: u32 = 0o170_000;
/// A regular file.
pub(crate) const REGULAR: u32 = 0o100_000;
/// A directory.
pub(crate) const DIRECTORY: u32 = 0o040_000;
/// A symbolic link.
pub(crate) const LINK: u32 = 0o120_000;

/// Files above this are compared by size only (the corpus has a sparse one of 60 GB).
pub(crate) const HASH_LIMIT: u64 = 1 << 30;

/// A tree: entries by path relative to the root, which is the empty path.
pub(crate) type Tree = BTreeMap<Vec<u8>, Entry>;

/// What is known about one name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Type and permissions.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Bytes, of a regular file; 0 otherwise.
    pub(crate) size: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// Device number of a device; 0 otherwise.
    pub(crate) rdev: u64,
    /// Target of a symbolic link.
    pub(crate) link: Option<Vec<u8>>,
    /// Hex sha256 of a regular file.
    pub(crate) sha256: Option<String>,
    /// Extended attributes.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Device and inode: who shares it is the same file.
    pub(crate) inode: (u64, u64),
}

/// Reads the tree below `root`; any error on the way is an error of the whole.
pub(crate) fn read_tree(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    // The attributes of a tree that is built when it is looked into are known from then on.
    fs::read_dir(root)?.next().transpose()?;
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path =
            if name.is_empty() { root.to_owned() } else { root.join(crate::byte_text::path_of(&name)) };
        let entry = read_entry(&path).map_err(|error| subject(&path, error))?;
        if entry.mode & TYPE == DIRECTORY {
            for child in fs::read_dir(&path).map_err(|error| subject(&path, error))? {
                let child = child.map_err(|error| subject(&path, error))?.file_name();
                let mut below = name.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(child.as_bytes());
                todo.push(below);
            }
        }
        if tree.insert(name, entry).is_some() {
            return Err(subject(&path, io::Error::other("listed twice")));
        }
    }
    Ok(tree)
}

/// Every difference, one line each; empty when the trees are the same.
pub(crate) fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let names: BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
    for name in names {
        let shown = String::from_utf8_lossy(name);
        match (left.get(name), right.get(name)) {
            (Some(a), Some(b)) => {
                found.extend(entry_differences(a, b).into_iter().map(|what| format!("/{shown}: {what}")));
            }
            (Some(_), None) => found.push(format!("/{shown}: only in the first tree")),
            (None, _) => found.push(format!("/{shown}: only in the second tree")),
        }
    }
    let (a, b) = (hard_links(left), hard_links(right));
    for (group, which) in
        a.difference(&b).map(|it| (it, "first")).chain(b.difference(&a).map(|it| (it, "second")))
    {
        let names: Vec<_> = group.iter().map(|name| String::from_utf8_lossy(name)).collect();
        found.push(format!("{names:?}: one inode only in the {which} tree"));
    }
    found
}

/// Fails the test with the first differences, and how many there are.
#[track_caller]
pub(crate) fn assert_same(left: &Path, right: &Path) {
    let trees = (read_tree(left).expect("readable"), read_tree(right).expect("readable"));
    assert!(trees.0.len() > 1, "{left:?} is empty");
    let found = differences(&trees.0, &trees.1);
    let shown = found.iter().take(40).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "{} differences between {left:?} and {right:?}:\n{shown}", found.len());
}

/// The sets of two and more names that share an inode.
pub(crate) fn hard_links(tree: &Tree) -> BTreeSet<BTreeSet<Vec<u8>>> {
    let mut by_inode: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (name, entry) in tree.iter().filter(|(_, entry)| entry.mode & TYPE != DIRECTORY) {
        by_inode.entry(entry.inode).or_default().insert(name.clone());
    }
    by_inode.into_values().filter(|names| names.len() > 1).collect()
}

/// Hex sha256 of a file, read with plain reads.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&piece[..length]);
    }
}

fn read_entry(path: &Path) -> io::Result<Entry> {
    let stat = fs::symlink_metadata(path)?;
    let kind = stat.mode() & TYPE;
    let regular = kind == REGULAR;
    let device = matches!(kind, 0o020_000 | 0o060_000);
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path)? {
        if !name.as_bytes().starts_with(b"user.ocifs.") {
            let value =
                xattr::get(path, &name)?.ok_or_else(|| io::Error::other("a listed xattr is missing"))?;
            xattrs.insert(name.as_bytes().to_vec(), value);
        }
    }
    Ok(Entry {
        mode: stat.mode(),
        uid: stat.uid(),
        gid: stat.gid(),
        size: if regular { stat.size() } else { 0 },
        mtime: (stat.mtime(), stat.mtime_nsec()),
        rdev: if device { stat.rdev() } else { 0 },
        link: (kind == LINK)
            .then(|| fs::read_link(path))
            .transpose()?
            .map(|it| it.as_os_str().as_bytes().to_vec()),
        sha256: (regular && stat.size() <= HASH_LIMIT).then(|| sha256_of(path)).transpose()?,
        xattrs,
        inode: (stat.dev(), stat.ino()),
    })
}

fn entry_differences(a: &Entry, b: &Entry) -> Vec<String> {
    let mut found = Vec::new();
    if a.mode != b.mode {
        found.push(format!("mode {:06o} and {:06o}", a.mode, b.mode));
    }
    let mut say = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug, same: bool| {
        if !same {
            found.push(format!("{what} {a:?} and {b:?}"));
        }
    };
    say("uid", &a.uid, &b.uid, a.uid == b.uid);
    say("gid", &a.gid, &b.gid, a.gid == b.gid);
    say("size", &a.size, &b.size, a.size == b.size);
    say("mtime", &a.mtime, &b.mtime, a.mtime == b.mtime);
    say("device", &a.rdev, &b.rdev, a.rdev == b.rdev);
    say("link", &a.link, &b.link, a.link == b.link);
    say("sha256", &a.sha256, &b.sha256, a.sha256 == b.sha256);
    say("xattrs", &a.xattrs, &b.xattrs, a.xattrs == b.xattrs);
    found
}

fn subject(path: &Path, error: io::Error) -> io::Error {
    let message = format!("{}: {error}", path.display());
    match error.raw_os_error() {
        // Keeps the errno visible in the text, which is all that a test prints.
        Some(errno) => io::Error::new(error.kind(), format!("{message} (errno {errno})")),
        None => io::Error::new(error.kind(), message),
    }
}
