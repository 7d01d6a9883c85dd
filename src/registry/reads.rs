//! Which files of this machine the client reads, for a caller who puts the others out of reach.
//!
//! Opens none of them, apart from the configuration that names some. The idea: a place is named with its directory where a new
//! file may come under the old name (a login is written that way), but not a directory that everything lies in.

use std::path::{Path, PathBuf};

use super::Registry;
use crate::oci::Reference;

/// Directories in which secrets of others lie, too.
const SHARED: [&str; 11] =
    ["/", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var", "/var/tmp"];

impl Registry {
    /// Files, and directories with all that is below them, that may be read when `reference` is asked for. They need not exist.
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
        // Files that other files name. What cannot be understood is told when the reference is opened.
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
        // What else docker keeps there is its own.
        paths.extend(places.docker.iter().map(|docker| docker.join("certs.d")));
        paths
    }
}
