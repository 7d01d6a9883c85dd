//! Referenced window bytes: the distances in the deflate data after a checkpoint, without decoded bytes.
//!
//! Only the first [`WINDOW`] stream bytes after a checkpoint can refer to bytes before it, and typical data refers
//! to a tenth of those. The rest of the window is zeroed and vanishes in compression. If the data cannot be parsed,
//! the whole window is stored. Codes and lengths are parsed, but no output is produced.

use super::packed_window::{PackedWindow, WINDOW};

/// The stored bytes where decoding would start.
#[derive(Clone, Copy, Debug)]
pub struct DecodeState<'a> {
    /// Stored bytes from the checkpoint on, including the byte before when `bits` is not zero.
    pub data: &'a [u8],
    /// Number of the highest bits of the first byte of `data` that belong to the data: 0 for all of them.
    pub bits: u8,
}

/// Maximum compressed size of [`WINDOW`] bytes that is parsed. Deflate stores incompressible data, so sane data
/// needs little more than its own size.
pub const FOLLOWING: usize = 48 * 1024;

/// Packs the bytes of `window` to which `following` refers; `window` are the stream bytes before it.
pub fn pack(mut window: Vec<u8>, following: DecodeState<'_>) -> PackedWindow {
    if let Some(used) = referred(window.len(), following) {
        let first = used.iter().position(|&used| used).unwrap_or(window.len());
        for (byte, used) in window.iter_mut().zip(&used) {
            if !used {
                *byte = 0;
            }
        }
        // Distances count from the end, so unused bytes can be removed from the start.
        window.drain(..first);
    }
    PackedWindow::pack(&window)
}

/// Marks the referenced ones of the `len` bytes before `following`; `None` if the data cannot be parsed.
fn referred(len: usize, following: DecodeState<'_>) -> Option<Vec<bool>> {
    let mut bits = BitReader { data: following.data, at: 0, held: 0, count: 0 };
    if following.bits > 0 {
        bits.take(8 - u32::from(following.bits.min(7)))?;
    }
    let mut marks = WindowMarks { used: vec![false; len], at: 0 };
    let mut tables = BlockCodes::default();
    loop {
        let is_last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.take(bits.count % 8)?;
                let len = bits.take(16)?;
                bits.take(16)?;
                bits.skip(len as usize)?;
                marks.at += len as usize;
            }
            1 => {
                tables.fixed()?;
                block(&mut bits, &tables, &mut marks)?;
            }
            2 => {
                tables.read(&mut bits)?;
                block(&mut bits, &tables, &mut marks)?;
            }
            _ => return None,
        }
        // The next member refers to nothing before it.
        if is_last || marks.at >= WINDOW {
            return Some(marks.used);
        }
    }
}

/// The offset in the stream after the checkpoint, and marks of the referenced bytes before the checkpoint.
struct WindowMarks {
    used: Vec<bool>,
    at: usize,
}

impl WindowMarks {
    fn copy(&mut self, len: usize, distance: usize) -> Option<()> {
        if let Some(before) = distance.checked_sub(self.at).filter(|&before| before > 0) {
            let start = self.used.len().checked_sub(before)?;
            let end = self.used.len().min(start + len);
            self.used[start..end].fill(true);
        }
        self.at += len;
        Some(())
    }
}

/// Parses one block of codes, at most as far as it can refer to the window.
fn block(bits: &mut BitReader<'_>, tables: &BlockCodes, marks: &mut WindowMarks) -> Option<()> {
    while marks.at < WINDOW {
        match tables.literals.decode(bits)? {
            0..=255 => marks.at += 1,
            256 => return Some(()),
            symbol => {
                let &(base, extra) = LENGTHS.get(usize::from(symbol) - 257)?;
                let len = base + bits.take(extra)?;
                let symbol = tables.distances.decode(bits)?;
                let &(base, extra) = DISTANCES.get(usize::from(symbol))?;
                let distance = base + bits.take(extra)?;
                marks.copy(len as usize, distance as usize)?;
            }
        }
    }
    Some(())
}

/// The input as bits, lowest first.
struct BitReader<'a> {
    data: &'a [u8],
    at: usize,
    /// Invariant: bits from `count` on are zero.
    held: u64,
    count: u32,
}

impl BitReader<'_> {
    fn fill(&mut self) {
        while self.count <= 56 {
            let Some(&byte) = self.data.get(self.at) else { return };
            self.held |= u64::from(byte) << self.count;
            self.count += 8;
            self.at += 1;
        }
    }

    /// The next `count` bits, at most 16.
    fn take(&mut self, count: u32) -> Option<u32> {
        if self.count < count {
            self.fill();
        }
        let value = self.held & ((1 << count) - 1);
        self.count = self.count.checked_sub(count)?;
        self.held >>= count;
        // At most 16 bits.
        Some(value as u32)
    }

    /// Skips whole bytes.
    fn skip(&mut self, mut bytes: usize) -> Option<()> {
        while bytes > 0 && self.count >= 8 {
            self.take(8)?;
            bytes -= 1;
        }
        self.at = self.at.checked_add(bytes).filter(|&at| at <= self.data.len())?;
        Some(())
    }
}

/// The longest code of deflate, in bits.
const LONGEST: usize = 15;

/// Maximum code length in the lookup table, in bits.
const QUICK: u32 = 9;

/// A canonical Huffman code.
struct HuffmanCode {
    /// Symbol and length by the next `QUICK` bits; length 0 for a longer code.
    quick: Vec<(u16, u8)>,
    /// Number of codes of each length.
    counts: [u16; LONGEST + 1],
    /// The symbols in code order.
    symbols: Vec<u16>,
}

impl Default for HuffmanCode {
    fn default() -> Self {
        Self { quick: vec![(0, 0); 1 << QUICK], counts: [0; LONGEST + 1], symbols: Vec::new() }
    }
}

impl HuffmanCode {
    /// Sets the code from the lengths of its symbols in bits; `None` when there are more codes than fit.
    fn set(&mut self, lengths: &[u8]) -> Option<()> {
        self.counts = [0; LONGEST + 1];
        for &len in lengths {
            *self.counts.get_mut(usize::from(len))? += 1;
        }
        self.counts[0] = 0;
        let (mut codes, mut places) = ([0u32; LONGEST + 2], [0u16; LONGEST + 2]);
        for len in 1..=LONGEST {
            codes[len + 1] = (codes[len] + u32::from(self.counts[len])) << 1;
            places[len + 1] = places[len] + self.counts[len];
            if codes[len] + u32::from(self.counts[len]) > 1 << len {
                return None;
            }
        }
        self.symbols.clear();
        self.symbols.resize(usize::from(places[LONGEST + 1]), 0);
        self.quick.fill((0, 0));
        for (symbol, &len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
            let (len, symbol) = (usize::from(len), symbol as u16);
            *self.symbols.get_mut(usize::from(places[len]))? = symbol;
            places[len] += 1;
            let code = codes[len];
            codes[len] += 1;
            if len as u32 <= QUICK {
                // Codes come with their highest bit first, so the index is reversed.
                let first = code.reverse_bits() >> (32 - len);
                for slot in (first..1 << QUICK).step_by(1 << len) {
                    self.quick[slot as usize] = (symbol, len as u8);
                }
            }
        }
        Some(())
    }

    fn decode(&self, bits: &mut BitReader<'_>) -> Option<u16> {
        if bits.count < LONGEST as u32 {
            bits.fill();
        }
        let (symbol, len) = self.quick[(bits.held & ((1 << QUICK) - 1)) as usize];
        if len > 0 {
            bits.take(len.into())?;
            return Some(symbol);
        }
        let (mut code, mut first, mut place) = (0u32, 0u32, 0u32);
        for &count in &self.counts[1..] {
            code |= bits.take(1)?;
            let count = u32::from(count);
            if code < first + count {
                return self.symbols.get((place + code.checked_sub(first)?) as usize).copied();
            }
            place += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// The two codes of a block.
#[derive(Default)]
struct BlockCodes {
    literals: HuffmanCode,
    distances: HuffmanCode,
}

impl BlockCodes {
    /// Sets the fixed codes (RFC 1951, 3.2.6).
    fn fixed(&mut self) -> Option<()> {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.literals.set(&lengths)?;
        self.distances.set(&[5; 30])
    }

    /// Reads the dynamic codes (RFC 1951, 3.2.7).
    fn read(&mut self, bits: &mut BitReader<'_>) -> Option<()> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let literals = bits.take(5)? as usize + 257;
        let distances = bits.take(5)? as usize + 1;
        let count = bits.take(4)? as usize + 4;
        let mut lengths = [0; 320];
        for &at in &ORDER[..count] {
            lengths[at] = bits.take(3)? as u8;
        }
        self.literals.set(&lengths[..19])?;
        let (mut at, total) = (0, literals + distances);
        let mut read = [0u8; 320];
        while at < total {
            let (len, times) = match self.literals.decode(bits)? {
                len @ 0..=15 => (len as u8, 1),
                16 => (*read.get(at.checked_sub(1)?)?, 3 + bits.take(2)?),
                17 => (0, 3 + bits.take(3)?),
                _ => (0, 11 + bits.take(7)?),
            };
            let end = at + times as usize;
            read.get_mut(at..end.min(total))?.fill(len);
            at = end;
        }
        if at > total {
            return None;
        }
        self.literals.set(&read[..literals])?;
        self.distances.set(&read[literals..total])
    }
}

/// Base and extra bits of the length symbols from 257 on (RFC 1951, 3.2.5).
const LENGTHS: [(u32, u32); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// Base and extra bits of the distance symbols.
const DISTANCES: [(u32, u32); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12289, 12),
    (16385, 13),
    (24577, 13),
];

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::super::codec::{StopPolicy, UnitDecoder};
    use super::super::decode_step::{DecodeStep, WindowLimits};
    use super::super::sniff::StreamEncoding;
    use super::super::span::{LayerPiece, ResumePoint};
    use super::*;
    use crate::io::ByteRange;

    #[test]
    fn only_referenced_window_bytes_are_kept() {
        // A fixed block: a match of length 3 at distance 5, then the end of the block.
        // Symbol 257 is 0000001, distance symbol 4 is 00100 with one extra bit 0, the end is 0000000.
        let code = "1".to_owned() + "10" + "0000001" + "00100" + "0" + "0000000";
        let bits: Vec<u8> = code.bytes().map(|bit| bit - b'0').collect();
        let data: Vec<u8> =
            bits.chunks(8).map(|byte| byte.iter().enumerate().map(|(at, bit)| bit << at).sum()).collect();
        let following = DecodeState { data: &data, bits: 0 };
        assert_eq!(referred(8, following).unwrap(), [false, false, false, true, true, true, false, false]);
        assert_eq!(pack(b"abcdefgh".to_vec(), following).unpack().unwrap(), b"def\0\0");
        assert_eq!(referred(4, following), None, "it refers to more than there is");
    }

    #[test]
    fn unparsed_block_keeps_the_whole_window() {
        for data in [&[][..], &[0xff; 10], &[0x07], &[0x04, 0xff, 0xff]] {
            let following = DecodeState { data, bits: 0 };
            assert_eq!(pack(b"window".to_vec(), following).unpack().unwrap(), b"window", "{data:?}");
        }
    }

    /// Text, noise and runs in some order.
    fn plain() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::collection::vec(0u16..400, 0..9000)
            .prop_map(|words| words.iter().flat_map(|word| format!("{word:x} ").into_bytes()).collect());
        let noise = prop::collection::vec(any::<u8>(), 0..20_000);
        let run = (any::<u8>(), 0usize..60_000).prop_map(|(byte, len)| vec![byte; len]);
        prop::collection::vec(prop_oneof![3 => words, 1 => noise, 1 => run], 1..6)
            .prop_map(|parts: Vec<Vec<u8>>| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// At every block of a member, what a packed window keeps is enough.
        #[test]
        fn decoding_starts_right_at_every_block(parts in prop::collection::vec(plain(), 1..3), level in 0u32..10) {
            let mut stored = Vec::new();
            for part in &parts {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
                for piece in part.chunks(part.len() / 3 + 1) {
                    encoder.write_all(piece).unwrap();
                    // Ends a block, and may leave the next one within a byte.
                    encoder.flush().unwrap();
                }
                stored.extend(encoder.finish().unwrap());
            }
            let whole = parts.concat();
            let mut decoder = UnitDecoder::new(StreamEncoding::Gzip, 0).unwrap().unwrap();
            let (mut at, mut out) = (0, vec![0; whole.len() + 1]);
            let mut produced = 0;
            loop {
                let step = decoder.step_to(&stored[at..], &mut out[produced..], StopPolicy::Blocks).unwrap();
                at += step.consumed;
                produced += step.produced;
                if let Some((bits, byte)) = decoder.at_block() {
                    let from = at - usize::from(bits > 0);
                    prop_assert!(bits == 0 || stored[from] == byte);
                    let following = DecodeState { data: &stored[from..], bits };
                    let window = decoder.window().unwrap();
                    prop_assert!(referred(window.len(), following).is_some(), "data that is not understood");
                    let resume = ResumePoint::Block { bits, window: pack(window, following) };
                    let range = |start, end: usize| ByteRange::new(start as u64, end as u64);
                    let piece = LayerPiece {
                        stored: range(from, stored.len()),
                        stream: range(produced, whole.len()),
                        resume,
                    };
                    let again = UnitDecoder::resume(WindowLimits::Large, StreamEncoding::Gzip, &piece);
                    let mut again = again.unwrap().unwrap();
                    let mut rest = vec![0; whole.len() - produced + 1];
                    let (mut taken, mut got) = (from, 0);
                    loop {
                        let step = again.step(&stored[taken..], &mut rest[got..]).unwrap();
                        taken += step.consumed;
                        got += step.produced;
                        if step == DecodeStep::default() {
                            break;
                        }
                    }
                    again.finish().unwrap();
                    prop_assert_eq!(again.offset(), stored.len() as u64);
                    prop_assert!(rest[..got] == whole[produced..], "from a block at {}", produced);
                }
                if step == DecodeStep::default() {
                    break;
                }
            }
            prop_assert!(out[..produced] == whole);
        }

        #[test]
        fn any_bytes_come_to_an_end(data in prop::collection::vec(any::<u8>(), 0..300), bits in 0u8..8, len in 0usize..WINDOW) {
            referred(len, DecodeState { data: &data, bits });
        }
    }
}
