//! Metrics of a mount: counters at an address, and in the log after a signal.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::fault_registry::{Fault, FaultRegistry, ReservedPort};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, signal};
use crate::served::Content;
use crate::site::Site;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// Asks for a path as a monitor does, and gives head and body.
fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\nAccept: text/plain\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

/// What is shown at a socket.
pub(crate) fn shown(socket: &std::path::Path) -> String {
    let (head, body) = ask(UnixStream::connect(socket).unwrap(), "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body
}

/// The samples of a text in the format of Prometheus, which must be one in every line.
#[track_caller]
fn parse(text: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    let mut samples = BTreeMap::new();
    let mut family: Option<(String, String)> = None;
    let mut families = Vec::new();
    assert!(text.ends_with('\n'), "the last line does not end: {text}");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help_text) = help.split_once(' ').expect("a name and a text");
            assert!(is_name(name) && !help_text.is_empty(), "{line}");
            assert!(!families.contains(&name.to_owned()), "{name} comes twice");
            families.push(name.to_owned());
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            assert_eq!(families.last().map(String::as_str), Some(name), "a type without a help: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            family = Some((name.to_owned(), kind.to_owned()));
            continue;
        }
        let (name, kind) = family.as_ref().expect("a sample of a family");
        let (series, value) = line.rsplit_once(' ').expect("a name and a number");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number in {line}"));
        assert!(value >= 0.0, "{line}");
        let bare = series.split('{').next().unwrap();
        let suffix = bare.strip_prefix(name.as_str()).unwrap_or_else(|| panic!("{line} is not of {name}"));
        match kind.as_str() {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            _ => assert_eq!(suffix, "", "{line}"),
        }
        assert!(kind != "counter" || bare.ends_with("_total"), "{line}");
        if let Some((_, labels)) = series.split_once('{') {
            let labels = labels.strip_suffix("\"}").unwrap_or_else(|| panic!("labels do not end: {line}"));
            for pair in labels.split("\",") {
                let (label, _) = pair.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
                assert!(is_name(label), "{line}");
            }
        }
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
    }
    let buckets: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("ocifs_read_duration_seconds_bucket"))
        .map(|line| samples[line.rsplit_once(' ').unwrap().0])
        .collect();
    assert!(buckets.len() > 5 && buckets.is_sorted(), "{buckets:?}");
    assert_eq!(buckets.last(), Some(&samples["ocifs_read_duration_seconds_count"]));
    assert!(text.contains("ocifs_read_duration_seconds_bucket{le=\"+Inf\"}"), "{text}");
    samples
}

/// Reads everything, and says how much that was.
fn read_all(dir: &std::path::Path, content: &Content) -> u64 {
    let read = |file: &crate::served::Expected| {
        let bytes = fs::read(dir.join(&file.path)).unwrap();
        assert!(bytes == file.bytes, "{}", file.path);
        bytes.len() as u64
    };
    content.files().iter().map(read).sum()
}

#[test]
fn counters_at_a_socket_grow_with_reads() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(1));
    content.push(&registry);
    let socket = site.scratch().subdir("run").join("metrics");
    let address = format!("--metrics=unix:{}", socket.display());
    let mount = site.mount(&content.reference(&registry), &[&address, "--passthrough=off"]);
    let meta = fs::metadata(&socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o777, 0o600);
    let now = || {
        let (head, body) = ask(UnixStream::connect(&socket).unwrap(), "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
        parse(&body)
    };
    let before = now();
    assert_eq!(before["ocifs_read_errors_total"], 0.0);
    assert_eq!(before["ocifs_retries_total"], 0.0);
    for part in ["capabilities", "no_new_privileges", "files", "calls"] {
        assert_eq!(before[&format!("ocifs_sandbox_applied{{part=\"{part}\"}}")], 1.0, "{part}");
    }
    assert!(before.keys().any(|name| name.starts_with("ocifs_mount_info{reference=\"")));

    registry.set_for(Fault::Status { code: 503, times: 1, retry_after: None }, 1);
    let bytes = read_all(mount.dir(), &content);
    // A read is counted after its reader has its answer.
    let mut after = now();
    becomes_true(CONDITION_TIMEOUT, || {
        after = now();
        let served = after["ocifs_bytes_served_total"] - before["ocifs_bytes_served_total"];
        let reads = after["ocifs_read_duration_seconds_count"] - before["ocifs_read_duration_seconds_count"];
        served >= bytes as f64 && reads >= content.files().len() as f64
    });
    let grew = |name: &str| after[name] - before.get(name).copied().unwrap_or_default();
    assert!(grew("ocifs_bytes_served_total") >= bytes as f64, "{after:?}");
    assert!(grew("ocifs_bytes_fetched_total") > 100_000.0, "{after:?}");
    assert!(
        grew("ocifs_requests_total{class=\"2xx\",status=\"200\"}")
            + after.get("ocifs_requests_total{class=\"2xx\",status=\"206\"}").copied().unwrap_or_default()
            >= 3.0,
        "{after:?}"
    );
    assert!(grew("ocifs_requests_total{class=\"5xx\",status=\"503\"}") >= 1.0, "{after:?}");
    assert!(grew("ocifs_retries_total") >= 1.0, "{after:?}");
    assert!(grew("ocifs_cache_misses_total{kind=\"blob\"}") >= 3.0, "{after:?}");
    assert!(grew("ocifs_read_duration_seconds_count") >= content.files().len() as f64, "{after:?}");
    assert!(grew("ocifs_read_duration_seconds_sum") > 0.0, "{after:?}");

    // The kernel keeps what it has read, so that files are opened anew in a mount of what is cached.
    let again_at = site.scratch().join("run/again");
    let again = site.mount_at(
        "again",
        &content.reference(&registry),
        &[&format!("--metrics=unix:{}", again_at.display()), "--passthrough=off"],
    );
    read_all(again.dir(), &content);
    let body = shown(&again_at);
    let cached = parse(&body);
    assert!(cached["ocifs_cache_hits_total{kind=\"blob\"}"] >= 3.0, "{body}");
    assert!(cached["ocifs_cache_hits_total{kind=\"stream\"}"] >= 1.0, "{body}");
    assert_eq!(cached["ocifs_cache_misses_total{kind=\"blob\"}"], 0.0, "{body}");
    let held = fs::File::open(again.join(&content.file(0).path)).unwrap();
    // The kernel reports that a file was closed after `close` has returned.
    let open = || parse(&shown(&again_at))["ocifs_open_files"];
    assert!(becomes_true(CONDITION_TIMEOUT, || open() == 1.0), "{} files are open", open());
    drop(held);

    again.unmount();
    assert!(!again_at.exists(), "the socket outlived its mount");
    let (head, _) = ask(UnixStream::connect(&socket).unwrap(), "/other");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    mount.unmount();
    assert!(!socket.exists(), "the socket outlived its mount");
}

#[test]
fn counters_at_a_port_are_served_and_strange_questions_do_no_harm() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(2));
    content.push(&registry);
    let port = ReservedPort::new();
    let address = port.address();
    let mount = site.mount(&content.reference(&registry), &[&format!("--metrics={address}")]);
    for strange in
        [&b"\r\n\r\n"[..], b"GET", b"\xff\x00\xff\r\n\r\n", &[b'x'; 20_000], b"POST / HTTP/1.1\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(address).unwrap();
        // It may close before all of it is sent.
        stream.write_all(strange).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        stream.read_to_end(&mut Vec::new()).ok();
    }
    // Connections that say nothing do not keep others out for ever, nor the mount from ending.
    let idle: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    read_all(mount.dir(), &content);
    let (head, body) = ask(TcpStream::connect(address).unwrap(), "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(parse(&body)["ocifs_bytes_fetched_total"] > 100_000.0, "{body}");
    mount.unmount();
    drop(idle);
    // A port that is taken is an error before anything is mounted.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let option = format!("--metrics={}", taken.local_addr().unwrap());
    site.mount_refused(&content.reference(&registry), &[&option], &[1], &["listening"]);
}

#[test]
fn evictions_are_counted() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let contents = [Content::new(3), Content::new(4)];
    let socket = site.scratch().subdir("run").join("metrics");
    let address = format!("--metrics=unix:{}", socket.display());
    contents[0].push(&registry);
    let first = site.mount(&contents[0].reference(&registry), &["--cache-size=4M"]);
    read_all(first.dir(), &contents[0]);
    first.unmount();
    contents[1].push(&registry);
    let second = site.mount(&contents[1].reference(&registry), &["--cache-size=4M", &address]);
    read_all(second.dir(), &contents[1]);
    let is_counted = || {
        let samples = parse(&shown(&socket));
        samples["ocifs_cache_evictions_total"] >= 1.0 && samples["ocifs_cache_evicted_bytes_total"] >= 4096.0
    };
    assert!(becomes_true(CONDITION_TIMEOUT, is_counted), "{}", shown(&socket));
    second.unmount();
}

#[test]
fn sigusr1_writes_all_counters_to_the_log_whatever_is_logged_besides() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(5));
    content.push(&registry);
    for level in [None, Some("error"), Some("ocifs=debug")] {
        let log = site.scratch().join("log");
        let dir = site.mount_point("mnt");
        let mut command = site.command();
        command.envs(level.map(|level| ("OCIFS_LOG", level))).args(["mount", "--no-cache", "--log-file"]);
        command.arg(&log).arg(content.reference(&registry)).arg(&dir);
        let mount = crate::site::Mount::up(&mut command, dir);
        read_all(mount.dir(), &content);
        let dumps = || -> Vec<serde_json::Value> {
            let text = fs::read_to_string(&log).unwrap();
            // A line that is being written has no end yet.
            let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            let lines = whole.lines().filter(|line| line.contains("ocifs::statistics"));
            lines.map(|line| serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap()).collect()
        };
        for times in 1..=2 {
            signal(mount.pid(), Signal::SIGUSR1);
            assert!(becomes_true(CONDITION_TIMEOUT, || dumps().len() == times), "{level:?}: no statistics");
        }
        let dump = &dumps()[1];
        assert!(dump["ocifs_bytes_fetched_total"].as_u64() > Some(100_000), "{dump}");
        assert!(dump["ocifs_read_duration_seconds_count"].as_u64() > Some(0), "{dump}");
        mount.unmount();
        fs::remove_file(&log).unwrap();
    }
}
