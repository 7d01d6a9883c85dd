//! `docker save` archives as a list of images and a set of blobs.
//!
//! Such an archive has no manifests: `manifest.json` names a config and layer files for each image, by their paths. A
//! manifest is synthesized from them, always the same for the same archive, so that the image has a digest. The
//! digest of a plain tar layer is its diff_id in the config, verified on reading like any other. Only a compressed
//! layer has to be read to get a digest. The format is that of moby's image specification 1.1 and 1.2.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::MAX_JSON;
use super::member_index::MemberIndex;
use crate::io::{ByteRange, FetchAll, FetchPart, RangeFetch, ReadError, compute, read_vec};
use crate::layer::{SNIFF_LEN, SniffResult, StreamEncoding, sniff};
use crate::oci::go_json::answer;
use crate::oci::{Descriptor, Digest, HashAlgorithm, Hasher, ImageConfig, MAX_LAYERS};
use crate::source::{LayoutImage, SourceError};

/// The list of images.
pub(super) const LIST: &str = "manifest.json";
/// The list of older archives.
const OLD_LIST: &str = "repositories";
/// Maximum images in one archive.
const MAX_IMAGES: usize = 1024;
/// Maximum layers of all images together.
const MAX_ALL_LAYERS: usize = 4 * MAX_LAYERS;
/// Maximum bytes of their configs together, each counted for each image that names it.
const MAX_CONFIGS: u64 = 64 * 1024 * 1024;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// A synthesized manifest. The order of its properties is part of its digest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuiltManifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The images of an archive.
#[derive(Default)]
pub(super) struct DockerImages {
    pub(super) listed: Vec<LayoutImage>,
    /// The synthesized manifests.
    pub(super) made: HashMap<Digest, Bytes>,
    /// Offsets of configs and layers in the archive.
    pub(super) blobs: HashMap<Digest, ByteRange>,
}

/// Whether the archive has a list of images. Fails if the only list has a form that is too old.
pub(super) fn is_here(table: &MemberIndex) -> Result<bool, SourceError> {
    if table.find(LIST)?.is_some() {
        return Ok(true);
    }
    match table.find(OLD_LIST) {
        Ok(Some(_)) => Err(table.unsupported(format!(
            "it has {OLD_LIST} and no {LIST}: it was saved by a docker before 1.10; load and save it with a current one"
        ))),
        Ok(None) | Err(_) => Ok(false),
    }
}

/// Reads the images of `archive`.
pub(super) async fn images(
    archive: &Arc<dyn RangeFetch>,
    table: &MemberIndex,
) -> Result<DockerImages, SourceError> {
    let list = json(archive, table, LIST).await?.1;
    let saved: Vec<SavedImage> =
        answer(&list).map_err(|error| table.refused(format!("its {LIST} is malformed: {error}")))?;
    if saved.len() > MAX_IMAGES {
        return Err(table.unsupported(format!("it has more than {MAX_IMAGES} images")));
    }
    let mut images = DockerImages::default();
    let mut known = HashMap::new();
    let (mut configs, mut all_layers) = (0, 0);
    for image in saved {
        let (range, config) = json(archive, table, &image.config).await?;
        configs += range.len();
        all_layers += image.layers.as_ref().map_or(0, Vec::len);
        if configs > MAX_CONFIGS || all_layers > MAX_ALL_LAYERS {
            return Err(table.unsupported(format!(
                "its images have more than {MAX_ALL_LAYERS} layers or {MAX_CONFIGS} bytes of configs together"
            )));
        }
        let parsed = ImageConfig::parse(&config)
            .map_err(|error| table.refused(format!("{}: {error}", image.config.escape_debug())))?;
        let paths = image.layers.unwrap_or_default();
        if paths.len() > MAX_LAYERS || paths.len() != parsed.diff_ids.len() {
            return Err(table.refused(format!(
                "an image has {} layers, and {} in its config {}",
                paths.len(),
                parsed.diff_ids.len(),
                image.config.escape_debug()
            )));
        }
        let config = Descriptor::of(CONFIG, &config);
        images.blobs.insert(config.digest.clone(), range);
        let mut layers = Vec::new();
        for (path, diff_id) in paths.iter().zip(parsed.diff_ids) {
            let range = required(table, path)?;
            // Each file is read once, however often it is named.
            let (packed, media_type) = match known.get(&range) {
                Some(stored) => stored,
                None => known.entry(range).or_insert(stored(archive, range).await?),
            };
            let digest = packed.clone().unwrap_or(diff_id);
            let layer = Descriptor { digest, size: range.len(), ..Descriptor::of(media_type, &[]) };
            images.blobs.entry(layer.digest.clone()).or_insert(range);
            layers.push(layer);
        }
        let made = BuiltManifest { schema_version: 2, media_type: MANIFEST, config, layers };
        let bytes = serde_json::to_vec(&made).map_err(|error| table.refused(error.to_string()))?;
        let descriptor = Descriptor::of(MANIFEST, &bytes);
        images.made.insert(descriptor.digest.clone(), bytes.into());
        images.listed.push(LayoutImage { descriptor, names: image.repo_tags.unwrap_or_default() });
    }
    Ok(images)
}

/// Digest and media type of the layer at `range` of the archive. The digest is `None` for a plain tar, whose digest
/// is its diff_id.
async fn stored(
    archive: &Arc<dyn RangeFetch>,
    range: ByteRange,
) -> Result<(Option<Digest>, String), SourceError> {
    let file: Arc<dyn RangeFetch> = Arc::new(FetchPart::new(archive.clone(), range)?);
    let head = ByteRange::new(0, range.len().min(SNIFF_LEN as u64));
    let head = read_vec(&FetchAll(file.clone()), head).await?;
    let suffix = match sniff(&head) {
        SniffResult::Stream(StreamEncoding::Plain) => return Ok((None, LAYER.to_owned())),
        SniffResult::Stream(StreamEncoding::Gzip) => ".gzip",
        SniffResult::Stream(StreamEncoding::Zstd) => ".zstd",
        // No label is more specific than the content.
        SniffResult::Stream(_) | SniffResult::Other(_) => "",
    };
    Ok((Some(digest_of(&file).await?), format!("{LAYER}{suffix}")))
}

/// The digest of a whole file.
async fn digest_of(file: &Arc<dyn RangeFetch>) -> Result<Digest, ReadError> {
    let mut hasher = Hasher::new(HashAlgorithm::Sha256);
    let whole = ByteRange::new(0, file.size());
    if !whole.is_empty() {
        let mut body = file.fetch(whole).await?.body;
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            hasher = compute(move || {
                hasher.update(&chunk);
                Ok(hasher)
            })
            .await?;
        }
    }
    Ok(hasher.finish())
}

/// A JSON file of the archive: its range, and its bytes.
pub(super) async fn json(
    archive: &Arc<dyn RangeFetch>,
    table: &MemberIndex,
    name: &str,
) -> Result<(ByteRange, Vec<u8>), SourceError> {
    let range = required(table, name)?;
    if range.len() > MAX_JSON {
        let (name, size) = (name.escape_debug(), range.len());
        return Err(table.unsupported(format!("its {name} has {size} bytes, the limit is {MAX_JSON}")));
    }
    Ok((range, read_vec(&FetchAll(archive.clone()), range).await?))
}

fn required(table: &MemberIndex, name: &str) -> Result<ByteRange, SourceError> {
    let missing = || table.refused(format!("there is no file {} in it, which it names", name.escape_debug()));
    table.find(name)?.ok_or_else(missing)
}
