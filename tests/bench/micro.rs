//! The small operations that every mount and every read repeat, one at a time: `cargo bench --bench micro`.
//!
//! They find out what a change did to one function. What a user waits for is measured by `e2e`.

#![expect(
    clippy::unwrap_used,
    reason = "the inputs are made here, and a benchmark that cannot start should stop"
)]

use std::fmt::Write as _;
use std::sync::Arc;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use ocifs::io::{ConcatReader, FetchAll, MemoryReader, ReadAt as _, SharedReader};
use ocifs::layer::{
    DecodeStep, FileContent, LayerIndex, StreamEncoding, TableOfContents, TocEntry, TocEntryKind,
    UnitDecoder, UnixTime, build_index, decoded,
};
use ocifs::oci::{Digest, ManifestDocument};
use ocifs::tree::{FrozenTree, TreeBuilder};

fn main() {
    divan::main();
}

/// One block of the cache, and 8 MiB: the size up to which a blob is fetched whole.
#[divan::bench(args = [256 * 1024, 8 * 1024 * 1024])]
fn sha256(bencher: Bencher, len: usize) {
    let bytes = vec![0xa5; len];
    bencher.counter(BytesCount::new(len)).bench(|| Digest::sha256(black_box(&bytes)));
}

#[divan::bench]
fn digest_from_text(bencher: Bencher) {
    let text = Digest::sha256(b"").to_string();
    bencher.bench(|| black_box(&text).parse::<Digest>());
}

/// An ordinary image, the most layers an overlay mount takes, and a disk in many parts.
#[divan::bench(args = [7, 127, 4000])]
fn manifest_from_bytes(bencher: Bencher, layers: usize) {
    let text = manifest(layers);
    ManifestDocument::parse(text.as_bytes(), None).unwrap();
    bencher
        .counter(ItemsCount::new(layers))
        .bench(|| ManifestDocument::parse(black_box(text.as_bytes()), None));
}

/// A 4 KiB read somewhere in a disk that is split into so many parts, all of them at hand.
#[divan::bench(args = [1, 100, 4000])]
fn read_from_concatenated_parts(bencher: Bencher, parts: usize) {
    const PART: usize = 64 * 1024;
    let part: SharedReader = Arc::new(MemoryReader::new(vec![7; PART]));
    let disk = ConcatReader::of(std::iter::repeat_n(part, parts));
    let mut buf = [0; 4096];
    let mut offset = 0;
    bencher.counter(BytesCount::new(buf.len())).bench_local(|| {
        // A large odd step visits all parts, and some reads cross from one into the next.
        offset = (offset + 1_000_003) % (disk.size() - buf.len() as u64);
        disk.read_ready(black_box(offset), &mut buf)
    });
}

/// A layer of so many entries applied to an empty tree, and the tree made immutable.
#[divan::bench(args = [100_000], sample_count = 20, sample_size = 1)]
fn merge(bencher: Bencher, entries: u64) {
    let toc = toc(entries);
    bencher.counter(ItemsCount::new(entries)).bench(|| united(black_box(&toc)));
}

/// The table of contents alone, entry by entry.
#[divan::bench(args = [100_000], sample_count = 20, sample_size = 1)]
fn toc_from_entries(bencher: Bencher, entries: u64) {
    bencher.counter(ItemsCount::new(entries)).bench(|| toc(black_box(entries)));
}

/// One name in a directory of ten, and one in a directory of a hundred.
#[divan::bench(args = ["usr/share/d042/package-04242", "usr/share/d042"])]
fn lookup(bencher: Bencher, dir: &str) {
    let tree = united(&toc(1_000_000));
    let dir = dir.split('/').fold(FrozenTree::ROOT, |dir, name| tree.lookup(dir, name.as_bytes()).unwrap());
    let name = tree.entries(dir, tree.entry_count(dir) / 2).next().unwrap().0;
    bencher.bench(|| tree.lookup(black_box(dir), black_box(name)).unwrap());
}

/// The names of a directory of a hundred, with their attributes.
#[divan::bench]
fn readdir(bencher: Bencher) {
    let tree = united(&toc(1_000_000));
    let dir = tree.resolve(b"usr/share/d042", ocifs::tree::FollowLinks::All).unwrap().ino;
    bencher.counter(ItemsCount::new(tree.entry_count(dir))).bench(|| {
        tree.entries(black_box(dir), 0).filter(|&(_, ino)| tree.attr(ino).unwrap().nlink > 0).count()
    });
}

/// A layer shaped as root filesystems are: ten names in a directory, depth five.
fn toc(entries: u64) -> TableOfContents {
    let entry = |path: String, kind, number| TocEntry {
        path: path.into_bytes(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: UnixTime { secs: 1_700_000_000, nanos: 0 },
        xattrs: Vec::new(),
        header: number * 1024,
    };
    (0..entries)
        .map(|number| {
            let dir = format!("usr/share/d{:03}/package-{:05}", number / 1000, number / 10);
            if number % 10 == 0 {
                return entry(dir, TocEntryKind::Directory, number);
            }
            let content = FileContent { size: 100, offset: number * 1024 + 512, runs: None };
            entry(format!("{dir}/module-{number:07}.py"), TocEntryKind::File(content), number)
        })
        .collect()
}

fn united(toc: &TableOfContents) -> FrozenTree {
    let mut builder = TreeBuilder::new();
    builder.apply(0, toc).unwrap();
    builder.freeze()
}

/// What decoding alone costs: the best that a pass can do.
#[divan::bench]
fn gzip_decoded_plainly(bencher: Bencher) {
    let (stored, size) = layer();
    bencher.counter(BytesCount::new(size)).bench(|| {
        let mut decoder = UnitDecoder::new(StreamEncoding::Gzip, 0).unwrap().unwrap();
        let (mut rest, mut out) = (&stored[..], vec![0; 256 * 1024]);
        loop {
            let step = decoder.step(rest, &mut out).unwrap();
            rest = &rest[step.consumed..];
            if step == DecodeStep::default() {
                break;
            }
        }
    });
}

/// The same with all that a pass learns: table of contents, checkpoints with their windows, checksums of blocks.
#[divan::bench]
fn gzip_decoded_with_checkpoints(bencher: Bencher) {
    let (stored, size) = layer();
    let blob: SharedReader = Arc::new(MemoryReader::new(stored));
    let runtime = runtime();
    bencher.counter(BytesCount::new(size)).bench(|| runtime.block_on(build_index(blob.clone())).unwrap());
}

/// A 64 KiB read somewhere in a decoded layer of which nothing is cached.
#[divan::bench]
fn gzip_read_at_random(bencher: Bencher) {
    let (stored, size) = layer();
    let blob: SharedReader = Arc::new(MemoryReader::new(stored));
    let runtime = runtime();
    let stream = FetchAll(decoded(blob.clone(), &runtime.block_on(build_index(blob)).unwrap()));
    let mut buf = vec![0; 64 * 1024];
    let mut offset = 0;
    bencher.counter(BytesCount::new(buf.len())).bench_local(|| {
        offset = (offset + 5_000_011) % (size - buf.len() as u64);
        runtime.block_on(stream.read_at(black_box(offset), &mut buf)).unwrap();
    });
}

#[divan::bench]
fn index_to_bytes(bencher: Bencher) {
    let index = runtime().block_on(build_index(Arc::new(MemoryReader::new(layer().0)))).unwrap();
    bencher.bench(|| black_box(&index).to_bytes());
}

#[divan::bench]
fn index_from_bytes(bencher: Bencher) {
    let stored = layer().0;
    let size = stored.len() as u64;
    let bytes =
        runtime().block_on(build_index(Arc::new(MemoryReader::new(stored)))).unwrap().to_bytes().unwrap();
    bencher.bench(|| LayerIndex::from_bytes(black_box(&bytes), size).unwrap());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// A gzip layer of 2000 text files in 32 MiB, and the size of its stream.
fn layer() -> (Vec<u8>, u64) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut state = 7u32;
    for file in 0..2000 {
        let mut body = String::new();
        while body.len() < 16 * 1024 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            write!(body, "{:x} ", (state >> 16) % 5000 * 7919).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        tar.append_data(&mut header, format!("usr/share/files/{file}"), body.as_bytes()).unwrap();
    }
    let plain = tar.into_inner().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, &plain).unwrap();
    (encoder.finish().unwrap(), plain.len() as u64)
}

fn manifest(layers: usize) -> String {
    let mut text =
        String::from(r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#);
    let config = Digest::sha256(b"config");
    write!(
        text,
        r#""config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":6}},"layers":["#
    )
    .unwrap();
    for layer in 0..layers {
        let comma = if layer == 0 { "" } else { "," };
        let digest = Digest::sha256(&layer.to_le_bytes());
        write!(
            text,
            r#"{comma}{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{}}}"#,
            layer + 1
        )
        .unwrap();
    }
    text.push_str("]}");
    text
}
