//! Writes LZ4 in the two forms in which machine images are pushed: the frames of vetu and lume, the blocks of tart.
//!
//! Never good compression: the first match that is found is taken. The idea: one block encoder that can be given a
//! dictionary, because tart's blocks each have the block before them as theirs.

use std::collections::HashMap;

/// Bytes of a block before compression.
const BLOCK: usize = 64 << 10;
/// Matches reach back this far at most.
const WINDOW: usize = 65_535;

/// Apple's stream: `bv41` blocks, `bv4-` for what does not get smaller, `bv4$` at the end.
pub(crate) fn apple(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut before: &[u8] = &[];
    for chunk in data.chunks(BLOCK) {
        let packed = block(before, chunk);
        if packed.len() < chunk.len() {
            out.extend(b"bv41");
            out.extend((chunk.len() as u32).to_le_bytes());
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend(packed);
        } else {
            out.extend(b"bv4-");
            out.extend((chunk.len() as u32).to_le_bytes());
            out.extend(chunk);
        }
        before = chunk;
    }
    out.extend(b"bv4$");
    out
}

/// One frame of independent blocks with a checksum of the content.
pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
    // Version 1, independent blocks, content checksum; blocks of up to 64 KiB.
    let descriptor = [0x64, 0x40];
    let mut out = 0x184d_2204_u32.to_le_bytes().to_vec();
    out.extend(descriptor);
    out.push((xxh32(&descriptor) >> 8) as u8);
    for chunk in data.chunks(BLOCK) {
        let packed = block(&[], chunk);
        if packed.len() < chunk.len() {
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend(packed);
        } else {
            out.extend((chunk.len() as u32 | 1 << 31).to_le_bytes());
            out.extend(chunk);
        }
    }
    out.extend(0_u32.to_le_bytes());
    out.extend(xxh32(data).to_le_bytes());
    out
}

/// One block, whose matches may reach back into `dictionary`.
fn block(dictionary: &[u8], data: &[u8]) -> Vec<u8> {
    let all = [dictionary, data].concat();
    let key = |at: usize| u32::from_le_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]]);
    let (start, end) = (dictionary.len(), all.len());
    let mut seen: HashMap<u32, usize> = (0..start.saturating_sub(3)).map(|at| (key(at), at)).collect();
    let mut out = Vec::new();
    let (mut at, mut literals) = (start, start);
    // The last match begins 12 bytes before the end at the latest, and the last 5 bytes are literals.
    while at + 12 < end {
        let Some(earlier) = seen.insert(key(at), at).filter(|earlier| at - earlier <= WINDOW) else {
            at += 1;
            continue;
        };
        let mut length = 4;
        while at + length < end - 5 && all[earlier + length] == all[at + length] {
            length += 1;
        }
        sequence(&mut out, &all[literals..at], Some((at - earlier, length)));
        at += length;
        literals = at;
    }
    sequence(&mut out, &all[literals..], None);
    out
}

fn sequence(out: &mut Vec<u8>, literals: &[u8], matched: Option<(usize, usize)>) {
    let extra = matched.map_or(0, |(_, length)| length - 4);
    out.push((literals.len().min(15) << 4 | extra.min(15)) as u8);
    more(out, literals.len());
    out.extend(literals);
    if let Some((offset, _)) = matched {
        out.extend((offset as u16).to_le_bytes());
        more(out, extra);
    }
}

/// What of a length does not fit into four bits.
fn more(out: &mut Vec<u8>, length: usize) {
    if let Some(rest) = length.checked_sub(15) {
        out.extend(std::iter::repeat_n(255, rest / 255));
        out.push((rest % 255) as u8);
    }
}

/// xxHash of 32 bits with seed 0, which LZ4 frames are checked by.
fn xxh32(data: &[u8]) -> u32 {
    const P: [u32; 5] = [2_654_435_761, 2_246_822_519, 3_266_489_917, 668_265_263, 374_761_393];
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let stripes = data.chunks_exact(16);
    let rest = stripes.remainder();
    let mut hash = P[4];
    if data.len() >= 16 {
        let mut lanes = [P[0].wrapping_add(P[1]), P[1], 0, 0_u32.wrapping_sub(P[0])];
        for stripe in stripes {
            for (lane, bytes) in lanes.iter_mut().zip(stripe.chunks_exact(4)) {
                *lane = lane.wrapping_add(word(bytes).wrapping_mul(P[1])).rotate_left(13).wrapping_mul(P[0]);
            }
        }
        let turned = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, by)| lane.rotate_left(by));
        hash = turned.fold(0, u32::wrapping_add);
    }
    hash = hash.wrapping_add(data.len() as u32);
    let words = rest.chunks_exact(4);
    let bytes = words.remainder();
    for bytes in words {
        hash = hash.wrapping_add(word(bytes).wrapping_mul(P[2])).rotate_left(17).wrapping_mul(P[3]);
    }
    for byte in bytes {
        hash = hash.wrapping_add(u32::from(*byte).wrapping_mul(P[4])).rotate_left(11).wrapping_mul(P[0]);
    }
    hash = (hash ^ hash >> 15).wrapping_mul(P[1]);
    hash = (hash ^ hash >> 13).wrapping_mul(P[2]);
    hash ^ hash >> 16
}

#[test]
fn lz4_frames_are_read_by_the_real_tool() {
    use crate::process::{Need, able};
    if !able(&[Need::Tool("lz4")]) {
        return;
    }
    let scratch = crate::scratch::Scratch::new();
    let mut data = crate::shapes::raw_disk(3);
    data.extend(b"odd");
    let file = scratch.file("data.lz4", frame(&data));
    assert!(crate::process::sh("lz4 -q -d -c $1", &[&file]).stdout == data);
}
