//! The place of the blocks of one content: files of the cache, or a file that was on this machine before.
//!
//! The choice is made at the first read, because only then may the source access its file. Local content is not copied:
//! its block checksums live as long as the process, and everything else is as for a cached copy.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::slot::PairSlot;
use crate::io::{BoxFuture, RangeFetch};

/// Makes the files of a content with the help of its source; `None` where the disk lets none be made.
pub(super) type MakeSlot =
    Box<dyn Fn(Arc<dyn RangeFetch>) -> BoxFuture<'static, Option<Arc<PairSlot>>> + Send + Sync>;

/// The files of a content, once the choice fell.
pub(super) struct BlockSeat {
    /// `None` inside when everything is fetched for its readers only.
    chosen: OnceCell<Option<Arc<PairSlot>>>,
    make: Option<MakeSlot>,
}

impl BlockSeat {
    /// Files that are there, or none that could be made.
    pub(super) fn taken(slot: Option<Arc<PairSlot>>) -> Self {
        Self { chosen: OnceCell::new_with(Some(slot)), make: None }
    }

    /// Files that `make` chooses at the first read, for which it may ask the source.
    pub(super) fn open(make: MakeSlot) -> Self {
        Self { chosen: OnceCell::new(), make: Some(make) }
    }

    /// The files, if the choice fell and there are any.
    pub(super) fn get(&self) -> Option<&Arc<PairSlot>> {
        self.chosen.get()?.as_ref()
    }

    /// Whether the choice fell.
    pub(super) fn is_chosen(&self) -> bool {
        self.chosen.initialized()
    }

    /// Chooses, and returns whether this call did.
    pub(super) async fn choose(&self, fetch: &Arc<dyn RangeFetch>) -> ChosenSeat {
        let mut chosen = ChosenSeat::Before;
        let choose = async {
            chosen = ChosenSeat::Now;
            self.make.as_ref()?(Arc::clone(fetch)).await
        };
        self.chosen.get_or_init(|| choose).await;
        chosen
    }
}

/// Which call chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChosenSeat {
    Before,
    Now,
}
