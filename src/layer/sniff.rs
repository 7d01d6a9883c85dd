//! What stored bytes really are, by their first bytes: labels lie, content decides decoding.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many first bytes [`sniff`] wants: one tar header.
pub const SNIFF_LEN: usize = 512;

/// How the uncompressed stream is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// The stream itself.
    Plain,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

impl Encoding {
    /// The extension that a tar archive in this encoding deserves.
    pub fn extension(self) -> &'static str {
        match self {
            Encoding::Plain => "tar",
            Encoding::Gzip => "tar.gz",
            Encoding::Zstd => "tar.zst",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::Plain => "tar",
            Encoding::Gzip => "tar+gzip",
            Encoding::Zstd => "tar+zstd",
        })
    }
}

/// The answer of [`sniff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// A stream ocifs can read.
    Stream(Encoding),
    /// Something that is no layer archive, or one in an encoding ocifs does not read; its name for people.
    Other(&'static str),
}

/// Signatures of contents that are recognised only to name them.
const OTHERS: &[(&[u8], &str)] = &[
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"QFI\xfb", "a qcow2 disk"),
    (b"GGUF", "a GGUF model"),
    (b"\0asm", "a WebAssembly module"),
    (b"\x7fELF", "an ELF program"),
    (b"hsqs", "a squashfs image"),
    (b"{", "a JSON document"),
    (b"<", "an XML or HTML document"),
];

/// Decides by `head`, the first [`SNIFF_LEN`] bytes of the stored bytes (fewer only if there are no more).
pub fn sniff(head: &[u8]) -> Sniffed {
    if head.starts_with(&[0x1f, 0x8b]) {
        return Sniffed::Stream(Encoding::Gzip);
    }
    if is_zstd(head) {
        return Sniffed::Stream(Encoding::Zstd);
    }
    if is_tar(head) {
        return Sniffed::Stream(Encoding::Plain);
    }
    let name =
        OTHERS.iter().find(|(magic, _)| head.starts_with(magic)).map_or("no archive", |(_, name)| *name);
    Sniffed::Other(name)
}

/// A zstd frame, or one of the 16 skippable frames that may come first (RFC 8878, 3.1).
fn is_zstd(head: &[u8]) -> bool {
    let Some(magic) = head.first_chunk::<4>() else { return false };
    let magic = u32::from_le_bytes(*magic);
    magic == 0xFD2F_B528 || magic & 0xFFFF_FFF0 == 0x184D_2A50
}

/// Whether `head` is nothing, zeros (an empty archive), or a header whose checksum is right. The checksum is what POSIX
/// gives to tell a header from anything else; the v7 format has no magic.
fn is_tar(head: &[u8]) -> bool {
    if head.iter().all(|&byte| byte == 0) {
        return true;
    }
    let Some(header) = head.first_chunk::<512>() else { return false };
    let field = &header[148..156];
    let digits: Vec<u8> = field.iter().copied().filter(|byte| !matches!(byte, b' ' | 0)).collect();
    let Ok(recorded) = i64::from_str_radix(&String::from_utf8_lossy(&digits), 8) else { return false };
    let byte = |at: usize| if (148..156).contains(&at) { b' ' } else { header[at] };
    // Some old writers summed signed characters; Go accepts both.
    let unsigned: i64 = (0..512).map(|at| i64::from(byte(at))).sum();
    let signed: i64 = (0..512).map(|at| i64::from(byte(at) as i8)).sum();
    recorded == unsigned || recorded == signed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_told_by_its_first_bytes() {
        let mut tar = tar::Header::new_old();
        tar.set_path("a").unwrap();
        tar.set_size(0);
        tar.set_cksum();
        assert_eq!(sniff(tar.as_bytes()), Sniffed::Stream(Encoding::Plain));
        assert_eq!(sniff(b"\x1f\x8b\x08"), Sniffed::Stream(Encoding::Gzip));
        assert_eq!(sniff(&0xFD2F_B528u32.to_le_bytes()), Sniffed::Stream(Encoding::Zstd));
        assert_eq!(sniff(&0x184D_2A5Eu32.to_le_bytes()), Sniffed::Stream(Encoding::Zstd));
        assert_eq!(sniff(b""), Sniffed::Stream(Encoding::Plain));
        assert_eq!(sniff(&[0; 512]), Sniffed::Stream(Encoding::Plain));
        assert_eq!(sniff(b"BZh9"), Sniffed::Other("a bzip2 file"));
        assert_eq!(sniff(&[7; 512]), Sniffed::Other("no archive"));
    }
}
