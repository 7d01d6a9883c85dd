//! What the cache promises, within one process. A second [`BlockCache`] on the same directory has its own open files, and so
//! meets the first one exactly as another process would; real processes are in `tests/cache.rs`.

mod account;
mod ahead;
mod copies;
mod damage;
mod directory;
mod link;
mod local;
mod model;
mod origins;
mod outcome;
mod possession;
mod room;
mod waiting;
mod whole;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::sidecar::BLOCK_BYTES;
use super::*;
use crate::io::{
    BoxFuture, ByteRange, FaultClass, RangeDelivery, RangeFetch, ReadAt, ReadError, VerifiedLevel, read_all,
    read_vec,
};
use crate::oci::Digest;

const SIZE: u64 = 9 * BLOCK_BYTES + 12_345;

/// How a source answers.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Exact,
    Whole,
    Short,
    Long,
    Elsewhere,
    Refuse,
    /// Breaks this many bytes into the body.
    Break(u64),
}

/// A source that counts, and misbehaves when told to.
struct Source {
    content: Bytes,
    asked: Mutex<Vec<ByteRange>>,
    delivered: AtomicU64,
    answer: Mutex<Answer>,
    delay: Duration,
}

impl Source {
    fn new(content: &[u8]) -> Arc<Self> {
        Self::slow(content, Duration::ZERO)
    }

    fn slow(content: &[u8], delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            content: Bytes::copy_from_slice(content),
            asked: Mutex::default(),
            delivered: AtomicU64::new(0),
            answer: Mutex::new(Answer::Exact),
            delay,
        })
    }

    fn answering(content: &[u8], answer: Answer) -> Arc<Self> {
        let source = Self::new(content);
        source.answer(answer);
        source
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> Vec<ByteRange> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::SeqCst)
    }
}

impl RangeFetch for Source {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        assert!(!range.is_empty() && range.end <= self.size(), "{range:?} was asked");
        assert!(range.len() <= 8 << 20, "{range:?} was asked");
        self.asked.lock().unwrap().push(range);
        let answer = *self.answer.lock().unwrap();
        Box::pin(async move {
            tokio::time::sleep(self.delay).await;
            let size = self.size();
            let refused = || ReadError::new(FaultClass::Unavailable, "the line is dead");
            let (range, body) = match answer {
                Answer::Exact | Answer::Break(_) => (range, range),
                Answer::Whole => (ByteRange::new(0, size), ByteRange::new(0, size)),
                Answer::Short => (range, ByteRange::new(range.start, range.end - 1)),
                Answer::Long => (range, range),
                Answer::Elsewhere => (ByteRange::new(range.start + 1, range.end), range),
                Answer::Refuse => return Err(refused()),
            };
            let mut bytes = self.content.slice(body.start as usize..body.end as usize).to_vec();
            if answer == Answer::Long {
                bytes.push(0);
            }
            let mut fails = false;
            if let Answer::Break(after) = answer {
                bytes.truncate(after as usize);
                fails = true;
            }
            self.delivered.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            let delay = self.delay / 10;
            let mut chunks: Vec<Result<Bytes, ReadError>> =
                bytes.chunks(70_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            if fails {
                chunks.push(Err(refused()));
            }
            let body = futures_util::stream::iter(chunks).then(move |chunk| async move {
                tokio::time::sleep(delay).await;
                chunk
            });
            Ok(RangeDelivery { range, body: body.boxed() })
        })
    }
}

/// Time limit for a condition that holds at once on an idle machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a file that another thread makes.
async fn exists(path: &std::path::Path) {
    becomes_true(&format!("{} exists", path.display()), || path.exists()).await;
}

async fn becomes_true(claim: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < patience, "{claim}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes that look random, the same for the same seed.
fn noise(size: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> BlockCache {
        BlockCache::open(self.dir.path()).unwrap()
    }

    fn file(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.dir.path().join("v1").join(kind).join("sha256").join(digest.encoded())
    }

    /// The data file of the stream of `content`, which belongs to no place.
    fn stream_file(&self, digest: &Digest, content: &[u8]) -> PathBuf {
        self.cache().stream_files(digest, &sums(content), content.len() as u64).unwrap().data
    }

    /// How many temporary files there are.
    fn temporaries(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("v1/tmp")).unwrap().count()
    }

    fn data(&self, digest: &Digest) -> PathBuf {
        self.file("blobs", digest)
    }

    fn map(&self, digest: &Digest) -> PathBuf {
        self.file("blobs", digest).with_extension("map")
    }

    /// Waits until the verified copy of the blob has its name. Before that, an empty file holds the lock of the name.
    async fn promoted(&self, digest: &Digest) {
        let map = self.map(digest);
        let is_named = || std::fs::metadata(&map).is_ok_and(|found| found.len() > 0);
        becomes_true(&format!("{} is a sidecar", map.display()), is_named).await;
    }
}

/// The checksums of the blocks of `content`.
fn sums(content: &[u8]) -> BlockSums {
    content.chunks(BLOCK_BYTES as usize).map(|block| *blake3::hash(block).as_bytes()).collect()
}

/// The state is on disk a sync later than the answer.
async fn wait_for_disk(place: &Place, digest: &Digest, size: u64, state: VerificationState) {
    let is_known = || {
        let other = place.cache().blob(digest, Source::new(&vec![0; size as usize])).unwrap();
        other.state() == state
    };
    becomes_true(&format!("{digest} is {state:?}"), is_known).await;
}

async fn filled(place: &Place, content: &[u8]) -> Digest {
    let digest = Digest::sha256(content);
    let cached = place.cache().blob(&digest, Source::new(content)).unwrap();
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    drop(cached);
    wait_for_disk(place, &digest, content.len() as u64, VerificationState::Verified).await;
    digest
}

/// Every range reads as the original does.
async fn check_random_ranges(bytes: &dyn ReadAt, content: &[u8]) {
    let size = content.len() as u64;
    assert_eq!(bytes.size(), size);
    let mut state = 7u64;
    let mut next = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit.max(1)
    };
    for round in 0..120u64 {
        let start = if round % 3 == 0 { next(size / BLOCK_BYTES) * BLOCK_BYTES } else { next(size + 1) };
        let len = [next(10), next(5000), next(BLOCK_BYTES * 3), size][round as usize % 4].min(size - start);
        let range = ByteRange::at(start, len);
        let want = &content[range.start as usize..range.end as usize];
        assert_eq!(read_vec(bytes, range).await.unwrap(), want, "{range:?}");
        let mut buf = vec![0; len as usize];
        if bytes.read_ready(start, &mut buf).unwrap() {
            assert_eq!(buf, want, "{range:?}");
        }
    }
    for range in [ByteRange::new(size, size + 1), ByteRange::new(0, size + 1)] {
        let mut buf = vec![0; range.len() as usize];
        assert_eq!(bytes.read_at(range.start, &mut buf).await.unwrap_err().fault(), FaultClass::Usage);
        assert_eq!(bytes.read_ready(range.start, &mut buf).unwrap_err().fault(), FaultClass::Usage);
    }
    assert_eq!(read_vec(bytes, ByteRange::at(size, 0)).await.unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_range_reads_as_the_original() {
    for size in [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, SIZE] {
        let place = Place::new();
        let content = noise(size, size);
        let source = Source::new(&content);
        let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
        check_random_ranges(&*cached, &content).await;
        assert_eq!(source.delivered(), size, "every byte was fetched once");
        assert_eq!(cached.fetched(), size);
        assert_eq!(cached.state(), VerificationState::Verified);
        assert_eq!(cached.bytes_present(), size);
        let stream =
            place.cache().stream(&Digest::sha256(&content), sums(&content), Source::new(&content)).unwrap();
        check_random_ranges(&*stream, &content).await;
        assert_eq!(stream.state(), VerificationState::Complete);
        assert_eq!(stream.verified(), VerifiedLevel::None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_readers_fetch_each_block_once() {
    let place = Place::new();
    let content = Arc::new(noise(SIZE, 1));
    let source = Source::slow(&content, Duration::from_millis(30));
    let cache = place.cache();
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..16u64 {
        let cached = cache.blob(&Digest::sha256(&content), source.clone()).unwrap();
        let content = Arc::clone(&content);
        readers.spawn(async move {
            let range = ByteRange::new(reader * 1000, SIZE - reader * 10_000);
            let bytes = read_vec(&*cached, range).await.unwrap();
            assert_eq!(bytes, content[range.start as usize..range.end as usize]);
        });
    }
    while let Some(reader) = readers.join_next().await {
        reader.unwrap();
    }
    assert_eq!(source.delivered(), SIZE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_open_directories_fetch_each_block_once() {
    let place = Place::new();
    let content = noise(SIZE, 2);
    let source = Source::slow(&content, Duration::from_millis(30));
    let digest = Digest::sha256(&content);
    let one = place.cache().blob(&digest, source.clone()).unwrap();
    let two = place.cache().blob(&digest, source.clone()).unwrap();
    let late = ByteRange::new(3 * BLOCK_BYTES + 5, SIZE);
    let (one, two) = tokio::join!(read_all(&*one), read_vec(&*two, late));
    assert_eq!(one.unwrap(), content);
    assert_eq!(two.unwrap(), content[late.start as usize..]);
    assert_eq!(source.delivered(), SIZE);
}

#[tokio::test]
async fn neighbouring_misses_are_one_fetch_of_whole_blocks() {
    let place = Place::new();
    let content = noise(SIZE, 3);
    let source = Source::new(&content);
    let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
    read_vec(&*cached, ByteRange::new(4 * BLOCK_BYTES + 1, 4 * BLOCK_BYTES + 2)).await.unwrap();
    assert_eq!(source.asked(), [ByteRange::new(4 * BLOCK_BYTES, 5 * BLOCK_BYTES)]);
    assert!(cached.present(ByteRange::new(4 * BLOCK_BYTES, 5 * BLOCK_BYTES)));
    assert!(!cached.present(ByteRange::new(4 * BLOCK_BYTES, 5 * BLOCK_BYTES + 1)));
    assert_eq!(cached.bytes_present(), BLOCK_BYTES);
    assert_eq!(cached.verified(), VerifiedLevel::None);
    read_vec(&*cached, ByteRange::new(2 * BLOCK_BYTES + 9, SIZE)).await.unwrap();
    let around =
        [ByteRange::new(2 * BLOCK_BYTES, 4 * BLOCK_BYTES), ByteRange::new(4 * BLOCK_BYTES, 5 * BLOCK_BYTES)];
    assert_eq!(source.asked()[..2], around);
    assert_eq!(source.asked()[2..], [ByteRange::new(5 * BLOCK_BYTES, SIZE)]);
    cached.ensure(ByteRange::new(0, SIZE)).await.unwrap();
    assert_eq!(source.delivered(), SIZE);
    assert_eq!(cached.verified(), VerifiedLevel::Full);
}

#[tokio::test]
async fn a_large_read_is_split_into_fetches_of_four_mebibytes() {
    let place = Place::new();
    let content = noise(9 << 20, 4);
    let source = Source::new(&content);
    let cached = place.cache().stream(&Digest::sha256(b"x"), sums(&content), source.clone()).unwrap();
    cached.ensure(ByteRange::new(0, 9 << 20)).await.unwrap();
    let mib = |from: u64, to: u64| ByteRange::new(from << 20, to << 20);
    assert_eq!(source.asked(), [mib(0, 4), mib(4, 8), mib(8, 9)]);
    assert_eq!(cached.served(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wider_delivery_answers_readers_of_unrequested_blocks() {
    let place = Place::new();
    let content = noise(SIZE, 5);
    // It begins after 200 ms, and brings the last block 680 ms later.
    let source = Source::slow(&content, Duration::from_millis(200));
    source.answer(Answer::Whole);
    let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
    let first = tokio::spawn({
        let cached = cached.clone();
        async move { read_vec(&*cached, ByteRange::new(0, 10)).await.unwrap() }
    });
    becomes_true("the first block is there", || cached.present(ByteRange::new(0, 10))).await;
    let last = read_vec(&*cached, ByteRange::new(SIZE - 10, SIZE)).await.unwrap();
    assert_eq!(last, content[SIZE as usize - 10..]);
    assert_eq!(first.await.unwrap(), content[..10]);
    assert_eq!(source.asked().len(), 1, "the second reader waits for the delivery that is under way");
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(source.asked().len(), 1);
    assert_eq!(cached.state(), VerificationState::Verified);
}

/// On one thread: the fetch goes on only when every reader has joined it.
#[tokio::test]
async fn all_readers_of_a_failed_fetch_get_its_error_and_the_next_read_tries_again() {
    let place = Place::new();
    let content = noise(SIZE, 6);
    let source = Source::slow(&content, Duration::from_millis(60));
    source.answer(Answer::Refuse);
    let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
    let readers = (0..8).map(|_| read_vec(&*cached, ByteRange::new(5, 50)));
    for error in futures_util::future::join_all(readers).await {
        let error = error.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Unavailable);
        assert!(error.chain().ends_with("the line is dead"), "{}", error.chain());
    }
    assert_eq!(source.asked().len(), 1);
    source.answer(Answer::Exact);
    assert_eq!(read_all(&*cached).await.unwrap(), content);
}

#[tokio::test]
async fn a_delivery_that_breaks_keeps_its_whole_blocks() {
    let place = Place::new();
    let content = noise(SIZE, 7);
    let source = Source::answering(&content, Answer::Break(3 * BLOCK_BYTES + 77));
    let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
    assert_eq!(read_all(&*cached).await.unwrap_err().fault(), FaultClass::Unavailable);
    assert_eq!(cached.bytes_present(), 3 * BLOCK_BYTES);
    source.answer(Answer::Exact);
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(source.asked()[1..], [ByteRange::new(3 * BLOCK_BYTES, SIZE)]);
}

#[tokio::test]
async fn a_short_long_or_displaced_delivery_is_the_sources_fault_and_its_end_is_not_stored() {
    for answer in [Answer::Short, Answer::Long, Answer::Elsewhere] {
        let place = Place::new();
        let content = noise(2 * BLOCK_BYTES + 10, 8);
        let source = Source::answering(&content, answer);
        let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
        assert_eq!(read_all(&*cached).await.unwrap_err().fault(), FaultClass::Misbehaved);
        assert!(!cached.present(ByteRange::new(2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 10)));
        source.answer(Answer::Exact);
        assert_eq!(read_all(&*cached).await.unwrap(), content);
        assert_eq!(cached.state(), VerificationState::Verified);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_does_not_stop_the_fetch() {
    let place = Place::new();
    let content = noise(2 * BLOCK_BYTES, 9);
    let source = Source::slow(&content, Duration::from_millis(50));
    let cached = place.cache().blob(&Digest::sha256(&content), source.clone()).unwrap();
    // The reader goes as soon as its fetch is under way.
    tokio::select! {
        biased;
        () = becomes_true("it is asked for", || !source.asked().is_empty()) => {}
        read = read_all(&*cached) => assert_eq!(read.unwrap(), content),
    }
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(source.asked().len(), 1);
}

#[tokio::test]
async fn verified_content_is_served_without_a_source() {
    let place = Place::new();
    let content = noise(SIZE, 10);
    let digest = filled(&place, &content).await;
    let source = Source::answering(&content, Answer::Refuse);
    let cached = place.cache().blob(&digest, source.clone()).unwrap();
    assert_eq!(cached.verified(), VerifiedLevel::Full);
    let mut buf = vec![0; 1 << 20];
    assert!(cached.read_ready(BLOCK_BYTES / 2, &mut buf).unwrap(), "a FUSE read needs no waiting");
    assert_eq!(buf, content[BLOCK_BYTES as usize / 2..][..1 << 20]);
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(cached.served(), SIZE + (1 << 20));
    assert!(source.asked().is_empty());
}

#[tokio::test]
async fn empty_content_matches_the_digest_of_nothing() {
    let place = Place::new();
    let good = place.cache().blob(&Digest::sha256(b""), Source::new(b"")).unwrap();
    assert_eq!((good.state(), good.verified()), (VerificationState::Verified, VerifiedLevel::Full));
    assert_eq!(read_all(&*good).await.unwrap(), b"");
    let bad = place.cache().blob(&Digest::sha256(b"x"), Source::new(b"")).unwrap();
    assert_eq!(bad.state(), VerificationState::Poisoned);
    assert_eq!(read_all(&*bad).await.unwrap_err().fault(), FaultClass::Mismatch);
}

#[tokio::test]
async fn a_wrong_size_that_was_claimed_once_leaves_nothing_behind() {
    let content = noise(3 * BLOCK_BYTES + 77, 91);
    let digest = Digest::sha256(&content);
    let longer = [&content[..], &[0; 5]].concat();
    for wrong in [&content[..content.len() - 5], &longer] {
        for origin in ["", "registry.test/one"] {
            let place = Place::new();
            let cache = place.cache().for_origin(origin);
            let held = cache.blob(&digest, Source::new(wrong)).unwrap();
            assert_eq!(read_vec(&*held, ByteRange::new(0, 10)).await.unwrap(), content[..10]);
            // One process holds one size.
            let error = cache.blob(&digest, Source::new(&content)).err().unwrap();
            assert_eq!(error.fault(), FaultClass::Malformed);
            let next = place.cache().for_origin(origin);
            let blob = next.blob(&digest, Source::new(&content)).unwrap();
            assert_eq!(read_all(&*blob).await.unwrap(), content);
            assert_eq!(blob.until_verified().await, Some(VerificationState::Verified));
            // The one that holds the wrong size keeps it, and breaks nothing.
            assert_eq!(read_all(&*held).await.unwrap_err().fault(), FaultClass::Mismatch);
            let last = place.cache().for_origin(origin);
            let source = Source::new(&content);
            assert_eq!(read_all(&*last.blob(&digest, source.clone()).unwrap()).await.unwrap(), content);
            assert!(source.asked().len() <= 1, "a proof of possession at most");
            // A verified size is proven.
            let error = place.cache().for_origin(origin).blob(&digest, Source::new(wrong)).err();
            assert_eq!(error.map(|error| error.fault()), Some(FaultClass::Malformed));
        }
    }
}

#[test]
fn the_same_content_is_the_same_value_while_it_lives() {
    let place = Place::new();
    let cache = place.cache();
    let digest = Digest::sha256(b"x");
    let blob = cache.blob(&digest, Source::new(b"1")).unwrap();
    assert!(Arc::ptr_eq(&blob, &cache.blob(&digest, Source::new(b"2")).unwrap()));
    assert!(!Arc::ptr_eq(&blob, &cache.stream(&digest, sums(b"2"), Source::new(b"2")).unwrap()));
}

#[test]
fn an_algorithm_that_cannot_be_checked_and_a_size_that_cannot_be_stored_are_refused() {
    struct Huge(u64);
    impl RangeFetch for Huge {
        fn size(&self) -> u64 {
            self.0
        }
        fn fetch(&self, _: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            panic!("not asked for");
        }
    }
    let cache = Place::new().cache();
    let listed: Digest = "blake3:00aa".parse().unwrap();
    assert_eq!(cache.blob(&listed, Source::new(b"1")).err().unwrap().fault(), FaultClass::Unsupported);
    assert_eq!(cache.document(&listed).unwrap_err().fault(), FaultClass::Unsupported);
    let place = Place::new();
    let cache = place.cache();
    let digest = Digest::sha256(b"x");
    let error = cache.blob(&digest, Arc::new(Huge(sidecar::MAX_SIZE + 1))).err().unwrap();
    assert_eq!(error.fault(), FaultClass::Unsupported);
    let largest = cache.blob(&digest, Arc::new(Huge(sidecar::MAX_SIZE))).unwrap();
    assert!(!largest.present(ByteRange::new(sidecar::MAX_SIZE - 1, sidecar::MAX_SIZE)));
    assert_eq!(largest.bytes_present(), 0);
}

/// Writes the blocks of `content` down, but for those of `skipped`, as the stream that has the checksums of `content`.
fn write_stream(cache: &BlockCache, digest: &Digest, content: &[u8], skipped: &[u64]) -> StreamWriter {
    let mut writer = cache.stream_writer(digest);
    for (number, block) in (0..).zip(content.chunks(BLOCK_BYTES as usize)) {
        if skipped.contains(&number) {
            writer.skip();
        } else {
            writer.keep(block, blake3::hash(block).as_bytes()).unwrap();
        }
    }
    writer
}

#[tokio::test]
async fn written_stream_needs_a_source_for_skipped_blocks_alone() {
    for size in [0, 5, BLOCK_BYTES, SIZE] {
        for skipped in [&[][..], &[1, 3]] {
            let place = Place::new();
            let content = noise(size, 40);
            let digest = Digest::sha256(b"a layer");
            for _ in 0..2 {
                let writer = write_stream(&place.cache(), &digest, &content, skipped);
                writer.publish(&sums(&content), size).unwrap();
                assert_eq!(place.temporaries(), 0, "the second one finds the name taken, and leaves nothing");
            }
            let source = Source::new(&content);
            let stream = place.cache().stream(&digest, sums(&content), source.clone()).unwrap();
            assert_eq!(read_all(&*stream).await.unwrap(), content);
            let left_out: u64 =
                skipped.iter().map(|block| size.saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES)).sum();
            assert_eq!(source.delivered(), left_out);
            assert_eq!(stream.state(), VerificationState::Complete);
        }
    }
}

#[tokio::test]
async fn blocks_of_an_aborted_pass_are_part_of_no_stream() {
    let place = Place::new();
    let content = noise(SIZE, 41);
    let digest = Digest::sha256(b"a layer");
    drop(write_stream(&place.cache(), &digest, &content[..4 * BLOCK_BYTES as usize], &[]));
    assert_eq!(place.temporaries(), 0);
    let source = Source::new(&content);
    let stream = place.cache().stream(&digest, sums(&content), source.clone()).unwrap();
    assert_eq!(read_all(&*stream).await.unwrap(), content);
    assert_eq!(source.delivered(), SIZE);
}

#[tokio::test]
async fn streams_that_differ_in_one_block_share_none() {
    let place = Place::new();
    let (right, digest) = (noise(SIZE, 42), Digest::sha256(b"a layer"));
    let mut wrong = right.clone();
    wrong[5 * BLOCK_BYTES as usize] ^= 1;
    let cache = place.cache().for_origin("ghcr.io/a");
    write_stream(&cache, &digest, &wrong, &[]).publish(&sums(&wrong), SIZE).unwrap();
    let read = async |content: &[u8], source: Arc<Source>| {
        let stream = cache.stream(&digest, sums(content), source).unwrap();
        read_all(&*stream).await.unwrap() == content
    };
    let source = Source::new(&right);
    assert!(read(&right, source.clone()).await);
    assert_eq!(source.delivered(), SIZE, "nothing of the other one is taken");
    assert!(read(&wrong, Source::answering(&wrong, Answer::Refuse)).await);
}

#[tokio::test]
async fn a_block_of_a_stream_counts_by_the_checksum_that_was_asked_for_and_not_by_its_record() {
    let place = Place::new();
    let (right, digest) = (noise(SIZE, 43), Digest::sha256(b"a layer"));
    let mut wrong = right.clone();
    wrong[5 * BLOCK_BYTES as usize] ^= 1;
    // A stream whose name says one thing, and whose records prove another.
    write_stream(&place.cache(), &digest, &wrong, &[]).publish(&sums(&right), SIZE).unwrap();
    let source = Source::new(&right);
    let stream = place.cache().stream(&digest, sums(&right), source.clone()).unwrap();
    assert_eq!(read_all(&*stream).await.unwrap(), right);
    assert_eq!(source.asked(), [ByteRange::at(5 * BLOCK_BYTES, BLOCK_BYTES)]);
    drop(stream);
    // What its source decodes wrongly is an error, and is not kept.
    let other = noise(SIZE, 44);
    let stream = place.cache().stream(&digest, sums(&other), Source::new(&right)).unwrap();
    assert_eq!(read_all(&*stream).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert_eq!(stream.bytes_present(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_holds_the_build_lock() {
    let place = Place::new();
    let digest = Digest::sha256(b"a layer");
    let held = place.cache().build_lock(&digest).await.unwrap();
    let other = place.cache().build_lock(&Digest::sha256(b"another")).await.unwrap();
    let cache = place.cache();
    let mut waiting = tokio::spawn(async move { cache.build_lock(&digest).await });
    assert!(tokio::time::timeout(Duration::from_millis(150), &mut waiting).await.is_err());
    drop(held);
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    drop(other);
}
