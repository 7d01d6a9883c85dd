//! Artifact manifests written by ocifs: an empty config, some blobs, and the subject.
//!
//! Serialization is deterministic: properties have a fixed order, annotations are sorted, and there is no creation
//! time. So the same content has the same digest on every machine, and publishing twice stores one manifest.

use std::collections::BTreeMap;

use oci_client::manifest::{OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};

use super::ecosystem::manifest_json;
use super::media_type::EMPTY_TYPE;
use super::{Descriptor, Digest, MAX_DOCUMENT, MAX_LAYERS, Manifest, MediaType, OciError};

/// Media type of an image or artifact manifest.
pub const MANIFEST_TYPE: &str = OCI_IMAGE_MEDIA_TYPE;
/// Media type of an index.
pub const INDEX_TYPE: &str = OCI_IMAGE_INDEX_MEDIA_TYPE;
/// Content of the empty blob. It has to be in the repository before a manifest that names it.
pub const EMPTY: &[u8] = b"{}";

/// Content of an artifact manifest.
#[derive(Clone, Debug)]
pub struct ArtifactManifest {
    /// Artifact type.
    pub artifact_type: MediaType,
    /// Blobs, in order.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one refers to; `None` if it stands alone.
    pub subject: Option<Descriptor>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A serialized document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenDocument {
    /// Media type.
    pub media_type: &'static str,
    /// Serialized bytes.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes.
    pub digest: Digest,
}

impl ArtifactManifest {
    /// Serializes the manifest; fails if it exceeds the limits of readers.
    pub fn write(&self) -> Result<WrittenDocument, OciError> {
        let malformed = |reason: String| OciError::Malformed { what: "manifest", reason };
        if self.layers.len() > MAX_LAYERS {
            let reason = format!("{} layers are more than the limit of {MAX_LAYERS}", self.layers.len());
            return Err(malformed(reason));
        }
        let config = Descriptor { data: Some(EMPTY.to_vec()), ..Descriptor::of(EMPTY_TYPE, EMPTY) };
        // "layers ... MUST have at least one entry"; without content that is the empty one (image-spec manifest.md).
        let layers = if self.layers.is_empty() { vec![config.clone()] } else { self.layers.clone() };
        let manifest = Manifest {
            media_type: MANIFEST_TYPE.into(),
            artifact_type: Some(self.artifact_type.clone()),
            config: Some(config),
            layers,
            subject: self.subject.clone(),
            annotations: self.annotations.clone(),
        };
        let bytes = manifest_json(&manifest).and_then(|json| serde_json::to_vec(&json));
        let bytes = bytes.map_err(|error| malformed(error.to_string()))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            let reason = format!("{} bytes are more than the limit of {MAX_DOCUMENT}", bytes.len());
            return Err(malformed(reason));
        }
        Ok(WrittenDocument { media_type: MANIFEST_TYPE, digest: Digest::sha256(&bytes), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::super::ManifestDocument;
    use super::*;

    fn artifact() -> ArtifactManifest {
        let mut layer = Descriptor::of("text/plain", b"hello");
        layer.annotations.insert("b".into(), "2".into());
        layer.annotations.insert("a".into(), "1".into());
        ArtifactManifest {
            artifact_type: "application/x.test".into(),
            layers: vec![layer],
            subject: Some(Descriptor::of(MANIFEST_TYPE, b"{ }")),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_bytes_of_a_manifest_are_these_and_no_others() {
        let written = artifact().write().unwrap();
        let expected = concat!(
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/x.test","#,
            r#""config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"data":"e30="},"#,
            r#""layers":[{"mediaType":"text/plain","digest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size":5,"annotations":{"a":"1","b":"2"}}],"#,
            r#""subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:257c1be96ae69f4b01c2c69bdb6d78605f59175819fb007d0bf245bf48444c4a","size":3}}"#,
        );
        assert_eq!(String::from_utf8(written.bytes.clone()).unwrap(), expected);
        assert_eq!(written.digest, Digest::sha256(expected.as_bytes()));
    }

    #[test]
    fn written_artifact_manifest_is_read_back_equal() {
        let artifact = artifact();
        let written = artifact.write().unwrap();
        let ManifestDocument::Manifest(read) =
            ManifestDocument::parse(&written.bytes, Some(MANIFEST_TYPE)).unwrap()
        else {
            panic!()
        };
        assert_eq!(read.kind(), Some(&artifact.artifact_type));
        assert_eq!((read.layers, read.subject), (artifact.layers, artifact.subject));
        assert!(read.config.unwrap().media_type.is_empty_descriptor());
    }

    #[test]
    fn an_artifact_without_content_names_the_empty_blob() {
        let written = ArtifactManifest { layers: Vec::new(), ..artifact() }.write().unwrap();
        let ManifestDocument::Manifest(read) = ManifestDocument::parse(&written.bytes, None).unwrap() else {
            panic!()
        };
        assert_eq!(read.layers.len(), 1);
        assert!(read.layers[0].media_type.is_empty_descriptor());
    }

    #[test]
    fn no_manifest_is_written_that_no_reader_takes() {
        let layer = Descriptor::of("text/plain", b"hello");
        let most = ArtifactManifest { layers: vec![layer.clone(); MAX_LAYERS], ..artifact() };
        assert!(most.write().is_ok());
        let more = ArtifactManifest { layers: vec![layer; MAX_LAYERS + 1], ..artifact() };
        assert!(more.write().unwrap_err().to_string().contains("4097 layers"));
        let mut long = artifact();
        long.annotations.insert("a".into(), "x".repeat(MAX_DOCUMENT as usize));
        assert!(long.write().unwrap_err().to_string().contains("limit"));
    }
}
