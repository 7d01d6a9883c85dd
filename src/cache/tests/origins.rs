//! Origins that share verified content: a missing block comes from the source of the reader's own origin, and a lie
//! of one origin is an error of that origin alone.

use super::*;
use crate::cache::SizeLimit;

const MIB: u64 = 1 << 20;
const EVIL: &str = "evil.example/a";
const GOOD: &str = "good.example/b";

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_a_shared_stream_is_decoded_by_the_readers_own_source() {
    let place = Place::new();
    let (content, digest) = (noise(SIZE, 600), Digest::sha256(b"a layer"));
    let cache = place.cache();
    // With an index the stream serves all origins.
    cache.put_learnt(LayerMetadata::Stream, &digest, b"index").unwrap();
    let truth = Source::new(&content);
    let evil =
        cache.for_origin(EVIL).stream(&digest, sums(&content), Source::new(&noise(SIZE, 601))).unwrap();
    let good = cache.for_origin(GOOD).stream(&digest, sums(&content), truth.clone()).unwrap();
    assert_eq!(read_all(&*evil).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert!(read_all(&*good).await.unwrap() == content);
    assert_eq!(truth.delivered(), SIZE);
    // The files are the same, so the other one reads the right blocks.
    assert!(read_all(&*evil).await.unwrap() == content);
    assert_eq!(truth.delivered(), SIZE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_a_verified_blob_that_went_comes_from_the_readers_own_source() {
    let place = Place::new();
    let content = noise(3 * MIB, 602);
    let digest = Digest::sha256(&content);
    {
        let cache = place.cache().for_origin(GOOD);
        let cached = cache.blob(&digest, Source::new(&content)).unwrap();
        assert!(read_all(&*cached).await.unwrap() == content);
    }
    // It serves all origins once it has its name.
    exists(&place.map(&digest)).await;
    let cache = BlockCache::open_limited(place.dir.path(), SizeLimit::Bytes(4 * MIB)).unwrap();
    {
        let other = noise(4 * MIB, 603);
        let held = cache.for_origin(GOOD).blob(&digest, Source::new(&content)).unwrap();
        let filler = cache.blob(&Digest::sha256(&other), Source::new(&other)).unwrap();
        assert!(read_all(&*filler).await.unwrap() == other);
        assert!(!held.present(ByteRange::new(0, 3 * MIB)), "some of it went");
        assert_eq!(held.state(), VerificationState::Verified);
    }
    let truth = Source::new(&content);
    let evil = cache.for_origin(EVIL).blob(&digest, Source::new(&noise(3 * MIB, 604))).unwrap();
    let good = cache.for_origin(GOOD).blob(&digest, truth.clone()).unwrap();
    assert_eq!(read_all(&*evil).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert!(read_all(&*good).await.unwrap() == content);
    assert!(truth.delivered() > 0);
    assert_eq!(good.state(), VerificationState::Verified);
}
