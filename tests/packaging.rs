//! The demonstration's image: made by a shell script, so it is checked by the parsers and the digests of the library.

#![expect(clippy::unwrap_used, reason = "what is missing here is what the test is about")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use ocifs::oci::{Descriptor, Digest, Manifest, ManifestDocument};
use yaml_rust2::{Yaml, YamlLoader};

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
    let ManifestDocument::Index(index) = ManifestDocument::parse(&files["index.json"], None).unwrap() else {
        panic!("index.json is not an index");
    };
    let manifests: BTreeMap<&str, Manifest> = index
        .manifests
        .iter()
        .map(|descriptor| {
            let tag = descriptor.annotations["org.opencontainers.image.ref.name"].as_str();
            match ManifestDocument::parse(&blob(descriptor), None).unwrap() {
                ManifestDocument::Manifest(manifest) => (tag, manifest),
                ManifestDocument::Index(_) => panic!("{tag} is not a manifest"),
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
fn service_unit_passes_systemd_analyze() {
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
    let (_, printed) = check(&text.replace("Restart=", "Restrat="));
    assert!(printed.contains("Restrat"), "systemd-analyze finds nothing: {printed}");
}

#[test]
fn example_units_pass_systemd_analyze() {
    if !has("systemd-analyze") {
        return;
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples");
    let units: Vec<_> = fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(units.len() >= 2, "{units:?}");
    let checked = Command::new("systemd-analyze").arg("verify").args(&units).output().unwrap();
    assert_eq!((checked.status.success(), String::from_utf8_lossy(&checked.stderr).as_ref()), (true, ""));
}

#[test]
fn unit_leaves_the_mount_visible_to_all_processes() {
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

/// A file of the repository.
fn text_of(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents of a file in YAML.
fn documents(path: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&text_of(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every string of a document that is a value.
fn strings(yaml: &Yaml) -> Vec<&str> {
    match yaml {
        Yaml::String(text) => vec![text],
        Yaml::Array(items) => items.iter().flat_map(strings).collect(),
        Yaml::Hash(entries) => entries.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn kubernetes_manifests_agree_with_the_plugin() {
    let [driver] = &documents("packaging/kubernetes/csidriver.yaml")[..] else { panic!("one document") };
    let name = ocifs::csi::NAME;
    assert_eq!(driver["metadata"]["name"].as_str(), Some(name));
    assert_eq!(driver["spec"]["attachRequired"].as_bool(), Some(false));
    assert_eq!(driver["spec"]["podInfoOnMount"].as_bool(), Some(true));
    assert_eq!(driver["spec"]["volumeLifecycleModes"][0].as_str(), Some("Ephemeral"));

    let documents_of_set = documents("packaging/kubernetes/daemonset.yaml");
    let set = documents_of_set.iter().find(|one| one["kind"].as_str() == Some("DaemonSet")).unwrap();
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(set["spec"]["selector"]["matchLabels"], set["spec"]["template"]["metadata"]["labels"]);
    let named = |list: &Yaml, name: &str| {
        let found = list.as_vec().unwrap().iter().find(|one| one["name"].as_str() == Some(name));
        found.cloned().unwrap_or_else(|| panic!("{name} is not in {list:?}"))
    };
    let (plugin, registrar) = (named(&pod["containers"], "ocifs"), named(&pod["containers"], "registrar"));
    // Every place of a container is a volume of the pod, and what is named in an argument is a place of the container.
    let places = |container: &Yaml| -> BTreeMap<String, String> {
        let mounts = container["volumeMounts"].as_vec().unwrap().iter();
        let place = |mount: &Yaml| {
            let volume = named(&pod["volumes"], mount["name"].as_str().unwrap());
            let path = volume["hostPath"]["path"].as_str().unwrap().to_owned();
            (mount["mountPath"].as_str().unwrap().to_owned(), path)
        };
        mounts.map(place).collect()
    };
    let argument = |container: &Yaml, name: &str| {
        let prefix = format!("--{name}=");
        let found = strings(&container["args"]).into_iter().find_map(|text| text.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("{prefix} is missing")).to_owned()
    };
    let socket = argument(&plugin, "endpoint").strip_prefix("unix://").unwrap().to_owned();
    assert_eq!(argument(&registrar, "csi-address"), socket);
    let folder = Path::new(&socket).parent().unwrap().to_str().unwrap();
    // Where kubelet finds it is where the directory of the socket is on the node.
    let on_node = &places(&plugin)[folder];
    assert_eq!(places(&registrar)[folder], *on_node);
    assert_eq!(argument(&registrar, "kubelet-registration-path"), socket.replacen(folder, on_node, 1));
    assert!(on_node.ends_with(&format!("/plugins/{name}")), "{on_node}");
    assert!(places(&registrar).contains_key("/registration"));
    for option in ["state-dir", "cache-dir", "hosts-dir"] {
        assert!(places(&plugin).contains_key(&argument(&plugin, option)), "{option}");
    }
    // A volume that the kernel serves is known by its socket, also to the pod that comes after.
    assert_eq!(places(&plugin)["/run/ocifs"], "/run/ocifs");
    // Mounts are handed on below the directory under which kubelet makes targets, by the same name on both sides.
    let kubelet = plugin["volumeMounts"]
        .as_vec()
        .unwrap()
        .iter()
        .find(|mount| mount["mountPropagation"].as_str() == Some("Bidirectional"))
        .unwrap();
    let path = kubelet["mountPath"].as_str().unwrap();
    assert_eq!(places(&plugin)[path], path);
    assert_eq!(plugin["securityContext"]["privileged"].as_bool(), Some(true));

    for example in documents("packaging/kubernetes/pod.yaml") {
        let volumes = example["spec"]["volumes"].as_vec().unwrap();
        assert!(!volumes.is_empty());
        for volume in volumes {
            assert_eq!(volume["csi"]["driver"].as_str(), Some(name));
            assert_eq!(volume["csi"]["readOnly"].as_bool(), Some(true));
        }
    }
    for job in ["packaging/ci/github-actions.yml", "packaging/ci/gitlab-ci.yml"] {
        assert!(
            documents(job).iter().any(|one| strings(one).iter().any(|text| text.contains("ocifs mount"))),
            "{job}"
        );
    }
}

#[test]
fn the_arguments_of_the_plugin_in_kubernetes_are_ones_it_takes() {
    let documents = documents("packaging/kubernetes/daemonset.yaml");
    let set = documents.iter().find(|one| one["kind"].as_str() == Some("DaemonSet")).unwrap();
    let arguments = strings(&set["spec"]["template"]["spec"]["containers"][0]["args"]);
    // The directories of the node are not there: what is changed is where things are, and the plugin ends where it would listen.
    let room = tempfile::tempdir().unwrap();
    let moved = |text: &&str| match text.split_once('=') {
        Some(("--endpoint", _)) => {
            format!("--endpoint=unix://{}/no/such/dir/csi.sock", room.path().display())
        }
        Some(("--state-dir", _)) => format!("--state-dir={}", room.path().join("state").display()),
        _ => (*text).to_owned(),
    };
    let tried = Command::new(env!("CARGO_BIN_EXE_ocifs")).args(arguments.iter().map(moved)).output().unwrap();
    let printed = String::from_utf8_lossy(&tried.stderr);
    assert!(tried.status.code() == Some(1) && printed.contains("listening at"), "{printed}");
}

/// Runs the program under test, which has to succeed.
fn ocifs(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_ocifs")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Whether a program is there. On a CI machine all of them are.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        std::io::stderr().write_all(format!("skipped: needs {program}\n").as_bytes()).unwrap();
    }
    found
}

#[test]
fn every_manual_page_renders_without_warnings() {
    if !has("man") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    ocifs(&["man", "--all", folder.path().to_str().unwrap()]);
    let pages: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.len() > 10, "{pages:?}");
    for page in &pages {
        let shown = Command::new("man")
            .args(["--warnings=mac,syntax", "-l"])
            .arg(page)
            .env("MANPAGER", "cat")
            .env("MANWIDTH", "100")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(
            shown.status.success() && shown.stderr.is_empty(),
            "{page:?}: {}",
            String::from_utf8_lossy(&shown.stderr)
        );
        assert!(text.contains("NAME") && text.contains("SYNOPSIS"), "{page:?}: {text}");
    }
    // One page alone is the same as among all.
    let page = ocifs(&["man", "cache", "verify"]);
    assert_eq!(page, fs::read(folder.path().join("ocifs-cache-verify.1")).unwrap());
    let wrong = Command::new(env!("CARGO_BIN_EXE_ocifs")).args(["man", "no-such"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn completions_load_in_their_shells() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let text = ocifs(&["completion", shell]);
        assert!(String::from_utf8_lossy(&text).contains("cache-dir"), "{shell}");
        let file = folder.path().join(shell);
        fs::write(&file, text).unwrap();
        // The other shells are on few machines.
        if shell == "bash" || Command::new(shell).arg("--version").output().is_ok() {
            let checked = Command::new(shell).arg("-n").arg(&file).output().unwrap();
            assert!(checked.status.success(), "{shell}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    // What bash offers after a few letters.
    let script =
        "source $1; COMP_WORDS=(ocifs mou) COMP_CWORD=1; _ocifs ocifs mou ocifs; echo ${COMPREPLY[@]}";
    let offered =
        Command::new("bash").args(["-c", script, "sh"]).arg(folder.path().join("bash")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&offered.stdout).trim(), "mount");
}

#[test]
fn package_files_exist_and_agree_between_formats() {
    let manifest: toml::Table = text_of("Cargo.toml").parse().unwrap();
    let metadata = &manifest["package"]["metadata"];
    let deb = metadata["deb"]["assets"].as_array().unwrap();
    let deb: Vec<&str> = deb.iter().map(|asset| asset[0].as_str().unwrap()).collect();
    let rpm = metadata["generate-rpm"]["assets"].as_array().unwrap();
    let rpm: Vec<&str> = rpm.iter().map(|asset| asset["source"].as_str().unwrap()).collect();
    for source in deb.iter().filter(|source| !source.contains("/links/")) {
        assert!(rpm.contains(source), "{source} is not in the rpm");
    }
    for source in deb.iter().chain(&rpm).filter(|source| !source.starts_with("target/")) {
        let at = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        if at.ends_with("*") {
            assert!(at.parent().unwrap().is_dir(), "{source}");
            continue;
        }
        let there = match at.file_name().unwrap().to_str().unwrap().strip_prefix("*.") {
            None => at.exists(),
            Some(end) => fs::read_dir(at.parent().unwrap())
                .unwrap()
                .any(|entry| entry.unwrap().path().extension().is_some_and(|extension| extension == end)),
        };
        assert!(there, "{source} is not there");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/package.sh");
    let refused = Command::new(script).arg("no-such-kind").output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("deb, rpm and tarball"));
}

/// Minutes of work and tools from a registry of crates: only when it is asked for, with OCIFS_PACKAGES=1.
#[test]
fn the_package_for_debian_is_installed_used_and_removed_without_a_trace() {
    if std::env::var_os("OCIFS_PACKAGES").is_none() {
        writeln!(std::io::stderr(), "skipped: set OCIFS_PACKAGES=1 to build, install and remove the package")
            .unwrap();
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = root.join("tests/support/package.sh");
    let done = Command::new("bash").arg(script).current_dir(root).output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{printed}{}", String::from_utf8_lossy(&done.stderr));
    assert!(printed.ends_with("nothing is left\n"), "{printed}");
}
