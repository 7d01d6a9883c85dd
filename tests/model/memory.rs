//! Cost of trees: bytes for each name, and time for a million names.

use std::path::Path;
use std::time::Duration;

use ocifs::layer::{FileContent, TableOfContents, TocEntry, TocEntryKind, UnixTime};
use ocifs::tree::{FrozenTree, TreeBuilder};

use crate::proc_files::processor_time;

const MIB: usize = 1 << 20;

/// One at a time: all trees of a process have one budget of memory.
static ONE_LARGE_TREE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE_LARGE_TREE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn a_tree_of_28_000_names_takes_under_4_mib() {
    let tree = tree(28_000);
    assert!(tree.heap_bytes() < 4 * MIB, "{} bytes", tree.heap_bytes());
}

#[test]
fn a_tree_of_a_million_names_takes_under_100_mib_and_seconds() {
    let _alone = alone();
    let started = worked();
    let tree = tree(1_000_000);
    let took = worked() - started;
    eprintln!("{} names, {} bytes each, {took:?}", tree.len(), tree.heap_bytes() / tree.len());
    assert!(tree.heap_bytes() < 100 * MIB, "{} bytes", tree.heap_bytes());
    // 8 s in a debug build on an idle core; a quadratic step would take hours.
    assert!(took < Duration::from_secs(120), "{took:?}");
}

#[test]
fn a_directory_of_200_000_names_in_reverse_order_is_not_quadratic() {
    let _alone = alone();
    let started = worked();
    let toc = (0..200_000)
        .rev()
        .map(|number| file(format!("flat/{number:08}"), number))
        .collect::<TableOfContents>();
    let mut builder = TreeBuilder::new();
    builder.apply(0, &toc).unwrap();
    let tree = builder.freeze();
    assert_eq!(tree.entry_count(tree.lookup(FrozenTree::ROOT, b"flat").unwrap()), 200_000);
    let took = worked() - started;
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn an_archive_of_half_a_million_names_over_another_is_not_quadratic() {
    let _alone = alone();
    let started = worked();
    let toc = (0..500_000)
        .map(|number| file(format!("d{}/{number:08}", number / 100), number))
        .collect::<TableOfContents>();
    let mut builder = TreeBuilder::new();
    builder.apply_plain(0, &toc).unwrap();
    let overlap = builder.apply_plain(1, &toc).unwrap();
    assert_eq!((overlap.count, overlap.replaced.len()), (500_000, 100));
    let tree = builder.freeze();
    assert_eq!(tree.len(), 505_001);
    let took = worked() - started;
    assert!(took < Duration::from_secs(120), "{took:?}");
}

/// The processor time of this thread so far.
fn worked() -> Duration {
    processor_time(Path::new("/proc/thread-self"))
}

/// A tree shaped as root filesystems are: some ten names in a directory, names of some twelve bytes, depth about six.
fn tree(names: u64) -> FrozenTree {
    let mut toc = TableOfContents::default();
    for number in 0..names {
        let dir = format!("usr/share/d{:03}/package-{:05}", number / 1000, number / 10);
        if number % 10 == 0 {
            toc.push(TocEntry { kind: TocEntryKind::Directory, ..file(dir, 0) });
        } else {
            toc.push(file(format!("{dir}/module-{number:07}.py"), number));
        }
    }
    let mut builder = TreeBuilder::new();
    builder.apply(0, &toc).unwrap();
    drop(toc);
    let tree = builder.freeze();
    assert!(tree.len() as u64 >= names);
    tree
}

fn file(path: String, number: u64) -> TocEntry {
    TocEntry {
        path: path.into_bytes(),
        kind: TocEntryKind::File(FileContent { size: number, offset: number * 1024, runs: None }),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: UnixTime { secs: 1_700_000_000, nanos: 0 },
        xattrs: Vec::new(),
        header: number * 1024,
    }
}
