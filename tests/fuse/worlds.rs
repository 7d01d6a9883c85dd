//! Operations that still answer at once on a machine in trouble, as one table.
//!
//! Never asserts how fast a thing is, but that it ends while what it must not wait for is still away.
//! `cargo test --test fuse no_bad_world -- --nocapture` prints the table.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::fault_registry::{Fault, FaultRegistry, ReservedPort};
use crate::proc_files::state_of;
use crate::process::{Need, able, becomes_true, run, signal};
use crate::scratch::mounted_at;
use crate::served::Content;
use crate::site::{Mount, Site, daemons, monitor};
use crate::wedge::{FOREVER, PROMPT, ended, prompt, silent, waits};

/// A world in which a mount is in trouble, and how it comes about.
struct World {
    name: &'static str,
    /// Kept until the end of the world.
    mount: Mount,
    _held: Option<TcpListener>,
    _closed: Option<ReservedPort>,
    /// A reader that was waiting when the world went bad.
    waiting: Option<Child>,
    registry: Option<FaultRegistry>,
    /// A file that cannot be read here, or can.
    file: PathBuf,
}

/// What is tried in each world. Only the reader needs a registry.
const TRIED: [&str; 9] =
    ["df", "ls -l ..", "stat", "reader", "list", "status", "umount", "umount -l", "ls left"];

#[test]
fn no_bad_world_delays_calls_that_need_no_registry() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("prlimit")]) {
        return;
    }
    let names = [
        "silent registry, delayed",
        "closed registry, delayed",
        "silent registry",
        "dead registry",
        "stopped process",
        "killed process",
        "killed monitor",
        "no descriptors",
        "no threads",
        "full disk",
        "cache directory gone",
        "dies in the middle",
    ];
    let mut table = vec![format!("{:<26}{}", "", TRIED.map(|what| format!("{what:>10}")).concat())];
    for name in names {
        let site = Site::new();
        let world = begin(&site, name);
        let mut times = live(&site, &world);
        // A mount that a reader uses is busy; either answer is one.
        times.push(timed(Command::new("umount").arg(world.mount.dir())));
        end(&site, world);
        let site = Site::new();
        let world = begin(&site, name);
        times.push(timed(Command::new("umount").arg("-l").arg(world.mount.dir())));
        assert!(mounted_at(world.mount.dir()).is_none(), "{name}: umount -l left a mount");
        times.push(timed(Command::new("ls").arg(world.mount.dir())));
        let cells: Vec<String> = times.iter().map(|time| format!("{:>8} ms", time.as_millis())).collect();
        table.push(format!("{:<26}{}", world.name, cells.concat()));
        end(&site, world);
    }
    println!("{}", table.join("\n"));
}

fn timed(command: &mut Command) -> Duration {
    let begun = Instant::now();
    prompt(command);
    begun.elapsed()
}

/// Leaves nothing of a world.
fn end(site: &Site, world: World) {
    let World { name, mount, registry, waiting, .. } = world;
    if let Some(mut reader) = waiting {
        signal(reader.id(), Signal::SIGKILL);
        assert!(ended(&mut reader).is_some(), "{name}: a killed reader goes on");
    }
    if let Some(registry) = registry {
        registry.clear();
    }
    let (dir, served_by) = (mount.dir().to_owned(), mount.pid());
    mount.forget();
    if mounted_at(&dir).is_some() {
        prompt(Command::new("umount").arg("-l").arg(&dir)).ok();
    }
    for pid in daemons(&dir) {
        signal(pid, Signal::SIGCONT);
        signal(pid, Signal::SIGKILL);
    }
    if let Some(group) = group_of(served_by).filter(|group| group.exists()) {
        assert!(becomes_true(PROMPT, || fs::remove_dir(&group).is_ok()), "{group:?} is left");
    }
    if name == "full disk" {
        run(Command::new("umount").arg("-l").arg(site.scratch().join("disk"))).ok();
    }
}

fn begin(site: &Site, name: &'static str) -> World {
    let content = Content::new(66);
    if name.ends_with("delayed") {
        let (held, closed, address) = if name.starts_with("silent") {
            let (held, address) = silent();
            (Some(held), None, address)
        } else {
            let closed = ReservedPort::new();
            let address = closed.address().to_string();
            (None, Some(closed), address)
        };
        let mount = site.mount(&format!("{address}/a/b:1"), &["--delay-connect", FOREVER]);
        let file = mount.join("config.json");
        return World { name, mount, _held: held, _closed: closed, waiting: None, registry: None, file };
    }
    let registry = FaultRegistry::start();
    content.push(&registry);
    let cache = site.scratch().subdir("disk");
    let cache_dir = format!("--cache-dir={}/cache", cache.display());
    if name == "full disk" {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=700k", "tmpfs"]).arg(&cache)).ok();
    }
    let mount = site.mount(&content.reference(&registry), &[FOREVER, &cache_dir, "--prefetch=none"]);
    let file = mount.join(&content.file(0).path);
    let pid = mount.pid();
    let mut reader = None;
    let limit = |what: &str| drop(run(Command::new("prlimit").args(["--pid", &pid.to_string(), what])).ok());
    match name {
        "silent registry" => registry.set(Fault::Silent),
        "dead registry" => registry.go_down(),
        "stopped process" => signal(pid, Signal::SIGSTOP),
        "killed process" => signal(pid, Signal::SIGKILL),
        "killed monitor" => {
            signal(monitor(pid).expect("there is a monitor"), Signal::SIGKILL);
            registry.set(Fault::Silent);
        }
        "no descriptors" => limit("--nofile=8:8"),
        // No control group with a limit of threads: the world is one in which all is well.
        "no threads" => drop(no_more_threads(pid)),
        "cache directory gone" => fs::remove_dir_all(cache.join("cache")).unwrap(),
        "dies in the middle" => {
            registry.set(Fault::StallAfter(1000));
            let mut command = Command::new("cat");
            command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
            let child = reader.insert(command.spawn().unwrap());
            assert!(becomes_true(PROMPT, || waits(child.id())), "the reader does not wait");
            registry.go_down();
        }
        _ => {}
    }
    World { name, mount, _held: None, _closed: None, waiting: reader, registry: Some(registry), file }
}

/// Puts a process into a control group that lets it start no thread; `None` where there is no such group.
fn no_more_threads(pid: u32) -> Option<()> {
    let group = group_of(pid)?;
    fs::create_dir(&group).ok()?;
    fs::write(group.join("cgroup.procs"), pid.to_string()).ok()?;
    let now = fs::read_to_string(group.join("pids.current")).ok()?;
    fs::write(group.join("pids.max"), now.trim()).ok()
}

/// The control group that is made for a process.
fn group_of(pid: u32) -> Option<PathBuf> {
    let groups = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let parent = groups.into_iter().find(|group| group.join("cgroup.procs").exists())?;
    Some(parent.join(format!("ocifs-wedge-{pid}")))
}

/// Does everything that [`TRIED`] names, and gives how long each took. What does not end fails the test.
fn live(site: &Site, world: &World) -> Vec<Duration> {
    let dir = world.mount.dir();
    let around = dir.parent().unwrap();
    let reader = || {
        let mut reader = Command::new("cat");
        let mut reader = reader.arg(&world.file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        becomes_true(Duration::from_secs(2), || waits(reader.id()) || state_of(reader.id()) == 'Z');
        let begun = Instant::now();
        signal(reader.id(), Signal::SIGKILL);
        assert!(ended(&mut reader).is_some(), "{}: a killed reader goes on", world.name);
        begun.elapsed()
    };
    vec![
        timed(Command::new("df").arg(dir)),
        timed(Command::new("ls").arg("-l").arg(around)),
        timed(Command::new("stat").arg(dir)),
        reader(),
        timed(site.command().arg("list")),
        timed(site.command().arg("status").arg(dir)),
    ]
}
