//! Foreign indexes of layers: they equal the layer's own archive byte for byte, and a false one is found before a
//! wrong byte is served.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why it is skipped"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use ocifs::io::{
    BoxFuture, ByteRange, FaultClass, FetchAll, MemoryReader, RangeDelivery, RangeFetch, ReadError,
};
use ocifs::layer::{
    FileContent, FindError, ForeignError, ForeignIndex, ForeignLimits, IndexKind, LayerDigests, LayerIndex,
    ResumePoint, SpanMap, StreamEncoding, TableOfContents, TarLimits, TarWalker, TocEntryKind, find_foreign,
    find_seek_table, is_marker,
};
use ocifs::oci::Digest;
use serde_json::{Value, json};

use crate::chunked::{self, Annotations, Checksums, Estargz, Footer, Made, Writer};
use crate::encode;
use crate::layout;
use crate::observed_reader::ObservedReader;
use crate::random::Random;

/// Limits that search small layers too.
const LIMITS: fn() -> ForeignLimits = || ForeignLimits { smallest: 0, ..ForeignLimits::default() };

#[test]
fn estargz_index_equals_its_archive() {
    let tar = sample(Some(".prefetch.landmark"));
    for chunk in [4 << 20, 3000, 512] {
        for member in [0, 2000, 100_000] {
            for footer in [Footer::Current, Footer::Legacy] {
                let made = Estargz { chunk, member, footer, ..Estargz::default() }.make(&tar);
                let found = find(&made, StreamEncoding::Gzip).unwrap().unwrap();
                assert_eq!((found.kind, found.is_bound), (IndexKind::Estargz, true));
                assert_eq!(found.warnings, Vec::<String>::new());
                compare(&found.index, &made.bytes, &archive(StreamEncoding::Gzip, &made.bytes));
                assert!(found.index.spans.is_made_up());
            }
        }
    }
}

#[test]
fn zstd_chunked_index_equals_its_archive() {
    let tar = sample(None);
    for writer in [Writer::Storage, Writer::Stargz] {
        for chunk in [4 << 20, 4096, 1024] {
            let made = chunked::zstd_chunked(&tar, writer, chunk);
            assert_eq!(
                archive(StreamEncoding::Zstd, &made.bytes),
                tar,
                "{writer:?}: the frames are the archive"
            );
            let by_annotations = find(&made, StreamEncoding::Zstd).unwrap().unwrap();
            assert_eq!((by_annotations.kind, by_annotations.is_bound), (IndexKind::ZstdChunked, true));
            assert_eq!(by_annotations.warnings, Vec::<String>::new());
            compare(&by_annotations.index, &made.bytes, &tar);
            let by_footer =
                find(&Made { annotations: Annotations::new(), ..made.clone() }, StreamEncoding::Zstd);
            let by_footer = by_footer.unwrap().unwrap();
            assert!(!by_footer.is_bound);
            assert_eq!(by_footer.warnings.len(), 1, "{:?}", by_footer.warnings);
            assert_eq!((by_footer.index, by_footer.id), (by_annotations.index, by_annotations.id));
        }
    }
}

/// `skopeo` writes zstd:chunked with the code of containers/storage.
#[test]
fn zstd_chunked_index_of_the_real_tool_equals_its_archive() {
    let tar = plain_sample();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut plain = layout::Layout::create(&from);
    plain.image("a", &[layout::Layer::of(&tar, encode::Encoding::Plain)]);
    let output = std::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd:chunked"])
        .args(["--dest-compress", &plain.reference("a"), &format!("oci:{}:a", to.display())])
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "no skopeo: {error}");
            eprintln!("skipped: no skopeo: {error}");
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json =
        |path: &std::path::Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| layout::blob_path(&to, digest.as_str().unwrap());
    let manifest = json(&blob(&json(&to.join("index.json"))["manifests"][0]["digest"]));
    let layer = &manifest["layers"][0];
    let Ok(annotations) = serde_json::from_value::<Annotations>(layer["annotations"].clone()) else {
        eprintln!("skipped: this skopeo does not write zstd:chunked: {layer}");
        return;
    };
    let made = Made { bytes: std::fs::read(blob(&layer["digest"])).unwrap(), annotations };
    assert_eq!(archive(StreamEncoding::Zstd, &made.bytes), tar, "the tool keeps the archive");
    let found = find(&made, StreamEncoding::Zstd).unwrap().unwrap();
    assert_eq!((found.kind, found.is_bound, found.warnings), (IndexKind::ZstdChunked, true, vec![]));
    compare(&found.index, &made.bytes, &tar);
    assert!(content(&found.index.toc, "holes").runs.is_some(), "the tool marks long zeros");
    assert!(found.index.spans.spans() > found.index.toc.len() / 2, "the tool makes chunks");
    let by_footer = find(&Made { annotations: Annotations::new(), ..made }, StreamEncoding::Zstd);
    assert_eq!(by_footer.unwrap().unwrap().index, found.index);
}

#[test]
fn long_zeros_of_zstd_chunked_are_holes() {
    let tar = sample(None);
    let made = chunked::zstd_chunked(&tar, Writer::Storage, 4096);
    let index = find(&made, StreamEncoding::Zstd).unwrap().unwrap().index;
    let content = content(&index.toc, "holes");
    assert_eq!(content.size, 30_000);
    let runs: Vec<(u64, u64)> =
        content.runs.as_ref().unwrap().iter().map(|run| (run.offset, run.len)).collect();
    assert_eq!(runs, [(0, 4096), (28_672, 1328)]);
}

#[test]
fn every_chunk_has_a_digest_that_its_bytes_have() {
    let tar = sample(None);
    for (encoding, made) in [
        (StreamEncoding::Gzip, Estargz { chunk: 1000, member: 5000, ..Estargz::default() }.make(&tar)),
        (StreamEncoding::Zstd, chunked::zstd_chunked(&tar, Writer::Storage, 4096)),
        (StreamEncoding::Zstd, chunked::zstd_chunked(&tar, Writer::Stargz, 4096)),
    ] {
        let index = find(&made, encoding).unwrap().unwrap().index;
        let LayerDigests::Stream(sums) = index.spans.sums() else { panic!("{:?}", index.spans.sums()) };
        assert!(sums.windows(2).all(|pair| pair[0].end <= pair[1].start));
        for sum in sums {
            let bytes = read(&index.spans, &made.bytes, ByteRange::new(sum.start, sum.end));
            let hex: String = sum.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(Digest::sha256(&bytes).encoded(), hex);
            assert_eq!(
                index.spans.cover(ByteRange::new(sum.start, sum.end)).len(),
                1,
                "a sum is within a chunk"
            );
        }
        let covered: u64 = sums.iter().map(|sum| sum.end - sum.start).sum();
        let wanted: u64 = index.toc.iter().map(stored).sum();
        assert_eq!(covered, wanted, "every byte of every file has one");
    }
}

#[test]
fn landmarks_are_hidden_and_mark_prefetched_files() {
    let marked = Estargz::default().make(&sample(Some(".prefetch.landmark")));
    let index = find(&marked, StreamEncoding::Gzip).unwrap().unwrap().index;
    assert!(index.toc.iter().all(|entry| !is_marker(entry.path)));
    let first = content(&index.toc, "dir/first");
    assert_eq!(index.prefetch, first.offset + first.size, "what is in front of the landmark, and only that");
    for other in [Some(".no.prefetch.landmark"), None] {
        let made = Estargz::default().make(&sample(other));
        let index = find(&made, StreamEncoding::Gzip).unwrap().unwrap().index;
        assert_eq!(index.prefetch, 0);
        assert!(index.toc.iter().all(|entry| !is_marker(entry.path)));
    }
    assert!(is_marker(b"stargz.index.json") && is_marker(b"./.prefetch.landmark"));
    assert!(!is_marker(b"dir/.prefetch.landmark"), "a landmark is at the root");
}

#[test]
fn a_seek_table_gives_the_spans() {
    let stream: Vec<u8> = (0..3_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for checksums in [Checksums::With, Checksums::Without] {
        for frame in [100_000, 256 << 10, 1 << 20] {
            let stored = chunked::seekable(&stream, frame, checksums);
            let spans =
                run(find_seek_table(&MemoryReader::new(stored.clone()), StreamEncoding::Zstd, LIMITS()))
                    .unwrap();
            let spans = spans.unwrap();
            assert!(spans.is_sound() && !spans.is_made_up());
            assert_eq!(spans.stream_size(), stream.len() as u64);
            let joined = frame * (256usize << 10).div_ceil(frame);
            assert_eq!(spans.spans(), stream.len().div_ceil(joined), "small frames are joined");
            for start in (0..stream.len()).step_by(77_777) {
                let end = (start + 100_001).min(stream.len());
                let range = ByteRange::new(start as u64, end as u64);
                assert!(read(&spans, &stored, range) == stream[start..end], "{range}");
            }
        }
    }
}

#[test]
fn a_seek_table_that_does_not_add_up_is_broken() {
    let stream = vec![7; 1_000_000];
    let good = chunked::seekable(&stream, 300_000, Checksums::Without);
    let table = good.len() - (8 + 4 * 8 + 9);
    let ask = |bytes: Vec<u8>, limits| {
        run(find_seek_table(&MemoryReader::new(bytes), StreamEncoding::Zstd, limits))
    };
    let damaged = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        ask(bytes, LIMITS())
    };
    for (at, byte) in [(table, 1), (table + 4, 1), (table + 8, 1), (good.len() - 9, 1), (good.len() - 5, 4)] {
        let found = damaged(at, byte);
        assert!(matches!(found, Err(FindError::Index(ForeignError::Broken { .. }))), "{at}: {found:?}");
    }
    // A frame that claims to decode to 4 GiB, and so the layer to more than a layer may.
    let mut bomb = good.clone();
    bomb[table + 12..table + 16].fill(0xff);
    assert!(matches!(ask(bomb, LIMITS()), Err(FindError::Index(ForeignError::Broken { .. }))));
    assert_eq!(damaged(good.len() - 1, 1).unwrap(), None, "no magic number, no table");
    // A table that is longer than the layer.
    let cut = good[good.len() - 20..].to_vec();
    assert!(ask(cut, LIMITS()).is_err());
    let limits = ForeignLimits { entries: 4, ..LIMITS() };
    assert!(ask(good.clone(), limits).unwrap().is_some());
    let limits = ForeignLimits { entries: 3, ..LIMITS() };
    assert!(matches!(ask(good, limits), Err(FindError::Index(ForeignError::TooLarge { limit: 3, .. }))));
}

#[test]
fn layers_without_an_index_have_none() {
    let tar = sample(None);
    for (encoding, bytes) in [
        (StreamEncoding::Plain, tar.clone()),
        (StreamEncoding::Gzip, chunked::gzip(&tar)),
        (StreamEncoding::Zstd, chunked::zstd(&tar)),
        (StreamEncoding::Gzip, Vec::new()),
        (StreamEncoding::Zstd, vec![1]),
    ] {
        let made = Made { bytes, annotations: Annotations::new() };
        assert!(find(&made, encoding).unwrap().is_none());
        let spans = run(find_seek_table(&MemoryReader::new(made.bytes), encoding, LIMITS()));
        assert_eq!(spans.unwrap(), None);
    }
}

#[test]
fn a_digest_of_more_than_can_be_compared_makes_an_index_useless() {
    let large = 64 << 20;
    for (len, digest, fits) in [(large, true, true), (large + 1, true, false), (large + 1, false, true)] {
        let mut file = json!({"name": "f", "type": "reg", "size": len, "offset": 100});
        if digest {
            file["digest"] = json!(Digest::sha256(b"").as_str());
        }
        let toc = json!({"version": 1, "entries": [file]}).to_string();
        let made = chunked::estargz_with(vec![0; 100_000], toc.as_bytes(), Footer::Current);
        let found = find(&made, StreamEncoding::Gzip);
        assert_eq!(found.is_ok(), fits, "{len} {digest}: {found:?}");
        if let Err(error) = found {
            assert!(error.to_string().contains("over the limit of 67108864"), "{error}");
        }
    }
}

#[test]
fn a_promised_index_that_is_not_there_is_broken() {
    let tar = sample(None);
    let digest = Digest::sha256(b"").to_string();
    for (encoding, bytes, key) in [
        (StreamEncoding::Gzip, chunked::gzip(&tar), "containerd.io/snapshot/stargz/toc.digest"),
        (StreamEncoding::Zstd, chunked::zstd(&tar), "io.containers.zstd-chunked.manifest-checksum"),
    ] {
        let annotations = [(key.to_owned(), digest.clone())].into();
        let error = find(&Made { bytes, annotations }, encoding).unwrap_err();
        assert!(matches!(error, FindError::Index(ForeignError::Broken { .. })), "{error}");
    }
}

#[test]
fn the_digest_in_the_manifest_decides() {
    let tar = sample(None);
    let other = Digest::sha256(b"another").to_string();
    for (encoding, made) in [
        (StreamEncoding::Gzip, Estargz::default().make(&tar)),
        (StreamEncoding::Zstd, chunked::zstd_chunked(&tar, Writer::Storage, 4096)),
        (StreamEncoding::Zstd, chunked::zstd_chunked(&tar, Writer::Stargz, 4096)),
    ] {
        let mut wrong = made.clone();
        for (key, value) in &mut wrong.annotations {
            if key.ends_with("digest") || key.ends_with("checksum") {
                value.clone_from(&other);
            }
        }
        let error = find(&wrong, encoding).unwrap_err();
        assert!(matches!(error, FindError::Index(ForeignError::Digest { .. })), "{error}");
        let mut nonsense = made.clone();
        for value in nonsense.annotations.values_mut() {
            *value = "sha256:nonsense".into();
        }
        assert!(matches!(find(&nonsense, encoding), Err(FindError::Index(ForeignError::Broken { .. }))));
        // The digest of eStargz binds the document of a zstd layer too.
        let key = "containerd.io/snapshot/stargz/toc.digest".to_owned();
        let both = Made { annotations: [(key, other.clone())].into(), ..made };
        let error = find(&both, encoding).unwrap_err();
        assert!(matches!(error, FindError::Index(ForeignError::Digest { .. })), "{error}");
    }
}

#[test]
fn an_entry_whose_place_or_size_cannot_be_is_refused() {
    are_refused(&[
        ("negative", change("dir/first", "offset", json!(-1))),
        ("missing", change("dir/first", "offset", json!(0))),
        ("outside", change("dir/first", "offset", json!(1u64 << 40))),
        ("not a number", change("dir/first", "offset", json!("x"))),
        ("past i64", change("dir/first", "offset", json!(u64::MAX))),
        ("far inside", change("large", "innerOffset", json!(i64::MAX))),
        ("negative size", change("large", "size", json!(-1))),
        ("size over the chunks", change("large", "size", json!(1u64 << 50))),
        ("size below the chunks", change("large", "size", json!(10))),
        ("negative chunk", change("large", "chunkSize", json!(-7))),
        ("first chunk not first", change("large", "chunkOffset", json!(1))),
    ]);
}

#[test]
fn an_entry_with_a_field_out_of_bounds_is_refused() {
    are_refused(&[
        ("unknown type", change("dir/first", "type", json!("door"))),
        ("unknown chunk type", change("dir/first", "chunkType", json!("ones"))),
        ("bad digest", change("dir/first", "chunkDigest", json!("sha256:00"))),
        ("bad time", change("dir/first", "modtime", json!("yesterday"))),
        ("owner below i32", change("dir/first", "uid", json!(-(1i64 << 31) - 1))),
        ("owner past u32", change("dir/first", "gid", json!(1u64 << 32))),
        ("bad attribute", change("dir/first", "xattrs", json!({ "user.a": "?" }))),
        ("nameless attribute", change("dir/first", "xattrs", json!({ "": "" }))),
        ("lost bytes", change("dir/first", "name", json!("a\u{fffd}"))),
        ("nul", change("dir/first", "name", json!("a\0b"))),
        ("link to nothing", change("link", "linkName", json!(""))),
        ("device", change("char", "devMinor", json!(-1))),
    ]);
}

#[test]
fn negative_owner_of_an_entry_is_that_of_an_archive() {
    let tar = sample(None);
    for (written, owner) in [(-1i64, 0), (-2, u32::MAX - 1), (i64::from(u32::MAX), 0), (65_534, 65_534)] {
        for (encoding, writer) in FORMS {
            let made = remade(&tar, writer, |document| {
                let entries = document["entries"].as_array_mut().unwrap();
                let entry = entries.iter_mut().find(|entry| entry["name"] == "dir/first").unwrap();
                (entry["uid"], entry["gid"]) = (json!(written), json!(written));
            });
            let index = find(&made, encoding).unwrap().unwrap().index;
            let entry = index.toc.iter().find(|entry| entry.path == b"dir/first").unwrap().to_entry();
            assert_eq!((entry.uid, entry.gid), (owner, owner), "{written}");
        }
    }
}

#[test]
fn chunks_that_do_not_make_up_their_file_are_refused() {
    are_refused(&[
        ("of no file", Box::new(|entries| entries.insert(0, json!({ "type": "chunk", "offset": 5 })))),
        (
            "twice",
            Box::new(|entries| {
                let at = first_chunk(entries);
                entries.insert(at, entries[at].clone());
            }),
        ),
        (
            "not in order",
            Box::new(|entries| {
                let at = first_chunk(entries);
                entries.swap(at, at + 1);
            }),
        ),
        (
            "missing",
            Box::new(|entries| {
                let at = first_chunk(entries);
                entries.remove(at);
            }),
        ),
        (
            "of another file",
            Box::new(|entries| {
                let at = first_chunk(entries);
                entries[at]["name"] = json!("dir/first");
            }),
        ),
        (
            "stored apart",
            Box::new(|entries| {
                let at = first_chunk(entries);
                let (a, b) = (entries[at]["offset"].clone(), entries[at + 1]["offset"].clone());
                (entries[at]["offset"], entries[at + 1]["offset"]) = (b, a);
            }),
        ),
    ]);
}

#[test]
fn contents_that_overlap_are_refused() {
    are_refused(&[
        ("all", Box::new(|entries| entries.push(renamed(entries, "dir/first", "again")))),
        (
            "a byte",
            Box::new(|entries| {
                let mut again = renamed(entries, "dir/first", "again");
                again["innerOffset"] = json!(699);
                entries.push(again);
            }),
        ),
    ]);
}

/// Only zstd:chunked names the end of a content.
#[test]
fn an_end_of_a_content_that_cannot_be_is_refused() {
    let tar = sample(None);
    for (encoding, writer) in FORMS {
        for (what, end) in [("no bytes", 1u64), ("past the end", 1 << 40)] {
            let change = change("dir/first", "endOffset", json!(end));
            let made = remade(&tar, writer, |document| change(document["entries"].as_array_mut().unwrap()));
            assert!(find(&made, encoding).is_err(), "{what}");
        }
    }
}

#[test]
fn a_document_of_another_form_is_refused() {
    for json in [
        &b""[..],
        b"{}",
        b"[]",
        b"null",
        br#"{"version":1}"#,
        br#"{"version":2,"entries":[]}"#,
        br#"{"entries":[]}"#,
        br#"{"version":1,"entries":{}}"#,
        br#"{"version":1,"entries":[1]}"#,
        br#"{"version":1,"entries":[],"entries":[]}"#,
        br#"{"version":1,"entries":[]} x"#,
        br#"{"version":1,"entries":["#,
        br#"{"version":1,"entries":[{"name":"a","name":"b","type":"dir"}]}"#,
        &[b"[".repeat(100_000), b"]".repeat(100_000)].concat(),
    ] {
        for made in both(json) {
            let error = find(&made.1, made.0).map(|found| found.is_some()).unwrap_err();
            let shown = String::from_utf8_lossy(&json[..json.len().min(80)]);
            assert!(matches!(error, FindError::Index(ForeignError::Broken { .. })), "{shown}: {error}");
        }
    }
    for json in [&br#"{"version":1,"entries":null}"#[..], br#"{"new":{"a":[1]},"entries":[],"version":1}"#] {
        for (encoding, made) in both(json) {
            assert!(find(&made, encoding).unwrap().unwrap().index.toc.is_empty());
        }
    }
}

#[test]
fn limits_of_a_document_hold_at_the_limit_and_one_past_it() {
    let name = "n".repeat(200);
    let json = json!({ "version": 1, "entries": [
        { "name": name, "type": "dir" }, { "name": "a/b", "type": "symlink", "linkName": "t".repeat(300) },
    ] });
    let json = serde_json::to_vec(&json).unwrap();
    for (encoding, made) in both(&json) {
        let stored = match encoding {
            StreamEncoding::Gzip => {
                let digits = &made.bytes[made.bytes.len() - 51 + 16..][..16];
                let at = u64::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
                made.bytes.len() as u64 - 51 - at
            }
            _ => chunked::zstd(&json).len() as u64,
        };
        let all = LIMITS();
        let cases: [(&str, ForeignLimits, ForeignLimits); 5] = [
            ("entries", ForeignLimits { entries: 2, ..all }, ForeignLimits { entries: 1, ..all }),
            // A symbolic link ends with a NUL in the kernel.
            ("path", ForeignLimits { path: 301, ..all }, ForeignLimits { path: 300, ..all }),
            ("component", ForeignLimits { component: 200, ..all }, ForeignLimits { component: 199, ..all }),
            (
                "decoded",
                ForeignLimits { decoded: json.len() as u64, ..all },
                ForeignLimits { decoded: json.len() as u64 - 1, ..all },
            ),
            ("stored", ForeignLimits { stored, ..all }, ForeignLimits { stored: stored - 1, ..all }),
        ];
        for (what, at, past) in cases {
            assert!(find_within(&made, encoding, at).unwrap().is_some(), "{what}");
            let error = find_within(&made, encoding, past).map(|found| found.is_some()).unwrap_err();
            assert!(matches!(error, FindError::Index(ForeignError::TooLarge { .. })), "{what}: {error}");
        }
    }
}

#[test]
fn one_entry_or_unknown_field_cannot_fill_the_memory() {
    for long in [
        format!(r#"{{"version":1,"entries":[{{"type":"dir","name":"{}"}}]}}"#, "n".repeat(1 << 20)),
        format!(r#"{{"version":1,"x":"{}","entries":[]}}"#, "n".repeat(1 << 20)),
    ] {
        for (encoding, made) in both(long.as_bytes()) {
            let limits = ForeignLimits { entry: 100_000, ..LIMITS() };
            let error = find_within(&made, encoding, limits).map(|found| found.is_some()).unwrap_err();
            assert!(
                matches!(error, FindError::Index(ForeignError::TooLarge { limit: 100_000, .. })),
                "{error}"
            );
        }
    }
}

#[test]
fn a_file_that_decodes_to_more_than_a_layer_may_is_refused() {
    let json = |size: u64| {
        let entry = json!({ "name": "a", "type": "reg", "size": size, "offset": 1 });
        serde_json::to_vec(&json!({ "version": 1, "entries": [entry] })).unwrap()
    };
    for (encoding, made) in both(&json(64 << 20)) {
        assert!(find(&made, encoding).unwrap().is_some());
    }
    for (encoding, made) in both(&json((64 << 20) + 1)) {
        let error = find(&made, encoding).map(|found| found.is_some()).unwrap_err();
        assert!(matches!(error, FindError::Index(ForeignError::Broken { .. })), "{error}");
    }
}

#[test]
fn damaged_tails_never_give_an_index_that_the_manifest_did_not_name() {
    let tar = sample(None);
    for (encoding, made) in [
        (StreamEncoding::Gzip, Estargz { chunk: 4096, ..Estargz::default() }.make(&tar)),
        (StreamEncoding::Zstd, chunked::zstd_chunked(&tar, Writer::Storage, 4096)),
        (StreamEncoding::Zstd, chunked::zstd_chunked(&tar, Writer::Stargz, 4096)),
    ] {
        let good = find(&made, encoding).unwrap().unwrap();
        let len = made.bytes.len();
        for at in (len - 120..len).chain((len - 1500..len).step_by(37)) {
            let mut damaged = made.clone();
            damaged.bytes[at] ^= 0x10;
            if let Ok(Some(found)) = find(&damaged, encoding) {
                // Bytes that nobody reads, or the end of the content, which only bounds the last unit.
                assert_eq!(found.id, good.id, "byte {at} of {len}");
                assert_eq!(found.index.toc, good.index.toc, "byte {at} of {len}");
            }
            let mut cut = made.clone();
            cut.bytes.truncate(at);
            assert!(!matches!(find(&cut, encoding), Ok(Some(found)) if found.id != good.id));
        }
    }
}

#[test]
fn small_layers_and_known_places_cost_no_search() {
    let tar = sample(None);
    let made = chunked::zstd_chunked(&tar, Writer::Storage, 4096);
    let limits = ForeignLimits::default();
    assert!((made.bytes.len() as u64) < limits.smallest, "a small layer");
    let reads = |annotations: &Annotations, encoding, bytes: &[u8]| {
        let blob = ObservedReader::new(bytes.to_vec());
        let found = run(find_foreign(&*blob, encoding, annotations, limits)).unwrap();
        (found.is_some(), blob.take())
    };
    assert_eq!(reads(&Annotations::new(), StreamEncoding::Zstd, &made.bytes), (false, vec![]));
    let (found, cost) = reads(&made.annotations, StreamEncoding::Zstd, &made.bytes);
    assert!(found && cost.len() == 1, "only the manifest: {cost:?}");
    let estargz = Estargz::default().make(&tar);
    assert_eq!(reads(&Annotations::new(), StreamEncoding::Gzip, &estargz.bytes), (false, vec![]));
    let (found, cost) = reads(&estargz.annotations, StreamEncoding::Gzip, &estargz.bytes);
    assert!(found && cost.len() == 1, "the tail holds all: {cost:?}");
    // A layer over the limit is searched, by one read of its tail.
    let large = chunked::gzip(&noise(100_000));
    let (found, cost) = reads(&Annotations::new(), StreamEncoding::Gzip, &large);
    assert_eq!(
        (found, cost),
        (false, vec![ByteRange::new(large.len() as u64 - (64 << 10), large.len() as u64)])
    );
    // A table of contents that is longer than the tail costs one more, and no byte twice.
    let many: Vec<Value> =
        (0..3000).map(|at| json!({ "name": format!("{}", noise_text(at)), "type": "dir" })).collect();
    let json = serde_json::to_vec(&json!({ "version": 1, "entries": many })).unwrap();
    let made = chunked::estargz_with(chunked::gzip(b"x"), &json, Footer::Current);
    let (found, cost) = reads(&Annotations::new(), StreamEncoding::Gzip, &made.bytes);
    assert!(found && cost.len() == 2 && cost[1].end == cost[0].start, "{cost:?}");
}

#[test]
fn an_error_of_the_source_is_no_verdict_on_the_index() {
    struct Failing;
    impl RangeFetch for Failing {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn fetch(&self, _: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            Box::pin(async { Err(ReadError::new(FaultClass::Unavailable, "no network")) })
        }
    }
    for encoding in [StreamEncoding::Gzip, StreamEncoding::Zstd] {
        let found = run(find_foreign(&FetchAll(Arc::new(Failing)), encoding, &Annotations::new(), LIMITS()));
        assert!(
            matches!(&found, Err(FindError::Read(error)) if error.fault() == FaultClass::Unavailable),
            "{found:?}"
        );
    }
}

// ---- what the tests share ----

/// A change of the entries of a document.
type Change = Box<dyn Fn(&mut Vec<Value>)>;

/// The forms of a layer with a document.
const FORMS: [(StreamEncoding, Option<Writer>); 2] =
    [(StreamEncoding::Gzip, None), (StreamEncoding::Zstd, Some(Writer::Storage))];

/// Field `key` of entry `name` becomes `value`.
fn change(name: &'static str, key: &'static str, value: Value) -> Change {
    Box::new(move |entries| {
        let entry = entries.iter_mut().find(|entry| entry["name"] == name).unwrap();
        entry[key] = value.clone();
    })
}

fn first_chunk(entries: &[Value]) -> usize {
    entries.iter().position(|entry| entry["type"] == "chunk").unwrap()
}

/// A copy of entry `name` with another name.
fn renamed(entries: &[Value], name: &str, other: &str) -> Value {
    let mut again = entries.iter().find(|entry| entry["name"] == name).unwrap().clone();
    again["name"] = json!(other);
    again
}

/// Holds that a document is taken as it is, and is broken by each of the changes alone, in every form.
#[track_caller]
fn are_refused(changes: &[(&str, Change)]) {
    let tar = sample(None);
    for (encoding, writer) in FORMS {
        let unchanged = remade(&tar, writer, |_| {});
        compare(&find(&unchanged, encoding).unwrap().unwrap().index, &unchanged.bytes, &tar);
        for (what, change) in changes {
            let made = remade(&tar, writer, |document| {
                change(document["entries"].as_array_mut().unwrap());
            });
            let error = find(&made, encoding).map(|found| found.map(|found| found.index.toc)).unwrap_err();
            assert!(matches!(error, FindError::Index(ForeignError::Broken { .. })), "{what}: {error}");
        }
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn find(made: &Made, encoding: StreamEncoding) -> Result<Option<ForeignIndex>, FindError> {
    find_within(made, encoding, LIMITS())
}

fn find_within(
    made: &Made,
    encoding: StreamEncoding,
    limits: ForeignLimits,
) -> Result<Option<ForeignIndex>, FindError> {
    run(find_foreign(&MemoryReader::new(made.bytes.clone()), encoding, &made.annotations, limits))
}

/// A layer of each format with this table of contents and next to no content.
fn both(json: &[u8]) -> [(StreamEncoding, Made); 2] {
    [
        (StreamEncoding::Gzip, chunked::estargz_with(chunked::gzip(b"some"), json, Footer::Current)),
        (StreamEncoding::Zstd, chunked::zstd_chunked_with(chunked::zstd(b"some"), json, Writer::Storage)),
    ]
}

/// The layer of `tar` with its document changed, and the digests as they then are. No writer means eStargz.
fn remade(tar: &[u8], writer: Option<Writer>, change: impl Fn(&mut Value)) -> Made {
    let made = match writer {
        None => Estargz { chunk: 4096, ..Estargz::default() }.make(tar),
        Some(writer) => chunked::zstd_chunked(tar, writer, 4096),
    };
    let (at, json) = document(&made, writer);
    let mut document: Value = serde_json::from_slice(&json).unwrap();
    change(&mut document);
    let json = serde_json::to_vec(&document).unwrap();
    let content = made.bytes[..at].to_vec();
    match writer {
        None => chunked::estargz_with(content, &json, Footer::Current),
        Some(writer) => chunked::zstd_chunked_with(content, &json, writer),
    }
}

/// Where the content of a layer ends, and its document.
fn document(made: &Made, writer: Option<Writer>) -> (usize, Vec<u8>) {
    if writer.is_some() {
        let position = made.annotations.iter().find(|(key, _)| key.ends_with("position")).unwrap().1;
        let numbers: Vec<usize> = position.split(':').map(|part| part.parse().unwrap()).collect();
        let stored = &made.bytes[numbers[0]..numbers[0] + numbers[1]];
        return (numbers[0] - 8, zstd::stream::decode_all(stored).unwrap());
    }
    let digits = &made.bytes[made.bytes.len() - 51 + 16..][..16];
    let at = usize::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
    let archive = archive(StreamEncoding::Gzip, &made.bytes[at..]);
    let mut archive = tar::Archive::new(&archive[..]);
    let mut json = Vec::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut json).unwrap();
    (at, json)
}

/// Everything a layer decodes to, by plain decoders.
fn archive(encoding: StreamEncoding, stored: &[u8]) -> Vec<u8> {
    match encoding {
        StreamEncoding::Plain => stored.to_vec(),
        StreamEncoding::Gzip => {
            let mut bytes = Vec::new();
            flate2::read::MultiGzDecoder::new(stored).read_to_end(&mut bytes).unwrap();
            bytes
        }
        StreamEncoding::Zstd => zstd::stream::decode_all(stored).unwrap(),
        other => panic!("no index is about {other}"),
    }
}

/// Compares an index with the archive that the layer is, both names and bytes.
fn compare(index: &LayerIndex, stored: &[u8], archive: &[u8]) {
    let mut walker = TarWalker::new(TarLimits::default());
    walker.feed(0, archive).unwrap();
    let toc = walker.finish(archive.len() as u64).unwrap();
    let expected = toc.iter().map(|entry| entry.to_entry()).filter(|entry| !is_marker(&entry.path));
    let expected: Vec<_> = expected.collect();
    assert!(expected.len() > 8, "something to compare");
    assert_eq!(index.toc.len(), expected.len());
    for (ours, theirs) in index.toc.iter().map(|entry| entry.to_entry()).zip(expected) {
        let shown = String::from_utf8_lossy(&theirs.path);
        assert_eq!(ours.path, theirs.path);
        assert_eq!((ours.mode, ours.uid, ours.gid), (theirs.mode, theirs.uid, theirs.gid), "{shown}");
        assert_eq!(ours.mtime.secs, theirs.mtime.secs, "{shown}");
        let sorted = |xattrs: &[(Vec<u8>, Vec<u8>)]| xattrs.iter().cloned().collect::<BTreeMap<_, _>>();
        assert_eq!(sorted(&ours.xattrs), sorted(&theirs.xattrs), "{shown}");
        match (&ours.kind, &theirs.kind) {
            (TocEntryKind::File(ours), TocEntryKind::File(theirs)) => {
                let bytes = &archive[theirs.offset as usize..(theirs.offset + theirs.size) as usize];
                assert!(read_file(&index.spans, stored, ours) == bytes, "bytes of {shown}");
            }
            (ours, theirs) => assert_eq!(ours, theirs, "{shown}"),
        }
    }
    let bytes = index.to_bytes().unwrap();
    assert_eq!(LayerIndex::from_bytes(&bytes, stored.len() as u64).as_ref(), Some(index), "it can be kept");
}

/// The bytes of a file, holes and all.
fn read_file(spans: &SpanMap, stored: &[u8], content: &FileContent) -> Vec<u8> {
    let bytes = read(spans, stored, ByteRange::at(content.offset, content.stored()));
    let Some(runs) = &content.runs else { return bytes };
    let (mut file, mut at) = (vec![0; content.size as usize], 0);
    for run in runs {
        let (start, len) = (run.offset as usize, run.len as usize);
        file[start..start + len].copy_from_slice(&bytes[at..at + len]);
        at += len;
    }
    file
}

/// The bytes of a stream range, each piece decoded on its own.
fn read(spans: &SpanMap, stored: &[u8], range: ByteRange) -> Vec<u8> {
    if range.is_empty() {
        return Vec::new();
    }
    let pieces = spans.cover(range);
    let mut bytes = Vec::new();
    for piece in &pieces {
        assert_eq!(piece.resume, ResumePoint::Unit);
        let part = &stored[piece.stored.start as usize..piece.stored.end as usize];
        let mut decoded = Vec::new();
        match spans.encoding() {
            StreamEncoding::Gzip => flate2::read::MultiGzDecoder::new(part)
                .take(piece.stream.len())
                .read_to_end(&mut decoded)
                .unwrap(),
            _ => {
                zstd::Decoder::new(part).unwrap().take(piece.stream.len()).read_to_end(&mut decoded).unwrap()
            }
        };
        assert_eq!(decoded.len() as u64, piece.stream.len(), "a unit has at least what is wanted");
        bytes.extend(decoded);
    }
    let start = (range.start - pieces[0].stream.start) as usize;
    bytes[start..start + range.len() as usize].to_vec()
}

fn content(toc: &TableOfContents, name: &str) -> FileContent {
    let entry = toc.iter().find(|entry| entry.path == name.as_bytes()).unwrap().to_entry();
    let TocEntryKind::File(content) = entry.kind else { panic!("{name} is no file") };
    content
}

fn stored(entry: ocifs::layer::EntryRef<'_>) -> u64 {
    if let TocEntryKind::File(content) = &entry.kind { content.stored() } else { 0 }
}

/// Bytes that do not compress and are the same in every run.
fn noise(len: usize) -> Vec<u8> {
    Random::of(1).bytes(len)
}

fn noise_text(seed: u64) -> String {
    Digest::sha256(&seed.to_le_bytes()).encoded().to_owned()
}

/// An archive that every version of the tools takes: skopeo 1.9 fails with "short write" at some files that hold long zeros.
fn plain_sample() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o640);
        header.set_uid(1000);
        header.set_mtime(1_600_000_000);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for at in 0..20usize {
        add(&format!("small/{at}"), &noise(at * 37));
    }
    add("large", &noise(700_000));
    add("text", &b"the same again and again ".repeat(20_000));
    let mut holes = noise(300_000);
    holes[50_000..200_000].fill(0);
    add("holes", &holes);
    add("zeros", &[0; 100_000]);
    add("last", b"x");
    tar.into_inner().unwrap()
}

/// An archive with an entry of every kind: files of one chunk and of several, with zeros, empty, and a landmark.
fn sample(landmark: Option<&str>) -> Vec<u8> {
    use tar::EntryType as Kind;
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind: Kind, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_600_000_000);
        header.set_size(size as u64);
        header
    };
    tar.append_data(&mut header(Kind::Directory, 0o1755, 0), "dir/", &[][..]).unwrap();
    let xattrs = [
        ("SCHILY.xattr.user.a", &b"\0\xff binary"[..]),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
    ];
    tar.append_pax_extensions(xattrs).unwrap();
    tar.append_data(&mut header(Kind::Regular, 0o4755, 700), "dir/first", &noise(700)[..]).unwrap();
    if let Some(name) = landmark {
        tar.append_data(&mut header(Kind::Regular, 0o644, 1), name, &[0xf][..]).unwrap();
    }
    tar.append_data(&mut header(Kind::Regular, 0o644, 0), "empty", &[][..]).unwrap();
    tar.append_data(&mut header(Kind::Regular, 0o644, 20_000), "large", &noise(20_000)[..]).unwrap();
    tar.append_link(&mut header(Kind::Link, 0o644, 0), "dir/hard", "large").unwrap();
    tar.append_link(&mut header(Kind::Symlink, 0o777, 0), "link", "../dir/first").unwrap();
    for (kind, name) in [(Kind::Char, "char"), (Kind::Block, "block")] {
        let mut header = header(kind, 0o600, 0);
        header.set_device_major(8).unwrap();
        header.set_device_minor(17).unwrap();
        tar.append_data(&mut header, name, &[][..]).unwrap();
    }
    tar.append_data(&mut header(Kind::Fifo, 0o600, 0), "fifo", &[][..]).unwrap();
    let mut holes = vec![0; 30_000];
    holes[10] = 1;
    holes[29_000] = 1;
    tar.append_data(&mut header(Kind::Regular, 0o644, 30_000), "holes", &holes[..]).unwrap();
    let long = format!("{}é", "long/".repeat(40));
    tar.append_data(&mut header(Kind::Regular, 0o644, 1024), long, &noise(1024)[..]).unwrap();
    tar.append_data(&mut header(Kind::Directory, 0o700, 0), "last/", &[][..]).unwrap();
    tar.into_inner().unwrap()
}
