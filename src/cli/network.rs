//! How registries are reached, as the command line says it: certificates, and where it is configured who has copies.
//!
//! The names are those of skopeo and of containerd's tools. What is not said here comes from the files of this machine.

use std::path::PathBuf;

use clap::Args;

use crate::image::ImageError;
use crate::registry::{Options, Places, Registry};
use crate::source::Location;

use super::exit::Failure;

/// Certificates and mirrors.
#[derive(Args, Debug)]
pub(super) struct NetworkArgs {
    /// Whether registries have to show a valid certificate. With false, one that speaks no https is spoken to by http. With
    /// true, https is spoken to this machine, too, and insecure in registries.conf counts for nothing.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,

    /// A directory with certificates for the registry: *.crt are authorities, *.cert with *.key are shown to it. Default: the
    /// directory of its host in certs.d of containers or docker.
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,

    /// A file with authorities (PEM) that may sign for registries, beside those of the system.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// A directory with containerd's HOST/hosts.toml: mirrors, certificates and headers of registries. What it says about a
    /// registry counts instead of registries.conf.
    #[arg(long, value_name = "DIR", env = "OCIFS_HOSTS_DIR")]
    hosts_dir: Option<PathBuf>,
}

impl NetworkArgs {
    /// Puts it into the client's options. Paths become absolute: a mount in the background leaves the directory it was started
    /// in.
    pub(super) fn apply(&self, options: Options) -> Result<Options, Failure> {
        let absolute = |path: &Option<PathBuf>| {
            let made = path.as_ref().filter(|path| !path.as_os_str().is_empty()).map(std::path::absolute);
            made.transpose().map_err(|error| Failure::local("finding the working directory", &error))
        };
        Ok(Options {
            tls_verify: self.tls_verify,
            cert_dir: absolute(&self.cert_dir)?,
            ca_file: absolute(&self.ca_file)?,
            places: Places { hosts: absolute(&self.hosts_dir)?, ..options.places },
            ..options
        })
    }
}

/// The location with a full path or name: an alias, or a name in the registry that is searched for short names, means what it
/// means on this machine.
pub(super) fn in_full(location: &Location, registry: &Registry) -> Result<Location, Failure> {
    let absolute = location
        .clone()
        .absolute()
        .map_err(|error| Failure::local("finding the working directory", &error))?;
    Ok(match absolute {
        Location::Registry(short) => {
            Location::Registry(registry.expand(&short).map_err(|error| ImageError::Source(error.into()))?)
        }
        other => other,
    })
}
