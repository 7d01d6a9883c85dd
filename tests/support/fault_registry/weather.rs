//! Faults that befall requests by chance, from a seed.
//!
//! Never decides what a fault does, only which request meets which. The idea: one draw for each request for a blob, in the
//! order in which they are answered; what was drawn holds for that request alone.

use super::http::Head;
use super::{Fault, State};
use crate::random::Random;

/// A rate and what may happen at it.
pub struct Weather {
    random: Random,
    one_in: u64,
    faults: Vec<Fault>,
    befallen: u64,
}

impl Weather {
    /// About one request for a blob in `one_in` meets one of `faults`, by draws that begin at `seed`.
    pub fn new(seed: u64, one_in: u64, faults: Vec<Fault>) -> Self {
        Self { random: Random::of(seed), one_in, faults, befallen: 0 }
    }

    /// How many requests met one.
    pub(super) fn befallen(&self) -> u64 {
        self.befallen
    }

    /// What befalls the next request.
    fn draw(&mut self) -> Option<Fault> {
        if self.random.below(self.one_in) > 0 || self.faults.is_empty() {
            return None;
        }
        self.befallen += 1;
        let at = self.random.index(self.faults.len());
        Some(match self.faults[at].clone() {
            // Where in a body it happens is a matter of chance too.
            Fault::TruncateAfter { bytes, times } => {
                Fault::TruncateAfter { bytes: self.random.below(bytes + 1), times }
            }
            Fault::StallAfter(bytes) => Fault::StallAfter(self.random.below(bytes + 1)),
            Fault::ResetAfter(bytes) => Fault::ResetAfter(self.random.below(bytes + 1)),
            Fault::FlipBitAt(bytes) => Fault::FlipBitAt(self.random.below(bytes + 1)),
            other => other,
        })
    }
}

impl State {
    /// Draws for this request, and lets what was drawn hold; `calm` ends it.
    pub(super) fn draw(&mut self, head: &Head) -> Option<Fault> {
        if head.method != "GET" || !head.path.contains("/blobs/") {
            return None;
        }
        for (requests, fault) in std::mem::take(&mut self.coming) {
            match requests.checked_sub(1) {
                Some(left) => self.coming.push((left, fault)),
                None => self.faults.push((fault, u32::MAX)),
            }
        }
        let drawn = self.weather.as_mut()?.draw()?;
        self.faults.insert(0, (drawn.clone(), 1));
        Some(drawn)
    }

    /// Takes back what was drawn for a request that is decided.
    pub(super) fn calm(&mut self, drawn: Option<Fault>) {
        if drawn.is_some() {
            self.faults.remove(0);
        }
    }
}
