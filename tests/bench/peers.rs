//! The other ways to the same bytes: unpacking everything, inflating everything, and other lazy file systems.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use base64::Engine as _;
use flate2::bufread::MultiGzDecoder;

use crate::Result;
use crate::image::{Image, Layer};
use crate::lab::{GZIP, Lab};
use crate::measure::{cat, drain, find, read_all, run, tool};
use crate::mounted::Served;
use crate::registry::{Registry, Traffic};
use crate::report::Samples;
use crate::rows_image::PYTHON;

/// How often the slow tools run, however often ocifs does: in a full table they would take most of the time.
pub(crate) const PEER_RUNS: usize = 3;

/// The tools that the rows about images need.
pub(crate) const UNPACKERS: [&str; 2] = ["skopeo", "umoci"];

/// Who unpacks the layers.
#[derive(Clone, Copy)]
pub(crate) enum Unpacker {
    /// `umoci unpack`.
    Umoci,
    /// `tar` with `zstd`, one layer after the other: umoci of Debian knows no zstd. It checks no digest.
    Zstd,
}

/// An image that was fetched and unpacked.
pub(crate) struct Eager {
    pub(crate) copy: Duration,
    pub(crate) unpack: Duration,
    pub(crate) traffic: Traffic,
    pub(crate) root: PathBuf,
}

impl Eager {
    /// `skopeo copy` into a layout, then unpacking that.
    pub(crate) fn new(lab: &Lab, reference: &str, unpacker: Unpacker) -> Result<Self> {
        let (copy, traffic, layout) = fetch(lab, &lab.registry, reference)?;
        let bundle = lab.scratch.gone("peer-bundle")?;
        let (unpack, root) = match unpacker {
            Unpacker::Umoci => {
                let image = format!("{}:bench", layout.display());
                let time = run(tool("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
                (time, bundle.join("rootfs"))
            }
            Unpacker::Zstd => {
                fs::create_dir(&bundle)?;
                let mut time = Duration::ZERO;
                for layer in Image::open(layout, "", 0)?.layers {
                    time += run(tool("tar")
                        .args(["--extract", "--use-compress-program=zstd", "--numeric-owner", "--file"])
                        .arg(&layer.path)
                        .arg("--directory")
                        .arg(&bundle))?;
                }
                (time, bundle)
            }
        };
        lab.scratch.gone("peer-layout")?;
        Ok(Self { copy, unpack, traffic, root })
    }

    pub(crate) fn time(&self) -> Duration {
        self.copy + self.unpack
    }

    pub(crate) fn remove(self, lab: &Lab) -> Result<()> {
        lab.scratch.gone("peer-bundle").map(drop)
    }
}

/// `skopeo copy` into a layout.
pub(crate) fn fetch(lab: &Lab, registry: &Registry, reference: &str) -> Result<(Duration, Traffic, PathBuf)> {
    let layout = lab.scratch.fresh("peer-layout")?;
    let start = registry.now()?;
    let time = run(tool("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .arg(format!("oci:{}:bench", layout.display())))?;
    Ok((time, registry.since(start)?, layout))
}

/// The gzip image by the usual tools. The tree stays for what is read natively.
#[derive(Default)]
pub(crate) struct Unpacked {
    pub(crate) copy: Samples,
    pub(crate) unpack: Samples,
    pub(crate) bytes: Samples,
    /// From nothing until the work is done: naming everything, listing the root, reading Python, reading `usr`.
    pub(crate) ready: Samples,
    pub(crate) look: Samples,
    pub(crate) cat: Samples,
    pub(crate) tar: Samples,
    /// The works alone, in the unpacked tree, which is in the page cache.
    pub(crate) native_find: Samples,
    pub(crate) native_cat: Samples,
    pub(crate) native_tar: Samples,
    pub(crate) root: PathBuf,
    pub(crate) entries: usize,
    pub(crate) entries_usr: usize,
    /// The bytes of Python.
    pub(crate) python: Vec<u8>,
}

impl Unpacked {
    pub(crate) fn is_empty(&self) -> bool {
        self.copy.count() == 0
    }

    pub(crate) fn is_enough(&self) -> bool {
        self.copy.count() >= PEER_RUNS
    }

    pub(crate) fn measure(&mut self, lab: &Lab) -> Result<()> {
        eprintln!("skopeo copy, umoci unpack");
        let root = lab.scratch.gone("unpacked")?;
        let eager = Eager::new(lab, &lab.registry.reference(GZIP), Unpacker::Umoci)?;
        // The next one must not have to remove it first.
        fs::rename(eager.root.parent().ok_or("a bundle has a folder")?, &root)?;
        let (root, usr) = (root.join("rootfs"), root.join("rootfs/usr"));
        let look = drain(tool("ls").arg("-l").arg(&root))?.time;
        let named = find(&root)?;
        let python = cat(&root.join(PYTHON))?.time;
        let first = read_all(&usr)?.time;
        self.copy.add_time(eager.copy);
        self.unpack.add_time(eager.unpack);
        self.bytes.add(eager.traffic.bytes as f64);
        self.ready.add_time(eager.time() + named.time);
        self.look.add_time(eager.time() + look);
        self.cat.add_time(eager.time() + python);
        self.tar.add_time(eager.time() + first);
        self.native_find.add_time(named.time);
        self.native_cat.add_time(cat(&root.join(PYTHON))?.time);
        self.native_tar.add_time(read_all(&usr)?.time);
        self.python = fs::read(root.join(PYTHON))?;
        (self.entries, self.entries_usr, self.root) = (named.lines, find(&usr)?.lines, root);
        Ok(())
    }
}

/// Bytes of a record of tar.
const RECORD: u64 = 10_240;

/// Inflating all layers and keeping nothing.
pub(crate) struct Inflated {
    /// Until all were done, on all cores.
    pub(crate) all: Duration,
    /// The longest layer: what the others cannot help with.
    pub(crate) longest: Duration,
}

/// Inflates all layers from the page cache on all cores and keeps nothing: no reader of such an image can be faster.
pub(crate) fn inflate(image: &Image) -> Result<Inflated> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let (bytes, longest) = thread::scope(|scope| -> Result<_> {
        let workers: Vec<_> = (0..cores.min(image.layers.len()))
            .map(|_| {
                scope.spawn(|| {
                    let (mut bytes, mut longest) = (0, Duration::ZERO);
                    while let Some(layer) = image.layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let start = Instant::now();
                        bytes += inflate_one(layer)?;
                        longest = longest.max(start.elapsed());
                    }
                    Ok::<_, std::io::Error>((bytes, longest))
                })
            })
            .collect();
        let (mut bytes, mut longest) = (0, Duration::ZERO);
        for worker in workers {
            let (some, time) = worker.join().map_err(|_| "a thread that inflates panicked")??;
            bytes += some;
            longest = longest.max(time);
        }
        Ok((bytes, longest))
    })?;
    // Who converts an archive may leave out what fills its last record.
    let missing = image.uncompressed.saturating_sub(bytes);
    if bytes > image.uncompressed || missing >= RECORD * image.layers.len() as u64 {
        return Err(format!("the layers inflate to {bytes} bytes instead of {}", image.uncompressed).into());
    }
    Ok(Inflated { all: start.elapsed(), longest })
}

fn inflate_one(layer: &Layer) -> std::io::Result<u64> {
    let stored = BufReader::with_capacity(1 << 18, File::open(&layer.path)?);
    let mut stream: Box<dyn Read> = if layer.media_type.ends_with("+zstd") {
        Box::new(zstd::stream::read::Decoder::with_buffer(stored)?)
    } else {
        Box::new(MultiGzDecoder::new(stored))
    };
    let mut buf = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buf)? {
            0 => return Ok(bytes),
            len => bytes += len as u64,
        }
    }
}

/// Where ratarmount is installed, made once: a Python environment of its own.
pub(crate) fn ratarmount(data: &Path) -> Result<PathBuf> {
    let home = data.join("ratarmount-1.3.0");
    let program = home.join("bin/ratarmount");
    if !program.exists() {
        // Made at its final place: the scripts in it name their interpreter.
        run(tool("python3").args(["-m", "venv"]).arg(&home))?;
        run(tool(home.join("bin/pip").as_os_str()).args([
            "install",
            "--quiet",
            "ratarmount==1.3.0",
            "fsspec",
            "aiohttp",
            "requests",
        ]))?;
    }
    Ok(program)
}

/// Mounts one layer at its address in the registry.
pub(crate) fn mount_ratarmount(
    lab: &Lab,
    program: &Path,
    name: &str,
    layer: &Layer,
) -> Result<(Served, PathBuf)> {
    let point = lab.scratch.fresh("ratarmount")?;
    let index = lab.scratch.gone("ratarmount.sqlite")?;
    let log = File::create(lab.data.join("ratarmount.log"))?;
    let start = Instant::now();
    let server = tool(program)
        .arg("-f")
        .arg("--index-file")
        .arg(index)
        .arg(lab.registry.url(name, &format!("blobs/{}", layer.digest)))
        .arg(&point)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok((Served::new(server, &point, start)?, point))
}

/// The program that `OCIFS_BENCH_STARGZ_STORE` names.
pub(crate) fn stargz_store() -> Option<PathBuf> {
    env::var_os("OCIFS_BENCH_STARGZ_STORE").map(PathBuf::from)
}

/// Starts stargz-store with an empty root; the answer has the folder of the image, with one folder for each layer.
pub(crate) fn mount_stargz_store(lab: &Lab, program: &Path, reference: &str) -> Result<(Served, PathBuf)> {
    let point = lab.scratch.fresh("stargz-store")?;
    let root = lab.scratch.fresh("stargz-root")?;
    let config = lab.scratch.gone("stargz.toml")?;
    let host = lab.registry.address();
    fs::write(
        &config,
        format!("[[resolver.host.\"{host}\".mirrors]]\nhost = \"{host}\"\ninsecure = true\n"),
    )?;
    let log = File::create(lab.data.join("stargz-store.log"))?;
    let start = Instant::now();
    let server = tool(program)
        .arg(format!("--config={}", config.display()))
        .arg(format!("--root={}", root.display()))
        .arg(&point)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    let served = Served::new(server, &point, start)?;
    Ok((served, point.join(base64::engine::general_purpose::STANDARD.encode(reference))))
}
