//! Root directories of trees: their attributes, before the rest of the tree is known.
//!
//! One block of each layer is read, concurrently, and within one second in total; no pass over a layer is awaited. An
//! index repository spares the blocks of the layers that it has.
//! Programs that copy a tree stat its root first, list it later, and complain if it has changed in between. So the
//! first answer has to be final: the recorded attributes, or the default of a tree without such an entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::artifact::FileBody;
use crate::io::concurrency::indexed_layers;
use crate::io::{BoxFuture, lock};
use crate::layer::TocEntry;

use super::OpenImage;

/// Time that the first access to root directories waits for the first blocks of all layers.
const ROOTS_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which the default is used after blocks did not arrive, before they are requested again.
const ROOTS_RETRY_DELAY: Duration = Duration::from_secs(10);

/// A tree that has a root directory with attributes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeRoot {
    /// The union of all archives.
    Merged,
    /// The layer with this number alone.
    Layer(usize),
    /// The directory that is the artifact's file with this number.
    Directory(usize),
}

/// The known root directories.
#[derive(Debug, Default)]
pub(super) struct KnownRoots {
    /// By number of the layer and path in its archive; `None` if the first block has no such entry.
    known: HashMap<(usize, String), Option<Arc<TocEntry>>>,
    /// Time of the last search that did not receive all blocks.
    given_up: Option<Instant>,
}

impl KnownRoots {
    fn rests(&self) -> bool {
        self.given_up.is_some_and(|since| since.elapsed() < ROOTS_RETRY_DELAY)
    }
}

impl OpenImage {
    /// Whether [`tree_root`](Self::tree_root) has its answer: all first blocks were read, or the last search was
    /// incomplete and recent.
    pub fn knows_roots(&self) -> bool {
        let wanted = self.wanted_roots();
        self.with_roots(|roots| roots.rests() || wanted.iter().all(|key| roots.known.contains_key(key)))
    }

    /// The recorded root of a tree, as far as it is known; `None` stands for the default.
    pub fn tree_root(&self, of: TreeRoot) -> Option<Arc<TocEntry>> {
        let key = |layer: usize, path: &str| (layer, path.to_owned());
        self.with_roots(|roots| match of {
            // The uppermost archive with an entry decides, if every archive above it is known.
            TreeRoot::Merged => {
                let mut archives = self.contents.archives.iter().rev();
                let found = archives.find_map(|archive| match roots.known.get(&key(archive.layer, "")) {
                    Some(Some(entry)) => Some(Some(entry.clone())),
                    Some(None) => None,
                    None => Some(None),
                });
                found.flatten()
            }
            TreeRoot::Layer(layer) => roots.known.get(&key(layer, ""))?.clone(),
            TreeRoot::Directory(file) => match &self.contents.files.get(file)?.body {
                FileBody::Tree(tree) => {
                    let below = roots.known.get(&key(tree.layer, &tree.below)).cloned().flatten();
                    let root = || roots.known.get(&key(tree.layer, "")).cloned().flatten();
                    below.or_else(|| root().filter(|_| tree.lenient))
                }
                _ => None,
            },
        })
    }

    /// Reads the first block of every archive that is not known yet, for at most one second.
    pub async fn learn_roots(&self) {
        // Concurrent readers wait for one search.
        let _looking = self.learning_roots.lock().await;
        if self.knows_roots() {
            return;
        }
        let missing: Vec<_> = {
            let wanted = self.wanted_roots();
            self.with_roots(|roots| wanted.into_iter().filter(|key| !roots.known.contains_key(key)).collect())
        };
        let missing = self.indexed_roots(missing).await;
        let mut looks: FuturesUnordered<BoxFuture<'_, _>> = missing
            .into_iter()
            .map(|(at, path)| -> BoxFuture<'_, _> {
                Box::pin(async move {
                    let entry = match self.archive(at) {
                        Some(layer) => layer.directory_entry(path.as_bytes()).await,
                        None => Ok(None),
                    };
                    ((at, path), entry)
                })
            })
            .collect();
        let deadline = tokio::time::Instant::now() + ROOTS_TIMEOUT;
        let mut is_complete = true;
        loop {
            let Ok(next) = tokio::time::timeout_at(deadline, looks.next()).await else {
                is_complete = false;
                break;
            };
            let Some((key, entry)) = next else { break };
            match entry {
                Ok(entry) => {
                    self.with_roots(|roots| roots.known.insert(key, entry.map(Arc::new)));
                }
                Err(error) => {
                    tracing::debug!(layer = key.0, error = error.chain(), "cannot inspect the first block");
                    is_complete = false;
                }
            }
        }
        self.with_roots(|roots| roots.given_up = (!is_complete).then(Instant::now));
    }

    /// Finds roots by the indexes of index repositories; returns the others.
    async fn indexed_roots(&self, missing: Vec<(usize, String)>) -> Vec<(usize, String)> {
        let Some(repositories) = &self.repositories else { return missing };
        repositories.ask_all().await;
        let looks = missing.into_iter().map(|(at, path)| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let layer = self.archive(at).filter(|_| repositories.has(&self.manifest.layers[at].digest));
                let entry = match layer {
                    Some(layer) => layer.indexed_entry(path.as_bytes()).await.unwrap_or_else(|error| {
                        tracing::debug!(layer = at, error = error.chain(), "cannot use an index");
                        None
                    }),
                    None => None,
                };
                ((at, path), entry)
            })
        });
        let looks: Vec<_> = looks.collect();
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(indexed_layers());
        let mut others = Vec::new();
        while let Some((key, entry)) = looks.next().await {
            match entry {
                Some(entry) => drop(self.with_roots(|roots| roots.known.insert(key, entry.map(Arc::new)))),
                None => others.push(key),
            }
        }
        others
    }

    /// The directories that are roots: number of the layer, and path in its archive.
    fn wanted_roots(&self) -> Vec<(usize, String)> {
        let mut wanted: Vec<_> = self.every_archive().map(|(at, _)| (at, String::new())).collect();
        wanted.extend(self.contents.files.iter().filter_map(|file| match &file.body {
            FileBody::Tree(tree) if !tree.below.is_empty() => Some((tree.layer, tree.below.clone())),
            _ => None,
        }));
        wanted
    }

    fn with_roots<T>(&self, work: impl FnOnce(&mut KnownRoots) -> T) -> T {
        work(&mut lock(&self.roots))
    }
}
