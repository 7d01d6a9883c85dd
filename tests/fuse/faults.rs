//! Misbehaving registry under a mount: delivered bytes are right, errors come in bounded time, the mount survives.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::artifact::Piece;
use crate::byte_text::digest_of;
use crate::cost::{push_files, push_image};
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::Layer;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, signal};
use crate::real_registry::{PASSWORD, USER};
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};
use crate::wedge::{FOREVER, waits};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// An artifact of one file of 12 MiB, mounted before anything is wrong.
fn mounted(site: &Site, registry: &FaultRegistry) -> (Mount, Vec<u8>) {
    let body = noise(12 << 20, 1);
    let reference = push_files(registry, &[Piece::new("file", "application/x.file", body.clone())]);
    (site.mount(&reference, &[]), body)
}

#[test]
fn a_passing_fault_costs_time_and_no_byte() {
    if !able(&NEEDS) {
        return;
    }
    let faults = [
        Fault::TruncateAfter { bytes: 100_000, times: 3 },
        Fault::Status { code: 503, times: 2, retry_after: Some("1".to_owned()) },
        Fault::Status { code: 429, times: 2, retry_after: None },
        Fault::Status { code: 500, times: 1, retry_after: None },
    ];
    for fault in faults {
        let (site, registry) = (Site::new(), FaultRegistry::start());
        let (mount, body) = mounted(&site, &registry);
        registry.set(fault.clone());
        assert!(fs::read(mount.join("files/file")).unwrap() == body, "{fault:?}");
    }
}

#[test]
fn a_registry_without_ranges_is_read_once_from_the_start() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    registry.set(Fault::IgnoreRange);
    let (mount, body) = mounted(&site, &registry);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(fs::read(mount.join("files/file")).unwrap() == body));
        }
    });
    assert!(registry.blob_bytes() <= body.len() as u64 * 11 / 10, "{} bytes", registry.blob_bytes());
}

#[test]
fn wrong_answers_are_errors_and_never_data() {
    if !able(&NEEDS) {
        return;
    }
    let faults = [
        Fault::WrongContentRange,
        Fault::ShortBody { by: 10 },
        Fault::LongBody,
        Fault::ContentEncodingGzip,
        Fault::Html,
    ];
    // Side by side: each of them is mostly waiting.
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(move || is_an_error(&fault));
        }
    });
}

/// Reads a file that cannot be read. A reader that waits for ever fails the test.
#[track_caller]
fn fails(file: &Path) {
    let read = run(Command::new("cat").arg(file).stdout(Stdio::null()));
    assert!(read.stderr.contains("Input/output error"), "{:?}: {}", read.code, read.stderr);
}

fn is_an_error(fault: &Fault) {
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let (mount, body) = mounted(&site, &registry);
    registry.set(fault.clone());
    fails(&mount.join("files/file"));
    registry.clear();
    let right = || fs::read(mount.join("files/file")).is_ok_and(|it| it == body);
    assert!(becomes_true(CONDITION_TIMEOUT, right), "{fault:?} is not over");
}

#[test]
fn flipped_bits_are_found_at_the_latest_at_the_end() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let tar = Tarball::new().file("f", &noise(3 << 20, 2)).bytes();
    let layer = Layer::of(&tar, Encoding::Plain);
    let digest = layer.digest();
    let mount = site.mount(&push_image(&registry, &[layer]), &[]);
    registry.set(Fault::FlipBit);
    let path = mount.join("blobs").join(digest.replace(':', "/"));
    fs::read(&path).map(drop).unwrap_or_default();
    assert_eq!(fs::read(&path).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_ne!(xattr::get(&path, "user.ocifs.verified").unwrap().as_deref(), Some(b"full".as_slice()));
}

#[test]
fn an_outage_is_an_error_soon_and_over_when_it_is_over() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let (mount, body) = mounted(&site, &registry);
    registry.go_down();
    fails(&mount.join("files/file"));
    assert!(fs::read(mount.join("manifest.json")).is_ok());
    registry.come_up();
    assert!(becomes_true(CONDITION_TIMEOUT, || fs::read(mount.join("files/file")).is_ok_and(|it| it == body)));
}

#[test]
fn a_reader_of_a_stalled_registry_can_be_killed() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let reference = push_files(&registry, &[Piece::new("file", "application/x.file", noise(1 << 20, 1))]);
    let mount = site.mount(&reference, &[FOREVER]);
    registry.set(Fault::StallAfter(1000));
    let mut reader = Command::new("cat")
        .arg(mount.join("files/file"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || waits(reader.id())), "the reader does not wait");
    signal(reader.id(), Signal::SIGKILL);
    assert!(becomes_true(CONDITION_TIMEOUT, || reader.try_wait().unwrap().is_some()), "the reader hangs");
    // The rest of the mount does not wait for it.
    assert!(fs::read(mount.join("manifest.json")).is_ok());
}

#[test]
fn a_token_that_ends_under_a_mount_is_renewed_once_for_all_readers() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    registry.set(Fault::RequireBearer { token_lifetime: Duration::from_secs(600) });
    registry.set(Fault::RequireBasic { user: USER.to_owned(), pass: PASSWORD.to_owned() });
    let body = noise(12 << 20, 3);
    let reference = push_files(&registry, &[Piece::new("file", "application/x.file", body.clone())]);
    site.mount_refused(&reference, &[], &[4], &[&registry.host()]);
    let mount = site.mount(&reference, &["--creds", &format!("{USER}:{PASSWORD}")]);
    registry.revoke_tokens();
    registry.reset_counts();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(fs::read(mount.join("files/file")).unwrap() == body));
        }
    });
    assert_eq!(registry.token_requests().len(), 1, "{:?}", registry.token_requests());
    assert_eq!(registry.requests().iter().filter(|request| request.status == 403).count(), 0);
}

#[test]
fn a_signed_url_that_expires_is_asked_for_again() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    registry.set(Fault::RedirectTo307SecondHost);
    let files = [Piece::new("a", "x/a", noise(4 << 20, 4)), Piece::new("b", "x/b", noise(4 << 20, 5))];
    let mount = site.mount(&push_files(&registry, &files), &["--view", "files"]);
    for file in &files {
        let path = mount.join(&file.title);
        let read = |range: std::ops::Range<usize>| {
            let mut bytes = vec![0; range.len()];
            let file = fs::File::open(&path).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, range.start as u64).unwrap();
            bytes
        };
        assert!(read(0..100) == file.bytes[..100]);
        registry.expire_signed_urls();
        assert!(read(3 << 20..4 << 20) == file.bytes[3 << 20..]);
    }
}

#[test]
fn a_manifest_that_is_not_the_digest_asked_for_is_refused() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let reference = push_files(&registry, &[Piece::new("file", "x/y", *b"x")]);
    let asked = digest_of(b"another document");
    let manifest = crate::artifact::manifest("application/x.thing", &[Piece::new("file", "x/y", *b"x")]);
    registry.push_manifest_as("a/thing", &asked, crate::layout::MANIFEST, &manifest);
    let pinned = format!("{}@{asked}", reference.trim_end_matches(":v1"));
    site.mount_refused(&pinned, &[], &[7], &[&asked]);
    registry.set(Fault::BigManifest(5 << 20));
    site.mount_refused(&reference, &[], &[5, 6, 7], &["limit"]);
}

#[test]
fn a_mount_with_a_silent_registry_gives_up_and_leaves_nothing() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let reference = push_files(&registry, &[Piece::new("file", "x/y", *b"x")]);
    registry.set(Fault::Silent);
    site.mount_refused(&reference, &["--timeout=3"], &[5], &[&registry.host()]);
    assert!(registry.unanswered() > 0);
}
