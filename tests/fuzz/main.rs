//! A deterministic mutation fuzzer for everything that parses foreign bytes: one function per target, below.
//!
//! Seeds are archives of the corpus (where it is present) and those made here; each target runs for
//! `OCIFS_FUZZ_SECONDS` (default 2). The generator starts from a fixed seed, so a run of the same length finds the same;
//! a failing input is written to the temporary directory and its path printed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why on stderr"
)]

#[path = "../support/tar_walk.rs"]
mod tar_walk;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// However it is fed, the tar walker says the same: the same entries, or the same error.
#[test]
fn tar_walker_whole_and_in_pieces_agree() {
    target("tar-walker", &tar_seeds(), |bytes| {
        let whole = tar_walk::whole(bytes);
        let chunk = 1 + bytes.len() % 1021;
        assert_eq!(tar_walk::chunked(bytes, chunk), whole, "in chunks of {chunk}");
        assert_eq!(tar_walk::chunked(bytes, 1), whole, "in single bytes");
        let (ranged, cost) = tar_walk::ranged(bytes, 0);
        assert_eq!(ranged, whole, "with contents skipped");
        assert!(cost.bytes <= bytes.len() as u64, "no byte is read twice");
        if let Ok(toc) = whole {
            for entry in &toc.entries {
                if let ocifs::layer::EntryKind::File(content) = &entry.kind {
                    let end = content.offset + content.stored();
                    assert!(end <= bytes.len() as u64, "content outside of the stream");
                }
            }
        }
    });
}

/// Documents parse or are refused, in bounded time, and what parses keeps its promises.
#[test]
fn documents_and_names_never_panic() {
    let blob = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":7,"annotations":{"org.opencontainers.image.title":"disk.qcow2.00.qcow2.part"},"data":"e30="}"#;
    let seeds = [
        format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob},{blob}],"subject":{blob},"annotations":{{"a":"b"}}}}"#),
        format!(r#"{{"manifests":[{blob}],"artifactType":"x/y","mediaType":"application/vnd.oci.image.index.v1+json"}}"#),
        r#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["sha256:00"]},"created":"2020-01-01T00:00:00Z"}"#.into(),
        "docker://[::1]:5000/a/b__c:v1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
        "oci:/a/b:v1@sha256:00".into(),
    ]
    .map(String::into_bytes);
    target("documents", &seeds, |bytes| {
        if let Ok(ocifs::oci::Document::Manifest(manifest)) = ocifs::oci::Document::parse(bytes, None) {
            let names = ocifs::oci::file_names(manifest.layers.iter().enumerate());
            assert!(names.files.iter().all(|file| !file.path.starts_with('/') && !file.path.split('/').any(|part| part == "..")));
            let detection = ocifs::disk::detect(&manifest, ocifs::disk::PartOrder::Epoch);
            let info = ocifs::disk::info_padded(&manifest, &detection, &[]);
            assert_eq!(info.len() as u64, ocifs::disk::info_size(&manifest, &detection));
        }
        ocifs::oci::ImageConfig::parse(bytes).ok();
        let text = String::from_utf8_lossy(bytes);
        if let Ok(reference) = text.parse::<ocifs::oci::Reference>() {
            assert_eq!(
                reference.to_string().parse::<ocifs::oci::Reference>().as_ref(),
                Ok(&reference),
                "{text}"
            );
        }
        text.parse::<ocifs::source::Location>().ok();
    });
}

/// A decoder gives what the original was, or an error; never more than its output may be, and never without end.
#[test]
fn decoders_end_on_any_input() {
    use ocifs::layer::{Decoder, Encoding};
    use std::io::Write as _;
    let plain = b"some text that compresses ".repeat(40);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let (gzip, zstd) = (gzip.finish().unwrap(), zstd::bulk::compress(&plain, 1).unwrap());
    let seeds = [gzip.clone(), zstd.clone(), [gzip.clone(), gzip].concat(), [zstd.clone(), zstd].concat()];
    target("decoders", &seeds, |bytes| {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let Ok(Some(mut decoder)) = Decoder::new(encoding, 0) else { continue };
            let (mut rest, mut out, mut produced) = (bytes, [0; 4096], 0);
            while let Ok(step) = decoder.step(rest, &mut out) {
                rest = &rest[step.consumed..];
                produced += step.produced;
                if step.consumed + step.produced == 0 {
                    break;
                }
                assert!(produced <= 1 << 28, "more output than these inputs can hold");
            }
            assert_eq!(decoder.offset() as usize, bytes.len() - rest.len());
        }
        ocifs::layer::sniff(bytes);
    });
}

/// A damaged kept index is absent, never wrong and never a panic.
#[test]
fn kept_indexes_and_disk_heads_never_panic() {
    let toc = tar_walk::whole(&tar_seeds()[0]).unwrap();
    let spans = ocifs::layer::SpanMap::identity(1 << 20);
    let index = ocifs::layer::LayerIndex { spans, toc };
    let mut disk = vec![0; 4096];
    disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    disk[20..32].copy_from_slice(&[0, 0, 0, 16, 0, 0, 0, 0, 0x40, 0, 0, 0]);
    disk[100..104].copy_from_slice(&104u32.to_be_bytes());
    target("indexes", &[index.to_bytes().unwrap(), disk], |bytes| {
        if let Some(found) = ocifs::layer::LayerIndex::from_bytes(bytes, 1 << 20) {
            assert!(found.spans.is_sound());
        }
        for label in [ocifs::disk::Format::Raw, ocifs::disk::Format::Qcow2] {
            ocifs::disk::inspect(bytes, bytes.len() as u64, &label);
        }
    });
}

/// Small archives: the corpus, and a tar made here so that there is always one.
fn tar_seeds() -> Vec<Vec<u8>> {
    let mut made = tar::Builder::new(Vec::new());
    for (at, name) in ["a", "dir/b", &format!("{}end", "long/".repeat(40))].iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_size(700 * at as u64);
        header.set_mode(0o644);
        made.append_data(&mut header, name, &*vec![at as u8; 700 * at]).unwrap();
    }
    let mut seeds = vec![made.into_inner().unwrap()];
    if let Some(dir) = tar_walk::corpus() {
        let archives = tar_walk::archives(&dir, &["go", "tar-rs", "containerd", "umoci"]);
        seeds.extend(archives.into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes.len() <= 32 << 10));
    }
    seeds
}

/// Runs `check` on every seed and then on mutations of them until the time is over.
fn target(name: &str, seeds: &[Vec<u8>], check: impl Fn(&[u8])) {
    let seconds = std::env::var("OCIFS_FUZZ_SECONDS").map_or(2.0, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut inputs = 0u64;
    for seed in seeds {
        run(name, seed, &check);
    }
    while Instant::now() < end {
        for _ in 0..16 {
            let mut bytes = random.pick(seeds).clone();
            mutate(&mut bytes, seeds, &mut random);
            run(name, &bytes, &check);
            inputs += 1;
        }
    }
    eprintln!("{name}: {inputs} inputs from {} seeds", seeds.len());
}

fn run(name: &str, bytes: &[u8], check: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
        let path = std::env::temp_dir().join(format!("ocifs-fuzz-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        eprintln!("{name}: failing input of {} bytes is in {}", bytes.len(), path.display());
        resume_unwind(panic);
    }
}

fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    /// Bytes that parsers treat specially.
    const TELLING: &[u8] = b"\0 01789=,.-+\n\r/{}\"[]xgLKSDMV\x1f\x7f\x80\xbf\xc0\xff";
    for _ in 0..=random.below(6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => bytes[at] = *random.pick(TELLING),
            4 => bytes.truncate(at),
            5 => {
                let len = random.below(600).min(bytes.len() - at);
                let piece = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            6 => {
                // Whole blocks of another seed: most formats here are made of blocks of 512 bytes.
                let other = random.pick(seeds);
                let from = random.below(other.len() / 512 + 1) * 512;
                let to = (from + 512 * (1 + random.below(4))).min(other.len());
                let at = at / 512 * 512;
                bytes.splice(at..at, other[from.min(to)..to].iter().copied());
            }
            _ => {
                let len = random.below(600).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
        }
    }
    // Most damage should get past the checksum, which is not what holds an attacker back.
    if random.below(4) > 0 {
        mend_tar_checksums(bytes);
    }
}

fn mend_tar_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// xorshift64*: not for secrets, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
