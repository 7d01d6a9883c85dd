//! The account: never below what the files take, and no more than a block above it when all is at rest.

use std::fs;
use std::path::Path;

use super::super::eviction_scan;
use super::super::quota::{CacheQuota, WritePriority};
use super::super::usage::{Usage, UsageFile};
use super::*;
use crate::cache::SizeLimit;

const MIB: u64 = 1 << 20;

/// What all files and directories below `path` take of the disk.
fn du(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::symlink_metadata(path).unwrap();
    let below = match found.is_dir() {
        true => fs::read_dir(path).unwrap().map(|entry| du(&entry.unwrap().path())).sum(),
        false => 0,
    };
    found.blocks() * 512 + below
}

fn limited(place: &Place, limit: u64) -> BlockCache {
    BlockCache::open_limited(place.dir.path(), SizeLimit::Bytes(limit)).unwrap()
}

fn fits(place: &Place, cache: &BlockCache) {
    let (used, here) = (cache.used().unwrap(), du(&place.dir.path().join("v1")));
    assert!(used >= here, "the account says {used}, the files take {here}");
    assert!(used <= here + BLOCK_BYTES, "the account says {used}, the files take {here}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_blocks_are_counted_at_their_allocated_size() {
    let place = Place::new();
    let cache = limited(&place, 8 * MIB);
    fits(&place, &cache);
    let content = noise(20 * MIB + 5, 230);
    let cached = cache.blob(&Digest::sha256(&content), Source::new(&content)).unwrap();
    for _ in 0..3 {
        cached.ensure(ByteRange::new(0, content.len() as u64)).await.unwrap();
        fits(&place, &cache);
    }
    let mut sparse = vec![0; 6 * MIB as usize];
    for page in (0..sparse.len()).step_by(12_288) {
        sparse[page] = 1;
    }
    let stream = cache.stream(&Digest::sha256(b"layer"), sums(&sparse), Source::new(&sparse)).unwrap();
    stream.ensure(ByteRange::new(0, sparse.len() as u64)).await.unwrap();
    cache.put_document(&Digest::sha256(b"{}"), b"{}").unwrap();
    fits(&place, &cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn poisoned_blob_releases_its_quota() {
    let place = Place::new();
    let cache = limited(&place, 40 * MIB);
    let content = noise(8 * MIB, 231);
    let cached = cache.blob(&Digest::sha256(b"something else"), Source::new(&content)).unwrap();
    assert!(cached.ensure(ByteRange::new(0, content.len() as u64)).await.is_err());
    assert_eq!(cached.state(), VerificationState::Poisoned);
    // Readers are woken before the space is given back.
    while cache.used().unwrap() >= MIB {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fits(&place, &cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphaned_stream_releases_its_quota() {
    let place = Place::new();
    let cache = limited(&place, 40 * MIB);
    let content = noise(3 * MIB, 232);
    let of_origin = cache.for_origin("ghcr.io/a");
    let stream = of_origin.stream(&Digest::sha256(b"layer"), sums(&content), Source::new(&content)).unwrap();
    stream.ensure(ByteRange::new(0, content.len() as u64)).await.unwrap();
    drop(stream);
    assert!(cache.used().unwrap() > 3 * MIB);
    // The end of its last fetch closes it.
    let patience = Instant::now() + PATIENCE;
    let mut reasons = Vec::new();
    while place.cache().inventory().collect(|_, reason, _| reasons.push(reason)).unwrap().removed == 0 {
        assert!(Instant::now() < patience, "it stays in use");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(reasons, [crate::cache::GarbageReason::Orphaned]);
    assert!(cache.used().unwrap() < MIB);
    fits(&place, &cache);
}

/// The room of another process in the same directory.
fn other_process(place: &Place, limit: u64) -> Arc<CacheQuota> {
    CacheQuota::new(&place.dir.path().join("v1"), SizeLimit::Bytes(limit), false)
}

#[test]
fn bytes_that_a_killed_process_had_reserved_leave_the_account_at_the_next_open() {
    let place = Place::new();
    drop(limited(&place, 8 * MIB));
    let killed = other_process(&place, 8 * MIB);
    std::mem::forget(killed.reserve(4 * MIB, WritePriority::Block).unwrap());
    let watching = place.cache();
    assert!(watching.used().unwrap() > 4 * MIB);
    // While it lives, it may still write them.
    assert!(killed.reserve(5 * MIB, WritePriority::Block).is_none());
    drop(killed);
    let next = limited(&place, 8 * MIB);
    let patience = Instant::now() + PATIENCE;
    while next.used().unwrap() > 4 * MIB {
        assert!(Instant::now() < patience, "{:?} in the account", next.used());
        std::thread::sleep(Duration::from_millis(5));
    }
    fits(&place, &next);
}

#[test]
fn bytes_that_are_written_across_a_count_are_in_the_account() {
    let place = Place::new();
    drop(limited(&place, 8 * MIB));
    let writer = other_process(&place, 8 * MIB);
    let reserved = writer.reserve(4 * MIB, WritePriority::Block).unwrap();
    let account = UsageFile::new(&place.dir.path().join("v1"));
    let mark = || account.change(|known| (None, known)).unwrap().unwrap().mark();
    let before = mark();
    let next = limited(&place, 8 * MIB);
    let patience = Instant::now() + PATIENCE;
    while mark() == before {
        assert!(Instant::now() < patience, "no count ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    reserved.confirm();
    assert!(next.used().unwrap() >= 4 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_evictions_leave_no_rest_in_the_account() {
    let place = Place::new();
    let cache = limited(&place, 4 * MIB);
    let mut sparse = vec![0; 3 * MIB as usize];
    for page in (0..sparse.len()).step_by(8192) {
        sparse[page] = 1;
    }
    let stream = cache.stream(&Digest::sha256(b"layer"), sums(&sparse), Source::new(&sparse)).unwrap();
    let others: Vec<_> = (0..2)
        .map(|seed| {
            let content = noise(3 * MIB, 250 + seed);
            cache.blob(&Digest::sha256(&content), Source::new(&content)).unwrap()
        })
        .collect();
    for _ in 0..60 {
        for cached in [&stream, &others[0], &others[1]] {
            cached.ensure(ByteRange::new(0, 3 * MIB)).await.unwrap();
        }
    }
    fits(&place, &cache);
}

#[test]
fn a_count_beside_a_removal_never_makes_the_account_too_low() {
    let dir = tempfile::tempdir().unwrap();
    let account = UsageFile::new(dir.path());
    let tally = Usage { used: 30_000, counted: 7, ..Usage::default() };
    account.change(|_| (Some(tally), ())).unwrap();
    // A prune removes a file of 20000 bytes; before it says so a count ends, which did not find the file any more.
    let removal = account.begin_removal(20_000);
    account.change(|_| (Some(Usage { used: 10_000, counted: 8, ..tally }), ())).unwrap();
    removal.finish(20_000);
    assert_eq!(account.change(|known| (None, known)).unwrap().unwrap().used, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn prunes_beside_counts_leave_no_account_that_is_too_low() {
    let place = Place::new();
    let cache = limited(&place, 64 * MIB);
    for round in 0..4 {
        for seed in 0..8 {
            filled_in(&cache, &noise(MIB, 240 + round * 8 + seed)).await;
        }
        // As a count that begins anew does: while the account is not known.
        fs::write(place.dir.path().join("v1/account"), b"lost").unwrap();
        let counting = limited(&place, 64 * MIB);
        let pruned = place
            .cache()
            .inventory()
            .prune(crate::cache::PrunePolicy { older_than: None, keep: Some(0) }, |_, _| {});
        assert!(pruned.unwrap().removed > 0);
        for _ in 0..200 {
            let root = place.dir.path().join("v1");
            if let Some(used) = counting.used() {
                let here = eviction_scan::count(&root).used;
                assert!(used >= here, "round {round}: the account says {used}, the files take {here}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

async fn filled_in(cache: &BlockCache, content: &[u8]) {
    let cached = cache.blob(&Digest::sha256(content), Source::new(content)).unwrap();
    // Refused while the account is not known, which is no matter here.
    cached.ensure(ByteRange::new(0, content.len() as u64)).await.unwrap();
}
