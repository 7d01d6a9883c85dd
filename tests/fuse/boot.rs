//! A machine boots from a disk that lies in a registry: Debian's kernel and root, an overlay, an emulated processor.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use crate::machine::Machine;
use crate::process::{Need, able, becomes_true, sh};
use crate::site::Site;
use crate::vm::{self, Vm};

const NEEDS: [Need<'_>; 7] = [
    Need::Root,
    Need::Fuse,
    Need::Tool("docker-registry"),
    Need::Tool("debootstrap"),
    Need::Tool("mkfs.ext4"),
    Need::Tool("qemu-img"),
    Need::Tool("qemu-system-x86_64"),
];

#[test]
fn a_machine_boots_from_a_disk_in_the_registry_and_fetches_a_part_of_it() {
    if !able(&NEEDS) {
        return;
    }
    let fixture = Vm::get();
    let site = Site::new();
    let (console, local) = vm::boot(&fixture.disk(), fixture.dir(), site.scratch().path());
    assert!(console.contains(&fixture.marker()), "from the local file: {console}");

    let mut registry = fixture.registry();
    registry.reset_counts();
    let mount = site.mount(&registry.reference(vm::NAME), &[]);
    let disk = mount.join("disk/system.qcow2");
    let (console, lazy) = vm::boot(&disk, &mount.join("files"), site.scratch().path());
    assert!(console.contains(&fixture.marker()), "from the registry: {console}");

    // With the kernel and its first root, which are read whole.
    let (fetched, requests) = (registry.blob_bytes(), registry.blob_requests().len());
    let size = fs::metadata(fixture.disk()).unwrap().len();
    let (percent, mebibytes) = (fetched * 100 / size, |bytes: u64| bytes >> 20);
    let line = format!(
        "booted from the registry in {:.1} s, from the local file in {:.1} s; fetched {} MiB of {} MiB \
         ({percent} %) in {requests} requests",
        lazy.as_secs_f64(),
        local.as_secs_f64(),
        mebibytes(fetched),
        mebibytes(size),
    );
    // On the real standard error, because a passing test's own is swallowed.
    writeln!(std::io::stderr(), "{line}").unwrap();
    assert!(percent <= 40, "{line}");
    // A second machine finds everything that the first one needed.
    let second = mount.join("disk/system.qcow2");
    registry.reset_counts();
    let (console, _) = vm::boot(&second, &mount.join("files"), site.scratch().path());
    assert!(console.contains(&fixture.marker()), "again: {console}");
    assert!(registry.blob_bytes() <= size / 100, "{:?}", registry.blob_requests());
}

#[test]
fn a_machine_boots_from_a_container_image_and_fetches_less_than_a_quarter_of_it() {
    if !able(&NEEDS) {
        return;
    }
    let (fixture, site) = (Vm::get(), Site::new());
    let mut registry = fixture.registry();
    let reference = registry.reference(vm::ROOT);
    // A machine that has read the layer once publishes where its files are.
    Site::new().ocifs(&["index", "push", &reference]).ok();
    registry.reset_counts();
    let mount = site.mount(&reference, &["--prefetch=none"]);
    let console = vm::boot_root(&mount.join("export/rootfs.erofs"), fixture.dir(), site.scratch().path());
    assert!(console.contains(&fixture.marker()), "{console}");
    let (fetched, requests) = (registry.blob_bytes(), registry.blob_requests().len());
    let stored = fs::read_dir(mount.join("blobs/sha256")).unwrap();
    let size: u64 = stored.map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
    let line = format!("booted a container image: fetched {fetched} of {size} bytes in {requests} requests");
    writeln!(std::io::stderr(), "{line}").unwrap();
    assert!(fetched * 4 < size, "{line}");
}

#[test]
fn a_machine_stops_while_the_registry_is_away_and_goes_on_when_it_is_back() {
    if !able(&NEEDS) {
        return;
    }
    let fixture = Vm::get();
    let site = Site::new();
    let mut registry = fixture.registry();
    let mount = site.mount(&registry.reference(vm::NAME), &["--timeout", "2"]);
    let (overlay, console) = (site.scratch().join("overlay.qcow2"), site.scratch().join("console"));
    sh("qemu-img create -q -f qcow2 -b $1 -F qcow2 $2", &[&mount.join("disk/system.qcow2"), &overlay]);
    registry.stop();
    let mut machine = Machine::start(vm::command(fixture.dir(), &overlay, &console).args([
        "-no-shutdown",
        "-qmp",
        "stdio",
    ]));
    let patience = Duration::from_secs(300);
    assert!(becomes_true(patience, || machine.status() == "io-error"), "it is {}", machine.status());
    registry.resume();
    // It may find the registry away for a moment more.
    let up = becomes_true(patience, || match machine.status().as_str() {
        "io-error" => {
            machine.go_on();
            false
        }
        status => status == "shutdown",
    });
    let shown = fs::read_to_string(&console).unwrap();
    assert!(up && shown.contains(&fixture.marker()), "it is {}: {shown}", machine.status());
    assert!(!shown.contains("I/O error"), "{shown}");
    machine.end();
}
