//! Member index of a tar archive: the offset of each file by its name.
//!
//! Reads only headers, and rejects archives that readers interpret differently. Images are found by exact names. So
//! two members of one name, a name outside the root, and a sparse file stored without its holes are errors of the
//! archive, found before any content is read.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use crate::io::{ByteRange, FaultClass, FetchAll, RangeFetch, read_vec};
use crate::layer::{TableOfContents, TarLimits, TarWalker, TocEntryKind, WalkerNeed};
use crate::source::SourceError;

/// Minimum bytes read at each header, so that small adjacent files need one read.
const HEADER_READ_BYTES: u64 = 32 * 1024;
/// Maximum members of an archive; one of the largest images has some hundreds.
const MAX_MEMBERS: u64 = 100_000;
/// Maximum bytes of all names together.
const MAX_NAMES: u64 = 64 * 1024 * 1024;
/// Maximum length of a chain of links.
const MAX_LINKS: usize = 16;

/// A member of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
enum IndexedMember {
    /// A file and its range.
    File(ByteRange),
    /// A link to another name.
    Link(String),
    /// A directory or a device, without content.
    Other,
}

/// All names of an archive.
#[derive(Debug)]
pub(super) struct MemberIndex {
    place: String,
    members: HashMap<String, IndexedMember>,
}

impl MemberIndex {
    /// Walks the headers of `archive`, called `place` in messages.
    pub(super) async fn read(archive: &Arc<dyn RangeFetch>, place: &str) -> Result<Self, SourceError> {
        let limits = TarLimits { entries: MAX_MEMBERS, metadata: MAX_NAMES, ..TarLimits::default() };
        let mut walker = TarWalker::new(limits);
        let bytes = FetchAll(archive.clone());
        let size = archive.size();
        let wrong = |error: crate::layer::TarError| SourceError::Archive {
            place: place.to_owned(),
            reason: error.to_string(),
            fault: error.fault(),
        };
        while let WalkerNeed::Bytes(need) = walker.need() {
            if need.start >= size {
                break;
            }
            let want = ByteRange::new(need.start, need.end.max(need.start + HEADER_READ_BYTES).min(size));
            walker.feed(want.start, &read_vec(&bytes, want).await?).map_err(wrong)?;
            if want.end == size {
                break;
            }
        }
        let toc = walker.finish(size).map_err(wrong)?;
        Self::of(&toc, size, place)
    }

    fn of(toc: &TableOfContents, size: u64, place: &str) -> Result<Self, SourceError> {
        let mut table = Self { place: place.to_owned(), members: HashMap::new() };
        for entry in toc {
            let shown = || String::from_utf8_lossy(entry.path).escape_debug().to_string();
            // Images name files in UTF-8 only.
            let Ok(path) = std::str::from_utf8(entry.path) else { continue };
            let climbs = || table.refused(format!("the member \"{}\" lies outside of the archive", shown()));
            let name = joined("", path).ok_or_else(climbs)?;
            let link = |target: &[u8], from: &str| {
                // A dangling link is an error only when it is followed.
                let target = std::str::from_utf8(target).ok().and_then(|target| joined(from, target));
                target.map_or(IndexedMember::Other, IndexedMember::Link)
            };
            let member = match entry.kind {
                TocEntryKind::File(content) if content.runs.is_some() => {
                    return Err(table.unsupported(format!(
                        "the member \"{}\" is stored without its holes; write the archive without --sparse",
                        shown()
                    )));
                }
                TocEntryKind::File(content) => {
                    let range = ByteRange::at(content.offset, content.size);
                    if range.end > size || range.len() != content.size {
                        return Err(table.refused(format!(
                            "the member \"{}\" ends after the end of the archive",
                            shown()
                        )));
                    }
                    IndexedMember::File(range)
                }
                TocEntryKind::Symlink(target) => link(target, parent(&name)),
                TocEntryKind::HardLink(target) => link(target, ""),
                TocEntryKind::Directory => IndexedMember::Other,
                TocEntryKind::CharDevice(_) | TocEntryKind::BlockDevice(_) | TocEntryKind::Fifo => {
                    IndexedMember::Other
                }
            };
            match table.members.entry(name) {
                Slot::Vacant(slot) => {
                    slot.insert(member);
                }
                // A directory may be listed before each of its files.
                Slot::Occupied(slot)
                    if *slot.get() == IndexedMember::Other && member == IndexedMember::Other => {}
                Slot::Occupied(_) => {
                    return Err(table.refused(format!("the member \"{}\" occurs twice", shown())));
                }
            }
        }
        Ok(table)
    }

    /// The range of the file `name`, with links followed; `None` without such a name.
    pub(super) fn find(&self, name: &str) -> Result<Option<ByteRange>, SourceError> {
        let shown = || name.escape_debug();
        let Some(mut at) = joined("", name) else {
            return Err(self.refused(format!("the name \"{}\" leads outside of the archive", shown())));
        };
        for _ in 0..MAX_LINKS {
            match self.members.get(&at) {
                None => return Ok(None),
                Some(IndexedMember::File(range)) => return Ok(Some(*range)),
                Some(IndexedMember::Link(next)) => at.clone_from(next),
                Some(IndexedMember::Other) => {
                    return Err(self.refused(format!("the member \"{}\" is no file", shown())));
                }
            }
        }
        Err(self.refused(format!("the links of the member \"{}\" lead in a circle", shown())))
    }

    /// The names in `directory`, which ends with a slash.
    pub(super) fn below<'a>(&'a self, directory: &'a str) -> impl Iterator<Item = &'a str> {
        self.members.keys().filter_map(move |name| name.strip_prefix(directory))
    }

    /// An error for an invalid archive.
    pub(super) fn refused(&self, reason: String) -> SourceError {
        SourceError::Archive { place: self.place.clone(), reason, fault: FaultClass::Malformed }
    }

    /// An error for a valid archive with an unsupported feature.
    pub(super) fn unsupported(&self, reason: String) -> SourceError {
        SourceError::Archive { place: self.place.clone(), reason, fault: FaultClass::Unsupported }
    }
}

/// The directory of a name.
fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `path` relative to the directory `from`, without `.` and `..`; `None` if it is outside the archive.
fn joined(from: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use crate::io::RangeFetch;
    use crate::source::LocalFile;

    use super::*;

    fn header(name: &str, kind: tar::EntryType, size: u64, link: &str) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        let field = &mut header.as_old_mut().linkname;
        field[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn member(name: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, tar::EntryType::Regular, body.len() as u64, "").as_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn link(name: &str, target: &str, kind: tar::EntryType) -> Vec<u8> {
        header(name, kind, 0, target).as_bytes().to_vec()
    }

    async fn table(members: &[Vec<u8>]) -> Result<MemberIndex, SourceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, [members.concat(), vec![0; 1024]].concat()).unwrap();
        let file: Arc<dyn RangeFetch> = Arc::new(LocalFile::open(&path).unwrap());
        MemberIndex::read(&file, "a.tar").await
    }

    #[tokio::test]
    async fn files_are_found_by_clean_names_and_through_links() {
        let table = table(&[
            member("./a", b"first"),
            member("d/b", &[7; 100_000]),
            link("d/c", "../a", tar::EntryType::Symlink),
            link("e", "d/c", tar::EntryType::Link),
            link("out", "../x", tar::EntryType::Symlink),
            header("d/", tar::EntryType::Directory, 0, "").as_bytes().to_vec(),
        ])
        .await
        .unwrap();
        let first = Some(ByteRange::at(512, 5));
        for name in ["a", "./a", "d/../a", "d/c", "e"] {
            assert_eq!(table.find(name).unwrap(), first, "{name}");
        }
        assert_eq!(table.find("d/b").unwrap().unwrap().len(), 100_000);
        assert_eq!(table.find("none").unwrap(), None);
        for name in ["out", "d", "../a", "/a"] {
            assert_eq!(table.find(name).unwrap_err().fault(), FaultClass::Malformed, "{name}");
        }
    }

    #[tokio::test]
    async fn an_archive_that_readers_would_disagree_about_is_refused_with_the_reason() {
        let mut cut = member("a", b"xx");
        cut.extend(header("b", tar::EntryType::Regular, 1 << 40, "").as_bytes());
        // A file of 1 MiB of which five bytes are stored, as GNU tar writes it with --sparse --format=posix.
        let records = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n21 GNU.sparse.name=s\n31 GNU.sparse.realsize=1048576\n";
        let mut extension =
            header("x", tar::EntryType::XHeader, records.len() as u64, "").as_bytes().to_vec();
        extension.extend_from_slice(records.as_bytes());
        extension.resize(1024, 0);
        let sparse = [extension, member("s", &[&b"1\n0\n5\n"[..], &[0; 506], b"bytes"].concat())].concat();
        let rows: Vec<(Vec<Vec<u8>>, &str)> = vec![
            (vec![member("a", b"1"), member("./a", b"2")], "occurs twice"),
            (vec![member("../a", b"1")], "outside"),
            (vec![member("/a", b"1")], "outside"),
            (vec![member("x/../../a", b"1")], "outside"),
            (vec![cut], "cut"),
            (vec![sparse], "--sparse"),
        ];
        for (members, words) in rows {
            let error = table(&members).await.unwrap_err();
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        let circle = [link("a", "b", tar::EntryType::Symlink), link("b", "a", tar::EntryType::Symlink)];
        let error = table(&circle).await.unwrap().find("a").unwrap_err();
        assert!(error.to_string().contains("circle"), "{error}");
    }
}
