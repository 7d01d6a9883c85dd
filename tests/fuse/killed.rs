//! Mounts killed while they are busy, damaged caches, and caches of very many files: the next mount answers at once,
//! no byte is wrong, and verified content is not fetched again.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::layout::{CONFIG, Layer, Layout, MANIFEST};
use crate::proc_files::{holds_nothing, proc_of, state_of, status_field};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh, signal};
use crate::random::Random;
use crate::scratch::mounted_at;
use crate::site::{Site, announcement, binary, daemons};
use crate::tarball::{Tarball, noise};
use crate::wedge::waits;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const REPO: &str = "killed/thing";
/// How often a mount is killed; `OCIFS_KILLS` says how often instead.
const KILLS: u64 = 10;
/// Bits that are flipped in what a mount then reads.
const FLIPS: u64 = 20;
/// Files in a large cache.
const MANY: usize = 100_000;
/// Reading a directory of that many files takes some hundred calls.
const FEW_CALLS: usize = 40;

/// An image of a compressed and of a plain layer.
struct Image {
    reference: String,
    pinned: String,
    files: [(&'static str, Vec<u8>); 2],
}

fn push(registry: &FaultRegistry, seed: u64) -> Image {
    let files = [("merged/a", noise(1_500_000, seed * 2 + 1)), ("merged/b", noise(1_500_000, seed * 2 + 2))];
    let layers = [
        Layer::of(&Tarball::new().file("a", &files[0].1).bytes(), Encoding::Gzip),
        Layer::of(&Tarball::new().file("b", &files[1].1).bytes(), Encoding::Plain),
    ];
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": registry.push_blob(bytes).as_str(), "size": bytes.len()});
    let diffs: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config.to_string().as_bytes()),
        "layers": layers.iter().map(|it| descriptor(&it.media_type, &it.stored)).collect::<Vec<_>>(),
    });
    let tag = format!("v{seed}");
    let digest = registry.push_manifest(REPO, &tag, MANIFEST, manifest.to_string().as_bytes());
    let host = registry.host();
    Image { reference: format!("{host}/{REPO}:{tag}"), pinned: format!("{host}/{REPO}@{digest}"), files }
}

/// The digests of the blobs that the cache has verified.
fn verified(site: &Site) -> Vec<String> {
    let output = site.ocifs(&["cache", "ls", "--format", "json"]).ok().text();
    let list: Value = serde_json::from_str(&output).unwrap();
    let contents = list["contents"].as_array().unwrap().iter();
    let blobs = contents.filter(|item| item["kind"] == "blob" && item["state"] == "verified");
    blobs.map(|item| item["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_mount_that_was_killed_under_load_leaves_no_wrong_byte_and_nothing_verified_is_fetched_again() {
    if !able(&NEEDS) {
        return;
    }
    let kills = std::env::var("OCIFS_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut slowest = Duration::ZERO;
    let mut kept = 0;
    for round in 0..kills {
        let image = push(&registry, round);
        let before = verified(&site).len();
        let mount = site.mount(&image.reference, &[]);
        thread::scope(|scope| {
            for (path, body) in &image.files {
                let path = mount.join(path);
                scope.spawn(move || {
                    // Breaks off where the mount does; what came before that is right.
                    let Ok(file) = fs::File::open(&path) else { return };
                    let mut read = vec![0; 50_000];
                    for start in (0..body.len() as u64).step_by(50_000) {
                        let Ok(len) = file.read_at(&mut read, start) else { return };
                        assert!(
                            read[..len] == body[start as usize..start as usize + len],
                            "{path:?} at {start}"
                        );
                    }
                });
            }
            // Some are killed before the first byte, some after the last one.
            if round % 4 == 3 {
                assert!(
                    becomes_true(CONDITION_TIMEOUT, || verified(&site).len() > before),
                    "nothing is verified"
                );
            } else {
                thread::sleep(Duration::from_millis(round * 37 % 160));
            }
            mount.kill();
        });
        let known = verified(&site);
        kept += known.len() - before;
        registry.reset_counts();
        let started = Instant::now();
        let mount = site.mount(&image.pinned, &[]);
        slowest = slowest.max(started.elapsed());
        for (path, body) in &image.files {
            assert!(fs::read(mount.join(path)).unwrap() == *body, "{path} after kill {round}");
        }
        for request in registry.blob_requests() {
            let again = known.iter().any(|digest| request.path.ends_with(digest.as_str()));
            assert!(!again || request.bytes_sent == 0, "{} was verified before kill {round}", request.path);
        }
        mount.unmount();
    }
    assert!(kept > 0, "nothing was ever verified before a kill");
    println!("{kills} kills; the slowest mount after one took {slowest:?}");
}

#[test]
fn a_mount_with_a_hundred_thousand_files_in_its_cache_walks_over_none_and_the_commands_stay_small() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("strace")]) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = push(&registry, 1000);
    site.mount(&image.reference, &[]).unmount();
    let many = site.cache().join("v1/documents/sha256");
    for number in 0..MANY {
        fs::File::create(many.join(format!("{number:064x}"))).unwrap();
    }

    let (dir, log) = (site.mount_point("many"), site.scratch().join("calls"));
    let mut command = site.tool("strace");
    command.args(["-f", "-e", "trace=getdents64", "-o"]).arg(&log).arg(binary()).args(["mount", "-f"]);
    command.arg(&image.pinned).arg(&dir);
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // A mount that is killed before that does not stay.
    assert!(announcement(&mut child).contains(" mounted at "), "it did not mount");
    println!("mounted with {MANY} files in the cache after {:?}, traced", started.elapsed());
    assert!(fs::read(dir.join("merged/b")).unwrap() == image.files[1].1);
    // The killing of a mount is no reason to walk, either.
    for pid in daemons(&dir) {
        signal(pid, Signal::SIGKILL);
    }
    child.wait().unwrap();
    sh("umount -l \"$1\"", &[&dir]);
    let calls = fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains("getdents64(")).count();
    assert!(calls < FEW_CALLS, "{calls} calls that list directories");
    let mount = site.mount(&image.pinned, &[]);
    assert!(fs::read(mount.join("merged/a")).unwrap() == image.files[0].1);
    mount.unmount();

    // 128 MiB of address space, of which a program takes a part for its code and its threads.
    let small = |arguments: &str| {
        let script = format!("ulimit -v 131072; exec \"$0\" cache {arguments}");
        run(site.tool("bash").args(["-c", &script]).arg(binary()))
    };
    assert!(small("ls").ok().text().lines().count() > MANY);
    let usage: Value = serde_json::from_str(&small("du --format json").ok().text()).unwrap();
    assert!(usage["total"]["count"].as_u64().unwrap() > MANY as u64);
    small("gc").ok();
    small("verify").refused(&[7], &["100000 contents were damaged"]);
    assert!(small("ls").ok().text().lines().count() < 100);
}

/// Whether a thread of process `pid` waits for an answer that another one was stopped in giving.
fn looks_at_itself(pid: u32) -> bool {
    let tasks = fs::read_dir(proc_of(pid).join("task")).into_iter().flatten().flatten();
    let threads: Vec<u32> = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    let is_look = |thread: &u32| status_field(&proc_of(*thread), "Name").as_deref() == Some("look");
    threads.iter().any(|thread| is_look(thread) && waits(*thread))
        && threads.iter().any(|thread| state_of(*thread) == 't')
}

#[test]
fn a_mount_killed_before_it_has_answered_itself_leaves_no_process() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("strace")]) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = push(&registry, 3000);
    for sandbox in ["--sandbox=auto", "--sandbox=off"] {
        let dir = site.mount_point("mnt");
        let mut command = site.tool("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=writev"]);
        // Every answer of the mount to the kernel is late.
        command
            .args(["-e", "inject=writev:delay_enter=5000000"])
            .arg(binary())
            .args(["mount", "-f", sandbox]);
        command.arg(&image.pinned).arg(&dir);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut daemon = None;
        let looks = becomes_true(CONDITION_TIMEOUT, || {
            daemon = daemons(&dir).into_iter().find(|pid| looks_at_itself(*pid));
            daemon.is_some()
        });
        for pid in daemons(&dir).into_iter().chain([child.id()]) {
            signal(pid, Signal::SIGKILL);
        }
        child.wait().unwrap();
        // Where a process is left, every other look at its mount would hang. The monitor may have taken it away.
        run(Command::new("umount").arg("-l").arg(&dir));
        assert!(looks, "the mount does not look at itself");
        assert!(becomes_true(CONDITION_TIMEOUT, || daemon.is_none_or(holds_nothing)), "{daemon:?} is left");
    }
}

/// Every file of the cache that has bytes, in order.
fn files(root: &Path) -> Vec<PathBuf> {
    let found = sh("find \"$1\" -type f -size +0 | sort", &[&root]).text();
    found.lines().map(PathBuf::from).collect()
}

#[test]
fn flipped_bits_in_the_cache_of_a_mount_cost_no_byte() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = push(&registry, 2000);
    let read_all = |options: &[&str], what: &str| {
        let mount = site.mount(&image.pinned, options);
        let mut failed = 0;
        for (path, body) in &image.files {
            match fs::read(mount.join(path)) {
                Ok(read) => assert!(read == *body, "{path} after {what}"),
                Err(error) => {
                    assert!(!options.is_empty(), "{path} after {what}: {error}");
                    failed += 1;
                }
            }
        }
        mount.unmount();
        failed
    };
    read_all(&[], "nothing");
    assert_eq!(read_all(&["--offline"], "nothing"), 0);
    let mut random = Random::of(77);
    for _ in 0..FLIPS {
        let found = files(&site.cache().join("v1"));
        let path = random.pick(&found);
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = random.below(file.metadata().unwrap().len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at).unwrap();
        let what = format!("byte {at} of {}", path.display());
        // Without its manifest there is no mount to ask.
        if !path.to_string_lossy().contains("/documents/") {
            read_all(&["--offline"], &what);
        }
        read_all(&[], &what);
        assert_eq!(read_all(&["--offline"], &what), 0, "{what} has healed");
    }
}

#[test]
fn a_process_that_is_killed_before_its_mount_answers_leaves_no_mount() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("strace")]) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Plain)]);
    let (dir, log) = (site.mount_point("starting"), site.scratch().join("calls"));
    let mut command = site.tool("strace");
    // The thread of the first access has descriptors of its own.
    command.args(["-f", "-e", "trace=unshare", "-e", "inject=unshare:signal=SIGKILL", "-o"]).arg(&log);
    command.arg(binary()).args(["mount", "-f"]).arg(layout.reference("v1")).arg(&dir);
    let finished = run(&mut command);
    let calls = fs::read_to_string(&log).unwrap();
    assert!(calls.contains("unshare(CLONE_FILES") && calls.contains("killed by SIGKILL"), "{calls}");
    assert_ne!(finished.code, Some(0), "{}", finished.stderr);
    // strace ends after all processes that it traces.
    assert!(mounted_at(&dir).is_none());
}
