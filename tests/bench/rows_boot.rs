//! A virtual machine that boots from a disk which lies in a registry, beside the same disk as a local file.
//!
//! The processor is emulated (TCG), so that the figure does not depend on `/dev/kvm`. The kernel and its first root are
//! local for both: what is compared is the disk.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::image::{debootstrap, once};
use crate::lab::{Group, Lab};
use crate::measure::{need, run, tool};
use crate::peers::PEER_RUNS;
use crate::report::{Row, Samples, Target, Unit};
use crate::rows_blob::split_disk;

/// What the first process writes when its work is done.
const MARKER: &str = "OCIFS-BENCH-BOOTED";

/// What the machine does once its root is there: a service in Python starts and its configuration is read.
const INIT: &str = "#!/bin/sh
mount -t proc proc /proc
find /etc -type f -exec cat {} + > /dev/null
python3 -c 'import asyncio, email.message, http.server, json, sqlite3, ssl'
echo OCIFS-BENCH-BOOTED
sleep 60
";

/// No machine here takes so long.
const DEADLINE: Duration = Duration::from_secs(300);

/// A disk, and what boots it.
pub(crate) struct Disk {
    pub(crate) image: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Debian with a kernel on a qcow2 disk, made now if it is not there.
pub(crate) fn disk(data: &Path) -> Result<Disk> {
    let home = data.join("boot-debian-bookworm-1");
    need(&["qemu-img", "mkfs.ext4", "debootstrap"])?;
    once(&home, |home| {
        let root = home.join("root");
        debootstrap(&root, "linux-image-cloud-amd64,initramfs-tools,python3")?;
        for (link, name) in [("vmlinuz", "kernel"), ("initrd.img", "initrd")] {
            // Debian's links to the newest kernel are relative to the root.
            let target = root.join(fs::read_link(root.join(link))?);
            fs::copy(target, home.join(name))?;
        }
        let init = root.join("bench-init");
        fs::write(&init, INIT)?;
        run(tool("chmod").arg("0755").arg(&init))?;
        let raw = home.join("disk.raw");
        run(tool("mkfs.ext4").args(["-q", "-d"]).arg(&root).arg(&raw).arg("2G"))?;
        run(tool("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .arg(&raw)
            .arg(home.join("disk.qcow2")))?;
        fs::remove_file(raw)?;
        Ok(fs::remove_dir_all(root)?)
    })?;
    Ok(Disk { image: home.join("disk.qcow2"), kernel: home.join("kernel"), initrd: home.join("initrd") })
}

struct Boot {
    disk: Disk,
    reference: String,
    size: f64,
    ours: Samples,
    bytes: Samples,
    native: Samples,
}

pub(crate) fn ready(lab: &Lab) -> Result<Box<dyn Group>> {
    need(&["qemu-system-x86_64"])?;
    let disk = disk(&lab.data)?;
    let (reference, image) = split_disk(lab)?;
    let size = fs::metadata(image)?.len() as f64;
    let none = Samples::default;
    Ok(Box::new(Boot { disk, reference, size, ours: none(), bytes: none(), native: none() }))
}

impl Group for Boot {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        self.native.add_time(self.disk.boot(&self.disk.image)?);
        let cache = lab.scratch.fresh("cache")?;
        let start = lab.registry.now()?;
        let mounted = lab.mount(&self.reference, &cache, &[])?;
        let image = mounted.only("disk", ".qcow2")?;
        self.ours.add_time(mounted.time + self.disk.boot(&image)?);
        self.bytes.add(lab.registry.since(start)?.bytes as f64);
        mounted.end()?;
        lab.scratch.gone("cache").map(drop)
    }

    fn most_runs(&self) -> usize {
        PEER_RUNS
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row::new("P9", "mount, qemu (TCG) boots from the disk", &self.ours, Unit::Seconds)
                .against("local file", &self.native)
                .target(Target::Ratio(1.15)),
            Row::new("P9", "fetched", &self.bytes, Unit::MegaBytes)
                .against("the disk's size", &Samples::of(self.size))
                .target(Target::Ratio(0.4)),
        ]
    }
}

/// A machine that is switched off on drop.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Disk {
    /// How long it takes from the start of qemu until the first process has done its work.
    fn boot(&self, image: &Path) -> Result<Duration> {
        let start = Instant::now();
        let mut machine = tool("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-append"])
            .arg("root=/dev/vda ro init=/bench-init console=ttyS0 quiet panic=-1")
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .arg("-drive")
            .arg(format!("file={},format=qcow2,if=virtio,readonly=on", image.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map(Machine)?;
        let console = machine.0.stdout.take().ok_or("qemu has no output")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut console = BufReader::new(console);
            let mut line = Vec::new();
            while let Ok(1..) = console.read_until(b'\n', &mut line) {
                if send.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut last = Vec::new();
        while let Ok(line) = lines.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) {
            if line.contains(MARKER) {
                return Ok(start.elapsed());
            }
            last.push(line);
        }
        let shown = last.len().saturating_sub(5);
        Err(format!("no boot from {}: {}", image.display(), last[shown..].join(" / ")).into())
    }
}
