//! What follows when a blob was compared with its digest: those who wait for it hear it, and its file may be read by others.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn waiters_for_verification_get_its_result() {
    let place = Place::new();
    let content = noise(SIZE, 70);
    for (digest, state) in [
        (Digest::sha256(&content), VerificationState::Verified),
        (Digest::sha256(b"other"), VerificationState::Poisoned),
    ] {
        let cached = place.cache().blob(&digest, Source::new(&content)).unwrap();
        let waiting = tokio::spawn(cached.until_verified());
        read_vec(&*cached, ByteRange::new(0, SIZE - 2 * BLOCK_BYTES)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "not all of it was compared");
        // A wait that is given up takes nothing with it.
        assert!(tokio::time::timeout(Duration::from_millis(5), cached.until_verified()).await.is_err());
        drop(read_all(&*cached).await);
        let heard = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
        assert_eq!(heard, Some(state));
        let late = tokio::time::timeout(PATIENCE, cached.until_verified()).await.unwrap();
        assert_eq!(late, Some(state), "who asks later hears the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_the_comparison_keeps_nothing_alive() {
    let place = Place::new();
    let content = noise(SIZE, 71);
    let cached = place.cache().blob(&Digest::sha256(&content), Source::new(&content)).unwrap();
    read_vec(&*cached, ByteRange::new(0, 10)).await.unwrap();
    let alive = Arc::downgrade(&cached);
    let waiting = tokio::spawn(cached.until_verified());
    drop(cached);
    assert!(alive.upgrade().is_none());
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_content_needs_no_wait() {
    let place = Place::new();
    let content = noise(SIZE, 72);
    let digest = filled(&place, &content).await;
    let cached = place.cache().blob(&digest, Source::answering(&content, Answer::Refuse)).unwrap();
    let heard = tokio::time::timeout(PATIENCE, cached.until_verified()).await.unwrap();
    assert_eq!(heard, Some(VerificationState::Verified));
    // What another process finds out counts from the next look.
    let other = noise(SIZE, 73);
    let digest = Digest::sha256(&other);
    let cached = place.cache().blob(&digest, Source::new(&other)).unwrap();
    let waiting = tokio::spawn(cached.until_verified());
    filled(&place, &other).await;
    assert_eq!(cached.state(), VerificationState::Verified);
    assert_eq!(
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap(),
        Some(VerificationState::Verified)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_whole_verified_blob_holds_its_bytes_and_takes_none() {
    let place = Place::new();
    let content = noise(SIZE, 74);
    let digest = Digest::sha256(&content);
    let cached = place.cache().for_origin("here").blob(&digest, Source::new(&content)).unwrap();
    assert!(cached.backing().is_none());
    read_vec(&*cached, ByteRange::new(BLOCK_BYTES, SIZE)).await.unwrap();
    assert!(cached.backing().is_none(), "its first block is a hole");
    read_all(&*cached).await.unwrap();
    let patience = Instant::now() + PATIENCE;
    let file = loop {
        // Not before it is on disk that it was verified.
        match cached.backing() {
            Some(file) => break file,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(Instant::now() < patience);
    };
    assert!(Arc::ptr_eq(&file, &cached.backing().unwrap()), "one descriptor");
    let file = File::from(file.try_clone().unwrap());
    let mut bytes = vec![0; content.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, content);
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    assert!(file.write_at(b"x", 0).is_err(), "it is open for reading only");
    // While the content is held, no evictor gets at it. Its files get their last names after the answer.
    while !place.map(&digest).exists() {
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sidecar = OpenOptions::new().write(true).open(place.map(&digest)).unwrap();
    assert!(sidecar.try_lock().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_hole_or_of_another_length_backs_nothing() {
    for damage in ["hole", "short", "long"] {
        let place = Place::new();
        let content = noise(SIZE, 75);
        let digest = filled(&place, &content).await;
        let file = OpenOptions::new().write(true).open(place.data(&digest)).unwrap();
        match damage {
            "hole" => {
                fs::write(place.data(&digest), &content[..BLOCK_BYTES as usize]).unwrap();
                file.set_len(SIZE).unwrap();
            }
            "short" => file.set_len(SIZE - 1).unwrap(),
            _ => file.set_len(SIZE + 1).unwrap(),
        }
        let cached = place.cache().blob(&digest, Source::new(&content)).unwrap();
        assert_eq!(cached.state(), VerificationState::Verified);
        assert!(cached.backing().is_none(), "{damage}");
        assert_eq!(read_all(&*cached).await.unwrap(), content, "{damage}");
        if damage != "long" {
            assert!(cached.backing().is_some(), "what was lost was fetched again: {damage}");
        }
    }
}
