//! What the layers of a manifest are, as values.
//!
//! Decides nothing. The idea: whoever builds `files/`, `layers/` and `merged/` finds here all that labels can say, and asks no
//! label again.

use crate::oci::Digest;

/// What the layers of a manifest are meant as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// What `files/` has. Invariant: paths are unique, and none is a directory of another, but for the directories called `.`,
    /// whose content is in `files/` itself.
    pub files: Vec<File>,
    /// The layers that are archives by their labels, lowest first.
    pub archives: Vec<Archive>,
    /// By which rules the archives are one tree.
    pub union: Union,
    /// Whether there is a tree although there is no archive: a container image without layers is an empty directory.
    pub is_empty_tree: bool,
    /// What is not presented as its author may have meant, and why.
    pub reports: Vec<String>,
}

/// One name in `files/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// A relative path of plain components, separated by `/`, or `.`.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Seconds since 1970, when the manifest records a time of its own for this file.
    pub mtime: Option<i64>,
    /// What it holds.
    pub body: FileBody,
}

/// What a name in `files/` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileBody {
    /// The layer with this number as stored.
    Layer(usize),
    /// The config blob.
    Config,
    /// A layer that holds only the data of a sparse file.
    Sparse {
        /// The number of the layer.
        layer: usize,
        /// Bytes of the file.
        size: u64,
        /// Offset and length of each stretch of data, ascending and apart; the layer has them one behind the other.
        runs: Vec<(u64, u64)>,
    },
    /// Layers one behind the other, each of them compressed or not; their sizes add up to less than 2^63.
    Joined(Vec<Segment>),
    /// An archive, as the directory it was made of.
    Tree(Tree),
}

/// A layer that is a stretch of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The number of the layer.
    pub layer: usize,
    /// Bytes of the file that it has, as the manifest claims.
    pub size: u64,
}

/// An archive that is presented as a directory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The number of the layer.
    pub layer: usize,
    /// The directory inside the archive that is shown; an entry outside of it is an error. Empty for all of it.
    pub below: String,
    /// Whether the first bytes of the layer decide: an archive of the file `below` alone is that file, one with entries outside of
    /// `below` is shown from its root, and what is no archive is a file as stored.
    pub lenient: bool,
    /// What the uncompressed archive has to hash to.
    pub content: Option<Digest>,
}

/// A layer that is an archive by its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Its number.
    pub layer: usize,
    /// What its directory in `layers/` is called behind the number, when that is not the digest: a plain component.
    pub name: Option<String>,
}

/// By which rules archives become one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Union {
    /// The layers of a container image: a later one changes what is below it, and says by whiteouts what goes.
    #[default]
    Image,
    /// Archives that were made apart: they should not overlap, and `.wh.` means nothing.
    Plain,
}
