//! Archives with random damage: never a panic, a loop, or more memory than the limits allow, and the same answer however
//! the bytes are fed.

use proptest::prelude::*;

use super::super::super::TableOfContents;
use super::{BLOCK, END, entry, pax, walk};
use crate::layer::{TarError, TarLimits, TarWalker, WalkerNeed};

/// An archive with every kind of header in it.
fn everything() -> Vec<u8> {
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", "1000"),
    ];
    let mut content = b"1\n900\n3\n".to_vec();
    content.resize(BLOCK, 0);
    content.extend_from_slice(b"abc");
    let map = [("GNU.sparse.map", "1,2,5,1"), ("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "2")];
    [
        pax(b'g', &[("comment", "c")]),
        entry(b'5', "d/", b""),
        entry(b'0', "d/a", &[1; 700]),
        pax(b'x', &[("path", "p"), ("size", "5"), ("mtime", "1.5"), ("SCHILY.xattr.user.a", "v")]),
        entry(b'0', "x", b"hello"),
        entry(b'L', "x", &[b'n'; 120]),
        entry(b'K', "x", &[b't'; 120]),
        entry(b'2', "x", b""),
        pax(b'x', &sparse),
        entry(b'0', "x", &content),
        pax(b'x', &map),
        entry(b'0', "y", b"abc"),
        entry(b'1', "h", b""),
        entry(b'3', "c", b""),
        END.to_vec(),
    ]
    .concat()
}

/// Feeds in pieces of `chunk` bytes, checking the bounds of what is held after each.
fn bounded(limits: TarLimits, bytes: &[u8], chunk: usize) -> Result<TableOfContents, TarError> {
    let mut walker = TarWalker::new(limits);
    let mut offset = 0;
    for piece in bytes.chunks(chunk) {
        let fed = walker.feed(offset, piece);
        offset += piece.len() as u64;
        let (held, metadata) = walker.held();
        assert!(held as u64 <= 2 * limits.pax + BLOCK as u64, "{held} bytes held");
        assert!(fed.is_err() || metadata <= limits.metadata, "{metadata} bytes of metadata");
        fed?;
    }
    walker.finish(offset)
}

/// Makes the checksums of all blocks that look like headers right again, so that damage gets past them.
fn mend(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damage_never_panics_nor_grows_and_chunks_never_matter(
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(), prop::sample::select(b"\0 0179=,.-+\n/xgLKS5\x80\xff".to_vec())
        ]), 0..12),
        cut in any::<prop::sample::Index>(),
        cutting in prop::bool::weighted(0.2),
        mending in prop::bool::weighted(0.8),
        chunk in 1usize..2000,
    ) {
        let mut bytes = everything();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if mending {
            mend(&mut bytes);
        }
        if cutting {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = TarLimits { entries: 20, pax: 4096, metadata: 2000, ..TarLimits::default() };
        let whole = bounded(limits, &bytes, usize::MAX);
        prop_assert_eq!(&bounded(limits, &bytes, chunk), &whole);
        prop_assert_eq!(&bounded(limits, &bytes, 1), &whole);

        let mut walker = TarWalker::new(limits);
        let size = bytes.len() as u64;
        let mut reads = 0;
        while let WalkerNeed::Bytes(need) = walker.need() {
            if need.start >= size || walker.feed(need.start, &bytes[need.start as usize..need.end.min(size) as usize]).is_err() {
                break;
            }
            reads += 1;
            prop_assert!(reads <= size / 5 + 2, "{} reads of {} bytes", reads, size);
        }
        prop_assert_eq!(&walker.finish(size), &whole);
    }
}

#[test]
fn the_sample_of_the_damage_test_is_a_good_archive() {
    let toc = walk(&[&everything()]).unwrap();
    assert_eq!(toc.len(), 8);
    assert_eq!(bounded(TarLimits::default(), &everything(), 3), Ok(toc));
}
