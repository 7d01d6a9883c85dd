//! The directory itself: who may own it, its small files, and the documented layout.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::*;

#[test]
fn documents_are_hashed_on_the_way_in_and_on_the_way_out() {
    let place = Place::new();
    let cache = place.cache();
    let digest = Digest::sha256(b"{}");
    assert!(cache.document(&digest).unwrap().is_none());
    assert_eq!(cache.put_document(&digest, b"[]").unwrap_err().fault(), FaultClass::Mismatch);
    cache.put_document(&digest, b"{}").unwrap();
    assert_eq!(cache.document(&digest).unwrap().unwrap(), "{}");
    let path = place.file("documents", &digest);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&path, "{x").unwrap();
    assert!(cache.document(&digest).unwrap().is_none());
    assert!(!path.exists());
    let limit = crate::oci::MAX_DOCUMENT as usize;
    let (largest, larger) = (vec![b' '; limit], vec![b' '; limit + 1]);
    cache.put_document(&Digest::sha256(&largest), &largest).unwrap();
    assert_eq!(cache.document(&Digest::sha256(&largest)).unwrap().unwrap(), largest);
    assert!(cache.put_document(&Digest::sha256(&larger), &larger).is_err());
}

#[test]
fn a_stored_document_is_not_written_again_and_counts_as_used() {
    let place = Place::new();
    let cache = place.cache();
    let digest = Digest::sha256(b"{}");
    let path = place.file("documents", &digest);
    cache.put_document(&digest, b"{}").unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH;
    let is_new = || fs::metadata(&path).unwrap().modified().unwrap() > old;
    OpenOptions::new().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let number = fs::metadata(&path).unwrap().ino();
    cache.put_document(&digest, b"{}").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), number, "the same file");
    assert!(is_new(), "the next eviction would take it");
    for damaged in ["{x", "{", "{} ", ""] {
        fs::write(&path, damaged).unwrap();
        cache.put_document(&digest, b"{}").unwrap();
        assert_eq!(cache.document(&digest).unwrap().unwrap(), "{}", "{damaged:?}");
    }
}

#[test]
fn a_damaged_index_is_absent() {
    let place = Place::new();
    let cache = place.cache();
    let digest = Digest::sha256(b"a layer");
    let path = place.file("indexes", &digest);
    let index = noise(1000, 42);
    assert!(cache.learnt(LayerMetadata::Archive, &digest).unwrap().is_none());
    cache.put_learnt(LayerMetadata::Archive, &digest, b"older").unwrap();
    cache.put_learnt(LayerMetadata::Archive, &digest, &index).unwrap();
    assert_eq!(cache.learnt(LayerMetadata::Archive, &digest).unwrap().unwrap(), index);
    for damage in [0, 999, 1000, 1008, 1016, 1063] {
        cache.put_learnt(LayerMetadata::Archive, &digest, &index).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[damage] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(cache.learnt(LayerMetadata::Archive, &digest).unwrap().is_none(), "byte {damage}");
    }
    for len in [0, 63, 64, 1063] {
        cache.put_learnt(LayerMetadata::Archive, &digest, &index).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        assert!(cache.learnt(LayerMetadata::Archive, &digest).unwrap().is_none(), "cut to {len}");
    }
    // The index of one layer is not that of another.
    cache.put_learnt(LayerMetadata::Archive, &digest, &index).unwrap();
    let other = Digest::sha256(b"another layer");
    fs::rename(&path, place.file("indexes", &other)).unwrap();
    assert!(cache.learnt(LayerMetadata::Archive, &other).unwrap().is_none());
    cache.put_learnt(LayerMetadata::Archive, &digest, b"").unwrap();
    assert_eq!(cache.learnt(LayerMetadata::Archive, &digest).unwrap().unwrap(), b"");
    // An offered index belongs to the origin that offered it.
    cache.put_offer(&digest, b"offered").unwrap();
    assert!(cache.for_origin("elsewhere").offer(&digest).unwrap().is_none());
    assert_eq!(cache.offer(&digest).unwrap().unwrap(), b"offered");
    assert_eq!(fs::read_dir(place.dir.path().join("v1/tmp")).unwrap().count(), 0);
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let place = Place::new();
    place.cache();
    let root = place.dir.path().join("v1");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for bad in [0o770, 0o702, 0o777] {
        mode(&root, bad);
        let error = BlockCache::open(place.dir.path()).err().unwrap();
        assert_eq!(error.fault(), FaultClass::Usage);
        assert!(error.to_string().contains(&format!("{bad:04o}")), "{error}");
    }
    mode(&root, 0o755);
    place.cache();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    mode(place.dir.path(), 0o777);
    assert_eq!(BlockCache::open(place.dir.path()).err().unwrap().fault(), FaultClass::Usage);
    mode(place.dir.path(), 0o1777);
    place.cache();
    fs::remove_dir_all(&root).unwrap();
    std::os::unix::fs::symlink("/tmp", &root).unwrap();
    assert!(matches!(BlockCache::open(place.dir.path()), Err(CacheError::NotADirectory { .. })));
    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(BlockCache::open(&file).is_err());
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: giving a directory to another user needs root");
        return;
    }
    let place = Place::new();
    place.cache();
    let root = place.dir.path().join("v1");
    for path in [root.as_path(), place.dir.path()] {
        std::os::unix::fs::chown(path, Some(12345), None).unwrap();
        let error = BlockCache::open(place.dir.path()).err().unwrap();
        assert!(matches!(error, CacheError::NotOurs { owner: 12345, user: 0, .. }), "{error}");
        std::os::unix::fs::chown(path, Some(0), None).unwrap();
    }
    place.cache();
}

#[test]
fn directories_of_unknown_versions_are_left_alone() {
    let place = Place::new();
    let future = place.dir.path().join("v2/blobs");
    fs::create_dir_all(&future).unwrap();
    fs::write(future.join("x"), "y").unwrap();
    place.cache();
    assert_eq!(fs::read(future.join("x")).unwrap(), b"y");
    let mut names: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["v1", "v2"]);
}

#[test]
fn a_sidecar_of_another_version_is_refused_and_left_alone() {
    let place = Place::new();
    let cache = place.cache();
    let digest = Digest::sha256(b"x");
    drop(cache.blob(&digest, Source::new(b"x")).unwrap());
    let mut bytes = fs::read(place.map(&digest)).unwrap();
    bytes[8] = 2;
    let sum = blake3::hash(&bytes[..160]);
    bytes[160..192].copy_from_slice(sum.as_bytes());
    fs::write(place.map(&digest), &bytes).unwrap();
    let error = cache.blob(&digest, Source::new(b"x")).err().unwrap();
    assert_eq!(error.fault(), FaultClass::Unsupported);
    assert_eq!(fs::read(place.map(&digest)).unwrap(), bytes);
}

#[test]
fn files_are_private_and_the_layout_is_the_documented_one() {
    let place = Place::new();
    let digest = Digest::sha256(b"x");
    let _cached = place.cache().blob(&digest, Source::new(b"x")).unwrap();
    for path in [place.data(&digest), place.map(&digest)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let map = fs::read(place.map(&digest)).unwrap();
    assert_eq!(map.len(), 4096);
    assert_eq!(&map[..8], b"ocifsmap");
    assert_eq!(map[8..16], [1, 0, 0, 0, 1, 18, 71, 0]);
    assert_eq!(&map[16..16 + 71], digest.as_str().as_bytes());
    assert_eq!(&map[160..192], blake3::hash(&map[..160]).as_bytes());
    assert_eq!(map[512..514], [1, 1]);
    assert_eq!(map[520..528], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(map[1024..1032], [0; 8], "only programs that know no lock of use write here");
    assert_ne!(map[1032..1040], [0; 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_stream_has_files_of_its_own_and_is_never_the_stream_of_the_layer() {
    let place = Place::new();
    let digest = Digest::sha256(b"layer");
    let right = noise(3 * BLOCK_BYTES + 5, 60);
    let (one, two) = (noise(2 * BLOCK_BYTES + 9, 61), noise(3 * BLOCK_BYTES + 5, 62));
    let (here, there) = (place.cache().for_origin("ghcr.io/a"), place.cache().for_origin("ghcr.io/b"));
    let (ids, copies) = ([[1; 32], [2; 32]], [[3; 16], [4; 16]]);
    let open = |cache: &BlockCache, id, content: &[u8]| {
        cache.claimed_stream(&digest, id, &copies[0], Source::new(content))
    };

    let stream = here.stream(&digest, sums(&right), Source::new(&right)).unwrap();
    let first = open(&here, &ids[0], &one).unwrap();
    let second = open(&here, &ids[1], &two).unwrap();
    for (cached, content) in [(&stream, &right), (&first, &one), (&second, &two)] {
        assert_eq!(read_all(&**cached).await.unwrap(), *content);
        assert_eq!(cached.state(), VerificationState::Complete);
    }
    assert!(Arc::ptr_eq(&first, &open(&here, &ids[0], &one).unwrap()), "one value while it lives");
    assert!(first.backing().is_none() && stream.backing().is_none());

    // Another place with the same index fetches for itself.
    let source = Source::new(&two);
    let foreign = there.claimed_stream(&digest, &ids[0], &copies[0], source.clone()).unwrap();
    assert_eq!(read_all(&*foreign).await.unwrap(), two);
    assert_eq!(source.delivered(), two.len() as u64);

    // The stream belongs to its place until there is an index of the layer.
    here.put_learnt(LayerMetadata::Archive, &digest, b"index").unwrap();
    let shared = there.stream(&digest, sums(&right), Source::new(&right)).unwrap();
    assert_eq!(read_all(&*shared).await.unwrap(), right);
    let mut names: Vec<_> = ["streams", "claims"]
        .iter()
        .flat_map(|kind| {
            let dir = place.dir.path().join("v1").join(kind).join("sha256");
            fs::read_dir(dir).unwrap().map(move |entry| (*kind, entry.unwrap().file_name()))
        })
        .map(|(kind, name)| format!("{kind}/{}", name.to_str().unwrap().replace(digest.encoded(), "HEX")))
        .collect();
    names.sort();
    let origin = |place: &str| blake3::hash(place.as_bytes()).to_hex()[..16].to_owned();
    let (a, b) = (origin("ghcr.io/a"), origin("ghcr.io/b"));
    let claim = |id: usize, origin: &str| {
        let hash = blake3::Hasher::new().update(&ids[id]).update(&copies[0]).finalize().to_hex();
        format!("claims/HEX.{}.{origin}", &hash[..32])
    };
    let stream_name = place.stream_file(&digest, &right);
    let stream_name = stream_name.file_name().unwrap().to_str().unwrap().replace(digest.encoded(), "HEX");
    let streams = [format!("streams/{stream_name}"), format!("streams/{stream_name}.{a}")];
    let mut expected = vec![claim(0, &a), claim(1, &a), claim(0, &b)];
    expected.extend(streams);
    expected.extend(expected.clone().iter().map(|name| format!("{name}.map")));
    expected.sort();
    assert_eq!(names, expected);

    // And it is found again, by its claim only.
    drop((stream, shared, first, second, foreign));
    let source = Source::answering(&one, Answer::Refuse);
    let cache = place.cache().for_origin("ghcr.io/a");
    let again = cache.claimed_stream(&digest, &ids[0], &copies[0], source).unwrap();
    assert_eq!(read_all(&*again).await.unwrap(), one);
    // Not by who reads another copy of the blob, though the index is the same.
    let source = Source::new(&two);
    let other = cache.claimed_stream(&digest, &ids[0], &copies[1], source.clone()).unwrap();
    assert_eq!(read_all(&*other).await.unwrap(), two);
    assert_eq!(source.delivered(), two.len() as u64);
}
