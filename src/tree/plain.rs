//! Archives that are no layers of an image: made apart and laid over each other, or one of them as the directory it is of.
//!
//! No name hides another here: `.wh.` is the start of a name like any other. The idea of laying over: an archive is unpacked
//! beside the tree first, as if it were alone, so that no link of another archive is followed and no hard link reaches one;
//! then the two trees are laid over each other, and what an archive takes from an earlier one is told.

use crate::layer::{EntryKind, Need, TarLimits, TarWalker, Toc};

use super::builder::{Builder, Id, ROOT};
use super::error::{Problem, TreeError, shown};
use super::path;
use super::union::{Placing, Whiteouts, at, check};

/// How many paths an [`Overlap`] lists.
const MAX_LISTED: usize = 100;

/// Where archives that should not overlap do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Paths at which the later archive has taken the place of what an earlier one had: the first hundred that were found.
    pub replaced: Vec<Vec<u8>>,
    /// How many there are in all.
    pub count: usize,
    /// Hard links of the archive that are left out, because what they mean is not in it.
    pub left_out: Vec<Vec<u8>>,
}

/// Whether an archive has nothing outside of one of its directories: [`Builder::apply_below`] takes it.
pub fn is_below(toc: &Toc, below: &[u8]) -> bool {
    let below = path::clean(below);
    toc.iter().all(|entry| fits(entry.path, entry.kind == EntryKind::Directory, &below))
}

/// Path and size of the first entry of an archive whose first bytes are `head`, when it is a regular file.
pub fn first_file(head: &[u8]) -> Option<(Vec<u8>, u64)> {
    let limits = TarLimits { entries: 1024, ..TarLimits::default() };
    // In whole blocks, so that the walker is between two of them at the end.
    let head = head.get(..head.len() - head.len() % 512)?;
    let mut walker = TarWalker::new(limits);
    walker.feed(0, head).ok()?;
    let end = match walker.need() {
        Need::Bytes(range) => range.start,
        Need::Done => head.len() as u64,
    };
    let toc = walker.finish(end).ok()?;
    let first = toc.iter().next()?;
    match first.kind {
        EntryKind::File(content) => Some((first.path.to_vec(), content.size)),
        _ => None,
    }
}

/// Whether the file at `recorded` is the file called `name`: its path, or the last component of it.
pub fn is_name_of(recorded: &[u8], name: &[u8]) -> bool {
    let (recorded, name) = (path::clean(recorded), path::clean(name));
    !name.is_empty() && (recorded == name || recorded.len() == 1 && recorded.last() == name.last())
}

/// Whether an entry of that path lies in the directory. The directories above it may have entries: they say nothing about it.
fn fits(recorded: &[u8], is_directory: bool, below: &[&[u8]]) -> bool {
    let cleaned = path::clean(recorded);
    match path::within(&cleaned, below) {
        Some(rest) => !rest.is_empty() || is_directory,
        None => is_directory && below.starts_with(&cleaned),
    }
}

impl Builder {
    /// Lays an archive over the tree: directories merge and take the attributes that the later archive records, anything else
    /// of the later archive replaces what is there with all that is below. `origin` is stored with the content of its files.
    ///
    /// After an error the tree is of no use any more; what can be seen from names alone is found before any change.
    pub fn apply_plain(&mut self, origin: u32, toc: &Toc) -> Result<Overlap, TreeError> {
        let mut placing = Placing::new(origin, &[]);
        if self.nodes.len() == 1 {
            return Ok(Overlap { left_out: self.unpack(&mut placing, toc)?, ..Overlap::default() });
        }
        placing.recorded = Some(Vec::new());
        self.base = self.detached();
        let left_out = self.unpack(&mut placing, toc);
        let beside = std::mem::replace(&mut self.base, ROOT);
        let mut overlap = Overlap { left_out: left_out?, ..Overlap::default() };
        let mut recorded = placing.recorded.unwrap_or_default();
        recorded.sort_unstable();
        self.lay_over(beside, &recorded, &mut overlap)
            .map_err(|(path, problem)| TreeError::Insert { path: shown(&path), problem })?;
        Ok(overlap)
    }

    /// Moves what is below `beside` into the tree.
    fn lay_over(
        &mut self,
        beside: Id,
        recorded: &[Id],
        overlap: &mut Overlap,
    ) -> Result<(), (Vec<u8>, Problem)> {
        let inherit = |tree: &mut Self, from: Id, to: Id| {
            if recorded.binary_search(&from).is_ok() {
                let meta = tree.meta(from);
                tree.set_meta(to, meta);
            }
        };
        inherit(self, beside, ROOT);
        // The directory being laid over, with the next of its names, and how long the path above it is.
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

    /// Applies an archive of one directory as that directory: its own attributes become the root's, and names and hard links
    /// lose what is before it. An entry outside of it is an error, but for the directories that it lies in.
    ///
    /// After an error the tree is of no use any more; what can be seen from names alone is found before any change.
    pub fn apply_below(&mut self, origin: u32, toc: &Toc, below: &[u8]) -> Result<(), TreeError> {
        let below = path::clean(below);
        for entry in toc.iter() {
            check(&entry, Whiteouts::Keep).map_err(|problem| at(origin, &entry, problem))?;
            if !fits(entry.path, entry.kind == EntryKind::Directory, &below) {
                let problem = if path::clean(entry.path) == below {
                    Problem::RootNotADirectory
                } else {
                    Problem::Outside { what: "it".to_owned(), below: shown(&below.join(&b'/')) }
                };
                return Err(at(origin, &entry, problem));
            }
        }
        let mut placing = Placing::new(origin, &below);
        for entry in toc.iter() {
            let cleaned = path::clean(entry.path);
            if let Some(rest) = path::within(&cleaned, &below) {
                self.place(&mut placing, &entry, rest).map_err(|problem| at(origin, &entry, problem))?;
            }
        }
        Ok(())
    }
}
