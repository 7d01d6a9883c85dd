//! Which subtree has which number, over all images of a mount.
//!
//! Nothing is built here. The idea: every image has a run of numbers of its own, in which the top comes first, then the
//! views, then the subtrees that views graft in; so the numbers of one image do not depend on the others, and they are the
//! same for every mount of the same digest with the same options.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::OnceCell;

use crate::image::{Family, Image, Member, TreeRoot};
use crate::io::{Fault, ReadError};
use crate::layer::Entry;
use crate::oci::Digest;
use crate::tree::Ino;

use super::export::{self, Exports, WholeArchive};
use super::subtree::Subtree;
use super::{VIEWS, View};

/// Number of the first inner subtree of an image. Views have the numbers from 1; this leaves room for 61 of them.
const FIRST_INNER: u32 = 64;

/// Numbers that one image has: all its layers, each in several views.
pub(super) const PER_IMAGE: u32 = 1 << 16;

/// The number of what an image is exported as, after that of its top.
const EXPORT: u32 = FIRST_INNER - 1;

/// The number of the view that there is also without an image.
pub(super) const STATUS: u32 = VIEWS.len() as u32;

/// One subtree.
pub(super) struct Slot {
    /// Its number.
    pub(super) number: u32,
    /// The subtree that it is grafted into.
    pub(super) parent: u32,
    /// Where in that it is grafted, once somebody asked.
    pub(super) above: OnceLock<Ino>,
    /// Whose it is; an index alone has no image.
    pub(super) image: Option<Arc<Image>>,
    /// What it holds.
    pub(super) role: Role,
    /// What its root directory records, as far as it is known before the rest.
    pub(super) root: OnceLock<Arc<Entry>>,
    /// It, once somebody looked into it.
    pub(super) built: OnceCell<Arc<Subtree>>,
}

/// What a subtree holds.
#[derive(Clone)]
pub(super) enum Role {
    /// The names at the top of a tree.
    Top(Top),
    /// The status of a mount whose root shows no image.
    Status,
    /// The archive of all that the reference names, and the disk of an image.
    Export(Exports),
    /// A view; `first` is the number of the first of its own subtrees.
    View { view: &'static dyn View, first: u32 },
    /// A subtree of a view.
    Inner { view: &'static dyn View, layer: usize },
}

/// The names at the top of one tree.
#[derive(Clone, Default)]
pub(super) struct Top {
    /// The bytes of the index, where the tree is that of an index.
    pub(super) index: Option<bytes::Bytes>,
    /// The views: names and numbers.
    pub(super) views: Vec<(&'static str, u32)>,
    /// The trees of other images: paths below this top, and numbers.
    pub(super) members: Vec<(String, u32)>,
}

impl Slot {
    fn new(number: u32, parent: u32, image: Option<&Arc<Image>>, role: Role) -> Self {
        let image = image.cloned();
        Self {
            number,
            parent,
            above: OnceLock::new(),
            image,
            role,
            root: OnceLock::new(),
            built: OnceCell::new(),
        }
    }
}

impl Slot {
    /// The tree whose root directory the root of this is, if that has attributes of its own.
    pub(super) fn tree_root(&self) -> Option<TreeRoot> {
        match &self.role {
            Role::View { view, .. } => view.root(),
            Role::Inner { view, layer } => view.inner_root(*layer),
            Role::Top(_) | Role::Status | Role::Export(_) => None,
        }
    }
}

/// All subtrees of `family`, by number.
pub(super) fn of(family: &Family) -> Result<Vec<Slot>, ReadError> {
    let mut slots = Vec::new();
    let mut grafts: HashMap<u32, Vec<(String, u32)>> = HashMap::new();
    let mut tops: HashMap<&[String], u32> = HashMap::from([(&[][..], 0)]);
    for (base, member) in (1u32..).zip(family.members()) {
        if !member.is_shown() {
            continue;
        }
        let base = base.checked_mul(PER_IMAGE).filter(|base| *base < 1 << 30).ok_or_else(too_many)?;
        let directory = &member.directory[..];
        // The nearest tree above it that there is: at least the root.
        let depth = (0..directory.len()).rev().find(|depth| tops.contains_key(&directory[..*depth]));
        let depth = depth.unwrap_or_default();
        let parent = tops.get(&directory[..depth]).copied().unwrap_or_default();
        grafts.entry(parent).or_default().push((directory[depth..].join("/"), base));
        tops.insert(directory, base);
        let Member { index, image, .. } = member;
        one(&mut slots, base, parent, image.as_ref(), index.clone(), WholeArchive::Absent)?;
    }
    let mut root = Vec::new();
    let archive = if family.has_archive() { WholeArchive::Shown } else { WholeArchive::Absent };
    one(&mut root, 0, 0, family.main(), family.index_bytes().cloned(), archive)?;
    if family.main().is_none() {
        // In the order of the numbers: behind the top.
        root.insert(1, Slot::new(STATUS, 0, None, Role::Status));
    }
    // The root's numbers are the lowest, and members come in the order of theirs.
    root.append(&mut slots);
    for slot in &mut root {
        if let Role::Top(top) = &mut slot.role {
            top.members = grafts.remove(&slot.number).unwrap_or_default();
            if slot.number == 0 && slot.image.is_none() {
                top.views.push((VIEWS[STATUS as usize - 1].name(), STATUS));
            }
        }
    }
    Ok(root)
}

/// The digest of the member whose subtree `number` is.
pub(super) fn digest(family: &Family, number: u32) -> Option<&Digest> {
    let at = (number / PER_IMAGE).checked_sub(1)?;
    family.members().get(at as usize).map(|member| &member.digest)
}

/// Adds the subtrees of one tree, whose numbers start at `base`, in the order of their numbers.
fn one(
    slots: &mut Vec<Slot>,
    base: u32,
    parent: u32,
    image: Option<&Arc<Image>>,
    index: Option<bytes::Bytes>,
    archive: WholeArchive,
) -> Result<(), ReadError> {
    let mut top = Top { index, ..Top::default() };
    let (mut views, mut inner) = (Vec::new(), Vec::new());
    let mut next = base + FIRST_INNER;
    for (number, &view) in (base + 1..).zip(VIEWS) {
        let Some(image) = image.filter(|image| view.exists(image)) else { continue };
        top.views.push((view.name(), number));
        let first = next;
        for layer in view.inner(image) {
            inner.push(Slot::new(next, number, Some(image), Role::Inner { view, layer }));
            next += 1;
            if next - base == PER_IMAGE {
                return Err(too_many());
            }
        }
        views.push(Slot::new(number, base, Some(image), Role::View { view, first }));
    }
    if let Some(exports) = Exports::of(archive, image) {
        top.views.push((export::NAME, base + EXPORT));
        // It shows more than one image, so that it belongs to none.
        views.push(Slot::new(base + EXPORT, base, None, Role::Export(exports)));
    }
    slots.push(Slot::new(base, parent, image, Role::Top(top)));
    slots.append(&mut views);
    slots.append(&mut inner);
    Ok(())
}

fn too_many() -> ReadError {
    ReadError::new(Fault::Unsupported, "there are more directories than a mount can number")
}
