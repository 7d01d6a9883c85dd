//! Layers of images in the encodings that hardly any builder writes, against what `umoci` unpacks of the same archives.

use std::path::Path;
use std::process::Command;

use crate::byte_text::digest_of;
use crate::compare::assert_same;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run};
use crate::shapes::through;
use crate::site::Site;
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 6] =
    [Need::Root, Need::Fuse, Need::Tool("umoci"), Need::Tool("xz"), Need::Tool("bzip2"), Need::Tool("lz4")];

/// Three archives, each of which changes what is below it; bodies are larger than a block of every encoding.
fn archives() -> [Vec<u8>; 3] {
    let big = noise(1_500_000, 50);
    let text = b"a line that repeats itself\n".repeat(90_000);
    let base = Tarball::new()
        .dir("etc")
        .file("etc/kept", b"lower\n")
        .file("etc/gone", b"gone\n")
        .dir("opt")
        .file("opt/hidden", b"hidden\n")
        .file("big", &big)
        .hard_link("etc/again", "big", 0o644)
        .symlink("link", "etc/kept");
    let middle =
        Tarball::new().file("etc/.wh.gone", b"").file("text", &text).dir("opt").file("opt/.wh..wh..opq", b"");
    let top = Tarball::new()
        .dir("opt")
        .file_with_mode("opt/tool", 0o4755, &noise(700_000, 51))
        .file("big", b"small now\n");
    [base.bytes(), middle.bytes(), top.bytes()]
}

fn unpacked(site: &Site, layout: &Path) -> std::path::PathBuf {
    let out = site.scratch().join("unpacked");
    let image = format!("{}:gzip", layout.display());
    run(Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&out)).ok();
    out
}

#[test]
fn xz_bzip2_and_lz4_layers_merge_like_their_archives_in_umoci() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let dir = site.scratch().join("layout");
    let mut layout = Layout::create(&dir);
    let archives = archives();
    let gzip: Vec<Layer> = archives.iter().map(|tar| Layer::of(tar, Encoding::Gzip)).collect();
    layout.image("gzip", &gzip);
    let expected = unpacked(&site, &dir);
    // What the layers are called means nothing: the bytes decide.
    let programs = [("xz -c -2", ".tar.xz"), ("bzip2 -c", ".tar.bz2"), ("lz4 -q -c", ".tar.lz4")];
    for turn in 0..programs.len() {
        let mut made = Vec::new();
        for (number, tar) in archives.iter().enumerate() {
            let (program, extension) = programs[(number + turn) % programs.len()];
            let stored = through(site.scratch(), program, tar);
            made.push((
                Layer { media_type: gzip[0].media_type.clone(), stored, diff_id: digest_of(tar) },
                extension,
            ));
        }
        let names: Vec<String> = made
            .iter()
            .enumerate()
            .map(|(number, (layer, extension))| {
                format!("{number:02}-{}{extension}", &layer.digest()["sha256:".len()..][..12])
            })
            .collect();
        let tag = format!("turn-{turn}");
        layout.image(&tag, &made.into_iter().map(|(layer, _)| layer).collect::<Vec<_>>());
        let reference = layout.reference(&tag);
        // The second mount has nothing to decode for names.
        for _ in 0..2 {
            let mount = site.mount(&reference, &[]);
            assert_same(&expected, &mount.join("merged"));
            for name in &names {
                assert!(mount.join("layers").join(name).is_symlink(), "{name}");
            }
            mount.unmount();
        }
    }
}
