//! Measured mount: its serving process, and the folder for the files of a run.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use crate::Result;
use crate::measure::{clean, run, text, tool};

/// The program that is measured: `OCIFS_BENCH_PROGRAM`, or this build.
pub(crate) static OCIFS: LazyLock<String> = LazyLock::new(|| {
    env::var("OCIFS_BENCH_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_ocifs").to_owned())
});

/// What `ocifs mount --help` names: a build without an option cannot be measured with it.
pub(crate) struct Options(String);

impl Options {
    pub(crate) fn of_mount() -> Result<Self> {
        Ok(Self(text(tool(&*OCIFS).args(["mount", "--help"]))?))
    }

    /// Nothing is fetched that nobody asked for, where the build can be told so.
    pub(crate) fn on_demand(&self) -> &'static [&'static str] {
        if self.0.contains("--prefetch") { &["--prefetch=none"] } else { &[] }
    }

    /// Fails unless there is an option of that name.
    pub(crate) fn need(&self, option: &str) -> Result<()> {
        if self.0.contains(option) { Ok(()) } else { Err(format!("this build has no {option}").into()) }
    }
}

/// A mount, and the daemon behind it.
pub(crate) struct Mounted {
    point: PathBuf,
    daemon: u32,
    /// How long the mount command took.
    pub(crate) time: Duration,
    /// How long finding its process took, which no user waits for.
    pub(crate) lookup: Duration,
}

impl Mounted {
    /// Mounts `reference` with these options at a folder of that scratch.
    pub(crate) fn new(scratch: &Scratch, reference: &str, cache: &Path, options: &[&str]) -> Result<Self> {
        let point = scratch.fresh("mount")?;
        let time = run(tool(&*OCIFS)
            .args(["mount", "--plain-http", "--cache-dir"])
            .arg(cache)
            .args(options)
            .arg(reference)
            .arg(&point))?;
        let start = Instant::now();
        if !is_mounted(&point)? {
            return Err(format!("ocifs mount ended with 0, but {} is not mounted", point.display()).into());
        }
        let daemon = daemon_of(&point)?;
        Ok(Self { point, daemon, time, lookup: start.elapsed() })
    }

    /// Something in the mount.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.point.join(path)
    }

    /// The only entry of a directory of the mount whose name ends like this.
    pub(crate) fn only(&self, folder: &str, end: &str) -> Result<PathBuf> {
        for entry in fs::read_dir(self.join(folder))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(end) {
                return Ok(entry.path());
            }
        }
        Err(format!("no entry of {folder}/ ends in {end:?}").into())
    }

    /// Whether the kernel's EROFS serves it.
    pub(crate) fn is_erofs(&self) -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut ours =
            mounts.lines().filter(|line| line.split(' ').nth(1).map(Path::new) == Some(&self.point));
        Ok(ours.any(|line| line.split(' ').nth(2) == Some("erofs")))
    }

    /// The most memory the daemon ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }

    /// Unmounts and waits for the daemon's end, so that it takes no part in what is measured next.
    pub(crate) fn end(self) -> Result<()> {
        run(tool(&*OCIFS).arg("umount").arg(&self.point))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while Path::new(&format!("/proc/{}", self.daemon)).exists() {
            if Instant::now() > deadline {
                return Err(format!("process {} lives 30 s after its unmount", self.daemon).into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Only a run that failed half way leaves it mounted; its own message is the one to show.
        detach(&self.point);
    }
}

/// Another program's mount, served by a child of ours. Unmounted, and the child ended, on drop.
pub(crate) struct Served {
    point: PathBuf,
    server: Child,
    /// From its start until it was mounted.
    pub(crate) time: Duration,
}

impl Served {
    /// Waits until `server`, started at `start`, has mounted `point`.
    pub(crate) fn new(server: Child, point: &Path, start: Instant) -> Result<Self> {
        let mut served = Self { point: point.to_owned(), server, time: Duration::ZERO };
        while !is_mounted(point)? {
            if let Some(status) = served.server.try_wait()? {
                return Err(
                    format!("the program that should mount {} ended with {status}", point.display()).into()
                );
            }
            if start.elapsed() > Duration::from_secs(300) {
                return Err(format!("{} is not mounted after 300 s", point.display()).into());
            }
            sleep(Duration::from_millis(2));
        }
        served.time = start.elapsed();
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        detach(&self.point);
        // It ends by itself when it is unmounted; one that does not is ended here.
        sleep(Duration::from_millis(200));
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

fn detach(point: &Path) {
    if is_mounted(point).unwrap_or(false) {
        clean(tool("fusermount3").args(["-u", "-z"]).arg(point));
    }
}

fn is_mounted(point: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(point)))
}

/// The process that runs our program with this mount point among its arguments.
fn daemon_of(point: &Path) -> Result<u32> {
    let wanted = fs::canonicalize(&*OCIFS)?;
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end while we look at them.
        let Ok(program) = fs::read_link(process.path().join("exe")) else { continue };
        let Ok(arguments) = fs::read(process.path().join("cmdline")) else { continue };
        let point = point.as_os_str().as_encoded_bytes();
        if program == wanted && arguments.split(|byte| *byte == 0).any(|argument| argument == point) {
            return Ok(pid);
        }
    }
    Err(format!("no process serves {}", point.display()).into())
}

/// The processes of our program that have something below `folder` among their arguments.
fn daemons_in(folder: &Path) -> Vec<u32> {
    let Ok(wanted) = fs::canonicalize(&*OCIFS) else { return Vec::new() };
    let folder = folder.as_os_str().as_encoded_bytes();
    let runs_there = |process: &Path| {
        let program = fs::read_link(process.join("exe")).ok()?;
        let arguments = fs::read(process.join("cmdline")).ok()?;
        let is_there = arguments.split(|byte| *byte == 0).any(|argument| argument.starts_with(folder));
        (program == wanted && is_there).then_some(())
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|process| runs_there(&process.path()).is_some())
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// A folder for what a run makes, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(data: &Path) -> Result<Self> {
        let path = data.join(format!("run-{}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// An empty folder of that name, whatever was there.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.gone(name)?;
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// The path of what an earlier step made.
    pub(crate) fn kept(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path of something with that name, which is not there.
    pub(crate) fn gone(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After a failure a mount may be left, and a daemon that still writes into its cache here.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for folder in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                detach(&folder.path());
            }
            let daemons = daemons_in(&self.0);
            if daemons.is_empty() || Instant::now() > deadline {
                break;
            }
            for daemon in daemons {
                clean(tool("kill").arg(daemon.to_string()));
            }
            sleep(Duration::from_millis(100));
        }
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

/// Removes what a run left behind that was killed: its registries, its folders and its mounts. Nobody else runs in `data`.
pub(crate) fn clear_leftovers(data: &Path) -> Result<()> {
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Processes end while we look at them.
        let program = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let config = data.join("registry-");
        let config = config.as_os_str().as_encoded_bytes();
        let is_ours = arguments.split(|byte| *byte == 0).any(|argument| argument.starts_with(config));
        if let (true, Some(pid)) = (program.trim() == "docker-registry" && is_ours, process.file_name()) {
            clean(tool("kill").arg(pid));
        }
    }
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(pid) = name.strip_prefix("run-").and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        for folder in fs::read_dir(&path)? {
            detach(&folder?.path());
        }
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

/// Removes the fetched and decoded bytes of a cache, and keeps documents and indexes.
pub(crate) fn evict(cache: &Path) -> Result<()> {
    let mut removed = 0;
    for version in fs::read_dir(cache)? {
        for folder in ["blobs", "streams", "claims"] {
            let folder = version.as_ref().map_err(|error| error.to_string())?.path().join(folder);
            if folder.is_dir() {
                fs::remove_dir_all(folder)?;
                removed += 1;
            }
        }
    }
    if removed == 0 {
        return Err(format!("{} has nothing to evict", cache.display()).into());
    }
    Ok(())
}
