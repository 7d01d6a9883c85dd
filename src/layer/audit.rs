//! Audit of a foreign index: its claims are compared with the layer itself.
//!
//! The result is "equal" or the first difference. Neither side is assumed to be small. Names and attributes are
//! compared entry by entry, because every format lists them in the order of the archive. Then every file is read
//! through both span maps.

use std::borrow::Cow;

use crate::io::{ByteRange, ReadAt as _, ReadError, SharedReader, read_vec};

use super::file_reader;
use super::foreign::{self, IndexKind};
use super::toc::{EntryRef, SharedContent, TableOfContents, TocEntry, TocEntryKind, UnixTime};

/// Bytes compared at once.
const AUDIT_READ_BYTES: u64 = 1024 * 1024;

/// Whether the archive has this entry only for its index.
fn is_hidden(kind: IndexKind, path: &[u8]) -> bool {
    matches!(kind, IndexKind::Estargz | IndexKind::ZstdChunked) && foreign::is_marker(path)
}

/// The name that every writer of an index agrees on: relative, without a trailing slash.
pub(super) fn plain(path: &[u8]) -> Cow<'_, [u8]> {
    let mut parts = path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let Some(first) = parts.next() else { return Cow::Borrowed(b"") };
    let rest: Vec<&[u8]> = parts.collect();
    if rest.is_empty() {
        return Cow::Borrowed(first);
    }
    Cow::Owned([&[first], &rest[..]].concat().join(&b'/'))
}

/// The first difference of names and attributes; `None` for equal ones.
pub(super) fn names_differ(
    kind: IndexKind,
    claimed: &TableOfContents,
    own: &TableOfContents,
) -> Option<String> {
    let root = |toc: &TableOfContents| {
        toc.iter().filter(|entry| plain(entry.path).is_empty()).last().map(|it| it.to_entry())
    };
    if let (Some(theirs), Some(ours)) = (root(claimed), root(own))
        && let Some(what) = attributes_differ(&theirs, &ours)
    {
        return Some(format!("{what} of the root directory differs"));
    }
    // Some archives list the root itself, and few indexes do.
    let listed = |entry: &EntryRef<'_>| {
        let path = plain(entry.path);
        !path.is_empty() && !is_hidden(kind, &path)
    };
    let (mut claimed, mut own) = (
        claimed.iter().filter(listed).map(|entry| entry.to_entry()),
        own.iter().filter(listed).map(|entry| entry.to_entry()),
    );
    loop {
        let (theirs, ours) = match (claimed.next(), own.next()) {
            (None, None) => return None,
            (Some(theirs), Some(ours)) => (theirs, ours),
            (Some(theirs), None) => {
                return Some(format!("it lists {}, which the layer lacks", shown(&theirs)));
            }
            (None, Some(ours)) => return Some(format!("it does not list {}", shown(&ours))),
        };
        if plain(&theirs.path) != plain(&ours.path) {
            return Some(format!("it lists {} where the layer has {}", shown(&theirs), shown(&ours)));
        }
        if let Some(what) = attributes_differ(&theirs, &ours) {
            return Some(format!("{what} of {} differs", shown(&ours)));
        }
    }
}

fn attributes_differ(theirs: &TocEntry, ours: &TocEntry) -> Option<&'static str> {
    let same_kind = match (&theirs.kind, &ours.kind) {
        (TocEntryKind::File(theirs), TocEntryKind::File(ours)) => theirs.size == ours.size,
        (TocEntryKind::HardLink(theirs), TocEntryKind::HardLink(ours)) => plain(theirs) == plain(ours),
        (theirs, ours) => theirs == ours,
    };
    let sorted = |entry: &TocEntry| {
        let mut xattrs = entry.xattrs.clone();
        xattrs.sort();
        xattrs
    };
    let pairs = [
        ("the type, size or target", same_kind),
        ("the mode", theirs.mode == ours.mode || matches!(ours.kind, TocEntryKind::Symlink(_))),
        ("the owner", (theirs.uid, theirs.gid) == (ours.uid, ours.gid)),
        ("the time", is_same_time(theirs.mtime, ours.mtime)),
        ("an extended attribute", sorted(theirs) == sorted(ours)),
    ];
    pairs.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
}

/// Compares times by the second: the formats store no fractions, and writers of eStargz round to the nearest.
fn is_same_time(theirs: UnixTime, ours: UnixTime) -> bool {
    let is_rounded = theirs.nanos == 0 && ours.nanos >= 500_000_000;
    theirs.secs == ours.secs || is_rounded && theirs.secs.checked_sub(1) == Some(ours.secs)
}

/// The files of both sides in order, as pairs of the same name.
pub(super) fn files(
    kind: IndexKind,
    claimed: &TableOfContents,
    own: &TableOfContents,
) -> Vec<(Vec<u8>, SharedContent, SharedContent)> {
    let of = |toc: &TableOfContents| -> Vec<(Vec<u8>, SharedContent)> {
        toc.iter()
            .filter(|entry| !is_hidden(kind, &plain(entry.path)))
            .filter_map(|entry| match entry.kind {
                TocEntryKind::File(content) => Some((plain(entry.path).into_owned(), content.shared())),
                _ => None,
            })
            .collect()
    };
    let pairs = of(claimed).into_iter().zip(of(own));
    pairs.map(|((name, claimed), (_, own))| (name, claimed, own)).collect()
}

/// The first file whose bytes differ. Reads every byte of every file from both streams, in order.
pub(super) async fn content_differs(
    claimed: &SharedReader,
    own: &SharedReader,
    files: Vec<(Vec<u8>, SharedContent, SharedContent)>,
) -> Result<Option<String>, ReadError> {
    for (name, theirs, ours) in files {
        let (theirs, ours) =
            (file_reader::file(claimed, &theirs, None)?, file_reader::file(own, &ours, None)?);
        let mut at = 0;
        while at < ours.size() {
            let range = ByteRange::new(at, ours.size().min(at + AUDIT_READ_BYTES));
            if read_vec(&*theirs, range).await? != read_vec(&*ours, range).await? {
                let name = String::from_utf8_lossy(&name);
                return Ok(Some(format!("bytes {range} of {name:?} differ")));
            }
            at = range.end;
        }
    }
    Ok(None)
}

fn shown(entry: &TocEntry) -> String {
    format!("{:?}", String::from_utf8_lossy(&entry.path))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::toc::FileContent;
    use super::*;
    use crate::io::MemoryReader;

    fn file(path: &str, offset: u64, size: u64) -> TocEntry {
        TocEntry {
            path: path.into(),
            kind: TocEntryKind::File(FileContent { size, offset, runs: None }),
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: UnixTime { secs: 7, nanos: 9 },
            xattrs: vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), b"2".to_vec())],
            header: 0,
        }
    }

    fn toc(entries: Vec<TocEntry>) -> TableOfContents {
        entries.into_iter().collect()
    }

    #[test]
    fn spelling_and_order_of_attributes_make_no_difference() {
        let root = TocEntry { kind: TocEntryKind::Directory, ..file("./", 0, 0) };
        let own = toc(vec![root, file("./a/b", 0, 3), file("stargz.index.json", 9, 9)]);
        let mut entry = file("a/b", 100, 3);
        entry.xattrs.reverse();
        entry.mtime.nanos = 0;
        assert_eq!(names_differ(IndexKind::Estargz, &toc(vec![entry.clone()]), &own), None);
        let differs = names_differ(IndexKind::Soci, &toc(vec![entry]), &own).unwrap();
        assert!(differs.contains("stargz.index.json"), "{differs}");
    }

    #[test]
    fn entries_that_hold_an_index_are_no_difference() {
        let own = toc(vec![file(".no.prefetch.landmark", 0, 1), file("f", 512, 3)]);
        let claimed = toc(vec![file("f", 0, 3)]);
        for (kind, equal) in
            [(IndexKind::Estargz, true), (IndexKind::ZstdChunked, true), (IndexKind::Soci, false)]
        {
            assert_eq!(names_differ(kind, &claimed, &own).is_none(), equal, "{kind}");
        }
    }

    #[test]
    fn a_time_may_be_cut_or_rounded_to_seconds_and_nothing_else() {
        let at = |secs, nanos| toc(vec![TocEntry { mtime: UnixTime { secs, nanos }, ..file("f", 0, 3) }]);
        let own = at(7, 500_000_000);
        for (secs, nanos, equal) in [(7, 0, true), (8, 0, true), (8, 1, false), (6, 0, false), (9, 0, false)]
        {
            assert_eq!(names_differ(IndexKind::Estargz, &at(secs, nanos), &own).is_none(), equal, "{secs}");
        }
        assert!(names_differ(IndexKind::Estargz, &at(8, 0), &at(7, 499_999_999)).is_some());
        assert!(names_differ(IndexKind::Estargz, &at(0, 0), &at(-1, 600_000_000)).is_none());
    }

    #[test]
    fn the_root_is_compared_where_both_sides_have_it() {
        let root = |mode| TocEntry { kind: TocEntryKind::Directory, mode, ..file("./", 0, 0) };
        let own = toc(vec![root(0o755)]);
        assert_eq!(names_differ(IndexKind::Soci, &toc(vec![]), &own), None);
        assert_eq!(names_differ(IndexKind::Soci, &own, &toc(vec![])), None);
        assert!(names_differ(IndexKind::Soci, &toc(vec![root(0o777)]), &own).unwrap().contains("root"));
    }

    #[test]
    fn every_attribute_counts() {
        let own = toc(vec![file("f", 0, 3)]);
        let changes: [fn(&mut TocEntry); 7] = [
            |entry| entry.path = b"g".to_vec(),
            |entry| entry.kind = TocEntryKind::File(FileContent { size: 4, ..FileContent::default() }),
            |entry| entry.kind = TocEntryKind::Directory,
            |entry| entry.mode = 0o4644,
            |entry| entry.gid = 0,
            |entry| entry.mtime.secs += 1,
            |entry| entry.xattrs[0].1 = b"x".to_vec(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut entry = file("f", 0, 3);
            change(&mut entry);
            assert!(names_differ(IndexKind::Soci, &toc(vec![entry]), &own).is_some(), "change {number}");
        }
        assert!(names_differ(IndexKind::Soci, &toc(vec![]), &own).is_some());
        assert!(names_differ(IndexKind::Soci, &own, &toc(vec![])).is_some());
    }

    #[tokio::test]
    async fn one_byte_is_a_difference() {
        let own_toc = toc(vec![file("f", 512, 3), file("g", 1024, 2)]);
        let their_toc = toc(vec![file("f", 0, 3), file("g", 3, 2)]);
        let mut tar = vec![0; 2048];
        tar[512..515].copy_from_slice(b"abc");
        tar[1024..1026].copy_from_slice(b"de");
        let own: SharedReader = Arc::new(MemoryReader::new(tar));
        for (bytes, equal) in [(&b"abcde"[..], true), (b"abcdx", false), (b"xbcde", false)] {
            let theirs: SharedReader = Arc::new(MemoryReader::new(bytes.to_vec()));
            let files = files(IndexKind::Estargz, &their_toc, &own_toc);
            let differs = content_differs(&theirs, &own, files).await.unwrap();
            assert_eq!(differs.is_none(), equal, "{differs:?}");
        }
    }
}
