//! Blobs that lie on this machine: read there, compared there, and never written to.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::*;
use crate::io::{FileBytes, LocalBytes};

/// An open file, and the time that it had.
struct KeptFile {
    file: File,
    size: u64,
    modified: std::time::SystemTime,
}

impl FileBytes for KeptFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn is_unchanged(&self) -> bool {
        let found = self.file.metadata().unwrap();
        (found.len(), found.modified().unwrap()) == (self.size, self.modified)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn version(&self) -> [u64; 7] {
        [self.size; 7]
    }

    fn descriptor(&self) -> Option<OwnedFd> {
        self.file.try_clone().ok().map(OwnedFd::from)
    }
}

/// A run of a file as a source.
struct HereSource {
    bytes: LocalBytes,
}

impl HereSource {
    fn new(path: &Path, range: ByteRange) -> Arc<Self> {
        let file = File::open(path).unwrap();
        let found = file.metadata().unwrap();
        let (size, modified) = (found.len(), found.modified().unwrap());
        let kept = KeptFile { file, size, modified };
        Arc::new(Self { bytes: LocalBytes::of(Arc::new(kept)).part(range).unwrap() })
    }
}

impl RangeFetch for HereSource {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let mut bytes = vec![0; range.len() as usize];
            self.bytes.read_exact_at(&mut bytes, range.start).unwrap();
            if !self.bytes.is_unchanged() {
                return Err(ReadError::new(FaultClass::Mismatch, "it was changed"));
            }
            let body = futures_util::stream::iter([Ok(Bytes::from(bytes))]).boxed();
            Ok(RangeDelivery { range, body })
        })
    }

    fn may_be_local(&self) -> bool {
        true
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        Box::pin(std::future::ready(Some(self.bytes.clone())))
    }
}

/// Writes into a file, some seconds later as far as its time shows.
fn change(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_blob_is_read_compared_and_handed_to_the_kernel_and_not_copied() {
    let (place, home) = (Place::new(), tempfile::tempdir().unwrap());
    let content = noise(SIZE, 1);
    let digest = Digest::sha256(&content);
    let path = home.path().join("blob");
    std::fs::write(&path, &content).unwrap();
    let cache = place.cache().verifying(VerifyMode::Lazy, VERIFY_FIRST_BYTES);
    let open = || cache.blob(&digest, HereSource::new(&path, ByteRange::new(0, SIZE))).unwrap();
    let cached = open();
    assert!(cached.backing().is_none() && cached.state() == VerificationState::Partial);
    check_random_ranges(&*cached, &content).await;
    cached.ensure(ByteRange::new(0, SIZE)).await.unwrap();
    assert_eq!((cached.state(), cached.verified()), (VerificationState::Verified, VerifiedLevel::Full));
    assert!(cached.backing().is_some());
    assert!(!place.data(&digest).exists() && !place.map(&digest).exists());
    assert_eq!(std::fs::read_dir(place.dir.path().join("v1/blobs/sha256")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(place.dir.path().join("v1/tmp")).unwrap().count(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), content);
    let number = cached.copy_number().unwrap();
    drop(cached);
    let again = open();
    again.locate().await;
    assert_eq!(again.copy_number(), Some(number), "the same file is the same copy");

    // A part of a file is read the same way, and is no file of its own.
    let range = ByteRange::new(1000, 1000 + 2 * BLOCK_BYTES);
    let part = &content[1000..][..2 * BLOCK_BYTES as usize];
    let cached = cache.blob(&Digest::sha256(part), HereSource::new(&path, range)).unwrap();
    check_random_ranges(&*cached, part).await;
    cached.ensure(ByteRange::new(0, range.len())).await.unwrap();
    assert!(cached.state() == VerificationState::Verified && cached.backing().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_local_blob_is_poisoned_and_its_file_stays_as_it_is() {
    let (place, home) = (Place::new(), tempfile::tempdir().unwrap());
    let content = noise(SIZE, 2);
    let path = home.path().join("blob");
    std::fs::write(&path, &content).unwrap();
    let cached = place
        .cache()
        .blob(&Digest::sha256(b"other"), HereSource::new(&path, ByteRange::new(0, SIZE)))
        .unwrap();
    let error = cached.ensure(ByteRange::new(0, SIZE)).await.unwrap_err();
    assert_eq!((error.fault(), cached.state()), (FaultClass::Mismatch, VerificationState::Poisoned));
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_local_file_that_changes_only_compared_bytes_are_read() {
    let (place, home) = (Place::new(), tempfile::tempdir().unwrap());
    let content = noise(SIZE, 3);
    let path = home.path().join("blob");
    std::fs::write(&path, &content).unwrap();
    let cached = place
        .cache()
        .blob(&Digest::sha256(&content), HereSource::new(&path, ByteRange::new(0, SIZE)))
        .unwrap();
    let read = async |block: u64| read_vec(&*cached, ByteRange::at(block * BLOCK_BYTES, 100)).await;
    for block in [0, 1] {
        read(block).await.unwrap();
    }
    change(&path, 50, b"wrong");
    assert_eq!(read(0).await.unwrap_err().fault(), FaultClass::Mismatch, "read before, and another now");
    assert_eq!(
        read(1).await.unwrap(),
        &content[BLOCK_BYTES as usize..][..100],
        "read before, and the same now"
    );
    assert_eq!(
        read(SIZE / BLOCK_BYTES - 1).await.unwrap_err().fault(),
        FaultClass::Mismatch,
        "never compared"
    );
    let mut buf = [0; 100];
    assert!(!cached.read_ready(0, &mut buf).unwrap_or(false));
    assert!(cached.backing().is_none());
}
