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
use ocifs::io::{Concat, Memory, ReadAt as _, Shared};
use ocifs::oci::{Digest, Document};

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
    Document::parse(text.as_bytes(), None).unwrap();
    bencher.counter(ItemsCount::new(layers)).bench(|| Document::parse(black_box(text.as_bytes()), None));
}

/// A 4 KiB read somewhere in a disk that is split into so many parts, all of them at hand.
#[divan::bench(args = [1, 100, 4000])]
fn read_from_concatenated_parts(bencher: Bencher, parts: usize) {
    const PART: usize = 64 * 1024;
    let part: Shared = Arc::new(Memory::new(vec![7; PART]));
    let disk = Concat::of(std::iter::repeat_n(part, parts));
    let mut buf = [0; 4096];
    let mut offset = 0;
    bencher.counter(BytesCount::new(buf.len())).bench_local(|| {
        // A large odd step visits all parts, and some reads cross from one into the next.
        offset = (offset + 1_000_003) % (disk.size() - buf.len() as u64);
        disk.read_ready(black_box(offset), &mut buf)
    });
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
