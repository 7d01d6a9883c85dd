//! Config of a container image: the few properties a mount needs.

use serde::Deserialize;

use super::go_json::document;
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
    // Without `flatten`, which hides the names of the fields.
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, rename = "os.version")]
    os_version: Option<String>,
    #[serde(default, rename = "os.features")]
    os_features: Option<Vec<String>>,
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
        let raw: RawConfig = document(bytes)
            .map_err(|error| OciError::Malformed { what: "config", reason: error.to_string() })?;
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        let diff_ids =
            diff_ids.iter().map(|id| Ok(id.parse::<Digest>()?)).collect::<Result<_, OciError>>()?;
        let RawConfig { os, architecture, variant, os_version, os_features, created, .. } = raw;
        let platform = Platform { os, architecture, variant, os_version, os_features };
        Ok(Self { platform, diff_ids, created })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn keys_are_read_in_any_case_and_never_twice() {
        let json = format!(
            r#"{{"OS":"windows","Architecture":"amd64","OS.Version":"10.0.1","RootFS":{{"Diff_IDs":["{ID}"]}},"Config":{{"os":1}}}}"#
        );
        let config = ImageConfig::parse(json.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "windows(10.0.1)/amd64");
        assert_eq!(config.diff_ids, [ID.parse().unwrap()]);
        let twice = json.replace("{\"OS\"", "{\"rootfs\":{\"diff_ids\":[]},\"OS\"");
        let error = ImageConfig::parse(twice.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("duplicate field `rootfs`"), "{error}");
    }

    #[test]
    fn an_absent_rootfs_has_no_layers() {
        for json in ["{}", r#"{"rootfs":null}"#, r#"{"rootfs":{"type":"layers","diff_ids":null}}"#] {
            assert_eq!(ImageConfig::parse(json.as_bytes()).unwrap().diff_ids, [], "{json}");
        }
    }
}
