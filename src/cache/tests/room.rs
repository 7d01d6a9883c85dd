//! The limit within one process: what goes, in which order, and what never does.

use std::fs;
use std::path::Path;

use super::*;
use crate::cache::SizeLimit;

const MIB: u64 = 1 << 20;

impl Place {
    fn limited(&self, limit: u64) -> BlockCache {
        BlockCache::open_limited(self.dir.path(), SizeLimit::Bytes(limit)).unwrap()
    }

    /// What the files take of the disk.
    fn occupied(&self) -> u64 {
        occupied(&self.dir.path().join("v1"))
    }
}

fn occupied(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        // A file may go while it is looked at.
        let Ok(found) = entry.metadata() else { continue };
        total += if found.is_dir() { occupied(&entry.path()) } else { found.blocks() * 512 };
    }
    total
}

async fn read_through(cache: &BlockCache, content: &[u8]) -> Arc<CachedFile> {
    let cached = cache.blob(&Digest::sha256(content), Source::new(content)).unwrap();
    for start in (0..content.len() as u64).step_by(MIB as usize) {
        let range = ByteRange::new(start, (start + MIB).min(content.len() as u64));
        let bytes = read_vec(&*cached, range).await.unwrap();
        assert!(bytes == content[range.start as usize..range.end as usize], "wrong bytes at {start}");
    }
    cached
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_evicts_closed_content_first_oldest_before_newer() {
    let place = Place::new();
    let contents: Vec<Vec<u8>> = (0..4).map(|seed| noise(2 * MIB, 200 + seed)).collect();
    let names: Vec<Digest> = contents.iter().map(|content| Digest::sha256(content)).collect();
    for (age, content) in contents[..3].iter().enumerate() {
        let digest = filled(&place, content).await;
        // The last use is told by the time of the last write to the sidecar.
        let map = fs::File::options().write(true).open(place.map(&digest)).unwrap();
        let used = std::time::SystemTime::now() - Duration::from_secs(100 * (3 - age as u64));
        map.set_modified(used).unwrap();
    }
    let cache = place.limited(7 * MIB);
    // The oldest one is in use, and so has become the newest one.
    let held = cache.blob(&names[0], Source::new(&contents[0])).unwrap();
    let fresh = read_through(&cache, &contents[3]).await;
    assert!(place.data(&names[0]).exists(), "it is in use");
    assert!(!place.data(&names[1]).exists(), "it was not used for longest");
    assert!(place.data(&names[2]).exists(), "there is room for it");
    assert_eq!(fresh.bytes_present(), 2 * MIB);
    assert_eq!(held.bytes_present(), 2 * MIB);
    assert!(cache.evicted() >= 2 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_open_content_go_when_nothing_else_can_and_verified_content_stays_verified() {
    let place = Place::new();
    let cache = place.limited(6 * MIB);
    let (small, large) = (noise(3 * MIB + 77, 210), noise(20 * MIB + 5, 211));
    let first = read_through(&cache, &small).await;
    wait_for_disk(&place, first.digest(), small.len() as u64, VerificationState::Verified).await;
    let second = read_through(&cache, &large).await;
    assert!(place.occupied() <= 6 * MIB + BLOCK_BYTES, "{}", place.occupied());
    assert!(first.bytes_present() < small.len() as u64, "older blocks make room");
    assert!(second.bytes_present() >= 3 * MIB, "{}", second.bytes_present());
    assert_eq!(first.state(), VerificationState::Verified);
    assert!(first.backing().is_none(), "it has holes");
    // All of it was hashed in order before it was evicted.
    assert_eq!(second.state(), VerificationState::Verified);
    // What was evicted is fetched, and must be what it was.
    assert_eq!(read_all(&*first).await.unwrap(), small);
    assert_eq!(first.state(), VerificationState::Verified);
    check_random_ranges(&*second, &large).await;
    assert!(place.occupied() <= 6 * MIB + BLOCK_BYTES, "{}", place.occupied());
}

#[tokio::test(flavor = "multi_thread")]
async fn refetched_block_of_verified_content_must_match() {
    let place = Place::new();
    let cache = place.limited(6 * MIB);
    let (content, other) = (noise(3 * MIB, 220), noise(20 * MIB, 221));
    let source = Source::new(&content);
    let cached = cache.blob(&Digest::sha256(&content), source).unwrap();
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    wait_for_disk(&place, cached.digest(), content.len() as u64, VerificationState::Verified).await;
    read_through(&cache, &other).await;
    assert_eq!(cached.bytes_present(), 0);
    drop(cached);
    let lie = noise(3 * MIB, 222);
    let cached = cache.blob(&Digest::sha256(&content), Source::new(&lie)).unwrap();
    let error = read_all(&*cached).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Mismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_handed_out_stays_whole_and_goes_when_it_was_given_back() {
    let place = Place::new();
    let cache = place.limited(6 * MIB);
    let (content, other) = (noise(3 * MIB, 230), noise(20 * MIB, 231));
    let cached = read_through(&cache, &content).await;
    wait_for_disk(&place, cached.digest(), content.len() as u64, VerificationState::Verified).await;
    let patience = Instant::now() + PATIENCE;
    let file = loop {
        if let Some(file) = cached.backing() {
            break file;
        }
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let scanned = read_through(&cache, &other).await;
    assert!(place.occupied() <= 6 * MIB + BLOCK_BYTES, "{}", place.occupied());
    assert_eq!(cached.bytes_present(), content.len() as u64);
    let mut seen = vec![0; content.len()];
    use std::os::unix::fs::FileExt as _;
    fs::File::from(file.try_clone().unwrap()).read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == content);
    drop((file, scanned));
    read_through(&cache, &noise(20 * MIB, 232)).await;
    assert_eq!(cached.bytes_present(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_another_process_has_open_loses_nothing_and_reads_go_on_without_storing() {
    let place = Place::new();
    let content = noise(5 * MIB, 240);
    // A cache of its own has its own open files, as another process has.
    let (here, there) = (place.limited(6 * MIB), place.limited(6 * MIB));
    let ours = read_through(&here, &content).await;
    let theirs = there.blob(&Digest::sha256(&content), Source::new(&content)).unwrap();
    let other = noise(8 * MIB, 241);
    let scanned = read_through(&here, &other).await;
    assert_eq!(ours.bytes_present(), content.len() as u64);
    assert!(scanned.bytes_present() < MIB + BLOCK_BYTES);
    assert!(place.occupied() <= 6 * MIB + BLOCK_BYTES, "{}", place.occupied());
    drop(theirs);
    let scanned = read_through(&here, &other).await;
    assert!(scanned.bytes_present() > 3 * MIB, "{}", scanned.bytes_present());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_and_evictions_at_the_same_time_never_make_a_zero() {
    let place = Place::new();
    let cache = place.limited(4 * MIB);
    let content = Arc::new(noise(12 * MIB + 321, 250));
    let cached = cache.blob(&Digest::sha256(&content), Source::new(&content)).unwrap();
    let readers: Vec<_> = (0..6u64)
        .map(|reader| {
            let (cached, content) = (cached.clone(), content.clone());
            tokio::spawn(async move {
                let mut state = reader + 1;
                for round in 0..400 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    let start = (state >> 20) % (content.len() as u64 - 70_000);
                    let range = ByteRange::at(start, (state >> 50) % 70_000 + 1);
                    let bytes = read_vec(&*cached, range).await.unwrap();
                    let right = &content[range.start as usize..range.end as usize];
                    assert!(bytes == right, "reader {reader}, round {round}: {range}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(cache.evicted() > 8 * MIB, "{}", cache.evicted());
    assert!(place.occupied() <= 4 * MIB + BLOCK_BYTES, "{}", place.occupied());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_lost_is_counted_again_and_nothing_is_stored_before() {
    let place = Place::new();
    let old = noise(3 * MIB, 260);
    filled(&place, &old).await;
    let account = place.dir.path().join("v1/account");
    for damage in ["lost", "torn"] {
        match damage {
            "lost" => fs::remove_file(&account).unwrap(),
            _ => fs::write(&account, [7; 64]).unwrap(),
        }
        let cache = place.limited(40 * MIB);
        let patience = Instant::now() + PATIENCE;
        let used = loop {
            match cache.used() {
                Some(used) => break used,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            assert!(Instant::now() < patience, "{damage}");
        };
        assert!(used >= 3 * MIB && used <= place.occupied() + BLOCK_BYTES, "{damage}: {used}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lowered_limit_evicts_the_excess_and_small_files_last() {
    let place = Place::new();
    let mut documents = Vec::new();
    for seed in 0..6 {
        filled(&place, &noise(2 * MIB, 270 + seed)).await;
        let document = noise(300_000, 280 + seed);
        place.cache().put_document(&Digest::sha256(&document), &document).unwrap();
        documents.push(Digest::sha256(&document));
    }
    // Somebody else wrote all this: nothing is known of it.
    fs::remove_file(place.dir.path().join("v1/account")).unwrap();
    let cache = place.limited(5 * MIB);
    let patience = Instant::now() + PATIENCE;
    while place.occupied() > 5 * MIB {
        assert!(Instant::now() < patience, "{} are left", place.occupied());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(documents.iter().all(|digest| cache.document(digest).unwrap().is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_finds_room_where_blocks_are() {
    let place = Place::new();
    let cache = place.limited(4 * MIB);
    let held = read_through(&cache, &noise(6 * MIB, 290)).await;
    for seed in 0..20u64 {
        let document = noise(400_000, 300 + seed);
        cache.put_document(&Digest::sha256(&document), &document).unwrap();
        assert!(place.occupied() <= 4 * MIB + BLOCK_BYTES, "{}", place.occupied());
    }
    assert!(held.bytes_present() < 4 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn decoded_streams_give_their_blocks_too() {
    let place = Place::new();
    let cache = place.limited(5 * MIB);
    let mut content = noise(12 * MIB, 310);
    // Holes take no room, and so give none back.
    content[MIB as usize..2 * MIB as usize].fill(0);
    let digest = Digest::sha256(b"a layer");
    let stream = cache.stream(&digest, sums(&content), Source::new(&content)).unwrap();
    for _ in 0..2 {
        for start in (0..12 * MIB).step_by(MIB as usize) {
            let range = ByteRange::at(start, MIB);
            let bytes = read_vec(&*stream, range).await.unwrap();
            assert!(bytes == content[range.start as usize..range.end as usize]);
        }
        assert!(place.occupied() <= 5 * MIB + BLOCK_BYTES, "{}", place.occupied());
    }
    assert_eq!(stream.state(), VerificationState::Partial);
    assert!(stream.bytes_present() > 2 * MIB);
    assert!(cache.used().unwrap() + BLOCK_BYTES >= place.occupied());
}
