//! Streaming decoders of stored layers: bytes in, bytes out, and the offsets where decoding can resume.
//!
//! A stored layer is a sequence of independent units (gzip members, zstd frames). One decoder reads any number of
//! units.

use zstd::stream::raw::{DParameter, Decoder as Frames, InBuffer, Operation as _, OutBuffer};

use super::bzip2::Bzip2Decoder;
use super::decode_step::{DecodeStep, StepEnd, WindowLimits};
use super::inflate::{InflateState, InflateStop, InflateUntil};
use super::lz4::Lz4Decoder;
use super::sniff::StreamEncoding;
use super::span::{LayerPiece, ResumePoint};
use super::xz::{XzDecoder, XzError};

/// Bytes after the deflate data of a gzip member: its checksum and its length (RFC 1952).
const TRAILER: u8 = 8;

/// The reason why stored bytes could not be decoded.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The stored bytes violate their format.
    #[error("{format} data is broken at blob offset {offset}: {reason}")]
    Broken {
        /// `gzip`, `zstd`, and so on.
        format: &'static str,
        /// Offset of the bytes that could not be decoded, in stored bytes.
        offset: u64,
        /// The decoder's message.
        reason: String,
    },
    /// An index names a start where decoding cannot start.
    #[error("decoding cannot start at blob offset {offset}: {reason}")]
    Start {
        /// Offset of the first byte that would have been decoded, in stored bytes.
        offset: u64,
        /// The defect of the checkpoint.
        reason: String,
    },
    /// Decoding needs a window over the limit.
    #[error(
        "{format} data at blob offset {offset} needs more memory to decode than the limit (a window of 128 MiB)"
    )]
    Memory {
        /// `zstd` or `xz`.
        format: &'static str,
        /// Offset of the bytes that could not be decoded, in stored bytes.
        offset: u64,
    },
    /// The stored bytes end inside a unit.
    #[error("{format} data ends at blob offset {offset} in the middle of a {unit}")]
    Cut {
        /// `gzip`, `zstd`, and so on.
        format: &'static str,
        /// The number of stored bytes.
        offset: u64,
        /// `member`, `frame` or `stream`.
        unit: &'static str,
    },
}

/// Whether [`UnitDecoder::step_to`] returns at the starts of deflate blocks too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPolicy {
    /// At the ends of units only.
    Units,
    /// At the starts of deflate blocks too.
    Blocks,
}

/// Decodes stored bytes from the start of a unit, or from a checkpoint.
pub struct UnitDecoder {
    units: UnitState,
    /// Blob offset of the next stored byte.
    offset: u64,
    /// Whether the next stored byte starts a unit.
    at_unit: bool,
    /// The block parameters of the unit, if the next stored byte starts a block that refers to nothing before it.
    at_inner: Option<u8>,
}

enum UnitState {
    Gzip(Box<GzipMembers>),
    Zstd(Box<Frames<'static>>),
    Xz(Box<XzDecoder>),
    Bzip2(Bzip2Decoder),
    Lz4(Box<Lz4Decoder>),
}

/// The state of a gzip decoder.
struct GzipMembers {
    inflate: InflateState,
    part: GzipPart,
    /// `Some` if `inflate` stands at the start of a deflate block that is not the first of its member: the bits of
    /// the byte before that belong to the block.
    block: Option<u8>,
    /// The last stored byte that was decoded.
    last: u8,
}

/// The part of a gzip file that the next stored byte belongs to.
#[derive(Clone, Copy)]
enum GzipPart {
    /// A member, wrapper and all.
    Member,
    /// A byte whose highest bits belong to the block where decoding starts.
    Shared { bits: u8 },
    /// The deflate data of a member whose start was not decoded.
    Rest,
    /// The trailer after [`GzipPart::Rest`], with the bytes left of it. Unchecked, because the checksum covers the
    /// whole member.
    Trailer { left: u8 },
    /// Zero bytes after the last member, as tape blocking leaves them. They are accepted as GNU gzip does.
    Padding,
}

/// Maximum stream bytes that are decoded again for one block: some 10 ms of work. The pass writes blocks further
/// from the start of their span into the cache.
pub(super) fn max_redecode(encoding: StreamEncoding) -> u64 {
    match encoding {
        StreamEncoding::Plain
        | StreamEncoding::Gzip
        | StreamEncoding::Zstd
        | StreamEncoding::Lz4
        | StreamEncoding::AppleLz4 => 4 * 1024 * 1024,
        StreamEncoding::Xz => 1024 * 1024,
        StreamEncoding::Bzip2 => 512 * 1024,
    }
}

impl UnitDecoder {
    /// A decoder for the unit that starts at blob offset `offset`; `None` for bytes that are not encoded.
    pub fn new(encoding: StreamEncoding, offset: u64) -> Result<Option<Self>, CodecError> {
        Self::within(WindowLimits::Large, encoding, offset)
    }

    /// As [`new`](Self::new) with a choice of windows; larger ones are [`CodecError::Memory`].
    pub fn within(
        windows: WindowLimits,
        encoding: StreamEncoding,
        offset: u64,
    ) -> Result<Option<Self>, CodecError> {
        let start = |reason| CodecError::Start { offset, reason };
        let units = match encoding {
            StreamEncoding::Plain => return Ok(None),
            StreamEncoding::Gzip => UnitState::Gzip(Box::new(GzipMembers {
                inflate: InflateState::member().map_err(start)?,
                part: GzipPart::Member,
                block: None,
                last: 0,
            })),
            StreamEncoding::Zstd => {
                let start = |error: std::io::Error| start(error.to_string());
                let mut frames = Frames::new().map_err(start)?;
                frames.set_parameter(DParameter::WindowLogMax(windows.log())).map_err(start)?;
                UnitState::Zstd(Box::new(frames))
            }
            StreamEncoding::Xz => UnitState::Xz(Box::new(XzDecoder::new(windows))),
            StreamEncoding::Bzip2 => UnitState::Bzip2(Bzip2Decoder::new()),
            StreamEncoding::Lz4 => UnitState::Lz4(Box::new(Lz4Decoder::new(false))),
            StreamEncoding::AppleLz4 => UnitState::Lz4(Box::new(Lz4Decoder::new(true))),
        };
        Ok(Some(Self { units, offset, at_unit: true, at_inner: None }))
    }

    /// A decoder that starts where `piece` does; `None` for bytes that are not encoded.
    pub fn resume(
        windows: WindowLimits,
        encoding: StreamEncoding,
        piece: &LayerPiece,
    ) -> Result<Option<Self>, CodecError> {
        let offset = piece.stored.start;
        let start = |reason: &str| CodecError::Start { offset, reason: reason.into() };
        let (bits, window) = match (&piece.resume, encoding) {
            (ResumePoint::Unit, _) => return Self::within(windows, encoding, offset),
            (ResumePoint::Block { bits: bits @ 0..=7, window }, StreamEncoding::Gzip) => (*bits, window),
            (ResumePoint::Block { .. }, _) => return Err(start("no deflate block starts there")),
            (ResumePoint::Inner { shape }, encoding) => {
                let units = match encoding {
                    StreamEncoding::Xz => {
                        let xz = XzDecoder::at_block(*shape, windows).map_err(|why| start(&why))?;
                        UnitState::Xz(Box::new(xz))
                    }
                    StreamEncoding::Lz4 => {
                        UnitState::Lz4(Box::new(Lz4Decoder::at_block(*shape).map_err(|why| start(&why))?))
                    }
                    _ => return Err(start("no block starts there")),
                };
                return Ok(Some(Self { units, offset, at_unit: false, at_inner: None }));
            }
        };
        let window = window.unpack().ok_or_else(|| start("its window is damaged"))?;
        let inflate = InflateState::block(&window).map_err(|reason| start(&reason))?;
        let part = if bits > 0 { GzipPart::Shared { bits } } else { GzipPart::Rest };
        let members = GzipMembers { inflate, part, block: None, last: 0 };
        Ok(Some(Self { units: UnitState::Gzip(Box::new(members)), offset, at_unit: false, at_inner: None }))
    }

    /// Blob offset of the next stored byte that the decoder needs.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it takes some KiB of memory, whatever it decodes.
    pub(super) fn is_small(&self) -> bool {
        matches!(self.units, UnitState::Gzip(_))
    }

    /// Whether a unit ended exactly at [`offset`](Self::offset), so that decoding can resume at that offset.
    pub fn at_unit(&self) -> bool {
        self.at_unit
    }

    /// How decoding can resume at [`offset`](Self::offset); `None` where it cannot.
    pub fn start(&self) -> Option<ResumePoint> {
        let inner = self.at_inner.map(|shape| ResumePoint::Inner { shape });
        self.at_unit.then_some(ResumePoint::Unit).or(inner)
    }

    /// At the start of a deflate block: the bits (0 to 7) of the stored byte before that belong to the block, and
    /// that byte. `None` if the step before ended elsewhere.
    pub fn at_block(&self) -> Option<(u8, u8)> {
        match &self.units {
            UnitState::Gzip(members) => members.block.map(|bits| (bits, members.last)),
            _ => None,
        }
    }

    /// The stream bytes before this offset, as many as deflate can refer to; empty in other encodings.
    pub fn window(&mut self) -> Result<Vec<u8>, CodecError> {
        let offset = self.offset;
        match &mut self.units {
            UnitState::Gzip(members) => members.inflate.window().map_err(|reason| CodecError::Broken {
                format: "gzip",
                offset,
                reason,
            }),
            _ => Ok(Vec::new()),
        }
    }

    /// Decodes some of `input` into `output`, and stops at the end of every unit. With non-empty buffers, a step
    /// makes progress or fails, except that it may need more input.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<DecodeStep, CodecError> {
        self.step_to(input, output, StopPolicy::Units)
    }

    /// As [`step`](Self::step), with a choice of stops.
    pub fn step_to(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stops: StopPolicy,
    ) -> Result<DecodeStep, CodecError> {
        if input.is_empty() && self.at_unit {
            return Ok(DecodeStep::default());
        }
        let offset = self.offset;
        let broken = |format| move |reason| CodecError::Broken { format, offset, reason };
        let (step, place) = match &mut self.units {
            UnitState::Gzip(members) => {
                if self.at_unit && offset > 0 && input[0] == 0 {
                    members.part = GzipPart::Padding;
                }
                let (step, ended) = members.step(input, output, stops, offset)?;
                (step, if ended { StepEnd::Unit } else { StepEnd::Inside })
            }
            UnitState::Zstd(frames) => {
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(output);
                let hint = frames.run(&mut from, &mut to).map_err(|error| zstd_error(&error, offset))?;
                let place = if hint == 0 { StepEnd::Unit } else { StepEnd::Inside };
                (DecodeStep { consumed: from.pos(), produced: to.pos() }, place)
            }
            UnitState::Xz(xz) => xz.step(input, output).map_err(|error| match error {
                XzError::Memory => CodecError::Memory { format: "xz", offset },
                XzError::Broken(reason) => CodecError::Broken { format: "xz", offset, reason },
            })?,
            UnitState::Bzip2(streams) => streams.step(input, output).map_err(broken("bzip2"))?,
            UnitState::Lz4(frames) => frames.step(input, output).map_err(broken("lz4"))?,
        };
        self.offset += step.consumed as u64;
        self.at_unit = place == StepEnd::Unit || self.at_unit && step == DecodeStep::default();
        self.at_inner = match place {
            StepEnd::Block(shape) => Some(shape),
            StepEnd::Inside | StepEnd::Unit => None,
        };
        Ok(step)
    }

    /// Fails if the stored bytes must not end at this offset.
    pub fn finish(&self) -> Result<(), CodecError> {
        if self.at_unit {
            return Ok(());
        }
        let (format, unit) = match self.units {
            UnitState::Gzip(_) => ("gzip", "member"),
            UnitState::Zstd(_) => ("zstd", "frame"),
            UnitState::Xz(_) => ("xz", "stream"),
            UnitState::Bzip2(_) => ("bzip2", "stream"),
            UnitState::Lz4(_) => ("lz4", "frame"),
        };
        Err(CodecError::Cut { format, offset: self.offset, unit })
    }
}

/// The library reports a window over the limit only in its message.
fn zstd_error(error: &std::io::Error, offset: u64) -> CodecError {
    let reason = error.to_string();
    if reason.contains("too much memory") {
        return CodecError::Memory { format: "zstd", offset };
    }
    CodecError::Broken { format: "zstd", offset, reason }
}

impl GzipMembers {
    /// One step, and whether a unit ended at its end.
    fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stops: StopPolicy,
        offset: u64,
    ) -> Result<(DecodeStep, bool), CodecError> {
        let broken = |reason: String| CodecError::Broken { format: "gzip", offset, reason };
        self.block = None;
        let taken = |consumed: usize| DecodeStep { consumed, produced: 0 };
        match self.part {
            GzipPart::Padding => match input.iter().position(|&byte| byte != 0) {
                None => Ok((taken(input.len()), true)),
                Some(at) => Err(CodecError::Broken {
                    format: "gzip",
                    offset: offset + at as u64,
                    reason: "garbage after the last member".into(),
                }),
            },
            GzipPart::Shared { bits } => {
                let Some(&byte) = input.first() else { return Ok((DecodeStep::default(), false)) };
                self.inflate.prime(bits, byte).map_err(broken)?;
                self.last = byte;
                self.part = GzipPart::Rest;
                Ok((taken(1), false))
            }
            GzipPart::Trailer { left } => {
                let skipped = input.len().min(left.into());
                // At most the eight bytes of a trailer.
                self.part = GzipPart::Trailer { left: left - skipped as u8 };
                if skipped < left.into() {
                    return Ok((taken(skipped), false));
                }
                self.inflate.restart().map_err(broken)?;
                self.part = GzipPart::Member;
                Ok((taken(skipped), true))
            }
            GzipPart::Member | GzipPart::Rest => {
                let until = match stops {
                    StopPolicy::Units => InflateUntil::Filled,
                    StopPolicy::Blocks => InflateUntil::Block,
                };
                let done = self.inflate.run(input, output, until).map_err(broken)?;
                if let Some(&last) = input[..done.consumed].last() {
                    self.last = last;
                }
                let step = DecodeStep { consumed: done.consumed, produced: done.produced };
                match (done.stop, self.part) {
                    (InflateStop::Buffers, _) => Ok((step, false)),
                    (InflateStop::Block(bits), _) => {
                        self.block = Some(bits);
                        Ok((step, false))
                    }
                    (InflateStop::End, GzipPart::Rest) => {
                        self.part = GzipPart::Trailer { left: TRAILER };
                        Ok((step, false))
                    }
                    (InflateStop::End, _) => {
                        self.inflate.restart().map_err(broken)?;
                        Ok((step, true))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// A stream, and the (stored, stream) offsets of all unit ends.
    type Decoded = (Vec<u8>, Vec<(u64, u64)>);

    /// Decodes with tiny buffers.
    fn decode(
        encoding: StreamEncoding,
        stored: &[u8],
        inputs: usize,
        outputs: usize,
    ) -> Result<Decoded, CodecError> {
        let mut decoder = UnitDecoder::new(encoding, 0)?.unwrap();
        let (mut stream, mut ends, mut at) = (Vec::new(), Vec::new(), 0);
        let mut out = vec![0; outputs];
        loop {
            let input = &stored[at..stored.len().min(at + inputs)];
            let step = decoder.step(input, &mut out)?;
            at += step.consumed;
            stream.extend_from_slice(&out[..step.produced]);
            if decoder.at_unit() && step != DecodeStep::default() {
                ends.push((decoder.offset(), stream.len() as u64));
            }
            if step == DecodeStep::default() {
                decoder.finish()?;
                return Ok((stream, ends));
            }
        }
    }

    #[test]
    fn units_decode_as_one_stream_with_their_ends() {
        let (first, second) = (vec![7; 100_000], b"second".repeat(1000));
        let whole = [first.clone(), second.clone()].concat();
        let gz = [gzip(&first), gzip(&second)];
        let zst = [zstd::bulk::compress(&first, 1).unwrap(), zstd::bulk::compress(&second, 1).unwrap()];
        for (encoding, units) in [(StreamEncoding::Gzip, gz), (StreamEncoding::Zstd, zst)] {
            let stored = units.concat();
            for (inputs, outputs) in [(1, 1000), (7, 13), (100_000, 1_000_000)] {
                let (stream, ends) = decode(encoding, &stored, inputs, outputs).unwrap();
                assert_eq!(stream, whole);
                assert_eq!(
                    ends,
                    [(units[0].len() as u64, first.len() as u64), (stored.len() as u64, whole.len() as u64)],
                    "{encoding} {inputs} {outputs}"
                );
            }
        }
    }

    #[test]
    fn cut_broken_and_trailing_bytes_are_errors() {
        let gz = gzip(&b"some text".repeat(100));
        let cut = decode(StreamEncoding::Gzip, &gz[..gz.len() - 1], 64, 64).unwrap_err();
        assert!(matches!(cut, CodecError::Cut { format: "gzip", unit: "member", .. }), "{cut}");
        let mut flipped = gz.clone();
        let crc = flipped.len() - 6;
        flipped[crc] ^= 1;
        assert!(decode(StreamEncoding::Gzip, &flipped, 64, 64).is_err());
        let padded = [&gz[..], &[0; 700]].concat();
        assert_eq!(decode(StreamEncoding::Gzip, &padded, 64, 64).unwrap().0, b"some text".repeat(100));
        assert!(decode(StreamEncoding::Gzip, &[&gz[..], b"garbage"].concat(), 64, 64).is_err());
        assert!(decode(StreamEncoding::Gzip, &[&gz[..], b"\0\0x"].concat(), 64, 64).is_err());
        let zst = zstd::bulk::compress(&b"some text".repeat(100), 1).unwrap();
        assert!(decode(StreamEncoding::Zstd, &zst[..zst.len() - 1], 64, 64).is_err());
        assert!(decode(StreamEncoding::Zstd, &[&zst[..], b"garbage"].concat(), 64, 64).is_err());
    }
}
