//! Inode numbers of nodes, for the kernel and `stat`.
//!
//! Numbers are stateless: each is computed from its node, and the node from its number. The low bits hold the
//! subtree, the others the inode in it. So numbers stay below 2^32 as long as a subtree has room, and programs with
//! 32-bit inode numbers can read every file. Both parts are the same for every mount of the same digest with the same
//! options.

use crate::tree::FrozenTree;

use super::namespace::{MountNamespace, NodeId};
use super::subtree_ids;

/// The number of the root (`FUSE_ROOT_ID`).
const ROOT: u64 = 1;
/// First number of the status nodes. They are the same in every mount, also before the mounted image is known.
const FIRST_FIXED: u64 = 2;
/// First number of all other nodes.
const FIRST_FREE_NUMBER: u64 = 16;
/// Minimum bits for the position of a subtree, enough for 64 of them. So an image has the same numbers alone and next
/// to others, and 2^26 inodes of each subtree have numbers below 2^32.
const MIN_SLOT_BITS: u32 = 6;
/// First number that does not fit in 32 bits. From this one on, a number is the subtree plus one (high 32 bits) and
/// the inode.
const FIRST_WIDE: u64 = 1 << 32;

impl NodeId {
    /// The directory `.ocifs` of a mount that shows all views.
    pub const STATUS_DIRECTORY: u64 = FIRST_FIXED + FrozenTree::ROOT as u64;

    /// Whether this number has the same meaning in every mount.
    pub fn is_fixed(number: u64) -> bool {
        number < FIRST_FREE_NUMBER
    }
}

impl MountNamespace {
    /// The number of a node: below 2^32 if the inode in its subtree leaves room, and never 0.
    pub fn number(&self, node: NodeId) -> u64 {
        if node == self.root() {
            return ROOT;
        }
        if node.slot == subtree_ids::STATUS && u64::from(node.ino) < FIRST_FREE_NUMBER - FIRST_FIXED {
            return FIRST_FIXED + u64::from(node.ino);
        }
        let compact = self
            .position(node.slot)
            .map(|at| (u64::from(node.ino) << self.slot_bits() | at) + FIRST_FREE_NUMBER);
        let wide = || (u64::from(node.slot) + 1) << 32 | u64::from(node.ino);
        compact.filter(|number| *number < FIRST_WIDE).unwrap_or_else(wide)
    }

    /// The inverse of [`number`](Self::number). Any other number gives a node that does not exist.
    pub fn node(&self, number: u64) -> NodeId {
        let missing = NodeId { slot: u32::MAX, ino: 0 };
        match number {
            ..ROOT => missing,
            ROOT => self.root(),
            FIRST_FIXED..FIRST_FREE_NUMBER => {
                NodeId { slot: subtree_ids::STATUS, ino: (number - FIRST_FIXED) as u32 }
            }
            FIRST_FREE_NUMBER..FIRST_WIDE => {
                let compact = number - FIRST_FREE_NUMBER;
                let bits = self.slot_bits();
                let slot =
                    usize::try_from(compact & ((1 << bits) - 1)).ok().and_then(|at| self.slots().get(at));
                slot.map_or(missing, |slot| NodeId { slot: slot.number, ino: (compact >> bits) as u32 })
            }
            FIRST_WIDE.. => NodeId { slot: ((number >> 32) - 1) as u32, ino: number as u32 },
        }
    }

    /// Whether the node's subtree exists.
    pub fn is_possible(&self, node: NodeId) -> bool {
        self.slot(node.slot).is_some()
    }

    /// 32 bits of the mounted digest.
    pub fn generation(&self) -> u64 {
        let digest = self.family().digest().as_str();
        let digits = digest.rsplit(':').next().and_then(|digits| digits.get(..8));
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
    }

    /// The inputs of a subtree's numbers besides its inodes.
    pub(super) fn layout_of(&self, slot: u32) -> (Option<u64>, u32) {
        (self.position(slot), self.slot_bits())
    }

    fn position(&self, slot: u32) -> Option<u64> {
        self.slots().binary_search_by_key(&slot, |slot| slot.number).ok().map(|at| at as u64)
    }

    /// Bits that hold the position of any subtree.
    fn slot_bits(&self) -> u32 {
        (usize::BITS - self.slots().len().saturating_sub(1).leading_zeros()).max(MIN_SLOT_BITS)
    }
}
