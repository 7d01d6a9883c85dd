//! Manifests and indexes, parsed from exactly the bytes that were hashed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::descriptor::RawDescriptor;
use super::go_json::document;
use super::{Descriptor, MediaType, OciError};

/// Limit of a manifest, index or config, in bytes. The distribution-spec asks registries to accept at least 4 MiB
/// ("Pushing Manifests"), and other clients have this limit.
pub const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;

/// Limit of the layers of a manifest. Real images stay under 128 (a limit of overlay mounts); artifacts have more.
pub const MAX_LAYERS: usize = 4096;

/// A manifest or an index.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are one or two of them in a process, and never in a list"
)]
pub enum ManifestDocument {
    /// One image or artifact.
    Manifest(Manifest),
    /// A list of manifests to choose from.
    Index(ImageIndex),
}

/// One image or artifact.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Media type of the document, or else of its transport.
    pub media_type: MediaType,
    /// `artifactType`; `None` if absent.
    pub artifact_type: Option<MediaType>,
    /// The config; `None` only in the artifact manifests of the 1.1 release candidates.
    pub config: Option<Descriptor>,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one refers to; `None` if it stands alone.
    pub subject: Option<Descriptor>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests to choose from.
#[derive(Clone, Debug)]
pub struct ImageIndex {
    /// Media type of the document, or else of its transport.
    pub media_type: MediaType,
    /// `artifactType`; `None` if absent.
    pub artifact_type: Option<MediaType>,
    /// The entries, in the author's order of preference.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this index refers to; `None` if it stands alone.
    pub subject: Option<Descriptor>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Option<i64>,
    #[serde(default)]
    media_type: MediaType,
    #[serde(default)]
    artifact_type: Option<MediaType>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    blobs: Option<Vec<RawDescriptor>>,
    /// `None` if absent, `Some(None)` for `null`.
    #[serde(default, deserialize_with = "present")]
    manifests: Option<Option<Vec<RawDescriptor>>>,
    subject: Option<RawDescriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde_json::Value>,
}

/// Deserializes a property that is there, also one that is `null`.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl ManifestDocument {
    /// Parses `bytes`. `content_type` is the type from the transport, if there is one. It decides for documents
    /// without a type of their own. A manifest that is served as an index, or the other way round, is refused
    /// (distribution-spec, "Pulling manifests"); the types of Docker and of OCI name one form each.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, OciError> {
        let malformed = |reason: String| OciError::Malformed { what: "manifest", reason };
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(malformed(format!(
                "{} bytes are more than the limit of {MAX_DOCUMENT}",
                bytes.len()
            )));
        }
        let raw: RawManifest =
            document(bytes).map_err(|error| malformed(format!("not a JSON manifest: {error}")))?;
        let transport = content_type.map(MediaType::from).unwrap_or_default();
        if raw.fs_layers.is_some() || raw.media_type.is_schema1() || raw.schema_version == Some(1) {
            return Err(OciError::Unsupported {
                what: "manifest",
                reason:
                    "docker image manifest schema 1 is obsolete; push the image again with a current tool"
                        .into(),
            });
        }
        let known = |kind: &MediaType| kind.is_index() || kind.is_manifest();
        if known(&raw.media_type) && known(&transport) && raw.media_type.is_index() != transport.is_index() {
            return Err(malformed(format!(
                "its mediaType is {}, but it was served as {}",
                raw.media_type.as_written(),
                transport.as_written()
            )));
        }
        let media_type = if raw.media_type.is_empty() { transport } else { raw.media_type };
        let layers = match (raw.layers, raw.blobs) {
            (Some(_), Some(_)) => return Err(malformed("it has both layers and blobs".into())),
            (layers, blobs) => layers.or(blobs),
        };
        let annotations = raw.annotations.unwrap_or_default();
        let subject = raw.subject.map(|subject| subject.check("manifest", "subject")).transpose()?;
        let artifact_type = raw.artifact_type.filter(|kind| !kind.is_empty());
        let manifests = match raw.manifests {
            // Go writes an empty list as null.
            Some(None) if layers.is_none() && raw.config.is_none() => Some(Vec::new()),
            manifests => manifests.flatten(),
        };
        match (layers, manifests) {
            (Some(_), Some(_)) => Err(malformed("it has both layers and manifests".into())),
            (None, Some(entries)) => {
                if raw.config.is_some() {
                    return Err(malformed("it has both config and manifests".into()));
                }
                if media_type.is_manifest() {
                    return Err(malformed(format!(
                        "it has manifests, but its mediaType is {}",
                        media_type.as_written()
                    )));
                }
                if entries.len() > MAX_LAYERS {
                    return Err(malformed(format!(
                        "{} manifests are more than the limit of {MAX_LAYERS}",
                        entries.len()
                    )));
                }
                let manifests = descriptors(entries, "index", "manifests")?;
                Ok(ManifestDocument::Index(ImageIndex {
                    media_type,
                    artifact_type,
                    manifests,
                    subject,
                    annotations,
                }))
            }
            (layers, None) => {
                if layers.is_none() && raw.config.is_none() {
                    return Err(malformed("it has neither layers nor manifests".into()));
                }
                if media_type.is_index() {
                    return Err(malformed(format!(
                        "it has layers, but its mediaType is {}",
                        media_type.as_written()
                    )));
                }
                let layers = layers.unwrap_or_default();
                if layers.len() > MAX_LAYERS {
                    return Err(malformed(format!(
                        "{} layers are more than the limit of {MAX_LAYERS}",
                        layers.len()
                    )));
                }
                Ok(ManifestDocument::Manifest(Manifest {
                    media_type,
                    artifact_type,
                    config: raw.config.map(|config| config.check("manifest", "config")).transpose()?,
                    layers: descriptors(layers, "manifest", "layers")?,
                    subject,
                    annotations,
                }))
            }
        }
    }
}

impl ManifestDocument {
    /// Media type of the document, or else of its transport.
    pub fn media_type(&self) -> &MediaType {
        match self {
            ManifestDocument::Manifest(manifest) => &manifest.media_type,
            ManifestDocument::Index(index) => &index.media_type,
        }
    }

    /// Artifact type; for an index without an `artifactType`, its media type.
    pub fn kind(&self) -> Option<&MediaType> {
        match self {
            ManifestDocument::Manifest(manifest) => manifest.kind(),
            ManifestDocument::Index(index) => index.artifact_type.as_ref().or(Some(&index.media_type)),
        }
    }

    /// The manifest that this document refers to; `None` if it stands alone.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            ManifestDocument::Manifest(manifest) => manifest.subject.as_ref(),
            ManifestDocument::Index(index) => index.subject.as_ref(),
        }
    }
}

impl Manifest {
    /// Artifact type: `artifactType`, or for historic artifacts the type of the config (image-spec manifest.md,
    /// "Guidelines for Artifact Usage").
    pub fn kind(&self) -> Option<&MediaType> {
        self.artifact_type.as_ref().or(self.config.as_ref().map(|config| &config.media_type))
    }

    /// Config and layers: every blob this manifest needs.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }
}

fn descriptors(raw: Vec<RawDescriptor>, what: &'static str, list: &str) -> Result<Vec<Descriptor>, OciError> {
    raw.into_iter().enumerate().map(|(i, raw)| raw.check(what, &format!("{list}[{i}]"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn blob() -> String {
        format!(r#"{{"mediaType":"application/octet-stream","digest":"sha256:{HEX}","size":0}}"#)
    }

    fn reason(json: &str, content_type: Option<&str>) -> String {
        ManifestDocument::parse(json.as_bytes(), content_type).unwrap_err().to_string()
    }

    #[test]
    fn a_document_with_layers_and_manifests_is_refused() {
        let json = format!(r#"{{"schemaVersion":2,"layers":[{0}],"manifests":[{0}]}}"#, blob());
        assert!(reason(&json, None).contains("both layers and manifests"));
    }

    #[test]
    fn a_type_that_contradicts_the_transport_is_refused() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{0},"layers":[{0}]}}"#,
            blob()
        );
        assert!(reason(&json, Some("application/vnd.oci.image.index.v1+json")).contains("served as"));
        for same in ["application/json", "application/vnd.docker.distribution.manifest.v2+json"] {
            let parsed = ManifestDocument::parse(json.as_bytes(), Some(same)).unwrap();
            assert_eq!(parsed.media_type(), &"application/vnd.oci.image.manifest.v1+json".into());
        }
    }

    #[test]
    fn negative_sizes_and_bad_digests_name_their_place() {
        let json = format!(r#"{{"layers":[{{"digest":"sha256:{HEX}","size":-1}}]}}"#);
        assert_eq!(reason(&json, None), "manifest is malformed: layers[0]: size -1 is negative");
        assert!(
            reason(r#"{"layers":[{"digest":"sha256:12","size":1}]}"#, None).contains("layers[0]: digest")
        );
    }

    #[test]
    fn the_size_limit_holds_at_the_limit_and_one_past_it() {
        let json = format!(r#"{{"config":{0},"layers":[]}}"#, blob());
        let mut bytes = json.into_bytes();
        bytes.resize(MAX_DOCUMENT as usize, b' ');
        assert!(ManifestDocument::parse(&bytes, None).is_ok());
        bytes.push(b' ');
        assert!(ManifestDocument::parse(&bytes, None).unwrap_err().to_string().contains("limit"));
    }

    #[test]
    fn embedded_data_must_match_its_digest() {
        let json = r#"{"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"data":"e30="},"layers":[]}"#;
        let ManifestDocument::Manifest(manifest) = ManifestDocument::parse(json.as_bytes(), None).unwrap()
        else {
            panic!()
        };
        assert_eq!(manifest.config.unwrap().data.as_deref(), Some(&b"{}"[..]));
        assert!(reason(&json.replace("e30=", "e2s="), None).contains("config: embedded data of"));
        let empty = json.replace("e30=", "");
        let ManifestDocument::Manifest(manifest) = ManifestDocument::parse(empty.as_bytes(), None).unwrap()
        else {
            panic!()
        };
        assert_eq!(manifest.config.unwrap().data, None, "absent");
    }

    #[test]
    fn keys_are_read_in_any_case_and_never_twice() {
        let json = format!(r#"{{"SchemaVersion":2,"Config":{0},"LAYERS":[{0}]}}"#, blob());
        let json = json.replace("\"digest\"", "\"Digest\"").replace("\"size\"", "\"SIZE\"");
        let ManifestDocument::Manifest(manifest) = ManifestDocument::parse(json.as_bytes(), None).unwrap()
        else {
            panic!()
        };
        assert_eq!((manifest.layers.len(), manifest.layers[0].size), (1, 0));
        for twice in [r#""layers":[],"Layers":[]"#, r#""Layers":[],"layers":[]"#] {
            let json = format!(r#"{{"config":{},{twice}}}"#, blob());
            assert!(reason(&json, None).contains("duplicate field `layers`"));
        }
    }

    #[test]
    fn an_index_whose_list_is_null_is_empty() {
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let json = r#"{"schemaVersion":2,"manifests":null}"#;
        for content_type in [Some(INDEX), None] {
            let parsed = ManifestDocument::parse(json.as_bytes(), content_type).unwrap();
            assert!(matches!(parsed, ManifestDocument::Index(index) if index.manifests.is_empty()));
        }
        for none in [r#"{"schemaVersion":2}"#, r#"{"errors":[]}"#] {
            assert!(reason(none, Some(INDEX)).contains("neither layers nor manifests"));
        }
        let image = format!(r#"{{"config":{},"layers":[],"manifests":null}}"#, blob());
        assert!(matches!(ManifestDocument::parse(image.as_bytes(), None), Ok(ManifestDocument::Manifest(_))));
    }

    #[test]
    fn schema_one_is_named() {
        assert!(reason(r#"{"schemaVersion":1,"fsLayers":[]}"#, None).contains("schema 1"));
    }
}
