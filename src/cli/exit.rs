//! Exit codes and hints: the meaning of a failure for scripts, and a remedy for people.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use nix::unistd::geteuid;

use crate::cache::CacheError;
use crate::export::{CatError, ExportError};
use crate::image::ImageError;
use crate::io::{FaultClass, ReadError, chain, message, shell_word};
use crate::mount::MountError;
use crate::oci::OciError;
use crate::registry::{RegistryError, TlsTrouble};
use crate::source::SourceError;
use crate::view::ViewError;

use super::journal;

/// An error of this machine.
pub(super) const GENERIC: u8 = 1;
/// A wrong command line.
pub(super) const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const DENIED: u8 = 4;
const NETWORK: u8 = 5;
const CONTENT: u8 = 6;
const MISMATCH: u8 = 7;
const MOUNT: u8 = 8;

/// The convention of exit codes that the caller expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitStyle {
    /// The codes of ocifs.
    Own,
    /// The codes of mount(8), for a mount helper.
    MountHelper,
}

impl ExitStyle {
    /// The style by the name of the program.
    pub(super) fn of(program: Option<&OsString>) -> Self {
        let name = program.and_then(|program| Path::new(program).file_name()).and_then(|name| name.to_str());
        match name {
            Some("mount.ocifs" | "mount.fuse.ocifs") => ExitStyle::MountHelper,
            _ => ExitStyle::Own,
        }
    }

    /// The exit code in this style; mount(8) knows 1 (usage), 2 (system) and 32 (mount failed).
    pub(super) fn code(self, code: u8) -> ExitCode {
        ExitCode::from(match (self, code) {
            (ExitStyle::Own, code) | (ExitStyle::MountHelper, code @ 0) => code,
            (ExitStyle::MountHelper, USAGE) => 1,
            (ExitStyle::MountHelper, GENERIC) => 2,
            (ExitStyle::MountHelper, _) => 32,
        })
    }
}

/// Failure of a command: exit code, message and hint.
#[derive(Debug)]
pub(super) struct CliError {
    code: u8,
    message: String,
    hint: Option<String>,
    /// The message was printed by another process, or there is none.
    silent: bool,
}

impl CliError {
    /// The command line is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into(), hint: None, silent: false }
    }

    /// A named thing does not exist.
    pub(super) fn absent(message: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, message: message.into(), hint: None, silent: false }
    }

    /// Bytes do not match their digest.
    pub(super) fn mismatch(message: impl Into<String>) -> Self {
        Self { code: MISMATCH, message: message.into(), hint: None, silent: false }
    }

    /// A layer would have to be read as a whole, and `--require-lazy` excludes that.
    pub(super) fn not_lazy(message: impl Into<String>) -> Self {
        let hint = "\"ocifs index build REF\" builds the index on this machine, \"ocifs index push REF\" publishes it for others";
        Self { code: CONTENT, message: message.into(), hint: Some(hint.to_owned()), silent: false }
    }

    /// Whether the failure may pass without any change here: the network or a registry is unavailable.
    pub(super) fn is_passing(&self) -> bool {
        self.code == NETWORK
    }

    /// Whether bytes did not match their digest; the sender may deliver the right ones to a second request.
    pub(super) fn is_mismatch(&self) -> bool {
        self.code == MISMATCH
    }

    /// The exit code, and the message with its hint in one line.
    #[cfg(feature = "csi")]
    pub(super) fn explained(self) -> (u8, String) {
        let hint = self.hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default();
        (self.code, format!("{}{hint}", self.message))
    }

    /// The remedy; `None` when there is none to name.
    pub(super) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Content or a mount is in use and stays.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self { code: GENERIC, message: message.into(), hint: None, silent: false }
    }

    /// An operation of this machine failed.
    pub(super) fn local(message: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self {
            code: GENERIC,
            message: format!("{}: {}", message.into(), chain(error)),
            hint: None,
            silent: false,
        }
    }

    /// A command that could not be started: 127 when no program has this name, else 126, as in env(1) and shells.
    pub(super) fn not_run(program: &OsStr, error: &std::io::Error) -> Self {
        let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
        Self { code, ..Self::local(format!("running {}", program.display()), error) }
    }

    /// A failure with the exit code of `fault`.
    pub(super) fn of(fault: FaultClass, message: String) -> Self {
        Self { code: code(fault), message, hint: None, silent: false }
    }

    /// This failure with a better hint, if there is one.
    pub(super) fn hinting(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Another process of ocifs failed with this code and has printed the reason.
    pub(super) fn already_reported(code: u8) -> Self {
        Self { code, message: String::new(), hint: None, silent: true }
    }

    /// The user gave up waiting.
    pub(super) fn interrupted() -> Self {
        // The shell's code for a process ended by SIGINT.
        Self::already_reported(130)
    }

    /// The reader of our output closed the pipe, as `head` does: ends without a message.
    pub(super) fn closed_pipe() -> Self {
        // The shell's code for a process ended by SIGPIPE.
        Self { code: 141, message: String::new(), hint: None, silent: true }
    }

    /// Bytes that could not be read or stored.
    pub(super) fn read(error: &ReadError) -> Self {
        Self::new(error.fault(), error, hint_of_registry(error))
    }

    fn new(fault: FaultClass, error: &dyn std::error::Error, hint: Option<String>) -> Self {
        Self { code: code(fault), message: chain(error), hint, silent: false }
    }

    /// Prints the message and the hint. Returns the exit code.
    pub(super) fn report(self, style: ExitStyle) -> ExitCode {
        if !self.silent {
            let level = journal::error_prefix();
            let mut text = format!("{level}ocifs: {}\n", message(&self.message));
            if let Some(hint) = &self.hint {
                text.push_str(&format!("{level}hint: {}\n", message(hint)));
            }
            // Standard error may be closed; then there is no other output.
            std::io::stderr().write_all(text.as_bytes()).ok();
        }
        style.code(self.code)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A path for a hint; `None` where it is not safe to paste.
pub(super) fn pasted(path: &Path) -> Option<String> {
    shell_word(path.as_os_str().as_encoded_bytes())
}

/// The exit code of a fault.
pub(super) fn code(fault: FaultClass) -> u8 {
    match fault {
        FaultClass::Usage => USAGE,
        FaultClass::NotFound => NOT_FOUND,
        FaultClass::Denied => DENIED,
        FaultClass::Unavailable | FaultClass::Misbehaved => NETWORK,
        FaultClass::Malformed | FaultClass::Unsupported => CONTENT,
        FaultClass::Mismatch => MISMATCH,
        FaultClass::Io => GENERIC,
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        let hint = match (&error, error.fault()) {
            // There is nothing to choose from.
            (
                ImageError::Choice {
                    source:
                        OciError::NoPlatform { available, .. }
                        | OciError::NoEntry { available, .. }
                        | OciError::NoLayer { available },
                    ..
                },
                _,
            ) if available == "nothing" || available.is_empty() => None,
            (ImageError::Choice { source: OciError::NoPlatform { .. }, .. }, _) => {
                Some("choose one of them with --platform".to_owned())
            }
            (ImageError::Choice { source: OciError::Ambiguous { .. } | OciError::NoEntry { .. }, .. }, _) => {
                Some("choose one of them with --select KEY=GLOB, or name its digest in the reference: @sha256:...".to_owned())
            }
            (ImageError::Choice { source: OciError::NoLayer { .. }, .. }, _) => {
                Some("choose some of them with --layer, --media-type or --title".to_owned())
            }
            (ImageError::TooMany { .. } | ImageError::Nesting { .. }, _) => {
                Some("choose some with --select KEY=GLOB, or name one digest in the reference: @sha256:...".to_owned())
            }
            (ImageError::NoParts { .. }, _) => Some(
                "--verify=strict compares whole blobs before their first byte; --layer, --media-type and --title leave layers out"
                    .to_owned(),
            ),
            (ImageError::Cache(_), _) => Some("choose another directory with --cache-dir".to_owned()),
            (ImageError::Untrusted { .. }, _) => Some(
                "is the right key given, and was this digest signed? \"cosign verify --key KEY REF\" shows details".to_owned(),
            ),
            (ImageError::UnsignedReferrers { .. }, _) => {
                Some("leave out --referrers, or mount them without --require-signature".to_owned())
            }
            (ImageError::Source(SourceError::Registry(error)), _) if registry_hint(error).is_some() => {
                registry_hint(error)
            }
            _ if hint_of_registry(&error).is_some() => hint_of_registry(&error),
            (_, FaultClass::Mismatch) => Some(
                "the received bytes differ from the manifest's digest; to fetch them again, remove the cache directory".to_owned(),
            ),
            (ImageError::Source(SourceError::Registry(RegistryError::Blocked { .. })), _) => {
                Some("the administrator of this machine blocks it; remove blocked = true from that file".to_owned())
            }
            (ImageError::Source(SourceError::Registry(RegistryError::Config { .. })), _) => {
                Some("docs/registries.md describes these files".to_owned())
            }
            (ImageError::Source(SourceError::Ambiguous { .. }), _) => Some(
                "oci:DIR:TAG, oci-archive:FILE:TAG, docker-archive:FILE:NAME:TAG and URL#TAG name one; @sha256:... behind anything does, too"
                    .to_owned(),
            ),
            (ImageError::Source(SourceError::Offline { .. }), _) => Some(
                "mount it once without --offline; a tag can only be resolved online, so name the digest".to_owned(),
            ),
            (_, FaultClass::Unavailable) => Some("check the host name and the network".to_owned()),
            _ => None,
        };
        let mut failure = Self::new(error.fault(), &error, hint);
        if let ImageError::Cache(_) = error {
            failure.code = GENERIC;
        }
        failure
    }
}

/// The hint for a registry error anywhere in the sources of `error`.
fn hint_of_registry(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(here) = next {
        if let Some(error) = here.downcast_ref::<RegistryError>() {
            return registry_hint(error);
        }
        next = here.source();
    }
    None
}

/// The remedy for a registry error, where it is more specific than its fault.
fn registry_hint(error: &RegistryError) -> Option<String> {
    let hint = match (error.last(), error.tls_trouble()) {
        (_, Some(TlsTrouble::Expired)) => {
            "renew the registry's certificate, or set this machine's clock; --tls-verify=false accepts it"
        }
        (_, Some(TlsTrouble::OtherName)) => {
            "use a name that its certificate is for; --tls-verify=false accepts it for this one"
        }
        (_, Some(TlsTrouble::ClientCertificate)) => {
            "put the client certificate and its key (NAME.cert, NAME.key) into certs.d/HOST, or name their directory with --cert-dir"
        }
        (_, Some(TlsTrouble::NoTls)) => {
            "the host speaks http on this port: pass --plain-http, or name its port for https"
        }
        (_, Some(TlsTrouble::Other)) => {
            "name its certificate authority with --ca-file, or put it into certs.d; for http, pass --plain-http"
        }
        (RegistryError::SpeaksTls { .. }, _) => {
            "loopback registries are reached by http: pass --tls-verify=true, or --ca-file FILE with its certificate authority"
        }
        (RegistryError::Proxy { .. }, _) => {
            "the proxy refuses, not the registry: NO_PROXY names hosts that are reached without it"
        }
        (RegistryError::HeaderConflict { .. }, _) => {
            "the registry or a proxy before it confuses its manifests: report it there; a digest (@sha256:...) instead of the tag needs no header"
        }
        (RegistryError::Changed { .. }, _) => "the file was replaced at its address: run the command again",
        (RegistryError::Helper { .. }, _) => "--anonymous reads public images without a login",
        (RegistryError::NotRegistry { .. } | RegistryError::NoToken { .. }, _)
            if error.is_through_proxy() =>
        {
            "is that the answer of the proxy? NO_PROXY names hosts that are reached without it"
        }
        (RegistryError::NotRegistry { .. }, _) => {
            "is this a registry? its address is the part before the first slash"
        }
        (RegistryError::Misled { reason, .. }, _) if reason.contains("from https to http") => {
            "insecure = true in registries.conf, or --tls-verify=false, allows redirects from https to http"
        }
        (RegistryError::Misled { reason, .. }, _) if reason.contains("private network") => {
            "name the host in registries.conf, as the location of a [[registry]], to allow redirects to it"
        }
        (RegistryError::Unreachable { .. } | RegistryError::Stalled { .. }, _)
            if error.is_through_proxy() =>
        {
            "check the proxy: NO_PROXY names hosts that are reached without it"
        }
        _ if error.is_too_often() => {
            "the registry limits requests: wait, or log in where that raises the limit"
        }
        (
            RegistryError::Denied { .. } | RegistryError::TokenDenied { .. } | RegistryError::Status { .. },
            _,
        ) if error.is_through_proxy() => {
            "the registry or the proxy refuses: NO_PROXY names hosts that are reached without it"
        }
        _ if error.is_failing() => "the registry fails, not the network: try again later",
        _ if error.fault() == FaultClass::Denied
            && !matches!(error.last(), RegistryError::Blocked { .. }) =>
        {
            "log in with \"docker login\" or \"podman login\", or pass --authfile; --anonymous reads public images in spite of a stale login; the reference may also not exist"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

impl From<ReadError> for CliError {
    fn from(error: ReadError) -> Self {
        Self::read(&error)
    }
}

impl From<CacheError> for CliError {
    fn from(error: CacheError) -> Self {
        ImageError::Cache(error).into()
    }
}

impl From<ViewError> for CliError {
    fn from(error: ViewError) -> Self {
        Self::new(error.fault(), &error, None)
    }
}

impl From<CatError> for CliError {
    fn from(error: CatError) -> Self {
        match &error {
            CatError::Write { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => {
                Self::closed_pipe()
            }
            _ => Self::new(error.fault(), &error, None),
        }
    }
}

impl From<ExportError> for CliError {
    fn from(error: ExportError) -> Self {
        if error.is_closed_pipe() {
            return Self::closed_pipe();
        }
        let hint = match &error {
            ExportError::Read(read) if read.fault() == FaultClass::Mismatch => Some(
                "the received bytes differ from the manifest's digest, and the written output is wrong"
                    .to_owned(),
            ),
            _ => None,
        };
        Self::new(error.fault(), &error, hint)
    }
}

impl From<MountError> for CliError {
    fn from(error: MountError) -> Self {
        let hint = match &error {
            MountError::Missing { dir } => pasted(dir).map(|dir| format!("create it: mkdir -p {dir}")),
            MountError::NotEmpty { .. } => Some("choose an empty directory, or hide its content with -o nonempty".to_owned()),
            MountError::AlreadyMounted { dir, fs_type, .. } if fs_type == "fuse.ocifs" => pasted(dir)
                .map(|dir| format!("unmount it first, ocifs umount {dir}, or replace it with --refresh")),
            MountError::AlreadyMounted { .. } => Some("choose a directory that nothing is mounted at".to_owned()),
            MountError::Stale { dir, .. } => pasted(dir).map(|dir| format!("unmount it first: umount -l {dir}")),
            MountError::BelowStale { .. } => Some("\"findmnt\" shows the mounts above it".to_owned()),
            MountError::NotOurs { .. } => Some("choose a directory of your own".to_owned()),
            MountError::NotMounted { .. } => Some("\"ocifs list\" lists all mounts".to_owned()),
            MountError::Busy { .. } => Some("end the programs that use it, or pass -l to unmount lazily".to_owned()),
            MountError::NoDevice { source }
                if source.kind() == std::io::ErrorKind::PermissionDenied && !geteuid().is_root() => Some(
                "chmod 666 /dev/fuse, as udev has it, or mount as root; \"ocifs ls\" and \"ocifs cat\" need no mount".to_owned(),
            ),
            MountError::NoDevice { .. } => Some(
                "load the module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN); \
                 \"ocifs ls\" and \"ocifs cat\" need neither"
                    .to_owned(),
            ),
            MountError::Unmount { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => {
                Some("a user namespace has the mounts of its parent locked: unmount it in the parent".to_owned())
            }
            MountError::NoNamespace => Some("as an ordinary user, be root of a namespace: unshare -rm ocifs run --rw ...".to_owned()),
            MountError::NoRight { .. } => Some(
                "give the container the right and the device: --cap-add SYS_ADMIN --device /dev/fuse; or mount in a namespace of \
                 your own, unshare -rm; \"ocifs ls\", \"ocifs cat\" and \"ocifs export\" need no mount"
                    .to_owned(),
            ),
            MountError::Unanswered { dir, there: Some(_) } => {
                Some(format!("unmount it first: ocifs umount -l {}", dir.display()))
            }
            MountError::Unanswered { there: None, .. } => Some("\"findmnt\" shows the mounts along its path".to_owned()),
            MountError::NoHelper => Some("install the package fuse3, or mount as root".to_owned()),
            MountError::Helper { output, .. } if output.contains("user_allow_other") => {
                Some("add the line user_allow_other to /etc/fuse.conf".to_owned())
            }
            _ => None,
        };
        Self { code: MOUNT, message: chain(&error), hint, silent: false }
    }
}
