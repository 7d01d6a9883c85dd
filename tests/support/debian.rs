//! A Debian root with a Python layer on top, a layer of deletions and a layer of opaque directories: made once, by
//! debootstrap, apt and umoci, and kept in cargo's directory for test files.
//!
//! Never changed by a test. The idea: `umoci unpack` of the finished image is the oracle, lying ready beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::kept::kept;
use crate::process::{run, run_within};
use crate::real_registry::RealRegistry;
use crate::tarball::Tarball;

/// Part of the directory's name: raise it when the recipe changes.
const RECIPE: u32 = 1;
/// The image's name in every registry of these tests.
pub(crate) const NAME: &str = "debian/python:latest";

/// Where the parts lie.
pub(crate) struct Debian {
    dir: PathBuf,
}

impl Debian {
    /// The image, made now if it is not there yet (two minutes, and a Debian mirror).
    pub(crate) fn get() -> &'static Self {
        static MADE: OnceLock<Debian> = OnceLock::new();
        MADE.get_or_init(|| Debian { dir: kept("debian", RECIPE, build) })
    }

    /// `oci:DIR:TAG`.
    pub(crate) fn layout(&self) -> String {
        format!("oci:{}:final", self.dir.join("image").display())
    }

    /// A registry that holds the image as [`NAME`], pushed by skopeo.
    pub(crate) fn registry(&self) -> RealRegistry {
        RealRegistry::on_storage(&self.dir.join("storage"))
    }

    /// What `umoci unpack` makes of it.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.dir.join("unpacked/rootfs")
    }
}

fn build(dir: &Path) {
    let mut script = Command::new("bash");
    script.arg("-c").arg(include_str!("debian.sh")).arg("debian.sh").arg(dir);
    run_within(&mut script, Duration::from_secs(900)).ok();
    let layer = dir.join("opaque.tar");
    fs::write(&layer, opaque_layer()).expect("a directory of ours");
    let image = dir.join("image").display().to_string();
    let mut add = Command::new("umoci");
    add.args(["raw", "add-layer", "--image", &format!("{image}:pruned"), "--tag", "final"]).arg(&layer);
    run(&mut add).ok();
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image", &format!("{image}:final")]).arg(dir.join("unpacked"));
    run(&mut unpack).ok();
    let storage = dir.join("storage");
    fs::create_dir(&storage).expect("a directory of ours");
    RealRegistry::on_storage(&storage).push_layout(&format!("oci:{image}:final"), NAME);
    fs::remove_dir_all(dir.join("bundle")).expect("a directory of ours");
}

/// What umoci's own repacking never writes: opaque markers, whiteouts of missing things, a hard link into a lower layer,
/// fractions of a second before 1970, and a 0:0 device.
fn opaque_layer() -> Vec<u8> {
    Tarball::new()
        .dir("etc")
        .dir("etc/apt")
        .file("etc/apt/.wh..wh..opq", b"")
        .file("etc/apt/sources.list", b"deb http://mirror.example/debian bookworm main\n")
        .dir("usr")
        .dir("usr/share")
        .dir("usr/share/zoneinfo")
        .file("usr/share/zoneinfo/Mars", b"no daylight saving\n")
        .file("usr/share/zoneinfo/.wh..wh..opq", b"")
        .dir("srv")
        .file("srv/.wh.never-was", b"")
        .file("srv/.wh.third", b"")
        .char_device("srv/zero", 0, 0)
        .hard_link("srv/linked-above", "srv/odd/linked", 0o640)
        .pax([("mtime", b"-1.5".as_slice())])
        .file("srv/half-a-second", b"odd\n")
        .pax([("SCHILY.xattr.user.layer", b"four".as_slice())])
        .file_with_mode("srv/tagged", 0o4711, b"xattr in pax\n")
        .bytes()
}
