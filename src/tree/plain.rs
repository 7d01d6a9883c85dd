//! Plain archives: several laid over each other, or one shown as one of its directories.
//!
//! Whiteouts do not apply: `.wh.` is the start of a name like any other. Each archive is first unpacked beside the
//! tree, as if it were alone. So it follows no link of another archive, and none of its hard links reaches one. Then
//! the two trees are merged, and paths that the later archive replaces are reported.

use crate::layer::{EntryRef, TableOfContents, TarLimits, TocEntryKind, entries_of_head};

use super::builder::{ROOT, TreeBuilder};
use super::error::{EntryProblem, TreeError, shown};
use super::names::InodeId;
use super::path;
use super::union::{LayerApply, WhiteoutCheck, at, check};

/// Limit of the paths that an [`ArchiveOverlap`] lists.
const MAX_LISTED: usize = 100;

/// Conflicts between archives that should not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveOverlap {
    /// Paths where the later archive replaced content of an earlier one: the first hundred found.
    pub replaced: Vec<Vec<u8>>,
    /// Number of all replaced paths.
    pub count: usize,
    /// Hard links of the archive that are omitted, because their target is not in it.
    pub left_out: Vec<Vec<u8>>,
}

/// Whether all entries of an archive lie in one of its directories, so that [`TreeBuilder::apply_below`] accepts it.
pub fn is_below(toc: &TableOfContents, below: &[u8]) -> bool {
    let below = path::clean(below);
    toc.iter().all(|entry| fits(entry.path, entry.kind == TocEntryKind::Directory, &below))
}

/// Path and size of the only entry in `head`, the first bytes of an archive; `None` if that is not a regular file, or
/// if `head` has a second entry.
pub fn lone_file(head: &[u8]) -> Option<(Vec<u8>, u64)> {
    let limits = TarLimits { entries: 1024, ..TarLimits::default() };
    let toc = entries_of_head(head, limits)?;
    let mut entries = toc.iter();
    match (entries.next()?, entries.next()) {
        (EntryRef { path, kind: TocEntryKind::File(content), .. }, None) => {
            Some((path.to_vec(), content.size))
        }
        _ => None,
    }
}

/// Whether the file at `recorded` has the name `name`: the paths match, or `recorded` is at the top and equals the last
/// component of `name`.
pub fn is_name_of(recorded: &[u8], name: &[u8]) -> bool {
    let (recorded, name) = (path::clean(recorded), path::clean(name));
    !name.is_empty() && (recorded == name || recorded.len() == 1 && recorded.last() == name.last())
}

/// Whether an entry of that path lies in the directory. Entries of the directories above it are accepted as well.
fn fits(recorded: &[u8], is_directory: bool, below: &[&[u8]]) -> bool {
    let cleaned = path::clean(recorded);
    match path::within(&cleaned, below) {
        Some(rest) => !rest.is_empty() || is_directory,
        None => is_directory && below.starts_with(&cleaned),
    }
}

impl TreeBuilder {
    /// Merges an archive into the tree. Directories merge and take the attributes that the later archive records.
    /// Anything else of the later archive replaces the path and everything below. `origin` is stored with the content
    /// of its files.
    ///
    /// After an error the tree is unusable. Errors that depend on names alone are found before any change.
    pub fn apply_plain(&mut self, origin: u32, toc: &TableOfContents) -> Result<ArchiveOverlap, TreeError> {
        let mut placing = LayerApply::new(origin, &[]);
        if self.nodes.len() == 1 {
            return Ok(ArchiveOverlap {
                left_out: self.unpack(&mut placing, toc)?,
                ..ArchiveOverlap::default()
            });
        }
        placing.recorded = Some(Vec::new());
        self.base = self.detached();
        let left_out = self.unpack(&mut placing, toc);
        let beside = std::mem::replace(&mut self.base, ROOT);
        let mut overlap = ArchiveOverlap { left_out: left_out?, ..ArchiveOverlap::default() };
        let mut recorded = placing.recorded.unwrap_or_default();
        recorded.sort_unstable();
        self.lay_over(beside, &recorded, &mut overlap)
            .map_err(|(path, problem)| TreeError::Insert { path: shown(&path), problem })?;
        Ok(overlap)
    }

    /// Moves the content of `beside` into the tree.
    fn lay_over(
        &mut self,
        beside: InodeId,
        recorded: &[InodeId],
        overlap: &mut ArchiveOverlap,
    ) -> Result<(), (Vec<u8>, EntryProblem)> {
        let inherit = |tree: &mut Self, from: InodeId, to: InodeId| {
            if recorded.binary_search(&from).is_ok() {
                let meta = tree.meta(from);
                tree.set_meta(to, meta);
            }
        };
        inherit(self, beside, ROOT);
        // Directories being merged: the next name, the directory to merge into, and the length of the path above.
        let mut stack = vec![(self.first(beside), ROOT, 0)];
        let mut path: Vec<u8> = Vec::new();
        while let Some((at, into, above)) = stack.pop() {
            path.truncate(above);
            let Some((name, child, next)) = self.names.listed(at) else { continue };
            stack.push((next, into, above));
            let Some(child) = child else { continue };
            let name = name.to_vec();
            if above > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            match self.child(into, &name) {
                Some(there) if self.is_directory(there) && self.is_directory(child) => {
                    inherit(self, child, there);
                    stack.push((self.first(child), there, path.len()));
                }
                there => {
                    if there.is_some() {
                        overlap.count += 1;
                        if overlap.replaced.len() < MAX_LISTED {
                            overlap.replaced.push(path.clone());
                        }
                    }
                    self.attach(into, &name, child).map_err(|problem| (path.clone(), problem))?;
                }
            }
        }
        overlap.replaced.sort_unstable();
        Ok(())
    }

    /// Applies an archive of one directory as that directory. Its own attributes become the root's, and names and
    /// hard links lose the directory's path. An entry outside of it is an error, except for the directories above it.
    ///
    /// After an error the tree is unusable. Errors that depend on names alone are found before any change.
    pub fn apply_below(&mut self, origin: u32, toc: &TableOfContents, below: &[u8]) -> Result<(), TreeError> {
        let (below, mut cleaned) = (path::clean(below), Vec::new());
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            check(&entry, &cleaned, WhiteoutCheck::Keep).map_err(|problem| at(origin, &entry, problem))?;
            if !fits(entry.path, entry.kind == TocEntryKind::Directory, &below) {
                let problem = if cleaned == below {
                    EntryProblem::RootNotADirectory
                } else {
                    EntryProblem::Outside { what: "it".to_owned(), below: shown(&below.join(&b'/')) }
                };
                return Err(at(origin, &entry, problem));
            }
        }
        let mut placing = LayerApply::new(origin, &below);
        for entry in toc.iter() {
            path::clean_into(&mut cleaned, entry.path);
            if let Some(rest) = path::within(&cleaned, &below) {
                self.place(&mut placing, &entry, rest).map_err(|problem| at(origin, &entry, problem))?;
            }
        }
        Ok(())
    }
}
