//! That records give back what was put in, and that no bytes make them panic.

use serde::de::DeserializeSeed as _;

use super::super::{TableOfContents, TocReader, TocSeed};
use super::*;

fn entry(path: &str, kind: TocEntryKind) -> TocEntry {
    let mtime = UnixTime { secs: -1, nanos: 999_999_999 };
    TocEntry {
        path: path.into(),
        kind,
        mode: 0o7777,
        uid: 0,
        gid: u32::MAX,
        mtime,
        xattrs: vec![],
        header: 0,
    }
}

fn sparse(size: u64, runs: &[(u64, u64)]) -> TocEntryKind {
    let runs = runs.iter().map(|&(offset, len)| SparseRun { offset, len }).collect();
    TocEntryKind::File(FileContent { size, offset: 1024, runs: Some(runs) })
}

/// One entry of every kind, with the extremes of every number.
fn every() -> Vec<TocEntry> {
    let device = DeviceNumber { major: u32::MAX, minor: 0 };
    let mut entries = vec![
        entry("", TocEntryKind::Directory),
        entry("f", TocEntryKind::File(FileContent { size: u64::MAX, offset: 0, runs: None })),
        entry(&"long/".repeat(800), TocEntryKind::Symlink(vec![0xff; 4096])),
        entry("h", TocEntryKind::HardLink(b"f".to_vec())),
        entry("c", TocEntryKind::CharDevice(device)),
        entry("b", TocEntryKind::BlockDevice(DeviceNumber { major: 0, minor: 300 })),
        entry("p", TocEntryKind::Fifo),
        entry("hole", sparse(9, &[])),
        entry("s", sparse(u64::MAX, &[(0, 1), (1, 127), (1 << 40, 128), (u64::MAX, 0)])),
    ];
    entries[1].xattrs = vec![(b"user.a".to_vec(), vec![]), (b"user.b".to_vec(), vec![0; 300])];
    entries[3].mtime = UnixTime { secs: i64::MIN, nanos: 0 };
    entries[4].mtime = UnixTime { secs: i64::MAX, nanos: 1 };
    // Nothing says that headers come in order.
    for (number, entry) in entries.iter_mut().enumerate() {
        entry.header = [512, u64::MAX, 0, 1 << 40][number % 4];
    }
    entries
}

fn toc(records: &[u8]) -> Result<TableOfContents, postcard::Error> {
    postcard::from_bytes(&postcard::to_stdvec(&records.chunks(TOC_PIECE_BYTES).collect::<Vec<_>>()).unwrap())
}

#[test]
fn entries_come_back_as_they_were_put_in() {
    let entries = every();
    let mut toc = TableOfContents::default();
    assert_eq!(toc.last(), None);
    for entry in &entries {
        toc.push(entry.clone());
        assert_eq!(toc.last().unwrap().to_entry(), *entry);
    }
    assert_eq!(toc.iter().map(|entry| entry.to_entry()).collect::<Vec<_>>(), entries);
    assert_eq!((toc.len(), toc.is_empty()), (entries.len(), false));
}

#[test]
fn a_table_survives_being_kept_in_pieces() {
    for copies in [0, 1, 30] {
        let mut kept: TableOfContents = std::iter::repeat_n(every(), copies).flatten().collect();
        let bytes = postcard::to_stdvec(&kept).unwrap();
        let mut read: TableOfContents = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read, kept);
        // Whatever comes next continues where the last one stopped.
        for toc in [&mut kept, &mut read] {
            toc.push(every().remove(1));
        }
        assert_eq!(read.last().unwrap().to_entry(), every()[1]);
        assert_eq!(read, kept);
    }
}

#[test]
fn an_entry_costs_its_path_and_some_twenty_bytes() {
    let file = |number: u64| TocEntry {
        mtime: UnixTime { secs: 1_700_000_000, nanos: 0 },
        mode: 0o644,
        gid: 0,
        header: number * 1024,
        ..entry(
            &format!("dir/{number:06}"),
            TocEntryKind::File(FileContent { size: 9, offset: number * 1024 + 512, runs: None }),
        )
    };
    let toc: TableOfContents = (100_000..200_000).map(file).collect();
    assert!(toc.heap_bytes() <= 100_000 * (10 + 20), "{}", toc.heap_bytes());
}

#[test]
fn records_that_are_cut_or_changed_are_refused_or_read_to_their_end() {
    let records = every().into_iter().collect::<TableOfContents>().records;
    assert_eq!(toc(&records).unwrap().len(), every().len());
    let mut refused = 0;
    for at in 0..records.len() {
        if let Ok(toc) = toc(&records[..at]) {
            assert!(toc.len() < every().len(), "nothing is missing at {at}");
        }
        for change in [1, 0x80, 0xff] {
            let mut changed = records.clone();
            changed[at] ^= change;
            match toc(&changed) {
                Ok(toc) => {
                    assert_eq!(toc.iter().count(), toc.len());
                    assert_eq!(toc.iter().map(|entry| entry.to_entry()).collect::<TableOfContents>(), toc);
                }
                Err(_) => refused += 1,
            }
        }
    }
    // Most bytes are a link target, where every byte is right.
    assert!(refused > 500, "{refused} of {}", records.len());
}

#[test]
fn entries_beyond_the_packed_limits_are_refused() {
    let table = |entry: TocEntry| {
        let records = std::iter::once(entry).collect::<TableOfContents>().records;
        toc(&records).is_ok()
    };
    assert!(table(entry("a", sparse(9, &[(0, 4), (4, 5)]))));
    assert!(!table(entry("a", sparse(9, &[(0, 4), (3, 2)]))), "runs that overlap");
    assert!(!table(entry("a", sparse(9, &[(4, 2), (0, 2)]))), "runs out of order");
    assert!(!table(entry("a", sparse(9, &[(5, 5)]))), "a run past the end");
    assert!(!table(entry("a", sparse(9, &[(u64::MAX, 5)]))), "a run past 2^64");
    assert!(!table(entry("a\0b", TocEntryKind::Fifo)), "a NUL");
    assert!(!table(TocEntry { mode: 0o10000, ..entry("a", TocEntryKind::Fifo) }), "a mode of five digits");
    let mtime = UnixTime { secs: 0, nanos: 1_000_000_000 };
    assert!(!table(TocEntry { mtime, ..entry("a", TocEntryKind::Fifo) }), "a whole second of nanoseconds");
}

#[test]
fn numbers_have_one_form() {
    for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        let mut bytes = Vec::new();
        put(&mut bytes, number);
        assert_eq!(bytes.len(), width(number));
        assert_eq!(PackedCursor(&bytes).number(), Some(number));
        assert_eq!(PackedCursor(&bytes[..bytes.len() - 1]).number(), None);
    }
    for bad in
        [&[0x80, 0][..], &[0xff; 10], &[0x80; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
    {
        assert_eq!(PackedCursor(bad).number(), None, "{bad:?}");
    }
}

#[tokio::test]
async fn a_table_whose_head_is_on_disk_is_the_same_table() {
    let dir = tempfile::tempdir().unwrap();
    let cache = crate::cache::BlockCache::open(dir.path()).unwrap();
    let entry = |number: u64| TocEntry {
        path: format!("usr/share/{number:0200}").into_bytes(),
        kind: TocEntryKind::File(FileContent { size: number, offset: number * 1024 + 512, runs: None }),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: UnixTime::default(),
        xattrs: vec![],
        header: number * 1024,
    };
    let table: TableOfContents = (0..12_000).map(entry).collect();
    let spooled = table.clone().spooled(&cache).unwrap();
    assert!(spooled.is_spooled() && spooled.heap_bytes() < 1000);
    assert_eq!((spooled.len(), spooled.last().map(|last| last.to_entry())), (12_000, Some(entry(11_999))));
    // It is kept as the same bytes, and read from them with its head on disk or without.
    let bytes = postcard::to_stdvec(&table).unwrap();
    assert_eq!(postcard::to_stdvec(&spooled).unwrap(), bytes);
    let any = |_: &EntryRef<'_>| true;
    let seed = TocSeed(TocReader::spooling(Some(&cache), &any));
    let read = seed.deserialize(&mut postcard::Deserializer::from_bytes(&bytes)).unwrap();
    assert!(read.is_spooled() && read.heap_bytes() < 2 * super::super::SPOOLED_FROM);
    assert_eq!(postcard::to_stdvec(&read).unwrap(), bytes);
    for one in [spooled, read] {
        let mut whole = one.whole().await.unwrap();
        assert_eq!(whole, table);
        let next = entry(12_000);
        whole.push(next.clone());
        assert_eq!(whole.iter().last().map(|last| last.to_entry()), Some(next));
    }
    // What the check does not like is refused.
    let small = |entry: &EntryRef<'_>| entry.header < 1024 * 11_000;
    let seed = TocSeed(TocReader::spooling(Some(&cache), &small));
    assert!(seed.deserialize(&mut postcard::Deserializer::from_bytes(&bytes)).is_err());
}
