//! xz decoder: container parsing around the blocks that liblzma decodes (The .xz File Format, 1.2).
//!
//! Decoding can start at every block, and liblzma does not report the end of a block. So the container is parsed in
//! this module, and the chunk headers of LZMA2 give the length of a block while it is decoded. The library gets
//! exactly one block, behind a made-up stream header, and verifies the block's check.

use liblzma::stream::{Action, Error, Status, Stream};

use super::decode_step::{DecodeStep, StepEnd, WindowLimits};

/// The first bytes of a stream.
pub(super) const MAGIC: &[u8] = b"\xfd7zXZ\0";

/// The last bytes of a stream.
pub(super) const END_MAGIC: &[u8] = b"YZ";

/// Bytes of a stream header, and of a stream footer.
pub(super) const HEADER: usize = 12;

/// Memory for decoding a block besides its dictionary, in bytes.
const BESIDE_DICTIONARY: u64 = 1 << 20;

/// The filter at the end of every chain.
const LZMA2: u64 = 0x21;

/// The state of an xz decoder.
pub(super) struct XzDecoder {
    /// The decoder of the current block; `None` outside of a block.
    block: Option<Stream>,
    part: XzPart,
    /// Maximum dictionary: `xz -6` uses 8 MiB, and `xz -9` 64 MiB.
    windows: WindowLimits,
    /// The type of check of the blocks of this stream.
    check: u8,
    /// Gathered bytes, processed once the part is complete.
    some: Vec<u8>,
}

/// The part of the container that the next stored byte belongs to.
#[derive(Clone, Copy)]
enum XzPart {
    StreamHeader,
    /// A block header of `len` bytes, or the index indicator in its place.
    BlockHeader {
        len: usize,
    },
    /// The header of the next chunk, of `len` bytes; and the bytes of the block so far.
    Control {
        len: usize,
        passed: u64,
    },
    Chunk {
        left: u64,
        passed: u64,
    },
    /// Padding and check of a block.
    Tail {
        left: u64,
    },
    Index(XzIndex),
    /// The checksum of the index.
    IndexSum {
        crc: u32,
    },
    Footer,
    /// Between two streams, and after the last.
    Padding {
        len: u64,
    },
}

/// Progress in the index, the list of the sizes of all blocks.
#[derive(Clone, Copy)]
struct XzIndex {
    /// Remaining numbers; `None` before their count is complete.
    left: Option<u64>,
    number: u64,
    shift: u32,
    passed: u64,
    crc: u32,
}

impl XzDecoder {
    /// For the start of a stream.
    pub(super) fn new(windows: WindowLimits) -> Self {
        Self { block: None, part: XzPart::Padding { len: 0 }, windows, check: 0, some: Vec::new() }
    }

    /// For the start of a block in a stream with this type of check.
    pub(super) fn at_block(check: u8, windows: WindowLimits) -> Result<Self, String> {
        if check > 15 {
            return Err(format!("check {check} is unknown"));
        }
        Ok(Self { check, part: XzPart::BlockHeader { len: 1 }, ..Self::new(windows) })
    }

    /// One step, and its end.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(DecodeStep, StepEnd), XzError> {
        match self.part {
            XzPart::Control { .. } | XzPart::Chunk { .. } | XzPart::Tail { .. } => {
                self.step_block(input, output)
            }
            XzPart::StreamHeader => self.gather(input, HEADER, |it, header| {
                it.check = check_of(header).ok_or("its stream header is broken")?;
                it.part = XzPart::BlockHeader { len: 1 };
                Ok(StepEnd::Inside)
            }),
            XzPart::BlockHeader { len } => self.gather(input, len, |it, header| it.block_header(header)),
            XzPart::Index(index) => self.step_index(index, input),
            XzPart::IndexSum { crc } => self.gather(input, 4, |it, sum| {
                if *sum != crc.to_le_bytes() {
                    return Err("its index does not match its checksum".into());
                }
                it.part = XzPart::Footer;
                Ok(StepEnd::Inside)
            }),
            XzPart::Footer => self.gather(input, HEADER, |it, footer| {
                let crc = crc32(&footer[4..10]).to_le_bytes();
                if !footer.ends_with(END_MAGIC) || footer[..4] != crc || footer[8..10] != [0, it.check] {
                    return Err("its stream footer is broken".into());
                }
                it.part = XzPart::Padding { len: 0 };
                Ok(StepEnd::Unit)
            }),
            XzPart::Padding { len } => {
                let zeros = input.iter().take_while(|byte| **byte == 0).count();
                let len = len + zeros as u64;
                let is_whole = len.is_multiple_of(4);
                if zeros < input.len() {
                    if !is_whole {
                        return Err("its padding is broken".into());
                    }
                    self.part = XzPart::StreamHeader;
                } else {
                    self.part = XzPart::Padding { len };
                }
                let place = if is_whole && zeros == input.len() { StepEnd::Unit } else { StepEnd::Inside };
                if zeros == 0 && !input.is_empty() {
                    return self.step(input, output);
                }
                Ok((DecodeStep { consumed: zeros, produced: 0 }, place))
            }
        }
    }

    /// Gathers `len` bytes, and then calls `look` with them.
    fn gather(
        &mut self,
        input: &[u8],
        len: usize,
        look: impl FnOnce(&mut Self, &[u8]) -> Result<StepEnd, XzError>,
    ) -> Result<(DecodeStep, StepEnd), XzError> {
        let consumed = input.len().min(len - self.some.len());
        self.some.extend_from_slice(&input[..consumed]);
        let step = DecodeStep { consumed, produced: 0 };
        if self.some.len() < len {
            return Ok((step, StepEnd::Inside));
        }
        let some = std::mem::take(&mut self.some);
        let place = look(self, &some)?;
        Ok((step, place))
    }

    fn block_header(&mut self, header: &[u8]) -> Result<StepEnd, XzError> {
        match *header {
            [0] => {
                let crc = crc_step(CRC_START, 0);
                self.part = XzPart::Index(XzIndex { left: None, number: 0, shift: 0, passed: 1, crc });
                return Ok(StepEnd::Inside);
            }
            [size] => {
                self.some.push(size);
                self.part = XzPart::BlockHeader { len: (usize::from(size) + 1) * 4 };
                return Ok(StepEnd::Inside);
            }
            _ => {}
        }
        if last_filter(header) != Some(LZMA2) {
            return Err("a block of it has no LZMA2 data".into());
        }
        let mut block = Stream::new_stream_decoder((1 << self.windows.log()) + BESIDE_DICTIONARY, 0)
            .map_err(XzError::from)?;
        for bytes in [&stream_header(self.check)[..], header] {
            block.process(bytes, &mut [], Action::Run).map_err(XzError::from)?;
        }
        if block.total_in() != (HEADER + header.len()) as u64 {
            return Err("the header of a block is broken".into());
        }
        self.block = Some(block);
        self.part = XzPart::Control { len: 1, passed: 0 };
        Ok(StepEnd::Inside)
    }

    fn step_block(&mut self, input: &[u8], output: &mut [u8]) -> Result<(DecodeStep, StepEnd), XzError> {
        let most = match self.part {
            XzPart::Control { len, .. } => (len - self.some.len()) as u64,
            XzPart::Chunk { left, .. } | XzPart::Tail { left } => left,
            _ => 0,
        };
        let input = &input[..input.len().min(usize::try_from(most).unwrap_or(usize::MAX))];
        let Some(block) = &mut self.block else { return Err("no block was begun".into()) };
        let before = (block.total_in(), block.total_out());
        match block.process(input, output, Action::Run)? {
            Status::Ok | Status::MemNeeded => {}
            Status::StreamEnd | Status::GetCheck => return Err("a block ends too early".into()),
        }
        // Both are at most the lengths of buffers.
        let step = DecodeStep {
            consumed: (block.total_in() - before.0) as usize,
            produced: (block.total_out() - before.1) as usize,
        };
        let place = self.passed(&input[..step.consumed])?;
        Ok((step, place))
    }

    /// Follows the block bytes that the library consumed.
    fn passed(&mut self, taken: &[u8]) -> Result<StepEnd, XzError> {
        let count = taken.len() as u64;
        self.part = match self.part {
            XzPart::Control { len, passed } => {
                self.some.extend_from_slice(taken);
                let passed = passed + count;
                if self.some.len() < len || taken.is_empty() {
                    XzPart::Control { len, passed }
                } else {
                    self.control(passed)
                }
            }
            XzPart::Chunk { left, passed } if left > count => {
                XzPart::Chunk { left: left - count, passed: passed + count }
            }
            XzPart::Chunk { passed, .. } => XzPart::Control { len: 1, passed: passed + count },
            XzPart::Tail { left } => XzPart::Tail { left: left - count },
            other => other,
        };
        if let XzPart::Tail { left: 0 } = self.part {
            self.block = None;
            self.part = XzPart::BlockHeader { len: 1 };
            return Ok(StepEnd::Block(self.check));
        }
        Ok(StepEnd::Inside)
    }

    /// The part after a chunk header. The library has validated the header.
    fn control(&mut self, passed: u64) -> XzPart {
        let number = |at: usize| u64::from(u16::from_be_bytes([self.some[at], self.some[at + 1]]));
        let len = match (self.some[0], self.some.len()) {
            (0, _) => None,
            (1..=0x7f, 3) => Some(number(1) + 1),
            (1..=0x7f, _) => return XzPart::Control { len: 3, passed },
            // The properties byte, if present, counts as data.
            (control, 5) => Some(number(3) + 1 + u64::from(control >= 0xc0)),
            _ => return XzPart::Control { len: 5, passed },
        };
        self.some.clear();
        match len {
            Some(left) => XzPart::Chunk { left, passed },
            None => XzPart::Tail { left: passed.next_multiple_of(4) - passed + check_len(self.check) },
        }
    }

    fn step_index(&mut self, mut index: XzIndex, input: &[u8]) -> Result<(DecodeStep, StepEnd), XzError> {
        let mut consumed = 0;
        for &byte in input {
            if index.left == Some(0) && index.passed.is_multiple_of(4) {
                break;
            }
            consumed += 1;
            index.passed += 1;
            index.crc = crc_step(index.crc, byte);
            match index.left {
                Some(0) if byte == 0 => continue,
                Some(0) => return Err("the padding of its index is broken".into()),
                _ => {}
            }
            if index.shift > 56 {
                return Err("a number in its index is too large".into());
            }
            index.number |= u64::from(byte & 0x7f) << index.shift;
            index.shift += 7;
            if byte & 0x80 == 0 {
                index.left = match index.left {
                    None => Some(index.number.checked_mul(2).ok_or("its index is too long")?),
                    Some(left) => Some(left - 1),
                };
                (index.number, index.shift) = (0, 0);
            }
        }
        self.part = if index.left == Some(0) && index.passed.is_multiple_of(4) {
            XzPart::IndexSum { crc: !index.crc }
        } else {
            XzPart::Index(index)
        };
        Ok((DecodeStep { consumed, produced: 0 }, StepEnd::Inside))
    }
}

/// The reason why xz data could not be decoded.
#[derive(Debug)]
pub(super) enum XzError {
    Broken(String),
    /// A dictionary is over the limit.
    Memory,
}

impl From<&str> for XzError {
    fn from(reason: &str) -> Self {
        Self::Broken(reason.into())
    }
}

impl From<Error> for XzError {
    fn from(error: Error) -> Self {
        match error {
            Error::MemLimit => Self::Memory,
            error => Self::Broken(error.to_string()),
        }
    }
}

/// The type of check in a stream header, or in the flags that a footer repeats from it.
pub(super) fn check_of(header: &[u8]) -> Option<u8> {
    let header: &[u8; HEADER] = header.try_into().ok()?;
    let is_right = header.starts_with(MAGIC)
        && header[6] == 0
        && header[7] < 16
        && header[8..] == crc32(&header[6..8]).to_le_bytes();
    is_right.then_some(header[7])
}

fn stream_header(check: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..6].copy_from_slice(MAGIC);
    header[7] = check;
    header[8..].copy_from_slice(&crc32(&[0, check]).to_le_bytes());
    header
}

/// Size of a check in bytes.
fn check_len(check: u8) -> u64 {
    [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64][usize::from(check & 15)]
}

/// The last filter in a block header.
fn last_filter(header: &[u8]) -> Option<u64> {
    let flags = *header.get(1)?;
    let mut rest = header.get(2..)?;
    for _ in 0..(flags >> 6 & 1) + (flags >> 7) {
        (_, rest) = varint(rest)?;
    }
    let mut last = None;
    for _ in 0..=(flags & 3) {
        let (filter, after) = varint(rest)?;
        let (len, after) = varint(after)?;
        rest = after.get(usize::try_from(len).ok()?..)?;
        last = Some(filter);
    }
    last
}

/// A number of the container, and the bytes after it.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (at, &byte) in bytes.iter().take(9).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(CRC_START, |crc, byte| crc_step(crc, *byte))
}

const CRC_START: u32 = u32::MAX;

/// Adds one byte to a CRC32. A bitwise loop is enough, because headers are short.
fn crc_step(crc: u32, byte: u8) -> u32 {
    (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0xEDB8_8320 } else { 0 })
}
