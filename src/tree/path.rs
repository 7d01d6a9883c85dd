//! Path cleaning, path limits and whiteout markers (`.wh.`).
//!
//! This module is lexical only. A recorded name is cleaned before any other use, so `..` cannot lead out of the root.
//! Cleaning matches `filepath.Join("/", name)` in the appliers written in Go.

use super::error::EntryProblem;
use super::limits::{MAX_NAME, MAX_PATH};

/// Prefix of a whiteout (image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of aufs bookkeeping. It would also be a whiteout of a whiteout, which no layer can need.
const AUFS: &[u8] = b".wh..wh.";
/// The opaque marker, the only aufs name that is part of the image specification.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The meaning of an entry's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhiteoutMark<'a> {
    /// A plain entry.
    Plain,
    /// Hide this name in the entry's directory.
    Whiteout(&'a [u8]),
    /// Hide everything in the entry's directory.
    Opaque,
    /// Bookkeeping of aufs, not part of the image.
    Leftover,
}

/// The components of a path in order, without empty ones and `.`; `..` is included.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// The components after lexical cleaning, `..` clamped at the root. Empty for the root.
pub(super) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut cleaned = Vec::new();
    clean_into(&mut cleaned, path);
    cleaned
}

/// Replaces `cleaned` by the components that [`clean`] gives; loops over entries reuse it.
pub(super) fn clean_into<'p>(cleaned: &mut Vec<&'p [u8]>, path: &'p [u8]) {
    cleaned.clear();
    for name in components(path) {
        if name == b".." {
            cleaned.pop();
        } else {
            cleaned.push(name);
        }
    }
}

/// The rest of a cleaned path below a cleaned directory, empty for the directory itself; `None` for a path outside of
/// it.
pub(super) fn within<'p, 'n>(cleaned: &'p [&'n [u8]], below: &[&[u8]]) -> Option<&'p [&'n [u8]]> {
    let (above, rest) = cleaned.split_at_checked(below.len())?;
    (above == below).then_some(rest)
}

/// Checks a cleaned path against the limits.
pub(super) fn check(cleaned: &[&[u8]]) -> Result<(), EntryProblem> {
    if let Some(name) = cleaned.iter().find(|name| name.len() > MAX_NAME) {
        return Err(EntryProblem::NameTooLong { len: name.len() });
    }
    let len = cleaned.iter().map(|name| name.len() + 1).sum::<usize>().saturating_sub(1);
    if len > MAX_PATH { Err(EntryProblem::PathTooLong { len }) } else { Ok(()) }
}

/// Determines the mark of a cleaned path; a whiteout that names no file is an error.
pub(super) fn mark<'a>(cleaned: &[&'a [u8]]) -> Result<WhiteoutMark<'a>, EntryProblem> {
    let Some((&last, parents)) = cleaned.split_last() else { return Ok(WhiteoutMark::Plain) };
    if parents.iter().any(|name| name.starts_with(AUFS)) {
        return Ok(WhiteoutMark::Leftover);
    }
    if last == OPAQUE {
        return Ok(WhiteoutMark::Opaque);
    }
    if last.starts_with(AUFS) {
        return Ok(WhiteoutMark::Leftover);
    }
    match last.strip_prefix(WHITEOUT) {
        None => Ok(WhiteoutMark::Plain),
        Some(b"" | b"." | b"..") => Err(EntryProblem::WhiteoutOfNothing),
        Some(hidden) => Ok(WhiteoutMark::Whiteout(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_clamps_at_the_root_and_drops_empty_components() {
        for root in ["", "/", ".", "./", "..", "/../..", "a/..", "a/../../"] {
            assert_eq!(clean(root.as_bytes()), Vec::<&[u8]>::new(), "{root}");
        }
        for f in ["f", "/f", "../f", "a/../../f", "./f/", "//f", "a/b/../../f"] {
            assert_eq!(clean(f.as_bytes()), [b"f"], "{f}");
        }
        assert_eq!(clean(b"a/./b//c"), [b"a", b"b", b"c"]);
        assert_eq!(clean(b"..a/...").len(), 2);
    }

    #[test]
    fn limits_hold_at_the_limit_and_fail_one_past_it() {
        let name = [b'n'; 256];
        assert_eq!(check(&[&name[..255]]), Ok(()));
        assert_eq!(check(&[&name]), Err(EntryProblem::NameTooLong { len: 256 }));
        // 16 components of 255 bytes and 16 slashes are 4096 bytes.
        let mut long = vec![&name[..255]; 16];
        assert_eq!(check(&long), Ok(()));
        long[0] = &name[..254];
        long.push(b"ab");
        assert_eq!(check(&long), Err(EntryProblem::PathTooLong { len: 4097 }));
        long[16] = b"a";
        assert_eq!(check(&long), Ok(()));
    }

    #[test]
    fn only_the_last_component_is_a_whiteout() {
        assert_eq!(mark(&clean(b"a/.wh.b")), Ok(WhiteoutMark::Whiteout(b"b")));
        assert_eq!(mark(&clean(b".wh..hidden")), Ok(WhiteoutMark::Whiteout(b".hidden")));
        assert_eq!(mark(&clean(b".wh....")), Ok(WhiteoutMark::Whiteout(b"...")));
        assert_eq!(mark(&clean(b".wh.a/b")), Ok(WhiteoutMark::Plain));
        assert_eq!(mark(&clean(b"a/.wh..wh..opq")), Ok(WhiteoutMark::Opaque));
        assert_eq!(mark(&clean(b".wh")), Ok(WhiteoutMark::Plain));
        assert_eq!(mark(&clean(b"/")), Ok(WhiteoutMark::Plain));
    }

    #[test]
    fn whiteouts_of_nothing_dot_and_dot_dot_are_errors() {
        for name in [".wh.", ".wh..", ".wh...", "a/b/.wh.", "a/.wh...", ".wh./"] {
            assert_eq!(mark(&clean(name.as_bytes())), Err(EntryProblem::WhiteoutOfNothing), "{name}");
        }
    }

    #[test]
    fn bookkeeping_of_aufs_is_known_with_everything_below_it() {
        for name in [".wh..wh.plnk", ".wh..wh.aufs", "a/.wh..wh.orph/b/c", ".wh..wh.", ".wh..wh.plnk/.wh."] {
            assert_eq!(mark(&clean(name.as_bytes())), Ok(WhiteoutMark::Leftover), "{name}");
        }
    }
}
