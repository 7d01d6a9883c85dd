//! An archive written in order, from its first byte to its last.
//!
//! Keeps a few chunks in memory, however large the archive is. The idea: chunks of what comes next are fetched while the present
//! one is written, over the borders of blobs, and every blob is hashed on its way, so that what was written whole is proven.

use std::io::Write;

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::image::{Archive, ArchiveMember};
use crate::io::{BoxFuture, ByteRange, Fault, ReadError, Shared, TAR_END, read_vec, tar_padding};
use crate::oci::{Digest, Hasher};

use super::ExportError;

/// Bytes read at once.
pub(super) const CHUNK: u64 = 1024 * 1024;

/// Reads in flight ahead of the writer.
pub(super) const AHEAD: usize = 8;

/// What is told about progress: bytes that are written.
pub type Advance<'a> = &'a (dyn Fn(u64) + Sync);

/// A run of the archive.
enum Part<'a> {
    /// Bytes that are in memory.
    Here(Bytes),
    /// A range of a blob.
    Of(&'a ArchiveMember, Shared, ByteRange),
    /// The end of a blob.
    End(&'a ArchiveMember),
}

/// Writes `archive` to `out`. A blob that does not hash to its digest is an error, after its bytes are written and before the archive
/// ends.
pub async fn write_archive(
    archive: &Archive,
    out: &mut (dyn Write + Send),
    advance: Advance<'_>,
) -> Result<(), ExportError> {
    let written = |source| ExportError::Write { what: "the archive".to_owned(), source };
    let end = Part::Here(Bytes::from_static(&[0; TAR_END]));
    let parts = archive.members().iter().flat_map(parts).chain([end]);
    let reads = parts.map(|part| -> BoxFuture<'_, Result<(Part<'_>, Bytes), ReadError>> {
        Box::pin(async move {
            let bytes = match &part {
                Part::Here(bytes) => bytes.clone(),
                Part::Of(member, bytes, range) => {
                    let read = read_vec(&**bytes, *range).await;
                    read.map_err(|error| error.within(member.name.clone()))?.into()
                }
                Part::End(_) => Bytes::new(),
            };
            Ok((part, bytes))
        })
    });
    let mut reads = futures_util::stream::iter(reads).buffered(AHEAD);
    let mut hash = None;
    while let Some(read) = reads.next().await {
        let (part, bytes) = read?;
        match part {
            Part::Here(_) => {}
            Part::Of(member, ..) => {
                if hash.is_none() {
                    hash = Some(hasher(member)?);
                }
                if let Some(hash) = &mut hash {
                    hash.update(&bytes);
                }
            }
            Part::End(member) => {
                let hash = hash.take().map_or_else(|| hasher(member), Ok)?;
                compare(member.digest.as_ref(), hash)?;
            }
        }
        out.write_all(&bytes).map_err(written)?;
        advance(bytes.len() as u64);
    }
    out.flush().map_err(written)
}

fn parts(member: &ArchiveMember) -> impl Iterator<Item = Part<'_>> {
    let size = member.size();
    let head = Part::Here(member.header.clone());
    let ranges =
        (0..size).step_by(CHUNK as usize).map(move |start| ByteRange::new(start, (start + CHUNK).min(size)));
    let body = member
        .bytes
        .iter()
        .flat_map(move |bytes| ranges.clone().map(move |range| Part::Of(member, bytes.clone(), range)));
    let end = member.bytes.iter().map(move |_| Part::End(member));
    let padding = tar_padding(size);
    let padding = (padding > 0).then(|| Part::Here(Bytes::from(vec![0; padding])));
    std::iter::once(head).chain(body).chain(end).chain(padding)
}

/// What hashes the bytes of a member as its digest wants.
pub(super) fn hasher(member: &ArchiveMember) -> Result<Hasher, ReadError> {
    let algorithm = match &member.digest {
        None => Some(crate::oci::Algorithm::Sha256),
        Some(digest) => digest.algorithm(),
    };
    algorithm.map(Hasher::new).ok_or_else(|| {
        let message = format!("{}: the algorithm of its digest cannot be checked", member.name);
        ReadError::new(Fault::Unsupported, message)
    })
}

/// Compares what was hashed; what has no digest was made here.
pub(super) fn compare(expected: Option<&Digest>, hash: Hasher) -> Result<(), ReadError> {
    let actual = hash.finish();
    match expected {
        Some(expected) if actual != *expected => {
            let message = format!("the blob {expected} hashes to {actual}");
            Err(ReadError::new(Fault::Mismatch, message))
        }
        _ => Ok(()),
    }
}
