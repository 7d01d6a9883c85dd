//! What a process counts about itself: bytes, requests, hits, and how long reads take.
//!
//! Never decides anything and is never read by what it counts, so that no behaviour depends on it. The counters belong to the
//! process, as its open files and its memory do, which is why they are statics: a layer that counts needs no handle passed down
//! to it, and two mounts in one process are counted together. Nothing in a name or a label comes from a URL, a header or a
//! credential.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes of files that readers were given by this process. What the kernel reads by itself is not among them.
pub static BYTES_SERVED: Counter = Counter::new();
/// Bytes of bodies that registries and storage sent.
pub static BYTES_FETCHED: Counter = Counter::new();
/// Tries after a failed one.
pub static RETRIES: Counter = Counter::new();
/// Reads that ended in an error.
pub static READ_ERRORS: Counter = Counter::new();
/// Answers of registries, token servers and storage, by their status.
pub static REQUESTS: Statuses = Statuses::new();
/// Blocks of stored blobs that a read found, and that it had to wait for.
pub static BLOBS: Lookups = Lookups::new();
/// Blocks of decoded streams that a read found, and that it had to wait for.
pub static STREAMS: Lookups = Lookups::new();
/// Blobs and parts of blobs that made room for others.
pub static EVICTIONS: Counter = Counter::new();
/// The room that was made.
pub static EVICTED_BYTES: Counter = Counter::new();
/// How long reads take, from the kernel's request to the answer.
pub static READS: Histogram = Histogram::new();
/// Files that the kernel holds open.
pub static OPEN_FILES: Gauge = Gauge::new();

/// Calls of an orchestrator, by method and outcome.
pub static CALLS: Calls = Calls::new();

/// Calls by method and outcome.
#[derive(Debug)]
pub struct Calls(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Calls {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Counts a call.
    pub fn note(&self, method: &'static str, code: &'static str) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *calls.entry((method, code)).or_default() += 1;
    }

    /// One number for each method and outcome that there was.
    fn samples(&self) -> Vec<Sample> {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = |(&(method, code), count): (&(&str, &str), &u64)| {
            whole(vec![("method", method.to_owned()), ("code", code.to_owned())], *count)
        };
        calls.iter().map(sample).collect()
    }
}

/// A number that only grows.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What looking for blocks in the cache came to.
#[derive(Debug)]
pub struct Lookups {
    hits: Counter,
    misses: Counter,
}

impl Lookups {
    const fn new() -> Self {
        Self { hits: Counter::new(), misses: Counter::new() }
    }

    /// Counts a read that wanted `wanted` blocks and did not find `missing` of them.
    pub fn note(&self, wanted: u64, missing: u64) {
        self.hits.add(wanted.saturating_sub(missing));
        self.misses.add(missing);
    }
}

/// The lowest status of HTTP, and how many there may be.
const STATUSES: std::ops::Range<u16> = 100..600;

/// Answers by status, and requests that got none.
#[derive(Debug)]
pub struct Statuses {
    /// By status, from the lowest on.
    answered: [Counter; (STATUSES.end - STATUSES.start) as usize],
    unanswered: Counter,
}

impl Statuses {
    const fn new() -> Self {
        Self { answered: [const { Counter::new() }; 500], unanswered: Counter::new() }
    }

    /// Counts an answer, or `None` for a request that got none: no connection, a broken one, no answer in time.
    pub fn note(&self, status: Option<u16>) {
        let counter = status
            .and_then(|status| self.answered.get(usize::from(status.checked_sub(STATUSES.start)?)))
            .unwrap_or(&self.unanswered);
        counter.add(1);
    }
}

/// The upper bounds of the histogram's buckets in microseconds: from an answer out of memory to the end of a read's patience.
const BOUNDS: [u64; 13] = [
    100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000, 30_000_000,
    60_000_000,
];

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram {
    /// One for each bound, not added up, and one for what took longer.
    buckets: [Counter; BOUNDS.len() + 1],
    nanos: Counter,
}

impl Histogram {
    const fn new() -> Self {
        Self { buckets: [const { Counter::new() }; BOUNDS.len() + 1], nanos: Counter::new() }
    }

    /// Counts something that took `time`.
    pub fn note(&self, time: Duration) {
        let micros = time.as_nanos().div_ceil(1000);
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) < micros);
        self.buckets[bucket].add(1);
        self.nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// What kind of numbers a family has, in the words of the Prometheus text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
    /// Counts by upper bounds, with their number and sum.
    Histogram,
}

/// A number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// As it is.
    Whole(u64),
    /// In seconds.
    Time(Duration),
}

/// One number of a family.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What follows the family's name: `_bucket`, `_sum`, `_count`, or nothing.
    pub suffix: &'static str,
    /// What tells it from the others.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: Value,
}

/// Numbers that mean the same.
#[derive(Clone, Debug)]
pub struct Family {
    /// The name, with its unit, as Prometheus has it.
    pub name: &'static str,
    /// What is counted.
    pub help: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The numbers.
    pub samples: Vec<Sample>,
}

impl Family {
    /// A family of one number without labels.
    pub fn single(name: &'static str, help: &'static str, kind: Kind, value: u64) -> Self {
        let samples = vec![Sample { suffix: "", labels: Vec::new(), value: Value::Whole(value) }];
        Self { name, help, kind, samples }
    }
}

/// Everything that is counted, as it is now.
pub fn families() -> Vec<Family> {
    let counter = |name, help, counted: &Counter| Family::single(name, help, Kind::Counter, counted.get());
    let lookups = |name, help, of: fn(&Lookups) -> &Counter| Family {
        name,
        help,
        kind: Kind::Counter,
        samples: [("blob", &BLOBS), ("stream", &STREAMS)]
            .map(|(kind, lookups)| whole(vec![("kind", kind.to_owned())], of(lookups).get()))
            .into(),
    };
    let mut families = vec![
        counter("ocifs_bytes_served_total", "Bytes of files that readers were given.", &BYTES_SERVED),
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
            "Blobs and parts of blobs that made room for others.",
            &EVICTIONS,
        ),
        counter(
            "ocifs_cache_evicted_bytes_total",
            "Room that was made in the cache for others.",
            &EVICTED_BYTES,
        ),
        counter("ocifs_read_errors_total", "Reads that ended in an error.", &READ_ERRORS),
        Family::single(
            "ocifs_open_files",
            "Files that the kernel holds open.",
            Kind::Gauge,
            OPEN_FILES.get(),
        ),
        reads(),
    ];
    // Only a plugin is called.
    let calls = CALLS.samples();
    if !calls.is_empty() {
        families.push(Family {
            name: "ocifs_csi_calls_total",
            help: "Calls of the orchestrator by method and code of the answer.",
            kind: Kind::Counter,
            samples: calls,
        });
    }
    families
}

fn whole(labels: Vec<(&'static str, String)>, value: u64) -> Sample {
    Sample { suffix: "", labels, value: Value::Whole(value) }
}

fn requests() -> Family {
    let answered = STATUSES.zip(&REQUESTS.answered).filter(|(_, counter)| counter.get() > 0);
    let mut samples: Vec<Sample> = answered
        .map(|(status, counter)| {
            let class = format!("{}xx", status / 100);
            whole(vec![("class", class), ("status", status.to_string())], counter.get())
        })
        .collect();
    let none = vec![("class", "none".to_owned()), ("status", "none".to_owned())];
    samples.push(whole(none, REQUESTS.unanswered.get()));
    Family {
        name: "ocifs_requests_total",
        help: "Requests by the status of the answer; none: no connection, a broken one, or no answer in time.",
        kind: Kind::Counter,
        samples,
    }
}

fn reads() -> Family {
    let (mut samples, mut count) = (Vec::new(), 0);
    let bounds = BOUNDS.iter().map(|micros| Some(Duration::from_micros(*micros))).chain([None]);
    for (bound, counter) in bounds.zip(&READS.buckets) {
        count += counter.get();
        let written = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
        samples.push(Sample { suffix: "_bucket", labels: vec![("le", written)], value: Value::Whole(count) });
    }
    let sum = Value::Time(Duration::from_nanos(READS.nanos.get()));
    samples.push(Sample { suffix: "_sum", labels: Vec::new(), value: sum });
    samples.push(Sample { suffix: "_count", labels: Vec::new(), value: Value::Whole(count) });
    Family {
        name: "ocifs_read_duration_seconds",
        help: "How long reads took, from the kernel's request to the answer.",
        kind: Kind::Histogram,
        samples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_exactly_a_bound_is_within_it() {
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
        let statuses = Statuses::new();
        for status in [Some(100), Some(599), Some(0), Some(600), Some(u16::MAX), None] {
            statuses.note(status);
        }
        assert_eq!((statuses.answered[0].get(), statuses.answered[499].get()), (1, 1));
        assert_eq!(statuses.unanswered.get(), 4);
    }

    #[test]
    fn a_read_that_waits_for_some_blocks_hits_the_others() {
        let lookups = Lookups::new();
        lookups.note(5, 2);
        lookups.note(1, 0);
        assert_eq!((lookups.hits.get(), lookups.misses.get()), (4, 2));
    }
}
