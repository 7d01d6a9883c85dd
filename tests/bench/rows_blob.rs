//! Large files: read when they are complete, beside the local file, and copied cold, beside `curl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;
use crate::artifact::{DISK, FILES, Piece, parts, push, random};
use crate::lab::{Group, KEPT, Lab, PageCache};
use crate::measure::{need, read_randomly, read_sequentially, run, settle, tool};
use crate::report::{Row, Samples, Target, Unit};
use crate::rows_boot::disk;

/// Reads of 4 KiB from the page cache, and from the disk.
const WARM: u64 = 200_000;
const COLD: u64 = 5_000;

/// MiB of the large blob.
const LARGE: u64 = 1024;

/// The four ways to read a complete file.
#[derive(Default)]
struct Reads {
    warm: Samples,
    random: Samples,
    cold: Samples,
    random_cold: Samples,
}

impl Reads {
    fn measure(&mut self, file: &Path, page_cache: PageCache) -> Result<()> {
        if page_cache == PageCache::Dropped {
            page_cache.empty()?;
            self.random_cold.add_time(read_randomly(file, COLD)?);
            page_cache.empty()?;
            self.cold.add_time(read_sequentially(file)?);
        } else {
            read_sequentially(file)?;
        }
        self.warm.add_time(read_sequentially(file)?);
        self.random.add_time(read_randomly(file, WARM)?);
        Ok(())
    }
}

/// One file in both forms.
struct Complete {
    work: &'static str,
    /// Where it is in the mount: a folder, and the end of its name.
    folder: &'static str,
    end: &'static str,
    reference: String,
    native_file: PathBuf,
    native: Reads,
    /// By the kernel itself, and by the daemon.
    passed: Result<Reads, String>,
    served: Reads,
}

struct CompleteFiles {
    files: Vec<Complete>,
    missing: Vec<Row>,
    page_cache: PageCache,
}

pub(crate) fn ready_complete(lab: &Lab) -> Result<Box<dyn Group>> {
    let blob = random(&lab.data, LARGE)?;
    let passed =
        || lab.options.need("--passthrough").map(|()| Reads::default()).map_err(|why| why.to_string());
    let mut files = vec![Complete {
        work: "1 GiB blob",
        folder: "files",
        end: "random.bin",
        native_file: blob.path.clone(),
        reference: push(&lab.registry, "random-1024", &FILES, &[blob])?,
        native: Reads::default(),
        passed: passed(),
        served: Reads::default(),
    }];
    let mut missing = Vec::new();
    match split_disk(lab) {
        Ok((reference, native_file)) => files.push(Complete {
            work: "split qcow2",
            folder: "disk",
            end: ".qcow2",
            reference,
            native_file,
            native: Reads::default(),
            passed: passed(),
            served: Reads::default(),
        }),
        Err(why) => missing.push(Row::missing("P7", "split qcow2", why.to_string())),
    }
    Ok(Box::new(CompleteFiles { files, missing, page_cache: PageCache::of_environment() }))
}

/// The reference of the disk that boots, cut into parts, and the local file.
pub(crate) fn split_disk(lab: &Lab) -> Result<(String, PathBuf)> {
    let disk = disk(&lab.data)?;
    let reference = push(&lab.registry, "disk-1", &DISK, &parts(&disk.image)?)?;
    Ok((reference, disk.image))
}

impl Group for CompleteFiles {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        for file in &mut self.files {
            file.run(lab, self.page_cache)?;
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<_> = self.files.iter().flat_map(Complete::rows).collect();
        rows.extend(self.missing.iter().cloned());
        rows
    }
}

impl Complete {
    fn run(&mut self, lab: &Lab, page_cache: PageCache) -> Result<()> {
        let cache = lab.scratch.kept(self.folder);
        if !cache.exists() {
            // Filled once for all runs: what is measured is a complete file, whichever way it became complete.
            fs::create_dir(&cache)?;
            let mounted = lab.mount(&self.reference, &cache, &[])?;
            read_sequentially(&mounted.only(self.folder, self.end)?)?;
            mounted.end()?;
        }
        self.native.measure(&self.native_file, page_cache)?;
        let off: &[&str] = match self.passed {
            Ok(_) => &["--passthrough=off"],
            Err(_) => &[],
        };
        let mounted = lab.mount(&self.reference, &cache, off)?;
        self.served.measure(&mounted.only(self.folder, self.end)?, page_cache)?;
        mounted.end()?;
        if let Ok(passed) = &mut self.passed {
            let mounted = lab.mount(&self.reference, &cache, &["--passthrough=on"])?;
            passed.measure(&mounted.only(self.folder, self.end)?, page_cache)?;
            mounted.end()?;
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let work = self.work;
        let mut rows = Vec::new();
        let mut add = |ours: &Reads, how: &str, ratios: [f64; 4]| {
            let pairs = [
                ("sequential, warm", &ours.warm, &self.native.warm),
                ("random 4 KiB, warm", &ours.random, &self.native.random),
                ("sequential, cold", &ours.cold, &self.native.cold),
                ("random 4 KiB, cold", &ours.random_cold, &self.native.random_cold),
            ];
            for ((what, ours, native), ratio) in pairs.into_iter().zip(ratios) {
                let work = format!("{work}, {how}: {what}");
                rows.push(if ours.median().is_none() {
                    Row::missing("P7", work, KEPT)
                } else {
                    Row::new("P7", work, ours, Unit::Seconds)
                        .against("native", native)
                        .target(Target::Ratio(ratio))
                });
            }
        };
        // The targets are throughputs, 0.95, 0.5 and 0.25 of native; these are times.
        if let Ok(passed) = &self.passed {
            add(passed, "passthrough", [1.0 / 0.95; 4]);
        }
        add(&self.served, "served", [2.0, 2.0, 4.0, 4.0]);
        if let Err(why) = &self.passed {
            rows.push(Row::missing("P7", format!("{work}, passthrough"), why.clone()));
        }
        rows
    }
}

/// A blob that nobody has read yet.
struct Cold {
    blob: Piece,
    reference: String,
    url: String,
    ours: Samples,
    bytes: Samples,
    curl: Samples,
    rewritten: Samples,
}

pub(crate) fn ready_cold(lab: &Lab) -> Result<Box<dyn Group>> {
    need(&["curl", "cp"])?;
    let blob = random(&lab.data, LARGE)?;
    let reference = push(&lab.registry, "random-1024", &FILES, std::slice::from_ref(&blob))?;
    let url = lab.registry.url("random-1024", &format!("blobs/{}", blob.digest));
    let none = Samples::default;
    Ok(Box::new(Cold { blob, reference, url, ours: none(), bytes: none(), curl: none(), rewritten: none() }))
}

impl Group for Cold {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        let copy = lab.scratch.gone("copy")?;
        settle()?;
        self.curl.add_time(curl(&self.url, &copy)?);
        // What the disk takes for the second copy that a cache is.
        let again = lab.scratch.gone("again")?;
        settle()?;
        self.rewritten.add_time(run(tool("cp").args(["--reflink=never"]).arg(&copy).arg(&again))?);
        lab.scratch.gone("again")?;
        lab.scratch.gone("copy")?;

        let cache = lab.scratch.fresh("cache")?;
        settle()?;
        let start = lab.registry.now()?;
        let mounted = lab.mount(&self.reference, &cache, &[])?;
        let file = mounted.join("files").join(&self.blob.title);
        self.ours.add_time(run(tool("cp").arg(&file).arg(&copy))?);
        self.bytes.add(lab.registry.since(start)?.bytes as f64);
        mounted.end()?;
        run(tool("cmp").arg(&copy).arg(&self.blob.path))?;
        lab.scratch.gone("copy")?;
        lab.scratch.gone("cache").map(drop)
    }

    fn rows(&self) -> Vec<Row> {
        let size = Samples::of(self.blob.size as f64);
        vec![
            Row::new("P11", "`cp` of a 1 GiB blob, cold", &self.ours, Unit::Seconds)
                .against("curl of the same blob to a file", &self.curl)
                .target(Target::Ratio(1.05)),
            Row::new("P11", "fetched", &self.bytes, Unit::MegaBytes).against("its size", &size),
            Row::new("P11", "(`cp` of the file curl made)", &self.rewritten, Unit::Seconds),
        ]
    }
}

/// Fetches into a file.
pub(crate) fn curl(url: &str, file: &Path) -> Result<Duration> {
    run(tool("curl").args(["--silent", "--show-error", "--fail", "--output"]).arg(file).arg(url))
}
