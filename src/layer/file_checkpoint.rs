//! Checkpoints where large files begin: the last deflate block before the first byte of each.
//!
//! A pass sees the header of a file after the decoder has passed the blocks before it, and stopping at every block
//! would cost a tenth of the decoder's speed. So the latest stored bytes are kept, and for a large file a second
//! decoder searches them from the last checkpoint. It stops at blocks only shortly before the file. It runs on the
//! thread that processes the decoded blocks, which has time left.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::io::ByteRange;

use super::codec::{StopPolicy, UnitDecoder};
use super::decode_step::WindowLimits;
use super::index::SUM_BLOCK;
use super::sniff::StreamEncoding;
use super::span::{LayerPiece, ResumePoint, SpanStart};
use super::window_pruning::{DecodeState, FOLLOWING, pack};

/// Stream bytes before a file in which a deflate block is searched: three times the block that common encoders write.
const ZONE: u64 = 128 * 1024;

/// Minimum stream bytes between two candidates: a hostile encoder could start a block with every byte.
const APART: u64 = 8 * 1024;

/// Maximum stream bytes that a search decodes: more than the distance of checkpoints in the output of common encoders.
const MAX_SEARCH_BYTES: u64 = 2 * 1024 * 1024;

/// Chunks of stored bytes that are kept: the one being decoded, and those of the last [`MAX_SEARCH_BYTES`].
const MAX_CHUNKS: usize = 3;

/// Stream bytes decoded in one step.
const STEP_BYTES: usize = 64 * 1024;

/// The latest stored bytes of a pass.
#[derive(Default)]
pub(super) struct RecentStored {
    /// Adjacent chunks with the blob offset of each.
    chunks: VecDeque<(u64, Bytes)>,
    /// Blob offset after the last chunk.
    end: u64,
}

/// A deflate block or a gzip member where decoding can start.
struct BlockCandidate {
    stored: u64,
    stream: u64,
    /// Bits of the stored byte before that belong to the block, and that byte; `None` at the start of a member.
    shared: Option<(u8, u8)>,
    window: Vec<u8>,
}

/// Stream offset from which the cache decodes a file whose content starts at `file`: it stores whole blocks.
pub(super) fn decoded_from(file: u64) -> u64 {
    file - file % SUM_BLOCK
}

impl RecentStored {
    /// Adds the next stored bytes of the layer.
    pub(super) fn add(&mut self, chunk: Bytes) {
        if self.chunks.len() == MAX_CHUNKS {
            self.chunks.pop_front();
        }
        let at = self.end;
        self.end += chunk.len() as u64;
        self.chunks.push_back((at, chunk));
    }

    /// Drops the chunks that end at or before blob offset `stored`.
    pub(super) fn release(&mut self, stored: u64) {
        while self.chunks.front().is_some_and(|(at, chunk)| at + chunk.len() as u64 <= stored) {
            self.chunks.pop_front();
        }
    }

    /// The last start at or before stream offset `target` that is worth a checkpoint beside `from`, the last one so
    /// far. `None` where there is none, where `from` is close, or where its stored bytes are not kept.
    pub(super) fn search(&self, from: &SpanStart, target: u64) -> Option<SpanStart> {
        let start = from.stream;
        let distance = target.checked_sub(start)?;
        if !(ZONE..=MAX_SEARCH_BYTES).contains(&distance) {
            return None;
        }
        // A defect of the stored bytes is an error of the pass itself.
        let piece = LayerPiece {
            stored: ByteRange::new(from.first_stored(), self.end),
            stream: ByteRange::new(start, target),
            resume: from.resume.clone(),
        };
        let mut decoder = UnitDecoder::resume(WindowLimits::Common, StreamEncoding::Gzip, &piece).ok()??;
        let (mut at, mut scratch) = (start, vec![0; STEP_BYTES]);
        let mut last: Option<BlockCandidate> = None;
        while at <= target {
            // One byte more than to the target: a block that starts at it is found before that byte.
            let (most, stops) = match (target - ZONE).checked_sub(at).filter(|&rest| rest > 0) {
                Some(rest) => (rest, StopPolicy::Units),
                None => (target - at + 1, StopPolicy::Blocks),
            };
            let room = scratch.len().min(usize::try_from(most).unwrap_or(usize::MAX));
            let step = decoder.step_to(self.from(decoder.offset())?, &mut scratch[..room], stops).ok()?;
            at += step.produced as u64;
            if step.consumed == 0 && step.produced == 0 {
                break;
            }
            let shared = decoder.at_block();
            let is_better = match &last {
                None => at > start && at + ZONE >= target,
                // A member needs no window.
                Some(found) => at >= found.stream + APART || decoder.at_unit(),
            };
            if at > target || !is_better || shared.is_none() && !decoder.at_unit() {
                continue;
            }
            let window = if shared.is_some() { decoder.window().ok()? } else { Vec::new() };
            last = Some(BlockCandidate { stored: decoder.offset(), stream: at, shared, window });
        }
        self.settle(last?)
    }

    /// The checkpoint of a candidate.
    fn settle(&self, found: BlockCandidate) -> Option<SpanStart> {
        let BlockCandidate { stored, stream, shared, window } = found;
        let resume = match shared {
            None => ResumePoint::Unit,
            Some((bits, byte)) => {
                let mut following: Vec<u8> = (bits > 0).then_some(byte).into_iter().collect();
                while following.len() < FOLLOWING
                    && let Some(more) = self.from(stored + (following.len() - usize::from(bits > 0)) as u64)
                    && !more.is_empty()
                {
                    following.extend_from_slice(&more[..more.len().min(FOLLOWING - following.len())]);
                }
                ResumePoint::Block { bits, window: pack(window, DecodeState { data: &following, bits }) }
            }
        };
        Some(SpanStart { stored, stream, resume })
    }

    /// The kept bytes from blob offset `at` to the end of a chunk, empty at the end of all; `None` if they are not kept.
    fn from(&self, at: u64) -> Option<&[u8]> {
        if at == self.end {
            return Some(&[]);
        }
        let index = self.chunks.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, chunk) = self.chunks.get(index)?;
        chunk.get(usize::try_from(at - start).ok()?..)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Digits and small letters at random: a block of deflate takes some 16 KiB of them.
    fn text(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes.iter().map(|byte| b'0' + (byte & 63)).collect()
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn recent(stored: &[u8], chunk: usize) -> RecentStored {
        let mut recent = RecentStored::default();
        for chunk in stored.chunks(chunk) {
            recent.add(Bytes::copy_from_slice(chunk));
        }
        recent
    }

    fn decoded_to_end(stored: &[u8], start: &SpanStart, end: usize) -> Vec<u8> {
        let piece = LayerPiece {
            stored: ByteRange::new(start.first_stored(), stored.len() as u64),
            stream: ByteRange::new(start.stream, end as u64),
            resume: start.resume.clone(),
        };
        let resumed = UnitDecoder::resume(WindowLimits::Common, StreamEncoding::Gzip, &piece);
        let mut decoder = resumed.unwrap().unwrap();
        let (mut out, mut filled) = (vec![0; end - start.stream as usize], 0);
        while filled < out.len() {
            let step = decoder.step(&stored[decoder.offset() as usize..], &mut out[filled..]).unwrap();
            assert!(step.consumed + step.produced > 0);
            filled += step.produced;
        }
        out
    }

    const ORIGIN: SpanStart = SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit };

    #[test]
    fn search_finds_the_last_block_before_a_file_and_decoding_starts_there() {
        let plain = text(3_000_000);
        let stored = gzip(&plain);
        for chunk in [stored.len(), stored.len() / 3 + 1] {
            let recent = recent(&stored, chunk);
            let mut from = ORIGIN;
            for target in [256 << 10, 1 << 20, 2 << 20, (2 << 20) + (768 << 10)] {
                let start = recent.search(&from, target).unwrap();
                assert!(start.stream <= target && start.stream + (40 << 10) > target, "{start:?}");
                assert!(decoded_to_end(&stored, &start, plain.len()) == plain[start.stream as usize..]);
                assert_eq!(recent.search(&start, target), None, "it is close");
                from = start;
            }
            assert_eq!(recent.search(&ORIGIN, MAX_SEARCH_BYTES + 1), None, "it is far");
        }
    }

    #[test]
    fn a_member_before_a_file_needs_no_window() {
        let (first, second) = (text(500_000), text(900_000));
        let stored = [gzip(&first), gzip(&second)].concat();
        let start = recent(&stored, stored.len()).search(&ORIGIN, 500_001).unwrap();
        let stored_size = gzip(&first).len() as u64;
        assert_eq!(start, SpanStart { stored: stored_size, stream: 500_000, resume: ResumePoint::Unit });
    }

    #[test]
    fn search_needs_the_stored_bytes_since_its_start() {
        let plain = text(3_000_000);
        let stored = gzip(&plain);
        let mut recent = recent(&stored, stored.len() / 3 + 1);
        let from = recent.search(&ORIGIN, 1 << 20).unwrap();
        recent.release(from.stored);
        assert!(recent.search(&from, 2 << 20).is_some());
        assert_eq!(recent.search(&ORIGIN, 1 << 20), None);
        recent.add(Bytes::from_static(b"more"));
        recent.add(Bytes::from_static(b"more"));
        assert_eq!(recent.chunks.len(), MAX_CHUNKS);
        assert_eq!(recent.search(&from, 2 << 20), None);
    }
}
