//! `ocifs csi`: volumes for the pods of a node.
//!
//! Mounts run in processes of their own. Their common options are typed as for `ocifs mount`. The same parser checks
//! them at the start, so that a mistake is reported before the first pod.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::csi::{self, CsiError, NodeSettings, UnreachablePolicy, VolumeClients, VolumeNode};
use crate::image::ImageError;
use crate::registry::RegistryError;

use super::args::MountArgs;
use super::csi_args::{CsiArgs, SocketPath, WhenUnreachable};
use super::exit::CliError;
use super::metrics_server::MetricsSocket;
use super::parser::{Cli, CliCommand};
use super::setup::{self, StopSignals};
use super::{metrics_server, output, secret, socket, threads};

/// Mount options that a volume or the plugin sets.
const DECIDED: [&str; 14] = [
    "--creds",
    "--authfile",
    "--view",
    "--subdir",
    "--platform",
    "--kernel",
    "--foreground",
    "--metrics",
    "--offline",
    "--allow-suid",
    "--allow-dev",
    "--no-cache",
    "--over-dead",
    "--share-blobs",
];

/// Serves volumes until a signal comes. The mounts stay.
pub(super) fn serve(args: CsiArgs) -> Result<(), CliError> {
    output::start_log(args.log_file.as_deref())?;
    secret::guard_memory();
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| CliError::local("finding the working directory", &error))
    };
    if args.node_id.is_empty() {
        return Err(CliError::usage("--node-id is empty: name the node as the orchestrator does"));
    }
    let mounting = check(&args.mount_options)?;
    let SocketPath(path) = &args.endpoint;
    let settings = NodeSettings {
        node_id: args.node_id,
        state_dir: absolute(&args.state_dir)?,
        pull_secrets: args.pull_secrets.as_deref().map(absolute).transpose()?,
        authfile: args.authfile.as_deref().map(absolute).transpose()?,
        program: "/proc/self/exe".into(),
        mount_options: args.mount_options,
        clients: clients(mounting),
        unreachable: match args.when_unreachable {
            WhenUnreachable::Refuse => UnreachablePolicy::Refuse,
            WhenUnreachable::Show => UnreachablePolicy::Show,
        },
    };
    let node = Arc::new(VolumeNode::open(settings)?);
    let (listener, file) = socket::listen(path)
        .map_err(|error| CliError::local(format!("listening at {}", path.display()), &error))?;
    let endpoint = args.metrics.as_ref().map(MetricsSocket::open).transpose()?;
    let runtime = threads::runtime()?;
    let served = runtime.block_on(async {
        let mut stop = StopSignals::new()?;
        let shown = endpoint.map(|endpoint| tokio::spawn(endpoint.serve(metrics_server::plugin())));
        tracing::info!(socket = %path.display(), node = node.id(), "serving volumes");
        let served = csi::serve(node, listener, async move { stop.wait().await }).await;
        if let Some(shown) = shown {
            // The task removes its socket. Its error is only the abort.
            shown.abort();
            shown.await.ok();
        }
        Ok::<_, CliError>(served?)
    });
    runtime.shutdown_timeout(setup::LAST_TASKS);
    drop(file);
    served
}

/// Registry clients with the options of the mounts.
fn clients(mounting: MountArgs) -> VolumeClients {
    let make = move |authfile: Option<&Path>| {
        setup::registry_with(&mounting.image, authfile).map_err(|failure| failure.to_string())
    };
    let explain = |error: RegistryError| CliError::from(ImageError::Source(error.into())).explained();
    VolumeClients { make: Arc::new(make), explain }
}

/// Parses the options as the first mount would.
fn check(options: &[OsString]) -> Result<MountArgs, CliError> {
    for option in options {
        let text = option.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        // -o would be rewritten before it is parsed; every option has a long form.
        if DECIDED.contains(&name) || !name.starts_with("--") && text.starts_with('-') {
            return Err(CliError::usage(format!(
                "mount option {name} is not for volumes: it is decided by the plugin or by the volume, or needs its long form"
            )));
        }
    }
    let words = ["ocifs", "mount"].map(OsString::from).into_iter().chain(options.iter().cloned());
    let words = words.chain(["--", "registry.invalid/a:b", "/"].map(OsString::from));
    let parsed = parser().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed.map(|cli| cli.command) {
        Ok(CliCommand::Mount(mounting)) => Ok(mounting),
        Ok(_) => Err(CliError::usage("the words after -- are no options of mount")),
        Err(error) => {
            Err(CliError::usage(format!("the options after --: {}", error.render().to_string().trim())))
        }
    }
}

/// The parser for mount options. `OCIFS_CREDS` is not read: no mount gets it, and a client that had it would use it
/// instead of the login of the volume.
fn parser() -> clap::Command {
    Cli::command()
        .mut_subcommand("mount", |mount| mount.mut_arg("creds", |creds| creds.env(None::<&'static str>)))
}

impl From<CsiError> for CliError {
    fn from(error: CsiError) -> Self {
        CliError::local("the plugin", &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FaultClass;
    use crate::sandbox::{PRIVATE_VARIABLES, SERVICE_VARIABLES};

    #[test]
    fn options_of_mounts_are_tried_before_the_first_pod() {
        let tried = |line: &str| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            check(&words).map(drop).map_err(|failure| failure.to_string())
        };
        assert_eq!(tried("--cache-dir=/c --timeout 30 --verify=strict"), Ok(()));
        assert_eq!(tried(""), Ok(()));
        for line in
            ["--creds=a:b", "--cache-dri=/c", "-o allow_other", "-f", "--view merged", "a/b", "--timeout"]
        {
            assert!(tried(line).is_err(), "{line}");
        }
    }

    #[test]
    fn no_variable_of_the_plugin_alone_is_an_option_of_a_mount() {
        let variables = |parser: &clap::Command| {
            let mount = parser.find_subcommand("mount").unwrap();
            let named = mount.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
            named.map(str::to_owned).collect::<Vec<_>>()
        };
        let kept = variables(&parser());
        let usual = variables(&Cli::command());
        let dropped: Vec<_> = usual.iter().filter(|name| !kept.contains(name)).collect();
        assert_eq!(dropped, ["OCIFS_CREDS"]);
        for name in PRIVATE_VARIABLES.iter().chain(&SERVICE_VARIABLES) {
            assert!(!kept.iter().any(|kept| kept == *name), "{name}");
        }
    }

    #[test]
    fn every_fault_of_a_mount_has_its_code() {
        let expected = |fault| match fault {
            FaultClass::Usage => "InvalidArgument",
            FaultClass::NotFound => "NotFound",
            FaultClass::Denied => "Unauthenticated",
            FaultClass::Unavailable | FaultClass::Misbehaved => "Unavailable",
            FaultClass::Malformed | FaultClass::Unsupported | FaultClass::Mismatch | FaultClass::Io => {
                "Internal"
            }
        };
        for fault in [
            FaultClass::Usage,
            FaultClass::NotFound,
            FaultClass::Denied,
            FaultClass::Unavailable,
            FaultClass::Misbehaved,
            FaultClass::Malformed,
            FaultClass::Unsupported,
            FaultClass::Mismatch,
            FaultClass::Io,
        ] {
            assert_eq!(csi::code_name(super::super::exit::code(fault)), expected(fault), "{fault:?}");
        }
    }
}
