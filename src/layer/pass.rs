//! Passes over the stored bytes of a layer: the feeder that keeps a few reads in flight ahead of a decoder, the forward
//! pass that builds an index, and the walk over an archive that is not compressed.
//!
//! Decoding runs on blocking threads, never on the async workers; one layer is one pass, and passes of several layers run
//! side by side.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use crate::cache::StreamWriter;
use crate::io::{ByteRange, Fault, ReadAt, ReadError, read_vec};

use super::codec::{CodecError, Decoder};
use super::index::LayerIndex;
use super::sniff::Encoding;
use super::span::{SpanMap, SpanRecorder};
use super::tar::{Need, TarError, TarLimits, TarWalker};

/// Stored bytes read at once by a pass: large enough that requests do not cost more than bytes, small enough that the
/// decoder starts early.
const CHUNK: u64 = 2 * 1024 * 1024;

/// Reads in flight ahead of the decoder. With the chunk above this covers 8 MiB, the bytes that 100 ms of latency hold back
/// on a 640 Mbit/s link.
const AHEAD: usize = 4;

/// Chunks that wait between the reads and the decoder: the reads are ahead already.
const WAITING: usize = 1;

/// Stream bytes handed on at once.
const OUTPUT: usize = 256 * 1024;

/// The most stream bytes per stored byte. Deflate cannot pass 1032:1; zstd can, and a bomb must not fill the disk.
const MAX_RATIO: u64 = 1100;

/// The stream bytes that even the smallest layer may decode to.
const RATIO_FLOOR: u64 = 64 * 1024 * 1024;

/// Reads of passes that are under way at once, over all layers of the process: two fewer than a host gets requests, so that
/// a reader who wants one block does not queue behind whole layers.
static READS: Semaphore = Semaphore::const_new(6);

/// Passes that decode at once, over all layers and mounts of the process. More would not be faster, and threads that wait for
/// their input must never be all the blocking threads there are, because the cache stores that input on such threads.
static DECODERS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(2 * std::thread::available_parallelism().map_or(2, usize::from)));

/// Waits for a place among the decoders. `None` would mean that the places were closed, which nobody does.
async fn place() -> Option<SemaphorePermit<'static>> {
    DECODERS.acquire().await.ok()
}

/// Why a pass failed on the content itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    #[error("it decodes to more than {limit} bytes, {MAX_RATIO} times its stored size")]
    Bomb { limit: u64 },
    #[error("decoding gave {actual} bytes where the index says {expected}")]
    Length { expected: u64, actual: u64 },
    /// Nobody waits for the result any more.
    #[error("abandoned")]
    Abandoned,
}

impl PassError {
    pub(super) fn fault(&self) -> Fault {
        match self {
            PassError::Codec(_) | PassError::Length { .. } => Fault::Malformed,
            PassError::Bomb { .. } => Fault::Unsupported,
            PassError::Tar(error) => error.fault(),
            PassError::Cache(error) => error.fault(),
            PassError::Abandoned => Fault::Io,
        }
    }
}

/// Reads `stored` of `blob` in order, a few chunks ahead, into a channel. The future ends when all is sent or when the
/// other side hung up.
async fn feed<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    stored: ByteRange,
    out: mpsc::Sender<Bytes>,
) -> Result<(), ReadError> {
    let starts = (stored.start..stored.end).step_by(CHUNK as usize);
    let reads = futures_util::stream::iter(starts).map(|start| {
        let blob = blob.clone();
        async move {
            let _place = READS.acquire().await.ok();
            read_vec(&*blob, ByteRange::new(start, (start + CHUNK).min(stored.end))).await
        }
    });
    let mut reads = std::pin::pin!(reads.buffered(AHEAD));
    while let Some(chunk) = reads.next().await {
        if out.send(chunk?.into()).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Drives `decoder` over the chunks of `input`; `sink` gets the stream bytes, and the blob offset where a unit ended when
/// one did.
fn decode(
    mut decoder: Decoder,
    input: &mut mpsc::Receiver<Bytes>,
    mut sink: impl FnMut(&[u8], Option<u64>) -> Result<(), PassError>,
) -> Result<(), PassError> {
    let mut output = vec![0; OUTPUT];
    let mut filled = 0;
    while let Some(chunk) = input.blocking_recv() {
        let mut rest = &chunk[..];
        loop {
            let step = decoder.step(rest, &mut output[filled..])?;
            rest = &rest[step.consumed..];
            filled += step.produced;
            let ended = (decoder.at_unit() && step.consumed > 0).then(|| decoder.offset());
            if filled == output.len() || ended.is_some() {
                sink(&output[..filled], ended)?;
                filled = 0;
            }
            if rest.is_empty() && step.produced == 0 {
                break;
            }
        }
    }
    sink(&output[..filled], None)?;
    Ok(decoder.finish()?)
}

/// The forward pass: decodes the whole layer once into `writer`, and learns its spans and its table of contents on the way.
pub(super) async fn forward<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    encoding: Encoding,
    writer: Option<StreamWriter>,
    progress: Arc<AtomicU64>,
) -> Result<LayerIndex, ReadError> {
    let _place = place().await;
    let stored_size = blob.size();
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let pass = tokio::task::spawn_blocking(move || {
        let Some(decoder) = Decoder::new(encoding, 0)? else { return Err(PassError::Abandoned) };
        let mut walker = TarWalker::new(TarLimits::default());
        let mut recorder = SpanRecorder::new(encoding);
        let limit = stored_size.saturating_mul(MAX_RATIO).max(RATIO_FLOOR);
        let (mut writer, mut at) = (writer, 0);
        decode(decoder, &mut receiver, |bytes, ended| {
            if let Some(Err(error)) = writer.as_mut().map(|writer| writer.write(bytes)) {
                if !error.is_disk() {
                    return Err(error.into());
                }
                // The names are known all the same; reads decode what is missing.
                tracing::warn!(%error, "the decoded stream is not kept");
                writer = None;
            }
            walker.feed(at, bytes)?;
            at += bytes.len() as u64;
            progress.store(at, Ordering::Relaxed);
            if at > limit {
                return Err(PassError::Bomb { limit });
            }
            if let Some(stored) = ended {
                recorder.unit(stored, at);
            }
            Ok(())
        })?;
        match writer.map(StreamWriter::finish) {
            Some(Err(error)) if error.is_disk() => tracing::warn!(%error, "the decoded stream is not kept"),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(_)) | None => {}
        }
        let stream_size = at;
        Ok(LayerIndex { spans: recorder.finish(stored_size, stream_size), toc: walker.finish(stream_size)? })
    });
    // A read error explains a cut stream better than the decoder can.
    feed(blob, ByteRange::new(0, stored_size), sender).await?;
    joined(pass.await)
}

/// Decodes whole spans: the stored range and the stream range they decode to, with decoding starting at the first byte.
/// The receiver gets exactly the stream range, or an error.
pub(super) fn spans<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    encoding: Encoding,
    stored: ByteRange,
    stream: ByteRange,
) -> mpsc::Receiver<Result<Bytes, ReadError>> {
    let (output, receiver) = mpsc::channel::<Result<Bytes, ReadError>>(AHEAD);
    tokio::spawn(async move {
        let _place = place().await;
        let (sender, mut input) = mpsc::channel(WAITING);
        let sink = output.clone();
        let pass = tokio::task::spawn_blocking(move || {
            let Some(decoder) = Decoder::new(encoding, stored.start)? else {
                return Err(PassError::Abandoned);
            };
            let mut produced = 0;
            decode(decoder, &mut input, |bytes, _| {
                produced += bytes.len() as u64;
                if produced > stream.len() {
                    return Err(PassError::Length { expected: stream.len(), actual: produced });
                }
                if bytes.is_empty() {
                    return Ok(());
                }
                sink.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(|_| PassError::Abandoned)
            })?;
            if produced < stream.len() {
                return Err(PassError::Length { expected: stream.len(), actual: produced });
            }
            Ok(())
        });
        let fed = feed(blob, stored, sender).await;
        let result = match (fed, joined(pass.await)) {
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(())) => Ok(()),
        };
        if let Err(error) = result {
            // Sending fails only when the reader is gone, who then needs no error.
            output.send(Err(error)).await.ok();
        }
    });
    receiver
}

/// Walks the headers of an archive that is stored as it is; file bodies are skipped, so that they cost no request.
pub(super) async fn walk<R: ReadAt + ?Sized>(blob: Arc<R>) -> Result<LayerIndex, ReadError> {
    /// The first read after a jump: one cache block.
    const LEAST: u64 = 256 * 1024;
    let size = blob.size();
    let mut walker = TarWalker::new(TarLimits::default());
    let (mut last_end, mut window) = (0, LEAST);
    while let Need::Bytes(need) = walker.need() {
        if need.start >= size {
            break;
        }
        // Headers that follow each other closely are read in growing steps; a jump over a body starts small again.
        window = if need.start <= last_end + LEAST { (window * 2).min(CHUNK) } else { LEAST };
        let start = need.start.min(size);
        let want = ByteRange::new(start, need.end.max((start + window) & !(LEAST - 1)).min(size));
        let bytes = read_vec(&*blob, want).await?;
        walker.feed(want.start, &bytes).map_err(|error| PassError::from(error).into_read())?;
        last_end = want.end;
        if want.end == size {
            break;
        }
    }
    let toc = walker.finish(size).map_err(|error| PassError::from(error).into_read())?;
    Ok(LayerIndex { spans: SpanMap::identity(size), toc })
}

impl PassError {
    fn into_read(self) -> ReadError {
        ReadError::new(self.fault(), self.to_string())
    }
}

/// The result of a blocking thread; a panic there is an error of ours that must not take the mount down.
fn joined<T>(result: Result<Result<T, PassError>, tokio::task::JoinError>) -> Result<T, ReadError> {
    match result {
        Ok(result) => result.map_err(PassError::into_read),
        Err(error) => Err(ReadError::caused(Fault::Io, "decoding thread failed", error)),
    }
}
