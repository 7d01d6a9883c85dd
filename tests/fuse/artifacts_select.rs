//! Selection: layers of a manifest, an entry of an index, and archives that contradict each other.

use serde_json::{Value, json};

use crate::artifact::{Blob, Bundle, Packed, Shape};
use crate::artifacts::small_image;
use crate::golden::{Entries, Golden};
use crate::shapes::tgz;
use crate::stage::{Stage, read};

const CONTENT: &str = "application/vnd.example.content.v1.tar+gzip";
const KEY: &str = "org.example.part";

/// Two archives that overlap in `both`, and two files.
fn parts() -> (Packed, Vec<Blob>) {
    let one: Entries<'_> = &[("one", b"one"), ("both", b"first")];
    let two: Entries<'_> = &[("two", b"two"), ("both", b"second")];
    let layers = vec![
        tgz(CONTENT, one).note(KEY, "alpha"),
        Blob::new("application/json", b"{}".as_slice()).titled("meta/a.json"),
        tgz(CONTENT, two).note(KEY, "beta/gamma"),
        Blob::new("text/plain", b"text".as_slice()).titled("notes.txt"),
    ];
    (Shape::artifact("application/vnd.example.parts").layers(&layers).pack(), layers)
}

#[test]
fn a_layer_is_selected_by_number_and_nothing_else_is_fetched() {
    let (packed, layers) = parts();
    for stage in Stage::both(&packed) {
        let golden =
            Golden::default().layer(0, &layers[0], ".tar.gz", &[("one", b"one"), ("both", b"first")]);
        let mut mount = None;
        stage.costs(&[&layers[0]], || {
            let up = stage.mount(&["--layer", "0"]);
            assert_eq!(read(up.join("merged/both")), b"first");
            golden.check_below(up.dir(), "layers");
            mount = Some(up);
        });
        let mount = mount.unwrap();
        assert!(!mount.join("merged/two").exists() && !mount.join("files/notes.txt").exists());
        // The document is the one that was pushed, whatever of it is shown.
        assert_eq!(read(mount.join("manifest.json")), packed.bytes);
    }
}

#[test]
fn layers_are_selected_by_media_type_and_by_title() {
    let (packed, layers) = parts();
    let Some(stage) = Stage::strict(&packed) else { return };
    let reference = stage.reference(":v1");
    stage.costs(&[&layers[1]], || {
        let mount = stage.site.mount_at("type", &reference, &["--media-type", "application/json"]);
        Golden::default().file("files/meta/a.json", b"{}").check_below(mount.dir(), "files");
        assert!(!mount.join("merged").exists());
    });
    stage.costs(&[&layers[3]], || {
        let mount = stage.site.mount_at("title", &reference, &["--title", "NOTES.*"]);
        Golden::default().file("files/notes.txt", b"text").check_below(mount.dir(), "files");
    });
    // Several of one kind are alternatives; several kinds must all be met.
    let both = ["--title", "*.json", "--title", "*.txt", "--media-type", "text/*"];
    let mount = stage.site.mount_at("both", &reference, &both);
    Golden::default().file("files/notes.txt", b"text").check_below(mount.dir(), "files");
    let glob = stage.site.mount_at("glob", &reference, &["--media-type", "*.tar+gzip"]);
    assert_eq!(read(glob.join("merged/two")), b"two");
    assert!(!glob.join("files").exists());
}

#[test]
fn selection_without_a_match_lists_the_candidates() {
    let (packed, _) = parts();
    let Some(stage) = Stage::strict(&packed) else { return };
    let reference = stage.reference(":v1");
    for options in [["--title", "no-such-*"], ["--layer", "7"], ["--media-type", "image/png"]] {
        stage.site.mount_refused(&reference, &options, &[2, 3, 6], &["notes.txt", CONTENT]);
    }
    stage.site.mount_refused(&reference, &["--title", "["], &[2], &["["]);
}

#[test]
fn of_overlapping_archives_the_later_wins_and_is_reported() {
    let (packed, _) = parts();
    for stage in Stage::both(&packed) {
        let mount = stage.mount(&[]);
        let expected: Entries<'_> = &[("one", b"one"), ("two", b"two"), ("both", b"second")];
        Golden::default().tree("merged", expected).check_below(mount.dir(), "merged");
        let status: Value = serde_json::from_str(&mount.status()).unwrap();
        let conflicts = status["conflicts"].as_array().unwrap_or_else(|| panic!("no conflicts in {status}"));
        assert_eq!(conflicts.len(), 1, "{conflicts:?}");
        assert!(conflicts[0].to_string().contains("both"), "{conflicts:?}");
        let later = stage.site.mount_at("later", &stage.reference(":v1"), &["--on-conflict", "later"]);
        assert_eq!(read(later.join("merged/both")), b"second");
    }
}

#[test]
fn overlapping_archives_are_an_error_where_that_is_asked_for() {
    let (packed, _) = parts();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&["--on-conflict", "error"]);
    assert!(std::fs::read(mount.join("merged/both")).is_err());
    let listed = std::fs::read_dir(mount.join("merged")).and_then(|mut names| names.next().transpose());
    assert!(listed.is_err());
    let status = mount.status();
    assert!(status.contains("both"), "{status}");
    // Each of them alone is as good as ever, and so are archives that do not overlap.
    assert_eq!(std::fs::read_dir(mount.join("layers")).unwrap().count(), 4);
    let alone =
        stage.site.mount_at("alone", &stage.reference(":v1"), &["--on-conflict", "error", "--layer", "2"]);
    assert_eq!(read(alone.join("merged/both")), b"second");
}

#[test]
fn mount_options_set_conflict_policy_and_layer_names() {
    let (packed, _) = parts();
    let Some(stage) = Stage::strict(&packed) else { return };
    let list = format!("on_conflict=error,layer_name={KEY}");
    let mount = stage.mount(&["-o", &list]);
    let listed = std::fs::read_dir(mount.join("merged")).and_then(|mut names| names.next().transpose());
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(read(mount.join("layers/00-alpha/both")), b"first");
    assert_eq!(read(mount.join("layers/02-beta_gamma/both")), b"second");
    let later = stage.site.mount_at("later", &stage.reference(":v1"), &["-o", "on_conflict=later"]);
    assert_eq!(read(later.join("merged/both")), b"second");
    let wrong = ["-o", "on_conflict=sometimes"];
    stage.site.mount_refused(&stage.reference(":v1"), &wrong, &[2], &["sometimes", "error"]);
}

#[test]
fn directories_in_common_and_files_that_are_the_same_are_no_conflict() {
    let one: Entries<'_> = &[("d/", b""), ("d/a", b"a"), ("same", b"same")];
    let two: Entries<'_> = &[("d/", b""), ("d/b", b"b")];
    let packed = Shape::artifact("application/vnd.example.parts")
        .layer(&tgz(CONTENT, one))
        .layer(&tgz(CONTENT, two))
        .pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&["--on-conflict", "error"]);
    let expected: Entries<'_> = &[("d/a", b"a"), ("d/b", b"b"), ("same", b"same")];
    Golden::default().tree("merged", expected).check_below(mount.dir(), "merged");
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    assert!(status["conflicts"].as_array().is_none_or(Vec::is_empty), "{status}");
}

#[test]
fn layers_are_called_by_an_annotation_of_choice() {
    let (packed, layers) = parts();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&["--layer-name", KEY]);
    assert_eq!(read(mount.join("layers/00-alpha/one")), b"one");
    assert_eq!(read(mount.join("layers/02-beta_gamma/two")), b"two");
    // An annotation that the layers do not have leaves the names as they are.
    let plain = stage.site.mount_at("plain", &stage.reference(":v1"), &["--layer-name", "org.example.none"]);
    assert_eq!(read(plain.join(format!("layers/00-{}/one", layers[0].short()))), b"one");
}

#[test]
fn index_entry_is_selected_by_its_annotations() {
    let (one, _) = small_image("linux", "amd64", "one");
    let (two, _) = small_image("linux", "amd64", "two");
    let thing = Shape::artifact("application/vnd.example.thing")
        .layer(&Blob::new("text/plain", b"thing".as_slice()).titled("thing"))
        .pack();
    let entry = |name: &str| {
        json!({"platform": {"os": "linux", "architecture": "amd64"},
               "annotations": {"org.opencontainers.image.ref.name": name, "org.example.flavour": name}})
    };
    let proof = Shape::artifact("application/vnd.in-toto+json")
        .layer(&Blob::new("application/vnd.in-toto+json", b"{}".as_slice()))
        .pack();
    let unknown = json!({"platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    let packed = Bundle::default()
        .entry(&one, entry("one"))
        .entry(&proof, unknown)
        .entry(&two, entry("two"))
        .entry(&thing, json!({"artifactType": "application/vnd.example.thing"}))
        .pack();
    for stage in Stage::both(&packed) {
        let reference = stage.reference(":v1");
        let by_name = ["--select", "org.opencontainers.image.ref.name=two"];
        assert_eq!(read(stage.site.mount_at("a", &reference, &by_name).join("merged/etc/arch")), b"two");
        let by_flavour = ["--select", "org.example.flavour=ON*"];
        assert_eq!(read(stage.site.mount_at("b", &reference, &by_flavour).join("merged/etc/arch")), b"one");
        let by_kind = ["--select", "artifactType=*.thing"];
        assert_eq!(read(stage.site.mount_at("c", &reference, &by_kind).join("files/thing")), b"thing");
        // What nothing tells apart is not chosen silently: the candidates are named by digest.
        let (first, second) = (one.digest(), two.digest());
        let words = [&first[..19], &second[..19]];
        stage.site.mount_refused(&reference, &["--platform", "linux/amd64"], &[2, 3, 6], &words);
        stage.site.mount_refused(&reference, &["--select", "org.example.flavour=*"], &[2, 3, 6], &words);
        let nothing = ["--select", "org.example.flavour=three"];
        stage.site.mount_refused(&reference, &nothing, &[2, 3, 6], &["org.example.flavour"]);
        // By digest there is no question.
        let exact = stage.site.mount_at("d", &stage.reference(&format!("@{second}")), &[]);
        assert_eq!(read(exact.join("merged/etc/arch")), b"two");
        let all = stage.site.mount_at("all", &reference, &["--platform", "all"]);
        for (name, path, content) in
            [("linux-amd64-one", "merged/etc/arch", "one"), ("linux-amd64-two", "merged/etc/arch", "two")]
        {
            assert_eq!(read(all.join("platforms").join(name).join(path)), content.as_bytes());
        }
    }
}

#[test]
fn selection_costs_one_request_and_one_manifest() {
    let (packed, layers) = parts();
    for stage in Stage::both(&packed) {
        stage.costs(&[&layers[3]], || {
            let mount = stage.mount(&["--title", "notes.txt"]);
            assert_eq!(read(mount.join("files/notes.txt")), b"text");
        });
        assert!((1..=2).contains(&stage.document_requests()), "{}", stage.document_requests());
    }
}

#[test]
fn inspect_lists_content_and_its_presentation() {
    let (packed, layers) = parts();
    let Some(stage) = Stage::strict(&packed) else { return };
    let reference = stage.reference(":v1");
    stage.costs(&[], || {
        let text = stage.site.ocifs(&["inspect", &reference]).ok().text();
        for word in ["application/vnd.example.parts", "notes.txt", &layers[0].short()] {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
        let json = stage.site.ocifs(&["inspect", "--format", "json", &reference]).ok().text();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert!(json.to_string().contains(&layers[2].digest()), "{json}");
        assert_eq!(json["shownIn"], serde_json::json!(["blobs", "layers", "merged", "files"]), "{json}");
    });
}

#[test]
fn inspect_locates_disks_and_requests_no_index_without_archives() {
    let disk = Blob::new("application/x-qemu-disk", vec![0; 4096]).titled("a.qcow2");
    let packed = Shape::artifact("application/vnd.example.parts").layers(&[disk]).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let reference = stage.reference(":v1");
    stage.costs(&[], || {
        let text = stage.site.ocifs(&["inspect", &reference]).ok().text();
        for line in [
            "shown in   blobs, files, disk\n",
            "disk/a.qcow2  4.0 KiB  qcow2, in one part\n",
            "also as disk/a.raw",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    });
    assert_eq!(stage.document_requests(), 1);
}
