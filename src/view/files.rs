//! `files/<title>`: the layers of an artifact as the files and directories they were made of.

use std::sync::Arc;

use crate::artifact::{self, File, FileBody};
use crate::image::{Image, TreeRoot};
use crate::io::{BoxFuture, Fault, ReadError};

use super::View;
use super::subtree::{Listing, Made, Origins, Subtree};

pub(super) struct Files;

impl View for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn exists(&self, image: &Image) -> bool {
        !image.contents().files.is_empty()
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let mut listing = Listing::new(image.created());
            let layers = &image.manifest().layers;
            let mut directories = first..;
            for (at, file) in image.contents().files.iter().enumerate() {
                let (size, made) = match &file.body {
                    FileBody::Layer(layer) => {
                        (layers[*layer].size, Made::Blob(Box::new(layers[*layer].clone())))
                    }
                    FileBody::Config => match &image.manifest().config {
                        Some(config) => (config.size, Made::Blob(Box::new(config.clone()))),
                        None => continue,
                    },
                    FileBody::Sparse { size, .. } => (*size, Made::File(at)),
                    FileBody::Joined(segments) => {
                        (segments.iter().map(|segment| segment.size).sum(), Made::File(at))
                    }
                    FileBody::Tree(_) => {
                        if let Some(subtree) = directories.next() {
                            listing.graft(file.path.as_bytes(), subtree)?;
                        }
                        continue;
                    }
                };
                listing.file_with(file.path.as_bytes(), size, file.mode, file.mtime, made)?;
            }
            Ok(listing.finish())
        })
    }

    fn inner(&self, image: &Image) -> Vec<usize> {
        let files = image.contents().files.iter().enumerate();
        files.filter(|(_, file)| directory(file).is_some()).map(|(at, _)| at).collect()
    }

    fn build_inner<'a>(
        &'a self,
        image: &'a Arc<Image>,
        at: usize,
    ) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let missing = || ReadError::new(Fault::NotFound, format!("file {at} is no directory"));
            let tree = image.contents().files.get(at).and_then(directory).ok_or_else(missing)?;
            Ok(Subtree { tree: Arc::new(image.directory(tree).await?), origins: Origins::Layers })
        })
    }

    fn inner_root(&self, at: usize) -> Option<TreeRoot> {
        Some(TreeRoot::Directory(at))
    }

    fn is_free(&self, _image: &Image) -> bool {
        true
    }
}

fn directory(file: &File) -> Option<&artifact::Tree> {
    match &file.body {
        FileBody::Tree(tree) => Some(tree),
        _ => None,
    }
}
