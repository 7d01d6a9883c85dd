//! Concurrency limits of one process: the requests, reads, passes and decodes that run at once.
//!
//! Each limit follows the requests of a host or the number of cores. The limits of the plugin's mounts are in
//! `csi/places.rs`.

use std::sync::LazyLock;
use std::thread::available_parallelism;

/// Variable that replaces the number of cores, for tests.
const CORES_VARIABLE: &str = "OCIFS_TEST_CORES";

/// Requests to one host.
pub(crate) const HOST_REQUESTS: usize = 8;

/// Readahead fetches over all content of a cache. Two below [`HOST_REQUESTS`], so that a small read does not queue
/// behind a scan.
pub(crate) const READAHEAD_FETCHES: usize = HOST_REQUESTS - 2;

/// Fetches of one read: half of [`HOST_REQUESTS`], so that two readers do not queue.
pub(crate) const READ_FETCHES: usize = HOST_REQUESTS / 2;

/// Prefetches: half of [`HOST_REQUESTS`], so that readers come first.
pub(crate) const PREFETCH_FETCHES: usize = HOST_REQUESTS / 2;

/// Requests of a pull, for one blob or several. Two below [`HOST_REQUESTS`], for readers of a mount.
pub(crate) const PULL_REQUESTS: usize = HOST_REQUESTS - 2;

/// Requests for documents: all of [`HOST_REQUESTS`], because no content is read before.
pub(crate) const DOCUMENT_REQUESTS: usize = HOST_REQUESTS;

/// Range requests that measure a registry: those of one read.
pub(crate) const PROBE_REQUESTS: usize = READ_FETCHES;

/// Chunks over a network that passes request or hold, over all layers. Two below [`HOST_REQUESTS`], so that a reader
/// of one block does not queue behind whole layers.
pub(crate) const PASS_CHUNKS: usize = HOST_REQUESTS - 2;

/// Passes with local input.
pub(crate) const LOCAL_PASSES: usize = 2;

/// Most passes with input over a network: they share the line, and each holds some 9 MiB.
const MAX_NETWORK_PASSES: usize = 6;

/// Reads of L2 tables of a qcow2: they are scattered over the file, and each costs a round trip.
pub(crate) const TABLE_READS: usize = HOST_REQUESTS;

/// Reads of the runs of one window of a qcow2.
pub(crate) const RUN_READS: usize = READ_FETCHES;

/// Blobs that an export writes.
pub(crate) const EXPORTED_BLOBS: usize = HOST_REQUESTS / 2;

/// Requests of the registry client that the monitor serves: as many as a host gets.
pub(crate) const MONITOR_REQUESTS: usize = HOST_REQUESTS;

/// Cores that this process may use; 2 where the kernel does not report them.
pub(crate) fn cores() -> usize {
    static CORES: LazyLock<usize> = LazyLock::new(|| {
        let set = std::env::var(CORES_VARIABLE).ok().and_then(|text| text.parse().ok());
        set.unwrap_or_else(|| available_parallelism().map_or(2, usize::from)).max(1)
    });
    *CORES
}

/// Readahead fetches that decode: each takes a core.
pub(crate) fn decodes() -> usize {
    cores()
}

/// Turns of decoders, over all layers: more would not be faster. A turn never waits for stored bytes.
pub(crate) fn decoder_turns() -> usize {
    2 * cores()
}

/// Passes with input over a network.
pub(crate) fn network_passes() -> usize {
    (2 * cores()).min(MAX_NETWORK_PASSES)
}

/// Layers of one image whose index is loaded or made: no more than cores, because a pass has megabytes in flight.
pub(crate) fn indexed_layers() -> usize {
    cores().max(2)
}

/// Threads of a mount that read requests: enough that a slow answer from memory does not delay the others.
pub(crate) fn request_threads() -> usize {
    cores().clamp(2, 8)
}
