//! Rows of an image without an index: first mount, second mount, reading all of it, and memory.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::lab::{GZIP, Group, Lab};
use crate::measure::{find, need, read_all};
use crate::peers::{UNPACKERS, Unpacked, inflate};
use crate::report::{Row, Samples, Target, Unit};

/// What one core inflates with checkpoints, in bytes a second: the limit of `docs/performance.md`.
const INFLATE: f64 = 528e6;

/// What a reader may add to the daemon's memory: what an allocator keeps for the next time.
const NO_GROWTH: f64 = (4 << 20) as f64;

/// Mounts of a run until the first byte: they are short.
const FIRST_BYTES: usize = 5;

/// A file that every such image has.
pub(crate) const PYTHON: &str = "usr/bin/python3.11";

#[derive(Default)]
struct Unindexed {
    /// zlib-rs on the same layers, on all cores, and the longest of them.
    inflate: Samples,
    longest: Samples,
    /// With an empty cache: until the mount command returns, and until `find merged` has ended.
    mount: Samples,
    ready: Samples,
    bytes: Samples,
    blob_requests: Samples,
    memory: Samples,
    /// The same digest again.
    mount_again: Samples,
    ready_again: Samples,
    blob_requests_again: Samples,
    first_byte: Samples,
    /// `tar` of `merged/usr`, the second time.
    read_warm: Samples,
    /// And of the unpacked tree.
    native_warm: Samples,
    /// The same when `merged` is what is mounted.
    read_merged: Samples,
    /// The same where the kernel serves: `find`, the tree, the first byte. Empty where it cannot.
    kernel_find: Samples,
    kernel_read: Samples,
    kernel_first_byte: Samples,
    /// The daemon's peak after the first reading of everything, and what two more add.
    memory_read: Samples,
    growth: Samples,
    /// The limit by arithmetic.
    limit: f64,
    /// By the usual tools.
    peer: Peer,
    entries: usize,
}

/// What rows need of the unpacked image, which other groups measure on.
#[derive(Default)]
struct Peer {
    copy: Samples,
    unpack: Samples,
    ready: Samples,
    bytes: Samples,
    find: Samples,
}

impl Peer {
    fn of(unpacked: &Unpacked) -> Self {
        Self {
            copy: unpacked.copy.clone(),
            unpack: unpacked.unpack.clone(),
            ready: unpacked.ready.clone(),
            bytes: unpacked.bytes.clone(),
            find: unpacked.native_find.clone(),
        }
    }
}

pub(crate) fn ready(lab: &Lab) -> Result<Box<dyn Group>> {
    need(&UNPACKERS)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = lab.image.uncompressed as f64 / (INFLATE * lab.image.layers.len().min(cores) as f64);
    Ok(Box::new(Unindexed { limit, ..Unindexed::default() }))
}

impl Group for Unindexed {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        let reference = lab.registry.reference(GZIP);
        let inflated = inflate(&lab.image)?;
        self.inflate.add_time(inflated.all);
        self.longest.add_time(inflated.longest);
        lab.unpack_again()?;
        {
            let unpacked = lab.unpacked()?;
            (self.peer, self.entries) = (Peer::of(&unpacked), unpacked.entries);
            self.native_warm.add_time(read_all(&unpacked.root.join("usr"))?.time);
        }
        self.cold(lab, &reference)?;
        self.again(lab)
    }

    fn rows(&self) -> Vec<Row> {
        let row = |number, work: &str, ours, unit| Row::new(number, work, ours, unit);
        let entries = self.entries;
        let arithmetic = Samples::of(self.limit);
        vec![
            row("P1", &format!("cold: mount, `find merged` ({entries} entries)"), &self.ready, Unit::Seconds)
                .against("skopeo copy, umoci unpack, find", &self.peer.ready)
                .target(Target::Ratio(0.12)),
            row("P1", "the same", &self.ready, Unit::Seconds)
                .against("inflating on all cores, by arithmetic (528 MB/s)", &arithmetic)
                .target(Target::Ratio(1.5)),
            row("P1", "the same", &self.ready, Unit::Seconds)
                .against("the longest layer inflated by zlib-rs, each on its own core", &self.longest)
                .target(Target::Ratio(1.5)),
            row("P1", "the same", &self.ready, Unit::Seconds)
                .against("all layers inflated by zlib-rs on all cores", &self.inflate),
            row("P1", "of that: mount", &self.mount, Unit::Seconds),
            row("P1", "fetched", &self.bytes, Unit::MegaBytes).against("skopeo copy", &self.peer.bytes),
            row("P1", "blob requests", &self.blob_requests, Unit::Count),
            row("P1", "(skopeo copy alone)", &self.peer.copy, Unit::Seconds)
                .against("(umoci unpack alone)", &self.peer.unpack),
            row("P2", "the same digest again: mount", &self.mount_again, Unit::Seconds)
                .target(Target::AtMost(0.05)),
            row("P2", "mount, `find merged`", &self.ready_again, Unit::Seconds)
                .against("find in the unpacked tree", &self.peer.find),
            row("P2", "blob requests", &self.blob_requests_again, Unit::Count).target(Target::AtMost(0.0)),
            row("P6", "warm: tar of `merged/usr`", &self.read_warm, Unit::Seconds)
                .against("native", &self.native_warm)
                .target(Target::Ratio(1.2)),
            row("P6", "the same with `mount --view merged`", &self.read_merged, Unit::Seconds)
                .against("native", &self.native_warm)
                .target(Target::Ratio(1.2)),
            row("P2", "`find` of a mount with `--kernel=auto`", &self.kernel_find, Unit::Seconds)
                .against("find in the unpacked tree", &self.peer.find)
                .target(Target::Ratio(1.3)),
            row("P6", "the same with `--kernel=auto`", &self.kernel_read, Unit::Seconds)
                .against("native", &self.native_warm)
                .target(Target::Ratio(1.1)),
            row("P12", "the same with `--kernel=auto`", &self.kernel_first_byte, Unit::Seconds)
                .target(Target::AtMost(0.015)),
            row("P10", "peak memory after the cold `find`", &self.memory, Unit::MebiBytes)
                .target(Target::AtMost((64 << 20) as f64)),
            row("P10", "peak memory after reading all of `merged`", &self.memory_read, Unit::MebiBytes)
                .target(Target::AtMost((64 << 20) as f64)),
            row("P10", "what reading it twice more adds", &self.growth, Unit::MebiBytes)
                .target(Target::AtMost(NO_GROWTH)),
            row(
                "P12",
                "mount of a cached digest to the first byte of a cached file",
                &self.first_byte,
                Unit::Seconds,
            )
            .target(Target::AtMost(0.03)),
        ]
    }
}

impl Unindexed {
    fn cold(&mut self, lab: &Lab, reference: &str) -> Result<()> {
        let cache = lab.scratch.fresh("cache")?;
        let start = lab.registry.now()?;
        let mounted = lab.mount(reference, &cache, &[])?;
        let named = find(&mounted.join("merged"))?;
        let traffic = lab.registry.since(start)?;
        if named.lines != self.entries {
            return Err(format!("ocifs shows {} entries, umoci {}", named.lines, self.entries).into());
        }
        self.mount.add_time(mounted.time);
        self.ready.add_time(mounted.time + named.time);
        self.bytes.add(traffic.bytes as f64);
        self.blob_requests.add(traffic.blob_requests as f64);
        self.memory.add(mounted.peak_memory()?);
        let usr = mounted.join("merged/usr");
        let first = read_all(&usr)?;
        let warm = read_all(&usr)?;
        if first.bytes != warm.bytes {
            return Err(format!("tar read {} bytes, then {}", first.bytes, warm.bytes).into());
        }
        self.read_warm.add_time(warm.time);
        // The first reading of the rest may still bring pages in; only what comes after it counts as growth.
        let merged = mounted.join("merged");
        read_all(&merged)?;
        let before = mounted.peak_memory()?;
        read_all(&merged)?;
        read_all(&merged)?;
        self.memory_read.add(before);
        self.growth.add(mounted.peak_memory()? - before);
        mounted.end()
    }

    /// Mounts that the kernel's EROFS serves, where it can.
    fn by_kernel(&mut self, lab: &Lab, pinned: &str, cache: &Path) -> Result<()> {
        if lab.options.need("--kernel").is_err() {
            return Ok(());
        }
        let options = ["--view=merged", "--kernel=auto"];
        for _ in 0..FIRST_BYTES {
            let start = Instant::now();
            let mounted = lab.mount(pinned, cache, &options)?;
            let mut byte = [0];
            File::open(mounted.join(PYTHON))?.read_exact(&mut byte)?;
            let rest = start.elapsed().saturating_sub(mounted.lookup);
            if !mounted.is_erofs()? {
                return mounted.end();
            }
            self.kernel_first_byte.add_time(rest);
            mounted.end()?;
        }
        let mounted = lab.mount(pinned, cache, &options)?;
        let named = find(&mounted.join(""))?;
        if named.lines != self.entries {
            return Err(format!("the kernel shows {} entries, umoci {}", named.lines, self.entries).into());
        }
        self.kernel_find.add_time(named.time);
        let usr = mounted.join("usr");
        read_all(&usr)?;
        self.kernel_read.add_time(read_all(&usr)?.time);
        mounted.end()
    }

    /// With the cache that the cold run filled.
    fn again(&mut self, lab: &Lab) -> Result<()> {
        let cache = lab.scratch.kept("cache");
        let pinned = lab.registry.pinned(GZIP)?;
        let start = lab.registry.now()?;
        let mounted = lab.mount(&pinned, &cache, &[])?;
        let named = find(&mounted.join("merged"))?;
        let traffic = lab.registry.since(start)?;
        self.mount_again.add_time(mounted.time);
        self.ready_again.add_time(mounted.time + named.time);
        self.blob_requests_again.add(traffic.blob_requests as f64);
        mounted.end()?;

        for _ in 0..FIRST_BYTES {
            let start = Instant::now();
            let mounted = lab.mount(&pinned, &cache, &[])?;
            let mut byte = [0];
            File::open(mounted.join("merged").join(PYTHON))?.read_exact(&mut byte)?;
            // The search for the daemon's process is ours, not part of the mount.
            let rest = start.elapsed().saturating_sub(mounted.lookup);
            self.first_byte.add_time(rest);
            mounted.end()?;
        }

        let mounted = lab.mount(&pinned, &cache, &["--view=merged"])?;
        let usr = mounted.join("usr");
        read_all(&usr)?;
        self.read_merged.add_time(read_all(&usr)?.time);
        mounted.end()?;
        self.by_kernel(lab, &pinned, &cache)?;
        lab.scratch.gone("cache").map(drop)
    }
}
