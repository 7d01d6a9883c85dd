//! Compressed qcow2 clusters: each is a stream of its own that fills one cluster.
//!
//! The output is exactly one cluster, and memory does not depend on sizes in the stream. As in QEMU a stream is valid
//! when it fills its cluster, because its length is known only in sectors, and the bytes behind it belong to other
//! streams.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::io::{FaultClass, ReadError, compute};

/// The largest window of a zstd frame, as a power of two: the one that the format asks every decoder to support. A
/// frame of one cluster needs no more than the cluster's 2 MiB.
const WINDOW_LOG: u32 = 23;

/// A larger cluster is decompressed on a blocking thread: inflating this size takes some 50 microseconds.
const BLOCKING_CLUSTER_BYTES: usize = 16 * 1024;

/// The compression of clusters, the same for the whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterCompression {
    /// Raw deflate, without the wrapper of zlib.
    Deflate,
    /// One zstd frame, or several.
    Zstd,
}

/// Decompresses `stored` to `size` bytes, on a blocking thread if that is large.
pub(super) async fn decode_async(
    compression: ClusterCompression,
    stored: Bytes,
    size: usize,
) -> Result<Bytes, ReadError> {
    if size <= BLOCKING_CLUSTER_BYTES {
        return decode(compression, &stored, size);
    }
    compute(move || decode(compression, &stored, size)).await
}

/// Decompresses `stored` to `size` bytes.
pub(super) fn decode(
    compression: ClusterCompression,
    stored: &[u8],
    size: usize,
) -> Result<Bytes, ReadError> {
    let mut plain = vec![0; size];
    let filled = match compression {
        ClusterCompression::Deflate => inflate(stored, &mut plain),
        ClusterCompression::Zstd => unzstd(stored, &mut plain),
    };
    match filled {
        Some(()) => Ok(plain.into()),
        None => Err(ReadError::new(
            FaultClass::Malformed,
            format!("compressed cluster of at most {} bytes cannot be decompressed", stored.len()),
        )),
    }
}

/// Fills `plain`; `None` if `stored` does not.
fn inflate(stored: &[u8], plain: &mut [u8]) -> Option<()> {
    let mut inflater = Decompress::new(false);
    // One call is enough: the input is complete, and the output has its full size.
    inflater.decompress(stored, plain, FlushDecompress::Finish).ok()?;
    (inflater.total_out() == plain.len() as u64).then_some(())
}

/// Fills `plain`; `None` if `stored` does not.
fn unzstd(stored: &[u8], plain: &mut [u8]) -> Option<()> {
    let mut decoder = Decoder::new().ok()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).ok()?;
    let (mut input, mut output) = (InBuffer::around(stored), OutBuffer::around(plain));
    let mut wanted = 1;
    while output.pos() < output.capacity() {
        let before = (input.pos(), output.pos());
        wanted = decoder.run(&mut input, &mut output).ok()?;
        if (input.pos(), output.pos()) == before {
            return None;
        }
    }
    // A frame that has not ended would yield more than a cluster.
    (wanted == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn plain(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at / 100) as u8 ^ (at % 7) as u8).collect()
    }

    fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn both(plain: &[u8]) -> [(ClusterCompression, Vec<u8>); 2] {
        [
            (ClusterCompression::Deflate, deflate(plain)),
            (ClusterCompression::Zstd, zstd::bulk::compress(plain, 3).unwrap()),
        ]
    }

    #[tokio::test]
    async fn a_cluster_comes_back_whatever_follows_it_in_its_sector() {
        for size in [512, 16 << 10, 64 << 10, 2 << 20] {
            for (compression, mut stored) in both(&plain(size)) {
                stored.extend([0xa5; 300]);
                assert_eq!(decode(compression, &stored, size).unwrap(), plain(size));
                let stored = Bytes::from(stored);
                assert_eq!(decode_async(compression, stored, size).await.unwrap(), plain(size));
            }
        }
    }

    #[test]
    fn a_stream_that_does_not_fill_its_cluster_is_malformed() {
        for (compression, stored) in both(&plain(4000)) {
            assert!(decode(compression, &stored, 4096).is_err(), "{compression:?} gives 96 bytes too few");
            assert!(
                decode(compression, &stored[..stored.len() / 2], 4000).is_err(),
                "{compression:?} is cut"
            );
            assert!(decode(compression, &[], 4096).is_err());
            assert!(decode(compression, &[0xff; 600], 4096).is_err());
        }
    }

    #[test]
    fn a_zstd_cluster_may_be_several_frames() {
        let whole = plain(65536);
        let stored: Vec<u8> =
            whole.chunks(20_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
        assert_eq!(decode(ClusterCompression::Zstd, &stored, 65536).unwrap(), whole);
    }

    #[test]
    fn a_zstd_frame_with_a_huge_window_is_refused() {
        // Magic, a frame header without a content size, and a window of 2^31 bytes.
        let stored = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3][..], &[0; 64]].concat();
        assert_eq!(
            decode(ClusterCompression::Zstd, &stored, 512).unwrap_err().fault(),
            FaultClass::Malformed
        );
    }
}
