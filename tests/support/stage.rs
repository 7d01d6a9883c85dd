//! Stage: an artifact in a registry, a user who mounts it, and the requests and bytes of that.
//!
//! Never shared between tests. The idea: what the registry sent is compared with what the test says may be sent, blob by blob.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use crate::artifact::{Blob, Packed};
use crate::fault_registry::FaultRegistry;
use crate::process::{Need, able, sh};
use crate::real_registry::RealRegistry;
use crate::site::{Mount, Site};

/// The unit in which a cold read is fetched (docs/cache-format.md).
pub(crate) const BLOCK: u64 = 256 << 10;

/// Where every artifact of a stage is.
const REPO: &str = "golden/thing";

enum Registry {
    Fault(FaultRegistry),
    Real(RefCell<RealRegistry>),
}

/// One artifact in one registry, and one user.
pub(crate) struct Stage {
    /// The user.
    pub(crate) site: Site,
    registry: Registry,
}

impl Stage {
    /// `packed` under the tag `v1` of the strict registry in this process; `None` when the machine cannot mount.
    #[track_caller]
    pub(crate) fn strict(packed: &Packed) -> Option<Self> {
        if !able(&[Need::Root, Need::Fuse]) {
            return None;
        }
        let stage = Self { site: Site::new(), registry: Registry::Fault(FaultRegistry::start()) };
        stage.push("v1", packed);
        Some(stage)
    }

    /// The same in Debian's registry.
    #[track_caller]
    pub(crate) fn real(packed: &Packed) -> Option<Self> {
        if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry")]) {
            return None;
        }
        let stage = Self { site: Site::new(), registry: Registry::Real(RefCell::new(RealRegistry::start())) };
        stage.push("v1", packed);
        Some(stage)
    }

    /// Both, one after the other.
    #[track_caller]
    pub(crate) fn both(packed: &Packed) -> impl Iterator<Item = Self> {
        [Self::strict(packed), Self::real(packed)].into_iter().flatten()
    }

    /// Stores one more document.
    pub(crate) fn push(&self, tag: &str, packed: &Packed) {
        match &self.registry {
            Registry::Fault(registry) => packed.push(registry, REPO, tag),
            Registry::Real(registry) => packed.push(&*registry.borrow(), REPO, tag),
        }
    }

    /// The strict registry, to make it misbehave.
    pub(crate) fn fault(&self) -> &FaultRegistry {
        match &self.registry {
            Registry::Fault(registry) => registry,
            Registry::Real(_) => panic!("this stage has a real registry"),
        }
    }

    /// `HOST/REPOSITORY` and this tail: `:v1`, `@sha256:...`.
    pub(crate) fn reference(&self, tail: &str) -> String {
        let host = match &self.registry {
            Registry::Fault(registry) => registry.host(),
            Registry::Real(registry) => registry.borrow().host(),
        };
        format!("{host}/{REPO}{tail}")
    }

    /// Mounts the artifact.
    #[track_caller]
    pub(crate) fn mount(&self, options: &[&str]) -> Mount {
        self.site.mount(&self.reference(":v1"), options)
    }

    /// Mounts the artifact and lists `files/`, which may cost these blobs and no other byte of any.
    #[track_caller]
    pub(crate) fn mount_for(&self, allowed: &[&Blob], options: &[&str]) -> Mount {
        let mut mount = None;
        self.costs(allowed, || {
            let up = self.mount(options);
            sh("cd $1; if [ -e files ]; then ls -lR files; fi; ls -A", &[&up.dir()]);
            mount = Some(up);
        });
        mount.expect("it was mounted")
    }

    /// Does something that may fetch these blobs, each once, and no byte of any other.
    #[track_caller]
    pub(crate) fn costs(&self, allowed: &[&Blob], work: impl FnOnce()) {
        let limit = allowed.iter().map(|blob| blob.size()).sum();
        self.costs_at_most(limit, allowed, work);
    }

    /// Does something that may fetch that many bytes of these blobs, and no byte of any other.
    #[track_caller]
    pub(crate) fn costs_at_most(&self, limit: u64, allowed: &[&Blob], work: impl FnOnce()) {
        self.reset();
        work();
        let asked = self.blob_requests();
        let allowed: Vec<String> = allowed.iter().map(|blob| blob.digest()).collect();
        for (path, bytes) in &asked {
            let named = allowed.iter().any(|digest| path.contains(digest.as_str()));
            assert!(named || *bytes == 0, "{bytes} bytes of {path}; only {allowed:?} were to be read");
        }
        let sent: u64 = asked.iter().map(|(_, bytes)| bytes).sum();
        assert!(sent <= limit, "{sent} bytes instead of at most {limit}: {asked:?}");
    }

    /// Forgets what was asked so far.
    pub(crate) fn reset(&self) {
        match &self.registry {
            Registry::Fault(registry) => registry.reset_counts(),
            Registry::Real(registry) => registry.borrow_mut().reset_counts(),
        }
    }

    /// Blobs that were asked for, and the bytes that were sent.
    pub(crate) fn blob_requests(&self) -> Vec<(String, u64)> {
        match &self.registry {
            Registry::Fault(registry) => {
                let requests = registry.blob_requests().into_iter();
                requests.map(|request| (request.path, request.bytes_sent)).collect()
            }
            Registry::Real(registry) => {
                let hits = registry.borrow_mut().blob_requests().into_iter();
                hits.map(|hit| (hit.path, hit.bytes)).collect()
            }
        }
    }

    /// How many documents were asked for.
    pub(crate) fn document_requests(&self) -> usize {
        let paths: Vec<String> = match &self.registry {
            Registry::Fault(registry) => {
                registry.requests().into_iter().map(|request| request.path).collect()
            }
            Registry::Real(registry) => {
                registry.borrow_mut().requests().into_iter().map(|hit| hit.path).collect()
            }
        };
        paths.iter().filter(|path| path.contains("/manifests/")).count()
    }
}

/// The whole of a file.
#[track_caller]
pub(crate) fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
