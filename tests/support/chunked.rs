//! Writes layers that carry an index, laid out as the tools write them: eStargz, both variants of zstd:chunked, and seekable
//! zstd. All are made of a whole tar, and decompress to it (eStargz: to it and the table of contents).
//!
//! Never used as an oracle: what a layer holds is asked of the tar.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::Write as _;

use ocifs::layer::{TarLimits, TarWalker, TocEntry, TocEntryKind};
use ocifs::oci::Digest;
use serde_json::{Value, json};

/// Annotations of a layer's descriptor.
pub(crate) type Annotations = BTreeMap<String, String>;

/// A layer and what its descriptor says.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) bytes: Vec<u8>,
    pub(crate) annotations: Annotations,
}

/// The footer of an eStargz layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Footer {
    Current,
    Legacy,
}

/// How an eStargz layer is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estargz {
    /// The most bytes of a file in one gzip member.
    pub(crate) chunk: usize,
    /// Bytes that a gzip member has at least before the next begins: contents share members.
    pub(crate) member: usize,
    pub(crate) footer: Footer,
    /// How hard members are compressed, up to 9.
    pub(crate) level: u32,
}

impl Default for Estargz {
    fn default() -> Self {
        Self { chunk: 4 << 20, member: 0, footer: Footer::Current, level: 1 }
    }
}

impl Estargz {
    pub(crate) fn make(self, tar: &[u8]) -> Made {
        let mut units = Units::new(move |bytes| gzip_at(bytes, self.level));
        let mut entries = Vec::new();
        shared_layout(tar, self.chunk, self.member, &mut units, &mut entries);
        let json = serde_json::to_vec_pretty(&json!({ "version": 1, "entries": entries })).unwrap();
        estargz_with(units.close(), &json, self.footer)
    }
}

/// An eStargz layer of `content` and the table of contents `json`.
pub(crate) fn estargz_with(mut content: Vec<u8>, json: &[u8], footer: Footer) -> Made {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(json.len() as u64);
    header.set_mode(0);
    archive.append_data(&mut header, "stargz.index.json", json).unwrap();
    let at = content.len() as u64;
    content.extend(gzip(&archive.into_inner().unwrap()));
    content.extend(estargz_footer(at, footer));
    let key = "containerd.io/snapshot/stargz/toc.digest".to_owned();
    Made { bytes: content, annotations: [(key, Digest::sha256(json).to_string())].into() }
}

pub(crate) fn estargz_footer(at: u64, footer: Footer) -> Vec<u8> {
    let field = format!("{at:016x}STARGZ");
    let extra = match footer {
        Footer::Current => [b"SG\x16\0", field.as_bytes()].concat(),
        Footer::Legacy => field.into_bytes(),
    };
    let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    bytes.extend((extra.len() as u16).to_le_bytes());
    bytes.extend(extra);
    bytes.extend([1, 0, 0, 0xff, 0xff]);
    bytes.extend([0; 8]);
    bytes
}

/// Who writes a zstd:chunked layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// containers/storage: frames end with contents, holes are marked, the footer has 64 bytes.
    Storage,
    /// stargz-snapshotter: laid out like eStargz, the footer has 40 bytes.
    Stargz,
}

/// A zstd:chunked layer of `tar` with chunks of at most `chunk` bytes.
pub(crate) fn zstd_chunked(tar: &[u8], writer: Writer, chunk: usize) -> Made {
    let mut units = Units::new(zstd);
    let mut entries = Vec::new();
    match writer {
        Writer::Storage => storage_layout(tar, chunk, &mut units, &mut entries),
        Writer::Stargz => {
            shared_layout(tar, chunk, 0, &mut units, &mut entries);
            units.add(&[0; 1024]);
        }
    }
    let json = serde_json::to_vec(&json!({ "version": 1, "entries": entries })).unwrap();
    zstd_chunked_with(units.close(), &json, writer)
}

/// A zstd:chunked layer of `content` and the table of contents `json`.
pub(crate) fn zstd_chunked_with(mut bytes: Vec<u8>, json: &[u8], writer: Writer) -> Made {
    let manifest = zstd(json);
    let at = bytes.len() as u64 + 8;
    let numbers = [at, manifest.len() as u64, json.len() as u64, 1];
    bytes.extend(skippable(0, &manifest));
    let le = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let prefix = match writer {
        Writer::Storage => {
            let split = b"the tar-split data, which nobody here reads";
            let place = [bytes.len() as u64 + 8, split.len() as u64, 1000];
            bytes.extend(skippable(0, split));
            bytes.extend(skippable(0, &[le(&numbers), le(&place), b"GNUlInUx".to_vec()].concat()));
            "io.github.containers.zstd-chunked"
        }
        Writer::Stargz => {
            bytes.extend(skippable(0, &[le(&numbers), b"GnUlInUx".to_vec()].concat()));
            "io.containers.zstd-chunked"
        }
    };
    let position = numbers.map(|number| number.to_string()).join(":");
    let annotations = [
        (format!("{prefix}.manifest-position"), position),
        (format!("{prefix}.manifest-checksum"), Digest::sha256(&manifest).to_string()),
    ];
    Made { bytes, annotations: annotations.into() }
}

/// Whether a seek table has checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksums {
    With,
    Without,
}

/// A zstd layer with a frame for each `frame` bytes and a seek table.
pub(crate) fn seekable(stream: &[u8], frame: usize, checksums: Checksums) -> Vec<u8> {
    let (mut bytes, mut table, mut frames) = (Vec::new(), Vec::new(), 0u32);
    for piece in stream.chunks(frame) {
        let stored = zstd(piece);
        table.extend((stored.len() as u32).to_le_bytes());
        table.extend((piece.len() as u32).to_le_bytes());
        if checksums == Checksums::With {
            table.extend([0xcc; 4]);
        }
        bytes.extend(stored);
        frames += 1;
    }
    table.extend(frames.to_le_bytes());
    table.push(if checksums == Checksums::With { 0x80 } else { 0 });
    table.extend(0x8F92_EAB1u32.to_le_bytes());
    bytes.extend(skippable(0xE, &table));
    bytes
}

/// What [`seekable`] and the writers of zstd:chunked put around their data.
pub(crate) fn skippable(kind: u32, data: &[u8]) -> Vec<u8> {
    let magic = (0x184D_2A50 | kind).to_le_bytes();
    [&magic, &(data.len() as u32).to_le_bytes(), data].concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_at(bytes, 1)
}

fn gzip_at(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// Compresses one unit.
type Encode = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// Stored units, of which the last is still open.
struct Units {
    stored: Vec<u8>,
    open: Vec<u8>,
    encode: Encode,
}

impl Units {
    fn new(encode: impl Fn(&[u8]) -> Vec<u8> + 'static) -> Self {
        Self { stored: Vec::new(), open: Vec::new(), encode: Box::new(encode) }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.open.extend_from_slice(bytes);
    }

    /// Ends the open unit. The answer is where the next one starts.
    fn cut(&mut self) -> u64 {
        if !self.open.is_empty() {
            self.stored.extend((self.encode)(&std::mem::take(&mut self.open)));
        }
        self.stored.len() as u64
    }

    fn close(mut self) -> Vec<u8> {
        self.cut();
        self.stored
    }
}

/// An entry, the bytes before its content, and its content.
type Part<'a> = (TocEntry, &'a [u8], &'a [u8]);

/// The entries of `tar`, each with the bytes between the content before it and its own, and its content; then the rest.
fn parts(tar: &[u8]) -> (Vec<Part<'_>>, &[u8]) {
    let mut walker = TarWalker::new(TarLimits::default());
    walker.feed(0, tar).unwrap();
    let toc = walker.finish(tar.len() as u64).unwrap();
    let (mut parts, mut at) = (Vec::new(), 0);
    for entry in toc.iter().map(|entry| entry.to_entry()) {
        let (start, end) = match &entry.kind {
            TocEntryKind::File(content) if content.size > 0 => {
                assert!(content.runs.is_none(), "a sparse file of tar is no case of these formats");
                (content.offset as usize, (content.offset + content.size) as usize)
            }
            _ => (at, at),
        };
        parts.push((entry, &tar[at..start], &tar[start..end]));
        at = end;
    }
    (parts, &tar[at..])
}

/// As stargz-snapshotter writes: a unit begins with a content or a chunk of it, and holds what follows up to the next. The end
/// mark of the tar is left to the caller.
fn shared_layout(tar: &[u8], chunk: usize, member: usize, units: &mut Units, entries: &mut Vec<Value>) {
    let (parts, rest) = parts(tar);
    for (entry, before, content) in parts {
        units.add(before);
        let mut value = metadata(&entry);
        if content.is_empty() {
            entries.push(value);
            continue;
        }
        value["digest"] = json!(Digest::sha256(content).as_str());
        for (at, piece) in content.chunks(chunk).enumerate() {
            if units.open.len() >= member {
                units.cut();
            }
            value["offset"] = json!(units.stored.len());
            if !units.open.is_empty() {
                value["innerOffset"] = json!(units.open.len());
            }
            value["chunkDigest"] = json!(Digest::sha256(piece).as_str());
            if at > 0 {
                value["chunkOffset"] = json!(at * chunk);
            }
            if (at + 1) * chunk < content.len() {
                value["chunkSize"] = json!(piece.len());
            }
            units.add(piece);
            entries.push(std::mem::replace(&mut value, json!({ "name": name(&entry), "type": "chunk" })));
        }
    }
    units.add(&rest[..rest.len() - 1024]);
}

/// As containers/storage writes: contents and their chunks have units of their own, and long zeros are marked.
fn storage_layout(tar: &[u8], chunk: usize, units: &mut Units, entries: &mut Vec<Value>) {
    let (parts, rest) = parts(tar);
    for (entry, before, content) in parts {
        units.add(before);
        let mut value = metadata(&entry);
        if content.is_empty() {
            entries.push(value);
            continue;
        }
        value["digest"] = json!(Digest::sha256(content).as_str());
        let pieces: Vec<&[u8]> = content.chunks(chunk).collect();
        let mut chunks = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            let mut value = if at == 0 {
                value.clone()
            } else {
                json!({ "name": name(&entry), "type": "chunk", "chunkOffset": at * chunk })
            };
            value["offset"] = json!(units.cut());
            if pieces.len() > 1 {
                value["chunkSize"] = json!(piece.len());
                value["chunkDigest"] = json!(Digest::sha256(piece).as_str());
                if piece.len() >= 1024 && piece.iter().all(|&byte| byte == 0) {
                    value["chunkType"] = json!("zeros");
                }
            }
            units.add(piece);
            chunks.push(value);
        }
        chunks[0]["endOffset"] = json!(units.cut());
        entries.append(&mut chunks);
    }
    units.add(rest);
}

fn name(entry: &TocEntry) -> String {
    String::from_utf8_lossy(&entry.path).into_owned()
}

/// What both formats say of any entry.
fn metadata(entry: &TocEntry) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut value = json!({ "name": name(entry), "mode": entry.mode, "uid": entry.uid, "gid": entry.gid });
    // As the writer of eStargz does it: to the nearest second.
    let rounded = entry.mtime.secs + i64::from(entry.mtime.nanos >= 500_000_000);
    let time = chrono::DateTime::from_timestamp(rounded, 0).unwrap();
    value["modtime"] = json!(time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    let kind = match &entry.kind {
        TocEntryKind::File(content) => {
            value["size"] = json!(content.size);
            "reg"
        }
        TocEntryKind::Directory => "dir",
        TocEntryKind::Symlink(target) | TocEntryKind::HardLink(target) => {
            value["linkName"] = json!(text(target));
            if matches!(entry.kind, TocEntryKind::Symlink(_)) { "symlink" } else { "hardlink" }
        }
        TocEntryKind::CharDevice(device) | TocEntryKind::BlockDevice(device) => {
            value["devMajor"] = json!(device.major);
            value["devMinor"] = json!(device.minor);
            if matches!(entry.kind, TocEntryKind::CharDevice(_)) { "char" } else { "block" }
        }
        TocEntryKind::Fifo => "fifo",
    };
    value["type"] = json!(kind);
    for (name, bytes) in &entry.xattrs {
        use base64::Engine as _;
        value["xattrs"][text(name)] = json!(base64::engine::general_purpose::STANDARD.encode(bytes));
    }
    value
}
