//! A layer blob becomes an index (table of contents and span map) and an uncompressed stream that is read through it.
//!
//! A format is data: after detection nobody asks which one it was. The parsers here take bytes and return values; what
//! fetches and keeps bytes is below (`cache/`), what the entries mean for a file tree is above (`tree/`).

mod codec;
mod index;
mod pass;
mod sniff;
mod span;
mod stored;
mod tar;
mod toc;

pub use codec::{CodecError, Decoder};
pub use index::LayerIndex;
pub use sniff::{Encoding, SNIFF_LEN, Sniffed, sniff};
pub use span::{Span, SpanMap};
pub use stored::{Layer, LayerState};
pub use tar::{Need, TarError, TarLimits, TarWalker};
pub use toc::{Content, Device, Entry, EntryKind, Run, Time, Toc, Xattr};
