//! The rules of the union one by one, and the answers of a frozen tree. The model in `tests/model` covers how the rules
//! meet each other; here each is told alone.

use crate::io::{FaultClass, TAR_END, TarEntry, TarKind};
use crate::layer::{DeviceNumber, FileContent, SparseRun, TableOfContents, TocEntry, TocEntryKind, UnixTime};

use super::{
    ArchiveOverlap, EntryProblem, FollowLinks, FrozenTree, InodeKind, NewKind, NewNode, TreeBuilder,
    TreeError, is_below, lone_file,
};

fn entry(path: impl AsRef<[u8]>, kind: TocEntryKind) -> TocEntry {
    let mode = if kind == TocEntryKind::Directory { 0o700 } else { 0o600 };
    let (path, mtime) = (path.as_ref().to_vec(), UnixTime { secs: 7, nanos: 0 });
    TocEntry { path, kind, mode, uid: 1, gid: 2, mtime, xattrs: Vec::new(), header: 512 }
}

/// A file whose size tells it from others.
fn file(path: impl AsRef<[u8]>, size: u64) -> TocEntry {
    entry(path, TocEntryKind::File(FileContent { size, offset: 1024, runs: None }))
}

fn dir(path: impl AsRef<[u8]>) -> TocEntry {
    entry(path, TocEntryKind::Directory)
}

fn link(path: &str, target: impl AsRef<[u8]>) -> TocEntry {
    entry(path, TocEntryKind::Symlink(target.as_ref().to_vec()))
}

fn hard(path: &str, target: &str) -> TocEntry {
    entry(path, TocEntryKind::HardLink(target.into()))
}

fn hide(path: &str) -> TocEntry {
    file(path, 0)
}

fn build(layers: &[&[TocEntry]]) -> Result<FrozenTree, TreeError> {
    let mut builder = TreeBuilder::new();
    for (origin, entries) in layers.iter().enumerate() {
        builder.apply(origin as u32, &entries.iter().cloned().collect())?;
    }
    Ok(builder.freeze())
}

fn problem(layers: &[&[TocEntry]]) -> EntryProblem {
    match build(layers).map(|tree| names(&tree)) {
        Err(TreeError::Entry { problem, .. }) => problem,
        other => panic!("not rejected: {other:?}"),
    }
}

/// All paths, directories with a slash at the end, links with their target, files with their size.
fn names(tree: &FrozenTree) -> Vec<String> {
    let name = |(path, ino): (Vec<u8>, u32)| {
        let path = String::from_utf8_lossy(&path).into_owned();
        let attr = tree.attr(ino).unwrap();
        match attr.kind {
            InodeKind::Directory => format!("{path}/"),
            InodeKind::Symlink => format!("{path}->{}", String::from_utf8_lossy(tree.link(ino).unwrap())),
            InodeKind::File => format!("{path}={}", attr.size),
            kind => format!("{path} {kind:?}"),
        }
    };
    tree.walk().map(name).collect()
}

fn union(layers: &[&[TocEntry]]) -> Vec<String> {
    names(&build(layers).unwrap())
}

fn at(tree: &FrozenTree, path: &str) -> u32 {
    tree.resolve(path.as_bytes(), FollowLinks::Parents).unwrap().ino
}

// Whiteouts.

#[test]
fn a_whiteout_hides_the_lower_file_but_not_its_own_layers_before_or_after_it() {
    assert_eq!(union(&[&[file("a", 1)], &[hide(".wh.a")]]), [""; 0]);
    assert_eq!(union(&[&[file("a", 1)], &[hide(".wh.a"), file("a", 2)]]), ["a=2"]);
    assert_eq!(union(&[&[file("a", 1)], &[file("a", 2), hide(".wh.a")]]), ["a=2"]);
    assert_eq!(
        union(&[&[file("d/low", 1)], &[file("d/up", 2), hide(".wh.d")]]),
        ["d/", "d/up=2"],
        "a whiteout of a directory that the layer fills again"
    );
}

#[test]
fn opaque_marker_hides_lower_entries_and_keeps_the_directory() {
    let lower = [dir("d"), file("d/low", 1), file("e", 1)];
    let tree = build(&[&lower, &[file("d/up", 2), hide("d/.wh..wh..opq")]]).unwrap();
    assert_eq!(names(&tree), ["d/", "d/up=2", "e=1"]);
    assert_eq!(tree.attr(at(&tree, "d")).unwrap().mode, 0o700);
    assert_eq!(union(&[&lower, &[hide("d/.wh..wh..opq"), file("d/up", 2)]]), ["d/", "d/up=2", "e=1"]);
    assert_eq!(union(&[&lower, &[file("up", 2), hide(".wh..wh..opq")]]), ["up=2"]);
}

#[test]
fn a_whiteout_of_nothing_there_creates_nothing() {
    let lower = [file("f", 1), link("dead", "/gone")];
    let upper =
        [hide(".wh.x"), hide("x/y/.wh.z"), hide("f/.wh.x"), hide("dead/.wh.x"), hide("q/.wh..wh..opq")];
    assert_eq!(union(&[&lower, &upper]), ["dead->/gone", "f=1"]);
}

#[test]
fn a_whiteout_that_names_nothing_is_rejected_before_anything_is_touched() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."] {
        let mut builder = TreeBuilder::new();
        builder.apply(0, &TableOfContents::from_iter([file("a", 1)])).unwrap();
        let error = builder
            .apply(1, &TableOfContents::from_iter([file("new", 1), hide(".wh.a"), hide(name)]))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("layer 1: entry {name:?} at stream offset 512: a whiteout that names no file")
        );
        assert_eq!(error.fault(), FaultClass::Malformed);
        assert_eq!(names(&builder.freeze()), ["a=1"]);
    }
}

#[test]
fn leftovers_of_aufs_are_hidden_with_all_that_is_below_them() {
    let upper = [dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", 1), file("d/.wh..wh.aufs", 0), file("d/f", 2)];
    assert_eq!(union(&[&upper]), ["d/", "d/f=2"]);
}

#[test]
fn a_whiteout_prefix_in_the_middle_of_a_path_is_a_plain_directory() {
    assert_eq!(union(&[&[file("etc", 1)], &[file(".wh.etc/f", 2)]]), [".wh.etc/", ".wh.etc/f=2", "etc=1"]);
}

#[test]
fn a_whiteout_reaches_through_a_lower_link_unless_the_layer_replaces_the_link_by_a_directory() {
    let lower = [file("etc/f", 1), file("etc/g", 1), link("l", "/etc")];
    assert_eq!(union(&[&lower, &[hide("l/.wh.f")]]), ["etc/", "etc/g=1", "l->/etc"]);
    assert_eq!(union(&[&lower, &[hide("l/.wh..wh..opq")]]), ["etc/", "l->/etc"]);
    assert_eq!(union(&[&lower, &[hide("l/.wh.f"), dir("l")]]), ["etc/", "etc/f=1", "etc/g=1", "l/"]);
    assert_eq!(union(&[&lower, &[dir("l"), hide("l/.wh..wh..opq")]]), ["etc/", "etc/f=1", "etc/g=1", "l/"]);
}

#[test]
fn a_whiteout_of_a_link_takes_the_link_and_not_its_target() {
    assert_eq!(union(&[&[file("etc/f", 1), link("l", "/etc")], &[hide(".wh.l")]]), ["etc/", "etc/f=1"]);
}

#[test]
fn whiteouts_of_one_layer_do_not_depend_on_their_order() {
    let lower = [file("etc/f", 1), link("l", "etc")];
    assert_eq!(union(&[&lower, &[hide(".wh.l"), hide("l/.wh.f")]]), ["etc/"]);
    assert_eq!(union(&[&lower, &[hide("l/.wh.f"), hide(".wh.l")]]), ["etc/"]);
}

// Names and parents.

#[test]
fn names_are_clamped_to_the_root() {
    for name in ["../f", "a/../../f", "/f", "./f", "//../f", "f/"] {
        assert_eq!(union(&[&[file(name, 1)]]), ["f=1"], "{name}");
    }
}

#[test]
fn a_link_target_is_kept_verbatim() {
    for target in ["../../..//x/", "/", "no/where", ".", "\u{1}\u{7f}"] {
        let tree = build(&[&[link("l", target)]]).unwrap();
        assert_eq!(tree.link(at(&tree, "l")), Some(target.as_bytes()));
        let attr = tree.attr(at(&tree, "l")).unwrap();
        assert_eq!((attr.mode, attr.size), (0o777, target.len() as u64));
    }
    let tree = build(&[&[link("l", b"\xff\xfe")]]).unwrap();
    assert_eq!(tree.link(at(&tree, "l")), Some(&b"\xff\xfe"[..]));
}

#[test]
fn a_child_of_a_link_lands_where_the_link_leads_inside_the_tree() {
    let z = dir("d/z");
    for target in ["z", "/d/z", "../d/z", "../../../../d/z", "./z/.", "gone/../z"] {
        let lower = [z.clone(), link("d/x", target)];
        let expected = ["d/".into(), format!("d/x->{target}"), "d/z/".into(), "d/z/y=1".into()];
        assert_eq!(union(&[&lower, &[file("d/x/y", 1)]]), expected);
    }
    assert_eq!(union(&[&[link("up", "../.."), file("up/f", 1)]]), ["f=1", "up->../.."]);
}

#[test]
fn a_child_of_a_dangling_link_makes_the_directory_the_link_names() {
    let tree = build(&[&[link("x", "/a/b"), file("x/c/f", 1)]]).unwrap();
    assert_eq!(names(&tree), ["a/", "a/b/", "a/b/c/", "a/b/c/f=1", "x->/a/b"]);
    let attr = tree.attr(at(&tree, "a/b")).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime), (0o755, 0, 0, UnixTime::default()));
}

#[test]
fn missing_parents_are_made_0755_and_owned_by_root() {
    let tree = build(&[&[file("a/b/f", 1)]]).unwrap();
    for path in ["a", "a/b"] {
        let attr = tree.attr(at(&tree, path)).unwrap();
        assert_eq!((attr.kind, attr.mode, attr.uid, attr.gid), (InodeKind::Directory, 0o755, 0, 0));
    }
}

#[test]
fn an_entry_for_the_root_sets_its_attributes_and_must_be_a_directory() {
    for root in ["", "/", ".", "./", "..", "a/.."] {
        let tree = build(&[&[file("f", 1)], &[dir(root)]]).unwrap();
        assert_eq!(names(&tree), ["f=1"]);
        let attr = tree.attr(FrozenTree::ROOT).unwrap();
        assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime.secs), (0o700, 1, 2, 7));
        for wrong in [file(root, 1), link(root, "/etc"), hard(root, "f"), entry(root, TocEntryKind::Fifo)] {
            assert_eq!(problem(&[&[file("f", 1)], &[wrong]]), EntryProblem::RootNotADirectory, "{root:?}");
        }
    }
}

#[test]
fn an_entry_below_something_that_is_no_directory_is_rejected() {
    for lower in [file("x", 1), link("x", "f"), entry("x", TocEntryKind::Fifo)] {
        let lower = [file("f", 1), lower];
        assert_eq!(problem(&[&lower, &[file("x/y", 1)]]), EntryProblem::BelowNonDirectory);
        assert_eq!(problem(&[&lower, &[dir("x/y/z")]]), EntryProblem::BelowNonDirectory);
    }
}

#[test]
fn forty_links_are_followed_and_the_forty_first_is_not() {
    let chain = |links: usize| -> Vec<TocEntry> {
        let step = |n| link(&format!("l{n}"), format!("l{}", n + 1));
        let mut entries: Vec<TocEntry> = (0..links - 1).map(step).collect();
        entries.push(link(&format!("l{}", links - 1), "d"));
        entries.extend([dir("d"), file("l0/f", 1)]);
        entries
    };
    let tree = build(&[&chain(40)]).unwrap();
    assert_eq!(tree.resolve(b"l0/f", FollowLinks::Parents), tree.resolve(b"d/f", FollowLinks::Parents));
    assert_eq!(problem(&[&chain(41)]), EntryProblem::BelowNonDirectory);
    assert_eq!(
        problem(&[&[link("a", "b"), link("b", "a"), file("a/f", 1)]]),
        EntryProblem::BelowNonDirectory
    );
}

#[test]
fn names_and_paths_over_the_limit_are_rejected_also_where_links_lead() {
    let long = "n".repeat(255);
    assert_eq!(union(&[&[file(&long, 1)]]).len(), 1);
    assert_eq!(problem(&[&[file("n".repeat(256), 1)]]), EntryProblem::NameTooLong { len: 256 });
    let path = format!("{}{}", "d/".repeat(1920), "n".repeat(255));
    assert_eq!(path.len(), 4095);
    assert_eq!(union(&[&[file(format!("x/../{path}"), 1)]]).len(), 1921);
    assert_eq!(union(&[&[file(format!("{path}/"), 1)]]).len(), 1921);
    assert_eq!(problem(&[&[file(format!("{path}/n"), 1)]]), EntryProblem::PathTooLong { len: 4097 });
    let deep = link("l", "d/".repeat(2047));
    assert_eq!(union(&[&[deep.clone(), file("l/n", 1)]]).len(), 2049);
    assert_eq!(problem(&[&[deep, file("l/nnn", 1)]]), EntryProblem::PathTooLong { len: 4097 });
    assert_eq!(
        problem(&[&[link("l", "n".repeat(256)), file("l/f", 1)]]),
        EntryProblem::NameTooLong { len: 256 }
    );
    assert_eq!(problem(&[&[link("l", "/".repeat(4097)), file("l/f", 1)]]), EntryProblem::BelowNonDirectory);
}

#[test]
fn names_are_bytes() {
    let tree = build(&[&[file(b"hi\x80\xffbye", 1)]]).unwrap();
    assert_eq!(tree.walk().next().unwrap().0, b"hi\x80\xffbye");
    assert!(tree.lookup(FrozenTree::ROOT, b"hi\x80\xffbye").is_some());
}

// One thing over another.

#[test]
fn entry_of_another_type_replaces_the_old_one_with_its_subtree() {
    let filled = [file("d/f", 1)];
    assert_eq!(union(&[&filled, &[file("d", 2)]]), ["d=2"]);
    assert_eq!(union(&[&filled, &[link("d", "x")]]), ["d->x"]);
    assert_eq!(union(&[&[file("d", 1)], &[dir("d")]]), ["d/"]);
    assert_eq!(
        union(&[&[link("d", "e"), file("e/f", 1)], &[dir("d"), file("d/g", 2)]]),
        ["d/", "d/g=2", "e/", "e/f=1"]
    );
}

#[test]
fn a_directory_over_a_directory_replaces_attributes_and_xattrs_and_keeps_children() {
    let mut lower = dir("d");
    lower.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    let mut upper = dir("d");
    (upper.mode, upper.uid, upper.mtime) = (0o711, 9, UnixTime { secs: -1, nanos: 5 });
    let tree = build(&[&[lower, file("d/f", 1)], &[upper]]).unwrap();
    assert_eq!(names(&tree), ["d/", "d/f=1"]);
    let attr = tree.attr(at(&tree, "d")).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.mtime), (0o711, 9, UnixTime { secs: -1, nanos: 5 }));
    assert_eq!(tree.xattrs(at(&tree, "d")).count(), 0);
}

#[test]
fn the_same_name_twice_in_one_layer_is_the_last_one() {
    assert_eq!(union(&[&[file("f", 1), file("f", 2)]]), ["f=2"]);
    assert_eq!(union(&[&[file("f", 1), link("f", "x")]]), ["f->x"]);
}

// Hard links.

#[test]
fn a_hard_link_shares_the_inode_and_gives_it_its_own_metadata() {
    let mut second = hard("b", "/../a");
    (second.mode, second.uid, second.gid, second.mtime) = (0o4755, 8, 9, UnixTime { secs: 3, nanos: 4 });
    let tree = build(&[&[file("a", 1)], &[second]]).unwrap();
    assert_eq!(at(&tree, "a"), at(&tree, "b"));
    let attr = tree.attr(at(&tree, "a")).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.nlink), (0o4755, 8, 9, 2));
    assert_eq!(attr.mtime, UnixTime { secs: 3, nanos: 4 });
    assert_eq!(tree.file(at(&tree, "b")).unwrap().origin, 0);
}

#[test]
fn a_hard_link_replaces_xattrs_only_when_it_records_some() {
    let mut first = file("a", 1);
    first.xattrs = vec![(b"security.capability".to_vec(), b"1".to_vec())];
    let tree = build(&[&[first.clone(), hard("b", "a")]]).unwrap();
    assert_eq!(tree.xattrs(at(&tree, "b")).collect::<Vec<_>>(), [(&b"security.capability"[..], &b"1"[..])]);
    let mut second = hard("b", "a");
    second.xattrs = vec![(b"user.b".to_vec(), b"2".to_vec())];
    let tree = build(&[&[first, second]]).unwrap();
    assert_eq!(tree.xattrs(at(&tree, "a")).collect::<Vec<_>>(), [(&b"user.b"[..], &b"2"[..])]);
}

#[test]
fn hard_link_to_a_later_entry_or_a_directory_is_rejected() {
    let nothing = EntryProblem::LinkToNothing { target: "\"a\"".into() };
    let missing = EntryProblem::LinkToNothing { target: "\"c\"".into() };
    assert_eq!(problem(&[&[hard("b", "a"), file("a", 1)]]), nothing);
    assert_eq!(
        problem(&[&[file("a", 1)], &[dir("a"), file("a", 2), hide(".wh.c"), hard("b", "c")]]),
        missing
    );
    assert_eq!(
        problem(&[&[dir("a"), hard("b", "a")]]),
        EntryProblem::LinkToDirectory { target: "\"a\"".into() }
    );
    assert_eq!(problem(&[&[hard("b", "..")]]), EntryProblem::LinkToDirectory { target: "\"..\"".into() });
}

#[test]
fn a_hard_link_to_a_symlink_is_a_second_name_of_it() {
    let tree = build(&[&[link("l", "gone"), hard("m", "l")]]).unwrap();
    assert_eq!(names(&tree), ["l->gone", "m->gone"]);
    assert_eq!(at(&tree, "l"), at(&tree, "m"));
    assert_eq!(tree.attr(at(&tree, "m")).unwrap().mode, 0o777);
}

#[test]
fn the_target_of_a_hard_link_is_found_through_links_among_its_parents() {
    let tree = build(&[&[file("etc/p", 1), link("l", "../../etc"), hard("q", "l/p")]]).unwrap();
    assert_eq!(at(&tree, "q"), at(&tree, "etc/p"));
}

#[test]
fn a_hard_link_to_itself_keeps_the_file() {
    let tree = build(&[&[file("a", 1), hard("a", "a"), hard("b", "a"), hard("a", "b")]]).unwrap();
    assert_eq!(names(&tree), ["a=1", "b=1"]);
    assert_eq!(tree.attr(at(&tree, "a")).unwrap().nlink, 2);
}

#[test]
fn a_hard_link_whose_sibling_is_hidden_or_replaced_keeps_its_content() {
    let lower = [file("a", 1), hard("b", "a"), hard("c", "a")];
    let tree = build(&[&lower, &[hide(".wh.a"), file("b", 2)]]).unwrap();
    assert_eq!(names(&tree), ["b=2", "c=1"]);
    assert_eq!(tree.attr(at(&tree, "c")).unwrap().nlink, 1);
    assert_eq!(tree.len(), 3);
}

// What entries carry.

#[test]
fn hard_link_reaches_a_file_whited_out_in_its_own_layer() {
    let lower = [dir("d"), file("d/f", 1), file("f", 2)];
    for upper in [[hard("g", "f"), hide(".wh.f")], [hide(".wh.f"), hard("g", "f")]] {
        let tree = build(&[&lower, &upper]).unwrap();
        assert_eq!(names(&tree), ["d/", "d/f=1", "g=2"]);
        assert_eq!(tree.attr(at(&tree, "g")).unwrap().nlink, 1);
    }
    for marker in ["d/.wh..wh..opq", ".wh.d", ".wh..wh..opq"] {
        assert!(
            union(&[&lower, &[hide(marker), hard("g", "./d/f")]]).contains(&"g=1".to_owned()),
            "{marker}"
        );
    }
    assert_eq!(
        union(&[&lower, &[hide(".wh.f"), file("f", 3), hard("g", "f")]]),
        ["d/", "d/f=1", "f=3", "g=3"]
    );
    let replaced = problem(&[&lower, &[hide(".wh.f"), file("d", 3), hard("g", "d/f")]]);
    assert_eq!(replaced, EntryProblem::LinkToNothing { target: "\"d/f\"".into() }, "replaced, not hidden");
    assert!(matches!(
        problem(&[&lower, &[hide(".wh.d"), hard("g", "d")]]),
        EntryProblem::LinkToDirectory { .. }
    ));
}

#[test]
fn links_into_the_bookkeeping_of_aufs_are_files_and_the_bookkeeping_is_not_shown() {
    let plnk = [dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", 7), dir(".wh..wh.orph")];
    let links = [hard("usr/a", ".wh..wh.plnk/1.2"), hard("usr/b", "./.wh..wh.plnk/1.2")];
    let tree = build(&[&[&plnk[..], &links].concat()]).unwrap();
    assert_eq!(names(&tree), ["usr/", "usr/a=7", "usr/b=7"]);
    assert_eq!(tree.attr(at(&tree, "usr/a")).unwrap().nlink, 2);
    assert_eq!(at(&tree, "usr/a"), at(&tree, "usr/b"));
    assert_eq!(union(&[&plnk, &links]), ["usr/", "usr/a=7", "usr/b=7"], "in a layer above");
    let nothing = problem(&[&[&plnk[..], &[hard("a", ".wh..wh.plnk/3.4")]].concat()]);
    assert_eq!(nothing, EntryProblem::LinkToNothing { target: "\".wh..wh.plnk/3.4\"".into() });
    // What aufs left may be odd, as long as nothing means it.
    let odd = [dir(".wh..wh.plnk"), hard(".wh..wh.plnk/1.2", "nothing"), file("f", 1)];
    assert_eq!(union(&[&odd]), ["f=1"]);
    // Only a path of the bookkeeping leads into it: the directory `b` above an entry of aufs is no target.
    let lower = [link("b", "c"), file("b/.wh..wh.x", 1)];
    let upper = [hide(".wh..wh..opq"), hard("a", "b")];
    assert_eq!(union(&[&lower, &upper]), ["a->c"]);
}

#[test]
fn a_char_device_0_0_is_a_device_and_hides_nothing() {
    let device = entry("f", TocEntryKind::CharDevice(DeviceNumber::default()));
    let tree = build(&[&[file("f", 1), file("g", 1)], &[device]]).unwrap();
    assert_eq!(names(&tree), ["f CharDevice", "g=1"]);
    let device = entry("d", TocEntryKind::BlockDevice(DeviceNumber { major: 259, minor: 70000 }));
    let tree = build(&[&[device]]).unwrap();
    assert_eq!(tree.attr(at(&tree, "d")).unwrap().rdev, DeviceNumber { major: 259, minor: 70000 });
}

#[test]
fn sparse_runs_and_times_before_1970_are_kept() {
    let runs = vec![SparseRun { offset: 10, len: 5 }, SparseRun { offset: 1 << 40, len: 1 }];
    let content = FileContent { size: 1 << 41, offset: 99, runs: Some(runs.clone()) };
    let mut sparse = entry("s", TocEntryKind::File(content));
    sparse.mtime = UnixTime { secs: -5, nanos: 999_999_999 };
    let tree = build(&[&[file("f", 3)], &[sparse]]).unwrap();
    let found = tree.file(at(&tree, "s")).unwrap();
    assert_eq!((found.origin, found.offset, found.size), (1, 99, 1 << 41));
    assert_eq!(found.runs, Some(&runs.clone().into()));
    assert_eq!(tree.attr(at(&tree, "s")).unwrap().mtime, UnixTime { secs: -5, nanos: 999_999_999 });
    assert_eq!(tree.file(at(&tree, "f")).unwrap().runs, None);
}

#[test]
fn every_recorded_xattr_is_visible_verbatim_and_equal_sets_are_kept_once() {
    let set =
        vec![(b"user.\xff".to_vec(), vec![0; 100_000]), (b"security.selinux".to_vec(), b"x\0".to_vec())];
    let entries: Vec<TocEntry> =
        (0..50).map(|n| TocEntry { xattrs: set.clone(), ..file(format!("f{n}"), 1) }).collect();
    let tree = build(&[&entries]).unwrap();
    let found: Vec<_> = tree.xattrs(at(&tree, "f31")).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    assert_eq!(found, set);
    assert!(tree.heap_bytes() < 120_000, "{}", tree.heap_bytes());
}

#[test]
fn a_tree_over_its_limit_of_names_is_refused_as_unsupported() {
    let toc: TableOfContents = (0..4).map(|n| file(format!("{n}"), 1)).collect();
    assert!(TreeBuilder::with_limit(4).apply(0, &toc).is_ok());
    let error = TreeBuilder::with_limit(3).apply(0, &toc).unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unsupported);
    assert!(error.to_string().ends_with("the tree would have more than 3 names"), "{error}");
}

#[test]
fn entries_of_one_directory_go_elsewhere_once_a_name_on_the_way_is_replaced() {
    let tree = build(&[&[
        file("a/b/1", 1),
        file("a/b/2", 2),
        dir("c"),
        link("a/b", "/c"),
        file("a/b/3", 3),
        dir("a/b/"),
        file("a/b/4", 4),
    ]]);
    assert_eq!(names(&tree.unwrap()), ["a/", "a/b/", "a/b/4=4", "c/", "c/3=3"]);
}

// A layer alone.

#[test]
fn a_layer_alone_shows_its_whiteouts_as_files_and_reports_links_to_below() {
    let entries = vec![
        hide("d/.wh.a"),
        hide("d/.wh..wh..opq"),
        hide(".wh."),
        file(".wh..wh.plnk/1", 1),
        hard("n/up", "lower/file"),
        file("f", 2),
        hard("g", "f"),
    ];
    let mut builder = TreeBuilder::new();
    let left_out = builder.apply_alone(0, &entries.into_iter().collect()).unwrap();
    assert_eq!(left_out, [b"n/up"]);
    assert_eq!(
        names(&builder.freeze()),
        [".wh.=0", ".wh..wh.plnk/", ".wh..wh.plnk/1=1", "d/", "d/.wh..wh..opq=0", "d/.wh.a=0", "f=2", "g=2"]
    );
}

#[test]
fn single_layer_rejects_contradictory_archives() {
    for entries in [vec![file("f", 1), file("f/g", 1)], vec![file("/", 1)], vec![dir("d"), hard("h", "d")]] {
        let error = TreeBuilder::new().apply_alone(4, &entries.into_iter().collect()).unwrap_err();
        assert!(error.to_string().starts_with("layer 4: entry"), "{error}");
    }
}

// Made-up trees.

#[test]
fn the_links_that_all_paths_of_a_tree_follow_are_bounded() {
    // Each link is a walk of 801 components to the next one.
    let mut lower = vec![dir("d"), file("e/f", 1)];
    for at in 0..39 {
        lower.push(link(&format!("l{at}"), format!("{}l{}", "d/../".repeat(400), at + 1)));
    }
    lower.push(link("l39", "e"));
    let apply = |steps: u64, entry: TocEntry| {
        let mut builder = TreeBuilder::new();
        builder.apply(0, &lower.iter().cloned().collect()).unwrap();
        builder.link_steps.set(steps);
        builder.apply(1, &[entry].into_iter().collect())
    };
    // Hard links are resolved up to three times.
    let walked = 3 * 40 * 1000;
    for entry in [file("l0/g", 1), hide("l0/.wh.f"), hide("l0/.wh..wh..opq"), hard("h", "l0/f")] {
        assert_eq!(apply(walked, entry.clone()), Ok(()), "{entry:?}");
        let Err(TreeError::Entry { problem, .. }) = apply(walked / 4, entry.clone()) else {
            panic!("{entry:?} was applied")
        };
        assert_eq!(problem, EntryProblem::TooManySteps);
    }
}

#[test]
fn text_of_links_without_components_costs_steps_as_well() {
    let mut builder = TreeBuilder::new();
    let lower = [dir("d"), link("l", format!("{}d", "/".repeat(4000)))];
    builder.apply(0, &lower.into_iter().collect()).unwrap();
    builder.link_steps.set(50);
    assert!(builder.apply(1, &[file("l/f", 1)].into_iter().collect()).is_err());
}

// Archives that are no layers.

/// The union of archives that were made apart, and at which paths they were not.
fn plain(archives: &[&[TocEntry]]) -> (FrozenTree, Vec<String>) {
    let mut builder = TreeBuilder::new();
    let mut paths = Vec::new();
    for (origin, entries) in archives.iter().enumerate() {
        let overlap = builder.apply_plain(origin as u32, &entries.iter().cloned().collect()).unwrap();
        assert_eq!(overlap.count, overlap.replaced.len());
        paths.extend(overlap.replaced.iter().map(|path| String::from_utf8_lossy(path).into_owned()));
        paths.extend(overlap.left_out.iter().map(|path| format!("-{}", String::from_utf8_lossy(path))));
    }
    (builder.freeze(), paths)
}

#[test]
fn plain_archives_merge_and_whiteouts_mean_nothing() {
    let (tree, told) =
        plain(&[&[file("d/a", 1), file("b", 2)], &[hide("d/.wh.a"), hide(".wh..wh..opq"), file("d/c", 3)]]);
    assert_eq!(names(&tree), [".wh..wh..opq=0", "b=2", "d/", "d/.wh.a=0", "d/a=1", "d/c=3"]);
    assert_eq!(told, [""; 0]);
    let (tree, _) = plain(&[&[dir("x")], &[dir("x/.wh."), file(".wh...", 1)]]);
    assert_eq!(names(&tree), [".wh...=1", "x/", "x/.wh./"], "a whiteout of nothing is a name too");
}

#[test]
fn later_plain_archive_wins_and_replaced_paths_are_reported() {
    let first =
        [file("f", 1), link("l", "f"), file("kind/below", 1), file("to", 1), dir("same"), file("d/f", 1)];
    let second =
        [file("f", 2), link("l", "f"), file("kind", 2), file("to/dir", 2), dir("same"), file("d/g", 1)];
    let (tree, told) = plain(&[&first, &second]);
    assert_eq!(names(&tree), ["d/", "d/f=1", "d/g=1", "f=2", "kind=2", "l->f", "same/", "to/", "to/dir=2"]);
    assert_eq!(told, ["f", "kind", "l", "to"]);
    let within = [file("f", 1), file("f", 2), dir("d"), dir("d")];
    assert_eq!(
        plain(&[&within, &[file("e", 1), file("e", 2)]]).1,
        [""; 0],
        "inside of one archive nothing is told"
    );
}

#[test]
fn attributes_of_a_directory_are_those_that_the_last_plain_archive_records() {
    let mode = |entry: TocEntry, mode| TocEntry { mode, ..entry };
    let first = [mode(dir("d"), 0o711), mode(dir("."), 0o750), mode(dir("e"), 0o711)];
    let (tree, _) = plain(&[&first, &[file("d/f", 1), mode(dir("e"), 0o722)], &[file("d/g", 1)]]);
    let modes = ["", "d", "e"].map(|path| tree.attr(at(&tree, path)).unwrap().mode);
    assert_eq!(modes, [0o750, 0o711, 0o722], "a directory that is only implied says nothing");
    let (tree, _) = plain(&[&first, &[mode(dir("./"), 0o777)]]);
    assert_eq!(tree.attr(FrozenTree::ROOT).unwrap().mode, 0o777);
}

#[test]
fn links_of_a_plain_archive_stay_inside_of_it() {
    let first = [file("etc/f", 1), link("l", "/etc"), file("x", 7)];
    let (tree, told) = plain(&[&first, &[file("l/g", 2)]]);
    assert_eq!(names(&tree), ["etc/", "etc/f=1", "l/", "l/g=2", "x=7"]);
    assert_eq!(told, ["l"], "no link of another archive is followed");
    let (tree, told) = plain(&[
        &first,
        &[file("y", 3), hard("z", "y"), hard("stolen", "x"), hard("dir/later", "w"), file("w", 1)],
    ]);
    assert_eq!(told, ["-stolen", "-dir/later"]);
    assert_eq!(at(&tree, "y"), at(&tree, "z"));
    assert_eq!(tree.resolve(b"stolen", FollowLinks::All).map(|found| found.ino).ok(), None);
    let (tree, _) = plain(&[&first, &[file("x", 1), hard("z", "x")]]);
    assert_eq!((tree.attr(at(&tree, "z")).unwrap().size, tree.attr(at(&tree, "z")).unwrap().nlink), (1, 2));
}

#[test]
fn replaced_paths_are_counted_and_only_a_hundred_listed() {
    let many: Vec<TocEntry> = (0..1000).map(|number| file(format!("d/{number}"), 1)).collect();
    let toc: TableOfContents = many.iter().cloned().collect();
    let mut builder = TreeBuilder::new();
    assert_eq!(builder.apply_plain(0, &toc).unwrap(), ArchiveOverlap::default());
    let overlap = builder.apply_plain(1, &toc).unwrap();
    assert_eq!((overlap.count, overlap.replaced.len()), (1000, 100));
}

#[test]
fn plain_archives_over_the_limit_or_malformed_are_refused() {
    let toc: TableOfContents = [file("a", 1), file("b", 1)].into_iter().collect();
    let mut builder = TreeBuilder::with_limit(5);
    builder.apply_plain(0, &toc).unwrap();
    assert_eq!(builder.apply_plain(1, &toc).unwrap_err().fault(), FaultClass::Unsupported);
    let below: TableOfContents = [file("a", 1), file("a/b", 1)].into_iter().collect();
    let mut builder = TreeBuilder::new();
    builder.apply_plain(0, &toc).unwrap();
    assert_eq!(builder.apply_plain(1, &below).unwrap_err().fault(), FaultClass::Malformed);
}

#[test]
fn an_archive_whose_start_has_a_second_entry_is_no_lone_file() {
    let archive = |entries: &[(&str, TarKind<'_>)]| {
        let mut bytes = Vec::new();
        for (path, kind) in entries {
            bytes.extend(TarEntry::new(path.as_bytes(), *kind, 0o644).header());
        }
        bytes.resize(bytes.len() + TAR_END, 0);
        bytes
    };
    let app = ("app", TarKind::File(0));
    assert_eq!(lone_file(&archive(&[app])), Some((b"app".to_vec(), 0)));
    for second in [TarKind::File(0), TarKind::Directory, TarKind::Symlink(b"app"), TarKind::Fifo] {
        assert_eq!(lone_file(&archive(&[app, ("README", second)])), None, "{second:?}");
    }
    assert_eq!(lone_file(&archive(&[("d/", TarKind::Directory)])), None);
    let large = archive(&[("app", TarKind::File(1 << 30))]);
    assert_eq!(lone_file(&large[..512]), Some((b"app".to_vec(), 1 << 30)), "its content is beyond the start");
}

fn below(directory: &str, entries: &[TocEntry]) -> Result<FrozenTree, TreeError> {
    let toc: TableOfContents = entries.iter().cloned().collect();
    let mut builder = TreeBuilder::new();
    let applied = builder.apply_below(0, &toc, directory.as_bytes());
    let outside = matches!(
        &applied,
        Err(TreeError::Entry { problem: EntryProblem::Outside { .. } | EntryProblem::RootNotADirectory, .. })
    );
    if !entries.iter().any(|entry| matches!(entry.kind, TocEntryKind::HardLink(_))) {
        assert_eq!(is_below(&toc, directory.as_bytes()), !outside);
    }
    applied.map(|()| builder.freeze())
}

#[test]
fn an_archive_of_a_directory_is_shown_as_that_directory() {
    let entries =
        [dir("a/b/"), file("a/b/f", 1), hard("./a/b/d/h", "a/b/f"), link("/a/b/l", "f"), hide("a//b/.wh.f")];
    let tree = below("a/b", &entries).unwrap();
    assert_eq!(names(&tree), [".wh.f=0", "d/", "d/h=1", "f=1", "l->f"]);
    assert_eq!(
        tree.attr(FrozenTree::ROOT).unwrap().mode,
        0o700,
        "the entry of the directory is that of the root"
    );
    assert_eq!(at(&tree, "d/h"), at(&tree, "f"));
    assert_eq!(names(&below("a/b", &[dir("./"), dir("a"), file("a/x/../b/f", 1)]).unwrap()), ["f=1"]);
    assert_eq!(names(&below("", &[dir("./"), file("f", 1)]).unwrap()), ["f=1"], "all of it");
    assert_eq!(names(&below("a", &[]).unwrap()), [""; 0]);
}

#[test]
fn an_entry_outside_of_the_directory_is_named() {
    for (outside, shown) in [
        (file("x", 1), "\"x\""),
        (file("a/x", 1), "\"a/x\""),
        (file("a/bc", 1), "\"a/bc\""),
        (file("a/b/../../etc/passwd", 1), "etc/passwd"),
        (file("../a/c/b", 1), "\"../a/c/b\""),
        (link("a", "/"), "\"a\""),
        (dir("b"), "\"b\""),
        (hard("a/b/h", "a/f"), "\"a/f\""),
    ] {
        let error = below("a/b", &[file("a/b/f", 1), outside]).unwrap_err();
        assert_eq!(error.fault(), FaultClass::Malformed);
        let text = error.to_string();
        assert!(text.contains(shown) && text.contains("outside of \"a/b\""), "{text}");
    }
    let error = below("a/b", &[file("a/b", 1)]).unwrap_err().to_string();
    assert!(error.contains("the root cannot be anything but a directory"), "{error}");
    let error = below("a", &[hard("a/h", "a/gone")]).unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
}

fn node(kind: NewKind) -> NewNode {
    NewNode { kind, mode: 0o444, uid: 0, gid: 0, mtime: UnixTime::default() }
}

#[test]
fn inserting_makes_parents_0555_and_refuses_a_name_twice() {
    let mut builder = TreeBuilder::new();
    builder.insert(b"layers/00/x", node(NewKind::File { origin: 3, size: 9 })).unwrap();
    builder.insert(b"layers/00.tar", node(NewKind::Symlink(b"../x".to_vec()))).unwrap();
    for path in [&b"layers"[..], b"layers/00", b"layers/00/x", b"layers/00.tar"] {
        let error = builder.insert(path, node(NewKind::Directory)).unwrap_err();
        assert!(matches!(error, TreeError::Insert { problem: EntryProblem::Exists, .. }), "{error}");
        assert_eq!(error.fault(), FaultClass::Usage);
    }
    for path in [&b"layers/00/x/y"[..], b"layers/00.tar/y"] {
        let error = builder.insert(path, node(NewKind::Directory)).unwrap_err();
        assert!(
            matches!(error, TreeError::Insert { problem: EntryProblem::BelowNonDirectory, .. }),
            "{error}"
        );
    }
    let tree = builder.freeze();
    assert_eq!(names(&tree), ["layers/", "layers/00/", "layers/00/x=9", "layers/00.tar->../x"]);
    assert_eq!(tree.attr(at(&tree, "layers/00")).unwrap().mode, 0o555);
    assert_eq!(tree.file(at(&tree, "layers/00/x")).unwrap().origin, 3);
}

#[test]
fn inserting_refuses_names_that_are_none() {
    let long = [b'n'; 256];
    for path in [&b""[..], b".", b"..", b"/a", b"a/", b"a//b", b"a/../b", b"a/./b", b"a\0b", b"a/b\0", &long]
    {
        let mut builder = TreeBuilder::new();
        let error = builder.insert(path, node(NewKind::Directory)).unwrap_err();
        assert_eq!(error.fault(), FaultClass::Usage, "{path:?}");
        assert_eq!(builder.freeze().len(), 1, "{path:?} left something behind");
    }
}

// The frozen tree.

#[test]
fn children_are_in_order_of_their_bytes_and_listings_start_anywhere() {
    let tree = build(&[&[file("b", 1), file("a-", 1), dir("a"), file("B", 1), file(b"\xff", 1)]]).unwrap();
    let list = |skip| tree.entries(FrozenTree::ROOT, skip).map(|(name, _)| name.to_vec()).collect::<Vec<_>>();
    let all = [&b"B"[..], b"a", b"a-", b"b", b"\xff"];
    for skip in 0..=5 {
        assert_eq!(list(skip), all[skip..]);
    }
    assert_eq!(list(6), [b""; 0]);
    assert_eq!(list(usize::MAX), [b""; 0]);
    assert_eq!(tree.entry_count(FrozenTree::ROOT), 5);
    for (name, ino) in tree.entries(FrozenTree::ROOT, 0) {
        assert_eq!(tree.lookup(FrozenTree::ROOT, name), Some(ino));
    }
    assert_eq!(tree.lookup(FrozenTree::ROOT, b"aa"), None);
    assert_eq!(tree.lookup(at(&tree, "b"), b"x"), None);
    assert_eq!(tree.entries(at(&tree, "b"), 0).count(), 0);
}

#[test]
fn a_number_out_of_range_has_no_answer() {
    let tree = build(&[&[file("f", 1)]]).unwrap();
    for ino in [2, 1000, u32::MAX] {
        assert_eq!(tree.attr(ino), None);
        assert_eq!(tree.lookup(ino, b"f"), None);
        assert_eq!(tree.entries(ino, 0).count(), 0);
        assert_eq!(tree.parent(ino), FrozenTree::ROOT);
        assert_eq!((tree.link(ino), tree.file(ino)), (None, None));
        assert_eq!(tree.xattrs(ino).count(), 0);
    }
}

#[test]
fn a_directory_counts_its_subdirectories_as_links() {
    let tree = build(&[&[dir("a"), dir("b"), dir("b/c"), file("f", 1), link("l", "a")]]).unwrap();
    let nlink = |path| tree.attr(at(&tree, path)).unwrap().nlink;
    assert_eq!((nlink(""), nlink("a"), nlink("b"), nlink("f")), (4, 2, 3, 1));
}

#[test]
fn equal_layers_give_equal_numbers() {
    let layers: [&[TocEntry]; 2] =
        [&[file("z/f", 1), file("a", 1), dir("m")], &[hide(".wh.a"), hard("q", "z/f")]];
    let numbers = |tree: FrozenTree| tree.walk().collect::<Vec<_>>();
    assert_eq!(numbers(build(&layers).unwrap()), numbers(build(&layers).unwrap()));
    assert_eq!(build(&layers).unwrap().resolve(b"/", FollowLinks::All).unwrap().ino, FrozenTree::ROOT);
}

#[test]
fn resolving_follows_links_inside_the_tree_and_clamps() {
    let layer = [
        file("d/e/f", 1),
        link("d/up", "../../.."),
        link("abs", "/d/e"),
        link("last", "d/e/f"),
        link("loop", "loop"),
        link("dead", "gone"),
    ];
    let tree = build(&[&layer]).unwrap();
    let f = at(&tree, "d/e/f");
    for path in ["/d/e/f", "abs/f", "d/up/abs/f", "../d/./e//f", "d/e/../../last", "d/up/../last"] {
        assert_eq!(tree.resolve(path.as_bytes(), FollowLinks::All).unwrap().ino, f, "{path}");
    }
    assert_eq!(tree.attr(at(&tree, "last")).unwrap().kind, InodeKind::Symlink);
    let error = |path: &str| tree.resolve(path.as_bytes(), FollowLinks::All).unwrap_err();
    assert_eq!(error("dead"), TreeError::NotFound { path: "\"dead\"".into() });
    assert_eq!(error("d/x"), TreeError::NotFound { path: "\"d/x\"".into() });
    assert_eq!(error("last/x"), TreeError::NotADirectory { path: "\"last/x\"".into() });
    assert_eq!(error("last/.."), TreeError::NotADirectory { path: "\"last/..\"".into() });
    assert_eq!(error("loop"), TreeError::TooManyLinks { path: "\"loop\"".into() });
}

#[test]
fn resolving_ends_at_a_graft_with_the_rest_of_the_path() {
    let mut builder = TreeBuilder::new();
    builder.insert(b"platforms/arm64", node(NewKind::Graft(7))).unwrap();
    builder.insert(b"now", node(NewKind::Symlink(b"platforms/arm64/merged".to_vec()))).unwrap();
    let tree = builder.freeze();
    let graft = at(&tree, "platforms/arm64");
    assert_eq!(tree.attr(graft).unwrap().kind, InodeKind::Graft(7));
    assert_eq!(tree.attr(at(&tree, "platforms")).unwrap().nlink, 3);
    let resolved = tree.resolve(b"now/etc/../f", FollowLinks::All).unwrap();
    assert_eq!((resolved.ino, resolved.rest.as_slice()), (graft, &b"merged/etc/../f"[..]));
    assert_eq!(tree.resolve(b"platforms/arm64", FollowLinks::All).unwrap().rest, b"");
}

#[test]
fn a_tree_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    shared(&build(&[]).unwrap());
    assert!(build(&[]).unwrap().is_empty());
}
