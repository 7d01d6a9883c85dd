//! One delivery of a decoded stream in progress: its decoder, the buffer that it fills, and the bytes in doubt.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

use super::codec::UnitDecoder;
use super::decode_step::WindowLimits;
use super::digest_check::{compare_sha256, within_limit};
use super::doubt::StoredDoubt;
use super::forward::ForwardState;
use super::index::SUM_BLOCK;
use super::indexer::PassError;
use super::paused::PausedDecoder;
use super::span::{ChunkDigest, LayerDigests, LayerPiece, SpanMap};
use super::stored_segments::touching;
use super::unpack_method::UnpackMethod;
use crate::cache::BlockSums;
use crate::io::{ByteRange, MemoryShare};

/// Maximum stream bytes per turn on a blocking thread, unless one digest covers more.
const MAX_TURN_BYTES: u64 = 1024 * 1024;

/// Steps without progress before a decoder counts as stuck.
const MAX_IDLE_STEPS: u32 = 32;

/// A stream as its index describes it, and the progress of its decoders.
pub(super) struct DecodedStream {
    pub(super) map: SpanMap,
    /// blake3 of the blocks of the stream; empty if the index has none.
    pub(super) blocks: BlockSums,
    /// Where decoding can begin or continue, besides the starts of the map.
    pub(super) forward: ForwardState,
}

impl DecodedStream {
    /// Whether whole pieces are delivered. Chunks are small, and a digest of a range can only be compared with the
    /// whole range.
    pub(super) fn is_whole(&self) -> bool {
        self.map.is_made_up() || matches!(self.map.sums(), LayerDigests::Stream(_))
    }

    /// Whether a digest is known for the decoded bytes, so that none is delivered that the stored ones may falsify.
    pub(super) fn is_compared(&self) -> bool {
        !self.blocks.is_empty() || !matches!(self.map.sums(), LayerDigests::None)
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
pub(super) enum TurnEnd {
    /// All input is consumed.
    Input,
    /// The turn reached its limit or the end of the delivery.
    Turn,
}

/// One delivery in progress.
pub(super) struct DecodeWork {
    /// The piece being decoded, and those after it.
    pub(super) pieces: VecDeque<LayerPiece>,
    /// The decoder of the first piece; `None` before it has started.
    pub(super) unpack: Option<UnpackMethod>,
    /// The next stream byte.
    pub(super) at: u64,
    /// The stream range to deliver of the decoded bytes.
    pub(super) deliver: ByteRange,
    /// The buffer being filled: its range, its expected digest, its bytes, and the number of bytes filled.
    cut: Option<(ByteRange, Option<ChunkDigest>, Vec<u8>, usize)>,
    /// Steps without progress.
    idle: u32,
    /// The first piece as it was before a paused decoder continued in it.
    pub(super) origin: LayerPiece,
    /// The pieces after the first, from which a restart begins.
    others: Vec<LayerPiece>,
    /// Whether the stored bytes were fetched again.
    pub(super) doubt: StoredDoubt,
    /// Stream bytes that the reader asks for.
    pub(super) asked: u64,
    /// The windows that the decoder may use.
    pub(super) windows: WindowLimits,
    /// The share of its window in the memory of all layers; `None` without one.
    pub(super) memory: Option<MemoryShare>,
}

impl DecodeWork {
    /// Work from the start of `origin`, the first of `pieces`.
    pub(super) fn new(
        pieces: VecDeque<LayerPiece>,
        origin: LayerPiece,
        deliver: ByteRange,
        asked: u64,
        windows: WindowLimits,
        mut doubt: StoredDoubt,
    ) -> Self {
        let at = origin.stream.start;
        doubt.begin(at, origin.stored.start);
        let others = pieces.iter().skip(1).cloned().collect();
        let (unpack, cut, idle, memory) = (None, None, 0, None);
        Self { pieces, unpack, at, deliver, cut, idle, origin, others, doubt, asked, windows, memory }
    }

    /// Continues a decoder at `at`, which lies in the only piece.
    pub(super) fn resume(&mut self, at: u64, paused: PausedDecoder) {
        if let Some(first) = self.pieces.front_mut() {
            first.stored.start = paused.decoder.offset();
            first.stream.start = at;
        }
        (self.at, self.windows, self.memory) = (at, paused.windows, paused.memory);
        self.doubt = paused.doubt;
        self.unpack = Some(UnpackMethod::Decode(Box::new(paused.decoder)));
    }

    /// Begins with the first piece again. Delivered bytes are not delivered again.
    pub(super) fn restart(&mut self) {
        self.pieces = [&self.origin].into_iter().chain(&self.others).cloned().collect();
        self.at = self.origin.stream.start;
        self.doubt.begin(self.at, self.origin.stored.start);
        (self.unpack, self.cut, self.idle) = (None, None, 0);
    }

    /// The stored bytes that an error may come from, and the stream offset behind it. A decoder that ended at `input`
    /// reads ahead of its output.
    pub(super) fn doubted(&self, input: &(u64, Bytes)) -> (Vec<ByteRange>, u64) {
        let cut = self.cut.as_ref().map_or(ByteRange::at(self.at, 1), |(range, ..)| *range);
        let stored = match &self.others[..] {
            [] => {
                let end = (input.0 + input.1.len() as u64).min(self.origin.stored.end);
                vec![ByteRange::new(self.doubt.from(), end)]
            }
            others => {
                let is_touched = |piece: &&LayerPiece| !piece.stream.intersect(cut).is_empty();
                touching(&[&self.origin].into_iter().chain(others).filter(is_touched).cloned().collect())
            }
        };
        (stored, cut.end.max(self.at + 1))
    }

    /// Decodes `input` (with its blob offset) for one turn.
    pub(super) fn turn(
        &mut self,
        source: &DecodedStream,
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
                self.doubt.compared(range.end, unpack.offset());
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

    pub(super) fn ended_short(&self) -> PassError {
        let expected = self.pieces.front().map_or(self.deliver, |piece| piece.stream);
        PassError::Length { expected: expected.len(), actual: self.at.saturating_sub(expected.start) }
    }
}
