//! OCI names and documents as validated values: references, digests, descriptors, manifests, indexes, configs, media
//! types and platforms.
//!
//! This module does no I/O: parsers take bytes and return values. Each has limits, because any account with push
//! access can write these bytes. Rules come from the OCI image-spec and distribution-spec 1.1.

mod artifact;
mod choice;
mod class;
mod config;
mod descriptor;
mod digest;
mod error;
mod host;
#[cfg(test)]
mod key_fixtures;
mod manifest;
mod media_type;
mod member;
mod platform;
mod public_key;
pub mod published;
mod reference;
mod referrers;
mod select;
mod signature;
mod soci;
mod title;

pub use artifact::{ArtifactManifest, EMPTY, INDEX_TYPE, MANIFEST_TYPE, WrittenDocument};
pub use choice::{EntryCondition, EntryPurpose, PlatformCandidate, choose, entry_kind, told_apart, told_by};
pub use class::{ArtifactKind, classify, classify_manifest};
pub use config::ImageConfig;
pub use descriptor::{Descriptor, REF_NAME, TITLE};
pub use digest::{Digest, HashAlgorithm, Hasher};
pub use error::OciError;
pub use host::canonical_host;
pub use manifest::{ImageIndex, MAX_DOCUMENT, MAX_LAYERS, Manifest, ManifestDocument};
pub use media_type::{LabelCompression, MediaType};
pub use member::{NamedEntry, member_names, referrer_directory};
pub use platform::Platform;
pub use public_key::{MAX_KEY_FILE, PublicKey};
pub use reference::{ManifestSelector, Reference};
pub(crate) use referrers::is_of_kind;
pub use referrers::{fallback_tag, listed, referrer_of, with_referrer};
pub use select::{GlobPattern, LayerSelection};
pub use signature::{
    BUNDLE, MAX_SIGNATURES, MAX_SIGNED, PublishedSignature, SIGNATURE, SIGNATURE_ARTIFACT, SIMPLE_SIGNING,
    signature_tag,
};
pub use soci::{
    IMAGE_MANIFEST_DIGEST, INDEX_DIGEST, SOCI_V1, SOCI_V2, SociIndex, SociVersion, Ztoc, soci_index_digest,
};
pub use title::{
    FileName, FileNames, RequestedFile, extension, fallback_name, file_names, is_tar_name, plain_path,
};
