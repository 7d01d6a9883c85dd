//! The same work when the network is the limit: a link of a fixed rate, and a long way.

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::artifact::{FILES, Piece, push, random};
use crate::lab::{GZIP, Group, Lab};
use crate::measure::{cat, find, need, run, settle, tool};
use crate::mounted::evict;
use crate::peers::{PEER_RUNS, UNPACKERS, fetch};
use crate::report::{Row, Samples, Target, Unit};
use crate::route::Route;
use crate::rows_blob::curl;
use crate::rows_image::PYTHON;

/// MiB of the blob that is copied.
const BLOB: u64 = 64;

struct Far {
    number: &'static str,
    route: Route,
    blob: Piece,
    /// Fetching over the link, which is done once, and unpacking, which is not its matter: as it was on loopback.
    eager: Samples,
    unpack: f64,
    entries: usize,
    layers: Samples,
    ready: Samples,
    ready_bytes: Samples,
    cat: Samples,
    cat_bytes: Samples,
    cp: Samples,
    cp_bytes: Samples,
    curl: Samples,
}

pub(crate) fn ready_slow(lab: &Lab) -> Result<Box<dyn Group>> {
    ready(lab, "L100", Route::limited(lab, "100mbit", "128kb")?)
}

pub(crate) fn ready_fast(lab: &Lab) -> Result<Box<dyn Group>> {
    ready(lab, "L1000", Route::limited(lab, "1gbit", "1mb")?)
}

pub(crate) fn ready_delayed(lab: &Lab) -> Result<Box<dyn Group>> {
    ready(lab, "D20", Route::delayed(lab, Duration::from_millis(20))?)
}

fn ready(lab: &Lab, number: &'static str, route: Route) -> Result<Box<dyn Group>> {
    need(&UNPACKERS)?;
    let blob = random(&lab.data, BLOB)?;
    push(&lab.registry, "random-64", &FILES, std::slice::from_ref(&blob))?;
    let unpacked = lab.unpacked()?;
    let median = |samples: &Samples| samples.median().unwrap_or_default();
    let none = Samples::default;
    Ok(Box::new(Far {
        unpack: median(&unpacked.unpack) + median(&unpacked.native_find),
        entries: unpacked.entries,
        number,
        route,
        blob,
        eager: none(),
        layers: none(),
        ready: none(),
        ready_bytes: none(),
        cat: none(),
        cat_bytes: none(),
        cp: none(),
        cp_bytes: none(),
        curl: none(),
    }))
}

impl Group for Far {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        self.image(lab)?;
        self.blob(lab)
    }

    fn most_runs(&self) -> usize {
        PEER_RUNS
    }

    fn rows(&self) -> Vec<Row> {
        let row = |work: &str, ours, unit| Row::new(self.number, work, ours, unit);
        let size = Samples::of(self.blob.size as f64);
        vec![
            row("cold: mount, `find merged`", &self.ready, Unit::Seconds)
                .against("skopeo copy (one run), and umoci unpack, find on loopback", &self.eager),
            row("the same", &self.ready, Unit::Seconds).against("curl of all layers at once", &self.layers),
            row("fetched", &self.ready_bytes, Unit::MegaBytes),
            row("index known: cat of `python3.11`", &self.cat, Unit::Seconds),
            row("fetched", &self.cat_bytes, Unit::MegaBytes),
            row("`cp` of a 64 MiB blob, cold", &self.cp, Unit::Seconds)
                .against("curl of the same blob to a file", &self.curl)
                .target(Target::Ratio(1.05)),
            row("fetched", &self.cp_bytes, Unit::MegaBytes).against("its size", &size),
        ]
    }
}

impl Far {
    fn image(&mut self, lab: &Lab) -> Result<()> {
        let reference = self.route.reference(GZIP);
        let registry = self.route.registry(lab);
        if self.eager.count() == 0 {
            let (copy, _, _) = fetch(lab, registry, &reference)?;
            self.eager.add(copy.as_secs_f64() + self.unpack);
            lab.scratch.gone("peer-layout")?;
        }

        let mut fetch = tool("curl");
        fetch.args(["--silent", "--show-error", "--fail", "--parallel"]);
        for layer in &lab.image.layers {
            fetch.args(["--output", "/dev/null", &self.url(GZIP, &layer.digest)]);
        }
        self.layers.add_time(run(&mut fetch)?);

        let cache = lab.scratch.fresh("cache")?;
        let start = registry.now()?;
        let mounted = lab.mount(&reference, &cache, &[])?;
        let found = find(&mounted.join("merged"))?;
        self.ready.add_time(mounted.time + found.time);
        self.ready_bytes.add(registry.since(start)?.bytes as f64);
        if found.lines != self.entries {
            return Err(format!("ocifs shows {} entries, umoci {}", found.lines, self.entries).into());
        }
        mounted.end()?;
        evict(&cache)?;

        let mounted = lab.mount(&reference, &cache, lab.options.on_demand())?;
        let start = registry.now()?;
        self.cat.add_time(cat(&mounted.join("merged").join(PYTHON))?.time);
        self.cat_bytes.add(registry.since(start)?.bytes as f64);
        mounted.end()?;
        lab.scratch.gone("cache").map(drop)
    }

    fn blob(&mut self, lab: &Lab) -> Result<()> {
        let registry = self.route.registry(lab);
        let copy: PathBuf = lab.scratch.gone("copy")?;
        settle()?;
        self.curl.add_time(curl(&self.url("random-64", &self.blob.digest), &copy)?);
        lab.scratch.gone("copy")?;
        let cache = lab.scratch.fresh("cache")?;
        settle()?;
        let start = registry.now()?;
        let mounted = lab.mount(&self.route.reference("random-64"), &cache, &[])?;
        let file = mounted.join("files").join(&self.blob.title);
        self.cp.add_time(run(tool("cp").arg(&file).arg(&copy))?);
        self.cp_bytes.add(registry.since(start)?.bytes as f64);
        mounted.end()?;
        run(tool("cmp").arg(&copy).arg(&self.blob.path))?;
        lab.scratch.gone("copy")?;
        lab.scratch.gone("cache").map(drop)
    }

    fn url(&self, name: &str, digest: &str) -> String {
        format!("http://{}/v2/bench/{name}/blobs/{digest}", self.route.address())
    }
}
