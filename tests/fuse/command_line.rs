//! Commands without a mount, and the stream of each output.

use std::fs;
use std::process::Command;

use crate::artifact::{self, Piece};
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run};
use crate::site::{Site, binary, copy_binary};
use crate::tarball::{Tarball, noise};

fn image(site: &Site, body: &[u8]) -> String {
    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar =
        Tarball::new().dir("etc").file("etc/os-release", body).symlink("link", "etc/os-release").bytes();
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    layout.reference("v1")
}

#[test]
fn cat_writes_the_bytes_of_a_file_and_nothing_else() {
    let site = Site::new();
    let body = noise(300_000, 21);
    let reference = image(&site, &body);
    let output = site.ocifs(&["cat", &reference, "merged/etc/os-release"]).ok();
    assert!(output.stdout == body);
    assert!(output.stderr.is_empty(), "{}", output.stderr);
    assert!(site.ocifs(&["cat", &reference, "/merged/link"]).ok().stdout == body);
    let manifest = site.ocifs(&["cat", &reference, "manifest.json"]).ok().stdout;
    assert!(serde_json::from_slice::<serde_json::Value>(&manifest).is_ok());
    site.ocifs(&["cat", &reference, "merged/no/such"]).refused(&[1, 3], &["merged/no/such"]);
    site.ocifs(&["cat", &reference, "merged/etc"]).refused(&[1, 2], &["merged/etc"]);
}

#[test]
fn links_of_an_archive_do_not_leave_its_tree() {
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar = Tarball::new()
        .file("manifest.json", b"of the image")
        .dir("a")
        .dir("a/b")
        .symlink("above", "../manifest.json")
        .symlink("absolute", "/manifest.json")
        .symlink("a/b/far", "../../../../manifest.json")
        .symlink("a/near", "../manifest.json")
        .bytes();
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    let reference = layout.reference("v1");
    let listed = site.ocifs(&["ls", &reference, "layers"]).ok().text();
    let layer = format!("layers/{}", listed.lines().find(|name| name.starts_with("00-")).unwrap());
    for tree in ["merged", &layer] {
        for name in ["above", "absolute", "a/b/far", "a/near", "a/b/../near"] {
            let printed = site.ocifs(&["cat", &reference, &format!("{tree}/{name}")]).ok();
            assert_eq!(printed.text(), "of the image", "{tree}/{name}");
        }
        for name in ["manifest.json/", "manifest.json/.", "manifest.json/../manifest.json"] {
            site.ocifs(&["cat", &reference, &format!("{tree}/{name}")]).refused(&[2], &["not a directory"]);
        }
    }
    // A path of the command line may.
    let manifest = site.ocifs(&["cat", &reference, "merged/../manifest.json"]).ok().stdout;
    assert!(serde_json::from_slice::<serde_json::Value>(&manifest).is_ok());
}

#[test]
fn cat_to_a_closed_pipe_ends_quietly() {
    let site = Site::new();
    let reference = image(&site, &noise(4 << 20, 22));
    let mut shell = Command::new("bash");
    shell.args(["-c", "set -o pipefail; \"$1\" cat \"$2\" merged/etc/os-release | head -c 10 | wc -c", "sh"]);
    shell
        .arg(binary())
        .arg(&reference)
        .env("OCIFS_CACHE_DIR", site.cache())
        .env("HOME", site.scratch().path());
    let output = run(&mut shell);
    assert_eq!(output.text().trim(), "10");
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

#[test]
fn ls_lists_the_names_of_a_mount() {
    let site = Site::new();
    let reference = image(&site, b"ID=debian\n");
    let top = site.ocifs(&["ls", &reference]).ok().text();
    for name in ["blobs", "config.json", "layers", "manifest.json", "merged"] {
        assert!(top.lines().any(|line| line.trim_end_matches('/') == name), "{top}");
    }
    assert_eq!(site.ocifs(&["ls", &reference, "merged/etc"]).ok().text(), "os-release\n");
    let long = site.ocifs(&["ls", "-l", &reference, "merged"]).ok().text();
    assert!(long.contains("link -> etc/os-release") && long.contains("drwxr-xr-x"), "{long}");
    let deep = site.ocifs(&["ls", "-R", &reference, "merged"]).ok().text();
    assert!(deep.contains("os-release"), "{deep}");
    site.ocifs(&["ls", &reference, "merged/nowhere"]).refused(&[1, 3], &["merged/nowhere"]);
}

#[test]
fn inspect_describes_an_image_for_people_and_for_programs() {
    let site = Site::new();
    let reference = image(&site, b"ID=debian\n");
    let text = site.ocifs(&["inspect", &reference]).ok();
    assert!(text.text().contains("sha256:") && text.text().contains("container image"), "{}", text.text());
    let json = site.ocifs(&["inspect", "--format", "json", &reference]).ok();
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(value["schemaVersion"].is_u64(), "{value}");
    let manifest = site.ocifs(&["cat", &reference, "manifest.json"]).ok().stdout;
    assert!(value.to_string().contains(&crate::byte_text::digest_of(&manifest)), "{value}");
}

#[test]
fn ls_and_cat_need_neither_fuse_nor_root() {
    if !able(&[Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    let public = crate::scratch::Scratch::public();
    let mut layout = Layout::create(public.join("layout"));
    let pieces = [Piece::new("model.bin", "application/x.model", *b"weights")];
    artifact::write(&mut layout, "v1", "application/x.things", &pieces);
    let copy = public.join("ocifs");
    copy_binary(&copy);
    let home = public.subdir("home");
    std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
    let as_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"];
    // A namespace of its own, in which there is no FUSE device.
    let line = "mount --bind /dev/null /dev/fuse; exec setpriv \"${@:3}\" \"$1\" cat \"$2\" files/model.bin";
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "bash", "-euc", line, "sh"])
        .arg(&copy)
        .arg(layout.reference("v1"))
        .args(as_nobody);
    shell.env("HOME", &home).env_remove("OCIFS_CACHE_DIR").env_remove("XDG_CACHE_HOME").current_dir("/");
    assert_eq!(run(&mut shell).ok().stdout, b"weights");
}

#[test]
fn wrong_usage_is_2_and_names_the_word() {
    let site = Site::new();
    site.ocifs(&["mount", "--no-such-flag", "a", "b"]).refused(&[2], &["--no-such-flag"]);
    site.ocifs(&["mount", "only-a-reference"]).refused(&[2], &[]);
    site.ocifs(&["mount", "127.0.0.1:1/UPPER/case:tag", "mnt"]).refused(&[2], &["UPPER/case"]);
    site.ocifs(&["inspect", "docker.io/UPPER/case:tag"]).refused(&[2], &["UPPER/case"]);
    site.ocifs(&["inspect", "host/name@sha256:short"]).refused(&[2], &["sha256:short"]);
    site.ocifs(&["no-such-command"]).refused(&[2], &["no-such-command"]);
    for (words, output) in [
        (&["export", "a", "x.tar", "-o", "y"][..], "-o x.tar"),
        (&["export", "--view=merged", "a", "-o", "y"], "--format=tar"),
        (&["export", "--layer=0", "a", "-o", "y"], "--layer"),
        (&["export", "--format=dir", "--skip-missing", "a", "-o", "y"], "--skip-missing"),
        (&["pull", "--title=x", "a"], "--title"),
        (&["resolve", "--layer=0", "a"], "--layer"),
        (&["cp", "a", "merged/f", "-"], "ocifs cat"),
    ] {
        site.ocifs(words).refused(&[2], &[output]);
    }
    // Each of these could be taken for something else, and would fail much later or not at all.
    site.ocifs(&["cache", "rm", "sha256:abc"]).refused(&[2], &["sha256:abc"]);
    site.ocifs(&["ls", "--authfile", "/nowhere/auth.json", "127.0.0.1:1/a"])
        .refused(&[2], &["/nowhere/auth.json"]);
    let reference = image(&site, b"x");
    site.ocifs(&["ls", &reference]).ok();
    site.ocifs(&["cache", "rm", "--authfile", "/nowhere/auth.json", "127.0.0.1:1/a"])
        .refused(&[2], &["/nowhere/auth.json"]);
    let mnt = site.mount_point("clear");
    let below = mnt.join("cache").display().to_string();
    let dir = mnt.display().to_string();
    let hidden = site.ocifs(&["mount", "--cache-dir", &below, &reference, &dir]);
    hidden.refused(&[2], &["the cache", "below the mount point"]);
    site.ocifs(&["mount", "--subdir", "merged/../..", &reference, &dir]).refused(&[2], &["--subdir"]);
    assert!(fs::read_dir(&mnt).unwrap().next().is_none(), "something was made in the mount point");
    let mut command = site.command();
    command.env("OCIFS_CACHE_DIR", "").args(["ls", &reference]);
    run(&mut command).ok();
    let help = site.ocifs(&["--help"]).ok();
    for word in ["mount", "umount", "inspect", "ls", "cat"] {
        assert!(help.text().contains(word), "{}", help.text());
    }
    assert!(site.ocifs(&["--version"]).ok().text().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn text_of_an_image_author_acts_on_no_terminal() {
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("evil"));
    let evil = "a\x1b[2J\x07\u{202e}\u{2066}\u{9b}b";
    let mut entries = Vec::new();
    let tar = Tarball::new().file("f", b"x").bytes();
    for number in 0..400 {
        let platform =
            serde_json::json!({"os": format!("{evil}{number}"), "architecture": evil, "variant": evil});
        let mut entry = layout.image_for(&[Layer::of(&tar, Encoding::Gzip)], platform.clone());
        entry["platform"] = platform;
        entries.push(entry);
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries
    });
    let bytes = index.to_string();
    layout.document("v1", "application/vnd.oci.image.index.v1+json", bytes.as_bytes());
    let reference = layout.reference("v1");
    let (dest, dir) = (site.scratch().join("dest"), site.mount_point("mnt"));
    let (dest, dir) = (dest.to_str().unwrap(), dir.to_str().unwrap());
    for words in [
        &["ls", &reference][..],
        &["inspect", &reference],
        &["inspect", "--format=json", "--platform=all", &reference],
        &["resolve", "--platform=linux/amd64", &reference],
        &["pull", &reference],
        &["verify", &reference],
        &["mount", &reference, dir],
        &["export", "-o", dest, &reference],
        &["cat", &reference, "merged/f"],
        &["cp", &reference, "merged/f", dest],
        &["ls", &layout.reference(&format!("no{evil}"))],
    ] {
        let output = site.ocifs(words);
        let shown = format!("{}{}", output.text(), output.stderr);
        let harmful = |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{2069}').contains(&c));
        assert!(!shown.contains(harmful), "{words:?}: {:?}", shown.chars().take(2000).collect::<String>());
        assert!(output.stderr.len() < 64 * 1024, "{words:?}: {} bytes", output.stderr.len());
    }
}

#[test]
fn arguments_in_the_wrong_order_and_unknown_mount_options_are_called_that() {
    let site = Site::new();
    let reference = image(&site, b"x");
    let dir = site.mount_point("a b").display().to_string();
    site.ocifs(&["mount", &dir, "registry.example/some/image:1"]).refused(
        &[2],
        &["reference comes first", &format!("ocifs mount registry.example/some/image:1 '{dir}'")],
    );
    for (list, output) in [
        ("bogus=1", "unknown mount option bogus"),
        ("uid=0", "unknown mount option uid"),
        ("remount", "cannot be remounted"),
    ] {
        let refused = site.ocifs(&["mount", "-o", list, &reference, &dir]);
        assert!(
            !refused.stderr.contains("--bogus") && !refused.stderr.contains("--uid"),
            "{}",
            refused.stderr
        );
        refused.refused(&[2], &[output]);
    }
    site.ocifs(&["cp", &reference, "merged/etc/os-release", "/nonexist/dir/"])
        .refused(&[2], &["/nonexist does not exist"]);
    assert!(site.ocifs(&["version"]).ok().text().contains(env!("CARGO_PKG_VERSION")));
}
