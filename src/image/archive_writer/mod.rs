//! Archive of one or several references: every name, size and position is computed from documents alone.
//!
//! Blobs are read only when a reader reaches them. An archive is headers and documents, which are in memory, and
//! blobs, joined to one [`ReadAt`](crate::io::ReadAt). So a file of a mount and a stream to a pipe have the same
//! bytes. The entries match those of containerd: sorted, each once, owned by root, dated 1970.

mod docker;
mod names;
mod select;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

pub use names::ArchiveName;
pub use select::{ArchiveOptions, ArchiveSelection, LeftOut, SelectedContent};

use crate::io::{
    ConcatReader, FaultClass, MemoryReader, ReadError, SharedReader, TAR_END, TarEntry, TarKind, tar_padding,
};
use crate::oci::{Descriptor, Digest, index_json};

use docker::TaggedImage;

/// Content of `oci-layout`, which marks a directory or an archive as an OCI image layout (image-spec
/// image-layout.md).
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveForm {
    /// An OCI image layout that is also a Docker archive, with a `manifest.json`.
    Oci,
    /// An OCI image layout only.
    OciAlone,
    /// The format of `docker save` before it supported OCI: one config and its layers for each image.
    Docker,
}

/// A computed archive with random access.
pub struct ArchiveView {
    members: Vec<ArchiveMember>,
    blobs: HashSet<Digest>,
    size: u64,
}

/// One file or directory in an archive.
pub struct ArchiveMember {
    /// Path; that of a directory ends with a slash.
    pub name: String,
    /// Permission bits.
    pub mode: u16,
    /// Digest of a blob or a document; `None` for a directory, or a file that is made for the archive.
    pub digest: Option<Digest>,
    /// Header, as encoded in the archive.
    pub header: Bytes,
    /// Content; `None` for a directory.
    pub bytes: Option<SharedReader>,
}

impl ArchiveMember {
    /// Size of the content in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |bytes| bytes.size())
    }
}

/// An entry before its position is known.
struct UnplacedFile {
    mode: u16,
    digest: Option<Digest>,
    bytes: Option<SharedReader>,
}

impl UnplacedFile {
    fn text(mode: u16, bytes: Vec<u8>) -> Self {
        Self { mode, digest: None, bytes: Some(Arc::new(MemoryReader::new(bytes))) }
    }

    fn blob(piece: &SelectedContent, selection: &ArchiveSelection) -> Self {
        Self {
            mode: 0o444,
            digest: Some(piece.descriptor.digest.clone()),
            bytes: Some(selection.bytes(piece)),
        }
    }
}

impl ArchiveView {
    /// Computes the archive of all selections, each blob once. Reads nothing.
    pub fn of(selections: &[ArchiveSelection], form: ArchiveForm) -> Result<Self, ReadError> {
        let records = match form {
            ArchiveForm::Docker => docker_records(selections)?,
            ArchiveForm::Oci | ArchiveForm::OciAlone => oci_records(selections, form)?,
        };
        let mut archive = Self { members: Vec::new(), blobs: HashSet::new(), size: TAR_END as u64 };
        for (name, UnplacedFile { mode, digest, bytes }) in records {
            let kind = bytes.as_ref().map_or(TarKind::Directory, |bytes| TarKind::File(bytes.size()));
            let header: Bytes = TarEntry::new(name.as_bytes(), kind, mode).header().into();
            let member = ArchiveMember { name, mode, digest, header, bytes };
            let padded = member.size().checked_add(tar_padding(member.size()) as u64);
            let size = padded.and_then(|padded| padded.checked_add(member.header.len() as u64));
            let size =
                size.and_then(|size| archive.size.checked_add(size)).filter(|size| *size <= i64::MAX as u64);
            archive.size = size.ok_or_else(|| {
                ReadError::new(
                    FaultClass::Malformed,
                    format!("{}: the sizes of the blobs cannot be", member.name),
                )
            })?;
            archive.blobs.extend(member.digest.clone());
            archive.members.push(member);
        }
        Ok(archive)
    }

    /// The entries, in the order of the archive.
    pub fn members(&self) -> &[ArchiveMember] {
        &self.members
    }

    /// Size of the archive in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the archive contains the blob or document `digest`.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest)
    }

    /// The bytes of the archive. A blob is opened when it is first read.
    pub fn bytes(&self) -> SharedReader {
        let mut joined = ConcatReader::new();
        let mut computed = BytesMut::new();
        for member in &self.members {
            computed.extend_from_slice(&member.header);
            if let Some(bytes) = member.bytes.clone().filter(|bytes| bytes.size() > 0) {
                joined.push(Arc::new(MemoryReader::new(computed.split().freeze())));
                let padding = tar_padding(bytes.size());
                joined.push(bytes);
                computed.resize(padding, 0);
            }
        }
        computed.resize(computed.len() + TAR_END, 0);
        joined.push(Arc::new(MemoryReader::new(computed.freeze())));
        Arc::new(joined)
    }
}

fn oci_records(
    selections: &[ArchiveSelection],
    form: ArchiveForm,
) -> Result<BTreeMap<String, UnplacedFile>, ReadError> {
    let mut records = BTreeMap::new();
    let mut algorithms = BTreeSet::new();
    for selection in selections {
        for piece in selection.pieces() {
            let digest = &piece.descriptor.digest;
            algorithms.insert(digest.algorithm_name().to_owned());
            records.entry(blob_path(digest)).or_insert_with(|| UnplacedFile::blob(piece, selection));
        }
    }
    let directories = algorithms.iter().map(|name| format!("blobs/{name}/"));
    for name in directories.chain((!algorithms.is_empty()).then(|| "blobs/".to_owned())) {
        records.insert(name, UnplacedFile { mode: 0o755, digest: None, bytes: None });
    }
    let mut entries: Vec<Descriptor> = Vec::new();
    for entry in selections.iter().flat_map(ArchiveSelection::entries) {
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let index = json(&index_json(&entries, None).map_err(not_written)?)?;
    records.insert("oci-layout".to_owned(), UnplacedFile::text(0o444, LAYOUT.to_vec()));
    records.insert("index.json".to_owned(), UnplacedFile::text(0o644, index));
    let images = docker::tagged(selections);
    if form == ArchiveForm::Oci && !images.is_empty() {
        let text = docker::manifest(&images, blob_path, blob_path)?;
        records.insert("manifest.json".to_owned(), UnplacedFile::text(0o644, text));
    }
    Ok(records)
}

fn docker_records(selections: &[ArchiveSelection]) -> Result<BTreeMap<String, UnplacedFile>, ReadError> {
    let config_path = |digest: &Digest| format!("{}.json", digest.encoded());
    let layer_path = |digest: &Digest| format!("{}.tar", digest.encoded());
    let mut records = BTreeMap::new();
    for selection in selections {
        let image = selection.runnable().ok_or_else(|| {
            let message = format!(
                "{} is no container image, and a Docker archive holds nothing else; --format=oci-archive does",
                selection.pinned()
            );
            ReadError::new(FaultClass::Unsupported, message)
        })?;
        for piece in selection.pieces() {
            let digest = &piece.descriptor.digest;
            let record = || UnplacedFile::blob(piece, selection);
            if *digest == image.config {
                records.entry(config_path(digest)).or_insert_with(record);
            } else if image.layers.contains(digest) {
                records.entry(layer_path(digest)).or_insert_with(record);
            }
        }
    }
    let images: Vec<TaggedImage<'_>> = docker::tagged(selections);
    let text = docker::manifest(&images, config_path, layer_path)?;
    records.insert("manifest.json".to_owned(), UnplacedFile::text(0o644, text));
    Ok(records)
}

/// Path of a blob in an image layout.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm_name(), digest.encoded())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, ReadError> {
    serde_json::to_vec(value).map_err(not_written)
}

fn not_written(error: serde_json::Error) -> ReadError {
    ReadError::caused(FaultClass::Malformed, "writing a document of the archive", error)
}
