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
    place.promoted(&digest).await;
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

/// A filled cache whose verified blob of three blocks lost the data and the record of its second one.
async fn with_a_lost_block(place: &Place, content: &[u8]) -> Digest {
    use std::os::unix::fs::FileExt as _;
    let digest = Digest::sha256(content);
    {
        let cached = place.cache().for_origin(GOOD).blob(&digest, Source::new(content)).unwrap();
        assert!(read_all(&*cached).await.unwrap() == content);
    }
    place.promoted(&digest).await;
    let file = |path| std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file(place.data(&digest)).write_all_at(&vec![0; BLOCK_BYTES as usize], BLOCK_BYTES).unwrap();
    file(place.map(&digest)).write_all_at(&[0; 64], 4096 + 64).unwrap();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_block_without_its_checksum_is_replaced_by_no_bytes_of_another_origin() {
    let zeros = vec![0; 3 * BLOCK_BYTES as usize];
    // Other bytes, and the ones that the damage left.
    for lie in [noise(3 * BLOCK_BYTES, 606), zeros] {
        let place = Place::new();
        let content = noise(3 * BLOCK_BYTES, 605);
        let digest = with_a_lost_block(&place, &content).await;
        let truth = Source::new(&content);
        let good = place.cache().for_origin(GOOD).blob(&digest, truth.clone()).unwrap();
        let evil = place.cache().for_origin(EVIL).blob(&digest, Source::new(&lie)).unwrap();
        assert_eq!(good.state(), VerificationState::Verified);
        assert_eq!(evil.state(), VerificationState::Verified);
        let second = ByteRange::at(BLOCK_BYTES, BLOCK_BYTES);
        match read_vec(&*evil, second).await {
            Ok(_) => assert_ne!(evil.verified(), VerifiedLevel::Full, "bytes that were not compared"),
            Err(error) => assert_eq!(error.fault(), FaultClass::Mismatch),
        }
        assert!(
            read_vec(&*good, second).await.unwrap()
                == content[BLOCK_BYTES as usize..][..second.len() as usize]
        );
        assert!(read_all(&*good).await.unwrap() == content);
        assert_eq!(good.verified(), VerifiedLevel::Full);
        assert!(truth.delivered() > 0);
        let later = place.cache().for_origin(GOOD).blob(&digest, Source::new(&content)).unwrap();
        assert!(read_all(&*later).await.unwrap() == content);
        assert_eq!(read_all(&*evil).await.unwrap_err().fault(), FaultClass::Mismatch);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_blob_that_lost_blocks_with_their_checksums_is_verified_anew() {
    for mode in [None, Some(VerifyMode::Strict)] {
        let place = Place::new();
        let content = noise(3 * BLOCK_BYTES, 607);
        let digest = with_a_lost_block(&place, &content).await;
        let source = Source::new(&content);
        let cache = place.cache().for_origin(GOOD);
        let cache = mode.map_or(cache.clone(), |mode| cache.verifying(mode, 0));
        let cached = cache.blob(&digest, source.clone()).unwrap();
        let second = ByteRange::at(BLOCK_BYTES, 10);
        assert!(read_vec(&*cached, second).await.unwrap() == content[BLOCK_BYTES as usize..][..10]);
        assert!(read_all(&*cached).await.unwrap() == content);
        assert!(read_all(&*cached).await.unwrap() == content);
        assert_eq!(cached.state(), VerificationState::Verified);
        assert!(source.delivered() <= 4 * BLOCK_BYTES, "{}", source.delivered());
        drop(cached);
        place.promoted(&digest).await;
    }
}

#[tokio::test]
async fn a_decoding_origin_keeps_no_other_origin_waiting() {
    use futures_util::FutureExt as _;
    let place = Place::new();
    let digest = Digest::sha256(b"a layer");
    let lock = |origin| {
        let cache = place.cache().for_origin(origin);
        let digest = digest.clone();
        async move { cache.build_lock(&digest).await }
    };
    let _slow = lock(EVIL).await.unwrap();
    assert!(lock(EVIL).now_or_never().is_none(), "one origin decodes once");
    lock(GOOD).now_or_never().expect("it waits for no fetch of the other origin").unwrap();
    // The file of a lock is one that the cache knows.
    let inventory = place.cache().inventory();
    assert_eq!(inventory.collect(|_, _, _| {}).unwrap().removed, 1);
    assert!(lock(EVIL).now_or_never().is_none(), "it still decodes");
}

#[tokio::test]
async fn kept_signatures_belong_to_the_origin_that_published_them() {
    let place = Place::new();
    let digest = Digest::sha256(b"a manifest");
    let of = |origin| place.cache().for_origin(origin);
    // The form of earlier programs, which serves no origin.
    place.cache().put_signatures(&digest, b"older").unwrap();
    assert_eq!(of(GOOD).signatures(&digest).unwrap(), None);
    of(EVIL).put_signatures(&digest, b"evil").unwrap();
    assert_eq!(of(GOOD).signatures(&digest).unwrap(), None);
    of(GOOD).put_signatures(&digest, b"good").unwrap();
    assert_eq!(of(EVIL).signatures(&digest).unwrap().unwrap(), b"evil");
    assert_eq!(of(GOOD).signatures(&digest).unwrap().unwrap(), b"good");
    let mut names = 0;
    let walked = place.cache().inventory().walk(|found| {
        match found {
            ScannedFile::Content(entry) => names += usize::from(entry.kind == ItemKind::Signatures),
            ScannedFile::Unknown(path) => panic!("{} has an unknown name", path.display()),
            ScannedFile::Other(_) => {}
        }
        Ok(std::ops::ControlFlow::<()>::Continue(()))
    });
    walked.unwrap();
    assert_eq!(names, 3);
}
