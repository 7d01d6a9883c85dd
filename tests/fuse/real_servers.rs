//! Faults by the programs that cause them in practice: web servers, proxies, networks and disks that are not ours.
//!
//! Never a double: what goes wrong here is what Debian's packages do when they are told to. Every test counts on the server's
//! side that the fault took place.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::fault_registry::{Fault, FaultRegistry};
use crate::http;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh};
use crate::real_registry::RealRegistry;
use crate::scratch::Scratch;
use crate::served::{Content, VIEWS};
use crate::servers::{HERE, Place, Server};
use crate::site::{Mount, Site, unmounts};

/// Patience that leaves a silent connection after two seconds.
const OPTIONS: [&str; 2] = ["--timeout", "8"];

fn nginx_able() -> bool {
    able(&[Need::Root, Need::Fuse, Need::Tool("nginx")])
}

#[track_caller]
fn reads_all(content: &Content, mount: &Mount) {
    for (view, name) in VIEWS.iter().enumerate() {
        let file = content.file(view);
        let read = fs::read(mount.join(&file.path)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read == file.bytes, "{name}");
    }
}

#[test]
fn nginx_that_serves_no_ranges_slowly_is_read_once_from_the_start() {
    if !nginx_able() {
        return;
    }
    let (site, content) = (Site::new(), Content::new(11));
    let server = Server::nginx(&content, &HERE, "", "max_ranges 0; limit_rate 2m;");
    let mount = site.mount(&content.reference_at(&server.host), &OPTIONS);
    reads_all(&content, &mount);
    let statuses = server.blob_statuses_once(|statuses| !statuses.is_empty());
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[test]
fn nginx_that_limits_requests_is_asked_again_and_every_read_is_right() {
    if !nginx_able() {
        return;
    }
    let (site, content) = (Site::new(), Content::new(12));
    let zone = "limit_req_zone $binary_remote_addr zone=all:1m rate=5r/s; limit_req_status 429;";
    let server =
        Server::nginx(&content, &HERE, zone, "limit_req zone=all;\nadd_header Retry-After 1 always;");
    let mount = site.mount(&content.reference_at(&server.host), &["--timeout", "60"]);
    reads_all(&content, &mount);
    server.blob_statuses_once(|statuses| statuses.contains(&429) && statuses.contains(&206));
}

#[test]
fn links_that_nginx_lets_expire_are_asked_for_again() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("nginx"), Need::Tool("python3")]) {
        return;
    }
    let (site, content, registry) = (Site::new(), Content::sized(13, 9_000_001), FaultRegistry::start());
    let signed = "location /signed/ {\nsecure_link $arg_md5,$arg_expires;\nsecure_link_md5 \
                  \"$secure_link_expires$uri secret\";\nif ($secure_link = \"\") { return 403; }\nif \
                  ($secure_link = \"0\") { return 410; }\nalias ROOT/v2/a/thing/blobs/;\n}";
    let storage = Server::nginx(&content, &HERE, "", signed);
    content.push(&registry);
    let file = content.file(0);
    let digest = file.path.trim_start_matches("blobs/").replace('/', ":");
    let link = |seconds: &str| {
        let script = "python3 -c 'import base64,hashlib,sys,time
end=int(time.time())+int(sys.argv[2]); uri=\"/signed/\"+sys.argv[1]
sum=hashlib.md5(f\"{end}{uri} secret\".encode()).digest()
print(f\"{uri}?md5={base64.urlsafe_b64encode(sum).decode().rstrip(chr(61))}&expires={end}\")' \"$1\" \"$2\"";
        sh(script, &[&digest, &seconds]).text().trim().to_owned()
    };
    let mount = site.mount(&content.reference(&registry), &OPTIONS);
    let read = |at: usize| {
        let mut bytes = vec![0; 4096];
        let opened = fs::File::open(mount.join(&file.path)).unwrap();
        opened
            .read_exact_at(&mut bytes, at as u64)
            .map(|()| assert!(bytes == file.bytes[at..at + 4096], "{at}"))
    };
    // On a slow machine a link may end before it was used. The next one is as good.
    let mut short = String::new();
    let read_by_a_link = || {
        short = link("3");
        registry.clear();
        registry.set(Fault::RedirectTo(format!("http://{}{short}", storage.host)));
        read(0).is_ok()
    };
    assert!(becomes_true(CONDITION_TIMEOUT, read_by_a_link), "nothing can be read by a link");
    let gone = || http::send(&storage.host, "GET", &short, &[], &[]).is_ok_and(|answer| answer.status == 410);
    assert!(becomes_true(CONDITION_TIMEOUT, gone), "the link does not expire");
    registry.clear();
    registry.set(Fault::RedirectTo(format!("http://{}{}", storage.host, link("3600"))));
    // The second link serves only what comes after the first has expired.
    storage.blob_statuses_once(|statuses| statuses.contains(&410));
    read(8_800_000).unwrap();
    let served_again = |statuses: &[u16]| {
        let expired = statuses.iter().position(|status| *status == 410);
        expired.is_some_and(|expired| statuses[expired..].contains(&206))
    };
    storage.blob_statuses_once(served_again);
}

#[test]
fn a_proxy_that_drops_connections_and_loses_its_registry_costs_time_and_no_byte() {
    let needs = [Need::Root, Need::Fuse, Need::Tool("haproxy"), Need::Tool("docker-registry")];
    if !able(&needs) {
        return;
    }
    let (site, content, mut registry) = (Site::new(), Content::new(14), RealRegistry::start());
    let (repository, media_type, manifest) = content.manifest();
    for (_, bytes) in content.blobs() {
        registry.push_blob(repository, bytes);
    }
    registry.push_manifest(repository, "v1", media_type, manifest);
    let proxy = Server::haproxy(
        &registry.host(),
        // By number and not at random: a request that is tried again meets another number.
        " acl blob path_sub /blobs/\n http-request set-var(proc.n) var(proc.n,0),add(1) if blob\n http-request \
         reject if blob { var(proc.n),mod(4) -m int eq 0 }\n http-request deny deny_status 503 if blob \
         { var(proc.n),mod(6) -m int eq 1 }",
    );
    let reference = content.reference_at(&proxy.host);
    reads_all(&content, &site.mount(&reference, &["--timeout", "60"]));
    // A cache of its own, so that the registry is needed.
    let other = Site::new();
    let mount = other.mount(&reference, &OPTIONS);
    registry.stop();
    let file = mount.join(&content.file(0).path);
    assert_eq!(fs::read(&file).unwrap_err().raw_os_error(), Some(libc::EIO));
    registry.resume();
    let back = || fs::read(&file).is_ok_and(|bytes| bytes == content.file(0).bytes);
    assert!(becomes_true(CONDITION_TIMEOUT, back), "it does not come back");
}

/// A network of one host, gone when the test ends.
struct Net {
    name: String,
    address: String,
}

impl Net {
    /// A namespace with an address that this machine reaches through a slow link.
    fn new() -> Self {
        let id = std::process::id();
        let name = format!("ocifs-{id}");
        let [high, low] = [(id >> 6) & 0xff, (id & 0x3f) * 4];
        let (ours, address) = (format!("10.213.{high}.{}", low + 1), format!("10.213.{high}.{}", low + 2));
        let (outside, inside) = (format!("oc{id}a"), format!("oc{id}b"));
        let net = Self { name, address };
        sh(
            "ip netns add \"$1\"; ip link add \"$2\" type veth peer name \"$3\" netns \"$1\"
             ip addr add \"$4/30\" dev \"$2\"; ip link set \"$2\" up
             ip -n \"$1\" addr add \"$5/30\" dev \"$3\"; ip -n \"$1\" link set \"$3\" up
             ip -n \"$1\" link set lo up
             tc -n \"$1\" qdisc add dev \"$3\" root tbf rate 40mbit burst 64kb latency 400ms",
            &[&net.name, &outside, &inside, &ours, &net.address],
        );
        net
    }

    /// Lets every connection from this port go silent after so many bytes; whether the kernel can.
    fn stalls(&self, port: &str, bytes: u64) -> bool {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "iptables", "-A", "OUTPUT", "-p", "tcp", "--sport", port]);
        command.args(["-m", "connbytes", "--connbytes", &format!("{bytes}:"), "--connbytes-dir", "reply"]);
        command.args(["--connbytes-mode", "bytes", "-j", "DROP"]);
        run(&mut command).code == Some(0)
    }

    /// How many packets were dropped.
    fn dropped(&self) -> u64 {
        let script = "ip netns exec \"$1\" iptables -nvxL OUTPUT | awk '/DROP/ {print $1}'";
        sh(script, &[&self.name]).text().trim().parse().unwrap_or(0)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

#[test]
fn connections_that_a_firewall_lets_go_silent_are_left_for_new_ones() {
    let tools = [Need::Tool("ip"), Need::Tool("tc"), Need::Tool("iptables"), Need::Tool("nginx")];
    if !able(&[Need::Root, Need::Fuse]) || !able(&tools) {
        return;
    }
    let (site, content, net) = (Site::new(), Content::new(15), Net::new());
    let within = ["ip", "netns", "exec", &net.name];
    let server = Server::nginx(&content, &Place { address: &net.address, within: &within }, "", "");
    let (_, port) = server.host.split_once(':').unwrap();
    if !net.stalls(port, 350_000) {
        // Said, because a kernel without connbytes is nothing that a test can install.
        use std::io::Write as _;
        writeln!(std::io::stderr(), "skipped the silent firewall: the kernel has no connbytes").unwrap();
        return;
    }
    let mount = site.mount(&content.reference_at(&server.host), &["--timeout", "8", "--plain-http"]);
    let file = content.file(0);
    assert!(fs::read(mount.join(&file.path)).unwrap() == file.bytes);
    assert!(net.dropped() > 0, "no connection went silent");
}

/// A file system on a disk that fails when it is told to.
struct BadDisk {
    files: Scratch,
    at: PathBuf,
    nbd: Child,
}

impl BadDisk {
    fn at(dir: &Path) -> Self {
        let files = Scratch::new();
        let (disk, trigger) = (files.subdir("disk"), files.join("fail"));
        fs::create_dir_all(dir).unwrap();
        let mut command = Command::new("nbdfuse");
        command.arg(disk.join("nbd")).args(["[", "nbdkit", "--exit-with-parent", "--filter=error"]);
        command.args(["memory", "64M", "error-pread=EIO", "error-pread-rate=100%"]);
        command.arg(format!("error-file={}", trigger.display())).arg("]");
        let nbd = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let this = Self { at: dir.to_owned(), files, nbd };
        let there = || fs::metadata(disk.join("nbd")).is_ok_and(|found| found.len() > 0);
        assert!(becomes_true(CONDITION_TIMEOUT, there), "nbdfuse shows no disk");
        sh("mkfs.ext4 -q \"$1\"; mount -o loop \"$1\" \"$2\"; chmod 700 \"$2\"", &[&this.disk(), &this.at]);
        this
    }

    fn disk(&self) -> PathBuf {
        self.files.join("disk/nbd")
    }

    /// Forgets what the kernel has of it.
    fn mount_again(&self) {
        unmounts(Command::new("umount").arg(&self.at));
        sh("mount -o loop \"$1\" \"$2\"", &[&self.disk(), &self.at]);
    }

    /// From now on nothing can be read from it.
    fn fail(&self) {
        self.files.file("fail", "");
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        fs::remove_file(self.files.join("fail")).ok();
        for dir in [self.at.clone(), self.files.join("disk")] {
            if !becomes_true(Duration::from_secs(5), || run(Command::new("umount").arg(&dir)).code == Some(0))
            {
                run(Command::new("umount").arg("-l").arg(&dir));
            }
        }
        self.nbd.kill().ok();
        self.nbd.wait().ok();
    }
}

#[test]
fn a_cache_disk_that_cannot_be_read_costs_requests_and_no_read() {
    let tools = [Need::Tool("nbdkit"), Need::Tool("nbdfuse"), Need::Tool("mkfs.ext4")];
    if !able(&[Need::Root, Need::Fuse]) || !able(&tools) {
        return;
    }
    let (site, content, registry) = (Site::new(), Content::new(16), FaultRegistry::start());
    content.push(&registry);
    let disk = BadDisk::at(&site.cache());
    let reference = content.reference(&registry);
    let mount = site.mount(&reference, &["--passthrough", "off"]);
    reads_all(&content, &mount);
    mount.unmount();
    disk.mount_again();
    let mount = site.mount(&reference, &["--passthrough", "off"]);
    registry.reset_counts();
    disk.fail();
    reads_all(&content, &mount);
    assert!(registry.blob_bytes() > 0, "the disk was read");
    mount.unmount();
}
