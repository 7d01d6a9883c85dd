//! View `.ocifs/status.json`: the state of the mount at the moment the file is opened.
//!
//! A mount of one view has no such file, because it would be among the files of the image. In every mount the
//! extended attribute [`STATUS`] of the root has the same content.

use std::sync::Arc;

use crate::image::{ImageStatus, OpenImage};
use crate::io::{BoxFuture, ReadError, printable_json};

use super::TopView;
use super::subtree::{SubtreeBuilder, SyntheticFile, ViewSubtree};

/// Extended attribute of a mount's root with the mount's status: the JSON of [`ImageStatus`], compressed with zstd because
/// the kernel limits a value to 64 KiB (xattr(7)). If it is still too long, the ranges of blobs are omitted.
pub const STATUS: &[u8] = b"user.ocifs.status";
/// Limit of an extended attribute's value, in bytes.
const MAX_VALUE: usize = 64 * 1024;
/// Limit of an unpacked status, in bytes. Digests hardly compress, so a genuine status is far smaller.
const MAX_STATUS: u64 = 64 * 1024 * 1024;

/// Encodes the status as a value of [`STATUS`]; `None` if it is too long even without the ranges of blobs.
pub fn packed(status: &ImageStatus) -> Option<Vec<u8>> {
    let pack = |status: &ImageStatus| {
        let text = serde_json::to_vec(status).ok()?;
        zstd::bulk::compress(&text, 3).ok().filter(|packed| packed.len() <= MAX_VALUE)
    };
    pack(status).or_else(|| {
        let mut status = status.clone();
        status.blobs.iter_mut().for_each(|blob| blob.extents = None);
        pack(&status)
    })
}

/// Decodes a value of [`STATUS`].
pub fn unpack_status(value: &[u8]) -> std::io::Result<ImageStatus> {
    let text = zstd::stream::read::Decoder::new(value)?;
    serde_json::from_reader(std::io::Read::take(text, MAX_STATUS)).map_err(std::io::Error::other)
}

pub(super) struct StatusView;

impl TopView for StatusView {
    fn name(&self) -> &'static str {
        ".ocifs"
    }

    fn exists(&self, _image: &OpenImage) -> bool {
        true
    }

    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        _first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move { listing(image.created()) })
    }

    fn is_free(&self, _image: &OpenImage) -> bool {
        true
    }
}

/// Builds the directory; all its entries get `created` as their time.
pub(super) fn listing(created: i64) -> Result<ViewSubtree, ReadError> {
    let mut listing = SubtreeBuilder::new(created);
    listing.file(b"status.json", 0, SyntheticFile::Status)?;
    Ok(listing.finish())
}

/// The content of the file.
pub fn text(status: &ImageStatus) -> Vec<u8> {
    let text = serde_json::to_string_pretty(status).unwrap_or_default();
    format!("{}\n", printable_json(text)).into_bytes()
}

#[cfg(test)]
mod tests {
    use crate::image::{BlobStatus, ExtentsStatus};

    use super::*;

    fn status(blobs: u64, ranges: u64) -> ImageStatus {
        let mut status: ImageStatus = serde_json::from_str(
            r#"{"schemaVersion":1,"reference":"r","kind":"k","blobs":[],"layers":[],"conflicts":[],"warnings":[],"errors":[]}"#,
        )
        .unwrap();
        // Nothing in it looks like anything else, as digests do.
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed
        };
        status.blobs = (0..blobs)
            .map(|number| BlobStatus {
                digest: crate::oci::Digest::sha256(&number.to_le_bytes()),
                media_type: "m".into(),
                size: random(),
                cached: 0,
                served: 0,
                fetched: 0,
                verified: "none".into(),
                state: "partial".into(),
                extents: Some(ExtentsStatus {
                    unit: 1,
                    cached: (0..ranges).map(|_| (random(), random())).collect(),
                    read: Vec::new(),
                }),
            })
            .collect();
        status
    }

    #[test]
    fn a_status_comes_out_as_it_went_in() {
        let status = status(3, 2);
        let back = unpack_status(&packed(&status).unwrap()).unwrap();
        assert_eq!(text(&back), text(&status));
        assert!(unpack_status(b"no zstd").is_err());
    }

    #[test]
    fn a_status_that_is_too_long_for_an_attribute_leaves_the_parts_out() {
        let status = status(500, 20);
        let value = packed(&status).unwrap();
        assert!(value.len() <= MAX_VALUE);
        let back = unpack_status(&value).unwrap();
        assert!(back.blobs.len() == 500 && back.blobs.iter().all(|blob| blob.extents.is_none()));
    }
}
