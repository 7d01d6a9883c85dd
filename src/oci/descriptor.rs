//! Descriptors: a document's reference to a blob or to another document.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Digest, InvalidDigest, MediaType, OciError, Platform};

/// Annotation with the file name of a blob.
pub const TITLE: &str = "org.opencontainers.image.title";
/// Annotation with the name of a document, like a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation from which containerd reads the full name of an image.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// A blob or document named by digest, with its exact size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type: a label, which content overrides.
    pub media_type: MediaType,
    /// Digest of the stored bytes.
    pub digest: Digest,
    /// Exact number of stored bytes.
    pub size: u64,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Platform of an index entry; `None` if it has none.
    pub platform: Option<Platform>,
    /// Artifact type of an index entry; `None` if it has none.
    pub artifact_type: Option<MediaType>,
    /// Embedded content, checked against digest and size; `None` if the document does not embed it.
    pub data: Option<Vec<u8>>,
    /// Further sources of the content (image-spec descriptor.md); not serialized.
    pub urls: Vec<String>,
    /// Ollama's name for the layer's file, which is in no specification; not serialized.
    pub name: Option<String>,
}

impl Descriptor {
    /// The descriptor of `bytes`, by sha256.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.into(),
            digest: Digest::sha256(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
            data: None,
            urls: Vec::new(),
            name: None,
        }
    }

    /// The form for a manifest's subject: type, digest and size only.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
            data: None,
            urls: Vec::new(),
            name: None,
        }
    }

    /// The `org.opencontainers.image.title` annotation, unchecked.
    pub fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }

    /// Checks that `bytes` are the content: size first, then digest (image-spec descriptor.md, "Verification").
    pub fn check(&self, what: &str, bytes: &[u8]) -> Result<(), OciError> {
        let what = || format!("{what} {}", self.digest);
        if bytes.len() as u64 != self.size {
            return Err(OciError::Malformed {
                what: "document",
                reason: format!("{} has {} bytes, its descriptor states {}", what(), bytes.len(), self.size),
            });
        }
        match self.digest.same_algorithm(bytes) {
            Some(actual) if actual == self.digest => Ok(()),
            Some(actual) => Err(OciError::Mismatch { what: what(), expected: self.digest.clone(), actual }),
            None => Err(OciError::Unsupported {
                what: "digest algorithm",
                reason: format!("{} of {}", self.digest.algorithm_name(), what()),
            }),
        }
    }
}

/// The JSON form. Unknown properties are accepted (image-spec considerations.md).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawDescriptor {
    #[serde(default)]
    media_type: MediaType,
    digest: String,
    size: i64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    artifact_type: Option<MediaType>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default, deserialize_with = "texts")]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "text")]
    name: Option<String>,
}

/// Deserializes a list of strings; other elements, and other types, are ignored.
fn texts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let texts = value.as_array().into_iter().flatten();
    Ok(texts.filter_map(|text| text.as_str().map(str::to_owned)).collect())
}

/// Deserializes an unspecified property; any value other than a string counts as absent.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_str().map(str::to_owned))
}

impl RawDescriptor {
    /// Validates the descriptor. `what` and `place` are the document and the property for the error.
    pub(super) fn check(self, what: &'static str, place: &str) -> Result<Descriptor, OciError> {
        use base64::Engine as _;
        let malformed = |reason: String| OciError::Malformed { what, reason: format!("{place}: {reason}") };
        let digest: Digest =
            self.digest.parse().map_err(|error: InvalidDigest| malformed(error.to_string()))?;
        let size =
            u64::try_from(self.size).map_err(|_| malformed(format!("size {} is negative", self.size)))?;
        let mut descriptor = Descriptor {
            media_type: self.media_type,
            digest,
            size,
            annotations: self.annotations.unwrap_or_default(),
            platform: self.platform.filter(|platform| !platform.is_empty()),
            artifact_type: self.artifact_type.filter(|kind| !kind.is_empty()),
            data: None,
            urls: self.urls,
            name: self.name,
        };
        // Go writes an empty text for an absent field.
        if let Some(data) = self.data.filter(|data| !data.is_empty() || self.size == 0) {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(data)
                .map_err(|error| malformed(format!("data is not base64: {error}")))?;
            descriptor.check("embedded data of", &bytes).map_err(|error| malformed(error.to_string()))?;
            descriptor.data = Some(bytes);
        }
        Ok(descriptor)
    }
}
