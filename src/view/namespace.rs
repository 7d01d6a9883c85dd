//! All subtrees joined into one tree of nodes.
//!
//! A node is a subtree number and an inode number in it; both are the same for every mount of the same digest. Subtrees are
//! built when they are first looked into: [`Namespace::is_built`] says whether an answer needs no waiting, and
//! [`Namespace::build`] waits. Everything else is answered from memory.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::disk;
use crate::image::Image;
use crate::io::{Fault, Memory, ReadAt as _, ReadError, Shared};
use crate::layer::{Content, Device, Time};
use crate::tree::{Attr, Kind, Tree};

use super::subtree::{Made, Origins, Subtree};
use super::{VIEWS, View, status, top};

/// The extended attributes that only ocifs gives.
const OURS: &[u8] = b"user.ocifs.";

/// Subtree number of the first inner subtree. Views have the numbers from 1; this leaves room for 62 of them.
const FIRST_INNER: u32 = 64;

/// A name in the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    slot: u32,
    ino: u32,
}

impl NodeId {
    const TOP: NodeId = NodeId { slot: 0, ino: Tree::ROOT };

    /// One number for both, below 2^63.
    pub fn to_u64(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.ino)
    }

    /// The inverse of [`to_u64`](Self::to_u64).
    pub fn from_u64(number: u64) -> Self {
        Self { slot: (number >> 32) as u32, ino: number as u32 }
    }
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
}

/// Why a path or a scope leads nowhere.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// A view that there is not in this image.
    #[error("{reference} has no {view}/; it has {available}")]
    NoView {
        /// The pinned reference.
        reference: String,
        /// The name asked for.
        view: String,
        /// The names there are.
        available: String,
    },
    /// A name that does not exist.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// The path as asked for.
        path: String,
    },
    /// A name that is something else.
    #[error("{path}: not a {wanted}")]
    Wrong {
        /// The path as asked for.
        path: String,
        /// `directory` or `file`.
        wanted: &'static str,
    },
    /// Too many symbolic links.
    #[error("{path}: too many levels of symbolic links")]
    Loop {
        /// The path as asked for.
        path: String,
    },
    /// The bytes behind it.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ViewError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            ViewError::NoView { .. } | ViewError::NotFound { .. } => Fault::NotFound,
            ViewError::Wrong { .. } | ViewError::Loop { .. } => Fault::Usage,
            ViewError::Read(error) => error.fault(),
        }
    }
}

/// The names of one mount.
pub struct Namespace {
    image: Arc<Image>,
    slots: Vec<Slot>,
    root: NodeId,
}

struct Slot {
    number: u32,
    parent: u32,
    role: Role,
    built: OnceCell<Arc<Subtree>>,
}

#[derive(Clone, Copy)]
enum Role {
    Top,
    View { view: &'static dyn View, first: u32 },
    Inner { view: &'static dyn View, layer: usize },
}

impl Namespace {
    /// The names of `image`, with `scope` as the root. Free when the scope names no directory.
    pub async fn open(image: Arc<Image>, scope: &Scope) -> Result<Self, ViewError> {
        let mut slots = vec![Slot { number: 0, parent: 0, role: Role::Top, built: OnceCell::new() }];
        let mut inner = Vec::new();
        let mut listed = Vec::new();
        let mut next = FIRST_INNER;
        for (number, &view) in (1u32..).zip(VIEWS) {
            if !view.exists(&image) {
                continue;
            }
            listed.push((view.name(), number));
            let first = next;
            for layer in view.inner(&image) {
                let role = Role::Inner { view, layer };
                inner.push(Slot { number: next, parent: number, role, built: OnceCell::new() });
                next += 1;
            }
            slots.push(Slot { number, parent: 0, role: Role::View { view, first }, built: OnceCell::new() });
        }
        // Ordered by number, because views come first and inner ones count up from FIRST_INNER.
        slots.extend(inner);
        let top = Arc::new(top::build(&image, &listed)?);
        let mut namespace = Self { image, slots, root: NodeId::TOP };
        for slot in &namespace.slots {
            match slot.role {
                Role::Top => slot.built.set(top.clone()).map_err(|_| unreachable_slot(0))?,
                Role::View { view, .. } if view.is_free() => {
                    namespace.build(NodeId { slot: slot.number, ino: Tree::ROOT }).await?;
                }
                Role::View { .. } | Role::Inner { .. } => {}
            }
        }
        if let Some(view) = &scope.view {
            let found = listed.iter().find(|(name, _)| name == view);
            let Some((_, number)) = found else {
                let available: Vec<_> =
                    listed.iter().map(|(name, _)| *name).filter(|name| !name.starts_with('.')).collect();
                return Err(ViewError::NoView {
                    reference: namespace.image.pinned().to_owned(),
                    view: view.clone(),
                    available: available.join(", "),
                });
            };
            namespace.root = NodeId { slot: *number, ino: Tree::ROOT };
        }
        if let Some(subdir) = &scope.subdir {
            let node = namespace.resolve(subdir).await?;
            if !matches!(namespace.attributes(node).map(|attributes| attributes.kind), Some(Kind::Directory))
            {
                return Err(ViewError::Wrong { path: lossy(subdir), wanted: "directory" });
            }
            namespace.root = node;
        }
        Ok(namespace)
    }

    /// The image behind the names.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Whether every file below the root can be read without being opened before: it is neither refused, nor another thing at
    /// each opening, nor better read from a file of the cache.
    pub fn opens_freely(&self) -> bool {
        match self.slot(self.root.slot).map(|slot| slot.role) {
            Some(Role::View { view, .. } | Role::Inner { view, .. }) => view.opens_freely(),
            Some(Role::Top) | None => false,
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
            let built = match slot.role {
                Role::Top => Err(unreachable_slot(0)),
                Role::View { view, first } => view.build(&self.image, first).await,
                Role::Inner { view, layer } => view.build_inner(&self.image, layer).await,
            };
            built.map(Arc::new)
        });
        built.await.map(|_| ())
    }

    /// What `stat` says. `None` for a node that does not exist.
    pub fn attributes(&self, node: NodeId) -> Option<Attributes> {
        let slot = self.slot(node.slot)?;
        let Some(subtree) = slot.built.get() else {
            // A directory that nobody has looked into: its own attributes are inside.
            return (node.ino == Tree::ROOT).then(|| self.made_directory());
        };
        let attr = subtree.tree.attr(node.ino)?;
        if let Kind::Graft(number) = attr.kind {
            return self.attributes(NodeId { slot: number, ino: Tree::ROOT });
        }
        let mut attributes = forever(attr);
        if node.ino == Tree::ROOT && matches!(subtree.origins, Origins::Made(_)) {
            // The root of a made-up tree is like the directories in it.
            attributes =
                Attributes { fresh: Freshness::Forever, nlink: attributes.nlink, ..self.made_directory() };
        }
        if let Some(file) = subtree.tree.file(node.ino) {
            if let Some(runs) = file.runs {
                attributes.data = runs.iter().map(|run| run.len).sum();
            }
            if let Origins::Made(made) = &subtree.origins
                && let Some(Made::Status) = made.get(file.origin as usize)
            {
                // Like a file in /proc: what it holds is known when it is opened.
                attributes.fresh = Freshness::Now;
            }
        }
        Some(attributes)
    }

    /// A directory of ours, and what a directory that nobody has looked into looks like until then.
    fn made_directory(&self) -> Attributes {
        Attributes {
            kind: Kind::Directory,
            mode: 0o555,
            uid: 0,
            gid: 0,
            size: 0,
            data: 0,
            mtime: Time { secs: self.image.created(), nanos: 0 },
            nlink: 2,
            rdev: Device::default(),
            fresh: Freshness::Now,
        }
    }

    /// The node called `name` in a built directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let tree = &self.built(directory)?.tree;
        let ino = tree.lookup(directory.ino, name)?;
        Some(across(tree, NodeId { slot: directory.slot, ino }))
    }

    /// Calls `each` with the entries of a built directory in a fixed order, from the one with number `skip` on, until it
    /// answers `false`.
    pub fn entries(&self, directory: NodeId, skip: usize, mut each: impl FnMut(Entry<'_>) -> bool) {
        let Some(subtree) = self.built(directory) else { return };
        for (name, ino) in subtree.tree.entries(directory.ino, skip) {
            let node = across(&subtree.tree, NodeId { slot: directory.slot, ino });
            let Some(attributes) = self.attributes(node) else { continue };
            if !each(Entry { name, node, attributes }) {
                return;
            }
        }
    }

    /// The directory above a directory; the root's is the root.
    pub fn parent(&self, directory: NodeId) -> NodeId {
        if directory == self.root {
            return directory;
        }
        if directory.ino == Tree::ROOT {
            let parent = self.slot(directory.slot).map_or(0, |slot| slot.parent);
            return NodeId { slot: parent, ino: Tree::ROOT };
        }
        let ino = self.built(directory).map_or(Tree::ROOT, |subtree| subtree.tree.parent(directory.ino));
        NodeId { slot: directory.slot, ino }
    }

    /// The target of a symbolic link, verbatim.
    pub fn link(&self, node: NodeId) -> Option<&[u8]> {
        self.built(node)?.tree.link(node.ino)
    }

    /// The recorded extended attributes, in order.
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let recorded = self.built(node).into_iter().flat_map(move |subtree| subtree.tree.xattrs(node.ino));
        recorded.filter(|(name, _)| !name.starts_with(OURS))
    }

    /// One extended attribute: a recorded one, or one of ours (`user.ocifs.digest`, `user.ocifs.verified`), which are not
    /// listed so that copies of a tree do not carry them.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Option<Vec<u8>> {
        // Ours first: a layer cannot say of itself that it is verified.
        match name {
            b"user.ocifs.digest" => {
                let digest = match (self.made(node), self.origin(node)) {
                    (Some(Made::Blob(descriptor)), _) => &descriptor.digest,
                    (_, Some(layer)) => &self.image.manifest().layers[layer].digest,
                    _ => self.image.digest(),
                };
                Some(digest.as_str().as_bytes().to_vec())
            }
            b"user.ocifs.verified" => {
                let opened = self.open_ready(node, Gate::Open)?.ok()?;
                Some(opened.bytes.verified().to_string().into_bytes())
            }
            _ => self.xattrs(node).find(|(recorded, _)| *recorded == name).map(|(_, value)| value.to_vec()),
        }
    }

    /// Opens a file of a built subtree if that needs no waiting; `None` when [`open_file`](Self::open_file) is needed.
    pub fn open_now(&self, node: NodeId) -> Option<Result<Opened, ReadError>> {
        self.open_ready(node, Gate::Check)
    }

    /// Opens a file.
    pub async fn open_file(&self, node: NodeId) -> Result<Opened, ReadError> {
        self.build(node).await?;
        match self.made(node) {
            Some(Made::Disk(at)) => {
                let name = &self.image.detection().disks[*at].name;
                // Whatever kept the head from being read, the disk itself is neither absent nor refused.
                let inspection = self.image.inspect_disk(*at).await.map_err(|error| {
                    ReadError::caused(
                        Fault::Unavailable,
                        format!("the head of disk {name} cannot be read"),
                        error,
                    )
                })?;
                if let Some(refusal) = &inspection.refusal {
                    return Err(ReadError::new(Fault::Denied, format!("disk {name} is refused: {refusal}")));
                }
            }
            Some(Made::DiskInfo) => {
                for at in 0..self.image.detection().disks.len() {
                    if let Err(error) = self.image.inspect_disk(at).await {
                        tracing::warn!(disk = at, error = error.chain(), "disk not inspected");
                    }
                }
                return Ok(self.disk_info());
            }
            _ => {}
        }
        self.open_ready(node, Gate::Open)
            .unwrap_or_else(|| Err(ReadError::new(Fault::Usage, "only regular files can be opened")))
    }

    fn open_ready(&self, node: NodeId, gate: Gate) -> Option<Result<Opened, ReadError>> {
        let subtree = self.built(node)?;
        let file = subtree.tree.file(node.ino)?;
        let forever = |bytes: Shared| Opened { bytes, fresh: Freshness::Forever };
        let made = match &subtree.origins {
            Origins::Layers => {
                let runs = file.runs.map(<[_]>::to_vec);
                let content = Content { size: file.size, offset: file.offset, runs };
                return Some(self.image.file(file.origin as usize, &content).map(forever));
            }
            Origins::Made(made) => made.get(file.origin as usize)?,
        };
        match (made, gate) {
            (Made::Bytes(bytes), _) => Some(Ok(forever(bytes.clone()))),
            (Made::Blob(descriptor), _) => Some(self.image.blob(descriptor).map(forever)),
            (Made::Disk(at), Gate::Check) => match self.image.inspected(*at) {
                Some(inspection) if inspection.refusal.is_none() => Some(self.image.disk(*at).map(forever)),
                _ => None,
            },
            (Made::Disk(at), Gate::Open) => Some(self.image.disk(*at).map(forever)),
            (Made::DiskInfo, Gate::Check) => None,
            (Made::DiskInfo, Gate::Open) => Some(Ok(self.disk_info())),
            (Made::Status, _) => {
                let bytes = Arc::new(Memory::new(status::text(&self.image)));
                Some(Ok(Opened { bytes, fresh: Freshness::Now }))
            }
        }
    }

    fn disk_info(&self) -> Opened {
        let (image, count) = (&self.image, self.image.detection().disks.len());
        let inspections: Vec<_> = (0..count).map(|at| image.inspected(at).cloned()).collect();
        let text = disk::info_padded(image.manifest(), image.detection(), &inspections);
        // A disk that could not be inspected now may be later.
        let fresh = if inspections.iter().all(Option::is_some) { Freshness::Forever } else { Freshness::Now };
        Opened { bytes: Arc::new(Memory::new(text)), fresh }
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

    fn made(&self, node: NodeId) -> Option<&Made> {
        let subtree = self.built(node)?;
        let file = subtree.tree.file(node.ino)?;
        match &subtree.origins {
            Origins::Made(made) => made.get(file.origin as usize),
            Origins::Layers => None,
        }
    }

    /// The number of the layer that a file comes from.
    fn origin(&self, node: NodeId) -> Option<usize> {
        let subtree = self.built(node)?;
        let layer = subtree.tree.file(node.ino)?.origin as usize;
        (matches!(subtree.origins, Origins::Layers) && layer < self.image.manifest().layers.len())
            .then_some(layer)
    }

    fn built(&self, node: NodeId) -> Option<&Subtree> {
        self.slot(node.slot)?.built.get().map(Arc::as_ref)
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        let at = self.slots.binary_search_by_key(&number, |slot| slot.number).ok()?;
        Some(&self.slots[at])
    }
}

/// Whether opening a disk asks for its inspection first.
#[derive(Clone, Copy)]
enum Gate {
    Check,
    Open,
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
