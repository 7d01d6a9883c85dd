//! View `layers/NN-<hex12>/` and `layers/NN-<hex12>.<ext>`: every archive layer alone, extracted and as stored.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::image::{OpenImage, TreeRoot};
use crate::io::{BoxFuture, FaultClass, ReadError};
use crate::layer::{LayerState, SniffResult};

use super::TopView;
use super::subtree::{OriginMeaning, SubtreeBuilder, ViewSubtree};

pub(super) struct LayersView;

/// Time to wait for the other layers after the source failed to deliver the head of one.
const FAILED_SOURCE_GRACE: Duration = Duration::from_secs(1);

/// File extensions of all archives, from their content, sniffed concurrently. An archive that cannot be sniffed keeps
/// the extension of its label and does not block the others. An unresponsive source delays the listing only once.
async fn extensions(image: &OpenImage) -> Vec<String> {
    let archives: Vec<_> = image.every_archive().collect();
    let mut extensions: Vec<String> = archives
        .iter()
        .map(|(at, _)| crate::oci::extension(&image.manifest().layers[*at].media_type).to_owned())
        .collect();
    let mut looks: FuturesUnordered<BoxFuture<'_, _>> = archives
        .into_iter()
        .enumerate()
        .map(|(nth, (_, layer))| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let sniffed = match layer.state() {
                    LayerState::Indexed { encoding, .. } => Ok(SniffResult::Stream(encoding)),
                    _ => layer.sniff().await,
                };
                (nth, sniffed)
            })
        })
        .collect();
    let mut deadline = None;
    loop {
        let next = match deadline {
            None => looks.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline, looks.next()).await.unwrap_or_default(),
        };
        match next {
            None => return extensions,
            Some((nth, Ok(SniffResult::Stream(encoding)))) => {
                extensions[nth] = format!(".{}", encoding.extension())
            }
            Some((nth, Ok(SniffResult::Other(_)))) => extensions[nth] = ".bin".to_owned(),
            Some((_, Err(error))) if error.fault() == FaultClass::Unavailable => {
                deadline.get_or_insert_with(|| tokio::time::Instant::now() + FAILED_SOURCE_GRACE);
            }
            Some((_, Err(_))) => {}
        }
    }
}

impl TopView for LayersView {
    fn name(&self) -> &'static str {
        "layers"
    }

    fn exists(&self, image: &OpenImage) -> bool {
        image.every_archive().next().is_some()
    }

    fn opens_freely(&self) -> bool {
        true
    }

    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move {
            let mut listing = SubtreeBuilder::new(image.created());
            let extensions = extensions(image).await;
            for ((nth, (at, _)), extension) in image.every_archive().enumerate().zip(extensions) {
                let digest = &image.manifest().layers[at].digest;
                let stem = match image.layer_label(at) {
                    Some(label) => format!("{at:02}-{label}"),
                    None => format!("{at:02}-{}", digest.short()),
                };
                listing.graft(stem.as_bytes(), first + nth as u32)?;
                let target = format!("../blobs/{}/{}", digest.algorithm_name(), digest.encoded());
                listing.symlink(format!("{stem}{extension}").as_bytes(), &target)?;
            }
            Ok(listing.finish())
        })
    }

    fn inner(&self, image: &OpenImage) -> Vec<usize> {
        image.every_archive().map(|(at, _)| at).collect()
    }

    fn inner_root(&self, layer: usize) -> Option<TreeRoot> {
        Some(TreeRoot::Layer(layer))
    }

    fn build_inner<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        layer: usize,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move {
            Ok(ViewSubtree { tree: Arc::new(image.layer_tree(layer).await?), origins: OriginMeaning::Layers })
        })
    }
}
