//! Namespace of a mount: all subtrees joined into one tree of nodes.
//!
//! A node is a subtree number and an inode number in it. Both are the same for every mount of the same digest.
//! Subtrees are built on first access: [`MountNamespace::is_built`] reports whether an answer needs no waiting, and
//! [`MountNamespace::build`] waits. All other answers come from memory. A mount can show several images, so every subtree
//! refers to its image.

use std::sync::{Arc, Mutex};

use crate::image::{ImageSet, ImageStatus, OpenImage, TreeRoot};
use crate::io::{FaultClass, ReadError, SharedReader, lock};
use crate::layer::{DeviceNumber, UnixTime, has_namespace};
use crate::oci::Digest;
use crate::owner::MAX_LINKS;
use crate::tree::{FrozenTree, InodeAttr, InodeKind, InodeNumber};

use super::node_attributes::{AttributeLifetime, NodeAttributes};
use super::subtree::{OriginMeaning, SyntheticFile, ViewSubtree};
use super::subtree_ids::{self, SubtreeRole, SubtreeSlot};
use super::{ViewError, export, root, status};

/// Receives the number of a subtree and its fingerprint; an error refuses the subtree.
pub type InodeCheck = Box<dyn Fn(u32, [u8; 32]) -> Result<(), ReadError> + Send + Sync>;

/// Prefix of the extended attributes of ocifs.
const OWN_XATTR_PREFIX: &[u8] = b"user.ocifs.";

/// A node of the mount: a subtree and an inode in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    pub(super) slot: u32,
    pub(super) ino: u32,
}

impl NodeId {
    const TOP: NodeId = NodeId { slot: 0, ino: FrozenTree::ROOT };
}

/// One name in a directory.
pub struct NamespaceEntry<'a> {
    /// Position in the directory.
    pub at: usize,
    /// The name's bytes.
    pub name: &'a [u8],
    /// The node of this name.
    pub node: NodeId,
    /// The result of `stat` for the node.
    pub attributes: NodeAttributes,
}

/// An open file.
#[derive(Clone)]
pub struct OpenNode {
    /// Content.
    pub bytes: SharedReader,
    /// Whether the content may be cached.
    pub fresh: AttributeLifetime,
}

/// The part of the mount that is shown as its root.
#[derive(Clone, Debug, Default)]
pub struct ViewScope {
    /// A single view; `None` for all of them.
    pub view: Option<String>,
    /// A directory below the view, or below the top; `None` for its root.
    pub subdir: Option<Vec<u8>>,
    /// Whether symbolic links of archives are shown.
    pub links: LinkPolicy,
    /// Whether attributes that overlayfs interprets are shown.
    pub overlay_marks: OverlayMarks,
    /// The options that selected the content of the image, as words of the command line; only shown and compared.
    pub selection: Vec<String>,
}

impl std::fmt::Display for ViewScope {
    /// In words of the command line, empty for the whole mount: `merged usr/bin hide-symlinks`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subdir = self.subdir.as_deref().map(lossy);
        let links = (self.links == LinkPolicy::Hidden).then(|| "hide-symlinks".to_owned());
        let marks = (self.overlay_marks == OverlayMarks::Hidden).then(|| "hide-overlay-xattrs".to_owned());
        let words: Vec<String> =
            self.view.clone().into_iter().chain(subdir).chain(links).chain(marks).collect();
        f.write_str(&[words, self.selection.clone()].concat().join(" "))
    }
}

/// Whether symbolic links of archives are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkPolicy {
    /// As recorded.
    #[default]
    Shown,
    /// Omitted, as if they were not in the archive.
    Hidden,
}

/// Whether the attributes `trusted.overlay.*` and `user.overlay.*` of an image are shown. An overlay over the mount
/// would take them for its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverlayMarks {
    /// As recorded.
    #[default]
    Shown,
    /// Omitted, as if they were not recorded.
    Hidden,
}

/// The names of one mount.
pub struct MountNamespace {
    family: Arc<ImageSet>,
    pub(super) slots: Vec<SubtreeSlot>,
    root: NodeId,
    pub(super) links: LinkPolicy,
    pub(super) overlay_marks: OverlayMarks,
    /// The scope in words of the command line.
    scope: String,
    /// How it is served, in words for the status; `None` where the caller chose FUSE.
    serving: Mutex<Option<String>>,

    pub(super) witness: Option<InodeCheck>,
}

impl MountNamespace {
    /// Joins all images of `family`, with `scope` as the root. Without a directory in
    /// `scope`, it reads at most the first blocks of layers, for the attributes of the root.
    pub async fn open(family: Arc<ImageSet>, scope: &ViewScope) -> Result<Self, ViewError> {
        let slots = subtree_ids::of(&family)?;
        let mut namespace = Self {
            family,
            slots,
            root: NodeId::TOP,
            links: scope.links,
            overlay_marks: scope.overlay_marks,
            scope: scope.to_string(),
            serving: Mutex::default(),
            witness: None,
        };
        for slot in &namespace.slots {
            let is_free = match slot.role {
                SubtreeRole::Top(_) | SubtreeRole::Status => true,
                SubtreeRole::View { view, .. } => {
                    slot.image.as_ref().is_some_and(|image| view.is_free(image))
                }
                SubtreeRole::Inner { .. } | SubtreeRole::Export(_) => false,
            };
            if is_free {
                namespace.build(NodeId { slot: slot.number, ino: FrozenTree::ROOT }).await?;
            }
        }
        if let Some(view) = &scope.view {
            namespace.root = namespace.view(view)?;
        }
        if let Some(subdir) = &scope.subdir {
            let node = namespace.resolve(subdir).await?;
            if !matches!(
                namespace.attributes(node).map(|attributes| attributes.kind),
                Some(InodeKind::Directory)
            ) {
                return Err(ViewError::Wrong { path: lossy(subdir), wanted: "directory" });
            }
            namespace.root = node;
        }
        // Programs look at the root of a mount before they list it.
        if !namespace.is_rooted(namespace.root) {
            namespace.settle(namespace.root).await?;
        }
        Ok(namespace)
    }

    /// The root of the view `name` of the image that the root shows.
    fn view(&self, name: &str) -> Result<NodeId, ViewError> {
        let (reference, view) = (self.family.pinned().to_owned(), name.to_owned());
        let listed = match self.slots.first().map(|slot| &slot.role) {
            Some(SubtreeRole::Top(top)) => &top.views[..],
            _ => &[],
        };
        if let Some((_, slot)) = listed.iter().find(|(listed, _)| *listed == name) {
            return Ok(NodeId { slot: *slot, ino: FrozenTree::ROOT });
        }
        if let Some(node) = self.one_layer(name) {
            return Ok(node);
        }
        if self.family.main().is_none() {
            let shown = self.family.members().iter().find(|member| member.image.is_some());
            let directory =
                shown.map_or_else(|| "platforms/NAME".to_owned(), |member| member.directory.join("/"));
            let example = format!("--subdir {directory}/{view}");
            return Err(ViewError::NoImage { reference, view, example });
        }
        let available: Vec<_> =
            listed.iter().map(|(name, _)| *name).filter(|name| !name.starts_with('.')).collect();
        match self.undecided(self.root) {
            Some(error) => Err(ViewError::Read(error.clone())),
            None => Err(ViewError::NoView { reference, view, available: available.join(", ") }),
        }
    }

    /// Records in the status how the mount is served.
    pub fn note_serving(&self, words: String) {
        *lock(&self.serving) = Some(words);
    }

    /// How the mount is served, as recorded for the status; `None` where the caller chose FUSE.
    pub fn serving(&self) -> Option<String> {
        lock(&self.serving).clone()
    }

    /// The images of the mount.
    pub fn family(&self) -> &Arc<ImageSet> {
        &self.family
    }

    /// The image that a node belongs to; `None` for a node of no image or of several.
    pub(super) fn image(&self, node: NodeId) -> Option<&Arc<OpenImage>> {
        self.slot(node.slot)?.image.as_ref()
    }

    /// Records an error that a reader of `node` received, for the status.
    pub fn note_error(&self, node: NodeId, error: String) {
        if let Some(image) = self.image(node) {
            image.note_error(error);
        }
    }

    /// The root of the mount, after the scope is applied.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Whether every file below the root can be read without `open`: none is refused, differs from one opening to the
    /// next, or is better read from a cache file.
    pub fn opens_freely(&self) -> bool {
        match self.slot(self.root.slot).map(|slot| &slot.role) {
            Some(SubtreeRole::View { view, .. } | SubtreeRole::Inner { view, .. }) => view.opens_freely(),
            Some(SubtreeRole::Top(_) | SubtreeRole::Status | SubtreeRole::Export(_)) | None => false,
        }
    }

    /// Whether requests for the content of `node` are answered without waiting.
    pub fn is_built(&self, node: NodeId) -> bool {
        self.slot(node.slot).is_some_and(|slot| slot.built.initialized())
    }

    /// Waits until the subtree of `node` is built.
    pub async fn build(&self, node: NodeId) -> Result<(), ReadError> {
        let slot = self.slot(node.slot).ok_or_else(|| unreachable_slot(node.slot))?;
        let built = slot.built.get_or_try_init(|| async {
            let created = slot.image.as_ref().map_or_else(|| self.family.created(), |image| image.created());
            let image = || slot.image.as_ref().ok_or_else(|| unreachable_slot(slot.number));
            let built = match &slot.role {
                SubtreeRole::Top(names) => root::build(slot.image.as_deref(), names, created),
                SubtreeRole::Status => status::listing(created),
                SubtreeRole::Export(exports) => export::listing(&self.family, exports, created).await,
                SubtreeRole::View { view, first } => view.build(image()?, *first).await,
                SubtreeRole::Inner { view, layer } => view.build_inner(image()?, *layer).await,
            };
            let built = built.map(Arc::new)?;
            self.show(slot, &built)?;
            Ok(built)
        });
        built.await.map(|_| ())
    }

    /// The result of `stat`. `None` for a node that does not exist.
    pub fn attributes(&self, node: NodeId) -> Option<NodeAttributes> {
        let slot = self.slot(node.slot)?;
        let Some(subtree) = slot.built.get() else {
            // A directory whose subtree is not built yet.
            return (node.ino == FrozenTree::ROOT).then(|| match slot.tree_root() {
                Some(of) => self.recorded_root(slot, of),
                None => self.made_directory(slot),
            });
        };
        let attr = subtree.tree.attr(node.ino)?;
        if let InodeKind::Graft(number) = attr.kind {
            return self.attributes(NodeId { slot: number, ino: FrozenTree::ROOT });
        }
        let mut attributes = forever(attr);
        if node.ino == FrozenTree::ROOT && matches!(subtree.origins, OriginMeaning::Made(_)) {
            // The root of a synthetic tree is like the directories in it.
            attributes = NodeAttributes {
                fresh: AttributeLifetime::Forever,
                nlink: attributes.nlink,
                ..self.made_directory(slot)
            };
        }
        if let Some(file) = subtree.tree.file(node.ino) {
            if let Some(runs) = file.runs {
                attributes.data = runs.iter().map(|run| run.len).sum();
            }
            if let OriginMeaning::Made(made) = &subtree.origins
                && let Some(made) = made.get(file.origin as usize)
            {
                self.settle_attributes(node, made, &mut attributes);
            }
        }
        Some(attributes)
    }

    /// Attributes of a tree's root directory before the tree is built.
    fn recorded_root(&self, slot: &SubtreeSlot, of: TreeRoot) -> NodeAttributes {
        if slot.root.get().is_none()
            && let Some(entry) = slot.image.as_ref().and_then(|image| image.tree_root(of))
        {
            slot.root.get_or_init(|| entry);
        }
        let made = self.made_directory(slot);
        match slot.root.get() {
            Some(entry) => NodeAttributes {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                ..made
            },
            // The default of a tree whose archives have no entry for the root.
            None => NodeAttributes { mode: 0o755, mtime: UnixTime::default(), ..made },
        }
    }

    /// Whether the attributes of a tree's root directory are known, or cannot be known before its names.
    pub fn is_rooted(&self, node: NodeId) -> bool {
        match self.slot(node.slot) {
            Some(slot) if node.ino == FrozenTree::ROOT && !slot.built.initialized() => {
                slot.tree_root().is_none() || slot.image.as_ref().is_none_or(|image| image.knows_roots())
            }
            Some(_) | None => true,
        }
    }

    /// Whether a node is in a tree of archives, with the attributes recorded in them.
    pub fn is_recorded(&self, node: NodeId) -> bool {
        self.built(node).is_some_and(|subtree| matches!(subtree.origins, OriginMeaning::Layers))
    }

    /// Attributes of a synthetic directory; also of a directory whose subtree is not built yet.
    fn made_directory(&self, slot: &SubtreeSlot) -> NodeAttributes {
        let created = slot.image.as_ref().map_or_else(|| self.family.created(), |image| image.created());
        NodeAttributes {
            kind: InodeKind::Directory,
            mode: 0o555,
            uid: 0,
            gid: 0,
            size: 0,
            data: 0,
            mtime: UnixTime { secs: created, nanos: 0 },
            nlink: 2,
            rdev: DeviceNumber::default(),
            fresh: AttributeLifetime::Now,
        }
    }

    /// The node called `name` in a built directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let subtree = self.built(directory)?;
        let ino = subtree.tree.lookup(directory.ino, name)?;
        let node = across(&subtree.tree, NodeId { slot: directory.slot, ino });
        (!self.hides(subtree, ino)).then_some(node)
    }

    /// Calls `each` with the entries of a built directory in a fixed order, starting at number `skip`, until it
    /// returns `false`.
    pub fn entries(&self, directory: NodeId, skip: usize, mut each: impl FnMut(NamespaceEntry<'_>) -> bool) {
        let Some(subtree) = self.built(directory) else { return };
        for (at, (name, ino)) in (skip..).zip(subtree.tree.entries(directory.ino, skip)) {
            let node = across(&subtree.tree, NodeId { slot: directory.slot, ino });
            let Some(attributes) = self.attributes(node).filter(|_| !self.hides(subtree, ino)) else {
                continue;
            };
            if !each(NamespaceEntry { at, name, node, attributes }) {
                return;
            }
        }
    }

    /// Whether a name is omitted because of the options.
    fn hides(&self, subtree: &ViewSubtree, ino: InodeNumber) -> bool {
        self.links == LinkPolicy::Hidden
            && matches!(subtree.origins, OriginMeaning::Layers)
            && matches!(subtree.tree.attr(ino).map(|attr| attr.kind), Some(InodeKind::Symlink))
    }

    /// The parent of a directory; the root is its own parent.
    pub fn parent(&self, directory: NodeId) -> NodeId {
        if directory == self.root {
            return directory;
        }
        if directory.ino == FrozenTree::ROOT {
            return self.slot(directory.slot).map_or(NodeId::TOP, |slot| self.above(slot));
        }
        let ino =
            self.built(directory).map_or(FrozenTree::ROOT, |subtree| subtree.tree.parent(directory.ino));
        NodeId { slot: directory.slot, ino }
    }

    /// The directory that a subtree is grafted into.
    fn above(&self, slot: &SubtreeSlot) -> NodeId {
        let root = NodeId { slot: slot.parent, ino: FrozenTree::ROOT };
        // A node of the subtree is known only after the subtree above it was built.
        let Some(subtree) = self.built(root) else { return root };
        let ino = slot.above.get_or_init(|| graft_of(&subtree.tree, slot.number).unwrap_or(FrozenTree::ROOT));
        NodeId { slot: slot.parent, ino: *ino }
    }

    /// The target of a symbolic link, verbatim.
    pub fn link(&self, node: NodeId) -> Option<&[u8]> {
        self.built(node)?.tree.link(node.ino)
    }

    /// The recorded extended attributes, in order.
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let slot =
            self.slot(node.slot).filter(|slot| node.ino == FrozenTree::ROOT && !slot.built.initialized());
        let before = slot.and_then(|slot| slot.root.get()).into_iter().flat_map(|entry| entry.xattrs.iter());
        let before = before.map(|(name, value)| (&name[..], &value[..]));
        let built = self.built(node).into_iter().flat_map(move |subtree| subtree.tree.xattrs(node.ino));
        let recorded = before.chain(built);
        let is_hidden = |name: &[u8]| {
            self.overlay_marks == OverlayMarks::Hidden
                && (name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay."))
        };
        recorded.filter(move |(name, _)| {
            !name.starts_with(OWN_XATTR_PREFIX) && has_namespace(name) && !is_hidden(name)
        })
    }

    /// One extended attribute: a recorded one, or one of ocifs: `user.ocifs.digest`, `user.ocifs.verified`, and on
    /// the root also `user.ocifs.reference` and [`STATUS`](super::STATUS). Those of ocifs are not listed, so that
    /// copies of a tree do not carry them.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Option<Vec<u8>> {
        // Those of ocifs come first: a layer must not be able to mark itself as verified.
        match name {
            b"user.ocifs.digest" => {
                let digest = match (self.made(node), self.origin(node)) {
                    (Some(SyntheticFile::Blob(descriptor)), _) => &descriptor.digest,
                    (_, Some(origin)) => origin,
                    // The root has the digest that the mount printed.
                    _ => match self.slot(node.slot).filter(|slot| slot.number >= subtree_ids::PER_IMAGE) {
                        Some(slot) => subtree_ids::digest(&self.family, slot.number)?,
                        None => self.family.digest(),
                    },
                };
                Some(digest.as_str().as_bytes().to_vec())
            }
            b"user.ocifs.reference" if node == self.root => Some(self.family.pinned().as_bytes().to_vec()),
            super::STATUS if node == self.root => {
                let (scope, served_by) = (self.scope.clone(), self.serving());
                status::packed(&ImageStatus { scope, served_by, ..self.family.status() })
            }
            b"user.ocifs.verified" => Some(self.verified(node)?.to_string().into_bytes()),
            _ => self.xattrs(node).find(|(recorded, _)| *recorded == name).map(|(_, value)| value.to_vec()),
        }
    }

    /// Resolves `path` from the root. Symbolic links are followed inside the mount: an absolute target starts at the
    /// root of its subtree, and a target in an archive does not leave its tree, as in a chroot.
    pub async fn resolve(&self, path: &[u8]) -> Result<NodeId, ViewError> {
        // Each name with the slot of the tree that it may not leave, if there is one.
        let within = |path, tree: Option<u32>| components(path).into_iter().map(move |name| (name, tree));
        let mut todo: Vec<(Vec<u8>, Option<u32>)> = within(path, None).collect();
        let mut stack = vec![self.root];
        let mut links = 0;
        while let Some((name, tree)) = todo.pop() {
            // The stack always holds the root, which is never popped.
            let Some(&here) = stack.last() else { break };
            if matches!(&name[..], b"" | b"." | b"..") && !self.is_directory(here) {
                return Err(ViewError::Wrong { path: lossy(path), wanted: "directory" });
            }
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    let is_top = here.ino == FrozenTree::ROOT && tree == Some(here.slot);
                    if stack.len() > 1 && !is_top {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            self.build(here).await?;
            let missing = || match self.undecided(here) {
                Some(error) => ViewError::Read(error.clone()),
                None => ViewError::NotFound { path: lossy(path) },
            };
            let node = self.lookup(here, &name).ok_or_else(missing)?;
            let Some(target) = self.link(node) else {
                stack.push(node);
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(ViewError::Loop { path: lossy(path) });
            }
            if target.starts_with(b"/") {
                while stack.len() > 1
                    && stack.last().is_some_and(|node| node.slot == here.slot && node.ino != FrozenTree::ROOT)
                {
                    stack.pop();
                }
            }
            let is_archived =
                self.built(node).is_some_and(|subtree| matches!(subtree.origins, OriginMeaning::Layers));
            todo.extend(within(target, is_archived.then_some(node.slot)));
        }
        Ok(stack.last().copied().unwrap_or(self.root))
    }

    /// Why the names in `node` may be incomplete; `None` where they are not. Those of archives are complete.
    fn undecided(&self, node: NodeId) -> Option<&ReadError> {
        let is_archived = |subtree: &ViewSubtree| matches!(subtree.origins, OriginMeaning::Layers);
        if self.built(node).is_some_and(is_archived) { None } else { self.image(node)?.undecided() }
    }

    fn is_directory(&self, node: NodeId) -> bool {
        let recorded = || self.built(node)?.tree.attr(node.ino).map(|attr| attr.kind);
        node.ino == FrozenTree::ROOT || recorded() == Some(InodeKind::Directory)
    }

    pub(super) fn made(&self, node: NodeId) -> Option<&SyntheticFile> {
        let subtree = self.built(node)?;
        let file = subtree.tree.file(node.ino)?;
        match &subtree.origins {
            OriginMeaning::Made(made) => made.get(file.origin as usize),
            OriginMeaning::Layers => None,
        }
    }

    /// The digest of the layer that contains a file.
    fn origin(&self, node: NodeId) -> Option<&Digest> {
        let subtree = self.built(node)?;
        let layer = subtree.tree.file(node.ino)?.origin as usize;
        let layer = self.image(node)?.manifest().layers.get(layer)?;
        matches!(subtree.origins, OriginMeaning::Layers).then_some(&layer.digest)
    }

    pub(super) fn built(&self, node: NodeId) -> Option<&ViewSubtree> {
        self.slot(node.slot)?.built.get().map(Arc::as_ref)
    }

    pub(super) fn slots(&self) -> &[SubtreeSlot] {
        &self.slots
    }

    pub(super) fn slot(&self, number: u32) -> Option<&SubtreeSlot> {
        let at = self.slots.binary_search_by_key(&number, |slot| slot.number).ok()?;
        Some(&self.slots[at])
    }
}

/// The directory of `tree` into which the subtree with this number is grafted.
fn graft_of(tree: &FrozenTree, number: u32) -> Option<InodeNumber> {
    let mut todo = vec![FrozenTree::ROOT];
    while let Some(directory) = todo.pop() {
        for (_, ino) in tree.entries(directory, 0) {
            match tree.attr(ino).map(|attr| attr.kind) {
                Some(InodeKind::Graft(graft)) if graft == number => return Some(directory),
                Some(InodeKind::Directory) => todo.push(ino),
                _ => {}
            }
        }
    }
    None
}

/// The node itself, or for a graft the root of the other subtree.
fn across(tree: &FrozenTree, node: NodeId) -> NodeId {
    match tree.attr(node.ino).map(|attr| attr.kind) {
        Some(InodeKind::Graft(number)) => NodeId { slot: number, ino: FrozenTree::ROOT },
        _ => node,
    }
}

fn forever(attr: InodeAttr) -> NodeAttributes {
    NodeAttributes {
        kind: attr.kind,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        data: attr.size,
        mtime: attr.mtime,
        nlink: attr.nlink,
        rdev: attr.rdev,
        fresh: AttributeLifetime::Forever,
    }
}

/// The components of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect()
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn unreachable_slot(number: u32) -> ReadError {
    ReadError::new(FaultClass::Usage, format!("subtree {number} does not exist"))
}
