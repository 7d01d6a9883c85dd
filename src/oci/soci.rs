//! SOCI indexes as documents: the mapping from layers to zTOCs, and the references from images to indexes.
//!
//! zTOCs are not read, and no request is made. A SOCI index is an image manifest with its own artifact type. Its
//! layers are the zTOCs, each annotated with its layer (`soci/soci_index.go` of the soci-snapshotter).
//!
//! An image can refer to its index in two ways. Version 2 (`soci convert`, `soci/soci_convert.go`): the image's
//! manifest carries [`INDEX_DIGEST`], so the manifest's own digest covers the index. Both are entries of one OCI
//! index, where the entry of the SOCI index carries [`IMAGE_MANIFEST_DIGEST`]. Version 1: a referrer whose subject is
//! the image's manifest, found by the referrers API with [`SOCI_V1`] as the artifact type. Any account with push
//! access can add one at any time, and the snapshotter ignores them by default since 0.10
//! (`docs/soci-index-manifest-v2.md`).

use super::{Descriptor, Digest, InvalidDigest, Manifest, ManifestDocument, MediaType, OciError};

/// Artifact type of an index of version 1.
pub const SOCI_V1: &str = "application/vnd.amazon.soci.index.v1+json";

/// Artifact type of an index of version 2.
pub const SOCI_V2: &str = "application/vnd.amazon.soci.index.v2+json";

/// Annotation of an image's manifest: the digest of its SOCI index of version 2.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// Annotation of a SOCI index's entry in an OCI index: the digest of the image's manifest.
pub const IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";

/// Annotation of a zTOC: the digest of its layer.
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// Annotation of a zTOC: the media type of its layer.
const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";

/// Media type of a zTOC; it has no type of its own.
const ZTOC_MEDIA_TYPE: &str = "application/octet-stream";

/// Version of a SOCI index: the link between the index and its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SociVersion {
    /// By its subject: a weak link, which any account with push access can make.
    V1,
    /// By an annotation of the image's manifest.
    V2,
}

/// A SOCI index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SociIndex {
    /// The link to its image.
    pub version: SociVersion,
    /// Digest of the image's manifest; always present in version 1.
    pub subject: Option<Digest>,
    /// The zTOCs, in the order of the layers. Layers that are small or in another format have none.
    pub ztocs: Vec<Ztoc>,
}

/// A zTOC and its annotated layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ztoc {
    /// The digest of the layer's stored bytes.
    pub layer: Digest,
    /// The layer's label, as the tool found it.
    pub layer_media_type: MediaType,
    /// The blob with the zTOC.
    pub blob: Descriptor,
}

impl SociIndex {
    /// Parses the bytes of an index manifest.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, OciError> {
        match ManifestDocument::parse(bytes, content_type)? {
            ManifestDocument::Manifest(manifest) => Self::of(&manifest),
            ManifestDocument::Index(_) => Err(malformed("it is an OCI index".into())),
        }
    }

    /// Interprets an index manifest.
    pub fn of(manifest: &Manifest) -> Result<Self, OciError> {
        // Without `artifactType`, the type of the config counts, like in the tool itself.
        let kind = manifest.kind().cloned().unwrap_or_default();
        let version = if kind == MediaType::from(SOCI_V2) {
            SociVersion::V2
        } else if kind == MediaType::from(SOCI_V1) {
            SociVersion::V1
        } else {
            return Err(malformed(format!("its artifact type is \"{}\"", kind.as_written().escape_debug())));
        };
        let subject = manifest.subject.as_ref().map(|subject| subject.digest.clone());
        if version == SociVersion::V1 && subject.is_none() {
            return Err(malformed("it has version 1 and no subject".into()));
        }
        let mut ztocs: Vec<Ztoc> = Vec::with_capacity(manifest.layers.len());
        for (at, blob) in manifest.layers.iter().enumerate() {
            let ztoc = Ztoc::of(blob).map_err(|reason| malformed(format!("layers[{at}]: {reason}")))?;
            match ztocs.iter().find(|before| before.layer == ztoc.layer) {
                None => ztocs.push(ztoc),
                // An image that contains a layer twice has its zTOC twice.
                Some(before) if before.blob.digest == ztoc.blob.digest => {}
                Some(before) => {
                    return Err(malformed(format!(
                        "layers[{at}]: {} and {} are both about {}",
                        before.blob.digest, ztoc.blob.digest, ztoc.layer
                    )));
                }
            }
        }
        Ok(Self { version, subject, ztocs })
    }

    /// The zTOC of the layer with this digest.
    pub fn ztoc(&self, layer: &Digest) -> Option<&Ztoc> {
        self.ztocs.iter().find(|ztoc| ztoc.layer == *layer)
    }

    /// Whether this is an index of the image with this manifest. Without a subject it matches any image: then the
    /// caller must have found it by [`soci_index_digest`].
    pub fn is_about(&self, image: &Digest) -> bool {
        self.subject.as_ref().is_none_or(|subject| subject == image)
    }
}

impl Ztoc {
    fn of(blob: &Descriptor) -> Result<Self, String> {
        let annotation = |name: &str| {
            blob.annotations.get(name).ok_or_else(|| format!("{} has no annotation {name}", blob.digest))
        };
        if blob.media_type != MediaType::from(ZTOC_MEDIA_TYPE) {
            let found = blob.media_type.as_written().escape_debug();
            return Err(format!("{} has the media type \"{found}\", not {ZTOC_MEDIA_TYPE}", blob.digest));
        }
        if blob.size == 0 {
            return Err(format!("{} is empty", blob.digest));
        }
        let layer: Digest =
            annotation(LAYER_DIGEST)?.parse().map_err(|error: InvalidDigest| error.to_string())?;
        let layer_media_type = MediaType::from(annotation(LAYER_MEDIA_TYPE)?.as_str());
        if !layer_media_type.claims_tar() {
            let found = layer_media_type.as_written().escape_debug();
            return Err(format!("{layer} has the media type \"{found}\", which is no archive"));
        }
        Ok(Self { layer, layer_media_type, blob: blob.clone() })
    }
}

/// The digest of the SOCI index that an image's manifest names; `None` if it names none.
pub fn soci_index_digest(image: &Manifest) -> Result<Option<Digest>, OciError> {
    Ok(image.annotations.get(INDEX_DIGEST).map(|digest| digest.parse()).transpose()?)
}

fn malformed(reason: String) -> OciError {
    OciError::Malformed { what: "SOCI index", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(seed: &str) -> Digest {
        Digest::sha256(seed.as_bytes())
    }

    fn ztoc(seed: &str, layer: &str) -> String {
        let layer = digest(layer);
        format!(
            r#"{{"mediaType":"application/octet-stream","digest":"{}","size":9,"annotations":{{"{LAYER_DIGEST}":"{layer}","{LAYER_MEDIA_TYPE}":"application/vnd.oci.image.layer.v1.tar+gzip"}}}}"#,
            digest(seed)
        )
    }

    fn index(kind: &str, subject: &str, ztocs: &[String]) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"{kind}","digest":"{}","size":2}},"layers":[{}]{subject}}}"#,
            Digest::sha256(b"{}"),
            ztocs.join(",")
        )
    }

    fn reason(json: &str) -> String {
        SociIndex::parse(json.as_bytes(), None).unwrap_err().to_string()
    }

    #[test]
    fn soci_index_maps_ztocs_to_layers() {
        let json = index(SOCI_V2, "", &[ztoc("one", "lower"), ztoc("two", "upper"), ztoc("one", "lower")]);
        let found = SociIndex::parse(json.as_bytes(), None).unwrap();
        assert_eq!((found.version, found.ztocs.len()), (SociVersion::V2, 2), "a repeated layer counts once");
        let upper = found.ztoc(&digest("upper")).unwrap();
        assert_eq!((&upper.blob.digest, upper.blob.size), (&digest("two"), 9));
        assert_eq!(upper.layer_media_type.as_written(), "application/vnd.oci.image.layer.v1.tar+gzip");
        assert_eq!(found.ztoc(&digest("middle")), None);
        assert!(found.is_about(&digest("any")), "version 2 is tied by the image's annotation");
    }

    #[test]
    fn version_1_is_tied_by_its_subject() {
        let subject = format!(
            r#","subject":{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":1}}"#,
            digest("image")
        );
        let json = index(SOCI_V1, &subject, &[ztoc("one", "lower")]);
        let found = SociIndex::parse(json.as_bytes(), None).unwrap();
        assert_eq!(found.version, SociVersion::V1);
        assert!(found.is_about(&digest("image")) && !found.is_about(&digest("other")));
        assert!(reason(&index(SOCI_V1, "", &[])).ends_with("it has version 1 and no subject"));
        // What tools wrote before the image manifest could carry artifacts.
        let old = format!(
            r#"{{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","artifactType":"{SOCI_V1}","blobs":[{}]{subject}}}"#,
            ztoc("one", "lower")
        );
        assert_eq!(SociIndex::parse(old.as_bytes(), None).unwrap().ztocs, found.ztocs);
    }

    #[test]
    fn soci_index_without_its_subjects_is_refused() {
        let one = ztoc("one", "lower");
        let lower = digest("lower");
        for (json, reason_text) in [
            (
                index("application/vnd.oci.image.config.v1+json", "", &[]),
                "artifact type is \"application/vnd.oci.image.config",
            ),
            (index(SOCI_V2, "", &[one.replace(LAYER_DIGEST, "other")]), "layers[0]: sha256:"),
            (
                index(SOCI_V2, "", &[one.replace(LAYER_MEDIA_TYPE, "other")]),
                "has no annotation com.amazon.soci.image-layer-m",
            ),
            (index(SOCI_V2, "", &[one.replace(lower.as_str(), "sha256:12")]), "digest \"sha256:12\""),
            (
                index(SOCI_V2, "", &[one.replace("layer.v1.tar+gzip", "config.v1+json")]),
                "which is no archive",
            ),
            (index(SOCI_V2, "", &[one.replace("octet-stream", "json")]), "not application/octet-stream"),
            (index(SOCI_V2, "", &[one.replace("\"size\":9", "\"size\":0")]), "is empty"),
            (index(SOCI_V2, "", &[one, ztoc("two", "lower")]), "are both about"),
        ] {
            assert!(reason(&json).contains(reason_text), "{} does not say {reason_text:?}", reason(&json));
        }
        assert!(reason(r#"{"manifests":[]}"#).ends_with("it is an OCI index"));
    }

    #[test]
    fn an_image_names_its_index() {
        let image = |annotation: &str| {
            let json = format!(r#"{{"layers":[],"annotations":{{{annotation}}}}}"#);
            let ManifestDocument::Manifest(manifest) =
                ManifestDocument::parse(json.as_bytes(), None).unwrap()
            else {
                panic!()
            };
            soci_index_digest(&manifest)
        };
        let named = digest("index");
        assert_eq!(image("").unwrap(), None);
        assert_eq!(image(&format!(r#""{INDEX_DIGEST}":"{named}""#)).unwrap(), Some(named));
        assert!(image(&format!(r#""{INDEX_DIGEST}":"../x""#)).is_err());
    }
}
