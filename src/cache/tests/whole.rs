//! Blobs of which nothing is given out before the whole was compared.

use super::*;
use crate::cache::{VERIFY_FIRST_BYTES, VerifyMode};

#[tokio::test(flavor = "multi_thread")]
async fn small_blob_with_a_wrong_end_serves_no_byte() {
    for verify in [VerifyMode::Lazy, VerifyMode::Strict, VerifyMode::Toc] {
        let place = Place::new();
        let content = noise(SIZE, 80);
        let digest = Digest::sha256(b"other");
        let cached =
            place.cache().verifying(verify, VERIFY_FIRST_BYTES).blob(&digest, Source::new(&content)).unwrap();
        let error = read_vec(&*cached, ByteRange::new(0, 10)).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Mismatch, "{verify:?}: {error}");
        assert_eq!(cached.verified(), VerifiedLevel::Poisoned);
        // Who asked for no mode gets blocks as they come.
        let other = Place::new();
        let cached = other.cache().blob(&digest, Source::new(&content)).unwrap();
        assert!(read_vec(&*cached, ByteRange::new(0, 10)).await.unwrap() == content[..10]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_more_than_small_comes_block_by_block_unless_all_is_to_be_proven() {
    for (size, verify, whole) in [
        (VERIFY_FIRST_BYTES, VerifyMode::Lazy, true),
        (VERIFY_FIRST_BYTES + 1, VerifyMode::Lazy, false),
        (VERIFY_FIRST_BYTES + 1, VerifyMode::Toc, false),
        (VERIFY_FIRST_BYTES + 1, VerifyMode::Strict, true),
    ] {
        let place = Place::new();
        let content = noise(size, 81);
        let source = Source::new(&content);
        let cached = place
            .cache()
            .verifying(verify, VERIFY_FIRST_BYTES)
            .blob(&Digest::sha256(&content), source.clone())
            .unwrap();
        assert!(read_vec(&*cached, ByteRange::new(100, 200)).await.unwrap() == content[100..200]);
        assert_eq!(source.delivered() == size, whole, "{size} {verify:?}: {}", source.delivered());
        assert_eq!(cached.state() == VerificationState::Verified, whole, "{size} {verify:?}");
        let mut buf = [0; 10];
        assert!(cached.read_ready(100, &mut buf).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peek_fetches_one_block_and_under_strict_the_whole_blob() {
    for (verify, whole) in [(VerifyMode::Lazy, false), (VerifyMode::Strict, true)] {
        let place = Place::new();
        let content = noise(SIZE, 82);
        let source = Source::new(&content);
        let cached = place
            .cache()
            .verifying(verify, VERIFY_FIRST_BYTES)
            .blob(&Digest::sha256(&content), source.clone())
            .unwrap();
        assert!(read_vec(&*cached.looked_at(), ByteRange::new(0, 10)).await.unwrap() == content[..10]);
        assert_eq!(source.delivered(), if whole { SIZE } else { BLOCK_BYTES }, "{verify:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listener_is_notified_of_a_blob_that_mismatches_its_digest() {
    let place = Place::new();
    let (cache, digest) = (place.cache(), Digest::sha256(b"other"));
    let mut news = cache.distrusted();
    let cached = cache.blob(&digest, Source::new(&noise(SIZE, 83))).unwrap();
    assert!(read_all(&*cached).await.is_err());
    assert_eq!(tokio::time::timeout(PATIENCE, news.recv()).await.unwrap().unwrap(), digest);
}
