//! What kind of thing a document is, in the order that cocoonstack epoch asks.
//!
//! Never looks at layers: an artifact of no known type stays unknown, whatever its layers are called.

use crate::oci::{Document, Manifest, MediaType};

/// `artifactType` of a bootable disk; the second is what the first Windows images were published with.
const CLOUD_IMAGE: [&str; 2] =
    ["application/vnd.cocoonstack.os-image.v1+json", "application/vnd.cocoonstack.windows-image.v1+json"];
/// `artifactType` of a machine snapshot.
const SNAPSHOT: &str = "application/vnd.cocoonstack.snapshot.v1+json";

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A bootable disk in one or several layers.
    CloudImage,
    /// A machine snapshot: one layer per file, packed sparsely.
    Snapshot,
    /// A container image.
    ContainerImage,
    /// An index or manifest list.
    Index,
    /// Anything else.
    Unknown,
}

/// Classifies by `artifactType`, then by the type of the config, then by being an index: the first that fits decides
/// (epoch `manifest/types.go`, `classifyFields`). An index that leaves out its `mediaType`, as image-spec 1.1 allows, is
/// still an index.
pub fn classify(document: &Document) -> Class {
    match document {
        Document::Manifest(manifest) => classify_manifest(manifest),
        Document::Index(index) => by_artifact_type(index.artifact_type.as_ref()).unwrap_or(Class::Index),
    }
}

/// The same for what is known to be a manifest.
pub(super) fn classify_manifest(manifest: &Manifest) -> Class {
    if let Some(class) = by_artifact_type(manifest.artifact_type.as_ref()) {
        return class;
    }
    match &manifest.config {
        Some(config) if config.media_type.is_image_config() => Class::ContainerImage,
        _ => Class::Unknown,
    }
}

fn by_artifact_type(kind: Option<&MediaType>) -> Option<Class> {
    let essence = kind?.essence();
    if CLOUD_IMAGE.contains(&essence.as_str()) {
        return Some(Class::CloudImage);
    }
    (essence == SNAPSHOT).then_some(Class::Snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn class(json: &str) -> Class {
        classify(&Document::parse(json.replace("HEX", &format!("sha256:{HEX}")).as_bytes(), None).unwrap())
    }

    fn manifest(artifact_type: &str, config: &str) -> String {
        let kind = match artifact_type {
            "" => String::new(),
            kind => format!(r#""artifactType":"{kind}","#),
        };
        format!(
            r#"{{"schemaVersion":2,{kind}"config":{{"mediaType":"{config}","digest":"HEX","size":2}},"layers":[]}}"#
        )
    }

    const EMPTY: &str = "application/vnd.oci.empty.v1+json";

    #[test]
    fn the_eight_kinds_that_epoch_tells_apart_are_told_apart() {
        assert_eq!(class(&manifest(CLOUD_IMAGE[0], EMPTY)), Class::CloudImage);
        assert_eq!(class(&manifest(CLOUD_IMAGE[1], EMPTY)), Class::CloudImage);
        let snapshot_config = "application/vnd.cocoonstack.snapshot.config.v1+json";
        assert_eq!(class(&manifest(SNAPSHOT, snapshot_config)), Class::Snapshot);
        let oci = "application/vnd.oci.image.config.v1+json";
        assert_eq!(class(&manifest("", oci)), Class::ContainerImage);
        let docker = "application/vnd.docker.container.image.v1+json";
        assert_eq!(class(&manifest("", docker)), Class::ContainerImage);
        let index = |kind: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[]}}"#);
        assert_eq!(class(&index("application/vnd.oci.image.index.v1+json")), Class::Index);
        assert_eq!(class(&index("application/vnd.docker.distribution.manifest.list.v2+json")), Class::Index);
        assert_eq!(class(r#"{"schemaVersion":2,"layers":[]}"#), Class::Unknown);
    }

    #[test]
    fn the_artifact_type_wins_over_an_image_config() {
        let oci = "application/vnd.oci.image.config.v1+json";
        assert_eq!(class(&manifest(CLOUD_IMAGE[0], oci)), Class::CloudImage);
        assert_eq!(class(&manifest("application/vnd.example.thing", oci)), Class::ContainerImage);
    }

    #[test]
    fn a_cocoon_config_without_an_artifact_type_stays_unknown() {
        assert_eq!(class(&manifest("", CLOUD_IMAGE[0])), Class::Unknown);
        assert_eq!(class(&manifest("", SNAPSHOT)), Class::Unknown);
        assert_eq!(class(&manifest("application/vnd.cocoonstack.os-image.v2+json", EMPTY)), Class::Unknown);
    }

    #[test]
    fn an_index_without_a_media_type_is_an_index() {
        assert_eq!(class(r#"{"schemaVersion":2,"manifests":[]}"#), Class::Index);
    }
}
