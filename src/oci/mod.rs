//! OCI names and documents as validated values: references, digests, descriptors, manifests, indexes, configs, media
//! types and platforms.
//!
//! This module does no I/O: parsers take bytes and return values. Each has limits, because any account with push
//! access can write these bytes. Rules come from the OCI image-spec and distribution-spec 1.1.

mod artifact;
mod artifact_kind;
mod config;
mod descriptor;
mod digest;
mod directory_names;
mod ecosystem;
mod encoding;
mod error;
mod file_names;
pub mod go_json;
mod host;
#[cfg(test)]
mod key_fixtures;
mod manifest;
mod media_type;
mod platform;
mod public_key;
pub mod published;
mod reference;
mod referrers;
mod select;
mod selection;
mod sha;
mod signature;
mod soci;

pub use artifact::{ArtifactManifest, EMPTY, INDEX_TYPE, MANIFEST_TYPE, WrittenDocument};
pub use artifact_kind::{ArtifactKind, classify, classify_manifest};
pub use config::ImageConfig;
pub use descriptor::{Descriptor, IMAGE_NAME, REF_NAME, TITLE};
pub use digest::{Digest, Hasher, InvalidDigest};
pub use directory_names::{NamedEntry, member_names, referrer_directory};
pub use ecosystem::index_json;
pub use encoding::{EncodingNames, StreamEncoding};
pub use error::OciError;
pub use file_names::{
    FileName, FileNames, NamedShape, RequestedFile, extension, fallback_name, file_names, is_compressed_name,
    is_tar_name, nested, plain_path,
};
pub use host::canonical_host;
pub use manifest::{ImageIndex, MAX_DOCUMENT, MAX_LAYERS, Manifest, ManifestDocument};
pub use media_type::MediaType;
pub use platform::Platform;
pub use public_key::{MAX_KEY_FILE, PublicKey};
pub use reference::{ManifestSelector, Reference};
pub(crate) use referrers::is_of_kind;
pub use referrers::{fallback_tag, listed, referrer_of, with_referrer};
pub use select::{GlobPattern, LayerSelection};
pub use selection::{
    EntryCondition, EntryPurpose, PlatformCandidate, choose, differing_properties, distinguishing_properties,
    entry_kind,
};
pub use sha::HashAlgorithm;
pub use signature::{
    BUNDLE, MAX_SIGNATURES, MAX_SIGNED, PublishedSignature, SIGNATURE, SIGNATURE_ARTIFACT, SIMPLE_SIGNING,
    signature_tag,
};
pub use soci::{
    IMAGE_MANIFEST_DIGEST, INDEX_DIGEST, SOCI_V1, SOCI_V2, SociIndex, SociVersion, Ztoc, soci_index_digest,
};
