//! Random access to a decoded stream: from the nearest resume point to the end of the last requested block.
//!
//! The cache above stores the bytes. Every block, and every range with a digest, is compared before it is
//! delivered. Decoding goes in turns on blocking threads. Each turn already has its stored bytes, so that no thread
//! waits for the network. A decoder that stopped at the end of a read continues when the reader does.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, mpsc};

use super::codec::{CodecError, UnitDecoder};
use super::decode_step::WindowLimits;
use super::digest_check::{compare_sha256, within_limit};
use super::far_queue::FarTurn;
use super::forward::{FAR_BYTES, ForwardState};
use super::index::{LayerIndex, SUM_BLOCK};
use super::indexer::{PassError, joined};
use super::paused::PausedDecoder;
use super::sniff::StreamEncoding;
use super::span::{ChunkDigest, LayerDigests, LayerPiece, SpanMap, with_margin};
use super::stored_segments::{StoredSegment, StoredSegments, touching};
use super::unpack_method::UnpackMethod;
use crate::cache::BlockSums;
use crate::io::concurrency::decoder_turns;
use crate::io::{
    BoxFuture, BoxStream, ByteRange, FaultClass, MEMORY, MemoryShare, RangeDelivery, RangeFetch, ReadAt,
    ReadError, proportion, read_vec,
};

/// Stored bytes per read: one span mostly takes less.
const SPAN_READ_BYTES: u64 = 1024 * 1024;

/// Reads in flight ahead of the decoder.
const SEEK_READAHEAD_DEPTH: usize = 4;

/// Stored bytes per read where the further need is unknown: a block of the cache.
const UNKNOWN_NEED_BYTES: u64 = 256 * 1024;

/// Maximum stream bytes per turn on a blocking thread, unless one digest covers more.
const MAX_TURN_BYTES: u64 = 1024 * 1024;

/// Buffers queued for the reader.
const DELIVERY_QUEUE_LENGTH: usize = 4;

/// Maximum stream bytes that a read asks for whose window is charged. Only a reader of the whole stream asks for
/// more, and it is alone.
const MAX_CHARGED_BYTES: u64 = 64 * 1024 * 1024;

/// Steps without progress before a decoder counts as stuck.
const MAX_IDLE_STEPS: u32 = 32;

/// Permits of the turns of all decoders.
static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(decoder_turns()));

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
    Arc::new(SeekableDecoder(Arc::new(PieceSource { blob, map, blocks, forward: ForwardState::new() })))
}

struct SeekableDecoder<R: ?Sized>(Arc<PieceSource<R>>);

struct PieceSource<R: ?Sized> {
    map: SpanMap,
    /// blake3 of the blocks of the stream; empty if the index has none.
    blocks: BlockSums,
    /// Where decoding can begin or continue, besides the starts of the map.
    forward: ForwardState,
    blob: Arc<R>,
}

impl<R: ReadAt + ?Sized> RangeFetch for SeekableDecoder<R> {
    fn size(&self) -> u64 {
        self.0.map.stream_size()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let turn = self.0.far_turn(range).await;
            if let Some(decoded) = self.0.forward.tail.delivery(self.0.aligned(range)) {
                return Ok(decoded);
            }
            let (work, feed, range) = PieceSource::plan(&self.0, range)?;
            let (output, mut receiver) = mpsc::channel(DELIVERY_QUEUE_LENGTH);
            tokio::spawn(PieceSource::run(self.0.clone(), work, feed, output, turn));
            let body = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
            Ok(RangeDelivery { range, body: Box::pin(body) })
        })
    }
}

/// Stored bytes with the blob offset of the first, in decoding order.
type StoredFeed = BoxStream<'static, Result<(u64, Bytes), ReadError>>;

/// Whether the cache of the stored bytes fetches ahead of the decoder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FeedReach {
    /// Yes: the reader may go on.
    Ahead,
    /// No: in a long span a read may need many bytes and end soon after it has them.
    Exact,
}

impl<R: ReadAt + ?Sized> PieceSource<R> {
    fn aligned(&self, asked: ByteRange) -> ByteRange {
        asked.align(SUM_BLOCK.trailing_zeros(), self.map.stream_size())
    }

    /// The turn of a read that decodes much besides what it asks for; `None` for any other.
    async fn far_turn(&self, asked: ByteRange) -> Option<FarTurn> {
        if self.is_whole() {
            return None;
        }
        let want = self.aligned(asked);
        let piece = self.map.cover(want).into_iter().next()?;
        self.forward.far_turn(piece, want.start).await
    }

    /// The decoding work for `asked`, the stored bytes for it, and the delivered range.
    fn plan(self: &Arc<Self>, asked: ByteRange) -> Result<(DecodeWork, StoredFeed, ByteRange), ReadError> {
        let want = self.aligned(asked);
        let pieces: VecDeque<LayerPiece> = self.map.cover(want).into();
        let (Some(first), Some(last)) = (pieces.front(), pieces.back()) else {
            let message = format!("no piece of the layer covers {asked}");
            return Err(ReadError::new(FaultClass::Malformed, message));
        };
        let whole = ByteRange::new(first.stream.start, last.stream.end);
        // Whole blocks, as the cache stores them.
        let rounded = |range: ByteRange| {
            let (start, end) = (range.start.next_multiple_of(SUM_BLOCK), range.end - range.end % SUM_BLOCK);
            ByteRange::new(start.min(want.start), end.max(want.end))
        };
        if self.is_whole() {
            let feed = self.feed(touching(&pieces), u64::MAX, FeedReach::Ahead);
            let deliver = match self.map.starts() {
                [] => whole,
                // Pieces of a stream in order end anywhere, and the cache stores its own blocks.
                _ if matches!(self.map.sums(), LayerDigests::Stream(_)) => whole,
                _ => rounded(whole),
            };
            let origin = first.clone();
            let work = DecodeWork::new(pieces, origin, deliver, deliver.len(), WindowLimits::Large);
            return Ok((work, feed, deliver));
        }
        let begin = self.forward.begin(first.clone(), want.start);
        let origin = begin.origin.clone();
        let at = begin.paused.as_ref().map_or(origin.stream.start, |(at, _)| *at);
        let end = if begin.is_to_end { origin.stream.end } else { want.end };
        let deliver = rounded(ByteRange::new(at, end));
        let windows = match want.len() > MAX_CHARGED_BYTES {
            true => WindowLimits::Large,
            false => self.forward.windows(),
        };
        let mut work = DecodeWork::new([origin.clone()].into(), origin, deliver, want.len(), windows);
        if let Some((at, paused)) = begin.paused {
            work.resume(at, paused);
        }
        let feed = self.feed_of(&work);
        Ok((work, feed, deliver))
    }

    /// The stored bytes for work on one piece.
    fn feed_of(self: &Arc<Self>, work: &DecodeWork) -> StoredFeed {
        let runs = work.pieces.iter().map(|piece| piece.stored).collect();
        let likely = work.pieces.front().map_or(0, |piece| self.likely_end(work, piece));
        let reach = match work.origin.stream.len() > FAR_BYTES {
            true => FeedReach::Exact,
            false => FeedReach::Ahead,
        };
        self.feed(runs, likely, reach)
    }

    /// Whether whole pieces are delivered. Chunks are small, and a digest of a range can only be compared with the
    /// whole range.
    fn is_whole(&self) -> bool {
        self.map.is_made_up() || matches!(self.map.sums(), LayerDigests::Stream(_))
    }

    /// Estimated end of the stored bytes for `work`, which continues at the start of `piece`: an interpolation
    /// between checkpoints.
    fn likely_end(&self, work: &DecodeWork, piece: &LayerPiece) -> u64 {
        if let LayerDigests::Stored(_) = self.map.sums() {
            // Whole spans have to be read to be compared.
            return u64::MAX;
        }
        let (stored, stream) = (piece.stored, ByteRange::new(work.at, work.deliver.end));
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
        let part = (stream.end - from.0).min(until.0 - from.0);
        let guess = proportion(part, until.0 - from.0, until.1.saturating_sub(from.1));
        let end = from.1.saturating_add(with_margin(guess));
        end.checked_next_multiple_of(UNKNOWN_NEED_BYTES).map_or(stored.end, |end| end.min(stored.end))
    }

    /// Reads `runs`: bytes before `likely` ahead of their use, the rest on demand.
    fn feed(self: &Arc<Self>, runs: Vec<ByteRange>, likely: u64, reach: FeedReach) -> StoredFeed {
        let (one, other) = (self.clone(), self.clone());
        let segments = |run, step| StoredSegments::new(self.map.clone(), run, step);
        let soon: Vec<_> = runs
            .iter()
            .map(|run| segments(ByteRange::new(run.start, run.end.min(likely)), SPAN_READ_BYTES))
            .collect();
        let late: Vec<_> = runs
            .iter()
            .map(|run| segments(ByteRange::new(run.start.max(likely), run.end), UNKNOWN_NEED_BYTES))
            .collect();
        let soon = futures_util::stream::iter(soon.into_iter().flatten())
            .map(move |segment| one.clone().read(segment, reach))
            .buffered(SEEK_READAHEAD_DEPTH);
        let late = futures_util::stream::iter(late.into_iter().flatten())
            .then(move |segment| other.clone().read(segment, reach));
        soon.chain(late).boxed()
    }

    async fn read(
        self: Arc<Self>,
        StoredSegment { take, sum }: StoredSegment,
        reach: FeedReach,
    ) -> Result<(u64, Bytes), ReadError> {
        let Some(sum) = sum else {
            let mut bytes = vec![0; take.len() as usize];
            match reach {
                FeedReach::Ahead => self.blob.read_at(take.start, &mut bytes).await?,
                FeedReach::Exact => self.blob.read_exactly(take.start, &mut bytes).await?,
            }
            return Ok((take.start, bytes.into()));
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
        if !matches!(self.map.encoding(), StreamEncoding::Zstd | StreamEncoding::Xz)
            || work.windows == WindowLimits::Common
            || work.asked > MAX_CHARGED_BYTES
        {
            return None;
        }
        let decoded =
            |piece: &LayerPiece| piece.stream.end.min(work.deliver.end).saturating_sub(piece.stream.start);
        let most = work.pieces.iter().map(decoded).max().unwrap_or(0).max(decoded(&work.origin));
        let most = most.min(1 << WindowLimits::Large.log());
        let runs = work.pieces.iter().map(|piece| match self.is_whole() {
            true => piece.stored,
            false => {
                let end = self.likely_end(work, piece).min(piece.stored.end);
                ByteRange::new(piece.stored.start, end.max(piece.stored.start))
            }
        });
        (most > COMMON).then(|| (most, runs.collect()))
    }

    /// Waits for memory for the window of `work`. The stored bytes are fetched first, because others wait for the
    /// memory.
    async fn reserve(&self, work: &mut DecodeWork) -> Result<(), ReadError> {
        let Some((bytes, runs)) = self.window_of(work) else { return Ok(()) };
        if work.memory.as_ref().is_some_and(|share| share.bytes() >= bytes) {
            return Ok(());
        }
        let mut buffer = Vec::new();
        for run in runs {
            for start in (run.start..run.end).step_by(SPAN_READ_BYTES as usize) {
                buffer.resize((run.end - start).min(SPAN_READ_BYTES) as usize, 0);
                self.blob.read_exactly(start, &mut buffer).await?;
            }
        }
        // Its own share must not be in the way of the larger one.
        work.memory = None;
        let share = MEMORY.take(bytes).await;
        work.memory = Some(share.map_err(|error| error.into_read("decoding a part of a layer"))?);
        Ok(())
    }

    /// Decodes until all is delivered or the receiver is dropped. Holds the turn of a far read until its decoder is
    /// paused.
    async fn run(
        self: Arc<Self>,
        mut work: DecodeWork,
        mut feed: StoredFeed,
        output: mpsc::Sender<Result<Bytes, ReadError>>,
        mut turn: Option<FarTurn>,
    ) {
        let delivered = async {
            let mut input = (0, Bytes::new());
            self.reserve(&mut work).await?;
            loop {
                let (ready, end);
                (work, input, ready, end) = self.turn(work, input).await?;
                // The check of the last bytes may have failed.
                let is_done = end.is_ok() && work.at >= work.deliver.end;
                if is_done {
                    // Before the last bytes are delivered: a wrong size is an error.
                    self.check_end(&mut work, &mut input, &mut feed).await?;
                }
                if !self.is_whole() {
                    self.forward.decoded(work.origin.stream.start, work.deliver.start, &ready);
                }
                if is_done {
                    self.pause(&mut work);
                    turn = None;
                }
                for bytes in ready {
                    if output.send(Ok(bytes)).await.is_err() {
                        return Ok(());
                    }
                }
                match end {
                    _ if is_done => return Ok(()),
                    Ok(TurnEnd::Turn) => {}
                    Ok(TurnEnd::Input) => match feed.next().await {
                        Some(next) => input = next?,
                        None => return Err(work.ended_short().into_read()),
                    },
                    Err(PassError::Codec(CodecError::Memory { .. }))
                        if work.windows == WindowLimits::Common =>
                    {
                        self.forward.set_wide();
                        work.restart();
                        self.reserve(&mut work).await?;
                        (feed, input) = (self.feed_of(&work), (0, Bytes::new()));
                    }
                    Err(error) => return Err(error.into_read()),
                }
            }
        };
        if let Err(error) = delivered.await {
            // Sending fails only when the reader is gone.
            output.send(Err(error)).await.ok();
        }
        drop(turn);
    }

    /// Fails unless the stored bytes end with the last byte of the stream, where only a claim gives its size.
    async fn check_end(
        &self,
        work: &mut DecodeWork,
        input: &mut (u64, Bytes),
        feed: &mut StoredFeed,
    ) -> Result<(), ReadError> {
        // Checksums and digests come from a look at the end; some tools leave padding out of their stream.
        let has_digests = !matches!(self.map.sums(), LayerDigests::None);
        let is_proven = self.map.is_made_up() || has_digests || !self.blocks.is_empty();
        let Some(unpack) = work.unpack.as_mut().filter(|_| !is_proven && work.at == self.map.stream_size())
        else {
            return Ok(());
        };
        while !unpack.ends(input, self.map.stored_size(), work.at).map_err(PassError::into_read)? {
            *input = match feed.next().await {
                Some(next) => next?,
                None => return Err(work.ended_short().into_read()),
            };
        }
        Ok(())
    }

    /// One turn of `work` on a blocking thread.
    async fn turn(
        self: &Arc<Self>,
        mut work: DecodeWork,
        mut input: (u64, Bytes),
    ) -> Result<(DecodeWork, (u64, Bytes), Vec<Bytes>, Result<TurnEnd, PassError>), ReadError> {
        let source = self.clone();
        let _turn = TURNS.acquire().await.ok();
        let turn = tokio::task::spawn_blocking(move || {
            let mut ready = Vec::new();
            let end = work.turn(&source, &mut input, &mut ready);
            Ok((work, input, ready, end))
        });
        joined(turn.await)
    }

    fn pause(&self, work: &mut DecodeWork) {
        let at = work.at;
        if self.is_whole() || at >= self.map.stream_size() {
            // Nothing follows the end.
            return;
        }
        self.forward.reached(work.origin.stream.start, at);
        if let Some(UnpackMethod::Decode(decoder)) = work.unpack.take() {
            let (windows, memory) = (work.windows, work.memory.take());
            self.forward.paused.put(at, PausedDecoder { decoder: *decoder, windows, memory });
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
    /// The first piece as it was before a paused decoder continued in it.
    origin: LayerPiece,
    /// Stream bytes that the reader asks for.
    asked: u64,
    /// The windows that the decoder may use.
    windows: WindowLimits,
    /// The share of its window in the memory of all layers; `None` without one.
    memory: Option<MemoryShare>,
}

impl DecodeWork {
    /// Work from the start of `origin`, the first of `pieces`.
    fn new(
        pieces: VecDeque<LayerPiece>,
        origin: LayerPiece,
        deliver: ByteRange,
        asked: u64,
        windows: WindowLimits,
    ) -> Self {
        let at = origin.stream.start;
        let (unpack, cut, idle, memory) = (None, None, 0, None);
        Self { pieces, unpack, at, deliver, cut, idle, origin, asked, windows, memory }
    }

    /// Continues a decoder at `at`, which lies in the only piece.
    fn resume(&mut self, at: u64, paused: PausedDecoder) {
        if let Some(first) = self.pieces.front_mut() {
            first.stored.start = paused.decoder.offset();
            first.stream.start = at;
        }
        (self.at, self.windows, self.memory) = (at, paused.windows, paused.memory);
        self.unpack = Some(UnpackMethod::Decode(Box::new(paused.decoder)));
    }

    /// Begins the only piece again with large windows. Delivered bytes are not delivered again.
    fn restart(&mut self) {
        self.pieces = [self.origin.clone()].into();
        (self.at, self.windows) = (self.origin.stream.start, WindowLimits::Large);
        (self.unpack, self.cut, self.idle) = (None, None, 0);
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
                none => none.insert(match UnitDecoder::resume(self.windows, source.map.encoding(), piece)? {
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
            if consumed + produced > 0
                && let Some(start) = unpack.start(self.at)
                && !source.is_whole()
            {
                source.forward.note(&source.map, start);
            }
            *filled += produced;
            if *filled == buffer.len() {
                source.check(*range, buffer, sum.as_ref())?;
                if range.start >= self.deliver.start {
                    ready.push(std::mem::take(buffer).into());
                    self.deliver.start = range.end;
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
