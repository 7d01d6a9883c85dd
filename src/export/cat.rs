//! One file, from its first byte to its last.

use std::io::Write;

use futures_util::StreamExt as _;

use crate::io::{ByteRange, Fault, ReadError, read_vec};
use crate::tree::Kind;
use crate::view::{Namespace, ViewError};

/// Bytes read at once.
const CHUNK: u64 = 1024 * 1024;

/// Reads in flight ahead of the writer.
const AHEAD: usize = 4;

/// Why a file was not written whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatError {
    /// There is no such file, or its bytes cannot be had.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The other side took no more.
    #[error("writing {path}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CatError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            CatError::View(error) => error.fault(),
            CatError::Write { .. } => Fault::Io,
        }
    }
}

/// Writes the file at `path` below the root of `namespace` to `out`. Symbolic links are followed. The path of a directory of disks
/// means the only disk in it.
pub async fn cat(namespace: &Namespace, path: &[u8], out: &mut (dyn Write + Send)) -> Result<(), CatError> {
    let name = || String::from_utf8_lossy(path).into_owned();
    let mut node = namespace.resolve(path).await?;
    if matches!(namespace.attributes(node).map(|attributes| attributes.kind), Some(Kind::Directory)) {
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
        Some(Kind::File) => {}
        _ => return Err(ViewError::Wrong { path: name(), wanted: "regular file" }.into()),
    }
    let read = |error: ReadError| ViewError::Read(error.within(name()));
    let bytes = namespace.open_file(node).await.map_err(read)?.bytes;
    let size = bytes.size();
    let chunks = (0..size).step_by(CHUNK as usize).map(|start| {
        let bytes = bytes.clone();
        async move { read_vec(&*bytes, ByteRange::new(start, (start + CHUNK).min(size))).await }
    });
    let mut chunks = futures_util::stream::iter(chunks).buffered(AHEAD);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(read)?;
        out.write_all(&chunk).map_err(|source| CatError::Write { path: name(), source })?;
    }
    out.flush().map_err(|source| CatError::Write { path: name(), source })
}
