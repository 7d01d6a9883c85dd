//! Layers: a blob becomes an index (table of contents and span map), and an uncompressed stream that is read by it.
//!
//! Detection reduces a format to an [`Encoding`]. The parsers take bytes and return values. `cache/` below fetches
//! and stores bytes; `tree/` above interprets the entries as a file tree.

mod agreed;
mod audit;
mod bzip2;
mod checkpoint;
mod claim;
mod codec;
mod content;
mod crew;
mod first;
mod foreign;
mod head;
mod hints;
mod index;
mod inflate;
mod kept;
mod learn;
mod lz4;
mod onward;
mod opened;
mod packed_window;
mod pass;
mod pieces;
mod rooted;
mod served;
mod skim;
mod sniff;
mod span;
mod stored;
mod tar;
mod toc;
mod window;
mod xz;
mod xz_index;
mod zstd_frames;

pub use codec::{CodecError, DecodeStep, StopPolicy, UnitDecoder, WindowLimits};
pub use content::file;
pub use crew::start_pass_threads;
pub use first::has_root;
pub use foreign::{
    FindError, ForeignError, ForeignIndex, ForeignLimits, IndexKind, MAX_ZTOC, find_foreign, find_seek_table,
    is_marker, parse_ztoc,
};
pub use head::peek;
pub use hints::{IndexOffer, IndexPolicy, IndexProvider, LayerOptions};
pub use index::{LayerIndex, SUM_BLOCK};
pub use packed_window::{PackedWindow, WINDOW};
pub use pass::{build_index, most_stream};
pub use pieces::decoded;
pub use rooted::parts_named;
pub use sniff::{SNIFF_LEN, SniffResult, StreamEncoding, sniff};
pub use span::{ChunkDigest, LayerDigests, LayerPiece, ResumePoint, SpanMap, SpanStart, StoredChunk};
pub use stored::{LayerState, StoredLayer};
pub use tar::{TarError, TarLimits, TarWalker, WalkerNeed};
pub use toc::{
    DeviceNumber, EntryRef, FileContent, RunIter, SparseRun, TableOfContents, TocEntry, TocEntryKind,
    TocIter, UnixTime, XattrIter, XattrPair, has_namespace,
};
