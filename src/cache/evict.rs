//! Evicts single blocks of open content.
//!
//! Blocks are evicted only from content that this process alone has open, and whose data file is not handed out. This
//! process does not know the trust of other processes and the pages in their kernel. A write lock keeps all other
//! processes from opening the content. The trust goes first, then the record marks the data as absent, and the data
//! goes last. So a concurrent reader in this process notices the eviction and looks again, and a later one finds a
//! missing block. A crash in between leaves a block that fails its check. The checksum stays, so verified content
//! stays verified.

use std::io;
use std::sync::atomic::Ordering;

use nix::unistd::{Whence, lseek};

use super::block_data::PAGE;
use super::block_file::{BlockFile, EXTENT_BYTES};
use super::evictable::EvictableFile;
use super::lock;
use super::sidecar::{BLOCK_BYTES, BlockRecord, VerificationState, VisitNext};

/// Bytes that are evicted before other processes get a chance to open the content: some milliseconds of work.
const EVICTION_TURN_BYTES: u64 = 16 << 20;

impl EvictableFile for BlockFile {
    fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    fn evict(&self, want: u64, spare_recent: bool) -> u64 {
        // Held to the end: the file is handed out under this lock.
        let backing = lock(&self.backing);
        if backing.strong_count() > 0 {
            return 0;
        }
        let mut freed = 0;
        // In turns: another process that opens the content meanwhile waits for the end of one turn.
        while freed < want && self.sidecar.try_alone() {
            let turn = self.evict_alone((want - freed).min(EVICTION_TURN_BYTES), spare_recent);
            self.sidecar.share();
            freed += turn;
            if turn == 0 {
                break;
            }
        }
        freed
    }
}

impl BlockFile {
    fn evict_alone(&self, want: u64, spare_recent: bool) -> u64 {
        let hand = self.hand.load(Ordering::Relaxed);
        let mut freed = 0;
        for blocks in [hand..u64::MAX, 0..hand] {
            let walked = self.sidecar.each_present(blocks, |block, record| {
                if freed >= want {
                    return VisitNext::Enough;
                }
                self.hand.store(block + 1, Ordering::Relaxed);
                let recent = self.change_trust(|trust| trust.remove_recent(block));
                if spare_recent && recent {
                    return VisitNext::More;
                }
                match self.evict_block(block, record) {
                    Ok(bytes) => freed += bytes,
                    Err(error) => {
                        tracing::debug!(block, %error, "a block cannot be evicted");
                        return VisitNext::Enough;
                    }
                }
                VisitNext::More
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

    fn evict_block(&self, block: u64, record: BlockRecord) -> io::Result<u64> {
        let _writing = lock(self.stripe(block));
        // An older program that opens the content meanwhile stores nothing between the record and the hole.
        if !self.sidecar.try_claim(block)? {
            return Ok(0);
        }
        let evicted = self.evict_claimed(block, record);
        self.sidecar.release(block);
        evicted
    }

    fn evict_claimed(&self, block: u64, record: BlockRecord) -> io::Result<u64> {
        // Complete means that every block is present. Verified means that every checksum is known, which stays so.
        if self.sidecar.status().is_some_and(|status| status.state == VerificationState::Complete) {
            self.sidecar.advance(VerificationState::Partial).map_err(io::Error::other)?;
        }
        let (start, end) =
            (block * BLOCK_BYTES, block * BLOCK_BYTES + u64::from(record.len).next_multiple_of(PAGE as u64));
        let (occupied, stretches) = self.data_in(start, end);
        self.change_trust(|trust| trust.forget(block));
        self.sidecar.mark_evicted(block, record)?;
        // An older program that ignores our lock may have opened it: it notes that first, then looks at the record,
        // then trusts.
        if self.sidecar.is_of_older() {
            self.sidecar.put_record(block, record.len, &record.sum)?;
            return Err(io::Error::other("an older program uses the content"));
        }
        self.lowest_evicted.fetch_min(block, Ordering::AcqRel);
        if !self.data.punch(start, end - start) {
            return Err(io::Error::other("the file system cannot punch holes"));
        }
        Ok(occupied + stretches * EXTENT_BYTES)
    }

    /// Number of bytes between `start` and `end` that are not holes, and of the stretches in which they lie.
    pub(super) fn data_in(&self, start: u64, end: u64) -> (u64, u64) {
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).ok()?;
            lseek(self.data.own()?, at, whence).ok().and_then(|found| u64::try_from(found).ok())
        };
        let (mut at, mut total, mut stretches) = (start, 0, 0);
        while at < end
            && let Some(data) = seek(at, Whence::SeekData).filter(|data| *data < end)
        {
            let hole = seek(data, Whence::SeekHole).map_or(end, |hole| hole.clamp(data + 1, end));
            total += hole - data;
            stretches += 1;
            at = hole;
        }
        (total, stretches)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::block_file::{BlockFile, EXTENT_BYTES};
    use super::super::evictable::EvictableFile as _;
    use super::super::files::BlockPaths;
    use super::super::sidecar::{BLOCK_BYTES, ContentKind};
    use crate::oci::Digest;

    static BYTES: [u8; BLOCK_BYTES as usize] = [7; BLOCK_BYTES as usize];

    /// As another process: the locks belong to the open file.
    fn open(files: &BlockPaths) -> BlockFile {
        BlockFile::open(&files.data, &files.map, ContentKind::Blob, &Digest::sha256(b"x")).unwrap()
    }

    fn filled(dir: &Path) -> (BlockPaths, BlockFile) {
        let files = BlockPaths::of(dir.join("content"));
        let pair = open(&files);
        for block in 0..4 {
            assert!(pair.store(block, &BYTES, blake3::hash(&BYTES).as_bytes()).is_ok());
        }
        (files, pair)
    }

    fn reads_right(pair: &BlockFile) -> bool {
        let mut out = [1; BLOCK_BYTES as usize];
        pair.is_trusted(0) && pair.read_trusted(0, &mut out) && out == BYTES
    }

    #[test]
    fn failed_evictor_keeps_its_trusted_blocks_from_other_evictors() {
        let dir = tempfile::tempdir().unwrap();
        let (files, one) = filled(dir.path());
        let other = open(&files);
        assert!(other.load(0, BLOCK_BYTES as u32).is_some());
        // The first tries to become alone, fails, and is interrupted before it does anything else.
        assert!(!one.sidecar.try_alone());
        assert_eq!(other.evict(BLOCK_BYTES, false), 0);
        assert!(reads_right(&one) && reads_right(&other));
        drop(one);
        assert_eq!(other.evict(BLOCK_BYTES, false), BLOCK_BYTES + EXTENT_BYTES);
        assert!(!other.is_trusted(0));
    }

    #[test]
    fn content_cannot_be_opened_while_blocks_of_it_go_and_can_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let (files, one) = filled(dir.path());
        assert!(one.sidecar.try_alone());
        std::thread::scope(|scope| {
            let opener = scope.spawn(|| open(&files));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!opener.is_finished());
            one.sidecar.share();
            let other = opener.join().unwrap();
            assert!(!one.sidecar.try_alone());
            drop(other);
        });
        assert!(one.sidecar.try_alone());
    }

    #[test]
    fn blocks_of_content_that_an_older_program_had_open_never_go_alone() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (files, one) = filled(dir.path());
        assert_eq!(one.evict(BLOCK_BYTES, false), BLOCK_BYTES + EXTENT_BYTES);
        let map = std::fs::OpenOptions::new().write(true).open(&files.map).unwrap();
        map.write_all_at(&1_700_000_000u64.to_le_bytes(), 1024).unwrap();
        assert_eq!(one.evict(BLOCK_BYTES, false), 0);
        one.sidecar.touch().unwrap();
        assert!(one.sidecar.is_of_older() && one.sidecar.last_used().unwrap() > 1_700_000_000);
        // One that comes in the middle of an eviction finds its block, or a record that is not there.
        let record = one.sidecar.record(1).unwrap();
        assert!(one.evict_block(1, record).is_err());
        assert!(one.load(1, BLOCK_BYTES as u32).is_some());
    }
}
