//! Allocation map of a qcow2 disk, for SEEK_DATA and SEEK_HOLE.
//!
//! Bytes that may be data are not reported as a hole: an invalid entry counts as data, and so does all beyond the
//! limits below. All tables are read once and become a short list of runs, so that a query is one search in memory.

use futures_util::{StreamExt as _, stream};

use super::tables::{ClusterLocation, TableGeometry, number};
use crate::io::concurrency::TABLE_READS;
use crate::io::{ByteRange, ReadError, SharedReader, compute, read_vec};

/// Bytes of L2 tables that are read at most: with clusters of 64 KiB those of 512 GiB of data. In a sound image no
/// two entries name one table, so the size of the file is a limit, too.
const MAX_TABLES: u64 = 64 << 20;
/// Runs that are stored at most, of 16 bytes each.
const MAX_RUNS: usize = 1 << 19;
/// L1 entries per read.
const L1_ENTRIES: u64 = 8192;
/// A larger table is scanned on a blocking thread.
const BLOCKING_TABLE_BYTES: u64 = 64 * 1024;

/// The allocated runs of a disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AllocationMap {
    /// Invariant: ascending, not empty, and not touching.
    runs: Vec<ByteRange>,
    /// The allocated bytes that were found. Invariant: at most those of the runs.
    bytes: u64,
}

impl AllocationMap {
    /// Reads the tables of an image. Fails only on a read error, not on invalid entries.
    pub(super) async fn read(file: &SharedReader, geometry: TableGeometry) -> Result<Self, ReadError> {
        let mut map = Self::default();
        let mut budget = MAX_TABLES.min(file.size());
        for first in (0..geometry.tables()).step_by(L1_ENTRIES as usize) {
            let count = L1_ENTRIES.min(geometry.tables() - first);
            let l1 = read_vec(file, ByteRange::at(geometry.l1().start + first * 8, count * 8)).await?;
            let mut tables = Vec::new();
            for (index, entry) in (first..).zip(l1.chunks_exact(8)) {
                let covered = geometry.table_covers(index);
                match geometry.table(number(entry)) {
                    Ok(None) => {}
                    Ok(Some(table)) if budget >= geometry.cluster() => {
                        budget -= geometry.cluster();
                        tables.push((covered, Some(table)));
                    }
                    _ => tables.push((covered, None)),
                }
            }
            let mut found = stream::iter(tables)
                .map(|(covered, table)| async move {
                    let Some(table) = table else { return Ok(vec![covered]) };
                    let bytes = read_vec(file, ByteRange::at(table, geometry.cluster())).await?;
                    if geometry.cluster() <= BLOCKING_TABLE_BYTES {
                        return Ok(allocated(&geometry, covered, &bytes));
                    }
                    compute(move || Ok(allocated(&geometry, covered, &bytes))).await
                })
                .buffered(TABLE_READS);
            while let Some(runs) = found.next().await {
                runs?.into_iter().for_each(|run| map.add(run));
            }
        }
        map.runs.shrink_to_fit();
        Ok(map)
    }

    /// Appends a run.
    fn add(&mut self, run: ByteRange) {
        self.bytes += run.len();
        push(&mut self.runs, run, MAX_RUNS);
    }

    /// The allocated bytes that were found.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// As [`next_data`](crate::io::ReadAt::next_data).
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        self.at_or_after(offset).map(|run| run.start.max(offset))
    }

    /// As [`next_hole`](crate::io::ReadAt::next_hole).
    pub(super) fn next_hole(&self, offset: u64) -> u64 {
        self.at_or_after(offset).filter(|run| run.start <= offset).map_or(offset, |run| run.end)
    }

    /// The run that contains `offset`, or the next one.
    fn at_or_after(&self, offset: u64) -> Option<&ByteRange> {
        self.runs.get(self.runs.partition_point(|run| run.end <= offset))
    }
}

/// Appends a run. Beyond `most` runs it extends the last one, including the gap between.
fn push(runs: &mut Vec<ByteRange>, run: ByteRange, most: usize) {
    let full = runs.len() >= most;
    match runs.last_mut() {
        Some(last) if full || last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

/// The runs of `covered` that its L2 table marks as allocated.
fn allocated(geometry: &TableGeometry, covered: ByteRange, table: &[u8]) -> Vec<ByteRange> {
    let mut runs = Vec::new();
    let mut at = covered.start;
    while at < covered.end {
        let entry = geometry.read_entry(table, geometry.l2_entry(0, at));
        let (data, end) = match geometry.place(entry, at) {
            Ok((place, end)) => (place != ClusterLocation::Zeros, end),
            Err(_) => (true, (at + geometry.cluster()).min(covered.end)),
        };
        if data {
            push(&mut runs, ByteRange::new(at, end), usize::MAX);
        }
        at = end;
    }
    runs
}
