//! Streaming decoders of stored layers. They are pure: bytes in, bytes out, and the places where decoding can start anew.
//!
//! A stored layer is a sequence of independent units (gzip members, zstd frames). One decoder reads any number of them.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as Frames, InBuffer, Operation as _, OutBuffer};

use super::sniff::Encoding;

/// The largest zstd window that is accepted, as a power of two: 128 MiB, what `zstd -d --long=27` takes. A frame may ask for
/// more memory than a machine has.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Why stored bytes could not be decoded.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The stored bytes are not what their format allows.
    #[error("{format} data is broken at blob offset {offset}: {reason}")]
    Broken {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Offset of the bytes that could not be decoded, in stored bytes.
        offset: u64,
        /// What the decoder said.
        reason: String,
    },
    /// The stored bytes end inside a unit.
    #[error("{format} data ends at blob offset {offset} in the middle of a {unit}")]
    Cut {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// The number of stored bytes.
        offset: u64,
        /// `member` or `frame`.
        unit: &'static str,
    },
}

/// What one [`Decoder::step`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Stored bytes taken from the input.
    pub consumed: usize,
    /// Stream bytes put into the output.
    pub produced: usize,
}

/// Decodes stored bytes that start at the beginning of a unit.
pub struct Decoder {
    units: Units,
    /// Blob offset of the next stored byte.
    offset: u64,
    /// Whether the next stored byte starts a unit.
    at_unit: bool,
}

enum Units {
    Gzip {
        inflate: Box<Decompress>,
        /// Zero bytes after the last member, as tape blocking leaves them. They are accepted as GNU gzip does.
        padding: bool,
    },
    Zstd(Box<Frames<'static>>),
}

impl Decoder {
    /// A decoder for the unit that starts at blob offset `offset`; `None` for bytes that are not encoded.
    pub fn new(encoding: Encoding, offset: u64) -> Result<Option<Self>, CodecError> {
        let units = match encoding {
            Encoding::Plain => return Ok(None),
            Encoding::Gzip => Units::Gzip { inflate: Box::new(Decompress::new_gzip(15)), padding: false },
            Encoding::Zstd => {
                let broken = |error: std::io::Error| CodecError::Broken {
                    format: "zstd",
                    offset,
                    reason: error.to_string(),
                };
                let mut frames = Frames::new().map_err(broken)?;
                frames.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(broken)?;
                Units::Zstd(Box::new(frames))
            }
        };
        Ok(Some(Self { units, offset, at_unit: true }))
    }

    /// Blob offset of the next stored byte that the decoder wants.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether a unit ended exactly here, so that decoding can start anew at [`offset`](Self::offset).
    pub fn at_unit(&self) -> bool {
        self.at_unit
    }

    /// Decodes some of `input` into `output`. Stops at the end of every unit. With non-empty buffers it makes progress or
    /// fails, except that it may need more input.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, CodecError> {
        if input.is_empty() && self.at_unit {
            return Ok(Step::default());
        }
        let offset = self.offset;
        let (step, ended) = match &mut self.units {
            Units::Gzip { inflate, padding } => {
                let broken = |reason: String| CodecError::Broken { format: "gzip", offset, reason };
                if self.at_unit && (*padding || input[0] == 0 && offset > 0) {
                    *padding = true;
                    if let Some(at) = input.iter().position(|&byte| byte != 0) {
                        let offset = offset + at as u64;
                        return Err(CodecError::Broken {
                            format: "gzip",
                            offset,
                            reason: "garbage after the last member".into(),
                        });
                    }
                    (Step { consumed: input.len(), produced: 0 }, true)
                } else {
                    let (in_before, out_before) = (inflate.total_in(), inflate.total_out());
                    let status = inflate
                        .decompress(input, output, FlushDecompress::None)
                        .map_err(|error| broken(error.to_string()))?;
                    let step = Step {
                        consumed: (inflate.total_in() - in_before) as usize,
                        produced: (inflate.total_out() - out_before) as usize,
                    };
                    let ended = status == Status::StreamEnd;
                    if ended {
                        **inflate = Decompress::new_gzip(15);
                    }
                    (step, ended)
                }
            }
            Units::Zstd(frames) => {
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(output);
                let hint = frames.run(&mut from, &mut to).map_err(|error| CodecError::Broken {
                    format: "zstd",
                    offset,
                    reason: error.to_string(),
                })?;
                (Step { consumed: from.pos(), produced: to.pos() }, hint == 0)
            }
        };
        self.offset += step.consumed as u64;
        self.at_unit = ended || self.at_unit && step.consumed == 0 && step.produced == 0;
        Ok(step)
    }

    /// Says whether the stored bytes may end here.
    pub fn finish(&self) -> Result<(), CodecError> {
        if self.at_unit {
            return Ok(());
        }
        let (format, unit) = match self.units {
            Units::Gzip { .. } => ("gzip", "member"),
            Units::Zstd(_) => ("zstd", "frame"),
        };
        Err(CodecError::Cut { format, offset: self.offset, unit })
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
        encoding: Encoding,
        stored: &[u8],
        inputs: usize,
        outputs: usize,
    ) -> Result<Decoded, CodecError> {
        let mut decoder = Decoder::new(encoding, 0)?.unwrap();
        let (mut stream, mut ends, mut at) = (Vec::new(), Vec::new(), 0);
        let mut out = vec![0; outputs];
        loop {
            let input = &stored[at..stored.len().min(at + inputs)];
            let step = decoder.step(input, &mut out)?;
            at += step.consumed;
            stream.extend_from_slice(&out[..step.produced]);
            if decoder.at_unit() && step != Step::default() {
                ends.push((decoder.offset(), stream.len() as u64));
            }
            if step == Step::default() {
                decoder.finish()?;
                return Ok((stream, ends));
            }
        }
    }

    #[test]
    fn units_decode_as_one_stream_and_tell_where_they_end() {
        let (first, second) = (vec![7; 100_000], b"second".repeat(1000));
        let whole = [first.clone(), second.clone()].concat();
        let gz = [gzip(&first), gzip(&second)];
        let zst = [zstd::bulk::compress(&first, 1).unwrap(), zstd::bulk::compress(&second, 1).unwrap()];
        for (encoding, units) in [(Encoding::Gzip, gz), (Encoding::Zstd, zst)] {
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
        let cut = decode(Encoding::Gzip, &gz[..gz.len() - 1], 64, 64).unwrap_err();
        assert!(matches!(cut, CodecError::Cut { format: "gzip", unit: "member", .. }), "{cut}");
        let mut flipped = gz.clone();
        let crc = flipped.len() - 6;
        flipped[crc] ^= 1;
        assert!(decode(Encoding::Gzip, &flipped, 64, 64).is_err());
        let padded = [&gz[..], &[0; 700]].concat();
        assert_eq!(decode(Encoding::Gzip, &padded, 64, 64).unwrap().0, b"some text".repeat(100));
        assert!(decode(Encoding::Gzip, &[&gz[..], b"garbage"].concat(), 64, 64).is_err());
        assert!(decode(Encoding::Gzip, &[&gz[..], b"\0\0x"].concat(), 64, 64).is_err());
        let zst = zstd::bulk::compress(&b"some text".repeat(100), 1).unwrap();
        assert!(decode(Encoding::Zstd, &zst[..zst.len() - 1], 64, 64).is_err());
        assert!(decode(Encoding::Zstd, &[&zst[..], b"garbage"].concat(), 64, 64).is_err());
    }
}
