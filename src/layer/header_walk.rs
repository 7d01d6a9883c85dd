//! Header walk: the table of contents of a randomly readable archive, without the bodies of its files.

use std::sync::Arc;

use crate::cache::{BlockCache, SpooledBytes};
use crate::io::{ByteRange, FaultClass, ReadAt, ReadError, compute, read_vec};

use super::crew::PassInput;
use super::decode_step::WindowLimits;
use super::index::LayerIndex;
use super::indexer::{INDEXER_READ_BYTES, IndexJob, PassError, PassStop, forward};
use super::sniff::{SNIFF_LEN, SniffResult, StreamEncoding, sniff};
use super::span::SpanMap;
use super::tar::{TarLimits, TarWalker, WalkerNeed};
use super::toc::{SPOOLED_FROM, TableOfContents};

/// Builds the index of the layer stored in `blob` by one pass over it, without a cache.
pub async fn build_index<R: ReadAt + ?Sized>(blob: Arc<R>) -> Result<LayerIndex, ReadError> {
    let head = ByteRange::new(0, blob.size().min(SNIFF_LEN as u64));
    match sniff(&read_vec(&*blob, head).await?) {
        SniffResult::Stream(StreamEncoding::Plain) => walk(blob, None).await,
        SniffResult::Stream(encoding) => {
            let plan = IndexJob {
                encoding,
                input: PassInput::Far,
                windows: WindowLimits::Large,
                is_archive: true,
                cache: None,
                writer: None,
                hasher: None,
                progress: Arc::default(),
            };
            match forward(blob, plan).await {
                Ok(passed) => Ok(passed.index),
                Err(PassStop::Failed(error)) => Err(error),
                Err(PassStop::LargeWindow) => Err(PassError::Abandoned.into_read()),
            }
        }
        SniffResult::Other(name) => {
            Err(ReadError::new(FaultClass::Malformed, format!("its content is {name}")))
        }
    }
}

/// Walks the headers of an uncompressed archive. File bodies are skipped, so that they cost no request. A large table
/// of contents goes to the disk of `cache`.
pub(super) async fn walk<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    cache: Option<&BlockCache>,
) -> Result<LayerIndex, ReadError> {
    let toc = headers(&*blob, cache, |_, _| true).await?.unwrap_or_default();
    Ok(LayerIndex { spans: SpanMap::identity(blob.size()), toc, blocks: Vec::new(), prefetch: 0 })
}

/// The table of contents of a randomly readable archive, from its headers alone. `is_worth_it` gets the bytes read
/// and the position of the walk; `None` when it returns false. A large table goes to the disk of `cache`.
pub(super) async fn headers<R: ReadAt + ?Sized>(
    stream: &R,
    cache: Option<&BlockCache>,
    is_worth_it: impl Fn(u64, u64) -> bool,
) -> Result<Option<TableOfContents>, ReadError> {
    /// The first read after a jump: one cache block.
    const MIN_READ_BYTES: u64 = 256 * 1024;
    let size = stream.size();
    let mut walker = TarWalker::new(TarLimits::default());
    let mut spooled = None;
    let (mut last_end, mut window, mut read) = (0, MIN_READ_BYTES, 0);
    while let WalkerNeed::Bytes(need) = walker.need() {
        if need.start >= size {
            break;
        }
        if !is_worth_it(read, need.start) {
            return Ok(None);
        }
        // Adjacent headers are read in growing steps; a jump over a body resets the step.
        window = if need.start <= last_end + MIN_READ_BYTES {
            (window * 2).min(INDEXER_READ_BYTES)
        } else {
            MIN_READ_BYTES
        };
        let start = need.start.min(size);
        let want = ByteRange::new(start, need.end.max((start + window) & !(MIN_READ_BYTES - 1)).min(size));
        let bytes = read_vec(stream, want).await?;
        walker.feed(want.start, &bytes).map_err(|error| PassError::from(error).into_read())?;
        if let Some(cache) = cache
            && walker.held_bytes() > SPOOLED_FROM
        {
            spooled = Some(spool(cache, spooled, walker.take_head()).await?);
        }
        read += want.len();
        last_end = want.end;
        if want.end == size {
            break;
        }
    }
    let toc = walker.finish(size).map_err(|error| PassError::from(error).into_read())?;
    Ok(Some(match spooled {
        Some(head) => toc.behind(head),
        None => toc,
    }))
}

/// Appends records to those of `spooled`, or to a new spool.
async fn spool(
    cache: &BlockCache,
    spooled: Option<SpooledBytes>,
    records: Vec<u8>,
) -> Result<SpooledBytes, ReadError> {
    let cache = cache.clone();
    compute(move || {
        let spooled = spooled.map_or_else(|| cache.spooled(), Ok)?;
        spooled.append(&records).map_err(|error| PassError::Spool(error).into_read())?;
        Ok(spooled)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryReader;

    #[tokio::test]
    async fn a_large_table_of_headers_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..20_000 {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{number:090}"), &[][..]).unwrap();
        }
        let blob = Arc::new(MemoryReader::new(tar.into_inner().unwrap()));
        let walked = walk(blob.clone(), Some(&cache)).await.unwrap().toc;
        assert!(walked.is_spooled() && walked.heap_bytes() < 2 * SPOOLED_FROM);
        let whole = walk(blob, None).await.unwrap().toc;
        assert!(!whole.is_spooled());
        assert!(walked.whole().await.unwrap().iter().eq(whole.iter()));
    }
}
