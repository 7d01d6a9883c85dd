//! Subtree numbering over all images of a mount.
//!
//! No subtree is built in this module. Every image has a range of numbers of its own: first the top, then the views,
//! then the subtrees grafted into views. So the numbers of one image do not depend on the other images. They are the
//! same for every mount of the same digest with the same options.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::OnceCell;

use crate::image::{ImageSet, OpenImage, SetMember, TreeRoot};
use crate::io::{FaultClass, ReadError};
use crate::layer::TocEntry;
use crate::oci::Digest;
use crate::tree::InodeNumber;

use super::export::{self, ExportDirectory, WholeArchive};
use super::subtree::ViewSubtree;
use super::{TopView, VIEWS};

/// Number of an image's first inner subtree. Views are numbered from 1; this leaves room for 62 of them and the
/// export.
const FIRST_INNER: u32 = 64;

/// Numbers reserved for one image: all its layers, each in several views.
pub(super) const PER_IMAGE: u32 = 1 << 16;

/// Number of the export directory, relative to the image's top.
const EXPORT: u32 = FIRST_INNER - 1;

/// Number of the status view, which also exists without an image.
pub(super) const STATUS: u32 = VIEWS.len() as u32;

/// One subtree.
pub(super) struct SubtreeSlot {
    pub(super) number: u32,
    /// The subtree that it is grafted into.
    pub(super) parent: u32,
    /// The directory of the parent that it is grafted into; set on first use.
    pub(super) above: OnceLock<InodeNumber>,
    /// The image it belongs to; `None` for an index alone, its status, and the export, which shows several images.
    pub(super) image: Option<Arc<OpenImage>>,
    pub(super) role: SubtreeRole,
    /// The recorded attributes of its root directory, if they are known before the rest.
    pub(super) root: OnceLock<Arc<TocEntry>>,
    /// The subtree; set when it is first needed.
    pub(super) built: OnceCell<Arc<ViewSubtree>>,
}

/// The content of a subtree.
#[derive(Clone)]
pub(super) enum SubtreeRole {
    /// The names at the top of a tree.
    Top(TopNames),
    /// The status of a mount whose root shows no image.
    Status,
    /// The export directory: the archive of everything that the reference names, and the disk of an image.
    Export(ExportDirectory),
    /// A view; `first` is the number of its first inner subtree.
    View { view: &'static dyn TopView, first: u32 },
    /// A subtree of a view.
    Inner { view: &'static dyn TopView, layer: usize },
}

/// The names at the top of one tree.
#[derive(Clone, Default)]
pub(super) struct TopNames {
    /// The bytes of the index, if the tree is that of an index.
    pub(super) index: Option<bytes::Bytes>,
    /// Names and numbers of the views.
    pub(super) views: Vec<(&'static str, u32)>,
    /// The trees of other images: paths below this top, and numbers.
    pub(super) members: Vec<(String, u32)>,
}

impl SubtreeSlot {
    fn new(number: u32, parent: u32, image: Option<&Arc<OpenImage>>, role: SubtreeRole) -> Self {
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

impl SubtreeSlot {
    /// The tree whose root directory this subtree shows, if that has attributes of its own.
    pub(super) fn tree_root(&self) -> Option<TreeRoot> {
        match &self.role {
            SubtreeRole::View { view, .. } => view.root(),
            SubtreeRole::Inner { view, layer } => view.inner_root(*layer),
            SubtreeRole::Top(_) | SubtreeRole::Status | SubtreeRole::Export(_) => None,
        }
    }
}

/// All subtrees of `family`, by number.
pub(super) fn of(family: &ImageSet) -> Result<Vec<SubtreeSlot>, ReadError> {
    let mut slots = Vec::new();
    let mut grafts: HashMap<u32, Vec<(String, u32)>> = HashMap::new();
    let mut tops: HashMap<&[String], u32> = HashMap::from([(&[][..], 0)]);
    for (base, member) in (1u32..).zip(family.members()) {
        if !member.is_shown() {
            continue;
        }
        let base = base.checked_mul(PER_IMAGE).filter(|base| *base < 1 << 30).ok_or_else(too_many)?;
        let directory = &member.directory[..];
        // The nearest tree above it, at least the root.
        let depth = (0..directory.len()).rev().find(|depth| tops.contains_key(&directory[..*depth]));
        let depth = depth.unwrap_or_default();
        let parent = tops.get(&directory[..depth]).copied().unwrap_or_default();
        grafts.entry(parent).or_default().push((directory[depth..].join("/"), base));
        tops.insert(directory, base);
        let SetMember { index, image, .. } = member;
        one(&mut slots, base, parent, image.as_ref(), index.clone(), WholeArchive::Absent)?;
    }
    let mut root = Vec::new();
    let archive = if family.has_archive() { WholeArchive::Shown } else { WholeArchive::Absent };
    one(&mut root, 0, 0, family.main(), family.index_bytes().cloned(), archive)?;
    if family.main().is_none() {
        // In order of numbers: after the top.
        root.insert(1, SubtreeSlot::new(STATUS, 0, None, SubtreeRole::Status));
    }
    // The root's numbers are the lowest, and members are already in order.
    root.append(&mut slots);
    for slot in &mut root {
        if let SubtreeRole::Top(top) = &mut slot.role {
            top.members = grafts.remove(&slot.number).unwrap_or_default();
            if slot.number == 0 && slot.image.is_none() {
                top.views.push((VIEWS[STATUS as usize - 1].name(), STATUS));
            }
        }
    }
    Ok(root)
}

/// The digest of the member that subtree `number` belongs to.
pub(super) fn digest(family: &ImageSet, number: u32) -> Option<&Digest> {
    let at = (number / PER_IMAGE).checked_sub(1)?;
    family.members().get(at as usize).map(|member| &member.digest)
}

/// Adds the subtrees of one tree in order of their numbers, which start at `base`.
fn one(
    slots: &mut Vec<SubtreeSlot>,
    base: u32,
    parent: u32,
    image: Option<&Arc<OpenImage>>,
    index: Option<bytes::Bytes>,
    archive: WholeArchive,
) -> Result<(), ReadError> {
    let mut top = TopNames { index, ..TopNames::default() };
    let (mut views, mut inner) = (Vec::new(), Vec::new());
    let mut next = base + FIRST_INNER;
    for (number, &view) in (base + 1..).zip(VIEWS) {
        let Some(image) = image.filter(|image| view.exists(image)) else { continue };
        top.views.push((view.name(), number));
        let first = next;
        for layer in view.inner(image) {
            inner.push(SubtreeSlot::new(next, number, Some(image), SubtreeRole::Inner { view, layer }));
            next += 1;
            if next - base == PER_IMAGE {
                return Err(too_many());
            }
        }
        views.push(SubtreeSlot::new(number, base, Some(image), SubtreeRole::View { view, first }));
    }
    if let Some(exports) = ExportDirectory::of(archive, image) {
        top.views.push((export::NAME, base + EXPORT));
        // The export shows more than one image, so it belongs to none.
        views.push(SubtreeSlot::new(base + EXPORT, base, None, SubtreeRole::Export(exports)));
    }
    slots.push(SubtreeSlot::new(base, parent, image, SubtreeRole::Top(top)));
    slots.append(&mut views);
    slots.append(&mut inner);
    Ok(())
}

fn too_many() -> ReadError {
    ReadError::new(FaultClass::Unsupported, "more directories than a mount can number")
}
