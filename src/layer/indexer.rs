//! Forward pass over the stored bytes of a layer, which builds its index.
//!
//! A feeder keeps a few reads in flight ahead of it.
//!
//! Each layer has its own pass, and passes of several layers run concurrently. Decoding runs on dedicated threads,
//! never on the async workers. One thread of a pass only decodes, block by block. Its results go to a second
//! thread, which does all other work: the table of contents, checksums, the windows of checkpoints, and the cache.
//!
//! Bytes that are cheap to decode again are not cached: see `keep`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::cache::{BlockCache, SpooledBytes, StreamWriter};
use crate::io::concurrency::PASS_CHUNKS;
use crate::io::{ByteRange, FaultClass, MEMORY, MemoryShare, OverBudget, ReadAt, ReadError, read_vec};
use crate::oci::{Digest, Hasher};

use super::checkpoint::{CheckpointFinder, FoundCheckpoint};
use super::codec::{CodecError, StopPolicy, UnitDecoder, max_redecode};
use super::crew::{self, PassInput};
use super::decode_step::WindowLimits;
use super::file_checkpoint::{RecentStored, decoded_from};
use super::index::{LayerIndex, SUM_BLOCK};
use super::sniff::StreamEncoding;
use super::span::SpanStart;
use super::span_recorder::SpanRecorder;
use super::stream_limit::{most_sparse_stream, most_stream};
use super::tar::{TarError, TarLimits, TarWalker};
use super::toc::{SPOOLED_FROM, TableOfContents};

/// Stored bytes per read of a pass: enough that bytes cost more than requests, and few enough that the decoder
/// starts early.
pub(super) const INDEXER_READ_BYTES: u64 = 2 * 1024 * 1024;

/// Reads in flight ahead of the decoder. With [`INDEXER_READ_BYTES`] this covers 8 MiB, the bytes that 100 ms of latency delay
/// on a 640 Mbit/s link.
const INDEXER_READAHEAD_DEPTH: usize = 4;

/// Chunks queued between the reads and the decoder: the reads are already ahead.
const CHUNK_QUEUE_LENGTH: usize = 1;

/// Blocks queued between the two threads; as many more are being filled and processed.
const BLOCKS: usize = 4;

/// Checksums, and starts beside them, that are charged at once to the memory budget: those of 1 GiB.
const CHARGED_SUMS: usize = 4096;

/// Permits of the chunks that passes request or hold over a network.
static READS: Semaphore = Semaphore::const_new(PASS_CHUNKS);

/// The reason why a pass failed on the content.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    #[error("its index cannot be written to disk: {0}")]
    Spool(std::io::Error),
    #[error("it decodes to more than {limit} bytes{besides}, the limit for {stored} stored ones")]
    Bomb { limit: u64, besides: &'static str, stored: u64 },
    #[error("it decodes to {actual} bytes, the index states {expected}")]
    Length { expected: u64, actual: u64 },
    #[error("{subject} have digest {actual}, the index states {expected}")]
    Mismatch { subject: String, expected: String, actual: String },
    #[error("{subject} are {len} bytes under one digest, more than {limit}")]
    Digest { subject: String, len: u64, limit: u64 },
    #[error("its index: {0}")]
    Memory(#[from] OverBudget),
    /// No receiver waits for the result.
    #[error("abandoned")]
    Abandoned,
}

impl PassError {
    pub(super) fn fault(&self) -> FaultClass {
        match self {
            PassError::Codec(CodecError::Memory { .. }) | PassError::Memory(_) => FaultClass::Unsupported,
            PassError::Codec(_) | PassError::Length { .. } => FaultClass::Malformed,
            PassError::Bomb { .. } | PassError::Digest { .. } => FaultClass::Unsupported,
            PassError::Mismatch { .. } => FaultClass::Mismatch,
            PassError::Tar(error) => error.fault(),
            PassError::Cache(error) => error.fault(),
            PassError::Abandoned | PassError::Spool(_) => FaultClass::Io,
        }
    }
}

/// Decoding limits of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DecodeLimits {
    /// Stored bytes of the layer.
    stored: u64,
    /// Maximum stream bytes.
    stream: u64,
    /// Maximum stream bytes outside of blocks of zeros.
    data: u64,
}

impl DecodeLimits {
    fn of(stored: u64) -> Self {
        Self { stored, stream: most_sparse_stream(stored), data: most_stream(stored) }
    }

    /// Fails if `stream` bytes, of which `zeros` are in blocks of zeros, exceed a limit.
    fn check(self, stream: u64, zeros: u64) -> Result<(), PassError> {
        let Self { stored, .. } = self;
        if stream > self.stream {
            return Err(PassError::Bomb { limit: self.stream, besides: "", stored });
        }
        if stream - zeros > self.data {
            return Err(PassError::Bomb { limit: self.data, besides: " besides blocks of zeros", stored });
        }
        Ok(())
    }
}

/// Reads `stored` of `blob` in order, a few chunks ahead, into a channel. The future ends when all is sent or when
/// the receiver is dropped.
async fn feed<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    stored: ByteRange,
    from: PassInput,
    out: mpsc::Sender<Bytes>,
) -> Result<(), ReadError> {
    let starts = (stored.start..stored.end).step_by(INDEXER_READ_BYTES as usize);
    let reads = futures_util::stream::iter(starts).map(|start| {
        let blob = blob.clone();
        async move {
            // Held until the decoder has the chunk, because a chunk read ahead occupies memory.
            let place = match from {
                PassInput::Far => READS.acquire().await.ok(),
                PassInput::Here => None,
            };
            let chunk =
                read_vec(&*blob, ByteRange::new(start, (start + INDEXER_READ_BYTES).min(stored.end))).await?;
            Ok::<_, ReadError>((chunk, place))
        }
    });
    let mut reads = std::pin::pin!(reads.buffered(INDEXER_READAHEAD_DEPTH));
    while let Some(read) = reads.next().await {
        let (chunk, _place) = read?;
        if out.send(chunk.into()).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Messages of the decoding thread to the learning thread, in stream order.
enum DecodeEvent {
    /// The stored bytes that are decoded next, in encodings with checkpoints.
    Stored(Bytes),
    /// The next block of the stream; only the last one is shorter than [`SUM_BLOCK`].
    Block(Vec<u8>),
    /// Decoding can start at this point without earlier bytes.
    Start(SpanStart),
    /// Decoding can start inside a unit.
    Checkpoint(FoundCheckpoint),
    /// The whole stream is decoded.
    End,
}

/// The decoding thread of a pass.
struct DecodeThread {
    decoder: UnitDecoder,
    /// Stored bytes not yet received.
    missing: u64,
    /// The search for checkpoints; `None` in encodings without them.
    finder: Option<CheckpointFinder>,
    limits: DecodeLimits,
    /// Stream bytes so far.
    at: u64,
    /// Stream bytes so far in blocks of zeros.
    zeros: u64,
    progress: Arc<AtomicU64>,
    events: SyncSender<DecodeEvent>,
    /// Processed blocks, for reuse.
    empty: Receiver<Vec<u8>>,
    block: Vec<u8>,
    filled: usize,
}

impl DecodeThread {
    fn run(mut self, mut input: mpsc::Receiver<Bytes>) -> Result<(), PassError> {
        while let Some(chunk) = input.blocking_recv() {
            self.missing = self.missing.saturating_sub(chunk.len() as u64);
            if self.finder.is_some() {
                self.tell(DecodeEvent::Stored(chunk.clone()))?;
            }
            let mut rest = &chunk[..];
            while let Some(after) = self.step(rest)? {
                rest = after;
            }
        }
        if self.missing > 0 {
            // A read failed. It may have failed after a complete frame, and then a partial stream would pass for
            // the whole.
            return Err(PassError::Abandoned);
        }
        self.decoder.finish()?;
        if self.filled > 0 {
            self.hand_on()?;
        }
        self.tell(DecodeEvent::End)
    }

    /// Decodes some of `input` and returns the rest; `None` when more input is needed.
    fn step<'a>(&mut self, input: &'a [u8]) -> Result<Option<&'a [u8]>, PassError> {
        let (most, stops) =
            self.finder.as_ref().map_or((u64::MAX, StopPolicy::Units), |finder| finder.plan(self.at));
        let room = (self.block.len() - self.filled).min(usize::try_from(most).unwrap_or(usize::MAX));
        let output = &mut self.block[self.filled..self.filled + room];
        let step = self.decoder.step_to(input, output, stops)?;
        let (taken, rest) = input.split_at(step.consumed);
        self.filled += step.produced;
        self.at += step.produced as u64;
        // The block being filled may turn out to be zeros.
        self.limits.check(self.at, self.zeros + self.filled as u64)?;
        // Sent before the block that starts at it.
        if let Some(finder) = &mut self.finder
            && let Some(found) = finder.note(&mut self.decoder, taken, self.at)?
        {
            self.tell(DecodeEvent::Checkpoint(found))?;
        }
        if !(taken.is_empty() && step.produced == 0)
            && let Some(resume) = self.decoder.start()
        {
            let start = SpanStart { stored: self.decoder.offset(), stream: self.at, resume };
            self.tell(DecodeEvent::Start(start))?;
        }
        if self.filled == self.block.len() {
            self.hand_on()?;
        }
        Ok((!rest.is_empty() || step.produced > 0).then_some(rest))
    }

    fn hand_on(&mut self) -> Result<(), PassError> {
        let next = self.empty.try_recv().unwrap_or_else(|_| vec![0; SUM_BLOCK as usize]);
        let mut full = std::mem::replace(&mut self.block, next);
        full.truncate(self.filled);
        self.filled = 0;
        if full.iter().all(|byte| *byte == 0) {
            self.zeros += full.len() as u64;
        }
        self.limits.check(self.at, self.zeros)?;
        self.progress.store(self.at, Ordering::Relaxed);
        self.tell(DecodeEvent::Block(full))
    }

    fn tell(&self, event: DecodeEvent) -> Result<(), PassError> {
        self.events.send(event).map_err(|_| PassError::Abandoned)
    }
}

/// The learning thread of a pass: it processes the decoded blocks.
struct StreamIndexer {
    /// The archive reader; `None` for a stream that is not read as an archive.
    walker: Option<TarWalker>,
    /// The cache for entries over the memory limit; `None` where all stay in memory.
    cache: Option<BlockCache>,
    /// Entries spooled so far; `None` before the first.
    spooled: Option<SpooledBytes>,
    hasher: Option<Hasher>,
    recorder: SpanRecorder,
    writer: Option<StreamWriter>,
    sums: Vec<[u8; 32]>,
    /// The stored bytes before the files to come.
    recent: RecentStored,
    /// Share of the checksums and starts in the memory budget of all layers.
    memory: MemoryShare,
    /// Maximum stream bytes between the start of a span and the end of a block that is not cached.
    again: u64,
    /// Stream bytes so far.
    at: u64,
}

impl StreamIndexer {
    fn run(
        mut self,
        stored_size: u64,
        events: Receiver<DecodeEvent>,
        empty: Sender<Vec<u8>>,
    ) -> Result<PassResult, PassError> {
        while let Ok(event) = events.recv() {
            match event {
                DecodeEvent::Stored(chunk) if self.walker.is_some() => self.recent.add(chunk),
                DecodeEvent::Stored(_) => {}
                DecodeEvent::Block(block) => {
                    self.block(&block)?;
                    self.mark_file(stored_size)?;
                    if block.len() as u64 == SUM_BLOCK && empty.send(block).is_err() {
                        // The decoding thread has finished and needs no more blocks.
                        continue;
                    }
                }
                DecodeEvent::Start(start) => self.recorder.start(start),
                DecodeEvent::Checkpoint(found) => {
                    self.recorder.checkpoint(found.settle()).map_err(PassError::Spool)?;
                }
                DecodeEvent::End => return self.finish(stored_size),
            }
        }
        // The decoding thread ended early, and its error is reported.
        Err(PassError::Abandoned)
    }

    fn block(&mut self, bytes: &[u8]) -> Result<(), PassError> {
        if let Some(walker) = &mut self.walker {
            walker.feed(self.at, bytes)?;
            if let Some(cache) = &self.cache
                && walker.held_bytes() > SPOOLED_FROM
            {
                let spooled = match &mut self.spooled {
                    Some(spooled) => spooled,
                    none => none.insert(cache.spooled()?),
                };
                spooled.append(&walker.take_head()).map_err(PassError::Spool)?;
            }
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        let sum = *blake3::hash(bytes).as_bytes();
        if self.sums.len().is_multiple_of(CHARGED_SUMS) && !self.sums.is_empty() {
            // A list that grows is there twice for a moment.
            self.memory.grow((2 * CHARGED_SUMS * (size_of::<[u8; 32]>() + size_of::<SpanStart>())) as u64)?;
        }
        self.sums.push(sum);
        self.keep(bytes, &sum)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Adds a checkpoint before the large file that starts in the last block, if any.
    fn mark_file(&mut self, stored_size: u64) -> Result<(), PassError> {
        let Some(walker) = &mut self.walker else { return Ok(()) };
        if let Some(file) = walker.take_large_file().map(decoded_from)
            && let Some(from) = self.recorder.start_before(file)
            && let Some(start) = self.recent.search(from, file)
        {
            self.recorder.insert(start, stored_size).map_err(PassError::Spool)?;
        }
        // The content of the next file starts after this block.
        if let Some(last) = self.recorder.start_before(decoded_from(self.at)) {
            self.recent.release(last.first_stored());
        }
        Ok(())
    }

    /// Caches a block if decoding it again would decode more than `again` bytes. This applies to the far parts of
    /// long zstd frames, and of deflate blocks that a strange encoder did not end.
    fn keep(&mut self, bytes: &[u8], sum: &[u8; 32]) -> Result<(), PassError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let len = bytes.len() as u64;
        if self.at + len - self.recorder.last() <= self.again {
            writer.skip();
            return Ok(());
        }
        match writer.keep(bytes, sum) {
            Ok(()) => {}
            Err(error) if error.is_disk() => {
                // The names are unaffected, and reads decode the missing bytes.
                tracing::warn!(%error, "cannot store the decoded stream");
                self.writer = None;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn finish(self, stored_size: u64) -> Result<PassResult, PassError> {
        let toc = self.walker.map_or(Ok(TableOfContents::default()), |walker| walker.finish(self.at))?;
        let index = LayerIndex {
            spans: self.recorder.finish(stored_size, self.at),
            toc: match self.spooled {
                Some(head) => toc.behind(head),
                None => toc,
            },
            blocks: self.sums,
            prefetch: 0,
        };
        Ok(PassResult { index, hashed: self.hasher.map(Hasher::finish), kept: self.writer })
    }
}

/// The result of a pass.
pub(super) struct PassResult {
    pub(super) index: LayerIndex,
    /// Digest of the whole stream; `None` without a hasher.
    pub(super) hashed: Option<Digest>,
    /// The cached blocks of the stream, to be published or dropped.
    pub(super) kept: Option<StreamWriter>,
}

/// The parameters of a forward pass.
pub(super) struct IndexJob {
    /// The encoding of the stored bytes.
    pub(super) encoding: StreamEncoding,
    /// The source of the stored bytes: local or over a network.
    pub(super) input: PassInput,
    /// The accepted windows.
    pub(super) windows: WindowLimits,
    /// Whether the stream is read as an archive.
    pub(super) is_archive: bool,
    /// The cache for entries over the memory limit; `None` where all stay in memory.
    pub(super) cache: Option<BlockCache>,
    /// Caches blocks that are expensive to decode again; `None` to cache none.
    pub(super) writer: Option<StreamWriter>,
    /// Hashes the stream; `None` for no hash.
    pub(super) hasher: Option<Hasher>,
    /// Number of stream bytes decoded so far, updated by the pass.
    pub(super) progress: Arc<AtomicU64>,
}

/// The reason why a pass has no result.
pub(super) enum PassStop {
    /// The layer cannot be read or decoded.
    Failed(ReadError),
    /// The layer needs [`WindowLimits::Large`].
    LargeWindow,
}

impl From<ReadError> for PassStop {
    fn from(error: ReadError) -> Self {
        PassStop::Failed(error)
    }
}

/// The forward pass: decodes the whole layer once, and collects its spans, its checksums and its table of contents.
pub(super) async fn forward<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    plan: IndexJob,
) -> Result<PassResult, PassStop> {
    let IndexJob { encoding, input: from, windows, is_archive, cache, writer, hasher, progress } = plan;
    let place = crew::place(from).await?;
    let stored_size = blob.size();
    let start =
        UnitDecoder::within(windows, encoding, 0).map_err(|error| PassError::from(error).into_read())?;
    let Some(decoder) = start else {
        let message = "a layer that is not compressed needs no decoder";
        return Err(ReadError::new(FaultClass::Usage, message).into());
    };
    let (sender, input) = mpsc::channel(CHUNK_QUEUE_LENGTH);
    let (events, heard) = sync_channel(BLOCKS);
    let (emptied, empty) = channel();
    let decoding = DecodeThread {
        decoder,
        missing: stored_size,
        finder: (encoding == StreamEncoding::Gzip).then(CheckpointFinder::new),
        limits: DecodeLimits::of(stored_size),
        at: 0,
        zeros: 0,
        progress,
        events,
        empty,
        block: vec![0; SUM_BLOCK as usize],
        filled: 0,
    };
    let learner = StreamIndexer {
        walker: is_archive.then(|| TarWalker::new(TarLimits::default())),
        recorder: SpanRecorder::new(encoding).with_windows_in(cache.clone()),
        cache,
        spooled: None,
        hasher,
        writer,
        sums: Vec::new(),
        recent: RecentStored::default(),
        // A temporary share must not wait for the network.
        memory: MEMORY.lasting(),
        again: max_redecode(encoding),
        at: 0,
    };
    let decoding = place.run(move || decoding.run(input));
    let learning = place.run(move || learner.run(stored_size, heard, emptied));
    // The two jobs hold the slot now, even when this future is dropped.
    drop(place);
    // A read error explains a cut stream better than the decoder does.
    feed(blob, ByteRange::new(0, stored_size), from, sender).await?;
    let (decoded, learnt) = tokio::join!(decoding, learning);
    match (decoded, learnt) {
        // The error of the learning thread is the reason why its channel closed.
        (Ok(Err(PassError::Abandoned)), learnt) | (Ok(Ok(())), learnt) => Ok(answered(learnt)?),
        (Ok(Err(PassError::Codec(CodecError::Memory { .. }))), _) if windows == WindowLimits::Common => {
            Err(PassStop::LargeWindow)
        }
        (decoded, _) => Err(match answered(decoded) {
            Err(error) => error.into(),
            Ok(()) => PassError::Abandoned.into_read().into(),
        }),
    }
}

impl PassError {
    pub(super) fn into_read(self) -> ReadError {
        ReadError::new(self.fault(), self.to_string())
    }
}

/// The result of a blocking thread. A panic in it is an internal error that must not take the mount down.
pub(super) fn joined<T>(
    result: Result<Result<T, PassError>, tokio::task::JoinError>,
) -> Result<T, ReadError> {
    match result {
        Ok(result) => result.map_err(PassError::into_read),
        Err(error) => Err(ReadError::caused(FaultClass::Io, "decoding thread failed", error)),
    }
}

/// The result of a job of a pass. A job that panicked sends none, which is an error.
fn answered<T>(answer: Result<Result<T, PassError>, oneshot::error::RecvError>) -> Result<T, ReadError> {
    match answer {
        Ok(result) => result.map_err(PassError::into_read),
        Err(error) => Err(ReadError::caused(FaultClass::Io, "decoding thread failed", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoded_limit_scales_with_stored_bytes_and_excludes_zeros() {
        const MIB: u64 = 1024 * 1024;
        let said = |limits: DecodeLimits, stream, zeros| {
            limits.check(stream, zeros).map_err(|error| error.to_string())
        };
        for (stored, most) in [(100, 64 * MIB), (MIB, 1100 * MIB), (100 * 1024 * MIB, 110_000 * 1024 * MIB)] {
            let limits = DecodeLimits::of(stored);
            let refused = |limit: u64, besides: &str| {
                Err(format!(
                    "it decodes to more than {limit} bytes{besides}, the limit for {stored} stored ones"
                ))
            };
            assert_eq!(said(limits, most, 0), Ok(()));
            let all = most.max(65_536 * MIB);
            assert_eq!(said(limits, all, all), Ok(()));
            assert_eq!(said(limits, all + 1, all + 1), refused(all, ""));
            if most < all {
                assert_eq!(said(limits, most + 8, 8), Ok(()));
                assert_eq!(said(limits, most + 9, 8), refused(most, " besides blocks of zeros"));
            }
        }
        assert_eq!(DecodeLimits::of(u64::MAX).stream, u64::MAX);
    }
}
