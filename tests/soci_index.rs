//! zTOCs of SOCI indexes, written as the real tool writes them, against the layers that they are about.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says on stderr what it skips"
)]

use std::io::Write as _;

use ocifs::io::ByteRange;
use ocifs::layer::{
    ChunkDigest, ForeignError, ForeignIndex, IndexKind, LayerDigests, MAX_ZTOC, ResumePoint, TocEntry,
    parse_ztoc,
};
use sha2::{Digest as _, Sha256};

use crate::random::Random;
use crate::soci::{self, File, PACKED_POINT, Ztoc};
use crate::tar_walk;
use crate::zran::{self, Members};

/// The span size of most tests; the tool's default is 4 MiB.
const SPAN: u64 = 64 * 1024;

#[test]
fn the_writer_gives_the_bytes_of_the_real_tool() {
    // What `TestWriteZtoc` of the soci-snapshotter expects: two empty entries with Go's zero time.
    let file = File { mtime: "0001-01-01T00:00:00Z".into(), ..File::default() };
    let ztoc = Ztoc {
        version: "0.9".into(),
        tool: "AWS SOCI CLI".into(),
        compressed: 2_000_000,
        uncompressed: 2_500_000,
        files: vec![file.clone(), file],
        max_span: 3,
        checkpoints: vec![0; 1 << 16],
        ..Ztoc::default()
    };
    let bytes = ztoc.write();
    let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(bytes.len(), 65928);
    assert_eq!(hex, "eba28fdf50b1b57543f57dd051b2468c1d4f57b64d2006c75aa4de1d03e6c7ec");
}

#[test]
fn a_ztoc_gives_the_entries_of_its_layer() {
    let stream = archive();
    let walked = sorted(tar_walk::whole(&stream).unwrap().iter().map(|entry| entry.to_entry()));
    assert_eq!(walked.len(), 52, "all kinds of entries");
    for (name, gzip, members) in layers(&stream) {
        let foreign = parse(&Ztoc::of_gzip(&gzip, SPAN, members), gzip.len());
        assert_eq!(sorted(foreign.index.toc.iter().map(|entry| entry.to_entry())), walked, "{name}");
    }
    let foreign = parse(&Ztoc::of_plain(&stream, SPAN), stream.len());
    assert_eq!(sorted(foreign.index.toc.iter().map(|entry| entry.to_entry())), walked, "uncompressed");
    assert_eq!((foreign.kind, foreign.is_bound), (IndexKind::Soci, false));
    assert!(foreign.index.blocks.is_empty() && foreign.warnings.is_empty());
}

#[test]
fn digests_cover_the_bytes_that_a_span_is_decoded_from() {
    let stream = archive();
    for (name, gzip, members) in layers(&stream) {
        let points = zran::points(&gzip, SPAN, members);
        let spans = parse(&Ztoc::of_gzip(&gzip, SPAN, members), gzip.len()).index.spans;
        assert_eq!(spans.spans(), points.len(), "{name}");
        let sums = stored_sums(spans.sums());
        assert_eq!(sums.len(), points.len(), "{name}");
        for (at, (sum, start)) in sums.iter().zip(spans.starts()).enumerate() {
            let bytes = &gzip[sum.start as usize..sum.end as usize];
            assert_eq!(sum.sha256, *Sha256::digest(bytes), "{name}: span {at}");
            let [piece] = &spans.cover(ByteRange::at(start.stream, 1))[..] else { panic!("one piece") };
            if at == 0 {
                assert_eq!(
                    (piece.stored.start, sum.start),
                    (0, points[0].stored),
                    "{name}: no digest covers the header"
                );
                assert_eq!(piece.stored.end, sum.end, "{name}");
            } else {
                assert_eq!(piece.stored, ByteRange::new(sum.start, sum.end), "{name}: span {at}");
            }
        }
        assert!(points.iter().any(|point| point.bits > 0), "{name}: some spans share a byte");
    }
    let spans = parse(&Ztoc::of_plain(&stream, SPAN), stream.len()).index.spans;
    let sums = stored_sums(spans.sums());
    assert_eq!(sums.len(), stream.len().div_ceil(SPAN as usize));
    assert!(sums.windows(2).all(|pair| pair[0].end == pair[1].start) && sums[0].start == 0);
    for sum in sums {
        assert_eq!(sum.sha256, *Sha256::digest(&stream[sum.start as usize..sum.end as usize]));
    }
}

#[test]
fn every_range_is_decoded_from_its_spans() {
    let stream = archive();
    for ((name, gzip, members), reads) in layers(&stream).into_iter().zip([10_000, 1000, 2000, 20]) {
        let spans = parse(&Ztoc::of_gzip(&gzip, SPAN, members), gzip.len()).index.spans;
        let mut random = Random(0x5eed);
        for _ in 0..reads {
            let start = random.index(stream.len());
            let len = 1 + random.index(8192.min(stream.len() - start));
            let range = ByteRange::at(start as u64, len as u64);
            let [piece] = &spans.cover(range)[..] else { panic!("one piece") };
            let stored = &gzip[piece.stored.start as usize..piece.stored.end as usize];
            let size = piece.stream.len() as usize;
            let decoded = match &piece.resume {
                ResumePoint::Unit => zran::from_member(stored, size),
                ResumePoint::Block { bits, window } => {
                    zran::from_block(stored, *bits, &window.unpack().unwrap(), size)
                }
                ResumePoint::Inner { .. } => panic!("gzip has no such blocks"),
            };
            let from = start - piece.stream.start as usize;
            assert_eq!(
                decoded[from..from + len],
                stream[start..start + len],
                "{name}: {len} bytes at {start}"
            );
        }
    }
}

#[test]
fn early_checkpoints_have_a_window_of_the_bytes_there_were() {
    let stream = archive();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    for piece in stream.chunks(9000) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    let gzip = encoder.finish().unwrap();
    let spans = parse(&Ztoc::of_gzip(&gzip, 1000, Members::All), gzip.len()).index.spans;
    let early: Vec<_> = spans.starts().iter().filter(|start| (1..32768).contains(&start.stream)).collect();
    assert!(!early.is_empty(), "there are checkpoints before the window is full");
    for start in spans.starts().iter().skip(1) {
        let ResumePoint::Block { window, .. } = &start.resume else { panic!("a block") };
        let at = start.stream as usize;
        assert_eq!(window.unpack().unwrap(), stream[at.saturating_sub(32768)..at], "at {at}");
    }
}

#[test]
fn a_blob_of_the_first_version_leaves_out_the_first_checkpoint() {
    let stream = archive();
    let gzip = gzip(&stream, None);
    let ztoc = Ztoc::of_gzip(&gzip, SPAN, Members::First);
    let points = zran::points(&gzip, SPAN, Members::First);
    assert_eq!(points[0].stored, 10, "a header without options");
    let first = Ztoc { checkpoints: soci::pack(&points[1..], points.len(), SPAN), ..ztoc.clone() };
    assert_eq!(parse(&first, gzip.len()).index, parse(&ztoc, gzip.len()).index);
    let short = Ztoc { checkpoints: soci::pack(&points[2..], points.len(), SPAN), ..ztoc };
    assert!(reason(&short, gzip.len()).contains("bytes of checkpoints for"));
}

#[test]
fn padding_after_the_archive_belongs_to_no_span() {
    let archive = archive();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&archive).unwrap();
    for _ in 0..3 {
        // A flush ends the block, so that there can be a checkpoint.
        encoder.write_all(&vec![0; 100_000]).unwrap();
        encoder.flush().unwrap();
    }
    let gzip = encoder.finish().unwrap();
    let ztoc = Ztoc::of_gzip(&gzip, SPAN, Members::All);
    let points = zran::points(&gzip, SPAN, Members::All);
    let past = points.iter().filter(|point| point.stream >= archive.len() as u64).count();
    assert!(past >= 2, "{past} checkpoints in the padding");
    let spans = parse(&ztoc, gzip.len()).index.spans;
    assert_eq!(spans.stream_size(), archive.len() as u64, "the stream ends with the end mark");
    assert_eq!(spans.spans(), points.len() - past);
    assert_eq!(spans.starts().last().unwrap().stream, points[points.len() - past - 1].stream);
    // The same checkpoints with anything but zeros before them are those of another layer.
    let mut wrong = ztoc;
    let last = wrong.checkpoints.len() - 1;
    wrong.checkpoints[last] = 1;
    assert!(
        reason(&wrong, gzip.len()).contains("of the stream, which has"),
        "{}",
        reason(&wrong, gzip.len())
    );
}

#[test]
fn times_have_zones_and_fractions() {
    let stream = archive();
    let mut ztoc = Ztoc::of_plain(&stream, SPAN);
    let mut time = |text: &str| {
        ztoc.files[0].mtime = text.into();
        let foreign = parse_ztoc(&ztoc.write(), stream.len() as u64).ok()?;
        foreign.index.toc.iter().next().map(|entry| (entry.mtime.secs, entry.mtime.nanos))
    };
    assert_eq!(
        time("2020-09-13T14:26:40+02:00"),
        Some((1_600_000_000, 0)),
        "the zone of the machine that made it"
    );
    assert_eq!(time("1969-12-31T23:59:58.75Z"), Some((-2, 750_000_000)));
    assert_eq!(time("0001-01-01T00:00:00Z"), Some((-62_135_596_800, 0)));
    for bad in ["", "now", "2016-12-31T23:59:60Z", "2020-13-01T00:00:00Z"] {
        assert_eq!(time(bad), None, "{bad}");
    }
}

#[test]
fn the_ztoc_of_another_layer_is_refused() {
    let stream = archive();
    let own = gzip(&stream, None);
    let other = gzip(&stream[1024..], Some("layer.tar"));
    assert_ne!(own.len(), other.len());
    let expected = reason(&Ztoc::of_gzip(&own, SPAN, Members::All), other.len());
    let sizes = format!("it is for a layer of {} bytes, and this one has {}", own.len(), other.len());
    assert_eq!(expected, format!("SOCI index: {sizes}"));
}

/// What is wrong, and what the refusal says.
type Damage<'a> = (&'static str, Box<dyn Fn(&mut Ztoc) + 'a>);

#[test]
fn a_ztoc_of_another_version_size_or_compression_is_refused() {
    let stream = archive();
    let gzip = gzip(&stream, None);
    let end = stream.len() as i64;
    are_refused_of(
        &gzip,
        vec![
            ("version is \"0.8\", not \"0.9\"", Box::new(|ztoc| ztoc.version = "0.8".into())),
            ("it is for a layer of", Box::new(|ztoc| ztoc.compressed += 1)),
            ("it is for a layer of -1 bytes", Box::new(|ztoc| ztoc.compressed = -1)),
            ("size is negative: -5", Box::new(|ztoc| ztoc.uncompressed = -5)),
            ("of the stream, which has", Box::new(|ztoc| ztoc.uncompressed = end - 200_000)),
            ("over the limit of", Box::new(|ztoc| ztoc.uncompressed = 1033 * gzip.len() as i64)),
            ("compression algorithm 3", Box::new(|ztoc| ztoc.algorithm = Some(3))),
            (
                "bytes describe an uncompressed layer",
                Box::new(|ztoc| ztoc.algorithm = Some(soci::UNCOMPRESSED)),
            ),
        ],
    );
}

#[test]
fn digests_that_do_not_fit_the_spans_are_refused() {
    let gzip = gzip(&archive(), None);
    are_refused_of(
        &gzip,
        vec![
            ("the last span is", Box::new(|ztoc| ztoc.max_span += 1)),
            ("the last span is -1", Box::new(|ztoc| ztoc.max_span = -1)),
            ("the last span is", Box::new(|ztoc| ztoc.digests.truncate(1))),
            (
                "digests for",
                Box::new(|ztoc| {
                    ztoc.digests.pop();
                    ztoc.max_span -= 1;
                }),
            ),
            ("span 1 has \"sha256:zz\"", Box::new(|ztoc| ztoc.digests[1] = "sha256:zz".into())),
            (
                "span 0 has \"sha512:",
                Box::new(|ztoc| ztoc.digests[0] = format!("sha512:{}", "a".repeat(128))),
            ),
        ],
    );
}

#[test]
fn checkpoints_of_another_length_than_the_spans_are_refused() {
    let gzip = gzip(&archive(), None);
    are_refused_of(
        &gzip,
        vec![
            ("0 bytes of checkpoints", Box::new(|ztoc| ztoc.checkpoints.clear())),
            ("bytes of checkpoints for", Box::new(|ztoc| ztoc.checkpoints.push(0))),
            ("bytes of checkpoints for", Box::new(|ztoc| ztoc.checkpoints.truncate(20))),
            ("bytes of checkpoints for 0 spans", Box::new(|ztoc| ztoc.checkpoints[..4].fill(0))),
            ("bytes of checkpoints for -1 spans", Box::new(|ztoc| ztoc.checkpoints[..4].fill(255))),
        ],
    );
}

#[test]
fn checkpoints_out_of_order_or_out_of_the_layer_are_refused() {
    let stream = archive();
    let gzip = gzip(&stream, None);
    let points = zran::points(&gzip, SPAN, Members::All);
    let last = points.len() - 1;
    are_refused_of(
        &gzip,
        vec![
            ("the first checkpoint is at 9 of", Box::new(|ztoc| patch(ztoc, 0, 0, &9i64.to_le_bytes()))),
            ("1 of the stream and 0 bits", Box::new(|ztoc| patch(ztoc, 0, 8, &1i64.to_le_bytes()))),
            ("0 of the stream and 1 bits", Box::new(|ztoc| patch(ztoc, 0, 16, &[1]))),
            ("shares 8 bits", Box::new(|ztoc| patch(ztoc, 1, 16, &[8]))),
            ("checkpoint 2 has the offset -1", Box::new(|ztoc| patch(ztoc, 2, 8, &[255; 8]))),
            (
                "checkpoint 2 is at",
                Box::new(|ztoc| {
                    let before = points[1].stored.to_le_bytes();
                    patch(ztoc, 2, 0, &before);
                }),
            ),
            (
                "checkpoint 2 is at",
                Box::new(|ztoc| {
                    let before = points[1].stream.to_le_bytes();
                    patch(ztoc, 2, 8, &before);
                }),
            ),
            ("of the layer, which has", Box::new(|ztoc| patch(ztoc, last, 0, &gzip.len().to_le_bytes()))),
        ],
    );
}

#[test]
fn entries_whose_contents_overlap_or_leave_the_archive_are_refused() {
    let gzip = gzip(&archive(), None);
    are_refused_of(
        &gzip,
        vec![
            ("lies before", Box::new(|ztoc| ztoc.files.swap(3, 4))),
            ("lies before", Box::new(|ztoc| ztoc.files[1].size += 40_000)),
            ("content cannot start at 513", Box::new(|ztoc| ztoc.files[0].offset = 513)),
            ("content cannot start at 0", Box::new(|ztoc| ztoc.files[0].offset = 0)),
            ("content cannot start at -512", Box::new(|ztoc| ztoc.files[0].offset = -512)),
            ("size is -1", Box::new(|ztoc| ztoc.files[1].size = -1)),
            ("end past the", Box::new(|ztoc| ztoc.files[1].size = i64::MAX)),
        ],
    );
}

#[test]
fn an_entry_with_a_field_out_of_bounds_is_refused() {
    let gzip = gzip(&archive(), None);
    are_refused_of(
        &gzip,
        vec![
            ("type is \"sock\"", Box::new(|ztoc| ztoc.files[0].kind = "sock".into())),
            ("is not of RFC 3339", Box::new(|ztoc| ztoc.files[0].mtime.clear())),
            ("name holds a NUL", Box::new(|ztoc| ztoc.files[0].name = b"a\0b".to_vec())),
            ("name of 4097 bytes", Box::new(|ztoc| ztoc.files[0].name = b"a/".repeat(2049)[..4097].to_vec())),
            ("component of 256 bytes", Box::new(|ztoc| ztoc.files[0].name = vec![b'a'; 256])),
            ("link has no target", Box::new(|ztoc| ztoc.files[0].kind = "symlink".into())),
            (
                "device major number is -1",
                Box::new(|ztoc| {
                    ztoc.files[0].kind = "char".into();
                    ztoc.files[0].major = -1;
                }),
            ),
            ("it is a sparse file", Box::new(|ztoc| record(ztoc, b"GNU.sparse.major", b"1"))),
            ("attribute has a name of 0 bytes", Box::new(|ztoc| record(ztoc, b"SCHILY.xattr.", b"1"))),
            (
                "\"user.x\" occurs twice",
                Box::new(|ztoc| {
                    record(ztoc, b"SCHILY.xattr.user.x", b"1");
                    record(ztoc, b"SCHILY.xattr.user.x", b"2");
                }),
            ),
        ],
    );
}

/// Holds that `good` with each of the damages alone is refused, with the words of the damage.
#[track_caller]
fn are_refused(good: &Ztoc, layer: usize, damages: Vec<Damage<'_>>) {
    assert!(parse_ztoc(&good.write(), layer as u64).is_ok());
    for (expected, damage) in damages {
        let mut ztoc = good.clone();
        damage(&mut ztoc);
        let found = reason(&ztoc, layer);
        assert!(found.contains(expected), "{found:?} does not say {expected:?}");
    }
}

/// The same for the good description of the layer `gzip`.
#[track_caller]
fn are_refused_of(gzip: &[u8], damages: Vec<Damage<'_>>) {
    are_refused(&Ztoc::of_gzip(gzip, SPAN, Members::All), gzip.len(), damages);
}

#[test]
fn an_uncompressed_layer_is_described_exactly() {
    let stream = archive();
    are_refused(
        &Ztoc::of_plain(&stream, SPAN),
        stream.len(),
        vec![
            ("version 3", Box::new(|ztoc| ztoc.checkpoints[0] = 3)),
            ("in spans of 0", Box::new(|ztoc| ztoc.checkpoints[4..12].fill(0))),
            ("in spans of -1", Box::new(|ztoc| ztoc.checkpoints[4..12].fill(255))),
            ("uncompressed layer of", Box::new(|ztoc| ztoc.checkpoints[12] ^= 1)),
            ("with an archive of", Box::new(|ztoc| ztoc.uncompressed += 1)),
            ("digests for", Box::new(|ztoc| ztoc.checkpoints[6] += 1)),
            ("21 bytes describe", Box::new(|ztoc| ztoc.checkpoints.push(0))),
        ],
    );
}

#[test]
fn a_ztoc_that_is_cut_is_refused() {
    let stream = archive();
    let bytes = Ztoc::of_plain(&stream, SPAN).write();
    // The very last byte is the zero after a string, which says nothing.
    for len in 0..bytes.len() - 1 {
        assert!(parse_ztoc(&bytes[..len], stream.len() as u64).is_err(), "{len} of {}", bytes.len());
    }
}

#[test]
fn a_list_for_prefetch_after_a_ztoc_is_no_part_of_it() {
    let stream = archive();
    let bytes = Ztoc::of_plain(&stream, SPAN).write();
    let longer = [&bytes[..], b"---SOCI-PREFETCH---[]"].concat();
    assert!(parse_ztoc(&longer, stream.len() as u64).is_ok());
}

#[test]
fn a_ztoc_without_compression_information_is_refused() {
    let mut fb = flatbuffers::FlatBufferBuilder::new();
    let version = fb.create_string("0.9");
    let table = fb.start_table();
    fb.push_slot_always(4, version);
    let root = fb.end_table(table);
    fb.finish_minimal(root);
    let expected = parse_ztoc(fb.finished_data(), 0).unwrap_err().to_string();
    assert_eq!(expected, "SOCI index: compression information is missing");
}

#[test]
fn the_size_of_a_ztoc_is_limited() {
    let zeros = vec![0; MAX_ZTOC as usize + 1];
    assert_eq!(limit(parse_ztoc(&zeros, 1)), Some(MAX_ZTOC));
    assert_eq!(limit(parse_ztoc(&zeros[1..], 1)), None, "at the limit it is looked at");
}

#[test]
fn the_number_of_entries_is_limited() {
    let (plain, file) = (megabyte(), directory());
    let entries = |count: usize| {
        let ztoc = Ztoc {
            files: vec![file.clone()],
            repeat_file: count - 1,
            uncompressed: 1 << 20,
            ..plain.clone()
        };
        parse_ztoc(&ztoc.write(), 1 << 20)
    };
    assert_eq!(limit(entries(2_000_001)), Some(2_000_000));
    assert!(
        entries(2_000_000).unwrap_err().to_string().contains("lies before"),
        "the same entry again and again"
    );
}

#[test]
fn the_memory_of_all_entries_is_limited() {
    let (plain, file) = (megabyte(), directory());
    let metadata = |value: usize, count: usize| {
        let records = vec![(b"comment".to_vec(), vec![b'x'; value])];
        let file = File { records, repeat_record: count - 1, ..file.clone() };
        let ztoc = Ztoc { files: vec![file], uncompressed: 1 << 20, ..plain.clone() };
        parse_ztoc(&ztoc.write(), 1 << 20)
    };
    // An entry with a name of one byte costs 65, and a record 64 and its text.
    let most = (96 << 20) / 1024 - 1;
    assert!(metadata(1024 - 64 - 7, most).is_ok());
    assert_eq!(limit(metadata(1024 - 64 - 7, most + 1)), Some(96 << 20));
}

#[test]
fn the_number_of_spans_is_limited() {
    let plain = megabyte();
    let spans = |count: usize| {
        let mut checkpoints = plain.checkpoints.clone();
        checkpoints[4..12].copy_from_slice(&1u64.to_le_bytes());
        checkpoints[12..20].copy_from_slice(&count.to_le_bytes());
        let digests = vec![plain.digests[0].clone(); count];
        let mut ztoc = Ztoc { digests, checkpoints, ..plain.clone() };
        (ztoc.compressed, ztoc.uncompressed, ztoc.max_span) = (count as i64, 0, count as i32 - 1);
        parse_ztoc(&ztoc.write(), count as u64)
    };
    assert!(spans(1 << 20).is_ok());
    assert_eq!(limit(spans((1 << 20) + 1)), Some(1 << 20));
}

/// The limit that something is over.
fn limit(result: Result<ForeignIndex, ForeignError>) -> Option<u64> {
    match result {
        Err(ForeignError::TooLarge { limit, .. }) => Some(limit),
        Err(ForeignError::Broken { .. } | _) | Ok(_) => None,
    }
}

/// The ztoc of an archive of 1 MiB of zeros, which has no entries.
fn megabyte() -> Ztoc {
    Ztoc::of_plain(&[0; 1 << 20], SPAN)
}

fn directory() -> File {
    File {
        name: b"a".to_vec(),
        kind: "dir".into(),
        offset: 512,
        mtime: "2020-01-01T00:00:00Z".into(),
        ..File::default()
    }
}

/// Overwrites bytes of a checkpoint.
fn patch(ztoc: &mut Ztoc, point: usize, at: usize, bytes: &[u8]) {
    let start = 12 + point * PACKED_POINT + at;
    ztoc.checkpoints[start..start + bytes.len()].copy_from_slice(bytes);
}

fn record(ztoc: &mut Ztoc, key: &[u8], value: &[u8]) {
    ztoc.files[0].records.push((key.to_vec(), value.to_vec()));
}

fn parse(ztoc: &Ztoc, stored: usize) -> ForeignIndex {
    let foreign = parse_ztoc(&ztoc.write(), stored as u64).unwrap();
    assert!(foreign.index.spans.is_sound());
    foreign
}

fn reason(ztoc: &Ztoc, stored: usize) -> String {
    parse_ztoc(&ztoc.write(), stored as u64).unwrap_err().to_string()
}

fn stored_sums(sums: &LayerDigests) -> &[ChunkDigest] {
    let LayerDigests::Stored(sums) = sums else { panic!("digests of stored bytes") };
    sums
}

/// Entries as values, with the order of attributes that the tool gives them.
fn sorted(entries: impl Iterator<Item = TocEntry>) -> Vec<TocEntry> {
    let mut entries: Vec<TocEntry> = entries.collect();
    entries.iter_mut().for_each(|entry| entry.xattrs.sort());
    entries
}

/// The same stream as layers of different make, and how far their tool looks.
fn layers(stream: &[u8]) -> Vec<(&'static str, Vec<u8>, Members)> {
    let (head, tail) = stream.split_at(stream.len() / 3);
    let members = [gzip(head, None), gzip(tail, Some("rest.tar"))].concat();
    vec![
        ("one member", gzip(stream, None), Members::All),
        ("a name in the header", gzip(stream, Some("layer.tar")), Members::All),
        ("two members", members.clone(), Members::All),
        ("two members, one with checkpoints", members, Members::First),
    ]
}

fn gzip(stream: &[u8], name: Option<&str>) -> Vec<u8> {
    let builder = name.into_iter().fold(flate2::GzBuilder::new(), flate2::GzBuilder::filename);
    let mut encoder = builder.write(Vec::new(), flate2::Compression::default());
    encoder.write_all(stream).unwrap();
    encoder.finish().unwrap()
}

/// About 2 MB with every kind of entry.
fn archive() -> Vec<u8> {
    use tar::EntryType;
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind: EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(1000);
        header.set_gid(70_000);
        header.set_mtime(1_600_000_000);
        header.set_size(size as u64);
        header
    };
    let mut random = Random(7);
    tar.append_data(&mut header(EntryType::Directory, 0), "usr/", &[][..]).unwrap();
    for at in 0..40 {
        let body: Vec<u8> = match at % 3 {
            0 => (0..random.index(60_000)).map(|_| random.next() as u8).collect(),
            1 => (0..random.index(30_000))
                .flat_map(|_| [b"the ", b"of a", b" run", b"\n-- "][random.index(4)])
                .copied()
                .collect(),
            _ => vec![at as u8; random.index(100_000)],
        };
        tar.append_data(&mut header(EntryType::Regular, body.len()), format!("usr/{at}"), &*body).unwrap();
    }
    tar.append_link(&mut header(EntryType::Symlink, 0), "link", "usr/1").unwrap();
    tar.append_link(&mut header(EntryType::Link, 0), "hard", "usr/2").unwrap();
    for (name, kind) in [("char", EntryType::Char), ("block", EntryType::Block), ("fifo", EntryType::Fifo)] {
        let mut header = header(kind, 0);
        if kind != EntryType::Fifo {
            header.set_device_major(259).unwrap();
            header.set_device_minor(70_000).unwrap();
        }
        tar.append_data(&mut header, name, &[][..]).unwrap();
    }
    let long = format!("{}end", "long/".repeat(40));
    tar.append_data(&mut header(EntryType::Regular, 3), &long, &b"abc"[..]).unwrap();
    tar.append_link(&mut header(EntryType::Symlink, 0), "far", &long).unwrap();
    tar.append_data(&mut header(EntryType::Regular, 0), "empty", &[][..]).unwrap();
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"not-\xff-utf8");
    tar.append_data(&mut header(EntryType::Regular, 1), name, &b"x"[..]).unwrap();
    let records: [(&str, &[u8]); 5] = [
        ("mtime", b"1600000000.25"),
        ("SCHILY.xattr.user.z", b"last in the alphabet"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\xff="),
        ("comment", b"no attribute"),
        ("path", b"renamed by pax"),
    ];
    tar.append_pax_extensions(records).unwrap();
    tar.append_data(&mut header(EntryType::Regular, 5), "short", &b"12345"[..]).unwrap();
    tar.append_pax_extensions([("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..])]).unwrap();
    tar.append_data(&mut header(EntryType::Directory, 0), "last/", &[][..]).unwrap();
    tar.into_inner().unwrap()
}
