//! Reads of files through a foreign index, in a layer or beside it, equal the archive: 10,000 seeded reads for each
//! kind of index. The streams belong to the indexes, so files are compared.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;

use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use ocifs::io::{ByteRange, FetchAll, MemoryReader, SharedReader, read_vec};
use ocifs::layer::{
    ForeignLimits, LayerDigests, LayerIndex, SharedContent, StreamEncoding, TableOfContents, TarLimits,
    TarWalker, TocEntryKind, decoded, file, find_foreign, find_seek_table, parse_ztoc,
};

use crate::chunked::{self, Checksums, Estargz, Footer, Writer};
use crate::random::Random;
use crate::soci;
use crate::zran::Members;

const KIB: u64 = 1024;
const READS: usize = 10_000;

#[test]
fn reads_through_estargz_equal_the_files() {
    let tar = archive(3 << 20, 11);
    for (footer, chunk, member) in
        [(Footer::Current, 4 << 20, 0), (Footer::Legacy, 30_000, 0), (Footer::Current, 50_000, 400_000)]
    {
        let made = Estargz { chunk, member, footer, ..Estargz::default() }.make(&tar);
        reads_equal(&tar, made.bytes.clone(), &carried(&made, StreamEncoding::Gzip));
    }
}

#[test]
fn reads_through_zstd_chunked_equal_the_files() {
    let tar = archive(3 << 20, 12);
    for (writer, chunk) in [(Writer::Storage, 30_000), (Writer::Stargz, 4 << 20)] {
        let made = chunked::zstd_chunked(&tar, writer, chunk);
        reads_equal(&tar, made.bytes.clone(), &carried(&made, StreamEncoding::Zstd));
    }
}

#[test]
fn reads_through_a_ztoc_equal_the_files() {
    let mut tar = archive(3 << 20, 13);
    // The zTOC ends with the mark of the end, the last span and its digest with the layer.
    tar.resize(tar.len() + (700 << 10), 0);
    let mut members = gzip(&tar[..1_000_000]);
    members.extend(gzip(&tar[1_000_000..]));
    for (stored, of, span) in [
        (gzip(&tar), Members::First, 100_000),
        (members.clone(), Members::All, 500_000),
        (members, Members::First, 1 << 20),
    ] {
        let ztoc = soci::Ztoc::of_gzip(&stored, span, of).write();
        let index = parse_ztoc(&ztoc, stored.len() as u64).unwrap().index;
        assert!(index.spans.stream_size() < tar.len() as u64, "the padding is no part of it");
        assert!(matches!(index.spans.sums(), LayerDigests::Stored(_)));
        reads_equal(&tar, stored, &index);
    }
}

#[test]
fn reads_through_a_ztoc_of_a_plain_layer_equal_the_files() {
    let tar = archive(1 << 20, 14);
    let ztoc = soci::Ztoc::of_plain(&tar, 100_000).write();
    let index = parse_ztoc(&ztoc, tar.len() as u64).unwrap().index;
    reads_equal(&tar, tar.clone(), &index);
}

#[test]
fn reads_through_a_seek_table_equal_the_files() {
    let tar = archive(2 << 20, 15);
    let stored = chunked::seekable(&tar, 100_000, Checksums::With);
    let blob = MemoryReader::new(stored.clone());
    let limits = ForeignLimits { smallest: 0, ..ForeignLimits::default() };
    let spans = runtime().block_on(find_seek_table(&blob, StreamEncoding::Zstd, limits)).unwrap().unwrap();
    let index = LayerIndex { spans, toc: toc(&tar), blocks: Vec::new(), prefetch: 0 };
    reads_equal(&tar, stored, &index);
}

/// The index that a layer carries.
fn carried(made: &chunked::Made, encoding: StreamEncoding) -> LayerIndex {
    let blob = MemoryReader::new(made.bytes.clone());
    let limits = ForeignLimits { smallest: 0, ..ForeignLimits::default() };
    let found = runtime().block_on(find_foreign(&blob, encoding, &made.annotations, limits));
    found.unwrap().unwrap().index
}

fn toc(tar: &[u8]) -> TableOfContents {
    let mut walker = TarWalker::new(TarLimits::default());
    walker.feed(0, tar).unwrap();
    walker.finish(tar.len() as u64).unwrap()
}

fn files(toc: &TableOfContents) -> Vec<(Vec<u8>, SharedContent)> {
    toc.iter()
        .filter_map(|entry| match entry.kind {
            TocEntryKind::File(content) if content.size > 0 => Some((entry.path.to_vec(), content.shared())),
            _ => None,
        })
        .collect()
}

/// Makes [`READS`] reads of files, four at a time.
fn reads_equal(tar: &[u8], stored: Vec<u8>, index: &LayerIndex) {
    let expected: HashMap<Vec<u8>, &[u8]> = files(&toc(tar))
        .into_iter()
        .map(|(name, content)| {
            (name, &tar[content.offset as usize..(content.offset + content.size) as usize])
        })
        .collect();
    let files = files(&index.toc);
    assert_eq!(files.len(), expected.len());
    let stream: SharedReader = Arc::new(FetchAll(decoded(Arc::new(MemoryReader::new(stored)), index)));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let wanted: Vec<(usize, ByteRange)> = (0..READS)
        .map(|_| {
            let at = random.below(files.len() as u64) as usize;
            let size = files[at].1.size;
            let start = random.below(size);
            (at, ByteRange::at(start, (1 + random.below(32 * KIB)).min(size - start)))
        })
        .collect();
    runtime().block_on(async {
        let reads = futures_util::stream::iter(wanted).map(|(at, range)| {
            let bytes = file(&stream, &files[at].1, None).unwrap();
            async move { (at, range, read_vec(&*bytes, range).await.unwrap()) }
        });
        let mut reads = reads.buffer_unordered(4);
        let mut count = 0;
        while let Some((at, range, got)) = reads.next().await {
            let name = &files[at].0;
            let right = &expected[name][range.start as usize..range.end as usize];
            assert!(got == right, "wrong bytes at {range} of {}", name.escape_ascii());
            count += 1;
        }
        assert_eq!(count, READS);
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A tar archive of about `len` bytes: a directory, text, noise, and runs of zeros inside of files; small files and large ones.
fn archive(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9) | 1);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    tar.append_data(&mut header, "files/", &[][..]).unwrap();
    while tar.get_ref().len() < len {
        let most = [300, 5_000, 200_000][random.below(3) as usize];
        let size = 1 + random.below(most) as usize;
        let mut body: Vec<u8> = match random.below(3) {
            0 => (0..size).map(|_| random.next() as u8).collect(),
            1 => vec![random.next() as u8; size],
            _ => (0..size).map(|at| b"the same again and again "[at % 25] ^ (at / 999) as u8).collect(),
        };
        if size > 70_000 {
            body[20_000..65_000].fill(0);
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        let name = format!("files/{}", tar.get_ref().len());
        tar.append_data(&mut header, name, &body[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}
