//! Presence of blocks of one content on disk: its open files, and the blocks that they lack.

use std::sync::Arc;

use super::block_file::BlockFile;
use super::content_state::ContentState;
use super::lock;
use super::seat::ChosenSeat;
use super::wait::waiting;

impl ContentState {
    /// Chooses where the blocks lie, if that is open.
    pub(super) async fn choose_seat(&self) {
        if self.seat.is_chosen() || self.seat.choose(&self.fetch).await == ChosenSeat::Before {
            return;
        }
        if let Some(pair) = self.opened() {
            lock(&self.ahead).limit(pair.reach());
        }
        waiting(|| self.settle_at_open());
    }

    /// The files of the content, opened again if they were closed; `None` where the disk gives or takes none.
    pub(super) fn pair(&self) -> Option<Arc<BlockFile>> {
        let slot = self.seat.get()?;
        slot.opened().or_else(|| waiting(|| slot.pair()))
    }

    /// The files of the content, if they are open.
    pub(super) fn opened(&self) -> Option<Arc<BlockFile>> {
        self.seat.get()?.opened()
    }

    /// Whether the files have to be opened first, which may wait for a disk.
    pub(super) fn is_closed(&self) -> bool {
        self.seat.get().is_some_and(|slot| slot.opened().is_none())
    }

    /// The blocks of `window` that are missing or fail their check.
    pub(super) fn unproven(&self, window: std::ops::Range<u64>) -> Vec<u64> {
        let Some(pair) = self.pair() else { return Vec::new() };
        window
            .filter(|block| !pair.is_trusted(*block) && pair.load(*block, self.proof.len(*block)).is_none())
            .collect()
    }

    /// The blocks without a record.
    pub(super) fn absent(&self, blocks: std::ops::Range<u64>) -> Vec<u64> {
        let Some(pair) = self.pair() else { return Vec::new() };
        blocks.filter(|block| !pair.is_recorded(*block, self.proof.len(*block))).collect()
    }
}
