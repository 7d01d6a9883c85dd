//! The archives of an image as trees: their union, one alone, and one as the directory it was made of.
//!
//! What the rules of a union are is decided in `tree/`, which archives take part in `artifact/`. The idea: tables of contents
//! come side by side and are applied in order, so that only a few of them are in memory.

use std::sync::{Arc, PoisonError};

use futures_util::StreamExt as _;
use tokio::sync::Mutex;

use crate::artifact::{self, Union};
use crate::io::{BoxFuture, Fault, ReadError, Shared, compute};
use crate::layer::{Content, Entry, EntryKind, IndexKind, Layer, LayerIndex, Sniffed, Toc, has_root};
use crate::tree::{self, Builder, Overlap, Tree};

use super::{Image, OnConflict};

/// Bytes of an archive that are looked at for its first entry.
const FIRST_BYTES: u64 = 64 * 1024;

/// The paths at which archives disagree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflicts {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub paths: Vec<String>,
    /// Hard links that are not shown, because what they mean is in no archive of their own.
    pub left_out: Vec<String>,
}

impl Conflicts {
    /// How many paths there are, for people.
    pub(super) fn number(&self) -> String {
        match self.count {
            1 => "1 path".to_owned(),
            count => format!("{count} paths"),
        }
    }
}

/// Guards: one large table of contents of the process is in memory at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Paths that are listed; a million are a mistake that ten show as well.
const LISTED: usize = 1000;

/// Paths that an error lists.
const SHOWN: usize = 10;

impl Image {
    /// The union of all archive layers. `origin` of its files is the number of the layer in the manifest.
    pub async fn merged(&self) -> Result<Arc<Tree>, ReadError> {
        if let Some(error) = self.unmergeable.get() {
            return Err(error.clone());
        }
        let merged = self.merged.get_or_try_init(|| self.merge()).await;
        if let Err(error) = &merged
            && matches!(error.fault(), Fault::Malformed | Fault::Unsupported | Fault::Mismatch)
        {
            // Wrong for ever: the next lookup need not find it out again.
            self.unmergeable.get_or_init(|| error.clone());
        }
        merged.cloned()
    }

    async fn merge(&self) -> Result<Arc<Tree>, ReadError> {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let union = self.contents.union;
        // Side by side, but no more at once than can decode: a pass holds megabytes in flight.
        let one = |(at, layer)| -> BoxFuture<'_, Result<_, ReadError>> {
            Box::pin(async move { Ok((at, self.table_of_contents(at, layer, union).await?)) })
        };
        if union == Union::Image
            && let Some(archive) =
                self.contents.archives.iter().find(|archive| self.archive(archive.layer).is_none())
        {
            let digest = &self.manifest.layers[archive.layer].digest;
            let message = format!(
                "layer {} cannot be read: digest algorithm {} is unknown",
                archive.layer,
                digest.algorithm_name()
            );
            return Err(ReadError::new(Fault::Unsupported, message));
        }
        let pending: Vec<_> = self.archives().map(one).collect();
        let mut indexes = futures_util::stream::iter(pending).buffered(cores);
        let (mut builder, mut conflicts) = (Builder::new(), Conflicts::default());
        while let Some(next) = indexes.next().await {
            let (at, Some((toc, root))) = next? else { continue };
            // Large ones are on disk until it is their turn; no turn waits for a network.
            let _turn = if toc.is_spooled() { Some(TURN.lock().await) } else { None };
            let toc = toc.whole().await.map_err(|error| error.within(format!("layer {at}")))?;
            let toc = self.complete_toc(at, toc, root);
            (builder, conflicts) = compute(move || {
                let applied = match union {
                    Union::Image => builder.apply(at as u32, &toc),
                    Union::Plain => {
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

    /// The names in a layer; `None` for one that turns out to be no archive, where its neighbours do not need it.
    async fn table_of_contents(
        &self,
        at: usize,
        layer: &Layer,
        union: Union,
    ) -> Result<Option<(Toc, Option<Entry>)>, ReadError> {
        if union == Union::Plain
            && let Sniffed::Other(name) = layer.sniff().await?
        {
            let line = format!("layer {at}: it is labelled an archive, but is {name}: not in merged/");
            self.left_out.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            return Ok(None);
        }
        self.refuse_encrypted(at)?;
        let LayerIndex { toc, prefetch, .. } =
            layer.index().await.map_err(|error| self.explained(at, error))?;
        self.fetch_landmark(at, layer, prefetch);
        let root = self.own_root(layer, &toc).await;
        Ok(Some((toc, root)))
    }

    /// What the archive records of its root directory where an index that others made may lack it.
    async fn own_root(&self, layer: &Layer, toc: &Toc) -> Option<Entry> {
        if layer.known_index() == Some(IndexKind::Local) || !toc.is_spooled() && has_root(toc) {
            return None;
        }
        layer.directory_entry(b"").await.unwrap_or_else(|error| {
            tracing::debug!(error = error.chain(), "root directory of a layer not known");
            None
        })
    }

    /// All names in a layer, with the entry of its root directory if they lack it.
    fn complete_toc(&self, at: usize, mut toc: Toc, root: Option<Entry>) -> Toc {
        if root.is_some() && !has_root(&toc) {
            toc.extend(root);
        }
        if let Some(layer) = self.archive(at) {
            layer.count_xattrs(&toc);
        }
        toc
    }

    /// An error for a layer that nothing here can decrypt.
    fn refuse_encrypted(&self, at: usize) -> Result<(), ReadError> {
        let kind = &self.manifest.layers[at].media_type;
        if !kind.claims_encryption() {
            return Ok(());
        }
        let message =
            format!("layer {at} is encrypted ({}), and nothing here decrypts it", kind.as_written());
        Err(ReadError::new(Fault::Unsupported, message))
    }

    /// An error of a layer with its number, and with what its label says beside.
    fn explained(&self, at: usize, error: ReadError) -> ReadError {
        let kind = &self.manifest.layers[at].media_type;
        match error.fault() {
            Fault::Malformed if !kind.claims_tar() => {
                error.within(format!("layer {at}, labelled {:?}, cannot be applied", kind.as_written()))
            }
            _ => error,
        }
    }

    /// Decides what conflicts mean.
    fn settle(&self, conflicts: Conflicts) -> Result<(), ReadError> {
        if conflicts.count > 0 && self.on_conflict == OnConflict::Error {
            let shown = conflicts.paths.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = format!(
                "several archives have different things at {} ({shown}); choose archives with --layer, or take the later ones \
                 with --on-conflict=later",
                conflicts.number()
            );
            return Err(ReadError::new(Fault::Unsupported, message));
        }
        // Set by whoever merges first, and the same every time.
        self.conflicts.get_or_init(|| conflicts);
        Ok(())
    }

    /// The paths at which archives disagree, once they were merged.
    pub fn conflicts(&self) -> Option<&Conflicts> {
        self.conflicts.get()
    }

    /// The tree of one archive layer alone, whiteouts as the files they are.
    pub async fn layer_tree(&self, at: usize) -> Result<Tree, ReadError> {
        let layer = self.archive_at(at)?;
        self.refuse_encrypted(at)?;
        let index = layer.index().await.map_err(|error| self.explained(at, error))?;
        let root = self.own_root(layer, &index.toc).await;
        let _turn = if index.toc.is_spooled() { Some(TURN.lock().await) } else { None };
        let toc = self.complete_toc(at, index.toc.whole().await?, root);
        compute(move || {
            let mut builder = Builder::new();
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
    pub async fn directory(&self, plan: &artifact::Tree) -> Result<Tree, ReadError> {
        let at = plan.layer;
        let toc = self.archive_at(at)?.index().await?.toc;
        let _turn = if toc.is_spooled() { Some(TURN.lock().await) } else { None };
        let toc = toc.whole().await?;
        // Where it is not laid down whether the names start with the directory, they tell.
        let is_inside = !plan.lenient || tree::is_below(&toc, plan.below.as_bytes());
        let below = if is_inside { plan.below.clone() } else { String::new() };
        compute(move || {
            let mut builder = Builder::new();
            builder.apply_below(at as u32, &toc, below.as_bytes()).map_err(|error| {
                ReadError::caused(error.fault(), format!("layer {at} cannot be shown as a directory"), error)
            })?;
            Ok(builder.freeze())
        })
        .await
    }

    /// What a directory in `files/` is by the first bytes of its layer.
    pub async fn tree_shape(&self, plan: &artifact::Tree) -> Result<TreeShape, ReadError> {
        if !plan.lenient {
            return Ok(TreeShape::Directory);
        }
        let layer = self.archive_at(plan.layer)?;
        if let Sniffed::Other(_) = layer.sniff().await? {
            return Ok(TreeShape::Stored);
        }
        let head = layer.peek(FIRST_BYTES).await?;
        Ok(match tree::first_file(&head).filter(|(path, _)| tree::is_name_of(path, plan.below.as_bytes())) {
            Some((_, size)) => TreeShape::File(size),
            None => TreeShape::Directory,
        })
    }

    /// The only file of an archive.
    pub(super) async fn lone_file(&self, at: usize) -> Result<Shared, ReadError> {
        let toc = self.archive_at(at)?.index().await?.toc.whole().await?;
        let content = toc.iter().find_map(|entry| match entry.kind {
            EntryKind::File(content) => {
                let runs = content.runs.map(Iterator::collect);
                Some(Content { size: content.size, offset: content.offset, runs })
            }
            _ => None,
        });
        let missing = || ReadError::new(Fault::Malformed, format!("layer {at} has no file"));
        self.file(at, &content.ok_or_else(missing)?)
    }

    fn archive_at(&self, at: usize) -> Result<&Layer, ReadError> {
        self.archive(at).ok_or_else(|| {
            ReadError::new(Fault::NotFound, format!("layer {at} is no archive that can be read"))
        })
    }
}

/// What a layer that may be a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeShape {
    /// The archive of a directory.
    Directory,
    /// The archive of one file, and the bytes of that.
    File(u64),
    /// No archive: a file as stored.
    Stored,
}

impl Conflicts {
    fn add(&mut self, overlap: &Overlap) {
        let add = |to: &mut Vec<String>, paths: &[Vec<u8>]| {
            let room = LISTED.saturating_sub(to.len());
            to.extend(paths.iter().take(room).map(|path| String::from_utf8_lossy(path).into_owned()));
        };
        self.count += overlap.count as u64;
        add(&mut self.paths, &overlap.replaced);
        add(&mut self.left_out, &overlap.left_out);
    }
}
