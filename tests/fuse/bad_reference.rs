//! References that cannot be mounted: each is refused with the right exit code and a message that names the subject.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use serde_json::json;

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::fault_registry::ReservedPort;
use crate::layout::{CONFIG, INDEX, Layout, MANIFEST};
use crate::process::{Need, able};
use crate::real_registry::{PASSWORD, RealRegistry, USER, flip_a_byte};
use crate::site::Site;

const NEEDS: [Need<'_>; 3] = [Need::Root, Need::Fuse, Need::Tool("docker-registry")];
const NOT_FOUND: &[i32] = &[3];
const DENIED: &[i32] = &[4];
const NETWORK: &[i32] = &[5];
const UNSUPPORTED: &[i32] = &[6];
const MISMATCH: &[i32] = &[7];
/// The registry or the author broke the rules: which side of the border that is depends on where it is noticed.
const BROKEN: &[i32] = &[5, 6, 7];

fn pushed(registry: &RealRegistry) {
    artifact::push(registry, "a/thing", "v1", "application/x.thing", &[Piece::new("f", "text/plain", *b"x")]);
}

#[test]
fn reference_absent_from_the_registry_is_not_found() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = RealRegistry::start();
    pushed(&registry);
    let refused = |name: &str, word: &str| {
        site.mount_refused(&registry.reference(name), &[], NOT_FOUND, &[word, &registry.host()]);
    };
    refused("no/such:v1", "no/such");
    refused("a/thing:v2", "v2");
    let absent = digest_of(b"nobody has this");
    refused(&format!("a/thing@{absent}"), &absent);
    refused(&format!("a/thing:v1@{absent}"), &absent);
    site.ocifs(&["inspect", &registry.reference("a/thing:v2")]).refused(NOT_FOUND, &["v2"]);
    site.ocifs(&["ls", &registry.reference("a/thing:v2")]).refused(NOT_FOUND, &["v2"]);
    site.ocifs(&["cat", &registry.reference("a/thing:v2"), "manifest.json"]).refused(NOT_FOUND, &["v2"]);
}

#[test]
fn reference_absent_from_a_layout_is_not_found() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let layout = Layout::create(site.scratch().join("layout"));
    site.mount_refused(&layout.reference("nope"), &[], NOT_FOUND, &["nope"]);
    site.mount_refused("oci:/no/such/layout:v1", &[], NOT_FOUND, &["/no/such/layout"]);
    let absent = digest_of(b"nobody has this");
    let reference = format!("oci:{}@{absent}", site.scratch().join("layout").display());
    site.mount_refused(&reference, &[], NOT_FOUND, &[&absent]);
    let empty = site.scratch().subdir("empty");
    site.mount_refused(&format!("oci:{}:v1", empty.display()), &[], &[3, 6], &["oci-layout"]);
}

#[test]
fn denied_user_gets_an_access_error_and_an_allowed_one_mounts() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let site = Site::new();
    let registry = RealRegistry::with_password();
    let mut layout = Layout::create(site.scratch().join("layout"));
    artifact::write(&mut layout, "v1", "application/x.thing", &[Piece::new("f", "text/plain", *b"secret")]);
    let reference = registry.reference("a/secret:v1");
    let credentials = format!("{USER}:{PASSWORD}");
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", &credentials]);
    crate::process::run(skopeo.arg(layout.reference("v1")).arg(format!("docker://{reference}"))).ok();

    site.mount_refused(&reference, &[], DENIED, &[&registry.host()]);
    let wrong = format!("{USER}:not-it");
    site.mount_refused(&reference, &["--creds", &wrong], DENIED, &[&registry.host()]);
    let finished = site.ocifs(&["inspect", "--creds", &wrong, &reference]);
    assert!(!finished.stderr.contains("not-it"), "a password is in {}", finished.stderr);
    let mount = site.mount(&reference, &["--creds", &credentials]);
    assert_eq!(std::fs::read(mount.join("files/f")).unwrap(), b"secret");
    mount.unmount();

    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(&credentials);
    let mut entry = serde_json::Map::new();
    entry.insert(registry.host(), json!({"auth": auth}));
    let text = json!({"auths": entry}).to_string();
    let file = site.scratch().file("auth.json", &text);
    let mount = site.mount(&reference, &["--authfile", file.to_str().unwrap()]);
    assert_eq!(std::fs::read(mount.join("files/f")).unwrap(), b"secret");
    mount.unmount();
    site.scratch().subdir("home/.docker");
    site.scratch().file("home/.docker/config.json", &text);
    let mount = site.mount(&reference, &[]);
    assert_eq!(std::fs::read(mount.join("files/f")).unwrap(), b"secret");
    mount.unmount();
    site.mount_refused(&reference, &["--anonymous"], DENIED, &[&registry.host()]);
    site.mount_refused(&reference, &["--authfile", "/no/such/file"], &[1, 2, 4], &["/no/such/file"]);
}

/// Answers every connection with the same bytes, for as long as the test lives.
fn serve(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok() && stream.write_all(answer).is_err() {
                return;
            }
        }
    });
    host
}

#[test]
fn a_host_that_is_no_registry_is_named() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 26\r\nConnection: close\r\n\r\n<html>welcome here!</html>";
    let host = serve(page);
    site.mount_refused(&format!("{host}/a/b:v1"), &[], BROKEN, &[&host]);
    let host = serve(b"220 smtp.example ESMTP ready\r\n");
    site.mount_refused(&format!("{host}/a/b:v1"), &[], BROKEN, &[&host]);
}

#[test]
fn an_unreachable_host_is_a_network_failure_in_bounded_time() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let closed = ReservedPort::new();
    let host = closed.address().to_string();
    site.mount_refused(&format!("{host}/a/b:v1"), &[], NETWORK, &[&host]);
    site.mount_refused("no-such-host.invalid/a/b:v1", &[], NETWORK, &["no-such-host.invalid"]);
}

#[test]
fn nothing_is_asked_of_the_network_offline() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    pushed(&registry);
    registry.reset_counts();
    site.mount_refused(&registry.reference("a/thing:v1"), &["--offline"], &[3, 5], &["offline"]);
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn documents_that_break_the_rules_are_refused() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let config = layout.blob(CONFIG, b"{}");
    let both = json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []}).to_string();
    let negative = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config,
        "layers": [{"mediaType": "x/y", "digest": digest_of(b"1"), "size": -1}]})
    .to_string();
    let contradicts =
        json!({"schemaVersion": 2, "mediaType": INDEX, "config": config, "layers": []}).to_string();
    let climbs = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config,
        "layers": [{"mediaType": "x/y", "digest": "sha256:../../../../etc/passwd", "size": 1}]})
    .to_string();
    let huge = format!("{both}{}", " ".repeat(5 << 20));
    let cases = [
        ("both", both.as_str(), "manifests"),
        ("negative", &negative, "size"),
        ("contradicts", &contradicts, "application/vnd.oci.image.index.v1+json"),
        ("climbs", &climbs, "digest"),
        ("cut", &negative[..40], ""),
        ("not-json", "hello", ""),
        ("empty", "", ""),
        ("huge", &huge, "limit"),
    ];
    for (tag, bytes, word) in cases {
        let digest = layout.document(tag, MANIFEST, bytes.as_bytes());
        site.mount_refused(&layout.reference(tag), &[], BROKEN, &[&digest[..19], word]);
    }
    let old = r#"{"schemaVersion":1,"name":"a/b","tag":"v1","fsLayers":[],"history":[],"signatures":[]}"#;
    layout.document("old", "application/vnd.docker.distribution.manifest.v1+prettyjws", old.as_bytes());
    site.mount_refused(&layout.reference("old"), &[], UNSUPPORTED, &["schema"]);
}

#[test]
fn a_manifest_that_is_not_its_descriptor_fails_verification() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let pieces = [Piece::new("f", "text/plain", *b"x")];
    let digest = artifact::write(&mut layout, "rotten", "application/x.thing", &pieces);
    flip_a_byte(&layout.blob_path(&digest));
    site.mount_refused(&layout.reference("rotten"), &[], MISMATCH, &[&digest]);

    let manifest = artifact::manifest("application/x.other", &pieces);
    let mut descriptor = layout.blob(MANIFEST, &manifest);
    descriptor["size"] = (manifest.len() + 1).into();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}).to_string();
    layout.document("size", INDEX, index.as_bytes());
    site.mount_refused(&layout.reference("size"), &[], BROKEN, &[&(manifest.len() + 1).to_string()]);
}
