//! Config of a container image: the few properties a mount needs.

use serde::Deserialize;

use super::{Digest, OciError, Platform};

/// Layers and platform of an image config. Other properties stay in the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// The platform the image was built for.
    pub platform: Platform,
    /// DiffIDs: digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// RFC 3339 time of creation.
    pub created: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    rootfs: RawRootfs,
    #[serde(default)]
    created: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl ImageConfig {
    /// Parses a config blob whose media type is that of a container image.
    pub fn parse(bytes: &[u8]) -> Result<Self, OciError> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| OciError::Malformed { what: "config", reason: error.to_string() })?;
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        let diff_ids =
            diff_ids.iter().map(|id| Ok(id.parse::<Digest>()?)).collect::<Result<_, OciError>>()?;
        Ok(Self { platform: raw.platform, diff_ids, created: raw.created })
    }
}
