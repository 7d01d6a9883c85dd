//! Retry policy: attempts, exponential backoff with full jitter, and `Retry-After`.
//!
//! A wait is random between zero and a bound that doubles, so that readers that failed together do not return
//! together. This file only decides whether and when to retry; it neither sleeps nor sends.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant, SystemTime};

use super::RegistryError;

/// The most attempts of one request. Five, as in containers/image and containerd.
const TRIES: u32 = 5;
/// The bound of the first wait.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The bound of later waits. It is low, because a read has to continue within 2 s after the registry is back.
const LONGEST_WAIT: Duration = Duration::from_millis(1600);
/// The time to retry refused connections if the caller can wait. A restarting registry is back by then. A dead one is
/// reported within 30 s, although the kernel asks twice for a page it could not read.
const REFUSED_RETRY_TIME: Duration = Duration::from_secs(10);

/// The behaviour on a failing connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryPolicy {
    /// A user waits for the command: a dead host is reported after the usual number of attempts.
    Brief,
    /// A read in a mount: a dead host may come back.
    Stubborn,
}

/// The remaining retry budget of one request. Monotonic, so clock jumps do not matter.
#[derive(Debug)]
pub(super) struct RetryBudget {
    started: Instant,
    budget: Duration,
    persistence: RetryPolicy,
    /// The number of failed attempts.
    failed: u32,
    /// The failed attempts that count; those with a `Retry-After` of 1 s or more do not.
    counted: u32,
}

impl RetryBudget {
    /// A budget of `budget` from now on.
    pub(super) fn new(budget: Duration, persistence: RetryPolicy) -> Self {
        Self { started: Instant::now(), budget, persistence, failed: 0, counted: 0 }
    }

    /// The same budget, restarted now.
    pub(super) fn anew(&self) -> Self {
        Self::new(self.budget, self.persistence)
    }

    /// The rest of the budget.
    pub(super) fn left(&self) -> Duration {
        self.budget.saturating_sub(self.started.elapsed())
    }

    /// The wait before the next attempt, or the error to give up with.
    pub(super) fn after(&mut self, error: RegistryError) -> Result<Duration, RegistryError> {
        self.failed += 1;
        let named = error.retry_after();
        if named.is_none_or(|wait| wait < Duration::from_secs(1)) {
            self.counted += 1;
        }
        let refused = error.is_connecting() && self.persistence == RetryPolicy::Stubborn;
        let enough = if refused {
            self.started.elapsed() >= REFUSED_RETRY_TIME.min(self.budget)
        } else {
            self.counted >= TRIES
        };
        let wait = named.unwrap_or_default().saturating_add(jittered(bound(self.failed), random()));
        if error.is_passing() && !enough && wait < self.left() {
            return Ok(wait);
        }
        Err(self.exhausted(error))
    }

    /// Wraps `error` as the last of several failures, if there were several.
    fn exhausted(&self, error: RegistryError) -> RegistryError {
        if self.failed < 2 {
            return error;
        }
        RegistryError::Exhausted {
            tries: self.failed,
            elapsed: self.started.elapsed(),
            source: Box::new(error),
        }
    }
}

/// The bound of the wait after this many failures.
fn bound(failed: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failed.saturating_sub(1).min(8)).min(LONGEST_WAIT)
}

/// `random` scaled to `0..=bound`.
fn jittered(bound: Duration, random: u32) -> Duration {
    bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// A random number without a dependency: every `RandomState` has its own keys.
fn random() -> u32 {
    // Truncation leaves the low half, which is as random as the whole.
    RandomState::new().hash_one(0u8) as u32
}

/// Parses `Retry-After` (RFC 9110 section 10.2.3): seconds or a date. A date in the past means now.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    Some(http_date(value)?.duration_since(now).unwrap_or_default())
}

/// Parses an IMF-fixdate (RFC 9110 section 5.6.7), the only form that senders may use: `Sun, 06 Nov 1994 08:49:37
/// GMT`.
fn http_date(value: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = value.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1..=31).contains(&day) && (1970..10_000).contains(&year);
    if words.next() != Some("GMT") || !in_range || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 by Howard Hinnant's `days_from_civil`: years start in March, so the leap day is the last one.
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (shifted / 400, shifted % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<Duration>) -> RegistryError {
        RegistryError::Status {
            host: "r".into(),
            what: "x".into(),
            status,
            message: String::new(),
            retry_after,
        }
    }

    #[test]
    fn five_tries_and_no_more() {
        let mut patience = RetryBudget::new(Duration::from_secs(60), RetryPolicy::Stubborn);
        for _ in 0..4 {
            assert!(patience.after(status(503, None)).is_ok());
        }
        let error = patience.after(status(503, None)).unwrap_err();
        assert!(matches!(error, RegistryError::Exhausted { tries: 5, .. }), "{error:?}");
    }

    #[test]
    fn a_final_answer_is_given_as_it_is() {
        let mut patience = RetryBudget::new(Duration::from_secs(60), RetryPolicy::Brief);
        assert!(matches!(patience.after(status(418, None)), Err(RegistryError::Status { status: 418, .. })));
    }

    #[test]
    fn a_named_wait_is_kept_and_one_past_the_budget_is_not_waited_for() {
        let mut patience = RetryBudget::new(Duration::from_secs(60), RetryPolicy::Brief);
        let wait = patience.after(status(429, Some(Duration::from_secs(7)))).unwrap();
        assert!(wait >= Duration::from_secs(7));
        assert!(patience.after(status(429, Some(Duration::from_secs(61)))).is_err());
    }

    #[test]
    fn a_wait_of_any_length_is_an_error_and_no_overflow() {
        for _ in 0..50 {
            let mut patience = RetryBudget::new(Duration::from_secs(60), RetryPolicy::Brief);
            for _ in 0..3 {
                assert!(patience.after(status(503, None)).is_ok());
            }
            assert!(patience.after(status(503, Some(Duration::from_secs(u64::MAX)))).is_err());
        }
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        let bounds: Vec<_> = (1..7).map(|failed| bound(failed).as_millis()).collect();
        assert_eq!(bounds, [200, 400, 800, 1600, 1600, 1600]);
        assert_eq!(jittered(bound(2), 0), Duration::ZERO);
        assert_eq!(jittered(bound(2), u32::MAX), bound(2));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // `date -d '1994-11-06 08:49:37 UTC' +%s` prints 784111777.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        let at = |value| retry_after(value, now);
        assert_eq!(at("120"), Some(Duration::from_secs(120)));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(at("Sun, 06 Nov 1994 08:48:00 GMT"), Some(Duration::ZERO));
        // `date -d '2024-02-29 00:00:00 UTC' +%s` prints 1709164800.
        assert_eq!(
            http_date("Thu, 29 Feb 2024 00:00:00 GMT"),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_164_800))
        );
        for bad in ["", "soon", "-1", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 0 Nov 1994 08:49:37 GMT"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }
}
