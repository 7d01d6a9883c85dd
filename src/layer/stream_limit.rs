//! Limits of decoding: the longest stream of a stored layer.

/// Maximum stream bytes per stored byte. Deflate cannot pass 1032:1; zstd can, and a bomb must not fill the disk.
const MAX_RATIO: u64 = 1100;

/// Stream bytes allowed even for the smallest layer.
const RATIO_FLOOR: u64 = 64 * 1024 * 1024;

/// The same including blocks of zeros. An empty disk and a file of holes (`lastlog` of a high user number) compress
/// to almost nothing, and zeros use no cache space. The cost is the time of decoding them once, and 8 MiB of
/// checksums.
const SPARSE_FLOOR: u64 = 64 * 1024 * 1024 * 1024;

/// Maximum bytes of the stream of a layer of `stored` bytes.
pub fn most_stream(stored: u64) -> u64 {
    stored.saturating_mul(MAX_RATIO).max(RATIO_FLOOR)
}

/// The same with blocks of zeros: the longest stream of which a pass makes an index.
pub(super) fn most_sparse_stream(stored: u64) -> u64 {
    most_stream(stored).max(SPARSE_FLOOR)
}
