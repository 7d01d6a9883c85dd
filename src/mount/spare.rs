//! Buffers of reads that had to wait, kept for the next ones.
//!
//! The idea: a fresh megabyte is cleared by the kernel page by page and given back after one answer, which costs more than
//! filling it. Whoever takes a buffer fills what it uses of it, so old bytes never reach a reply.

use std::sync::{Mutex, PoisonError};

/// Buffers that are kept while nobody uses them. A READ is at most 1 MiB, so this is at most 8 MiB.
const KEPT: usize = 8;

#[derive(Default)]
pub(super) struct Spare {
    /// Guards nothing beyond itself.
    /// Invariant: at most [`KEPT`] of them.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Spare {
    /// A buffer of at least `len` bytes, with anything in them.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(buffer) if buffer.len() >= len => buffer,
            _ => vec![0; len],
        }
    }

    /// Keeps `buffer`, if there is room.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < KEPT {
            buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_long_enough_and_few() {
        let spare = Spare::default();
        spare.give(vec![1; 10]);
        assert!(spare.take(20).len() >= 20);
        for _ in 0..KEPT + 3 {
            spare.give(vec![1; 30]);
        }
        assert_eq!(spare.buffers.lock().unwrap().len(), KEPT);
        assert_eq!(spare.take(20).len(), 30);
    }
}
