//! Random access to immutable bytes: the one trait every source of bytes implements, the range arithmetic around it,
//! and the combinators that need nothing else.
//!
//! Nothing here knows registries, caches or formats. The idea: a registry blob, a cached block file, a decoded layer, a
//! file inside a layer and a reassembled disk are all [`ReadAt`], so everything above composes them freely.

mod budget;
mod compute;
mod concat;
mod deferred;
mod error;
mod fetch;
mod printable;
mod range;
mod read_at;
mod slice;
mod threads;
mod ustar;

pub(crate) use budget::MEMORY;
pub use budget::{MemoryShare, OverBudget};
pub(crate) use compute::compute;
pub use concat::Concat;
pub use deferred::{Deferred, Opener};
pub use error::{Fault, ReadError, chain};
pub use fetch::{Delivery, Fetch, FetchAll, FetchPart};
pub use printable::{
    is_unprintable, message, printable, printable_bytes, printable_json, printable_name, shell_word,
};
pub use range::ByteRange;
pub(crate) use read_at::check_bounds;
pub use read_at::{Empty, Memory, ReadAt, Shared, Verified, read_all, read_vec};
pub use slice::Slice;
pub(crate) use threads::can_start_threads;
pub use ustar::{TAR_END, TarEntry, TarKind, tar_padding};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A boxed stream that can move between threads.
pub type BoxStream<'a, T> = futures_util::stream::BoxStream<'a, T>;
