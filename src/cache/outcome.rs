//! How far content has got, and what follows when it was compared with its digest.
//!
//! Nothing here reads for a reader or fetches. The idea: what this process found out counts at once, what lies on disk counts for
//! everybody, and whoever looks at the disk learns what other processes found out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::blob::{Inner, blocking};
use super::pair::Pair;
use super::proof::Verdict;
use super::sidecar::{Kind, State};
use crate::io::{Fault, ReadError};
use crate::oci::Digest;

impl Inner {
    /// Finds out what other processes left: only content that is complete and was not compared yet stays unsettled.
    pub(super) fn settle_at_open(&self) {
        let settled = match (&self.pair, self.kind) {
            (_, Kind::Blob) if self.size == 0 => {
                self.settle_empty();
                true
            }
            (Some(pair), Kind::Blob) => {
                let state = self.state();
                self.whole.store(state == State::Verified, Ordering::Relaxed);
                state == State::Verified || state == State::Poisoned || !self.proof.all_recorded(pair)
            }
            (Some(pair), Kind::Stream | Kind::Claim) => {
                if self.proof.all_recorded(pair) {
                    self.whole.store(true, Ordering::Relaxed);
                    self.advance(pair, State::Complete);
                }
                true
            }
            (None, _) => true,
        };
        if settled && self.settled.set(()).is_err() {
            // A new cell is empty.
            tracing::debug!("settled twice");
        }
        if let Some(pair) = &self.pair
            && let Err(error) = pair.sidecar.touch()
        {
            tracing::debug!(%error, "cannot note the last use");
        }
    }

    /// Nothing is either what the digest names or it is not: no byte has to be waited for.
    fn settle_empty(&self) {
        match self.digest.same_algorithm(b"") {
            Some(actual) if actual != self.digest => self.poison(&actual),
            _ => {
                self.proven.store(true, Ordering::Release);
                self.tell(State::Verified);
                if let Some(pair) = &self.pair {
                    self.proof.persist(pair);
                }
            }
        }
    }

    /// Compares content that another process completed, but did not live to compare, before anything of it is served.
    pub(super) async fn settle(self: &Arc<Self>) -> Result<(), ReadError> {
        let settled = self.settled.get_or_try_init(|| {
            let inner = Arc::clone(self);
            blocking(&self.digest, move || {
                if let Some(pair) = &inner.pair
                    && inner.conclude(pair)
                {
                    inner.proof.persist(pair);
                }
            })
        });
        settled.await?;
        self.refuse_poisoned()
    }

    pub(super) fn state(&self) -> State {
        if self.poisoned.load(Ordering::Acquire) {
            return State::Poisoned;
        }
        let status = self.pair.as_ref().and_then(|pair| pair.sidecar.status());
        let state = match status.map(|status| status.state) {
            Some(State::Poisoned) => State::Poisoned,
            _ if self.proven.load(Ordering::Acquire) => State::Verified,
            Some(state) => state,
            None => State::Partial,
        };
        if matches!(state, State::Verified | State::Poisoned) {
            self.tell(state);
        }
        state
    }

    /// Wakes those who wait for the end of the comparison with the digest.
    fn tell(&self, state: State) {
        if !self.told.load(Ordering::Acquire) {
            self.verdict.send_replace(Some(state));
            self.told.store(true, Ordering::Release);
            if state == State::Poisoned {
                // Fails only when nobody listens.
                self.distrusted.send(self.digest.clone()).ok();
            }
        }
    }

    pub(super) fn refuse_poisoned(&self) -> Result<(), ReadError> {
        if self.state() != State::Poisoned {
            return Ok(());
        }
        self.poisoned.store(true, Ordering::Release);
        Err(ReadError::new(
            Fault::Mismatch,
            format!("{} is poisoned: its bytes had another digest", self.digest),
        ))
    }

    /// From now on nobody reads this content any more.
    pub(super) fn poison(&self, actual: &Digest) {
        if self.poisoned.swap(true, Ordering::AcqRel) {
            return;
        }
        self.tell(State::Poisoned);
        tracing::error!(
            expected = %self.digest,
            %actual,
            "the bytes of a blob do not match its digest: every read of it fails from now on"
        );
        if let Some(pair) = &self.pair
            && let Err(error) = pair.poison()
        {
            let error = ReadError::from(error).chain();
            tracing::warn!(digest = %self.digest, error, "cannot write down that a blob is poisoned");
        }
    }

    /// Compares the whole content, all of which is recorded, with its digest. `true` when it is equal.
    pub(super) fn conclude(&self, pair: &Pair) -> bool {
        match self.proof.conclude(pair) {
            Verdict::Digest(actual) if actual == self.digest => {
                self.proven.store(true, Ordering::Release);
                self.tell(State::Verified);
                true
            }
            Verdict::Digest(actual) => {
                self.poison(&actual);
                false
            }
            Verdict::Missing => {
                self.advance(pair, State::Partial);
                false
            }
        }
    }

    pub(super) fn advance(&self, pair: &Pair, next: State) {
        if let Err(error) = pair.sidecar.advance(next) {
            let error = ReadError::from(error).chain();
            tracing::debug!(digest = %self.digest, error, "cannot change the state");
        }
    }
}
