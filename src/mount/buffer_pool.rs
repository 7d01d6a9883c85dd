//! Buffer pool for reads that have to wait.
//!
//! The kernel clears a fresh megabyte page by page and frees it after one reply, which costs more than filling it. A
//! user of a buffer fills every byte that it replies with, so old bytes do not reach a reply.

use std::sync::Mutex;

use crate::io::lock;

/// Idle buffers in the pool. A READ is at most 1 MiB, so this is at most 8 MiB.
const BUFFER_CAPACITY: usize = 8;

#[derive(Default)]
pub(super) struct BufferPool {
    /// Invariant: at most [`BUFFER_CAPACITY`] buffers.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// A buffer of at least `len` bytes, with arbitrary content.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let kept = lock(&self.buffers).pop();
        match kept {
            Some(buffer) if buffer.len() >= len => buffer,
            _ => vec![0; len],
        }
    }

    /// Returns `buffer` to the pool, if there is room.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut buffers = lock(&self.buffers);
        if buffers.len() < BUFFER_CAPACITY {
            buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_long_enough_and_few() {
        let spare = BufferPool::default();
        spare.give(vec![1; 10]);
        assert!(spare.take(20).len() >= 20);
        for _ in 0..BUFFER_CAPACITY + 3 {
            spare.give(vec![1; 30]);
        }
        assert_eq!(spare.buffers.lock().unwrap().len(), BUFFER_CAPACITY);
        assert_eq!(spare.take(20).len(), 30);
    }
}
