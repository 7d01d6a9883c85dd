//! Recent read failures, so that one `read` of a program waits for the registry once.
//!
//! Holds no content. The kernel requests a page twice when its readahead failed: as part of the range, and at once as
//! the page that the program wants (filemap_read in mm/filemap.c). The second request gets the errno of the first,
//! once. The next read of the program asks the registry again.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use fuser::Errno;

use crate::io::{ByteRange, lock};

/// How long after a failure the kernel's second request may arrive on a busy machine.
const SECOND_REQUEST: Duration = Duration::from_millis(500);

/// Failures that took less time are not noted: asking again costs nothing.
const NOTED_WAIT: Duration = Duration::from_millis(500);

/// Failures held at once. It covers the requests that the kernel has under way.
const MAX_FAILURES: usize = 256;

/// The failures of one mount.
#[derive(Default)]
pub(super) struct FailedReads(Mutex<Vec<FailedRead>>);

struct FailedRead {
    inode: u64,
    range: ByteRange,
    at: Instant,
    errno: Errno,
}

impl FailedReads {
    /// Notes a failed read that began at `begun`, if it took long.
    pub(super) fn note(&self, inode: u64, range: ByteRange, begun: Instant, errno: Errno) {
        if begun.elapsed() >= NOTED_WAIT {
            self.put(FailedRead { inode, range, at: Instant::now(), errno });
        }
    }

    fn put(&self, failed: FailedRead) {
        let mut kept = lock(&self.0);
        kept.retain(|kept| kept.at.elapsed() < SECOND_REQUEST);
        if kept.len() < MAX_FAILURES {
            kept.push(failed);
        }
    }

    /// The errno for a read that begins in a range that failed just now. It is removed with this call.
    pub(super) fn take(&self, inode: u64, offset: u64) -> Option<Errno> {
        let mut kept = lock(&self.0);
        let at = kept.iter().position(|failed| {
            failed.inode == inode
                && (failed.range.start..failed.range.end).contains(&offset)
                && failed.at.elapsed() < SECOND_REQUEST
        })?;
        Some(kept.swap_remove(at).errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_for_a_range_gets_the_answer_of_the_first_once() {
        let failed = |inode, start, end, at| FailedRead {
            inode,
            range: ByteRange::new(start, end),
            at,
            errno: Errno::EIO,
        };
        let reads = FailedReads::default();
        let now = Instant::now();
        reads.put(failed(1, 0, 8192, now));
        assert_eq!((reads.take(2, 0), reads.take(1, 8192)), (None, None));
        assert_eq!((reads.take(1, 4096), reads.take(1, 4096)), (Some(Errno::EIO), None));
        let Some(before) = now.checked_sub(SECOND_REQUEST) else { return };
        reads.put(failed(1, 0, 8192, before));
        assert_eq!(reads.take(1, 0), None, "a read that comes later is one of its own");
        reads.note(1, ByteRange::new(0, 10), Instant::now(), Errno::EIO);
        assert_eq!(reads.take(1, 0), None, "what failed at once is asked for again");
    }
}
