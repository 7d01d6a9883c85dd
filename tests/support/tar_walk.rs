//! The ways of feeding a tar walker, all of which must give the same table of contents, and the corpus of archives.
//!
//! Must never hide a difference: every way ends with what the walker itself says.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use ocifs::io::ByteRange;
use ocifs::layer::{TableOfContents, TarError, TarLimits, TarWalker, WalkerNeed};

/// How many reads and bytes a walk with random access took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
}

/// All bytes at once.
pub(crate) fn whole(bytes: &[u8]) -> Result<TableOfContents, TarError> {
    chunked(bytes, usize::MAX)
}

/// One piece of `chunk` bytes after the other, bodies included.
pub(crate) fn chunked(bytes: &[u8], chunk: usize) -> Result<TableOfContents, TarError> {
    let mut walker = TarWalker::new(TarLimits::default());
    let mut offset = 0;
    for piece in bytes.chunks(chunk) {
        walker.feed(offset, piece)?;
        offset += piece.len() as u64;
    }
    walker.finish(offset)
}

/// Only what is needed, and `ahead` more bytes with every read.
pub(crate) fn ranged(bytes: &[u8], ahead: u64) -> (Result<TableOfContents, TarError>, Cost) {
    let size = bytes.len() as u64;
    let mut walker = TarWalker::new(TarLimits::default());
    let mut cost = Cost::default();
    while let WalkerNeed::Bytes(need) = walker.need() {
        if need.start >= size {
            break;
        }
        let range = ByteRange::new(need.start, (need.end + ahead).min(size));
        cost.reads += 1;
        cost.bytes += range.len();
        let part = &bytes[range.start as usize..range.end as usize];
        if let Err(error) = walker.feed(range.start, part) {
            return (Err(error), cost);
        }
    }
    (walker.finish(size), cost)
}

/// The corpus directory, or `None` (with the reason on stderr) where it is absent and that is allowed.
pub(crate) fn corpus() -> Option<PathBuf> {
    let dir = std::env::var_os("OCIFS_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "no corpus at {}", dir.display());
    eprintln!("skipped: no corpus at {} (set OCIFS_CORPUS)", dir.display());
    None
}

/// The archives of some suites of the corpus, sorted: name of the case, bytes of a layer, lowest first.
pub(crate) fn archives(corpus: &Path, suites: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for suite in suites {
        let mut cases: Vec<PathBuf> =
            std::fs::read_dir(corpus.join(suite)).unwrap().map(|case| case.unwrap().path()).collect();
        cases.sort();
        for case in cases {
            let name = format!("{suite}/{}", case.file_name().unwrap().to_str().unwrap());
            let layers =
                (0..).map(|layer| case.join(format!("l{layer}.tar"))).take_while(|layer| layer.exists());
            found.extend(layers.map(|layer| (name.clone(), std::fs::read(layer).unwrap())));
        }
    }
    assert!(!found.is_empty(), "no archives in {}", corpus.display());
    found
}
