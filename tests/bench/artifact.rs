//! Artifacts of files that no image tool makes: one large blob, and a disk that is cut into parts.
//!
//! They are made once, kept under `target/bench-data`, and pushed with `curl` the way `oras push` does it.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::image::once;
use crate::measure::{run, text, tool};
use crate::registry::Registry;

/// The size of the parts of a disk.
const PART: &str = "64M";

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A file that is a blob of an artifact.
pub(crate) struct Piece {
    /// Its title.
    pub(crate) title: String,
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// `sha256:...`
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
}

impl Piece {
    /// Any file, titled with its name.
    pub(crate) fn of(path: PathBuf) -> Result<Self> {
        let title =
            path.file_name().and_then(|name| name.to_str()).ok_or("a file without a name")?.to_owned();
        let sum = text(tool("sha256sum").arg(&path))?;
        let digest = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
        let size = fs::metadata(&path)?.len();
        Ok(Self { title, path, digest, size })
    }
}

/// A file of `mebibytes` MiB that does not compress.
pub(crate) fn random(data: &Path, mebibytes: u64) -> Result<Piece> {
    let home = data.join(format!("random-{mebibytes}-1"));
    once(&home, |home| {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(home.join("random.bin"))?);
        // xorshift64: the same bytes everywhere, and nothing in them repeats.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..mebibytes << 17 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            file.write_all(&state.to_le_bytes())?;
        }
        Ok(file.flush()?)
    })?;
    Piece::of(home.join("random.bin"))
}

/// The parts of a disk, cut by `split` beside it.
pub(crate) fn parts(disk: &Path) -> Result<Vec<Piece>> {
    let home = disk.with_extension("parts");
    once(&home, |home| {
        let prefix = home.join("disk.qcow2.");
        run(tool("split").args(["--bytes", PART]).arg(disk).arg(&prefix)).map(drop)
    })?;
    let mut paths = fs::read_dir(home)?.map(|part| Ok(part?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(Piece::of).collect()
}

/// What an artifact and its pieces are called.
pub(crate) struct Kind {
    artifact: &'static str,
    piece: &'static str,
}

/// Files.
pub(crate) const FILES: Kind =
    Kind { artifact: "application/vnd.bench.files", piece: "application/octet-stream" };
/// A disk that is cut into parts.
pub(crate) const DISK: Kind = Kind {
    artifact: "application/vnd.cocoonstack.os-image.v1+json",
    piece: "application/vnd.cocoonstack.disk.qcow2.part",
};

/// Pushes the pieces as `name`, unless the registry has it, and returns the reference.
pub(crate) fn push(registry: &Registry, name: &str, kind: &Kind, pieces: &[Piece]) -> Result<String> {
    let reference = registry.reference(name);
    if registry.has(name)? {
        return Ok(reference);
    }
    let empty = registry.data().join("empty.json");
    fs::write(&empty, "{}")?;
    let empty = Piece::of(empty)?;
    for piece in pieces.iter().chain([&empty]) {
        upload(registry, name, piece)?;
    }
    let layers: Vec<Value> = pieces
        .iter()
        .map(|piece| {
            json!({
                "mediaType": kind.piece, "digest": piece.digest, "size": piece.size,
                "annotations": {"org.opencontainers.image.title": piece.title},
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind.artifact,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.digest, "size": empty.size},
        "layers": layers,
    });
    let file = registry.data().join("manifest.json");
    fs::write(&file, manifest.to_string())?;
    put(registry, name, "latest", MANIFEST, &file)?;
    Ok(reference)
}

/// Pushes a layout of one index, with everything in it, unless the registry has it, and returns the reference.
///
/// `skopeo copy --all` refuses an index in which a manifest is no image.
pub(crate) fn push_index(registry: &Registry, name: &str, layout: &Path) -> Result<String> {
    let reference = registry.reference(name);
    if registry.has_as(name, INDEX)? {
        return Ok(reference);
    }
    eprintln!("pushing {name}, once");
    let read = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let path_of = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().ok_or("a descriptor without digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = path_of(&read(&layout.join("index.json"))?["manifests"][0])?;
    for descriptor in read(&index)?["manifests"].as_array().ok_or("the index names no manifests")? {
        let path = path_of(descriptor)?;
        let manifest = read(&path)?;
        let layers = manifest["layers"].as_array().ok_or("the manifest has no layers")?;
        for blob in layers.iter().chain([&manifest["config"]]) {
            upload(registry, name, &Piece::of(path_of(blob)?)?)?;
        }
        let digest = descriptor["digest"].as_str().ok_or("a descriptor without digest")?;
        put(registry, name, digest, MANIFEST, &path)?;
    }
    put(registry, name, "latest", INDEX, &index)?;
    Ok(reference)
}

fn put(registry: &Registry, name: &str, reference: &str, media_type: &str, file: &Path) -> Result<()> {
    run(tool("curl")
        .args(["--silent", "--show-error", "--fail", "--header"])
        .arg(format!("Content-Type: {media_type}"))
        .arg("--upload-file")
        .arg(file)
        .arg(registry.url(name, &format!("manifests/{reference}"))))
    .map(drop)
}

fn upload(registry: &Registry, name: &str, piece: &Piece) -> Result<()> {
    let begun = text(
        tool("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--output",
                "/dev/null",
                "--write-out",
                "%header{location}",
            ])
            .args(["--request", "POST"])
            .arg(registry.url(name, "blobs/uploads/")),
    )?;
    let location = begun.trim();
    let joint = if location.contains('?') { '&' } else { '?' };
    run(tool("curl")
        .args(["--silent", "--show-error", "--fail", "--header", "Content-Type: application/octet-stream"])
        .arg("--upload-file")
        .arg(&piece.path)
        .arg(format!("{location}{joint}digest={}", piece.digest)))
    .map(drop)
}
