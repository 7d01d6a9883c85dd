//! Media types: labels that are compared without case and parameters, and never believed about content.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A media type as written, compared by its essence: `type/subtype` in lower case, parameters cut.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct MediaType {
    written: Box<str>,
}

impl MediaType {
    /// As written in the document.
    pub fn as_written(&self) -> &str {
        &self.written
    }

    /// `type/subtype` in lower case, without parameters.
    pub fn essence(&self) -> String {
        self.written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.written.trim().is_empty()
    }

    /// Whether this is an OCI index or a Docker manifest list.
    pub fn is_index(&self) -> bool {
        matches!(
            self.essence().as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    /// Whether this is an image or artifact manifest.
    pub fn is_manifest(&self) -> bool {
        matches!(
            self.essence().as_str(),
            "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json"
                | "application/vnd.oci.artifact.manifest.v1+json"
        )
    }

    /// Whether this is one of Docker's schema 1 forms, which name no sizes and cannot be served by range.
    pub fn is_schema1(&self) -> bool {
        matches!(
            self.essence().as_str(),
            "application/vnd.docker.distribution.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v1+prettyjws"
        )
    }

    /// Whether this labels a container image's config.
    pub fn is_image_config(&self) -> bool {
        matches!(
            self.essence().as_str(),
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        )
    }

    /// Whether this is the empty descriptor of image-spec 1.1.
    pub fn is_empty_descriptor(&self) -> bool {
        self.essence() == super::artifact::EMPTY_TYPE
    }

    /// Whether the author of a layer does not let others hand it on: a layer of an OCI image, or a foreign one of Docker's.
    pub fn is_nondistributable(&self) -> bool {
        let essence = self.essence();
        essence.starts_with("application/vnd.oci.image.layer.nondistributable.")
            || essence.starts_with("application/vnd.docker.image.rootfs.foreign.")
    }

    /// Whether the label says "a tar archive", compressed or not: `…tar`, `…tar+gzip`, `…tar.gzip`, `…tar+zstd`, `…tgz`,
    /// `…+tar+gzip`.
    pub fn claims_tar(&self) -> bool {
        let essence = self.essence();
        let subtype = essence.split('/').nth(1).unwrap_or_default();
        if subtype.split('+').skip(1).any(|suffix| suffix == "tar") {
            return true;
        }
        let base = subtype.split('+').next().unwrap_or_default();
        let base = base.strip_suffix(".gzip").or_else(|| base.strip_suffix(".zstd")).unwrap_or(base);
        matches!(base, "tar" | "x-tar" | "tgz" | "x-gtar" | "x-compressed-tar" | "x-tgz")
            || base.ends_with(".tar")
            || base.ends_with(".tgz")
    }

    /// Whether the label says "a tar archive, not compressed".
    pub fn claims_uncompressed_tar(&self) -> bool {
        let essence = self.essence();
        self.claims_tar()
            && (essence.ends_with(".tar")
                || essence.ends_with("+tar")
                || essence.ends_with("/tar")
                || essence.ends_with("/x-tar"))
    }
}

impl PartialEq for MediaType {
    fn eq(&self, other: &Self) -> bool {
        self.essence() == other.essence()
    }
}

impl Eq for MediaType {}

impl From<String> for MediaType {
    fn from(written: String) -> Self {
        Self { written: written.into() }
    }
}

impl From<&str> for MediaType {
    fn from(written: &str) -> Self {
        Self { written: written.into() }
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> String {
        media_type.written.into()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_matter() {
        assert_eq!(
            MediaType::from("Application/vnd.oci.image.index.v1+JSON; charset=utf-8"),
            MediaType::from("application/vnd.oci.image.index.v1+json")
        );
    }

    #[test]
    fn layers_that_must_not_be_handed_on_are_known_by_both_names() {
        for (label, expected) in [
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
            ("Application/vnd.oci.image.layer.nondistributable.v1.tar; a=b", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", false),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", false),
        ] {
            assert_eq!(MediaType::from(label).is_nondistributable(), expected, "{label}");
        }
    }

    #[test]
    fn tar_labels_are_seen_through_their_suffixes() {
        for tar in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.cncf.flux.content.v1.tar+gzip",
            "application/tar+gzip",
            "application/x-tar",
            "application/vnd.nosi.netboot-bundle.layer.v1+tar+gzip",
        ] {
            assert!(MediaType::from(tar).claims_tar(), "{tar}");
        }
        for other in [
            "application/octet-stream",
            "text/plain",
            "application/vnd.cocoonstack.disk.qcow2.part",
            "application/wasm",
            "application/gzip",
        ] {
            assert!(!MediaType::from(other).claims_tar(), "{other}");
        }
    }
}
