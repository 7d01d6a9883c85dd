//! A directory in the OCI image layout.
//!
//! Changes nothing in it but what it is asked to add, and writes through no link in it: its directories are held open, and all names
//! are relative to them. A blob is written under a hidden name, hashed on its way, and named when it is whole; the index, by which
//! others find it, comes last. Of several that write to one layout each waits its turn, file by file.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;
use serde_json::Value;

use crate::image::{Archive, ArchiveMember};
use crate::io::{BoxFuture, ByteRange, Fault, ReadError, read_all, read_vec};
use crate::oci::{Document, MAX_DOCUMENT, REF_NAME};
use crate::owner::is_trusted_user;

use super::ExportError;
use super::archive::{Advance, CHUNK, compare, hasher};
use super::place::{Destination, LIST, failed, is_taken};
use super::replace::Replacement;

/// Blobs that are written at once.
const PARALLEL: usize = 4;

/// The annotation by which containerd finds the name of an image.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// What is in a directory before it is a layout.
const BEGUN: [&str; 2] = ["blobs", ".oci-layout.ocifs-part"];

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayoutReport {
    /// Blobs and documents that were written.
    pub written: usize,
    /// Those that were there already.
    pub present: usize,
}

/// Writes what is in `archive`, which has the form of a layout alone, to `directory`: one that is not there yet, is empty, or is a layout,
/// which then has more images than before. An image of the same name is replaced.
pub async fn write_layout(
    archive: &Archive,
    directory: &Path,
    advance: Advance<'_>,
) -> Result<LayoutReport, ExportError> {
    let destination = Destination::find(directory)?;
    // Before anything is written: a directory that is something else stays as it is.
    if destination.found()?.is_some() {
        present(&opened(&destination)?, directory)?;
    }
    let mut held = BTreeMap::from([(String::new(), made(&destination)?)]);
    let (mut blobs, mut documents) = (Vec::new(), Vec::new());
    for member in archive.members() {
        let (above, name) = split(&member.name);
        let Some(parent) = held.get(above) else { continue };
        let path = directory.join(&member.name);
        match (&member.bytes, &member.digest) {
            (None, _) => {
                let below = made(&Destination::in_directory(parent, name, &path)?)?;
                held.insert(member.name.trim_end_matches('/').to_owned(), below);
            }
            (Some(_), Some(_)) => blobs.push((member, Place::of(parent, name, path)?)),
            (Some(bytes), None) => {
                let place = Place::of(parent, name, path)?;
                documents.push((member.name.as_str(), place, read_all(&**bytes).await?));
            }
        }
    }
    // What was interrupted is a layout already, to which the next run adds; the index comes last: until it is there, no reader looks
    // for the blobs.
    documents.sort_by_key(|(name, ..)| *name == "index.json");
    let mut report = LayoutReport::default();
    for (name, place, mut bytes) in documents {
        if name == "index.json" {
            write_blobs(&blobs, &mut report, advance).await?;
        }
        let file = place.begin().await?;
        // From here on no other run adds to it.
        if name == "index.json"
            && let Some(before) = present(&place.directory, directory)?
        {
            bytes = joined(&before, &bytes, &place.path)?;
        }
        file.write_at(&bytes, 0)?;
        file.commit()?;
        advance(bytes.len() as u64);
    }
    Ok(report)
}

/// A file of a layout.
struct Place {
    directory: OwnedFd,
    name: OsString,
    /// For messages.
    path: PathBuf,
}

impl Place {
    fn of(parent: &OwnedFd, name: &OsStr, path: PathBuf) -> Result<Self, ExportError> {
        let directory = parent.try_clone().map_err(ExportError::file(&path))?;
        Ok(Self { directory, name: name.to_owned(), path })
    }

    async fn begin(&self) -> Result<Replacement, ExportError> {
        Replacement::begin_in_turn(&self.directory, &self.name, &self.path).await
    }
}

/// The directory of a member of a layout, and its name there.
fn split(name: &str) -> (&str, &OsStr) {
    let name = name.trim_end_matches('/');
    let (above, name) = name.rsplit_once('/').unwrap_or(("", name));
    (above, OsStr::new(name))
}

async fn write_blobs(
    blobs: &[(&ArchiveMember, Place)],
    report: &mut LayoutReport,
    advance: Advance<'_>,
) -> Result<(), ExportError> {
    let writes = blobs.iter().map(|(member, place)| -> BoxFuture<'_, Result<bool, ExportError>> {
        Box::pin(blob(member, place, advance))
    });
    let mut writes = futures_util::stream::iter(writes).buffer_unordered(PARALLEL);
    while let Some(written) = writes.next().await {
        match written? {
            true => report.written += 1,
            false => report.present += 1,
        }
    }
    Ok(())
}

/// The index of the layout in a directory; `None` where the directory is empty.
fn present(directory: &OwnedFd, path: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    let mut entries = Dir::read_from(directory).map_err(failed(path))?;
    // What was begun and is not a layout yet has nothing else.
    let is_begun =
        |name: &[u8]| matches!(name, b"." | b"..") || BEGUN.iter().any(|begun| name == begun.as_bytes());
    if entries.all(|entry| entry.is_ok_and(|entry| is_begun(entry.file_name().to_bytes()))) {
        return Ok(None);
    }
    let follow = match is_own_link(directory, OsStr::new("oci-layout")) {
        true => AtFlags::empty(),
        false => AtFlags::SYMLINK_NOFOLLOW,
    };
    let marker = statat(directory, "oci-layout", follow);
    if !marker.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile) {
        return Err(ExportError::place(path, "is neither empty nor an OCI image layout"));
    }
    let index = path.join("index.json");
    let mut bytes = Vec::new();
    match read_at(directory, OsStr::new("index.json"), &index)? {
        // What was interrupted before its index was there is written anew.
        None => return Ok(None),
        Some(file) => {
            file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(ExportError::file(&index))?
        }
    };
    match Document::parse(&bytes, None) {
        Ok(Document::Index(_)) => Ok(Some(bytes)),
        _ => Err(ExportError::place(&index, "is no index that can be added to")),
    }
}

/// A directory, made unless it is there, and no link to another place.
fn made(destination: &Destination) -> Result<OwnedFd, ExportError> {
    if let Some(name) = destination.name() {
        match mkdirat(destination.directory(), name, Mode::from_raw_mode(0o777)) {
            Err(errno) if !is_taken(errno) => return Err(destination.failed()(errno)),
            _ => {}
        }
    }
    opened(destination)
}

fn opened(destination: &Destination) -> Result<OwnedFd, ExportError> {
    let name = destination.name().unwrap_or(OsStr::new("."));
    match openat(destination.directory(), name, LIST, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => Err(ExportError::place(destination.path(), "is no directory")),
        opened => opened.map_err(destination.failed()),
    }
}

/// Whether the name is a symbolic link that this user or root made. Only such a link is followed for reading.
fn is_own_link(directory: &OwnedFd, name: &OsStr) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::Symlink && is_trusted_user(found.st_uid)
    })
}

/// A regular file in a held directory; `None` when there is none of this name.
fn read_at(directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<File>, ExportError> {
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !is_own_link(directory, name));
    let file = match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened.map_err(failed(path))?),
    };
    match file.metadata().map_err(ExportError::file(path))?.is_file() {
        true => Ok(Some(file)),
        false => Err(ExportError::place(path, "is no file")),
    }
}

/// Writes a blob unless it is there; whether it was written.
async fn blob(member: &ArchiveMember, place: &Place, advance: Advance<'_>) -> Result<bool, ExportError> {
    let Some(bytes) = &member.bytes else { return Ok(false) };
    let size = bytes.size();
    if is_there(member, place)? {
        advance(size);
        return Ok(false);
    }
    let file = place.begin().await?;
    // The run that was waited for may have written it.
    if is_there(member, place)? {
        advance(size);
        return Ok(false);
    }
    let mut hash = hasher(member)?;
    for start in (0..size).step_by(CHUNK as usize) {
        let range = ByteRange::new(start, (start + CHUNK).min(size));
        let chunk = read_vec(&**bytes, range).await.map_err(|error| error.within(member.name.clone()))?;
        hash.update(&chunk);
        file.write_at(&chunk, start)?;
        advance(range.len());
    }
    compare(member.digest.as_ref(), hash)?;
    file.commit()?;
    Ok(true)
}

/// Whether a file has the bytes of a blob.
fn is_there(member: &ArchiveMember, place: &Place) -> Result<bool, ExportError> {
    let path = &place.path;
    match statat(&place.directory, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {}
        _ => return Ok(false),
    }
    let Some(mut file) = read_at(&place.directory, &place.name, path)? else { return Ok(false) };
    if file.metadata().map_err(ExportError::file(path))?.len() != member.size() {
        return Ok(false);
    }
    let mut hash = hasher(member)?;
    let mut chunk = vec![0; CHUNK as usize];
    loop {
        let len = file.read(&mut chunk).map_err(ExportError::file(path))?;
        if len == 0 {
            break;
        }
        hash.update(&chunk[..len]);
    }
    Ok(compare(member.digest.as_ref(), hash).is_ok())
}

/// The index with the entries of `added`, which take the place of those of the same name. Nothing else of it is lost.
fn joined(before: &[u8], added: &[u8], path: &Path) -> Result<Vec<u8>, ExportError> {
    let failed =
        |error: serde_json::Error| ReadError::caused(Fault::Malformed, format!("{}", path.display()), error);
    let mut index: Value = serde_json::from_slice(before).map_err(failed)?;
    let added: Value = serde_json::from_slice(added).map_err(failed)?;
    let added = added.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    let annotation =
        |entry: &Value, key: &str| entry.get("annotations").and_then(|all| all.get(key)).cloned();
    let name = |entry: &Value| [annotation(entry, IMAGE_NAME), annotation(entry, REF_NAME)];
    let same = |one: &Value, other: &Value| {
        name(one) == name(other) && (name(one) != [None, None] || one.get("digest") == other.get("digest"))
    };
    if let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        entries.retain(|entry| !added.iter().any(|new| same(entry, new)));
        entries.extend(added);
    }
    Ok(serde_json::to_vec(&index).map_err(failed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_gets_entries_by_their_names_and_keeps_what_it_has() {
        let entry = |name: &str, digest: &str| serde_json::json!({"digest": digest, "size": 1, "annotations": {"org.opencontainers.image.ref.name": name}});
        let before = serde_json::json!({
            "schemaVersion": 2, "x": [1], "manifests": [entry("a", "1"), entry("b", "2"), {"digest": "3"}]
        });
        let added = serde_json::json!({"manifests": [entry("b", "4"), entry("c", "1"), {"digest": "3"}]});
        let joined =
            joined(before.to_string().as_bytes(), added.to_string().as_bytes(), Path::new("x")).unwrap();
        let joined: Value = serde_json::from_slice(&joined).unwrap();
        assert_eq!(joined["x"][0], 1);
        let digests: Vec<&str> = joined["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["digest"].as_str().unwrap())
            .collect();
        assert_eq!(digests, ["1", "4", "1", "3"]);
    }

    #[test]
    fn a_directory_that_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let found = |path: &Path| Destination::find(path).unwrap();
        let present = || super::present(&opened(&found(dir.path())).unwrap(), dir.path());
        assert_eq!(present().unwrap(), None);
        std::fs::write(dir.path().join("thesis.txt"), b"years").unwrap();
        assert!(present().unwrap_err().to_string().contains("neither empty nor"));
        let top = made(&found(dir.path())).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("blobs")).unwrap();
        let blobs = Destination::in_directory(&top, OsStr::new("blobs"), Path::new("blobs")).unwrap();
        assert!(made(&blobs).unwrap_err().to_string().contains("is no directory"));
    }
}
