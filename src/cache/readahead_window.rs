//! Readahead window: the distance ahead of a sequential reader in which blocks are requested.
//!
//! Over a link it follows the bandwidth-delay product, the bytes that the reader has read in order, and the share of
//! earlier readahead that was used. Over a decoder it follows the bytes read.

use super::sidecar::BLOCK_BYTES;
use crate::io::{LinkLength, LinkMeasure};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Longest readahead fetch. At 8 MiB a round trip of 100 ms costs less than the bytes do on a gigabit link.
pub(super) const MAX_READAHEAD_BYTES: u64 = 8 * MIB;
/// Widest window: the bandwidth-delay product of a gigabit link of 270 ms.
const MAX_WINDOW_BYTES: u64 = 32 * MIB;
/// Window of a link whose bandwidth-delay product is smaller or unknown.
pub(super) const MIN_LINK_WINDOW_BYTES: u64 = MIB;
/// Throughput, in bytes per second, from which requests cost more than the bytes of a long fetch: it takes a sixth of a
/// second, and registries read some MiB from their storage for any range.
const FAST_BYTES_PER_SECOND: u64 = 50_000_000;
/// A long fetch over a fast link is at most this part of the bytes read in order.
const LONG_FETCH_SHARE: u64 = 2;
/// Window over a decoder by the bytes that its reader has read in order, as (least bytes read, window).
const DECODER_STEPS: [(u64, u64); 4] =
    [(8 * MIB, MAX_WINDOW_BYTES), (2 * MIB, MAX_READAHEAD_BYTES), (512 * KIB, MIB), (0, BLOCK_BYTES)];

/// Smallest bandwidth-delay product of a long link at which a read in no order brings the bytes after it.
const MIN_NEIGHBOUR_PRODUCT: u64 = 2 * MIB;
/// Most bytes that such a read brings.
const MAX_NEIGHBOUR_BYTES: u64 = 4 * MIB;

/// Where the blocks of a content come from, as far as windows depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum BlockOrigin {
    /// An origin over a link: neighbouring blocks are one request, whose bytes come in order.
    Link(LinkMeasure),
    /// A decoder: several ranges are decoded side by side.
    Decoder {
        /// Widest window, in bytes.
        most: u64,
    },
}

impl BlockOrigin {
    /// Bytes to fetch after a read in no order. Over a long link they take half as long as their request waits for its
    /// first byte, and the next read nearby needs no request.
    pub(super) fn neighbour_bytes(self) -> u64 {
        match self {
            BlockOrigin::Link(LinkMeasure { product, length: LinkLength::Long, .. })
                if product >= MIN_NEIGHBOUR_PRODUCT =>
            {
                (product / 2).min(MAX_NEIGHBOUR_BYTES) & !(BLOCK_BYTES - 1)
            }
            _ => 0,
        }
    }
}

/// Whether a read found its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadPace {
    /// It waits for some of them: the source is slower than the reader.
    Waits,
    /// All were present: the reader is slower than the source.
    Served,
}

/// The window of a reader, in bytes.
#[derive(Clone, Copy)]
pub(super) struct ReaderWindow {
    /// Distance ahead of the reader in which blocks are wanted.
    pub(super) len: u64,
    /// Shortest fetch, except at the end of the content.
    pub(super) least: u64,
    /// Longest fetch.
    pub(super) most: u64,
}

impl ReaderWindow {
    /// The window of a reader that has read `run` bytes in order, the last `read` of them at once.
    pub(super) fn of(origin: BlockOrigin, run: u64, read: u64, pace: ReadPace) -> Self {
        match origin {
            BlockOrigin::Decoder { most } => {
                let window = DECODER_STEPS.iter().find(|(least, _)| run >= *least);
                let len = window.map_or(BLOCK_BYTES, |step| step.1).min(most.max(BLOCK_BYTES));
                let length = (len / 2).clamp(BLOCK_BYTES, MAX_READAHEAD_BYTES);
                ReaderWindow { len, least: length, most: length }
            }
            BlockOrigin::Link(LinkMeasure { product, used, throughput, .. }) => {
                let long = if throughput < FAST_BYTES_PER_SECOND { 0 } else { run / LONG_FETCH_SHARE };
                link_window(run, read, product.min(MAX_WINDOW_BYTES), used, long, pace)
            }
        }
    }
}

/// Window over a link with this bandwidth-delay product, of a reader that has read `run` bytes in order. A fetch may
/// have `long` bytes where that is more than the product asks for.
fn link_window(run: u64, read: u64, product: u64, used: f64, long: u64, pace: ReadPace) -> ReaderWindow {
    // While a fetch of this length is read, the rest of the window covers the product.
    let shortest = MIN_LINK_WINDOW_BYTES.saturating_sub(product).clamp(2 * BLOCK_BYTES, 3 * BLOCK_BYTES);
    let least = (product / 3).max(long).clamp(shortest, MAX_READAHEAD_BYTES) & !(BLOCK_BYTES - 1);
    let full = match pace {
        _ if least > MIN_LINK_WINDOW_BYTES.max(product / 3) => product.max(MIN_LINK_WINDOW_BYTES) + least,
        // A long read is readahead of the kernel, which requests the next one before the program gets to this one.
        _ if read >= 2 * BLOCK_BYTES => {
            let rest = MIN_LINK_WINDOW_BYTES.saturating_sub(read).max(BLOCK_BYTES);
            (product + least.saturating_sub(read)).max(rest).next_multiple_of(BLOCK_BYTES)
        }
        // A fetch is requested when the one a window before it has ended: with one fetch more than the product, the
        // link is never idle.
        ReadPace::Waits => (product + least).max(MIN_LINK_WINDOW_BYTES),
        ReadPace::Served => product.max(MIN_LINK_WINDOW_BYTES),
    };
    let full = full & !(BLOCK_BYTES - 1);
    let share = |bytes: u64| (bytes as f64 * used) as u64;
    let len = match run < 2 * BLOCK_BYTES {
        // Two small reads: no more than the link holds meanwhile.
        true => product.clamp(BLOCK_BYTES, MIN_LINK_WINDOW_BYTES).max(share(product)),
        // A reader has so much fetched ahead as it has read itself, or as readers before it have used.
        false => full.min((4 * run).max(share(full))),
    };
    let len = len & !(BLOCK_BYTES - 1);
    let least = if len < full { least.min(len / 2).max(BLOCK_BYTES) } else { least.min(full) };
    ReaderWindow { len, least, most: MAX_READAHEAD_BYTES }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window of a reader that has read `run` bytes.
    fn window(run: u64, product: u64, used: f64, pace: ReadPace) -> u64 {
        link_window(run, 4096, product, used, 0, pace).len
    }

    #[test]
    fn a_window_over_a_link_is_its_bandwidth_delay_product_or_a_mebibyte() {
        let full = |product, pace| window(64 * MIB, product, 1.0, pace);
        for product in [0, 1000, MIB / 4, MIB] {
            assert_eq!(full(product, ReadPace::Served), MIB, "{product}");
        }
        assert_eq!(full(0, ReadPace::Waits), MIB);
        for product in [2 * MIB, 5 * MIB, 20 * MIB] {
            assert_eq!(full(product, ReadPace::Served), product);
            // And the fetch that a full window waits for.
            assert_eq!(full(product, ReadPace::Waits), product + (product / 3) / BLOCK_BYTES * BLOCK_BYTES);
        }
    }

    #[test]
    fn readahead_of_the_kernel_is_part_of_a_window_over_a_link() {
        let full = |product| link_window(64 * MIB, MIB, product, 1.0, 0, ReadPace::Waits);
        for product in [0, MIB / 4, MIB / 2, MIB, 2 * MIB] {
            let window = full(product);
            assert_eq!(window.len, product.max(BLOCK_BYTES), "{product}");
            assert!(window.least <= window.len, "{product}: a fetch has room");
        }
        assert_eq!(full(6 * MIB).len, 7 * MIB);
    }

    #[test]
    fn a_window_over_a_link_grows_with_the_run_and_with_the_use_of_earlier_readahead() {
        let of = |run, used| window(run, 16 * MIB, used, ReadPace::Served);
        assert_eq!(
            window(256 * KIB, 0, 1.0, ReadPace::Waits),
            BLOCK_BYTES,
            "two small reads of a near origin"
        );
        assert_eq!(of(256 * KIB, 0.0), MIB);
        assert_eq!(of(MIB, 0.0), 4 * MIB);
        assert_eq!(of(4 * MIB, 0.0), 16 * MIB);
        assert_eq!(of(MIB, 0.75), 12 * MIB);
        assert_eq!(of(256 * KIB, 0.75), 12 * MIB);
    }
}
