//! Interned sets of extended attributes: each distinct set is stored once.
//!
//! A layer repeats a few sets (a SELinux label, a capability) on thousands of entries. An inode holds the number of
//! its set; number 0 is the empty set. A set stays packed, in the form of the table of contents.

use std::collections::HashMap;
use std::sync::Arc;

use crate::layer::XattrIter;

/// The number of a set of extended attributes.
pub(super) type SetId = u32;

/// Distinct sets by number, while a tree is being built.
#[derive(Debug, Default)]
pub(super) struct XattrSets {
    /// Set `n` is `sets[n - 1]`.
    sets: Vec<Arc<[u8]>>,
    numbers: HashMap<Arc<[u8]>, SetId>,
}

impl XattrSets {
    /// Whether the set has a number.
    pub(super) fn has(&self, set: XattrIter<'_>) -> bool {
        set.is_empty() || self.numbers.contains_key(set.as_packed())
    }

    /// The number of a set; a new set is stored.
    pub(super) fn intern(&mut self, set: XattrIter<'_>) -> SetId {
        if set.is_empty() {
            return 0;
        }
        let set = set.as_packed();
        if let Some(&id) = self.numbers.get(set) {
            return id;
        }
        let set: Arc<[u8]> = set.into();
        self.sets.push(Arc::clone(&set));
        // Fits: each set comes with at least one name of the tree, and names are limited far below 2^32.
        let id = self.sets.len() as SetId;
        self.numbers.insert(set, id);
        id
    }

    /// The sets alone, when the tree is complete.
    pub(super) fn into_sets(self) -> Box<[Arc<[u8]>]> {
        self.sets.into()
    }
}

/// The set with number `id` among `sets`.
pub(super) fn get(sets: &[Arc<[u8]>], id: SetId) -> XattrIter<'_> {
    let set = (id as usize).checked_sub(1).and_then(|index| sets.get(index));
    XattrIter::from_packed(set.map_or(&[], |set| set))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name and value of one letter each, packed.
    fn set(letters: &[u8]) -> Vec<u8> {
        letters.iter().flat_map(|&letter| [1, letter]).collect()
    }

    #[test]
    fn equal_sets_share_a_number_and_the_empty_one_is_zero() {
        let mut sets = XattrSets::default();
        let (two, one) = (set(b"a1b2"), set(b"a1"));
        assert_eq!(sets.intern(XattrIter::from_packed(&[])), 0);
        let id = sets.intern(XattrIter::from_packed(&two));
        assert_eq!(sets.intern(XattrIter::from_packed(&two)), id);
        assert_ne!(sets.intern(XattrIter::from_packed(&one)), id);
        let sets = sets.into_sets();
        assert_eq!(get(&sets, id).collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..]), (b"b", b"2")]);
        assert_eq!(get(&sets, 0).next(), None);
    }
}
