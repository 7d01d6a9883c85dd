//! Tests of the test parts: a comparer that finds nothing and a registry that counts nothing would prove nothing.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::net::{getsockname, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::json;

use crate::artifact::{OS_IMAGE, Piece, QCOW2_PART, manifest};
use crate::byte_text::digest_of;
use crate::compare::{Entry, differences, hard_links, read_tree};
use crate::corpus;
use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::http;
use crate::layout::{Layer, Layout, MANIFEST};
use crate::process::{Need, able, run, sh};
use crate::real_registry::{PASSWORD, RealRegistry, USER};
use crate::scratch::{Scratch, mounted_at};
use crate::tarball::{Tarball, noise};

const ALL: [Encoding; 5] =
    [Encoding::Plain, Encoding::Gzip, Encoding::GzipMembers, Encoding::Zstd, Encoding::ZstdFrames];

/// Makes a tree in `$1` with one of everything.
const TREE: &str = "cd $1; mkdir dir; echo a > file; ln file twin; echo b > single; ln -s target link; mknod dev c 4 5; \
                    echo x > attr; setfattr -n user.x -v y attr; touch -d @1.5 dir file single dev attr; touch -h -d @1.5 link";

#[test]
fn the_comparer_finds_nothing_in_a_copy() {
    if !able(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let (a, b) = (scratch.subdir("a"), scratch.join("b"));
    sh(TREE, &[&a]);
    sh("cp -a $1 $2", &[&a, &b]);
    let found = differences(&read_tree(&a).unwrap(), &read_tree(&b).unwrap());
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_comparer_finds_every_single_change() {
    if !able(&[Need::Root]) {
        return;
    }
    let changes = [
        ("chmod 600 single", "/single: mode"),
        ("chown 7 single", "/single: uid"),
        ("chgrp 7 single", "/single: gid"),
        ("printf bb > single; touch -d @1.5 single", "/single: sha256"),
        ("echo bb > single; touch -d @1.5 single", "/single: size"),
        ("touch -d @1.500000001 single", "/single: mtime"),
        ("touch -h -d @2 link", "/link: mtime"),
        ("ln -sf other link; touch -h -d @1.5 link", "/link: link"),
        ("rm dev; mknod dev c 4 6; touch -d @1.5 dev", "/dev: device"),
        ("rm dev; mknod dev b 4 5; touch -d @1.5 dev", "/dev: mode"),
        ("setfattr -n user.x -v z attr", "/attr: xattrs"),
        ("setfattr -x user.x attr", "/attr: xattrs"),
        ("setfattr -n user.more -v '' dir", "/dir: xattrs"),
        ("rm twin; cp -a file twin", "one inode only in the first tree"),
        ("rm single; ln file single", "one inode only in the second tree"),
        ("rm single", "/single: only in the first tree"),
        ("touch new", "/new: only in the second tree"),
    ];
    let scratch = Scratch::new();
    let a = scratch.subdir("a");
    sh(TREE, &[&a]);
    let left = read_tree(&a).unwrap();
    for (index, (change, expected)) in changes.iter().enumerate() {
        let b = scratch.join(format!("b{index}"));
        sh("cp -a $1 $2", &[&a, &b]);
        // The root's own mtime changes with its entries and is put back.
        sh(&format!("cd $1; {change}; touch -r $2 $1"), &[&b, &a]);
        let found = differences(&left, &read_tree(&b).unwrap());
        assert!(found.iter().any(|line| line.contains(expected)), "{change}: {found:?}");
    }
}

#[test]
fn the_corpus_has_125_cases_and_knows_names_that_are_not_text() {
    if !able(&[Need::Path(&corpus::directory())]) {
        return;
    }
    let cases = corpus::cases();
    assert_eq!(cases.len(), 125);
    assert_eq!(cases.iter().filter(|case| case.tree.is_none()).count(), 27);
    let scratch = Scratch::new();
    let odd = cases.iter().find(|case| case.name == "go/gnu-not-utf8.tar").unwrap();
    let name = crate::byte_text::path_of(b"hi\x80\x81\x82\x83bye");
    fs::write(scratch.join(name), b"").unwrap();
    let found = odd.differences(&read_tree(scratch.path()).unwrap());
    assert!(
        found.iter().all(|line| !line.contains("missing") && !line.contains("not expected")),
        "{found:?}"
    );
}

#[test]
fn the_corpus_comparer_agrees_with_umoci_and_notices_a_change() {
    if !able(&[Need::Root, Need::Tool("umoci"), Need::Path(&corpus::directory())]) {
        return;
    }
    let scratch = Scratch::new();
    let cases = corpus::cases();
    let case = cases.iter().find(|case| case.name == "go/hardlink.tar").unwrap();
    let mut layout = Layout::create(scratch.join("layout"));
    let layers: Vec<Layer> = case.layers.iter().map(|tar| Layer::of(tar, Encoding::Gzip)).collect();
    layout.image("case", &layers);
    let (image, out) = (scratch.join("layout:case"), scratch.join("out"));
    run(Command::new("umoci").args(["raw", "unpack", "--image"]).arg(image).arg(&out)).ok();
    let found = case.differences(&read_tree(&out).unwrap());
    assert_eq!(found, Vec::<String>::new());
    sh("cd $1; cp -a hard.txt copy; mv copy hard.txt; touch extra", &[&out]);
    let found = case.differences(&read_tree(&out).unwrap()).join("\n");
    assert!(found.contains("extra: not expected") && found.contains("hard links"), "{found}");
}

#[test]
fn every_encoding_decodes_to_the_tar_by_other_tools() {
    if !able(&[Need::Tool("zstd"), Need::Tool("gzip")]) {
        return;
    }
    let scratch = Scratch::new();
    let tar = Tarball::new().dir("d").file("d/f", &noise(9000, 7)).bytes();
    for encoding in ALL {
        let stored = encoding.encode(&tar);
        let tool = match encoding {
            Encoding::Plain => "cat",
            Encoding::Gzip | Encoding::GzipMembers => "gzip -dc",
            Encoding::Zstd | Encoding::ZstdFrames => "zstd -dcq",
        };
        let file = scratch.file(encoding.name(), &stored);
        assert!(sh(&format!("{tool} < $1"), &[&file]).stdout == tar, "{encoding:?}");
        let magic: &[u8] =
            if encoding == Encoding::GzipMembers { &[0x1f, 0x8b, 8] } else { &[0x28, 0xb5, 0x2f, 0xfd] };
        let starts = stored.windows(magic.len()).filter(|window| *window == magic).count();
        let many = matches!(encoding, Encoding::GzipMembers | Encoding::ZstdFrames);
        assert!(!many || starts >= 4, "{encoding:?} has only {starts} pieces");
    }
}

#[test]
fn the_real_registry_counts_requests_and_bytes_and_comes_back_on_its_port() {
    if !able(&[Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let mut registry = RealRegistry::start();
    let body = noise(100_000, 1);
    let digest = registry.push_blob("a/b", &body);
    registry.reset_counts();
    let target = format!("/v2/a/b/blobs/{digest}");
    let whole = http::send(&registry.host(), "GET", &target, &[], &[]).unwrap();
    assert!(whole.body == body);
    let part = http::send(&registry.host(), "GET", &target, &[("Range", "bytes=10-19")], &[]).unwrap();
    assert_eq!((part.status, part.body.as_slice()), (206, &body[10..20]));
    assert_eq!(registry.blob_requests().len(), 2);
    assert_eq!(registry.blob_bytes(), 100_010);
    assert_eq!(registry.bytes_of(&digest), 100_010);
    assert_eq!(registry.blob_requests()[1].status, 206);
    assert_eq!(registry.requests().len(), 2);
    assert!(fs::read(registry.stored_blob(&digest)).unwrap() == body);
    registry.stop();
    assert!(http::send(&registry.host(), "GET", "/v2/", &[], &[]).is_err());
    registry.resume();
    assert_eq!(http::send(&registry.host(), "GET", &target, &[], &[]).unwrap().status, 200);
    registry.reset_counts();
    assert_eq!(registry.blob_bytes(), 0);
}

#[test]
fn the_real_registry_knows_one_password() {
    if !able(&[Need::Tool("docker-registry")]) {
        return;
    }
    use base64::Engine as _;
    let registry = RealRegistry::with_password();
    let status = |credentials: &str| {
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
        http::send(&registry.host(), "GET", "/v2/", &[("Authorization", &basic)], &[]).unwrap().status
    };
    assert_eq!(status(&format!("{USER}:{PASSWORD}")), 200);
    assert_eq!(status(&format!("{USER}:wrong")), 401);
}

#[test]
fn artifacts_reach_the_registry_unchanged_by_http_and_by_skopeo() {
    if !able(&[Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let scratch = Scratch::new();
    let registry = RealRegistry::start();
    let pieces =
        [Piece::new("d.qcow2.00.qcow2.part", QCOW2_PART, *b"AAAA"), Piece::new("x", QCOW2_PART, *b"BB")];
    let digest = crate::artifact::push(&registry, "by/http", "v1", OS_IMAGE, &pieces);
    let mut layout = Layout::create(scratch.join("layout"));
    assert_eq!(crate::artifact::write(&mut layout, "v1", OS_IMAGE, &pieces), digest);
    registry.push_layout(&layout.reference("v1"), "by/skopeo:v1");
    for repo in ["by/http", "by/skopeo"] {
        let target = format!("/v2/{repo}/manifests/v1");
        let answer = http::send(&registry.host(), "GET", &target, &[("Accept", MANIFEST)], &[]).unwrap();
        assert_eq!(digest_of(&answer.body), digest, "{repo}");
        assert!(answer.body == manifest(OS_IMAGE, &pieces));
    }
}

#[test]
fn layouts_written_here_are_accepted_by_skopeo_and_umoci() {
    if !able(&[Need::Root, Need::Tool("skopeo"), Need::Tool("umoci")]) {
        return;
    }
    let scratch = Scratch::new();
    let mut layout = Layout::create(scratch.join("layout"));
    let tar = Tarball::new().file("hello", b"world").symlink("link", "hello").bytes();
    for encoding in [Encoding::Plain, Encoding::Gzip, Encoding::GzipMembers] {
        layout.image(encoding.name(), &[Layer::of(&tar, encoding)]);
        let out = scratch.join(encoding.name());
        let image = scratch.join(format!("layout:{}", encoding.name()));
        run(Command::new("umoci").args(["raw", "unpack", "--image"]).arg(image).arg(&out)).ok();
        assert_eq!(fs::read(out.join("link")).unwrap(), b"world");
    }
    let other = layout.image_for(&[], json!({"architecture": "s390x", "os": "linux"}));
    layout.tag("other", other);
    let inspected = run(Command::new("skopeo").args(["inspect", &layout.reference("other")])).ok();
    assert!(inspected.text().contains("s390x"));
}

#[test]
fn debian_image_has_the_features_under_test() {
    if !able(&crate::debian_image::NEEDS) {
        return;
    }
    let tree = read_tree(&crate::debian::Debian::get().unpacked()).unwrap();
    let count = |what: &dyn Fn(&Entry) -> bool| tree.values().filter(|entry| what(entry)).count();
    assert!(tree.len() > 4000, "{} names", tree.len());
    assert!(count(&|it| it.rdev != 0) >= 8, "devices");
    assert!(count(&|it| it.mode & 0o4000 != 0) >= 8, "setuid files");
    assert!(count(&|it| it.mtime.0 < 0) >= 2, "times before 1970");
    assert!(count(&|it| it.mtime.1 != 0) >= 1, "fractions of a second");
    assert!(count(&|it| !it.xattrs.is_empty()) >= 2, "xattrs");
    assert!(count(&|it| it.uid != 0 || it.gid != 0) >= 10, "other owners");
    assert!(count(&|it| it.link.is_some()) >= 100, "links");
    assert!(hard_links(&tree).len() >= 2, "hard links");
    assert!(tree.keys().any(|name| std::str::from_utf8(name).is_err()), "names that are not text");
    assert!(tree.contains_key(b"usr/bin/python3".as_slice()));
    assert!(!tree.contains_key(b"usr/share/doc".as_slice()));
}

#[test]
fn scratch_directory_unmounts_leftovers_of_a_failed_test() {
    if !able(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let (outer, path) = (scratch.subdir("m o"), scratch.path().to_owned());
    sh("mount -t tmpfs none \"$1\"; mkdir \"$1\"/in; mount -t tmpfs none \"$1\"/in", &[&outer]);
    assert_eq!(mounted_at(&outer.join("in")).unwrap().fstype, "tmpfs");
    // A file held open makes the plain umount fail: the lazy one must do.
    let held = fs::File::create(outer.join("in/held")).unwrap();
    let panicked = std::thread::spawn(move || {
        let _scratch = scratch;
        std::panic::resume_unwind(Box::new("a failed test"));
    });
    assert!(panicked.join().is_err());
    assert!(mounted_at(&outer).is_none() && !path.exists());
    drop(held);
}

#[test]
fn a_registry_that_is_down_refuses_connections_while_another_program_starts() {
    let registry = FaultRegistry::start();
    let address: SocketAddr = registry.host().parse().unwrap();
    // The sockets as a program has them from its fork to its exec.
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copies = numbers.filter_map(|number| pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).ok());
    let is_door = |copy: &OwnedFd| {
        let name = getsockname(copy).ok().and_then(|name| SocketAddr::try_from(name).ok());
        name == Some(address) && sockopt::socket_acceptconn(copy).is_ok_and(|listens| listens)
    };
    let held: Vec<OwnedFd> = copies.filter(is_door).collect();
    assert!(!held.is_empty(), "nothing listens at {address}");
    registry.go_down();
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    registry.come_up();
    TcpStream::connect(address).unwrap();
}

#[test]
fn a_program_that_does_not_end_fails_its_test() {
    let hung = std::panic::catch_unwind(|| {
        crate::process::run_within(Command::new("sleep").arg("60"), std::time::Duration::from_millis(100));
    });
    assert!(hung.is_err());
}
