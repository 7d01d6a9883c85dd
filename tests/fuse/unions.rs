//! Random images against what umoci and containerd unpack of them.
//!
//! Where those two agree there is one right tree, and it has to be ours. Where they do not, docs/layers.md says why. The idea: few
//! names, so that entries of the same layer and of others meet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::compare::{DIRECTORY, LINK, TYPE, Tree, hard_links, read_tree};
use crate::containerd::Containerd;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run};
use crate::random::Random;
use crate::real_registry::digest_of;
use crate::site::Site;

const NEEDS: [Need<'_>; 5] =
    [Need::Root, Need::Fuse, Need::Tool("umoci"), Need::Tool("containerd"), Need::Tool("ctr")];

/// Images without `OCIFS_UNIONS`.
const IMAGES: u64 = 40;

#[test]
fn random_images_equal_umoci_and_containerd_where_both_agree() {
    if !able(&NEEDS) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let images = number("OCIFS_UNIONS").unwrap_or(IMAGES);
    let first = number("OCIFS_UNIONS_FIRST").unwrap_or_default();
    let site = Site::new();
    let containerd = Containerd::start();
    let (mut agreed, mut differ, mut refused) = (0, 0, 0);
    for image in first..first + images {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (image << 17 | image));
        let (layers, words) = layers(&mut random);
        let at = |name: &str| site.scratch().join(format!("{name}{image}"));
        let dir = at("layout");
        let mut layout = Layout::create(&dir);
        layout.image("t", &layers);
        let by_umoci = umoci(&format!("{}:t", dir.display()), &at("umoci"));
        let by_containerd = unpacked(&containerd, &dir, &at("archive"), &layers);
        match (by_umoci, by_containerd) {
            (Some(one), Some(other)) if one == other => {
                agreed += 1;
                let (out, reference) = (at("ocifs"), layout.reference("t"));
                let exported =
                    site.ocifs(&["export", "--format=dir", "-o", &out.display().to_string(), &reference]);
                let ours = (exported.code == Some(0)).then(|| shape(&out)).ok_or(exported.stderr);
                assert_eq!(ours, Ok(one), "image {image}: {words:#?}");
            }
            (Some(_), Some(_)) => differ += 1,
            _ => refused += 1,
        }
    }
    eprintln!("{agreed} agreed, {differ} differ, {refused} refused by one of them");
    assert!(agreed * 4 > images, "{agreed} of {images} are compared");
}

/// What a tree is, as far as the tools say it: times of directories are when they unpacked, and link permissions are nobody's.
type Shape = (BTreeMap<Vec<u8>, String>, BTreeSet<BTreeSet<Vec<u8>>>);

fn shape(root: &Path) -> Shape {
    let tree: Tree = read_tree(root).unwrap();
    let mut links = hard_links(&tree);
    links.retain(|names| names.len() > 1);
    let line = |(path, entry): (&Vec<u8>, &crate::compare::Entry)| {
        let kind = entry.mode & TYPE;
        let mode = if kind == LINK { kind } else { entry.mode };
        let time = if kind == DIRECTORY { 0 } else { entry.mtime.0 };
        let what = format!("{mode:o} {}:{} {time} {:?} {:?}", entry.uid, entry.gid, entry.link, entry.sha256);
        (path.clone(), what)
    };
    (tree.iter().filter(|(path, _)| !path.is_empty()).map(line).collect(), links)
}

fn umoci(image: &str, out: &Path) -> Option<Shape> {
    let done = run(Command::new("umoci").args(["raw", "unpack", "--image", image]).arg(out));
    (done.code == Some(0)).then(|| shape(out))
}

/// What containerd unpacks, by the snapshotter that copies every layer.
fn unpacked(containerd: &Containerd, layout: &Path, archive: &Path, layers: &[Layer]) -> Option<Shape> {
    const NATIVE: [&str; 2] = ["--snapshotter", "native"];
    run(Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(archive).arg(".")).ok();
    let archive = archive.display().to_string();
    let import = [&["images", "import"][..], &NATIVE, &["--base-name", "t.example/u", &archive]].concat();
    if containerd.run(&import).code != Some(0) {
        return None;
    }
    let chain = layers.iter().map(|layer| layer.diff_id.clone());
    let chain = chain.reduce(|chain, layer| digest_of(format!("{chain} {layer}").as_bytes()))?;
    // A view that nothing refers to is garbage until it has the label of a root.
    let ctr = |args: &[&str]| {
        let done = containerd.run(&[&["snapshots"][..], &NATIVE, args].concat());
        (done.code == Some(0)).then(|| done.text())
    };
    let mounts = || {
        ctr(&["view", &archive, &chain])?;
        ctr(&["label", &archive, "containerd.io/gc.root=1"])?;
        ctr(&["mounts", "/target", &archive])
    };
    // `mount -t bind SOURCE TARGET -o ...`
    let mount = (0..20).find_map(|_| mounts()).expect("a view");
    let source = mount.split_whitespace().find(|word| word.contains("/snapshots/")).expect("a bind mount");
    Some(shape(Path::new(source)))
}

/// One to four layers, and what is in them for a message.
fn layers(random: &mut Random) -> (Vec<Layer>, Vec<String>) {
    let (mut layers, mut words) = (Vec::new(), Vec::new());
    let mut seen: Vec<String> = Vec::new();
    for layer in 0..=random.below(4) {
        let mut tar = Vec::new();
        for entry in 0..=random.below(7) {
            let words_of = one(random, &mut tar, &mut seen, layer * 10 + entry);
            words.push(format!("{layer}: {words_of}"));
        }
        tar.resize(tar.len() + 1024, 0);
        layers.push(Layer::of(&tar, Encoding::Gzip));
    }
    (layers, words)
}

/// What a path ends in: directories and files have names of their own, and now and then those of the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Directory,
    File,
}

fn path(random: &mut Random, leaf: Leaf) -> String {
    let mut names: Vec<&str> = (0..random.below(3)).map(|_| *random.pick(&["a", "b"])).collect();
    names.push(match leaf {
        _ if random.below(12) == 0 => *random.pick(&["a", "b", "f", "g"]),
        Leaf::Directory => *random.pick(&["a", "b"]),
        Leaf::File => *random.pick(&["f", "g", "h"]),
    });
    names.join("/")
}

/// Appends an entry that is unlike every other.
fn one(random: &mut Random, tar: &mut Vec<u8>, seen: &mut Vec<String>, number: u64) -> String {
    let prefix = *random.pick(&["", "", "./", "/"]);
    let kind = random.below(12);
    let leaf = match kind {
        4..=6 | 10 => Leaf::Directory,
        9 if random.below(5) < 2 => Leaf::Directory,
        _ => Leaf::File,
    };
    let path = path(random, leaf);
    let name = format!("{prefix}{path}");
    let (name, flag, link, body) = match kind {
        4..=6 => (format!("{name}/"), b'5', String::new(), String::new()),
        7 => (name, b'2', random.pick(&["a", "b/f", "/a", "../b"]).to_string(), String::new()),
        8 if !seen.is_empty() => {
            let target = format!("{}{}", random.pick(&["", "./", "/"]), random.pick(seen));
            (name, b'1', target, String::new())
        }
        9 => {
            let (above, last) = path.rsplit_once('/').map_or(("", &path[..]), |(above, last)| (above, last));
            let slash = if above.is_empty() { "" } else { "/" };
            (format!("{prefix}{above}{slash}.wh.{last}"), b'0', String::new(), String::new())
        }
        10 => (format!("{name}/.wh..wh..opq"), b'0', String::new(), String::new()),
        _ => (name, b'0', String::new(), format!("content {number}")),
    };
    if flag == b'0' && !body.is_empty() {
        seen.push(path);
    }
    entry(tar, &name, flag, &link, body.as_bytes(), number);
    format!("{} {name} {link}", char::from(flag))
}

/// A header by hand: names as they are, which no library writes.
fn entry(tar: &mut Vec<u8>, name: &str, flag: u8, link: &str, body: &[u8], number: u64) {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let mode = if flag == b'5' { 0o700 + number % 8 } else { 0o600 + number % 8 };
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, format!("{:07o}", number % 5).as_bytes());
    put(116, format!("{:07o}", number % 7).as_bytes());
    put(124, format!("{:011o}", body.len()).as_bytes());
    put(136, format!("{:011o}", 1_600_000_000 + number).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(body);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
