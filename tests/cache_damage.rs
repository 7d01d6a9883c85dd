//! Damage of the cache directory costs only time. One bit is flipped at a thousand random places of the files of a
//! whole cache; every later read gives the right bytes or, offline, an error, and online the files are repaired.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use ocifs::cache::{BlockCache, CacheInventory, ScannedFile};
use ocifs::export::cat;
use ocifs::image::{ImageSet, NetworkAccess, OpenOptions as Opening};
use ocifs::io::{BoxFuture, ByteRange, FaultClass, RangeDelivery, RangeFetch, ReadError, read_vec};
use ocifs::oci::Digest;
use ocifs::registry::{RegistryClient, RegistryOptions};
use ocifs::view::{MountNamespace, ViewScope};
use serde_json::{Value, json};

use crate::qcow2;
use crate::random::Random;
use crate::scratch::Scratch;

const BLOCK: u64 = 256 << 10;
const FLIPS: usize = 1000;
/// So many are made before everything is read: each in a place of its own.
const AT_ONCE: usize = 10;
/// What is kept of the blob of which only a part is kept.
const PART: ByteRange = ByteRange { start: BLOCK, end: 3 * BLOCK };

/// Images in a layout, and a cache that has seen them.
struct Lab {
    scratch: Scratch,
    /// The digest of the document, the path in its mount, and what is there.
    files: Vec<(Digest, &'static str, Vec<u8>)>,
    /// A blob of which two blocks are kept.
    part: Vec<u8>,
}

impl Lab {
    fn new() -> Self {
        let scratch = Scratch::new();
        let mut random = Random(31);
        let mut noise = |len: usize| -> Vec<u8> { (0..len).map(|_| random.next() as u8).collect() };
        let (small, large, part) = (noise(70_000), noise(600_000), noise(1 << 20));
        let text: Vec<u8> = (0..400_000u32).map(|at| (at / 97) as u8).collect();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, body) in [("small", &small), ("text", &text), ("large", &large)] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(body.len() as u64);
            tar.append_data(&mut header, name, &body[..]).unwrap();
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar.into_inner().unwrap()).unwrap();
        let layer = encoder.finish().unwrap();
        let (disk, raw) = qcow2::KINDS[3].make();

        let dir = scratch.subdir("layout/blobs/sha256").parent().unwrap().parent().unwrap().to_owned();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let blob = |kind: &str, bytes: &[u8]| {
            let digest = Digest::sha256(bytes);
            fs::write(dir.join("blobs/sha256").join(digest.encoded()), bytes).unwrap();
            json!({"mediaType": kind, "digest": digest.as_str(), "size": bytes.len()})
        };
        let titled = |mut descriptor: Value, title: &str| {
            descriptor["annotations"] = json!({"org.opencontainers.image.title": title});
            descriptor
        };
        let manifest = |config: Value, layers: Value, kind: Option<&str>| {
            let mut manifest = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config, "layers": layers,
            });
            if let Some(kind) = kind {
                manifest["artifactType"] = kind.into();
            }
            manifest.to_string().into_bytes()
        };
        let config = blob(
            "application/vnd.oci.image.config.v1+json",
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
        );
        let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer);
        let image = manifest(config, json!([layer]), None);
        let disks = manifest(
            blob("application/vnd.oci.empty.v1+json", b"{}"),
            json!([
                titled(blob("application/vnd.cocoonstack.disk.qcow2", &disk), "d.qcow2"),
                titled(blob("text/plain", &large), "plain"),
            ]),
            Some("application/vnd.cocoonstack.os-image.v1+json"),
        );
        let entries =
            [&image, &disks].map(|manifest| blob("application/vnd.oci.image.manifest.v1+json", manifest));
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": entries}).to_string())
            .unwrap();
        let (image, disks) = (Digest::sha256(&image), Digest::sha256(&disks));
        let files = vec![
            (image.clone(), "merged/small", small),
            (image.clone(), "merged/text", text),
            (image, "merged/large", large.clone()),
            (disks.clone(), "disk/d.qcow2", disk),
            (disks.clone(), "disk/d.raw", raw),
            (disks, "files/plain", large),
        ];
        Self { scratch, files, part }
    }

    fn cache(&self) -> PathBuf {
        self.scratch.join("cache")
    }

    /// Reads everything there is, and counts what could not be read. What could must be right.
    fn read_all(&self, network: NetworkAccess, what: &str) -> usize {
        // A runtime of its own, which ends with everything that it runs.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut failed = 0;
            let mut opened: BTreeMap<Digest, Option<MountNamespace>> = BTreeMap::new();
            for (digest, path, expected) in &self.files {
                if !opened.contains_key(digest) {
                    opened.insert(digest.clone(), self.open(digest, network, what).await);
                }
                let mut read = Vec::new();
                let ended = match &opened[digest] {
                    Some(namespace) => {
                        cat(namespace, path.as_bytes(), &mut read).await.map_err(|error| error.to_string())
                    }
                    None => Err("not opened".to_owned()),
                };
                // Also of a file that breaks off, what came was right.
                assert!(expected.starts_with(&read), "{what}: {path} has wrong bytes");
                match ended {
                    Ok(()) => assert_eq!(read.len(), expected.len(), "{what}: {path}"),
                    Err(error) => {
                        assert_eq!(network, NetworkAccess::Offline, "{what}: {path}: {error}");
                        failed += 1;
                    }
                }
            }
            failed + usize::from(!self.read_part(network, what).await)
        })
    }

    async fn open(&self, digest: &Digest, network: NetworkAccess, what: &str) -> Option<MountNamespace> {
        let location = format!("oci:{}@{digest}", self.scratch.join("layout").display()).parse().unwrap();
        let options = Opening { network, ..Opening::new(location) };
        let registry = RegistryClient::new(RegistryOptions::default()).unwrap();
        let cache = BlockCache::open(&self.cache()).unwrap();
        let opened = async {
            let family =
                ImageSet::open(&options, &registry, cache).await.map_err(|error| error.to_string())?;
            MountNamespace::open(Arc::new(family), &ViewScope::default())
                .await
                .map_err(|error| error.to_string())
        };
        match opened.await {
            Ok(namespace) => Some(namespace),
            Err(error) => {
                assert_eq!(network, NetworkAccess::Offline, "{what}: {error}");
                None
            }
        }
    }

    /// Whether the blob of which a part is kept gives that part.
    async fn read_part(&self, network: NetworkAccess, what: &str) -> bool {
        let cache = BlockCache::open(&self.cache()).unwrap().for_origin("a place");
        let source = Source { content: Bytes::from(self.part.clone()), network };
        let blob = cache.blob(&Digest::sha256(&self.part), Arc::new(source)).unwrap();
        match read_vec(&*blob, PART).await {
            Ok(read) => {
                assert!(
                    read == self.part[PART.start as usize..PART.end as usize],
                    "{what}: wrong bytes of a part"
                );
                true
            }
            Err(error) => {
                assert_eq!(network, NetworkAccess::Offline, "{what}: {error}");
                false
            }
        }
    }
}

/// Where the partial blob comes from.
struct Source {
    content: Bytes,
    network: NetworkAccess,
}

impl RangeFetch for Source {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        let answer = match self.network {
            NetworkAccess::Offline => Err(ReadError::new(FaultClass::Unavailable, "nobody is asked")),
            NetworkAccess::Online => {
                let bytes = self.content.slice(range.start as usize..range.end as usize);
                Ok(RangeDelivery { range, body: futures_util::stream::iter([Ok(bytes)]).boxed() })
            }
        };
        Box::pin(async move { answer })
    }
}

/// Every file below `dir`, with its bytes.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else {
                files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

fn restore(dir: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    let now = snapshot(dir);
    for path in now.keys().filter(|path| !files.contains_key(*path)) {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        if now.get(path) != Some(bytes) {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// A bit somewhere in a file of the cache: in each file as often as in any other, and in its first bytes more often.
fn flip(random: &mut Random, files: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let full: Vec<_> = files.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    let (path, bytes) = random.pick(&full);
    let is_map = path.extension().is_some_and(|end| end == "map");
    let at = match random.below(4) {
        0 => random.below(bytes.len().min(600) as u64),
        // The records.
        1 if is_map => 4096 + random.below((bytes.len() - 4096).max(1) as u64),
        _ => random.below(bytes.len() as u64),
    };
    let at = at.min(bytes.len() as u64 - 1);
    let (file, bit) = (OpenOptions::new().read(true).write(true).open(path).unwrap(), random.below(8));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
    format!("{} byte {at} bit {bit}", path.display())
}

/// Set in the process that does the work.
const ALONE: &str = "OCIFS_TEST_ALONE";

/// Runs in a process of its own: damaged files are dropped only while no process has them open, and a child that
/// another test starts has the files of this one open until it executes its program.
#[test]
fn a_flipped_bit_anywhere_in_the_cache_costs_time_and_no_byte() {
    if std::env::var_os(ALONE).is_some() {
        return damage_and_read();
    }
    let name = "cache_damage::a_flipped_bit_anywhere_in_the_cache_costs_time_and_no_byte";
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&alone.stdout), String::from_utf8_lossy(&alone.stderr));
    assert!(alone.status.success() && printed.contains("1 passed"), "{printed}{errors}");
}

fn damage_and_read() {
    let lab = Lab::new();
    assert_eq!(lab.read_all(NetworkAccess::Online, "the first time"), 0);
    assert_eq!(lab.read_all(NetworkAccess::Offline, "what is kept"), 0);
    let dir = lab.cache().join("v1");
    let pristine = snapshot(&dir);
    for kind in ["blobs", "streams", "documents", "indexes"] {
        assert!(
            pristine.keys().any(|path| path.starts_with(dir.join(kind))),
            "no {kind} in {:?}",
            pristine.keys()
        );
    }
    let mut random = Random(2026);
    let (mut lost, mut found) = (0, 0);
    for round in 0..FLIPS / AT_ONCE {
        let flips: Vec<String> = (0..AT_ONCE).map(|_| flip(&mut random, &pristine)).collect();
        let damaged = snapshot(&dir);
        let what = flips.join(", ");
        lost += usize::from(lab.read_all(NetworkAccess::Offline, &what) > 0);
        restore(&dir, &damaged);
        if round % 2 == 0 {
            // What is found by looking is found by nobody afterwards.
            found += usize::from(verify(&lab.cache(), &what) > 0);
            assert_eq!(verify(&lab.cache(), &what), 0, "again: {what}");
            lab.read_all(NetworkAccess::Offline, &format!("verified: {what}"));
        }
        assert_eq!(lab.read_all(NetworkAccess::Online, &what), 0);
        assert_eq!(lab.read_all(NetworkAccess::Offline, &format!("healed of {what}")), 0);
        restore(&dir, &pristine);
    }
    // Damage that is never seen would mean that nothing was looked at.
    assert!(lost > FLIPS / AT_ONCE / 4, "{lost}");
    assert!(found > FLIPS / AT_ONCE / 4, "{found}");
}

/// Compares everything in the cache, and counts the contents that were damaged.
fn verify(dir: &Path, what: &str) -> usize {
    let inventory = CacheInventory::open(dir).unwrap().unwrap();
    let used = inventory.used().unwrap();
    let mut damaged = 0;
    inventory
        .walk(|found| {
            if let ScannedFile::Content(entry) = found {
                let scrubbed = inventory.scrub(&entry, &used)?;
                if let Some(damage) = scrubbed.damage {
                    assert!(scrubbed.dropped, "{damage:?} of {entry:?} stays: {what}");
                    damaged += 1;
                }
            }
            Ok(ControlFlow::<()>::Continue(()))
        })
        .unwrap();
    damaged
}
