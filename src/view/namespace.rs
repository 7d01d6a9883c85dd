//! All subtrees joined into one tree of nodes.
//!
//! A node is a subtree number and an inode number in it; both are the same for every mount of the same digest. Subtrees are
//! built when they are first looked into: [`Namespace::is_built`] says whether an answer needs no waiting, and
//! [`Namespace::build`] waits. Everything else is answered from memory. Every subtree knows whose it is: a mount can show
//! several images.

use std::sync::Arc;

use crate::image::{Family, Image, Status, TreeRoot};
use crate::io::{Fault, ReadError, Shared};
use crate::layer::{Device, Time, has_namespace};
use crate::oci::Digest;
use crate::tree::{Attr, Ino, Kind, Tree};

use super::slots::{self, Role, Slot};
use super::subtree::{Made, Origins, Subtree};
use super::witness::Witness;
use super::{ViewError, export, status, top};

/// The extended attributes that only ocifs gives.
const OURS: &[u8] = b"user.ocifs.";

/// A name in the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    pub(super) slot: u32,
    pub(super) ino: u32,
}

impl NodeId {
    const TOP: NodeId = NodeId { slot: 0, ino: Tree::ROOT };
}

/// Whether what was said stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is behind a digest and never changes.
    Forever,
    /// It is right now, and may be another thing later.
    Now,
}

/// What `stat` says about a node.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// Type. A [`Kind::Graft`] never appears here: it is the directory it stands for.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that readers see.
    pub size: u64,
    /// Bytes that are data, not holes.
    pub data: u64,
    /// Modification time.
    pub mtime: Time,
    /// Number of names.
    pub nlink: u32,
    /// Device number.
    pub rdev: Device,
    /// Whether this may be remembered.
    pub fresh: Freshness,
}

/// One name in a directory.
pub struct Entry<'a> {
    /// Its number in the directory.
    pub at: usize,
    /// The name's bytes.
    pub name: &'a [u8],
    /// What it names.
    pub node: NodeId,
    /// What `stat` says about it.
    pub attributes: Attributes,
}

/// An open file.
#[derive(Clone)]
pub struct Opened {
    /// Its bytes.
    pub bytes: Shared,
    /// Whether they may be remembered.
    pub fresh: Freshness,
}

/// Which part of the whole is the root.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// A view instead of all of them.
    pub view: Option<String>,
    /// A directory below that.
    pub subdir: Option<Vec<u8>>,
    /// Whether symbolic links of archives are shown.
    pub links: Links,
    /// Whether attributes that overlays obey are shown.
    pub overlay_marks: OverlayMarks,
}

impl std::fmt::Display for Scope {
    /// In words of the command line, nothing for the whole: `merged usr/bin hide-symlinks`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subdir = self.subdir.as_deref().map(lossy);
        let links = (self.links == Links::Hidden).then(|| "hide-symlinks".to_owned());
        let marks = (self.overlay_marks == OverlayMarks::Hidden).then(|| "hide-overlay-xattrs".to_owned());
        let words: Vec<String> =
            self.view.clone().into_iter().chain(subdir).chain(links).chain(marks).collect();
        f.write_str(&words.join(" "))
    }
}

/// Whether symbolic links of archives are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// As recorded.
    #[default]
    Shown,
    /// As if they were not in the archive.
    Hidden,
}

/// Whether the attributes `trusted.overlay.*` and `user.overlay.*` of an image are shown: an overlay over the mount would take them for
/// its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverlayMarks {
    /// As recorded.
    #[default]
    Shown,
    /// As if they were not recorded.
    Hidden,
}

/// The names of one mount.
pub struct Namespace {
    family: Arc<Family>,
    pub(super) slots: Vec<Slot>,
    root: NodeId,
    links: Links,
    overlay_marks: OverlayMarks,
    /// The scope in words.
    scope: String,
    pub(super) witness: Option<Witness>,
}

impl Namespace {
    /// The names of all images of `family`, with `scope` as the root. Free when the scope names no directory.
    pub async fn open(family: Arc<Family>, scope: &Scope) -> Result<Self, ViewError> {
        let slots = slots::of(&family)?;
        let mut namespace = Self {
            family,
            slots,
            root: NodeId::TOP,
            links: scope.links,
            overlay_marks: scope.overlay_marks,
            scope: scope.to_string(),
            witness: None,
        };
        for slot in &namespace.slots {
            let is_free = match slot.role {
                Role::Top(_) | Role::Status => true,
                Role::View { view, .. } => slot.image.as_ref().is_some_and(|image| view.is_free(image)),
                Role::Inner { .. } | Role::Export(_) => false,
            };
            if is_free {
                namespace.build(NodeId { slot: slot.number, ino: Tree::ROOT }).await?;
            }
        }
        if let Some(view) = &scope.view {
            namespace.root = namespace.view(view)?;
        }
        if let Some(subdir) = &scope.subdir {
            let node = namespace.resolve(subdir).await?;
            if !matches!(namespace.attributes(node).map(|attributes| attributes.kind), Some(Kind::Directory))
            {
                return Err(ViewError::Wrong { path: lossy(subdir), wanted: "directory" });
            }
            namespace.root = node;
        }
        // Programs look at the root of a mount before they look into it.
        if !namespace.is_rooted(namespace.root) {
            namespace.settle(namespace.root).await?;
        }
        Ok(namespace)
    }

    /// The root of the view `name` of the image that the root shows.
    fn view(&self, name: &str) -> Result<NodeId, ViewError> {
        let (reference, view) = (self.family.pinned().to_owned(), name.to_owned());
        let listed = match self.slots.first().map(|slot| &slot.role) {
            Some(Role::Top(top)) => &top.views[..],
            _ => &[],
        };
        if let Some((_, slot)) = listed.iter().find(|(listed, _)| *listed == name) {
            return Ok(NodeId { slot: *slot, ino: Tree::ROOT });
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
        Err(ViewError::NoView { reference, view, available: available.join(", ") })
    }

    /// What the mount shows, as a whole.
    pub fn family(&self) -> &Arc<Family> {
        &self.family
    }

    /// The image that a node belongs to, if it belongs to one.
    pub(super) fn image(&self, node: NodeId) -> Option<&Arc<Image>> {
        self.slot(node.slot)?.image.as_ref()
    }

    /// Notes what a reader of `node` was refused, for the status.
    pub fn note_error(&self, node: NodeId, error: String) {
        if let Some(image) = self.image(node) {
            image.note_error(error);
        }
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Whether every file below the root can be read without being opened before: it is neither refused, nor another thing at
    /// each opening, nor better read from a file of the cache.
    pub fn opens_freely(&self) -> bool {
        match self.slot(self.root.slot).map(|slot| &slot.role) {
            Some(Role::View { view, .. } | Role::Inner { view, .. }) => view.opens_freely(),
            Some(Role::Top(_) | Role::Status | Role::Export(_)) | None => false,
        }
    }

    /// Whether questions about what is inside `node` are answered without waiting.
    pub fn is_built(&self, node: NodeId) -> bool {
        self.slot(node.slot).is_some_and(|slot| slot.built.initialized())
    }

    /// Waits until what is inside `node` is known.
    pub async fn build(&self, node: NodeId) -> Result<(), ReadError> {
        let slot = self.slot(node.slot).ok_or_else(|| unreachable_slot(node.slot))?;
        let built = slot.built.get_or_try_init(|| async {
            let created = slot.image.as_ref().map_or_else(|| self.family.created(), |image| image.created());
            let image = || slot.image.as_ref().ok_or_else(|| unreachable_slot(slot.number));
            let built = match &slot.role {
                Role::Top(names) => top::build(slot.image.as_deref(), names, created),
                Role::Status => status::listing(created),
                Role::Export(exports) => export::listing(&self.family, exports, created).await,
                Role::View { view, first } => view.build(image()?, *first).await,
                Role::Inner { view, layer } => view.build_inner(image()?, *layer).await,
            };
            let built = built.map(Arc::new)?;
            self.show(slot, &built)?;
            Ok(built)
        });
        built.await.map(|_| ())
    }

    /// What `stat` says. `None` for a node that does not exist.
    pub fn attributes(&self, node: NodeId) -> Option<Attributes> {
        let slot = self.slot(node.slot)?;
        let Some(subtree) = slot.built.get() else {
            // A directory that was not looked into.
            return (node.ino == Tree::ROOT).then(|| match slot.tree_root() {
                Some(of) => self.recorded_root(slot, of),
                None => self.made_directory(slot),
            });
        };
        let attr = subtree.tree.attr(node.ino)?;
        if let Kind::Graft(number) = attr.kind {
            return self.attributes(NodeId { slot: number, ino: Tree::ROOT });
        }
        let mut attributes = forever(attr);
        if node.ino == Tree::ROOT && matches!(subtree.origins, Origins::Made(_)) {
            // The root of a made-up tree is like the directories in it.
            attributes = Attributes {
                fresh: Freshness::Forever,
                nlink: attributes.nlink,
                ..self.made_directory(slot)
            };
        }
        if let Some(file) = subtree.tree.file(node.ino) {
            if let Some(runs) = file.runs {
                attributes.data = runs.iter().map(|run| run.len).sum();
            }
            if let Origins::Made(made) = &subtree.origins
                && let Some(made) = made.get(file.origin as usize)
            {
                self.settle_attributes(node, made, &mut attributes);
            }
        }
        Some(attributes)
    }

    /// The root directory of a tree that was not looked into.
    fn recorded_root(&self, slot: &Slot, of: TreeRoot) -> Attributes {
        if slot.root.get().is_none()
            && let Some(entry) = slot.image.as_ref().and_then(|image| image.tree_root(of))
        {
            slot.root.get_or_init(|| entry);
        }
        let made = self.made_directory(slot);
        match slot.root.get() {
            Some(entry) => {
                Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, ..made }
            }
            // As a tree has it whose archives have no entry for it.
            None => Attributes { mode: 0o755, mtime: Time::default(), ..made },
        }
    }

    /// Whether what `stat` says of the root directory of a tree is known, or will not be before its names.
    pub fn is_rooted(&self, node: NodeId) -> bool {
        match self.slot(node.slot) {
            Some(slot) if node.ino == Tree::ROOT && !slot.built.initialized() => {
                slot.tree_root().is_none() || slot.image.as_ref().is_none_or(|image| image.knows_roots())
            }
            Some(_) | None => true,
        }
    }

    /// Whether a node lies in a tree of archives, and has the attributes that these record.
    pub fn is_recorded(&self, node: NodeId) -> bool {
        self.built(node).is_some_and(|subtree| matches!(subtree.origins, Origins::Layers))
    }

    /// A directory of ours, and what a directory that nobody has looked into looks like until then.
    fn made_directory(&self, slot: &Slot) -> Attributes {
        let created = slot.image.as_ref().map_or_else(|| self.family.created(), |image| image.created());
        Attributes {
            kind: Kind::Directory,
            mode: 0o555,
            uid: 0,
            gid: 0,
            size: 0,
            data: 0,
            mtime: Time { secs: created, nanos: 0 },
            nlink: 2,
            rdev: Device::default(),
            fresh: Freshness::Now,
        }
    }

    /// The node called `name` in a built directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let subtree = self.built(directory)?;
        let ino = subtree.tree.lookup(directory.ino, name)?;
        let node = across(&subtree.tree, NodeId { slot: directory.slot, ino });
        (!self.hides(subtree, ino)).then_some(node)
    }

    /// Calls `each` with the entries of a built directory in a fixed order, from the one with number `skip` on, until it
    /// answers `false`.
    pub fn entries(&self, directory: NodeId, skip: usize, mut each: impl FnMut(Entry<'_>) -> bool) {
        let Some(subtree) = self.built(directory) else { return };
        for (at, (name, ino)) in (skip..).zip(subtree.tree.entries(directory.ino, skip)) {
            let node = across(&subtree.tree, NodeId { slot: directory.slot, ino });
            let Some(attributes) = self.attributes(node).filter(|_| !self.hides(subtree, ino)) else {
                continue;
            };
            if !each(Entry { at, name, node, attributes }) {
                return;
            }
        }
    }

    /// Whether a name is left out of what is shown.
    fn hides(&self, subtree: &Subtree, ino: Ino) -> bool {
        self.links == Links::Hidden
            && matches!(subtree.origins, Origins::Layers)
            && matches!(subtree.tree.attr(ino).map(|attr| attr.kind), Some(Kind::Symlink))
    }

    /// The directory above a directory; the root's is the root.
    pub fn parent(&self, directory: NodeId) -> NodeId {
        if directory == self.root {
            return directory;
        }
        if directory.ino == Tree::ROOT {
            return self.slot(directory.slot).map_or(NodeId::TOP, |slot| self.above(slot));
        }
        let ino = self.built(directory).map_or(Tree::ROOT, |subtree| subtree.tree.parent(directory.ino));
        NodeId { slot: directory.slot, ino }
    }

    /// The directory that a subtree is grafted into.
    fn above(&self, slot: &Slot) -> NodeId {
        let root = NodeId { slot: slot.parent, ino: Tree::ROOT };
        // Whoever knows the subtree has looked into the one above it.
        let Some(subtree) = self.built(root) else { return root };
        let ino = slot.above.get_or_init(|| graft_of(&subtree.tree, slot.number).unwrap_or(Tree::ROOT));
        NodeId { slot: slot.parent, ino: *ino }
    }

    /// The target of a symbolic link, verbatim.
    pub fn link(&self, node: NodeId) -> Option<&[u8]> {
        self.built(node)?.tree.link(node.ino)
    }

    /// The recorded extended attributes, in order.
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let slot = self.slot(node.slot).filter(|slot| node.ino == Tree::ROOT && !slot.built.initialized());
        let before = slot.and_then(|slot| slot.root.get()).into_iter().flat_map(|entry| entry.xattrs.iter());
        let before = before.map(|(name, value)| (&name[..], &value[..]));
        let built = self.built(node).into_iter().flat_map(move |subtree| subtree.tree.xattrs(node.ino));
        let recorded = before.chain(built);
        let is_hidden = |name: &[u8]| {
            self.overlay_marks == OverlayMarks::Hidden
                && (name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay."))
        };
        recorded.filter(move |(name, _)| !name.starts_with(OURS) && has_namespace(name) && !is_hidden(name))
    }

    /// One extended attribute: a recorded one, or one of ours (`user.ocifs.digest`, `user.ocifs.verified`, of the root also
    /// `user.ocifs.reference` and [`STATUS`](super::STATUS)), which are not listed so that copies of a tree do not carry them.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Option<Vec<u8>> {
        // Ours first: a layer cannot say of itself that it is verified.
        match name {
            b"user.ocifs.digest" => {
                let digest = match (self.made(node), self.origin(node)) {
                    (Some(Made::Blob(descriptor)), _) => &descriptor.digest,
                    (_, Some(origin)) => origin,
                    // What the root shows bears the digest that the mount printed.
                    _ => match self.slot(node.slot).filter(|slot| slot.number >= slots::PER_IMAGE) {
                        Some(slot) => slots::digest(&self.family, slot.number)?,
                        None => self.family.digest(),
                    },
                };
                Some(digest.as_str().as_bytes().to_vec())
            }
            b"user.ocifs.reference" if node == self.root => Some(self.family.pinned().as_bytes().to_vec()),
            super::STATUS if node == self.root => {
                status::packed(&Status { scope: self.scope.clone(), ..self.family.status() })
            }
            b"user.ocifs.verified" => Some(self.verified(node)?.to_string().into_bytes()),
            _ => self.xattrs(node).find(|(recorded, _)| *recorded == name).map(|(_, value)| value.to_vec()),
        }
    }

    /// The node at `path` below the root, symbolic links followed inside the mount: an absolute target starts at the root
    /// of the subtree it is in.
    pub async fn resolve(&self, path: &[u8]) -> Result<NodeId, ViewError> {
        /// As Linux: the 41st link is too many.
        const MAX_LINKS: usize = 40;
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut stack = vec![self.root];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            // The stack always holds the root: it is never popped below.
            let Some(&here) = stack.last() else { break };
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            self.build(here).await?;
            let node = self.lookup(here, &name).ok_or_else(|| ViewError::NotFound { path: lossy(path) })?;
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
                    && stack.last().is_some_and(|node| node.slot == here.slot && node.ino != Tree::ROOT)
                {
                    stack.pop();
                }
            }
            todo.extend(components(target));
        }
        Ok(stack.last().copied().unwrap_or(self.root))
    }

    pub(super) fn made(&self, node: NodeId) -> Option<&Made> {
        let subtree = self.built(node)?;
        let file = subtree.tree.file(node.ino)?;
        match &subtree.origins {
            Origins::Made(made) => made.get(file.origin as usize),
            Origins::Layers => None,
        }
    }

    /// The digest of the layer that a file comes from.
    fn origin(&self, node: NodeId) -> Option<&Digest> {
        let subtree = self.built(node)?;
        let layer = subtree.tree.file(node.ino)?.origin as usize;
        let layer = self.image(node)?.manifest().layers.get(layer)?;
        matches!(subtree.origins, Origins::Layers).then_some(&layer.digest)
    }

    pub(super) fn built(&self, node: NodeId) -> Option<&Subtree> {
        self.slot(node.slot)?.built.get().map(Arc::as_ref)
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn slot(&self, number: u32) -> Option<&Slot> {
        let at = self.slots.binary_search_by_key(&number, |slot| slot.number).ok()?;
        Some(&self.slots[at])
    }
}

/// The directory of `tree` that the subtree with this number is grafted into.
fn graft_of(tree: &Tree, number: u32) -> Option<Ino> {
    let mut todo = vec![Tree::ROOT];
    while let Some(directory) = todo.pop() {
        for (_, ino) in tree.entries(directory, 0) {
            match tree.attr(ino).map(|attr| attr.kind) {
                Some(Kind::Graft(graft)) if graft == number => return Some(directory),
                Some(Kind::Directory) => todo.push(ino),
                _ => {}
            }
        }
    }
    None
}

/// The node itself, or the root of the subtree that it stands for.
fn across(tree: &Tree, node: NodeId) -> NodeId {
    match tree.attr(node.ino).map(|attr| attr.kind) {
        Some(Kind::Graft(number)) => NodeId { slot: number, ino: Tree::ROOT },
        _ => node,
    }
}

fn forever(attr: Attr) -> Attributes {
    Attributes {
        kind: attr.kind,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        data: attr.size,
        mtime: attr.mtime,
        nlink: attr.nlink,
        rdev: attr.rdev,
        fresh: Freshness::Forever,
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
    ReadError::new(Fault::Usage, format!("there is no subtree {number}"))
}
