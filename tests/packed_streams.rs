//! Bare streams in every encoding, as the real tools write them: every read equals the plain bytes, decoded bytes are
//! not decoded again, and damage is an error.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use ocifs::cache::{BlockCache, CachedFile};
use ocifs::io::{BoxFuture, ByteRange, FaultClass, RangeDelivery, RangeFetch, ReadAt, ReadError, read_vec};
use ocifs::layer::{
    IndexKind, LayerIndex, LayerOptions, LayerState, ResumePoint, SniffResult, SpanMap, SpanStart,
    StoredLayer, StreamEncoding, TableOfContents,
};
use ocifs::oci::Digest;

use crate::apple_lz4;
use crate::chunked;
use crate::observed_reader::ObservedReader;
use crate::random::Random;
use crate::scratch::Scratch;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const READS: usize = 1000;

/// What one tool writes.
struct Made {
    name: &'static str,
    stored: Vec<u8>,
    /// Whether the size of the stream is known before anything is decoded.
    is_size_known: bool,
}

/// A disk of some megabytes: text, noise, and long runs of zeros.
fn disk() -> Vec<u8> {
    let mut random = Random(77);
    let mut disk = Vec::new();
    while (disk.len() as u64) < 6 * MIB {
        match random.below(4) {
            0 => disk.extend(vec![0; 1 + random.below(900_000) as usize]),
            1 => disk.extend((0..random.below(100_000)).map(|at| ((at * at) >> 7) as u8)),
            2 => disk.extend((0..random.below(200_000)).map(|_| random.next() as u8)),
            _ => {
                disk.extend((0..random.below(60_000)).flat_map(|_| (random.below(3000) as u16).to_le_bytes()))
            }
        }
    }
    disk
}

fn pipe(program: &str, args: &[&str], plain: &[u8]) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.path().join("plain");
    std::fs::write(&path, plain).unwrap();
    let output = Command::new(program)
        .args(args)
        .stdin(std::fs::File::open(path).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// As `zstd` writes of a file.
fn zstd_that_says_its_size(plain: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.set_pledged_src_size(Some(plain.len() as u64)).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn all(plain: &[u8]) -> Vec<Made> {
    let made = |name, stored, is_size_known| Made { name, stored, is_size_known };
    let zstd = |args: &[&str], part: &[u8]| pipe("zstd", &[&["-q", "-c"], args].concat(), part);
    let xz = |args: &[&str], part: &[u8]| pipe("xz", &[&["-c", "-2"], args].concat(), part);
    let lz4 = |args: &[&str], part: &[u8]| pipe("lz4", &[&["-q", "-c"], args].concat(), part);
    let halves = plain.split_at(plain.len() / 3);
    let two = |write: &dyn Fn(&[u8]) -> Vec<u8>| [write(halves.0), write(halves.1)].concat();
    let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    vec![
        made("plain", plain.to_vec(), true),
        made("gzip", pipe("gzip", &["-c"], plain), false),
        made("zstd of one frame", zstd(&["-T0", "-14"], plain), false),
        made("zstd of one frame that says its size", zstd_that_says_its_size(plain), false),
        made("zstd of two frames", two(&|part| zstd(&["-3"], part)), false),
        made("zstd with a skippable frame", [skippable.clone(), zstd(&["-3"], plain)].concat(), false),
        made("zstd seekable", chunked::seekable(plain, 300_000, chunked::Checksums::With), true),
        made("xz of one block", pipe("xz", &["-c", "-T1", "-3"], plain), true),
        made("xz of many blocks", xz(&["-T0", "--block-size=700000"], plain), true),
        made("xz with another check", xz(&["-T2", "--block-size=900000", "--check=crc32"], plain), true),
        made("xz with sha256", xz(&["-T2", "--block-size=900000", "--check=sha256"], plain), true),
        made("xz of two streams", two(&|part| xz(&["-T2", "--block-size=900000"], part)), true),
        made(
            "xz with padding",
            [xz(&[], halves.0), vec![0; 512], xz(&[], halves.1), vec![0; 8]].concat(),
            true,
        ),
        made("xz with a filter", xz(&["--x86", "--lzma2=preset=1"], plain), true),
        made("bzip2", pipe("bzip2", &["-c"], plain), false),
        made("bzip2 of two streams", two(&|part| pipe("bzip2", &["-c", "-1"], part)), false),
        made("lz4", lz4(&["-B4"], plain), false),
        made("lz4 with large blocks", lz4(&["-B7", "-BX", "--content-size"], plain), false),
        made("lz4 whose blocks refer back", lz4(&["-BD", "-B5"], plain), false),
        made("lz4 of two frames", two(&|part| lz4(&["-9"], part)), false),
        made("lz4 with a skippable frame", [skippable, lz4(&[], plain)].concat(), false),
        made("Apple's lz4", apple_lz4::write(plain, 65_536), false),
        made("Apple's lz4 in large blocks", apple_lz4::write(plain, 1_000_000), false),
    ]
}

#[test]
fn every_read_equals_the_plain_bytes_and_a_second_open_decodes_nothing_again() {
    let plain = disk();
    for Made { name, stored, is_size_known } in all(&plain) {
        let lab = Lab::new(&stored);
        runtime().block_on(async {
            let layer = lab.open(LayerOptions::default());
            for len in [0, 1, 512, 70_000, MIB, plain.len() as u64 + 5] {
                let head = layer.peek(len).await.unwrap();
                assert!(head == plain[..plain.len().min(len as usize)], "{name}: {len} first bytes");
            }
            let lab = Lab::new(&stored);
            let layer = lab.open(LayerOptions::default());
            let size = layer.quick_size().await.unwrap();
            assert_eq!(size, is_size_known.then_some(plain.len() as u64), "{name}");
            let before = lab.delivered();
            assert!(before <= 2 * MIB || stored.len() < 2 << 20, "{name}: {before} bytes for its size");
            let index = layer.index().await.unwrap();
            assert_eq!(index.spans.stream_size(), plain.len() as u64, "{name}");
            assert!(index.toc.is_empty());
            let LayerState::Indexed { kind, .. } = layer.state() else { panic!("{:?}", layer.state()) };
            reads_equal(name, &*layer.stream().unwrap(), &plain).await;
            assert_eq!(lab.delivered(), stored.len() as u64, "{name}: every stored byte once");

            // Once everything is here, a mount after this one has an index that was made from it.
            layer.own_index().await.unwrap();
            drop(layer);
            let decoded = lab.decoded_blocks();
            let again = lab.open(LayerOptions::default());
            assert_eq!(again.quick_size().await.unwrap(), Some(plain.len() as u64), "{name}");
            again.index().await.unwrap();
            assert_eq!(again.decoded(), 0, "{name}: no second pass");
            reads_equal(name, &*again.stream().unwrap(), &plain).await;
            assert_eq!(lab.delivered(), stored.len() as u64, "{name}");
            if !matches!(kind, IndexKind::ZstdSeekable | IndexKind::XzBlocks) {
                // What was decoded by a claim is not read by who knows better.
                assert_eq!(lab.decoded_blocks(), decoded, "{name}: nothing more in the cache");
            }
        });
    }
}

#[test]
fn a_seek_table_is_used_without_a_pass() {
    let plain = disk();
    let stored = chunked::seekable(&plain, 300_000, chunked::Checksums::With);
    let lab = Lab::new(&stored);
    runtime().block_on(async {
        let layer = lab.open(LayerOptions::default());
        layer.index().await.unwrap();
        let LayerState::Indexed { kind, .. } = layer.state() else { panic!("{:?}", layer.state()) };
        assert_eq!((kind, layer.decoded()), (IndexKind::ZstdSeekable, 0));
        assert!(lab.delivered() < stored.len() as u64, "not all of it was fetched");
    });
}

#[test]
fn a_read_of_xz_costs_its_index_and_one_block() {
    const BLOCK: u64 = 512 * KIB;
    /// Blocks of the cache that hold the index, the head and a block of xz, and those that are read ahead of a decoder.
    const MOST: u64 = (2 + 1 + 3 + 4) * 256 * KIB;
    let plain = noise(48 * BLOCK);
    let stored = pipe("xz", &["-c", "-0", "-T2", "--block-size=524288"], &plain);
    for at in [0, 24 * BLOCK + 5, 48 * BLOCK - 4096] {
        let lab = Lab::new(&stored);
        runtime().block_on(async {
            let layer = lab.open(LayerOptions::default());
            layer.index().await.unwrap();
            let LayerState::Indexed { kind, spans, .. } = layer.state() else {
                panic!("{:?}", layer.state())
            };
            assert_eq!((kind, spans, layer.decoded()), (IndexKind::XzBlocks, 48, 0));
            let read = read_vec(&*layer.stream().unwrap(), ByteRange::at(at, 4096)).await.unwrap();
            assert!(read == plain[at as usize..at as usize + 4096]);
        });
        assert!(lab.delivered() <= MOST, "{} bytes for 4 KiB at {at}", lab.delivered());
    }
}

/// Noise, which no encoding makes smaller.
fn noise(len: u64) -> Vec<u8> {
    Random(48).bytes(len as usize)
}

#[test]
fn a_read_of_xz_of_one_block_costs_the_bytes_before_it() {
    let plain = noise(12 * MIB);
    // The second has a dictionary of 64 MiB.
    for (preset, reads) in [("-0", &[0, 4 * MIB + 5, 12 * MIB - 4096][..]), ("-9", &[0, 4 * MIB + 5])] {
        let stored = pipe("xz", &["-c", "-T1", preset], &plain);
        for &at in reads {
            let lab = Lab::new(&stored);
            runtime().block_on(async {
                let layer = lab.open(LayerOptions::default());
                layer.index().await.unwrap();
                let LayerState::Indexed { kind, spans, .. } = layer.state() else {
                    panic!("{:?}", layer.state())
                };
                assert_eq!((kind, spans, layer.decoded()), (IndexKind::XzBlocks, 1, 0));
                let stream = layer.stream().unwrap();
                let read = read_vec(&*stream, ByteRange::at(at, 4096)).await.unwrap();
                assert!(read == plain[at as usize..at as usize + 4096]);
                let most = (at + at / 8 + 2 * MIB).min(stored.len() as u64);
                assert!(
                    lab.delivered() <= most,
                    "{} bytes for 4 KiB at {at} of xz {preset}",
                    lab.delivered()
                );
                // Behind it: the blocks decoded on the way are in the cache.
                let before = lab.delivered();
                let read = read_vec(&*stream, ByteRange::at(at / 2, 4096)).await.unwrap();
                assert!(read == plain[at as usize / 2..at as usize / 2 + 4096]);
                assert_eq!(lab.delivered(), before);
            });
        }
    }
}

/// A stream by its first start alone, and the stored bytes that are read of it.
fn forward_only(
    encoding: StreamEncoding,
    stored: &[u8],
    size: u64,
) -> (Arc<dyn RangeFetch>, Arc<ObservedReader>) {
    let origin = SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit };
    let spans = SpanMap::ordered(encoding, stored.len() as u64, size, vec![origin]);
    let index = LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
    let blob = ObservedReader::new(stored.to_vec());
    (ocifs::layer::decoded(blob.clone(), &index), blob)
}

/// Reads `range` and compares it with `plain`.
async fn fetch_equals(name: &str, stream: &dyn RangeFetch, range: ByteRange, plain: &[u8]) {
    let mut delivery = stream.fetch(range).await.unwrap();
    let mut got = Vec::new();
    while let Some(part) = delivery.body.next().await {
        got.extend_from_slice(&part.unwrap());
    }
    let expected = &plain[delivery.range.start as usize..delivery.range.end as usize];
    assert!(delivery.range.contains(range) && got == expected, "{name}: wrong bytes at {range}");
}

fn encoding_of(stored: &[u8]) -> StreamEncoding {
    match ocifs::layer::sniff(stored) {
        SniffResult::Stream(encoding) => encoding,
        SniffResult::Other(name) => panic!("{name}"),
    }
}

#[test]
fn a_decoder_goes_on_where_the_read_before_ended_in_every_encoding() {
    let plain = disk();
    for Made { name, stored, .. } in all(&plain).into_iter().skip(1) {
        let (stream, read) = forward_only(encoding_of(&stored), &stored, plain.len() as u64);
        runtime().block_on(async {
            let mut at = 0;
            while at < plain.len() as u64 {
                let range = ByteRange::new(at, (at + 256 * KIB).min(plain.len() as u64));
                fetch_equals(name, &*stream, range, &plain).await;
                at = range.end;
            }
        });
        // What was read ahead of a decoder is read again: at most 1.5 MiB at each of some 25 reads, and less where all
        // of it is less. From the first byte each time, it were twelve times all of it.
        let most = stored.len() as u64 * 5;
        let (_, read) = read.cost();
        assert!(read <= most, "{name}: {read} bytes were read of {}", stored.len());
    }
}

#[test]
fn ends_of_units_that_were_passed_are_where_decoding_begins_again() {
    let plain = noise(8 * MIB);
    let units = |program: &str, args: &[&str]| -> Vec<u8> {
        plain.chunks(MIB as usize).flat_map(|part| pipe(program, args, part)).collect()
    };
    for (name, stored) in [
        ("gzip", units("gzip", &["-c", "-1"])),
        ("zstd", units("zstd", &["-q", "-c", "-1"])),
        ("bzip2", units("bzip2", &["-c", "-1"])),
        ("xz of streams", units("xz", &["-c", "-0"])),
        ("xz of blocks", pipe("xz", &["-c", "-0", "-T1", "--block-size=1048576"], &plain)),
        ("lz4 of frames", units("lz4", &["-q", "-c"])),
        ("lz4 of blocks", pipe("lz4", &["-q", "-c", "-B6"], &plain)),
    ] {
        let (stream, read) = forward_only(encoding_of(&stored), &stored, plain.len() as u64);
        runtime().block_on(async {
            fetch_equals(name, &*stream, ByteRange::at(7 * MIB, 4096), &plain).await;
            read.take();
            // The paused decoder is behind this read.
            fetch_equals(name, &*stream, ByteRange::at(5 * MIB + 300_000, 4096), &plain).await;
            let (_, cost) = read.cost();
            assert!(cost <= 2 * MIB, "{name}: {cost} bytes for 4 KiB in the middle");
        });
    }
}

#[test]
fn stream_of_a_claimed_size_is_decoded_as_far_as_read() {
    let plain = noise(12 * MIB);
    for (name, stored, unit) in [
        ("gzip", pipe("gzip", &["-c", "-1"], &plain), 0),
        ("zstd", pipe("zstd", &["-q", "-c", "-1"], &plain), 0),
        ("bzip2", pipe("bzip2", &["-c", "-1"], &plain), 0),
        ("lz4", pipe("lz4", &["-q", "-c"], &plain), 4 * MIB),
        ("Apple's lz4", apple_lz4::write(&plain, 65_536), 0),
    ] {
        let claiming = |size| LayerOptions { size: Some(size), ..LayerOptions::default() };
        let size = plain.len() as u64;
        for at in [0, 4 * MIB + 5, size - 4096] {
            let lab = Lab::new(&stored);
            runtime().block_on(async {
                let layer = lab.open(claiming(size));
                layer.index().await.unwrap();
                let LayerState::Indexed { kind, .. } = layer.state() else { panic!("{:?}", layer.state()) };
                assert_eq!((kind, layer.decoded()), (IndexKind::ClaimedSize, 0), "{name}");
                let read = read_vec(&*layer.stream().unwrap(), ByteRange::at(at, 4096)).await.unwrap();
                assert!(read == plain[at as usize..at as usize + 4096], "{name}");
                let most = at + at / 8 + 2 * MIB + unit;
                assert!(lab.delivered() <= most, "{} bytes for 4 KiB at {at} of {name}", lab.delivered());
            });
        }
        for wrong in [size - 1, size + 1] {
            let lab = Lab::new(&stored);
            runtime().block_on(async {
                let layer = lab.open(claiming(wrong));
                layer.index().await.unwrap();
                let end = ByteRange::new(wrong - 9, wrong);
                let error = read_vec(&*layer.stream().unwrap(), end).await.unwrap_err();
                assert_eq!(error.fault(), FaultClass::Malformed, "{name}: {}", error.chain());
            });
        }
    }
}

#[test]
fn an_archive_in_short_blocks_of_xz_is_skimmed_by_their_index() {
    let body = noise(4 * MIB);
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["a", "b", "c", "d"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &body[..]).unwrap();
    }
    let lab = Lab::new(&pipe("xz", &["-c", "-0", "-T2", "--block-size=1048576"], &tar.into_inner().unwrap()));
    runtime().block_on(async {
        let layer = StoredLayer::new(lab.blob(), lab.cache(), LayerOptions::default());
        assert_eq!(layer.index().await.unwrap().toc.len(), 4);
        let LayerState::Indexed { kind, .. } = layer.state() else { panic!("{:?}", layer.state()) };
        assert_eq!((kind, layer.decoded()), (IndexKind::XzBlocks, 0));
        assert!(lab.delivered() < 9 * MIB, "{} bytes for four names", lab.delivered());
    });
}

#[test]
fn reads_far_from_every_start_take_turns_and_decode_once() {
    let plain = noise(12 * MIB);
    let stored = pipe("xz", &["-c", "-T1", "-0"], &plain);
    let (stream, read) = forward_only(StreamEncoding::Xz, &stored, plain.len() as u64);
    runtime().block_on(async {
        let far = (0..8).map(|at| {
            let (stream, plain) = (stream.clone(), &plain);
            async move {
                fetch_equals("xz", &*stream, ByteRange::at((4 + at) * MIB, 4096), plain).await;
            }
        });
        futures_util::future::join_all(far).await;
    });
    let (_, read) = read.cost();
    assert!(read <= 3 * stored.len() as u64, "{read} bytes were read of {}", stored.len());
}

#[test]
fn a_far_read_that_comes_after_its_successor_decodes_nothing_again() {
    let plain = noise(12 * MIB);
    for (name, stored) in [
        ("zstd", pipe("zstd", &["-q", "-c", "-1", "--single-thread"], &words(&plain))),
        ("xz", pipe("xz", &["-c", "-T1", "-0"], &words(&plain))),
        ("lz4", pipe("lz4", &["-q", "-c", "-BD", "-B5"], &words(&plain))),
    ] {
        let plain = words(&plain);
        let (stream, read) = forward_only(encoding_of(&stored), &stored, plain.len() as u64);
        runtime().block_on(async {
            for at in 0..32 {
                fetch_equals(name, &*stream, ByteRange::at(at * 256 * KIB, 256 * KIB), &plain).await;
            }
            fetch_equals(name, &*stream, ByteRange::at(9 * MIB, 256 * KIB), &plain).await;
            read.take();
            // The decoder that stopped has decoded these on its way.
            fetch_equals(name, &*stream, ByteRange::at(8 * MIB, MIB), &plain).await;
            assert_eq!(read.cost(), (0, 0), "{name}");
            let end = ByteRange::new(12 * MIB - 256 * KIB, 12 * MIB);
            fetch_equals(name, &*stream, end, &plain).await;
            read.take();
            fetch_equals(name, &*stream, ByteRange::at(11 * MIB, 256 * KIB), &plain).await;
            assert_eq!(read.cost(), (0, 0), "{name}: at the end");
        });
    }
}

/// Bytes of six bits each, which pack to three quarters.
fn words(noise: &[u8]) -> Vec<u8> {
    noise.iter().map(|byte| byte & 0x3f).collect()
}

#[test]
fn an_archive_and_its_bare_stream_do_not_take_each_others_index() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    tar.append_data(&mut header, "a", &b"abc"[..]).unwrap();
    let plain = tar.into_inner().unwrap();
    let lab = Lab::new(&pipe("gzip", &["-c"], &plain));
    runtime().block_on(async {
        for _ in 0..2 {
            let packed = lab.open(LayerOptions::default());
            assert!(packed.index().await.unwrap().toc.is_empty());
            let layer = StoredLayer::new(lab.blob(), lab.cache(), LayerOptions::default());
            assert_eq!(layer.peek(10_000).await.unwrap(), plain);
            assert_eq!(layer.index().await.unwrap().toc.len(), 1);
        }
    });
}

#[test]
fn stream_that_contradicts_its_artifact_is_refused_for_ever() {
    let plain = disk();
    let (right, wrong) = (Digest::sha256(&plain), Digest::sha256(b"something else"));
    let hints = |content: &Digest| LayerOptions { content: Some(content.clone()), ..LayerOptions::default() };
    for Made { name, stored, .. } in all(&plain) {
        runtime().block_on(async {
            let lab = Lab::new(&stored);
            let layer = lab.open(hints(&wrong));
            for _ in 0..2 {
                let error = layer.index().await.unwrap_err();
                assert_eq!(error.fault(), FaultClass::Mismatch, "{name}");
                let chain = error.chain();
                assert!(chain.contains(right.as_str()) && chain.contains(wrong.as_str()), "{name}: {chain}");
                assert!(layer.stream().is_none(), "{name}");
            }
            // By a pass, by what was kept, and by one read of a stream whose index was there.
            let layer = lab.open(hints(&right));
            layer.index().await.unwrap();
            some_reads_equal(name, &*layer.stream().unwrap(), &plain, 50).await;
            let later = Lab::new(&stored);
            later.open(LayerOptions::default()).own_index().await.unwrap();
            later.open(hints(&right)).index().await.unwrap();
            assert!(later.open(hints(&wrong)).index().await.is_err(), "{name}");
        });
    }
}

#[test]
fn cut_and_broken_bytes_are_errors() {
    let plain = disk();
    for Made { name, stored, .. } in all(&plain) {
        if name == "plain" {
            continue;
        }
        // Then only the digest of the blob tells.
        let has_no_checksum = ["zstd seekable", "Apple's"].iter().any(|it| name.starts_with(it));
        for at in [stored.len() - 1, stored.len() / 2, 40] {
            let mut flipped = stored.clone();
            flipped[at - 20] ^= 0x55;
            for (how, bytes) in [("cut", stored[..at].to_vec()), ("flipped", flipped)] {
                let lab = Lab::new(&bytes);
                runtime().block_on(async {
                    let layer = lab.open(LayerOptions::default());
                    if layer.own_index().await.is_ok() && how == "flipped" {
                        // Not every byte of every format counts: but then the stream is the right one.
                        if !has_no_checksum {
                            layer.index().await.unwrap();
                            some_reads_equal(name, &*layer.stream().unwrap(), &plain, 50).await;
                        }
                        return;
                    }
                    let error = layer.own_index().await.unwrap_err();
                    assert!(
                        matches!(error.fault(), FaultClass::Malformed | FaultClass::Unsupported),
                        "{name} {how} at {at}: {}",
                        error.chain()
                    );
                });
            }
        }
    }
}

#[test]
fn zeros_are_holes_that_take_no_disk_and_are_known_without_decoding() {
    let mut plain = vec![0; 40 << 20];
    plain[..5].copy_from_slice(b"begin");
    plain[30 << 20..(30 << 20) + 3].copy_from_slice(b"end");
    let lab = Lab::new(&pipe("zstd", &["-q", "-c", "-3"], &[&plain[..], &disk()].concat()));
    runtime().block_on(async {
        let layer = lab.open(LayerOptions::default());
        layer.index().await.unwrap();
        let stream = layer.stream().unwrap();
        let block = 256 * KIB;
        assert_eq!(stream.next_hole(0), block);
        assert_eq!(stream.next_data(block), Some(30 * MIB));
        assert_eq!(stream.next_hole(30 * MIB), 30 * MIB + block);
        assert_eq!(stream.next_hole(20 * MIB + 7), 20 * MIB + 7);
        let head = read_vec(&*stream, ByteRange::new(0, 40 * MIB)).await.unwrap();
        assert!(head == plain);
        let kept = lab.decoded_blocks() * 512;
        assert!(kept < 10 * MIB, "{kept} bytes on the disk");
    });
}

#[test]
fn stream_that_decodes_beyond_any_disk_is_refused() {
    for program in ["zstd -q -c -19", "bzip2 -c", "xz -c -1"] {
        let stored = pipe("sh", &["-c", &format!("head -c 200M /dev/zero | tr '\\0' x | {program}")], b"");
        let lab = Lab::new(&stored);
        runtime().block_on(async {
            let error = lab.open(LayerOptions::default()).index().await.unwrap_err();
            assert_eq!(error.fault(), FaultClass::Unsupported);
            let limit = (1100 * stored.len() as u64).max(64 * MIB);
            let message = format!(
                "more than {limit} bytes besides blocks of zeros, the limit for {} stored ones",
                stored.len()
            );
            assert!(error.chain().contains(&message), "{}", error.chain());
        });
    }
}

#[test]
fn a_disk_that_is_nearly_all_zeros_is_shown_however_small_it_packs_and_takes_no_place() {
    // 128 KiB of zeros for each four stored bytes.
    let scratch = tempfile::tempdir().unwrap();
    let script = "(printf begin; head -c 300M /dev/zero; printf end) | ";
    for program in ["zstd -q -c -19", "bzip2 -c"] {
        let stored = pipe("sh", &["-c", &format!("{script}{program}")], b"");
        assert!((stored.len() as u64) * 1100 < 300 * MIB, "{} bytes", stored.len());
        let lab = Lab::new(&stored);
        runtime().block_on(async {
            let layer = lab.open(LayerOptions::default());
            layer.index().await.unwrap();
            let stream = layer.stream().unwrap();
            assert_eq!(stream.size(), 300 * MIB + 8);
            assert_eq!(stream.next_data(MIB), Some(300 * MIB));
            let tail = read_vec(&*stream, ByteRange::new(300 * MIB, 300 * MIB + 8)).await.unwrap();
            assert_eq!(tail, *b"\0\0\0\0\0end");
            let kept = lab.decoded_blocks() * 512;
            assert!(kept < 4 * MIB, "{kept} bytes on the disk");
        });
        // A file of zeros in an archive costs as little: lastlog of a user with a large number is one.
        let script = "truncate -s 300M room && tar -cf - room | ";
        let stored =
            pipe("sh", &["-c", &format!("cd {} && {script}{program}", scratch.path().display())], b"");
        assert!((stored.len() as u64) * 1100 < 300 * MIB, "{} bytes", stored.len());
        runtime().block_on(async {
            let blob = Arc::new(ocifs::io::MemoryReader::new(stored));
            let index = ocifs::layer::build_index(blob).await.unwrap();
            assert_eq!(index.toc.len(), 1);
        });
    }
}

#[test]
fn a_window_that_takes_too_much_memory_is_refused_with_the_reason() {
    let noise = Random(5).bytes(300_000);
    for (name, stored) in [
        ("zstd", pipe("sh", &["-c", "cat | zstd -q -c --long=30 --ultra -19 --zstd=wlog=28"], &noise)),
        ("xz", pipe("xz", &["-c", "--lzma2=preset=1,dict=512MiB"], &noise)),
    ] {
        let lab = Lab::new(&stored);
        runtime().block_on(async {
            let layer = lab.open(LayerOptions::default());
            let error = match (name, layer.index().await) {
                // The index of xz has no windows: the first read meets them.
                ("xz", Ok(_)) => read_vec(&*layer.stream().unwrap(), ByteRange::new(0, 9)).await.unwrap_err(),
                ("zstd", Err(error)) => error,
                (_, found) => panic!("{name}: {:?}", found.err()),
            };
            assert_eq!(error.fault(), FaultClass::Unsupported, "{}", error.chain());
            assert!(error.chain().contains("128 MiB"), "{}", error.chain());
        });
    }
}

async fn reads_equal(name: &str, stream: &dyn ReadAt, plain: &[u8]) {
    some_reads_equal(name, stream, plain, READS).await;
}

async fn some_reads_equal(name: &str, stream: &dyn ReadAt, plain: &[u8], reads: usize) {
    assert_eq!(stream.size(), plain.len() as u64, "{name}");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..reads {
        let start = random.below(stream.size());
        let range = ByteRange::at(start, (1 + random.below(64 * KIB)).min(stream.size() - start));
        let got = read_vec(stream, range).await.unwrap();
        assert!(got == plain[range.start as usize..range.end as usize], "{name}: wrong bytes at {range}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A blob, what counts how much of it is fetched, and a cache.
struct Lab {
    stored: Bytes,
    delivered: Arc<AtomicU64>,
    dir: Scratch,
}

impl Lab {
    fn new(stored: &[u8]) -> Self {
        let stored = Bytes::copy_from_slice(stored);
        Self { stored, delivered: Arc::default(), dir: Scratch::new() }
    }

    fn cache(&self) -> BlockCache {
        BlockCache::open(&self.dir.path().join("cache")).unwrap()
    }

    fn blob(&self) -> Arc<CachedFile> {
        let source = Source { bytes: self.stored.clone(), delivered: self.delivered.clone() };
        self.cache().blob(&Digest::sha256(&self.stored), Arc::new(source)).unwrap()
    }

    /// As a new process would.
    fn open(&self, hints: LayerOptions) -> StoredLayer {
        StoredLayer::packed(self.blob(), self.cache(), hints)
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Blocks on the disk of what was decoded.
    fn decoded_blocks(&self) -> u64 {
        fn sum(dir: &Path) -> u64 {
            use std::os::unix::fs::MetadataExt as _;
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries
                .map(
                    |path| {
                        if path.is_dir() { sum(&path) } else { std::fs::metadata(&path).unwrap().blocks() }
                    },
                )
                .sum()
        }
        sum(&self.dir.path().join("cache/v1/streams"))
    }
}

struct Source {
    bytes: Bytes,
    delivered: Arc<AtomicU64>,
}

impl RangeFetch for Source {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        self.delivered.fetch_add(range.len(), Ordering::Relaxed);
        let bytes = self.bytes.slice(range.start as usize..range.end as usize);
        Box::pin(
            async move { Ok(RangeDelivery { range, body: futures_util::stream::iter([Ok(bytes)]).boxed() }) },
        )
    }
}
