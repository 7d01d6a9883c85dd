//! Tree export as a plain tar stream.
//!
//! Entries have all metadata that a layer records, in name order, so the same tree gives the same bytes on every
//! machine. Data is read ahead of the writer; memory use is a few chunks.

use std::collections::VecDeque;
use std::io::Write;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use crate::io::{
    BoxFuture, ByteRange, ReadError, SharedReader, TAR_END, TarEntry, TarKind, read_vec, tar_padding,
};
use crate::tree::InodeKind;
use crate::view::{MountNamespace, NodeId, ViewError};

use super::archive::{ARCHIVE_READ_BYTES, ExportProgress, READAHEAD_DEPTH};
use super::walk::{ExportWalk, WalkStep};
use super::{ExportError, compared};

/// A piece of the archive, of any size.
enum TarRun {
    Here(Bytes),
    Of(String, SharedReader, ByteRange),
}

impl TarRun {
    /// Removes the next piece to read, at most [`ARCHIVE_READ_BYTES`] of a file, so that no size becomes memory.
    fn take(&mut self) -> Self {
        match self {
            Self::Here(bytes) => Self::Here(std::mem::take(bytes)),
            Self::Of(name, bytes, range) => {
                let end = range.start.saturating_add(ARCHIVE_READ_BYTES).min(range.end);
                let piece = Self::Of(name.clone(), bytes.clone(), ByteRange::new(range.start, end));
                range.start = end;
                piece
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Here(bytes) => bytes.is_empty(),
            Self::Of(.., range) => range.is_empty(),
        }
    }
}

/// Writes the content of the directory at `path` of `namespace` to `out`.
pub async fn write_tree_tar(
    namespace: &MountNamespace,
    path: &[u8],
    out: &mut (dyn Write + Send),
    advance: ExportProgress<'_>,
) -> Result<(), ExportError> {
    let written = |source| ExportError::Write { what: "the archive".to_owned(), source };
    let start = namespace.resolve(path).await?;
    let mut walk = ExportWalk::below(namespace, start).await?;
    let mut parts: VecDeque<TarRun> = VecDeque::new();
    if namespace.is_recorded(start)
        && let Some(attributes) = namespace.attributes(start)
    {
        let root = WalkStep { path: b".".to_vec(), node: start, attributes, before: None };
        entry(namespace, &root, &mut parts).await?;
    }
    let mut reads: FuturesOrdered<BoxFuture<'_, Result<Bytes, ReadError>>> = FuturesOrdered::new();
    let mut is_over = false;
    loop {
        while reads.len() < READAHEAD_DEPTH && !(is_over && parts.is_empty()) {
            match parts.front_mut() {
                Some(run) => {
                    reads.push_back(Box::pin(read(run.take())));
                    if run.is_empty() {
                        parts.pop_front();
                    }
                }
                None => match walk.next().await? {
                    Some(step) => entry(namespace, &step, &mut parts).await?,
                    None => {
                        is_over = true;
                        parts.push_back(TarRun::Here(Bytes::from_static(&[0; TAR_END])));
                    }
                },
            }
        }
        let Some(bytes) = reads.next().await else { break };
        let bytes = bytes?;
        out.write_all(&bytes).map_err(written)?;
        advance(bytes.len() as u64);
    }
    compared(namespace).await?;
    out.flush().map_err(written)
}

async fn read(part: TarRun) -> Result<Bytes, ReadError> {
    match part {
        TarRun::Here(bytes) => Ok(bytes),
        TarRun::Of(name, bytes, range) => {
            let read = read_vec(&*bytes, range).await;
            Ok(read.map_err(|error| error.within(name))?.into())
        }
    }
}

/// Queues the pieces of one entry.
async fn entry(
    namespace: &MountNamespace,
    step: &WalkStep,
    parts: &mut VecDeque<TarRun>,
) -> Result<(), ExportError> {
    let attributes = &step.attributes;
    let mut name = step.path.clone();
    let kind = match (&step.before, attributes.kind) {
        (Some(before), _) => TarKind::HardLink(before),
        (None, InodeKind::File) => TarKind::File(attributes.size),
        (None, InodeKind::Directory | InodeKind::Graft(_)) => {
            name.push(b'/');
            TarKind::Directory
        }
        (None, InodeKind::Symlink) => TarKind::Symlink(namespace.link(step.node).unwrap_or_default()),
        (None, InodeKind::CharDevice) => TarKind::CharDevice(attributes.rdev.major, attributes.rdev.minor),
        (None, InodeKind::BlockDevice) => TarKind::BlockDevice(attributes.rdev.major, attributes.rdev.minor),
        (None, InodeKind::Fifo) => TarKind::Fifo,
    };
    let xattrs = match step.before {
        Some(_) => Vec::new(),
        None => namespace.xattrs(step.node).collect(),
    };
    let entry = TarEntry {
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: (attributes.mtime.secs, attributes.mtime.nanos),
        xattrs,
        ..TarEntry::new(&name, kind, attributes.mode)
    };
    parts.push_back(TarRun::Here(entry.header().into()));
    if let TarKind::File(size) = kind {
        let bytes = opened(namespace, step.node, &step.path).await?;
        if size > 0 {
            let name = String::from_utf8_lossy(&step.path).into_owned();
            parts.push_back(TarRun::Of(name, bytes, ByteRange::new(0, size)));
        }
        parts.push_back(TarRun::Here(Bytes::from(vec![0; tar_padding(size)])));
    }
    Ok(())
}

/// Opens a file.
pub(super) async fn opened(
    namespace: &MountNamespace,
    node: NodeId,
    path: &[u8],
) -> Result<SharedReader, ViewError> {
    let opened = namespace.open_file(node).await;
    Ok(opened.map_err(|error| error.within(String::from_utf8_lossy(path).into_owned()))?.bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::MemoryReader;

    #[test]
    fn a_file_of_any_size_is_one_run_of_small_pieces() {
        let bytes = Arc::new(MemoryReader::new(Vec::new()));
        let mut run = TarRun::Of("f".into(), bytes, ByteRange::new(0, ARCHIVE_READ_BYTES + 1));
        let range = |piece: TarRun| match piece {
            TarRun::Of(_, _, range) => range,
            TarRun::Here(_) => panic!("it is a piece of the file"),
        };
        assert_eq!(range(run.take()), ByteRange::new(0, ARCHIVE_READ_BYTES));
        assert!(!run.is_empty());
        assert_eq!(range(run.take()), ByteRange::at(ARCHIVE_READ_BYTES, 1));
        assert!(run.is_empty());
    }
}
