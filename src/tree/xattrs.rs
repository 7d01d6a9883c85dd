//! Sets of extended attributes, each distinct set kept once.
//!
//! A layer repeats the same few sets (a selinux label, a capability) on thousands of entries; an inode holds the number
//! of its set, and number 0 is the empty one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::layer::Xattr;

/// The number of a set of extended attributes.
pub(super) type SetId = u32;

/// Distinct sets by number, while a tree is being built.
#[derive(Debug, Default)]
pub(super) struct XattrSets {
    /// Set `n` is `sets[n - 1]`.
    sets: Vec<Arc<[Xattr]>>,
    numbers: HashMap<Arc<[Xattr]>, SetId>,
}

impl XattrSets {
    /// The number of a set.
    pub(super) fn intern(&mut self, set: &[Xattr]) -> SetId {
        if set.is_empty() {
            return 0;
        }
        if let Some(&id) = self.numbers.get(set) {
            return id;
        }
        let set: Arc<[Xattr]> = set.into();
        self.sets.push(Arc::clone(&set));
        // A set comes with at least one name of the tree, whose number is limited far below 2^32.
        let id = self.sets.len() as SetId;
        self.numbers.insert(set, id);
        id
    }

    /// The sets alone, once no more are to come.
    pub(super) fn into_sets(self) -> Box<[Arc<[Xattr]>]> {
        self.sets.into()
    }
}

/// The set with that number among `sets`.
pub(super) fn get(sets: &[Arc<[Xattr]>], id: SetId) -> &[Xattr] {
    (id as usize).checked_sub(1).and_then(|index| sets.get(index)).map_or(&[], |set| set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &str) -> Xattr {
        (name.into(), value.into())
    }

    #[test]
    fn equal_sets_share_a_number_and_the_empty_one_is_zero() {
        let mut sets = XattrSets::default();
        let a = [xattr("user.a", "1"), xattr("user.b", "2")];
        assert_eq!(sets.intern(&[]), 0);
        let id = sets.intern(&a);
        assert_eq!(sets.intern(&a), id);
        assert_ne!(sets.intern(&a[..1]), id);
        let sets = sets.into_sets();
        assert_eq!(get(&sets, id), a);
        assert_eq!(get(&sets, 0), []);
    }
}
