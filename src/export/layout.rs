//! A directory in the OCI image layout.
//!
//! Changes nothing in it but what it is asked to add, and writes through no link in it. The idea: a blob is written under a hidden
//! name, hashed on its way, and named when it is whole; the index, by which others find it, comes last. Of several that write to one
//! layout each waits its turn, file by file.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use serde_json::Value;

use crate::image::{Archive, ArchiveMember};
use crate::io::{BoxFuture, ByteRange, Fault, ReadError, read_all, read_vec};
use crate::oci::{Document, MAX_DOCUMENT, REF_NAME};

use super::ExportError;
use super::archive::{Advance, CHUNK, compare, hasher};
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
    let (mut blobs, mut documents) = (Vec::new(), Vec::new());
    for member in archive.members() {
        let path = directory.join(&member.name);
        match (&member.bytes, &member.digest) {
            (None, _) => {}
            (Some(_), Some(_)) => blobs.push((member, path)),
            (Some(bytes), None) => documents.push((member.name.as_str(), path, read_all(&**bytes).await?)),
        }
    }
    // Before anything is written: a directory that is something else stays as it is.
    present(directory)?;
    make(directory)?;
    for member in archive.members().iter().filter(|member| member.bytes.is_none()) {
        make(&directory.join(&member.name))?;
    }
    // What was interrupted is a layout already, to which the next run adds; the index comes last: until it is there, nobody looks
    // for the blobs.
    documents.sort_by_key(|(name, ..)| *name == "index.json");
    let mut report = LayoutReport::default();
    for (name, path, mut bytes) in documents {
        if name == "index.json" {
            write_blobs(&blobs, &mut report, advance).await?;
        }
        let file = Replacement::begin_in_turn(&path).await?;
        // Only now nobody else adds to it.
        if name == "index.json"
            && let Some(before) = present(directory)?
        {
            bytes = joined(&before, &bytes, &path)?;
        }
        file.write_at(&bytes, 0)?;
        file.commit()?;
        advance(bytes.len() as u64);
    }
    Ok(report)
}

async fn write_blobs(
    blobs: &[(&ArchiveMember, PathBuf)],
    report: &mut LayoutReport,
    advance: Advance<'_>,
) -> Result<(), ExportError> {
    let writes = blobs.iter().map(|(member, path)| -> BoxFuture<'_, Result<bool, ExportError>> {
        Box::pin(blob(member, path, advance))
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

/// The index of a layout that is there; `None` when there is nothing.
fn present(directory: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    let mut entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(ExportError::file(directory))?,
    };
    // What was begun and is not a layout yet has nothing else.
    if entries.all(|entry| entry.is_ok_and(|entry| BEGUN.iter().any(|name| entry.file_name() == *name))) {
        return Ok(None);
    }
    if !directory.join("oci-layout").is_file() {
        return Err(ExportError::place(directory, "is neither empty nor an OCI image layout"));
    }
    let path = directory.join("index.json");
    let mut bytes = Vec::new();
    match File::open(&path) {
        // What was interrupted before its index was there is written anew.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file
            .and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes))
            .map_err(ExportError::file(&path))?,
    };
    match Document::parse(&bytes, None) {
        Ok(Document::Index(_)) => Ok(Some(bytes)),
        _ => Err(ExportError::place(&path, "is no index that can be added to")),
    }
}

/// A directory that is there and is no link to another place.
fn make(directory: &Path) -> Result<(), ExportError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(ExportError::file(directory)),
    }
    // With a slash at its end a link would be followed.
    let plain: PathBuf = directory.components().collect();
    let found = fs::symlink_metadata(&plain).map_err(ExportError::file(directory))?;
    if found.is_dir() { Ok(()) } else { Err(ExportError::place(&plain, "is no directory")) }
}

/// Writes a blob unless it is there; whether it was written.
async fn blob(member: &ArchiveMember, path: &Path, advance: Advance<'_>) -> Result<bool, ExportError> {
    let Some(bytes) = &member.bytes else { return Ok(false) };
    let size = bytes.size();
    if is_there(member, path)? {
        advance(size);
        return Ok(false);
    }
    let file = Replacement::begin_in_turn(path).await?;
    // Whoever was waited for may have written it.
    if is_there(member, path)? {
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
fn is_there(member: &ArchiveMember, path: &Path) -> Result<bool, ExportError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() == member.size() => {}
        _ => return Ok(false),
    }
    let mut file = File::open(path).map_err(ExportError::file(path))?;
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
        assert_eq!(present(&dir.path().join("new")).unwrap(), None);
        assert_eq!(present(dir.path()).unwrap(), None);
        fs::write(dir.path().join("thesis.txt"), b"years").unwrap();
        assert!(present(dir.path()).unwrap_err().to_string().contains("neither empty nor"));
        std::os::unix::fs::symlink("/etc", dir.path().join("blobs")).unwrap();
        assert!(make(&dir.path().join("blobs/")).is_err());
    }
}
