//! A registry on a loopback port, and what its access log says about a stretch of time.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::image::Image;
use crate::measure::{run, tool};

/// The repository in it.
const REPOSITORY: &str = "bench/scipy";

/// A running `docker-registry`, ended on drop.
pub(crate) struct Registry {
    server: Child,
    address: String,
    log: PathBuf,
}

/// What the registry answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// All requests.
    pub(crate) requests: u64,
    /// Requests for blobs.
    pub(crate) blob_requests: u64,
    /// Bytes of all bodies.
    pub(crate) bytes: u64,
}

impl Registry {
    /// Starts one that holds `image`, its storage and logs under `data`.
    pub(crate) fn with(image: &Image, data: &Path) -> Result<Self> {
        let storage = image.layout.with_file_name("registry");
        let address = free_address()?;
        let config = data.join("registry.yml");
        let log = data.join("registry.log");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: false}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {storage:?}}}, delete: {{enabled: false}}}}\n\
                 http: {{addr: {address}}}\n"
            ),
        )?;
        let server = tool("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(data.join("registry.err"))?)
            .spawn()?;
        let mut registry = Self { server, address, log };
        registry.wait()?;
        run(tool("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", &format!("oci:{}", image.name())])
            .arg(format!("docker://{}", registry.reference())))?;
        Ok(registry)
    }

    /// The reference of the image.
    pub(crate) fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:latest", self.address)
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
            traffic.requests += 1;
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
                return Err(
                    format!("docker-registry ended with {status}; see registry.err beside its log").into()
                );
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

/// A loopback address that nobody listens on: the kernel's choice, free again a moment later.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
