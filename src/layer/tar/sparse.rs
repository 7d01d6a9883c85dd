//! Sparse files in the three pax formats (0.0, 0.1, 1.0): format detection, and the map of data runs.
//!
//! Maps are checked: a run outside the file, an overlap, or a wrong number of stored bytes is an error. A map costs
//! its own length, whatever the size of the file. The formats are those of GNU tar (tar.info, "Sparse Formats"),
//! read as in Go's `archive/tar`.

use super::super::SparseRun;
use super::error::TarProblem;
use super::header::BLOCK;
use super::pax::{PaxKey, PaxRecords, decimal};

/// The location of the map of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SparseForm {
    /// In the extended header: formats 0.0 and 0.1.
    InHeader,
    /// In front of the content: format 1.0.
    InContent,
}

impl SparseForm {
    /// The format that the records announce. An unknown version gives an ordinary file, as in Go.
    pub(super) fn of(records: &PaxRecords) -> Option<Self> {
        let version = (records.get(PaxKey::SparseMajor), records.get(PaxKey::SparseMinor));
        match version {
            (Some(b"0"), Some(b"0" | b"1")) => Some(Self::InHeader),
            (Some(b"1"), Some(b"0")) => Some(Self::InContent),
            (None, None) if records.get(PaxKey::SparseMap).is_some() => Some(Self::InHeader),
            _ => None,
        }
    }
}

/// A run as recorded: offset and length, not yet checked.
pub(super) type RawRun = (i64, i64);

/// The map of formats 0.0 and 0.1.
pub(super) fn map_in_header(records: &PaxRecords) -> Result<Vec<RawRun>, TarProblem> {
    let bad = || TarProblem::malformed("pax sparse map does not match its number of runs");
    let count = records.number(PaxKey::SparseBlocks)?.ok_or_else(bad)?;
    let mut numbers = Vec::new();
    if let Some(map) = records.get(PaxKey::SparseMap) {
        for number in map.split(|&byte| byte == b',') {
            numbers.push(decimal(number).ok_or_else(bad_number)?);
        }
    }
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || i64::try_from(pairs.len()) != Ok(count) {
        return Err(bad());
    }
    Ok(pairs.iter().map(|&[offset, len]| (offset, len)).collect())
}

fn bad_number() -> TarProblem {
    TarProblem::malformed("pax sparse map holds something that is not a number")
}

/// Collects the map of format 1.0: lines of decimal numbers, the first of them the number of runs, in whole blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MapReader {
    text: Vec<u8>,
    lines: u64,
    /// Number of lines of the map; `None` before the first line is complete.
    expected: Option<u64>,
}

impl MapReader {
    /// Adds the next block of the content. Returns the runs after the last block of the map.
    pub(super) fn push(
        &mut self,
        block: &[u8; BLOCK],
        limit: u64,
    ) -> Result<Option<Vec<RawRun>>, TarProblem> {
        self.text.extend_from_slice(block);
        if self.text.len() as u64 > limit {
            return Err(TarProblem::unsupported(format!("sparse map is over the limit of {limit} bytes")));
        }
        self.lines += block.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let expected = match self.expected {
            Some(expected) => expected,
            None => match self.text.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    let count = decimal(&self.text[..end]).and_then(|count| u64::try_from(count).ok());
                    // A count beyond any archive needs more lines than the limit allows.
                    *self.expected.insert(count.ok_or_else(bad_number)?.saturating_mul(2).saturating_add(1))
                }
                None => return Ok(None),
            },
        };
        if self.lines < expected {
            return Ok(None);
        }
        let mut numbers = self.text.split(|&byte| byte == b'\n').skip(1);
        let mut next = || numbers.next().and_then(decimal).ok_or_else(bad_number);
        let runs = (0..expected / 2).map(|_| Ok((next()?, next()?))).collect::<Result<_, TarProblem>>()?;
        Ok(Some(runs))
    }

    /// Bytes held in memory.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.text.len()
    }
}

/// The checked runs of a file of `size` bytes, of which `stored` are in the stream. Empty runs are removed.
pub(super) fn check(runs: Vec<RawRun>, size: i64, stored: u64) -> Result<(u64, Vec<SparseRun>), TarProblem> {
    let Ok(size) = u64::try_from(size) else {
        return Err(TarProblem::malformed(format!("sparse file has the size {size}")));
    };
    let (mut end, mut sum) = (0, 0);
    let mut checked = Vec::with_capacity(runs.len());
    for (offset, len) in runs {
        let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else {
            return Err(TarProblem::malformed("sparse map holds a negative number"));
        };
        // Both are below 2^63: the sum fits.
        if offset < end || offset + len > size {
            return Err(TarProblem::malformed(format!(
                "run of {len} bytes at {offset} of the sparse map overlaps another or is outside of the {size} bytes"
            )));
        }
        end = offset + len;
        sum += len;
        if len > 0 {
            checked.push(SparseRun { offset, len });
        }
    }
    if sum != stored {
        return Err(TarProblem::malformed(format!("sparse map refers to {sum} bytes, {stored} are stored")));
    }
    Ok((size, checked))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(text: &[u8]) -> Vec<[u8; BLOCK]> {
        text.chunks(BLOCK)
            .map(|chunk| {
                let mut block = [0; BLOCK];
                block[..chunk.len()].copy_from_slice(chunk);
                block
            })
            .collect()
    }

    /// The runs of a 1.0 map and how many blocks it took.
    fn read(text: &[u8], limit: u64) -> Result<Option<(usize, Vec<RawRun>)>, TarProblem> {
        let mut reader = MapReader::default();
        for (at, block) in blocks(text).iter().enumerate() {
            if let Some(runs) = reader.push(block, limit)? {
                return Ok(Some((at + 1, runs)));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_map_ends_with_the_block_of_its_last_line() {
        assert_eq!(read(b"0\n", 512).unwrap(), Some((1, vec![])));
        assert_eq!(read(b"1\n0\n5\n9\n", 512).unwrap(), Some((1, vec![(0, 5)])));
        let long = format!("{:0600}\n7\n8\n", 1);
        assert_eq!(read(long.as_bytes(), 1024).unwrap(), Some((2, vec![(7, 8)])));
        assert!(matches!(read(long.as_bytes(), 1023), Err(TarProblem::Unsupported(_))));
        assert_eq!(read(b"9223372036854775807\n", 512).unwrap(), None);
        for bad in [&b"-1\n"[..], b"x\n", b"\n", b"1\n0\nx\n", b"1\n\n1\n", b"9223372036854775808\n"] {
            assert!(matches!(read(bad, 512), Err(TarProblem::Malformed(_))), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn sparse_runs_are_ordered_bounded_and_use_all_stored_bytes() {
        let run = |offset, len| SparseRun { offset, len };
        assert_eq!(check(vec![(0, 2), (2, 0), (5, 5)], 10, 7), Ok((10, vec![run(0, 2), run(5, 5)])));
        assert_eq!(check(vec![(10, 0)], 10, 0), Ok((10, vec![])));
        let max = i64::MAX;
        let bad = [
            (vec![(0, 3), (2, 2)], 10, 5),
            (vec![(5, 2), (0, 2)], 10, 4),
            (vec![(9, 2)], 10, 2),
            (vec![(max, max)], max, max as u64),
            (vec![(-1, 1)], 10, 1),
            (vec![(1, -1)], 10, 0),
            (vec![(0, 5)], 10, 4),
            (vec![(0, 5)], 10, 6),
            (vec![], -1, 0),
        ];
        for (runs, size, stored) in bad {
            assert!(check(runs.clone(), size, stored).is_err(), "{runs:?} {size} {stored}");
        }
    }
}
