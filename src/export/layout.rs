//! OCI image layout export: adds images to a layout directory.
//!
//! Only the new content is added, and no link in the layout is written through: its directories are held open, and
//! names are resolved relative to them. A blob is written to a hidden file, hashed on its way, and renamed when it is
//! complete. The index, which readers start from, comes last. Concurrent writers of one layout take turns, file by
//! file.

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

use crate::image::{ArchiveMember, ArchiveView};
use crate::io::concurrency::EXPORTED_BLOBS;
use crate::io::{BoxFuture, ByteRange, FaultClass, ReadError, read_all, read_vec};
use crate::oci::go_json::list_mut;
use crate::oci::{IMAGE_NAME, MAX_DOCUMENT, ManifestDocument, REF_NAME};
use crate::owner::is_trusted_user;

use super::ExportError;
use super::archive::{ARCHIVE_READ_BYTES, ExportProgress, compare, hasher};
use super::place::{ExportDestination, LIST, failed, is_taken};
use super::replace::ReplacementFile;

/// The names in a directory whose layout was begun and not yet marked as one.
const BEGUN: [&str; 2] = ["blobs", ".oci-layout.ocifs-part"];

/// The result of a layout export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayoutReport {
    /// Blobs and documents written.
    pub written: usize,
    /// Blobs that were present already.
    pub present: usize,
}

/// Writes `archive`, which has the form of a plain layout, to `directory`. The directory is absent, empty, or a
/// layout, to which the images are added. An image of the same name is replaced.
pub async fn write_layout(
    archive: &ArchiveView,
    directory: &Path,
    advance: ExportProgress<'_>,
) -> Result<LayoutReport, ExportError> {
    let destination = ExportDestination::find(directory)?;
    // Checked before any write: a directory with other content stays untouched.
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
                let below = made(&ExportDestination::in_directory(parent, name, &path)?)?;
                held.insert(member.name.trim_end_matches('/').to_owned(), below);
            }
            (Some(_), Some(_)) => blobs.push((member, LayoutPath::of(parent, name, path)?)),
            (Some(bytes), None) => {
                let place = LayoutPath::of(parent, name, path)?;
                documents.push((member.name.as_str(), place, read_all(&**bytes).await?));
            }
        }
    }
    // The layout marker is written first, so that an interrupted export is a layout that the next run completes. The
    // index comes last: without an entry in it, no reader looks for the blobs.
    documents.sort_by_key(|(name, ..)| *name == "index.json");
    let mut report = LayoutReport::default();
    for (name, place, mut bytes) in documents {
        if name == "index.json" {
            write_blobs(&blobs, &mut report, advance).await?;
        }
        let file = place.begin().await?;
        // The turn is held: until the commit no other run changes the index.
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

/// A file of a layout: a held directory and a name.
struct LayoutPath {
    directory: OwnedFd,
    name: OsString,
    /// The full path, for messages.
    path: PathBuf,
}

impl LayoutPath {
    fn of(parent: &OwnedFd, name: &OsStr, path: PathBuf) -> Result<Self, ExportError> {
        let directory = parent.try_clone().map_err(ExportError::file(&path))?;
        Ok(Self { directory, name: name.to_owned(), path })
    }

    async fn begin(&self) -> Result<ReplacementFile, ExportError> {
        ReplacementFile::begin_in_turn(&self.directory, &self.name, &self.path).await
    }
}

/// The directory of a layout's member, and the member's name in it.
fn split(name: &str) -> (&str, &OsStr) {
    let name = name.trim_end_matches('/');
    let (above, name) = name.rsplit_once('/').unwrap_or(("", name));
    (above, OsStr::new(name))
}

async fn write_blobs(
    blobs: &[(&ArchiveMember, LayoutPath)],
    report: &mut LayoutReport,
    advance: ExportProgress<'_>,
) -> Result<(), ExportError> {
    let writes = blobs.iter().map(|(member, place)| -> BoxFuture<'_, Result<bool, ExportError>> {
        Box::pin(blob(member, place, advance))
    });
    let mut writes = futures_util::stream::iter(writes).buffer_unordered(EXPORTED_BLOBS);
    while let Some(written) = writes.next().await {
        match written? {
            true => report.written += 1,
            false => report.present += 1,
        }
    }
    Ok(())
}

/// The index of the layout in a directory; `None` if the directory is empty or its layout has no index yet.
fn present(directory: &OwnedFd, path: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    let mut entries = Dir::read_from(directory).map_err(failed(path))?;
    // An export interrupted before its marker left only these names.
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
        // An export interrupted before its index: the index is written anew.
        None => return Ok(None),
        Some(file) => {
            file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(ExportError::file(&index))?
        }
    };
    match ManifestDocument::parse(&bytes, None) {
        Ok(ManifestDocument::Index(_)) => Ok(Some(bytes)),
        _ => Err(ExportError::place(&index, "is no index that can be added to")),
    }
}

/// Opens a directory, creating it if absent. A link is refused.
fn made(destination: &ExportDestination) -> Result<OwnedFd, ExportError> {
    if let Some(name) = destination.name() {
        match mkdirat(destination.directory(), name, Mode::from_raw_mode(0o777)) {
            Err(errno) if !is_taken(errno) => return Err(destination.failed()(errno)),
            _ => {}
        }
    }
    opened(destination)
}

fn opened(destination: &ExportDestination) -> Result<OwnedFd, ExportError> {
    let name = destination.name().unwrap_or(OsStr::new("."));
    match openat(destination.directory(), name, LIST, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => Err(ExportError::place(destination.path(), "is no directory")),
        opened => opened.map_err(destination.failed()),
    }
}

/// Whether the name is a symbolic link of this user or root. Only such a link is followed for reading.
fn is_own_link(directory: &OwnedFd, name: &OsStr) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::Symlink && is_trusted_user(found.st_uid)
    })
}

/// A regular file in a held directory; `None` if the name is absent.
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

/// Writes a blob unless it is present. Returns whether it was written.
async fn blob(
    member: &ArchiveMember,
    place: &LayoutPath,
    advance: ExportProgress<'_>,
) -> Result<bool, ExportError> {
    let Some(bytes) = &member.bytes else { return Ok(false) };
    let size = bytes.size();
    if is_there(member, place)? {
        advance(size);
        return Ok(false);
    }
    let file = place.begin().await?;
    // The previous holder of the turn may have written it.
    if is_there(member, place)? {
        advance(size);
        return Ok(false);
    }
    let mut hash = hasher(member)?;
    for start in (0..size).step_by(ARCHIVE_READ_BYTES as usize) {
        let range = ByteRange::new(start, (start + ARCHIVE_READ_BYTES).min(size));
        let chunk = read_vec(&**bytes, range).await.map_err(|error| error.within(member.name.clone()))?;
        hash.update(&chunk);
        file.write_at(&chunk, start)?;
        advance(range.len());
    }
    compare(member.digest.as_ref(), hash)?;
    file.commit()?;
    Ok(true)
}

/// Whether the file at `place` has the bytes of a blob.
fn is_there(member: &ArchiveMember, place: &LayoutPath) -> Result<bool, ExportError> {
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
    let mut chunk = vec![0; ARCHIVE_READ_BYTES as usize];
    loop {
        let len = file.read(&mut chunk).map_err(ExportError::file(path))?;
        if len == 0 {
            break;
        }
        hash.update(&chunk[..len]);
    }
    Ok(compare(member.digest.as_ref(), hash).is_ok())
}

/// The index with the entries of `added`, which replace entries of the same name. All other content is preserved.
fn joined(before: &[u8], added: &[u8], path: &Path) -> Result<Vec<u8>, ExportError> {
    let failed = |error: serde_json::Error| {
        ReadError::caused(FaultClass::Malformed, format!("{}", path.display()), error)
    };
    let mut index: Value = serde_json::from_slice(before).map_err(failed)?;
    let added: Value = serde_json::from_slice(added).map_err(failed)?;
    let added = added.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    let annotation =
        |entry: &Value, key: &str| entry.get("annotations").and_then(|all| all.get(key)).cloned();
    let name = |entry: &Value| [annotation(entry, IMAGE_NAME), annotation(entry, REF_NAME)];
    let same = |one: &Value, other: &Value| {
        name(one) == name(other) && (name(one) != [None, None] || one.get("digest") == other.get("digest"))
    };
    let entries = list_mut(&mut index, "manifests");
    let Some(entries) = entries else {
        let message = format!("{}: its manifests are no list", path.display());
        return Err(ReadError::new(FaultClass::Malformed, message).into());
    };
    entries.retain(|entry| !added.iter().any(|new| same(entry, new)));
    entries.extend(added);
    Ok(serde_json::to_vec(&index).map_err(failed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_index_replaces_entries_by_name_and_keeps_others() {
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
        let found = |path: &Path| ExportDestination::find(path).unwrap();
        let present = || super::present(&opened(&found(dir.path())).unwrap(), dir.path());
        assert_eq!(present().unwrap(), None);
        std::fs::write(dir.path().join("thesis.txt"), b"years").unwrap();
        assert!(present().unwrap_err().to_string().contains("neither empty nor"));
        let top = made(&found(dir.path())).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("blobs")).unwrap();
        let blobs = ExportDestination::in_directory(&top, OsStr::new("blobs"), Path::new("blobs")).unwrap();
        assert!(made(&blobs).unwrap_err().to_string().contains("is no directory"));
    }
}
