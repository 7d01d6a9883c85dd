//! Files of a machine snapshot: sparse layers with a map in the config.
//!
//! Packed bytes are not shown under the name of their file. A map whose runs add up to the layer is trusted, because
//! it can only add zeros. Any other map is reported, and the layer is shown as stored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::oci::go_json::{document, of_value};

/// The config's records of the files.
#[derive(Debug, Default)]
pub(super) struct SnapshotFiles {
    /// Removed when used: two layers cannot both be one file, and a long map is stored once.
    files: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct SnapshotConfig {
    #[serde(default)]
    files: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordedFile {
    #[serde(default)]
    mode: i64,
    #[serde(default)]
    sparse_map: Option<Value>,
    #[serde(default)]
    sparse_size: i64,
}

/// One run of the map.
#[derive(Deserialize)]
struct RecordedRun {
    #[serde(rename = "o")]
    offset: u64,
    #[serde(rename = "l")]
    len: u64,
}

/// The storage of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StorageForm {
    /// Permission bits; `None` when not recorded.
    pub(super) mode: Option<u16>,
    /// Size of the file and its runs; `None` when the layer has the whole file.
    pub(super) sparse: Option<(u64, Vec<(u64, u64)>)>,
}

impl SnapshotFiles {
    /// Parses the config.
    pub(super) fn parse(config: &[u8]) -> Result<Self, String> {
        let config: SnapshotConfig =
            document(config).map_err(|error| format!("the config is not understood: {error}"))?;
        Ok(Self { files: config.files.unwrap_or_default() })
    }

    /// The storage of the file `name` in a layer of `size` bytes; or why it is unknown.
    pub(super) fn take(&mut self, name: &str, size: u64) -> Result<StorageForm, String> {
        let Some(value) = self.files.remove(name) else {
            return Err("the config names no packing".into());
        };
        let recorded: RecordedFile =
            of_value(value).map_err(|error| format!("its entry in the config is not understood: {error}"))?;
        let mode = Some((recorded.mode & 0o7777) as u16).filter(|mode| *mode != 0);
        let map = match recorded.sparse_map {
            None | Some(Value::Null) => return Ok(StorageForm { mode, sparse: None }),
            Some(Value::String(text)) if text.is_empty() => return Ok(StorageForm { mode, sparse: None }),
            Some(Value::String(text)) => parse_map(&text)?,
            Some(map) => segments(of_value(map))?,
        };
        let whole = u64::try_from(recorded.sparse_size)
            .map_err(|_| format!("its size is {} bytes", recorded.sparse_size))?;
        Ok(StorageForm { mode, sparse: Some((whole, check(map, whole, size)?)) })
    }
}

/// Parses a map: JSON with `o` and `l` in every segment, or comma-separated offsets and lengths.
fn parse_map(text: &str) -> Result<Vec<(u64, u64)>, String> {
    let text = text.trim();
    if text.starts_with('[') || text == "null" {
        return segments(document(text.as_bytes()));
    }
    let numbers = text.split(',').map(|number| number.trim().parse());
    let numbers: Vec<u64> =
        numbers.collect::<Result<_, _>>().map_err(|error| format!("its map is not understood: {error}"))?;
    if !numbers.len().is_multiple_of(2) {
        return Err("its map has an offset without a length".into());
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn segments(parsed: Result<Option<Vec<RecordedRun>>, serde_json::Error>) -> Result<Vec<(u64, u64)>, String> {
    let segments = parsed.map_err(|error| format!("its map is not understood: {error}"))?.unwrap_or_default();
    Ok(segments.into_iter().map(|RecordedRun { offset, len }| (offset, len)).collect())
}

/// Checks a map: runs ascending and inside the file, with as many bytes as the layer. Adjacent runs are merged.
fn check(map: Vec<(u64, u64)>, whole: u64, stored: u64) -> Result<Vec<(u64, u64)>, String> {
    let mut runs: Vec<(u64, u64)> = Vec::with_capacity(map.len());
    let (mut end, mut sum) = (0, 0_u64);
    for (offset, len) in map {
        if offset < end {
            return Err(format!("its map goes back from {end} to {offset}"));
        }
        end = offset
            .checked_add(len)
            .filter(|end| *end <= whole)
            .ok_or_else(|| format!("its map has {len} bytes at {offset}, but the file {whole} in all"))?;
        // No overflow: the runs so far are disjoint and end before `whole`.
        sum += len;
        match runs.last_mut() {
            _ if len == 0 => {}
            Some((start, before)) if *start + *before == offset => *before += len,
            _ => runs.push((offset, len)),
        }
    }
    if sum != stored {
        return Err(format!("its map has {sum} bytes of data, and the layer {stored}"));
    }
    Ok(runs)
}
