//! Contents of a manifest: the roles of its layers, as values.
//!
//! Makes no decisions. The builders of `files/`, `layers/` and `merged/` find here all information from labels, and
//! do not read labels again.

use crate::oci::Digest;

/// The roles of a manifest's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactContents {
    /// The entries of `files/`. Invariant: paths are unique, and none is a directory of another. The exception are
    /// directories called `.`, whose content is in `files/` itself.
    pub files: Vec<ArtifactFile>,
    /// The layers that are archives by their labels, lowest first.
    pub archives: Vec<ArchiveLayer>,
    /// The rules for merging the archives.
    pub union: UnionRules,
    /// Whether there is a tree without an archive: a container image without layers is an empty directory.
    pub is_empty_tree: bool,
    /// Deviations from the author's probable intent, with reasons.
    pub reports: Vec<String>,
}

/// One name in `files/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactFile {
    /// A relative path of plain components, separated by `/`, or `.`.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Seconds since 1970; `None` unless the manifest records a time for this file.
    pub mtime: Option<i64>,
    /// Its content.
    pub body: FileBody,
}

/// The content of a name in `files/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileBody {
    /// The layer with this number, as stored.
    Layer(usize),
    /// The config blob.
    Config,
    /// A layer that holds only the data of a sparse file.
    Sparse {
        /// The number of the layer.
        layer: usize,
        /// Size of the file in bytes.
        size: u64,
        /// Offset and length of each run of data, ascending with gaps between; the layer has the runs concatenated.
        runs: Vec<(u64, u64)>,
    },
    /// Concatenated layers, each compressed or not; their sizes add up to less than 2^63.
    Joined(Vec<FileSegment>),
    /// An archive, as a directory.
    Tree(ArchiveDirectory),
}

/// A layer that is a range of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSegment {
    /// The number of the layer.
    pub layer: usize,
    /// Bytes of the file in the layer, as the manifest claims.
    pub size: u64,
}

/// An archive that is presented as a directory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveDirectory {
    /// The number of the layer.
    pub layer: usize,
    /// The directory inside the archive that is shown; empty for the whole archive. An entry outside it is an error.
    pub below: String,
    /// Whether the first bytes of the layer decide. An archive with the single file `below` is then that file. An
    /// archive with entries outside `below` is shown from its root. A layer that is no archive is a file as stored.
    pub lenient: bool,
    /// The digest of the uncompressed archive; `None` when the manifest has none.
    pub content: Option<Digest>,
}

/// A layer that is an archive by its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveLayer {
    /// The number of the layer.
    pub layer: usize,
    /// The name of its directory in `layers/` behind the number, a plain component; `None` for the digest.
    pub name: Option<String>,
}

/// The rules for merging archives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnionRules {
    /// Layers of a container image: a later layer changes the lower ones, and deletes by whiteouts.
    #[default]
    Image,
    /// Independent archives: they should not overlap, and `.wh.` has no meaning.
    Plain,
}
