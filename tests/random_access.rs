//! Every read of a decoded layer, wherever it starts, equals what plain decoding gives: 10,000 seeded reads of each kind of
//! layer, through the index that one pass makes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

use flate2::write::GzEncoder;
use flate2::{Compression, Crc, FlushCompress};
use futures_util::StreamExt as _;
use ocifs::io::{ByteRange, FaultClass, FetchAll, MemoryReader, ReadError, SharedReader, read_vec};
use ocifs::layer::{
    ChunkDigest, LayerDigests, LayerIndex, SpanMap, SpanStart, StreamEncoding, build_index, decoded,
};

use crate::observed_reader::ObservedReader;
use crate::random::Random;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const READS: usize = 10_000;

#[test]
fn reads_of_a_gzip_with_many_members_equal_the_plain_decode() {
    let plain = archive(5 * MIB, 1);
    let mut stored = Vec::new();
    let mut rest = &plain[..];
    // Members of very different sizes, tiny ones among them.
    for len in [700, 300_000, 5_000, 1_200_000, 1, 90_000].into_iter().cycle() {
        let (member, after) = rest.split_at(rest.len().min(len));
        stored.extend(gzip(member, 6));
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let index = index_of(&stored);
    assert!(index.spans.spans() > 6, "{} spans", index.spans.spans());
    reads_equal(stored, &index, plain.len() as u64, 0, |range| plain[range].to_vec());
}

#[test]
fn reads_of_a_gzip_with_one_member_equal_the_plain_decode() {
    let plain = archive(6 * MIB, 2);
    let stored = gzip(&plain, 6);
    let index = index_of(&stored);
    assert_eq!(index.spans.spans(), 6, "one checkpoint for each MiB");
    reads_equal(stored, &index, plain.len() as u64, 0, |range| plain[range].to_vec());
}

#[test]
fn reads_of_zstd_with_many_frames_equal_the_plain_decode() {
    let plain = archive(5 * MIB, 3);
    let stored: Vec<u8> =
        plain.chunks(300_000).flat_map(|frame| zstd::bulk::compress(frame, 1).unwrap()).collect();
    let index = index_of(&stored);
    assert!(index.spans.spans() > 10, "{} spans", index.spans.spans());
    reads_equal(stored, &index, plain.len() as u64, 0, |range| plain[range].to_vec());
}

#[test]
fn reads_of_zstd_with_one_frame_equal_the_plain_decode() {
    let plain = archive(2 * MIB, 4);
    let stored = zstd::bulk::compress(&plain, 1).unwrap();
    let index = index_of(&stored);
    assert_eq!(index.spans.spans(), 1);
    reads_equal(stored, &index, plain.len() as u64, 0, |range| plain[range].to_vec());
}

/// The cache decodes whole blocks of 256 KiB, so a file is decoded from the first byte of its first block.
#[test]
fn each_large_file_has_a_checkpoint_shortly_before_its_first_block() {
    // Of each file: where its content starts, in KiB after a multiple of a mebibyte, and its length.
    let files = [(300, 2 * MIB), (520, MIB), (900, 3 * MIB), (1000, MIB + 1), (10, MIB), (700, MIB - 1)];
    let (plain, offsets) = archive_of(&files);
    let stored = gzip(&plain, 6);
    let index = index_of(&stored);
    let starts: Vec<u64> = index.spans.starts().iter().map(|start| start.stream).collect();
    let last_before = |at: u64| *starts.iter().rfind(|start| **start <= at).unwrap();
    for ((_, len), offset) in files.into_iter().zip(offsets) {
        let first = offset - offset % (256 * KIB);
        let distance = first - last_before(first);
        assert_eq!(distance <= 128 * KIB, len >= MIB, "{distance} before the file of {len} at {offset}");
    }
    let size = index.to_bytes().unwrap().len();
    assert!(size * 100 < stored.len(), "{size} bytes for {} stored ones", stored.len());

    // As earlier versions wrote it: the last block before each multiple of a mebibyte.
    let starts = index.spans.starts();
    let is_old = |start: &&SpanStart| {
        let next = starts.iter().find(|other| other.stream > start.stream);
        let multiple = start.stream.next_multiple_of(MIB);
        multiple - start.stream <= 128 * KIB && next.is_none_or(|next| next.stream > multiple)
    };
    let kept: Vec<SpanStart> = starts.iter().filter(is_old).cloned().collect();
    assert!(kept.len() + 3 <= starts.len(), "{} of {}", kept.len(), starts.len());
    let spans = SpanMap::ordered(StreamEncoding::Gzip, stored.len() as u64, plain.len() as u64, kept);
    let old = LayerIndex { spans, ..index.clone() };
    let old = LayerIndex::from_bytes(&old.to_bytes().unwrap(), stored.len() as u64).unwrap();
    let stream = FetchAll(decoded(Arc::new(MemoryReader::new(stored.clone())), &old));
    let got = runtime().block_on(read_vec(&stream, ByteRange::new(0, plain.len() as u64))).unwrap();
    assert!(got == plain, "an index without checkpoints of files");
    reads_equal(stored, &index, plain.len() as u64, 0, |range| plain[range].to_vec());
}

/// One member whose stream is longer than 32 bits count: no offset is cut short anywhere.
#[test]
fn reads_beyond_4_gib_of_one_member_equal_the_plain_decode() {
    const BODY: u64 = 4200 * MIB;
    // 1 MiB that is taken up alone, again and again: text that repeats at a distance below the window.
    let text = words(9000, 5);
    let unit: Vec<u8> = (0..u64::MAX)
        .flat_map(|at| [at.to_le_bytes().to_vec(), text.clone()].concat())
        .take(MIB as usize)
        .collect();
    let mut header = tar::Header::new_gnu();
    header.set_path("long").unwrap();
    header.set_size(BODY);
    header.set_mode(0o644);
    header.set_cksum();
    let (head, tail) = (header.as_bytes().to_vec(), vec![0; 1024]);
    let (head_blocks, unit_blocks, tail_blocks) = (blocks(&head), blocks(&unit), blocks(&tail));
    let mut crc = Crc::new();
    let mut stored = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    stored.extend(&head_blocks);
    crc.update(&head);
    for _ in 0..BODY / MIB {
        stored.extend(&unit_blocks);
        crc.update(&unit);
    }
    stored.extend(&tail_blocks);
    crc.update(&tail);
    // An empty last block of fixed codes.
    stored.extend([3, 0]);
    stored.extend(crc.sum().to_le_bytes());
    stored.extend(((BODY + 512 + 1024) as u32).to_le_bytes());

    let size = BODY + 512 + 1024;
    let index = index_of(&stored);
    assert_eq!(index.spans.stream_size(), size);
    let beyond = index.spans.starts().iter().filter(|start| start.stream > 4 << 30).count();
    assert!(beyond > 90, "{beyond} checkpoints beyond 4 GiB");
    let byte = |at: u64| match at {
        0..512 => head[at as usize],
        _ if at < 512 + BODY => unit[((at - 512) % MIB) as usize],
        _ => 0,
    };
    let expected = |range: Range<usize>| range.map(|at| byte(at as u64)).collect();
    // Half of the reads lie behind the border.
    reads_equal(stored, &index, size, 4 << 30, expected);
}

#[test]
fn a_read_fetches_and_decodes_no_more_than_it_needs() {
    let plain = archive(12 * MIB, 6);
    let stored = gzip(&plain, 6);
    let index = index_of(&stored);
    let blob = ObservedReader::new(stored);
    let stream = decoded(blob.clone(), &index);
    let at = 9 * MIB + 300 * KIB;
    runtime().block_on(async {
        let mut delivery = stream.fetch(ByteRange::at(at, 100)).await.unwrap();
        assert_eq!(delivery.range, ByteRange::new(9 * MIB, 9 * MIB + 512 * KIB));
        assert_eq!(drain(&mut delivery.body).await.unwrap(), plain[9 << 20..(9 << 20) + (512 << 10)]);
        let (_, first) = blob.cost();
        assert!(first <= MIB, "{first} stored bytes for 100 bytes of the stream");
        // Who reads on goes on where the first read stopped: nothing is decoded twice.
        let mut delivery = stream.fetch(ByteRange::at(9 * MIB + 512 * KIB, 100)).await.unwrap();
        assert_eq!(delivery.range, ByteRange::at(9 * MIB + 512 * KIB, 256 * KIB));
        drain(&mut delivery.body).await.unwrap();
        let (_, second) = blob.cost();
        assert!(second <= 512 * KIB, "{second} stored bytes for the next block");
    });
}

#[test]
fn bytes_that_contradict_the_index_are_not_delivered() {
    let plain = archive(3 * MIB, 7);
    let stored = gzip(&plain, 6);
    let index = index_of(&stored);
    let read = |index: &LayerIndex| {
        let stream = FetchAll(decoded(Arc::new(MemoryReader::new(stored.clone())), index));
        runtime().block_on(read_vec(&stream, ByteRange::at(MIB + 5, 1000)))
    };
    assert_eq!(read(&index).unwrap(), plain[MIB as usize + 5..][..1000]);

    let mut wrong = index.clone();
    wrong.blocks[4][0] ^= 1;
    let error = read(&wrong).unwrap_err();
    assert_eq!(error.fault(), FaultClass::Mismatch);
    assert!(error.chain().contains("block 4 of the stream"), "{}", error.chain());

    let sum = |bytes: &[u8], start: u64| {
        use sha2::Digest as _;
        let part = &bytes[start as usize..][..400_000];
        ChunkDigest { start, end: start + 400_000, sha256: sha2::Sha256::digest(part).into() }
    };
    let stored_start = index.spans.starts()[1].stored;
    for (right, subject) in [
        (LayerDigests::Stored(vec![sum(&stored, stored_start - 1)]), "stored bytes"),
        (LayerDigests::Stream(vec![sum(&plain, MIB)]), "stream bytes"),
    ] {
        let with = |sums| LayerIndex { spans: index.spans.clone().with_sums(sums), ..index.clone() };
        assert_eq!(read(&with(right.clone())).unwrap(), plain[MIB as usize + 5..][..1000], "{subject}");
        let mut wrong = right;
        match &mut wrong {
            LayerDigests::Stored(sums) | LayerDigests::Stream(sums) => sums[0].sha256[31] ^= 1,
            LayerDigests::None => unreachable!(),
        }
        let error = read(&with(wrong)).unwrap_err();
        assert_eq!(error.fault(), FaultClass::Mismatch, "{}", error.chain());
        assert!(error.chain().contains(subject), "{}", error.chain());
    }
}

#[test]
fn chunks_are_decoded_each_on_its_own() {
    use ocifs::layer::{SpanMap, StoredChunk, StreamEncoding};
    let parts: Vec<Vec<u8>> = (0..5).map(|seed| words(200_000 + 7 * seed, seed as u64)).collect();
    // Stored in another order than the stream has, two of them side by side, and with more behind each than is read.
    let (mut stored, mut places) = (vec![0xee; 100], vec![(0, 0); 5]);
    for at in [3, 1, 2, 0, 4] {
        let start = stored.len() as u64;
        stored.extend(gzip(&[&parts[at][..], b"the header of the next file"].concat(), 6));
        places[at] = (start, stored.len() as u64);
    }
    let mut stream = 0;
    let mut chunks = Vec::new();
    for (part, (start, end)) in parts.iter().zip(&places) {
        chunks.push(StoredChunk { stored: *start, stored_end: *end, stream });
        stream += part.len() as u64;
    }
    let plain = parts.concat();
    let spans = SpanMap::chunks(StreamEncoding::Gzip, stored.len() as u64, stream, chunks);
    assert!(spans.is_sound());
    let index = LayerIndex { spans, toc: Default::default(), blocks: Vec::new(), prefetch: 0 };
    let stream = FetchAll(decoded(Arc::new(MemoryReader::new(stored)), &index));
    runtime().block_on(async {
        for start in [0, 199_999, 200_000, 650_000, plain.len() as u64 - 1] {
            let len = (plain.len() as u64 - start).min(500_000);
            let got = read_vec(&stream, ByteRange::at(start, len)).await.unwrap();
            assert!(got == plain[start as usize..(start + len) as usize], "{len} bytes at {start}");
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The index of one pass, as it comes back after being kept.
fn index_of(stored: &[u8]) -> LayerIndex {
    let blob: SharedReader = Arc::new(MemoryReader::new(stored.to_vec()));
    let made = runtime().block_on(build_index(blob)).unwrap();
    let kept = LayerIndex::from_bytes(&made.to_bytes().unwrap(), stored.len() as u64);
    assert_eq!(kept.as_ref(), Some(&made), "what is kept is what was made");
    made
}

/// Makes [`READS`] reads, half of them from `border` on, four at a time.
fn reads_equal(
    stored: Vec<u8>,
    index: &LayerIndex,
    size: u64,
    border: u64,
    expected: impl Fn(Range<usize>) -> Vec<u8>,
) {
    assert_eq!(index.spans.stream_size(), size);
    let stream = Arc::new(FetchAll(decoded(Arc::new(MemoryReader::new(stored)), index)));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let ranges: Vec<ByteRange> = (0..READS)
        .map(|at| {
            let from = if at % 2 == 0 { border } else { 0 };
            let start = from + random.below(size - from);
            ByteRange::at(start, (1 + random.below(64 * KIB)).min(size - start))
        })
        .collect();
    runtime().block_on(async {
        let reads = futures_util::stream::iter(ranges).map(|range| {
            let stream = stream.clone();
            async move { (range, read_vec(&*stream, range).await.unwrap()) }
        });
        let mut reads = reads.buffer_unordered(4);
        let mut count = 0;
        while let Some((range, got)) = reads.next().await {
            assert!(got == expected(range.start as usize..range.end as usize), "wrong bytes at {range}");
            count += 1;
        }
        assert_eq!(count, READS);
    });
}

async fn drain(
    body: &mut ocifs::io::BoxStream<'static, Result<bytes::Bytes, ReadError>>,
) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(next) = body.next().await {
        all.extend_from_slice(&next?);
    }
    Ok(all)
}

/// A tar archive of about `len` bytes: text, noise and runs.
fn archive(len: u64, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9) | 1);
    let mut tar = tar::Builder::new(Vec::new());
    while (tar.get_ref().len() as u64) < len {
        let size = 1 + random.below(200_000) as usize;
        let body = match random.below(4) {
            0 => (0..size / 8).map(|_| random.next() as u8).collect(),
            1 => vec![random.next() as u8; size],
            _ => words(size, random.next()),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        let name = format!("files/{}", tar.get_ref().len());
        tar.append_data(&mut header, name, &body[..]).unwrap();
    }
    let mut plain = tar.into_inner().unwrap();
    plain.truncate(plain.len() / 512 * 512);
    plain
}

/// A tar archive with files at these places, and the offset of the content of each: so many KiB after a multiple of a
/// mebibyte, and so long. Small files fill the gaps.
fn archive_of(files: &[(u64, u64)]) -> (Vec<u8>, Vec<u64>) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut offsets = Vec::new();
    let add = |tar: &mut tar::Builder<Vec<u8>>, len: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_size(len);
        header.set_mode(0o644);
        let at = tar.get_ref().len() as u64;
        let body: Vec<u8> = noise(len, at).map(|byte| b'0' + (byte & 63)).collect();
        tar.append_data(&mut header, format!("files/{at}"), &body[..]).unwrap();
        at + 512
    };
    for (place, len) in files {
        loop {
            let rest = (place * KIB + MIB - (tar.get_ref().len() as u64 + 512) % MIB) % MIB;
            match rest {
                0 => break,
                512 => add(&mut tar, 0),
                1024.. => add(&mut tar, (rest - 512).min(90 * KIB)),
                _ => unreachable!("archives are multiples of 512"),
            };
        }
        offsets.push(add(&mut tar, *len));
    }
    (tar.into_inner().unwrap(), offsets)
}

fn noise(len: u64, seed: u64) -> impl Iterator<Item = u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..len).map(move |_| random.next() as u8)
}

/// Words from a small vocabulary.
fn words(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut text = Vec::with_capacity(len + 8);
    while text.len() < len {
        write!(text, "{:x} ", random.below(3000) * 7919).unwrap();
    }
    text.truncate(len);
    text
}

fn gzip(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Deflate blocks that refer to nothing before themselves, end at a byte, and are not the last ones.
fn blocks(plain: &[u8]) -> Vec<u8> {
    let mut deflate = flate2::Compress::new(Compression::fast(), false);
    let mut stored = Vec::with_capacity(plain.len() + 1024);
    deflate.compress_vec(plain, &mut stored, FlushCompress::Full).unwrap();
    assert_eq!(deflate.total_in(), plain.len() as u64);
    stored
}
