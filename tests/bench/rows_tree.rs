//! Trees that are larger than an image has: their attributes, and the memory they take.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::image::{Image, once};
use crate::lab::{Group, KEPT, Lab, PageCache};
use crate::measure::{Drained, drain, find, run, tool};
use crate::peers::PEER_RUNS;
use crate::report::{Row, Samples, Target, Unit};

/// Asks for the size of every file and names none: no file is so large.
fn sizes(tree: &Path) -> Result<Drained> {
    drain(tool("find").arg(tree).args(["-size", "+100000k"]))
}

struct Many {
    reference: String,
    native_tree: PathBuf,
    page_cache: PageCache,
    ours: Pair,
    native: Pair,
}

#[derive(Default)]
struct Pair {
    cold: Samples,
    warm: Samples,
}

impl Pair {
    fn measure(&mut self, tree: &Path, page_cache: PageCache) -> Result<()> {
        if page_cache == PageCache::Dropped {
            page_cache.empty()?;
            self.cold.add_time(sizes(tree)?.time);
        }
        sizes(tree)?;
        self.warm.add_time(sizes(tree)?.time);
        Ok(())
    }
}

pub(crate) fn ready_many(lab: &Lab) -> Result<Box<dyn Group>> {
    let image = Image::of_files(&lab.data, 100_000)?;
    let reference = lab.registry.push(&image, &image.name, &[])?;
    let native = lab.data.join("files-100000-native");
    once(&native, |home| {
        let layer = &image.layers[0];
        run(tool("tar").arg("--extract").arg("--file").arg(&layer.path).arg("--directory").arg(home))
            .map(drop)
    })?;
    let page_cache = PageCache::of_environment();
    let (ours, native_times) = (Pair::default(), Pair::default());
    Ok(Box::new(Many { reference, native_tree: native, page_cache, ours, native: native_times }))
}

impl Group for Many {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        self.native.measure(&self.native_tree, self.page_cache)?;
        let cache = lab.scratch.fresh("cache")?;
        let mounted = lab.mount(&self.reference, &cache, &[])?;
        let merged = mounted.join("merged");
        // The tree is in memory after this.
        let ours = find(&merged)?.lines;
        let native = find(&self.native_tree)?.lines;
        if ours != native {
            return Err(format!("ocifs shows {ours} entries, tar made {native}").into());
        }
        self.ours.measure(&merged, self.page_cache)?;
        mounted.end()?;
        lab.scratch.gone("cache").map(drop)
    }

    fn rows(&self) -> Vec<Row> {
        let cold = "`find -size` over 100 000 files, kernel caches empty";
        vec![
            if self.page_cache == PageCache::Kept {
                Row::missing("P8", cold, KEPT)
            } else {
                Row::new("P8", cold, &self.ours.cold, Unit::Seconds)
                    .against("native", &self.native.cold)
                    .target(Target::Ratio(3.3))
            },
            Row::new("P8", "the same, warm", &self.ours.warm, Unit::Seconds)
                .against("native", &self.native.warm)
                .target(Target::Ratio(1.1)),
        ]
    }
}

struct Million {
    reference: String,
    time: Samples,
    memory: Samples,
    again: Samples,
    memory_again: Samples,
}

pub(crate) fn ready_million(lab: &Lab) -> Result<Box<dyn Group>> {
    let image = Image::of_files(&lab.data, 1_000_000)?;
    let reference = lab.registry.push(&image, &image.name, &[])?;
    let none = Samples::default;
    Ok(Box::new(Million { reference, time: none(), memory: none(), again: none(), memory_again: none() }))
}

impl Group for Million {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        let cache = lab.scratch.fresh("cache")?;
        for (time, memory) in [(&mut self.time, &mut self.memory), (&mut self.again, &mut self.memory_again)]
        {
            let mounted = lab.mount(&self.reference, &cache, &[])?;
            let found = find(&mounted.join("merged"))?;
            if found.lines < 1_000_000 {
                return Err(format!("ocifs shows {} of more than 1 000 000 entries", found.lines).into());
            }
            time.add_time(mounted.time + found.time);
            memory.add(mounted.peak_memory()?);
            mounted.end()?;
        }
        lab.scratch.gone("cache").map(drop)
    }

    fn most_runs(&self) -> usize {
        PEER_RUNS
    }

    fn rows(&self) -> Vec<Row> {
        let limit = Target::AtMost((256 << 20) as f64);
        vec![
            Row::new("P10", "1 000 000 entries: peak memory, cold", &self.memory, Unit::MebiBytes)
                .target(limit),
            Row::new("P10", "the same, index known", &self.memory_again, Unit::MebiBytes).target(limit),
            Row::new("P10", "mount, `find merged`, cold", &self.time, Unit::Seconds),
            Row::new("P10", "the same, index known", &self.again, Unit::Seconds),
        ]
    }
}
