//! File export: one file of a mount as a sparse file of this machine.
//!
//! Ranges are read concurrently and written at their offsets. Holes and blocks of zeros stay holes. The file gets its
//! name only when it is complete; a second run reuses the cache.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use futures_util::StreamExt as _;

use crate::io::{BoxFuture, ByteRange, ReadError, SharedReader, read_vec};
use crate::tree::InodeKind;
use crate::view::{MountNamespace, NodeId, ViewError};

use super::archive::{ARCHIVE_READ_BYTES, ExportProgress, READAHEAD_DEPTH};
use super::replace::ReplacementFile;
use super::tree_tar::opened;
use super::{ExportError, compared};

/// The granularity of the search for zeros, in bytes.
const GRAIN: usize = 64 * 1024;

/// The file that receives the bytes.
pub(super) struct CopyTarget<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
}

/// Writes the file at `path` of `namespace`, links followed, to the file `dest`, which is replaced once the copy is
/// complete. By then, all blobs that were read in full were compared with their digests.
pub async fn copy_file(
    namespace: &MountNamespace,
    path: &[u8],
    dest: &Path,
    advance: ExportProgress<'_>,
) -> Result<(), ExportError> {
    let node = namespace.resolve(path).await?;
    copy_node(namespace, node, path, dest, advance).await
}

async fn copy_node(
    namespace: &MountNamespace,
    node: NodeId,
    path: &[u8],
    dest: &Path,
    advance: ExportProgress<'_>,
) -> Result<(), ExportError> {
    let name = || String::from_utf8_lossy(path).into_owned();
    namespace.build(node).await.map_err(ViewError::from)?;
    let attributes = match namespace.attributes(node) {
        Some(attributes) if matches!(attributes.kind, InodeKind::File) => attributes,
        _ => return Err(ViewError::Wrong { path: name(), wanted: "regular file" }.into()),
    };
    let bytes = opened(namespace, node, path).await?;
    let mut file = ReplacementFile::begin(dest)?;
    if file.is_hidden() {
        fill(&bytes, &CopyTarget { file: file.file(), path: dest }, READAHEAD_DEPTH, advance).await?;
        // The mode of a new file: the recorded mode under the umask; execute bits follow the read bits.
        file.recorded(u32::from(attributes.mode));
    } else {
        stream(&bytes, &name(), file.file(), dest, advance).await?;
    }
    compared(namespace).await?;
    file.commit()
}

/// Writes all of `bytes` in order, to a destination that may be a pipe.
async fn stream(
    bytes: &SharedReader,
    name: &str,
    mut file: &File,
    dest: &Path,
    advance: ExportProgress<'_>,
) -> Result<(), ExportError> {
    use std::io::Write as _;
    let size = bytes.size();
    let chunks = (0..size).step_by(ARCHIVE_READ_BYTES as usize).map(
        |start| -> BoxFuture<'_, Result<Vec<u8>, ReadError>> {
            Box::pin(async move {
                read_vec(&**bytes, ByteRange::new(start, (start + ARCHIVE_READ_BYTES).min(size))).await
            })
        },
    );
    let mut chunks = futures_util::stream::iter(chunks).buffered(READAHEAD_DEPTH);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| error.within(name))?;
        file.write_all(&chunk).map_err(ExportError::file(dest))?;
        advance(chunk.len() as u64);
    }
    Ok(())
}

/// Fills an empty file with `bytes`, reading `ahead` ranges concurrently.
pub(super) async fn fill(
    bytes: &SharedReader,
    target: &CopyTarget<'_>,
    ahead: usize,
    advance: ExportProgress<'_>,
) -> Result<(), ExportError> {
    let failed = |source| ExportError::File { path: target.path.to_owned(), source };
    let size = bytes.size();
    if let Some(learning) = bytes.learn_holes() {
        learning.await?;
    }
    target.file.set_len(size).map_err(failed)?;
    let mut from = 0;
    // Ranges of data, in order, none longer than a chunk.
    let ranges = std::iter::from_fn(|| {
        let start = bytes.next_data(from)?;
        advance(start - from);
        let end =
            bytes.next_hole(start).min(start.saturating_add(ARCHIVE_READ_BYTES)).min(size).max(start + 1);
        from = end;
        Some(ByteRange::new(start, end))
    });
    let reads = ranges.map(|range| -> BoxFuture<'_, Result<(ByteRange, Vec<u8>), ReadError>> {
        Box::pin(async move { Ok((range, read_vec(&**bytes, range).await?)) })
    });
    let mut reads = futures_util::stream::iter(reads).buffer_unordered(ahead);
    while let Some(read) = reads.next().await {
        let (range, chunk) = read?;
        for (at, grain) in chunk.chunks(GRAIN).enumerate() {
            if grain.iter().any(|byte| *byte != 0) {
                let offset = range.start + (at * GRAIN) as u64;
                target.file.write_all_at(grain, offset).map_err(failed)?;
            }
        }
        advance(range.len());
    }
    Ok(())
}
