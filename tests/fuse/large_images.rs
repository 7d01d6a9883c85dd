//! Large images in every packaging: the EROFS disk and the kernel's mount against the FUSE view, umoci and erofs-utils.
//!
//! The images are a Debian root and a root with Python packages. `OCIFS_LARGE_IMAGES` names layouts instead, separated by
//! colons, each with one image of gzip layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::byte_text::digest_of;
use crate::chunked::Estargz;
use crate::compare::{Tree, differences, read_tree, sha256_of};
use crate::cost::push_image;
use crate::debian::Debian;
use crate::debian_image;
use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::kernel_mount::{ON, kernel_can, kernel_log, no_warning};
use crate::layout::{CONFIG, Layer, Layout, MANIFEST, blob_path};
use crate::process::{Need, able, run_within, sh};
use crate::rootfs::{DISK, differences_of_disk};
use crate::scratch::Scratch;
use crate::site::{Mount, Site};
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 4] = [Need::Root, Need::Fuse, Need::Tool("fsck.erofs"), Need::Tool("umoci")];
/// Python packages of the machine, as pip and Debian install them.
const PYTHON_PACKAGES: &str = "/usr/lib/python3/dist-packages";
/// The longest unpacking: a gigabyte on a busy machine.
const UNPACKING: Duration = Duration::from_secs(600);
/// Names of the image of many entries.
const ENTRIES: usize = 30_000;

/// An image of gzip layers, and its tree as umoci unpacks it.
struct LargeImage {
    name: String,
    layout: PathBuf,
    tag: String,
    unpacked: PathBuf,
}

impl LargeImage {
    /// The images of this run. What has to be unpacked is below `scratch`.
    fn all(scratch: &Scratch) -> Vec<Self> {
        let Some(named) = std::env::var_os("OCIFS_LARGE_IMAGES") else {
            let debian = Debian::get();
            let layout = debian.layout();
            let layout = layout.strip_prefix("oci:").unwrap().strip_suffix(":final").unwrap();
            let debian = Self {
                name: "debian".into(),
                layout: layout.into(),
                tag: "final".into(),
                unpacked: debian.unpacked(),
            };
            return vec![debian, python_root(scratch)];
        };
        std::env::split_paths(&named).map(|layout| Self::unpack(scratch, layout)).collect()
    }

    /// The only image of a layout.
    fn unpack(scratch: &Scratch, layout: PathBuf) -> Self {
        let index = document(&layout.join("index.json"));
        let tag = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
        let name = layout.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let to = scratch.join(format!("unpacked-{name}"));
        let mut unpack = Command::new("umoci");
        unpack.args(["unpack", "--image", &format!("{}:{tag}", layout.display())]).arg(&to);
        run_within(&mut unpack, UNPACKING).ok();
        Self { name, tag: tag.to_owned(), layout, unpacked: to.join("rootfs") }
    }

    /// The archives of the layers, the lowest first.
    fn archives(&self) -> impl Iterator<Item = Vec<u8>> {
        let index = document(&self.layout.join("index.json"));
        let images = index["manifests"].as_array().unwrap().clone();
        let is_named =
            |image: &&Value| image["annotations"]["org.opencontainers.image.ref.name"] == self.tag.as_str();
        let digest = images.iter().find(is_named).unwrap()["digest"].as_str().unwrap().to_owned();
        let manifest = document(&blob_path(&self.layout, &digest));
        let layout = self.layout.clone();
        let layers = manifest["layers"].as_array().unwrap().clone();
        assert!(layers.len() > 1, "{} has {} layers", self.name, layers.len());
        layers.into_iter().map(move |layer| {
            sh("gzip -dc < $1", &[&blob_path(&layout, layer["digest"].as_str().unwrap())]).stdout
        })
    }
}

/// Python packages over a root, and a layer that removes some and adds links.
fn python_root(scratch: &Scratch) -> LargeImage {
    let packages = sh("tar -C / --sort=name --numeric-owner -cf - \"$1\"", &[&&PYTHON_PACKAGES[1..]]).stdout;
    let first = fs::read_dir(PYTHON_PACKAGES).unwrap().next().unwrap().unwrap().file_name();
    let home = &PYTHON_PACKAGES[1..];
    let above = Tarball::new()
        .file(&format!("{home}/.wh.{}", first.to_str().unwrap()), b"")
        .symlink("packages", home)
        .file_with_mode(&format!("{home}/set.py"), 0o4755, b"print('setuid')\n")
        .hard_link("usr/set.py", &format!("{home}/set.py"), 0o4755)
        .char_device("null", 1, 3)
        .bytes();
    let base = Tarball::new().dir("usr").dir("usr/lib").dir("usr/lib/python3").dir("tmp").bytes();
    let mut layout = Layout::create(scratch.join("python/layout"));
    layout.image("v1", &[base, packages, above].map(|tar| Layer::of(&tar, Encoding::Gzip)));
    LargeImage::unpack(scratch, scratch.join("python/layout"))
}

fn document(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A packaging of the layers of an image.
#[derive(Clone, Copy)]
enum Packaging {
    /// As the layout has them.
    Gzip,
    /// Of one frame, without any index.
    Zstd,
    /// With a table of contents.
    Estargz,
}

impl Packaging {
    /// Writes `image` in this packaging to `dir`, one layer in memory at a time, and names it.
    fn reference(self, image: &LargeImage, dir: PathBuf) -> String {
        if matches!(self, Self::Gzip) {
            return format!("oci:{}:{}", image.layout.display(), image.tag);
        }
        let mut layout = Layout::create(dir);
        let (mut layers, mut diffs) = (Vec::new(), Vec::new());
        for tar in image.archives() {
            let (encoding, stored, annotations) = match self {
                Self::Estargz => {
                    let made = Estargz::default().make(&tar);
                    (Encoding::Gzip, made.bytes, made.annotations)
                }
                _ => (Encoding::Zstd, Encoding::Zstd.encode(&tar), Default::default()),
            };
            let mut layer = layout.blob(encoding.media_type(), &stored);
            diffs.push(match self {
                Self::Estargz => {
                    let path = layout.blob_path(layer["digest"].as_str().unwrap());
                    digest_of(&sh("gzip -dc < $1", &[&path]).stdout)
                }
                _ => digest_of(&tar),
            });
            layer["annotations"] = json!(annotations);
            layers.push(layer);
        }
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diffs}});
        let config = layout.blob(CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        layout.document("v1", MANIFEST, manifest.to_string().as_bytes());
        layout.reference("v1")
    }
}

impl Packaging {
    /// The tree of `expected` as its table of contents has it: that of eStargz has whole seconds, as `merged` then has.
    fn before_a_pass(self, expected: &Tree, merged: &Tree) -> Tree {
        let mut tree = expected.clone();
        let cut = tree.iter_mut().filter(|(_, entry)| matches!(self, Self::Estargz) && entry.mtime.1 != 0);
        for (name, entry) in cut {
            let shown = merged.get(name).map_or(entry.mtime, |shown| shown.mtime);
            if shown.1 == 0 && (0..=1).contains(&(shown.0 - entry.mtime.0)) {
                entry.mtime = shown;
            }
        }
        tree
    }
}

/// Compares every image in this packaging, in every form that it has.
fn judge(packaging: Packaging) {
    let packages = Need::Path(Path::new(PYTHON_PACKAGES));
    let needs: Vec<_> = debian_image::NEEDS.into_iter().chain(NEEDS).chain([packages]).collect();
    if !able(&needs) || !kernel_can() {
        return;
    }
    let (sources, log) = (Site::new(), kernel_log());
    for image in LargeImage::all(sources.scratch()) {
        let (site, other) = (Site::new(), Site::new());
        let reference = packaging.reference(&image, site.scratch().join("packed"));
        let expected = read_tree(&image.unpacked).unwrap();
        let mount = site.mount(&reference, &[]);
        let merged = read_tree(&mount.join("merged")).unwrap();
        let mut found: Vec<String> = differences(&packaging.before_a_pass(&expected, &merged), &merged);
        found.extend(
            differences_of_disk(&site, &mount, &merged).into_iter().map(|what| format!("disk: {what}")),
        );
        let on = site.mount_at("on", &reference, &ON);
        assert_eq!(on.line().fstype, "erofs");
        let by_kernel = read_tree(on.dir()).unwrap();
        found.extend(differences(&expected, &by_kernel).into_iter().map(|what| format!("kernel: {what}")));
        on.unmount();
        let shown: Vec<_> = found.iter().take(40).map(String::as_str).collect();
        assert!(found.is_empty(), "{}: {} differences\n{}", image.name, found.len(), shown.join("\n"));
        // The same bytes from another cache.
        let again = other.mount(&reference, &[]);
        assert_eq!(mount.digest(), again.digest());
        assert_eq!(sha256_of(&mount.join(DISK)).unwrap(), sha256_of(&again.join(DISK)).unwrap());
    }
    no_warning(&log);
}

#[test]
fn large_images_of_gzip_layers_are_the_same_from_fuse_disk_and_kernel() {
    judge(Packaging::Gzip);
}

#[test]
fn large_images_of_zstd_layers_are_the_same_from_fuse_disk_and_kernel() {
    judge(Packaging::Zstd);
}

#[test]
fn large_images_of_estargz_layers_are_the_same_from_fuse_disk_and_kernel() {
    judge(Packaging::Estargz);
}

/// The content of a file of the image of many entries.
fn content(nth: usize) -> Vec<u8> {
    format!("{nth}\n").repeat(1 + nth % 700).into_bytes()
}

/// Layers of [`ENTRIES`] names together: files, then links and directories, then removals and new versions.
fn many_entries() -> [Layer; 3] {
    const FILES: usize = ENTRIES * 9 / 10;
    let (mut lower, mut middle, mut upper) = (Tarball::new(), Tarball::new(), Tarball::new());
    for nth in 0..FILES {
        if nth % 100 == 0 {
            lower = lower.dir(&format!("d{}", nth / 100));
        }
        lower = lower.file(&format!("d{}/file-{nth:06}", nth / 100), &content(nth));
    }
    for nth in 0..ENTRIES - FILES {
        let (dir, file) = (nth * 7 % 200, nth * 7 % 200 * 100 + nth % 100);
        let name = format!("d{dir}/link-{nth:06}");
        let target = format!("d{dir}/file-{file:06}");
        middle = match nth % 3 {
            0 => middle.symlink(&name, &format!("file-{file:06}")),
            // A link into the lower layer, with the attributes that it has there.
            1 => middle.file(&target, &content(file + 1)).hard_link(&name, &target, 0o644),
            _ => middle.dir(&name),
        };
    }
    for nth in (0..FILES).step_by(500) {
        upper = upper.file(&format!("d{}/.wh.file-{nth:06}", nth / 100), b"");
        upper = upper.file(&format!("d{}/new-{nth:06}", nth / 100), &content(nth + 2));
    }
    [lower, middle, upper].map(|tar| Layer::of(&tar.bytes(), Encoding::Gzip))
}

/// The digest of everything in a tree, by tar.
fn tar_sum(tree: &Path) -> String {
    const SUM: &str = "set -o pipefail; tar -C \"$1\" --sort=name --numeric-owner -cf - . | sha256sum";
    let mut command = Command::new("bash");
    run_within(command.args(["-c", SUM, "bash"]).arg(tree), UNPACKING).ok().text()
}

#[test]
fn thirty_thousand_entries_are_right_from_a_cold_and_from_a_warm_cache() {
    if !able(&NEEDS) || !kernel_can() {
        return;
    }
    let (site, registry, log) = (Site::new(), FaultRegistry::start(), kernel_log());
    let layers = many_entries();
    let stored: u64 = layers.iter().map(|layer| layer.stored.len() as u64).sum();
    let mut layout = Layout::create(site.scratch().join("many/layout"));
    layout.image("v1", &layers);
    let image = LargeImage::unpack(site.scratch(), site.scratch().join("many/layout"));
    let reference = push_image(&registry, &layers);
    let names = |dir: &Path| sh("find $1 -mindepth 1 | wc -l", &[&dir]).text();
    let (expected, named) = (tar_sum(&image.unpacked), names(&image.unpacked));
    assert!(named.trim().parse::<usize>().unwrap() > ENTRIES, "{named}");
    let walk = |mount: &Mount| {
        assert_eq!(mount.line().fstype, "erofs", "{}", mount.printed());
        assert_eq!(names(mount.dir()), named);
        assert!(fs::read(mount.join("d133/file-013337")).unwrap() == content(13_337));
        // Twice: the second time from the pages of the kernel.
        assert_eq!(tar_sum(mount.dir()), expected);
        assert_eq!(tar_sum(mount.dir()), expected);
    };
    registry.reset_counts();
    let cold = site.mount(&reference, &ON);
    walk(&cold);
    assert!(registry.blob_bytes() <= stored + (1 << 20), "{} of {stored} bytes", registry.blob_bytes());
    cold.unmount();
    registry.reset_counts();
    for when in ["--kernel=on", "--kernel=auto"] {
        let warm = site.mount(&reference, &[ON[0], when]);
        walk(&warm);
        warm.unmount();
    }
    assert_eq!(registry.blob_bytes(), 0, "{:?}", registry.blob_requests());
    no_warning(&log);
}
