//! Images whose index is known, from an earlier pass or because they carry one: the first look, one file, everything.
//!
//! Where no stargz-store is given by path, its published figures stand beside ours, and are marked: they come from
//! another machine's run, so a ratio to them meets and misses nothing. In the same run there are the usual tools, the
//! unpacked tree, and what no reader could do without: fetching as many bytes and inflating them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::artifact::push_index;
use crate::image::{Image, Layer, once};
use crate::lab::{GZIP, Group, Lab};
use crate::measure::{cat, drain, find, need, read_all, run, tool};
use crate::mounted::evict;
use crate::peers::{
    Eager, PEER_RUNS, UNPACKERS, Unpacker, inflate, mount_ratarmount, mount_stargz_store, ratarmount,
    stargz_store,
};
use crate::report::{Origin, Row, Samples, Target, Unit};
use crate::rows_image::PYTHON;
use crate::{Result, convert};

/// What stargz-store 0.12 took on another machine: the first `ls` of both layers, `cat` of Python, `tar` of `usr`.
const PUBLISHED: [f64; 3] = [0.136, 0.083, 6.4];

/// Bytes a reader may fetch beyond those it asked for.
const SLACK: f64 = (1 << 20) as f64;

/// Who tells ocifs where the bytes of a file are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Index {
    /// A pass over the layers before; the bytes are gone from the cache since.
    Local,
    /// The image.
    Carried,
}

struct Indexed {
    what: &'static str,
    index: Index,
    image: Image,
    /// What it is called in the registry.
    name: String,
    reference: String,
    unpacker: Unpacker,
    /// With an empty cache.
    first_look: Samples,
    first_look_bytes: Samples,
    first_cat: Samples,
    cat: Samples,
    cat_bytes: Samples,
    tar: Samples,
    tar_bytes: Samples,
    tar_requests: Samples,
    peer: Peer,
    stargz: Result<Stargz, String>,
}

/// What stands beside it in the same run.
#[derive(Default)]
struct Peer {
    /// Fetching and unpacking everything, then the work.
    look: Samples,
    cat: Samples,
    tar: Samples,
    /// The works in the unpacked tree.
    native_cat: Samples,
    native_tar: Samples,
    /// The limits: fetching and inflating as much.
    fetch_look: Samples,
    fetch_cat: Samples,
    inflate: Samples,
    /// Bytes of Python, compressed by itself.
    stored: Samples,
}

/// The same by stargz-store.
struct Stargz {
    program: PathBuf,
    layers: Vec<String>,
    look: Samples,
    cat: Samples,
    tar: Samples,
}

pub(crate) fn ready_gzip(lab: &Lab) -> Result<Box<dyn Group>> {
    let image = Image { name: GZIP.into(), ..lab.image.clone() };
    let reference = lab.registry.reference(GZIP);
    Indexed::ready("gzip", Index::Local, image, reference, Unpacker::Umoci, None)
}

pub(crate) fn ready_estargz(lab: &Lab) -> Result<Box<dyn Group>> {
    let image = converted(lab, "OCIFS_BENCH_ESTARGZ", "estargz", convert::estargz)?;
    let reference = lab.registry.push(&image, &image.name, &["--preserve-digests"])?;
    let stargz = stargz_store().map(|program| {
        let layers = image.layers.iter().map(|layer| layer.digest.clone()).collect();
        let none = Samples::default;
        Stargz { program, layers, look: none(), cat: none(), tar: none() }
    });
    Indexed::ready("eStargz", Index::Carried, image, reference, Unpacker::Umoci, stargz)
}

pub(crate) fn ready_soci(lab: &Lab) -> Result<Box<dyn Group>> {
    let image = converted(lab, "OCIFS_BENCH_SOCI", "soci", convert::soci)?;
    let reference = push_index(&lab.registry, &image.name, &image.layout)?;
    Indexed::ready("SOCI", Index::Carried, image, reference, Unpacker::Umoci, None)
}

pub(crate) fn ready_zstd_chunked(lab: &Lab) -> Result<Box<dyn Group>> {
    need(&["zstd"])?;
    let home = lab.data.join("zstd-chunked-1");
    once(&home, |home| {
        // Into a layout first: a registry that has the gzip layers would be given those again.
        run(tool("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-compress-format=zstd:chunked"])
            .arg(lab.image.in_layout()?)
            .arg(format!("oci:{}:bench", home.join("layout").display())))
        .map(drop)
    })?;
    let image = Image::open(home.join("layout"), "wheels-zstd-chunked-1", lab.image.uncompressed)?;
    if let Some(layer) = image.layers.iter().find(|layer| !layer.media_type.ends_with("+zstd")) {
        return Err(format!("this skopeo did not convert: {} is {}", layer.digest, layer.media_type).into());
    }
    let reference = lab.registry.push(&image, &image.name, &["--preserve-digests"])?;
    Indexed::ready("zstd:chunked", Index::Carried, image, reference, Unpacker::Zstd, None)
}

/// The main image as somebody converted it: the layout that the variable names, or the one in the data folder, made now
/// if it is not there.
fn converted(
    lab: &Lab,
    variable: &str,
    name: &str,
    make: fn(&Image, &Path) -> Result<PathBuf>,
) -> Result<Image> {
    let layout = match env::var_os(variable) {
        Some(layout) => PathBuf::from(layout),
        None => make(&lab.image, &lab.data)?,
    };
    if !layout.join("index.json").is_file() {
        return Err(format!("{variable}: there is no layout at {}", layout.display()).into());
    }
    let mut image = Image::open(layout, "", lab.image.uncompressed)?;
    // Only the maker of a layout knows how much is in it; without the number nothing holds the inflating to it.
    if let Ok(bytes) = fs::read_to_string(image.layout.with_file_name("uncompressed")) {
        image.uncompressed = bytes.trim().parse()?;
    }
    // The registry keeps what was pushed: another conversion must get another name.
    let digest = image.layers.last().ok_or("the converted image has no layers")?.digest.clone();
    image.name = format!("wheels-1-{name}-{}", digest.get(7..19).unwrap_or_default());
    Ok(image)
}

impl Indexed {
    fn ready(
        what: &'static str,
        index: Index,
        image: Image,
        reference: String,
        unpacker: Unpacker,
        stargz: Option<Stargz>,
    ) -> Result<Box<dyn Group>> {
        need(&UNPACKERS)?;
        let none = Samples::default;
        let name = image.name.clone();
        Ok(Box::new(Self {
            what,
            index,
            image,
            name,
            reference,
            unpacker,
            first_look: none(),
            first_look_bytes: none(),
            first_cat: none(),
            cat: none(),
            cat_bytes: none(),
            tar: none(),
            tar_bytes: none(),
            tar_requests: none(),
            peer: Peer::default(),
            stargz: stargz.ok_or_else(|| "stargz-store is not given".into()),
        }))
    }

    /// The usual tools, and the limits that do not depend on what ocifs fetches.
    fn peers(&mut self, lab: &Lab) -> Result<()> {
        match self.unpacker {
            // The image is the same, as these tools see it.
            Unpacker::Umoci => {
                let unpacked = lab.unpacked()?;
                self.peer.look = unpacked.look.clone();
                self.peer.cat = unpacked.cat.clone();
                self.peer.tar = unpacked.tar.clone();
            }
            Unpacker::Zstd if self.peer.tar.count() < PEER_RUNS => {
                let eager = Eager::new(lab, &self.reference, self.unpacker)?;
                let look = drain(tool("ls").arg("-l").arg(&eager.root))?.time;
                let python = cat(&eager.root.join(PYTHON))?.time;
                self.peer.look.add_time(eager.time() + look);
                self.peer.cat.add_time(eager.time() + python);
                self.peer.tar.add_time(eager.time() + read_all(&eager.root.join("usr"))?.time);
                eager.remove(lab)?;
            }
            Unpacker::Zstd => {}
        }
        let unpacked = lab.unpacked()?;
        self.peer.native_cat.add_time(cat(&unpacked.root.join(PYTHON))?.time);
        self.peer.native_tar.add_time(read_all(&unpacked.root.join("usr"))?.time);
        self.peer.inflate.add_time(inflate(&self.image)?.all);
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        io::copy(&mut &unpacked.python[..], &mut packed)?;
        let packed = packed.finish()?;
        self.peer.stored.add(packed.len() as f64);
        let fetch = self.fetch(lab, packed.len() as u64)?;
        let start = Instant::now();
        io::copy(&mut GzDecoder::new(&packed[..]), &mut io::sink())?;
        self.peer.fetch_cat.add_time(fetch + start.elapsed());
        Ok(())
    }

    /// `curl` of so many bytes of the largest layer.
    fn fetch(&self, lab: &Lab, bytes: u64) -> Result<Duration> {
        let layer =
            self.image.layers.iter().max_by_key(|layer| layer.size).ok_or("the image has no layers")?;
        run(tool("curl")
            .args(["--silent", "--show-error", "--fail", "--output", "/dev/null", "--range"])
            .arg(format!("0-{}", bytes.max(1) - 1))
            .arg(lab.registry.url(&self.name, &format!("blobs/{}", layer.digest))))
    }

    /// A cache that knows the index and has no other byte, whatever learning it took.
    fn cache(&self, lab: &Lab) -> Result<PathBuf> {
        let cache = lab.scratch.fresh("cache")?;
        let mounted = lab.mount(&self.reference, &cache, lab.options.on_demand())?;
        let merged = mounted.join("merged");
        match self.index {
            Index::Carried => drain(tool("ls").arg(&merged))?,
            Index::Local => find(&merged)?,
        };
        mounted.end()?;
        evict(&cache)?;
        Ok(cache)
    }
}

impl Group for Indexed {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        self.peers(lab)?;
        let (python, expected) = {
            let unpacked = lab.unpacked()?;
            (unpacked.python.clone(), unpacked.entries_usr)
        };
        if let Ok(stargz) = &mut self.stargz {
            stargz.run(lab, &self.reference)?;
        }

        if self.index == Index::Carried {
            let cache = lab.scratch.fresh("cache")?;
            let start = lab.registry.now()?;
            let mounted = lab.mount(&self.reference, &cache, lab.options.on_demand())?;
            let look = drain(tool("ls").arg("-l").arg(mounted.join("merged")))?;
            self.first_look.add_time(mounted.time + look.time);
            let bytes = lab.registry.since(start)?.bytes;
            self.first_look_bytes.add(bytes as f64);
            mounted.end()?;
            self.peer.fetch_look.add_time(self.fetch(lab, bytes)?);
        }

        // The first thing that anybody asks of a mount.
        let cache = self.cache(lab)?;
        let mounted = lab.mount(&self.reference, &cache, lab.options.on_demand())?;
        self.first_cat.add_time(cat(&mounted.join("merged").join(PYTHON))?.time);
        mounted.end()?;
        evict(&cache)?;

        // The same when the tree is known to the daemon and the kernel.
        let mounted = lab.mount(&self.reference, &cache, lab.options.on_demand())?;
        find(&mounted.join("merged"))?;
        let file = mounted.join("merged").join(PYTHON);
        let start = lab.registry.now()?;
        self.cat.add_time(cat(&file)?.time);
        self.cat_bytes.add(lab.registry.since(start)?.bytes as f64);
        if fs::read(&file)? != python {
            return Err(format!("{}: {PYTHON} is not what umoci unpacked", self.what).into());
        }
        mounted.end()?;
        evict(&cache)?;

        let mounted = lab.mount(&self.reference, &cache, lab.options.on_demand())?;
        let usr = mounted.join("merged/usr");
        let start = lab.registry.now()?;
        self.tar.add_time(read_all(&usr)?.time);
        let traffic = lab.registry.since(start)?;
        self.tar_bytes.add(traffic.bytes as f64);
        self.tar_requests.add(traffic.blob_requests as f64);
        let found = find(&usr)?.lines;
        if found != expected {
            return Err(format!("{}: ocifs shows {found} entries in usr, umoci {expected}", self.what).into());
        }
        mounted.end()?;
        lab.scratch.gone("cache").map(drop)
    }

    fn most_runs(&self) -> usize {
        match self.index {
            Index::Local => usize::MAX,
            Index::Carried => PEER_RUNS,
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row =
            |number, work: &str, ours, unit| Row::new(number, format!("{}: {work}", self.what), ours, unit);
        let published: Vec<_> = PUBLISHED.into_iter().map(Samples::of).collect();
        let (origin, name, look, cat, tar) = match &self.stargz {
            Ok(stargz) => (Origin::SameRun, "stargz-store", &stargz.look, &stargz.cat, &stargz.tar),
            Err(_) => {
                let name = "stargz-store (published figure, another machine)";
                (Origin::Published, name, &published[0], &published[1], &published[2])
            }
        };
        let eager = match self.unpacker {
            Unpacker::Umoci if self.index == Index::Local => "skopeo copy, umoci unpack, then it",
            Unpacker::Umoci => "skopeo copy, umoci unpack of the gzip image, then it",
            Unpacker::Zstd => "skopeo copy, zstd and tar, then it",
        };
        let peer = &self.peer;
        let most = peer.stored.median().unwrap_or_default() * 1.5 + SLACK;
        let mut rows = vec![];
        if self.index == Index::Carried {
            rows.extend([
                row("P3", "cold: mount, first `ls`", &self.first_look, Unit::Seconds)
                    .against_of(origin, name, look)
                    .target(Target::Ratio(0.5)),
                row("P3", "the same", &self.first_look, Unit::Seconds).against(eager, &peer.look),
                row("P3", "the same", &self.first_look, Unit::Seconds)
                    .against("curl of as many bytes", &peer.fetch_look),
                row("P3", "fetched", &self.first_look_bytes, Unit::MegaBytes),
            ]);
        }
        let named = "index known, cold, after `find`: cat of `python3.11`";
        rows.extend([
            row("P4", named, &self.cat, Unit::Seconds)
                .against_of(origin, name, cat)
                .target(Target::Ratio(0.5)),
            row("P4", "the same", &self.cat, Unit::Seconds).against(eager, &peer.cat),
            row("P4", "the same", &self.cat, Unit::Seconds)
                .against("curl of as many stored bytes, inflated", &peer.fetch_cat),
            row("P4", "the same", &self.cat, Unit::Seconds).against("native, warm", &peer.native_cat),
            row("P4", "fetched", &self.cat_bytes, Unit::MegaBytes)
                .against("the file, compressed by itself", &peer.stored)
                .target(Target::AtMost(most)),
            row(
                "P4",
                "index known, cold, as the first thing in a mount: the same",
                &self.first_cat,
                Unit::Seconds,
            ),
            row("P5", "index known, cold: tar of `merged/usr`", &self.tar, Unit::Seconds)
                .against_of(origin, name, tar)
                .target(Target::Ratio(0.5)),
            row("P5", "the same", &self.tar, Unit::Seconds)
                .against(eager, &peer.tar)
                .target(Target::Ratio(1.05)),
            row("P5", "the same", &self.tar, Unit::Seconds)
                .against("all layers inflated on all cores", &peer.inflate),
            row("P5", "the same", &self.tar, Unit::Seconds).against("native, warm", &peer.native_tar),
            row("P5", "fetched", &self.tar_bytes, Unit::MegaBytes),
            row("P5", "blob requests", &self.tar_requests, Unit::Count),
        ]);
        rows
    }
}

impl Stargz {
    fn run(&mut self, lab: &Lab, reference: &str) -> Result<()> {
        let (_look, image) = mount_stargz_store(lab, &self.program, reference)?;
        let layers: Vec<_> = self.layers.iter().map(|digest| image.join(digest).join("diff")).collect();
        self.look.add_time(drain(tool("ls").arg("-l").args(&layers))?.time);
        let root = layers.first().ok_or("the image has no layers")?;
        self.cat.add_time(cat(&root.join(PYTHON))?.time);
        let mut time = read_all(&root.join("usr"))?.time;
        for layer in layers.iter().skip(1) {
            time += read_all(&layer.join("usr"))?.time;
        }
        self.tar.add_time(time);
        Ok(())
    }
}

/// One plain layer, which ratarmount mounts at its address in the registry.
struct OneLayer {
    program: PathBuf,
    layer: Layer,
    ours: Works,
    peer: Works,
}

#[derive(Default)]
struct Works {
    /// Until the mount is there and `find` has named everything.
    ready: Samples,
    cat: Samples,
    find: Samples,
    tar: Samples,
    bytes: Samples,
}

pub(crate) fn ready_ratarmount(lab: &Lab) -> Result<Box<dyn Group>> {
    let program = ratarmount(&lab.data)?;
    // The lowest: it has Python.
    let layer = lab.image.layers.first().ok_or("the image has no layers")?.clone();
    Ok(Box::new(OneLayer { program, layer, ours: Works::default(), peer: Works::default() }))
}

impl Group for OneLayer {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        let start = lab.registry.now()?;
        let (served, point) = mount_ratarmount(lab, &self.program, GZIP, &self.layer)?;
        let first = find(&point)?;
        self.peer.ready.add_time(served.time + first.time);
        self.peer.rest(&point)?;
        self.peer.bytes.add(lab.registry.since(start)?.bytes as f64);
        drop(served);

        let cache = lab.scratch.fresh("cache")?;
        let start = lab.registry.now()?;
        let mounted = lab.mount(&lab.registry.reference(GZIP), &cache, &[])?;
        let hex = self.layer.digest.get(7..19).ok_or("a short digest")?;
        let tree = mounted.only("layers", hex)?;
        let found = find(&tree)?;
        self.ours.ready.add_time(mounted.time + found.time);
        self.ours.rest(&tree)?;
        self.ours.bytes.add(lab.registry.since(start)?.bytes as f64);
        mounted.end()?;
        // ratarmount follows the tree in its archive; both see the root.
        if found.lines.abs_diff(first.lines) > 1 {
            return Err(format!("ocifs shows {} entries, ratarmount {}", found.lines, first.lines).into());
        }
        lab.scratch.gone("cache").map(drop)
    }

    fn most_runs(&self) -> usize {
        PEER_RUNS
    }

    fn rows(&self) -> Vec<Row> {
        let row = |work: &str, ours, theirs, unit| {
            Row::new("P1", format!("one .tar.gz layer: {work}"), ours, unit).against("ratarmount", theirs)
        };
        let (ours, peer) = (&self.ours, &self.peer);
        vec![
            row("cold: mount, `find`", &ours.ready, &peer.ready, Unit::Seconds),
            row("then cat of `python3.11`", &ours.cat, &peer.cat, Unit::Seconds),
            row("then `find`", &ours.find, &peer.find, Unit::Seconds),
            row("then tar of `usr`", &ours.tar, &peer.tar, Unit::Seconds),
            row("fetched", &ours.bytes, &peer.bytes, Unit::MegaBytes),
        ]
    }
}

impl Works {
    fn rest(&mut self, tree: &std::path::Path) -> Result<()> {
        self.cat.add_time(cat(&tree.join(PYTHON))?.time);
        self.find.add_time(find(tree)?.time);
        self.tar.add_time(read_all(&tree.join("usr"))?.time);
        Ok(())
    }
}
