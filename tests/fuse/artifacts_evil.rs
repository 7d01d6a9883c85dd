//! Hostile and damaged artifacts: each has a reason in the status, and no wrong name or byte is shown.
//!
//! Never satisfied by an empty directory: a test here reads the reason too.

use std::fs::{self, File};
use std::io::Read as _;

use serde_json::{Value, json};

use crate::artifact::{Blob, Bundle, OS_IMAGE, Packed, QCOW2, QCOW2_PART, Shape};
use crate::byte_text::digest_of;
use crate::encode::gzip;
use crate::layout::{INDEX, MANIFEST};
use crate::process::{Need, able, sh};
use crate::scratch::Scratch;
use crate::shapes::{qcow2, raw_disk, tar, tgz, zstd};
use crate::site::Mount;
use crate::stage::{Stage, read};

/// One file of a cloud image.
fn disk_of(title: &str, bytes: &[u8]) -> Packed {
    Shape::artifact(OS_IMAGE).layer(&Blob::new(QCOW2, bytes).titled(title)).pack()
}

fn info(mount: &Mount) -> String {
    String::from_utf8(read(mount.join("disk/info.json"))).unwrap()
}

fn warnings(mount: &Mount) -> String {
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    format!("{}{}", status["warnings"], status["errors"])
}

#[test]
fn disk_that_names_a_host_file_is_refused() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    for (name, recipe, word) in [
        ("backing", "qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw $1 1M", "/etc/passwd"),
        ("data", "qemu-img create -q -f qcow2 -o data_file=$1.data,data_file_raw=on $1 1M", "data"),
    ] {
        let file = scratch.join(format!("{name}.qcow2"));
        sh(recipe, &[&file]);
        let bytes = read(&file);
        let title = format!("{name}.qcow2");
        let Some(stage) = Stage::strict(&disk_of(&title, &bytes)) else { return };
        let mount = stage.mount(&[]);
        let refused = File::open(mount.join("disk").join(&title)).map(|_| ()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{name}");
        assert!(File::open(mount.join(format!("disk/{name}.raw"))).is_err());
        assert!(info(&mount).contains(word), "{}", info(&mount));
        assert!(read(mount.join("files").join(&title)) == bytes, "the bytes themselves are no secret");
    }
}

/// Overwrites bytes of a header.
fn patched(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn contradictory_qcow2_has_no_raw_form_or_fails_reads() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let raw = raw_disk(30);
    let good = qcow2(&scratch, &raw, "");
    let evil = [
        // 2^63 bytes and more cannot be a file.
        ("huge", patched(&good, 24, &u64::MAX.to_be_bytes()), "is more than 2^63 - 1"),
        // A table of mappings past the end of the file.
        ("outside", patched(&good, 40, &(1_u64 << 40).to_be_bytes()), "passes the end"),
        // More entries than the file has bytes.
        ("entries", patched(&good, 36, &u32::MAX.to_be_bytes()), "is more than 33554432"),
        // Clusters of 2^63 bytes.
        ("clusters", patched(&good, 20, &63_u32.to_be_bytes()), "cluster"),
        ("encrypted", patched(&good, 32, &1_u32.to_be_bytes()), "encrypt"),
    ];
    for (name, bytes, why) in evil {
        let Some(stage) = Stage::strict(&disk_of(&format!("{name}.qcow2"), &bytes)) else { return };
        let mount = stage.mount(&[]);
        let path = mount.join(format!("disk/{name}.raw"));
        // The listing may not know yet; whoever reads gets an error and never bytes that are made up.
        let got = File::open(&path).and_then(|mut file| {
            let mut bytes = vec![0; 64 << 10];
            file.read_exact(&mut bytes).map(|()| bytes)
        });
        assert!(got.is_err(), "{name}: the raw form was read");
        assert!(read(mount.join(format!("files/{name}.qcow2"))) == bytes);
        let described: Value = serde_json::from_str(&info(&mount)).unwrap();
        let inspection = &described["disks"][0]["inspection"];
        let reason = inspection["no_raw"].as_str().unwrap_or_else(|| panic!("{name}: {described:#}"));
        assert!(reason.contains(why), "{name}: {reason}");
    }
}

#[test]
fn unreadable_disk_leaves_other_disks_readable() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let good = qcow2(&Scratch::new(), &raw_disk(41), "");
    let mut broken = gzip(&good);
    broken[10] = 0xff;
    let shape = Shape::artifact("application/vnd.example.disks")
        .layer(&Blob::new("application/gzip", broken).titled("broken.qcow2.gz"))
        .layer(&Blob::new("application/octet-stream", good.as_slice()).titled("good.qcow2"));
    let Some(stage) = Stage::strict(&shape.pack()) else { return };
    let mount = stage.mount(&[]);
    let names: Vec<_> =
        fs::read_dir(mount.join("disk")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.contains(&"good.qcow2".into()) && names.contains(&"good.raw".into()), "{names:?}");
    assert!(read(mount.join("disk/good.qcow2")) == good);
    let error = fs::read(mount.join("disk/broken.qcow2")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(warnings(&mount).contains("broken"), "{}", mount.status());
}

#[test]
fn a_disk_of_a_petabyte_is_sparse_and_costs_nothing() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.join("big.qcow2");
    sh("qemu-img create -q -f qcow2 -o cluster_size=2M $1 64T", &[&file]);
    let bytes = read(&file);
    let Some(stage) = Stage::strict(&disk_of("big.qcow2", &bytes)) else { return };
    let mount = stage.mount(&[]);
    let raw = mount.join("disk/big.raw");
    assert_eq!(fs::metadata(&raw).unwrap().len(), 64 << 40);
    use std::os::unix::fs::FileExt as _;
    let mut got = vec![1; 4096];
    File::open(raw).unwrap().read_exact_at(&mut got, 63 << 40).unwrap();
    assert!(got.iter().all(|byte| *byte == 0));
}

#[test]
fn titles_that_would_leave_the_directory_or_collide_are_named_otherwise_and_reported() {
    let kind = "application/x.thing";
    let titles = ["../x", "/abs", "a/../../b", "same", "same", "dir", "dir/below", "nul\0byte", "a//b"];
    let layers: Vec<Blob> = titles
        .iter()
        .enumerate()
        .map(|(number, title)| Blob::new(kind, format!("content {number}")).titled(title))
        .collect();
    let packed = Shape::artifact("application/x.things").layers(&layers).pack();
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        let short = |number: usize| format!("{number:02}-{}", layers[number].short());
        let names = [
            short(0),
            "abs".to_owned(),
            short(2),
            "same".to_owned(),
            "same~04".to_owned(),
            "dir".to_owned(),
            short(6),
            short(7),
            "a/b".to_owned(),
        ];
        let mut golden = crate::golden::Golden::of(&packed);
        for (number, name) in names.iter().enumerate() {
            golden = golden.file(&format!("files/{name}"), &layers[number].bytes);
        }
        golden.check(mount.dir());
        let report = warnings(&mount);
        for word in ["../x", "/abs", "same~04", "dir/below"] {
            assert!(report.contains(word), "{word:?} is not in {report}");
        }
    }
}

#[test]
fn a_tar_that_would_write_through_a_link_stays_inside_the_tree() {
    let evil = tar(&[
        ("link@", b"/etc"),
        ("link/passwd", b"evil"),
        ("up@", b"../../../../../.."),
        ("up/etc/shadow", b"evil"),
        ("ok", b"fine"),
    ]);
    let layer = Blob::new("application/vnd.cncf.flux.content.v1.tar+gzip", gzip(&evil));
    let packed = Shape::of("application/vnd.cncf.flux.config.v1+json", b"{}".as_slice()).layer(&layer).pack();
    let before = (fs::read("/etc/passwd").unwrap(), fs::metadata("/etc/passwd").unwrap().modified().unwrap());
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&[]);
    assert_eq!(read(mount.join("merged/ok")), b"fine");
    // Whichever of link and directory the tree has, the link is data and the file is nowhere outside.
    assert!(
        before
            == (fs::read("/etc/passwd").unwrap(), fs::metadata("/etc/passwd").unwrap().modified().unwrap())
    );
    for name in ["link", "up"] {
        let path = mount.join("merged").join(name);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        assert!(kind.is_symlink() || kind.is_dir(), "{name}");
    }
    if mount.join("merged/link").is_dir() && !mount.join("merged/link").is_symlink() {
        assert_eq!(read(mount.join("merged/link/passwd")), b"evil");
    }
}

#[test]
fn a_directory_of_oras_whose_links_leave_it_is_links_and_no_more() {
    let entries = tar(&[("d/", b""), ("d/out@", b"../../../../etc"), ("d/ok", b"fine")]);
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&entries))
        .titled("d")
        .note("io.deis.oras.content.digest", &digest_of(&entries))
        .note("io.deis.oras.content.unpack", "true");
    let Some(stage) = Stage::strict(&Shape::artifact("application/x.dir").layer(&layer).pack()) else {
        return;
    };
    let mount = stage.mount(&[]);
    assert_eq!(read(mount.join("files/d/ok")), b"fine");
    let link = mount.join("files/d/out");
    if let Ok(stat) = fs::symlink_metadata(&link) {
        assert!(stat.file_type().is_symlink());
        assert_eq!(fs::read_link(link).unwrap().to_str(), Some("../../../../etc"));
    }
}

/// Zeros that compress a thousand times: 1 GiB in one stored MiB.
fn bombs() -> [(&'static str, &'static str, Vec<u8>); 2] {
    let run = vec![0_u8; 1 << 20];
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut zst = zstd::Encoder::new(Vec::new(), 1).expect("level 1 exists");
    for _ in 0..256 {
        use std::io::Write as _;
        gz.write_all(&run).expect("memory takes everything");
        zst.write_all(&run).expect("memory takes everything");
    }
    [
        ("bomb.img.gz", "application/x.disk+gzip", gz.finish().expect("memory takes everything")),
        ("bomb.img.zst", "application/x.disk+zstd", zst.finish().expect("memory takes everything")),
    ]
}

#[test]
fn decompression_bomb_uses_little_cache_and_reads_right() {
    for (title, kind, stored) in bombs() {
        let layer = Blob::new(kind, stored).titled(title);
        let Some(stage) = Stage::strict(&Shape::artifact("application/x.disk").layer(&layer).pack()) else {
            return;
        };
        let mount = stage.mount(&[]);
        let disk = mount.join("disk").join(title.rsplit_once('.').unwrap().0);
        // Refused with a reason, or decoded: zeros are holes and take no room in the cache.
        match File::open(&disk) {
            Ok(mut file) => {
                let mut head = vec![1; 64 << 10];
                match file.read_exact(&mut head) {
                    Ok(()) => assert!(head.iter().all(|byte| *byte == 0)),
                    Err(_) => assert!(warnings(&mount).contains("bomb"), "{}", warnings(&mount)),
                }
            }
            Err(_) => {
                let report = format!("{}{}", info(&mount), warnings(&mount));
                assert!(report.contains("bomb"), "{report}");
            }
        }
        let used = sh("du -sk $1 | cut -f1", &[&stage.site.cache()]).text();
        assert!(used.trim().parse::<u64>().unwrap() < 64 << 10, "{title}: the cache has {used} KiB");
    }
}

#[test]
fn a_label_that_lies_is_overruled_by_the_bytes() {
    let raw = raw_disk(31);
    // Compressed by zstd, called gzip in both places; a whole disk called a compressed one.
    let wrong = Blob::new("application/x.disk+gzip", zstd(&raw)).titled("a.img.gz");
    let plain = Blob::new("application/x.disk+gzip", raw.clone()).titled("b.img.gz");
    let page = Blob::new("application/x.disk+gzip", b"<!doctype html><title>Sign in</title>".as_slice())
        .titled("c.qcow2");
    let packed = Shape::artifact("application/x.disks").layers([&wrong, &plain, &page]).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount_for(&[], &[]);
    assert!(read(mount.join("disk/a.img")) == raw);
    assert!(read(mount.join("disk/b.img")) == raw);
    for (title, blob) in [("a.img.gz", &wrong), ("b.img.gz", &plain), ("c.qcow2", &page)] {
        assert!(read(mount.join("files").join(title)) == blob.bytes, "{title}");
    }
    assert!(!mount.join("disk/c.raw").exists());
    let report = format!("{}{}", info(&mount), warnings(&mount)).to_lowercase();
    assert!(report.contains("html") || report.contains("web page"), "{report}");
}

#[test]
fn mislabelled_disk_content_is_named() {
    let kinds: [(&str, &[u8], &[&str]); 5] = [
        ("html", b"<html><body>404</body></html>", &["html"]),
        ("zip", b"PK\x03\x04rest of a zip", &["zip"]),
        ("7z", b"7z\xbc\xaf\x27\x1crest", &["7z", "7-zip"]),
        ("short", b"QF", &["bytes", "short", "small"]),
        ("xml", b"<?xml version=\"1.0\"?><Error/>", &["xml", "html", "markup"]),
    ];
    for (name, bytes, words) in kinds {
        let title = format!("{name}.qcow2");
        let Some(stage) = Stage::strict(&disk_of(&title, bytes)) else { return };
        let mount = stage.mount(&[]);
        assert!(read(mount.join("files").join(&title)) == bytes);
        let report = format!("{}{}", info(&mount), warnings(&mount)).to_lowercase();
        assert!(words.iter().any(|word| report.replace(&title, "").contains(word)), "{name}: {report}");
        assert!(!mount.join(format!("disk/{name}.raw")).exists());
    }
}

#[test]
fn parts_that_are_missing_or_of_two_disks_make_no_wrong_disk() {
    let part = |title: &str, bytes: &[u8]| Blob::new(QCOW2_PART, bytes).titled(title);
    let gap = Shape::artifact(OS_IMAGE)
        .layers([&part("a.qcow2.00.qcow2.part", b"one"), &part("a.qcow2.02.qcow2.part", b"three")])
        .pack();
    let Some(stage) = Stage::strict(&gap) else { return };
    let mount = stage.mount(&[]);
    assert!(!mount.join("disk/a.qcow2").exists());
    assert!(info(&mount).contains("a.qcow2"), "{}", info(&mount));
    assert_eq!(read(mount.join("files/a.qcow2.02.qcow2.part")), b"three");
    // Numbers that are not padded mean another order than their bytes: nobody guesses.
    let titles: Vec<String> = (1..=10).map(|number| format!("b.qcow2.part{number}")).collect();
    let parts: Vec<Blob> = titles.iter().map(|title| part(title, title.as_bytes())).collect();
    let unpadded = Shape::artifact(OS_IMAGE).layers(&parts).pack();
    stage.push("unpadded", &unpadded);
    let reference = stage.reference(":unpadded");
    let mount = stage.site.mount_at("unpadded", &reference, &[]);
    assert!(!mount.join("disk/b.qcow2").exists());
    assert!(info(&mount).contains("b.qcow2"), "{}", info(&mount));
    let natural = stage.site.mount_at("natural", &reference, &["--part-order", "natural"]);
    assert_eq!(read(natural.join("files/b.qcow2.part10")), b"b.qcow2.part10");
    let size: usize = titles.iter().map(String::len).sum();
    assert_eq!(fs::metadata(natural.join("disk/b.qcow2")).unwrap().len(), size as u64);
    // No disk layer at all.
    let none = Shape::artifact(OS_IMAGE)
        .layer(&Blob::new("text/plain", b"x".as_slice()).titled("SHA256SUMS"))
        .pack();
    stage.push("none", &none);
    let mount = stage.site.mount_at("none", &stage.reference(":none"), &[]);
    assert_eq!(read(mount.join("files/SHA256SUMS")), b"x");
    assert!(info(&mount).contains("disk"), "{}", info(&mount));
}

#[test]
fn chunk_that_contradicts_the_manifest_is_an_error_without_bytes() {
    let raw = raw_disk(32);
    let stub =
        br#"{"architecture":"arm64","os":"darwin","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let chunk = |size: usize, content: &[u8]| {
        Blob::new("application/vnd.cirruslabs.tart.disk.v2", crate::shapes_lz4::apple(&raw))
            .note("org.cirruslabs.tart.uncompressed-size", &size.to_string())
            .note("org.cirruslabs.tart.uncompressed-content-digest", &digest_of(content))
    };
    for layer in [chunk(raw.len(), b"other bytes"), chunk(raw.len() - 1, &raw), chunk(raw.len() + 1, &raw)] {
        let packed = Shape::of(crate::layout::CONFIG, stub.as_slice()).layer(&layer).pack();
        let Some(stage) = Stage::strict(&packed) else { return };
        let mount = stage.mount(&[]);
        assert!(fs::read(mount.join("disk/disk.raw")).is_err());
        assert!(!mount.join("merged").exists());
        assert!(warnings(&mount).len() > 4, "{}", warnings(&mount));
    }
}

#[test]
fn a_blob_that_is_longer_or_shorter_than_its_descriptor_is_never_served() {
    let bytes = b"exactly these bytes";
    for size in [bytes.len() - 1, bytes.len() + 1] {
        let layer = Blob::new("application/x.thing", bytes.as_slice()).titled("thing").field("size", size);
        let Some(stage) = Stage::strict(&Shape::artifact("application/x.things").layer(&layer).pack()) else {
            return;
        };
        let mount = stage.mount(&[]);
        assert!(fs::read(mount.join("files/thing")).is_err(), "{size}");
        assert!(warnings(&mount).len() > 4, "{}", warnings(&mount));
    }
}

#[test]
fn documents_that_are_too_large_or_no_documents_are_refused() {
    let (packed, _) = crate::artifacts::small_image("linux", "amd64", "x");
    let Some(stage) = Stage::strict(&packed) else { return };
    let push = |tag: &str, kind: &str, bytes: &[u8]| {
        stage.fault().push_manifest("golden/thing", tag, kind, bytes);
    };
    let mut large = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []});
    large["annotations"] = json!({"x": "y".repeat(11 << 20)});
    push("large", MANIFEST, large.to_string().as_bytes());
    let reference = stage.reference(":large");
    stage.site.mount_refused(&reference, &[], &[5, 6], &["limit"]);
    stage.site.ocifs(&["inspect", &reference]).refused(&[5, 6], &["limit"]);
    let deep = "[".repeat(1 << 20);
    for (tag, text) in
        [("broken", r#"{"schemaVersion":2,"layers":["#), ("html", "<html></html>"), ("deep", &deep)]
    {
        push(tag, MANIFEST, text.as_bytes());
        let (reference, digest) = (stage.reference(&format!(":{tag}")), digest_of(text.as_bytes()));
        // What is no document at all has no digest worth naming.
        let subject = if tag == "broken" { &digest } else { tag };
        stage.site.mount_refused(&reference, &[], &[5, 6], &[subject]);
        stage.site.ocifs(&["inspect", &reference]).refused(&[5, 6], &[subject]);
    }
    // An index whose entry is not what it claims to be.
    let lie = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": digest_of(b"nobody"), "size": 6,
         "platform": {"os": "linux", "architecture": "amd64"}}]});
    push("hollow", INDEX, lie.to_string().as_bytes());
    let reference = stage.reference(":hollow");
    stage.site.mount_refused(
        &reference,
        &["--platform", "linux/amd64"],
        &[3, 5, 6],
        &[&digest_of(b"nobody")[..19]],
    );
}

#[test]
fn one_bad_platform_does_not_hide_the_others() {
    let (good, golden) = crate::artifacts::small_image("linux", "amd64", "good");
    let broken = tgz("application/vnd.oci.image.layer.v1.tar+gzip", &[("a", b"a")]);
    let packed = Bundle::default()
        .entry(&good, json!({"platform": {"os": "linux", "architecture": "amd64"}}))
        .raw_entry(json!({"mediaType": MANIFEST, "digest": broken.digest(), "size": 99,
            "platform": {"os": "linux", "architecture": "arm64"}}))
        .pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&["--platform", "all"]);
    golden.check(&mount.join("platforms/linux-amd64"));
    let other = mount.join("platforms/linux-arm64");
    assert!(fs::read(other.join("manifest.json")).is_err());
    let report = format!("{}{}", warnings(&mount), mount.status());
    assert!(report.contains(&broken.digest()[..19]), "{report}");
}
