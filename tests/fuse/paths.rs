//! Names from an image are data: none of them reaches a system call that takes a path.
//!
//! Looks at every such call of the serving process with strace, over layers that were made to escape. The idea: a path that the
//! process names is one of ours, in a place and of a form that is known beforehand; whatever is not is shown.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::compare::read_tree;
use crate::corpus::{self, Case};
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, signal};
use crate::scratch::mounted_at;
use crate::site::{Site, announcement, binary, daemons};

/// Where the process looks beside its cache, its layout and its mount point: the C library, the kernel and the configuration.
const KNOWN: [&str; 12] = [
    "/proc/",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup/",
    "/sys/class/bdi/",
    "/etc/",
    "/lib",
    "/usr/lib",
    "/usr/share/",
    "/usr/local/",
    "/nix/store",
    "/gnu/store",
    "/var/lib/containerd",
];
const EXACT: [&str; 8] =
    ["", "/", "/dev/fuse", "/dev/null", "/dev/urandom", "/run/containers", "/dev/shm", "/sys/fs/selinux"];

/// Names of members and targets of links in an archive, as they stand in headers: what our own reader makes of them is not asked.
fn names(tar: &[u8]) -> BTreeSet<Vec<u8>> {
    let text = |field: &[u8]| field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let mut names = BTreeSet::new();
    for header in tar.chunks(512).filter(|block| block.len() == 512 && &block[257..262] == b"ustar") {
        names.extend([text(&header[..100]), text(&header[157..257])]);
    }
    names
}

/// The parts of names that cannot be anything else: parts of our own paths are not among them.
fn naming(names: &BTreeSet<Vec<u8>>, ours: &[&Path]) -> BTreeSet<Vec<u8>> {
    let known = KNOWN.iter().chain(&EXACT).map(Path::new);
    let own: BTreeSet<&[u8]> = ours
        .iter()
        .copied()
        .chain(known)
        .flat_map(|path| path.iter().map(std::os::unix::ffi::OsStrExt::as_bytes))
        .chain([&b"lib64"[..], b"blobs", b"sha256"])
        .collect();
    let parts = names.iter().flat_map(|name| name.split(|byte| *byte == b'/'));
    parts.filter(|part| part.len() > 2 && !own.contains(part)).map(<[u8]>::to_vec).collect()
}

/// The text of a C string as strace writes it.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes().peekable());
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let mut octal = 0u32;
        let mut digits = 0;
        while digits < 3
            && let Some(digit) = rest.peek().filter(|next| (b'0'..=b'7').contains(next))
        {
            octal = octal * 8 + u32::from(digit - b'0');
            digits += 1;
            rest.next();
        }
        bytes.push(match digits {
            0 => match rest.next().expect("something is escaped") {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'v' => 0x0b,
                b'f' => 0x0c,
                other => other,
            },
            _ => u8::try_from(octal).expect("a byte"),
        });
    }
    bytes
}

/// The paths that calls were given, with the line that shows each.
fn paths(trace: &str) -> Vec<(Vec<u8>, &str)> {
    let mut found = Vec::new();
    for line in trace.lines() {
        // `PID call(arguments) = result`; what was answered is not what was asked.
        let Some((head, arguments)) = line.split_once('(') else { continue };
        let call = head.rsplit(' ').next().unwrap_or_default();
        let wanted = match call {
            "link" | "linkat" | "rename" | "renameat" | "renameat2" | "symlink" | "symlinkat" | "mount" => 2,
            _ => 1,
        };
        let mut rest = arguments;
        for at in 0..wanted {
            let Some(start) = rest.find('"') else { break };
            let body = &rest[start + 1..];
            let mut end = 0;
            while body.as_bytes().get(end).is_some_and(|byte| *byte != b'"') {
                end += if body.as_bytes()[end] == b'\\' { 2 } else { 1 };
            }
            // What is mounted is named by the reference, which is the user's.
            if call != "mount" || at == 1 {
                found.push((unescaped(&body[..end]), line));
            }
            rest = body.get(end + 1..).unwrap_or_default();
        }
    }
    found
}

/// A name that the cache or a layout gives its files: lower case letters, digits and few signs.
fn is_plain(path: &Path) -> bool {
    path.iter().map(std::os::unix::ffi::OsStrExt::as_bytes).all(|part| {
        part.len() <= 200
            && part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
            && !part.starts_with(b"..")
    })
}

#[test]
fn no_path_from_an_image_reaches_a_call_of_the_system() {
    let directory = corpus::directory();
    if !able(&[Need::Root, Need::Fuse, Need::Tool("strace"), Need::Path(&directory)]) {
        return;
    }
    let step = if std::env::var_os("OCIFS_LONG").is_some() { 1 } else { 8 };
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let (mut looked, mut named, mut strange) = (0, 0, BTreeSet::new());
    for (index, case) in corpus::cases().iter().enumerate().step_by(step) {
        let encoding = [Encoding::Gzip, Encoding::Plain, Encoding::Zstd][index / step % 3];
        let tag = format!("case-{index}");
        let layers: Vec<Layer> = case.layers.iter().map(|tar| Layer::of(tar, encoding)).collect();
        layout.image(&tag, &layers);
        let trace = serve_traced(&site, &layout.reference(&tag), &tag, case);
        let (cache, images, dir) = (site.cache(), site.scratch().join("layout"), site.scratch().join("mnt"));
        let binary = binary();
        let names: BTreeSet<_> = case.layers.iter().flat_map(|tar| names(tar)).collect();
        let naming = naming(&names, &[&cache, &images, &dir, &binary]);
        named += naming.len();
        let asked = paths(&trace);
        assert!(
            asked.iter().any(|(path, _)| path.as_slice() == b"/dev/fuse"),
            "nothing was mounted: {trace}"
        );
        looked += asked.len();
        for (path, line) in asked {
            let text = String::from_utf8_lossy(&path).into_owned();
            let at = Path::new(&text);
            let below = |root: &Path| at.strip_prefix(root).is_ok_and(is_plain);
            let ours = at == dir
                || at == binary
                || below(&cache)
                || below(&images)
                || below(&site.scratch().join("home"))
                || site.scratch().path().starts_with(at)
                || binary.starts_with(at)
                || EXACT.contains(&text.as_str())
                || text.starts_with("/run/containers/")
                || KNOWN.iter().any(|known| format!("{text}/").starts_with(known))
                // Relative to a directory that is open: what the cache removes and lists.
                || (at.is_relative() && is_plain(at));
            if !ours {
                strange.insert(format!("{}: {line}", case.name));
            }
            let part = path.split(|byte| *byte == b'/').find(|part| naming.contains(*part));
            if part.is_some() {
                strange.insert(format!("{}: a name of the image: {line}", case.name));
            }
        }
    }
    assert!(strange.is_empty(), "{} calls\n{}", strange.len(), Vec::from_iter(strange).join("\n"));
    assert!(looked > 1000 && named > 50, "{looked} paths, {named} names");
}

/// Mounts under strace, looks at everything there is, unmounts, and gives what was called.
fn serve_traced(site: &Site, reference: &str, tag: &str, case: &Case) -> String {
    let dir = site.mount_point("mnt");
    let out = site.scratch().join(format!("{tag}.trace"));
    let mut command = site.tool("strace");
    command.args(["-f", "-qq", "-s", "5000", "-e", "trace=%file", "-e", "signal=none", "-o"]).arg(&out);
    command.arg(binary()).args(["mount", "-f", reference]).arg(&dir);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("strace is installed");
    let line = announcement(&mut child);
    assert!(line.contains(" mounted at ") && mounted_at(&dir).is_some(), "{} printed {line:?}", case.name);
    match (&case.tree, read_tree(&dir.join("merged"))) {
        (Some(_), Ok(tree)) => assert_eq!(case.differences(&tree), [""; 0], "{}", case.name),
        (None, Err(_)) => {}
        (Some(_), Err(error)) => panic!("{}: {error}", case.name),
        (None, Ok(_)) => panic!("{} is accepted", case.name),
    }
    read_tree(&dir.join("layers")).ok();
    for pid in daemons(&dir) {
        signal(pid, Signal::SIGTERM);
    }
    let ended = becomes_true(CONDITION_TIMEOUT, || child.try_wait().unwrap().is_some());
    assert!(ended && mounted_at(&dir).is_none(), "{} does not end", case.name);
    let trace = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    String::from_utf8_lossy(&trace).into_owned()
}
