//! Archives inside artifacts: charts, modules, bottles and root file systems are trees, and stay the files they were.

use serde_json::json;

use crate::artifact::{Blob, Bundle, Shape};
use crate::encode::gzip;
use crate::golden::{Entries, Golden};
use crate::layout::CONFIG;
use crate::shapes::{sum_line, tar, tgz, zstd};
use crate::stage::{Stage, read};

#[test]
fn nosi_root_file_systems_are_files_and_trees() {
    let entries: Entries<'_> =
        &[("etc/", b""), ("etc/hostname", b"nosi\n"), ("bin@", b"usr/bin"), ("usr/bin/", b"")];
    let plain = tar(entries);
    let shapes = [
        ("wsl-rootfs", "v1+gzip", "layer.v1+gzip", "nosi-debian-13-wsl.tar.gz", gzip(&plain), ".tar.gz"),
        ("lxc-rootfs", "v1+zstd", "layer.v1+zstd", "nosi-debian-13-lxc.tar.zst", zstd(&plain), ".tar.zst"),
        (
            "netboot-bundle",
            "v1+tar+gzip",
            "layer.v1+tar+gzip",
            "nosi-debian-13-netboot.tar.gz",
            gzip(&plain),
            ".tar.gz",
        ),
    ];
    for (shape, of_manifest, of_layer, title, stored, extension) in shapes {
        let layer = Blob::new(&format!("application/vnd.nosi.{shape}.{of_layer}"), stored).titled(title);
        let sum_title = format!("{title}.sha256");
        let sum = Blob::new("text/plain", sum_line(title, &layer.bytes)).titled(&sum_title);
        let index =
            Blob::new("application/vnd.nosi.netboot-manifest.v1+json", br#"{"kernel":"k"}"#.as_slice())
                .titled("manifest.json");
        let packed = Shape::artifact(&format!("application/vnd.nosi.{shape}.{of_manifest}"))
            .layer(&layer)
            .layer(&sum)
            .layer(&index)
            .pack();
        let golden = Golden::of(&packed)
            .tree(
                "files",
                &[(title, &layer.bytes), (&sum_title, &sum.bytes), ("manifest.json", &index.bytes)],
            )
            .layer(0, &layer, extension, entries)
            .tree("merged", entries);
        let Some(stage) = Stage::strict(&packed) else { return };
        let mount = stage.mount_for(&[], &[]);
        stage.costs(&[&sum], || assert!(read(mount.join("files").join(&sum_title)) == sum.bytes));
        golden.check(mount.dir());
    }
}

#[test]
fn a_flux_artifact_is_a_tree_with_its_links() {
    let entries: Entries<'_> = &[
        ("apps/", b""),
        ("apps/kustomization.yaml", b"kind: Kustomization\n"),
        ("apps/base@", b"../base"),
        ("base/", b""),
        ("base/deploy.yaml", b"kind: Deployment\n"),
        ("base/.wh.not-a-whiteout", b"kept"),
    ];
    let layer = tgz("application/vnd.cncf.flux.content.v1.tar+gzip", entries);
    let packed = Shape::of("application/vnd.cncf.flux.config.v1+json", b"{}".as_slice())
        .layer(&layer)
        .note("org.opencontainers.image.source", "https://example.com/r.git")
        .note("org.opencontainers.image.revision", "main@sha1:0123456789012345678901234567890123456789")
        .pack();
    let golden = Golden::of(&packed).layer(0, &layer, ".tar.gz", entries).tree("merged", entries);
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        stage.costs(&[&layer], || {
            assert_eq!(read(mount.join("merged/base/deploy.yaml")), b"kind: Deployment\n");
        });
        golden.check(mount.dir());
    }
}

#[test]
fn links_of_archives_are_hidden_where_that_is_asked_for() {
    let entries: Entries<'_> = &[
        ("a@", b"z"),
        ("b", b"b"),
        ("c@", b"b"),
        ("d/", b""),
        ("d/e@", b"../b"),
        ("d/f", b"f"),
        ("z", b"z"),
    ];
    let files: Entries<'_> = &[("b", b"b"), ("d/", b""), ("d/f", b"f"), ("z", b"z")];
    let layer = tgz("application/vnd.cncf.flux.content.v1.tar+gzip", entries);
    let packed = Shape::of("application/vnd.cncf.flux.config.v1+json", b"{}".as_slice()).layer(&layer).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&["-o", "hide_symlinks"]);
    Golden::default().tree("merged", files).check_below(mount.dir(), "merged");
    assert!(std::fs::symlink_metadata(mount.join("merged/d/e")).is_err());
    // The links that ocifs itself makes are no part of the archive.
    Golden::of(&packed).layer(0, &layer, ".tar.gz", files).tree("merged", files).check(mount.dir());
}

#[test]
fn a_timoni_module_is_the_union_of_vendor_and_module() {
    let vendor: Entries<'_> =
        &[("cue.mod/", b""), ("cue.mod/gen/", b""), ("cue.mod/gen/a.cue", b"package a\n")];
    let module: Entries<'_> = &[
        ("cue.mod/", b""),
        ("cue.mod/module.cue", b"module: \"x\"\n"),
        ("timoni.cue", b"package main\n"),
        ("README.md", b"# m\n"),
    ];
    let both: Entries<'_> = &[
        ("cue.mod/gen/a.cue", b"package a\n"),
        ("cue.mod/module.cue", b"module: \"x\"\n"),
        ("timoni.cue", b"package main\n"),
        ("README.md", b"# m\n"),
    ];
    let kind = "application/vnd.timoni.content.v1.tar+gzip";
    let layers = [
        tgz(kind, vendor).note("sh.timoni.content.type", "module/vendor"),
        tgz(kind, module).note("sh.timoni.content.type", "module"),
    ];
    let packed = Shape::of("application/vnd.timoni.config.v1+json", b"{}".as_slice()).layers(&layers).pack();
    let golden = Golden::of(&packed)
        .tree("layers/00-module_vendor", vendor)
        .link("layers/00-module_vendor.tar.gz")
        .tree("layers/01-module", module)
        .link("layers/01-module.tar.gz")
        .tree("merged", both);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}

const CHART: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

#[test]
fn a_helm_chart_is_a_file_and_a_tree() {
    let entries: Entries<'_> = &[
        ("podinfo/Chart.yaml", b"name: podinfo\n"),
        ("podinfo/values.yaml", b"replicas: 1\n"),
        ("podinfo/templates/deployment.yaml", b"kind: Deployment\n"),
    ];
    let config = br#"{"name":"podinfo","version":"6.7.1+build.5","apiVersion":"v2","type":"application"}"#;
    let prov = Blob::new("application/vnd.cncf.helm.chart.provenance.v1.prov", b"-----BEGIN PGP".as_slice());
    // Some pushers use the older type, and the order is not fixed.
    for (kind, chart_first) in [(CHART, true), ("application/tar+gzip", false)] {
        let chart = tgz(kind, entries);
        let layers = if chart_first { [&chart, &prov] } else { [&prov, &chart] };
        let packed =
            Shape::of("application/vnd.cncf.helm.config.v1+json", config.as_slice()).layers(layers).pack();
        let golden = Golden::of(&packed)
            .tree(
                "files",
                &[
                    ("podinfo-6.7.1+build.5.tgz", &chart.bytes),
                    ("podinfo-6.7.1+build.5.tgz.prov", &prov.bytes),
                ],
            )
            .layer(usize::from(!chart_first), &chart, ".tar.gz", entries)
            .tree("merged", entries);
        let config = packed.config().unwrap().clone();
        for stage in Stage::both(&packed) {
            let mount = stage.mount_for(&[&config], &[]);
            stage.costs(&[&prov], || {
                assert!(read(mount.join("files/podinfo-6.7.1+build.5.tgz.prov")) == prov.bytes);
            });
            golden.check(mount.dir());
        }
    }
}

#[test]
fn a_helm_chart_whose_config_leads_elsewhere_gets_a_plain_name() {
    let chart = tgz(CHART, &[("x/Chart.yaml", b"name: x\n")]);
    for config in
        [r#"{"name":"../../etc","version":"1"}"#, r#"{"name":"a/b","version":"1"}"#, "no json", "{}"]
    {
        let packed =
            Shape::of("application/vnd.cncf.helm.config.v1+json", config.as_bytes()).layer(&chart).pack();
        let Some(stage) = Stage::strict(&packed) else { return };
        let mount = stage.mount(&[]);
        let name = format!("files/00-{}.tar.gz", chart.short());
        assert!(read(mount.join(&name)) == chart.bytes, "{config}");
        assert_eq!(read(mount.join("merged/x/Chart.yaml")), b"name: x\n");
        let status: serde_json::Value = serde_json::from_str(&mount.status()).unwrap();
        assert_ne!(status["warnings"], json!([]), "{config}");
    }
}

#[test]
fn a_homebrew_formula_is_one_bottle_for_each_system() {
    let mut index = Bundle::default().untyped();
    let mut trees = Vec::new();
    // Three systems, of which two have the same platform but for the version of the system.
    for (os, arch, version, tag, name) in [
        ("darwin", "arm64", "macOS 15.1", "arm64_sequoia", "darwin-arm64-2.12.arm64_sequoia"),
        ("darwin", "arm64", "macOS 14.6", "arm64_sonoma", "darwin-arm64-2.12.arm64_sonoma"),
        ("linux", "amd64", "Ubuntu 22.04.5 LTS", "x86_64_linux", "linux-amd64"),
    ] {
        let receipt = format!("{{\"built_on\":\"{tag}\"}}");
        let entries: Entries<'_> = &[
            ("hello/2.12/bin/hello", tag.as_bytes()),
            ("hello/2.12/INSTALL_RECEIPT.json", receipt.as_bytes()),
        ];
        let title = format!("hello--2.12.{tag}.bottle.tar.gz");
        let layer = tgz("application/vnd.oci.image.layer.v1.tar+gzip", entries).titled(&title);
        let config = json!({"architecture": arch, "os": os, "os.version": version,
            "rootfs": {"type": "layers", "diff_ids": [crate::byte_text::digest_of(&tar(entries))]}});
        let packed = Shape::of(CONFIG, config.to_string())
            .untyped()
            .layer(&layer)
            .note("org.opencontainers.image.ref.name", &format!("2.12.{tag}"))
            .pack();
        let golden = Golden::of(&packed)
            .file(&format!("files/{title}"), &layer.bytes)
            .layer(0, &layer, ".tar.gz", entries)
            .tree("merged", entries);
        let more = json!({
            "platform": {"architecture": arch, "os": os, "os.version": version},
            "annotations": {
                "org.opencontainers.image.ref.name": format!("2.12.{tag}"),
                "sh.brew.bottle.digest": &layer.digest()["sha256:".len()..],
                "sh.brew.bottle.size": layer.size().to_string(),
                "sh.brew.tab": "{}",
            },
        });
        index = index.entry(&packed, more);
        trees.push((name, golden, title));
    }
    let packed = index.pack();
    for stage in Stage::both(&packed) {
        let all = stage.mount_for(&[], &["--platform", "all"]);
        for (name, golden, _) in &trees {
            golden.check(&all.join("platforms").join(name));
        }
        let reference = stage.reference(":v1");
        let select = ["--select", "org.opencontainers.image.ref.name=*.arm64_sonoma"];
        let one = stage.site.mount_at("one", &reference, &select);
        assert_eq!(read(one.join("merged/hello/2.12/bin/hello")), b"arm64_sonoma");
        assert!(one.join("files").join(&trees[1].2).exists());
    }
}

#[test]
fn a_kit_is_the_union_of_its_archives() {
    let kit = |kind: &str| format!("application/vnd.kitops.modelkit.{kind}");
    let model: Entries<'_> = &[("model.bin", b"weights")];
    let data: Entries<'_> = &[("data/", b""), ("data/train.csv", b"a,b\n")];
    let layers = [Blob::new(&kit("model.v1.tar"), tar(model)), tgz(&kit("dataset.v1.tar+gzip"), data)];
    let kitfile = br#"{"manifestVersion":"1.0.0","model":{"path":"model.bin"},"datasets":[{"path":"data"}]}"#;
    let packed = Shape::of(&kit("config.v1+json"), kitfile.as_slice()).layers(&layers).pack();
    let golden = Golden::of(&packed)
        .layer(0, &layers[0], ".tar", model)
        .layer(1, &layers[1], ".tar.gz", data)
        .tree("merged", &[("model.bin", b"weights"), ("data/train.csv", b"a,b\n")]);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}
