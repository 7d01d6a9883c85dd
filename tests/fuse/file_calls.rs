//! System calls of programs on files of a mount: every kind of read works. `read_only` has the modifying calls.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Whence;

use crate::byte_text::path_of;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, sh};
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

fn mounted(site: &Site, tar: &[u8], encoding: Encoding) -> Mount {
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(tar, encoding)]);
    site.mount(&layout.reference("v1"), &["--view", "merged"])
}

#[test]
fn reads_past_the_page_cache_and_through_maps_see_the_same_bytes() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("python3")]) {
        return;
    }
    let site = Site::new();
    // An odd length: the last piece is neither a page nor a sector.
    let body = noise((1 << 20) + 1234, 9);
    let mount = mounted(&site, &Tarball::new().file("f", &body).bytes(), Encoding::Zstd);
    let path = mount.join("f");
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut buffer = vec![0; (64 << 10) + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    let (mut seen, mut offset) = (Vec::new(), 0);
    loop {
        let length = direct.read_at(&mut buffer[start..start + (64 << 10)], offset).unwrap();
        if length == 0 {
            break;
        }
        seen.extend_from_slice(&buffer[start..start + length]);
        offset += length as u64;
    }
    assert!(seen == body, "O_DIRECT");
    let map = "import mmap,sys,hashlib; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
               m.madvise(mmap.MADV_RANDOM); print(hashlib.sha256(m).hexdigest())";
    let mapped = sh("python3 -c \"$1\" \"$2\"", &[&map, &path]).text();
    assert_eq!(format!("sha256:{}", mapped.trim()), crate::byte_text::digest_of(&body));
    let mut tail = [0; 100];
    let file = File::open(&path).unwrap();
    assert_eq!(file.read_at(&mut tail, body.len() as u64 - 10).unwrap(), 10);
    assert_eq!(file.read_at(&mut tail, body.len() as u64 + 5000).unwrap(), 0);
}

#[test]
fn the_holes_of_a_sparse_file_are_holes() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let original = site.scratch().join("sparse");
    let file = File::create(&original).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&noise(64 << 10, 5), 2 << 20).unwrap();
    let tar = sh("tar --format=pax --sparse -cf - -C $1 sparse", &[&site.scratch().path()]).stdout;
    assert!(tar.len() < 1 << 20, "tar did not keep the holes");
    let mount = mounted(&site, &tar, Encoding::Gzip);
    let sparse = File::open(mount.join("sparse")).unwrap();
    assert!(fs::read(mount.join("sparse")).unwrap() == fs::read(&original).unwrap());
    let seek = |offset, whence| nix::unistd::lseek(sparse.as_fd(), offset, whence);
    assert_eq!(seek(0, Whence::SeekData), Ok(2 << 20));
    assert_eq!(seek(2 << 20, Whence::SeekHole), Ok((2 << 20) + (64 << 10)));
    assert_eq!(seek((2 << 20) + (64 << 10), Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(seek(0, Whence::SeekHole), Ok(0));
    assert_eq!(seek(8 << 20, Whence::SeekData), Err(Errno::ENXIO));
    assert!(sparse.as_raw_fd() > 2);
    let blocks = fs::metadata(mount.join("sparse")).unwrap().blocks();
    assert!(blocks * 512 <= 128 << 10, "{blocks} blocks for 64 KiB of data");
}

#[test]
fn every_file_has_digest_and_verification_attributes() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layer = Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Gzip);
    let digest = layer.digest();
    let pinned = layout.image("v1", &[layer]);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let value =
        |path: &Path, name: &str| xattr::get(path, name).unwrap().map(|it| String::from_utf8(it).unwrap());
    assert_eq!(value(mount.dir(), "user.ocifs.digest"), Some(pinned));
    let blob = mount.join("blobs").join(digest.replace(':', "/"));
    assert_eq!(value(&blob, "user.ocifs.digest"), Some(digest));
    for path in [&blob, &mount.join("merged/f"), &mount.join("manifest.json")] {
        let verified = value(path, "user.ocifs.verified").unwrap_or_else(|| panic!("{path:?} does not tell"));
        assert!(["none", "partial", "full"].contains(&verified.as_str()), "{path:?}: {verified}");
    }
    assert_eq!(value(&mount.join("manifest.json"), "user.ocifs.verified").as_deref(), Some("full"));
    fs::read(&blob).unwrap();
    assert_eq!(value(&blob, "user.ocifs.verified").as_deref(), Some("full"));
    assert_eq!(xattr::get(&blob, "user.no-such").unwrap(), None);
}

#[test]
fn a_directory_of_ten_thousand_is_listed_completely() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut tar = Tarball::new().dir("many");
    for number in 0..10_000 {
        tar = tar.file(&format!("many/entry-with-a-name-of-some-length-{number:05}"), b"");
    }
    let mount = mounted(&site, &tar.bytes(), Encoding::Gzip);
    let mut names: Vec<String> = fs::read_dir(mount.join("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 10_000);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 10_000);
    assert!(names[9_999].ends_with("09999"));
    let listed = sh("ls -lU $1 | wc -l", &[&mount.join("many")]).text();
    assert_eq!(listed.trim(), "10001");
}

#[test]
fn names_are_bytes() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let names: [&[u8]; 4] = [b"caf\xe9", b"\xff\xfe", b"a\nb", "schön".as_bytes()];
    let longest = vec![b'n'; 255];
    let mut tar = Tarball::new();
    for name in names.iter().copied().chain([longest.as_slice()]) {
        tar = tar.file_named(name, name);
    }
    let mount = mounted(&site, &tar.bytes(), Encoding::Plain);
    for name in names.iter().copied().chain([longest.as_slice()]) {
        assert_eq!(fs::read(mount.join(path_of(name))).unwrap(), name);
    }
    assert_eq!(fs::read_dir(mount.dir()).unwrap().count(), 5);
    let missing = fs::metadata(mount.join("missing")).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    let long = fs::metadata(mount.join("x".repeat(256))).unwrap_err();
    assert!(matches!(long.raw_os_error(), Some(libc::ENAMETOOLONG | libc::ENOENT)), "{long}");
}

#[test]
fn inode_numbers_are_the_same_in_every_mount_of_a_digest() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let tar = Tarball::new().dir("d").file("d/f", b"1").file("g", b"2").hard_link("h", "g", 0o644).bytes();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    let inodes = |mount: &Mount| -> Vec<u64> {
        let names = ["merged/h", "merged/g", "merged/d/f", "merged/d", "blobs", "manifest.json"];
        names.iter().map(|name| fs::metadata(mount.join(name)).unwrap().ino()).collect()
    };
    let first = site.mount(&layout.reference("v1"), &[]);
    let (a, stat) = (inodes(&first), fs::metadata(first.join("merged/g")).unwrap());
    first.unmount();
    let second = site.mount(&layout.reference("v1"), &[]);
    // Another order of lookups must not matter.
    fs::read(second.join("merged/d/f")).unwrap();
    assert_eq!(inodes(&second), a);
    assert_eq!(a[0], a[1]);
    assert_eq!(stat.nlink(), 2);
}

#[test]
fn a_blob_can_be_read_backwards_in_small_steps() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let body = noise(700_001, 11);
    let mount = mounted(&site, &Tarball::new().file("f", &body).bytes(), Encoding::GzipMembers);
    let file = File::open(mount.join("f")).unwrap();
    let mut end = body.len();
    while end > 0 {
        let start = end.saturating_sub(10_007);
        let mut piece = vec![0; end - start];
        file.read_exact_at(&mut piece, start as u64).unwrap();
        assert!(piece == body[start..end], "at {start}");
        end = start;
    }
}
