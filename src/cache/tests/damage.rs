//! Damaged files cost one fetch, and wrong content is given up by everybody.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::*;
use crate::cache::sidecar::{ContentKind, SidecarFile};

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Damages a filled cache, and then reads it: right bytes, `refetched` bytes of them fetched, verified again.
async fn heals(seed: u64, refetched: u64, damage: impl Fn(&Place, &Digest)) {
    let place = Place::new();
    let content = noise(SIZE, seed);
    let digest = filled(&place, &content).await;
    damage(&place, &digest);
    let source = Source::new(&content);
    let cached = place.cache().blob(&digest, source.clone()).unwrap();
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(source.delivered(), refetched);
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(source.delivered(), refetched);
    assert_eq!(cached.state(), VerificationState::Verified);
    drop(cached);
    wait_for_disk(&place, &digest, SIZE, VerificationState::Verified).await;
}

#[tokio::test]
async fn a_rotten_block_is_fetched_again() {
    heals(11, BLOCK_BYTES, |place, digest| {
        overwrite(&place.data(digest), 2 * BLOCK_BYTES + 99, &[0; 3]);
    })
    .await;
}

#[tokio::test]
async fn a_truncated_data_file_is_fetched_again_from_there() {
    heals(12, SIZE - 4 * BLOCK_BYTES, |place, digest| {
        OpenOptions::new()
            .write(true)
            .open(place.data(digest))
            .unwrap()
            .set_len(4 * BLOCK_BYTES + 5)
            .unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_zeroed_data_file_is_fetched_again() {
    heals(13, SIZE, |place, digest| overwrite(&place.data(digest), 0, &vec![0; SIZE as usize])).await;
}

#[tokio::test]
async fn a_removed_data_file_is_fetched_again() {
    heals(14, SIZE, |place, digest| fs::remove_file(place.data(digest)).unwrap()).await;
}

#[tokio::test]
async fn a_zeroed_or_removed_sidecar_is_made_new() {
    heals(15, SIZE, |place, digest| {
        let len = fs::metadata(place.map(digest)).unwrap().len();
        overwrite(&place.map(digest), 0, &vec![0; len as usize]);
    })
    .await;
    heals(16, SIZE, |place, digest| fs::remove_file(place.map(digest)).unwrap()).await;
    heals(17, SIZE, |place, digest| fs::write(place.map(digest), "short").unwrap()).await;
}

#[tokio::test]
async fn zeros_of_a_stream_take_no_disk_and_are_zeros_again_after_damage() {
    use std::os::unix::fs::MetadataExt as _;
    const ZEROS: u64 = 6;
    let place = Place::new();
    let mut content = noise(8 * BLOCK_BYTES + 100, 71);
    // Whole blocks, a part of one with its end, and the short one at the end of the stream.
    content[BLOCK_BYTES as usize..((1 + ZEROS) * BLOCK_BYTES) as usize].fill(0);
    content[(8 * BLOCK_BYTES - 9000) as usize..].fill(0);
    let digest = Digest::sha256(b"a layer");
    let data = || place.stream_file(&digest, &content);
    let read = async |refetched: u64| {
        let source = Source::new(&content);
        let stream = place.cache().stream(&digest, sums(&content), source.clone()).unwrap();
        assert_eq!(read_all(&*stream).await.unwrap(), content);
        assert_eq!(source.delivered(), refetched);
    };
    let is_sparse = || {
        assert!(fs::read(data()).unwrap() == content);
        let taken = fs::metadata(data()).unwrap().blocks() * 512;
        assert!(
            taken <= 2 * BLOCK_BYTES,
            "{taken} bytes on the disk, of which {ZEROS} blocks should not be there"
        );
    };
    read(content.len() as u64).await;
    is_sparse();
    // In the middle of a hole, in the last page of one, and in the last bytes of the stream.
    for at in [2 * BLOCK_BYTES + 5000, 4 * BLOCK_BYTES - 3, 8 * BLOCK_BYTES - 3, 8 * BLOCK_BYTES + 97] {
        overwrite(&data(), at, &[7; 3]);
    }
    read(3 * BLOCK_BYTES + 100).await;
    is_sparse();
    read(0).await;
}

#[tokio::test]
async fn a_lost_record_of_verified_content_leaves_the_data_alone() {
    let place = Place::new();
    let content = noise(SIZE, 70);
    let digest = filled(&place, &content).await;
    overwrite(&place.map(&digest), 4096 + 64 * 3, &[0; 64]);
    let written = |place: &Place| fs::metadata(place.data(&digest)).unwrap().modified().unwrap();
    let before = written(&place);
    let source = Source::new(&content);
    let cached = place.cache().blob(&digest, source.clone()).unwrap();
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    assert_eq!(source.delivered(), BLOCK_BYTES);
    assert_eq!(cached.state(), VerificationState::Verified);
    // The kernel may be reading the file for others.
    assert_eq!(written(&place), before, "the data was written again");
}

#[tokio::test]
async fn a_flipped_bit_in_any_field_of_a_record_costs_one_block() {
    for field in [0, 5, 9, 20, 50] {
        heals(18 + field, BLOCK_BYTES, |place, digest| {
            let at = 4096 + 64 * 3 + field;
            let file = OpenOptions::new().read(true).write(true).open(place.map(digest)).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_flipped_bit_in_the_status_makes_the_sidecar_new() {
    heals(30, SIZE, |place, digest| overwrite(&place.map(digest), 521, &[0xee])).await;
}

#[tokio::test]
async fn truncation_of_an_open_file_never_turns_trusted_blocks_into_zeros() {
    let place = Place::new();
    let content = noise(SIZE, 31);
    let cached = place.cache().blob(&Digest::sha256(&content), Source::new(&content)).unwrap();
    assert_eq!(read_all(&*cached).await.unwrap(), content);
    let data = place.data(&Digest::sha256(&content));
    OpenOptions::new().write(true).open(data).unwrap().set_len(0).unwrap();
    // Healing the last block makes the file long again, with a hole before it.
    let last = read_vec(&*cached, ByteRange::new(SIZE - 5, SIZE)).await.unwrap();
    assert_eq!(last, content[SIZE as usize - 5..]);
    assert_eq!(read_all(&*cached).await.unwrap(), content);
}

#[tokio::test]
async fn a_verified_block_is_not_replaced_by_other_bytes() {
    let place = Place::new();
    let content = noise(SIZE, 32);
    let digest = filled(&place, &content).await;
    overwrite(&place.data(&digest), 0, &[0; 8]);
    let source = Source::new(&noise(SIZE, 33));
    let cached = place.cache().blob(&digest, source).unwrap();
    assert_eq!(read_vec(&*cached, ByteRange::new(0, 9)).await.unwrap_err().fault(), FaultClass::Mismatch);
    assert_eq!(cached.state(), VerificationState::Verified);
    let tail = read_vec(&*cached, ByteRange::new(BLOCK_BYTES, SIZE)).await.unwrap();
    assert_eq!(tail, content[BLOCK_BYTES as usize..]);
}

#[tokio::test]
async fn the_read_that_completes_a_wrong_blob_fails_and_so_does_every_read_after_it() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let place = Place::new();
        let content = noise(3 * BLOCK_BYTES, 34);
        let digest = Digest::sha256(b"something else");
        let cached = place.cache().blob(&digest, Source::new(&content)).unwrap();
        let other = place.cache().blob(&digest, Source::new(&content)).unwrap();
        for block in &order[..2] {
            let range = ByteRange::at(block * BLOCK_BYTES, 10);
            read_vec(&*cached, range).await.unwrap();
            read_vec(&*other, range).await.unwrap();
        }
        let last = read_vec(&*cached, ByteRange::at(order[2] * BLOCK_BYTES, 10)).await;
        assert_eq!(last.unwrap_err().fault(), FaultClass::Mismatch);
        for reader in [cached, other] {
            assert_eq!(reader.state(), VerificationState::Poisoned);
            let mut buf = [0; 10];
            assert_eq!(reader.read_ready(0, &mut buf).unwrap_err().fault(), FaultClass::Mismatch);
            assert_eq!(reader.read_at(0, &mut buf).await.unwrap_err().fault(), FaultClass::Mismatch);
            assert_eq!(reader.ensure(ByteRange::new(0, 10)).await.unwrap_err().fault(), FaultClass::Mismatch);
            assert!(!reader.present(ByteRange::new(0, 10)));
            assert_eq!(reader.bytes_present(), 0);
        }
        assert_eq!(fs::metadata(place.data(&digest)).unwrap().len(), 0);
        // Who opens it next begins anew.
        let third = place.cache().blob(&digest, Source::new(&content)).unwrap();
        assert_eq!(third.state(), VerificationState::Partial);
        assert!(read_vec(&*third, ByteRange::new(0, 10)).await.unwrap() == content[..10]);
    }
}

#[tokio::test]
async fn a_blob_that_was_completed_but_not_compared_is_compared_before_it_is_served() {
    for (right, state) in [(true, VerificationState::Verified), (false, VerificationState::Poisoned)] {
        let place = Place::new();
        let content = noise(3 * BLOCK_BYTES, 35);
        let digest = if right { Digest::sha256(&content) } else { Digest::sha256(b"other") };
        {
            // What a process leaves that dies between its last block and the comparison.
            let map = place.map(&digest);
            place.cache();
            let pair =
                block_file::BlockFile::open(&place.data(&digest), &map, sidecar::ContentKind::Blob, &digest)
                    .unwrap();
            pair.sidecar.settle_size(&digest, 3 * BLOCK_BYTES).unwrap();
            for (block, bytes) in content.chunks(BLOCK_BYTES as usize).enumerate() {
                assert!(pair.store(block as u64, bytes, &blake3::hash(bytes).into()).is_ok());
            }
        }
        let source = Source::new(&content);
        let cached = place.cache().blob(&digest, source.clone()).unwrap();
        assert!(cached.present(ByteRange::new(0, 3 * BLOCK_BYTES)));
        assert_ne!(cached.state(), VerificationState::Verified);
        let mut buf = [0; 10];
        assert!(!cached.read_ready(0, &mut buf).unwrap());
        assert_eq!(cached.read_at(0, &mut buf).await.is_ok(), right);
        assert_eq!(cached.state(), state);
        assert!(source.asked().is_empty());
    }
}

#[test]
fn states_change_as_the_table_allows() {
    use VerificationState::{Complete, Partial, Poisoned, Verified};
    let place = Place::new();
    let reached = |first, next| {
        let map = place.dir.path().join(format!("{first:?}-{next:?}.map"));
        let sidecar = SidecarFile::open(&map, ContentKind::Blob, &Digest::sha256(b"a")).unwrap();
        sidecar.settle_size(&Digest::sha256(b"a"), 1).unwrap();
        assert_eq!(sidecar.advance(first).unwrap(), first);
        sidecar.advance(next).unwrap()
    };
    let allowed = [
        (Partial, vec![Complete, Verified, Poisoned]),
        (Complete, vec![Partial, Verified, Poisoned]),
        (Verified, vec![Partial]),
        (Poisoned, vec![]),
    ];
    for (first, nexts) in allowed {
        for next in [Partial, Complete, Verified, Poisoned] {
            let expected = if nexts.contains(&next) { next } else { first };
            assert_eq!(reached(first, next), expected, "{first:?} to {next:?}");
        }
    }
}
