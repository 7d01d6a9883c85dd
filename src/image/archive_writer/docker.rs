//! Docker's `manifest.json`: the config, the layers and the names of each image in an archive.
//!
//! The file describes one image for each reference, next to an OCI index. So a program that knows only Docker's
//! archives finds the image to run.

use serde::Serialize;

use crate::io::ReadError;
use crate::oci::Digest;

use super::json;
use super::select::{ArchiveSelection, RunnableManifest};

/// An image and all its names.
pub(super) struct TaggedImage<'a> {
    image: &'a RunnableManifest,
    names: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The image of each selection that has one. An image of several selections appears once, with all of its names.
pub(super) fn tagged(selections: &[ArchiveSelection]) -> Vec<TaggedImage<'_>> {
    let mut images: Vec<TaggedImage<'_>> = Vec::new();
    for selection in selections {
        let Some(image) = selection.docker() else { continue };
        let at = images.iter().position(|other| other.image.manifest == image.manifest);
        let at = at.unwrap_or_else(|| {
            images.push(TaggedImage { image, names: Vec::new() });
            images.len() - 1
        });
        let names = &mut images[at].names;
        names.extend(
            selection
                .name()
                .familiar
                .iter()
                .filter(|name| !names.contains(name))
                .cloned()
                .collect::<Vec<_>>(),
        );
    }
    images
}

/// The content of the file; absent values are `null`, like in Go's output.
pub(super) fn manifest(
    images: &[TaggedImage<'_>],
    config: impl Fn(&Digest) -> String,
    layer: impl Fn(&Digest) -> String,
) -> Result<Vec<u8>, ReadError> {
    fn some(list: Vec<String>) -> Option<Vec<String>> {
        (!list.is_empty()).then_some(list)
    }
    let entries: Vec<ManifestEntry> = images
        .iter()
        .map(|tagged| ManifestEntry {
            config: config(&tagged.image.config),
            repo_tags: some(tagged.names.clone()),
            layers: some(tagged.image.layers.iter().map(&layer).collect()),
        })
        .collect();
    json(&entries)
}
