//! Random access to the bytes of an archive: directly from a file or by HTTP ranges, or through a spool file.
//!
//! An archive that can be read in place is not spooled. Two kinds cannot: a one-pass stream (standard input, a server
//! without ranges), and an archive that is compressed as a whole, where offsets have no meaning before decoding.

use std::io::{IsTerminal as _, Read as _};
use std::sync::Arc;

use bytes::Bytes;

use super::encoding::encoding;
use super::spool::spool;
use crate::cache::BlockCache;
use crate::io::{
    BoxStream, ByteRange, FaultClass, FetchAll, RangeFetch, ReadError, chain, compute, read_vec,
};
use crate::layer::{SNIFF_LEN, StreamEncoding};
use crate::registry::{RegistryClient, WebFile};
use crate::source::{ArchiveLocation, LocalFile, SourceError};

/// Bytes per read from a stream.
const STREAM_READ_BYTES: usize = 1024 * 1024;

/// Downloads of a file whose server has no ranges. A download that breaks off begins anew.
const MAX_DOWNLOADS: usize = 3;

/// Opens the archive at `at`, called `place` in messages.
pub(super) async fn open(
    at: &ArchiveLocation,
    place: &str,
    registry: &RegistryClient,
    cache: &BlockCache,
) -> Result<Arc<dyn RangeFetch>, SourceError> {
    match at {
        ArchiveLocation::File(path) => {
            let path = path.clone();
            let file = compute(move || LocalFile::open(&path)).await?;
            in_place(Arc::new(file), place, cache).await
        }
        ArchiveLocation::Web(address) => {
            let mut downloads = 0;
            loop {
                let body = match registry.file(address).await? {
                    WebFile::Ranges(file) => return in_place(file, place, cache).await,
                    WebFile::Whole(body) => body,
                };
                downloads += 1;
                match spool(body, place, cache).await {
                    Err(error) if error.fault() == FaultClass::Unavailable && downloads < MAX_DOWNLOADS => {
                        tracing::warn!(file = place, error = chain(&error), "downloading again");
                    }
                    done => return done,
                }
            }
        }
        ArchiveLocation::Input if std::io::stdin().is_terminal() => Err(SourceError::Archive {
            place: place.to_owned(),
            reason: "standard input is a terminal; let an archive flow into it".into(),
            fault: FaultClass::Usage,
        }),
        ArchiveLocation::Input => spool(input(), place, cache).await,
    }
}

/// The archive in place, unless it is compressed.
async fn in_place(
    file: Arc<dyn RangeFetch>,
    place: &str,
    cache: &BlockCache,
) -> Result<Arc<dyn RangeFetch>, SourceError> {
    let size = file.size();
    let head = read_vec(&FetchAll(file.clone()), ByteRange::new(0, size.min(SNIFF_LEN as u64))).await?;
    match encoding(&head, place)? {
        StreamEncoding::Plain => Ok(file),
        _ => spool(file.fetch(ByteRange::new(0, size)).await?.body, place, cache).await,
    }
}

/// The standard input of this process.
fn input() -> BoxStream<'static, Result<Bytes, ReadError>> {
    Box::pin(futures_util::stream::try_unfold((), |()| async {
        let chunk = compute(|| {
            let mut chunk = Vec::new();
            let read = std::io::stdin().lock().take(STREAM_READ_BYTES as u64).read_to_end(&mut chunk);
            read.map_err(|error| ReadError::caused(FaultClass::Io, "reading standard input", error))?;
            Ok(chunk)
        })
        .await?;
        Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), ())))
    }))
}
