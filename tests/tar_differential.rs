//! The tar walker against two other readers: archives that GNU tar and Python make, listed by Python's `tarfile`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why on stderr"
)]

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use ocifs::layer::{TableOfContents, TocEntry, TocEntryKind};
use serde_json::Value;

use crate::tar_walk;

/// Lists an archive from stdin: one JSON array of entries.
const LIST: &str = r#"
import io, json, os, sys, tarfile
data = sys.stdin.buffer.read()
entries = []
with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as archive:
    for m in archive:
        entries.append({
            "name": os.fsencode(m.name).hex(), "link": os.fsencode(m.linkname).hex(),
            "type": m.type.decode(), "size": m.size, "data": m.offset_data, "mode": m.mode & 0o7777,
            "uid": m.uid, "gid": m.gid, "mtime": float(m.mtime), "dev": [m.devmajor, m.devminor],
            "sparse": [list(run) for run in m.sparse if run[1]] if m.issparse() else None,
            "xattrs": {k[13:]: v.encode("utf-8", "surrogateescape").hex()
                       for k, v in m.pax_headers.items() if k.startswith("SCHILY.xattr.")},
        })
json.dump(entries, sys.stdout)
"#;

/// Writes an archive in the format argv[1] to stdout, with what GNU tar cannot be told to write.
const MAKE: &str = r#"
import io, sys, tarfile
format = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}[sys.argv[1]]
ustar = sys.argv[1] == "ustar"
out = io.BytesIO()
with tarfile.open(fileobj=out, mode="w", format=format, pax_headers={"comment": "global"}) as archive:
    def add(name, type=tarfile.REGTYPE, data=b"", **fields):
        m = tarfile.TarInfo(name)
        m.type, m.size = type, len(data)
        for k, v in fields.items():
            setattr(m, k, v)
        archive.addfile(m, io.BytesIO(data))
    add("plain", data=b"x" * 1000, mode=0o4755, uid=1, gid=2, mtime=1234567890)
    add("d/", tarfile.DIRTYPE, mode=0o1777)
    add("chr", tarfile.CHRTYPE, devmajor=5, devminor=1)
    add("blk", tarfile.BLKTYPE, devmajor=259, devminor=70000)
    add("fifo", tarfile.FIFOTYPE)
    add("hard", tarfile.LNKTYPE, linkname="plain")
    add("sym", tarfile.SYMTYPE, linkname="../" * 20 + "x")
    add("/".join(["dir%03d" % i for i in range(20)]), data=b"y")
    if not ustar:
        add("n" * 255, data=b"z" * 513, linkname="")
        add("l", tarfile.SYMTYPE, linkname="t" * 500)
        add("k" * 200, tarfile.LNKTYPE, linkname="n" * 255)
        add("big-owner", uid=4294967294, gid=4294967295)
        add("old", mtime=-86400)
        add("caf\u00e9 \u263a")
    if sys.argv[1] == "pax":
        add("fraction", mtime=1234567890.25)
        add("before", mtime=-1.25)
        add("xattr", pax_headers={"SCHILY.xattr.user.a": "value", "SCHILY.xattr.user.caf\u00e9": "a=b\nc"})
sys.stdout.buffer.write(out.getvalue())
"#;

#[test]
fn gnu_tar_archives_are_read_as_python_reads_them() {
    if !have("tar") || !have("python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    populate(dir.path());
    for format in ["v7", "ustar", "gnu", "pax"] {
        let archive = gnu_tar(dir.path(), &["--format", format]);
        let toc = agree(&format!("tar --format={format}"), &archive);
        let names = toc.iter().filter(|entry| entry.path.len() > 100).count();
        match format {
            "v7" => assert_eq!(names, 0, "v7 has no long names"),
            _ => assert!(names > 0, "{format} has long names"),
        }
    }
}

#[test]
fn the_three_pax_sparse_versions_are_read_as_python_reads_them() {
    if !have("tar") || !have("python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    populate(dir.path());
    for version in ["0.0", "0.1", "1.0"] {
        let archive = gnu_tar(dir.path(), &["--format=pax", "-S", "--sparse-version", version]);
        let toc = agree(&format!("tar --sparse-version={version}"), &archive);
        for (name, size, least) in [("sparse", 10 << 20, 3), ("hole", 1 << 20, 0), ("many", 300 << 16, 300)] {
            let entry = toc.iter().find(|entry| entry.path.ends_with(name.as_bytes())).unwrap().to_entry();
            let TocEntryKind::File(content) = &entry.kind else { panic!("{name} is {:?}", entry.kind) };
            let runs = content.runs.as_ref().unwrap_or_else(|| panic!("{version}: {name} is not sparse"));
            assert_eq!(content.size, size, "{version}: {name}");
            assert!(runs.len() >= least, "{version}: {name} has {} runs", runs.len());
            assert_eq!(
                &*expand(&archive, &entry),
                fs::read(dir.path().join(name)).unwrap(),
                "{version}: {name}"
            );
        }
    }
}

#[test]
fn binary_xattrs_are_read_as_python_reads_them() {
    if !have("tar") || !have("python3") {
        return;
    }
    const SET: &str = r#"import os, sys
for name, value in ("user.text", b"value"), ("user.binary", bytes(range(256))), ("user.big", b"=\n" * 500):
    os.setxattr(sys.argv[1], name, value)"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small");
    fs::write(&path, b"hello").unwrap();
    let set = Command::new("python3").args(["-c", SET]).arg(&path).stderr(Stdio::null()).status().unwrap();
    if !set.success() {
        eprintln!("skipped: {} takes no user xattrs", dir.path().display());
        return;
    }
    let archive = gnu_tar(dir.path(), &["--format=pax", "--xattrs"]);
    let toc = agree("tar --xattrs", &archive);
    let small = toc.iter().find(|entry| entry.path.ends_with(b"small")).unwrap().to_entry();
    let binary: Vec<u8> = (0..=255).collect();
    assert_eq!(small.xattrs.len(), 3);
    assert!(small.xattrs.contains(&(b"user.binary".to_vec(), binary)));
}

#[test]
fn old_gnu_sparse_archives_are_refused() {
    if !have("tar") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    populate(dir.path());
    let archive = gnu_tar(dir.path(), &["--format=gnu", "-S"]);
    let error = tar_walk::whole(&archive).unwrap_err().to_string();
    assert!(error.contains("entry type 'S' (old GNU sparse file)"), "{error}");
}

#[test]
fn python_archives_are_read_as_python_reads_them() {
    if !have("python3") {
        return;
    }
    for format in ["ustar", "gnu", "pax"] {
        let archive = output(Command::new("python3").args(["-c", MAKE, format]), b"");
        let toc = agree(&format!("tarfile {format}"), &archive);
        assert!(toc.len() >= 8, "{format}");
    }
}

/// GNU tar's archive of everything in `dir`, in a fixed order.
fn gnu_tar(dir: &Path, options: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.arg("-c").args(options);
    // GNU tar fails on what a format cannot say.
    if options.contains(&"v7") {
        tar.args(["--exclude=long*", "--exclude=fifo"]);
    } else if options.contains(&"ustar") {
        tar.arg("--exclude=long-link");
    }
    tar.args(["--sort=name", "-C"]).arg(dir).args(["-f", "-", "."]);
    output(&mut tar, b"")
}

fn populate(dir: &Path) {
    fs::write(dir.join("small"), b"hello").unwrap();
    fs::set_permissions(dir.join("small"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("block"), [7; 512]).unwrap();
    fs::write(dir.join("blocks"), [8; 1025]).unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"not\xff\xfeutf8")), b"x").unwrap();
    fs::hard_link(dir.join("small"), dir.join("zz-hard")).unwrap();
    symlink("small", dir.join("link")).unwrap();
    symlink("t".repeat(300), dir.join("long-link")).unwrap();
    let deep = dir.join(format!("long{}", "d".repeat(90))).join("e".repeat(40));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(90)), b"deep").unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let write_at = |file: &mut fs::File, at: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
    };
    let mut sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    for at in [0, 1 << 20, 5 << 20] {
        write_at(&mut sparse, at, &[9; 5000]);
    }
    fs::File::create(dir.join("hole")).unwrap().set_len(1 << 20).unwrap();
    let mut many = fs::File::create(dir.join("many")).unwrap();
    many.set_len(300 << 16).unwrap();
    for at in 0..300 {
        write_at(&mut many, at << 16, &[(at % 200) as u8 + 1]);
    }
}

/// Both readers list the archive alike; the walker's answer.
fn agree(subject: &str, archive: &[u8]) -> TableOfContents {
    let toc = tar_walk::whole(archive).unwrap_or_else(|error| panic!("{subject}: {error}"));
    assert_eq!(tar_walk::ranged(archive, 0).0, Ok(toc.clone()), "{subject}");
    let listed = output(Command::new("python3").args(["-c", LIST]), archive);
    let listed: Vec<Value> = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed.len(), toc.len(), "{subject}: number of entries");
    for (entry, listed) in toc.iter().zip(&listed) {
        let subject = format!("{subject}: {}", entry.path.escape_ascii());
        compare(&subject, &entry.to_entry(), listed);
    }
    toc
}

fn compare(subject: &str, entry: &TocEntry, listed: &Value) {
    // Python cuts trailing slashes off names.
    let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
    assert_eq!(listed["name"], hex(path), "{subject}: name");
    assert_eq!(listed["mode"], entry.mode, "{subject}: mode");
    // An owner of -1 means "as it is" to chown(2), which leaves 0.
    let owner = |key: &str| listed[key].as_u64().map(|id| if id == u64::from(u32::MAX) { 0 } else { id });
    let owners = (owner("uid"), owner("gid"));
    assert_eq!(owners, (Some(entry.uid.into()), Some(entry.gid.into())), "{subject}: owner");
    let mtime = entry.mtime.secs as f64 + f64::from(entry.mtime.nanos) / 1e9;
    assert!((listed["mtime"].as_f64().unwrap() - mtime).abs() < 1e-5, "{subject}: mtime {mtime} is {listed}");
    let xattrs: serde_json::Map<String, Value> = entry
        .xattrs
        .iter()
        .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), hex(value).into()))
        .collect();
    assert_eq!(listed["xattrs"], Value::Object(xattrs), "{subject}: xattrs");
    let target = |target: &[u8]| assert_eq!(listed["link"], hex(target), "{subject}: target");
    let device = |device: &ocifs::layer::DeviceNumber| {
        assert_eq!(listed["dev"], serde_json::json!([device.major, device.minor]), "{subject}: device");
    };
    let flag = match &entry.kind {
        TocEntryKind::File(content) => {
            assert_eq!(listed["size"], content.size, "{subject}: size");
            assert_eq!(listed["data"], content.offset, "{subject}: offset");
            let runs = content.runs.as_ref().map(|runs| {
                runs.iter().map(|run| Value::from(vec![run.offset, run.len])).collect::<Vec<_>>()
            });
            assert_eq!(listed["sparse"], Value::from(runs), "{subject}: runs");
            "0"
        }
        TocEntryKind::HardLink(to) => {
            target(to);
            "1"
        }
        TocEntryKind::Symlink(to) => {
            target(to);
            "2"
        }
        TocEntryKind::CharDevice(number) => {
            device(number);
            "3"
        }
        TocEntryKind::BlockDevice(number) => {
            device(number);
            "4"
        }
        TocEntryKind::Directory => "5",
        TocEntryKind::Fifo => "6",
    };
    let listed_flag = listed["type"].as_str().unwrap();
    // v7 has '\0' for files.
    assert_eq!(if listed_flag == "\0" { "0" } else { listed_flag }, flag, "{subject}: type");
}

fn expand(archive: &[u8], entry: &TocEntry) -> Vec<u8> {
    let TocEntryKind::File(content) = &entry.kind else { panic!("not a file") };
    let mut bytes = vec![0; content.size as usize];
    let mut from = content.offset as usize;
    for run in content.runs.iter().flatten() {
        let len = run.len as usize;
        bytes[run.offset as usize..][..len].copy_from_slice(&archive[from..from + len]);
        from += len;
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a program is there; says so on stderr when not.
fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// What a program writes to stdout when fed `input`.
fn output(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(answer.status.success(), "{command:?}: {}", answer.status);
    answer.stdout
}
