//! One artifact with something in each view, small enough to be served hundreds of times.
//!
//! Never served by itself: a test pushes it to a fault registry, and can take it away again.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ocifs::oci::Digest;
use serde_json::{Value, json};

use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::layout::{CONFIG, MANIFEST};
use crate::tarball::{Tarball, noise};

/// The views that there is a file in, as numbered by [`Content::file`].
pub(crate) const VIEWS: [&str; 3] = ["blobs", "merged", "disk"];

const REPOSITORY: &str = "a/thing";

/// One file.
pub(crate) struct Expected {
    /// Its path in a mount.
    pub(crate) path: String,
    pub(crate) bytes: Vec<u8>,
}

/// What is pushed, and what is to be read.
pub(crate) struct Content {
    manifest: Vec<u8>,
    blobs: Vec<(Digest, Arc<Vec<u8>>)>,
    files: Vec<Expected>,
}

impl Content {
    /// As the seed has it: noise, so that no two blocks are alike.
    pub(crate) fn new(seed: u64) -> Self {
        Self::sized(seed, 900_001)
    }

    /// The same with so many bytes in the file of `blobs`.
    pub(crate) fn sized(seed: u64, size: usize) -> Self {
        let seed = seed * 16;
        let blob = noise(size, seed + 1);
        let (inside, beside) = (noise(600_000, seed + 2), noise(300_000, seed + 3));
        let tar = Tarball::new().file("beside", &beside).file("inside", &inside).bytes();
        let plain = Tarball::new().file("plain", &noise(400_000, seed + 6)).bytes();
        let parts = [noise(500_000, seed + 4), noise(400_500, seed + 5)];
        let mut this = Self { manifest: Vec::new(), blobs: Vec::new(), files: Vec::new() };
        let config = this.blob(CONFIG, b"{}", None);
        let mut layers = vec![
            this.blob(Encoding::Gzip.media_type(), &Encoding::Gzip.encode(&tar), None),
            this.blob(Encoding::Plain.media_type(), &plain, None),
            this.blob("application/octet-stream", &blob, None),
        ];
        for (at, part) in parts.iter().enumerate() {
            let title = format!("d.raw.{at:02}.raw.part");
            layers.push(this.blob("application/vnd.cocoonstack.disk.raw.part", part, Some(&title)));
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
            "artifactType": "application/vnd.cocoonstack.os-image.v1+json"});
        this.manifest = manifest.to_string().into_bytes();
        let in_blobs = format!("blobs/{}", Digest::sha256(&blob).as_str().replace(':', "/"));
        this.files = vec![
            Expected { path: in_blobs, bytes: blob },
            Expected { path: "merged/inside".into(), bytes: inside },
            Expected { path: "disk/d.raw".into(), bytes: parts.concat() },
            Expected { path: "merged/beside".into(), bytes: beside },
            Expected { path: "merged/plain".into(), bytes: noise(400_000, seed + 6) },
        ];
        this
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8], title: Option<&str>) -> Value {
        let digest = Digest::sha256(bytes);
        self.blobs.push((digest.clone(), Arc::new(bytes.to_vec())));
        let mut descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        if let Some(title) = title {
            descriptor["annotations"] = json!({"org.opencontainers.image.title": title});
        }
        descriptor
    }

    /// The file in the view of this number.
    pub(crate) fn file(&self, view: usize) -> &Expected {
        &self.files[view]
    }

    /// Every file.
    pub(crate) fn files(&self) -> &[Expected] {
        &self.files
    }

    /// Puts everything there.
    pub(crate) fn push(&self, registry: &FaultRegistry) {
        for (digest, bytes) in &self.blobs {
            registry.push_blob_as(digest, bytes.as_slice());
        }
        registry.push_manifest(REPOSITORY, "v1", MANIFEST, &self.manifest);
    }

    /// Every blob, with the digest it is pushed under.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.blobs.iter().map(|(digest, bytes)| (digest.as_str(), bytes.as_slice()))
    }

    /// Writes everything as files, in the paths of the distribution API.
    pub(crate) fn write(&self, root: &Path) {
        let repository = root.join("v2").join(REPOSITORY);
        for place in ["manifests", "blobs"] {
            fs::create_dir_all(repository.join(place)).expect("a directory of ours");
        }
        for (digest, bytes) in self.blobs() {
            fs::write(repository.join("blobs").join(digest), bytes).expect("a directory of ours");
        }
        for name in ["v1", Digest::sha256(&self.manifest).as_str()] {
            fs::write(repository.join("manifests").join(name), &self.manifest).expect("a directory of ours");
        }
    }

    /// The repository, the media type of the manifest, and its bytes.
    pub(crate) fn manifest(&self) -> (&str, &str, &[u8]) {
        (REPOSITORY, MANIFEST, &self.manifest)
    }

    /// The reference by tag at any host.
    pub(crate) fn reference_at(&self, host: &str) -> String {
        format!("{host}/{REPOSITORY}:v1")
    }

    /// The reference by tag.
    pub(crate) fn reference(&self, registry: &FaultRegistry) -> String {
        self.reference_at(&registry.host())
    }

    /// The reference by digest.
    pub(crate) fn pinned(&self, registry: &FaultRegistry) -> String {
        format!("{}/{REPOSITORY}@{}", registry.host(), Digest::sha256(&self.manifest))
    }

    /// Lets the tag mean something else.
    pub(crate) fn move_tag(&self, registry: &FaultRegistry) {
        let other = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": CONFIG, "digest": Digest::sha256(b"{}"), "size": 2}});
        registry.push_manifest(REPOSITORY, "v1", MANIFEST, other.to_string().as_bytes());
    }

    /// Takes the blobs away.
    pub(crate) fn delete_blobs(&self, registry: &FaultRegistry) {
        for (digest, _) in &self.blobs {
            registry.delete_blob(digest);
        }
    }
}
