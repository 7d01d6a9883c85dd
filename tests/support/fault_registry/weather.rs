//! Faults that befall requests by chance, from a seed.
//!
//! Never decides what a fault does, only which request meets which. The idea: one draw for each request for a blob, in the
//! order in which they are answered; what was drawn holds for that request alone.

use super::http::Head;
use super::{Fault, State};

/// A rate and what may happen at it.
pub struct Weather {
    state: u64,
    one_in: u64,
    faults: Vec<Fault>,
    befallen: u64,
}

impl Weather {
    /// About one request for a blob in `one_in` meets one of `faults`, by draws that begin at `seed`.
    pub fn new(seed: u64, one_in: u64, faults: Vec<Fault>) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, one_in, faults, befallen: 0 }
    }

    /// How many requests met one.
    pub(super) fn befallen(&self) -> u64 {
        self.befallen
    }

    /// What befalls the next request.
    fn draw(&mut self) -> Option<Fault> {
        if self.below(self.one_in) > 0 || self.faults.is_empty() {
            return None;
        }
        self.befallen += 1;
        let at = self.below(self.faults.len() as u64) as usize;
        Some(match self.faults[at].clone() {
            // Where in a body it happens is a matter of chance too.
            Fault::TruncateAfter { bytes, times } => {
                Fault::TruncateAfter { bytes: self.below(bytes + 1), times }
            }
            Fault::StallAfter(bytes) => Fault::StallAfter(self.below(bytes + 1)),
            Fault::ResetAfter(bytes) => Fault::ResetAfter(self.below(bytes + 1)),
            Fault::FlipBitAt(bytes) => Fault::FlipBitAt(self.below(bytes + 1)),
            other => other,
        })
    }

    /// A number below `bound` (xorshift64*).
    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
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
