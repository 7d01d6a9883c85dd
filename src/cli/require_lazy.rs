//! `--require-lazy`: rejects images in which reading one file would mean reading a whole layer.

use crate::image::ImageSet;

use super::exit::CliError;

/// Fails when an archive that `view` or the whole tree shows is compressed and has no index.
pub(super) async fn demand(family: &ImageSet, view: Option<&str>) -> Result<(), CliError> {
    if !view.is_none_or(|view| matches!(view.split('/').next(), Some("merged" | "layers" | "files"))) {
        return Ok(());
    }
    for image in family.images().filter(|image| image.has_archives()) {
        let offered = image.offered_indexes().await;
        let layers = image.manifest().layers.iter().enumerate();
        let slow: Vec<_> = layers
            .filter(|(at, _)| image.archive(*at).is_some())
            .map(|(at, layer)| (at, layer, image.access(at, &offered)))
            .filter(|(_, _, access)| !access.is_lazy())
            .map(|(at, layer, access)| format!("layer {at} {}: {access}", layer.digest))
            .collect();
        if !slow.is_empty() {
            return Err(CliError::not_lazy(format!(
                "{} cannot be read lazily, as --require-lazy requires: {}",
                image.pinned(),
                slow.join("; ")
            )));
        }
    }
    Ok(())
}
