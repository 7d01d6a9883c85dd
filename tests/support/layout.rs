//! Writes OCI layout directories byte by byte, so that a test can also write what no tool would.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::byte_text::digest_of;
use crate::encode::Encoding;

/// The media type of image manifests.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of indexes.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of image configs.
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A layout directory that is being written.
pub(crate) struct Layout {
    dir: PathBuf,
    entries: Vec<Value>,
}

/// A layer as an image names it.
pub(crate) struct Layer {
    /// The label, which may lie.
    pub(crate) media_type: String,
    /// The stored bytes.
    pub(crate) stored: Vec<u8>,
    /// The digest of the uncompressed tar.
    pub(crate) diff_id: String,
}

impl Layer {
    /// `tar` stored in `encoding`, labelled honestly.
    pub(crate) fn of(tar: &[u8], encoding: Encoding) -> Self {
        Self {
            media_type: encoding.media_type().to_owned(),
            stored: encoding.encode(tar),
            diff_id: digest_of(tar),
        }
    }

    /// The digest of the stored bytes.
    pub(crate) fn digest(&self) -> String {
        digest_of(&self.stored)
    }
}

impl Layout {
    /// An empty layout at `dir`.
    pub(crate) fn create(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(dir.join("blobs/sha256")).expect("a directory of ours");
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).expect("a directory of ours");
        let layout = Self { dir, entries: Vec::new() };
        layout.write_index();
        layout
    }

    /// `oci:DIR:TAG`.
    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Where a blob lies.
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        blob_path(&self.dir, digest)
    }

    /// Stores a blob and gives its descriptor.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("a directory of ours");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Stores an image of these layers under `tag` and gives the manifest's digest.
    pub(crate) fn image(&mut self, tag: &str, layers: &[Layer]) -> String {
        let descriptor = self.image_for(layers, json!({"architecture": "amd64", "os": "linux"}));
        self.tag(tag, descriptor)
    }

    /// Stores an image for the platform in `config` and gives the manifest's descriptor, with the platform in it.
    pub(crate) fn image_for(&self, layers: &[Layer], platform: Value) -> Value {
        let mut config = platform.clone();
        let diffs: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": diffs});
        config["config"] = json!({});
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers.iter().map(|it| self.blob(&it.media_type, &it.stored)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = platform;
        descriptor
    }

    /// Stores any document under `tag` and gives its digest.
    pub(crate) fn document(&mut self, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let descriptor = self.blob(media_type, bytes);
        self.tag(tag, descriptor)
    }

    /// Names a descriptor in `index.json`.
    pub(crate) fn tag(&mut self, tag: &str, mut descriptor: Value) -> String {
        let digest = descriptor["digest"].as_str().expect("a descriptor has a digest").to_owned();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.entries.push(descriptor);
        self.write_index();
        digest
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.entries});
        fs::write(self.dir.join("index.json"), index.to_string()).expect("a directory of ours");
    }
}

/// Where a layout keeps a blob.
pub(crate) fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}
