//! The five ways in which the tests store one and the same tar.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As it is.
    Plain,
    /// One gzip member.
    Gzip,
    /// Several gzip members, cut without regard to tar's blocks.
    GzipMembers,
    /// One zstd frame.
    Zstd,
    /// Several zstd frames, cut without regard to tar's blocks.
    ZstdFrames,
}

impl Encoding {
    /// A short name, usable in a tag.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::GzipMembers => "gzip-members",
            Self::Zstd => "zstd",
            Self::ZstdFrames => "zstd-frames",
        }
    }

    /// The honest media type of a layer stored so.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipMembers => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdFrames => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// The stored bytes of `tar`.
    pub(crate) fn encode(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => tar.to_vec(),
            Self::Gzip => gzip(tar),
            Self::GzipMembers => pieces(tar).flat_map(gzip).collect(),
            Self::Zstd => zstd_frame(tar),
            Self::ZstdFrames => pieces(tar).flat_map(zstd_frame).collect(),
        }
    }
}

/// One gzip member.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory takes everything")
}

/// Pieces whose borders fall inside headers and bodies: an odd size near a fifth, at least 700 bytes.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks((bytes.len() / 5).max(700) | 1)
}
