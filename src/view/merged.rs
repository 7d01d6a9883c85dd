//! View `merged/`: the union of all archive layers.

use std::sync::Arc;

use crate::image::{OpenImage, TreeRoot};
use crate::io::{BoxFuture, ReadError};

use super::TopView;
use super::subtree::{OriginMeaning, ViewSubtree};

pub(super) struct MergedView;

impl TopView for MergedView {
    fn name(&self) -> &'static str {
        "merged"
    }

    fn exists(&self, image: &OpenImage) -> bool {
        !image.contents().archives.is_empty() || image.contents().is_empty_tree
    }

    fn root(&self) -> Option<TreeRoot> {
        Some(TreeRoot::Merged)
    }

    fn opens_freely(&self) -> bool {
        true
    }

    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        _first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(
            async move { Ok(ViewSubtree { tree: image.merged().await?, origins: OriginMeaning::Layers }) },
        )
    }
}
