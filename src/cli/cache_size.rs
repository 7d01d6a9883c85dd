//! `--cache-size`: the size limit of the cache, with one variable for all commands that fetch.

use clap::Args;

use crate::cache::{LimitError, SizeLimit};

/// The option.
#[derive(Args, Debug)]
pub(super) struct CacheSizeArgs {
    /// Limit the cache directory: a number and K, M, G or T, or N% of the disk. The least recently used blobs are evicted. Default:
    /// 80% of its size and the free space. 5% of the disk stay free in any case.
    #[arg(long, value_name = "SIZE", env = "OCIFS_CACHE_SIZE", value_parser = limit)]
    cache_size: Option<SizeLimit>,
}

impl CacheSizeArgs {
    /// The given limit, else the default.
    pub(super) fn limit(&self) -> SizeLimit {
        self.cache_size.unwrap_or_default()
    }
}

/// An empty variable counts as unset.
fn limit(text: &str) -> Result<SizeLimit, LimitError> {
    if text.is_empty() { Ok(SizeLimit::default()) } else { text.parse() }
}
