//! Random images against what umoci and containerd unpack of them.
//!
//! Where those two agree there is one right tree, and it has to be ours. Where they do not, docs/layers.md says why. The idea: few
//! names, so that entries of the same layer and of others meet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::byte_text::digest_of;
use crate::compare::{DIRECTORY, LINK, TYPE, Tree, hard_links, read_tree};
use crate::containerd::Containerd;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run};
use crate::random::Random;
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
    let (mut agreed, mut table) = (0, Table::default());
    for image in first..first + images {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (image << 17 | image));
        let (layers, words) = layers(&mut random);
        let at = |name: &str| site.scratch().join(format!("{name}{image}"));
        let dir = at("layout");
        let mut layout = Layout::create(&dir);
        layout.image("t", &layers);
        let by_umoci = umoci(&format!("{}:t", dir.display()), &at("umoci"));
        let by_containerd = unpacked(&containerd, &dir, &at("archive"), &layers);
        let (out, reference) = (at("ocifs"), layout.reference("t"));
        let exported = site.ocifs(&["export", "--format=dir", "-o", &out.display().to_string(), &reference]);
        let ours = (exported.code == Some(0)).then(|| shape(&out)).ok_or(exported.stderr);
        match (by_umoci, by_containerd) {
            (Ok(one), Ok(other)) if one == other => {
                agreed += 1;
                assert_eq!(ours, Ok(one), "image {image}: {words:#?}");
            }
            (by_umoci, by_containerd) => {
                let others = [by_umoci, by_containerd];
                for cause in causes(&others, &words) {
                    table.count(image, cause, &ours, &others);
                }
            }
        }
    }
    eprintln!("{agreed} of {images} are equal in umoci, containerd and ocifs; the others:\n{table}");
    assert!(agreed * 4 > images, "{agreed} of {images} are compared");
    assert!(table.unexplained().is_empty(), "{table}");
}

/// The result of one tool: a tree, or its words when it refused.
type Unpacked = Result<Shape, String>;

/// A reason why the two tools give different results, and the path where it shows; without a path a tool refused.
#[derive(Debug)]
struct Cause {
    name: String,
    path: Option<Vec<u8>>,
}

/// Images by cause, with the tools that ocifs agrees with there.
#[derive(Default)]
struct Table(BTreeMap<String, Row>);

#[derive(Default)]
struct Row {
    images: BTreeSet<u64>,
    as_umoci: usize,
    as_containerd: usize,
    refused: usize,
    neither: usize,
}

impl Table {
    fn count(&mut self, image: u64, Cause { name, path }: Cause, ours: &Unpacked, others: &[Unpacked; 2]) {
        let row = self.0.entry(name).or_default();
        if !row.images.insert(image) {
            return;
        }
        let same = |other: &Unpacked| match (&path, ours, other) {
            (Some(path), Ok(ours), Ok(other)) => ours.0.get(path) == other.0.get(path),
            (None, Ok(ours), Ok(other)) => ours == other,
            (None, Err(_), Err(_)) => true,
            _ => false,
        };
        match (same(&others[0]), same(&others[1])) {
            (true, _) => row.as_umoci += 1,
            (_, true) => row.as_containerd += 1,
            _ if ours.is_err() => row.refused += 1,
            _ => row.neither += 1,
        }
    }

    /// Causes that no rule knows.
    fn unexplained(&self) -> Vec<&String> {
        self.0.keys().filter(|name| name.starts_with("unexplained")).collect()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, Row { images, as_umoci, as_containerd, refused, neither }) in &self.0 {
            let (count, some) = (images.len(), images.iter().take(3).collect::<Vec<_>>());
            writeln!(
                f,
                "{count:4} {name}: ocifs as umoci {as_umoci}, as containerd {as_containerd}, refused {refused}, \
                 neither {neither} (such as {some:?})"
            )?;
        }
        Ok(())
    }
}

/// An entry of an image as [`layers`] describes it.
struct Entry<'a> {
    layer: &'a str,
    flag: char,
    path: &'a str,
    target: &'a str,
}

impl Entry<'_> {
    fn parent(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    fn is_marker(&self) -> bool {
        self.path.rsplit('/').next().is_some_and(|last| last.starts_with(".wh."))
    }

    /// Whether this marker hides `path` of lower layers.
    fn hides(&self, path: &str) -> bool {
        let Some((_, name)) = self.path.rsplit_once(".wh.") else { return false };
        match name {
            ".opq" => path != self.parent().trim_end_matches('/') && is_below(path, self.parent()),
            name => is_below(path, format!("{}/{name}", self.parent()).trim_start_matches('/')),
        }
    }
}

fn entries(words: &[String]) -> Vec<Entry<'_>> {
    words
        .iter()
        .map(|line| {
            let mut words = line.split(' ');
            let layer = words.next().expect("a layer");
            let flag = words.next().and_then(|flag| flag.chars().next()).expect("a flag");
            let mut name = || words.next().unwrap_or_default().trim_start_matches("./").trim_matches('/');
            Entry { layer, flag, path: name(), target: name() }
        })
        .collect()
}

/// Why the tools differ: a cause for each kind of difference.
fn causes(others: &[Unpacked; 2], words: &[String]) -> Vec<Cause> {
    let entries = entries(words);
    let [Ok(one), Ok(other)] = others else {
        let refused = others.iter().zip(["umoci", "containerd"]);
        let who: Vec<_> = refused.filter(|(done, _)| done.is_err()).map(|(_, name)| name).collect();
        let last = others.iter().filter_map(|done| done.as_ref().err()).next().map(|text| reason(text));
        return vec![Cause {
            name: format!("{} refuse: {}", who.join(" and "), last.unwrap_or_default()),
            path: None,
        }];
    };
    let paths: BTreeSet<&Vec<u8>> = one.0.keys().chain(other.0.keys()).collect();
    let differ = paths.into_iter().filter(|path| one.0.get(*path) != other.0.get(*path));
    let mut causes: Vec<Cause> = differ
        .map(|path| {
            let text = String::from_utf8_lossy(path).into_owned();
            let name = cause(&text, &entries, one.0.get(path), other.0.get(path));
            Cause { name, path: Some(path.clone()) }
        })
        .collect();
    if causes.is_empty() {
        causes.push(Cause { name: "unexplained: other names of one inode".into(), path: None });
    }
    causes
}

/// Why `path` differs, by the entries of the image and both results there.
fn cause(path: &str, entries: &[Entry<'_>], one: Option<&String>, other: Option<&String>) -> String {
    let beside_a_marker = || {
        let markers = entries.iter().filter(|marker| marker.hides(path));
        markers.into_iter().any(|marker| {
            entries.iter().any(|entry| entry.layer == marker.layer && is_below(entry.path, path))
        })
    };
    let has_link = || entries.iter().any(|entry| entry.flag == '2');
    let is_hard_link = |entry: &Entry<'_>| entry.flag == '1' && (entry.path == path || entry.target == path);
    let content = |line: &String| line.splitn(4, ' ').nth(3).map(str::to_owned);
    let kind = |line: &String| line.split(' ').next().map(|mode| mode.len() >= 6 && mode.starts_with('1'));
    match (one, other) {
        (None, Some(line)) | (Some(line), None) => {
            let whose = if one.is_none() { "containerd" } else { "umoci" };
            let is_directory = line.starts_with('4');
            if is_directory && entries.iter().any(|entry| entry.is_marker() && is_below(entry.parent(), path))
            {
                format!("a marker in a missing directory: only {whose} creates the directory")
            } else if has_link() {
                format!("an entry or marker below a symbolic link: only {whose} has the name")
            } else if beside_a_marker() {
                format!("a marker for names of its own layer: only {whose} has them")
            } else {
                format!(
                    "unexplained: only {whose} has {}",
                    if is_directory { "a directory" } else { "a name" }
                )
            }
        }
        (Some(one), Some(other)) if content(one) == content(other) && kind(one) == kind(other) => {
            if entries.iter().any(is_hard_link) {
                "a hard link with attributes of its own".into()
            } else if one.starts_with('4') {
                "attributes of a directory".into()
            } else if entries.iter().any(|entry| entry.flag == '1') {
                "a hard link with attributes of its own, by another name of the file".into()
            } else {
                "unexplained: attributes of a file".into()
            }
        }
        _ if has_link() => "an entry below a symbolic link: another content".into(),
        _ => "unexplained: another content".into(),
    }
}

fn is_below(inner: &str, outer: &str) -> bool {
    outer.is_empty() || inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}

/// The end of an error message without names and numbers.
fn reason(text: &str) -> String {
    let line = text.trim().lines().last().unwrap_or_default();
    // The last part of an error by gRPC is its code.
    let line = line.trim_end_matches('"').trim_end_matches(": unknown");
    let end = line.rsplit(": ").next().unwrap_or_default();
    end.chars().filter(|at| !at.is_ascii_digit()).take(60).collect()
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

fn umoci(image: &str, out: &Path) -> Unpacked {
    let done = run(Command::new("umoci").args(["raw", "unpack", "--image", image]).arg(out));
    (done.code == Some(0)).then(|| shape(out)).ok_or(done.stderr)
}

/// What containerd unpacks, by the snapshotter that copies every layer.
fn unpacked(containerd: &Containerd, layout: &Path, archive: &Path, layers: &[Layer]) -> Unpacked {
    const NATIVE: [&str; 2] = ["--snapshotter", "native"];
    run(Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(archive).arg(".")).ok();
    let archive = archive.display().to_string();
    let import = [&["images", "import"][..], &NATIVE, &["--base-name", "t.example/u", &archive]].concat();
    let imported = containerd.run(&import);
    if imported.code != Some(0) {
        return Err(imported.stderr);
    }
    let chain = layers.iter().map(|layer| layer.diff_id.clone());
    let chain = chain.reduce(|chain, layer| digest_of(format!("{chain} {layer}").as_bytes()));
    let chain = chain.expect("a layer");
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
    Ok(shape(Path::new(source)))
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
