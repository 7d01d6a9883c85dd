//! Tar state machine: collects headers, extended headers and sparse maps, and requests the bytes it needs next.
//!
//! The walker collects one *item* at a time, at a known stream offset. Bytes before the item are ignored without a
//! copy, and a complete item determines the next one. At most one header, extended header or sparse map is held.

use std::mem;

use super::super::{FileContent, SparseRun, TableOfContents, TocEntry, TocEntryKind};
use super::entry::{DraftEntry, PendingHeaders, content_size, draft};
use super::error::{TarError, TarProblem};
use super::header::{BLOCK, TarHeader, until_nul};
use super::limits::TarLimits;
use super::pax::PaxRecords;
use super::sparse::{self, MapReader};
use crate::io::ByteRange;

/// Extended headers before one entry. Writers make four at most. An archive of nothing else keeps a processor
/// busy and has no entry that a limit counts.
const MAX_EXTENSIONS: usize = 64;

/// Stored content of a large file, in bytes: as much as lies between two checkpoints.
const LARGE_FILE_BYTES: u64 = 1024 * 1024;

/// The next need of the walker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkerNeed {
    /// At least these bytes of the stream. The caller may add bytes behind them, or supply them in several calls.
    Bytes(ByteRange),
    /// None: the archive has ended, or was rejected (see [`TarWalker::finish`]).
    Done,
}

/// Walks the headers of one archive. Pure: bytes in, [`TableOfContents`] out.
#[derive(Debug)]
pub struct TarWalker {
    limits: TarLimits,
    state: WalkerState,
    /// Stream offset of the current item.
    at: u64,
    /// The item's bytes so far, when they came in pieces. Invariant: shorter than the item.
    partial: Vec<u8>,
    /// End of the stored content of the last entry. Invariant: at least the offset of its header.
    content_end: u64,
    pending: PendingHeaders,
    /// Extended headers since the last entry.
    extensions: usize,
    metadata: u64,
    /// Stream offset of the content of the last large file; `None` once it was taken.
    large: Option<u64>,
    toc: TableOfContents,
}

/// The current item.
#[derive(Debug)]
enum WalkerState {
    /// A header, or the first block of the end mark: one block.
    Header,
    /// The block after a block of zeros.
    SecondEnd,
    /// The content of an extended header.
    Extension { header: u64, flag: u8, len: usize },
    /// A block of the map of a sparse file, before its content.
    Map(Box<SparseMap>),
    /// The end mark is complete.
    Done,
    /// The archive is rejected.
    Failed(TarError),
}

#[derive(Debug)]
struct SparseMap {
    reader: MapReader,
    entry: TocEntry,
    size: i64,
}

impl TarWalker {
    /// A walker at the start of a stream.
    pub fn new(limits: TarLimits) -> Self {
        Self {
            limits,
            state: WalkerState::Header,
            at: 0,
            partial: Vec::new(),
            content_end: 0,
            pending: PendingHeaders::default(),
            extensions: 0,
            metadata: 0,
            large: None,
            toc: TableOfContents::default(),
        }
    }

    /// The bytes of the stream needed next; contents of files are skipped. A range that starts at or after the end
    /// of the stream means that the end mark is missing; [`finish`](Self::finish) decides on it.
    pub fn need(&self) -> WalkerNeed {
        match self.item_len() {
            Some(len) => WalkerNeed::Bytes(ByteRange::new(self.wanted(), self.at.saturating_add(len as u64))),
            None => WalkerNeed::Done,
        }
    }

    /// Adds `bytes` at stream offset `offset`, which must not be after the need; any number of bytes is allowed.
    /// After an error, every further call returns the same error.
    pub fn feed(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TarError> {
        if let WalkerState::Failed(error) = &self.state {
            return Err(error.clone());
        }
        let end = offset.saturating_add(bytes.len() as u64);
        while let Some(len) = self.item_len() {
            let wanted = self.wanted();
            if wanted >= end {
                return Ok(());
            }
            let Some(skip) = wanted.checked_sub(offset) else {
                return Err(TarError::Gap { need: wanted, given: offset });
            };
            // `skip` is below `bytes.len()`, because `wanted` is before `end`.
            let bytes = usize::try_from(skip).ok().and_then(|skip| bytes.get(skip..)).unwrap_or_default();
            let missing = len - self.partial.len();
            if bytes.len() < missing {
                self.partial.extend_from_slice(bytes);
                return Ok(());
            }
            let done = if self.partial.is_empty() {
                self.item(&bytes[..len])
            } else {
                let mut item = mem::take(&mut self.partial);
                item.extend_from_slice(&bytes[..missing]);
                self.item(&item)
            };
            if let Err(error) = done {
                self.state = WalkerState::Failed(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Bytes of entries held in memory.
    pub(in super::super) fn held_bytes(&self) -> usize {
        self.toc.heap_bytes()
    }

    /// Removes and returns the records of all entries so far but the last.
    pub(in super::super) fn take_head(&mut self) -> Vec<u8> {
        self.toc.take_head()
    }

    /// Removes and returns the stream offset of the content of the last large file so far.
    pub(in super::super) fn take_large_file(&mut self) -> Option<u64> {
        self.large.take()
    }

    /// The entries so far.
    pub fn entries(&self) -> &TableOfContents {
        &self.toc
    }

    /// Ends the archive at a stream of `size` bytes. As in Go's reader, the end mark, half of it, and the padding
    /// of the last content may be missing. A truncated entry, header or extended header is an error.
    pub fn finish(self, size: u64) -> Result<TableOfContents, TarError> {
        let cut = |header, name: &[u8], what: &str| {
            TarProblem::malformed(format!("{what} is cut by the end of the stream at {size}"))
                .at(header, name)
        };
        if let Some(len) = self.item_len()
            && self.at.checked_add(len as u64).is_some_and(|end| end <= size)
        {
            return Err(TarError::Gap { need: self.wanted(), given: size });
        }
        match self.state {
            WalkerState::Failed(error) => Err(error),
            WalkerState::Done => Ok(self.toc),
            WalkerState::Header | WalkerState::SecondEnd if size > self.at => {
                Err(cut(self.at, b"", "header"))
            }
            WalkerState::Header | WalkerState::SecondEnd => match self.toc.last() {
                Some(entry) if size < self.content_end => Err(cut(entry.header, entry.path, "content")),
                _ => Ok(self.toc),
            },
            WalkerState::Extension { header, .. } => Err(cut(header, b"", "extended header")),
            WalkerState::Map(map) => Err(cut(map.entry.header, &map.entry.path, "sparse map")),
        }
    }

    /// The length of the current item, never zero; `None` after the end or an error.
    fn item_len(&self) -> Option<usize> {
        match &self.state {
            WalkerState::Header | WalkerState::SecondEnd | WalkerState::Map(_) => Some(BLOCK),
            WalkerState::Extension { len, .. } => Some(*len),
            WalkerState::Done | WalkerState::Failed(_) => None,
        }
    }

    /// Stream offset of the first missing byte.
    fn wanted(&self) -> u64 {
        self.at.saturating_add(self.partial.len() as u64)
    }

    /// Processes a complete item.
    fn item(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        match mem::replace(&mut self.state, WalkerState::Header) {
            WalkerState::Header => self.header(block(bytes)),
            WalkerState::SecondEnd => self.second_end(block(bytes)),
            WalkerState::Extension { header, flag, .. } => {
                self.extension(flag, bytes).map_err(|problem| problem.at(header, b""))?;
                self.advance(header, bytes.len() as u64)
            }
            WalkerState::Map(map) => self.map(map, block(bytes)),
            ended @ (WalkerState::Done | WalkerState::Failed(_)) => {
                self.state = ended;
                Ok(())
            }
        }
    }

    fn header(&mut self, block: &[u8; BLOCK]) -> Result<(), TarError> {
        let start = self.at;
        if is_zero(block) {
            self.state = WalkerState::SecondEnd;
            return self.advance(start, BLOCK as u64);
        }
        let header = TarHeader::parse(block).map_err(|problem| problem.at(start, b""))?;
        self.advance(start, BLOCK as u64)?;
        if matches!(header.flag, b'x' | b'g' | b'L' | b'K') {
            return self.begin_extension(start, &header).map_err(|problem| problem.at(start, b""));
        }
        self.extensions = 0;
        let pending = mem::take(&mut self.pending);
        let named = |problem: TarProblem| problem.at(start, pending.name(&header));
        if !header.has_no_content() {
            content_size(header.size).map_err(named)?;
        }
        let DraftEntry { entry, stored, map } =
            draft(&header, &pending, (start, self.at), &self.limits).map_err(named)?;
        self.charge(&entry).map_err(named)?;
        let Some(end) = self.at.checked_add(stored) else {
            return Err(named(TarProblem::malformed("content ends past 2^64")));
        };
        self.content_end = end;
        if stored >= LARGE_FILE_BYTES {
            self.large = Some(self.at);
        }
        match map {
            Some(size) => {
                self.state =
                    WalkerState::Map(Box::new(SparseMap { reader: MapReader::default(), entry, size }));
                self.check_map_fits()
            }
            None => {
                self.toc.push(entry);
                self.advance(start, stored)
            }
        }
    }

    fn second_end(&mut self, block: &[u8; BLOCK]) -> Result<(), TarError> {
        if !is_zero(block) {
            return Err(TarProblem::malformed("only one block of zeros is in front of it").at(self.at, b""));
        }
        self.state = WalkerState::Done;
        Ok(())
    }

    /// Starts collecting the content of an extended header.
    fn begin_extension(&mut self, start: u64, header: &TarHeader) -> Result<(), TarProblem> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            let message = format!("more than {MAX_EXTENSIONS} extended headers are in front of one entry");
            return Err(TarProblem::unsupported(message));
        }
        let size = content_size(header.size)?;
        let limit = self.limits.pax;
        let over = || {
            TarProblem::unsupported(format!("extended header of {size} bytes is over the limit of {limit}"))
        };
        if size > limit {
            return Err(over());
        }
        let len = usize::try_from(size).map_err(|_| over())?;
        if len == 0 {
            return self.extension(header.flag, b"");
        }
        self.state = WalkerState::Extension { header: start, flag: header.flag, len };
        Ok(())
    }

    fn extension(&mut self, flag: u8, bytes: &[u8]) -> Result<(), TarProblem> {
        match flag {
            b'L' => self.pending.name = until_nul(bytes).to_vec(),
            b'K' => self.pending.link = until_nul(bytes).to_vec(),
            b'x' => self.pending.records = PaxRecords::parse(bytes)?,
            // A global header must be readable and has no effect. To Go it is an entry of its own, so it consumes
            // the extended headers before it.
            _ => {
                PaxRecords::parse(bytes)?;
                self.pending = PendingHeaders::default();
            }
        }
        Ok(())
    }

    fn map(&mut self, mut map: Box<SparseMap>, block: &[u8; BLOCK]) -> Result<(), TarError> {
        let (start, body) = (map.entry.header, self.at.saturating_add(BLOCK as u64));
        let read = map.reader.push(block, self.limits.pax);
        let Some(runs) = read.map_err(|problem| problem.at(start, &map.entry.path))? else {
            self.at = body;
            self.state = WalkerState::Map(map);
            return self.check_map_fits();
        };
        let stored = self.content_end.saturating_sub(body);
        let SparseMap { mut entry, size, .. } = *map;
        let named = |problem: TarProblem| problem.at(start, &entry.path);
        let (size, runs) = sparse::check(runs, size, stored).map_err(named)?;
        self.charge_bytes(runs_cost(&runs)).map_err(named)?;
        entry.kind = TocEntryKind::File(FileContent { size, offset: body, runs: Some(runs) });
        self.toc.push(entry);
        self.at = body;
        self.advance(start, stored)
    }

    /// Checks that the next block of a sparse map is part of the content.
    fn check_map_fits(&self) -> Result<(), TarError> {
        match &self.state {
            WalkerState::Map(map) if self.content_end.saturating_sub(self.at) < BLOCK as u64 => {
                Err(TarProblem::malformed("sparse map is longer than the content")
                    .at(map.entry.header, &map.entry.path))
            }
            _ => Ok(()),
        }
    }

    /// Moves to the first block after `len` bytes of the current item. `header` is for the error message.
    fn advance(&mut self, header: u64, len: u64) -> Result<(), TarError> {
        let next = self.at.checked_add(len).and_then(|end| end.checked_next_multiple_of(BLOCK as u64));
        self.at = next.ok_or_else(|| TarProblem::malformed("content ends past 2^64").at(header, b""))?;
        Ok(())
    }

    /// Counts an entry against the limits.
    fn charge(&mut self, entry: &TocEntry) -> Result<(), TarProblem> {
        let limit = self.limits.entries;
        if self.toc.len() as u64 >= limit {
            return Err(TarProblem::unsupported(format!(
                "archive has more than the limit of {limit} entries"
            )));
        }
        let link = match &entry.kind {
            TocEntryKind::HardLink(target) | TocEntryKind::Symlink(target) => target.len() as u64,
            TocEntryKind::File(FileContent { runs: Some(runs), .. }) => runs_cost(runs),
            _ => 0,
        };
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.charge_bytes(entry.path.len() as u64 + link + xattrs as u64)
    }

    fn charge_bytes(&mut self, bytes: u64) -> Result<(), TarProblem> {
        let limit = self.limits.metadata;
        self.metadata = self.metadata.saturating_add(bytes);
        if self.metadata > limit {
            return Err(TarProblem::unsupported(format!(
                "names, attributes and sparse maps are over the limit of {limit} bytes"
            )));
        }
        Ok(())
    }

    /// Bytes held beside the table of contents, which the limits bound.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, u64) {
        let map = if let WalkerState::Map(map) = &self.state { map.reader.held() } else { 0 };
        (self.partial.len() + map, self.metadata)
    }
}

fn runs_cost(runs: &[SparseRun]) -> u64 {
    size_of_val(runs) as u64
}

/// An item of one block as an array.
#[expect(clippy::expect_used, reason = "items of these kinds are BLOCK bytes by item_len()")]
fn block(bytes: &[u8]) -> &[u8; BLOCK] {
    bytes.first_chunk().expect("a whole block")
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|&byte| byte == 0)
}
