//! Ecosystem types: the documents and names of oci-client, which other Rust programs have, made of ours and back.
//!
//! Every document that ocifs writes is one of these values, serialized in one order of properties, so that the same
//! content has the same digest on every machine. Documents of others are read by the validating types of this module,
//! not by these. A reference is made of its parts: the regular expression of oci-client's parser is never compiled.

use oci_client::manifest::{
    ImageIndexEntry, OciDescriptor, OciImageIndex, OciImageManifest, OciManifest, Platform as ImagePlatform,
};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{
    Descriptor, Digest, ImageIndex, Manifest, ManifestDocument, MediaType, OciError, Platform, Reference,
};

/// The order of the properties of a manifest or an index.
const DOCUMENT_ORDER: [&str; 8] =
    ["schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations"];

/// The order of the properties of a descriptor.
const DESCRIPTOR_ORDER: [&str; 8] =
    ["mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"];

/// The order of the properties of a platform.
const PLATFORM_ORDER: [&str; 5] = ["os", "architecture", "variant", "os.version", "os.features"];

/// `value` with the properties of `order` first.
fn ordered(value: Value, order: &[&str]) -> Value {
    let Value::Object(mut properties) = value else { return value };
    let mut sorted = Map::new();
    for key in order {
        if let Some((key, value)) = properties.remove_entry(*key) {
            sorted.insert(key, value);
        }
    }
    sorted.extend(properties);
    Value::Object(sorted)
}

/// The JSON of a manifest, with the descriptors of `config`, `layers` and `subject` as they are written alone.
pub(super) fn manifest_json(manifest: &Manifest) -> Result<Value, serde_json::Error> {
    let mut json = serde_json::to_value(OciImageManifest::from(manifest))?;
    json["config"] = serde_json::to_value(&manifest.config)?;
    json["layers"] = serde_json::to_value(&manifest.layers)?;
    if let Some(subject) = &manifest.subject {
        json["subject"] = serde_json::to_value(subject)?;
    }
    Ok(ordered(json, &DOCUMENT_ORDER))
}

/// The JSON of an index with these entries, as they are written alone.
pub fn index_json(entries: &[Descriptor], media_type: Option<&str>) -> Result<Value, serde_json::Error> {
    let index = OciImageIndex {
        schema_version: 2,
        media_type: media_type.map(str::to_owned),
        manifests: Vec::new(),
        artifact_type: None,
        annotations: None,
    };
    let mut json = serde_json::to_value(index)?;
    json["manifests"] = serde_json::to_value(entries)?;
    Ok(ordered(json, &DOCUMENT_ORDER))
}

impl Serialize for Descriptor {
    /// Serializes with a fixed order of properties, so that the same value has the same digest.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        use serde::ser::Error as _;
        let mut json = serde_json::to_value(ImageIndexEntry::from(self)).map_err(S::Error::custom)?;
        // A property that oci-client has no field for.
        if let Some(data) = &self.data {
            json["data"] = base64::engine::general_purpose::STANDARD.encode(data).into();
        }
        if let Some(platform) = json.get_mut("platform") {
            *platform = ordered(platform.take(), &PLATFORM_ORDER);
        }
        ordered(json, &DESCRIPTOR_ORDER).serialize(serializer)
    }
}

/// A map that is absent when it is empty.
fn some<T: Default + PartialEq + Clone>(value: &T) -> Option<T> {
    (*value != T::default()).then(|| value.clone())
}

/// A size in the type of oci-client. Sizes are read as `i64`, so none is cut.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn written(media_type: &MediaType) -> String {
    media_type.as_written().to_owned()
}

impl From<&Descriptor> for OciDescriptor {
    fn from(descriptor: &Descriptor) -> Self {
        OciDescriptor {
            media_type: written(&descriptor.media_type),
            digest: descriptor.digest.to_string(),
            size: signed(descriptor.size),
            urls: some(&descriptor.urls),
            annotations: some(&descriptor.annotations),
            artifact_type: descriptor.artifact_type.as_ref().map(written),
        }
    }
}

impl From<&Descriptor> for ImageIndexEntry {
    fn from(descriptor: &Descriptor) -> Self {
        ImageIndexEntry {
            media_type: written(&descriptor.media_type),
            digest: descriptor.digest.to_string(),
            size: signed(descriptor.size),
            platform: descriptor.platform.as_ref().map(ImagePlatform::from),
            annotations: some(&descriptor.annotations),
            artifact_type: descriptor.artifact_type.as_ref().map(written),
        }
    }
}

impl From<&Platform> for ImagePlatform {
    fn from(platform: &Platform) -> Self {
        ImagePlatform {
            architecture: platform.architecture.as_str().into(),
            os: platform.os.as_str().into(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
            variant: platform.variant.clone(),
            features: None,
        }
    }
}

impl From<&Manifest> for OciImageManifest {
    fn from(manifest: &Manifest) -> Self {
        OciImageManifest {
            schema_version: 2,
            media_type: Some(written(&manifest.media_type)).filter(|kind| !kind.is_empty()),
            config: manifest.config.as_ref().map(OciDescriptor::from).unwrap_or_default(),
            layers: manifest.layers.iter().map(OciDescriptor::from).collect(),
            subject: manifest.subject.as_ref().map(OciDescriptor::from),
            artifact_type: manifest.artifact_type.as_ref().map(written),
            annotations: some(&manifest.annotations),
        }
    }
}

impl From<&ImageIndex> for OciImageIndex {
    fn from(index: &ImageIndex) -> Self {
        OciImageIndex {
            schema_version: 2,
            media_type: Some(written(&index.media_type)).filter(|kind| !kind.is_empty()),
            manifests: index.manifests.iter().map(ImageIndexEntry::from).collect(),
            artifact_type: index.artifact_type.as_ref().map(written),
            annotations: some(&index.annotations),
        }
    }
}

impl From<&ManifestDocument> for OciManifest {
    fn from(document: &ManifestDocument) -> Self {
        match document {
            ManifestDocument::Manifest(manifest) => OciManifest::Image(manifest.into()),
            ManifestDocument::Index(index) => OciManifest::ImageIndex(index.into()),
        }
    }
}

impl From<&Reference> for oci_client::Reference {
    fn from(reference: &Reference) -> Self {
        let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
        let tag = reference.tag().map(str::to_owned);
        match (tag, reference.digest().map(Digest::to_string)) {
            (Some(tag), Some(digest)) => Self::with_tag_and_digest(registry, repository, tag, digest),
            (None, Some(digest)) => Self::with_digest(registry, repository, digest),
            (tag, None) => Self::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".into())),
        }
    }
}

impl TryFrom<&oci_client::Reference> for Reference {
    type Error = OciError;

    /// Checked by our own rules: a value may have been made of any parts.
    fn try_from(reference: &oci_client::Reference) -> Result<Self, OciError> {
        let mut text = format!("{}/{}", reference.registry(), reference.repository());
        for (mark, part) in [(':', reference.tag()), ('@', reference.digest())] {
            if let Some(part) = part {
                text.push(mark);
                text.push_str(part);
            }
        }
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_pass_to_the_other_type_and_back() {
        let digest = Digest::sha256(b"x");
        for text in [
            "ghcr.io/org/thing:v1".to_owned(),
            format!("ghcr.io/org/thing@{digest}"),
            format!("localhost:5000/a:b@{digest}"),
            "nginx".to_owned(),
        ] {
            let ours: Reference = text.parse().unwrap();
            let theirs = oci_client::Reference::from(&ours);
            assert_eq!(theirs, text.parse().unwrap(), "{text}");
            let back = Reference::try_from(&theirs).unwrap();
            assert_eq!(back.to_string(), ours.to_string());
        }
        let odd = oci_client::Reference::with_tag("ghcr.io".into(), "../etc".into(), "x".into());
        assert!(Reference::try_from(&odd).is_err());
    }

    #[test]
    fn a_descriptor_is_written_with_all_its_properties_in_one_order() {
        let platform = Platform {
            os: "windows".into(),
            architecture: "riscv64".into(),
            variant: Some("v9".into()),
            os_version: Some("10.0.1".into()),
            os_features: Some(vec!["win32k".into()]),
        };
        let descriptor = Descriptor {
            annotations: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            platform: Some(platform),
            artifact_type: Some("application/x.kind".into()),
            data: Some(b"{}".to_vec()),
            ..Descriptor::of("Text/Plain; a=b", b"{}")
        };
        let expected = concat!(
            r#"{"mediaType":"Text/Plain; a=b","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"#,
            r#""annotations":{"a":"1","b":"2"},"data":"e30=","#,
            r#""platform":{"os":"windows","architecture":"riscv64","variant":"v9","os.version":"10.0.1","os.features":["win32k"]},"artifactType":"application/x.kind"}"#,
        );
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), expected);
    }

    #[test]
    fn platforms_keep_names_that_the_other_type_does_not_know() {
        for (os, architecture) in [
            ("linux", "386"),
            ("linux", "amd64"),
            ("linux", "arm64"),
            ("plan9", "z80"),
            ("", ""),
            ("wasip1", "wasm"),
        ] {
            let platform =
                Platform { os: os.into(), architecture: architecture.into(), ..Platform::default() };
            let json = serde_json::to_value(ImagePlatform::from(&platform)).unwrap();
            assert_eq!(json, serde_json::json!({ "os": os, "architecture": architecture }));
        }
    }

    #[test]
    fn documents_pass_to_the_other_type_with_their_entries() {
        let layer = Descriptor::of("application/x", b"hello");
        let manifest = Manifest {
            media_type: super::super::MANIFEST_TYPE.into(),
            artifact_type: Some("application/x.kind".into()),
            config: Some(Descriptor::of("application/y", b"{}")),
            layers: vec![layer.clone()],
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let OciManifest::Image(theirs) = OciManifest::from(&ManifestDocument::Manifest(manifest.clone()))
        else {
            panic!("it is a manifest")
        };
        assert_eq!(theirs.layers[0].digest, layer.digest.to_string());
        let text = serde_json::to_vec(&theirs).unwrap();
        let ManifestDocument::Manifest(back) = ManifestDocument::parse(&text, None).unwrap() else {
            panic!("it is a manifest")
        };
        assert_eq!((back.layers, back.config), (manifest.layers, manifest.config));
    }
}
