//! A deterministic mutation fuzzer for everything that parses foreign bytes: one function per target, below.
//!
//! Seeds are archives of the corpus (where it is present) and those made here; each target runs for
//! `OCIFS_FUZZ_SECONDS` (default 2). The generator starts from a fixed seed, so a run of the same length finds the same;
//! a failing input is written to the temporary directory and its path printed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why on stderr"
)]

#[path = "../support/apple_lz4.rs"]
mod apple_lz4;
#[path = "../support/byte_text.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod byte_text;
#[path = "../support/chunked.rs"]
mod chunked;
#[path = "../support/compare.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod compare;
#[path = "../support/erofs_reader.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod erofs_reader;
#[path = "../support/erofs_trees.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod erofs_trees;
#[path = "../support/qcow2.rs"]
mod qcow2;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/soci.rs"]
mod soci;
#[path = "../support/tar_walk.rs"]
mod tar_walk;
#[path = "../support/zran.rs"]
mod zran;

use random::Random;

use std::net::IpAddr;
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
            for entry in &toc {
                if let ocifs::layer::TocEntryKind::File(content) = &entry.kind {
                    let end = content.offset + content.stored();
                    assert!(end <= bytes.len() as u64, "content outside of the stream");
                }
            }
        }
    });
}

/// The tree of one to three archives has an EROFS image that an independent reader finds right, or a reason for none.
#[test]
fn images_of_hostile_trees_are_right_or_refused() {
    /// Files that are compared byte by byte, in bytes. A header can claim more than a test can hash.
    const HASHED: u64 = 256 << 10;
    /// Addresses that one tree may take, in bytes: more is only computed.
    const READ: u64 = 64 << 20;
    let judged = std::cell::Cell::new(0);
    target("erofs-images", &tar_seeds(), |bytes| {
        // Cut where a block begins: the rest is a layer above.
        let (mut rest, mut builder) = (bytes, ocifs::tree::TreeBuilder::new());
        let last = bytes.first().map_or(0, |byte| u32::from(byte % 3));
        for origin in 0..=last {
            let cut = if origin == last { rest.len() } else { rest.len() / 1024 * 512 };
            let (layer, above) = rest.split_at(cut);
            rest = above;
            let Ok(toc) = tar_walk::whole(layer) else { continue };
            // What was applied before an entry that no rule can place is a tree as well.
            if builder.apply(origin, &toc).is_err() {
                break;
            }
        }
        let Ok(made) = erofs_trees::Made::of_any(builder.freeze()) else { return };
        use erofs_reader::ImageBytes as _;
        if made.len() > READ {
            return;
        }
        let mut read = erofs_reader::read_image_within(&made, HASHED).unwrap();
        let mut expected = made.expected_within(HASHED);
        // Whether the kernel takes an access control list is decided, and tested, beside the writer.
        let plain = |tree: &mut compare::Tree| {
            tree.values_mut().for_each(|entry| entry.xattrs.retain(|name, _| !name.starts_with(b"system.")));
        };
        plain(&mut read);
        plain(&mut expected);
        let found = compare::differences(&expected, &read);
        assert!(found.is_empty(), "{found:?}");
        judged.set(judged.get() + usize::from(read.len() > 1));
    });
    assert!(judged.get() > 0, "no input made a tree");
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
        "docker-archive:/a/b.tar:h:1/a/b:v1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
        "https://h:8443/a.tar?b=c#@1".into(),
    ]
    .map(String::into_bytes);
    target("documents", &seeds, |bytes| {
        if let Ok(ocifs::oci::ManifestDocument::Manifest(manifest)) =
            ocifs::oci::ManifestDocument::parse(bytes, None)
        {
            for config in [None, Some(bytes)] {
                let contents = ocifs::artifact::contents(&manifest, config);
                assert!(contents.files.iter().all(
                    |file| !file.path.starts_with('/') && !file.path.split('/').any(|part| part == "..")
                ));
            }
            let detection = ocifs::disk::detect(&manifest, ocifs::disk::PartOrder::Epoch);
            let info = ocifs::disk::info_padded(&manifest, &detection, &[]);
            assert_eq!(info.len() as u64, ocifs::disk::info_size(&manifest, &detection));
        }
        ocifs::oci::ImageConfig::parse(bytes).ok();
        let text = String::from_utf8_lossy(bytes);
        if let Ok(reference) = text.parse::<ocifs::oci::Reference>() {
            // Written out it is no short name any more, and the same.
            let again = reference.to_string().parse::<ocifs::oci::Reference>().unwrap();
            assert_eq!(again.short_name(), None, "{text}");
            assert_eq!(again.to_string(), reference.to_string(), "{text}");
        }
        text.parse::<ocifs::source::ImageLocation>().ok();
    });
}

/// Whatever an archive of images holds, it is opened or refused, and what it lists lies inside of it.
#[test]
fn archives_of_images_end_on_any_input() {
    use ocifs::source::ImageLocation;
    let layer = ustar(&[("f", b"content")]);
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, ocifs::oci::Digest::sha256(&layer));
    let list = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]"#;
    let saved = ustar(&[("l/layer.tar", &layer), ("c.json", config.as_bytes()), ("manifest.json", list)]);
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#;
    let digest = ocifs::oci::Digest::sha256(manifest);
    let index = format!(r#"{{"manifests":[{{"digest":"{digest}","size":{}}}]}}"#, manifest.len());
    let name = format!("blobs/sha256/{}", digest.encoded());
    let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let layout = ustar(&[(&name, manifest), ("index.json", index.as_bytes()), ("oci-layout", marker)]);
    let packed = zstd::encode_all(&saved[..], 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let cache = ocifs::cache::BlockCache::open(&dir.path().join("cache")).unwrap();
    let registry = ocifs::registry::RegistryClient::new(ocifs::registry::RegistryOptions::default()).unwrap();
    let location: ImageLocation = path.display().to_string().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let source = ocifs::archive_source::open(&location, &registry, &cache);
        runtime.block_on(async {
            let root = source.root().await.map_err(|error| error.to_string())?;
            let parsed = ocifs::oci::ManifestDocument::parse(&root.bytes, root.content_type.as_deref());
            let Ok(ocifs::oci::ManifestDocument::Manifest(manifest)) = parsed else { return Ok(0) };
            for blob in manifest.blobs().filter(|blob| blob.size <= 1 << 20) {
                ocifs::io::read_all(&ocifs::io::FetchAll(source.blob(blob))).await.ok();
            }
            Ok::<_, String>(manifest.layers.len())
        })
    };
    assert_eq!((open(&saved), open(&layout), open(&packed)), (Ok(1), Ok(0), Ok(1)));
    target("archives", &[saved, layout, packed], |bytes| {
        open(bytes).ok();
    });
}

/// An archive of these files.
fn ustar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Whatever a manifest claims of disks, detection ends, and what it finds keeps its promises.
#[test]
fn detection_of_disks_never_panics() {
    use ocifs::disk::{DiskBody, DiskPacking, PartOrder};
    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let layer = |kind: &str, notes: &str| {
        format!(r#"{{"mediaType":"{kind}","digest":"{SHA}","size":7,"annotations":{{{notes}}}}}"#)
    };
    let titled =
        |kind: &str, title: &str| layer(kind, &format!(r#""org.opencontainers.image.title":"{title}""#));
    let tart = format!(
        r#""org.cirruslabs.tart.uncompressed-size":"512","org.cirruslabs.tart.uncompressed-content-digest":"{SHA}""#
    );
    let seeds = [
        vec![titled("a/b", "d.img.01.gz"), titled("a/b", "d.img.00.gz"), titled("a/b", "d.img.gz.00")],
        vec![titled("application/x-qemu-qcow2+zstd", "x.qcow2.zst"), titled("a/b", "x.qcow2.part0")],
        vec![titled("application/vnd.cocoonstack.disk.qcow2.part", "w.qcow2.00.qcow2.part")],
        vec![layer("application/vnd.cirruslabs.tart.disk.v2", &tart); 2],
        vec![layer("application/vnd.cirruslabs.vetu.disk.v1", r#""org.cirruslabs.vetu.name":"root.img""#)],
        vec![layer("application/vnd.trycua.lume.disk.v1", r#""org.trycua.lume.part.number":"0","org.trycua.lume.part.offset":"0","org.trycua.lume.content.uncompressed-size":"9""#)],
        vec![layer("application/octet-stream+lzfse;part.number=1;part.total=1", "")],
        vec![layer("application/online.jarosik.tomasz.geranos.segment", r#""filename":"d.img","range":"0-9""#)],
        vec![layer("application/vnd.vmlab.template.chunk.v1+zstd", r#""vnd.vmlab.template.chunk.index":"0","vnd.vmlab.template.chunk.uncompressed.size":"9""#)],
        vec![layer("application/vnd.kubevirt.disk.raw+zstd", r#""io.kubevirt.disk.name":"root""#)],
        vec![titled("application/vnd.nosi.disk-image.layer.v1+gzip", "n.img.gz")],
    ]
    .map(|layers| format!(r#"{{"schemaVersion":2,"annotations":{{"disktype":"qemu"}},"layers":[{}]}}"#, layers.join(",")))
    .map(String::into_bytes);
    target("disks", &seeds, |bytes| {
        let Ok(ocifs::oci::ManifestDocument::Manifest(manifest)) =
            ocifs::oci::ManifestDocument::parse(bytes, None)
        else {
            return;
        };
        for order in [PartOrder::Epoch, PartOrder::Natural, PartOrder::Manifest] {
            let found = ocifs::disk::detect(&manifest, order);
            let raw = found.raw_names().into_iter().flatten();
            let names: Vec<String> = found.disks.iter().map(|disk| disk.name.clone()).chain(raw).collect();
            let unique: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(unique.len(), names.len(), "{names:?}");
            assert!(
                names.iter().all(|name| name.len() <= 255 && !name.contains('/') && !name.starts_with('.'))
            );
            for disk in &found.disks {
                let DiskBody::Parts(parts) = &disk.body else { panic!("no manifest has members") };
                assert!(!parts.is_empty() && parts.iter().all(|part| part.layer < manifest.layers.len()));
                let sizes: Option<Vec<u64>> = parts.iter().map(|part| part.size).collect();
                assert_eq!(disk.size, sizes.map(|sizes| sizes.iter().sum()));
                assert!(disk.size.is_none_or(|size| size <= i64::MAX as u64));
                for part in parts.iter().filter(|part| part.packing == DiskPacking::Stored) {
                    assert_eq!(part.size, Some(manifest.layers[part.layer].size));
                }
            }
            let info = ocifs::disk::info_padded(&manifest, &found, &[]);
            assert_eq!(info.len() as u64, ocifs::disk::info_size(&manifest, &found));
        }
    });
    let archives = tar_seeds();
    target("container disks", &archives, |bytes| {
        let members = ocifs::disk::container_disks(bytes);
        for member in &members.shown {
            assert!(
                member.path.strip_prefix("disk/").is_some_and(|name| !name.is_empty() && !name.contains('/'))
            );
        }
        ocifs::disk::member_disks(&members);
    });
}

/// A decoder gives what the original was, or an error; never more than its output may be, and never without end.
#[test]
fn decoders_end_on_any_input() {
    use ocifs::layer::{StreamEncoding, UnitDecoder};
    use std::io::Write as _;
    let plain = b"some text that compresses ".repeat(40);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let (gzip, zstd) = (gzip.finish().unwrap(), zstd::bulk::compress(&plain, 1).unwrap());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    let (xz, bzip2) = (xz.finish().unwrap(), bzip2.finish().unwrap());
    let apple = apple_lz4::write(&plain, 300);
    // One frame of one independent block, with the checksum of its header.
    let packed = lz4_flex::block::compress(&plain);
    let sum = (twox_hash::XxHash32::oneshot(0, &[0x60, 0x40]) >> 8) as u8;
    let mut lz4 = [&0x184D_2204u32.to_le_bytes()[..], &[0x60, 0x40, sum]].concat();
    lz4.extend((packed.len() as u32).to_le_bytes());
    lz4.extend(packed);
    lz4.extend([0; 4]);
    let one = [gzip, zstd, xz, bzip2, lz4, apple];
    let two = one.iter().map(|seed| seed.repeat(2));
    let seeds: Vec<Vec<u8>> = one.iter().cloned().chain(two).collect();
    for seed in &seeds {
        assert!(
            matches!(ocifs::layer::sniff(seed), ocifs::layer::SniffResult::Stream(_)),
            "a seed is no stream"
        );
    }
    target("decoders", &seeds, |bytes| {
        let all = [
            StreamEncoding::Gzip,
            StreamEncoding::Zstd,
            StreamEncoding::Xz,
            StreamEncoding::Bzip2,
            StreamEncoding::Lz4,
        ];
        for encoding in all.into_iter().chain([StreamEncoding::AppleLz4]) {
            let Ok(Some(mut decoder)) = UnitDecoder::new(encoding, 0) else { continue };
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

/// Decoding from a checkpoint ends, whatever its bits, its window and the stored bytes are, and gives no more than they hold.
#[test]
fn resumed_decoders_end_on_any_input() {
    use ocifs::io::ByteRange;
    use ocifs::layer::{
        LayerPiece, PackedWindow, ResumePoint, StopPolicy, StreamEncoding, UnitDecoder, WindowLimits,
    };
    let mut seeds = Vec::new();
    let plain = text(60_000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, &plain).unwrap();
    let stored = encoder.finish().unwrap();
    let mut decoder = UnitDecoder::new(StreamEncoding::Gzip, 0).unwrap().unwrap();
    let (mut at, mut out) = (0, vec![0; 1 << 16]);
    while seeds.len() < 6 {
        let step = decoder.step_to(&stored[at..], &mut out, StopPolicy::Blocks).unwrap();
        at += step.consumed;
        if let Some((bits, byte)) = decoder.at_block() {
            let mut seed = vec![bits];
            let window = PackedWindow::pack(&decoder.window().unwrap());
            let packed = postcard::to_stdvec(&window).unwrap();
            seed.extend((packed.len() as u16).to_le_bytes());
            seed.extend(packed);
            seed.extend((bits > 0).then_some(byte));
            seed.extend(&stored[at..stored.len().min(at + 4000)]);
            seeds.push(seed);
        }
        if step.consumed + step.produced == 0 {
            break;
        }
    }
    assert!(seeds.len() > 1, "{} blocks", seeds.len());
    target("resumed", &seeds, |bytes| {
        let [bits, low, high, rest @ ..] = bytes else { return };
        let (packed, stored) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        let Ok(window) = postcard::from_bytes::<PackedWindow>(packed) else { return };
        let piece = LayerPiece {
            stored: ByteRange::at(0, stored.len() as u64),
            stream: ByteRange::at(0, 1 << 20),
            resume: ResumePoint::Block { bits: *bits, window },
        };
        let inner = LayerPiece { resume: ResumePoint::Inner { shape: *bits }, ..piece.clone() };
        for encoding in [StreamEncoding::Xz, StreamEncoding::Lz4] {
            let Ok(Some(mut decoder)) = UnitDecoder::resume(WindowLimits::Large, encoding, &inner) else {
                continue;
            };
            let (mut rest, mut out) = (stored, [0; 4096]);
            while let Ok(step) = decoder.step(rest, &mut out) {
                rest = &rest[step.consumed..];
                if step.consumed + step.produced == 0 {
                    break;
                }
            }
        }
        for encoding in [StreamEncoding::Gzip, StreamEncoding::Zstd] {
            let Ok(Some(mut decoder)) = UnitDecoder::resume(WindowLimits::Large, encoding, &piece) else {
                continue;
            };
            let (mut rest, mut out, mut produced) = (stored, [0; 4096], 0);
            while let Ok(step) = decoder.step_to(rest, &mut out, StopPolicy::Blocks) {
                rest = &rest[step.consumed..];
                produced += step.produced;
                if step.consumed + step.produced == 0 {
                    break;
                }
                assert!(produced <= 1032 * stored.len() + 4096, "more output than deflate can give");
            }
            assert_eq!(decoder.offset() as usize, stored.len() - rest.len());
        }
    });
}

/// A pass over anything ends with an index that is kept and comes back the same, or with an error.
#[test]
fn passes_over_any_gzip_end() {
    use ocifs::io::{FetchAll, MemoryReader, SharedReader, read_vec};
    use ocifs::layer::{LayerIndex, build_index, decoded};
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let body = [text(1_400_000), vec![0; 1_000_000]].concat();
    header.set_size(body.len() as u64);
    tar.append_data(&mut header, "body", &body[..]).unwrap();
    let plain = tar.into_inner().unwrap();
    let seeds: Vec<Vec<u8>> = [1, 9]
        .iter()
        .map(|&level| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
            std::io::Write::write_all(&mut encoder, &plain).unwrap();
            encoder.finish().unwrap()
        })
        .collect();
    target("passes", &seeds, |bytes| {
        let blob: SharedReader = std::sync::Arc::new(MemoryReader::new(bytes.to_vec()));
        let Ok(index) = runtime.block_on(build_index(blob.clone())) else { return };
        let kept = LayerIndex::from_bytes(&index.to_bytes().unwrap(), bytes.len() as u64);
        assert_eq!(kept.as_ref(), Some(&index));
        let size = index.spans.stream_size();
        let stream = FetchAll(decoded(blob, &index));
        let last = ocifs::io::ByteRange::new(size.saturating_sub(10), size);
        assert_eq!(runtime.block_on(read_vec(&stream, last)).unwrap().len() as u64, last.len());
    });
}

/// A damaged kept index is absent, never wrong and never a panic.
#[test]
fn kept_indexes_and_disk_heads_never_panic() {
    let toc = tar_walk::whole(&tar_seeds()[0]).unwrap();
    let spans = ocifs::layer::SpanMap::identity(1 << 20);
    let index = ocifs::layer::LayerIndex { spans, toc, blocks: vec![[7; 32]; 4], prefetch: 0 };
    let mut disk = vec![0; 4096];
    disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    disk[20..32].copy_from_slice(&[0, 0, 0, 16, 0, 0, 0, 0, 0x40, 0, 0, 0]);
    disk[100..104].copy_from_slice(&104u32.to_be_bytes());
    target("indexes", &[index.to_bytes().unwrap(), disk], |bytes| {
        if let Some(found) = ocifs::layer::LayerIndex::from_bytes(bytes, 1 << 20) {
            assert!(found.spans.is_sound());
        }
        for label in [ocifs::disk::DiskFormat::Raw, ocifs::disk::DiskFormat::Qcow2] {
            ocifs::disk::inspect(bytes, bytes.len() as u64, &label);
        }
    });
}

/// Whatever the header and the tables of a qcow2 say, its raw disk is read or is malformed, and a hole is zeros.
#[test]
fn raw_disks_of_any_qcow2_are_read_or_malformed() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seeds = qcow2::KINDS.map(|kind| kind.make().0);
    assert!(seeds.iter().all(|seed| qcow2::raw_in_memory(seed).is_ok()), "seeds have a raw disk");
    target("raw-disks", &seeds, |bytes| runtime.block_on(qcow2::survives(bytes)));
}

/// A damaged zTOC is refused, or what it says of the layer can be true.
#[test]
fn ztocs_never_panic() {
    use std::io::Write as _;
    let plain = &tar_seeds()[0];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain).unwrap();
    gzip.flush().unwrap();
    gzip.write_all(&[0; 1024]).unwrap();
    let gzip = gzip.finish().unwrap();
    let packed = soci::Ztoc::of_gzip(&gzip, 512, zran::Members::All);
    // The first version: without the first checkpoint, and so with none of 32 KiB.
    let first = soci::Ztoc {
        checkpoints: soci::pack(&[], 1, 512),
        digests: packed.digests[..1].to_vec(),
        max_span: 0,
        ..packed.clone()
    };
    let seeds = [packed.write(), first.write(), soci::Ztoc::of_plain(plain, 1000).write()];
    let sizes = [gzip.len() as u64, plain.len() as u64];
    for (seed, size) in seeds.iter().zip([sizes[0], sizes[0], sizes[1]]) {
        ocifs::layer::parse_ztoc(seed, size).unwrap();
    }
    target("ztocs", &seeds, |bytes| {
        for size in sizes {
            let Ok(foreign) = ocifs::layer::parse_ztoc(bytes, size) else { continue };
            let spans = &foreign.index.spans;
            assert!(spans.is_sound() && spans.stored_size() == size);
            for entry in foreign.index.toc.iter() {
                if let ocifs::layer::TocEntryKind::File(content) = &entry.kind {
                    assert!(
                        content.offset + content.stored() <= spans.stream_size(),
                        "content outside of the stream"
                    );
                }
            }
        }
    });
}

/// Whatever a layer that carries an index says, what is made of it is sound, or an error.
#[test]
fn layers_with_indexes_never_panic() {
    use chunked::{Checksums, Estargz, Footer, Writer};
    use ocifs::layer::StreamEncoding;
    let tar = &tar_seeds()[0];
    let estargz = |footer| Estargz { chunk: 512, member: 700, footer, ..Estargz::default() }.make(tar).bytes;
    let seeds = [
        estargz(Footer::Current),
        estargz(Footer::Legacy),
        chunked::zstd_chunked(tar, Writer::Storage, 512).bytes,
        chunked::zstd_chunked(tar, Writer::Stargz, 512).bytes,
        chunked::seekable(tar, 900, Checksums::With),
        chunked::seekable(tar, 900, Checksums::Without),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let check = |bytes: &[u8]| {
        [StreamEncoding::Gzip, StreamEncoding::Zstd]
            .map(|encoding| check_carried(&runtime, encoding, bytes, &chunked::Annotations::new()))
    };
    assert!(seeds.iter().all(|seed| check(seed).contains(&true)), "seeds have an index");
    target("layers-with-indexes", &seeds, |bytes| {
        check(bytes);
    });
}

/// Whatever the document in a layer says, what is made of it is sound, or an error: the damage is inside of the compression.
#[test]
fn documents_of_chunks_never_panic() {
    use chunked::{Footer, Writer};
    use ocifs::layer::StreamEncoding;
    let chunk = |offset: u64, kind: &str| {
        serde_json::json!({ "name": "a", "type": kind, "size": 900, "offset": offset,
        "chunkSize": 300, "chunkOffset": if kind == "reg" { 0 } else { offset }, "innerOffset": 0, "digest":
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" })
    };
    let zeros = serde_json::json!({ "name": "a", "type": "chunk", "chunkOffset": 600, "chunkType": "zeros" });
    let entries = serde_json::json!([
        chunk(20, "reg"), chunk(300, "chunk"), zeros, { "name": "d/", "type": "dir", "mode": 16877, "uid": 5 },
        { "name": "b", "type": "reg", "size": 9, "offset": 310, "endOffset": 400, "modtime": "2020-01-01T00:00:00.5Z" },
        { "name": "c", "type": "reg", "size": 9, "offset": 310, "innerOffset": 10, "xattrs": { "user.a": "AAA=" } },
        { "name": "l", "type": "symlink", "linkName": "b" }, { "name": "n", "type": "char", "devMajor": 1 },
    ]);
    let seeds = [serde_json::json!({ "version": 1, "entries": entries }).to_string().into_bytes()];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let content = vec![0; 5000];
    let check = |json: &[u8]| {
        let gzip = chunked::estargz_with(content.clone(), json, Footer::Current);
        let zstd = chunked::zstd_chunked_with(content.clone(), json, Writer::Storage);
        [(StreamEncoding::Gzip, gzip), (StreamEncoding::Zstd, zstd)]
            .map(|(encoding, made)| check_carried(&runtime, encoding, &made.bytes, &made.annotations))
    };
    assert_eq!(check(&seeds[0]), [true; 2], "the seed is a document");
    target("documents-of-chunks", &seeds, |json| {
        check(json);
    });
}

/// Asks a layer for its index, checks what it says, and says whether there is one.
fn check_carried(
    runtime: &tokio::runtime::Runtime,
    encoding: ocifs::layer::StreamEncoding,
    bytes: &[u8],
    annotations: &chunked::Annotations,
) -> bool {
    use ocifs::layer::{ForeignLimits, LayerDigests, LayerIndex, find_foreign, find_seek_table};
    let (blob, size) = (ocifs::io::MemoryReader::new(bytes.to_vec()), bytes.len() as u64);
    let limits = ForeignLimits { smallest: 0, ..ForeignLimits::default() };
    let found = runtime.block_on(find_foreign(&blob, encoding, annotations, limits));
    if let Ok(Some(found)) = &found {
        let spans = &found.index.spans;
        let kept = LayerIndex::from_bytes(&found.index.to_bytes().unwrap(), size);
        assert_eq!(kept.as_ref(), Some(&found.index), "it is sound, and every file lies inside the stream");
        let all = ocifs::io::ByteRange::new(0, spans.stream_size());
        let (mut stored, mut stream) = (0, 0);
        for piece in spans.cover(all) {
            assert!(piece.stored.start >= stored && piece.stream.start == stream, "no overlap, no gap");
            (stored, stream) = (piece.stored.end, piece.stream.end);
        }
        assert!(stored <= size && stream == spans.stream_size());
        if let LayerDigests::Stream(sums) = spans.sums() {
            assert!(sums.windows(2).all(|pair| pair[0].end <= pair[1].start), "digests of different bytes");
        }
    }
    let spans = runtime.block_on(find_seek_table(&blob, encoding, limits));
    if let Ok(Some(spans)) = &spans {
        assert!(spans.is_sound());
        assert_eq!(spans.stored_size(), size);
    }
    matches!(found, Ok(Some(_))) || matches!(spans, Ok(Some(_)))
}

/// Whatever a 401 says, a token server that it names is one that a password may be told to.
#[test]
fn challenges_never_lead_a_password_astray() {
    let seeds = [
        r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#,
        r#"Bearer realm="http://127.0.0.1:5000/token", Basic realm="x""#,
        r#"basic realm="a \"quoted\" one", charset="UTF-8""#,
        r#"Negotiate abc==, Bearer realm="https://10.0.0.1/t",scope="""#,
        r#"Bearer realm="https://user:pw@[fe80::1]/t",service=s"#,
    ]
    .map(|text| text.as_bytes().to_vec());
    target("challenges", &seeds, |bytes| {
        for registry in ["https://registry.example/v2/", "http://127.0.0.1:5000/v2/"] {
            let Ok(Some(realm)) = ocifs::registry::fuzzing::token_realm(registry, bytes) else { continue };
            let is_local = registry.starts_with("http:") && realm.starts_with("http://");
            assert!(realm.starts_with("https://") || is_local, "{registry} leads to {realm}");
            let authority = realm.split('/').nth(2).unwrap();
            assert!(!authority.contains('@'), "{realm}");
            // What begins like an address may be a name all the same.
            let host = match authority.strip_prefix('[') {
                Some(address) => address.split(']').next().unwrap(),
                None => authority.split(':').next().unwrap(),
            };
            let is_private = match host.parse() {
                Ok(IpAddr::V4(address)) => {
                    address.is_private() || address.is_loopback() || address.is_link_local()
                }
                Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unicast_link_local(),
                Err(_) => host == "localhost",
            };
            assert!(!is_private || registry.contains("127.0.0.1"), "{realm}");
        }
    });
}

/// A Content-Range is read exactly or not at all, and a list of pages leads where it says.
#[test]
fn content_ranges_are_exact_or_nothing() {
    let seeds = [
        "bytes 0-9/100",
        "bytes 18446744073709551614-18446744073709551614/18446744073709551615",
        "bytes */7",
    ]
    .map(|text| text.as_bytes().to_vec());
    target("content-ranges", &seeds, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Some((range, total)) = ocifs::registry::fuzzing::content_range(text) {
            assert!(range.start < range.end && total.is_none_or(|total| range.end <= total));
            let (unit, numbers) = text.trim().split_once(' ').unwrap();
            assert!(unit.eq_ignore_ascii_case("bytes"));
            let read: Vec<Option<u64>> =
                numbers.trim_start().split(['-', '/']).map(|number| number.parse().ok()).collect();
            assert_eq!(read, [Some(range.start), Some(range.end - 1), total]);
        }
    });
}

/// Whatever is written over a cache file's records, what is read is right.
#[test]
fn sidecars_that_are_written_over_never_give_wrong_bytes() {
    use ocifs::cache::BlockCache;
    use std::sync::Arc;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let content = text(600_000);
    let digest = ocifs::oci::Digest::sha256(&content);
    let dir = tempfile::tempdir().unwrap();
    let read = || {
        let cache = BlockCache::open(dir.path()).unwrap();
        let blob = cache.blob(&digest, Arc::new(Whole(content.clone().into()))).unwrap();
        let range = ocifs::io::ByteRange::new(1000, 500_000);
        runtime.block_on(ocifs::io::read_vec(&*blob, range)).unwrap()
    };
    assert!(read() == content[1000..500_000]);
    let map = dir.path().join("v1/blobs/sha256").join(digest.encoded()).with_extension("map");
    let seeds = [std::fs::read(&map).unwrap()];
    assert!(seeds[0].len() > 100, "the file of records is not where it was");
    target("sidecars", &seeds, |bytes| {
        std::fs::write(&map, bytes).unwrap();
        assert!(read() == content[1000..500_000], "wrong bytes");
    });
}

/// A blob in memory, as somebody who can be asked for it.
struct Whole(bytes::Bytes);

impl ocifs::io::RangeFetch for Whole {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn fetch(
        &self,
        range: ocifs::io::ByteRange,
    ) -> ocifs::io::BoxFuture<'_, Result<ocifs::io::RangeDelivery, ocifs::io::ReadError>> {
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        let body = futures_util::stream::once(async move { Ok(bytes) });
        Box::pin(async move { Ok(ocifs::io::RangeDelivery { range, body: Box::pin(body) }) })
    }
}

/// Whatever a signature says, also one that was made with the key, it counts for the digest that it names and no other; and keys
/// are read or refused.
#[test]
fn signatures_are_valid_for_their_named_digest_alone() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ocifs::oci::{BUNDLE, Descriptor, Digest, PublicKey, PublishedSignature, SIGNATURE, SIMPLE_SIGNING};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    // A SubjectPublicKeyInfo of RFC 8410.
    let info = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\0"[..], pair.public_key().as_ref()].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(info));
    let keys = [PublicKey::parse("k", pem.as_bytes()).unwrap()];
    let digest = Digest::sha256(b"{}");
    let payload = serde_json::json!({"critical": {"identity": {"docker-reference": ""}, "optional": null,
        "image": {"docker-manifest-digest": digest.to_string()}, "type": "cosign container image signature"}});
    let statement = serde_json::json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest":
        {"sha256": digest.encoded()}}], "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}});
    let kind = "application/vnd.in-toto+json";
    let sign = |bytes: &[u8]| STANDARD.encode(pair.sign(bytes));
    let enveloped = |statement: &[u8]| {
        let signed =
            [format!("DSSEv1 {} {kind} {} ", kind.len(), statement.len()).as_bytes(), statement].concat();
        serde_json::json!({"mediaType": BUNDLE, "dsseEnvelope": {"payload": STANDARD.encode(statement),
            "payloadType": kind, "signatures": [{"sig": sign(&signed)}]}})
        .to_string()
        .into_bytes()
    };
    let simple = |payload: &[u8]| {
        let mut layer = Descriptor::of(SIMPLE_SIGNING, payload);
        layer.annotations.insert(SIGNATURE.into(), sign(payload));
        PublishedSignature::of_layer(&layer, payload)
    };
    let (payload, statement) = (payload.to_string().into_bytes(), statement.to_string().into_bytes());
    assert_eq!(simple(&payload).unwrap().check(&digest, b"{}", &keys), Ok(0));
    let bundle = enveloped(&statement);
    assert_eq!(PublishedSignature::of_bundle(&bundle).unwrap()[0].check(&digest, b"{}", &keys), Ok(0));
    let kept = PublishedSignature::pack(&PublishedSignature::of_bundle(&bundle).unwrap());
    let by_document =
        serde_json::json!({"mediaType": BUNDLE, "messageSignature": {"signature": sign(b"{}")}});
    let seeds = [payload, statement, bundle, kept, pem.into_bytes(), by_document.to_string().into_bytes()];
    target("signatures", &seeds, |bytes| {
        let named =
            |value: &serde_json::Value, at: &str, text: &str| value.pointer(at).is_some_and(|it| it == text);
        if let Ok(signature) = simple(bytes)
            && signature.check(&digest, b"{}", &keys).is_ok()
        {
            // What nobody looks at may be a number that is too large for a value.
            let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
            assert!(
                named(&document, "/critical/image/docker-manifest-digest", digest.as_str()),
                "{document}"
            );
        }
        for signature in PublishedSignature::of_bundle(&enveloped(bytes)).into_iter().flatten() {
            if signature.check(&digest, b"{}", &keys).is_ok() {
                let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
                assert!(document.to_string().contains(digest.encoded()), "{document}");
            }
        }
        let found = PublishedSignature::of_bundle(bytes)
            .into_iter()
            .flatten()
            .chain(PublishedSignature::unpack(bytes));
        for signature in found.take(64) {
            // What is not signed with the key counts for nothing, whatever it is.
            assert!(signature.check(&Digest::sha256(b"[]"), b"[]", &keys).is_err());
        }
        PublicKey::parse("k", bytes).ok();
    });
}

/// Words that repeat at all distances.
fn text(len: usize) -> Vec<u8> {
    let mut random = Random(7);
    let words = std::iter::repeat_with(|| format!("{:x} ", random.index(4000) * 7919));
    words.flat_map(String::into_bytes).take(len).collect()
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
    let mut seeds = vec![made.into_inner().unwrap(), pax_seed()];
    if let Some(dir) = tar_walk::corpus() {
        let archives = tar_walk::archives(&dir, &["go", "tar-rs", "containerd", "umoci"]);
        seeds.extend(archives.into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes.len() <= 32 << 10));
    }
    seeds
}

/// Records of pax headers: paths, sizes, times, holes and attributes.
fn pax_seed() -> Vec<u8> {
    let mut made = tar::Builder::new(Vec::new());
    let path = "längere/namen/".repeat(20);
    let records: [(&str, &[u8]); 7] = [
        ("path", path.as_bytes()),
        ("size", b"700"),
        ("mtime", b"1234567890.123456789"),
        ("uid", b"70000000"),
        ("SCHILY.xattr.user.note", b"\0binary\n"),
        ("LIBARCHIVE.xattr.user.b", b"YmFzZTY0"),
        ("linkpath", b"a"),
    ];
    made.append_pax_extensions(records).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(700);
    made.append_data(&mut header, "short", &*vec![1; 700]).unwrap();
    made.append_pax_extensions([
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", b"100000"),
    ])
    .unwrap();
    let mut body = b"2\n0\n100\n99900\n100\n".to_vec();
    body.resize(512, 0);
    body.resize(712, 7);
    header.set_size(712);
    made.append_data(&mut header, "GNUSparseFile.0/s", &*body).unwrap();
    made.into_inner().unwrap()
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
    for _ in 0..=random.index(6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.index(bytes.len());
        match random.index(8) {
            0 => bytes[at] ^= 1 << random.index(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => bytes[at] = *random.pick(TELLING),
            4 => bytes.truncate(at),
            5 => {
                let len = random.index(600).min(bytes.len() - at);
                let piece = bytes[at..at + len].to_vec();
                let to = random.index(bytes.len());
                bytes.splice(to..to, piece);
            }
            6 => {
                // Whole blocks of another seed: most formats here are made of blocks of 512 bytes.
                let other = random.pick(seeds);
                let from = random.index(other.len() / 512 + 1) * 512;
                let to = (from + 512 * (1 + random.index(4))).min(other.len());
                let at = at / 512 * 512;
                bytes.splice(at..at, other[from.min(to)..to].iter().copied());
            }
            _ => {
                let len = random.index(600).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
        }
    }
    // Most damage should get past the checksum, which is not what holds an attacker back.
    if random.index(4) > 0 {
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
