//! A disk that boots: a Debian root with the cloud kernel, made once by debootstrap, and kept in cargo's directory for
//! test files.
//!
//! Never changed by a test: a machine writes to an overlay. The idea: its first process prints the checksum of a part of
//! what it sees, so that a machine that came up has also read the right bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::artifact::{self, OS_IMAGE, Piece, QCOW2_PART};
use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::kept::kept;
use crate::layout::{CONFIG, MANIFEST};
use crate::process::{run_within, sh};
use crate::real_registry::RealRegistry;

/// Part of the directory's name: raise it when the recipe changes.
const RECIPE: u32 = 2;
/// The repository of the disk.
const REPOSITORY: &str = "os/debian";
/// The disk's reference in the registry of [`Vm::registry`].
pub(crate) const NAME: &str = "os/debian:bookworm";
/// The repository of the same root as a container image.
const ROOT_REPOSITORY: &str = "os/root";
/// That image's reference in the same registry: one layer in gzip.
pub(crate) const ROOT: &str = "os/root:bookworm";
/// Bytes of a part of the disk.
const PART: usize = 32 << 20;
/// No machine here takes so long, whatever else runs.
const DEADLINE: Duration = Duration::from_secs(900);

/// Where the parts lie.
pub(crate) struct Vm {
    dir: PathBuf,
}

impl Vm {
    /// The disk, made now if it is not there yet (a minute, and a Debian mirror).
    pub(crate) fn get() -> &'static Self {
        static MADE: OnceLock<Vm> = OnceLock::new();
        MADE.get_or_init(|| Vm { dir: kept("vm", RECIPE, build) })
    }

    /// A registry that holds the disk as [`NAME`], cut as cocoon cuts it, with the kernel and its first root beside it.
    pub(crate) fn registry(&self) -> RealRegistry {
        RealRegistry::on_storage(&self.dir.join("storage"))
    }

    /// The qcow2 from which the parts were cut.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("system.qcow2")
    }

    /// Where `vmlinuz` and `initrd.img` lie.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The line that the machine prints when it is up.
    pub(crate) fn marker(&self) -> String {
        fs::read_to_string(self.dir.join("marker")).expect("the recipe wrote it").trim().to_owned()
    }
}

fn build(dir: &Path) {
    let mut script = Command::new("bash");
    script.arg("-c").arg(include_str!("vm.sh")).arg("vm.sh").arg(dir);
    run_within(&mut script, DEADLINE).ok();
    let read = |name: &str| fs::read(dir.join(name)).expect("the recipe wrote it");
    let disk = read("system.qcow2");
    let mut pieces: Vec<Piece> = disk
        .chunks(PART)
        .enumerate()
        .map(|(number, part)| Piece::new(&format!("system.qcow2.{number:02}.qcow2.part"), QCOW2_PART, part))
        .collect();
    for name in ["vmlinuz", "initrd.img"] {
        pieces.push(Piece::new(name, "application/octet-stream", read(name)));
    }
    let storage = dir.join("storage");
    fs::create_dir(&storage).expect("a directory of ours");
    let registry = RealRegistry::on_storage(&storage);
    artifact::push(&registry, REPOSITORY, "bookworm", OS_IMAGE, &pieces);
    push_root(&registry, &read("root.tar"));
    fs::remove_file(dir.join("root.tar")).expect("a file of ours");
}

/// Pushes a root file system as a container image.
fn push_root(registry: &RealRegistry, tar: &[u8]) {
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = registry.push_blob(ROOT_REPOSITORY, bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]}});
    let config = blob(CONFIG, config.to_string().as_bytes());
    let layer = blob(Encoding::Gzip.media_type(), &Encoding::Gzip.encode(tar));
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    registry.push_manifest(ROOT_REPOSITORY, "bookworm", MANIFEST, manifest.to_string().as_bytes());
}

/// Boots a machine with an emulated processor whose root is the EROFS image `disk`, until it switches itself off, and gives
/// what the console showed.
#[track_caller]
pub(crate) fn boot_root(disk: &Path, kernels: &Path, scratch: &Path) -> String {
    let console = scratch.join("console");
    let mut qemu = machine(kernels, "initrd-erofs.img", &console);
    qemu.arg("-drive").arg(format!("file={},format=raw,readonly=on,if=virtio", disk.display()));
    run_within(&mut qemu, DEADLINE).ok();
    String::from_utf8_lossy(&fs::read(&console).expect("qemu wrote the console")).into_owned()
}

/// Boots a machine with an emulated processor from an overlay of `disk`, which it may not write, until it switches itself
/// off; `kernels` is where the kernel and its first root lie, and `scratch` gets the overlay and the console. The
/// answer is what the console showed, and how long it took.
#[track_caller]
pub(crate) fn boot(disk: &Path, kernels: &Path, scratch: &Path) -> (String, Duration) {
    let (overlay, console) = (scratch.join("overlay.qcow2"), scratch.join("console"));
    let start = Instant::now();
    sh("qemu-img create -q -f qcow2 -b $1 -F qcow2 $2", &[&disk, &overlay]);
    run_within(&mut command(kernels, &overlay, &console), DEADLINE).ok();
    let took = start.elapsed();
    let shown = fs::read(&console).expect("qemu wrote the console");
    fs::remove_file(&console).expect("a file of ours");
    // What the machine wrote has to be in the overlay, or it was not used.
    assert!(fs::metadata(&overlay).expect("it was made above").len() > 256 << 10, "nothing was written");
    fs::remove_file(&overlay).expect("a file of ours");
    (String::from_utf8_lossy(&shown).into_owned(), took)
}

/// The command that boots a machine from `overlay`. A disk that cannot be read stops it.
pub(crate) fn command(kernels: &Path, overlay: &Path, console: &Path) -> Command {
    let mut qemu = machine(kernels, "initrd.img", console);
    qemu.arg("-drive").arg(format!("file={},format=qcow2,if=virtio,rerror=stop", overlay.display()));
    qemu
}

/// A machine without a disk.
fn machine(kernels: &Path, initrd: &str, console: &Path) -> Command {
    // The machine ends with the test even if the test is killed.
    let mut qemu = Command::new("setpriv");
    qemu.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-m",
        "512",
        "-display",
        "none",
    ]);
    qemu.args(["-nodefaults", "-no-reboot", "-append", "console=ttyS0 quiet panic=-1", "-serial"]);
    qemu.arg(format!("file:{}", console.display()));
    qemu.arg("-kernel").arg(kernels.join("vmlinuz")).arg("-initrd").arg(kernels.join(initrd));
    qemu
}
