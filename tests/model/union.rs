//! Random layers from a small alphabet of names, so that they collide; the tree must be the model's, or both refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::env;

use ocifs::layer::{DeviceNumber, FileContent, TableOfContents, TocEntry, TocEntryKind, UnixTime};
use ocifs::tree::{ArchiveOverlap, FollowLinks, FrozenTree, InodeKind, TreeBuilder};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;

use crate::reference::{Model, What};

/// Cases without `PROPTEST_CASES`; some seconds in a debug build.
const CASES: u32 = 1000;

fn config() -> Config {
    let cases = env::var("PROPTEST_CASES").ok().map_or(CASES, |cases| cases.parse().unwrap());
    Config { cases, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn union_equals_the_model(layers in prop::collection::vec(layer(), 1..5)) {
        let mut accepted: Vec<TableOfContents> = Vec::new();
        let mut model = Model::new();
        for layer in &layers {
            accepted.push(TableOfContents::default());
            let origin = accepted.len() as u32 - 1;
            let below = model.clone();
            // An entry that makes the layer malformed is refused by both, and left out from then on: otherwise
            // hardly a random layer would get anywhere.
            for entry in layer {
                let kept = accepted.last().cloned();
                let last = accepted.last_mut().unwrap();
                last.push(entry.to_entry());
                let mut next = below.clone();
                let expected = next.apply(origin, last);
                let actual = unite(&accepted);
                prop_assert_eq!(expected.is_ok(), actual.is_ok(), "{:?} / {:?}", expected, actual.err());
                if expected.is_ok() {
                    model = next;
                } else {
                    *accepted.last_mut().unwrap() = kept.unwrap();
                }
            }
        }
        same(&model, &unite(&accepted).unwrap().freeze());
    }

    #[test]
    fn single_layer_equals_the_model(layer in layer()) {
        let mut toc = TableOfContents::default();
        let mut model = Model::new();
        let mut tree = TreeBuilder::new().freeze();
        for entry in &layer {
            let kept = toc.clone();
            toc.push(entry.to_entry());
            let mut next = Model::new();
            let expected = next.apply_alone(0, &toc);
            let mut builder = TreeBuilder::new();
            let actual = builder.apply_alone(0, &toc);
            prop_assert_eq!(expected.is_ok(), actual.is_ok(), "{:?} / {:?}", expected, actual);
            if let (Ok(expected), Ok(actual)) = (expected, actual) {
                let expected: BTreeSet<Vec<u8>> = expected.iter().map(|path| path.join(&b'/')).collect();
                prop_assert_eq!(expected, actual.into_iter().collect::<BTreeSet<_>>());
                model = next;
                tree = builder.freeze();
            } else {
                toc = kept;
            }
        }
        same(&model, &tree);
    }

    #[test]
    fn overlaid_archives_equal_the_model(layers in prop::collection::vec(layer(), 1..4)) {
        let mut accepted: Vec<TableOfContents> = Vec::new();
        let mut model = Model::new();
        for layer in &layers {
            accepted.push(TableOfContents::default());
            let origin = accepted.len() as u32 - 1;
            let below = model.clone();
            for entry in layer {
                let kept = accepted.last().cloned();
                let last = accepted.last_mut().unwrap();
                last.push(entry.to_entry());
                let mut next = below.clone();
                let expected = next.apply_plain(origin, last);
                let actual = lay(&accepted);
                prop_assert_eq!(expected.is_ok(), actual.is_ok(), "{:?} / {:?}", expected, actual.err());
                if let (Ok((replaced, left_out)), Ok((_, overlap))) = (expected, actual) {
                    let joined = |paths: BTreeSet<Vec<Vec<u8>>>| -> BTreeSet<Vec<u8>> {
                        paths.iter().map(|path| path.join(&b'/')).collect()
                    };
                    prop_assert_eq!(overlap.count, replaced.len());
                    prop_assert_eq!(joined(replaced), overlap.replaced.into_iter().collect::<BTreeSet<_>>());
                    prop_assert_eq!(joined(left_out), overlap.left_out.into_iter().collect::<BTreeSet<_>>());
                    model = next;
                } else {
                    *accepted.last_mut().unwrap() = kept.unwrap();
                }
            }
        }
        same(&model, &lay(&accepted).unwrap().0.freeze());
    }
}

/// The archives over each other, and what the last of them took.
fn lay(archives: &[TableOfContents]) -> Result<(TreeBuilder, ArchiveOverlap), ocifs::tree::TreeError> {
    let mut builder = TreeBuilder::new();
    let mut last = ArchiveOverlap::default();
    for (origin, toc) in archives.iter().enumerate() {
        last = builder.apply_plain(origin as u32, toc)?;
    }
    Ok((builder, last))
}

fn unite(layers: &[TableOfContents]) -> Result<TreeBuilder, ocifs::tree::TreeError> {
    let mut builder = TreeBuilder::new();
    for (origin, toc) in layers.iter().enumerate() {
        builder.apply(origin as u32, toc)?;
    }
    Ok(builder)
}

/// Panics unless the tree is the model's in every answer it gives.
fn same(model: &Model, tree: &FrozenTree) {
    let mut paths: BTreeMap<Vec<Vec<u8>>, u32> = BTreeMap::from([(Vec::new(), FrozenTree::ROOT)]);
    for (path, ino) in tree.walk() {
        paths.insert(path.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect(), ino);
    }
    assert_eq!(paths.keys().collect::<Vec<_>>(), model.names.keys().collect::<Vec<_>>());
    let mut numbers: BTreeMap<u32, usize> = BTreeMap::new();
    for (path, &ino) in &paths {
        let number = model.names[path];
        let inode = &model.inodes[number];
        let shown = path.join(&b'/');
        let shown = String::from_utf8_lossy(&shown);
        assert_eq!(*numbers.entry(ino).or_insert(number), number, "hard links of {shown}");
        let attr = tree.attr(ino).unwrap();
        let mut mode = inode.mode;
        let mut rdev = DeviceNumber::default();
        let (kind, size) = match &inode.what {
            What::File { origin, offset, size } => {
                let file = tree.file(ino).unwrap();
                assert_eq!(
                    (file.origin, file.offset, file.size),
                    (*origin, *offset, *size),
                    "content of {shown}"
                );
                (InodeKind::File, *size)
            }
            What::Directory => {
                let above = &path[..path.len().saturating_sub(1)];
                assert_eq!(tree.parent(ino), paths[above], "parent of {shown}");
                (InodeKind::Directory, 0)
            }
            What::Symlink(target) => {
                assert_eq!(tree.link(ino), Some(target.as_slice()));
                mode = 0o777;
                (InodeKind::Symlink, target.len() as u64)
            }
            What::CharDevice(device) => {
                rdev = *device;
                (InodeKind::CharDevice, 0)
            }
            What::BlockDevice(device) => {
                rdev = *device;
                (InodeKind::BlockDevice, 0)
            }
            What::Fifo => (InodeKind::Fifo, 0),
        };
        assert_eq!((attr.kind, attr.size, attr.rdev), (kind, size, rdev), "{shown}");
        assert_eq!(
            (attr.mode, attr.uid, attr.gid, attr.mtime),
            (mode, inode.uid, inode.gid, inode.mtime),
            "{shown}"
        );
        assert_eq!(attr.nlink, model.nlink(path), "nlink of {shown}");
        let xattrs: Vec<_> = tree.xattrs(ino).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        assert_eq!(xattrs, inode.xattrs, "xattrs of {shown}");
        assert_eq!(tree.resolve(&path.join(&b'/'), FollowLinks::Parents).unwrap().ino, ino, "{shown}");
        if let Some((name, above)) = path.split_last() {
            assert_eq!(tree.lookup(paths[above], name), Some(ino), "{shown}");
        }
    }
    assert_eq!(tree.len(), numbers.len(), "inodes without a name");
    let distinct: BTreeSet<usize> = model.names.values().copied().collect();
    assert_eq!(numbers.values().copied().collect::<BTreeSet<_>>(), distinct, "hard link groups");
    assert_eq!(numbers.len(), distinct.len(), "hard link groups");
}

fn layer() -> impl Strategy<Value = TableOfContents> {
    prop::collection::vec(entry(), 1..9).prop_map(|mut entries| {
        // What tells one entry from another: every attribute differs.
        for (number, entry) in (1..).zip(&mut entries) {
            entry.header = u64::from(number) * 512;
            entry.uid = number;
            entry.gid = number + 100;
            entry.mode = 0o600 + number as u16;
            entry.mtime = UnixTime { secs: i64::from(number) - 4, nanos: number };
            if let TocEntryKind::File(content) = &mut entry.kind {
                content.size = u64::from(number);
                content.offset = entry.header + 512;
            }
        }
        entries.into_iter().collect()
    })
}

fn entry() -> impl Strategy<Value = TocEntry> {
    let xattrs = prop_oneof![
        4 => Just(Vec::new()),
        1 => select(vec!["1", "2"]).prop_map(|value| vec![(b"user.a".to_vec(), value.as_bytes().to_vec())]),
    ];
    (name(), kind(), xattrs).prop_map(|(path, kind, xattrs)| TocEntry {
        path,
        kind,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: UnixTime::default(),
        xattrs,
        header: 0,
    })
}

fn kind() -> impl Strategy<Value = TocEntryKind> {
    prop_oneof![
        6 => Just(TocEntryKind::File(FileContent::default())),
        6 => Just(TocEntryKind::Directory),
        6 => path().prop_map(TocEntryKind::Symlink),
        6 => path().prop_map(TocEntryKind::HardLink),
        1 => Just(TocEntryKind::CharDevice(DeviceNumber { major: 0, minor: 0 })),
        1 => Just(TocEntryKind::BlockDevice(DeviceNumber { major: 8, minor: 1 })),
        1 => Just(TocEntryKind::Fifo),
    ]
}

/// The name of an entry: one that hides something, now and then.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let mark = select(vec![
        ".wh.a",
        ".wh.a",
        ".wh.b",
        ".wh.b",
        ".wh.c",
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh..x",
        ".wh..wh..opq",
        ".wh..wh..opq",
        ".wh..wh..opq",
        ".wh..wh.plnk",
        ".wh..wh.plnk/a",
        ".wh.a/a",
        ".wh..wh..opq/a",
    ]);
    prop_oneof![
        7 => path(),
        1 => mark.clone().prop_map(|mark| mark.as_bytes().to_vec()),
        2 => (path(), mark).prop_map(|(path, mark)| [&path, &b"/"[..], mark.as_bytes()].concat()),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![
        6 => Just("a"),
        6 => Just("b"),
        5 => Just("c"),
        2 => Just(".."),
        1 => Just("."),
        1 => Just(""),
    ];
    (select(vec!["", "", "", "/", "../"]), prop::collection::vec(component, 1..4))
        .prop_map(|(start, names)| format!("{start}{}", names.join("/")).into_bytes())
}
