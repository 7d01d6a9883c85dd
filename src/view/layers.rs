//! `layers/NN-<hex12>/` and `layers/NN-<hex12>.<ext>`: every archive layer alone, extracted and as stored.

use std::sync::Arc;

use crate::image::Image;
use crate::io::{BoxFuture, ReadError};
use crate::layer::{LayerState, Sniffed};

use super::View;
use super::subtree::{Listing, Origins, Subtree};

pub(super) struct Layers;

impl View for Layers {
    fn name(&self) -> &'static str {
        "layers"
    }

    fn exists(&self, image: &Image) -> bool {
        image.every_archive().next().is_some()
    }

    fn opens_freely(&self) -> bool {
        true
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let mut listing = Listing::new(image.created());
            for (nth, (at, layer)) in image.every_archive().enumerate() {
                let digest = &image.manifest().layers[at].digest;
                let stem = match image.layer_label(at) {
                    Some(label) => format!("{at:02}-{label}"),
                    None => format!("{at:02}-{}", digest.short()),
                };
                listing.graft(stem.as_bytes(), first + nth as u32)?;
                // The extension that the content deserves; what cannot be looked at keeps that of its label, and hides no other.
                let sniffed = match layer.state() {
                    LayerState::Indexed { encoding, .. } => Ok(Sniffed::Stream(encoding)),
                    _ => layer.sniff().await,
                };
                let extension = match sniffed {
                    Ok(Sniffed::Stream(encoding)) => format!(".{}", encoding.extension()),
                    Ok(Sniffed::Other(_)) => ".bin".to_owned(),
                    Err(_) => crate::oci::extension(&image.manifest().layers[at].media_type).to_owned(),
                };
                let target = format!("../blobs/{}/{}", digest.algorithm_name(), digest.encoded());
                listing.symlink(format!("{stem}{extension}").as_bytes(), &target)?;
            }
            Ok(listing.finish())
        })
    }

    fn inner(&self, image: &Image) -> Vec<usize> {
        image.every_archive().map(|(at, _)| at).collect()
    }

    fn build_inner<'a>(
        &'a self,
        image: &'a Arc<Image>,
        layer: usize,
    ) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            Ok(Subtree { tree: Arc::new(image.layer_tree(layer).await?), origins: Origins::Layers })
        })
    }
}
