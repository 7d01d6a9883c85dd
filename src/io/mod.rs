//! Random access to immutable bytes: the common trait of all byte sources, range arithmetic, and combinators.
//!
//! Independent of registries, caches and formats. A registry blob, a cached block file, a decoded layer, a file
//! inside a layer and a reassembled disk are all [`ReadAt`], so the modules above compose them freely.

mod blocking;
mod budget;
mod concat;
pub(crate) mod concurrency;
mod deferred;
mod error;
mod fetch;
mod link_estimate;
mod local;
mod printable;
mod range;
mod read_at;
mod sequential_run;
mod slice;
mod sync;
mod tar_header;
mod threads;

pub(crate) use blocking::compute;
pub(crate) use budget::MEMORY;
pub use budget::{MemoryShare, OverBudget};
pub use concat::ConcatReader;
pub use deferred::{DeferredReader, ReaderOpener};
pub use error::{FaultClass, ReadError, chain};
pub use fetch::{FetchAll, FetchPart, RangeDelivery, RangeFetch};
pub use link_estimate::{DemandedFetch, LinkEstimate, LinkLength, LinkMeasure, LinkTransfer};
pub use local::{FileBytes, LocalBytes};
pub use printable::{
    is_unprintable, message, printable, printable_bytes, printable_json, printable_name, shell_word,
};
pub use range::{ByteRange, proportion};
pub use read_at::{EmptyReader, MemoryReader, ReadAt, SharedReader, VerifiedLevel, read_all, read_vec};
pub(crate) use read_at::{check_bounds, forward_reads, plain_reads};
pub(crate) use sequential_run::{RunTolerance, SequentialRun};
pub use slice::SliceReader;
pub(crate) use sync::{lock, read_lock, write_lock};
pub use tar_header::{TAR_END, TarEntry, TarKind, tar_padding};
pub(crate) use threads::can_start_threads;

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A boxed stream that can move between threads.
pub type BoxStream<'a, T> = futures_util::stream::BoxStream<'a, T>;
