//! The demonstration's image: made by a shell script, so it is checked by the parsers and the digests of the library.

#![expect(clippy::unwrap_used, reason = "what is missing here is what the test is about")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use ocifs::oci::{Descriptor, Digest, Document, Manifest};

/// Makes the layout and returns every file of it.
fn make(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/demo.sh");
    let output = Command::new(script).arg("--layout").arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

#[test]
fn the_demo_layout_is_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(make(&folder.path().join("a")), make(&folder.path().join("b")));
}

#[test]
fn the_demo_layout_is_whole_and_valid() {
    let folder = tempfile::tempdir().unwrap();
    let files = make(folder.path());
    let blob = |descriptor: &Descriptor| {
        let name = format!("blobs/sha256/{}", descriptor.digest.encoded());
        let bytes = files.get(&name).unwrap_or_else(|| panic!("{name} is missing")).clone();
        assert_eq!(bytes.len() as u64, descriptor.size, "{name}");
        assert_eq!(Digest::sha256(&bytes), descriptor.digest, "{name}");
        bytes
    };
    let Document::Index(index) = Document::parse(&files["index.json"], None).unwrap() else {
        panic!("index.json is not an index");
    };
    let manifests: BTreeMap<&str, Manifest> = index
        .manifests
        .iter()
        .map(|descriptor| {
            let tag = descriptor.annotations["org.opencontainers.image.ref.name"].as_str();
            match Document::parse(&blob(descriptor), None).unwrap() {
                Document::Manifest(manifest) => (tag, manifest),
                Document::Index(_) => panic!("{tag} is not a manifest"),
            }
        })
        .collect();
    assert_eq!(manifests.keys().copied().collect::<Vec<_>>(), ["demo", "notes"]);

    // index.json, oci-layout, two manifests, and what they name: nothing is left over.
    let mut named = 2 + manifests.len();
    for manifest in manifests.values() {
        for descriptor in manifest.layers.iter().chain(&manifest.config) {
            blob(descriptor);
            named += 1;
        }
    }
    assert_eq!(files.len(), named);

    let demo = &manifests["demo"];
    let config: serde_json::Value = serde_json::from_slice(&blob(demo.config.as_ref().unwrap())).unwrap();
    let mut names = Vec::new();
    for (layer, diff_id) in demo.layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        let mut archive = Vec::new();
        let mut decoder = flate2::bufread::MultiGzDecoder::new(std::io::Cursor::new(blob(layer)));
        std::io::copy(&mut decoder, &mut archive).unwrap();
        assert_eq!(Digest::sha256(&archive).as_str(), diff_id.as_str().unwrap());
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().to_str().unwrap().to_owned());
        }
    }
    assert!(names.contains(&"./srv/.wh.old".to_owned()), "{names:?}");
    assert_eq!(manifests["notes"].layers[0].annotations["org.opencontainers.image.title"], "greeting.txt");
}

#[test]
fn the_unit_of_a_service_is_what_systemd_understands() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        assert!(std::env::var_os("CI").is_none(), "systemd-analyze is not installed");
        writeln!(std::io::stderr(), "skipped: needs systemd-analyze").unwrap();
        return;
    };
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ocifs@.service");
    let text = fs::read_to_string(unit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let copy = folder.path().join("ocifs@name.service");
        fs::write(&copy, text.replace("/usr/bin/ocifs", env!("CARGO_BIN_EXE_ocifs"))).unwrap();
        let checked = Command::new("systemd-analyze").arg("verify").arg(copy).output().unwrap();
        (checked.status.success(), String::from_utf8_lossy(&checked.stderr).into_owned())
    };
    assert_eq!(check(&text), (true, String::new()), "{}", String::from_utf8_lossy(&version.stdout));
    let (_, said) = check(&text.replace("Restart=", "Restrat="));
    assert!(said.contains("Restrat"), "systemd-analyze finds nothing: {said}");
}

#[test]
fn the_unit_keeps_the_mount_where_everybody_sees_it() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ocifs@.service");
    let text = fs::read_to_string(unit).unwrap();
    let set = |name: &str| {
        text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))
    };
    for wanted in ["Type", "FileDescriptorStoreMax", "Restart", "NoNewPrivileges", "SystemCallFilter"] {
        assert!(set(wanted), "{wanted}= is missing");
    }
    // Each of them gives the service a mount namespace of its own (systemd.exec(5)).
    for hides in [
        "BindPaths",
        "InaccessiblePaths",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateTmp",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "TemporaryFileSystem",
    ] {
        assert!(!set(hides), "{hides}= hides the mount");
    }
}
