//! Media types: labels, compared without case and parameters. Content overrides them.

use std::fmt;

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use serde::{Deserialize, Serialize};

use super::StreamEncoding;

/// Media type of the empty blob (image-spec manifest.md, "Guidance for an Empty Descriptor").
pub(super) const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// Storage form that the words of a label name.
#[derive(Clone, Copy, Debug)]
struct LabelPacking {
    is_tar: bool,
    /// `None` for plain bytes.
    compression: Option<StreamEncoding>,
}

impl LabelPacking {
    /// The form that `word` names: an archive, a compression or both.
    fn of(word: &str) -> Option<Self> {
        StreamEncoding::ALL.iter().find_map(|encoding| {
            let compression = Some(*encoding).filter(|encoding| *encoding != StreamEncoding::Plain);
            let names = encoding.names();
            match (names.labels.contains(&word), names.tar_labels.contains(&word)) {
                (true, _) => Some(LabelPacking { is_tar: false, compression }),
                (_, true) => Some(LabelPacking { is_tar: true, compression }),
                _ => None,
            }
        })
    }
}

/// All spellings of disk formats that tools write into media types, and the format.
const DISK_FORMATS: [(&str, &str); 14] = [
    ("qcow2", "qcow2"),
    ("x-qcow2", "qcow2"),
    ("x-qemu-qcow2", "qcow2"),
    ("x-qemu-disk", "qcow2"),
    ("qcow", "qcow"),
    ("x-qcow", "qcow"),
    ("raw", "raw"),
    ("x-raw-disk-image", "raw"),
    ("vmdk", "vmdk"),
    ("x-vmdk", "vmdk"),
    ("vhd", "vhd"),
    ("vhdx", "vhdx"),
    ("x-vhdx", "vhdx"),
    ("vdi", "vdi"),
];

/// All spellings of file systems that tools write into media types of layers, and the file extension.
const FILE_SYSTEMS: [(&str, &str); 5] = [
    ("squashfs", "squashfs"),
    ("x-squashfs", "squashfs"),
    ("erofs", "erofs"),
    ("sif", "sif"),
    ("x-sif", "sif"),
];

/// The meaning of the first of `words` that is in a table.
fn found_in<'a, T: Copy>(table: &[(&str, T)], mut words: impl Iterator<Item = &'a str>) -> Option<T> {
    words.find_map(|word| table.iter().find(|(spelling, _)| word == *spelling).map(|(_, meaning)| *meaning))
}

/// A media type as written, compared by its essence: `type/subtype` in lower case, without parameters.
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

    /// Whether the media type is missing.
    pub fn is_empty(&self) -> bool {
        self.written.trim().is_empty()
    }

    /// Whether this is an OCI index or a Docker manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self.essence().as_str(), OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE)
    }

    /// Whether this is an image or artifact manifest.
    pub fn is_manifest(&self) -> bool {
        matches!(
            self.essence().as_str(),
            OCI_IMAGE_MEDIA_TYPE
                | IMAGE_MANIFEST_MEDIA_TYPE
                | "application/vnd.oci.artifact.manifest.v1+json"
        )
    }

    /// Whether this is Docker's manifest of an image, schema 2.
    pub fn is_docker_manifest(&self) -> bool {
        self.essence() == IMAGE_MANIFEST_MEDIA_TYPE
    }

    /// Whether this is a Docker manifest of schema 1, which has no sizes and cannot be served by range.
    pub fn is_schema1(&self) -> bool {
        matches!(
            self.essence().as_str(),
            "application/vnd.docker.distribution.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v1+prettyjws"
        )
    }

    /// Whether this is the type of a container image's config.
    pub fn is_image_config(&self) -> bool {
        matches!(self.essence().as_str(), IMAGE_CONFIG_MEDIA_TYPE | IMAGE_DOCKER_CONFIG_MEDIA_TYPE)
    }

    /// Whether this is the empty descriptor of image-spec 1.1.
    pub fn is_empty_descriptor(&self) -> bool {
        self.essence() == EMPTY_TYPE
    }

    /// Whether the licence of a layer forbids distribution: a nondistributable OCI layer, or a foreign Docker layer.
    pub fn is_nondistributable(&self) -> bool {
        let essence = self.essence();
        essence.starts_with("application/vnd.oci.image.layer.nondistributable.")
            || essence.starts_with("application/vnd.docker.image.rootfs.foreign.")
    }

    /// Whether this is a replacement for the type of a container image's config, as registries and old tools wrote
    /// it: Docker 1.10 to 1.11.0 (moby `distribution/registry.go`, `ImageTypes`), or an empty type.
    pub fn is_lost_config(&self) -> bool {
        matches!(
            self.essence().as_str(),
            "" | "application/octet-stream" | "application/json" | "text/html" | "text/plain"
        )
    }

    /// Whether this is Docker's type of a container image's layer.
    pub fn is_docker_layer(&self) -> bool {
        let essence = self.essence();
        essence.starts_with("application/vnd.docker.image.rootfs.")
            || essence.starts_with("application/vnd.docker.container.image.rootfs.")
    }

    /// Whether this is the type of a container image's layer, by Docker or by OCI.
    pub fn is_image_layer(&self) -> bool {
        let essence = self.essence();
        self.is_docker_layer()
            || essence.starts_with("application/vnd.oci.image.layer.")
            || essence.starts_with("application/vnd.oci.image.rootfs.")
            || essence.starts_with("application/vnd.oci.image.serialization.rootfs.")
    }

    /// Whether the label claims encryption (ocicrypt: `…tar+gzip+encrypted`).
    pub fn claims_encryption(&self) -> bool {
        self.essence().split('+').skip(1).any(|suffix| suffix == "encrypted" || suffix.starts_with("enc-"))
    }

    /// Whether the label claims a tar archive, compressed or not: `…tar`, `…tar+gzip`, `…tar.gz`, `…tar+zstd`,
    /// `…tgz`, `…+tar+gzip`, `…+tar.xz`.
    pub fn claims_tar(&self) -> bool {
        self.packing().is_some_and(|packing| packing.is_tar)
    }

    /// Whether the label claims an uncompressed tar archive.
    pub fn claims_uncompressed_tar(&self) -> bool {
        self.packing().is_some_and(|packing| packing.is_tar && packing.compression.is_none())
    }

    /// The compression that the label names, of an archive or of any other content.
    pub fn compression(&self) -> Option<StreamEncoding> {
        self.packing().and_then(|packing| packing.compression)
    }

    /// The disk format that the label names: `…+qcow2`, `….raw`.
    pub fn disk_format(&self) -> Option<&'static str> {
        found_in(&DISK_FORMATS, self.words().iter().map(String::as_str))
    }

    /// The file system that the label names, anywhere in it: `vnd.erofs.layer.v1+zstd`, `…squashfs+zstd+verity`.
    pub fn file_system(&self) -> Option<&'static str> {
        let essence = self.essence();
        let subtype = essence.split('/').nth(1).unwrap_or_default();
        found_in(&FILE_SYSTEMS, subtype.split(['.', '+']))
    }

    fn packing(&self) -> Option<LabelPacking> {
        let words = self.words();
        let found = words.iter().filter_map(|word| LabelPacking::of(word));
        found.reduce(|one, other| LabelPacking {
            is_tar: one.is_tar || other.is_tar,
            compression: one.compression.or(other.compression),
        })
    }

    /// The words at the end of the subtype that describe the storage form: every suffix after a `+`, and the last two
    /// parts before the first `+` (`vnd.oci.image.layer.v1.tar`, `rootfs.diff.tar.gzip`), each split at dots.
    fn words(&self) -> Vec<String> {
        let essence = self.essence();
        let subtype = essence.split('/').nth(1).unwrap_or_default();
        let mut parts = subtype.split('+');
        let base = parts.next().unwrap_or_default();
        let mut words: Vec<&str> = Vec::new();
        let mut tail = base.rsplit('.');
        let last = tail.next().unwrap_or_default();
        words.push(last);
        // The word before a compression counts: `tar.gzip`. Before any other word it is a name.
        if let Some(before) = tail.next()
            && LabelPacking::of(last).is_some()
        {
            words.push(before);
        }
        words.extend(parts.flat_map(|suffix| suffix.split('.')));
        words.into_iter().map(str::to_owned).collect()
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
            "application/vnd.cncf.falco.rulesfile.layer.v1+tar.gz",
            "application/vnd.example.metadata.v1.tar.xz",
            "application/vnd.example.v1.tar.zst",
            "application/vnd.example.v1.tar.bz2",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.example.layer.v1+tgz",
            "application/x-tgz",
        ] {
            assert!(MediaType::from(tar).claims_tar(), "{tar}");
        }
        for other in [
            "application/octet-stream",
            "text/plain",
            "application/vnd.cocoonstack.disk.qcow2.part",
            "application/wasm",
            "application/gzip",
            "application/vnd.example.tar.manifest.v1+json",
        ] {
            assert!(!MediaType::from(other).claims_tar(), "{other}");
        }
    }

    #[test]
    fn a_label_names_its_compression_and_its_format_in_every_spelling() {
        use StreamEncoding::{Bzip2, Gzip, Lz4, Xz, Zstd};
        for (label, compression, disk, system) in [
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Gzip), None, None),
            ("application/vnd.example.v1+tar.gz", Some(Gzip), None, None),
            ("application/vnd.example.v1.tar.xz", Some(Xz), None, None),
            ("application/x-bzip2", Some(Bzip2), None, None),
            ("application/octet-stream+lz4", Some(Lz4), None, None),
            ("application/vnd.oci.image.layer.v1.tar", None, None, None),
            ("application/vnd.lfedge.disk.layer.v1+qcow2", None, Some("qcow2"), None),
            ("application/x-qemu-disk+zstd", Some(Zstd), Some("qcow2"), None),
            ("application/vnd.stacker.image.layer.squashfs+zstd+verity", Some(Zstd), None, Some("squashfs")),
            ("application/vnd.sylabs.image.layer.v1.squashfs", None, None, Some("squashfs")),
            ("application/vnd.erofs.layer.v1+zstd", Some(Zstd), None, Some("erofs")),
            ("application/vnd.example.layer.v1+erofs", None, None, Some("erofs")),
            ("text/plain", None, None, None),
        ] {
            let kind = MediaType::from(label);
            let classified = (kind.compression(), kind.disk_format(), kind.file_system());
            assert_eq!(classified, (compression, disk, system), "{label}");
        }
    }
}
