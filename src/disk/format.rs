//! Disk formats, by label and by first bytes.
//!
//! A label decides names, and content decides the format of the bytes. This module does not compare the two.

use std::fmt;

use super::vmdk;
use crate::oci::StreamEncoding;

/// A disk format, detected or claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DiskFormat {
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// A raw disk; as a detected format: no known signature.
    Raw,
    /// VMware's format.
    Vmdk,
    /// Microsoft's older format, `vpc` in QEMU.
    Vhd,
    /// Microsoft's newer format.
    Vhdx,
    /// VirtualBox's format.
    Vdi,
    /// Unknown format: the name or type only claims a disk, as `.img` does.
    Unlabelled,
    /// Not a disk: mislabelled content, or a disk inside another container.
    Foreign(ForeignSignature),
    /// Another disk format, by its QEMU name.
    Other(String),
}

/// Recognised formats that are not disks (the list of cocoon `images/cloudimg/inspect.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ForeignSignature {
    /// A web page: most often the error page of a proxy.
    Html,
    /// A compressed stream.
    Compressed(StreamEncoding),
    /// PKZIP.
    Zip,
    /// 7-Zip.
    SevenZip,
}

/// Extensions by format. None has two letters, which could be a suffix of `split`. The first of a format is appended
/// to a name without an extension.
const EXTENSIONS: [(&str, DiskFormat); 9] = [
    ("qcow2", DiskFormat::Qcow2),
    ("qcow", DiskFormat::Qcow2),
    ("raw", DiskFormat::Raw),
    ("img", DiskFormat::Unlabelled),
    ("vmdk", DiskFormat::Vmdk),
    ("vhd", DiskFormat::Vhd),
    ("vpc", DiskFormat::Vhd),
    ("vhdx", DiskFormat::Vhdx),
    ("vdi", DiskFormat::Vdi),
];

const SIGNATURES: [(&[u8], ForeignSignature); 6] = [
    (b"<!", ForeignSignature::Html),
    (b"<?", ForeignSignature::Html),
    (b"<h", ForeignSignature::Html),
    (b"<H", ForeignSignature::Html),
    (b"PK", ForeignSignature::Zip),
    (b"7z\xbc\xaf\x27\x1c", ForeignSignature::SevenZip),
];

impl DiskFormat {
    /// The format that the extension of `name` claims.
    pub(super) fn by_extension(name: &str) -> Option<DiskFormat> {
        let (stem, extension) = name.rsplit_once('.')?;
        let extension = extension.to_ascii_lowercase();
        let known = EXTENSIONS.iter().find(|(known, _)| *known == extension)?;
        (!stem.is_empty()).then(|| known.1.clone())
    }

    /// The extension appended to a name of this format without one.
    pub(super) fn extension(&self) -> &'static str {
        EXTENSIONS.iter().find(|(_, format)| format == self).map_or("img", |(extension, _)| extension)
    }

    /// The format by the first bytes of a file of `size` bytes.
    pub(super) fn sniff(head: &[u8], size: u64) -> DiskFormat {
        if head.starts_with(b"QFI\xfb") {
            return DiskFormat::Qcow2;
        }
        if head.starts_with(b"QED\0") {
            return DiskFormat::Other("qed".into());
        }
        // Apple's sparse images (ASIF), which tart's machines may have.
        if head.starts_with(b"shdw") {
            return DiskFormat::Other("asif".into());
        }
        if vmdk::probe(head) {
            return DiskFormat::Vmdk;
        }
        if head.starts_with(b"vhdxfile") {
            return DiskFormat::Vhdx;
        }
        if head.starts_with(b"conectix") || has_vhd_footer(head, size) {
            return DiskFormat::Vhd;
        }
        if head.get(0x40..0x44) == Some(&0xbeda_107f_u32.to_le_bytes()) {
            return DiskFormat::Vdi;
        }
        if let Some(encoding) = StreamEncoding::by_magic(head) {
            return DiskFormat::Foreign(ForeignSignature::Compressed(encoding));
        }
        match SIGNATURES.iter().find(|(magic, _)| head.starts_with(magic)) {
            Some((_, signature)) => DiskFormat::Foreign(*signature),
            None => DiskFormat::Raw,
        }
    }
}

/// A fixed VHD is the raw disk with a footer of 512 bytes; it is detected only when `head` is the whole file.
fn has_vhd_footer(head: &[u8], size: u64) -> bool {
    head.len() as u64 == size
        && head.len() > 512
        && head.len().checked_sub(512).is_some_and(|footer| head[footer..].starts_with(b"conectix"))
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
            DiskFormat::Vmdk => "vmdk",
            DiskFormat::Vhd => "vhd",
            DiskFormat::Vhdx => "vhdx",
            DiskFormat::Vdi => "vdi",
            DiskFormat::Unlabelled => "unlabelled",
            DiskFormat::Foreign(signature) => return signature.fmt(f),
            DiskFormat::Other(name) => name,
        })
    }
}

impl fmt::Display for ForeignSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ForeignSignature::Html => "html",
            ForeignSignature::Compressed(encoding) => encoding.names().name,
            ForeignSignature::Zip => "zip",
            ForeignSignature::SevenZip => "7z",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniff(head: &[u8]) -> String {
        DiskFormat::sniff(head, head.len() as u64).to_string()
    }

    #[test]
    fn archives_and_programs_are_no_disks_by_their_first_bytes() {
        for (head, name) in [
            (&b"<!DOCTYPE html>"[..], "html"),
            (b"<?xml version", "html"),
            (b"<html>", "html"),
            (b"<HTML>", "html"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\xfd7zXZ\0", "xz"),
            (b"BZh9", "bzip2"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"PK\x03\x04", "zip"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"bv41", "lz4 (Apple)"),
            (b"bv4-", "lz4 (Apple)"),
            (b"shdw", "asif"),
            (b"QED\0", "qed"),
            (b"", "raw"),
            (b"\xeb\x63\x90", "raw"),
        ] {
            assert_eq!(sniff(head), name, "{head:?}");
        }
    }

    #[test]
    fn a_fixed_vhd_is_seen_only_in_its_footer() {
        let mut disk = vec![0; 2048];
        disk[1536..1544].copy_from_slice(b"conectix");
        assert_eq!(sniff(&disk), "vhd");
        assert_eq!(DiskFormat::sniff(&disk, 4096), DiskFormat::Raw);
    }

    #[test]
    fn an_extension_alone_is_no_name() {
        assert_eq!(DiskFormat::by_extension("a.QCOW2"), Some(DiskFormat::Qcow2));
        assert_eq!(DiskFormat::by_extension(".qcow2"), None);
        assert_eq!(DiskFormat::by_extension("qcow2"), None);
    }
}
