//! Bare blob: a blob named by its own digest, shown as the only layer of a synthetic manifest.
//!
//! Only the first bytes of the blob are read. The title and media type are derived from them, so every rule for
//! artifacts applies: a disk appears in `disk/`, an archive in `merged/`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::{self, DiskFormat};
use crate::io::{ByteRange, FaultClass, ReadError, read_vec};
use crate::layer::{self, SniffResult, StreamEncoding};
use crate::oci::{Descriptor, Digest, Manifest, ManifestDocument, TITLE};

use super::image_set::ImageSet;
use super::open::{ImageOpener, LayerFilter};
use super::{ImageError, OpenImage};

/// Decoded bytes to examine: a tar header, or the first sectors of a disk.
const INSIDE: usize = 4096;

/// Magic numbers of files that are neither disks nor archives, and their extensions.
const FILE_SIGNATURES: [(&[u8], &str); 5] = [
    (b"PK\x03\x04", ".zip"),
    (b"7z\xbc\xaf\x27\x1c", ".7z"),
    (b"GGUF", ".gguf"),
    (b"\0asm", ".wasm"),
    (b"hsqs", ".squashfs"),
];

impl ImageOpener<'_> {
    /// Opens the blob `digest` alone. `absent` is the error for the missing manifest, returned if there is no blob
    /// either.
    pub(super) async fn blob_alone(
        &self,
        digest: &Digest,
        absent: ImageError,
    ) -> Result<ImageSet, ImageError> {
        if digest.algorithm().is_none() {
            return Err(absent);
        }
        let size = match self.source.blob_size(digest).await {
            Ok(size) => size,
            Err(error) if error.fault() == FaultClass::NotFound => {
                tracing::debug!(%digest, %error, "no blob of that digest either");
                return Err(absent);
            }
            // The blob may exist: the reason of the failure is more useful than the missing manifest.
            Err(error) => return Err(error.into()),
        };
        let mut layer =
            Descriptor { digest: digest.clone(), size, ..Descriptor::of("application/octet-stream", b"") };
        let (extension, media_type) = what(&self.head(&layer).await?, size);
        layer.media_type = media_type.into();
        layer.annotations.insert(TITLE.to_owned(), format!("{}{extension}", digest.encoded()));
        let manifest = Manifest {
            media_type: "".into(),
            artifact_type: None,
            config: None,
            layers: vec![layer],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let pinned = self.options.location.pinned(digest);
        let image: OpenImage =
            self.assemble(None, manifest.clone(), None, pinned.clone(), LayerFilter::Layers)?;
        Ok(ImageSet {
            pinned,
            digest: digest.clone(),
            document: ManifestDocument::Manifest(manifest),
            index: None,
            main: Some(Arc::new(image)),
            members: Vec::new(),
            warnings: Vec::new(),
            unlisted: Vec::new(),
            signed_by: None,
            root: None,
        })
    }

    async fn head(&self, layer: &Descriptor) -> Result<Vec<u8>, ReadError> {
        let blob = self.cache.blob(&layer.digest, self.source.blob(layer))?;
        read_vec(&*blob, ByteRange::new(0, layer.size.min(disk::HEAD))).await
    }
}

/// The extension and media type for a file of `size` bytes that starts with `head`.
fn what(head: &[u8], size: u64) -> (String, String) {
    const OCTETS: &str = "application/octet-stream";
    let (extension, media_type) = match layer::sniff(head) {
        // Zeros only are the start of an empty disk as well as of an empty archive.
        SniffResult::Stream(StreamEncoding::Plain) if head.iter().any(|byte| *byte != 0) => {
            (".tar", "application/x-tar")
        }
        SniffResult::Stream(encoding) if encoding != StreamEncoding::Plain => {
            let inside = layer::peek(encoding, head, INSIDE);
            let suffix = encoding.names().extension;
            let (form, tar) = match (disk_format(&inside, u64::MAX), layer::sniff(&inside)) {
                (Some(DiskFormat::Qcow2), _) => (".qcow2", ""),
                (Some(_), _) => (".img", ""),
                (None, SniffResult::Stream(StreamEncoding::Plain))
                    if inside.iter().any(|byte| *byte != 0) =>
                {
                    (".tar", "x-tar+")
                }
                (None, _) => ("", ""),
            };
            return (format!("{form}{suffix}"), format!("application/{tar}{encoding}"));
        }
        SniffResult::Stream(_) | SniffResult::Other(_) => match disk_format(head, size) {
            Some(DiskFormat::Qcow2) => (".qcow2", OCTETS),
            Some(DiskFormat::Vmdk) => (".vmdk", OCTETS),
            Some(DiskFormat::Vhd) => (".vhd", OCTETS),
            Some(DiskFormat::Vhdx) => (".vhdx", OCTETS),
            Some(DiskFormat::Vdi) => (".vdi", OCTETS),
            Some(_) => (".img", OCTETS),
            None if serde_json::from_slice::<serde::de::IgnoredAny>(head).is_ok()
                && head.starts_with(b"{") =>
            {
                (".json", "application/json")
            }
            None => {
                let other = FILE_SIGNATURES.iter().find(|(magic, _)| head.starts_with(magic));
                let other = other.map(|(_, extension)| *extension);
                let encoded = StreamEncoding::by_magic(head).map(|encoding| encoding.names().extension);
                (encoded.or(other).unwrap_or_default(), OCTETS)
            }
        },
    };
    (extension.to_owned(), media_type.to_owned())
}

/// The format of a disk that starts with `head`; `None` if it is not a disk. Raw requires a boot sector signature or
/// a partition table.
fn disk_format(head: &[u8], size: u64) -> Option<DiskFormat> {
    match disk::inspect(head, size, &DiskFormat::Raw).format {
        DiskFormat::Foreign(_) | DiskFormat::Other(_) => None,
        DiskFormat::Raw => {
            let is_disk = head.get(510..512) == Some(b"\x55\xaa") || head.get(512..520) == Some(b"EFI PART");
            is_disk.then_some(DiskFormat::Raw)
        }
        format => Some(format),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn extension(bytes: &[u8]) -> String {
        what(bytes, bytes.len() as u64).0
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    fn tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_cksum();
        tar.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn a_blob_has_the_extension_that_its_content_deserves() {
        let mut boot = vec![7; 1024];
        boot[510..512].copy_from_slice(b"\x55\xaa");
        let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
        qcow2.resize(512, 0);
        for (bytes, expected) in [
            (&tar()[..], ".tar"),
            (&gzip(&tar()), ".tar.gz"),
            (&zstd::bulk::compress(&tar(), 1).unwrap(), ".tar.zst"),
            (&boot, ".img"),
            (&gzip(&boot), ".img.gz"),
            (&qcow2, ".qcow2"),
            (&gzip(&qcow2), ".qcow2.gz"),
            (&zstd::bulk::compress(&qcow2, 1).unwrap(), ".qcow2.zst"),
            (&gzip(b"hello"), ".gz"),
            (b"{\"a\":1}", ".json"),
            (b"{ no json", ""),
            (b"GGUF\x03", ".gguf"),
            (b"hello", ""),
            (b"", ""),
            (&[0; 4096], ""),
            (&gzip(&[0; 4096]), ".gz"),
        ] {
            assert_eq!(extension(bytes), expected, "{:?}", &bytes[..bytes.len().min(8)]);
        }
    }
}
