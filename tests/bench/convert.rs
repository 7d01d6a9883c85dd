//! The main image with an index: as eStargz, and with a SOCI index of version 2, made once by the writers of the tests.
//!
//! Both are what the tools write by default: eStargz with a member for each chunk of 4 MiB and a landmark that says there is
//! nothing to prefetch, SOCI with spans of 4 MiB. One layer is in memory at a time.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ocifs::oci::Digest;
use serde_json::{Value, json};

use crate::Result;
use crate::artifact::{INDEX, MANIFEST};
use crate::chunked::Estargz;
use crate::image::{Image, once};
use crate::soci::Ztoc;
use crate::zran::Members;

/// The size of a span, as the tool chooses it.
const SPAN: u64 = 4 << 20;

/// As hard as `umoci` compressed the layers that are converted.
const LEVEL: u32 = 6;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const SOCI: &str = "application/vnd.amazon.soci.index.v2+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Makes `estargz/layout` in the data folder, unless it is there.
pub(crate) fn estargz(image: &Image, data: &Path) -> Result<PathBuf> {
    let home = data.join("estargz");
    once(&home, |home| {
        let layout = Layout::new(home)?;
        let (mut layers, mut diffs, mut bytes) = (Vec::new(), Vec::new(), 0);
        for layer in &image.layers {
            let tar = with_landmark(&inflate(&layer.path)?)?;
            let made = Estargz { level: LEVEL, ..Estargz::default() }.make(&tar);
            drop(tar);
            let mut descriptor = layout.blob(&layer.media_type, &made.bytes)?;
            descriptor["annotations"] = json!(made.annotations);
            let mut stream = Vec::new();
            MultiGzDecoder::new(&made.bytes[..]).read_to_end(&mut stream)?;
            diffs.push(Digest::sha256(&stream).to_string());
            bytes += stream.len() as u64;
            layers.push(descriptor);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let config = layout.blob(CONFIG, config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let manifest = layout.blob(MANIFEST, manifest.to_string().as_bytes())?;
        layout.tag(manifest)?;
        Ok(fs::write(home.join("uncompressed"), bytes.to_string())?)
    })?;
    Ok(home.join("layout"))
}

/// Makes `soci/layout` in the data folder, unless it is there.
pub(crate) fn soci(image: &Image, data: &Path) -> Result<PathBuf> {
    let home = data.join("soci");
    once(&home, |home| {
        let layout = Layout::new(home)?;
        let mut ztocs = Vec::new();
        for layer in &image.layers {
            fs::copy(&layer.path, layout.path(&layer.digest))?;
            let ztoc = Ztoc::of_gzip(&fs::read(&layer.path)?, SPAN, Members::All).write();
            let mut descriptor = layout.blob("application/octet-stream", &ztoc)?;
            descriptor["annotations"] = json!({
                "com.amazon.soci.image-layer-digest": layer.digest,
                "com.amazon.soci.image-layer-mediaType": layer.media_type,
                "com.amazon.soci.span-size": SPAN.to_string(),
            });
            ztocs.push(descriptor);
        }
        let config = layout.blob(EMPTY, b"{}")?;
        let about = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": SOCI, "config": config, "layers": ztocs,
        });
        let mut about = layout.blob(MANIFEST, about.to_string().as_bytes())?;
        let mut manifest = manifest_of(image)?;
        copy_config(image, &manifest, &layout)?;
        manifest["mediaType"] = json!(MANIFEST);
        manifest["annotations"]["com.amazon.soci.index-digest"] = about["digest"].clone();
        let mut manifest = layout.blob(MANIFEST, manifest.to_string().as_bytes())?;
        manifest["platform"] = json!({"architecture": "amd64", "os": "linux"});
        about["artifactType"] = json!(SOCI);
        about["annotations"] = json!({"com.amazon.soci.image-manifest-digest": manifest["digest"]});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest, about]});
        let index = layout.blob(INDEX, index.to_string().as_bytes())?;
        layout.tag(index)?;
        Ok(fs::write(home.join("uncompressed"), image.uncompressed.to_string())?)
    })?;
    Ok(home.join("layout"))
}

/// The archive of a layer.
fn inflate(path: &Path) -> Result<Vec<u8>> {
    let mut stream = Vec::new();
    MultiGzDecoder::new(BufReader::with_capacity(1 << 18, File::open(path)?)).read_to_end(&mut stream)?;
    Ok(stream)
}

/// What the tool makes of an archive when nobody says which files come first: a landmark, then the entries, then an end
/// without padding.
fn with_landmark(tar: &[u8]) -> Result<Vec<u8>> {
    let mut end = 0;
    for entry in tar::Archive::new(tar).entries()? {
        let entry = entry?;
        end = (entry.raw_file_position() + entry.size()).next_multiple_of(512) as usize;
    }
    let mut builder = tar::Builder::new(Vec::with_capacity(end + 4096));
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, ".no.prefetch.landmark", &[0xf][..])?;
    let mut all = builder.into_inner()?;
    // Two blocks of zeros end it, and ours goes on.
    all.truncate(1024);
    all.extend_from_slice(&tar[..end]);
    all.extend([0; 1024]);
    Ok(all)
}

/// The document of the image, which [`Image::open`] found before.
fn manifest_of(image: &Image) -> Result<Value> {
    let index: Value = serde_json::from_slice(&fs::read(image.layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().ok_or("index.json names no manifest")?;
    Ok(serde_json::from_slice(&fs::read(blob_path(&image.layout, digest))?)?)
}

fn copy_config(image: &Image, manifest: &Value, to: &Layout) -> Result<()> {
    let digest = manifest["config"]["digest"].as_str().ok_or("the manifest names no config")?;
    fs::copy(blob_path(&image.layout, digest), to.path(digest))?;
    Ok(())
}

fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

/// An OCI layout that is being written.
struct Layout(PathBuf);

impl Layout {
    fn new(home: &Path) -> Result<Self> {
        let layout = home.join("layout");
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self(layout))
    }

    fn path(&self, digest: &str) -> PathBuf {
        blob_path(&self.0, digest)
    }

    /// Stores a blob, and describes it.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = Digest::sha256(bytes).to_string();
        fs::write(self.path(&digest), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    /// The one thing that is in it.
    fn tag(&self, mut descriptor: Value) -> Result<()> {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "bench"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
        Ok(fs::write(self.0.join("index.json"), index.to_string())?)
    }
}
