//! Chunk maps of sparse files.
//!
//! Holes have no address, so a sparse file of terabytes takes address space for its data only. The chunk is the
//! smallest that keeps the map short.

use crate::layer::SparseRun;

use super::format::{BLOCK_BITS, BLOCK_BYTES};

/// Chunks that a map may have before larger chunks are used: 64 KiB of metadata.
const MAX_CHUNKS: u64 = 1 << 14;
/// Chunks that the maps of a tree may have together, while each has more than [`MIN_CHUNKS`]: 16 MiB of metadata.
const MAX_TREE_CHUNKS: u64 = 1 << 22;
/// Chunks that every map may have: as large as the inode of the file.
const MIN_CHUNKS: u64 = 1 << 4;
/// Largest chunk of the format, as the binary logarithm of its blocks.
const MAX_CHUNK_BITS: u8 = 31;

/// A sparse file in chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChunkMap {
    /// Binary logarithm of the blocks of a chunk.
    pub(super) bits: u8,
    /// Number of chunks of the file.
    pub(super) chunks: u64,
    /// Runs of chunks with data: the first chunk, and the one after the last.
    pub(super) data: Vec<(u64, u64)>,
}

impl ChunkMap {
    /// Computes the map of a file of `size` bytes with data in `runs`. The maps before it have `used` chunks. A file
    /// without data has the largest chunks.
    pub(super) fn of(size: u64, runs: &[SparseRun], used: u64) -> Self {
        let blocks = size.div_ceil(BLOCK_BYTES);
        let has_data = runs.iter().any(|run| run.len > 0 && run.offset < size);
        // A fixed part of the rest, so that chunks grow gradually.
        let rest = MAX_TREE_CHUNKS.saturating_sub(used) / (MAX_TREE_CHUNKS / MAX_CHUNKS);
        let most = if has_data { rest.max(MIN_CHUNKS) } else { 1 };
        let bits = (0..MAX_CHUNK_BITS).find(|bits| blocks.div_ceil(1 << bits) <= most);
        let bits = bits.unwrap_or(MAX_CHUNK_BITS);
        let chunks = blocks.div_ceil(1 << bits);
        let mut data: Vec<(u64, u64)> = Vec::new();
        for run in runs.iter().filter(|run| run.len > 0 && run.offset < size) {
            let shift = BLOCK_BITS + bits;
            let end = run.offset.saturating_add(run.len).min(size);
            let (first, behind) = (run.offset >> shift, ((end - 1) >> shift) + 1);
            match data.last_mut() {
                Some((_, last)) if first <= *last => *last = behind.max(*last),
                _ => data.push((first, behind)),
            }
        }
        Self { bits, chunks, data }
    }

    /// Size of the map in the metadata: 4 bytes for each chunk.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks * 4
    }

    /// Number of blocks from chunk `first` up to `behind` of a file of `size` bytes; the last chunk ends with the
    /// file.
    pub(super) fn blocks(&self, (first, behind): (u64, u64), size: u64) -> u64 {
        (behind << self.bits).min(size.div_ceil(BLOCK_BYTES)) - (first << self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    fn map(size: u64, runs: &[(u64, u64)]) -> ChunkMap {
        let runs: Vec<SparseRun> = runs.iter().map(|&(offset, len)| SparseRun { offset, len }).collect();
        ChunkMap::of(size, &runs, 0)
    }

    #[test]
    fn a_file_without_data_has_one_chunk() {
        for runs in [&[][..], &[(0, 0)], &[(TIB, 1)]] {
            let map = map(TIB, runs);
            assert_eq!((map.chunks, map.data), (1, vec![]), "{runs:?}");
        }
    }

    #[test]
    fn maps_of_many_sparse_files_are_bounded_together() {
        let run = [SparseRun { offset: TIB - 1, len: 1 }];
        let maps = (0..100_000).scan(0, |used, _| {
            let map = ChunkMap::of(TIB, &run, *used);
            *used += map.chunks;
            Some(map)
        });
        let (first, all) = maps.fold((0, 0), |(first, all), map| (map.chunks.max(first), all + map.chunks));
        assert_eq!(first, MAX_CHUNKS, "few files have small chunks");
        assert!(all <= MAX_TREE_CHUNKS + 100_000 * MIN_CHUNKS, "{all} chunks");
        let map = ChunkMap::of(TIB, &run, MAX_TREE_CHUNKS);
        assert_eq!(map.data, [(map.chunks - 1, map.chunks)]);
    }

    #[test]
    fn runs_that_meet_in_a_chunk_are_one() {
        let map = map(100_000, &[(0, 10), (4000, 200), (8192, 1), (20_000, 0), (40_000, 1)]);
        assert_eq!((map.bits, map.chunks), (0, 25));
        assert_eq!(map.data, [(0, 3), (9, 10)]);
        assert_eq!(map.blocks((24, 25), 100_000), 1);
    }

    #[test]
    fn the_map_of_a_large_file_is_short_and_only_data_has_addresses() {
        let map = map(10 * TIB, &[(5 * TIB, 1), (10 * TIB - 1, 1)]);
        assert!(map.chunks <= MAX_CHUNKS, "{map:?}");
        let blocks: u64 = map.data.iter().map(|data| map.blocks(*data, 10 * TIB)).sum();
        assert!(blocks << BLOCK_BITS < 4 << 30, "{blocks} blocks");
        assert_eq!(self::map(0, &[]).chunks, 0);
        // The largest file of Linux.
        let largest = self::map(i64::MAX as u64, &[(i64::MAX as u64 - 1, 1)]);
        assert_eq!((largest.bits, largest.chunks), (MAX_CHUNK_BITS, 1 << 20));
    }
}
