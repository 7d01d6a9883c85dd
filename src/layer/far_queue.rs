//! Queue of far reads of one stream: one decodes at a time, and of those that wait the one that starts first.
//!
//! In this order each continues the decoder of the read before it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

/// Time limit for a turn. A reader that holds its turn for longer is slower than decoding twice.
const FAR_TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// The queue of one stream.
pub(super) struct FarQueue {
    /// Time limit for a turn.
    limit: Duration,
    state: Mutex<QueueState>,
    /// Wakes those that wait when a turn ends.
    ended: Notify,
}

#[derive(Default)]
struct QueueState {
    /// Turns that have not ended: more than one only after a time limit.
    turns: usize,
    /// Those that wait, by their stream offset and their number.
    waiting: BTreeSet<(u64, u64)>,
    /// Number of the next one.
    number: u64,
}

/// A turn, which ends when it is dropped.
pub(super) struct FarTurn(Arc<FarQueue>);

impl Drop for FarTurn {
    fn drop(&mut self) {
        self.0.lock().turns -= 1;
        self.0.ended.notify_waiters();
    }
}

/// A place in the queue, given up when it is dropped.
struct QueuePlace {
    queue: Arc<FarQueue>,
    key: (u64, u64),
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.queue.lock().waiting.remove(&self.key);
        self.queue.ended.notify_waiters();
    }
}

impl Default for FarQueue {
    fn default() -> Self {
        Self::within(FAR_TURN_TIMEOUT)
    }
}

impl FarQueue {
    fn within(limit: Duration) -> Self {
        Self { limit, state: Mutex::default(), ended: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        crate::io::lock(&self.state)
    }

    /// Waits for the turn of a read at `at`; after the time limit it goes beside the others.
    pub(super) async fn turn(self: &Arc<Self>, at: u64) -> FarTurn {
        let place = {
            let mut state = self.lock();
            state.number += 1;
            let key = (at, state.number);
            state.waiting.insert(key);
            QueuePlace { queue: self.clone(), key }
        };
        let wait = async {
            loop {
                // Registered before the look, so that a turn that ends after it wakes the task.
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                let is_next = {
                    let mut state = self.lock();
                    let is_next = state.turns == 0 && state.waiting.first() == Some(&place.key);
                    state.turns += usize::from(is_next);
                    is_next
                };
                if is_next {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(self.limit, wait).await.is_err() {
            self.lock().turns += 1;
        }
        FarTurn(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_those_that_wait_the_first_in_the_stream_is_next_and_one_that_gave_up_is_forgotten() {
        let queue = Arc::new(FarQueue::default());
        let first = queue.turn(50).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let wait = |at: u64| {
            let (queue, order) = (queue.clone(), order.clone());
            tokio::spawn(async move {
                let _turn = queue.turn(at).await;
                order.lock().unwrap().push(at);
            })
        };
        let tasks = [90, 70, 60, 80].map(wait);
        while queue.lock().waiting.len() < 4 {
            tokio::task::yield_now().await;
        }
        tasks[2].abort();
        while queue.lock().waiting.len() > 3 {
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.ok();
        }
        assert_eq!(*order.lock().unwrap(), [70, 80, 90]);
    }

    #[tokio::test]
    async fn a_turn_that_does_not_end_is_waited_for_as_long_as_its_limit() {
        let queue = Arc::new(FarQueue::within(Duration::from_millis(10)));
        let held = queue.turn(1).await;
        drop(queue.turn(2).await);
        drop(held);
        drop(queue.turn(3).await);
        assert_eq!(queue.lock().turns, 0);
    }
}
