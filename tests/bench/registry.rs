//! Benchmark registry, with the requests and bytes of an interval from its access log.
//!
//! All of them share one storage under `target/bench-data`, so that what was pushed once is there in every run.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::artifact::MANIFEST;
use crate::image::Image;
use crate::measure::{run, text, tool};

/// A running `docker-registry`, ended on drop.
pub(crate) struct Registry {
    server: Child,
    address: String,
    log: PathBuf,
    data: PathBuf,
}

/// What the registry answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Requests for blobs.
    pub(crate) blob_requests: u64,
    /// Bytes of all bodies.
    pub(crate) bytes: u64,
}

impl Registry {
    /// One on a loopback port.
    pub(crate) fn on_loopback(data: &Path) -> Result<Self> {
        // The kernel's choice, free again a moment later.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        Self::start(data, "loopback", &address, tool("docker-registry"))
    }

    /// One at `address`, run by `command`, which may be a wrapper around `docker-registry`.
    pub(crate) fn start(data: &Path, name: &str, address: &str, mut command: Command) -> Result<Self> {
        let storage = data.join("registry");
        let config = data.join(format!("registry-{name}.yml"));
        let log = data.join(format!("registry-{name}.log"));
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: false}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {storage:?}}}, delete: {{enabled: false}}}}\n\
                 http: {{addr: '{address}'}}\n"
            ),
        )?;
        let server = command
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(log.with_extension("err"))?)
            .spawn()
            .map_err(|error| format!("docker-registry: {error}"))?;
        let mut registry = Self { server, address: address.to_owned(), log, data: data.to_owned() };
        registry.wait()?;
        Ok(registry)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The folder for what is made once.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The reference of what was pushed as `name`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/bench/{name}:latest", self.address)
    }

    /// The same by digest: what a mount can look up without asking anybody.
    pub(crate) fn pinned(&self, name: &str) -> Result<String> {
        let head = text(
            tool("curl")
                .args(["--silent", "--show-error", "--fail", "--head", "--header"])
                .arg("Accept: application/vnd.oci.image.manifest.v1+json")
                .arg(self.url(name, "manifests/latest")),
        )?;
        let digest = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("docker-content-digest:").map(str::to_owned)
            })
            .ok_or_else(|| format!("the registry does not say the digest of {name}"))?;
        Ok(format!("{}/bench/{name}@{}", self.address, digest.trim()))
    }

    /// The address of something in the repository `name`.
    pub(crate) fn url(&self, name: &str, path: &str) -> String {
        format!("http://{}/v2/bench/{name}/{path}", self.address)
    }

    /// Whether it was pushed in this run or an earlier one.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        self.has_as(name, MANIFEST)
    }

    /// The same for a document of another kind.
    pub(crate) fn has_as(&self, name: &str, media_type: &str) -> Result<bool> {
        let status = text(
            tool("curl")
                .args([
                    "--silent",
                    "--show-error",
                    "--head",
                    "--output",
                    "/dev/null",
                    "--write-out",
                    "%{http_code}",
                ])
                .args(["--header", &format!("Accept: {media_type}")])
                .arg(self.url(name, "manifests/latest")),
        )?;
        match status.trim() {
            "200" => Ok(true),
            "404" => Ok(false),
            other => Err(format!("the registry answered {other} for the manifest of {name}").into()),
        }
    }

    /// Pushes the image as `name`, unless it is there, its layers written as `skopeo copy` is told.
    pub(crate) fn push(&self, image: &Image, name: &str, options: &[&str]) -> Result<String> {
        let reference = self.reference(name);
        if !self.has(name)? {
            eprintln!("pushing {name}, once");
            run(tool("skopeo")
                .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
                .args(options)
                .arg(image.in_layout()?)
                .arg(format!("docker://{reference}")))?;
        }
        Ok(reference)
    }

    /// A point in time that [`since`](Self::since) can start from.
    pub(crate) fn now(&self) -> Result<u64> {
        // The server writes a line after the body is sent; the client may be faster than that.
        sleep(Duration::from_millis(100));
        Ok(fs::metadata(&self.log)?.len())
    }

    /// What was answered since then.
    pub(crate) fn since(&self, start: u64) -> Result<Traffic> {
        let end = self.now()?;
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(start))?;
        let mut lines = String::new();
        log.take(end - start).read_to_string(&mut lines)?;
        let mut traffic = Traffic::default();
        for (path, bytes) in lines.lines().filter_map(answer) {
            traffic.blob_requests += u64::from(path.contains("/blobs/"));
            traffic.bytes += bytes;
        }
        Ok(traffic)
    }

    /// Waits until it answers, or says why it does not.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&self.address).is_err() {
            if let Some(status) = self.server.try_wait()? {
                let log = self.log.with_extension("err");
                return Err(format!("docker-registry ended with {status}; see {}", log.display()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("docker-registry does not listen on {} after 20 s", self.address).into());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only when it has ended already, and then there is nothing to do.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// The path and the body's size of one line in the combined log format: `... "GET /v2/x HTTP/1.1" 206 4096 "" "agent"`.
fn answer(line: &str) -> Option<(&str, u64)> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let path = request.split(' ').nth(1)?;
    // A body without a size is logged as a dash.
    let bytes = rest.split(' ').nth(1)?.parse().unwrap_or(0);
    Some((path, bytes))
}
