//! Sections of manual pages that the parser cannot supply: exit status, environment, files, examples, see also.
//!
//! Every option in the examples exists: a test parses them.

use std::io::{self, Write};

/// Exit codes of [`exit`](super::exit).
const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Success."),
    ("1", "A fault of this machine: files, memory, the kernel, the cache."),
    ("2", "The command line is wrong."),
    ("3", "The reference, the platform or the path does not exist."),
    ("4", "The registry or this machine refused access."),
    ("5", "The registry or the network is unreachable, or violates the protocol."),
    ("6", "The content is malformed, or not supported."),
    ("7", "The content does not match its digest or its signature."),
    ("8", "The mount failed."),
    ("130, 143", "The command was interrupted."),
];

/// Variables that users set.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("OCIFS_CACHE_DIR", "Directory of the cache, as --cache-dir."),
    ("OCIFS_CACHE_SIZE", "Limit of the cache, as --cache-size."),
    ("OCIFS_CONTENT_STORE", "Content stores of other tools, as --content-store."),
    ("OCIFS_CREDS", "USER:PASSWORD, as --creds."),
    ("OCIFS_HOSTS_DIR", "Directory of hosts.toml files, as --hosts-dir."),
    ("OCIFS_LOG", "Filter of the log: warn, debug, ocifs=trace."),
    ("REGISTRY_AUTH_FILE, DOCKER_CONFIG", "Credential files, as podman and docker use them."),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "Proxies for requests to registries."),
    ("XDG_CACHE_HOME, HOME", "Parent of the default cache directory."),
    ("NO_COLOR, TERM", "No colours where NO_COLOR is set, or TERM is dumb."),
];

/// Files that are read or written.
const FILES: &[(&str, &str)] = &[
    ("~/.cache/ocifs", "The cache of a user; /var/cache/ocifs for services without a home."),
    ("~/.docker/config.json, $XDG_RUNTIME_DIR/containers/auth.json", "Credentials."),
    ("/etc/containers/registries.conf", "Mirrors, aliases, blocked registries."),
    ("/etc/containers/certs.d, /etc/docker/certs.d", "Certificates of registries."),
    ("/etc/fuse.conf", "user_allow_other lets users other than root give allow_other."),
    ("DIR/.ocifs/status.json", "The status of a whole mount."),
];

/// Examples by page name.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "ocifs",
        &["ocifs mount docker.io/library/debian:12 /mnt", "ocifs ls docker.io/library/debian:12 merged/etc"],
    ),
    (
        "ocifs-mount",
        &[
            "ocifs mount docker.io/library/debian:12 /mnt",
            "ocifs mount --view merged --prefetch all ghcr.io/org/app:1 /mnt",
            "ocifs mount oci:./layout:v1 /mnt",
        ],
    ),
    ("ocifs-umount", &["ocifs umount /mnt"]),
    (
        "ocifs-inspect",
        &["ocifs inspect docker.io/library/debian:12", "ocifs inspect --format json oci:./layout:v1"],
    ),
    ("ocifs-ls", &["ocifs ls -l docker.io/library/debian:12 merged/etc"]),
    ("ocifs-cat", &["ocifs cat docker.io/library/debian:12 merged/etc/os-release"]),
    ("ocifs-cp", &["ocifs cp ghcr.io/org/vm:1 disk/vm.qcow2 ./vm.qcow2"]),
    (
        "ocifs-export",
        &[
            "ocifs export docker.io/library/debian:12 -o debian.tar",
            "ocifs export --format dir --preserve suid docker.io/library/debian:12 -o ./root",
        ],
    ),
    ("ocifs-pull", &["ocifs pull docker.io/library/debian:12"]),
    ("ocifs-resolve", &["ocifs resolve docker.io/library/debian:12"]),
    ("ocifs-index-build", &["ocifs index build docker.io/library/debian:12"]),
    ("ocifs-index-push", &["ocifs index push ghcr.io/org/app:1"]),
    ("ocifs-verify", &["ocifs verify docker.io/library/debian:12", "ocifs verify /mnt"]),
    ("ocifs-record", &["ocifs record ghcr.io/org/app:1 -- {}/merged/usr/bin/app --version"]),
    ("ocifs-run", &["ocifs run --rw --view merged docker.io/library/debian:12 -- chroot {} apt-get update"]),
    ("ocifs-doctor", &["ocifs doctor", "ocifs doctor ghcr.io/org/app:1"]),
    ("ocifs-list", &["ocifs list"]),
    ("ocifs-status", &["ocifs status /mnt", "ocifs status --html /mnt > status.html"]),
    ("ocifs-cache-prune", &["ocifs cache prune --older-than 30d"]),
    ("ocifs-cache-ls", &["ocifs cache ls"]),
    ("ocifs-cache-du", &["ocifs cache du"]),
    ("ocifs-cache-verify", &["ocifs cache verify"]),
    ("ocifs-cache-gc", &["ocifs cache gc"]),
    ("ocifs-completion", &["ocifs completion bash > /etc/bash_completion.d/ocifs"]),
    ("ocifs-man", &["ocifs man mount | man -l -", "ocifs man --all /usr/local/share/man/man1"]),
];

/// Writes the sections of a page; `related` are the pages of related commands.
pub(super) fn sections(page: &str, related: &[String], out: &mut dyn Write) -> io::Result<()> {
    listed("EXIT STATUS", EXIT_STATUS, out)?;
    listed("ENVIRONMENT", ENVIRONMENT, out)?;
    listed("FILES", FILES, out)?;
    if let Some((_, examples)) = EXAMPLES.iter().find(|(name, _)| *name == page) {
        writeln!(out, ".SH EXAMPLES")?;
        for example in *examples {
            writeln!(out, ".PP\n.RS 4\n.nf\n{}\n.fi\n.RE", escaped(example))?;
        }
    }
    let others = ["mount.ocifs(8)", "fusermount3(1)", "mount(8)", "systemd.mount(5)"].map(str::to_owned);
    let all: Vec<String> = related.iter().map(|page| format!("{page}(1)")).chain(others).collect();
    writeln!(out, ".SH \"SEE ALSO\"\n{}", escaped(&all.join(", ")))
}

fn listed(title: &str, rows: &[(&str, &str)], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, ".SH \"{title}\"")?;
    rows.iter()
        .try_for_each(|(name, text)| writeln!(out, ".TP\n\\fB{}\\fR\n{}", escaped(name), escaped(text)))
}

/// The page of the mount helper.
pub(super) fn mount_helper(out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.TH mount.ocifs 8 \"\" \"ocifs {}\" \"ocifs manual\"",
        env!("CARGO_PKG_VERSION")
    )?;
    for (title, text) in [
        ("NAME", "mount.ocifs - helper of mount(8) for images of registries"),
        ("SYNOPSIS", "mount -t ocifs REF DIR [-o OPTIONS]"),
        (
            "DESCRIPTION",
            "mount.ocifs is ocifs under another name. mount(8) calls it for the type ocifs, from a command line or from fstab(5). \
             REF is a reference of a registry, or oci:DIR. The helper stays in the background for the lifetime of the mount.",
        ),
        (
            "OPTIONS",
            "Every long option of ocifs-mount(1) without its dashes, with _ or - between words: view=merged, cache_dir=/var/cache/ocifs, \
             delay_connect. Also ro, nosuid, nodev, noexec, allow_suid, allow_dev, allow_other, default_permissions and nonempty. \
             Options for mount(8) itself, as _netdev, nofail and x-..., are accepted. rw, remount and auto_unmount are refused. \
             A comma in a value has a backslash before it.",
        ),
    ] {
        writeln!(out, ".SH {title}\n{}", escaped(text))?;
    }
    let status = [
        ("0", "Success."),
        ("1", "The options are wrong."),
        ("2", "A fault of this machine."),
        ("32", "The mount failed."),
    ];
    listed("EXIT STATUS", &status, out)?;
    listed("ENVIRONMENT", ENVIRONMENT, out)?;
    listed("FILES", FILES, out)?;
    writeln!(out, ".SH EXAMPLES")?;
    for example in [
        "mount -t ocifs -o view=merged docker.io/library/debian:12 /mnt",
        "# /etc/fstab\nghcr.io/org/app:1  /srv/app  ocifs  ro,_netdev,nofail,delay_connect,view=merged  0 0",
    ] {
        writeln!(out, ".PP\n.RS 4\n.nf\n{}\n.fi\n.RE", escaped(example))?;
    }
    writeln!(
        out,
        ".SH \"SEE ALSO\"\n{}",
        escaped("ocifs(1), ocifs-mount(1), mount(8), fstab(5), systemd.mount(5)")
    )
}

/// Text escaped for roff: dashes stay ASCII, and no line is a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines: Vec<String> = text
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::parser::Cli;
    use super::*;

    #[test]
    fn every_example_is_a_command_line_that_is_understood() {
        for example in EXAMPLES.iter().flat_map(|(_, examples)| *examples) {
            let words = example.split([' ']).take_while(|word| !matches!(*word, ">" | "|"));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{example}: {error}");
            }
        }
    }

    #[test]
    fn a_page_has_the_sections_that_readers_look_for() {
        let mut text = Vec::new();
        sections("ocifs-mount", &["ocifs".to_owned()], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for section in ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(text.contains(section), "{section}");
        }
        let mut helper = Vec::new();
        mount_helper(&mut helper).unwrap();
        assert!(String::from_utf8(helper).unwrap().contains(".TH mount.ocifs 8"));
    }
}
