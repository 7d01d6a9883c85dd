//! Writes zTOCs as the soci-snapshotter does: the same fields in the same order, so that the bytes are the same.
//!
//! Nothing of the product is used: entries come from the `tar` crate, checkpoints from [`zran`](crate::zran), and the bytes
//! from the flatbuffers crate. `the_writer_gives_the_bytes_of_the_real_tool` holds it to a digest from the tool's own tests.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::Read as _;

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, VOffsetT, Vector, WIPOffset};
use sha2::{Digest as _, Sha256};

use crate::zran::{self, Members, Point};

/// The value of the schema's enumeration of algorithms that is its default.
pub(crate) const GZIP: i8 = 1;
/// The other one.
pub(crate) const UNCOMPRESSED: i8 = 2;

/// Bytes of a point in a blob of checkpoints.
pub(crate) const PACKED_POINT: usize = 8 + 8 + 1 + 32 * 1024;

/// A zTOC before it is written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ztoc {
    pub(crate) version: String,
    pub(crate) tool: String,
    pub(crate) compressed: i64,
    pub(crate) uncompressed: i64,
    pub(crate) files: Vec<File>,
    pub(crate) algorithm: Option<i8>,
    pub(crate) max_span: i32,
    pub(crate) digests: Vec<String>,
    pub(crate) checkpoints: Vec<u8>,
    /// How often the last of `files` is named once more: what no tool does, and a hostile author might.
    pub(crate) repeat_file: usize,
}

/// One entry of a table of contents.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: String,
    pub(crate) offset: i64,
    pub(crate) size: i64,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: i64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: String,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    /// All pax records, sorted by keyword.
    pub(crate) records: Vec<(Vec<u8>, Vec<u8>)>,
    /// As `repeat_file`, for the last of `records`.
    pub(crate) repeat_record: usize,
}

impl Ztoc {
    /// The zTOC of a gzip layer, with spans of more than `span` bytes.
    pub(crate) fn of_gzip(gzip: &[u8], span: u64, members: Members) -> Self {
        let mut stream = Vec::new();
        flate2::read::MultiGzDecoder::new(gzip).read_to_end(&mut stream).unwrap();
        let points = zran::points(gzip, span, members);
        let starts = points.iter().map(|point| point.stored - u64::from(point.bits > 0));
        let ends = points.iter().skip(1).map(|point| point.stored).chain([gzip.len() as u64]);
        Self {
            checkpoints: pack(&points, points.len(), span),
            digests: starts.zip(ends).map(|(start, end)| digest(gzip, start, end)).collect(),
            max_span: points.len() as i32 - 1,
            algorithm: Some(GZIP),
            ..Self::of_tar(&stream, gzip.len())
        }
    }

    /// The zTOC of an uncompressed layer.
    pub(crate) fn of_plain(stream: &[u8], span: u64) -> Self {
        let size = stream.len() as u64;
        let starts = (0..size).step_by(span as usize);
        let mut checkpoints = 2i32.to_le_bytes().to_vec();
        checkpoints.extend([span, size].iter().flat_map(|number| number.to_le_bytes()));
        Self {
            checkpoints,
            digests: starts.map(|start| digest(stream, start, size.min(start + span))).collect(),
            max_span: size.div_ceil(span) as i32 - 1,
            algorithm: Some(UNCOMPRESSED),
            ..Self::of_tar(stream, stream.len())
        }
    }

    fn of_tar(stream: &[u8], stored: usize) -> Self {
        let (files, end) = files(stream);
        Self {
            version: "0.9".into(),
            tool: "AWS SOCI CLI v0.2".into(),
            compressed: stored as i64,
            // The tool's reader stops after the two blocks that end an archive.
            uncompressed: stream.len().min(end + 1024) as i64,
            files,
            ..Self::default()
        }
    }

    /// The bytes.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut fb = FlatBufferBuilder::new();
        let version = fb.create_byte_string(self.version.as_bytes());
        let tool = fb.create_byte_string(self.tool.as_bytes());
        let mut files: Vec<_> = self.files.iter().rev().map(|file| file.write(&mut fb)).collect();
        files.reverse();
        files.extend(
            files.last().copied().into_iter().flat_map(|last| std::iter::repeat_n(last, self.repeat_file)),
        );
        let files = tables(&mut fb, &files);
        let table = fb.start_table();
        fb.push_slot_always(slot(0), files);
        let toc = fb.end_table(table);
        let checkpoints = fb.create_vector(&self.checkpoints);
        let digests: Vec<_> =
            self.digests.iter().map(|text| fb.create_byte_string(text.as_bytes())).collect();
        fb.start_vector::<WIPOffset<&[u8]>>(digests.len());
        for digest in digests.iter().rev() {
            fb.push(*digest);
        }
        let digests = fb.end_vector::<WIPOffset<&[u8]>>(digests.len());
        let table = fb.start_table();
        fb.push_slot(slot(1), self.max_span, 0);
        fb.push_slot_always(slot(2), digests);
        fb.push_slot_always(slot(3), checkpoints);
        if let Some(algorithm) = self.algorithm {
            fb.push_slot(slot(0), algorithm, GZIP);
        }
        let info = fb.end_table(table);
        let table = fb.start_table();
        fb.push_slot_always(slot(0), version);
        fb.push_slot_always(slot(1), tool);
        fb.push_slot_always(slot(4), toc);
        fb.push_slot(slot(2), self.compressed, 0);
        fb.push_slot(slot(3), self.uncompressed, 0);
        fb.push_slot_always(slot(5), info);
        let root = fb.end_table(table);
        fb.finish_minimal(root);
        fb.finished_data().to_vec()
    }
}

impl File {
    fn write<'b>(&self, fb: &mut FlatBufferBuilder<'b>) -> WIPOffset<UnionWIPOffset> {
        let name = fb.create_byte_string(&self.name);
        let kind = fb.create_byte_string(self.kind.as_bytes());
        let link = fb.create_byte_string(&self.link);
        let (uname, gname) = (fb.create_byte_string(b""), fb.create_byte_string(b""));
        let mtime = fb.create_byte_string(self.mtime.as_bytes());
        let mut records = Vec::new();
        for (key, value) in &self.records {
            let (key, value) = (fb.create_byte_string(key), fb.create_byte_string(value));
            let table = fb.start_table();
            fb.push_slot_always(slot(0), key);
            fb.push_slot_always(slot(1), value);
            records.push(WIPOffset::new(fb.end_table(table).value()));
        }
        let last = records.last().copied().into_iter();
        records.extend(last.flat_map(|last| std::iter::repeat_n(last, self.repeat_record)));
        let records = tables(fb, &records);
        let table = fb.start_table();
        fb.push_slot_always(slot(0), name);
        fb.push_slot_always(slot(1), kind);
        fb.push_slot(slot(2), self.offset, 0);
        fb.push_slot(slot(3), self.size, 0);
        fb.push_slot_always(slot(4), link);
        fb.push_slot(slot(5), self.mode, 0);
        fb.push_slot(slot(6), self.uid, 0);
        fb.push_slot(slot(7), self.gid, 0);
        fb.push_slot_always(slot(8), uname);
        fb.push_slot_always(slot(9), gname);
        fb.push_slot_always(slot(10), mtime);
        fb.push_slot(slot(11), self.major, 0);
        fb.push_slot(slot(12), self.minor, 0);
        fb.push_slot_always(slot(13), records);
        WIPOffset::new(fb.end_table(table).value())
    }
}

/// A blob of checkpoints that says it has `count`.
pub(crate) fn pack(points: &[Point], count: usize, span: u64) -> Vec<u8> {
    let mut blob = (count as i32).to_le_bytes().to_vec();
    blob.extend(span.to_le_bytes());
    for point in points {
        blob.extend(point.stored.to_le_bytes());
        blob.extend(point.stream.to_le_bytes());
        blob.push(point.bits);
        blob.extend(&point.window);
    }
    blob
}

fn tables<'b>(
    fb: &mut FlatBufferBuilder<'b>,
    tables: &[WIPOffset<UnionWIPOffset>],
) -> WIPOffset<Vector<'b, ForwardsUOffset<UnionWIPOffset>>> {
    fb.start_vector::<WIPOffset<UnionWIPOffset>>(tables.len());
    for table in tables.iter().rev() {
        fb.push(*table);
    }
    fb.end_vector(tables.len())
}

/// The place of a field in a vtable.
fn slot(field: VOffsetT) -> VOffsetT {
    4 + 2 * field
}

fn digest(bytes: &[u8], start: u64, end: u64) -> String {
    let hash = Sha256::digest(&bytes[start as usize..end as usize]);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The entries of an archive as the `tar` crate sees them, and where the last one ends.
fn files(stream: &[u8]) -> (Vec<File>, usize) {
    let mut archive = tar::Archive::new(stream);
    let (mut files, mut end) = (Vec::new(), 0);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut records: Vec<_> = Vec::new();
        if let Some(extensions) = entry.pax_extensions().unwrap() {
            for record in extensions.map(|record| record.unwrap()) {
                records.push((record.key_bytes().to_vec(), record.value_bytes().to_vec()));
            }
        }
        records.sort();
        // A field that is blank is 0, as in Go.
        let header = entry.header();
        let kind = match header.entry_type().as_byte() {
            0 | b'0' => "reg",
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            other => panic!("the tool makes no zTOC for an entry of type {other}"),
        };
        let text = records.iter().find(|(key, _)| key == b"mtime").map(|(_, value)| value.clone());
        let device = |number: Option<u32>| {
            if matches!(kind, "char" | "block") { number.unwrap_or(0).into() } else { 0 }
        };
        files.push(File {
            name: entry.path_bytes().to_vec(),
            kind: kind.into(),
            offset: entry.raw_file_position() as i64,
            size: entry.size() as i64,
            link: entry.link_name_bytes().map(|link| link.to_vec()).unwrap_or_default(),
            mode: header.mode().unwrap().into(),
            uid: header.uid().unwrap_or(0) as u32,
            gid: header.gid().unwrap_or(0) as u32,
            mtime: text.map_or_else(
                || rfc3339(header.mtime().unwrap_or(0) as i64, 0),
                |text| pax_time(std::str::from_utf8(&text).unwrap()),
            ),
            major: device(header.device_major().ok().flatten()),
            minor: device(header.device_minor().ok().flatten()),
            records,
            repeat_record: 0,
        });
        end = (entry.raw_file_position() + entry.size()).next_multiple_of(512) as usize;
    }
    (files, end)
}

/// `seconds.fraction`, not negative, as a time of RFC 3339.
fn pax_time(text: &str) -> String {
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    rfc3339(secs.parse().unwrap(), format!("{fraction:0<9}")[..9].parse().unwrap())
}

/// As Go formats a time in UTC: no zeros at the end of the fraction.
fn rfc3339(secs: i64, nanos: u32) -> String {
    let time = chrono::DateTime::from_timestamp(secs, nanos).unwrap().naive_utc();
    let fraction = format!(".{nanos:09}");
    format!("{}{}Z", time.format("%Y-%m-%dT%H:%M:%S"), fraction.trim_end_matches('0').trim_end_matches('.'))
}
