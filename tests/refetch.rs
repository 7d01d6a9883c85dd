//! A transient wrong byte of a source that an index contradicts is fetched again; one that stays is an error, for few
//! bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use ocifs::cache::{BlockCache, CachedFile, VerificationState};
use ocifs::io::{BoxFuture, ByteRange, FaultClass, RangeDelivery, RangeFetch, ReadAt, ReadError, read_vec};
use ocifs::layer::{LayerOptions, StoredLayer};
use ocifs::oci::Digest;

use crate::chunked;
use crate::random::Random;
use crate::scratch::Scratch;

const MIB: u64 = 1 << 20;

/// Part of the stream that is read: the blob stays incomplete, and only the index tells.
const READ: ByteRange = ByteRange::new(8 << 20, 12 << 20);

/// Noise of 6 bits in 8, so that every encoding has something to do.
fn plain() -> Vec<u8> {
    Random(3).bytes(24 << 20).into_iter().map(|byte| b'0' + (byte & 63)).collect()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

async fn read(stream: &dyn ReadAt) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; READ.len() as usize];
    stream.read_exactly(READ.start, &mut bytes).await.map(|()| bytes)
}

fn part(plain: &[u8]) -> &[u8] {
    &plain[READ.start as usize..READ.end as usize]
}

/// Sends the byte at `at` wrong for `times` deliveries, each time in another way.
struct FlippingSource {
    bytes: Bytes,
    at: u64,
    times: AtomicU32,
    delivered: AtomicU64,
}

impl FlippingSource {
    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

impl RangeFetch for FlippingSource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        self.delivered.fetch_add(range.len(), Ordering::Relaxed);
        let mut bytes = self.bytes[range.start as usize..range.end as usize].to_vec();
        if (range.start..range.end).contains(&self.at) {
            let left =
                self.times.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
            if let Ok(left) = left {
                bytes[(self.at - range.start) as usize] ^= 1 << (left % 8);
            }
        }
        let body = futures_util::stream::iter([Ok(bytes.into())]).boxed();
        Box::pin(async move { Ok(RangeDelivery { range, body }) })
    }
}

struct Lab {
    stored: Bytes,
    dir: Scratch,
}

impl Lab {
    fn new(stored: Vec<u8>) -> Self {
        Self { stored: stored.into(), dir: Scratch::new() }
    }

    /// Builds the index over right bytes, and evicts all others.
    async fn indexed(stored: Vec<u8>) -> Self {
        let lab = Self::new(stored);
        let (layer, ..) = lab.open(0, 0);
        layer.own_index().await.unwrap();
        drop(layer);
        for kind in ["blobs", "streams", "claims"] {
            std::fs::remove_dir_all(lab.dir.path().join("cache/v1").join(kind).join("sha256")).ok();
        }
        lab
    }

    /// As a new process would, over a source whose byte `at` is wrong so many times.
    fn open(&self, at: u64, times: u32) -> (StoredLayer, Arc<CachedFile>, Arc<FlippingSource>) {
        let (times, delivered) = (AtomicU32::new(times), AtomicU64::new(0));
        let source = Arc::new(FlippingSource { bytes: self.stored.clone(), at, times, delivered });
        let cache = BlockCache::open(&self.dir.path().join("cache")).unwrap();
        let blob = cache.blob(&Digest::sha256(&self.stored), source.clone()).unwrap();
        (StoredLayer::packed(blob.clone(), cache, LayerOptions::default()), blob, source)
    }
}

/// Names and bytes of streams in encodings that an index of this machine describes.
fn encodings(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let zstd = |part: &[u8]| zstd::encode_all(part, 3).unwrap();
    let halves = plain.split_at(plain.len() / 3);
    vec![
        ("gzip", gzip(plain)),
        ("zstd of one frame", zstd(plain)),
        ("zstd of two frames", [zstd(halves.0), zstd(halves.1)].concat()),
        ("zstd seekable", chunked::seekable(plain, 300_000, chunked::Checksums::With)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_byte_under_an_index_is_fetched_again_and_costs_few_bytes() {
    let plain = plain();
    for (name, stored) in encodings(&plain) {
        let size = stored.len() as u64;
        for at in [size * 3 / 8, size * 5 / 12] {
            let lab = Lab::indexed(stored.clone()).await;
            let (layer, blob, source) = lab.open(at, 1);
            layer.index().await.unwrap();
            let stream = layer.stream().unwrap();
            let read = read(&*stream).await;
            assert!(
                read.unwrap_or_else(|error| panic!("{name} at {at}: {}", error.chain())) == part(&plain),
                "{name}"
            );
            blob.ensure(ByteRange::new(0, size)).await.unwrap();
            assert_eq!(blob.state(), VerificationState::Verified, "{name} at {at}");
            let extra = source.delivered() - size;
            assert!(extra <= 8 * MIB, "{name} at {at}: {extra} bytes again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_side_by_side_share_one_refetch() {
    let plain = plain();
    let stored = gzip(&plain);
    let (size, at) = (stored.len() as u64, stored.len() as u64 * 5 / 12);
    let lab = Lab::indexed(stored).await;
    let (layer, _blob, source) = lab.open(at, 1);
    layer.index().await.unwrap();
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let stream = layer.stream().unwrap();
            tokio::spawn(async move { read(&*stream).await })
        })
        .collect();
    for read in reads {
        assert!(read.await.unwrap().unwrap() == part(&plain));
    }
    assert!(source.delivered() <= size + 8 * MIB, "{} of {size} bytes", source.delivered());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_stays_wrong_is_an_error_and_few_bytes() {
    let plain = plain();
    for (name, stored) in encodings(&plain) {
        let (size, at) = (stored.len() as u64, stored.len() as u64 * 5 / 12);
        let lab = Lab::indexed(stored).await;
        let (layer, _blob, source) = lab.open(at, u32::MAX);
        layer.index().await.unwrap();
        let stream = layer.stream().unwrap();
        for _ in 0..20 {
            let error = read(&*stream).await.unwrap_err();
            assert!(
                matches!(error.fault(), FaultClass::Mismatch | FaultClass::Malformed),
                "{}",
                error.chain()
            );
        }
        assert!(source.delivered() <= 4 * size, "{name}: {} of {size} bytes", source.delivered());
        // The bytes around it stay readable.
        assert!(read_vec(&*stream, ByteRange::new(0, MIB)).await.unwrap() == plain[..MIB as usize], "{name}");
    }
}
