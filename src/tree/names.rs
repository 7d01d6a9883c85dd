//! Name table of a tree builder: a hash table from directory and name to inode, with a list for each directory.
//!
//! One table for the whole tree costs a few bytes for each name, where a map for each directory costs an allocation
//! for each name. The lists are unsorted, because only `freeze` needs the order and sorts once. A removed name stays
//! in the table, to be reused if it is added again.

use std::hash::{BuildHasher as _, RandomState};

use super::error::EntryProblem;

/// The number of an inode in the arena.
pub(super) type InodeId = u32;

/// The end of a list, in `head` and `next`.
pub(super) const END: u32 = u32::MAX;
/// In `next`: the name is in no list.
const UNLISTED: u32 = u32::MAX - 1;
/// In `child`: the name was removed.
const REMOVED_CHILD: InodeId = InodeId::MAX;
/// Slots of the smallest table.
const LEAST: usize = 64;

/// The names of all directories.
#[derive(Debug, Default)]
pub(super) struct NameTable {
    names: Vec<NameEntry>,
    /// The length of each name in one byte, then its bytes. Each name is stored once.
    text: Vec<u8>,
    /// Open addressing with linear probing. Invariant: the length is 0 or a power of two, and at most 7 of 8 slots
    /// are used.
    slots: Vec<HashSlot>,
    /// Keyed for this process, so that no archive can choose names that collide.
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct NameEntry {
    dir: InodeId,
    /// Where the name starts in `text`.
    text: u32,
    child: InodeId,
    /// The next name of the directory, or `END`, or `UNLISTED`.
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct HashSlot {
    hash: u32,
    /// The index of the name plus one; 0 when the slot is free.
    name: u32,
}

/// The previous state of a name that `set` changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreviousEntry {
    /// The name had no inode.
    Free,
    /// The name had another inode.
    Taken,
}

impl NameTable {
    /// The inode of a name.
    pub(super) fn get(&self, dir: InodeId, name: &[u8]) -> Option<InodeId> {
        let index = self.find(self.hash(dir, name), dir, name).ok()?;
        Some(self.names[index as usize].child).filter(|&child| child != REMOVED_CHILD)
    }

    /// Maps a name to an inode, replacing the one it has. The list of the directory starts at `head`.
    pub(super) fn set(
        &mut self,
        dir: InodeId,
        head: &mut u32,
        name: &[u8],
        child: InodeId,
    ) -> Result<PreviousEntry, EntryProblem> {
        let hash = self.hash(dir, name);
        let index = match self.find(hash, dir, name) {
            Ok(index) => index,
            Err(slot) => self.add(hash, slot, dir, name)?,
        };
        let entry = &mut self.names[index as usize];
        let was = if entry.child == REMOVED_CHILD { PreviousEntry::Free } else { PreviousEntry::Taken };
        entry.child = child;
        if entry.next == UNLISTED {
            entry.next = *head;
            *head = index;
        }
        Ok(was)
    }

    /// Removes a name from its directory, if it exists.
    pub(super) fn remove(&mut self, dir: InodeId, name: &[u8]) {
        if let Ok(index) = self.find(self.hash(dir, name), dir, name) {
            self.names[index as usize].child = REMOVED_CHILD;
        }
    }

    /// Removes all names from the directory whose list starts at `head`.
    pub(super) fn clear(&mut self, head: &mut u32) {
        let mut next = std::mem::replace(head, END);
        while let Some(name) = self.names.get_mut(next as usize) {
            name.child = REMOVED_CHILD;
            // Unlisted, or every later `clear` would walk them again.
            next = std::mem::replace(&mut name.next, UNLISTED);
        }
    }

    /// A name of a list, its inode (`None` if removed), and the next position; `None` at the end. `at` is the head of
    /// a list, or a position that an earlier call returned.
    pub(super) fn listed(&self, at: u32) -> Option<(&[u8], Option<InodeId>, u32)> {
        let name = self.names.get(at as usize)?;
        Some((
            text(&self.text, name.text),
            Some(name.child).filter(|&child| child != REMOVED_CHILD),
            name.next,
        ))
    }

    /// The lists alone, when the tree is complete.
    pub(super) fn into_lists(self) -> NameLists {
        let Self { names, text, .. } = self;
        NameLists { names, text }
    }

    fn hash(&self, dir: InodeId, name: &[u8]) -> u32 {
        self.hasher.hash_one((dir, name)) as u32
    }

    /// The index of a name, or the free slot where the search ended.
    fn find(&self, hash: u32, dir: InodeId, name: &[u8]) -> Result<u32, usize> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        while let Some(slot) = self.slots.get(at) {
            let Some(index) = slot.name.checked_sub(1) else { return Err(at) };
            let found = &self.names[index as usize];
            if slot.hash == hash && found.dir == dir && text(&self.text, found.text) == name {
                return Ok(index);
            }
            at = (at + 1) & mask;
        }
        Err(at)
    }

    fn add(&mut self, hash: u32, slot: usize, dir: InodeId, name: &[u8]) -> Result<u32, EntryProblem> {
        let len = u8::try_from(name.len()).map_err(|_| EntryProblem::NameTooLong { len: name.len() })?;
        let text = u32::try_from(self.text.len()).map_err(|_| EntryProblem::TooManyBytes)?;
        // Fits: the builder limits names far below 2^32.
        let index = self.names.len() as u32;
        self.text.push(len);
        self.text.extend_from_slice(name);
        self.names.push(NameEntry { dir, text, child: REMOVED_CHILD, next: UNLISTED });
        let taken = HashSlot { hash, name: index + 1 };
        if self.names.len() > self.slots.len() / 8 * 7 {
            self.grow();
            self.occupy(taken);
        } else {
            self.slots[slot] = taken;
        }
        Ok(index)
    }

    fn grow(&mut self) {
        let free = HashSlot { hash: 0, name: 0 };
        let larger = vec![free; (self.slots.len() * 2).max(LEAST)];
        for slot in std::mem::replace(&mut self.slots, larger) {
            if slot.name != 0 {
                self.occupy(slot);
            }
        }
    }

    fn occupy(&mut self, slot: HashSlot) {
        let mask = self.slots.len() - 1;
        let mut at = slot.hash as usize & mask;
        while self.slots[at].name != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }
}

/// The lists without the hash table.
#[derive(Debug)]
pub(super) struct NameLists {
    names: Vec<NameEntry>,
    text: Vec<u8>,
}

impl NameLists {
    /// Fills `into` with the names of the directory whose list starts at `head`, in byte order.
    pub(super) fn sorted(&self, head: u32, into: &mut Vec<(u32, InodeId)>) {
        into.clear();
        let mut next = head;
        while let Some(name) = self.names.get(next as usize) {
            if name.child != REMOVED_CHILD {
                into.push((name.text, name.child));
            }
            next = name.next;
        }
        into.sort_unstable_by(|(left, _), (right, _)| self.name(*left).cmp(self.name(*right)));
    }

    /// The bytes of a name that `sorted` returned.
    pub(super) fn name(&self, at: u32) -> &[u8] {
        text(&self.text, at)
    }
}

/// The name that starts at `at`.
fn text(text: &[u8], at: u32) -> &[u8] {
    let (&len, rest) = text[at as usize..].split_first().unwrap_or((&0, &[]));
    &rest[..len as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: NameTable, head: u32) -> Vec<(Vec<u8>, InodeId)> {
        let (lists, mut sorted) = (names.into_lists(), Vec::new());
        lists.sorted(head, &mut sorted);
        sorted.iter().map(|&(at, id)| (lists.name(at).to_vec(), id)).collect()
    }

    #[test]
    fn names_taken_out_come_back_and_are_listed_once() {
        let (mut names, mut head) = (NameTable::default(), END);
        let set =
            |names: &mut NameTable, head: &mut u32, name: &[u8], id| names.set(7, head, name, id).unwrap();
        assert_eq!(set(&mut names, &mut head, b"b", 1), PreviousEntry::Free);
        assert_eq!(set(&mut names, &mut head, b"a", 2), PreviousEntry::Free);
        assert_eq!(set(&mut names, &mut head, b"b", 3), PreviousEntry::Taken);
        names.remove(7, b"a");
        names.remove(7, b"none");
        assert_eq!((names.get(7, b"a"), names.get(7, b"b"), names.get(8, b"b")), (None, Some(3), None));
        assert_eq!(set(&mut names, &mut head, b"a", 4), PreviousEntry::Free);
        names.clear(&mut head);
        assert_eq!((names.get(7, b"a"), names.get(7, b"b")), (None, None));
        names.clear(&mut head);
        assert_eq!(set(&mut names, &mut head, b"b", 5), PreviousEntry::Free);
        assert_eq!(listed(names, head), [(b"b".to_vec(), 5)]);
    }

    #[test]
    fn a_table_that_grew_finds_every_name_in_its_directory() {
        let (mut names, mut heads) = (NameTable::default(), [END; 3]);
        for id in 0..3000 {
            let dir = id % 3;
            names.set(dir, &mut heads[dir as usize], (id / 3).to_string().as_bytes(), id).unwrap();
        }
        for id in 0..3000 {
            assert_eq!(names.get(id % 3, (id / 3).to_string().as_bytes()), Some(id));
        }
        let listed = listed(names, heads[1]);
        assert_eq!(listed.len(), 1000);
        assert!(listed.is_sorted());
    }

    #[test]
    fn a_name_of_255_bytes_is_kept_and_a_longer_one_refused() {
        let (mut names, mut head) = (NameTable::default(), END);
        let long = [b'n'; 256];
        names.set(0, &mut head, &long[..255], 1).unwrap();
        assert_eq!(names.set(0, &mut head, &long, 2), Err(EntryProblem::NameTooLong { len: 256 }));
        assert_eq!(listed(names, head), [(long[..255].to_vec(), 1)]);
    }
}
