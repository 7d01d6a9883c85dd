//! The walker's rules one by one, on archives made here byte by byte, and (in `damage`) its behaviour on
//! damaged ones.

mod damage;

use super::super::{DeviceNumber, FileContent, SparseRun, TableOfContents, TocEntry, TocEntryKind, UnixTime};
use super::header::BLOCK;
use super::{TarError, TarLimits, TarWalker, WalkerNeed};
use crate::io::FaultClass;

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A ustar header; `edit` changes fields before the checksum is made.
fn header(flag: u8, name: &str, size: usize, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000001\0");
    put(116, "0000002\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000003\0");
    put(257, "ustar\x0000");
    block[156] = flag;
    if matches!(flag, b'1' | b'2') {
        block[157..163].copy_from_slice(b"target");
    }
    edit(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn entry(flag: u8, name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(flag, name, content.len(), |_| {});
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn record(keyword: &str, value: &str) -> String {
    let rest = keyword.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    format!("{len} {keyword}={value}\n")
}

/// A pax header of `flag` ('x' or 'g') with these records.
fn pax(flag: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let text: String = records.iter().map(|(keyword, value)| record(keyword, value)).collect();
    entry(flag, "PaxHeaders/x", text.as_bytes())
}

fn walk_with(limits: TarLimits, bytes: &[u8]) -> Result<TableOfContents, TarError> {
    let mut walker = TarWalker::new(limits);
    walker.feed(0, bytes)?;
    walker.finish(bytes.len() as u64)
}

fn nth(toc: &TableOfContents, number: usize) -> TocEntry {
    toc.iter().nth(number).unwrap().to_entry()
}

fn walk(parts: &[&[u8]]) -> Result<TableOfContents, TarError> {
    walk_with(TarLimits::default(), &parts.concat())
}

/// The only entry of an archive.
fn one(parts: &[&[u8]]) -> TocEntry {
    let toc = walk(parts).unwrap();
    assert_eq!(toc.len(), 1);
    toc.last().unwrap().to_entry()
}

fn message(parts: &[&[u8]]) -> String {
    walk(parts).unwrap_err().to_string()
}

fn file(size: u64, offset: u64) -> TocEntryKind {
    TocEntryKind::File(FileContent { size, offset, runs: None })
}

#[test]
fn streams_without_headers_are_empty_archives() {
    for len in [0, BLOCK, 2 * BLOCK, 20 * BLOCK] {
        assert_eq!(walk(&[&vec![0; len]]), Ok(TableOfContents::default()), "{len} zeros");
    }
    assert!(walk(&[&[0; 100]]).is_err());
    assert!(walk(&[&[0; BLOCK + 1]]).is_err(), "half of the second end block");
}

#[test]
fn nothing_counts_after_the_end_mark_and_half_a_mark_ends_nothing() {
    let a = entry(b'0', "a", b"");
    assert_eq!(walk(&[&a, &END, &a, b"rubbish"]).unwrap().len(), 1);
    let error = message(&[&a, &END[..BLOCK], &a]);
    assert_eq!(error, "tar header at stream offset 1024: only one block of zeros is in front of it");
}

#[test]
fn a_plain_entry_has_the_fields_of_its_header() {
    let bytes = entry(b'0', "dir/a", b"hello");
    let expected = TocEntry {
        path: b"dir/a".to_vec(),
        kind: file(5, 512),
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: UnixTime { secs: 3, nanos: 0 },
        xattrs: vec![],
        header: 0,
    };
    assert_eq!(one(&[&bytes, &END]), expected);
}

#[test]
fn a_cut_entry_is_an_error_and_missing_padding_or_end_mark_is_not() {
    let archive = [entry(b'0', "a", b""), entry(b'0', "b", b"hello"), END.to_vec()].concat();
    for size in 0..archive.len() {
        let entries = walk(&[&archive[..size]]).map(|toc| toc.len());
        match size {
            0 => assert_eq!(entries, Ok(0)),
            512 => assert_eq!(entries, Ok(1)),
            1029..=1536 | 2048 => assert_eq!(entries, Ok(2), "{size}"),
            _ => assert!(entries.is_err(), "{size}"),
        }
    }
    assert_eq!(
        message(&[&archive[..1028]]),
        "tar header at stream offset 512 (entry \"b\"): content is cut by the end of the stream at 1028"
    );
}

#[test]
fn types_without_a_place_in_a_layer_are_refused_by_name() {
    let cases = [
        (b'7', "entry type '7' (contiguous file) has no place in a layer"),
        (b'S', "entry type 'S' (old GNU sparse file) has no place in a layer"),
        (b'D', "entry type 'D' (GNU dumpdir) has no place in a layer"),
        (b'M', "entry type 'M' (GNU multivolume continuation) has no place in a layer"),
        (b'V', "entry type 'V' (GNU volume header) has no place in a layer"),
        (b'X', "entry type 'X' has no place in a layer"),
        (0xff, "entry type '\\xff' has no place in a layer"),
    ];
    for (flag, text) in cases {
        let error = walk(&[&entry(flag, "a", b""), &END]).unwrap_err();
        assert_eq!(error.to_string(), format!("tar header at stream offset 0 (entry \"a\"): {text}"));
        assert_eq!(error.fault(), FaultClass::Unsupported);
    }
}

#[test]
fn every_type_that_exists_in_a_layer_is_recognised() {
    let device = |block: &mut [u8]| block[329..345].copy_from_slice(b"0000010\x000000003\0");
    let target = || b"target".to_vec();
    let (major, minor) = (8, 3);
    let cases = [
        (b'\0', "a", file(0, 512)),
        (b'\0', "a/", TocEntryKind::Directory),
        (b'0', "a/", file(0, 512)),
        (b'1', "a", TocEntryKind::HardLink(target())),
        (b'2', "a", TocEntryKind::Symlink(target())),
        (b'3', "a", TocEntryKind::CharDevice(DeviceNumber { major, minor })),
        (b'4', "a", TocEntryKind::BlockDevice(DeviceNumber { major, minor })),
        (b'5', "a", TocEntryKind::Directory),
        (b'6', "a", TocEntryKind::Fifo),
    ];
    for (flag, name, kind) in cases {
        assert_eq!(one(&[&header(flag, name, 0, device), &END]).kind, kind);
    }
}

#[test]
fn only_regular_files_have_content_regardless_of_the_size_field() {
    let b = entry(b'0', "b", b"x");
    for flag in b'1'..=b'6' {
        let toc = walk(&[&header(flag, "a", 1 << 30, |_| {}), &b, &END]).unwrap();
        assert_eq!(nth(&toc, 1).kind, file(1, 1024));
    }
    let toc = walk(&[&header(0, "a/", 1 << 30, |_| {}), &b, &END]).unwrap();
    assert_eq!(nth(&toc, 1).kind, file(1, 1024));
}

#[test]
fn numbers_in_the_header_are_checked() {
    let bad = |at: usize| message(&[&header(b'0', "a", 0, |block| block[at] = b'9')]);
    assert_eq!(bad(124), "tar header at stream offset 0: size field is not octal");
    assert_eq!(bad(100), "tar header at stream offset 0: mode field is not octal");
    assert_eq!(bad(329), "tar header at stream offset 0: device major field is not octal");
    let base_256 = |at: usize, len: usize, value: i64| {
        move |block: &mut [u8]| {
            block[at..at + len].fill(if value < 0 { 0xff } else { 0 });
            let bytes = value.to_be_bytes();
            let taken = len.min(8);
            block[at + len - taken..at + len].copy_from_slice(&bytes[8 - taken..]);
            block[at] |= 0x80;
        }
    };
    // As lchown(2) takes them: counted down from 2^32, and -1 for the owner that is there.
    let (max, min) = (i64::from(u32::MAX), i64::from(i32::MIN));
    for (value, owner) in [(max, 0), (-1, 0), (max - 1, u32::MAX - 1), (-2, u32::MAX - 1), (min, 1 << 31)] {
        assert_eq!(one(&[&header(b'0', "a", 0, base_256(108, 8, value))]).uid, owner, "{value}");
        assert_eq!(one(&[&header(b'0', "a", 0, base_256(116, 8, value))]).gid, owner, "{value}");
    }
    let over = message(&[&header(b'0', "a", 0, base_256(108, 8, max + 1))]);
    let range = "is not in -2147483648 to 4294967295";
    assert_eq!(over, format!("tar header at stream offset 0 (entry \"a\"): uid 4294967296 {range}"));
    let under = message(&[&header(b'0', "a", 0, base_256(116, 8, min - 1))]);
    assert!(under.ends_with(&format!("gid -2147483649 {range}")), "{under}");
    let negative = message(&[&header(b'0', "a", 0, base_256(124, 12, -1))]);
    assert!(negative.ends_with("size is -1"), "{negative}");
    let past = UnixTime { secs: -86_400, nanos: 0 };
    assert_eq!(one(&[&header(b'0', "a", 0, base_256(136, 12, -86_400))]).mtime, past);
}

#[test]
fn pax_records_override_the_header_and_the_size_moves_the_next_entry() {
    let x = pax(
        b'x',
        &[
            ("path", "long/näme"),
            ("size", "513"),
            ("uid", "-2"),
            ("gid", "70000"),
            ("mtime", "-1.25"),
            ("comment", "ignored"),
            ("SCHILY.xattr.user.a", "one=two\0three"),
            ("SCHILY.xattr.user.b", ""),
            ("LIBARCHIVE.xattr.user.c", "Zm9v"),
        ],
    );
    let start = x.len() as u64;
    let toc = walk(&[&x, &header(b'0', "a", 0, |_| {}), &[1; 1024], &entry(b'0', "b", b""), &END]).unwrap();
    let first = nth(&toc, 0);
    assert_eq!(first.path, "long/näme".as_bytes());
    assert_eq!(first.kind, file(513, start + 512));
    assert_eq!((first.uid, first.gid, first.header), (u32::MAX - 1, 70_000, start));
    assert_eq!(first.mtime, UnixTime { secs: -2, nanos: 750_000_000 });
    // An empty value deletes a record.
    assert_eq!(first.xattrs, [(b"user.a".to_vec(), b"one=two\0three".to_vec())]);
    assert_eq!(nth(&toc, 1).kind, file(0, start + 512 + 1024 + 512));
}

#[test]
fn records_describe_the_next_entry_only() {
    let x = pax(b'x', &[("path", "b"), ("uid", "7")]);
    let toc = walk(&[&x, &entry(b'0', "a", b""), &entry(b'0', "c", b"")]).unwrap();
    assert_eq!((nth(&toc, 0).path.as_slice(), nth(&toc, 0).uid), (&b"b"[..], 7));
    assert_eq!((nth(&toc, 1).path.as_slice(), nth(&toc, 1).uid), (&b"c"[..], 1));
}

#[test]
fn a_size_record_does_not_apply_to_the_headers_in_between() {
    let parts = [
        pax(b'x', &[("size", "3")]),
        entry(b'L', "x", b"long\0"),
        header(b'0', "a", 0, |_| {}),
        vec![1; 512],
    ];
    let entry = one(&[&parts.concat(), &END]);
    assert_eq!((entry.path.as_slice(), entry.kind), (&b"long"[..], file(3, 512 * 5)));
}

#[test]
fn later_extended_headers_replace_earlier_ones() {
    let a = entry(b'0', "a", b"");
    let first = pax(b'x', &[("path", "first"), ("uid", "7")]);
    let second = pax(b'x', &[("path", "second")]);
    let replaced = one(&[&first, &second, &a]);
    assert_eq!((replaced.path.as_slice(), replaced.uid), (&b"second"[..], 1));
    let (one_name, two_name) = (entry(b'L', "x", b"one\0"), entry(b'L', "x", b"two\0junk"));
    assert_eq!(one(&[&one_name, &two_name, &a]).path, b"two");
    assert_eq!(one(&[&two_name, &second, &a]).path, b"two", "a GNU name wins over pax");
    let link = entry(b'K', "x", b"there\0");
    assert_eq!(one(&[&link, &entry(b'2', "a", b"")]).kind, TocEntryKind::Symlink(b"there".to_vec()));
    assert_eq!(one(&[&entry(b'L', "x", b""), &a]).path, b"a", "an empty long name is none");
}

#[test]
fn global_header_has_no_effect_and_drops_pending_extensions() {
    let a = entry(b'0', "a", b"");
    let global = pax(b'g', &[("path", "g"), ("size", "9"), ("uid", "9"), ("mtime", "rubbish")]);
    assert_eq!(one(&[&global, &a]).path, b"a");
    assert_eq!(one(&[&pax(b'x', &[("path", "b")]), &global, &a]).path, b"a");
    assert!(walk(&[&entry(b'g', "g", b"rubbish"), &a]).is_err());
}

#[test]
fn headers_that_no_entry_follows_are_nothing() {
    assert_eq!(walk(&[&pax(b'x', &[("path", "b")])]), Ok(TableOfContents::default()));
    assert_eq!(walk(&[&entry(b'L', "x", b"long"), &END]), Ok(TableOfContents::default()));
}

#[test]
fn pax_values_are_checked() {
    let a = entry(b'0', "a", b"");
    for (keyword, value) in [
        ("size", "-1"),
        ("size", "0x1"),
        ("uid", "1.5"),
        ("gid", "4294967296"),
        ("atime", "x"),
        ("ctime", "."),
    ] {
        assert!(walk(&[&pax(b'x', &[(keyword, value)]), &a]).is_err(), "{keyword}={value}");
    }
    assert!(walk(&[&pax(b'x', &[("size", ""), ("uid", ""), ("mtime", "")]), &a]).is_ok());
    assert!(
        walk(&[&pax(b'x', &[("size", "9"), ("comment", "x"), ("size", "0"), ("comment", "x")]), &a]).is_ok()
    );
    let nul = message(&[&pax(b'x', &[("path", "a\0b")]), &a]);
    assert_eq!(nul, "tar header at stream offset 0: pax record holds a NUL");
    assert!(walk(&[&pax(b'x', &[("SCHILY.xattr.", "x")]), &a]).is_err());
}

#[test]
fn links_need_a_target() {
    for flag in [b'1', b'2'] {
        let bare = header(flag, "a", 0, |block| block[157..257].fill(0));
        let error = message(&[&bare]);
        assert_eq!(error, "tar header at stream offset 0 (entry \"a\"): link has no target");
    }
}

fn sparse(size: u64, offset: u64, runs: &[(u64, u64)]) -> TocEntryKind {
    let runs = runs.iter().map(|&(offset, len)| SparseRun { offset, len }).collect();
    TocEntryKind::File(FileContent { size, offset, runs: Some(runs) })
}

#[test]
fn the_three_pax_sparse_forms_give_real_size_and_runs() {
    let next = entry(b'0', "next", b"");
    let stored = entry(b'0', "GNUSparseFile.0/a", b"aaabbbbb");
    let zero_zero = pax(
        b'x',
        &[
            ("GNU.sparse.size", "60000000000"),
            ("GNU.sparse.numblocks", "3"),
            ("GNU.sparse.offset", "0"),
            ("GNU.sparse.numbytes", "3"),
            ("GNU.sparse.offset", "1000"),
            ("GNU.sparse.numbytes", "5"),
            ("GNU.sparse.offset", "60000000000"),
            ("GNU.sparse.numbytes", "0"),
        ],
    );
    let zero_one = pax(
        b'x',
        &[
            ("GNU.sparse.size", "60000000000"),
            ("GNU.sparse.numblocks", "3"),
            ("GNU.sparse.name", "real"),
            ("GNU.sparse.map", "0,3,1000,5,60000000000,0"),
        ],
    );
    let runs = [(0, 3), (1000, 5)];
    for (x, name) in [(&zero_zero, "GNUSparseFile.0/a"), (&zero_one, "real")] {
        let toc = walk(&[x, &stored, &next]).unwrap();
        assert_eq!(nth(&toc, 0).path, name.as_bytes());
        assert_eq!(nth(&toc, 0).kind, sparse(60_000_000_000, 1536, &runs));
        assert_eq!(nth(&toc, 1).kind, file(0, 1536 + 1024));
    }
    let one_zero = pax(
        b'x',
        &[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "real"),
            ("GNU.sparse.realsize", "60000000000"),
        ],
    );
    let mut content = b"3\n0\n3\n1000\n5\n60000000000\n0\n".to_vec();
    content.resize(BLOCK, 0);
    content.extend_from_slice(b"aaabbbbb");
    let stored = entry(b'0', "GNUSparseFile.0/a", &content);
    let toc = walk(&[&one_zero, &stored, &next]).unwrap();
    assert_eq!(nth(&toc, 0).path, b"real");
    assert_eq!(nth(&toc, 0).kind, sparse(60_000_000_000, 1536 + 512, &runs));
    assert_eq!(nth(&toc, 1).kind, file(0, 1536 + 1024 + 512));
    let whole = [&one_zero[..], &stored].concat();
    for size in 1537..1536 + 520 {
        assert!(walk(&[&whole[..size]]).is_err(), "{size}");
    }
    assert!(walk(&[&whole[..1536 + 520]]).is_ok());
}

#[test]
fn sparse_maps_that_do_not_fit_are_errors() {
    let body = entry(b'0', "a", b"12345678");
    let map = |map, size, blocks| {
        let records = [("GNU.sparse.map", map), ("GNU.sparse.size", size), ("GNU.sparse.numblocks", blocks)];
        walk(&[&pax(b'x', &records), &body]).map(|toc| toc.len())
    };
    assert_eq!(map("0,8", "8", "1"), Ok(1));
    for (runs, size, blocks) in [
        ("0,8", "8", "2"),
        ("0,8", "7", "1"),
        ("0,7", "8", "1"),
        ("0,9", "9", "1"),
        ("0,8,", "8", "1"),
        ("0,8", "8", ""),
        ("0,8", "-8", "1"),
        ("0,x", "8", "1"),
        ("4,4,0,4", "8", "2"),
        ("0,4,2,4", "8", "2"),
    ] {
        assert!(map(runs, size, blocks).is_err(), "{runs} {size} {blocks}");
    }
    let records = [("GNU.sparse.map", "0,8"), ("GNU.sparse.size", "8"), ("GNU.sparse.numblocks", "1")];
    assert!(walk(&[&pax(b'x', &records), &entry(b'5', "a", b"")]).is_err(), "a sparse directory");
    let odd = [("GNU.sparse.numbytes", "1"), ("GNU.sparse.offset", "1")];
    assert!(walk(&[&pax(b'x', &odd), &body]).is_err());
    let one_zero = pax(b'x', &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]);
    assert!(walk(&[&one_zero, &body, &body]).is_err(), "the map is not in the content");
    let nul =
        pax(b'x', &[("GNU.sparse.map", "0,8"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.name", "a\0")]);
    assert!(walk(&[&nul, &body]).is_err());
}

#[test]
fn a_sparse_map_in_the_content_counts_against_the_limits() {
    let x =
        pax(b'x', &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")]);
    let mut content = format!("{:01000}\n7\n3\n", 1).into_bytes();
    content.resize(2 * BLOCK, 0);
    content.extend_from_slice(b"abc");
    let archive = [x, entry(b'0', "a", &content)].concat();
    let with = |pax, metadata| walk_with(TarLimits { pax, metadata, ..TarLimits::default() }, &archive);
    assert_eq!(nth(&with(1024, 17).unwrap(), 0).kind, sparse(100, 2560, &[(7, 3)]));
    let error = with(1023, 17).unwrap_err().to_string();
    assert!(error.ends_with("(entry \"a\"): sparse map is over the limit of 1023 bytes"), "{error}");
    assert_eq!(with(1024, 16).unwrap_err().fault(), FaultClass::Unsupported);
}

#[test]
fn extended_headers_without_an_entry_end() {
    let (a, x, g) = (entry(b'0', "a", b""), pax(b'x', &[("path", "b")]), pax(b'g', &[("comment", "c")]));
    let long = entry(b'L', "././@LongLink", b"name\0");
    for one in [&x, &g, &long] {
        assert!(walk(&[&one.repeat(64), &a, &one.repeat(64), &a]).is_ok());
        let error = walk(&[&one.repeat(65), &a]).unwrap_err();
        assert_eq!(error.fault(), FaultClass::Unsupported, "{error}");
        assert!(error.to_string().contains("64 extended headers"), "{error}");
    }
}

#[test]
fn each_dialect_has_its_own_prefix() {
    let with = |edit: fn(&mut [u8])| {
        let bytes = header(b'0', "a", 0, |block| {
            block[345..500].fill(b'p');
            edit(block);
        });
        walk(&[&bytes]).map(|toc| nth(&toc, 0).path.len())
    };
    let star: fn(&mut [u8]) = |block| {
        block[476..500].fill(b'7');
        block[508..].copy_from_slice(b"tar\0");
    };
    let star_without_times: fn(&mut [u8]) = |block| block[508..].copy_from_slice(b"tar\0");
    let gnu_with_misplaced_prefix: fn(&mut [u8]) = |block| block[257..265].copy_from_slice(b"ustar  \0");
    let gnu: fn(&mut [u8]) = |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[345..369].fill(b'7');
    };
    assert_eq!(with(|_| {}), Ok(155 + 2));
    assert_eq!(with(star), Ok(131 + 2));
    assert!(with(star_without_times).is_err());
    assert_eq!(with(gnu_with_misplaced_prefix), Ok(155 + 2));
    assert_eq!(with(gnu), Ok(1));
    assert_eq!(with(|block| block[257..265].fill(0)), Ok(1));
}

#[test]
fn limits_hold_at_the_limit_and_one_past_it() {
    let base = TarLimits::default();
    let archive = [entry(b'0', "a", b""), entry(b'0', "b", b""), END.to_vec()].concat();
    assert!(walk_with(TarLimits { entries: 2, ..base }, &archive).is_ok());
    let error = walk_with(TarLimits { entries: 1, ..base }, &archive).unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unsupported);
    assert!(error.to_string().ends_with("archive has more than the limit of 1 entries"), "{error}");
    assert!(walk_with(TarLimits { metadata: 2, ..base }, &archive).is_ok());
    assert!(walk_with(TarLimits { metadata: 1, ..base }, &archive).is_err());

    let named = |name: &str| walk(&[&entry(b'L', "x", name.as_bytes()), &entry(b'0', "a", b"")]);
    assert!(named(&"n".repeat(255)).is_ok());
    assert!(
        named(&"n".repeat(256)).unwrap_err().to_string().ends_with("of 256 bytes is over the limit of 255")
    );
    assert!(named(&"ab/d".repeat(1024)).is_ok());
    assert!(named(&format!("{}/", "ab/d".repeat(1024))).is_err());

    let target = |len| walk(&[&entry(b'K', "x", &vec![b'/'; len]), &entry(b'2', "a", b"")]);
    assert!(target(4095).is_ok());
    assert!(target(4096).is_err());

    let x = |len: usize| {
        // "1048576 comment=" and a newline are 17 bytes.
        let text = format!("{len} comment={}\n", "c".repeat(len - 17));
        walk(&[&entry(b'x', "x", text.as_bytes()), &entry(b'0', "a", b"")])
    };
    assert!(x(1 << 20).is_ok());
    let error = x((1 << 20) + 1).unwrap_err().to_string();
    assert_eq!(
        error,
        "tar header at stream offset 0: extended header of 1048577 bytes is over the limit of 1048576"
    );
}

#[test]
fn a_size_near_the_end_of_the_number_space_is_an_entry_that_is_cut() {
    let x = pax(b'x', &[("size", "9223372036854775807")]);
    let error = message(&[&x, &entry(b'0', "a", b""), &END]);
    assert!(error.contains("content is cut by the end of the stream at"), "{error}");
}

#[test]
fn names_in_messages_are_short_and_harmless() {
    let name = format!("\u{1b}[31m{}", "x".repeat(200));
    let error = message(&[&entry(b'L', "x", name.as_bytes()), &entry(b'7', "a", b"")]);
    assert!(error.contains("(entry \"\\u{1b}[31mxxx") && error.contains("xxx...\")"), "{error}");
    assert!(error.len() < 250, "{error}");
}

#[test]
fn needs_jump_over_contents_and_cost_one_block_per_header() {
    let big = vec![7; 100_000];
    let archive = [entry(b'0', "a", &big), entry(b'0', "b", &big), END.to_vec()].concat();
    let mut walker = TarWalker::new(TarLimits::default());
    let mut needs = Vec::new();
    while let WalkerNeed::Bytes(need) = walker.need() {
        needs.push(need.start);
        walker.feed(need.start, &archive[need.start as usize..need.end as usize]).unwrap();
    }
    let step = 512 + 100_000u64.next_multiple_of(512);
    assert_eq!(needs, [0, step, 2 * step, 2 * step + 512]);
    assert_eq!(walker.finish(archive.len() as u64).unwrap().len(), 2);
}

#[test]
fn bytes_that_skip_the_need_are_refused_and_earlier_ones_are_welcome() {
    let archive = [entry(b'0', "a", b"hello"), END.to_vec()].concat();
    let mut walker = TarWalker::new(TarLimits::default());
    walker.feed(0, &archive[..300]).unwrap();
    let error = walker.feed(301, &archive[301..]).unwrap_err();
    assert_eq!(error, TarError::Gap { need: 300, given: 301 });
    assert_eq!(error.fault(), FaultClass::Usage);

    let mut walker = TarWalker::new(TarLimits::default());
    walker.feed(0, &archive[..700]).unwrap();
    walker.feed(0, &archive).unwrap();
    assert_eq!(walker.need(), WalkerNeed::Done);
    let walker = TarWalker::new(TarLimits::default());
    assert_eq!(walker.finish(2048), Err(TarError::Gap { need: 0, given: 2048 }));
}

#[test]
fn an_error_stays() {
    let bad = entry(b'7', "a", b"");
    let mut walker = TarWalker::new(TarLimits::default());
    let error = walker.feed(0, &bad).unwrap_err();
    assert_eq!(walker.need(), WalkerNeed::Done);
    assert_eq!(walker.feed(512, &END), Err(error.clone()));
    assert_eq!(walker.finish(1536), Err(error));
}
