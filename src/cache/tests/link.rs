//! Readahead over a simulated link with delay and bandwidth: the time of a sequential reader, and its waste. No clock
//! runs: the link counts its own time.

use std::collections::HashSet;
use std::ops::Range;

use tokio::sync::Notify;

use super::super::readahead::Readahead;
use super::super::readahead_window::{BlockOrigin, ReadPace};
use super::*;
use crate::io::{LinkEstimate, LinkTransfer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const READ_BYTES: u64 = 128 * KIB;
const CHUNK_BYTES: u64 = 32 * KIB;
/// As in `fetch.rs`: so much of a fetch still comes when its file was closed.
const LEFTOVER_BYTES: u64 = BLOCK_BYTES;

/// A link whose bandwidth its fetches share evenly, and the time on it.
struct SimulatedLink {
    began: Instant,
    seconds: f64,
    delay: f64,
    bytes_per_second: f64,
    fetches: Vec<SimulatedFetch>,
    /// The fetch that gets the next chunk.
    turn: usize,
    sent: u64,
}

struct SimulatedFetch {
    /// When its first byte can come, in seconds.
    first_byte: f64,
    at: u64,
    end: u64,
    transfer: LinkTransfer,
    ahead: Option<Arc<Notify>>,
}

/// One reader of one content.
struct SimulatedReader {
    estimate: Arc<LinkEstimate>,
    ahead: Readahead,
    present: HashSet<u64>,
    /// Blocks under way.
    coming: HashSet<u64>,
    requests: usize,
}

/// The cost of a reader that stopped.
#[derive(Debug)]
struct ReaderCost {
    seconds: f64,
    requests: usize,
    /// Bytes on the link when all is at rest after the close.
    at_rest: u64,
}

impl SimulatedLink {
    fn new(bytes_per_second: f64, delay: f64) -> Self {
        let (began, fetches) = (Instant::now(), Vec::new());
        Self { began, seconds: 0.0, delay, bytes_per_second, fetches, turn: 0, sent: 0 }
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_secs_f64(self.seconds)
    }

    fn request(&mut self, reader: &mut SimulatedReader, blocks: Range<u64>, ahead: Option<Arc<Notify>>) {
        if blocks.is_empty() {
            return;
        }
        reader.requests += 1;
        reader.coming.extend(blocks.clone());
        self.fetches.push(SimulatedFetch {
            first_byte: self.seconds + self.delay,
            at: blocks.start * BLOCK_BYTES,
            end: blocks.end * BLOCK_BYTES,
            transfer: reader.estimate.begin(self.now()),
            ahead,
        });
    }

    /// Lets `seconds` pass.
    fn pass(&mut self, reader: &mut SimulatedReader, seconds: f64) {
        let until = self.seconds + seconds;
        while self.fetches.iter().any(|fetch| fetch.first_byte < until) && self.seconds < until {
            self.step(reader);
        }
        self.seconds = self.seconds.max(until);
    }

    /// Lets one chunk arrive, or the time pass until one can.
    fn step(&mut self, reader: &mut SimulatedReader) {
        let ready: Vec<usize> =
            (0..self.fetches.len()).filter(|&at| self.fetches[at].first_byte <= self.seconds).collect();
        if ready.is_empty() {
            let first = self.fetches.iter().map(|fetch| fetch.first_byte).fold(f64::INFINITY, f64::min);
            self.seconds = first;
            return;
        }
        self.turn += 1;
        let at = ready[self.turn % ready.len()];
        self.seconds += CHUNK_BYTES as f64 / self.bytes_per_second;
        let now = self.now();
        let fetch = &mut self.fetches[at];
        fetch.transfer.receive(CHUNK_BYTES, now);
        fetch.at += CHUNK_BYTES;
        self.sent += CHUNK_BYTES;
        if fetch.at.is_multiple_of(BLOCK_BYTES) {
            let block = fetch.at / BLOCK_BYTES - 1;
            reader.coming.remove(&block);
            reader.present.insert(block);
        }
        if fetch.at == fetch.end {
            let ended = self.fetches.remove(at);
            if let Some(run) = ended.ahead {
                reader.ahead.ended(&run);
            }
        }
    }
}

impl SimulatedReader {
    fn new(estimate: &Arc<LinkEstimate>) -> Self {
        Self {
            estimate: estimate.clone(),
            ahead: Readahead::default(),
            present: HashSet::new(),
            coming: HashSet::new(),
            requests: 0,
        }
    }

    /// Reads `range` in order, with a pause of so many seconds after each read, and closes the file, as `CachedFile`
    /// does it for content of `size`.
    fn read(mut self, link: &mut SimulatedLink, range: ByteRange, size: u64, pause: f64) -> ReaderCost {
        let (began, before) = (link.seconds, link.sent);
        for start in (range.start..range.end).step_by(READ_BYTES as usize) {
            let read = ByteRange::at(start, READ_BYTES);
            let missing: Vec<u64> = read.blocks(18).filter(|block| !self.present.contains(block)).collect();
            let pace = if missing.is_empty() { ReadPace::Served } else { ReadPace::Waits };
            let origin = BlockOrigin::Link(self.estimate.measure());
            let mut runs = self.ahead.note(read, size, origin, pace);
            let fresh: Vec<u64> =
                missing.iter().copied().filter(|block| !self.coming.contains(block)).collect();
            if let (Some(first), Some(last)) = (fresh.first(), fresh.last()) {
                let joined =
                    (runs.first().is_some_and(|run| run.0.start == last + 1)).then(|| runs.remove(0));
                let end = joined.as_ref().map_or(last + 1, |run| run.0.end);
                link.request(&mut self, *first..end, joined.map(|run| run.1));
            }
            for (blocks, run) in runs {
                link.request(&mut self, blocks, Some(run));
            }
            while missing.iter().any(|block| !self.present.contains(block)) {
                link.step(&mut self);
            }
            link.pass(&mut self, pause);
        }
        let seconds = link.seconds - began;
        self.ahead.close(ByteRange::new(0, size));
        let counted = self.ahead.take_use();
        self.estimate.note_use(counted.used, counted.unused);
        link.fetches.retain(|fetch| fetch.end - fetch.at <= LEFTOVER_BYTES);
        while !link.fetches.is_empty() {
            link.step(&mut self);
        }
        ReaderCost { seconds, requests: self.requests, at_rest: link.sent - before }
    }
}

/// Bytes a second, and seconds of delay.
const LINKS: [(f64, f64); 7] = [
    (2.5e6, 0.2),
    (2.5e6, 0.4),
    (1.25e6, 0.05),
    (12.5e6, 0.04),
    (12.5e6, 0.1),
    (125e6, 0.04),
    (400e6, 0.002),
];

#[test]
fn a_sequential_reader_costs_little_more_than_one_plain_request() {
    for (rate, delay) in LINKS {
        let estimate = Arc::new(LinkEstimate::default());
        let mut link = SimulatedLink::new(rate, delay);
        // A first read proves no order, and a first reader knows no link.
        for (size, delays) in [(30 * MIB, 4.0), (8 * MIB, 2.0), (64 * MIB, 0.0), (64 * MIB, 0.0)] {
            let cost = SimulatedReader::new(&estimate).read(&mut link, ByteRange::new(0, size), size, 0.0);
            let plain = delay + size as f64 / rate;
            let most = (1.1 * plain).max(plain + delays * delay);
            assert!(
                cost.seconds <= most,
                "{size} at {rate} and {delay}: {} of {plain}: {cost:?}",
                cost.seconds
            );
            assert_eq!(cost.at_rest, size, "each byte once");
            assert!(cost.requests as u64 <= 4 + size / (512 * KIB), "{size} at {rate} and {delay}: {cost:?}");
        }
    }
}

#[test]
fn the_waste_of_a_reader_that_stops_is_a_mebibyte_or_a_bandwidth_delay_product() {
    for (rate, delay) in LINKS {
        let estimate = Arc::new(LinkEstimate::default());
        let mut link = SimulatedLink::new(rate, delay);
        let product = (rate * delay) as u64;
        // As fast as the link, and half as fast: then all of the window has arrived.
        for (read, slower) in [(MIB / 2, 0.0), (MIB, 2.0), (3 * MIB, 0.0), (8 * MIB, 2.0), (30 * MIB, 0.0)] {
            let (reader, pause) = (SimulatedReader::new(&estimate), slower * READ_BYTES as f64 / rate);
            let cost = reader.read(&mut link, ByteRange::new(0, read), 256 * MIB, pause);
            let waste = cost.at_rest - read;
            assert!(waste <= product.max(MIB), "{waste} for {read} at {rate} and {delay}: {cost:?}");
        }
    }
}

#[test]
fn a_long_reader_of_a_fast_link_causes_few_long_requests() {
    for (rate, delay) in [(400e6, 0.001), (400e6, 0.04), (150e6, 0.001), (150e6, 0.04)] {
        let estimate = Arc::new(LinkEstimate::default());
        let mut link = SimulatedLink::new(rate, delay);
        let size = 256 * MIB;
        for slower in [0.0, 2.0] {
            let (reader, pause) = (SimulatedReader::new(&estimate), slower * READ_BYTES as f64 / rate);
            let cost = reader.read(&mut link, ByteRange::new(0, size), size, pause);
            // 32 of them have 8 MiB each.
            assert!(cost.requests <= 42, "at {rate} and {delay}: {cost:?}");
            assert_eq!(cost.at_rest, size, "each byte once");
        }
    }
}
