//! Segmented files: files split into layers, each with its byte range.
//!
//! Segments that do not tile their file stay separate; gaps and overlaps are errors. Sorted by start, each segment
//! has to start at the end of those before it. A range is the first and the last byte, both included. A segment may
//! be compressed on its own (geranos, `pkg/filesegment`), so its range gives its size, and not the layer.

use std::collections::{BTreeMap, BTreeSet};

use crate::oci::Manifest;

use super::contents::FileSegment;
use super::names::SEGMENT_OF;
use super::shown;

/// The annotation with the byte range of a layer: `first-last`.
const RANGE: &str = "range";

/// The segments of a manifest.
#[derive(Debug, Default)]
pub(super) struct FileSegments {
    /// Layers of one file, in order, by the first of them in the manifest.
    pub(super) joined: BTreeMap<usize, Vec<FileSegment>>,
    /// All the layers in `joined`.
    pub(super) pieces: BTreeSet<usize>,
    /// Layers of files that cannot be joined, ascending.
    pub(super) loose: Vec<usize>,
    /// Reasons for the `loose` layers.
    pub(super) reports: Vec<String>,
}

/// Groups the segments of a manifest by file.
pub(super) fn segments(manifest: &Manifest) -> FileSegments {
    let mut files: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    for (number, layer) in manifest.layers.iter().enumerate() {
        if let (Some(name), Some(range)) = (layer.annotations.get(SEGMENT_OF), layer.annotations.get(RANGE)) {
            files.entry(name).or_default().push((number, range));
        }
    }
    let mut found = FileSegments::default();
    for (name, pieces) in files {
        match join(&pieces) {
            Ok(order) => {
                found.pieces.extend(order.iter().map(|segment| segment.layer));
                found.joined.insert(pieces[0].0, order);
            }
            Err(reason) => {
                found.loose.extend(pieces.iter().map(|(number, _)| *number));
                found.reports.push(format!("{}: its layers are shown one by one: {reason}", shown(name)));
            }
        }
    }
    found.loose.sort_unstable();
    found
}

/// The segments in order of their ranges, which have to tile.
fn join(pieces: &[(usize, &str)]) -> Result<Vec<FileSegment>, String> {
    let mut placed = Vec::with_capacity(pieces.len());
    for &(number, range) in pieces {
        let place =
            parse(range).and_then(|(first, last)| Some((first, last.checked_sub(first)?.checked_add(1)?)));
        let (start, size) =
            place.ok_or_else(|| format!("layer {number}: the range {} is invalid", shown(range)))?;
        placed.push((start, size, number));
    }
    placed.sort_unstable();
    let mut end = 0_u64;
    for &(start, size, number) in &placed {
        if start != end {
            return Err(format!("layer {number} starts at {start}, the one before it ends at {end}"));
        }
        end = end.checked_add(size).filter(|end| *end < 1 << 63).ok_or("they are larger than any file")?;
    }
    Ok(placed.into_iter().map(|(_, size, layer)| FileSegment { layer, size }).collect())
}

fn parse(range: &str) -> Option<(u64, u64)> {
    let (start, stop) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, stop.trim().parse().ok()?))
}
