//! Registry options of the command line: logins, certificates, and the configuration of mirrors.
//!
//! The names are those of skopeo and of containerd's tools. Defaults come from the files of this machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::image::ImageError;
use crate::registry::{ConfigPaths, RegistryClient, RegistryError, RegistryOptions};
use crate::source::{ArchiveLocation, ImageLocation};

use super::exit::{CliError, pasted};

/// Logins, certificates and mirrors.
#[derive(Args, Debug)]
pub(super) struct NetworkArgs {
    /// Read credentials from this file, in the form of docker and podman. Default: their files.
    #[arg(long, value_name = "FILE")]
    pub(super) authfile: Option<PathBuf>,

    /// Speak http instead of https. Implied for registries on loopback.
    #[arg(long)]
    plain_http: bool,

    /// Require a valid certificate. false accepts any, and http where the registry speaks no https. true demands https of loopback
    /// registries too, and overrides insecure in registries.conf.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,

    /// Use the certificates in this directory for the registry: *.crt as authorities, *.cert with *.key as client certificates.
    /// Default: the directory of its host in certs.d of containers or docker.
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,

    /// Trust the authorities in this file (PEM), beside those of the system.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Read mirrors, certificates and headers of registries from HOST/hosts.toml in this directory, as containerd does. Overrides
    /// registries.conf.
    #[arg(long, value_name = "DIR", env = "OCIFS_HOSTS_DIR")]
    hosts_dir: Option<PathBuf>,
}

impl NetworkArgs {
    /// The registry client, with `options` for everything without an argument. Paths become absolute: a background
    /// mount changes its working directory.
    pub(super) fn client(
        &self,
        authfile: Option<&Path>,
        options: RegistryOptions,
    ) -> Result<RegistryClient, CliError> {
        let absolute = |path: Option<&Path>| {
            let made = path.filter(|path| !path.as_os_str().is_empty()).map(std::path::absolute);
            made.transpose().map_err(|error| CliError::local("finding the working directory", &error))
        };
        let authfile = absolute(authfile)?;
        if let Some(named) = &authfile
            && let Err(error) = std::fs::File::open(named)
        {
            return Err(CliError::usage(format!("credential file {}: {error}", named.display())));
        }
        let options = RegistryOptions {
            plain_http: self.plain_http,
            authfile,
            tls_verify: self.tls_verify,
            cert_dir: absolute(self.cert_dir.as_deref())?,
            ca_file: absolute(self.ca_file.as_deref())?,
            places: ConfigPaths { hosts: absolute(self.hosts_dir.as_deref())?, ..options.places },
            ..options
        };
        RegistryClient::new(options)
            .map_err(|error: RegistryError| CliError::local("starting the client", &error))
    }
}

/// Hint for a reference whose name is also a path on this machine; `None` if there is no such path.
pub(super) fn namesake(location: &ImageLocation) -> Option<String> {
    let name = location.reference()?.short_name()?;
    let word = pasted(&Path::new(".").join(name))?;
    Path::new(name).exists().then(|| format!("a name is one in a registry; for the path {name} write {word}"))
}

/// The location as typed, so that a line of fstab is recognised. A web address may be signed: it is shown without the
/// signature.
pub(super) fn written(argv: &[OsString], location: &ImageLocation) -> String {
    let is_web = matches!(location, ImageLocation::Archive { at: ArchiveLocation::Web(_), .. });
    let mut words = argv.iter().skip(2).filter_map(|word| word.to_str()).filter(|_| !is_web);
    let found = words.find(|word| word.parse::<ImageLocation>().is_ok_and(|parsed| parsed == *location));
    found.map_or_else(|| location.to_string(), str::to_owned)
}

/// The location with an absolute path or a full name. Aliases and short names are resolved as this machine configures
/// them.
pub(super) fn in_full(
    location: &ImageLocation,
    registry: &RegistryClient,
) -> Result<ImageLocation, CliError> {
    let absolute = location
        .clone()
        .absolute()
        .map_err(|error| CliError::local("finding the working directory", &error))?;
    Ok(match absolute {
        ImageLocation::Registry(short) => ImageLocation::Registry(
            registry.expand(&short).map_err(|error| ImageError::Source(error.into()))?,
        ),
        other => other,
    })
}
