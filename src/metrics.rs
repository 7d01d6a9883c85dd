//! Metrics of this process: bytes, requests, cache hits, and read latency.
//!
//! Metrics decide nothing: the measured code does not read them. The counters are process-wide, like its open files
//! and memory, so they are statics. A layer needs no handle to count, and two mounts in one process are counted
//! together. Names and labels contain nothing from a URL, a header or a credential.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes of files that this process served to readers. Reads by passthrough are not included.
pub static BYTES_SERVED: Counter = Counter::new();
/// Bytes of bodies received from registries and storage.
pub static BYTES_FETCHED: Counter = Counter::new();
/// Retries after a failed attempt.
pub static RETRIES: Counter = Counter::new();
/// Reads that ended in an error.
pub static READ_ERRORS: Counter = Counter::new();
/// Responses of registries, token servers and storage, by status.
pub static REQUESTS: StatusCounters = StatusCounters::new();
/// Lookups of blocks of stored blobs: cached, or waited for.
pub static BLOBS: CacheLookups = CacheLookups::new();
/// Lookups of blocks of decoded streams: cached, or waited for.
pub static STREAMS: CacheLookups = CacheLookups::new();
/// Evicted blobs and parts of blobs.
pub static EVICTIONS: Counter = Counter::new();
/// Evicted bytes.
pub static EVICTED_BYTES: Counter = Counter::new();
/// Latency of reads, from the kernel's request to the reply.
pub static READS: Histogram = Histogram::new();
/// Files that the kernel holds open.
pub static OPEN_FILES: Gauge = Gauge::new();

/// Calls of an orchestrator, by method and outcome.
pub static CALLS: CallCounters = CallCounters::new();

/// Calls by method and outcome.
#[derive(Debug)]
pub struct CallCounters(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl CallCounters {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Counts a call.
    pub fn note(&self, method: &'static str, code: &'static str) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *calls.entry((method, code)).or_default() += 1;
    }

    /// One number for each observed method and outcome.
    fn samples(&self) -> Vec<MetricSample> {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = |(&(method, code), count): (&(&str, &str), &u64)| {
            whole(vec![("method", method.to_owned()), ("code", code.to_owned())], *count)
        };
        calls.iter().map(sample).collect()
    }
}

/// A monotonic counter.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Subtracts one.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Cache lookups: hits and misses.
#[derive(Debug)]
pub struct CacheLookups {
    hits: Counter,
    misses: Counter,
}

impl CacheLookups {
    const fn new() -> Self {
        Self { hits: Counter::new(), misses: Counter::new() }
    }

    /// Counts a read of `wanted` blocks, `missing` of which were not cached.
    pub fn note(&self, wanted: u64, missing: u64) {
        self.hits.add(wanted.saturating_sub(missing));
        self.misses.add(missing);
    }
}

/// Valid HTTP statuses.
const STATUSES: std::ops::Range<u16> = 100..600;

/// Responses by status, and requests without a response.
#[derive(Debug)]
pub struct StatusCounters {
    /// By status, from 100 on.
    answered: [Counter; (STATUSES.end - STATUSES.start) as usize],
    unanswered: Counter,
}

impl StatusCounters {
    const fn new() -> Self {
        Self { answered: [const { Counter::new() }; 500], unanswered: Counter::new() }
    }

    /// Counts a response, or `None` for a request without one: no connection, a broken one, or a timeout.
    pub fn note(&self, status: Option<u16>) {
        let counter = status
            .and_then(|status| self.answered.get(usize::from(status.checked_sub(STATUSES.start)?)))
            .unwrap_or(&self.unanswered);
        counter.add(1);
    }
}

/// Upper bounds of the histogram's buckets in microseconds: from a reply out of memory to the time limit of a read.
const BOUNDS: [u64; 13] = [
    100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000, 30_000_000,
    60_000_000,
];

/// A latency histogram.
#[derive(Debug)]
pub struct Histogram {
    /// One for each bound, not cumulative, and one above the last bound.
    buckets: [Counter; BOUNDS.len() + 1],
    nanos: Counter,
}

impl Histogram {
    const fn new() -> Self {
        Self { buckets: [const { Counter::new() }; BOUNDS.len() + 1], nanos: Counter::new() }
    }

    /// Counts an event that took `time`.
    pub fn note(&self, time: Duration) {
        let micros = time.as_nanos().div_ceil(1000);
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) < micros);
        self.buckets[bucket].add(1);
        self.nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// The kind of a metric family, as named in the Prometheus text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative counts by upper bound, with their number and sum.
    Histogram,
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricValue {
    /// A number.
    Whole(u64),
    /// A duration, written in seconds.
    Time(Duration),
}

/// One sample of a family.
#[derive(Clone, Debug)]
pub struct MetricSample {
    /// Suffix of the family's name: `_bucket`, `_sum`, `_count`, or empty.
    pub suffix: &'static str,
    /// Labels that distinguish the sample from the others.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: MetricValue,
}

/// A metric family.
#[derive(Clone, Debug)]
pub struct MetricFamily {
    /// The name with its unit, by the conventions of Prometheus.
    pub name: &'static str,
    /// The help text.
    pub help: &'static str,
    /// The kind.
    pub kind: MetricType,
    /// The samples.
    pub samples: Vec<MetricSample>,
}

impl MetricFamily {
    /// A family of one number without labels.
    pub fn single(name: &'static str, help: &'static str, kind: MetricType, value: u64) -> Self {
        let samples = vec![MetricSample { suffix: "", labels: Vec::new(), value: MetricValue::Whole(value) }];
        Self { name, help, kind, samples }
    }
}

/// All metrics with their current values.
pub fn families() -> Vec<MetricFamily> {
    let counter =
        |name, help, counted: &Counter| MetricFamily::single(name, help, MetricType::Counter, counted.get());
    let lookups = |name, help, of: fn(&CacheLookups) -> &Counter| MetricFamily {
        name,
        help,
        kind: MetricType::Counter,
        samples: [("blob", &BLOBS), ("stream", &STREAMS)]
            .map(|(kind, lookups)| whole(vec![("kind", kind.to_owned())], of(lookups).get()))
            .into(),
    };
    let mut families = vec![
        counter("ocifs_bytes_served_total", "Bytes of files served to readers.", &BYTES_SERVED),
        counter(
            "ocifs_bytes_fetched_total",
            "Bytes of bodies that registries and storage sent.",
            &BYTES_FETCHED,
        ),
        requests(),
        counter("ocifs_retries_total", "Tries after a failed one.", &RETRIES),
        lookups("ocifs_cache_hits_total", "Blocks that a read found in the cache.", |lookups| &lookups.hits),
        lookups("ocifs_cache_misses_total", "Blocks that a read had to wait for.", |lookups| &lookups.misses),
        counter(
            "ocifs_cache_evictions_total",
            "Blobs and parts of blobs evicted from the cache.",
            &EVICTIONS,
        ),
        counter("ocifs_cache_evicted_bytes_total", "Bytes evicted from the cache.", &EVICTED_BYTES),
        counter("ocifs_read_errors_total", "Reads that ended in an error.", &READ_ERRORS),
        MetricFamily::single(
            "ocifs_open_files",
            "Files that the kernel holds open.",
            MetricType::Gauge,
            OPEN_FILES.get(),
        ),
        reads(),
    ];
    // Only the CSI plugin counts calls.
    let calls = CALLS.samples();
    if !calls.is_empty() {
        families.push(MetricFamily {
            name: "ocifs_csi_calls_total",
            help: "Calls of the orchestrator by method and code of the answer.",
            kind: MetricType::Counter,
            samples: calls,
        });
    }
    families
}

fn whole(labels: Vec<(&'static str, String)>, value: u64) -> MetricSample {
    MetricSample { suffix: "", labels, value: MetricValue::Whole(value) }
}

fn requests() -> MetricFamily {
    let answered = STATUSES.zip(&REQUESTS.answered).filter(|(_, counter)| counter.get() > 0);
    let mut samples: Vec<MetricSample> = answered
        .map(|(status, counter)| {
            let class = format!("{}xx", status / 100);
            whole(vec![("class", class), ("status", status.to_string())], counter.get())
        })
        .collect();
    let none = vec![("class", "none".to_owned()), ("status", "none".to_owned())];
    samples.push(whole(none, REQUESTS.unanswered.get()));
    MetricFamily {
        name: "ocifs_requests_total",
        help: "Requests by the status of the answer; none: no connection, a broken one, or no answer in time.",
        kind: MetricType::Counter,
        samples,
    }
}

fn reads() -> MetricFamily {
    let (mut samples, mut count) = (Vec::new(), 0);
    let bounds = BOUNDS.iter().map(|micros| Some(Duration::from_micros(*micros))).chain([None]);
    for (bound, counter) in bounds.zip(&READS.buckets) {
        count += counter.get();
        let written = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
        samples.push(MetricSample {
            suffix: "_bucket",
            labels: vec![("le", written)],
            value: MetricValue::Whole(count),
        });
    }
    let sum = MetricValue::Time(Duration::from_nanos(READS.nanos.get()));
    samples.push(MetricSample { suffix: "_sum", labels: Vec::new(), value: sum });
    samples.push(MetricSample { suffix: "_count", labels: Vec::new(), value: MetricValue::Whole(count) });
    MetricFamily {
        name: "ocifs_read_duration_seconds",
        help: "How long reads took, from the kernel's request to the answer.",
        kind: MetricType::Histogram,
        samples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_equal_to_a_bucket_bound_is_within_it() {
        let histogram = Histogram::new();
        for (micros, bucket) in [(0, 0), (100, 0), (101, 1), (60_000_000, 12), (60_000_001, 13)] {
            histogram.note(Duration::from_micros(micros));
            assert!(histogram.buckets[bucket].get() > 0, "{micros} us");
        }
        histogram.note(Duration::from_nanos(100_001));
        assert_eq!(histogram.buckets[1].get(), 2);
    }

    #[test]
    fn every_status_is_counted_and_none_that_cannot_be_is_lost() {
        let statuses = StatusCounters::new();
        for status in [Some(100), Some(599), Some(0), Some(600), Some(u16::MAX), None] {
            statuses.note(status);
        }
        assert_eq!((statuses.answered[0].get(), statuses.answered[499].get()), (1, 1));
        assert_eq!(statuses.unanswered.get(), 4);
    }

    #[test]
    fn a_read_that_waits_for_some_blocks_hits_the_others() {
        let lookups = CacheLookups::new();
        lookups.note(5, 2);
        lookups.note(1, 0);
        assert_eq!((lookups.hits.get(), lookups.misses.get()), (4, 2));
    }
}
