//! Manifests and headers made by hand for the tests of this module.

use crate::oci::{Descriptor, Digest, Manifest};

use super::DiskPlan;

/// A size that a file of [`Qcow2`] could have.
pub(super) const SIZE: u64 = 10 * 65536 + 5;

/// The first 64 KiB of an image.
pub(super) struct Qcow2(pub(super) Vec<u8>, usize);

impl Qcow2 {
    /// An empty disk of 64 MiB with clusters of 64 KiB.
    pub(super) fn new(version: u32) -> Self {
        let length = if version == 2 { 72 } else { 104 };
        let image = Self(vec![0; 65536], length);
        let image = image.u32(0, u32::from_be_bytes(*b"QFI\xfb")).u32(4, version).u32(20, 16);
        let image = image.u64(24, 64 << 20).u32(36, 1).u64(40, 0x30000);
        if version == 2 { image } else { image.u32(96, 4).u32(100, 104) }
    }

    pub(super) fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
        self
    }

    /// Writes the name far enough behind the header for extensions.
    pub(super) fn backing(self, name: &[u8]) -> Self {
        let mut image = self.u64(8, 1024).u32(16, name.len() as u32);
        image.0[1024..1024 + name.len()].copy_from_slice(name);
        image
    }

    pub(super) fn extension(self, kind: u32, content: &[u8]) -> Self {
        let at = self.1;
        let mut image = self.u32(at, kind).u32(at + 4, content.len() as u32);
        image.0[at + 8..at + 8 + content.len()].copy_from_slice(content);
        image.1 = at + 8 + content.len().next_multiple_of(8);
        image
    }

    /// How many bytes matter.
    pub(super) fn used(&self) -> usize {
        let zeros = self.0.iter().rev().take_while(|byte| **byte == 0).count();
        self.0.len() - zeros
    }
}

pub(super) const PART: &str = "application/vnd.cocoonstack.disk.qcow2.part";
pub(super) const RAW_PART: &str = "application/vnd.cocoonstack.disk.raw.part";
pub(super) const WHOLE: &str = "application/vnd.cocoonstack.disk.qcow2";
pub(super) const BYTES: &str = "application/octet-stream";

/// A layer of `size` bytes; its digest follows from `content`.
pub(super) fn layer(media_type: &str, title: Option<&str>, size: u64, content: &str) -> Descriptor {
    let annotations =
        title.map(|title| ("org.opencontainers.image.title".to_owned(), title.to_owned())).into_iter();
    Descriptor {
        media_type: media_type.into(),
        digest: Digest::sha256(content.as_bytes()),
        size,
        annotations: annotations.collect(),
        platform: None,
        artifact_type: None,
        data: None,
        urls: Vec::new(),
        name: None,
    }
}

/// A manifest of this type with such layers: four bytes each, all different.
pub(super) fn manifest<'a>(
    artifact_type: &str,
    layers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Manifest {
    let layers = layers.into_iter().enumerate();
    Manifest {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        artifact_type: (!artifact_type.is_empty()).then(|| artifact_type.into()),
        config: Some(layer("application/vnd.oci.empty.v1+json", None, 2, "{}")),
        layers: layers.map(|(i, (kind, title))| layer(kind, Some(title), 4, &i.to_string())).collect(),
        subject: None,
        annotations: Default::default(),
    }
}

/// The numbers of the layers of a disk, in order.
pub(super) fn layers(plan: &DiskPlan) -> Vec<usize> {
    plan.layers().collect()
}

/// A cloud image whose layers are parts of a qcow2.
pub(super) fn cloud<'a>(titles: impl IntoIterator<Item = &'a str>) -> Manifest {
    manifest("application/vnd.cocoonstack.os-image.v1+json", titles.into_iter().map(|title| (PART, title)))
}

/// An artifact of no special type whose layers are bytes.
pub(super) fn artifact<'a>(titles: impl IntoIterator<Item = &'a str>) -> Manifest {
    manifest("application/vnd.unknown.artifact.v1", titles.into_iter().map(|title| (BYTES, title)))
}
