//! The state machine: which bytes are needed next, and what they are.
//!
//! It must never hold more than one header, extended header or sparse map at a time, and it copies nothing of what it
//! skips. The idea: the walker always collects one *item* at a known stream offset; everything before the item is
//! ignored, and a complete item makes the next one known.

use std::mem;

use super::super::{Content, Entry, EntryKind, Run, Toc};
use super::entry::{Draft, Pending, content_size, draft};
use super::error::{Problem, TarError};
use super::header::{BLOCK, Header, until_nul};
use super::limits::TarLimits;
use super::pax::Records;
use super::sparse::{self, MapReader};
use crate::io::ByteRange;

/// What the walker needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// At least these bytes of the stream. More that follow them are welcome; fewer are remembered.
    Bytes(ByteRange),
    /// Nothing: the archive has ended, or was rejected (see [`TarWalker::finish`]).
    Done,
}

/// Walks the headers of one archive. Pure: bytes in, [`Toc`] out.
#[derive(Debug)]
pub struct TarWalker {
    limits: TarLimits,
    state: State,
    /// Stream offset of the item that is being collected.
    at: u64,
    /// The item's bytes so far, when it came in pieces. Invariant: shorter than the item.
    partial: Vec<u8>,
    /// Where the stored content of the last entry ends. Invariant: at least the offset of its header.
    content_end: u64,
    pending: Pending,
    metadata: u64,
    toc: Toc,
}

/// The item that is being collected.
#[derive(Debug)]
enum State {
    /// A header, or the first block of the end mark: one block.
    Header,
    /// What follows a block of zeros: one block.
    SecondEnd,
    /// The content of an extended header.
    Extension { header: u64, flag: u8, len: usize },
    /// A block of the map of a sparse file, before its content.
    Map(Box<Map>),
    /// The end mark was seen.
    Done,
    /// The archive is rejected.
    Failed(TarError),
}

#[derive(Debug)]
struct Map {
    reader: MapReader,
    entry: Entry,
    size: i64,
}

impl TarWalker {
    /// A walker at the start of a stream.
    pub fn new(limits: TarLimits) -> Self {
        Self {
            limits,
            state: State::Header,
            at: 0,
            partial: Vec::new(),
            content_end: 0,
            pending: Pending::default(),
            metadata: 0,
            toc: Toc::default(),
        }
    }

    /// Which bytes of the stream it needs next. Contents of files are jumped over. A range that starts at or after the end
    /// of the stream means that the archive ends without its end mark, which [`finish`](Self::finish) judges.
    pub fn need(&self) -> Need {
        match self.item_len() {
            Some(len) => Need::Bytes(ByteRange::new(self.wanted(), self.at.saturating_add(len as u64))),
            None => Need::Done,
        }
    }

    /// Takes `bytes`, which start at stream offset `offset`: no later than the need, and as many as there are. After an
    /// error every further call gives the same one.
    pub fn feed(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TarError> {
        if let State::Failed(error) = &self.state {
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
                self.state = State::Failed(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Bytes of entries that it holds in memory.
    pub(in super::super) fn held_bytes(&self) -> usize {
        self.toc.heap_bytes()
    }

    /// Takes the records of all entries so far but the last.
    pub(in super::super) fn take_head(&mut self) -> Vec<u8> {
        self.toc.take_head()
    }

    /// The entries so far.
    pub fn entries(&self) -> &Toc {
        &self.toc
    }

    /// The stream ended at `size`. As in Go's reader the end mark, half of it, and the padding of the last content may be
    /// missing; an entry, a header or an extended header that is cut is an error.
    pub fn finish(self, size: u64) -> Result<Toc, TarError> {
        let cut = |header, name: &[u8], what: &str| {
            Problem::malformed(format!("{what} is cut by the end of the stream at {size}")).at(header, name)
        };
        if let Some(len) = self.item_len()
            && self.at.checked_add(len as u64).is_some_and(|end| end <= size)
        {
            return Err(TarError::Gap { need: self.wanted(), given: size });
        }
        match self.state {
            State::Failed(error) => Err(error),
            State::Done => Ok(self.toc),
            State::Header | State::SecondEnd if size > self.at => Err(cut(self.at, b"", "header")),
            State::Header | State::SecondEnd => match self.toc.last() {
                Some(entry) if size < self.content_end => Err(cut(entry.header, entry.path, "content")),
                _ => Ok(self.toc),
            },
            State::Extension { header, .. } => Err(cut(header, b"", "extended header")),
            State::Map(map) => Err(cut(map.entry.header, &map.entry.path, "sparse map")),
        }
    }

    /// How long the item is that is being collected; never zero.
    fn item_len(&self) -> Option<usize> {
        match &self.state {
            State::Header | State::SecondEnd | State::Map(_) => Some(BLOCK),
            State::Extension { len, .. } => Some(*len),
            State::Done | State::Failed(_) => None,
        }
    }

    /// Stream offset of the first byte that is still missing.
    fn wanted(&self) -> u64 {
        self.at.saturating_add(self.partial.len() as u64)
    }

    /// Takes a complete item.
    fn item(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        match mem::replace(&mut self.state, State::Header) {
            State::Header => self.header(block(bytes)),
            State::SecondEnd => self.second_end(block(bytes)),
            State::Extension { header, flag, .. } => {
                self.extension(flag, bytes).map_err(|problem| problem.at(header, b""))?;
                self.advance(header, bytes.len() as u64)
            }
            State::Map(map) => self.map(map, block(bytes)),
            ended @ (State::Done | State::Failed(_)) => {
                self.state = ended;
                Ok(())
            }
        }
    }

    fn header(&mut self, block: &[u8; BLOCK]) -> Result<(), TarError> {
        let start = self.at;
        if is_zero(block) {
            self.state = State::SecondEnd;
            return self.advance(start, BLOCK as u64);
        }
        let header = Header::parse(block).map_err(|problem| problem.at(start, b""))?;
        self.advance(start, BLOCK as u64)?;
        if matches!(header.flag, b'x' | b'g' | b'L' | b'K') {
            return self.begin_extension(start, &header).map_err(|problem| problem.at(start, b""));
        }
        let pending = mem::take(&mut self.pending);
        let named = |problem: Problem| problem.at(start, pending.name(&header));
        if !header.has_no_content() {
            content_size(header.size).map_err(named)?;
        }
        let Draft { entry, stored, map } =
            draft(&header, &pending, (start, self.at), &self.limits).map_err(named)?;
        self.charge(&entry).map_err(named)?;
        let Some(end) = self.at.checked_add(stored) else {
            return Err(named(Problem::malformed("content ends past 2^64")));
        };
        self.content_end = end;
        match map {
            Some(size) => {
                self.state = State::Map(Box::new(Map { reader: MapReader::default(), entry, size }));
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
            return Err(Problem::malformed("only one block of zeros is in front of it").at(self.at, b""));
        }
        self.state = State::Done;
        Ok(())
    }

    /// Starts on the content of an extended header.
    fn begin_extension(&mut self, start: u64, header: &Header) -> Result<(), Problem> {
        let size = content_size(header.size)?;
        let limit = self.limits.pax;
        let over =
            || Problem::unsupported(format!("extended header of {size} bytes is over the limit of {limit}"));
        if size > limit {
            return Err(over());
        }
        let len = usize::try_from(size).map_err(|_| over())?;
        if len == 0 {
            return self.extension(header.flag, b"");
        }
        self.state = State::Extension { header: start, flag: header.flag, len };
        Ok(())
    }

    fn extension(&mut self, flag: u8, bytes: &[u8]) -> Result<(), Problem> {
        match flag {
            b'L' => self.pending.name = until_nul(bytes).to_vec(),
            b'K' => self.pending.link = until_nul(bytes).to_vec(),
            b'x' => self.pending.records = Records::parse(bytes)?,
            // A global header must be readable and has no effect. To Go it is an entry of its own, so what was said
            // before it about the next entry is spent on it.
            _ => {
                Records::parse(bytes)?;
                self.pending = Pending::default();
            }
        }
        Ok(())
    }

    fn map(&mut self, mut map: Box<Map>, block: &[u8; BLOCK]) -> Result<(), TarError> {
        let (start, body) = (map.entry.header, self.at.saturating_add(BLOCK as u64));
        let read = map.reader.push(block, self.limits.pax);
        let Some(runs) = read.map_err(|problem| problem.at(start, &map.entry.path))? else {
            self.at = body;
            self.state = State::Map(map);
            return self.check_map_fits();
        };
        let stored = self.content_end.saturating_sub(body);
        let Map { mut entry, size, .. } = *map;
        let named = |problem: Problem| problem.at(start, &entry.path);
        let (size, runs) = sparse::check(runs, size, stored).map_err(named)?;
        self.charge_bytes(runs_cost(&runs)).map_err(named)?;
        entry.kind = EntryKind::File(Content { size, offset: body, runs: Some(runs) });
        self.toc.push(entry);
        self.at = body;
        self.advance(start, stored)
    }

    /// That the block of a sparse map which comes next is part of the content.
    fn check_map_fits(&self) -> Result<(), TarError> {
        match &self.state {
            State::Map(map) if self.content_end.saturating_sub(self.at) < BLOCK as u64 => {
                Err(Problem::malformed("sparse map is longer than the content")
                    .at(map.entry.header, &map.entry.path))
            }
            _ => Ok(()),
        }
    }

    /// Moves to the first block after `len` bytes of the item at hand. `header` is for the error message.
    fn advance(&mut self, header: u64, len: u64) -> Result<(), TarError> {
        let next = self.at.checked_add(len).and_then(|end| end.checked_next_multiple_of(BLOCK as u64));
        self.at = next.ok_or_else(|| Problem::malformed("content ends past 2^64").at(header, b""))?;
        Ok(())
    }

    /// Counts an entry against the limits.
    fn charge(&mut self, entry: &Entry) -> Result<(), Problem> {
        let limit = self.limits.entries;
        if self.toc.len() as u64 >= limit {
            return Err(Problem::unsupported(format!("archive has more than the limit of {limit} entries")));
        }
        let link = match &entry.kind {
            EntryKind::HardLink(target) | EntryKind::Symlink(target) => target.len() as u64,
            EntryKind::File(Content { runs: Some(runs), .. }) => runs_cost(runs),
            _ => 0,
        };
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.charge_bytes(entry.path.len() as u64 + link + xattrs as u64)
    }

    fn charge_bytes(&mut self, bytes: u64) -> Result<(), Problem> {
        let limit = self.limits.metadata;
        self.metadata = self.metadata.saturating_add(bytes);
        if self.metadata > limit {
            return Err(Problem::unsupported(format!(
                "names, attributes and sparse maps are over the limit of {limit} bytes"
            )));
        }
        Ok(())
    }

    /// The bytes held beside the table of contents: what the limits bound.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, u64) {
        let map = if let State::Map(map) = &self.state { map.reader.held() } else { 0 };
        (self.partial.len() + map, self.metadata)
    }
}

fn runs_cost(runs: &[Run]) -> u64 {
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
