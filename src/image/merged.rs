//! Archive trees of an image: their union, one layer alone, and one archive as a directory of an artifact.
//!
//! The rules of a union are in `tree/`, the choice of archives in `artifact/`. Tables of contents are loaded
//! concurrently and applied in order, so that only a few of them are in memory.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::sync::Mutex;

use crate::artifact::{self, UnionRules};
use crate::io::concurrency::indexed_layers;
use crate::io::{BoxFuture, FaultClass, ReadError, SharedReader, compute, lock};
use crate::layer::{
    IndexKind, LayerIndex, SniffResult, StoredLayer, TableOfContents, TocEntry, TocEntryKind, has_root,
};
use crate::tree::{self, ArchiveOverlap, FrozenTree, TreeBuilder};

use super::{ConflictPolicy, OpenImage};

/// Bytes of an archive to search for its first two entries.
const FIRST_BYTES: u64 = 64 * 1024;

/// Paths where archives conflict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathConflicts {
    /// Number of paths.
    pub count: u64,
    /// The first of the paths.
    pub paths: Vec<String>,
    /// Omitted hard links, whose target is not in their own archive.
    pub left_out: Vec<String>,
}

impl PathConflicts {
    /// The number of paths, for messages.
    pub(super) fn number(&self) -> String {
        match self.count {
            1 => "1 path".to_owned(),
            count => format!("{count} paths"),
        }
    }
}

/// The turn to load a large table of contents: the process has one in memory at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Limit of listed paths; a million of them are a mistake that ten show as well.
const MAX_LISTED_PATHS: usize = 1000;

/// Limit of paths in an error.
const MAX_SHOWN_PATHS: usize = 10;

impl OpenImage {
    /// The union of all archive layers. `origin` of its files is the number of the layer in the manifest.
    pub async fn merged(&self) -> Result<Arc<FrozenTree>, ReadError> {
        if let Some(error) = self.unmergeable.get() {
            return Err(error.clone());
        }
        let merged = self.merged.get_or_try_init(|| self.merge()).await;
        if let Err(error) = &merged
            && matches!(error.fault(), FaultClass::Malformed | FaultClass::Unsupported | FaultClass::Mismatch)
        {
            // The error is permanent, so later lookups return it at once.
            self.unmergeable.get_or_init(|| error.clone());
        }
        merged.cloned()
    }

    async fn merge(&self) -> Result<Arc<FrozenTree>, ReadError> {
        let union = self.contents.union;
        let one = |(at, layer)| -> BoxFuture<'_, Result<_, ReadError>> {
            Box::pin(async move { Ok((at, self.table_of_contents(at, layer, union).await?)) })
        };
        if union == UnionRules::Image
            && let Some(archive) =
                self.contents.archives.iter().find(|archive| self.archive(archive.layer).is_none())
        {
            let digest = &self.manifest.layers[archive.layer].digest;
            let message = format!(
                "layer {} cannot be read: digest algorithm {} is unknown",
                archive.layer,
                digest.algorithm_name()
            );
            return Err(ReadError::new(FaultClass::Unsupported, message));
        }
        let pending: Vec<_> = self.archives().map(one).collect();
        let mut indexes = futures_util::stream::iter(pending).buffered(indexed_layers());
        let (mut builder, mut conflicts) = (TreeBuilder::new(), PathConflicts::default());
        while let Some(next) = indexes.next().await {
            let (at, Some((toc, root))) = next? else { continue };
            // Large ones stay on disk until their turn; no turn waits for the network.
            let _turn = if toc.is_spooled() { Some(TURN.lock().await) } else { None };
            let toc = toc.whole().await.map_err(|error| error.within(format!("layer {at}")))?;
            let toc = self.complete_toc(at, toc, root);
            (builder, conflicts) = compute(move || {
                let applied = match union {
                    UnionRules::Image => builder.apply(at as u32, &toc),
                    UnionRules::Plain => {
                        builder.apply_plain(at as u32, &toc).map(|overlap| conflicts.add(&overlap))
                    }
                };
                applied.map(|()| (builder, conflicts)).map_err(|error| {
                    ReadError::caused(error.fault(), format!("layer {at} cannot be merged"), error)
                })
            })
            .await?;
        }
        self.settle(conflicts)?;
        Ok(Arc::new(compute(move || Ok(builder.freeze())).await?))
    }

    /// The names in a layer; `None` for a layer that is not an archive, if the others do not depend on it.
    async fn table_of_contents(
        &self,
        at: usize,
        layer: &StoredLayer,
        union: UnionRules,
    ) -> Result<Option<(TableOfContents, Option<TocEntry>)>, ReadError> {
        if union == UnionRules::Plain
            && let SniffResult::Other(name) = layer.sniff().await?
        {
            let line = format!("layer {at}: it is labelled an archive, but is {name}: not in merged/");
            lock(&self.left_out).push(line);
            return Ok(None);
        }
        self.refuse_encrypted(at)?;
        let LayerIndex { toc, prefetch, .. } =
            layer.index().await.map_err(|error| self.explained(at, error))?;
        self.fetch_landmark(at, layer, prefetch);
        let root = self.own_root(layer, &toc).await;
        Ok(Some((toc, root)))
    }

    /// The recorded root directory of an archive, which an index from another tool may lack.
    async fn own_root(&self, layer: &StoredLayer, toc: &TableOfContents) -> Option<TocEntry> {
        // Both come from a pass, which lists every entry.
        let is_complete = matches!(layer.known_index(), Some(IndexKind::Local | IndexKind::Pushed));
        if is_complete || !toc.is_spooled() && has_root(toc) {
            return None;
        }
        layer.directory_entry(b"").await.unwrap_or_else(|error| {
            tracing::debug!(error = error.chain(), "root directory of a layer not known");
            None
        })
    }

    /// All names in a layer, with the entry of its root directory if they lack it.
    fn complete_toc(&self, at: usize, mut toc: TableOfContents, root: Option<TocEntry>) -> TableOfContents {
        if root.is_some() && !has_root(&toc) {
            toc.extend(root);
        }
        if let Some(layer) = self.archive(at) {
            layer.count_xattrs(&toc);
        }
        toc
    }

    /// Fails for an encrypted layer: decryption is not supported.
    fn refuse_encrypted(&self, at: usize) -> Result<(), ReadError> {
        let kind = &self.manifest.layers[at].media_type;
        if !kind.claims_encryption() {
            return Ok(());
        }
        let message =
            format!("layer {at} is encrypted ({}), and ocifs has no keys for it", kind.as_written());
        Err(ReadError::new(FaultClass::Unsupported, message))
    }

    /// Adds the number and the label of a layer to an error.
    fn explained(&self, at: usize, error: ReadError) -> ReadError {
        let kind = &self.manifest.layers[at].media_type;
        match error.fault() {
            FaultClass::Malformed if !kind.claims_tar() => {
                error.within(format!("layer {at}, labelled {:?}, cannot be applied", kind.as_written()))
            }
            _ => error,
        }
    }

    /// Applies the option for conflicts.
    fn settle(&self, conflicts: PathConflicts) -> Result<(), ReadError> {
        if conflicts.count > 0 && self.on_conflict == ConflictPolicy::Error {
            let shown = conflicts
                .paths
                .iter()
                .take(MAX_SHOWN_PATHS)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let message = format!(
                "several archives have different files at {} ({shown}); choose archives with --layer, or take the later ones \
                 with --on-conflict=later",
                conflicts.number()
            );
            return Err(ReadError::new(FaultClass::Unsupported, message));
        }
        // Set by the first merge; every merge gives the same value.
        self.conflicts.get_or_init(|| conflicts);
        Ok(())
    }

    /// The paths where archives conflict; `None` before they are merged.
    pub fn conflicts(&self) -> Option<&PathConflicts> {
        self.conflicts.get()
    }

    /// The tree of one archive layer alone; whiteouts are shown as plain files.
    pub async fn layer_tree(&self, at: usize) -> Result<FrozenTree, ReadError> {
        let layer = self.archive_at(at)?;
        self.refuse_encrypted(at)?;
        let index = layer.index().await.map_err(|error| self.explained(at, error))?;
        let root = self.own_root(layer, &index.toc).await;
        let _turn = if index.toc.is_spooled() { Some(TURN.lock().await) } else { None };
        let toc = self.complete_toc(at, index.toc.whole().await?, root);
        compute(move || {
            let mut builder = TreeBuilder::new();
            let omitted = builder.apply_alone(at as u32, &toc).map_err(|error| {
                ReadError::caused(error.fault(), format!("layer {at} cannot be shown"), error)
            })?;
            for path in omitted {
                let path = String::from_utf8_lossy(&path);
                tracing::info!(layer = at, %path, "hard link into a lower layer is not shown in layers/");
            }
            Ok(builder.freeze())
        })
        .await
    }

    /// The tree of an archive that is a directory in `files/`.
    pub async fn directory(&self, plan: &artifact::ArchiveDirectory) -> Result<FrozenTree, ReadError> {
        let at = plan.layer;
        let toc = self.archive_at(at)?.index().await?.toc;
        let _turn = if toc.is_spooled() { Some(TURN.lock().await) } else { None };
        let toc = toc.whole().await?;
        // If the format leaves open whether names start with the directory, the names themselves decide.
        let is_inside = !plan.lenient || tree::is_below(&toc, plan.below.as_bytes());
        let below = if is_inside { plan.below.clone() } else { String::new() };
        compute(move || {
            let mut builder = TreeBuilder::new();
            builder.apply_below(at as u32, &toc, below.as_bytes()).map_err(|error| {
                ReadError::caused(error.fault(), format!("layer {at} cannot be shown as a directory"), error)
            })?;
            Ok(builder.freeze())
        })
        .await
    }

    /// Determines the shape of a directory in `files/` from the first bytes of its layer.
    pub async fn tree_shape(&self, plan: &artifact::ArchiveDirectory) -> Result<TreeShape, ReadError> {
        if !plan.lenient {
            return Ok(TreeShape::Directory);
        }
        let layer = self.archive_at(plan.layer)?;
        if let SniffResult::Other(_) = layer.sniff().await? {
            return Ok(TreeShape::Stored);
        }
        let head = layer.peek(FIRST_BYTES).await?;
        Ok(match tree::lone_file(&head).filter(|(path, _)| tree::is_name_of(path, plan.below.as_bytes())) {
            Some((_, size)) => TreeShape::File(size),
            None => TreeShape::Directory,
        })
    }

    /// The first file of an archive that is shown as that file. Entries beyond [`FIRST_BYTES`] are reported.
    pub(super) async fn lone_file(&self, at: usize) -> Result<SharedReader, ReadError> {
        let toc = self.archive_at(at)?.index().await?.toc.whole().await?;
        let others =
            toc.iter().filter(|entry| entry.kind != TocEntryKind::Directory).count().saturating_sub(1);
        if others > 0 {
            self.warn(format!(
                "layer {at}: files/ shows its first file, and not the {others} entries after it"
            ));
        }
        let content = toc.iter().find_map(|entry| match entry.kind {
            TocEntryKind::File(content) => Some(content.shared()),
            _ => None,
        });
        let missing = || ReadError::new(FaultClass::Malformed, format!("layer {at} has no file"));
        self.file(at, &content.ok_or_else(missing)?)
    }

    fn archive_at(&self, at: usize) -> Result<&StoredLayer, ReadError> {
        self.archive(at).ok_or_else(|| {
            ReadError::new(FaultClass::NotFound, format!("layer {at} is no archive that can be read"))
        })
    }
}

/// The shape of a layer that may be a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeShape {
    /// The archive of a directory.
    Directory,
    /// An archive of one file, and the file's size in bytes.
    File(u64),
    /// Not an archive: a file as stored.
    Stored,
}

impl PathConflicts {
    fn add(&mut self, overlap: &ArchiveOverlap) {
        let add = |to: &mut Vec<String>, paths: &[Vec<u8>]| {
            let room = MAX_LISTED_PATHS.saturating_sub(to.len());
            to.extend(paths.iter().take(room).map(|path| String::from_utf8_lossy(path).into_owned()));
        };
        self.count += overlap.count as u64;
        add(&mut self.paths, &overlap.replaced);
        add(&mut self.left_out, &overlap.left_out);
    }
}
