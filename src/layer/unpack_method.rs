//! Unpacking of one piece: its stored bytes as they are, or decoded.

use bytes::{Buf as _, Bytes};

use super::codec::UnitDecoder;
use super::indexer::PassError;
use super::span::SpanStart;

/// Converts the stored bytes of a piece into stream bytes.
pub(super) enum UnpackMethod {
    /// Identity; the offset of the next byte.
    Copy(u64),
    Decode(Box<UnitDecoder>),
}

impl UnpackMethod {
    pub(super) fn offset(&self) -> u64 {
        match self {
            UnpackMethod::Copy(offset) => *offset,
            UnpackMethod::Decode(decoder) => decoder.offset(),
        }
    }

    /// The start at this position, at stream offset `at`; `None` where decoding cannot start.
    pub(super) fn start(&self, at: u64) -> Option<SpanStart> {
        let UnpackMethod::Decode(decoder) = self else { return None };
        decoder.start().map(|resume| SpanStart { stored: decoder.offset(), stream: at, resume })
    }

    /// Bytes consumed and produced.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), PassError> {
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

    /// Consumes `input` (with its blob offset) behind the last of `size` stream bytes. Returns whether the stored
    /// bytes end there; `false` when more input is needed. More stream bytes are an error.
    pub(super) fn ends(
        &mut self,
        input: &mut (u64, Bytes),
        stored_size: u64,
        size: u64,
    ) -> Result<bool, PassError> {
        let UnpackMethod::Decode(decoder) = self else { return Ok(true) };
        loop {
            if decoder.offset() != input.0 {
                input.1.clear();
            }
            let step = decoder.step(&input.1, &mut [0])?;
            input.0 += step.consumed as u64;
            input.1.advance(step.consumed);
            if step.produced > 0 {
                return Err(PassError::Length { expected: size, actual: size + 1 });
            }
            if step.consumed == 0 {
                if decoder.offset() < stored_size {
                    return Ok(false);
                }
                decoder.finish()?;
                return Ok(true);
            }
        }
    }
}
