//! The names of a mount: what each view shows, and how it is chosen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::layout::{INDEX, Layer, Layout};
use crate::process::{Need, able, run};
use crate::site::{Mount, Site};
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// Two layers: the upper one replaces one file and whites another out.
fn image(site: &Site) -> (Layout, Vec<Layer>) {
    let mut layout = Layout::create(site.scratch().join("layout"));
    let lower = Tarball::new().dir("etc").file("etc/kept", b"lower\n").file("etc/gone", b"gone\n").bytes();
    let upper = Tarball::new().dir("etc").file("etc/.wh.gone", b"").file("etc/new", b"upper\n").bytes();
    let layers = || vec![Layer::of(&lower, Encoding::Gzip), Layer::of(&upper, Encoding::Zstd)];
    layout.image("v1", &layers());
    (layout, layers())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
    let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_image_shows_its_documents_blobs_layers_and_merged_tree() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (layout, layers) = image(&site);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let top = names(mount.dir());
    for name in [".ocifs", "blobs", "config.json", "layers", "manifest.json", "merged"] {
        assert!(top.iter().any(|it| it == name), "{name} is not in {top:?}");
    }
    for name in ["index.json", "disk", "files"] {
        assert!(top.iter().all(|it| it != name), "{name} is listed without content");
    }
    assert_eq!(digest_of(&fs::read(mount.join("manifest.json")).unwrap()), mount.digest());
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(mount.join("manifest.json")).unwrap()).unwrap();
    let config = fs::read(mount.join("config.json")).unwrap();
    assert_eq!(manifest["config"]["digest"], digest_of(&config).as_str());
    for name in names(&mount.join("blobs/sha256")) {
        let blob = fs::read(mount.join("blobs/sha256").join(&name)).unwrap();
        assert_eq!(digest_of(&blob), format!("sha256:{name}"));
    }
    assert_eq!(names(&mount.join("blobs/sha256")).len(), 3);
    assert_eq!(names(&mount.join("merged/etc")), ["kept", "new"]);

    let short = |layer: &Layer| layer.digest()["sha256:".len()..][..12].to_owned();
    let (first, second) = (format!("00-{}", short(&layers[0])), format!("01-{}", short(&layers[1])));
    let expected = [first.clone(), format!("{first}.tar.gz"), second.clone(), format!("{second}.tar.zst")];
    assert_eq!(names(&mount.join("layers")), expected);
    assert_eq!(names(&mount.join("layers").join(&first).join("etc")), ["gone", "kept"]);
    assert_eq!(names(&mount.join("layers").join(&second).join("etc")), [".wh.gone", "new"]);
    let link = mount.join("layers").join(format!("{first}.tar.gz"));
    assert!(link.is_symlink());
    assert!(fs::read(link).unwrap() == layers[0].stored);
    let status: serde_json::Value = serde_json::from_str(&mount.status()).unwrap();
    assert!(layers.iter().all(|layer| status.to_string().contains(&layer.digest())), "{status}");
}

#[test]
fn each_view_can_be_the_root_of_a_mount() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (layout, layers) = image(&site);
    let whole = site.mount(&layout.reference("v1"), &[]);
    for view in ["merged", "layers", "blobs"] {
        let mount = site.mount_at(view, &layout.reference("v1"), &["--view", view]);
        assert_eq!(names(mount.dir()), names(&whole.join(view)), "{view}");
    }
    let narrow = ["--view", "merged", "--subdir", "etc"];
    let mount = site.mount_at("etc", &layout.reference("v1"), &narrow);
    assert_eq!(names(mount.dir()), ["kept", "new"]);
    let link = site.mount_at("links", &layout.reference("v1"), &["--view", "layers"]);
    // A link to a blob means nothing where the blobs are not: it must not dangle into the host.
    for name in names(link.dir()).iter().filter(|name| name.contains(".tar")) {
        let target = fs::read_link(link.join(name));
        assert!(target.is_err() || !target.unwrap().is_absolute(), "{name}");
    }
    assert_eq!(layers.len(), 2);
}

#[test]
fn a_view_without_content_is_refused_with_its_name() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (layout, _) = image(&site);
    site.mount_refused(&layout.reference("v1"), &["--view", "disk"], &[3, 6], &["disk"]);
    site.mount_refused(&layout.reference("v1"), &["--view", "no-such-view"], &[2, 3], &["no-such-view"]);
    let missing = ["--view", "merged", "--subdir", "no/such/dir"];
    site.mount_refused(&layout.reference("v1"), &missing, &[3, 6], &["no/such/dir"]);
}

#[test]
fn titled_files_are_named_by_title_and_bad_titles_by_digest() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let kind = "application/x.thing";
    let bad = ["../escape", "a/../b", "."];
    let mut pieces =
        vec![Piece::new("plain.txt", kind, *b"plain"), Piece::new("dir/deep.txt", kind, *b"deep")];
    // An absolute title is its last component, and repeated slashes are one.
    let mended = [Piece::new("/etc/passwd", kind, *b"last"), Piece::new("a//b", kind, *b"one")];
    pieces.extend(bad.iter().map(|title| Piece::new(title, kind, format!("bad {title}"))));
    pieces.extend(mended);
    artifact::write(&mut layout, "v1", "application/x.things", &pieces);
    pieces.truncate(2 + bad.len());
    let mount = site.mount(&layout.reference("v1"), &["--view", "files"]);
    assert_eq!(fs::read(mount.join("passwd")).unwrap(), b"last");
    assert_eq!(fs::read(mount.join("a/b")).unwrap(), b"one");
    assert_eq!(fs::read(mount.join("plain.txt")).unwrap(), b"plain");
    assert_eq!(fs::read(mount.join("dir/deep.txt")).unwrap(), b"deep");
    let all = names(mount.dir());
    for piece in &pieces[2..] {
        let hex = &digest_of(&piece.bytes)["sha256:".len()..][..12];
        let name =
            all.iter().find(|name| name.contains(hex)).unwrap_or_else(|| panic!("{hex} is not in {all:?}"));
        assert!(fs::read(mount.join(name)).unwrap() == piece.bytes);
    }
}

#[test]
fn an_unknown_layer_type_is_still_a_blob_and_a_file() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let pieces = [Piece::new("model.bin", "application/x.never-heard-of+strange; v=1", *b"weights")];
    artifact::write(&mut layout, "v1", "application/x.model", &pieces);
    let mount = site.mount(&layout.reference("v1"), &[]);
    assert_eq!(fs::read(mount.join("files/model.bin")).unwrap(), b"weights");
    let blob = mount.join("blobs").join(digest_of(b"weights").replace(':', "/"));
    let stat = fs::metadata(&blob).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.size()), (0o444, 7));
    // `created` of the manifest.
    assert_eq!(stat.mtime(), 1_714_979_289);
    assert!(!mount.join("merged").exists());
    let output = site.ocifs(&["inspect", &layout.reference("v1")]).ok().text();
    assert!(output.contains("x.never-heard-of+strange"), "{output}");
}

#[test]
fn an_index_shows_itself_beside_the_chosen_platform() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let mut entries = Vec::new();
    for arch in ["s390x", "amd64", "arm64"] {
        let tar = Tarball::new().file("arch", arch.as_bytes()).bytes();
        let platform = serde_json::json!({"os": "linux", "architecture": arch});
        entries.push(layout.image_for(&[Layer::of(&tar, Encoding::Gzip)], platform));
    }
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    layout.document("many", INDEX, index.as_bytes());
    let reference = layout.reference("many");
    for arch in ["s390x", "amd64", "arm64"] {
        let platform = format!("linux/{arch}");
        let mount = site.mount_at(arch, &reference, &["--platform", &platform]);
        assert_eq!(fs::read_to_string(mount.join("merged/arch")).unwrap(), arch);
        assert_eq!(fs::read_to_string(mount.join("index.json")).unwrap(), index);
    }
    let words = ["linux/riscv64", "linux/s390x", "linux/amd64", "linux/arm64"];
    site.mount_refused(&reference, &["--platform", "linux/riscv64"], &[3, 6], &words);
}

#[test]
fn the_mount_table_has_the_type_and_the_reference_as_it_was_written_and_the_list_has_the_digest() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (layout, _) = image(&site);
    let reference = layout.reference("v1");
    let mount = site.mount(&reference, &[]);
    let line = mount.line();
    assert_eq!(line.fstype, "fuse.ocifs");
    assert_eq!(line.source, reference);
    for option in ["ro", "nosuid", "nodev"] {
        assert!(line.options.split(',').any(|it| it == option), "{line:?}");
    }
    assert!(
        mount.printed().contains(&format!("mounted at {}", mount.dir().display())),
        "{}",
        mount.printed()
    );
    let mut findmnt = Command::new("findmnt");
    findmnt.args(["-n", "-t", "fuse.ocifs", "-o", "SOURCE"]).arg(mount.dir());
    assert_eq!(run(&mut findmnt).ok().text().trim(), reference);
    let pinned = xattr::get(mount.dir(), "user.ocifs.reference").unwrap().unwrap();
    assert!(String::from_utf8(pinned).unwrap().ends_with(&format!("@{}", mount.digest())));
    let listed = site.ocifs(&["list"]).ok().text();
    let listed = listed.lines().find(|line| line.contains(mount.dir().to_str().unwrap())).unwrap().to_owned();
    assert!(listed.starts_with("served") && listed.ends_with(&mount.digest()), "{listed}");
}

#[test]
fn options_can_be_written_the_way_of_mount() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (layout, _) = image(&site);
    let reference = layout.reference("v1");
    let by_option = site.mount_at("option", &reference, &["-o", "view=merged,subdir=etc,noatime,_netdev"]);
    assert_eq!(names(by_option.dir()), ["kept", "new"]);
    // What mount(8) runs for `mount -t fuse.ocifs REF DIR`.
    let dir = site.mount_point("bare");
    let options =
        format!("rw,ro,nosuid,nodev,cache_dir={},view=merged", site.scratch().join("other").display());
    let mut command = site.command();
    command.arg(&reference).arg(&dir).args(["-o", options.trim_start_matches("rw,")]);
    let bare = Mount::up(&mut command, dir);
    assert_eq!(names(&bare.join("etc")), ["kept", "new"]);
    assert!(site.scratch().join("other").is_dir());
    site.mount_refused(&reference, &["-o", "rw"], &[1, 2], &["rw"]);
    site.mount_refused(&reference, &["-o", "no_such_option=1"], &[1, 2], &["no_such_option"]);
}
