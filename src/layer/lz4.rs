//! LZ4 decoder for two framings: the frames of the LZ4 project, and the blocks of Apple's library.
//!
//! A crate decodes the blocks. A block is gathered, decoded as a whole, and copied out. Decoding can start at a
//! block that refers to nothing before it. No announced size is trusted beyond the reach of LZ4 (255 to 1).

use std::hash::Hasher as _;

use twox_hash::XxHash32;

use super::decode_step::{DecodeStep, StepEnd};
use super::zstd_frames::SKIPPABLE;
use crate::io::{MEMORY, MemoryShare};

/// The first bytes of a frame.
pub(super) const MAGIC: u32 = 0x184D_2204;
/// The first bytes of Apple's blocks: compressed, stored, and the end.
pub(super) const APPLE: [&[u8; 4]; 3] = [b"bv41", b"bv4-", b"bv4$"];

/// Maximum distance of a reference back, in bytes.
const HISTORY: usize = 64 * 1024;

/// Maximum block of Apple's framing, in bytes: it is held in memory. The library writes far smaller blocks.
const MAX_APPLE: usize = 64 * 1024 * 1024;

/// Blocks of Apple's framing that are held without a share of the memory: with its bytes, as much as a block of a frame takes.
const UNCHARGED_APPLE: usize = 8 * 1024 * 1024;

/// The most bytes that one byte decodes to.
const RATIO: usize = 255;

/// Block parameters of a frame, encoded in the byte that a resume point between two blocks carries.
#[derive(Clone, Copy, Default)]
struct FrameShape {
    is_independent: bool,
    has_block_sums: bool,
    has_sum: bool,
    /// Maximum block size: 4 to 7 for 64 KiB to 4 MiB.
    size: u8,
}

impl FrameShape {
    fn to_byte(self) -> u8 {
        u8::from(self.has_block_sums) << 4 | u8::from(self.has_sum) << 3 | self.size
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let shape = Self {
            is_independent: true,
            has_block_sums: byte & 0x10 != 0,
            has_sum: byte & 8 != 0,
            size: byte & 7,
        };
        (byte < 0x20 && shape.size >= 4).then_some(shape)
    }

    fn most(self) -> usize {
        1 << (8 + 2 * u32::from(self.size))
    }
}

/// The meaning of the gathered bytes.
#[derive(Clone, Copy)]
enum FramePart {
    /// The first four bytes of a frame, or of an Apple block.
    Magic,
    /// The two bytes that determine the length of a frame header; then the header.
    Descriptor,
    Header,
    /// The length of a skippable frame.
    SkipLen,
    Skip {
        left: u64,
    },
    BlockLen,
    Block {
        is_stored: bool,
        len: usize,
    },
    Sum,
    AppleLens,
    AppleBlock,
    AppleStoredLen,
    AppleStored {
        left: u64,
    },
}

/// The state of an LZ4 decoder.
pub(super) struct Lz4Decoder {
    is_apple: bool,
    part: FramePart,
    /// Gathered bytes, processed once there are `wanted`.
    some: Vec<u8>,
    wanted: usize,
    shape: FrameShape,
    /// The decoded block, and the number of its bytes already copied out.
    block: Vec<u8>,
    out: usize,
    /// The last stream bytes, as far as blocks can refer to them.
    history: Vec<u8>,
    /// Hash of the frame's content so far; `None` unless decoding began at the frame's start and the frame has a
    /// checksum.
    sum: Option<XxHash32>,
    /// Remaining bytes of the frame's content; `None` if the frame records no size.
    left: Option<u64>,
    /// What large blocks take of the memory that all layers share.
    memory: MemoryShare,
}

impl Lz4Decoder {
    /// For the start of a frame, or of Apple's data.
    pub(super) fn new(is_apple: bool) -> Self {
        Self {
            is_apple,
            part: FramePart::Magic,
            some: Vec::new(),
            wanted: 4,
            shape: FrameShape::default(),
            block: Vec::new(),
            out: 0,
            history: Vec::new(),
            sum: None,
            left: None,
            // Held while stored bytes are waited for: it is not waited for in its turn.
            memory: MEMORY.lasting(),
        }
    }

    /// For the start of a block that refers to nothing before it, in a frame with the parameters `shape`.
    pub(super) fn at_block(shape: u8) -> Result<Self, String> {
        let shape = FrameShape::from_byte(shape).ok_or("no frame has such blocks")?;
        Ok(Self { shape, part: FramePart::BlockLen, ..Self::new(false) })
    }

    /// One step, and its end.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(DecodeStep, StepEnd), String> {
        if self.out < self.block.len() {
            return Ok(self.hand_out(output));
        }
        match &mut self.part {
            FramePart::Skip { left } => {
                let consumed = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= consumed as u64;
                let place = if *left == 0 { self.begin() } else { StepEnd::Inside };
                return Ok((DecodeStep { consumed, produced: 0 }, place));
            }
            FramePart::AppleStored { left } => {
                let most = input.len().min(output.len());
                let len = most.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                if *left == 0 {
                    (self.part, self.wanted) = (FramePart::Magic, 4);
                }
                output[..len].copy_from_slice(&input[..len]);
                self.remember(&input[..len]);
                return Ok((DecodeStep { consumed: len, produced: len }, StepEnd::Inside));
            }
            _ => {}
        }
        let consumed = input.len().min(self.wanted - self.some.len());
        self.some.extend_from_slice(&input[..consumed]);
        let step = DecodeStep { consumed, produced: 0 };
        if self.some.len() < self.wanted {
            return Ok((step, StepEnd::Inside));
        }
        let some = std::mem::take(&mut self.some);
        let place = self.look(&some)?;
        // Reuses the buffer of the block for the next one.
        self.some = if self.some.is_empty() { some } else { std::mem::take(&mut self.some) };
        if !matches!(self.part, FramePart::Header) {
            self.some.clear();
        }
        Ok((step, place))
    }

    /// Returns to the start of a frame.
    fn begin(&mut self) -> StepEnd {
        (self.part, self.wanted) = (FramePart::Magic, 4);
        StepEnd::Unit
    }

    fn hand_out(&mut self, output: &mut [u8]) -> (DecodeStep, StepEnd) {
        let len = output.len().min(self.block.len() - self.out);
        output[..len].copy_from_slice(&self.block[self.out..self.out + len]);
        self.out += len;
        let step = DecodeStep { consumed: 0, produced: len };
        if self.out < self.block.len() {
            return (step, StepEnd::Inside);
        }
        let can_start = !self.is_apple && self.shape.is_independent;
        (step, if can_start { StepEnd::Block(self.shape.to_byte()) } else { StepEnd::Inside })
    }

    /// Stores the bytes that later blocks may refer to.
    fn remember(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let surplus = (self.history.len() + new.len()).saturating_sub(HISTORY);
        self.history.drain(..surplus);
        self.history.extend_from_slice(new);
    }

    fn look(&mut self, some: &[u8]) -> Result<StepEnd, String> {
        match self.part {
            FramePart::Magic if self.is_apple => {
                (self.part, self.wanted) = match APPLE.iter().position(|magic| some == *magic) {
                    Some(0) => (FramePart::AppleLens, 8),
                    Some(1) => (FramePart::AppleStoredLen, 4),
                    Some(_) => {
                        self.history.clear();
                        return Ok(self.begin());
                    }
                    None => return Err("a block begins with unknown bytes".into()),
                };
            }
            FramePart::Magic => {
                (self.part, self.wanted) = match le32(some) {
                    MAGIC => (FramePart::Descriptor, 2),
                    magic if magic & 0xFFFF_FFF0 == SKIPPABLE => (FramePart::SkipLen, 4),
                    _ => return Err("a frame begins with unknown bytes".into()),
                };
            }
            FramePart::Descriptor => {
                let has_size = some[0] & 8 != 0;
                if some[0] & 1 != 0 {
                    return Err("a frame needs a dictionary".into());
                }
                self.part = FramePart::Header;
                self.wanted = 2 + if has_size { 8 } else { 0 } + 1;
                self.some.extend_from_slice(some);
            }
            FramePart::Header => self.header(some)?,
            FramePart::SkipLen => {
                let left = u64::from(le32(some));
                if left == 0 {
                    return Ok(self.begin());
                }
                self.part = FramePart::Skip { left };
            }
            FramePart::BlockLen => return self.block_len(le32(some)),
            FramePart::Block { is_stored, len } => {
                let (data, sum) = some.split_at(len);
                if self.shape.has_block_sums && XxHash32::oneshot(0, data) != le32(sum) {
                    return Err("a block does not match its checksum".into());
                }
                let most = self.shape.most().min(len.saturating_mul(RATIO));
                self.decode(data, is_stored, most, None)?;
                (self.part, self.wanted) = (FramePart::BlockLen, 4);
            }
            FramePart::Sum => {
                if self.sum.take().is_some_and(|sum| sum.finish() as u32 != le32(some)) {
                    return Err("a frame does not match its checksum".into());
                }
                return Ok(self.begin());
            }
            FramePart::AppleLens => {
                let (size, len) = (le32(&some[..4]) as usize, le32(&some[4..]) as usize);
                if size > MAX_APPLE || len > MAX_APPLE {
                    return Err(format!("a block of {size} bytes is larger than {MAX_APPLE}"));
                }
                if size > len.saturating_mul(RATIO) || len == 0 {
                    return Err(format!("a block of {len} bytes cannot decode to {size}"));
                }
                self.charge(size + len)?;
                (self.part, self.wanted, self.left) = (FramePart::AppleBlock, len, Some(size as u64));
            }
            FramePart::AppleBlock => {
                let size = self.left.take().unwrap_or_default() as usize;
                self.decode(some, false, size, Some(size))?;
                (self.part, self.wanted) = (FramePart::Magic, 4);
            }
            FramePart::AppleStoredLen => {
                let left = u64::from(le32(some));
                (self.part, self.wanted) =
                    if left == 0 { (FramePart::Magic, 4) } else { (FramePart::AppleStored { left }, 0) };
            }
            FramePart::Skip { .. } | FramePart::AppleStored { .. } => {}
        }
        Ok(StepEnd::Inside)
    }

    /// Takes memory for a large block and its stored bytes. The buffers stay for the next one.
    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        let missing = (bytes as u64).saturating_sub(self.memory.bytes());
        if bytes <= UNCHARGED_APPLE || missing == 0 {
            return Ok(());
        }
        self.memory
            .grow(missing)
            .map_err(|error| format!("a block of {bytes} bytes, packed and not: {error}"))
    }

    fn header(&mut self, header: &[u8]) -> Result<(), String> {
        let (fields, sum) = header.split_at(header.len() - 1);
        let (flags, size) = (fields[0], fields[1] >> 4);
        if XxHash32::oneshot(0, fields).to_le_bytes()[1] != sum[0] {
            return Err("the header of a frame does not match its checksum".into());
        }
        if flags >> 6 != 1 || flags & 2 != 0 || fields[1] & 0x8f != 0 || size < 4 {
            return Err("the header of a frame is broken".into());
        }
        self.shape = FrameShape {
            is_independent: flags & 0x20 != 0,
            has_block_sums: flags & 0x10 != 0,
            has_sum: flags & 4 != 0,
            size,
        };
        self.left = fields.get(2..).and_then(<[u8]>::first_chunk).map(|size| u64::from_le_bytes(*size));
        self.sum = self.shape.has_sum.then(|| XxHash32::with_seed(0));
        self.history.clear();
        (self.part, self.wanted) = (FramePart::BlockLen, 4);
        Ok(())
    }

    fn block_len(&mut self, word: u32) -> Result<StepEnd, String> {
        let (is_stored, len) = (word >> 31 != 0, (word & 0x7fff_ffff) as usize);
        if word == 0 {
            if self.left.take().is_some_and(|left| left > 0) {
                return Err("a frame has fewer bytes than its header states".into());
            }
            if self.shape.has_sum {
                (self.part, self.wanted) = (FramePart::Sum, 4);
                return Ok(StepEnd::Inside);
            }
            return Ok(self.begin());
        }
        if len > self.shape.most() || len == 0 {
            return Err(format!("a block of {len} bytes is larger than its frame allows"));
        }
        self.part = FramePart::Block { is_stored, len };
        self.wanted = len + if self.shape.has_block_sums { 4 } else { 0 };
        Ok(StepEnd::Inside)
    }

    /// Decodes a block of at most `most` bytes, or of `exact` bytes where the length is given.
    fn decode(
        &mut self,
        data: &[u8],
        is_stored: bool,
        most: usize,
        exact: Option<usize>,
    ) -> Result<(), String> {
        let mut block = std::mem::take(&mut self.block);
        block.clear();
        if is_stored {
            block.extend_from_slice(data);
        } else {
            block.resize(most, 0);
            let len = lz4_flex::block::decompress_into_with_dict(data, &mut block, &self.history)
                .map_err(|error| error.to_string())?;
            block.truncate(len);
        }
        if exact.is_some_and(|exact| exact != block.len()) {
            return Err("a block decodes to another size than its header states".into());
        }
        if let Some(sum) = &mut self.sum {
            sum.write(&block);
        }
        if exact.is_none()
            && let Some(left) = &mut self.left
        {
            *left = left
                .checked_sub(block.len() as u64)
                .ok_or("a frame has more bytes than its header states")?;
        }
        if self.is_apple || !self.shape.is_independent {
            self.remember(&block);
        }
        (self.block, self.out) = (block, 0);
        Ok(())
    }
}

/// The number at the start of `bytes`, which are at least four.
fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_of_apple_share_the_memory_of_all_layers() {
        let head = [&b"bv41"[..], &(60_u32 << 20).to_le_bytes(), &(60_u32 << 20).to_le_bytes()].concat();
        let begin =
            |lz4: &mut Lz4Decoder| lz4.step(&head[..4], &mut []).and_then(|_| lz4.step(&head[4..], &mut []));
        let (mut one, mut other) = (Lz4Decoder::new(true), Lz4Decoder::new(true));
        begin(&mut one).unwrap();
        let error = begin(&mut other).unwrap_err();
        assert!(error.contains("bytes of memory"), "{error}");
        drop(one);
        begin(&mut Lz4Decoder::new(true)).unwrap();
    }
}
