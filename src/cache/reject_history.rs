//! Reject history: number and time of the rejections of one content, which delay its next fetch.

use std::time::{Duration, Instant};

/// Pause before the third fetch of bytes that were wrong twice; it doubles with each fetch. The second fetch has no
/// pause.
const FIRST_REFETCH_PAUSE: Duration = Duration::from_secs(1);
/// Upper bound of these pauses.
const MAX_REFETCH_PAUSE: Duration = Duration::from_secs(64);

/// Number of rejections, and the time of the last one.
#[derive(Debug, Default)]
pub(super) struct RejectHistory {
    times: u32,
    last: Option<Instant>,
}

impl RejectHistory {
    pub(super) fn note(&mut self) {
        self.times = self.times.saturating_add(1);
        self.last = Some(Instant::now());
    }

    /// Whether a reader may cause another fetch.
    pub(super) fn allows_fetch(&self) -> bool {
        let Some(doublings) = self.times.checked_sub(2) else { return true };
        let pause = FIRST_REFETCH_PAUSE.saturating_mul(1 << doublings.min(6)).min(MAX_REFETCH_PAUSE);
        self.last.is_none_or(|last| last.elapsed() >= pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_are_fetched_again_at_once_and_then_ever_less_often() {
        let mut history = RejectHistory::default();
        history.note();
        assert!(history.allows_fetch(), "the second fetch is at once");
        history.note();
        assert!(!history.allows_fetch());
        let ago = |secs| Instant::now().checked_sub(Duration::from_secs(secs));
        history.last = ago(1);
        assert!(history.allows_fetch());
        history.times = 40;
        history.last = ago(60);
        assert!(!history.allows_fetch());
        history.last = ago(64);
        assert!(history.allows_fetch());
    }
}
