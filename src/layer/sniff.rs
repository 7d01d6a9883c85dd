//! Format detection by the first stored bytes. Content decides, because media types are unreliable.

use super::zstd_frames::SKIPPABLE;
pub use crate::oci::StreamEncoding;

/// Number of first bytes that [`sniff`] needs: one tar header.
pub const SNIFF_LEN: usize = 512;

/// The result of [`sniff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SniffResult {
    /// A stream that ocifs can read.
    Stream(StreamEncoding),
    /// Not a layer archive, or in an unsupported encoding; its name for messages.
    Other(&'static str),
}

/// Signatures of contents that are recognised only for messages.
const FOREIGN_SIGNATURES: &[(&[u8], &str)] = &[
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

/// Detects the format from `head`, the first [`SNIFF_LEN`] stored bytes (fewer only if the blob is shorter).
pub fn sniff(head: &[u8]) -> SniffResult {
    let found = behind_skippable(head).or_else(|| StreamEncoding::by_magic(head));
    // The magic number of bzip2 is text; the block size follows it.
    let is_sure =
        |it: &StreamEncoding| *it != StreamEncoding::Bzip2 || matches!(head.get(3), Some(b'1'..=b'9'));
    if let Some(encoding) = found.filter(is_sure) {
        return SniffResult::Stream(encoding);
    }
    if is_tar(head) {
        return SniffResult::Stream(StreamEncoding::Plain);
    }
    let name = FOREIGN_SIGNATURES
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or("no archive", |(_, name)| *name);
    SniffResult::Other(name)
}

/// The encoding of bytes that start with skippable frames, which zstd and LZ4 share (RFC 8878, 3.1); `None` for other
/// bytes. Behind long frames zstd is assumed, whose tools write them.
fn behind_skippable(head: &[u8]) -> Option<StreamEncoding> {
    let number = |bytes: &[u8]| bytes.first_chunk().map(|number| u32::from_le_bytes(*number));
    let mut rest = head;
    while number(rest).is_some_and(|magic| magic & 0xFFFF_FFF0 == SKIPPABLE) {
        let len = number(&rest[4..]).and_then(|len| usize::try_from(len).ok()?.checked_add(8));
        rest = len.and_then(|len| rest.get(len..)).unwrap_or_default();
    }
    let is_lz4 = StreamEncoding::by_magic(rest) == Some(StreamEncoding::Lz4);
    (rest.len() < head.len()).then_some(if is_lz4 { StreamEncoding::Lz4 } else { StreamEncoding::Zstd })
}

/// Whether `head` is empty, zeros (an empty archive), or a header with a valid checksum. The v7 format has no
/// magic, so the checksum of POSIX is the only mark of every header.
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
    use crate::layer::{bzip2, xz};

    #[test]
    fn decoders_and_detection_agree_on_the_magic_numbers() {
        let magics = |encoding: StreamEncoding| encoding.names().magics.to_vec();
        assert_eq!(magics(StreamEncoding::Xz), [xz::MAGIC]);
        assert_eq!(magics(StreamEncoding::Bzip2), [bzip2::MAGIC]);
        assert_eq!(magics(StreamEncoding::Lz4), [super::super::lz4::MAGIC.to_le_bytes()]);
        assert_eq!(magics(StreamEncoding::AppleLz4), super::super::lz4::APPLE);
    }

    #[test]
    fn content_is_recognised_by_its_first_bytes() {
        let mut tar = tar::Header::new_old();
        tar.set_path("a").unwrap();
        tar.set_size(0);
        tar.set_cksum();
        assert_eq!(sniff(tar.as_bytes()), SniffResult::Stream(StreamEncoding::Plain));
        assert_eq!(sniff(b"\x1f\x8b\x08"), SniffResult::Stream(StreamEncoding::Gzip));
        assert_eq!(sniff(&0xFD2F_B528u32.to_le_bytes()), SniffResult::Stream(StreamEncoding::Zstd));
        assert_eq!(sniff(&0x184D_2A5Eu32.to_le_bytes()), SniffResult::Stream(StreamEncoding::Zstd));
        assert_eq!(sniff(b""), SniffResult::Stream(StreamEncoding::Plain));
        assert_eq!(sniff(&[0; 512]), SniffResult::Stream(StreamEncoding::Plain));
        assert_eq!(sniff(b"BZh9"), SniffResult::Stream(StreamEncoding::Bzip2));
        assert_eq!(sniff(b"\xfd7zXZ\0"), SniffResult::Stream(StreamEncoding::Xz));
        assert_eq!(sniff(b"bv41"), SniffResult::Stream(StreamEncoding::AppleLz4));
        let lz4 = 0x184D_2204u32.to_le_bytes();
        let skippable = [&0x184D_2A50u32.to_le_bytes()[..], &[2, 0, 0, 0, 9, 9]].concat();
        assert_eq!(sniff(&lz4), SniffResult::Stream(StreamEncoding::Lz4));
        assert_eq!(sniff(&[&skippable[..], &lz4].concat()), SniffResult::Stream(StreamEncoding::Lz4));
        assert_eq!(sniff(&skippable), SniffResult::Stream(StreamEncoding::Zstd));
        assert_eq!(sniff(&[7; 512]), SniffResult::Other("no archive"));
    }
}
