//! Paths of this machine's registry configuration, as the environment sets them.

use std::path::PathBuf;

/// The paths of this machine's configuration. A missing path is an error only if the user named it.
#[derive(Clone, Debug, Default)]
pub struct ConfigPaths {
    /// The `registries.conf` that replaces those of the user and the system.
    pub registries: Option<PathBuf>,
    /// The directory with the user's own `registries.conf`, `registries.conf.d` and `certs.d`.
    pub user: Option<PathBuf>,
    /// The directory with those of the system.
    pub system: Option<PathBuf>,
    /// The directory with docker's `certs.d`.
    pub docker: Option<PathBuf>,
    /// A directory with `HOST/hosts.toml`.
    pub hosts: Option<PathBuf>,
}

impl ConfigPaths {
    /// The default paths, with the environment of this process.
    pub fn of_environment() -> Self {
        let path = |name: &str| {
            let path = std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)?;
            // Absolute, so that a change of the working directory does not matter.
            Some(std::path::absolute(&path).unwrap_or(path))
        };
        let home = path("HOME").map(|home| home.join(".config"));
        Self {
            registries: path("CONTAINERS_REGISTRIES_CONF"),
            user: path("XDG_CONFIG_HOME").or(home).map(|config| config.join("containers")),
            system: Some("/etc/containers".into()),
            docker: Some("/etc/docker".into()),
            hosts: None,
        }
    }
}
