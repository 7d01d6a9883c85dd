//! Files of artifacts: named by title, by path, or by the kind of the artifact alone.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt};

use serde_json::json;

use crate::artifact::{Blob, EMPTY, Shape};
use crate::byte_text::digest_of;
use crate::encode::gzip;
use crate::golden::{Entries, Golden};
use crate::layout::CONFIG;
use crate::shapes::{tar, tgz};
use crate::stage::{BLOCK, Stage, read};
use crate::tarball::noise;

/// What oras calls every file that nobody gave a type, and every directory.
const ORAS_FILE: &str = "application/vnd.oci.image.layer.v1.tar";
const ORAS_DIRECTORY: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const UNKNOWN: &str = "application/vnd.unknown.artifact.v1";

#[test]
fn files_of_oras_are_at_their_titles() {
    let big = noise(9 << 20, 20);
    let layers = [
        Blob::new(ORAS_FILE, b"plain text, no tar\n".as_slice()).titled("TEST/a.txt"),
        Blob::new(ORAS_FILE, b"deeper".as_slice()).titled("TEST/sub/dir/b.bin"),
        Blob::new("application/json", b"[]".as_slice()).titled("c.json"),
        Blob::new(ORAS_FILE, big.clone()).titled("big"),
        // The same content under another title is another file.
        Blob::new(ORAS_FILE, b"deeper".as_slice()).titled("twin"),
        Blob::new(ORAS_FILE, b"Case".as_slice()).titled("C.json"),
    ];
    let packed = Shape::artifact(UNKNOWN).layers(&layers).pack();
    let golden = Golden::of(&packed).tree(
        "files",
        &[
            ("TEST/a.txt", b"plain text, no tar\n"),
            ("TEST/sub/dir/b.bin", b"deeper"),
            ("c.json", b"[]"),
            ("big", &big),
            ("twin", b"deeper"),
            ("C.json", b"Case"),
        ],
    );
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        stage.costs(&[&layers[0]], || assert_eq!(read(mount.join("files/TEST/a.txt")), layers[0].bytes));
        stage.costs_at_most(2 * BLOCK, &[&layers[3]], || {
            let file = File::open(mount.join("files/big")).unwrap();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM)
                .unwrap();
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, 1 << 20).unwrap();
            assert!(bytes == big[1 << 20..(1 << 20) + 4096]);
        });
        golden.check(mount.dir());
    }
}

/// What oras makes of a directory.
fn directory(title: &str, entries: Entries<'_>) -> Blob {
    Blob::new(ORAS_DIRECTORY, gzip(&tar(entries)))
        .titled(title)
        .note("io.deis.oras.content.digest", &digest_of(&tar(entries)))
        .note("io.deis.oras.content.unpack", "true")
}

#[test]
fn a_directory_called_dot_is_the_files_themselves() {
    let entries: Entries<'_> = &[("index.html", b"<p>"), ("css/", b""), ("css/a.css", b"p{}")];
    for (title, beside) in [(".", false), ("./", true)] {
        let mut shape = Shape::artifact(UNKNOWN).layer(&directory(title, entries));
        let mut golden = Golden::default().file("index.html", b"<p>").file("css/a.css", b"p{}");
        if beside {
            shape = shape.layer(&Blob::new("text/plain", b"one".as_slice()).titled("one.txt"));
            golden = golden.file("one.txt", b"one");
        }
        let packed = shape.pack();
        for stage in Stage::both(&packed) {
            golden.check(&stage.mount(&[]).join("files"));
        }
    }
}

#[test]
fn a_directory_and_files_titled_inside_it_are_one_directory_as_after_a_pull() {
    let entries: Entries<'_> = &[("d/", b""), ("d/x", b"x"), ("d/y", b"of the directory"), ("d/e/", b"")];
    let file = |title: &str| Blob::new("text/plain", b"of the file".as_slice()).titled(title);
    let inner = directory("d/e", &[("d/e/f", b"f")]);
    for (layers, y) in [
        (vec![directory("d", entries), file("d/y"), file("d/e/z"), inner.clone()], "of the file"),
        (vec![file("d/e/z"), inner, file("d/y"), directory("d", entries)], "of the directory"),
    ] {
        let packed = layers.iter().fold(Shape::artifact(UNKNOWN), |shape, layer| shape.layer(layer)).pack();
        let golden = Golden::default()
            .tree("d", &[("x", b"x"), ("y", y.as_bytes()), ("e/f", b"f"), ("e/z", b"of the file")]);
        for stage in Stage::both(&packed) {
            golden.check(&stage.mount(&[]).join("files"));
        }
    }
}

#[test]
fn directories_of_other_clients_are_at_their_titles() {
    let (with, without): (Entries<'_>, Entries<'_>) =
        (&[("data/b.txt", b"b"), ("data/sub/a", b"a")], &[("b.txt", b"b"), ("sub/a", b"a")]);
    for (kind, title, entries) in [
        (ORAS_DIRECTORY, "data", with),
        ("application/octet-stream", "data/", without),
        (ORAS_DIRECTORY, "data/", without),
    ] {
        let packed = Shape::artifact(UNKNOWN)
            .layer(&Blob::new(kind, gzip(&tar(entries))).titled(title))
            .layer(&Blob::new(ORAS_DIRECTORY, b"no archive".as_slice()).titled("plain"))
            .pack();
        let golden =
            Golden::default().tree("data", &[("b.txt", b"b"), ("sub/a", b"a")]).file("plain", b"no archive");
        for stage in Stage::both(&packed) {
            golden.check(&stage.mount(&[]).join("files"));
        }
    }
}

#[test]
fn a_directory_of_oras_is_that_directory() {
    let entries: Entries<'_> = &[
        ("site/", b""),
        ("site/index.html", b"<p>"),
        ("site/css/", b""),
        ("site/css/a.css", b"p{}"),
        ("site/l@", b"css"),
    ];
    let layer = directory("site", entries);
    let note = Blob::new(ORAS_FILE, b"note".as_slice()).titled("note.txt");
    let packed = Shape::artifact(UNKNOWN).layer(&layer).layer(&note).pack();
    for stage in Stage::both(&packed) {
        let mount = stage.mount(&[]);
        let shown = Golden::default()
            .tree("site", &[("index.html", b"<p>"), ("css/a.css", b"p{}"), ("l@", b"")])
            .file("note.txt", b"note");
        shown.check(&mount.join("files"));
        Golden::default().layer(0, &layer, ".tar.gz", entries).check_below(mount.dir(), "layers");
        // The other file does not need the archive.
        let other = stage.site.mount_at("other", &stage.reference(":v1"), &["--view", "files"]);
        assert_eq!(read(other.join("note.txt")), b"note");
    }
}

#[test]
fn lying_oras_directory_shows_no_wrong_byte() {
    let outside = directory("site", &[("site/a", b"a"), ("elsewhere/b", b"b")]);
    let mut forged = directory("site", &[("site/a", b"forged")]);
    forged = forged.note("io.deis.oras.content.digest", &digest_of(b"another archive"));
    for layer in [outside, forged] {
        let packed = Shape::artifact(UNKNOWN).layer(&layer).pack();
        let Some(stage) = Stage::strict(&packed) else { return };
        let mount = stage.mount(&[]);
        assert!(fs::read(mount.join("files/site/a")).is_err());
        assert!(!mount.join("files/elsewhere").exists());
        let status: serde_json::Value = serde_json::from_str(&mount.status()).unwrap();
        assert!(status["warnings"] != json!([]) || status["errors"] != json!([]), "{status}");
    }
}

#[test]
fn oras_directory_is_verified_once_and_a_mismatch_is_reported() {
    let big = noise(3 << 20, 21);
    let entries: Entries<'_> = &[("site/", b""), ("site/big", &big)];
    let (right, wrong) = (digest_of(&tar(entries)), digest_of(b"another archive"));
    let layer = directory("site", entries);
    let forged = layer.clone().note("io.deis.oras.content.digest", &wrong);
    let Some(stage) = Stage::strict(&Shape::artifact(UNKNOWN).layer(&layer).pack()) else { return };
    let mount = stage.mount(&[]);
    assert!(read(mount.join("files/site/big")) == big);
    mount.unmount();
    // Hashing it again would take all of the blob, which is not here any more.
    let again = |allowed: u64| {
        fs::remove_dir_all(stage.site.cache().join("v1/blobs")).unwrap();
        stage.costs_at_most(allowed, &[&layer], || {
            let mount = stage.mount(&[]);
            let size = fs::metadata(mount.join("files/site/big")).unwrap().len();
            assert_eq!(size, big.len() as u64);
            mount.unmount();
        });
        stage.blob_requests().iter().map(|(_, bytes)| bytes).sum::<u64>()
    };
    assert!(again(2 * BLOCK) < layer.size());
    let digest = layer.digest();
    let kept =
        stage.site.cache().join("v1/indexes/sha256").join(format!("{}.content", &digest["sha256:".len()..]));
    fs::remove_file(kept).unwrap();
    assert!(again(layer.size()) >= layer.size(), "without what was kept it is hashed again");

    stage.push("forged", &Shape::artifact(UNKNOWN).layer(&forged).pack());
    let mount = stage.site.mount_at("forged", &stage.reference(":forged"), &[]);
    for path in ["files/site", "files/site/big"] {
        let listed = fs::read_dir(mount.join(path)).and_then(|mut names| names.next().transpose());
        let error = listed.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{path}: {error}");
    }
    let status = mount.status();
    assert!(status.contains(&right) && status.contains(&wrong), "{status}");
    assert!(read(mount.join("blobs").join(digest.replace(':', "/"))) == layer.bytes);
}

#[test]
fn layers_without_titles_are_named_by_number_digest_and_type() {
    let layers = [
        Blob::new("application/vnd.example.thing+json", b"{}\n".as_slice()),
        Blob::new("application/wasm", b"\0asm".as_slice()),
        Blob::new("application/vnd.example.prov", b"prov".as_slice()),
        Blob::new("application/vnd.example.gguf", b"GGUF".as_slice()),
        Blob::new("application/octet-stream", b"octets".as_slice()),
        Blob::new("text/plain; charset=utf-8", b"text".as_slice()),
        Blob::new("application/vnd.example.never-heard-of", b"what".as_slice()),
        tgz("application/vnd.example.content.v1.tar+gzip", &[("in", b"inside")]),
    ];
    let packed = Shape::artifact("application/vnd.example.things").layers(&layers).pack();
    let mut golden = Golden::of(&packed);
    for (number, extension) in
        [".json", ".wasm", ".prov", ".gguf", ".bin", ".txt", ""].into_iter().enumerate()
    {
        let layer = &layers[number];
        golden = golden.file(&format!("files/{number:02}-{}{extension}", layer.short()), &layer.bytes);
    }
    golden =
        golden.layer(7, &layers[7], ".tar.gz", &[("in", b"inside")]).tree("merged", &[("in", b"inside")]);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}

#[test]
fn a_model_pack_has_its_files_with_their_modes_and_times() {
    let kind = |name: &str| format!("application/vnd.cncf.model.{name}");
    let named = |blob: Blob, path: &str, mode: u32| {
        let name = path.rsplit('/').next().unwrap();
        let size = blob.bytes.len();
        let metadata = json!({"name": name, "mode": mode, "uid": 0, "gid": 0, "size": size,
            "mtime": "2025-01-02T03:04:05Z", "typeflag": 0});
        blob.note("org.cncf.model.filepath", path)
            .note("org.cncf.model.file.metadata+json", &metadata.to_string())
    };
    let weights = noise(1 << 20, 21);
    let layers = [
        named(Blob::new(&kind("weight.v1.raw"), weights.clone()), "model-00001-of-00001.safetensors", 0o640),
        named(Blob::new(&kind("weight.config.v1.raw"), b"{}".as_slice()), "config.json", 0o644),
        named(Blob::new(&kind("doc.v1.raw"), b"# m".as_slice()), "docs/README.md", 0o444),
    ];
    let packed = Shape::of(&kind("config.v1+json"), br#"{"descriptor":{"name":"m"}}"#.as_slice())
        .kind(&kind("manifest.v1+json"))
        .layers(&layers)
        .pack();
    let golden = Golden::of(&packed).tree(
        "files",
        &[("model-00001-of-00001.safetensors", &weights), ("config.json", b"{}"), ("docs/README.md", b"# m")],
    );
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        for (path, mode) in [("model-00001-of-00001.safetensors", 0o640), ("docs/README.md", 0o444)] {
            let stat = fs::metadata(mount.join("files").join(path)).unwrap();
            assert_eq!((stat.mode() & 0o7777, stat.mtime()), (mode, 1_735_787_045), "{path}");
        }
        stage.costs(&[&layers[1]], || assert_eq!(read(mount.join("files/config.json")), b"{}"));
        golden.check(mount.dir());
    }
}

#[test]
fn an_archive_of_a_model_pack_is_extracted_at_its_path() {
    let entries: Entries<'_> =
        &[("src/", b""), ("src/main.py", b"print()"), ("src/lib/", b""), ("src/lib/a.py", b"")];
    for (kind, stored) in [("code.v1.tar", tar(entries)), ("code.v1.tar+gzip", gzip(&tar(entries)))] {
        let layer = Blob::new(&format!("application/vnd.cncf.model.{kind}"), stored)
            .note("org.cncf.model.filepath", "src");
        let packed = Shape::of("application/vnd.cncf.model.config.v1+json", b"{}".as_slice())
            .kind("application/vnd.cncf.model.manifest.v1+json")
            .layer(&layer)
            .pack();
        let Some(stage) = Stage::strict(&packed) else { return };
        let mount = stage.mount(&[]);
        Golden::default()
            .tree("src", &[("main.py", b"print()"), ("lib/a.py", b"")])
            .check(&mount.join("files"));
    }
}

#[test]
fn an_archive_of_one_file_of_a_model_is_that_file() {
    let weights = noise(1 << 20, 31);
    let layer = |kind: &str, path: &str, entry: &str, bytes: &[u8]| {
        let archive = tar(&[(entry, bytes)]);
        let stored = if kind.ends_with("+gzip") { gzip(&archive) } else { archive };
        Blob::new(&format!("application/vnd.cncf.model.{kind}"), stored).note("org.cncf.model.filepath", path)
    };
    let packed = Shape::of("application/vnd.cncf.model.config.v1+json", b"{}".as_slice())
        .kind("application/vnd.cncf.model.manifest.v1+json")
        .layer(&layer("doc.v1.tar", "LICENSE", "LICENSE", b"Apache-2.0\n"))
        .layer(&layer("weight.v1.tar+gzip", "sub/dir/model.gguf", "sub/dir/model.gguf", &weights))
        .layer(&layer("code.v1.tar", "run.py", "./run.py", b"print(1)\n"))
        .pack();
    let golden = Golden::default()
        .file("LICENSE", b"Apache-2.0\n")
        .file("sub/dir/model.gguf", &weights)
        .file("run.py", b"print(1)\n");
    for stage in Stage::both(&packed) {
        golden.check(&stage.mount(&[]).join("files"));
    }
}

#[test]
fn models_of_docker_have_their_files_by_kind_or_by_path() {
    let gguf = Blob::new("application/vnd.docker.ai.gguf.v3", b"GGUF\x03\0\0\0".as_slice());
    let license = Blob::new("application/vnd.docker.ai.license", b"Apache-2.0".as_slice());
    let config = br#"{"config":{"format":"gguf"}}"#;
    let old = Shape::of("application/vnd.docker.ai.model.config.v0.1+json", config.as_slice())
        .layer(&gguf)
        .layer(&license)
        .pack();
    let golden = Golden::of(&old).tree("files", &[("model.gguf", &gguf.bytes), ("license", b"Apache-2.0")]);
    for stage in Stage::both(&old) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
    let file =
        |kind: &str, path: &str, bytes: &[u8]| Blob::new(kind, bytes).note("org.cncf.model.filepath", path);
    let new = Shape::of("application/vnd.docker.ai.model.config.v0.2+json", config.as_slice())
        .layer(&file("application/vnd.docker.ai.safetensors", "model-00001-of-00002.safetensors", b"one"))
        .layer(&file("application/vnd.docker.ai.safetensors", "model-00002-of-00002.safetensors", b"two"))
        .layer(&file("application/vnd.docker.ai.model.file", "tokenizer/tokenizer.json", b"{}"))
        .pack();
    let golden = Golden::of(&new).tree(
        "files",
        &[
            ("model-00001-of-00002.safetensors", b"one"),
            ("model-00002-of-00002.safetensors", b"two"),
            ("tokenizer/tokenizer.json", b"{}"),
        ],
    );
    let Some(stage) = Stage::strict(&new) else { return };
    golden.check(stage.mount_for(&[], &[]).dir());
}

#[test]
fn a_model_of_ollama_has_its_files_by_kind_and_its_tensors_by_name() {
    let kind = |name: &str| format!("application/vnd.ollama.image.{name}");
    let model = noise(1 << 20, 22);
    let layers = [
        Blob::new(&kind("model"), model.clone()).field("from", "/home/u/.ollama/models/blobs/sha256-0"),
        Blob::new(&kind("template"), b"{{ .Prompt }}".as_slice()),
        Blob::new(&kind("params"), br#"{"stop":["x"]}"#.as_slice()),
        Blob::new(&kind("license"), b"MIT".as_slice()),
        Blob::new(&kind("tensor"), b"tensor".as_slice())
            .field("name", "text_encoder/model.embed_tokens.weight"),
    ];
    // Its configs have docker's type, and it is no container image.
    let config =
        json!({"model_format": "gguf", "model_family": "llama", "architecture": "amd64", "os": "linux"});
    let packed = Shape::of("application/vnd.docker.container.image.v1+json", config.to_string())
        .docker()
        .layers(&layers)
        .pack();
    let golden = Golden::of(&packed).tree(
        "files",
        &[
            ("model.gguf", &model),
            ("template", b"{{ .Prompt }}"),
            ("params.json", &layers[2].bytes),
            ("license", b"MIT"),
            ("text_encoder/model.embed_tokens.weight", b"tensor"),
        ],
    );
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        stage.costs(&[&layers[3]], || assert_eq!(read(mount.join("files/license")), b"MIT"));
        golden.check(mount.dir());
    }
}

#[test]
fn a_policy_bundle_is_its_files() {
    let config = "application/vnd.unknown.config.v1+json";
    let opa = |name: &str| format!("application/vnd.cncf.openpolicyagent.{name}");
    let packed = Shape::of(config, b"{}".as_slice())
        .layer(&Blob::new(&opa("policy.layer.v1+rego"), b"package a\n".as_slice()).titled("policy/a.rego"))
        .layer(&Blob::new(&opa("data.layer.v1+json"), b"{}\n".as_slice()).titled("data/data/x.json"))
        .pack();
    let golden = Golden::of(&packed)
        .tree("files", &[("policy/a.rego", b"package a\n"), ("data/data/x.json", b"{}\n")]);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}

#[test]
fn a_wasm_module_and_a_sif_image_have_names() {
    let shapes = [
        (
            "application/vnd.wasm.config.v0+json",
            "application/wasm",
            "module.wasm",
            b"\0asm\x01\0\0\0".as_slice(),
        ),
        (
            "application/vnd.sylabs.sif.config.v1+json",
            "application/vnd.sylabs.sif.layer.v1.sif",
            "image.sif",
            b"#!/usr/bin/env run-singularity\n".as_slice(),
        ),
    ];
    for (config, kind, name, bytes) in shapes {
        let packed = Shape::of(config, b"{}".as_slice()).layer(&Blob::new(kind, bytes)).pack();
        let golden = Golden::of(&packed).tree("files", &[(name, bytes)]);
        for stage in Stage::both(&packed) {
            golden.check(stage.mount_for(&[], &[]).dir());
        }
    }
}

#[test]
fn the_kind_of_an_artifact_wins_over_its_config_and_that_over_its_layers() {
    // An image's config and tar layers, under the artifact type of a disk without a disk: no tree is made up, and the
    // reason is given.
    let layer = tgz(ORAS_DIRECTORY, &[("a", b"a")]).titled("rootfs.tar.gz");
    let packed = Shape::of(
        CONFIG,
        br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#.as_slice(),
    )
    .kind("application/vnd.cocoonstack.os-image.v1+json")
    .layer(&layer)
    .pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount_for(&[], &[]);
    assert!(read(mount.join("files/rootfs.tar.gz")) == layer.bytes);
    let info = String::from_utf8(read(mount.join("disk/info.json"))).unwrap();
    assert!(info.contains("disk"), "{info}");
    assert_eq!(fs::read_dir(mount.join("disk")).unwrap().count(), 1);
}

#[test]
fn a_config_with_a_title_is_a_file_too() {
    let layer = Blob::new("application/x.weights", b"weights".as_slice()).titled("weights.bin");
    let packed = Shape::of("application/x.config+json", br#"{"x":1}"#.as_slice())
        .config_titled("settings.json")
        .layer(&layer)
        .pack();
    let golden =
        Golden::of(&packed).tree("files", &[("weights.bin", b"weights"), ("settings.json", br#"{"x":1}"#)]);
    let Some(stage) = Stage::strict(&packed) else { return };
    golden.check(stage.mount_for(&[], &[]).dir());
}

#[test]
fn media_types_are_read_with_parameters_and_whatever_case() {
    let layer = Blob::new(
        "Application/vnd.Example.Content.v1.Tar+GZIP; charset=binary",
        gzip(&tar(&[("in", b"inside")])),
    );
    let json = Blob::new("application/JSON;profile=x", b"{}".as_slice());
    let packed = Shape::artifact("application/x.things; v=1").layer(&layer).layer(&json).pack();
    let golden = Golden::of(&packed)
        .file(&format!("files/01-{}.json", json.short()), b"{}")
        .layer(0, &layer, ".tar.gz", &[("in", b"inside")])
        .tree("merged", &[("in", b"inside")]);
    let Some(stage) = Stage::strict(&packed) else { return };
    golden.check(stage.mount_for(&[], &[]).dir());
}

#[test]
fn an_artifact_without_a_config_type_of_its_own_is_still_its_files() {
    let layer = Blob::new("application/x.thing", b"thing".as_slice()).titled("thing");
    let packed = Shape::of(EMPTY.0, EMPTY.1).untyped().layer(&layer).pack();
    let golden = Golden::of(&packed).tree("files", &[("thing", b"thing")]);
    let Some(stage) = Stage::strict(&packed) else { return };
    golden.check(stage.mount_for(&[], &[]).dir());
}
