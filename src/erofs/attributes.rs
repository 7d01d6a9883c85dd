//! Extended attributes of EROFS images: inline after the inode, or shared between inodes.
//!
//! An entry that several inodes have, such as a SELinux label, is stored once in a shared area, and the inodes name
//! its position. A long value is shared as well, because inline it would push inodes apart. Attributes that the
//! format cannot hold are omitted and counted.

use std::collections::HashMap;

use crate::tree::{FrozenTree, InodeNumber};

/// Bytes of the head of an inode's attributes.
const HEAD_BYTES: usize = 12;
/// Limit of the attributes of one inode, in bytes: `i_xattr_icount` has 16 bits and counts words.
const MAX_INLINE_BYTES: usize = HEAD_BYTES + (u16::MAX as usize - 1) * 4;
/// Shared entries that one inode can name: `h_shared_count` has 8 bits.
const MAX_SHARED: usize = u8::MAX as usize;
/// Limit of the shared area, in bytes: positions have 32 bits and count words. No real image comes near it.
const MAX_SHARED_BYTES: usize = 1 << 31;
/// Longest value: `e_value_size` has 16 bits.
const MAX_VALUE_BYTES: usize = u16::MAX as usize;
/// Longest name, with its prefix (`XATTR_NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;
/// Values of at least this many bytes are shared even if only one inode has them.
const LONG_VALUE_BYTES: usize = 512;
/// Omitted attributes that are listed by name; further ones are only counted.
const MAX_NAMED: usize = 16;
/// Prefix of the attributes of ocifs itself, which no layer can set.
const OWN_PREFIX: &[u8] = b"user.ocifs.";

/// The encoded attributes of a tree.
#[derive(Debug, Default)]
pub(super) struct AttributeArea {
    /// The bytes after an inode with set `n`, at `n - 1`. Empty where no inode has the set, or the format holds
    /// nothing of it.
    behind: Vec<Vec<u8>>,
    pub(super) shared: Vec<u8>,
    /// Attributes that the format cannot hold.
    pub(super) omitted: OmittedXattrs,
}

/// Attributes that the format cannot hold.
#[derive(Debug, Default)]
pub(super) struct OmittedXattrs {
    /// Their number; an attribute counts once for each distinct set that contains it.
    pub(super) count: usize,
    /// The first of them, each with the reason.
    pub(super) named: Vec<String>,
}

/// An entry: number of the name's prefix, rest of the name, value.
type XattrEntry<'a> = (u8, &'a [u8], &'a [u8]);

impl AttributeArea {
    /// Encodes the attributes of all inodes of `tree`.
    pub(super) fn of(tree: &FrozenTree) -> Self {
        let mut area = Self::default();
        // For each set: one inode that has it, and the number of inodes that have it.
        let mut sets: Vec<Option<(InodeNumber, usize)>> = Vec::new();
        for ino in 0..tree.len() as InodeNumber {
            let Some(at) = (tree.xattr_set(ino) as usize).checked_sub(1) else { continue };
            if at >= sets.len() {
                sets.resize(at + 1, None);
            }
            sets[at].get_or_insert((ino, 0)).1 += 1;
        }
        let held: Vec<Vec<XattrEntry<'_>>> =
            sets.iter().map(|set| set.map_or_else(Vec::new, |(ino, _)| area.held(tree, ino))).collect();
        let mut uses: HashMap<XattrEntry<'_>, usize> = HashMap::new();
        for (set, entries) in sets.iter().zip(&held) {
            let inodes = set.map_or(0, |(_, count)| count);
            entries.iter().for_each(|entry| *uses.entry(*entry).or_default() += inodes);
        }
        let mut places = HashMap::new();
        for entries in &held {
            let behind = area.behind(entries, &uses, &mut places);
            area.behind.push(behind);
        }
        area
    }

    /// The bytes after an inode of `tree`: none, or a head and entries, a multiple of 4 bytes.
    pub(super) fn behind_inode(&self, tree: &FrozenTree, ino: InodeNumber) -> &[u8] {
        let at = (tree.xattr_set(ino) as usize).checked_sub(1);
        at.and_then(|at| self.behind.get(at)).map_or(&[], Vec::as_slice)
    }

    /// The entries of an inode that the format can hold, each name once.
    fn held<'a>(&mut self, tree: &'a FrozenTree, ino: InodeNumber) -> Vec<XattrEntry<'a>> {
        let mut held: Vec<XattrEntry<'a>> = Vec::new();
        for (name, value) in tree.xattrs(ino).filter(|(name, _)| !name.starts_with(OWN_PREFIX)) {
            match entry(name, value) {
                Ok((index, rest, _)) if held.iter().any(|(i, r, _)| (*i, *r) == (index, rest)) => {}
                Ok(entry) => held.push(entry),
                Err(why) => self.omit(name, why),
            }
        }
        held
    }

    /// Encodes one set.
    fn behind<'a>(
        &mut self,
        entries: &[XattrEntry<'a>],
        uses: &HashMap<XattrEntry<'a>, usize>,
        places: &mut HashMap<XattrEntry<'a>, u32>,
    ) -> Vec<u8> {
        let (mut shared, mut inline) = (Vec::new(), Vec::new());
        for entry in entries {
            let is_shared =
                uses.get(entry).is_some_and(|uses| *uses > 1) || entry.2.len() >= LONG_VALUE_BYTES;
            if is_shared && shared.len() < MAX_SHARED && self.shared.len() < MAX_SHARED_BYTES {
                let place = *places.entry(*entry).or_insert_with(|| {
                    // Fits: the limit above is less than 2 GiB and one entry, counted in words.
                    let place = (self.shared.len() / 4) as u32;
                    write(&mut self.shared, entry);
                    place
                });
                shared.push(place);
            } else if HEAD_BYTES + MAX_SHARED * 4 + inline.len() + 4 + 256 + entry.2.len() <= MAX_INLINE_BYTES
            {
                write(&mut inline, entry);
            } else {
                self.omit(entry.1, "its inode has more than 256 KiB of attributes");
            }
        }
        if shared.is_empty() && inline.is_empty() {
            return Vec::new();
        }
        let mut behind = vec![0; HEAD_BYTES];
        // At most MAX_SHARED.
        behind[4] = shared.len() as u8;
        shared.iter().for_each(|place: &u32| behind.extend_from_slice(&place.to_le_bytes()));
        behind.append(&mut inline);
        behind
    }

    fn omit(&mut self, name: &[u8], why: &str) {
        self.omitted.count += 1;
        if self.omitted.named.len() < MAX_NAMED {
            self.omitted.named.push(format!("{}: {why}", name.escape_ascii()));
        }
    }
}

/// Appends an entry, padded to a word.
fn write(to: &mut Vec<u8>, (index, rest, value): &XattrEntry<'_>) {
    // Both lengths are limited by `entry`.
    to.extend_from_slice(&[rest.len() as u8, *index]);
    to.extend_from_slice(&(value.len() as u16).to_le_bytes());
    to.extend_from_slice(rest);
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The entry of an attribute; the error is the reason why the format cannot hold it.
fn entry<'a>(name: &'a [u8], value: &'a [u8]) -> Result<XattrEntry<'a>, &'static str> {
    const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    if name.len() > MAX_NAME_BYTES {
        return Err("its name is longer than 255 bytes");
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err("its value is longer than 65535 bytes");
    }
    let acl = match name {
        b"system.posix_acl_access" => Some(2),
        b"system.posix_acl_default" => Some(3),
        _ => None,
    };
    if let Some(index) = acl {
        // The kernel checks access with it, and would deny all access if it could not parse it.
        return if is_acl(value) {
            Ok((index, &[], value))
        } else {
            Err("it is no valid access control list")
        };
    }
    for (index, prefix) in PREFIXES {
        if let Some(rest) = name.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
            return Ok((index, rest, value));
        }
    }
    Err("the format has no prefix for its name")
}

/// Whether a value is an access control list in the kernel's format: version 2, and entries in an order that
/// `posix_acl_valid` accepts.
fn is_acl(value: &[u8]) -> bool {
    const ENTRY_BYTES: usize = 8;
    let Some(entries) = value.strip_prefix(&[2, 0, 0, 0]) else { return false };
    let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else { return false };
    if entries.is_empty() {
        return true;
    }
    // Tags in their order: owner, users, group, groups, mask, others; and whether the tag may repeat.
    const ORDER: [(u16, bool); 6] =
        [(0x01, false), (0x02, true), (0x04, false), (0x08, true), (0x10, false), (0x20, false)];
    let (mut seen, mut last) = ([0usize; 6], 0);
    for entry in entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let Some(at) = ORDER.iter().position(|(known, _)| *known == tag) else { return false };
        let again_allowed = ORDER[at].1;
        if at < last
            || permissions > 7
            || (seen[at] > 0 && !again_allowed)
            || (again_allowed && id == u32::MAX)
        {
            return false;
        }
        (seen[at], last) = (seen[at] + 1, at);
    }
    let named = seen[1] + seen[3];
    seen[0] == 1 && seen[2] == 1 && seen[5] == 1 && (named == 0 || seen[4] == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn names_have_a_prefix_of_the_format_or_no_place() {
        assert_eq!(entry(b"user.a", b"v"), Ok((1, &b"a"[..], &b"v"[..])));
        assert_eq!(entry(b"security.capability", b""), Ok((6, &b"capability"[..], &b""[..])));
        for name in [&b"user."[..], b"system.other", b"plain", b"", &[b'x'; 300]] {
            assert!(entry(name, b"v").is_err(), "{}", name.escape_ascii());
        }
        assert!(entry(b"user.a", &[0; 65_535]).is_ok());
        assert!(entry(b"user.a", &[0; 65_536]).is_err());
    }

    #[test]
    fn an_access_control_list_is_one_that_the_kernel_takes() {
        let base = [(0x01, 7, u32::MAX), (0x04, 5, u32::MAX), (0x20, 0, u32::MAX)];
        let named =
            [(0x01, 7, 0), (0x02, 6, 1000), (0x02, 4, 1001), (0x04, 5, 0), (0x10, 7, 0), (0x20, 0, 0)];
        assert!(is_acl(&acl(&base)) && is_acl(&acl(&named)) && is_acl(&acl(&[])));
        let without_mask = [named[0], named[1], named[3], named[5]];
        let unordered = [named[1], named[0], named[3], named[4], named[5]];
        for wrong in [&without_mask[..], &unordered, &base[..2], &[(0x01, 8, 0), base[1], base[2]]] {
            assert!(!is_acl(&acl(wrong)), "{wrong:?}");
        }
        assert!(!is_acl(b"") && !is_acl(&[1, 0, 0, 0]) && !is_acl(&acl(&base)[..11]));
    }
}
