//! Paths that the client reads on this machine, for the Landlock sandbox.
//!
//! A path is listed with its directory, because a new file may appear under the old name (logins are written that
//! way). Directories shared with unrelated files are left out. No listed file is opened, except the configuration
//! that names others.

use std::path::{Path, PathBuf};

use super::RegistryClient;
use crate::oci::Reference;

/// Directories that hold secrets of other programs, too.
const SHARED: [&str; 11] =
    ["/", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var", "/var/tmp"];

impl RegistryClient {
    /// Files, and directories with all their content, that may be read for requests to `reference`. They need not
    /// exist.
    pub fn reads(&self, reference: Option<&Reference>) -> Vec<PathBuf> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let mut paths = Vec::new();
        let mut file = |file: &Path| {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            let is_its_own = |dir: &&Path| {
                Some(*dir) != home.as_deref() && SHARED.iter().all(|shared| *dir != Path::new(shared))
            };
            paths.extend(file.parent().filter(is_its_own).map(Path::to_owned));
            paths.push(file);
        };
        self.inner.auth.files().iter().for_each(|path| file(path));
        let places = &self.inner.places;
        places.registries.iter().chain(&self.inner.given.ca_file).for_each(|path| file(path));
        // Files named in other files. An invalid configuration is reported when the reference is opened.
        let route = reference.and_then(|reference| self.inner.route(reference).ok());
        for endpoint in route.iter().flat_map(|route| &route.endpoints) {
            endpoint.tls.authorities.iter().for_each(|path| file(path));
            for (certificate, key) in &endpoint.tls.pairs {
                file(certificate);
                key.iter().for_each(|path| file(path));
            }
        }
        let dirs = [&places.user, &places.system, &places.hosts, &self.inner.given.cert_dir];
        paths.extend(dirs.into_iter().flatten().cloned());
        // Docker's other files there are not for us.
        paths.extend(places.docker.iter().map(|docker| docker.join("certs.d")));
        paths
    }
}
