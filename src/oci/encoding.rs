//! Stream encodings: each compression of a layer, a disk or a file, with all its names in one row.
//!
//! Every table of labels, file names and magic numbers is made from these rows. A new encoding is a row here and a
//! decoder in `layer/`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The names and marks of a [`StreamEncoding`].
#[derive(Debug)]
pub struct EncodingNames {
    /// The name in reports and in suffixes of media types.
    pub name: &'static str,
    /// The extension of a file in this encoding, with its dot; empty for plain bytes.
    pub extension: &'static str,
    /// The extension of a tar archive in this encoding, with its dot.
    pub tar_extension: &'static str,
    /// The endings of names of tar archives in this encoding.
    pub tar_endings: &'static [&'static str],
    /// The words of media types that name this encoding.
    pub labels: &'static [&'static str],
    /// The words of media types that name a tar archive in this encoding.
    pub tar_labels: &'static [&'static str],
    /// The magic numbers at the start of the stored stream.
    pub magics: &'static [&'static [u8]],
    /// The command that decodes to standard output; `None` where no common tool does, and no title names it.
    pub command: Option<&'static str>,
}

/// Defines the enum and its rows together, so that no variant lacks a row.
macro_rules! encodings {
    ($($(#[doc = $doc:literal])+ $variant:ident { $($names:tt)+ })+) => {
        /// The encoding of a stored stream. The order is part of the format of cached indexes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum StreamEncoding {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl StreamEncoding {
            /// All encodings, plain bytes first.
            pub const ALL: &'static [StreamEncoding] = &[$(StreamEncoding::$variant),+];

            /// The names and marks.
            pub const fn names(self) -> &'static EncodingNames {
                match self {
                    $(StreamEncoding::$variant => &EncodingNames { $($names)+ },)+
                }
            }
        }
    };
}

encodings! {
    /// The stream itself.
    Plain {
        name: "tar",
        extension: "",
        tar_extension: ".tar",
        tar_endings: &[".tar"],
        labels: &[],
        tar_labels: &["tar", "x-tar", "gtar", "x-gtar", "x-ustar"],
        magics: &[],
        command: None,
    }
    /// RFC 1952, any number of members.
    Gzip {
        name: "gzip",
        extension: ".gz",
        tar_extension: ".tar.gz",
        tar_endings: &[".tgz", ".tar.gz", ".tar.gzip"],
        labels: &["gzip", "x-gzip", "gz"],
        tar_labels: &["compressed-tar", "x-compressed-tar", "tgz", "x-tgz"],
        magics: &[b"\x1f\x8b"],
        command: Some("gzip -dc"),
    }
    /// RFC 8878, any number of frames.
    Zstd {
        name: "zstd",
        extension: ".zst",
        tar_extension: ".tar.zst",
        tar_endings: &[".tar.zst", ".tzst", ".tar.zstd"],
        labels: &["zstd", "x-zstd", "zst"],
        tar_labels: &["tzst"],
        magics: &[b"\x28\xb5\x2f\xfd"],
        command: Some("zstd -dc"),
    }
    /// The .xz file format, any number of streams.
    Xz {
        name: "xz",
        extension: ".xz",
        tar_extension: ".tar.xz",
        tar_endings: &[".tar.xz", ".txz"],
        labels: &["xz", "x-xz"],
        tar_labels: &["txz", "x-xz-compressed-tar"],
        magics: &[b"\xfd7zXZ\0"],
        command: Some("xz -dc"),
    }
    /// bzip2, any number of streams.
    Bzip2 {
        name: "bzip2",
        extension: ".bz2",
        tar_extension: ".tar.bz2",
        tar_endings: &[".tar.bz2", ".tbz2", ".tbz"],
        labels: &["bzip2", "x-bzip2", "bz2"],
        tar_labels: &["tbz", "tbz2"],
        magics: &[b"BZh"],
        command: Some("bzip2 -dc"),
    }
    /// The LZ4 frame format, any number of frames.
    Lz4 {
        name: "lz4",
        extension: ".lz4",
        tar_extension: ".tar.lz4",
        tar_endings: &[".tar.lz4", ".tlz4"],
        labels: &["lz4", "x-lz4"],
        tar_labels: &["tlz4"],
        // 0x184D2204, little endian (LZ4 frame format 1.6).
        magics: &[b"\x04\x22\x4d\x18"],
        command: Some("lz4 -dc"),
    }
    /// LZ4 in the blocks of Apple's compression library.
    AppleLz4 {
        name: "lz4 (Apple)",
        extension: ".bv4",
        tar_extension: ".tar.bv4",
        tar_endings: &[],
        labels: &[],
        tar_labels: &[],
        magics: &[b"bv41", b"bv4-", b"bv4$"],
        command: None,
    }
}

impl StreamEncoding {
    /// All encodings but plain bytes.
    pub fn compressed() -> impl Iterator<Item = StreamEncoding> {
        Self::ALL.iter().copied().filter(|encoding| *encoding != StreamEncoding::Plain)
    }

    /// The encoding whose magic number `head` starts with. A magic number alone may be short: two bytes of gzip.
    pub fn by_magic(head: &[u8]) -> Option<StreamEncoding> {
        Self::compressed()
            .find(|encoding| encoding.names().magics.iter().any(|magic| head.starts_with(magic)))
    }

    /// The encodings that titles of files name: the extension and the encoding.
    pub fn in_titles() -> impl Iterator<Item = StreamEncoding> {
        Self::compressed().filter(|encoding| encoding.names().command.is_some())
    }

    /// The file extension of a tar archive in this encoding, without its dot.
    pub fn extension(self) -> &'static str {
        self.names().tar_extension.trim_start_matches('.')
    }

    /// The name of the compression; `None` for plain bytes.
    pub fn compression(self) -> Option<&'static str> {
        (self != StreamEncoding::Plain).then_some(self.names().name)
    }
}

impl fmt::Display for StreamEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compression() {
            None => f.write_str("tar"),
            Some(compression) => write!(f, "tar+{compression}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_encodings_share_a_name_or_a_mark() {
        let names = StreamEncoding::ALL.iter().map(|encoding| encoding.names());
        let mut words: Vec<&str> =
            names.clone().flat_map(|row| [row.labels, row.tar_labels].concat()).collect();
        let mut endings: Vec<&str> = names.clone().flat_map(|row| row.tar_endings).copied().collect();
        endings.extend(names.clone().map(|row| row.extension));
        let magics: Vec<&[u8]> = names.flat_map(|row| row.magics).copied().collect();
        for list in [&mut words, &mut endings] {
            let len = list.len();
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len(), len, "{list:?}");
        }
        for (at, magic) in magics.iter().enumerate() {
            assert!(!magic.is_empty());
            assert!(!magics.iter().enumerate().any(|(other, it)| other != at && it.starts_with(magic)));
        }
    }

    #[test]
    fn cached_indexes_keep_their_encodings() {
        let numbers: Vec<_> = StreamEncoding::ALL.iter().map(|encoding| *encoding as u8).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(StreamEncoding::AppleLz4 as u8, 6);
        assert_eq!(StreamEncoding::Xz.to_string(), "tar+xz");
        assert_eq!(StreamEncoding::Gzip.extension(), "tar.gz");
    }
}
