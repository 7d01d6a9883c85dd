//! View `files/<title>`: the layers of an artifact as the files and directories that they were made from.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::artifact::{self, ArtifactFile, FileBody};
use crate::image::{OpenImage, TreeRoot, TreeShape};
use crate::io::{BoxFuture, FaultClass, ReadError};
use crate::oci::{NamedShape, nested};
use crate::tree::{FollowLinks, FrozenTree};

use super::TopView;
use super::subtree::{OriginMeaning, SubtreeBuilder, SyntheticFile, ViewSubtree};

/// The path of a directory whose content is directly in `files/`.
const TOP: &str = ".";

pub(super) struct FilesView;

impl TopView for FilesView {
    fn name(&self) -> &'static str {
        "files"
    }

    fn exists(&self, image: &OpenImage) -> bool {
        !image.contents().files.is_empty()
    }

    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move {
            let files = &image.contents().files;
            if let [ArtifactFile { path, body: FileBody::Tree(tree), .. }] = &files[..]
                && path == TOP
            {
                return Ok(ViewSubtree {
                    tree: Arc::new(image.directory(tree).await?),
                    origins: OriginMeaning::Layers,
                });
            }
            let mut shapes = Vec::new();
            for file in files {
                shapes.push(match directory(file) {
                    Some(tree) => Some(shape(image, tree).await?),
                    None => None,
                });
            }
            let mut listing = SubtreeBuilder::new(image.created());
            let layers = &image.manifest().layers;
            let mut directories = first..;
            let joined = joined(image).await?;
            let taken: HashSet<&[u8]> = files.iter().map(|file| file.path.as_bytes()).collect();
            for (at, tree) in joined.iter().rev() {
                listing.directories_at(files[*at].path.as_bytes(), tree, &taken)?;
            }
            for (at, (file, shape)) in files.iter().zip(shapes).enumerate() {
                let (size, made) = match &file.body {
                    FileBody::Layer(layer) => {
                        (layers[*layer].size, SyntheticFile::Blob(Box::new(layers[*layer].clone())))
                    }
                    FileBody::Config => match &image.manifest().config {
                        Some(config) => (config.size, SyntheticFile::Blob(Box::new(config.clone()))),
                        None => continue,
                    },
                    FileBody::Sparse { size, .. } => (*size, SyntheticFile::File(at)),
                    FileBody::Joined(segments) => {
                        (segments.iter().map(|segment| segment.size).sum(), SyntheticFile::File(at))
                    }
                    FileBody::Tree(tree) => {
                        let subtree = directories.next();
                        match shape {
                            Some(TreeShape::File(size)) => {
                                image.set_lone_file(at, size);
                                (size, SyntheticFile::File(at))
                            }
                            Some(TreeShape::Stored) => {
                                let layer = &layers[tree.layer];
                                (layer.size, SyntheticFile::Blob(Box::new(layer.clone())))
                            }
                            _ if joined.contains_key(&at) => continue,
                            _ if file.path == TOP => {
                                listing.tree(&image.directory(tree).await?)?;
                                continue;
                            }
                            _ => {
                                if let Some(subtree) = subtree {
                                    listing.graft(file.path.as_bytes(), subtree)?;
                                }
                                continue;
                            }
                        }
                    }
                };
                // A directory that turned out to be a file still has the mode of a directory.
                let mode = if file.mode == 0o555 { 0o444 } else { file.mode };
                if is_replaced(file, at, files, &joined) {
                    continue;
                }
                listing.file_with(file.path.as_bytes(), size, mode, file.mtime, made)?;
            }
            // Entries that exist stay, so the last directory comes first.
            for (at, tree) in joined.iter().rev() {
                listing.tree_at(files[*at].path.as_bytes(), tree)?;
            }
            Ok(listing.finish())
        })
    }

    fn inner(&self, image: &OpenImage) -> Vec<usize> {
        let files = image.contents().files.iter().enumerate();
        files.filter(|(_, file)| directory(file).is_some()).map(|(at, _)| at).collect()
    }

    fn build_inner<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        at: usize,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move {
            let missing = || ReadError::new(FaultClass::NotFound, format!("file {at} is no directory"));
            let tree = image.contents().files.get(at).and_then(directory).ok_or_else(missing)?;
            Ok(ViewSubtree { tree: Arc::new(image.directory(tree).await?), origins: OriginMeaning::Layers })
        })
    }

    fn inner_root(&self, at: usize) -> Option<TreeRoot> {
        Some(TreeRoot::Directory(at))
    }

    fn is_free(&self, image: &OpenImage) -> bool {
        let files = &image.contents().files;
        let mut trees = files.iter().filter_map(|file| Some((file, directory(file)?)));
        !trees.any(|(file, tree)| tree.lenient || file.path == TOP) && shared_directories(files).is_empty()
    }
}

/// The trees of directories that share paths with other files of the artifact, by their numbers.
async fn joined(image: &Arc<OpenImage>) -> Result<BTreeMap<usize, FrozenTree>, ReadError> {
    let files = &image.contents().files;
    let mut joined = BTreeMap::new();
    for at in shared_directories(files) {
        if let Some(tree) = directory(&files[at]) {
            joined.insert(at, image.directory(tree).await?);
        }
    }
    Ok(joined)
}

/// The directories that have another file of the artifact inside, or are inside of one.
fn shared_directories(files: &[ArtifactFile]) -> BTreeSet<usize> {
    let is_labelled = |at: usize| directory(&files[at]).is_some_and(|tree| !tree.lenient);
    let shape = |at| if is_labelled(at) { NamedShape::Directory } else { NamedShape::File };
    let paths: Vec<_> = files.iter().enumerate().map(|(at, file)| (&file.path[..], shape(at))).collect();
    nested(&paths)
        .into_iter()
        .flat_map(|(inside, around)| [inside, around])
        .filter(|at| is_labelled(*at))
        .collect()
}

/// The rest of `path` below `above`; `None` if it is elsewhere.
fn below<'a>(path: &'a str, above: &str) -> Option<&'a str> {
    path.strip_prefix(above)?.strip_prefix('/')
}

/// Whether a later directory has an entry at the path of a file, which pulling in order would write over it.
fn is_replaced(
    file: &ArtifactFile,
    at: usize,
    files: &[ArtifactFile],
    joined: &BTreeMap<usize, FrozenTree>,
) -> bool {
    joined.range(at + 1..).any(|(number, tree)| {
        let path = below(&file.path, &files[*number].path);
        path.is_some_and(|path| tree.resolve(path.as_bytes(), FollowLinks::Parents).is_ok())
    })
}

/// Determines the shape of a directory. If its layer is permanently unreadable it stays a directory, which reports
/// the error.
async fn shape(image: &OpenImage, tree: &artifact::ArchiveDirectory) -> Result<TreeShape, ReadError> {
    match image.tree_shape(tree).await {
        Err(error)
            if matches!(
                error.fault(),
                FaultClass::Malformed | FaultClass::Unsupported | FaultClass::NotFound
            ) =>
        {
            Ok(TreeShape::Directory)
        }
        shape => shape,
    }
}

fn directory(file: &ArtifactFile) -> Option<&artifact::ArchiveDirectory> {
    match &file.body {
        FileBody::Tree(tree) => Some(tree),
        _ => None,
    }
}
