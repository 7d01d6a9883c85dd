//! A link of a fixed rate: a network namespace that is joined to this one by a pair of virtual devices, with a token
//! bucket on what comes out of it.

use std::fs;
use std::path::Path;
use std::process::{self, Command};

use crate::Result;
use crate::measure::{clean, installed, run, text, tool};

/// Removed on drop, with everything in it.
pub(crate) struct Link {
    namespace: String,
    device: String,
    /// The address in the namespace.
    far: String,
}

const PREFIX: &str = "ocifsb";

impl Link {
    /// One that lets so much through from the namespace to here, in the words of `tc` (`100mbit`).
    pub(crate) fn new(rate: &str, burst: &str) -> Result<Self> {
        for program in ["ip", "tc"] {
            if !installed(program) {
                return Err(format!("{program} is not installed (Debian: iproute2)").into());
            }
        }
        clear_leftovers()?;
        let pid = process::id();
        let (namespace, device) = (format!("{PREFIX}{pid}"), format!("{PREFIX}{pid}"));
        // 198.18.0.0/15 is for measurements of network devices (RFC 2544): nobody's addresses.
        let (near, far) = ("198.18.77.1".to_owned(), "198.18.77.2".to_owned());
        // From here on the drop removes whatever has been made.
        let link = Self { namespace, device, far };
        let (namespace, device, far) = (link.namespace.as_str(), link.device.as_str(), link.far.as_str());
        ip(&["netns", "add", namespace])?;
        ip(&["link", "add", device, "type", "veth", "peer", "name", "far", "netns", namespace])?;
        ip(&["addr", "add", &format!("{near}/30"), "dev", device])?;
        ip(&["link", "set", device, "up"])?;
        ip(&["-n", namespace, "addr", "add", &format!("{far}/30"), "dev", "far"])?;
        ip(&["-n", namespace, "link", "set", "far", "up"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        run(tool("tc")
            .args(["-n", namespace, "qdisc", "add", "dev", "far", "root", "tbf"])
            .args(["rate", rate, "burst", burst, "latency", "100ms"]))
        .map_err(|error| format!("this kernel has no token bucket (sch_tbf): {error}"))?;
        Ok(link)
    }

    /// The address that is behind the link.
    pub(crate) fn far(&self) -> &str {
        &self.far
    }

    /// A command that runs behind the link.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = tool("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Either may not be there yet when making it failed.
        clean(tool("ip").args(["link", "del", &self.device]));
        clean(tool("ip").args(["netns", "del", &self.namespace]));
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(tool("ip").args(arguments)).map(drop)
}

/// Removes what a run left behind that was killed, and the server in it.
fn clear_leftovers() -> Result<()> {
    let listed = text(tool("ip").args(["netns", "list"]))?;
    for name in listed.lines().filter_map(|line| line.split(' ').next()) {
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        for pid in text(tool("ip").args(["netns", "pids", name]))?.lines() {
            let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if program.trim() == "docker-registry" {
                run(tool("kill").arg(pid))?;
            }
        }
        ip(&["link", "del", name]).ok();
        ip(&["netns", "del", name])?;
    }
    Ok(())
}
