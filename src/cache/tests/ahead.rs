//! Read-ahead: what it fetches, how much of it at a time, and what it must leave alone.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;

use tokio::sync::Notify;

use super::*;
use crate::io::LinkEstimate;

const MIB: u64 = 1 << 20;

/// A source that answers after a delay, keeps long fetches back while its gate is shut, and counts.
struct Line {
    content: Bytes,
    delay: Duration,
    /// Fetches of more than this many bytes wait.
    gate: AtomicU64,
    opened: Notify,
    asked: Mutex<Vec<ByteRange>>,
    going: AtomicUsize,
    most: AtomicUsize,
}

/// Counts a fetch until its body is dropped.
struct Counted(Arc<Line>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.going.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Line {
    fn new(content: &[u8], delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            content: Bytes::copy_from_slice(content),
            delay,
            gate: AtomicU64::new(u64::MAX),
            opened: Notify::new(),
            asked: Mutex::default(),
            going: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn asked(&self) -> Vec<ByteRange> {
        self.asked.lock().unwrap().clone()
    }

    fn bytes(&self) -> u64 {
        self.asked().iter().map(|range| range.len()).sum()
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.gate.store(u64::MAX, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    /// Waits until nothing is under way.
    async fn rest(&self) {
        let patience = Instant::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 5 {
            assert!(Instant::now() < patience, "fetches do not end");
            quiet = if self.going.load(Ordering::SeqCst) == 0 { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the cache holds, so that the counts live on the shared one.
struct Fetched(Arc<Line>);

impl RangeFetch for Fetched {
    fn size(&self) -> u64 {
        self.0.content.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        let line = self.0.clone();
        Box::pin(async move {
            line.asked.lock().unwrap().push(range);
            let now = line.going.fetch_add(1, Ordering::SeqCst) + 1;
            line.most.fetch_max(now, Ordering::SeqCst);
            let counted = Counted(line.clone());
            tokio::time::sleep(line.delay).await;
            loop {
                let opened = line.opened.notified();
                if range.len() <= line.gate.load(Ordering::SeqCst) {
                    break;
                }
                opened.await;
            }
            let bytes = line.content.slice(range.start as usize..range.end as usize);
            let chunks: Vec<_> = (0..bytes.len())
                .step_by(60_000)
                .map(|at| Ok(bytes.slice(at..bytes.len().min(at + 60_000))))
                .collect();
            let body = futures_util::stream::iter(chunks).map(move |chunk| {
                let _counted = &counted;
                chunk
            });
            Ok(RangeDelivery { range, body: body.boxed() })
        })
    }
}

fn blob(cache: &BlockCache, line: &Arc<Line>) -> Arc<CachedFile> {
    cache.blob(&Digest::sha256(&line.content), Arc::new(Fetched(line.clone()))).unwrap()
}

/// Reads as a mount does: on the thread itself when it can.
async fn read(cached: &CachedFile, content: &[u8], start: u64, len: u64) {
    let mut buf = vec![0xa5; len as usize];
    if !cached.read_ready(start, &mut buf).unwrap() {
        tokio::time::timeout(PATIENCE, cached.read_at(start, &mut buf)).await.unwrap().unwrap();
    }
    assert!(buf == content[start as usize..(start + len) as usize], "{len} bytes at {start}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_reader_causes_few_large_fetches_several_of_them_at_once() {
    for kind in ["blob", "stream"] {
        let place = Place::new();
        let content = noise(64 * MIB + 77, 21);
        let line = Line::new(&content, Duration::from_millis(30));
        let cached = match kind {
            "blob" => blob(&place.cache(), &line),
            _ => {
                let fetch = Arc::new(Fetched(line.clone()));
                place.cache().stream(&Digest::sha256(b"layer"), sums(&content), fetch).unwrap()
            }
        };
        for start in (0..content.len() as u64).step_by(128 << 10) {
            read(&cached, &content, start, (content.len() as u64 - start).min(128 << 10)).await;
        }
        let asked = line.asked();
        assert_eq!(line.bytes(), content.len() as u64, "{kind}: each byte once: {asked:?}");
        assert!(asked.iter().all(|range| range.len() <= 9 * MIB), "{kind}: {asked:?}");
        // A link gets requests of half a mebibyte or more. Decoders work on 8 MiB each, as many as there are cores and
        // the one that a reader waits for.
        let most = if kind == "blob" { 64 * 2 + 8 } else { 30 };
        assert!(asked.len() <= most, "{kind}: {} fetches: {asked:?}", asked.len());
        assert!((2..=6).contains(&line.most()), "{kind}: {} at once", line.most());
        if kind == "stream" {
            assert!(asked.iter().any(|range| range.len() == 8 * MIB), "{asked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_at_random_fetch_just_their_blocks() {
    let place = Place::new();
    let content = noise(96 * MIB, 22);
    let line = Line::new(&content, Duration::ZERO);
    let cached = blob(&place.cache(), &line);
    let mut touched = HashSet::new();
    let mut random = 5u64;
    for _ in 0..300 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let start = (random >> 33) % (content.len() as u64 - 4096);
        touched.extend(ByteRange::at(start, 4096).blocks(18));
        read(&cached, &content, start, 4096).await;
    }
    line.rest().await;
    assert_eq!(line.bytes(), touched.len() as u64 * BLOCK_BYTES);
    assert!(line.asked().iter().all(|range| range.len() <= 2 * BLOCK_BYTES));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_readers_in_turn_are_both_served_ahead() {
    let place = Place::new();
    let content = noise(96 * MIB, 23);
    let line = Line::new(&content, Duration::from_millis(5));
    let cached = blob(&place.cache(), &line);
    let middle = 48 * MIB + 1000;
    for step in 0..160 {
        // Between two files of an archive lies a header.
        let header = step / 8 * 512;
        read(&cached, &content, step * (128 << 10), 128 << 10).await;
        read(&cached, &content, middle + header + step * (128 << 10), 128 << 10).await;
    }
    line.rest().await;
    let of = |from: u64, to: u64| {
        line.asked().into_iter().filter(|range| (from..to).contains(&range.start)).collect::<Vec<_>>()
    };
    for (name, asked) in [("first", of(0, 48 * MIB)), ("second", of(48 * MIB, 96 * MIB))] {
        // One by one it would be 80.
        assert!(asked.len() <= 60, "{name}: 20 MiB in {} fetches: {asked:?}", asked.len());
        assert!(asked.iter().any(|range| range.len() >= MIB / 2), "{name}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_leaves_at_most_its_window_behind() {
    let content = noise(80 * MIB, 24);
    // Read in order from there on, so much, and at most so much past that.
    for (start, len, window) in [
        (0, 256 << 10, MIB),
        (0, MIB, MIB),
        (0, 4 * MIB, MIB),
        (0, 16 * MIB, MIB),
        (5000, 2 * MIB, MIB / 2),
        (5000, 16 * MIB, MIB),
    ] {
        let place = Place::new();
        let line = Line::new(&content, Duration::from_millis(1));
        let cached = blob(&place.cache(), &line);
        // The source has the bandwidth of memory.
        let mut product = 0;
        for step in (start..start + len).step_by(128 << 10) {
            read(&cached, &content, step, 128 << 10).await;
            product = product.max(cached.inner.link.product());
        }
        line.rest().await;
        let fetched = line.bytes();
        // A fast link has fetches of half of what was read.
        let window = window.max(product) + (len / 2).max(product / 3).min(8 * MIB) + 3 * BLOCK_BYTES;
        assert!(fetched >= len && fetched <= len + window, "{fetched} for {len} from {start}, {product}");
        assert_eq!(cached.bytes_present(), fetched, "what was fetched ahead is kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_read_does_not_wait_for_scans_nor_for_their_places() {
    let place = Place::new();
    let cache = place.cache();
    let contents: Vec<Vec<u8>> = (0..8).map(|seed| noise(16 * MIB, 30 + seed)).collect();
    let lines: Vec<_> = contents.iter().map(|content| Line::new(content, Duration::ZERO)).collect();
    let blobs: Vec<_> = lines.iter().map(|line| blob(&cache, line)).collect();
    for ((cached, line), content) in blobs.iter().zip(&lines).zip(&contents) {
        for step in 0..2 {
            read(cached, content, step * MIB, MIB).await;
        }
        line.rest().await;
        // From here on nothing longer arrives. Blocks behind these are present, and soon some are fetched ahead.
        line.gate.store(BLOCK_BYTES, Ordering::SeqCst);
        let mut start = 2 * MIB;
        while lock(&cached.inner.ahead).fetches() == 0 {
            read(cached, content, start, 128 << 10).await;
            start += 128 << 10;
        }
    }
    let going = || lines.iter().map(|line| line.going.load(Ordering::SeqCst)).sum::<usize>();
    let patience = Instant::now() + PATIENCE;
    while going() != 6 {
        assert!(Instant::now() < patience, "{} fetches go ahead of eight scans", going());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Far from every window, in the content whose scan has no place left, too.
    for (cached, content) in blobs.iter().zip(&contents) {
        read(cached, content, 15 * MIB + 5, 4096).await;
    }
    // The small ones end a moment after their answer.
    while going() != 6 {
        assert!(Instant::now() < patience, "{} fetches", going());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lines.iter().for_each(|line| line.open());
    for (line, (cached, content)) in lines.iter().zip(blobs.iter().zip(&contents)) {
        read(cached, content, 0, content.len() as u64).await;
        line.rest().await;
        assert_eq!(line.bytes(), content.len() as u64, "each byte once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_wanted_while_its_fetch_ahead_has_no_place_is_fetched_at_once() {
    let place = Place::new();
    let cache = place.cache();
    let content = noise(64 * MIB, 40);
    let line = Line::new(&content, Duration::ZERO);
    let cached = blob(&cache, &line);
    let all = cached.inner.places().clone().acquire_many_owned(6).await.unwrap();
    for step in 0..32 {
        read(&cached, &content, step * (128 << 10), 128 << 10).await;
    }
    assert_eq!(line.bytes(), 4 * MIB, "only what was demanded");
    drop(all);
    line.rest().await;
    read(&cached, &content, 4 * MIB, 128 << 10).await;
    line.rest().await;
    assert!(line.bytes() >= 4 * MIB + MIB / 2, "{} after there were places again", line.bytes());
}

/// A source whose bodies stop after their first 300000 bytes, until it is told to go on.
struct Stopping {
    content: Bytes,
    on: Arc<tokio::sync::Semaphore>,
}

impl RangeFetch for Stopping {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        let head = self.content.slice(range.start as usize..range.end as usize);
        let on = self.on.clone();
        Box::pin(async move {
            let mut head = head;
            let tail = head.split_off(300_000);
            let first = futures_util::stream::once(async move { Ok(head) });
            let second = futures_util::stream::once(async move {
                on.acquire().await.unwrap().forget();
                Ok(tail)
            });
            Ok(RangeDelivery { range, body: first.chain(second).boxed() })
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wanted_block_is_answered_before_the_rest_of_its_run() {
    let place = Place::new();
    let content = noise(8 * BLOCK_BYTES, 50);
    let on = Arc::new(tokio::sync::Semaphore::new(0));
    let source = Stopping { content: Bytes::copy_from_slice(&content), on: on.clone() };
    let cached = place.cache().blob(&Digest::sha256(&content), Arc::new(source)).unwrap();
    let run = tokio::spawn({
        let cached = cached.clone();
        async move { read_vec(&*cached, ByteRange::new(0, 8 * BLOCK_BYTES)).await.unwrap() }
    });
    while lock(&cached.inner.flights).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    read(&cached, &content, 100, 5000).await;
    assert!(!run.is_finished(), "its other blocks have not arrived");
    on.add_permits(1);
    assert_eq!(tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap(), content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_content_cancels_its_readahead() {
    let place = Place::new();
    let content = noise(64 * MIB, 51);
    let line = Line::new(&content, Duration::ZERO);
    let cached = blob(&place.cache(), &line);
    for step in 0..9 {
        read(&cached, &content, step * MIB, MIB).await;
    }
    line.rest().await;
    line.gate.store(BLOCK_BYTES, Ordering::SeqCst);
    for step in 9..20 {
        read(&cached, &content, step * MIB, BLOCK_BYTES).await;
    }
    drop(cached);
    line.rest().await;
}

/// A blob over a line that other blobs use, too.
struct OnLink(Fetched, Arc<LinkEstimate>);

impl RangeFetch for OnLink {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        self.0.fetch(range)
    }

    fn link(&self) -> Option<Arc<LinkEstimate>> {
        Some(self.1.clone())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demanded_blocks_and_those_ahead_of_them_are_one_request() {
    let place = Place::new();
    let content = noise(16 * MIB, 60);
    let line = Line::new(&content, Duration::from_millis(1));
    let cached = blob(&place.cache(), &line);
    read(&cached, &content, 0, MIB).await;
    line.rest().await;
    assert_eq!(line.asked(), [ByteRange::new(0, MIB)]);
    read(&cached, &content, MIB, 128 << 10).await;
    line.rest().await;
    let second = line.asked()[1];
    assert_eq!(second.start, MIB, "the wanted bytes come first");
    assert!(second.len() > MIB, "{second}");
    assert_eq!(line.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readahead_yields_to_the_readers_of_the_same_link() {
    let place = Place::new();
    let cache = place.cache();
    let link = Arc::new(LinkEstimate::default());
    let contents = [noise(16 * MIB, 61), noise(16 * MIB, 62)];
    let lines = contents.each_ref().map(|content| Line::new(content, Duration::ZERO));
    let blobs: Vec<_> = lines
        .iter()
        .map(|line| {
            let source = OnLink(Fetched(line.clone()), link.clone());
            cache.blob(&Digest::sha256(&line.content), Arc::new(source)).unwrap()
        })
        .collect();
    for step in 0..2 {
        read(&blobs[0], &contents[0], step * MIB, MIB).await;
    }
    lines[0].rest().await;
    let before = lines[0].asked().len();
    // A reader of the other blob waits for bytes that do not come.
    lines[1].gate.store(1, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let (cached, content) = (blobs[1].clone(), contents[1].clone());
        async move { read(&cached, &content, 8 * MIB, 4096).await }
    });
    becomes_true("its fetch", || lines[1].going.load(Ordering::SeqCst) == 1).await;
    // Present bytes, until the window wants more behind them.
    let mut start = 2 * MIB;
    while lock(&blobs[0].inner.ahead).fetches() == 0 {
        read(&blobs[0], &contents[0], start, 128 << 10).await;
        start += 128 << 10;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(lines[0].asked().len(), before, "{:?}", lines[0].asked());
    // Its own reader does not wait for it: the demand brings it.
    while lines[0].asked().len() == before {
        read(&blobs[0], &contents[0], start, 128 << 10).await;
        start += 128 << 10;
    }
    let next = lines[0].asked()[before];
    assert!(next.start < start && next.len() >= 2 * BLOCK_BYTES, "{next} at {start}");
    becomes_true("its end", || lock(&blobs[0].inner.ahead).fetches() == 0).await;
    let before = lines[0].asked().len();
    while lock(&blobs[0].inner.ahead).fetches() == 0 {
        read(&blobs[0], &contents[0], start, 128 << 10).await;
        start += 128 << 10;
    }
    lines[1].open();
    waiting.await.unwrap();
    becomes_true("readahead", || lines[0].asked().len() > before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readahead_of_a_closed_file_ends_in_the_middle_of_its_fetch() {
    let place = Place::new();
    let content = noise(64 * MIB, 63);
    let line = Line::new(&content, Duration::ZERO);
    let cached = blob(&place.cache(), &line);
    for step in 0..8 {
        read(&cached, &content, step * MIB, MIB).await;
    }
    line.rest().await;
    let (requests, present) = (line.asked().len(), cached.bytes_present());
    line.gate.store(0, Ordering::SeqCst);
    // Present are a mebibyte or more.
    let mut start = 8 * MIB;
    while lock(&cached.inner.ahead).fetches() == 0 {
        read(&cached, &content, start, 128 << 10).await;
        start += 128 << 10;
    }
    becomes_true("readahead", || line.asked().len() > requests).await;
    cached.close_readahead(ByteRange::new(0, content.len() as u64));
    line.open();
    line.rest().await;
    assert_eq!(cached.bytes_present(), present, "{:?}", line.asked());
    // Another reader has it fetched again, and the one that waits for a block keeps its fetch.
    line.gate.store(0, Ordering::SeqCst);
    let requests = line.asked().len();
    for start in (0..present).step_by(128 << 10) {
        read(&cached, &content, start, 128 << 10).await;
        let is_over = || lock(&cached.inner.ahead).fetches() == 0 || line.asked().len() > requests;
        becomes_true("readahead of present blocks", is_over).await;
    }
    becomes_true("readahead", || line.asked().len() > requests).await;
    let next = line.asked()[requests];
    let waiting = tokio::spawn({
        let (cached, content) = (cached.clone(), content.clone());
        async move { read(&cached, &content, next.start, 4096).await }
    });
    becomes_true("a waiting reader", || lock(&cached.inner.flights).waiters() == 1).await;
    cached.close_readahead(ByteRange::new(0, content.len() as u64));
    line.open();
    waiting.await.unwrap();
    line.rest().await;
    assert!(cached.present(next), "{next}");
}
