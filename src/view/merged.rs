//! View `merged/`: the union of all archive layers.

use std::sync::Arc;

use crate::image::{Image, TreeRoot};
use crate::io::{BoxFuture, ReadError};

use super::View;
use super::subtree::{Origins, Subtree};

pub(super) struct Merged;

impl View for Merged {
    fn name(&self) -> &'static str {
        "merged"
    }

    fn exists(&self, image: &Image) -> bool {
        !image.contents().archives.is_empty() || image.contents().is_empty_tree
    }

    fn root(&self) -> Option<TreeRoot> {
        Some(TreeRoot::Merged)
    }

    fn opens_freely(&self) -> bool {
        true
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, _first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move { Ok(Subtree { tree: image.merged().await?, origins: Origins::Layers }) })
    }
}
