//! `cat`: one file, written sequentially.

use std::io::Write;

use futures_util::StreamExt as _;

use crate::io::{ByteRange, FaultClass, ReadError, read_vec};
use crate::tree::InodeKind;
use crate::view::{MountNamespace, ViewError};

/// Bytes per read.
const CAT_READ_BYTES: u64 = 1024 * 1024;

/// Concurrent reads ahead of the writer.
const CAT_READAHEAD_DEPTH: usize = 4;

/// A failure of [`cat`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatError {
    /// The path does not name a readable file.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The output could not be written.
    #[error("writing {path}")]
    Write {
        /// The file.
        path: String,
        /// The error of the system.
        source: std::io::Error,
    },
}

impl CatError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            CatError::View(error) => error.fault(),
            CatError::Write { .. } => FaultClass::Io,
        }
    }
}

/// Writes the file at `path` below the root of `namespace` to `out`. Symbolic links are followed. A directory with
/// one disk in it stands for that disk.
pub async fn cat(
    namespace: &MountNamespace,
    path: &[u8],
    out: &mut (dyn Write + Send),
) -> Result<(), CatError> {
    let name = || String::from_utf8_lossy(path).into_owned();
    let mut node = namespace.resolve(path).await?;
    if matches!(namespace.attributes(node).map(|attributes| attributes.kind), Some(InodeKind::Directory)) {
        namespace.build(node).await.map_err(ViewError::from)?;
        let disks = namespace.disks(node);
        match &disks[..] {
            [] => {}
            [(_, disk)] => node = *disk,
            _ => {
                let names: Vec<String> = disks.into_iter().map(|(name, _)| name).collect();
                return Err(ViewError::Several { path: name(), names: names.join(", ") }.into());
            }
        }
    }
    match namespace.attributes(node).map(|attributes| attributes.kind) {
        Some(InodeKind::File) => {}
        _ => return Err(ViewError::Wrong { path: name(), wanted: "regular file" }.into()),
    }
    let read = |error: ReadError| ViewError::Read(error.within(name()));
    let bytes = namespace.open_file(node).await.map_err(read)?.bytes;
    let size = bytes.size();
    let chunks = (0..size).step_by(CAT_READ_BYTES as usize).map(|start| {
        let bytes = bytes.clone();
        async move { read_vec(&*bytes, ByteRange::new(start, (start + CAT_READ_BYTES).min(size))).await }
    });
    let mut chunks = futures_util::stream::iter(chunks).buffered(CAT_READAHEAD_DEPTH);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(read)?;
        out.write_all(&chunk).map_err(|source| CatError::Write { path: name(), source })?;
    }
    out.flush().map_err(|source| CatError::Write { path: name(), source })
}
