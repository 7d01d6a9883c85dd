//! Images with one odd thing in them: it costs that thing, or an error that names it.

use std::fs;

use serde_json::{Value, json};

use crate::encode::Encoding;
use crate::layout::{CONFIG, Layer, Layout, MANIFEST};
use crate::process::{Need, able};
use crate::site::Site;
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

#[test]
fn an_empty_platform_in_an_index_is_none() {
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layer = Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Gzip);
    let mut entry = layout.image_for(&[layer], json!({"architecture": "amd64", "os": "linux"}));
    entry["platform"] = json!({"os": "", "architecture": ""});
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]});
    layout.document("v1", kind, index.to_string().as_bytes());
    assert_eq!(site.ocifs(&["ls", &layout.reference("v1"), "merged"]).ok().text(), "f\n");
}

#[test]
fn attributes_without_a_namespace_are_counted_and_not_shown() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar = Tarball::new()
        .pax([("SCHILY.xattr.dir", &b"v"[..]), ("SCHILY.xattr.user.kept", &b"v"[..])])
        .file("f", b"x")
        .bytes();
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let file = mount.join("merged/f");
    let shown: Vec<_> = xattr::list(&file).unwrap().collect();
    assert!(
        shown.iter().any(|name| name == "user.kept") && !shown.iter().any(|name| name == "dir"),
        "{shown:?}"
    );
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    assert_eq!(status["layers"][0]["unshownXattrs"], 1, "{status:#}");
    mount.unmount();
}

#[test]
fn a_layer_whose_digest_cannot_be_compared_is_named_and_the_rest_is_there() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layer = Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Gzip);
    let good = layout.blob(&layer.media_type, &layer.stored);
    let odd =
        json!({"mediaType": layer.media_type, "digest": format!("blake3:{}", "a".repeat(64)), "size": 5});
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id, layer.diff_id]},
    });
    let config = layout.blob(CONFIG, config.to_string().as_bytes());
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [good, odd]});
    layout.document("v1", MANIFEST, manifest.to_string().as_bytes());
    let reference = layout.reference("v1");
    site.ocifs(&["ls", &reference, "merged"]).refused(&[6], &["layer 1", "blake3"]);
    assert!(site.ocifs(&["inspect", &reference]).ok().text().contains("digest algorithm blake3 is unknown"));
    let mount = site.mount(&reference, &[]);
    let named = fs::read_dir(mount.join("layers")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    assert_eq!(fs::read(named.join("f")).unwrap(), b"x");
    mount.unmount();
}
