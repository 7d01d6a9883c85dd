//! Pax extended header: consecutive records of the form `length keyword=value\n`.
//!
//! Syntax is checked when the header is read, and values when their entry comes, as in Go's `archive/tar`: records
//! without a following entry have no effect. An unreadable record is an error, never skipped.

use std::collections::HashMap;

use super::super::{UnixTime, XattrPair};
use super::error::TarProblem;

/// The supported records of one extended header; all others are only checked for syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxRecords {
    values: Vec<(PaxKey, Vec<u8>)>,
    /// `SCHILY.xattr.*`, without that prefix.
    pub(super) xattrs: Vec<XattrPair>,
}

/// The supported keywords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PaxKey {
    Path,
    Linkpath,
    Size,
    Uid,
    Gid,
    Mtime,
    Atime,
    Ctime,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    SparseRealSize,
    SparseBlocks,
    /// The map of format 0.1. Those of format 0.0, with one record per number, are converted to it.
    SparseMap,
}

/// Prefix of extended attributes; the reference appliers know no other.
pub(in crate::layer) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Keywords of sparse format 0.0, which repeats them once per run.
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_BYTES: &[u8] = b"GNU.sparse.numbytes";

impl PaxKey {
    fn parse(keyword: &[u8]) -> Option<Self> {
        Some(match keyword {
            b"path" => Self::Path,
            b"linkpath" => Self::Linkpath,
            b"size" => Self::Size,
            b"uid" => Self::Uid,
            b"gid" => Self::Gid,
            b"mtime" => Self::Mtime,
            b"atime" => Self::Atime,
            b"ctime" => Self::Ctime,
            b"GNU.sparse.major" => Self::SparseMajor,
            b"GNU.sparse.minor" => Self::SparseMinor,
            b"GNU.sparse.name" => Self::SparseName,
            b"GNU.sparse.size" => Self::SparseSize,
            b"GNU.sparse.realsize" => Self::SparseRealSize,
            b"GNU.sparse.numblocks" => Self::SparseBlocks,
            b"GNU.sparse.map" => Self::SparseMap,
            _ => return None,
        })
    }

    fn keyword(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Linkpath => "linkpath",
            Self::Size => "size",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Mtime => "mtime",
            Self::Atime => "atime",
            Self::Ctime => "ctime",
            Self::SparseMajor => "GNU.sparse.major",
            Self::SparseMinor => "GNU.sparse.minor",
            Self::SparseName => "GNU.sparse.name",
            Self::SparseSize => "GNU.sparse.size",
            Self::SparseRealSize => "GNU.sparse.realsize",
            Self::SparseBlocks => "GNU.sparse.numblocks",
            Self::SparseMap => "GNU.sparse.map",
        }
    }
}

impl PaxRecords {
    /// Reads the content of an extended header.
    pub(super) fn parse(mut rest: &[u8]) -> Result<Self, TarProblem> {
        let mut records = Self::default();
        // Index of each extended attribute: the last value of a repeated keyword counts, as in every reader.
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        let mut map: Vec<&[u8]> = Vec::new();
        while !rest.is_empty() {
            let PaxRecord { keyword, value, rest: after } = record(rest)?;
            rest = after;
            if keyword == SPARSE_OFFSET || keyword == SPARSE_BYTES {
                let expected = if map.len().is_multiple_of(2) { SPARSE_OFFSET } else { SPARSE_BYTES };
                if keyword != expected || value.contains(&b',') {
                    return Err(TarProblem::malformed("pax records of a sparse map are out of order"));
                }
                map.push(value);
                continue;
            }
            if let Some(key) = PaxKey::parse(keyword) {
                records.values.retain(|(known, _)| *known != key);
                records.values.push((key, value.to_vec()));
            } else if let Some(name) = keyword.strip_prefix(XATTR) {
                match places.get(name) {
                    Some(&place) => records.xattrs[place].1 = value.to_vec(),
                    None => {
                        places.insert(name, records.xattrs.len());
                        records.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        records.xattrs.retain(has_value);
        if !map.is_empty() {
            records.values.retain(|(key, _)| *key != PaxKey::SparseMap);
            records.values.push((PaxKey::SparseMap, map.join(&b","[..])));
        }
        Ok(records)
    }

    /// The value of `key`. In POSIX an empty value means that the header block's own field counts.
    pub(super) fn get(&self, key: PaxKey) -> Option<&[u8]> {
        let (_, value) = self.values.iter().find(|(found, _)| *found == key)?;
        (!value.is_empty()).then_some(value)
    }

    /// The number in `key`: decimal, with an optional sign.
    pub(super) fn number(&self, key: PaxKey) -> Result<Option<i64>, TarProblem> {
        self.get(key).map(|value| decimal(value).ok_or_else(|| bad_value(key, value))).transpose()
    }

    /// The time in `key`.
    pub(super) fn time(&self, key: PaxKey) -> Result<Option<UnixTime>, TarProblem> {
        self.get(key).map(|value| time(value).ok_or_else(|| bad_value(key, value))).transpose()
    }
}

/// Whether an extended attribute is there: an empty value deletes a record (POSIX, pax "Extended Header"), and Go's
/// archive/tar, which all appliers of layers use, drops the attribute.
pub(in crate::layer) fn has_value((_, value): &XattrPair) -> bool {
    !value.is_empty()
}

/// A decimal number of 63 bits with an optional sign.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn bad_value(key: PaxKey, value: &[u8]) -> TarProblem {
    let value = shown(value);
    TarProblem::malformed(format!("pax record {} has the value \"{}\"", key.keyword(), value.escape_debug()))
}

/// A foreign text, shortened for a message.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned()
}

/// Parses `seconds[.fraction]`. The sign applies to both, and digits past the nanoseconds are cut off.
fn time(text: &[u8]) -> Option<UnixTime> {
    let dot = text.iter().position(|&byte| byte == b'.');
    let (seconds, fraction) = dot.map_or((text, &[][..]), |dot| (&text[..dot], &text[dot + 1..]));
    let secs = decimal(seconds)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, at| nanos * 10 + digit(at));
    if nanos > 0 && seconds.starts_with(b"-") {
        return Some(UnixTime { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(UnixTime { secs, nanos })
}

/// A record, and the bytes after it.
struct PaxRecord<'a> {
    keyword: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

/// The first record of `bytes`.
fn record(bytes: &[u8]) -> Result<PaxRecord<'_>, TarProblem> {
    let bad = |what| TarProblem::malformed(format!("pax record {what}"));
    let blank = bytes.iter().position(|&byte| byte == b' ').ok_or_else(|| bad("has no length"))?;
    let len = decimal(&bytes[..blank]).ok_or_else(|| bad("has no length"))?;
    let len = usize::try_from(len).ok().filter(|&len| len >= 5 && len > blank + 1);
    let len = len.ok_or_else(|| bad("is shorter than its length"))?;
    let Some((record, rest)) = bytes.split_at_checked(len) else {
        return Err(bad("is longer than its header"));
    };
    let Some((b'\n', text)) = record[blank + 1..].split_last() else {
        return Err(bad("does not end with a newline"));
    };
    let equals = text.iter().position(|&byte| byte == b'=').ok_or_else(|| bad("has no equals sign"))?;
    let (keyword, value) = (&text[..equals], &text[equals + 1..]);
    if keyword.is_empty() {
        return Err(bad("has no keyword"));
    }
    // ustar strings end at a NUL, so a NUL in one would give a file two names; in other values it is data.
    let text = matches!(keyword, b"path" | b"linkpath" | b"uname" | b"gname");
    if if text { value.contains(&0) } else { keyword.contains(&0) } {
        return Err(bad("holds a NUL"));
    }
    Ok(PaxRecord { keyword, value, rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_is_checked_as_go_checks_it() {
        let good: &[&[u8]] = &[
            b"",
            b"6 k=v\n",
            b"+7 k=v\n",
            b"008 k=v\n",
            b"9 path=a\n",
            b"5 k=\n",
            b"9 k=va\0l\n",
            b"6 k==\n5 q=\n",
        ];
        for text in good {
            assert!(PaxRecords::parse(text).is_ok(), "{}", text.escape_ascii());
        }
        let bad: &[&[u8]] = &[
            b"\0",
            b"6 k=v\n\0",
            b"7 k=v\n",
            b"5 k=v\n",
            b"4 =v\n",
            b"6 =vv\n",
            b"6 kvv\n",
            b"-6 k=v\n",
            b"99999999999999999999 k=v\n",
            b"7 k=v",
            b"k=v\n",
            b"11 path=a\0b\n",
            b"8 k\0y=v\n",
            b"25 GNU.sparse.numbytes=1\n",
            b"000005 \n",
            b"0000005 k=v\n",
        ];
        for text in bad {
            assert!(PaxRecords::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn the_last_of_a_repeated_keyword_counts() {
        let records = PaxRecords::parse(
            b"10 size=1\n10 size=2\n9 path=a\n22 SCHILY.xattr.u.a=1\n22 SCHILY.xattr.u.b=1\n22 SCHILY.xattr.u.a=2\n8 path=\n",
        )
        .unwrap();
        assert_eq!(records.number(PaxKey::Size), Ok(Some(2)));
        assert_eq!(records.get(PaxKey::Path), None, "an empty value takes an earlier one away");
        assert_eq!(records.xattrs, [(b"u.a".to_vec(), b"2".to_vec()), (b"u.b".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn times_have_a_sign_and_nanoseconds() {
        let cases = [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1350244992.02396010899", Some((1_350_244_992, 23_960_108))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-0.0000000001", Some((0, 0))),
            ("+1.5", Some((1, 500_000_000))),
            ("-9223372036854775808", Some((i64::MIN, 0))),
            ("-9223372036854775808.1", None),
            ("9223372036854775808", None),
            (".5", None),
            ("1.-5", None),
            ("1.5.5", None),
            ("1e3", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(secs, nanos)| UnixTime { secs, nanos });
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
