//! Models as their tools push them, read through the mount by the packages of their formats, which map them into memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::artifact::EMPTY;
use crate::kept::kept;
use crate::layout::{Layout, MANIFEST};
use crate::process::{Finished, Need, able, run_within};
use crate::site::Site;

const NEEDS: [Need<'_>; 4] = [Need::Root, Need::Fuse, Need::Tool("python3"), Need::Tool("pip3")];

/// Part of the directory's name: raise it when the packages or the models change.
const RECIPE: u32 = 1;
/// The packages that write and read models.
const PACKAGES: [&str; 3] = ["gguf==0.19.0", "safetensors==0.8.0", "numpy>=1.26"];

const GGUF: &str = "model.gguf";
const SAFETENSORS: &str = "model.safetensors";

/// Where the packages, the script and the models lie.
struct Models {
    dir: PathBuf,
}

impl Models {
    fn get() -> &'static Self {
        static MADE: OnceLock<Models> = OnceLock::new();
        MADE.get_or_init(|| Models { dir: kept("models", RECIPE, build) })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }
}

fn build(dir: &Path) {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--root-user-action=ignore"]);
    pip.arg("--target").arg(dir.join("packages")).args(PACKAGES);
    run_within(&mut pip, Duration::from_secs(600)).ok();
    fs::write(dir.join("models.py"), include_str!("../support/models.py")).unwrap();
    python(dir, &["make"], &[dir]).ok();
}

fn python(dir: &Path, words: &[&str], paths: &[&Path]) -> Finished {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", dir.join("packages")).arg(dir.join("models.py")).args(words).args(paths);
    run_within(&mut command, Duration::from_secs(300))
}

/// Mounts a manifest of this config and these layers, and expects the models below `files/` to have these names and to be
/// the local ones for the packages.
fn reads_equal(
    manifest: impl Fn(&Models, &mut Layout) -> Value,
    gguf: Option<&str>,
    safetensors: Option<&str>,
) {
    if !able(&NEEDS) {
        return;
    }
    let models = Models::get();
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let document = manifest(models, &mut layout);
    layout.document("v1", MANIFEST, document.to_string().as_bytes());
    let mount = site.mount(&layout.reference("v1"), &[]);
    for (local, name) in [(GGUF, gguf), (SAFETENSORS, safetensors)] {
        let Some(name) = name else { continue };
        let mounted = mount.join("files").join(name);
        assert!(mounted.exists(), "there is no {mounted:?}: {}", mount.status());
        let expected = python(&models.dir, &["read"], &[&models.file(local)]).ok().text();
        assert!(expected.lines().count() > 18, "{expected}");
        let found = python(&models.dir, &["read"], &[&mounted]).ok().text();
        assert_eq!(found, expected, "{name}");
    }
}

fn layer(layout: &Layout, media_type: &str, bytes: &[u8], annotations: Value) -> Value {
    let mut descriptor = layout.blob(media_type, bytes);
    descriptor["annotations"] = annotations;
    descriptor
}

fn document(artifact_type: Option<&str>, config: Value, layers: Vec<Value>) -> Value {
    let mut document = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    if let Some(artifact_type) = artifact_type {
        document["artifactType"] = artifact_type.into();
    }
    document
}

#[test]
fn titled_models_are_read_by_the_packages_of_their_formats() {
    let titled = |models: &Models, layout: &mut Layout| {
        let layers = [GGUF, SAFETENSORS].map(|name| {
            let title = json!({"org.opencontainers.image.title": name});
            layer(layout, "application/octet-stream", &models.bytes(name), title)
        });
        let config = layout.blob(EMPTY.0, EMPTY.1);
        document(Some("application/vnd.unknown.artifact.v1"), config, layers.to_vec())
    };
    reads_equal(titled, Some(GGUF), Some(SAFETENSORS));
}

#[test]
fn a_model_pack_is_read_by_the_packages_of_its_formats() {
    let pack = |models: &Models, layout: &mut Layout| {
        let layers = [GGUF, SAFETENSORS].map(|name| {
            let (bytes, path) = (models.bytes(name), format!("weights/{name}"));
            let metadata = json!({
                "name": name, "mode": 420, "uid": 0, "gid": 0, "size": bytes.len(),
                "mtime": "2024-05-06T07:08:09Z", "typeflag": 48,
            });
            let annotations = json!({
                "org.cncf.model.filepath": path,
                "org.cncf.model.file.metadata+json": metadata.to_string(),
            });
            layer(layout, "application/vnd.cncf.model.weight.v1.raw", &bytes, annotations)
        });
        let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "descriptor": {"name": "noise"}, "config": {"paramSize": "3m"},
            "modelfs": {"type": "layers", "diffIds": digests},
        });
        let config = layout.blob("application/vnd.cncf.model.config.v1+json", config.to_string().as_bytes());
        document(Some("application/vnd.cncf.model.manifest.v1+json"), config, layers.to_vec())
    };
    let (gguf, safetensors) = (format!("weights/{GGUF}"), format!("weights/{SAFETENSORS}"));
    reads_equal(pack, Some(&gguf), Some(&safetensors));
}

#[test]
fn a_docker_model_without_names_is_read_by_the_package_of_its_format() {
    let docker = |models: &Models, layout: &mut Layout| {
        let weights = layer(layout, "application/vnd.docker.ai.gguf.v3", &models.bytes(GGUF), json!({}));
        let config = json!({
            "config": {"format": "gguf", "parameters": "3M"}, "descriptor": {},
            "rootfs": {"type": "rootfs", "diff_ids": [weights["digest"]]},
        });
        let kind = "application/vnd.docker.ai.model.config.v0.1+json";
        document(None, layout.blob(kind, config.to_string().as_bytes()), vec![weights])
    };
    reads_equal(docker, Some(GGUF), None);
}

#[test]
fn a_docker_model_with_paths_is_read_by_the_package_of_its_format() {
    let docker = |models: &Models, layout: &mut Layout| {
        let path = json!({"org.cncf.model.filepath": SAFETENSORS});
        let bytes = models.bytes(SAFETENSORS);
        let weights = layer(layout, "application/vnd.docker.ai.safetensors", &bytes, path);
        let config = json!({
            "config": {"format": "safetensors"}, "descriptor": {},
            "modelfs": {"type": "layers", "diffIds": [weights["digest"]]},
        });
        let kind = "application/vnd.docker.ai.model.config.v0.2+json";
        document(None, layout.blob(kind, config.to_string().as_bytes()), vec![weights])
    };
    reads_equal(docker, None, Some(SAFETENSORS));
}
