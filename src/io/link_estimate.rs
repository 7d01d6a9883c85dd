//! Link estimate: delay and throughput of an origin, measured on its fetches, and their product.
//!
//! The bandwidth-delay product is the number of bytes that arrive between a request and its first byte. A reader with
//! that many bytes requested ahead does not wait for the delay, and more of them are no gain. Fetches that readers
//! wait for are counted, so that readahead yields to them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::sync::lock;

/// Bytes over which throughput and use are averaged: a few seconds of a slow link.
const AVERAGED_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

/// Bytes that must have streamed before their time means anything.
const MIN_MEASURED_BYTES: f64 = 64.0 * 1024.0;

/// The product is at most this many times the bytes that were measured: the first figures are noisy.
const TRUSTED_GROWTH: u64 = 4;

/// Bytes of readahead that count as unused in addition: a little use proves little.
const UNPROVEN_BYTES: f64 = 1024.0 * 1024.0;

/// Time to the first byte from which a link is long. It was so for every one of [`MIN_LONG_SAMPLES`] fetches at least:
/// on a busy machine a near origin takes as long now and then.
const LONG_DELAY: Duration = Duration::from_millis(15);
const MIN_LONG_SAMPLES: u32 = 8;

/// Longest wait of readahead for fetches that readers wait for. A reader that arrives meanwhile fetches by itself.
const YIELD_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether requests wait long for their first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLength {
    /// No, or it is unknown.
    Short,
    /// Yes, all of them.
    Long,
}

/// Figures of a link at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkMeasure {
    /// Bandwidth-delay product, in bytes; 0 before it is known.
    pub product: u64,
    /// Bytes per second while bodies stream; 0 before it is known.
    pub throughput: u64,
    /// The share of earlier readahead that readers used, from 0 to 1; 0 before any.
    pub used: f64,
    /// Whether requests wait long for their first byte.
    pub length: LinkLength,
}

/// Delay and throughput of one origin, over all its content.
#[derive(Debug)]
pub struct LinkEstimate {
    figures: Mutex<LinkFigures>,
    /// Fetches that readers wait for.
    demanded: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct LinkFigures {
    /// Time from a request to its first byte; `None` before the first response.
    delay: Option<Duration>,
    /// The shortest of those times, and their number.
    shortest: Option<Duration>,
    samples: u32,
    /// Fetches that have not ended.
    open: usize,
    /// Fetches whose first byte has arrived.
    streaming: usize,
    /// The time up to which `seconds` counts.
    counted: Option<Instant>,
    /// Averaged bytes, and the seconds in which they streamed.
    bytes: f64,
    seconds: f64,
    /// All bytes since the start.
    measured: u64,
    /// Averaged bytes of readahead that readers used, and those that they did not.
    used: f64,
    unused: f64,
}

impl Default for LinkEstimate {
    fn default() -> Self {
        Self { figures: Mutex::default(), demanded: watch::Sender::new(0) }
    }
}

impl LinkEstimate {
    /// Begins to measure a fetch that is requested now.
    pub fn begin(self: &Arc<Self>, now: Instant) -> LinkTransfer {
        let mut figures = lock(&self.figures);
        let is_alone = figures.open == 0;
        figures.open += 1;
        LinkTransfer { link: Arc::clone(self), requested: now, is_alone, is_streaming: false }
    }

    /// The figures of the link now.
    pub fn measure(&self) -> LinkMeasure {
        lock(&self.figures).measure()
    }

    /// Bandwidth-delay product, in bytes; 0 before it is known.
    pub fn product(&self) -> u64 {
        self.measure().product
    }

    /// Records the readahead of a reader that has stopped, in bytes.
    pub fn note_use(&self, used: u64, unused: u64) {
        let mut figures = lock(&self.figures);
        figures.used += used as f64;
        figures.unused += unused as f64;
        if figures.used + figures.unused > AVERAGED_BYTES {
            figures.used /= 2.0;
            figures.unused /= 2.0;
        }
    }

    /// Counts a fetch that a reader waits for, until the result is dropped.
    pub fn demand(self: &Arc<Self>) -> DemandedFetch {
        self.demanded.send_modify(|count| *count += 1);
        DemandedFetch(Arc::clone(self))
    }

    /// Whether a reader waits for a fetch.
    pub fn is_demanded(&self) -> bool {
        *self.demanded.borrow() > 0
    }

    /// Waits while readers wait for fetches, within a deadline.
    pub async fn yield_to_readers(&self) {
        self.yield_within(YIELD_TIMEOUT).await;
    }

    async fn yield_within(&self, limit: Duration) {
        let mut demanded = self.demanded.subscribe();
        // Both errors mean that readahead begins beside them.
        let _ended = tokio::time::timeout(limit, demanded.wait_for(|count| *count == 0)).await;
    }
}

impl LinkFigures {
    fn measure(&self) -> LinkMeasure {
        let is_known = self.bytes >= MIN_MEASURED_BYTES;
        let throughput = if is_known { self.bytes / self.seconds.max(1e-6) } else { 0.0 };
        let delay = self.delay.unwrap_or_default();
        // A float beyond the integers becomes the largest of them.
        let product = (throughput * delay.as_secs_f64()) as u64;
        let is_long =
            self.samples >= MIN_LONG_SAMPLES && self.shortest.is_some_and(|shortest| shortest >= LONG_DELAY);
        LinkMeasure {
            product: product.min(self.measured.saturating_mul(TRUSTED_GROWTH)),
            throughput: throughput as u64,
            used: self.used / (self.used + self.unused + UNPROVEN_BYTES),
            length: if is_long { LinkLength::Long } else { LinkLength::Short },
        }
    }

    /// Counts the time in which at least one fetch streamed.
    fn count_time(&mut self, now: Instant) {
        if let Some(counted) = self.counted.filter(|_| self.streaming > 0) {
            self.seconds += now.saturating_duration_since(counted).as_secs_f64();
        }
        self.counted = Some(self.counted.map_or(now, |counted| counted.max(now)));
    }

    /// Records the time to the first byte. Beside other fetches a first byte also waits for theirs, so only a
    /// shorter time counts then.
    fn note_delay(&mut self, sample: Duration, is_alone: bool) {
        self.shortest = Some(self.shortest.map_or(sample, |shortest| shortest.min(sample)));
        self.samples = self.samples.saturating_add(1);
        self.delay = Some(match self.delay {
            Some(known) if sample > known && is_alone => known + (sample - known) / 4,
            Some(known) => known.min(sample),
            None => sample,
        });
    }
}

/// A fetch that is measured until it is dropped.
#[derive(Debug)]
pub struct LinkTransfer {
    link: Arc<LinkEstimate>,
    requested: Instant,
    /// Whether no other fetch was under way at the request.
    is_alone: bool,
    is_streaming: bool,
}

impl LinkTransfer {
    /// Records that the next `bytes` have arrived.
    pub fn receive(&mut self, bytes: u64, now: Instant) {
        let mut figures = lock(&self.link.figures);
        figures.count_time(now);
        figures.measured += bytes;
        // Their time begins with the first ones, unless others streamed before.
        if self.is_streaming || figures.streaming > 0 {
            figures.bytes += bytes as f64;
        }
        if !self.is_streaming {
            self.is_streaming = true;
            figures.streaming += 1;
            figures.note_delay(now.saturating_duration_since(self.requested), self.is_alone);
        }
        if figures.bytes > AVERAGED_BYTES {
            figures.bytes /= 2.0;
            figures.seconds /= 2.0;
        }
    }
}

impl Drop for LinkTransfer {
    fn drop(&mut self) {
        let mut figures = lock(&self.link.figures);
        figures.open -= 1;
        figures.streaming -= usize::from(self.is_streaming);
    }
}

/// A fetch that a reader waits for, counted until it is dropped.
#[derive(Debug)]
pub struct DemandedFetch(Arc<LinkEstimate>);

impl Drop for DemandedFetch {
    fn drop(&mut self) {
        self.0.demanded.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    /// A fetch of `bytes` that is requested at `at` milliseconds, waits for `delay` and takes `lasts`.
    fn fetch(link: &Arc<LinkEstimate>, began: Instant, at: u64, delay: u64, bytes: u64, lasts: u64) {
        let time = |ms: u64| began + Duration::from_millis(ms);
        let mut transfer = link.begin(time(at));
        let chunks = bytes / (16 * KIB);
        for chunk in 0..=chunks {
            let bytes = if chunk == 0 { 1 } else { 16 * KIB };
            transfer.receive(
                bytes,
                time(at + delay) + Duration::from_millis(lasts) * chunk as u32 / chunks as u32,
            );
        }
    }

    fn is_near(actual: u64, expected: u64) -> bool {
        actual.abs_diff(expected) <= expected / 20
    }

    #[test]
    fn the_product_of_a_steady_link_is_its_delay_times_its_throughput() {
        let (link, began) = (Arc::new(LinkEstimate::default()), Instant::now());
        assert_eq!(link.product(), 0);
        // 2 MiB a second after 200 ms; the pauses between the fetches are no time of the link.
        for round in 0..40 {
            fetch(&link, began, round * 5000, 200, MIB, 500);
        }
        assert!(is_near(link.product(), 2 * MIB / 5), "{}", link.product());
        // The link becomes faster, and the product follows.
        for round in 40..160 {
            fetch(&link, began, round * 5000, 200, MIB, 100);
        }
        assert!(is_near(link.product(), 2 * MIB), "{}", link.product());
        assert!(is_near(link.measure().throughput, 10 * MIB), "{}", link.measure().throughput);
    }

    #[test]
    fn fetches_side_by_side_measure_the_link_and_not_their_share_of_it() {
        let (link, began) = (Arc::new(LinkEstimate::default()), Instant::now());
        let time = |ms: u64| began + Duration::from_millis(ms);
        fetch(&link, began, 0, 100, 64 * KIB, 10);
        let mut four: Vec<_> = (0..4).map(|_| link.begin(time(1000))).collect();
        // Each first byte waits for those of the others, and each gets a quarter of 4 MiB a second.
        for step in 0..1024 {
            four[step as usize % 4].receive(16 * KIB, time(1100) + Duration::from_micros(3906) * step);
        }
        drop(four);
        let expected = 4 * MIB / 10;
        assert!(is_near(link.product(), expected), "{} of {expected}", link.product());
    }

    #[test]
    fn a_link_is_long_if_every_one_of_several_requests_waited() {
        let (link, began) = (Arc::new(LinkEstimate::default()), Instant::now());
        for round in 0..u64::from(MIN_LONG_SAMPLES) {
            assert_eq!(link.measure().length, LinkLength::Short, "{round} requests");
            fetch(&link, began, round * 1000, 40, 64 * KIB, 10);
        }
        assert_eq!(link.measure().length, LinkLength::Long);
        fetch(&link, began, 100_000, 2, 64 * KIB, 10);
        fetch(&link, began, 101_000, 40, 64 * KIB, 10);
        assert_eq!(link.measure().length, LinkLength::Short, "one request was prompt");
    }

    #[test]
    fn a_burst_of_a_few_bytes_is_no_fast_link() {
        let (link, began) = (Arc::new(LinkEstimate::default()), Instant::now());
        fetch(&link, began, 0, 200, 16 * KIB, 0);
        assert_eq!(link.product(), 0, "of so few bytes");
        fetch(&link, began, 1000, 200, 256 * KIB, 0);
        assert!(link.product() <= 4 * (272 * KIB + 2), "{}", link.product());
    }

    #[test]
    fn use_is_a_share_of_the_latest_readahead() {
        let link = LinkEstimate::default();
        assert_eq!(link.measure().used, 0.0);
        link.note_use(2 * MIB, MIB);
        assert_eq!(link.measure().used, 0.5);
        for _ in 0..50 {
            link.note_use(4 * MIB, 0);
        }
        assert!(link.measure().used > 0.8, "{}", link.measure().used);
        for _ in 0..10 {
            link.note_use(0, 4 * MIB);
        }
        assert!(link.measure().used < 0.2, "{}", link.measure().used);
    }

    #[tokio::test]
    async fn readahead_waits_for_demanded_fetches_and_not_for_ever() {
        let link = Arc::new(LinkEstimate::default());
        link.yield_to_readers().await;
        let (one, other) = (link.demand(), link.demand());
        let waiting = tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.yield_within(Duration::from_secs(600)).await }
        });
        drop(one);
        link.yield_within(Duration::from_millis(20)).await;
        assert!(link.is_demanded() && !waiting.is_finished());
        drop(other);
        waiting.await.unwrap();
        assert!(!link.is_demanded());
    }
}
