//! How a reference is opened: what the options of the command line are there.

use std::path::PathBuf;
use std::time::Duration;

use crate::cache::{Limit, Verify};
use crate::image::{Network, OpenOptions, Platforms};
use crate::oci::{Condition, Glob, Platform, PublicKey};
use crate::registry::{self, Credential};
use crate::source::{LayoutChoice, Location};

/// How a reference is opened. Everything has the default of the command line.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(super) open: OpenOptions,
    pub(super) registry: registry::Options,
    pub(super) cache: Option<PathBuf>,
    pub(super) limit: Limit,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        // It is named when something is opened.
        let nowhere = Location::Layout { directory: PathBuf::new(), choice: LayoutChoice::Only };
        Self {
            open: OpenOptions::new(nowhere),
            registry: registry::Options::default(),
            cache: None,
            limit: Limit::default(),
        }
    }

    /// The platform to choose from an index.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.open.platforms = Platforms::One(platform);
        self
    }

    /// Every manifest of an index, each in a directory of its own below `platforms/`.
    pub fn all_platforms(mut self) -> Self {
        self.open.platforms = Platforms::All;
        self
    }

    /// Only entries of an index that this holds for; may be said several times.
    pub fn select(mut self, condition: Condition) -> Self {
        self.open.select.push(condition);
        self
    }

    /// Only the layer with this number, and others that are named; 0 is the lowest.
    pub fn layer(mut self, number: usize) -> Self {
        self.open.layers.numbers.push(number);
        self
    }

    /// Only layers whose media type matches, and others that are named.
    pub fn layers_of_type(mut self, media_type: Glob) -> Self {
        self.open.layers.media_types.push(media_type);
        self
    }

    /// Only layers whose title matches, and others that are named.
    pub fn layers_titled(mut self, title: Glob) -> Self {
        self.open.layers.titles.push(title);
        self
    }

    /// Asks no network: what can be opened is a digest that the cache has.
    pub fn offline(mut self) -> Self {
        self.open.network = Network::Offline;
        self
    }

    /// When bytes are compared with their digests.
    pub fn verify(mut self, when: Verify) -> Self {
        self.open.verify = when;
        self
    }

    /// Refuses what is not signed by this key or another that is named.
    pub fn signed_by(mut self, key: PublicKey) -> Self {
        self.open.signed_by.push(key);
        self
    }

    /// Where fetched bytes are kept.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache = Some(dir.into());
        self
    }

    /// How large that may grow.
    pub fn cache_limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }

    /// The only file to look for credentials in.
    pub fn authfile(mut self, file: impl Into<PathBuf>) -> Self {
        self.registry.authfile = Some(file.into());
        self
    }

    /// The credential to use.
    pub fn credential(mut self, credential: Credential) -> Self {
        self.registry.creds = Some(credential);
        self
    }

    /// Uses no credential.
    pub fn anonymous(mut self) -> Self {
        self.registry.anonymous = true;
        self
    }

    /// Speaks http to every registry.
    pub fn plain_http(mut self) -> Self {
        self.registry.plain_http = true;
        self
    }

    /// How long one read may take when the registry does not answer.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.registry.read_budget = time;
        self
    }

    /// Anything else about what is opened, see [`OpenOptions`].
    pub fn with(mut self, change: impl FnOnce(&mut OpenOptions)) -> Self {
        change(&mut self.open);
        self
    }

    /// Anything else about how registries are reached, see [`registry::Options`].
    pub fn with_registry(mut self, change: impl FnOnce(&mut registry::Options)) -> Self {
        change(&mut self.registry);
        self
    }
}
