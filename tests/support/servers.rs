//! Debian's nginx and haproxy on loopback ports, as what stands before a registry or is one.
//!
//! Never daemons of the machine: each is a child that dies with the test, with all its files in a directory of the test.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::fault_registry::ReservedPort;
use crate::process::{CONDITION_TIMEOUT, becomes_true};
use crate::scratch::Scratch;
use crate::served::Content;

/// A running server.
pub(crate) struct Server {
    child: Child,
    files: Scratch,
    _port: ReservedPort,
    /// `address:port`.
    pub(crate) host: String,
}

/// Where and how nginx runs.
pub(crate) struct Place<'a> {
    /// The address to listen on.
    pub(crate) address: &'a str,
    /// What runs it, if it is not to run just here.
    pub(crate) within: &'a [&'a str],
}

/// This machine.
pub(crate) const HERE: Place<'_> = Place { address: "127.0.0.1", within: &[] };

impl Server {
    /// nginx with the content as files, in the paths of the distribution API. `http` and `server` are lines of its
    /// configuration, in which ROOT is where the files are.
    pub(crate) fn nginx(content: &Content, place: &Place<'_>, http: &str, server: &str) -> Self {
        let files = Scratch::new();
        let root = files.subdir("root");
        content.write(&root);
        let port = ReservedPort::new();
        let (dir, host) = (files.path().display(), format!("{}:{}", place.address, port.number()));
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .collect();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log {dir}/errors;\nevents {{}}\nhttp \
             {{\n{temporary}log_format short '$status $uri';\naccess_log {dir}/access short;\n{http}\nserver \
             {{\nlisten {host};\nroot {dir}/root;\ndefault_type application/octet-stream;\nlocation ~ \
             /manifests/ {{ default_type application/vnd.oci.image.manifest.v1+json; }}\n{server}\n}}\n}}\n"
        );
        let config = files.file("nginx.conf", text.replace("ROOT", &root.display().to_string()));
        let mut words: Vec<&str> = place.within.to_vec();
        words.extend(["setpriv", "--pdeathsig", "KILL", "nginx"]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("-c").arg(config).arg("-e").arg(files.join("errors"));
        Self::up(command, files, (port, host))
    }

    /// haproxy with these lines in the frontend, before the server at `behind`.
    pub(crate) fn haproxy(behind: &str, frontend: &str) -> Self {
        let files = Scratch::new();
        let port = ReservedPort::new();
        let host = port.address().to_string();
        let text = format!(
            "defaults\n mode http\n retries 0\n timeout connect 1s\n timeout client 30s\n timeout server \
             3s\nfrontend front\n bind {host}\n{frontend}\n default_backend back\nbackend back\n server \
             registry {behind}\n"
        );
        let config = files.file("haproxy.cfg", text);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "haproxy", "-db", "-q", "-f"]).arg(config);
        Self::up(command, files, (port, host))
    }

    fn up(mut command: Command, files: Scratch, (port, host): (ReservedPort, String)) -> Self {
        let output = fs::File::create(files.join("said")).expect("a file of ours");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().expect("the server is installed");
        let server = Self { child, files, _port: port, host };
        let up = becomes_true(CONDITION_TIMEOUT, || std::net::TcpStream::connect(&server.host).is_ok());
        let output = || fs::read_to_string(server.files.join("said")).unwrap_or_default();
        assert!(up, "{command:?} does not listen at {}: {}", server.host, output());
        server
    }

    /// The statuses of nginx's answers to requests for blobs, when `complete` holds for them. nginx writes the line of
    /// a request when it is done with it, which can be after the client has read all of the answer.
    pub(crate) fn blob_statuses_once(&self, complete: impl Fn(&[u16]) -> bool) -> Vec<u16> {
        let mut statuses = Vec::new();
        let logged = becomes_true(CONDITION_TIMEOUT, || {
            statuses = self.blob_statuses();
            complete(&statuses)
        });
        assert!(logged, "{statuses:?}");
        statuses
    }

    fn blob_statuses(&self) -> Vec<u16> {
        let log = fs::read_to_string(self.files.join("access")).unwrap_or_default();
        let blobs = log.lines().filter(|line| line.contains("/blobs/") || line.contains("/signed/"));
        blobs.filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A child of ours; one that has ended already is waited for all the same.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
