//! Copies of a blob: one never changes a block, and one that was found wrong goes with all that was made of it.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::cache::{CacheInventory, SizeLimit, VERIFY_FIRST_BYTES, VerifyMode};

const MIB: u64 = 1 << 20;

/// Gives other bytes from some time on.
struct Turncoat {
    first: Arc<Source>,
    then: Arc<Source>,
    has_turned: AtomicBool,
}

impl Turncoat {
    fn new(first: &[u8], then: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            first: Source::new(first),
            then: Source::new(then),
            has_turned: AtomicBool::new(false),
        })
    }

    fn turn(&self) {
        self.has_turned.store(true, Ordering::SeqCst);
    }
}

impl RangeFetch for Turncoat {
    fn size(&self) -> u64 {
        self.first.size()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        if self.has_turned.load(Ordering::SeqCst) { self.then.fetch(range) } else { self.first.fetch(range) }
    }
}

async fn read(cached: &Arc<CachedFile>, start: u64, len: u64) -> Result<Vec<u8>, ReadError> {
    read_vec(&**cached, ByteRange::at(start, len)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_went_cannot_come_back_different() {
    let (first, then) = (noise(16 * MIB, 500), noise(16 * MIB, 501));
    for digest in [Digest::sha256(&first), Digest::sha256(&then)] {
        let place = Place::new();
        let cache = BlockCache::open_limited(place.dir.path(), SizeLimit::Bytes(4 * MIB)).unwrap();
        let source = Turncoat::new(&first, &then);
        let cached = cache.blob(&digest, source.clone()).unwrap();
        assert!(read(&cached, 0, 4096).await.unwrap() == first[..4096]);
        for start in (MIB..12 * MIB).step_by(MIB as usize) {
            read(&cached, start, MIB).await.unwrap();
        }
        assert!(!cached.present(ByteRange::new(0, 4096)), "it went");
        source.turn();
        assert_eq!(read(&cached, 0, 4096).await.unwrap_err().fault(), FaultClass::Mismatch);
        assert_eq!(cached.state(), VerificationState::Poisoned);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_never_stored_cannot_come_again_different() {
    let (first, then) = (noise(12 * MIB, 510), noise(12 * MIB, 511));
    let place = Place::new();
    let cache = BlockCache::open_limited(place.dir.path(), SizeLimit::Bytes(4 * MIB)).unwrap();
    // Handed out to nobody in particular, all of the cache is kept.
    let other = noise(8 * MIB, 512);
    let held = cache.blob(&Digest::sha256(&other), Source::new(&other)).unwrap();
    let elsewhere = BlockCache::open(place.dir.path())
        .unwrap()
        .blob(&Digest::sha256(&other), Source::new(&other))
        .unwrap();
    read_all(&*held).await.unwrap();
    let digest = Digest::sha256(&then);
    let source = Turncoat::new(&first, &then);
    let cached = cache.blob(&digest, source.clone()).unwrap();
    let bytes = read(&cached, 5 * BLOCK_BYTES, 100).await.unwrap();
    assert!(bytes == first[5 * BLOCK_BYTES as usize..][..100]);
    assert!(!cached.present(ByteRange::at(5 * BLOCK_BYTES, 100)), "there was no room");
    source.turn();
    drop((held, elsewhere));
    // Nor in another process, which has room.
    let there = BlockCache::open(place.dir.path()).unwrap().blob(&digest, source.clone()).unwrap();
    for cached in [there, cached] {
        assert_eq!(read(&cached, 5 * BLOCK_BYTES, 100).await.unwrap_err().fault(), FaultClass::Mismatch);
        assert_eq!(cached.state(), VerificationState::Poisoned);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn poisoned_blob_restarts_with_all_derived_content() {
    let place = Place::new();
    let (right, wrong) = (noise(SIZE, 520), noise(SIZE, 521));
    let digest = Digest::sha256(&right);
    let cache = || place.cache().for_origin("registry.test/a");
    let streams = [noise(SIZE, 522), noise(SIZE, 523)];
    let made = |cache: &BlockCache, copy: &[u8; 16]| {
        let stream = cache.stream(&digest, sums(&streams[0]), Source::new(&streams[0])).unwrap();
        let claim = cache.claimed_stream(&digest, &[7; 32], copy, Source::new(&streams[1])).unwrap();
        cache.put_offer(&digest, b"offer").unwrap();
        (stream, claim)
    };
    let files = || {
        let mut names = Vec::new();
        for kind in ["streams", "claims", "offers"] {
            let dir = place.dir.path().join("v1").join(kind).join("sha256");
            names.extend(std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
        }
        names
    };
    let bad = cache().blob(&digest, Source::new(&wrong)).unwrap();
    let number = bad.copy_number().unwrap();
    {
        let (stream, claim) = made(&cache(), &number);
        read_all(&*stream).await.unwrap();
        read_all(&*claim).await.unwrap();
    }
    assert_eq!(files().len(), 5);
    // The same of another place is its own.
    let there = place.cache().for_origin("registry.test/b");
    let honest = there.blob(&digest, Source::new(&right)).unwrap();
    let theirs = made(&there, &honest.copy_number().unwrap());
    assert_eq!(read_all(&*bad).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert_eq!(files().len(), 5, "those of the other place: {:?}", files());
    drop(theirs);
    // A new process reads it anew; the one that may have handed out wrong bytes does not.
    let good = cache().blob(&digest, Source::new(&right)).unwrap();
    assert_ne!(good.copy_number().unwrap(), number);
    assert_eq!(read_all(&*good).await.unwrap(), right);
    assert_eq!(bad.state(), VerificationState::Poisoned);
    assert_eq!(read_all(&*bad).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert_eq!(read_all(&*honest).await.unwrap(), right);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_that_were_given_to_no_reader_are_fetched_again_by_the_next() {
    let place = Place::new();
    let (right, wrong) = (noise(SIZE, 525), noise(SIZE, 526));
    let source = Turncoat::new(&wrong, &right);
    let cache = place.cache().verifying(VerifyMode::Lazy, VERIFY_FIRST_BYTES);
    let cached = cache.blob(&Digest::sha256(&right), source.clone()).unwrap();
    assert_eq!(read(&cached, 0, 10).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert!(cached.is_rejected() && cached.bytes_present() == 0);
    assert_eq!(cached.state(), VerificationState::Poisoned);
    source.turn();
    assert!(read(&cached, 0, 10).await.unwrap() == right[..10]);
    assert_eq!(cached.state(), VerificationState::Verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn served_stream_returns_cached_blocks_and_stores_no_others() {
    let place = Place::new();
    let (right, wrong) = (noise(SIZE, 530), noise(SIZE, 531));
    let digest = Digest::sha256(b"layer");
    let claim = place.cache().claimed_stream(&digest, &[7; 32], &[1; 16], Source::new(&wrong)).unwrap();
    read(&claim, 3 * BLOCK_BYTES, 10).await.unwrap();
    let served = claim.as_served(Arc::new(crate::io::MemoryReader::new(right.clone())));
    let mut expected = right.clone();
    let block = 3 * BLOCK_BYTES as usize..4 * BLOCK_BYTES as usize;
    expected[block.clone()].copy_from_slice(&wrong[block]);
    assert_eq!(read_all(&*served).await.unwrap(), expected);
    assert_eq!(claim.bytes_present(), BLOCK_BYTES);
    assert_eq!(claim.first_other(&sums(&right)), Some(3));
    assert_eq!(claim.first_other(&sums(&wrong)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_decoded_from_a_removed_copy_is_collected() {
    let place = Place::new();
    let content = noise(SIZE, 540);
    let digest = Digest::sha256(&content);
    let cache = place.cache().for_origin("registry.test/a");
    let blob = cache.blob(&digest, Source::new(&content)).unwrap();
    read(&blob, 0, 10).await.unwrap();
    let claim =
        cache.claimed_stream(&digest, &[7; 32], &blob.copy_number().unwrap(), Source::new(&content)).unwrap();
    read(&claim, 0, 10).await.unwrap();
    drop((blob, claim));
    let inventory = CacheInventory::open(place.dir.path()).unwrap().unwrap();
    assert_eq!(inventory.collect(|_, _, _| {}).unwrap().removed, 0);
    let blob = place.dir.path().join("v1/blobs/sha256");
    for entry in std::fs::read_dir(blob).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let removed = || inventory.collect(|_, _, _| {}).unwrap().removed;
    // The end of its last fetch closes it.
    becomes_true("the stream is collected", || removed() == 1).await;
}
