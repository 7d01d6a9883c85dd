//! Layers: a blob becomes an index (table of contents and span map), and an uncompressed stream that is read by it.
//!
//! Detection reduces a format to a [`StreamEncoding`]. The parsers take bytes and return values. `cache/` below fetches
//! and stores bytes; `tree/` above interprets the entries as a file tree.

mod audit;
mod bzip2;
mod checkpoint;
mod chunk_verification;
mod codec;
mod content_digest;
mod crew;
mod decode_step;
mod decoded_tail;
mod digest_check;
mod far_queue;
mod file_checkpoint;
mod file_reader;
mod first;
mod foreign;
mod forward;
mod guarded_stream;
mod header_walk;
mod index;
mod index_store;
mod indexer;
mod inflate;
mod layer_options;
mod layer_readahead;
mod layer_shared;
mod layer_state;
mod learn;
mod lz4;
mod opened;
mod packed_window;
mod paused;
mod peek;
mod seek_table_walk;
mod seekable;
mod sequential;
mod sniff;
mod span;
mod span_recorder;
mod sparse_reader;
mod stored_layer;
mod stored_segments;
mod stream_limit;
mod tar;
mod toc;
mod unpack_method;
mod untrusted_index;
mod window_pruning;
mod xz;
mod xz_index;
mod zstd_frames;

pub use chunk_verification::parts_named;
pub use codec::{CodecError, StopPolicy, UnitDecoder};
pub use crew::start_pass_threads;
pub use decode_step::{DecodeStep, WindowLimits};
pub use file_reader::{FileReadahead, file};
pub use first::has_root;
pub use foreign::{
    FindError, ForeignError, ForeignIndex, ForeignLimits, IndexKind, MAX_ZTOC, find_foreign, find_seek_table,
    is_marker, parse_ztoc,
};
pub use header_walk::build_index;
pub use index::{LayerIndex, SUM_BLOCK};
pub use layer_options::{IndexOffer, IndexPolicy, IndexProvider, LayerOptions, announces_index};
pub use layer_state::LayerState;
pub use packed_window::{PackedWindow, WINDOW};
pub use peek::peek;
pub use seekable::decoded;
pub use sniff::{SNIFF_LEN, SniffResult, StreamEncoding, sniff};
pub use span::{ChunkDigest, LayerDigests, LayerPiece, ResumePoint, SpanMap, SpanStart, StoredChunk};
pub use stored_layer::StoredLayer;
pub use stream_limit::most_stream;
pub use tar::{TarError, TarLimits, TarWalker, WalkerNeed, entries_of_head};
pub use toc::{
    DeviceNumber, EntryRef, FileContent, RunIter, SharedContent, SparseRun, TableOfContents, TocEntry,
    TocEntryKind, TocIter, UnixTime, XattrIter, XattrPair, has_namespace,
};
