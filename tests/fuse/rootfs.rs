//! `export/rootfs.erofs`: the merged tree as a disk, against the FUSE view, umoci, erofs-utils, the kernel and a reader of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::compare::{self, assert_same, read_tree, sha256_of};
use crate::corpus;
use crate::cost::push_image;
use crate::debian::Debian;
use crate::debian_image;
use crate::encode::Encoding;
use crate::erofs_reader::read_image;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh};
use crate::real_registry::RealRegistry;
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 3] = [Need::Root, Need::Fuse, Need::Tool("fsck.erofs")];
const WITH_REGISTRY: [Need<'_>; 4] =
    [Need::Root, Need::Fuse, Need::Tool("skopeo"), Need::Tool("docker-registry")];
/// The path of the disk in a mount.
pub(crate) const DISK: &str = "export/rootfs.erofs";
const MIB: u64 = 1 << 20;

/// A disk that the kernel has mounted.
struct KernelMount(PathBuf);

impl KernelMount {
    #[track_caller]
    fn of(site: &Site, disk: &Path) -> Self {
        let dir = site.mount_point("kernel");
        run(Command::new("mount").args(["-t", "erofs", "-o", "ro"]).args([disk, &dir])).ok();
        Self(dir)
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(status.success() || std::thread::panicking(), "{:?} stays mounted", self.0);
    }
}

/// Every way in which the disk of `mount` is not its merged tree.
fn wrong(site: &Site, mount: &Mount) -> Vec<String> {
    differences_of_disk(site, mount, &read_tree(&mount.join("merged")).unwrap())
}

/// Every way in which the disk of `mount` is not `merged`: by a reader of the tests, by fsck.erofs and by the kernel.
pub(crate) fn differences_of_disk(site: &Site, mount: &Mount, merged: &compare::Tree) -> Vec<String> {
    let disk = mount.join(DISK);
    let mut found = Vec::new();
    match read_image(&File::open(&disk).unwrap()) {
        Ok(read) => {
            let mut held = merged.clone();
            held.values_mut().for_each(|entry| entry.xattrs.retain(|name, _| holds(name)));
            found
                .extend(compare::differences(&held, &read).into_iter().map(|what| format!("reader: {what}")));
        }
        Err(error) => found.push(format!("reader: {error}")),
    }
    let fsck = run(Command::new("fsck.erofs").arg(&disk));
    if fsck.code != Some(0) || fsck.stderr.contains("<E>") {
        found.push(format!("fsck.erofs: {}{}", fsck.text(), fsck.stderr));
    }
    let kernel = KernelMount::of(site, &disk);
    let mounted = read_tree(&kernel.0).unwrap();
    found.extend(compare::differences(merged, &mounted).into_iter().map(|what| format!("kernel: {what}")));
    found
}

/// Whether the format has a prefix for the name of an attribute.
fn holds(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix))
}

#[test]
fn every_corpus_case_is_the_same_on_the_disk_as_in_the_merged_tree() {
    if !able(&[NEEDS[0], NEEDS[1], NEEDS[2], Need::Path(&corpus::directory())]) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let (mut failed, mut judged) = (Vec::new(), 0);
    for (index, case) in corpus::cases().iter().enumerate().filter(|(_, case)| case.tree.is_some()) {
        let tag = format!("case-{index}");
        let layers: Vec<Layer> = case.layers.iter().map(|tar| Layer::of(tar, Encoding::Plain)).collect();
        layout.image(&tag, &layers);
        let mount = site.mount(&layout.reference(&tag), &[]);
        failed.extend(wrong(&site, &mount).into_iter().map(|what| format!("{}: {what}", case.name)));
        judged += 1;
        mount.unmount();
    }
    assert!(failed.is_empty(), "{} failures\n{}", failed.len(), failed.join("\n"));
    assert!(judged > 80, "{judged} cases were judged");
}

#[test]
fn unmergeable_corpus_case_has_no_disk_and_a_reason() {
    if !able(&[NEEDS[0], NEEDS[1], Need::Path(&corpus::directory())]) {
        return;
    }
    let cases = corpus::cases();
    let case = cases.iter().find(|case| case.tree.is_none()).unwrap();
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layers: Vec<Layer> = case.layers.iter().map(|tar| Layer::of(tar, Encoding::Plain)).collect();
    layout.image("v1", &layers);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let error = File::open(mount.join(DISK)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(
        mount.status().contains(&layers[0].digest()) || mount.status().contains("layer 0"),
        "{}",
        mount.status()
    );
}

#[test]
fn a_debian_root_is_the_same_on_the_disk_as_umoci_unpacks_it() {
    let needs: Vec<_> = debian_image::NEEDS.into_iter().chain(NEEDS).collect();
    if !able(&needs) {
        return;
    }
    let site = Site::new();
    let mount = site.mount(&Debian::get().layout(), &[]);
    assert_eq!(wrong(&site, &mount), Vec::<String>::new());
    let kernel = KernelMount::of(&site, &mount.join(DISK));
    assert_same(&Debian::get().unpacked(), &kernel.0);
}

/// An image of a gzip layer and a plain one, with a sparse file and a link.
fn image(site: &Site) -> Layout {
    let mut layout = Layout::create(site.scratch().join("layout"));
    let lower = Tarball::new()
        .dir("a")
        .file("a/big", &noise(3 << 20, 3))
        .file("a/small", b"small\n")
        .hard_link("a/again", "a/big", 0o644)
        .pax([("SCHILY.xattr.security.selinux", &b"system_u:object_r:usr_t:s0"[..])])
        .file("a/labelled", b"labelled\n")
        .bytes();
    let sparse =
        [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"50000000")];
    let named = sparse.into_iter().chain([("GNU.sparse.name", &b"b/sparse"[..])]);
    let mut map = b"1\n40000000\n5\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"bytes");
    let upper = Tarball::new()
        .dir("b")
        .file("b/large", &noise(9 << 20, 4))
        .pax(named)
        .file("b/GNUSparseFile.0/sparse", &map)
        .bytes();
    layout.image("v1", &[Layer::of(&lower, Encoding::Gzip), Layer::of(&upper, Encoding::Plain)]);
    layout
}

#[test]
fn the_disk_is_the_same_bytes_from_every_cache_and_as_an_export() {
    if !able(&NEEDS) {
        return;
    }
    let (first, second) = (Site::new(), Site::new());
    let layout = image(&first);
    let reference = layout.reference("v1");
    let (mount, again) = (first.mount(&reference, &[]), second.mount(&reference, &[]));
    assert_eq!(wrong(&first, &mount), Vec::<String>::new());
    let sum = sha256_of(&mount.join(DISK)).unwrap();
    assert_eq!(sum, sha256_of(&again.join(DISK)).unwrap());
    let size = fs::metadata(mount.join(DISK)).unwrap().len();
    assert!(size < 14 * MIB, "the holes of 50 MB take addresses: {size} bytes");
    // As a file, whole or in a pipe.
    let file = first.scratch().join("out.erofs");
    let path = file.to_str().unwrap();
    let output = first.ocifs(&["export", &reference, "--format=erofs", "-o", path]).ok();
    assert_eq!(output.text(), "");
    assert_eq!(sha256_of(&file).unwrap(), sum);
    let piped = first.scratch().join("piped.erofs");
    let mut command = first.command();
    command.args(["export", &reference, "--format=erofs"]).stdout(File::create(&piped).unwrap());
    assert!(command.status().unwrap().success());
    assert_eq!(sha256_of(&piped).unwrap(), sum);
    first.ocifs(&["export", &reference, "--format=erofs", "--view=layers"]).refused(&[2], &["--view"]);
    let output = first.ocifs(&["inspect", &reference]).ok().text();
    assert!(output.contains("rootfs     export/rootfs.erofs"), "{output}");
}

#[test]
fn a_killed_export_of_the_disk_goes_on_from_the_cache_and_leaves_nothing_of_it() {
    if !able(&NEEDS) {
        return;
    }
    let (site, other, registry) = (Site::new(), Site::new(), FaultRegistry::start());
    // An uncompressed archive, so that the disk is known before its files are fetched.
    let mut tar = Tarball::new();
    for nth in 0..6 {
        tar = tar.file(&format!("{nth}"), &noise(4 << 20, nth + 50));
    }
    let layer = Layer::of(&tar.bytes(), Encoding::Plain);
    let stored = layer.stored.len() as u64;
    let reference = push_image(&registry, &[layer]);
    let (expected, out) = (other.scratch().join("out.erofs"), site.scratch().join("out.erofs"));
    let arguments = ["export", &reference, "--format=erofs", "-o"];
    other.ocifs(&[&arguments[..], &[expected.to_str().unwrap()]].concat()).ok();
    registry.reset_counts();
    registry.set(Fault::SlowBytesPerSecond(2 << 20));
    let mut command = site.command();
    let mut child = command.args(arguments).arg(&out).stderr(Stdio::null()).spawn().unwrap();
    let begun = becomes_true(CONDITION_TIMEOUT, || registry.blob_bytes() > 12 * MIB);
    assert!(begun && child.try_wait().unwrap().is_none(), "{} bytes", registry.blob_bytes());
    child.kill().unwrap();
    child.wait().unwrap();
    let part = site.scratch().join(".out.erofs.ocifs-part");
    assert!(part.exists() && !out.exists());
    // Left by an export of another image: no byte of it may show in a hole.
    fs::write(&part, vec![0xff; 40 << 20]).unwrap();
    registry.clear();
    let first = registry.blob_bytes();
    registry.reset_counts();
    site.ocifs(&[&arguments[..], &[out.to_str().unwrap()]].concat()).ok();
    assert!(fs::read(&out).unwrap() == fs::read(&expected).unwrap());
    assert!(!part.exists());
    let second = registry.blob_bytes();
    assert!(first + second <= stored + 6 * MIB, "{first} and {second} bytes of {stored}");
}

#[test]
fn listing_the_erofs_disk_fetches_nothing_and_files_as_in_merged() {
    if !able(&WITH_REGISTRY) {
        return;
    }
    let site = Site::new();
    let layout = image(&site);
    let mut registry = RealRegistry::start();
    registry.push_layout(&layout.reference("v1"), "disk/image:v1");
    let reference = registry.reference("disk/image:v1");
    let mount = site.mount(&reference, &[]);
    registry.reset_counts();
    sh("ls $1/export", &[&mount.dir()]);
    assert_eq!(registry.blob_bytes(), 0, "{:?}", registry.blob_requests());
    // The tables of contents are needed for both.
    sh("ls -l $1/merged/a $1/merged/b", &[&mount.dir()]);
    mount.unmount();
    let cost = |site: &Site, registry: &mut RealRegistry, read: &dyn Fn(&Mount)| {
        let mount = site.mount(&reference, &[]);
        fs::metadata(mount.join(DISK)).unwrap();
        registry.reset_counts();
        read(&mount);
        mount.unmount();
        registry.blob_bytes()
    };
    let others = [Site::new(), Site::new()];
    let merged = cost(&others[0], &mut registry, &|mount| {
        assert!(fs::read(mount.join("merged/b/large")).unwrap() == noise(9 << 20, 4));
    });
    let disk = cost(&others[1], &mut registry, &|mount| {
        let kernel = KernelMount::of(&others[1], &mount.join(DISK));
        assert!(fs::read(kernel.0.join("b/large")).unwrap() == noise(9 << 20, 4));
    });
    assert!(merged >= 9 * MIB - 512 * 1024, "{merged}");
    assert!(disk <= merged + MIB, "{disk} bytes through the disk, {merged} through merged/");
}

#[test]
fn every_platform_has_a_disk_of_its_own() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let tar = Tarball::new().file("which", architecture.as_bytes()).bytes();
        let platform = serde_json::json!({"architecture": architecture, "os": "linux"});
        manifests.push(layout.image_for(&[Layer::of(&tar, Encoding::Plain)], platform));
    }
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": crate::layout::INDEX, "manifests": manifests});
    layout.document("v1", crate::layout::INDEX, index.to_string().as_bytes());
    let mount = site.mount(&layout.reference("v1"), &["--platform=all"]);
    for architecture in ["amd64", "arm64"] {
        let top = mount.join(format!("platforms/linux-{architecture}"));
        let kernel = KernelMount::of(&site, &top.join(DISK));
        assert_eq!(fs::read_to_string(kernel.0.join("which")).unwrap(), architecture);
    }
}
