//! Random access to a decoded stream: from the nearest resume point to the end of the last requested block.
//!
//! The cache above stores the bytes. Every block, and every range with a digest, is compared before it is
//! delivered. Decoding goes in turns on blocking threads. Each turn already has its stored bytes, so that no thread
//! waits for the network. A decoder that stopped at the end of a read continues when the reader does.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use lru::LruCache;
use tokio::sync::{Semaphore, mpsc};

use crate::cache::BlockSums;
use crate::io::{
    BoxFuture, BoxStream, ByteRange, FaultClass, MEMORY, MemoryShare, RangeDelivery, RangeFetch, ReadAt,
    ReadError, read_vec,
};
use crate::oci::Digest;

use super::codec::UnitDecoder;
use super::decode_step::WindowLimits;
use super::index::{LayerIndex, SUM_BLOCK};
use super::indexer::{PassError, joined};
use super::sniff::StreamEncoding;
use super::span::{ChunkDigest, LayerDigests, LayerPiece, SpanMap};

/// Stored bytes per read: one span mostly takes less.
const SPAN_READ_BYTES: u64 = 1024 * 1024;

/// Reads in flight ahead of the decoder.
const SEEK_READAHEAD_DEPTH: usize = 4;

/// Stored bytes per read where the further need is unknown: a block of the cache.
const UNKNOWN_NEED_BYTES: u64 = 256 * 1024;

/// Maximum gap between two pieces that is read with them rather than skipped: the headers of an archive, which lie
/// in the same blocks of the cache.
const JOIN_GAP_BYTES: u64 = 16 * 1024;

/// Maximum stream bytes per turn on a blocking thread, unless one digest covers more.
const MAX_TURN_BYTES: u64 = 1024 * 1024;

/// Buffers queued for the reader.
const DELIVERY_QUEUE_LENGTH: usize = 4;

/// Paused decoders: one for each file of a layer that is read sequentially at the same time. Each takes 50 KiB.
const PAUSED: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Maximum bytes under one digest: they are held in memory until they are compared.
pub(super) const MAX_SUM: u64 = 64 * 1024 * 1024;

/// Steps without progress before a decoder counts as stuck.
const MAX_IDLE_STEPS: u32 = 32;

/// Maximum concurrent turns, over all layers of the process: more would not be faster. A turn never waits for
/// stored bytes.
static TURNS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(2 * std::thread::available_parallelism().map_or(2, NonZeroUsize::get)));

/// A producer of the decoded stream of the layer stored in `blob`. Bytes that contradict `index` are an error.
pub fn decoded<R: ReadAt + ?Sized>(blob: Arc<R>, index: &LayerIndex) -> Arc<dyn RangeFetch> {
    decoded_by(blob, index.spans.clone(), index.blocks.as_slice().into())
}

/// As [`decoded`], with the parts of an index.
pub(super) fn decoded_by<R: ReadAt + ?Sized>(
    blob: Arc<R>,
    map: SpanMap,
    blocks: BlockSums,
) -> Arc<dyn RangeFetch> {
    Arc::new(SeekableDecoder(Arc::new(PieceSource {
        blob,
        map,
        blocks,
        paused: Mutex::new(LruCache::new(PAUSED)),
    })))
}

struct SeekableDecoder<R: ?Sized>(Arc<PieceSource<R>>);

struct PieceSource<R: ?Sized> {
    map: SpanMap,
    /// blake3 of the blocks of the stream; empty if the index has none.
    blocks: BlockSums,
    /// Paused decoders by their stream offset. A decoder is removed while it works.
    paused: Mutex<LruCache<u64, UnitDecoder>>,
    blob: Arc<R>,
}

impl<R: ReadAt + ?Sized> RangeFetch for SeekableDecoder<R> {
    fn size(&self) -> u64 {
        self.0.map.stream_size()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let (work, feed, range) = PieceSource::plan(&self.0, range)?;
            let (output, mut receiver) = mpsc::channel(DELIVERY_QUEUE_LENGTH);
            tokio::spawn(PieceSource::run(self.0.clone(), work, feed, output));
            let body = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
            Ok(RangeDelivery { range, body: Box::pin(body) })
        })
    }
}

/// Stored bytes with the blob offset of the first, in decoding order.
type StoredFeed = BoxStream<'static, Result<(u64, Bytes), ReadError>>;

impl<R: ReadAt + ?Sized> PieceSource<R> {
    /// The decoding work for `asked`, the stored bytes for it, and the delivered range.
    fn plan(self: &Arc<Self>, asked: ByteRange) -> Result<(DecodeWork, StoredFeed, ByteRange), ReadError> {
        let want = asked.align(SUM_BLOCK.trailing_zeros(), self.map.stream_size());
        let mut pieces: VecDeque<LayerPiece> = self.map.cover(want).into();
        let (Some(first), Some(last)) = (pieces.front(), pieces.back()) else {
            let message = format!("no piece of the layer covers {asked}");
            return Err(ReadError::new(FaultClass::Malformed, message));
        };
        let whole = ByteRange::new(first.stream.start, last.stream.end);
        if self.is_whole() {
            let feed = self.feed(touching(&pieces), u64::MAX);
            let deliver = match self.map.starts() {
                [] => whole,
                // Pieces of a stream in order end anywhere, and the cache stores its own blocks.
                _ if matches!(self.map.sums(), LayerDigests::Stream(_)) => whole,
                _ => ByteRange::new(
                    whole.start.next_multiple_of(SUM_BLOCK).min(want.start),
                    (whole.end - whole.end % SUM_BLOCK).max(want.end),
                ),
            };
            return Ok((DecodeWork::new(pieces, None, whole.start, deliver), feed, deliver));
        }
        let (at, decoder) = match self.take_paused(ByteRange::new(whole.start, want.start)) {
            Some((at, decoder)) => (at, Some(decoder)),
            None => (whole.start, None),
        };
        let deliver = ByteRange::new(at.next_multiple_of(SUM_BLOCK).min(want.start), want.end);
        let mut stored = first.stored;
        if let (Some(decoder), Some(first)) = (&decoder, pieces.front_mut()) {
            stored.start = decoder.offset();
            first.stored.start = stored.start;
            first.stream.start = at;
        }
        let likely = match self.map.sums() {
            // Whole spans have to be read to be compared.
            LayerDigests::Stored(_) => u64::MAX,
            LayerDigests::None | LayerDigests::Stream(_) => {
                self.likely_end(ByteRange::new(at, want.end), stored)
            }
        };
        Ok((DecodeWork::new(pieces, decoder, at, deliver), self.feed(vec![stored], likely), deliver))
    }

    /// Whether whole pieces are delivered. Chunks are small, and a digest of a range can only be compared with the
    /// whole range. A block of xz is decoded once, because its decoder is not paused.
    fn is_whole(&self) -> bool {
        let blocks_of_xz = self.map.encoding() == StreamEncoding::Xz && self.map.spans() > 1;
        blocks_of_xz || self.map.is_made_up() || matches!(self.map.sums(), LayerDigests::Stream(_))
    }

    /// Removes the paused decoder closest to the end of `stream`, at most at it.
    fn take_paused(&self, stream: ByteRange) -> Option<(u64, UnitDecoder)> {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let between = |at: &u64| stream.start < *at && *at <= stream.end;
        let at = paused.iter().map(|(at, _)| *at).filter(between).max()?;
        paused.pop_entry(&at)
    }

    fn pause(&self, at: u64, decoder: UnitDecoder) {
        // Nothing follows the end. A zstd decoder holds a window of up to 128 MiB, and its frames are resume points
        // of their own.
        if at < self.map.stream_size() && self.map.encoding() == StreamEncoding::Gzip {
            self.paused.lock().unwrap_or_else(PoisonError::into_inner).put(at, decoder);
        }
    }

    /// Estimated end of the stored bytes for `stream`, decoded from the start of `stored`: an interpolation between
    /// checkpoints.
    fn likely_end(&self, stream: ByteRange, stored: ByteRange) -> u64 {
        let starts = self.map.starts();
        let next = starts.partition_point(|start| start.stream < stream.end);
        let (mut from, mut until) = ((stream.start, stored.start), (self.map.stream_size(), stored.end));
        if let Some(start) = next.checked_sub(1).and_then(|last| starts.get(last))
            && start.stream > from.0
        {
            from = (start.stream, start.stored);
        }
        if let Some(start) = starts.get(next) {
            until = (start.stream, start.stored);
        }
        let share = |part: u64, of: u64, whole: u64| {
            // At most `whole` when `part` is at most `of`.
            (u128::from(part) * u128::from(whole) / u128::from(of.max(1))) as u64
        };
        let part = (stream.end - from.0).min(until.0 - from.0);
        let guess = share(part, until.0 - from.0, until.1.saturating_sub(from.1));
        let end = from.1.saturating_add(guess + guess / 8);
        end.checked_next_multiple_of(UNKNOWN_NEED_BYTES).map_or(stored.end, |end| end.min(stored.end))
    }

    /// Reads `runs`: bytes before `likely` ahead of their use, the rest on demand.
    fn feed(self: &Arc<Self>, runs: Vec<ByteRange>, likely: u64) -> StoredFeed {
        let (one, other) = (self.clone(), self.clone());
        let segments =
            |run: ByteRange, step| StoredSegments { source: self.clone(), at: run.start, end: run.end, step };
        let soon: Vec<_> = runs
            .iter()
            .map(|run| segments(ByteRange::new(run.start, run.end.min(likely)), SPAN_READ_BYTES))
            .collect();
        let late: Vec<_> = runs
            .iter()
            .map(|run| segments(ByteRange::new(run.start.max(likely), run.end), UNKNOWN_NEED_BYTES))
            .collect();
        let soon = futures_util::stream::iter(soon.into_iter().flatten())
            .map(move |segment| one.clone().read(segment))
            .buffered(SEEK_READAHEAD_DEPTH);
        let late = futures_util::stream::iter(late.into_iter().flatten())
            .then(move |segment| other.clone().read(segment));
        soon.chain(late).boxed()
    }

    async fn read(self: Arc<Self>, segment: StoredSegment) -> Result<(u64, Bytes), ReadError> {
        let StoredSegment { take, sum } = segment;
        let Some(sum) = sum else {
            return Ok((take.start, read_vec(&*self.blob, take).await?.into()));
        };
        let range = ByteRange::new(sum.start, sum.end);
        let subject = format!("stored bytes {range}");
        within_limit(&subject, range.len()).map_err(PassError::into_read)?;
        let bytes: Bytes = read_vec(&*self.blob, range).await?.into();
        let compared = tokio::task::spawn_blocking(move || {
            compare_sha256(subject, &bytes, &sum)?;
            Ok(bytes.slice((take.start - range.start) as usize..(take.end - range.start) as usize))
        });
        Ok((take.start, joined(compared.await)?))
    }

    /// The memory for the window of `work` and the stored bytes for it; `None` for a small window. A window uses no
    /// more memory than was written into it.
    fn window_of(&self, work: &DecodeWork) -> Option<(u64, Vec<ByteRange>)> {
        /// Maximum stream bytes decoded from one start without reserving memory.
        const COMMON: u64 = 1 << WindowLimits::Common.log();
        /// Maximum stream bytes of a delivery to the cache. Only a reader of the whole stream requests more, and it
        /// is alone.
        const MOST: u64 = 64 * 1024 * 1024;
        if !matches!(self.map.encoding(), StreamEncoding::Zstd | StreamEncoding::Xz)
            || work.deliver.len() > MOST
        {
            return None;
        }
        let decoded =
            |piece: &LayerPiece| piece.stream.end.min(work.deliver.end).saturating_sub(piece.stream.start);
        let most = work.pieces.iter().map(decoded).max().unwrap_or(0).min(1 << WindowLimits::Large.log());
        (most > COMMON).then(|| (most, work.pieces.iter().map(|piece| piece.stored).collect()))
    }

    /// Waits for memory for a window. The stored bytes are fetched first, because others wait for the memory.
    async fn memory_for(
        &self,
        window: Option<(u64, Vec<ByteRange>)>,
    ) -> Result<Option<MemoryShare>, ReadError> {
        let Some((bytes, runs)) = window else { return Ok(None) };
        for run in runs {
            for start in (run.start..run.end).step_by(SPAN_READ_BYTES as usize) {
                read_vec(&*self.blob, ByteRange::new(start, run.end.min(start + SPAN_READ_BYTES))).await?;
            }
        }
        let share = MEMORY.take(bytes).await;
        share.map(Some).map_err(|error| error.into_read("decoding a part of a layer"))
    }

    /// Decodes until all is delivered or the receiver is dropped.
    async fn run(
        self: Arc<Self>,
        mut work: DecodeWork,
        mut feed: StoredFeed,
        output: mpsc::Sender<Result<Bytes, ReadError>>,
    ) {
        let mut input = (0, Bytes::new());
        let window = self.window_of(&work);
        let _memory = match self.memory_for(window).await {
            Ok(share) => share,
            Err(error) => {
                output.send(Err(error)).await.ok();
                return;
            }
        };
        loop {
            let source = self.clone();
            let turn = {
                let _turn = TURNS.acquire().await.ok();
                tokio::task::spawn_blocking(move || {
                    let mut ready = Vec::new();
                    let wants = work.turn(&source, &mut input, &mut ready)?;
                    Ok((work, input, ready, wants))
                })
                .await
            };
            let (ready, wants);
            (work, input, ready, wants) = match joined(turn) {
                Ok(done) => done,
                Err(error) => {
                    // Sending fails only when the reader is gone.
                    output.send(Err(error)).await.ok();
                    return;
                }
            };
            for bytes in ready {
                if output.send(Ok(bytes)).await.is_err() {
                    return;
                }
            }
            if work.at >= work.deliver.end {
                if let Some(UnpackMethod::Decode(decoder)) = work.unpack
                    && !self.is_whole()
                {
                    self.pause(work.at, *decoder);
                }
                return;
            }
            if wants == TurnEnd::Input {
                input = match feed.next().await {
                    Some(Ok(next)) => next,
                    Some(Err(error)) => {
                        output.send(Err(error)).await.ok();
                        return;
                    }
                    None => {
                        output.send(Err(work.ended_short().into_read())).await.ok();
                        return;
                    }
                };
            }
        }
    }

    /// The next range from `at` to deliver as one, at most to `end`, and its expected digest, if any.
    fn cut(&self, at: u64, end: u64) -> Result<(ByteRange, Option<ChunkDigest>), PassError> {
        let block = ByteRange::new(at, (at - at % SUM_BLOCK + SUM_BLOCK).min(end));
        let LayerDigests::Stream(sums) = self.map.sums() else { return Ok((block, None)) };
        let next = sums.partition_point(|sum| sum.start <= at);
        if let Some(sum) = next.checked_sub(1).and_then(|last| sums.get(last))
            && sum.start == at
            && sum.end <= end
        {
            let range = ByteRange::new(at, sum.end);
            within_limit(&format!("stream bytes {range}"), range.len())?;
            return Ok((range, Some(*sum)));
        }
        let until = sums.get(next).map_or(u64::MAX, |sum| sum.start);
        Ok((ByteRange::new(at, block.end.min(until)), None))
    }

    /// Compares the decoded bytes of `range` with every digest known for it.
    fn check(&self, range: ByteRange, bytes: &[u8], sum: Option<&ChunkDigest>) -> Result<(), PassError> {
        if let Some(sum) = sum {
            compare_sha256(format!("stream bytes {range}"), bytes, sum)?;
        }
        let number = range.start / SUM_BLOCK;
        let is_block = range
            == ByteRange::at(number * SUM_BLOCK, SUM_BLOCK)
                .intersect(ByteRange::new(0, self.map.stream_size()));
        if let Some(expected) = self.blocks.get(number as usize).filter(|_| is_block) {
            let actual = blake3::hash(bytes);
            if actual != *expected {
                return Err(PassError::Mismatch {
                    subject: format!("block {number} of the stream (bytes {range})"),
                    expected: blake3::Hash::from_bytes(*expected).to_string(),
                    actual: actual.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn within_limit(subject: &str, len: u64) -> Result<(), PassError> {
    if len > MAX_SUM {
        return Err(PassError::Digest { subject: subject.into(), len, limit: MAX_SUM });
    }
    Ok(())
}

fn compare_sha256(subject: String, bytes: &[u8], sum: &ChunkDigest) -> Result<(), PassError> {
    use std::fmt::Write as _;
    let mut expected = String::new();
    for byte in sum.sha256 {
        // Writing to a string does not fail.
        write!(expected, "{byte:02x}").ok();
    }
    let actual = Digest::sha256(bytes);
    if actual.encoded() == expected {
        return Ok(());
    }
    let expected = format!("sha256:{expected}");
    Err(PassError::Mismatch { subject, expected, actual: actual.to_string() })
}

/// The stored ranges of `pieces`; neighbours are merged.
fn touching(pieces: &VecDeque<LayerPiece>) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(run) if (run.end..run.end + JOIN_GAP_BYTES).contains(&piece.stored.start) => {
                run.end = piece.stored.end
            }
            _ => runs.push(piece.stored),
        }
    }
    runs
}

/// A read of stored bytes.
struct StoredSegment {
    /// The bytes for the decoder.
    take: ByteRange,
    /// The range around them to compare first; `None` without a digest.
    sum: Option<ChunkDigest>,
}

/// The reads for one run of stored bytes, in order.
struct StoredSegments<R: ?Sized> {
    source: Arc<PieceSource<R>>,
    at: u64,
    end: u64,
    step: u64,
}

impl<R: ?Sized> Iterator for StoredSegments<R> {
    type Item = StoredSegment;

    fn next(&mut self) -> Option<StoredSegment> {
        if self.at >= self.end {
            return None;
        }
        // At multiples of the step, which are multiples of the cache's blocks.
        let mut until = (self.at - self.at % self.step).saturating_add(self.step).min(self.end);
        let mut within = None;
        if let LayerDigests::Stored(sums) = self.source.map.sums() {
            let next = sums.partition_point(|sum| sum.start <= self.at);
            match next.checked_sub(1).and_then(|last| sums.get(last)) {
                Some(sum) if self.at < sum.end => {
                    within = Some(*sum);
                    until = sum.end.min(self.end);
                }
                _ => until = sums.get(next).map_or(until, |sum| sum.start.min(until)),
            }
        }
        let take = ByteRange::new(self.at, until);
        self.at = until;
        Some(StoredSegment { take, sum: within })
    }
}

/// Converts the stored bytes of a piece into stream bytes.
enum UnpackMethod {
    /// Identity; the offset of the next byte.
    Copy(u64),
    Decode(Box<UnitDecoder>),
}

impl UnpackMethod {
    fn offset(&self) -> u64 {
        match self {
            UnpackMethod::Copy(offset) => *offset,
            UnpackMethod::Decode(decoder) => decoder.offset(),
        }
    }

    /// Bytes consumed and produced.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), PassError> {
        match self {
            UnpackMethod::Copy(offset) => {
                let len = input.len().min(output.len());
                output[..len].copy_from_slice(&input[..len]);
                *offset += len as u64;
                Ok((len, len))
            }
            UnpackMethod::Decode(decoder) => {
                let step = decoder.step(input, output)?;
                Ok((step.consumed, step.produced))
            }
        }
    }
}

/// The reason why a turn ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TurnEnd {
    /// All input is consumed.
    Input,
    /// The turn reached its limit or the end of the delivery.
    Turn,
}

/// One delivery in progress.
struct DecodeWork {
    /// The piece being decoded, and those after it.
    pieces: VecDeque<LayerPiece>,
    /// The decoder of the first piece; `None` before it has started.
    unpack: Option<UnpackMethod>,
    /// The next stream byte.
    at: u64,
    /// The stream range to deliver of the decoded bytes.
    deliver: ByteRange,
    /// The buffer being filled: its range, its expected digest, its bytes, and the number of bytes filled.
    cut: Option<(ByteRange, Option<ChunkDigest>, Vec<u8>, usize)>,
    /// Steps without progress.
    idle: u32,
}

impl DecodeWork {
    fn new(pieces: VecDeque<LayerPiece>, decoder: Option<UnitDecoder>, at: u64, deliver: ByteRange) -> Self {
        let unpack = decoder.map(|decoder| UnpackMethod::Decode(Box::new(decoder)));
        Self { pieces, unpack, at, deliver, cut: None, idle: 0 }
    }

    /// Decodes `input` (with its blob offset) for one turn.
    fn turn<R: ReadAt + ?Sized>(
        &mut self,
        source: &PieceSource<R>,
        input: &mut (u64, Bytes),
        ready: &mut Vec<Bytes>,
    ) -> Result<TurnEnd, PassError> {
        let start = self.at;
        while self.at < self.deliver.end && self.at - start < MAX_TURN_BYTES {
            let Some(piece) = self.pieces.front() else { return Err(self.ended_short()) };
            let unpack = match &mut self.unpack {
                Some(unpack) => unpack,
                none => none.insert(match UnitDecoder::resume(source.map.encoding(), piece)? {
                    Some(decoder) => UnpackMethod::Decode(Box::new(decoder)),
                    None => UnpackMethod::Copy(piece.stored.start),
                }),
            };
            let (range, sum, buffer, filled) = match &mut self.cut {
                Some(cut) => cut,
                none => {
                    let (range, sum) = source.cut(self.at, self.deliver.end)?;
                    none.insert((range, sum, vec![0; range.len() as usize], 0))
                }
            };
            // The next byte for the decoder may lie behind the input, where a piece has more bytes than were read
            // of it.
            let offset = unpack.offset();
            let have = ByteRange::at(input.0, input.1.len() as u64).intersect(piece.stored);
            let given = if have.start <= offset && offset < have.end {
                input.1.advance((offset - input.0) as usize);
                input.0 = offset;
                &input.1[..(have.end - offset) as usize]
            } else {
                if offset < piece.stored.end {
                    input.1.clear();
                }
                &[]
            };
            let room = (buffer.len() - *filled).min((piece.stream.end - self.at) as usize);
            let (consumed, produced) = unpack.step(given, &mut buffer[*filled..*filled + room])?;
            let had_input = !given.is_empty();
            input.0 += consumed as u64;
            input.1.advance(consumed);
            self.at += produced as u64;
            *filled += produced;
            if *filled == buffer.len() {
                source.check(*range, buffer, sum.as_ref())?;
                if range.start >= self.deliver.start {
                    ready.push(std::mem::take(buffer).into());
                }
                self.cut = None;
            }
            if self.at == piece.stream.end && self.at < self.deliver.end {
                self.pieces.pop_front();
                self.unpack = None;
                continue;
            }
            match (consumed + produced, had_input) {
                (0, false) if offset == piece.stored.end => return Err(self.ended_short()),
                (0, false) => return Ok(TurnEnd::Input),
                (0, true) if self.idle == MAX_IDLE_STEPS => return Err(self.ended_short()),
                (0, true) => self.idle += 1,
                _ => self.idle = 0,
            }
        }
        Ok(TurnEnd::Turn)
    }

    fn ended_short(&self) -> PassError {
        let expected = self.pieces.front().map_or(self.deliver, |piece| piece.stream);
        PassError::Length { expected: expected.len(), actual: self.at.saturating_sub(expected.start) }
    }
}
