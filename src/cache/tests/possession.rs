//! Proof of possession: what a tenant gets of a verified blob that another tenant brought.

use super::*;

const EVIL: &str = "evil.example/a";
const GOOD: &str = "good.example/b";

/// A verified blob of the good origin, with its index.
async fn shared(place: &Place, seed: u64) -> (Vec<u8>, Digest) {
    shared_of(place, noise(SIZE, seed)).await
}

async fn shared_of(place: &Place, content: Vec<u8>) -> (Vec<u8>, Digest) {
    let digest = Digest::sha256(&content);
    let cache = place.cache().sharing(BlobSharing::Proven).for_origin(GOOD);
    let cached = cache.blob(&digest, Source::new(&content)).unwrap();
    assert!(read_all(&*cached).await.unwrap() == content);
    drop(cached);
    place.promoted(&digest).await;
    cache.put_learnt(LayerMetadata::Archive, &digest, b"names").unwrap();
    (content, digest)
}

fn tenant(place: &Place, sharing: BlobSharing, origin: &str) -> BlockCache {
    place.cache().sharing(sharing).for_origin(origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_has_not_the_blob_gets_no_byte_and_no_name_of_it() {
    let place = Place::new();
    let (content, digest) = shared(&place, 700).await;
    let cache = tenant(&place, BlobSharing::Proven, EVIL);
    for source in [Source::answering(&content, Answer::Refuse), Source::new(&noise(SIZE, 701))] {
        let cached = cache.blob(&digest, source.clone()).unwrap();
        cached.locate().await;
        assert_eq!(source.asked().len(), 1);
        assert_eq!(cached.bytes_present(), 0);
        assert_ne!(cached.state(), VerificationState::Verified);
        assert!(read_all(&*cached).await.is_err());
        assert_eq!(cache.learnt(LayerMetadata::Archive, &digest).unwrap(), None);
        assert_eq!(cache.learnt_len(LayerMetadata::Archive, &digest), None);
    }
    // The others keep it.
    let nothing = Source::answering(&content, Answer::Refuse);
    let cached = tenant(&place, BlobSharing::Proven, GOOD).blob(&digest, nothing.clone()).unwrap();
    assert!(read_all(&*cached).await.unwrap() == content);
    assert!(nothing.asked().is_empty(), "it brought the blob");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_has_the_blob_shows_one_block_of_it_once() {
    let place = Place::new();
    let (content, digest) = shared(&place, 702).await;
    for requests in [1, 0] {
        let cache = tenant(&place, BlobSharing::Proven, EVIL);
        let source = Source::new(&content);
        let cached = cache.blob(&digest, source.clone()).unwrap();
        assert!(read_all(&*cached).await.unwrap() == content);
        assert_eq!(source.asked().len(), requests);
        assert!(source.delivered() <= BLOCK_BYTES);
        assert_eq!(cached.state(), VerificationState::Verified);
        assert_eq!(cache.learnt(LayerMetadata::Archive, &digest).unwrap().unwrap(), b"names");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_decides_for_an_origin_that_does_not_answer() {
    let place = Place::new();
    let (content, digest) = shared(&place, 703).await;
    let read = async |sharing| {
        let source = Source::answering(&content, Answer::Refuse);
        let cached = tenant(&place, sharing, EVIL).blob(&digest, source).unwrap();
        read_all(&*cached).await.is_ok_and(|bytes| bytes == content)
    };
    assert!(!read(BlobSharing::Proven).await);
    assert!(read(BlobSharing::ProvenOrSilent).await);
    // Silence proves nothing for later.
    assert!(!read(BlobSharing::Proven).await);
    assert!(read(BlobSharing::Always).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_are_no_proof_of_a_blob_that_has_other_blocks() {
    let place = Place::new();
    let zeros = vec![0; 9 * BLOCK_BYTES as usize];
    let (content, digest) = shared_of(&place, [&zeros[..], &noise(BLOCK_BYTES, 704)].concat()).await;
    for attempt in 0..30 {
        let cached = tenant(&place, BlobSharing::Proven, EVIL)
            .blob(&digest, Source::new(&vec![0; content.len()]))
            .unwrap();
        cached.locate().await;
        assert_ne!(cached.state(), VerificationState::Verified, "attempt {attempt}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_its_own_origin_completed_is_cached_after_its_files_were_closed() {
    let place = Place::new();
    let (content, digest) = shared(&place, 705).await;
    let cache = tenant(&place, BlobSharing::Proven, EVIL);
    let source = Source::answering(&content, Answer::Refuse);
    let cached = cache.blob(&digest, source.clone()).unwrap();
    cached.locate().await;
    source.answer(Answer::Exact);
    assert!(read_all(&*cached).await.unwrap() == content);
    let proof = cache.scoped_path("proofs", &digest).unwrap();
    exists(&proof).await;
    becomes_true("files are closed", || cache.room().close_idle() > 0).await;
    source.answer(Answer::Refuse);
    assert!(read_all(&*cached).await.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_a_removed_blob_are_collected() {
    let place = Place::new();
    let (content, digest) = shared(&place, 720).await;
    let cached = tenant(&place, BlobSharing::Proven, EVIL).blob(&digest, Source::new(&content)).unwrap();
    assert!(read_all(&*cached).await.unwrap() == content);
    drop(cached);
    let inventory = place.cache().inventory();
    let collected = || {
        let mut paths = Vec::new();
        inventory.collect(|path, _, _| paths.push(path.to_owned())).unwrap();
        paths
    };
    let remove = |kind| inventory.remove(|name| name.kind == kind, |_, _| {}).unwrap().removed;
    becomes_true("the blob is closed and removed", || remove(ItemKind::Blob) == 1).await;
    assert!(collected().is_empty(), "they count for the index");
    assert_eq!(remove(ItemKind::Index), 1);
    assert_eq!(collected().len(), 2, "of both origins");
    assert!(collected().is_empty());
}
