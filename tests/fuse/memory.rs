//! Memory of the serving process: at most 256 MiB for a layer of a million entries, nothing for bytes read, and a
//! bounded amount for a hostile archive. `OCIFS_LONG=1` measures the last with 1, 2 and 16 cores.
//!
//! Measured as the kernel counts it (`VmHWM`, the most that was ever resident), from the mount on.

use std::fs;
use std::io::{Read as _, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::proc_files::{proc_of, status_bytes};
use crate::process::{Need, able, sh};
use crate::site::{Mount, Site, unmounts};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const MIB: u64 = 1 << 20;

/// A field of `/proc/PID/status` of the process that serves the mount, in bytes.
fn memory(mount: &Mount, field: &str) -> u64 {
    status_bytes(&proc_of(mount.pid()), field)
}

/// A ustar header; the `tar` crate would take seconds for a million of them.
fn header(name: &str, flag: u8, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"13734657000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = flag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// A gzip layer of what `write` writes, never whole in memory. Its DiffID is not that of its tar, which nobody looks at.
fn gzip_layer(write: impl FnOnce(&mut dyn std::io::Write)) -> Layer {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    write(&mut encoder);
    encoder.write_all(&[0; 1024]).unwrap();
    let stored = encoder.finish().unwrap();
    Layer { media_type: Encoding::Gzip.media_type().to_owned(), diff_id: digest_of(b""), stored }
}

#[test]
fn a_layer_of_a_million_entries_is_listed_within_256_mib() {
    if !able(&NEEDS) {
        return;
    }
    const DIRS: usize = 1000;
    const FILES: usize = 999;
    let layer = gzip_layer(|tar| {
        let mut body = [0; 512];
        for dir in 0..DIRS {
            let dir = format!("usr/lib/modules/package-{dir:04}");
            tar.write_all(&header(&format!("{dir}/"), b'5', 0)).unwrap();
            for file in 0..FILES {
                let name = format!("{dir}/module-{file:04}.py");
                body[..name.len()].copy_from_slice(name.as_bytes());
                tar.write_all(&header(&name, b'0', name.len())).unwrap();
                tar.write_all(&body).unwrap();
            }
        }
    });
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[layer]);
    // First by the pass over the layer, then from the kept index.
    for name in ["cold", "warm"] {
        let mount = site.mount_at(name, &layout.reference("v1"), &[]);
        let merged = mount.join("merged");
        assert!(merged.join("usr").is_dir());
        let merge = memory(&mount, "VmHWM");
        // The root, three directories above the packages, and what the layer records.
        let found = sh("find $1 | wc -l", &[&merged]).text();
        assert_eq!(found.trim(), (1 + 3 + DIRS * (1 + FILES)).to_string());
        let path = "usr/lib/modules/package-0999/module-0998.py";
        assert_eq!(fs::read_to_string(merged.join(path)).unwrap(), path);
        let (most, now) = (memory(&mount, "VmHWM"), memory(&mount, "VmRSS"));
        let (merge, most, now) = (merge / MIB, most / MIB, now / MIB);
        eprintln!(
            "{name}: {merge} MiB at most until the tree was there, {most} MiB after the listing, {now} MiB now"
        );
        assert!(most <= 256, "{name}: {most} MiB");
        mount.unmount();
    }
}

#[test]
fn memory_does_not_grow_with_the_bytes_that_are_read() {
    if !able(&NEEDS) {
        return;
    }
    const SIZE: u64 = 100 * MIB;
    let tar = Tarball::new().file("big", &noise(SIZE as usize, 3)).file("small", b"x").bytes();
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&tar, Encoding::Plain), Layer::of(&tar[..], Encoding::Zstd)]);
    drop(tar);
    let mount = site.mount(&layout.reference("v1"), &[]);
    // The first round fetches and decodes; what a round needs, the later ones need too.
    let mut after = Vec::new();
    for _ in 0..4 {
        let read = sh(
            "cat $1/layers/*/big $1/merged/big | wc -c; echo 3 > /proc/sys/vm/drop_caches",
            &[&mount.dir()],
        );
        assert_eq!(read.text().trim(), (3 * SIZE).to_string());
        after.push(memory(&mount, "VmRSS"));
    }
    eprintln!(
        "resident after each {} MiB: {:?} MiB",
        3 * SIZE / MIB,
        after.iter().map(|rss| rss / MIB).collect::<Vec<_>>()
    );
    assert!(memory(&mount, "VmHWM") <= 128 * MIB, "{} MiB", memory(&mount, "VmHWM") / MIB);
    assert!(after[3] <= after[0] + 8 * MIB, "{after:?}");
}

#[test]
fn an_archive_that_implies_millions_of_directories_is_refused_in_bounded_memory() {
    if !able(&NEEDS) {
        return;
    }
    // Each name implies 2040 directories; 8 million are over the limit of names.
    let deep = "a/".repeat(2040);
    let layer = gzip_layer(|tar| {
        for number in 0..4200 {
            let name = format!("{number:06}/{deep}f");
            tar.write_all(&header("././@LongLink", b'L', name.len() + 1)).unwrap();
            let mut padded = name.into_bytes();
            padded.resize(padded.len().next_multiple_of(512), 0);
            tar.write_all(&padded).unwrap();
            tar.write_all(&header("cut", b'0', 0)).unwrap();
        }
    });
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[layer]);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let refused = fs::read_dir(mount.join("merged")).and_then(|mut names| names.next().transpose());
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    assert!(mount.status().contains("the tree is too large"), "{}", mount.status());
    let (most, now) = (memory(&mount, "VmHWM") / MIB, memory(&mount, "VmRSS") / MIB);
    eprintln!("{most} MiB at most, {now} MiB now");
    assert!(most <= 256, "{most} MiB");
    assert!(now <= 128, "{now} MiB are kept");
}

/// An extended header with one record, and the entry it is about.
fn with_attribute(tar: &mut dyn Write, name: &str, value: &[u8]) {
    let body = [b" SCHILY.xattr.user.a=", value, b"\n"].concat();
    let len =
        (1..10).map(|digits| body.len() + digits).find(|len| len.to_string().len() + body.len() == *len);
    let mut record = [len.unwrap().to_string().as_bytes(), &body].concat();
    tar.write_all(&header("pax", b'x', record.len())).unwrap();
    record.resize(record.len().next_multiple_of(512), 0);
    tar.write_all(&record).unwrap();
    tar.write_all(&header(name, b'0', 0)).unwrap();
}

/// A layer of `count` files, each with an attribute of `len` bytes that no other has.
fn attributes(layer: usize, count: usize, len: usize) -> Layer {
    gzip_layer(|tar| write_attributes(tar, layer, count, len))
}

/// The same without compression.
fn plain_attributes(layer: usize, count: usize, len: usize) -> Layer {
    let mut tar = Vec::new();
    write_attributes(&mut tar, layer, count, len);
    tar.resize(tar.len() + 1024, 0);
    Layer::of(&tar, Encoding::Plain)
}

fn write_attributes(tar: &mut dyn Write, layer: usize, count: usize, len: usize) {
    for number in 0..count {
        let mut value = format!("{layer}-{number}-").into_bytes();
        value.resize(len, b'A');
        with_attribute(tar, &format!("l{layer}-{number}"), &value);
    }
}

/// A zstd layer of one file of 160 MiB, whose window is 128 MiB.
fn wide_window(seed: u64) -> Layer {
    let piece = noise(MIB as usize, seed);
    let size = 160 * piece.len();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&header(&format!("wide-{seed}"), b'0', size)).unwrap();
    for _ in 0..160 {
        encoder.write_all(&piece).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let stored = encoder.finish().unwrap();
    Layer { media_type: Encoding::Zstd.media_type().to_owned(), diff_id: digest_of(b""), stored }
}

#[test]
fn layers_that_are_made_to_take_memory_end_in_256_mib_with_an_error_or_without() {
    if !able(&NEEDS) {
        return;
    }
    /// What status.json says of it; `None` for what is shown.
    type Refusal = Option<&'static str>;
    let bombs: [(&str, Vec<Layer>, Refusal); 7] = [
        ("value", vec![attributes(0, 300, 1_000_000)], Some("an extended attribute has 1000000 bytes")),
        ("sum", vec![attributes(0, 2000, 65_000)], Some("are over the limit of")),
        (
            "layers",
            (0..4).map(|layer| attributes(layer, 1200, 65_000)).collect(),
            Some("the tree is too large"),
        ),
        (
            "plain",
            (0..4).map(|layer| plain_attributes(layer, 1200, 65_000)).collect(),
            Some("the tree is too large"),
        ),
        (
            "sixteen",
            (0..16).map(|layer| attributes(layer, 400, 65_000)).collect(),
            Some("the tree is too large"),
        ),
        ("many", (0..6).map(|layer| attributes(layer, 300, 65_000)).collect(), None),
        ("windows", (0..3).map(wide_window).collect(), None),
    ];
    let runs: &[(&str, &str)] = match std::env::var_os("OCIFS_LONG") {
        Some(_) => {
            &[("cold", "1"), ("warm", "1"), ("cold", "2"), ("warm", "2"), ("cold", "16"), ("warm", "16")]
        }
        None => &[("cold", "16"), ("warm", "2")],
    };
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    for (name, layers, refusal) in bombs {
        layout.image(name, &layers);
        // Passes with so many threads, and then what is kept.
        for &(time, cores) in runs {
            if time == "cold" {
                fs::remove_dir_all(site.cache()).ok();
            }
            let dir = site.mount_point(&format!("{name}-{time}-{cores}"));
            let mut command = site.command();
            command.env("OCIFS_TEST_CORES", cores).arg("mount").arg(layout.reference(name)).arg(&dir);
            let mount = Mount::up(&mut command, dir);
            let listed = fs::read_dir(mount.join("merged")).and_then(|mut names| names.next().transpose());
            match refusal {
                Some(why) => {
                    assert_eq!(listed.unwrap_err().raw_os_error(), Some(nix::libc::EIO), "{name}");
                    assert!(mount.status().contains(why), "{name}: {}", mount.status());
                }
                None => assert!(listed.unwrap().is_some(), "{name}: {}", mount.status()),
            }
            let most = memory(&mount, "VmHWM") / MIB;
            eprintln!("{name}, {time}, {cores} cores: {most} MiB");
            assert!(most <= 256, "{name}, {time}, {cores} cores: {most} MiB");
            mount.unmount();
        }
    }
}

/// A layer of sparse files, each with 60,000 bytes between as many holes.
fn sparse_files(count: usize) -> Layer {
    const RUNS: usize = 60_000;
    let map = (0..RUNS).map(|at| format!("{},1", 2 * at)).collect::<Vec<_>>().join(",");
    gzip_layer(|tar| {
        for file in 0..count {
            let name = format!("sparse-{file}");
            let fields = [
                ("GNU.sparse.name", name.clone()),
                ("GNU.sparse.size", (2 * RUNS).to_string()),
                ("GNU.sparse.numblocks", RUNS.to_string()),
                ("GNU.sparse.map", map.clone()),
            ];
            let records: String = fields.iter().map(|(key, value)| pax_record(key, value)).collect();
            tar.write_all(&header("pax", b'x', records.len())).unwrap();
            tar.write_all(records.as_bytes()).unwrap();
            tar.write_all(&[0; 512][..records.len().next_multiple_of(512) - records.len()]).unwrap();
            tar.write_all(&header(&name, b'0', RUNS)).unwrap();
            tar.write_all(&vec![b'x'; RUNS.next_multiple_of(512)]).unwrap();
        }
    })
}

/// A pax record: its length counts its own digits.
fn pax_record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    format!("{len}{rest}")
}

#[test]
fn open_sparse_files_share_their_runs() {
    if !able(&NEEDS) {
        return;
    }
    const FILES: usize = 40;
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[sparse_files(FILES)]);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let open: Vec<fs::File> = (0..FILES)
        .map(|file| {
            let mut open = fs::File::open(mount.join(format!("merged/sparse-{file}"))).unwrap();
            let mut bytes = Vec::new();
            open.read_to_end(&mut bytes).unwrap();
            assert!(bytes.len() == 120_000 && bytes.chunks(2).all(|pair| pair == b"x\0"));
            open
        })
        .collect();
    let most = memory(&mount, "VmHWM") / MIB;
    eprintln!("{} sparse files are open: {most} MiB", open.len());
    assert!(most <= 128, "{most} MiB");
    drop(open);
    mount.unmount();
}

#[test]
fn each_serving_process_has_one_heap() {
    if !able(&NEEDS) {
        return;
    }
    let (site, tar) = (Site::new(), Tarball::new().file("f", b"x").bytes());
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&tar, Encoding::Plain)]);
    let reference = layout.reference("v1");
    let has_one_heap = |pid: u32| {
        let environment = fs::read(proc_of(pid).join("environ")).unwrap();
        assert!(environment.split(|byte| *byte == 0).any(|set| set == b"MALLOC_ARENA_MAX=1"));
    };
    let mount = site.mount(&reference, &[]);
    has_one_heap(mount.pid());
    mount.unmount();
    let (mut child, dir) = site.mount_foreground(&reference, &[]);
    has_one_heap(child.id());
    unmounts(site.command().arg("umount").arg(&dir));
    child.wait().unwrap();
}
