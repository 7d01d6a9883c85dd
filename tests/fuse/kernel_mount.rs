//! `--kernel`: mounts that the kernel's EROFS serves, from a file of ours that no directory shows.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::compare::{assert_same, read_tree};
use crate::corpus;
use crate::cost::push_image;
use crate::debian::Debian;
use crate::debian_image;
use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::layout::{Layer, Layout};
use crate::metrics;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh, signal};
use crate::random::Random;
use crate::real_registry::flip_a_byte;
use crate::scratch::{mounted_at, mounts};
use crate::site::{Mount, Site, binary, copy_binary, daemons, monitor, unmounts};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// A mount that waits for its layers to be compared.
pub(crate) const ON: [&str; 2] = ["--view=merged", "--kernel=on"];
/// Files of the image, each with noise of its own.
const FILES: u64 = 40;
/// Bytes of each. Together they are more than a blob that is compared before its first byte.
const SIZE: usize = 300_000;
/// How often a mount is killed; `OCIFS_KILLS` says how often instead.
const KILLS: u64 = 6;

/// Whether this kernel mounts EROFS from a file without a loop device.
pub(crate) fn kernel_can() -> bool {
    let release = sh("uname -r", &[]).text();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let can = version >= (6, 12) && fs::read_to_string("/proc/filesystems").unwrap().contains("erofs");
    assert!(can || std::env::var_os("CI").is_none(), "Linux {release} mounts no EROFS from a file");
    can
}

pub(crate) fn ready() -> bool {
    able(&NEEDS) && kernel_can()
}

fn content(nth: u64) -> Vec<u8> {
    noise(SIZE, nth + 1)
}

/// The archive of all files.
fn archive() -> Vec<u8> {
    let mut tar = Tarball::new().dir("d").symlink("d/link", "0");
    for nth in 0..FILES {
        tar = tar.file(&format!("d/{nth}"), &content(nth));
    }
    tar.hard_link("d/again", "d/0", 0o644).bytes()
}

/// An image of one layer in a layout.
fn image(site: &Site, encoding: Encoding) -> (Layout, String) {
    let mut layout = Layout::create(site.scratch().join(format!("layout-{}", encoding.name())));
    layout.image("v1", &[Layer::of(&archive(), encoding)]);
    let reference = layout.reference("v1");
    (layout, reference)
}

fn erofs(mount: &Mount) -> bool {
    mount.line().fstype == "erofs"
}

/// What the kernel has logged so far.
pub(crate) fn kernel_log() -> String {
    sh("dmesg", &[]).text()
}

/// Lines of the kernel's log since `before` about EROFS that are no mere notice of a mount. The log is the machine's:
/// tasks of other programs that hang, or faults of other drivers, are none of a mount.
#[track_caller]
pub(crate) fn no_warning(before: &str) {
    let after = kernel_log();
    let last = before.lines().last();
    // A log whose last line is gone from the ring is new as a whole.
    let start = after.lines().position(|line| Some(line) == last).map_or(0, |at| at + 1);
    let new = after.lines().skip(start);
    // The lines of a stack name its functions.
    let is_wrong = |line: &&str| ["WARN", "BUG", "corrupt", "erofs_"].iter().any(|word| line.contains(word));
    let wrong: Vec<_> = new.filter(|line| line.contains("erofs")).filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The status of a mount as a document.
fn status(site: &Site, dir: &Path) -> serde_json::Value {
    let output = site.ocifs(&["status", "--format=json", dir.to_str().unwrap()]).ok().text();
    serde_json::from_str(&output).unwrap()
}

/// The line of `ocifs list` about `dir`, once it has a state: a busy machine may not answer in time.
fn listed(site: &Site, dir: &Path) -> String {
    let mut line = String::new();
    becomes_true(CONDITION_TIMEOUT, || {
        let output = site.ocifs(&["list"]).ok().text();
        let found = output.lines().find(|line| line.contains(dir.to_str().unwrap()));
        line = found.map(str::to_owned).unwrap_or_default();
        !line.starts_with("unknown")
    });
    line
}

#[test]
fn kernel_mount_equals_the_fuse_tree_and_answers_commands() {
    if !ready() {
        return;
    }
    let (site, log) = (Site::new(), kernel_log());
    let (_layout, reference) = image(&site, Encoding::Gzip);
    let plain = site.mount_at("plain", &reference, &["--view", "merged"]);
    let mount = site.mount(&reference, &ON);
    assert!(mount.printed().contains("served by the kernel"), "{}", mount.printed());
    let line = mount.line();
    assert_eq!((line.fstype.as_str(), line.source.as_str()), ("erofs", plain.line().source.as_str()));
    assert!(line.options.contains("ro,nosuid,nodev"), "{}", line.options);
    assert_same(plain.dir(), mount.dir());
    // No connection of it is in the tree.
    let ours = mounts().into_iter().filter(|line| line.dir.starts_with(site.scratch().path()));
    assert_eq!(ours.filter(|line| line.fstype.starts_with("fuse")).count(), 1);
    let output = listed(&site, mount.dir());
    assert!(output.starts_with("served") && output.contains(&mount.digest()), "{output}");
    assert_eq!(status(&site, mount.dir())["servedBy"], "the kernel (EROFS)");
    assert_eq!(status(&site, mount.dir())["scope"], "merged");
    // The same is there already, and another one takes its place.
    let again = site.ocifs(&["mount", "--refresh", ON[0], ON[1], &reference, mount.dir().to_str().unwrap()]);
    assert!(again.ok().text().contains("already"));
    plain.unmount();
    mount.unmount();
    let again = site.mount(&reference, &["--view", "merged", "--kernel=auto"]);
    assert!(erofs(&again), "the index is known: {}", again.printed());
    again.unmount_from_outside();
    // The directory is the machine's: mounts that begin beside this one have a source there for a moment.
    let sources = || {
        let records = fs::read_dir("/run/ocifs/kernel").unwrap().flatten();
        records.filter(|entry| entry.file_name().to_string_lossy().starts_with(".source")).count()
    };
    assert!(becomes_true(CONDITION_TIMEOUT, || sources() == 0), "{} sources", sources());
    no_warning(&log);
}

#[test]
fn a_mount_follows_its_tag_and_one_layer_is_a_tree_of_its_own() {
    if !ready() {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let lower = Tarball::new().dir("a").file("a/one", b"one").file("a/gone", b"x").bytes();
    let upper = Tarball::new().dir("a").file("a/.wh.gone", b"").file("a/two", b"two").bytes();
    let reference = push_image(&registry, &[Layer::of(&lower, Encoding::Gzip)]);
    let mount = site.mount(&reference, &ON);
    let first = mount.digest();
    let both = [Layer::of(&lower, Encoding::Gzip), Layer::of(&upper, Encoding::Zstd)];
    assert_eq!(push_image(&registry, &both), reference);
    let held = fs::File::open(mount.join("a/gone")).unwrap();
    let dir = mount.dir().to_owned();
    mount.forget();
    let args = ["mount", "--refresh", ON[0], ON[1], &reference, dir.to_str().unwrap()];
    let output = site.ocifs(&args).ok().text();
    assert!(!output.contains(&first) && output.contains("served by the kernel"), "{output}");
    assert!(fs::read(dir.join("a/gone")).is_err());
    let mut byte = [0];
    held.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"x");
    drop(held);
    for (view, name) in [("layers/1", "a/.wh.gone"), ("layers/0", "a/gone")] {
        let options = [&format!("--view={view}"), "--kernel=on"];
        let one = site.mount_at("one", &reference, &options);
        let fuse = site.mount_at("fuse", &reference, &options[..1]);
        assert!(erofs(&one) && fuse.line().fstype == "fuse.ocifs");
        fs::metadata(one.join(name)).unwrap();
        assert_same(fuse.dir(), one.dir());
    }
    unmounts(site.command().arg("umount").arg(&dir));
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
}

#[test]
fn kernel_never_gets_uncompared_bytes() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    // An uncompressed archive is walked, and not read as a whole.
    let large = noise(12 << 20, 3);
    let tar = Tarball::new().file("large", &large).file("small", b"small").bytes();
    let reference = push_image(&registry, &[Layer::of(&tar, Encoding::Plain)]);
    let auto = site.mount(&reference, &["--view", "merged", "--kernel=auto"]);
    assert_eq!(auto.line().fstype, "fuse.ocifs");
    let words = status(&site, auto.dir())["servedBy"].as_str().unwrap().to_owned();
    assert!(words.starts_with("FUSE: layer 0") && words.contains("not compared"), "{words}");
    auto.unmount();
    let size = tar.len() as u64;
    assert!(registry.blob_bytes() < size, "the walk read {} of {size}", registry.blob_bytes());
    let on = site.mount(&reference, &ON);
    assert!(registry.blob_bytes() >= size, "{} of {size} bytes were compared", registry.blob_bytes());
    assert!(fs::read(on.join("large")).unwrap() == large);
    on.unmount();
    // What is known is compared already, and every block that comes again is compared with it.
    let known = site.mount(&reference, &["--view", "merged", "--kernel=auto"]);
    assert!(erofs(&known), "{}", known.printed());
    known.unmount();
}

#[test]
fn a_layer_without_an_index_is_passed_over_for_on_and_not_for_auto() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let reference = push_image(&registry, &[Layer::of(&archive(), Encoding::Gzip)]);
    let auto = site.mount(&reference, &["--view", "merged", "--kernel=auto", "--prefetch=none"]);
    assert_eq!(auto.line().fstype, "fuse.ocifs");
    let words = status(&site, auto.dir())["servedBy"].as_str().unwrap().to_owned();
    assert!(words.starts_with("FUSE: layer 0: ") && words.contains("pass"), "{words}");
    auto.unmount();
    let on = site.mount(&reference, &ON);
    assert!(erofs(&on));
    on.unmount();
}

#[test]
fn wrong_layer_is_refused_and_later_wrong_bytes_are_errors() {
    if !ready() {
        return;
    }
    // Wrong from the start.
    let site = Site::new();
    for encoding in [Encoding::Gzip, Encoding::Plain] {
        let (layout, reference) = image(&site, encoding);
        flip_a_byte(&layout.blob_path(&Layer::of(&archive(), encoding).digest()));
        let dir = site.mount_point("wrong");
        let refused = run(site.command().arg("mount").args(ON).arg(&reference).arg(&dir));
        assert!(refused.code != Some(0) && mounted_at(&dir).is_none(), "{}", refused.stderr);
        assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    }
    // Right at the mount, and wrong when the cache has to fetch it again under readers.
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let layer = Layer::of(&archive(), Encoding::Gzip);
    let reference = push_image(&registry, &[Layer::of(&archive(), Encoding::Gzip)]);
    site.mount(&reference, &ON).unmount();
    // The index stays, and every block has to come again.
    for kind in ["blobs", "streams"] {
        fs::remove_dir_all(site.cache().join("v1").join(kind)).unwrap();
    }
    let mount = site.mount(&reference, &["--view", "merged", "--kernel=auto"]);
    assert!(erofs(&mount), "{}", mount.printed());
    let mut wrong = layer.stored.clone();
    // Bits all over it: whichever file is read, its bytes are wrong.
    wrong.iter_mut().skip(5000).step_by(50_000).for_each(|byte| *byte ^= 1);
    registry.push_blob_as(&layer.digest().parse().unwrap(), wrong);
    let mut errors = 0;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let mount = &mount;
                scope.spawn(move || {
                    let mut errors = 0;
                    for nth in (0..FILES).map(|nth| (nth + reader * 10) % FILES) {
                        match fs::read(mount.join(format!("d/{nth}"))) {
                            Ok(read) => assert!(read == content(nth), "file {nth} is wrong"),
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                                errors += 1;
                            }
                        }
                    }
                    errors
                })
            })
            .collect();
        errors = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    });
    assert!(errors > 0, "nothing was fetched again");
    mount.unmount();
}

/// Kills the process that `victim` names at random moments under readers.
fn killed_under_readers(victim: fn(&Mount) -> u32, seed: u64) {
    if !ready() {
        return;
    }
    let (site, log) = (Site::new(), kernel_log());
    let (_layout, reference) = image(&site, Encoding::Gzip);
    let rounds = std::env::var("OCIFS_KILLS").ok().map_or(KILLS, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut random = Random(seed + round);
        let mount = site.mount(&reference, &ON);
        let (dir, pid) = (mount.dir().to_owned(), mount.pid());
        let (killed, wait) = (victim(&mount), Duration::from_micros(random.below(60_000)));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(wait);
                signal(killed, Signal::SIGKILL);
            });
            for reader in 0..3 {
                let (dir, mut random) = (&dir, Random(seed + round * 10 + reader));
                scope.spawn(move || {
                    for _ in 0..FILES {
                        let nth = random.below(FILES);
                        match fs::read(dir.join(format!("d/{nth}"))) {
                            Ok(read) => assert!(read == content(nth), "round {round}: file {nth} is wrong"),
                            // ENOTCONN of a request that the kernel had not sent yet.
                            Err(error) => assert!(
                                matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOTCONN)),
                                "{error}"
                            ),
                        }
                    }
                });
            }
        });
        if killed == pid {
            assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
            assert!(listed(&site, &dir).starts_with("dead"), "{}", listed(&site, &dir));
            mount.forget();
        } else {
            // Without its monitor the mount is served on, and root takes it away.
            assert_eq!(fs::read(dir.join("d/3")).unwrap(), content(3));
            mount.unmount();
        }
        // The next mount takes a dead one away.
        let next = site.mount(&reference, &ON);
        assert_eq!(fs::read(next.join("d/3")).unwrap(), content(3));
        next.unmount();
        assert!(mounted_at(&dir).is_none(), "a dead mount is left below");
    }
    no_warning(&log);
}

#[test]
fn killed_daemon_leaves_errors_and_no_zeros_and_the_next_mount_works() {
    killed_under_readers(Mount::pid, 1);
}

#[test]
fn a_monitor_that_is_killed_takes_no_byte_with_it() {
    killed_under_readers(|mount| monitor(mount.pid()).unwrap(), 1000);
}

#[test]
fn kernel_on_is_refused_with_a_reason_and_auto_falls_back() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let (_layout, reference) = image(&site, Encoding::Gzip);
    for (options, why) in [
        (&["--kernel=on"][..], "--view merged"),
        (&["--kernel=on", "--view=blobs"], "--view merged"),
        (&["--kernel=on", "--view=layers"], "--view merged"),
        (&["--kernel=on", "--view=merged", "--subdir=d"], "--subdir"),
        (&["--kernel=on", "--view=merged", "--hide-symlinks"], "--hide-symlinks"),
        (&["--kernel=on", "--view=merged", "--delay-connect"], "before the mount"),
    ] {
        site.mount_refused(&reference, options, &[2], &["--kernel=on: ", why]);
        let mut auto = options.to_vec();
        auto[0] = "--kernel=auto";
        let mount = site.mount(&reference, &auto);
        assert_eq!(mount.line().fstype, "fuse.ocifs");
    }
    let dir = site.mount_point("refused");
    let public = site.scratch().path();
    sh("chmod a+rx $1", &[&public]);
    let output = |wrapper: &[&str]| {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(binary());
        command.args(["mount", "--kernel=on", "--view=merged", &reference]).arg(&dir);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        run(command.env("HOME", public).env("OCIFS_CACHE_DIR", site.cache()))
    };
    let one_line = |output: &str| assert_eq!(output.trim().lines().count(), 1, "{output}");
    // A kernel that answers as an older one.
    let old = output(&["setarch", "--uname-2.6"]);
    old.refused(&[2], &["--kernel=on: ", "takes linux 6.12, and this is linux 2.6"]);
    one_line(&old.stderr);
    let inside = output(&["unshare", "-Ur", "-m"]);
    inside.refused(&[2], &["--kernel=on: ", "user namespace"]);
    one_line(&inside.stderr);
}

#[test]
fn kernel_on_without_root_is_refused() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let program = site.scratch().join("ocifs");
    // The program and the directory of a user that is not root.
    copy_binary(&program);
    sh("chmod a+rx $1 && mkdir $1/own && chown 65534 $1/own", &[&site.scratch().path()]).ok();
    let own = site.scratch().join("own");
    let cache = site.scratch().join("cache-of-the-user");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(["mount", "--kernel=on", "--view=merged", "example.invalid/a/b"]).arg(&own);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", &own);
    let output = run(command.env("OCIFS_CACHE_DIR", &cache));
    output.refused(&[2], &["--kernel=on: only root can mount erofs"]);
    assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
}

#[test]
fn listing_a_large_tree_reads_its_metadata_in_large_steps() {
    const FILES_EACH: u64 = 20;
    const DIRECTORIES: u64 = 500;
    /// The metadata is more than this many pages, and each would be a read.
    const MAX_READS: u64 = 30;
    if !ready() {
        return;
    }
    let site = Site::new();
    let mut tar = Tarball::new();
    for directory in 0..DIRECTORIES {
        tar = tar.dir(&format!("{directory}"));
        for file in 0..FILES_EACH {
            tar = tar.file(&format!("{directory}/a-name-of-thirty-characters-{file}"), b"");
        }
    }
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&tar.bytes(), Encoding::Gzip)]);
    let socket = site.scratch().subdir("run").join("metrics");
    let address = format!("--metrics=unix:{}", socket.display());
    let mount = site.mount(&layout.reference("v1"), &[ON[0], ON[1], &address]);
    assert!(erofs(&mount));
    let names = sh("find \"$1\" | wc -l", &[&mount.dir()]).text();
    assert_eq!(names.trim().parse::<u64>().unwrap(), 1 + DIRECTORIES * (FILES_EACH + 1));
    let shown = metrics::shown(&socket);
    let count = shown.lines().find_map(|line| line.strip_prefix("ocifs_read_duration_seconds_count "));
    let reads: u64 = count.unwrap().parse().unwrap();
    assert!((1..=MAX_READS).contains(&reads), "{reads} reads");
}

#[test]
fn every_way_to_mount_takes_the_option() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let (_layout, reference) = image(&site, Encoding::Gzip);
    let script = "test $(stat -f -c %t \"$OCIFS_MOUNT\") = e0f5e1e2 && sha256sum < \"$OCIFS_MOUNT/d/1\"";
    let ran = site.ocifs(&["run", ON[0], ON[1], &reference, "--", "sh", "-c", script]).ok().text();
    assert!(ran.starts_with(&crate::byte_text::digest_of(&content(1))["sha256:".len()..]), "{ran}");
    // As mount(8) calls it for a line of fstab.
    let dir = site.mount_point("fstab");
    let helper = site.scratch().join("mount.ocifs");
    std::os::unix::fs::symlink(binary(), &helper).unwrap();
    let mut command = Command::new(&helper);
    command.arg(&reference).arg(&dir).args(["-o", "rw,view=merged,kernel=on,noexec"]);
    command.env("HOME", site.scratch().join("home")).env("OCIFS_CACHE_DIR", site.cache());
    run(&mut command).ok();
    let line = mounted_at(&dir).unwrap();
    assert!(line.fstype == "erofs" && line.options.contains("noexec"), "{line:?}");
    assert_eq!(line.source, reference);
    unmounts(Command::new("umount").arg(&dir));
    // Without a sandbox, and in the foreground.
    let (mut child, dir) =
        site.mount_foreground(&reference, &[ON[0], ON[1], "--sandbox=off", "--metrics=unix:metrics"]);
    assert_eq!(mounted_at(&dir).unwrap().fstype, "erofs");
    assert_eq!(fs::read(dir.join("d/1")).unwrap(), content(1));
    unmounts(Command::new("umount").arg(&dir));
    assert!(becomes_true(CONDITION_TIMEOUT, || child.try_wait().unwrap().is_some()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn every_corpus_case_is_the_same_from_the_kernel_as_from_fuse() {
    if !able(&[NEEDS[0], NEEDS[1], Need::Path(&corpus::directory())]) || !kernel_can() {
        return;
    }
    let (site, log) = (Site::new(), kernel_log());
    let mut layout = Layout::create(site.scratch().join("layout"));
    let (mut failed, mut judged) = (Vec::new(), 0);
    for (index, case) in corpus::cases().iter().enumerate().filter(|(_, case)| case.tree.is_some()) {
        let tag = format!("case-{index}");
        let encoding = if index % 2 == 0 { Encoding::Plain } else { Encoding::Gzip };
        let layers: Vec<Layer> = case.layers.iter().map(|tar| Layer::of(tar, encoding)).collect();
        layout.image(&tag, &layers);
        let reference = layout.reference(&tag);
        let fuse = site.mount_at("fuse", &reference, &["--view=merged"]);
        let kernel = site.mount(&reference, &ON);
        let (one, other) = (read_tree(fuse.dir()).unwrap(), read_tree(kernel.dir()).unwrap());
        let found = crate::compare::differences(&one, &other);
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
        judged += 1;
        kernel.unmount();
        fuse.unmount();
    }
    assert!(failed.is_empty(), "{} failures\n{}", failed.len(), failed.join("\n"));
    assert!(judged > 80, "{judged} cases were judged");
    no_warning(&log);
}

#[test]
fn a_debian_root_is_the_same_from_the_kernel_as_umoci_unpacks_it() {
    let needs: Vec<_> = debian_image::NEEDS.into_iter().chain(NEEDS).collect();
    if !able(&needs) || !kernel_can() {
        return;
    }
    let (site, log) = (Site::new(), kernel_log());
    let mount = site.mount(&Debian::get().layout(), &ON);
    assert!(erofs(&mount));
    assert_same(&Debian::get().unpacked(), mount.dir());
    let fuse = site.mount_at("fuse", &Debian::get().layout(), &["--view=merged"]);
    assert_same(fuse.dir(), mount.dir());
    no_warning(&log);
}
