//! Writes LZ4 in the blocks of Apple's compression library: `bv41` compressed, `bv4-` stored, `bv4$` at the end.

/// Blocks of `len` bytes, each of which may refer to the 64 KiB before it; those that do not become smaller are stored.
pub(crate) fn write(plain: &[u8], len: usize) -> Vec<u8> {
    let mut stored = Vec::new();
    let mut at = 0;
    for block in plain.chunks(len) {
        let history = &plain[at.max(64 * 1024) - 64 * 1024..at];
        let packed = lz4_flex::block::compress_with_dict(block, history);
        if packed.len() < block.len() {
            stored.extend_from_slice(b"bv41");
            stored.extend_from_slice(&(block.len() as u32).to_le_bytes());
            stored.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            stored.extend_from_slice(&packed);
        } else {
            stored.extend_from_slice(b"bv4-");
            stored.extend_from_slice(&(block.len() as u32).to_le_bytes());
            stored.extend_from_slice(block);
        }
        at += block.len();
    }
    stored.extend_from_slice(b"bv4$");
    stored
}
