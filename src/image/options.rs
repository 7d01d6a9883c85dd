//! Options of opening: the image, its platforms and layers, the network, verification and prefetch.

use std::path::PathBuf;

use crate::cache::VerifyMode;
use crate::disk::PartOrder;
use crate::layer::IndexPolicy;
use crate::oci::{EntryCondition, LayerSelection, Platform, PublicKey, Reference};
use crate::source::{ForeignLayers, ImageLocation};

use super::PrefetchMode;

/// Whether the source may be queried for content that is not cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkAccess {
    /// Query the source.
    #[default]
    Online,
    /// Query nothing: only a digest whose documents are cached can be opened, and only cached bytes can be read.
    Offline,
}

/// The image to open, and how.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Location of the image.
    pub location: ImageLocation,
    /// The platforms to choose from an index.
    pub platforms: PlatformScope,
    /// Conditions on the entries of an index, applied before platforms.
    pub select: Vec<EntryCondition>,
    /// The layers to present; the manifest and the blobs stay complete.
    pub layers: LayerSelection,
    /// Treatment of paths where two archives contain different files.
    pub on_conflict: ConflictPolicy,
    /// The annotation of layers that names their directories in `layers/`; `None` to use their digests.
    pub layer_name: Option<String>,
    /// Whether referrers of the image are shown next to it.
    pub referrers: ReferrerScope,
    /// Whether the source may be queried.
    pub network: NetworkAccess,
    /// Directories with `blobs/sha256/HEX` to search for blobs before the network.
    pub content_stores: Vec<PathBuf>,
    /// Whether layers are fetched from the addresses that their descriptors name.
    pub foreign_layers: ForeignLayers,
    /// Order of the parts of a split disk.
    pub part_order: PartOrder,
    /// Which indexes of layers are used.
    pub index: IndexPolicy,
    /// Repositories with indexes of layers, for layers without one. The best first.
    pub index_from: Vec<Reference>,
    /// Keys of which one must have signed an index from there; empty: signatures are not checked.
    pub index_keys: Vec<PublicKey>,
    /// When bytes are compared with their digests.
    pub verify: VerifyMode,
    /// Blobs of up to this many bytes are compared as a whole before their first byte is served, in every mode.
    pub small: u64,
    /// Keys of which one must have signed the image; empty: signatures are not checked.
    pub signed_by: Vec<PublicKey>,
    /// Content to fetch before it is requested.
    pub prefetch: PrefetchMode,
    /// Whether reads are recorded.
    pub recording: ReadRecording,
}

impl OpenOptions {
    /// All options other than the location have their defaults.
    pub fn new(location: ImageLocation) -> Self {
        Self {
            location,
            platforms: PlatformScope::default(),
            select: Vec::new(),
            layers: LayerSelection::default(),
            on_conflict: ConflictPolicy::default(),
            layer_name: None,
            referrers: ReferrerScope::default(),
            network: NetworkAccess::default(),
            content_stores: Vec::new(),
            foreign_layers: ForeignLayers::default(),
            part_order: PartOrder::default(),
            index: IndexPolicy::default(),
            index_from: Vec::new(),
            index_keys: Vec::new(),
            verify: VerifyMode::default(),
            small: crate::cache::VERIFY_FIRST_BYTES,
            signed_by: Vec::new(),
            prefetch: PrefetchMode::default(),
            recording: ReadRecording::default(),
        }
    }
}

/// Treatment of paths where two archives contain different files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// The later archive wins, and the path is listed in the status.
    #[default]
    Later,
    /// The merged tree is refused, with an error that lists the paths.
    Error,
}

/// The platforms of an index to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlatformScope {
    /// That of this machine.
    #[default]
    Host,
    /// The given one.
    One(Platform),
    /// All of them, each in a directory of its own, and that of this machine also at the root.
    All,
}

/// Whether referrers of the image are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReferrerScope {
    /// Not shown.
    #[default]
    Hidden,
    /// Shown, each in a directory of its own.
    Shown,
}

/// Whether the reads of an image are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadRecording {
    /// Not recorded.
    #[default]
    Off,
    /// Recorded; [`OpenImage::trace`](super::OpenImage::trace) returns them.
    On,
}
