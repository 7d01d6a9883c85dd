//! What no reader waits for: the hash of a whole blob, the files of other content, the disk work of another task.

use std::sync::atomic::AtomicBool;

use super::*;

/// More than is hashed while a reader waits.
const LARGE: u64 = 66 << 20;

/// Content of which `missing` alone is not on disk.
async fn all_but(place: &Place, content: &[u8], missing: Option<u64>) -> Digest {
    let digest = Digest::sha256(content);
    // As a stream's owner writes it: nothing is compared with the digest.
    let files = super::super::files::BlockPaths::of(place.data(&digest));
    drop(place.cache());
    let pair = super::super::block_file::BlockFile::open(
        &files.data,
        &files.map,
        super::super::sidecar::ContentKind::Blob,
        &digest,
    )
    .unwrap();
    pair.sidecar.settle_size(&digest, content.len() as u64).unwrap();
    for (block, bytes) in (0..).zip(content.chunks(BLOCK_BYTES as usize)) {
        if Some(block) != missing {
            assert!(pair.store(block, bytes, blake3::hash(bytes).as_bytes()).is_ok());
        }
    }
    digest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_block_is_served_before_the_rest_is_hashed() {
    let place = Place::new();
    let content = noise(LARGE, 260);
    let digest = all_but(&place, &content, Some(9)).await;
    let cached = place.cache().blob(&digest, Source::new(&content)).unwrap();
    let hashing = cached.inner.proof.hold();
    let range = ByteRange::at(9 * BLOCK_BYTES, 100);
    let read = tokio::time::timeout(PATIENCE, read_vec(&*cached, range)).await;
    assert_eq!(read.unwrap().unwrap(), content[9 * BLOCK_BYTES as usize..][..100]);
    assert_ne!(cached.state(), VerificationState::Verified);
    drop(hashing);
    assert_eq!(cached.until_verified().await, Some(VerificationState::Verified));
}

/// Reads the block that completes wrong content, by its fetch and from disk, while another thread holds the hash; then lets go.
async fn completes_wrongly(size: u64, seed: u64) {
    let place = Place::new();
    let mut content = noise(size, seed);
    let last = (size - 1) / BLOCK_BYTES * BLOCK_BYTES;
    let digest = all_but(&place, &content, Some(last / BLOCK_BYTES)).await;
    *content.last_mut().unwrap() ^= 1;
    let cached = place.cache().blob(&digest, Source::new(&content)).unwrap();
    // All that is here is hashed.
    assert!(!cached.inner.conclude(&cached.inner.pair().unwrap()));
    let patience = Instant::now() + PATIENCE;
    let hashing = cached.inner.proof.hold();
    let end = ByteRange::new(last, size);
    let by_fetch = tokio::spawn({
        let cached = Arc::clone(&cached);
        async move { read_vec(&*cached, end).await }
    });
    while !cached.present(end) {
        assert!(Instant::now() < patience, "the last block is stored");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut page = vec![0; 100];
    assert!(!cached.read_ready(last, &mut page).unwrap(), "not before the digest is known");
    let from_disk = tokio::spawn({
        let cached = Arc::clone(&cached);
        async move { read_vec(&*cached, end).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!by_fetch.is_finished() && !from_disk.is_finished(), "answered before the digest was known");
    drop(hashing);
    assert_eq!(by_fetch.await.unwrap().unwrap_err().fault(), FaultClass::Mismatch);
    assert_eq!(from_disk.await.unwrap().unwrap_err().fault(), FaultClass::Mismatch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_of_the_last_block_is_answered_before_the_digest_is_known() {
    completes_wrongly(SIZE, 265).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_that_is_hashed_but_for_its_end_is_waited_for_too() {
    completes_wrongly(LARGE, 266).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_was_completed_and_not_compared_is_served_while_it_is_hashed() {
    let place = Place::new();
    let content = noise(LARGE, 261);
    let digest = all_but(&place, &content, None).await;
    let cached = place.cache().blob(&digest, Source::answering(&content, Answer::Refuse)).unwrap();
    let hashing = cached.inner.proof.hold();
    let read = tokio::time::timeout(PATIENCE, read_vec(&*cached, ByteRange::new(5, 900))).await;
    assert_eq!(read.unwrap().unwrap(), content[5..900]);
    drop(hashing);
    assert_eq!(cached.until_verified().await, Some(VerificationState::Verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_cannot_be_opened_yet_holds_up_no_other_content() {
    let place = Place::new();
    let (slow, quick) = (noise(1000, 262), noise(1000, 263));
    let digest = filled(&place, &slow).await;
    let cache = place.cache();
    // As a process that removes it and was stopped.
    let map = std::fs::File::open(place.map(&digest)).unwrap();
    map.lock().unwrap();
    let (opening, name) = (cache.clone(), digest.clone());
    let opener = std::thread::spawn(move || opening.blob(&name, Source::new(&slow)).unwrap());
    std::thread::sleep(Duration::from_millis(100));
    let other = cache.blob(&Digest::sha256(&quick), Source::new(&quick)).unwrap();
    assert_eq!(read_all(&*other).await.unwrap(), quick);
    assert!(!opener.is_finished(), "nothing was waited for");
    map.unlock().unwrap();
    drop(opener.join().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reading_task_continues_while_another_hashes_its_blocks() {
    let place = Place::new();
    let content = noise(LARGE, 264);
    let digest = all_but(&place, &content, None).await;
    let stream = place.cache().blob(&digest, Source::answering(&content, Answer::Refuse)).unwrap();
    stream.compared().await.unwrap();
    // Opened anew: every block has to be hashed.
    drop(stream);
    let stream = place.cache().blob(&digest, Source::answering(&content, Answer::Refuse)).unwrap();
    let (begun, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (begins, ends) = (begun.clone(), ended.clone());
    let reader = tokio::spawn(async move {
        begins.store(true, Ordering::SeqCst);
        let read = read_vec(&*stream, ByteRange::new(0, LARGE)).await.unwrap();
        ends.store(true, Ordering::SeqCst);
        read
    });
    let ticker = tokio::spawn(async move {
        let mut ticks = 0u64;
        while !ended.load(Ordering::SeqCst) {
            ticks += u64::from(begun.load(Ordering::SeqCst) && !ended.load(Ordering::SeqCst));
            tokio::task::yield_now().await;
        }
        ticks
    });
    assert!(reader.await.unwrap() == content);
    assert!(ticker.await.unwrap() > 10, "the worker was blocked");
}
