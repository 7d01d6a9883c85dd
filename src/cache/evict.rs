//! Taking single blocks of open content away.
//!
//! Only of content that this process alone has open: what another process trusts, or hands to its kernel, cannot be known here.
//! Never while the data file is handed out. The idea: while an exclusive lock keeps everybody else from opening the content, the
//! trust goes first, then the record says that the data is not here, and the data goes last. So whoever reads at the same time,
//! in this process, notices that something was evicted and looks again; whoever comes later finds a block that is missing; and a
//! crash in between leaves a block that fails its check. The checksum stays, so verified content stays verified.

use std::io;
use std::sync::atomic::Ordering;

use nix::unistd::{Whence, lseek};

use super::lock;
use super::pair::Pair;
use super::sidecar::{BLOCK, Next, Record, State};

const PAGE: u64 = 4096;

impl Pair {
    /// Evicts blocks until `want` bytes are free, and says how many became free. With `spare_recent`, blocks that were read since
    /// the last look stay, but count as not read from now on.
    pub(super) fn evict(&self, want: u64, spare_recent: bool) -> u64 {
        // Held to the end: the file is handed out under this lock.
        let backing = lock(&self.backing);
        if backing.strong_count() > 0 {
            return 0;
        }
        let freed = if self.sidecar.try_alone() { self.evict_alone(want, spare_recent) } else { 0 };
        self.sidecar.share();
        freed
    }

    fn evict_alone(&self, want: u64, spare_recent: bool) -> u64 {
        let hand = self.hand.load(Ordering::Relaxed);
        let mut freed = 0;
        for blocks in [hand..u64::MAX, 0..hand] {
            let walked = self.sidecar.each_present(blocks, |block, record| {
                if freed >= want {
                    return Next::Enough;
                }
                self.hand.store(block + 1, Ordering::Relaxed);
                let recent = self.change_trust(|trust| trust.remove_recent(block));
                if spare_recent && recent {
                    return Next::More;
                }
                match self.evict_block(block, record) {
                    Ok(bytes) => freed += bytes,
                    Err(error) => {
                        tracing::debug!(block, %error, "a block cannot be evicted");
                        return Next::Enough;
                    }
                }
                Next::More
            });
            if let Err(error) = walked {
                tracing::debug!(%error, "cannot read the sidecar");
            }
            if freed >= want {
                break;
            }
        }
        freed
    }

    fn evict_block(&self, block: u64, record: Record) -> io::Result<u64> {
        let _writing = lock(self.stripe(block));
        // Complete means that every block is here. Verified means that every checksum is known, which stays so.
        if self.sidecar.status().is_some_and(|status| status.state == State::Complete) {
            self.sidecar.advance(State::Partial).map_err(io::Error::other)?;
        }
        let (start, end) = (block * BLOCK, block * BLOCK + u64::from(record.len).next_multiple_of(PAGE));
        let occupied = if self.is_blob() { end - start } else { self.data_in(start, end) };
        self.change_trust(|trust| trust.forget(block));
        self.sidecar.mark_evicted(block, record)?;
        self.lowest_evicted.fetch_min(block, Ordering::AcqRel);
        if !self.punch(start, end - start) {
            return Err(io::Error::other("the file system makes no holes"));
        }
        Ok(occupied)
    }

    /// How many bytes from `start` to `end` are not holes.
    fn data_in(&self, start: u64, end: u64) -> u64 {
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).ok()?;
            lseek(&self.data, at, whence).ok().and_then(|found| u64::try_from(found).ok())
        };
        let (mut at, mut total) = (start, 0);
        while at < end
            && let Some(data) = seek(at, Whence::SeekData).filter(|data| *data < end)
        {
            let hole = seek(data, Whence::SeekHole).map_or(end, |hole| hole.clamp(data + 1, end));
            total += hole - data;
            at = hole;
        }
        total
    }
}
