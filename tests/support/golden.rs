//! Expected names of a mount, with kind and bytes.
//!
//! Never tolerant: a name too many is as wrong as a name too few. `blobs/`, `.ocifs` and `export/` are left out of the list,
//! because every mount has them alike; that each blob of the manifest is in `blobs/` with its size is checked apart.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::artifact::{Blob, Packed};

/// What a name is.
#[derive(Clone)]
enum Node {
    Directory,
    Link,
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A file whose bytes the test looks at by itself.
    Unread,
}

impl Node {
    fn mark(&self) -> char {
        match self {
            Self::Directory => '/',
            Self::Link => '@',
            Self::Bytes(_) | Self::Unread => ' ',
        }
    }
}

/// Entries of an archive: a name that ends in `/` is a directory, one that ends in `@` a link, any other a file.
pub(crate) type Entries<'a> = &'a [(&'a str, &'a [u8])];

/// A tree as it has to be.
#[derive(Clone, Default)]
pub(crate) struct Golden {
    nodes: BTreeMap<String, Node>,
    /// Paths below `blobs/` of each tree, with sizes.
    blobs: Vec<(String, u64)>,
}

impl Golden {
    /// The documents of a manifest, and its blobs.
    pub(crate) fn of(packed: &Packed) -> Self {
        let mut golden = Self::default().file("manifest.json", &packed.bytes);
        if let Some(config) = packed.config() {
            golden = golden.file("config.json", &config.bytes);
        }
        for blob in &packed.blobs {
            golden.blobs.push((format!("blobs/{}", blob.digest().replace(':', "/")), blob.size()));
        }
        golden
    }

    /// A file.
    pub(crate) fn file(self, path: &str, bytes: &[u8]) -> Self {
        self.node(path, Node::Bytes(bytes.to_vec()))
    }

    /// A file whose content is not given.
    pub(crate) fn unread(self, path: &str) -> Self {
        self.node(path, Node::Unread)
    }

    /// A directory that may be empty.
    pub(crate) fn directory(self, path: &str) -> Self {
        self.node(path, Node::Directory)
    }

    /// A symbolic link.
    pub(crate) fn link(self, path: &str) -> Self {
        self.node(path, Node::Link)
    }

    /// A disk, and `info.json`.
    pub(crate) fn disk(self, name: &str, bytes: &[u8]) -> Self {
        self.file(&format!("disk/{name}"), bytes).unread("disk/info.json")
    }

    /// Entries below a directory.
    pub(crate) fn tree(mut self, below: &str, entries: Entries<'_>) -> Self {
        self = self.directory(below);
        for (name, bytes) in entries {
            let at = |name: &str| format!("{below}/{name}");
            self = if let Some(name) = name.strip_suffix('/') {
                self.directory(&at(name))
            } else if let Some(name) = name.strip_suffix('@') {
                self.node(&at(name), Node::Link)
            } else {
                self.file(&at(name), bytes)
            };
        }
        self
    }

    /// An archive in `layers/`: its tree, and the link to its blob.
    pub(crate) fn layer(self, number: usize, blob: &Blob, extension: &str, entries: Entries<'_>) -> Self {
        let stem = format!("layers/{number:02}-{}", blob.short());
        self.tree(&stem, entries).node(&format!("{stem}{extension}"), Node::Link)
    }

    fn node(mut self, path: &str, node: Node) -> Self {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
        self.nodes.insert(path.to_owned(), node);
        self
    }

    /// Fails the test with every difference between this and the tree at `root`.
    #[track_caller]
    pub(crate) fn check(&self, root: &Path) {
        let mut found = BTreeMap::new();
        walk(root, "", &mut found);
        self.compare(root, &found);
    }

    /// The same for one of the directories in `root`, whatever else is there.
    #[track_caller]
    pub(crate) fn check_below(&self, root: &Path, directory: &str) {
        let mut found = BTreeMap::from([(directory.to_owned(), '/')]);
        walk(&root.join(directory), &format!("{directory}/"), &mut found);
        self.compare(root, &found);
    }

    #[track_caller]
    fn compare(&self, root: &Path, found: &BTreeMap<String, char>) {
        let mut wrong = Vec::new();
        for (path, node) in &self.nodes {
            match found.get(path) {
                None => wrong.push(format!("missing: {path}{}", node.mark())),
                Some(mark) if *mark != node.mark() => {
                    wrong.push(format!("{path}: is {mark:?} instead of {:?}", node.mark()));
                }
                Some(_) => {}
            }
        }
        let extra = found.iter().filter(|(path, _)| !self.nodes.contains_key(*path));
        wrong.extend(extra.map(|(path, mark)| format!("too many: {path}{mark}")));
        for (path, size) in &self.blobs {
            match fs::metadata(root.join(path)) {
                Ok(stat) if stat.size() == *size => {}
                Ok(stat) => wrong.push(format!("{path}: has {} bytes instead of {size}", stat.size())),
                Err(error) => wrong.push(format!("{path}: {error}")),
            }
        }
        for (path, node) in &self.nodes {
            let Node::Bytes(bytes) = node else { continue };
            if !found.contains_key(path) {
                continue;
            }
            let full = root.join(path);
            match (fs::metadata(&full).map(|stat| stat.size()), fs::read(&full)) {
                (Ok(size), Ok(read)) if size == read.len() as u64 && read == *bytes => {}
                (Ok(size), Ok(read)) => wrong.push(format!(
                    "{path}: stat says {size}, read gave {} bytes, expected {}{}",
                    read.len(),
                    bytes.len(),
                    if read.len() == bytes.len() { " others" } else { "" }
                )),
                (Err(error), _) | (_, Err(error)) => wrong.push(format!("{path}: {error}")),
            }
        }
        assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// Every name below `dir` with the mark of its kind.
#[track_caller]
fn walk(dir: &Path, prefix: &str, found: &mut BTreeMap<String, char>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "blobs" || name == ".ocifs" {
            continue;
        }
        // The archive of the whole reference, or the disk of an image that is shown beside others.
        if name == "export" && (prefix.is_empty() || prefix.starts_with("platforms/")) {
            let is_whole = prefix.is_empty() && entry.path().join("image.tar").is_file();
            assert!(is_whole || entry.path().join("rootfs.erofs").is_file(), "export/ is empty");
            continue;
        }
        let kind = entry.file_type().expect("the kernel gives a type");
        let path = format!("{prefix}{name}");
        let mark = if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), found);
            '/'
        } else if kind.is_symlink() {
            '@'
        } else {
            ' '
        };
        found.insert(path, mark);
    }
}
