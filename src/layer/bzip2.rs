//! bzip2 decoder for consecutive streams.
//!
//! Decoding can start only at a stream: blocks begin at any bit, and only a search finds them. For content far from
//! the start of its stream, the pass writes the decoded bytes into the cache. The library zeroes megabytes for each
//! stream. Therefore empty streams are recognized without it, and more small streams than any tool writes are
//! refused.

use bzip2::{Decompress, Status};

use super::decode_step::{DecodeStep, StepEnd};

/// The first bytes of a stream; a digit from 1 to 9 follows.
pub(super) const MAGIC: &[u8] = b"BZh";

/// The bytes after the digit in a stream without a block: end mark, and checksum of nothing.
const EMPTY: &[u8; 10] = &[0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0, 0, 0, 0];

/// Streams with data that are always decoded, whatever their size.
const FEW_STREAMS: u64 = 1000;

/// Stored bytes per further stream. Parallel tools write 100 KB and more; starting a stream costs as much as
/// decoding these.
const STREAM_BYTES: u64 = 4096;

/// The state of a bzip2 decoder.
pub(super) struct Bzip2Decoder {
    /// The decoder of the current stream; `None` before its head is complete.
    stream: Option<Decompress>,
    /// Bytes of the current stream while it may be an empty one. Invariant: shorter than [`EMPTY_LEN`].
    head: Vec<u8>,
    /// Streams with data so far.
    streams: u64,
    /// Stored bytes so far.
    stored: u64,
}

impl Bzip2Decoder {
    /// For the start of a stream.
    pub(super) fn new() -> Self {
        Self { stream: None, head: Vec::new(), streams: 0, stored: 0 }
    }

    /// One step, and its end.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(DecodeStep, StepEnd), String> {
        let (gathered, stream) = match &mut self.stream {
            Some(stream) => (0, stream),
            none => {
                let before = self.head.len();
                for &byte in input {
                    if !may_be_empty(self.head.len(), byte) {
                        break;
                    }
                    self.head.push(byte);
                }
                let gathered = self.head.len() - before;
                if self.head.len() == EMPTY_LEN {
                    self.head.clear();
                    self.stored += gathered as u64;
                    return Ok((DecodeStep { consumed: gathered, produced: 0 }, StepEnd::Unit));
                }
                if gathered == input.len() {
                    self.stored += gathered as u64;
                    return Ok((DecodeStep { consumed: gathered, produced: 0 }, StepEnd::Inside));
                }
                self.streams += 1;
                if self.streams > FEW_STREAMS + self.stored / STREAM_BYTES {
                    let (streams, stored) = (self.streams, self.stored);
                    return Err(format!("{stored} bytes hold {streams} streams, more than are decoded"));
                }
                let stream = none.insert(Decompress::new(false));
                // The library produces nothing for the head of a stream, and consumes all of it.
                stream.decompress(&self.head, &mut []).map_err(|error| error.to_string())?;
                if stream.total_in() != self.head.len() as u64 {
                    return Err("the head of a stream is broken".into());
                }
                self.head.clear();
                (gathered, stream)
            }
        };
        let before = (stream.total_in(), stream.total_out());
        let status = stream.decompress(&input[gathered..], output).map_err(|error| error.to_string())?;
        // Both are at most the lengths of buffers.
        let step = DecodeStep {
            consumed: gathered + (stream.total_in() - before.0) as usize,
            produced: (stream.total_out() - before.1) as usize,
        };
        self.stored += step.consumed as u64;
        if status == Status::StreamEnd {
            self.stream = None;
            return Ok((step, StepEnd::Unit));
        }
        Ok((step, StepEnd::Inside))
    }
}

/// Bytes of a stream without data.
const EMPTY_LEN: usize = MAGIC.len() + 1 + EMPTY.len();

/// Whether `byte` can be the one at `at` in a stream without data.
fn may_be_empty(at: usize, byte: u8) -> bool {
    match at.checked_sub(MAGIC.len()) {
        None => MAGIC[at] == byte,
        Some(0) => matches!(byte, b'1'..=b'9'),
        Some(at) => EMPTY.get(at - 1) == Some(&byte),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// What `stored` decodes to when it comes in pieces of `piece` bytes, whether it ended with a stream, and how many decoders
    /// were made.
    fn decode(stored: &[u8], piece: usize) -> Result<(Vec<u8>, StepEnd, u64), String> {
        let (mut decoder, mut out, mut last) = (Bzip2Decoder::new(), Vec::new(), StepEnd::Unit);
        for mut input in stored.chunks(piece) {
            loop {
                let mut buffer = [0; 100];
                let (step, place) = decoder.step(input, &mut buffer)?;
                out.extend_from_slice(&buffer[..step.produced]);
                input = &input[step.consumed..];
                if step != DecodeStep::default() {
                    last = place;
                }
                if input.is_empty() && step.produced == 0 || step == DecodeStep::default() {
                    break;
                }
            }
        }
        Ok((out, last, decoder.streams))
    }

    #[test]
    fn streams_without_data_need_no_decoder_wherever_their_bytes_are_cut() {
        let empty = packed(b"");
        assert_eq!(empty.len(), EMPTY_LEN);
        let stored = [&empty[..], &empty, &packed(b"first"), &empty, &packed(&[7; 300]), &empty].concat();
        for piece in [1, 3, 13, 14, 15, 1000] {
            let (out, last, streams) = decode(&stored, piece).unwrap();
            assert_eq!(
                (out, last, streams),
                ([&b"first"[..], &[7; 300]].concat(), StepEnd::Unit, 2),
                "{piece}"
            );
        }
        let (_, last, streams) = decode(&empty.repeat(100_000), 4096).unwrap();
        assert_eq!((last, streams), (StepEnd::Unit, 0));
        let (_, last, _) = decode(&empty[..EMPTY_LEN - 1], 5).unwrap();
        assert_eq!(last, StepEnd::Inside);
        let mut broken = empty;
        broken[EMPTY_LEN - 1] = 1;
        assert!(decode(&broken, 5).is_err());
    }

    #[test]
    fn small_bzip2_streams_are_limited_by_their_stored_size() {
        let one = packed(b"x");
        let few = FEW_STREAMS + FEW_STREAMS * one.len() as u64 / STREAM_BYTES;
        let (out, _, streams) = decode(&one.repeat(few as usize), 4096).unwrap();
        assert_eq!((out.len() as u64, streams), (few, few));
        assert!(decode(&one.repeat(few as usize + 2), 4096).unwrap_err().contains("streams"));
    }
}
