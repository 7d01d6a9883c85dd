//! Verification before delivery, poisoned content, and the command that compares everything.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ocifs::oci::Digest;
use serde_json::Value;

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::cost::{push_files, push_image};
use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::foreign_image::{Index, content, listing};
use crate::layout::{CONFIG, Layer, Layout, MANIFEST};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true};
use crate::real_registry::{RealRegistry, flip_a_byte};
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const MIB: usize = 1 << 20;
/// Up to here a blob is compared as a whole in every mode.
const SMALL: usize = 8 * MIB;

fn verified(path: &Path) -> String {
    String::from_utf8(xattr::get(path, "user.ocifs.verified").unwrap().unwrap()).unwrap()
}

/// The first bytes of a file, or the errno.
fn first(path: &Path) -> Result<Vec<u8>, i32> {
    let mut bytes = vec![0; 4096];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0));
    read.map(|()| bytes).map_err(|error| error.raw_os_error().unwrap())
}

fn blob(mount: &Mount, bytes: &[u8]) -> std::path::PathBuf {
    mount.join("blobs").join(digest_of(bytes).replace(':', "/"))
}

/// The registry sends other bytes for `bytes` from now on: the last one is wrong.
fn spoil(registry: &FaultRegistry, bytes: &[u8]) {
    let mut wrong = bytes.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    registry.push_blob_as(&Digest::sha256(bytes), wrong);
}

#[test]
fn a_small_blob_is_fetched_and_compared_as_a_whole_before_its_first_byte() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let [good, bad] = [1, 2].map(|seed| noise(300 << 10, seed));
    let pieces = [
        Piece::new("good", "application/x.a", good.clone()),
        Piece::new("bad", "application/x.a", bad.clone()),
    ];
    let reference = push_files(&registry, &pieces);
    spoil(&registry, &bad);
    for mode in ["lazy", "strict", "toc"] {
        let cache = site.scratch().join(format!("cache-{mode}"));
        let options = [&format!("--verify={mode}")[..], "--cache-dir", cache.to_str().unwrap()];
        let mount = site.mount_at(mode, &reference, &options);
        registry.reset_counts();
        assert!(first(&mount.join("files/good")).unwrap() == good[..4096]);
        assert_eq!(registry.blob_requests().len(), 1, "{mode}: {:?}", registry.blob_requests());
        assert_eq!(registry.blob_bytes(), good.len() as u64);
        assert_eq!(verified(&mount.join("files/good")), "full", "{mode}");
        assert_eq!(
            first(&mount.join("files/bad")),
            Err(libc::EIO),
            "{mode}: not even the bytes that are right"
        );
        assert_eq!(verified(&mount.join("files/bad")), "poisoned", "{mode}");
        assert!(mount.status().contains("\"poisoned\""), "{}", mount.status());
    }
}

#[test]
fn eight_mebibytes_are_small_and_one_byte_more_is_not() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let [small, large] = [(SMALL, 3), (SMALL + 1, 4)].map(|(size, seed)| noise(size, seed));
    let pieces = [
        Piece::new("small", "application/x.a", small.clone()),
        Piece::new("large", "application/x.a", large),
    ];
    let reference = push_files(&registry, &pieces);
    let mount = site.mount(&reference, &[]);
    registry.reset_counts();
    assert!(first(&mount.join("files/small")).unwrap() == small[..4096]);
    assert_eq!(registry.blob_bytes(), SMALL as u64);
    assert!(registry.blob_requests().len() <= 2, "{:?}", registry.blob_requests());
    registry.reset_counts();
    first(&mount.join("files/large")).unwrap();
    assert!(registry.blob_bytes() < MIB as u64, "{:?}", registry.blob_requests());
}

#[test]
fn strict_serves_nothing_of_a_wrong_blob_and_lazy_earlier_ranges() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let file = noise(SMALL + MIB, 5);
    let reference = push_files(&registry, &[Piece::new("large", "application/x.a", file.clone())]);
    // The archive ends before the wrong byte: its names and files could be shown.
    let mut tar = Tarball::new().file("f", &noise(SMALL + MIB, 6)).bytes();
    tar.resize(tar.len() + MIB, 0);
    let layer = Layer::of(&tar, Encoding::Plain);
    let image = push_image(&registry, std::slice::from_ref(&layer));
    spoil(&registry, &file);
    spoil(&registry, &layer.stored);

    let lazy = site.mount_at("lazy", &reference, &[]);
    assert!(first(&lazy.join("files/large")).unwrap() == file[..4096]);
    let lazy = site.mount_at("lazy-image", &image, &[]);
    assert!(first(&lazy.join("merged/f")).is_ok());

    let cache = site.scratch().join("strict-cache");
    let options = ["--verify=strict", "--cache-dir", cache.to_str().unwrap()];
    let strict = site.mount_at("strict", &reference, &options);
    assert_eq!(first(&strict.join("files/large")), Err(libc::EIO));
    assert_eq!(first(&blob(&strict, &file)), Err(libc::EIO));
    let strict = site.mount_at("strict-image", &image, &options);
    assert_eq!(first(&strict.join("merged/f")), Err(libc::EIO), "names of an unproven layer are not shown");
    assert_eq!(first(&blob(&strict, &layer.stored)), Err(libc::EIO));
    let cat = site.ocifs(&["cat", &reference, "files/large", "--verify=strict", "--cache-dir", options[2]]);
    cat.refused(&[7], &["poisoned"]);
    assert!(cat.stdout.is_empty(), "{} bytes were given out", cat.stdout.len());
}

#[test]
fn strict_fetches_all_of_a_blob_once_and_nothing_of_one_that_was_compared() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let file = noise(SMALL + 3 * MIB, 7);
    let reference = push_files(&registry, &[Piece::new("large", "application/x.a", file.clone())]);
    let mount = site.mount(&reference, &["--verify=strict"]);
    registry.reset_counts();
    std::thread::scope(|scope| {
        for at in 0..4_usize {
            let (path, file) = (mount.join("files/large"), &file);
            scope.spawn(move || {
                let mut bytes = vec![0; 1000];
                File::open(path).unwrap().read_exact_at(&mut bytes, (at * 3 * MIB) as u64).unwrap();
                assert!(bytes == file[at * 3 * MIB..][..1000]);
            });
        }
    });
    assert_eq!(registry.blob_bytes(), file.len() as u64, "{:?}", registry.blob_requests());
    assert_eq!(verified(&mount.join("files/large")), "full");
    mount.unmount();
    registry.reset_counts();
    let again = site.mount_at("again", &reference, &["--verify=strict"]);
    assert!(fs::read(again.join("files/large")).unwrap() == file);
    assert_eq!(registry.blob_requests().len(), 0);
}

#[test]
fn strict_reads_a_layer_by_its_own_bytes_whatever_index_it_carries() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = Index::Estargz.push(&registry);
    let mount = site.mount(&image.reference, &["--verify=strict"]);
    assert!(fs::read(mount.join("merged/d/025")).unwrap() == content(25));
    assert_eq!(crate::foreign_image::index_of(&mount), "local", "{}", mount.status());
    assert_eq!(verified(&mount.join("merged/d/025")), "full");
}

#[test]
fn toc_reads_parts_that_the_manifest_vouches_for_and_nothing_else() {
    if !able(&NEEDS) {
        return;
    }
    for index in [Index::Estargz, Index::ChunkedStorage] {
        let (site, registry) = (Site::new(), FaultRegistry::start());
        let image = index.push(&registry);
        assert!(image.size > SMALL as u64, "{}", image.size);
        let mount = site.mount(&image.reference, &["--verify=toc", "--prefetch=none"]);
        assert!(listing(&mount).contains("d/039 "));
        assert!(fs::read(mount.join("merged/d/025")).unwrap() == content(25));
        assert_eq!(verified(&mount.join("merged/d/025")), "partial", "{index:?}");
        assert!(registry.blob_bytes() < image.size / 2, "{index:?}: {}", registry.blob_bytes());
        let whole = mount.join("blobs").join(image.layer.replace(':', "/"));
        assert!(first(&whole).is_err(), "{index:?}: the layer as stored has no parts");
        mount.unmount();
    }
}

#[test]
fn toc_is_refused_where_the_manifest_names_no_digests_of_parts() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let tar = Tarball::new().file("f", &noise(SMALL + MIB, 8)).bytes();
    let image = push_image(&registry, &[Layer::of(&tar, Encoding::Gzip)]);
    site.mount_refused(&image, &["--verify=toc"], &[6], &["--verify=toc is impossible", "layer 0", "strict"]);
    site.ocifs(&["ls", &image, "merged", "--verify=toc"]).refused(&[6], &["--verify=toc is impossible"]);
    let file = push_files(&registry, &[Piece::new("large", "application/x.a", noise(SMALL + 1, 9))]);
    site.mount_refused(&file, &["--verify=toc"], &[6], &["--verify=toc is impossible"]);
    // Indexes that others made and the manifest does not name are no such chain.
    let soci = Index::SociV2.push(&registry);
    site.mount_refused(&soci.reference, &["--verify=toc"], &[6], &["--verify=toc is impossible"]);
}

#[test]
fn cached_pages_of_poisoned_content_are_invalidated() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let file = noise(SMALL + 4 * MIB, 10);
    let reference = push_files(&registry, &[Piece::new("large", "application/x.a", file.clone())]);
    spoil(&registry, &file);
    let log = site.scratch().join("log");
    let mount = site.mount(&reference, &["--log-file", log.to_str().unwrap()]);
    let path = mount.join("files/large");
    let open = File::open(&path).unwrap();
    let page = || {
        let mut page = vec![0; 4096];
        open.read_exact_at(&mut page, 0).map(|()| page)
    };
    assert!(page().unwrap() == file[..4096]);
    registry.reset_counts();
    assert!(page().unwrap() == file[..4096]);
    assert_eq!(registry.requests().len(), 0, "the kernel has the page");
    assert!(fs::read(&path).is_err(), "the last byte is wrong");
    assert!(
        becomes_true(CONDITION_TIMEOUT, || page().is_err()),
        "the kernel keeps a page of a blob that is wrong"
    );
    assert_eq!(page().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(verified(&path), "poisoned");
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    assert!(status["warnings"].to_string().contains(&digest_of(&file)), "{status}");
    let logged = || fs::read_to_string(&log).unwrap();
    let is_logged = || logged().contains("ERROR") && logged().contains(&digest_of(&file));
    assert!(becomes_true(CONDITION_TIMEOUT, is_logged), "{}", logged());
}

/// The checks that `ocifs verify` reports, with its exit code.
fn checks(site: &Site, what: &str, code: i32) -> Vec<(String, String, String)> {
    let done = site.ocifs(&["verify", what, "--format", "json"]);
    assert_eq!(done.code, Some(code), "{}{}", done.text(), done.stderr);
    let report: Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!(report["schemaVersion"], 1);
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let list = report["checks"].as_array().unwrap();
    list.iter().map(|it| (text(it, "kind"), text(it, "subject"), text(it, "result"))).collect()
}

fn of_kind<'a>(checks: &'a [(String, String, String)], kind: &str) -> Vec<&'a str> {
    checks.iter().filter(|check| check.0 == kind).map(|check| check.2.as_str()).collect()
}

#[test]
fn verify_compares_documents_blobs_and_contents_of_a_reference_and_of_a_mount() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry")]) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let (good, bad) = (noise(900_000, 11), noise(900_000, 12));
    let pieces =
        [Piece::new("good", "text/plain", good.clone()), Piece::new("bad", "text/plain", bad.clone())];
    artifact::push(&registry, "a/thing", "v1", "application/x.thing", &pieces);
    let reference = registry.reference("a/thing:v1");
    let whole = checks(&site, &reference, 0);
    assert!(whole.iter().all(|check| check.2 == "ok"), "{whole:?}");
    assert_eq!((of_kind(&whole, "document").len(), of_kind(&whole, "blob").len()), (1, 3), "{whole:?}");

    flip_a_byte(&registry.stored_blob(&digest_of(&bad)));
    let other = Site::new();
    let found = checks(&other, &reference, 7);
    let wrong: Vec<_> = found.iter().filter(|check| check.2 != "ok").collect();
    assert_eq!(wrong.len(), 1, "{found:?}");
    assert_eq!((wrong[0].1.as_str(), wrong[0].2.as_str()), (digest_of(&bad).as_str(), "mismatch"));

    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar = Tarball::new().file("f", &noise(200_000, 13)).bytes();
    layout.image("good", &[Layer::of(&tar, Encoding::Gzip), Layer::of(&tar, Encoding::Zstd)]);
    let mount = site.mount(&layout.reference("good"), &[]);
    let found = checks(&site, mount.dir().to_str().unwrap(), 0);
    assert_eq!(of_kind(&found, "content"), ["ok", "ok"], "{found:?}");
    let mut lying = Layer::of(&tar, Encoding::Gzip);
    lying.diff_id = digest_of(b"something else");
    layout.image("lying", &[lying]);
    let found = checks(&site, &layout.reference("lying"), 7);
    assert_eq!(of_kind(&found, "content"), ["mismatch"], "{found:?}");
    let text = site.ocifs(&["verify", &layout.reference("lying")]);
    text.refused(&[7], &["1 of", "comparisons failed"]);
    assert!(text.text().contains("MISMATCH   content"), "{}", text.text());
}

#[test]
fn verify_compares_the_checksums_that_an_artifact_brings() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let file = noise(100_000, 14);
    let hex = |bytes: &[u8]| digest_of(bytes)["sha256:".len()..].to_owned();
    let list = format!("{}  a.bin\n{} *b.bin\n{}  not-here.bin\n", hex(&file), hex(b"other"), hex(b"x"));
    let pieces = [
        Piece::new("a.bin", "application/x.a", file.clone()),
        Piece::new("b.bin", "application/x.a", *b"not what the list says"),
        Piece::new("a.bin.sha256", "text/plain", format!("{}\n", hex(&file))),
        Piece::new("SHA256SUMS", "text/plain", list),
    ];
    let reference = push_files(&registry, &pieces);
    let found = checks(&site, &reference, 7);
    let sums: Vec<_> = found.iter().filter(|check| check.0 == "checksum").collect();
    let result = |subject: &str| sums.iter().find(|check| check.1 == subject).map(|check| check.2.as_str());
    assert_eq!(result("files/a.bin (by SHA256SUMS)"), Some("ok"), "{sums:?}");
    assert_eq!(result("files/a.bin (by a.bin.sha256)"), Some("ok"), "{sums:?}");
    assert_eq!(result("files/b.bin (by SHA256SUMS)"), Some("mismatch"), "{sums:?}");
    assert_eq!(result("not-here.bin"), Some("skipped"), "{sums:?}");
    assert_eq!(sums.len(), 4, "{sums:?}");
}

#[test]
fn verify_compares_the_index_that_a_layer_carries_with_the_layer() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = Index::Estargz.push(&registry);
    let found = checks(&site, &image.reference, 0);
    assert_eq!(of_kind(&found, "parts"), ["ok"], "{found:?}");
    // A footer that points nowhere: the layer is what its digest says, and its index is not.
    let mut layer = Layer::of(&Tarball::new().file("f", &noise(100_000, 15)).bytes(), Encoding::Gzip);
    layer.stored.extend(crate::chunked::estargz_footer(1, crate::chunked::Footer::Current));
    let diff = serde_json::json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}})
    .to_string();
    registry.push_blob(diff.as_bytes());
    registry.push_blob(layer.stored.clone());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of(diff.as_bytes()), "size": diff.len()},
        "layers": [{"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.stored.len()}]});
    registry.push_manifest("an/image", "lying", MANIFEST, manifest.to_string().as_bytes());
    let found = checks(&site, &format!("{}/an/image:lying", registry.host()), 7);
    assert_eq!(of_kind(&found, "parts"), ["mismatch"], "{found:?}");
}
