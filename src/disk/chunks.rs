//! Chunked disks: parts ordered by annotations with offset, number and size.
//!
//! A gap is not bridged, and claims that contradict each other yield no disk. Offsets take precedence, then numbers,
//! then the order of the manifest. Every packaging that cuts disks converts its annotations into [`DiskChunk`]s, so the
//! rules exist once.

use std::collections::BTreeMap;

use crate::oci::{Digest, Manifest};

use super::{DiskPacking, MAX_PARTS, PartPlan};

/// One layer and the claims about it.
#[derive(Clone, Debug)]
pub(super) struct DiskChunk {
    pub(super) layer: usize,
    pub(super) packing: DiskPacking,
    /// Its offset on the disk; `None` when not claimed.
    pub(super) offset: Option<u64>,
    /// Its number, from 0 or from 1; `None` when not claimed.
    pub(super) number: Option<u64>,
    /// Bytes of the disk in it; `None` when not claimed.
    pub(super) size: Option<u64>,
    /// The digest of these bytes; `None` when not claimed.
    pub(super) content: Option<Digest>,
}

/// Claims about the whole disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiskClaims {
    /// The number of chunks; `None` when not claimed.
    pub(super) chunks: Option<u64>,
    /// Bytes of the disk; `None` when not claimed.
    pub(super) size: Option<u64>,
}

impl DiskChunk {
    /// A chunk without claims.
    pub(super) fn bare(layer: usize, packing: DiskPacking) -> Self {
        Self { layer, packing, offset: None, number: None, size: None, content: None }
    }
}

/// The chunks in order, each with its size as far as that is known; or why they form no disk.
pub(super) fn tile(
    manifest: &Manifest,
    mut chunks: Vec<DiskChunk>,
    whole: DiskClaims,
) -> Result<Vec<PartPlan>, String> {
    if chunks.len() > MAX_PARTS {
        return Err(format!("{} parts are more than the limit of {MAX_PARTS}", chunks.len()));
    }
    if let Some(claimed) = whole.chunks.filter(|claimed| *claimed != chunks.len() as u64) {
        return Err(format!("it has {} parts, the manifest states {claimed}", chunks.len()));
    }
    for chunk in &mut chunks {
        if chunk.packing == DiskPacking::Stored {
            let stored = manifest.layers.get(chunk.layer).map(|layer| layer.size);
            if let (Some(claimed), Some(stored)) = (chunk.size, stored)
                && claimed != stored
            {
                let layer = chunk.layer;
                return Err(format!("layer {layer} has {stored} bytes, and claims {claimed}"));
            }
            chunk.size = stored;
        }
    }
    let numbers = chunks.iter().filter(|chunk| chunk.number.is_some()).count();
    if numbers > 0 {
        by_number(&mut chunks, numbers)?;
    }
    let offsets = chunks.iter().filter(|chunk| chunk.offset.is_some()).count();
    if offsets > 0 {
        by_offset(&mut chunks, offsets, whole)?;
    }
    let sum = chunks.iter().try_fold(0u64, |sum, chunk| sum.checked_add(chunk.size?));
    let known = chunks.iter().all(|chunk| chunk.size.is_some());
    if let Some(claimed) = whole.size.filter(|claimed| known && sum != Some(*claimed)) {
        let sum = sum.map_or_else(|| "more than 2^64".to_owned(), |sum| sum.to_string());
        return Err(format!("its parts have {sum} bytes together, the manifest states {claimed}"));
    }
    let part = |chunk: DiskChunk| PartPlan {
        layer: chunk.layer,
        packing: chunk.packing,
        size: chunk.size,
        content: chunk.content,
    };
    Ok(chunks.into_iter().map(part).collect())
}

/// Sorts by number, if every chunk has one and none is missing.
fn by_number(chunks: &mut [DiskChunk], numbered: usize) -> Result<(), String> {
    if numbered < chunks.len() {
        return Err("some of its parts have a number and some have none".into());
    }
    chunks.sort_by_key(|chunk| (chunk.number, chunk.layer));
    let first = chunks.first().and_then(|chunk| chunk.number).unwrap_or_default();
    if first > 1 {
        return Err(format!("its first part has the number {first}: the parts before it are missing"));
    }
    for pair in chunks.windows(2) {
        let (before, after) = (pair[0].number.unwrap_or_default(), pair[1].number.unwrap_or_default());
        if before == after {
            return Err(format!("two parts have the number {before}"));
        }
        if before.checked_add(1) != Some(after) {
            return Err(format!("a part is missing between the numbers {before} and {after}"));
        }
    }
    Ok(())
}

/// Sorts by offset, and derives missing sizes from the offset of the next chunk.
fn by_offset(chunks: &mut [DiskChunk], placed: usize, whole: DiskClaims) -> Result<(), String> {
    if placed < chunks.len() {
        return Err("some of its parts have an offset and some have none".into());
    }
    chunks.sort_by_key(|chunk| (chunk.offset, chunk.size, chunk.layer));
    let first = chunks.first().and_then(|chunk| chunk.offset).unwrap_or_default();
    if first > 0 {
        return Err(format!("no part has its first {first} bytes"));
    }
    let ends: Vec<Option<u64>> =
        chunks.iter().skip(1).map(|chunk| chunk.offset).chain([whole.size]).collect();
    for (chunk, end) in chunks.iter_mut().zip(ends) {
        let Some(end) = end else { continue };
        let start = chunk.offset.unwrap_or_default();
        let room = end
            .checked_sub(start)
            .ok_or_else(|| format!("a part begins at {start}, the manifest states a disk of {end} bytes"))?;
        match chunk.size {
            Some(size) if size > room => {
                return Err(format!(
                    "its parts overlap: the one at {start} has {size} bytes, and {end} is next"
                ));
            }
            Some(size) if size < room => {
                return Err(format!(
                    "its parts have a gap: the one at {start} has {size} bytes, and {end} is next"
                ));
            }
            _ => chunk.size = Some(room),
        }
    }
    Ok(())
}

/// The number in an annotation; `None` without the annotation.
pub(super) fn number(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>, String> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    parse(text).map(Some).ok_or_else(|| format!("{key} is {:?} and no number", shown(text)))
}

/// The digest in an annotation; `None` without the annotation.
pub(super) fn digest(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<Digest>, String> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    let digest = text.parse::<Digest>().ok().filter(|digest| digest.algorithm().is_some());
    digest.map(Some).ok_or_else(|| format!("{key} is {:?} and no digest that can be checked", shown(text)))
}

/// Digits and nothing else.
pub(super) fn parse(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Foreign text, shortened for a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::artifact;
    use super::*;

    fn at(layer: usize, offset: u64, size: Option<u64>) -> DiskChunk {
        DiskChunk { offset: Some(offset), size, ..DiskChunk::bare(layer, DiskPacking::Packed) }
    }

    fn sizes(chunks: Vec<DiskChunk>, whole: DiskClaims) -> Result<Vec<(usize, Option<u64>)>, String> {
        let parts = tile(&artifact([]), chunks, whole)?;
        Ok(parts.iter().map(|part| (part.layer, part.size)).collect())
    }

    #[test]
    fn chunk_offsets_give_order_and_sizes() {
        let chunks = vec![at(0, 20, None), at(1, 0, None), at(2, 5, Some(15))];
        let found = sizes(chunks.clone(), DiskClaims::default()).unwrap();
        assert_eq!(found, [(1, Some(5)), (2, Some(15)), (0, None)]);
        let whole = DiskClaims { size: Some(21), ..DiskClaims::default() };
        assert_eq!(sizes(chunks, whole).unwrap()[2], (0, Some(1)));
    }

    #[test]
    fn offsets_that_do_not_tile_are_no_disk() {
        let whole = DiskClaims::default();
        let reason = |chunks, whole| sizes(chunks, whole).unwrap_err();
        assert!(reason(vec![at(0, 0, Some(5)), at(1, 6, None)], whole).contains("gap: the one at 0 has 5"));
        assert!(reason(vec![at(0, 0, Some(7)), at(1, 6, None)], whole).contains("overlap"));
        assert!(reason(vec![at(0, 1, None)], whole).contains("no part has its first 1 bytes"));
        assert!(reason(vec![at(0, 0, Some(3)), at(1, 0, Some(3))], whole).contains("overlap"));
        let short = DiskClaims { size: Some(4), ..whole };
        assert!(reason(vec![at(0, 0, None), at(1, 6, None)], short).contains("begins at 6"));
        let mixed = vec![at(0, 0, None), DiskChunk::bare(1, DiskPacking::Packed)];
        assert!(reason(mixed, whole).contains("some have none"));
    }

    #[test]
    fn numbers_are_complete_from_zero_or_one() {
        let chunk =
            |layer, number| DiskChunk { number: Some(number), ..DiskChunk::bare(layer, DiskPacking::Packed) };
        let of = |numbers: &[u64]| {
            let chunks = numbers.iter().enumerate().map(|(layer, number)| chunk(layer, *number));
            sizes(chunks.collect(), DiskClaims::default())
        };
        let layers = |found: Vec<(usize, Option<u64>)>| found.iter().map(|part| part.0).collect::<Vec<_>>();
        assert_eq!(layers(of(&[10, 2, 1, 3, 4, 5, 6, 7, 8, 9]).unwrap()), [2, 1, 3, 4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(layers(of(&[1, 0]).unwrap()), [1, 0]);
        assert!(of(&[0, 2]).unwrap_err().contains("between the numbers 0 and 2"));
        assert!(of(&[2, 3]).unwrap_err().contains("before it are missing"));
        assert!(of(&[1, 1]).unwrap_err().contains("two parts have the number 1"));
        assert!(of(&[1, u64::MAX]).is_err());
    }

    #[test]
    fn claims_of_the_whole_are_compared() {
        let one = || vec![at(0, 0, Some(4))];
        let whole = |chunks, size| DiskClaims { chunks, size };
        assert!(sizes(one(), whole(Some(1), Some(4))).is_ok());
        assert!(sizes(one(), whole(Some(2), None)).unwrap_err().contains("manifest states 2"));
        assert!(sizes(one(), whole(None, Some(5))).is_err());
        let bare = vec![DiskChunk { size: Some(4), ..DiskChunk::bare(0, DiskPacking::Packed) }];
        assert!(sizes(bare, whole(None, Some(5))).unwrap_err().contains("4 bytes together"));
    }

    #[test]
    fn a_stored_part_that_claims_another_size_is_no_disk() {
        let manifest = artifact(["a"]);
        let claims = |size| vec![DiskChunk { size: Some(size), ..DiskChunk::bare(0, DiskPacking::Stored) }];
        assert!(tile(&manifest, claims(4), DiskClaims::default()).is_ok());
        assert!(tile(&manifest, claims(5), DiskClaims::default()).unwrap_err().contains("claims 5"));
    }

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        let value = |text: &str| number(&[("k".to_owned(), text.to_owned())].into(), "k");
        assert_eq!(value("18446744073709551615"), Ok(Some(u64::MAX)));
        for text in ["", "-1", "+1", "0x1", "1 ", "18446744073709551616"] {
            assert!(value(text).is_err(), "{text:?}");
        }
        assert_eq!(number(&BTreeMap::new(), "k"), Ok(None));
        assert!(value(&"9".repeat(4000)).unwrap_err().len() < 200);
    }

    proptest! {
        /// What tiles is what was cut, in whatever order it comes; and with all sizes known no chunk can be left out.
        #[test]
        fn tiled_chunks_cover_the_disk_once(cuts in prop::collection::vec(1u64..9, 2..12), shift in 0usize..12) {
            let mut start = 0;
            let mut chunks = Vec::new();
            for (layer, len) in cuts.iter().enumerate() {
                chunks.push(at(layer, start, Some(*len)));
                start += len;
            }
            chunks.rotate_left(shift % cuts.len());
            let whole = DiskClaims { chunks: Some(cuts.len() as u64), size: Some(start) };
            let expected: Vec<_> = cuts.iter().enumerate().map(|(layer, len)| (layer, Some(*len))).collect();
            prop_assert_eq!(sizes(chunks.clone(), whole), Ok(expected));
            chunks.pop();
            let whole = DiskClaims { chunks: None, ..whole };
            prop_assert!(sizes(chunks, whole).is_err());
        }
    }
}
