//! Readiness: from an empty cache until Python of the image has imported three large packages, in a chroot.
//!
//! Unprepared, with an index repository, and with a recorded trace beside its indexes; beside it `skopeo copy`,
//! `umoci unpack` and the same command, and the command alone in the unpacked tree.

use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::lab::{GZIP, Group, Lab};
use crate::measure::{find, need, run, tool};
use crate::mounted::{OCIFS, evict};
use crate::peers::{PEER_RUNS, UNPACKERS, fetch};
use crate::report::{Row, Samples, Target, Unit};
use crate::route::Route;

/// What has to run.
const IMPORT: &str = "import scipy.stats, pandas, pyarrow";

/// Delay each way of the route with delay.
const DELAY: Duration = Duration::from_millis(20);

/// The repository of the indexes of all layers, which all routes reach.
const INDEXES: &str = "indexes";

/// How a mount is prepared.
#[derive(Clone, Copy)]
enum Preparation {
    /// The registry has the image alone.
    Unprepared,
    /// An index repository has the index of each layer.
    Indexed,
    /// It has a trace of the command, too.
    Traced,
}

struct Readiness {
    route_name: &'static str,
    route: Route,
    /// `skopeo copy` over this route, `umoci unpack` on loopback, and the command in the unpacked tree.
    eager: Samples,
    native: Samples,
    unprepared: Figures,
    indexed: Figures,
    traced: Figures,
    /// Mount and `find` with the index repository, on loopback.
    named: Figures,
    targets: Targets,
}

#[derive(Default)]
struct Figures {
    time: Samples,
    bytes: Samples,
}

/// Ratios to the usual tools. `None` where none is set.
#[derive(Clone, Copy)]
struct Targets {
    unprepared: Option<f64>,
    indexed: Option<f64>,
}

pub(crate) fn ready_loopback(lab: &Lab) -> Result<Box<dyn Group>> {
    let targets = Targets { unprepared: Some(0.25), indexed: Some(0.15) };
    ready(lab, "loopback", Route::loopback(lab), targets)
}

pub(crate) fn ready_fast(lab: &Lab) -> Result<Box<dyn Group>> {
    let targets = Targets { unprepared: None, indexed: None };
    ready(lab, "1 Gbit/s", Route::limited(lab, "1gbit", "1mb")?, targets)
}

pub(crate) fn ready_slow(lab: &Lab) -> Result<Box<dyn Group>> {
    let targets = Targets { unprepared: None, indexed: Some(0.2) };
    ready(lab, "100 Mbit/s", Route::limited(lab, "100mbit", "128kb")?, targets)
}

pub(crate) fn ready_delayed(lab: &Lab) -> Result<Box<dyn Group>> {
    let targets = Targets { unprepared: None, indexed: Some(0.2) };
    ready(lab, "20 ms", Route::delayed(lab, DELAY)?, targets)
}

fn ready(lab: &Lab, route_name: &'static str, route: Route, targets: Targets) -> Result<Box<dyn Group>> {
    need(&UNPACKERS)?;
    need(&["chroot"])?;
    lab.options.need("--index-from")?;
    publish(lab)?;
    Ok(Box::new(Readiness {
        route_name,
        route,
        eager: Samples::default(),
        native: Samples::default(),
        unprepared: Figures::default(),
        indexed: Figures::default(),
        traced: Figures::default(),
        named: Figures::default(),
        targets,
    }))
}

/// Puts the indexes of the image, and a trace of the command, into the index repository: what one machine of a fleet
/// does once.
fn publish(lab: &Lab) -> Result<()> {
    let cache = lab.scratch.fresh("publisher")?;
    let reference = lab.registry.reference(GZIP);
    let with_cache = |command: &[&str]| {
        let mut tool = tool(&*OCIFS);
        tool.args(command).args(["--plain-http", "--cache-dir"]).arg(&cache);
        tool
    };
    run(with_cache(&["record", "--view=merged"])
        .arg(&reference)
        .args(["--", "chroot", "{}", "python3", "-c", IMPORT]))?;
    let repository = format!("{}/bench/{INDEXES}", lab.registry.address());
    run(with_cache(&["index", "push"]).args(["--to", &repository]).arg(&reference))?;
    lab.scratch.gone("publisher").map(drop)
}

/// Runs the command in `root`.
fn import(root: &Path) -> Result<Duration> {
    run(tool("chroot").arg(root).args(["python3", "-B", "-c", IMPORT]))
}

impl Readiness {
    fn prepared(&mut self, lab: &Lab, preparation: Preparation) -> Result<()> {
        let repository = format!("{}/bench/{INDEXES}", self.route.address());
        let options: &[&str] = match preparation {
            Preparation::Unprepared => &["--view=merged"],
            Preparation::Indexed => &["--view=merged", "--index-from", &repository],
            Preparation::Traced => &["--view=merged", "--prefetch=trace", "--index-from", &repository],
        };
        let registry = self.route.registry(lab);
        let cache = lab.scratch.fresh("cache")?;
        let start = registry.now()?;
        let mounted = lab.mount(&self.route.reference(GZIP), &cache, options)?;
        let time = mounted.time + import(&mounted.join(""))?;
        let bytes = registry.since(start)?.bytes;
        mounted.end()?;
        let figures = match preparation {
            Preparation::Unprepared => &mut self.unprepared,
            Preparation::Indexed => &mut self.indexed,
            Preparation::Traced => &mut self.traced,
        };
        figures.time.add_time(time);
        figures.bytes.add(bytes as f64);
        evict(&cache)
    }

    fn named(&mut self, lab: &Lab) -> Result<()> {
        let entries = lab.unpacked()?.entries;
        let repository = format!("{}/bench/{INDEXES}", self.route.address());
        let registry = self.route.registry(lab);
        let cache = lab.scratch.fresh("cache")?;
        let start = registry.now()?;
        let mounted = lab.mount(&self.route.reference(GZIP), &cache, &["--index-from", &repository])?;
        let found = find(&mounted.join("merged"))?;
        self.named.time.add_time(mounted.time + found.time);
        self.named.bytes.add(registry.since(start)?.bytes as f64);
        mounted.end()?;
        if found.lines != entries {
            return Err(format!("ocifs shows {} entries, umoci {entries}", found.lines).into());
        }
        Ok(())
    }
}

impl Group for Readiness {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        if self.eager.count() < PEER_RUNS {
            let (copy, _, _) = fetch(lab, self.route.registry(lab), &self.route.reference(GZIP))?;
            lab.scratch.gone("peer-layout")?;
            let unpacked = lab.unpacked()?;
            let first = import(&unpacked.root)?;
            self.eager
                .add(copy.as_secs_f64() + unpacked.unpack.median().unwrap_or_default() + first.as_secs_f64());
        }
        self.native.add_time(import(&lab.unpacked()?.root)?);
        self.prepared(lab, Preparation::Unprepared)?;
        self.prepared(lab, Preparation::Indexed)?;
        self.prepared(lab, Preparation::Traced)?;
        self.named(lab)?;
        lab.scratch.gone("cache").map(drop)
    }

    fn most_runs(&self) -> usize {
        PEER_RUNS
    }

    fn rows(&self) -> Vec<Row> {
        let row =
            |work: &str, ours, unit| Row::new("P15", format!("{}: {work}", self.route_name), ours, unit);
        let aimed = |row: Row, target: Option<f64>| match target {
            Some(most) => row.target(Target::Ratio(most)),
            None => row,
        };
        let eager = "skopeo copy, umoci unpack on loopback, then it";
        let unprepared = row("cold: mount, import of three packages", &self.unprepared.time, Unit::Seconds);
        let indexed = row("the same with an index repository", &self.indexed.time, Unit::Seconds);
        vec![
            aimed(unprepared.against(eager, &self.eager), self.targets.unprepared),
            row("fetched", &self.unprepared.bytes, Unit::MegaBytes),
            aimed(indexed.against(eager, &self.eager), self.targets.indexed),
            row("the same", &self.indexed.time, Unit::Seconds)
                .against("it in the unpacked tree", &self.native)
                .target(Target::Ratio(1.4)),
            row("fetched", &self.indexed.bytes, Unit::MegaBytes),
            row("the same with its trace", &self.traced.time, Unit::Seconds)
                .against("it in the unpacked tree", &self.native),
            row("fetched", &self.traced.bytes, Unit::MegaBytes),
            row("index repository, cold: mount, `find merged`", &self.named.time, Unit::Seconds)
                .target(Target::AtMost(0.3)),
            row("fetched", &self.named.bytes, Unit::MegaBytes),
        ]
    }
}
