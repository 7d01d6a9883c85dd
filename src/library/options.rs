//! Library options: the counterparts of the command line's options.

use std::path::PathBuf;
use std::time::Duration;

use oci_client::secrets::RegistryAuth;

use crate::cache::{SizeLimit, VerifyMode};
use crate::image::{NetworkAccess, OpenOptions, PlatformScope};
use crate::oci::{EntryCondition, GlobPattern, Platform, PublicKey};
use crate::registry::{self, RedactedSecret, UserCredential};
use crate::source::{ImageLocation, LayoutChoice};

/// Options for opening a reference. The defaults are those of the command line.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(super) open: OpenOptions,
    pub(super) registry: registry::RegistryOptions,
    pub(super) cache: Option<PathBuf>,
    pub(super) limit: SizeLimit,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        // A placeholder; `Image::open` sets the location.
        let nowhere = ImageLocation::Layout { directory: PathBuf::new(), choice: LayoutChoice::Only };
        Self {
            open: OpenOptions::new(nowhere),
            registry: registry::RegistryOptions::default(),
            cache: None,
            limit: SizeLimit::default(),
        }
    }

    /// The platform to choose from an index.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.open.platforms = PlatformScope::One(platform);
        self
    }

    /// Opens every manifest of an index, each in a directory of its own below `platforms/`.
    pub fn all_platforms(mut self) -> Self {
        self.open.platforms = PlatformScope::All;
        self
    }

    /// Opens only the entries of an index that match; repeatable.
    pub fn select(mut self, condition: EntryCondition) -> Self {
        self.open.select.push(condition);
        self
    }

    /// Opens only the layer with this number, 0 being the lowest; repeatable.
    pub fn layer(mut self, number: usize) -> Self {
        self.open.layers.numbers.push(number);
        self
    }

    /// Opens only layers whose media type matches; repeatable.
    pub fn layers_of_type(mut self, media_type: GlobPattern) -> Self {
        self.open.layers.media_types.push(media_type);
        self
    }

    /// Opens only layers whose title matches; repeatable.
    pub fn layers_titled(mut self, title: GlobPattern) -> Self {
        self.open.layers.titles.push(title);
        self
    }

    /// Uses no network: only a digest in the cache can be opened.
    pub fn offline(mut self) -> Self {
        self.open.network = NetworkAccess::Offline;
        self
    }

    /// When bytes are verified against their digests.
    pub fn verify(mut self, when: VerifyMode) -> Self {
        self.open.verify = when;
        self
    }

    /// Refuses an image without a signature by this key; repeatable, and one key is enough.
    pub fn signed_by(mut self, key: PublicKey) -> Self {
        self.open.signed_by.push(key);
        self
    }

    /// The cache directory.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache = Some(dir.into());
        self
    }

    /// The size limit of the cache.
    pub fn cache_limit(mut self, limit: SizeLimit) -> Self {
        self.limit = limit;
        self
    }

    /// The only file that is read for credentials.
    pub fn authfile(mut self, file: impl Into<PathBuf>) -> Self {
        self.registry.authfile = Some(file.into());
        self
    }

    /// The credential to use.
    pub fn credential(mut self, credential: UserCredential) -> Self {
        self.registry.creds = Some(credential);
        self
    }

    /// The login for every registry, in the type of [`oci_client`].
    pub fn auth(mut self, auth: RegistryAuth) -> Self {
        match auth {
            RegistryAuth::Anonymous => self.registry.anonymous = true,
            RegistryAuth::Basic(user, secret) => {
                self.registry.creds = Some(UserCredential { user, secret: RedactedSecret::new(secret) });
            }
            RegistryAuth::Bearer(token) => self.registry.token = Some(RedactedSecret::new(token)),
        }
        self
    }

    /// Uses no credential.
    pub fn anonymous(mut self) -> Self {
        self.registry.anonymous = true;
        self
    }

    /// Connects to every registry by http.
    pub fn plain_http(mut self) -> Self {
        self.registry.plain_http = true;
        self
    }

    /// The time limit of one read while the registry does not answer.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.registry.read_budget = time;
        self
    }

    /// Sets any other option of [`OpenOptions`].
    pub fn with(mut self, change: impl FnOnce(&mut OpenOptions)) -> Self {
        change(&mut self.open);
        self
    }

    /// Sets any other option of [`registry::RegistryOptions`].
    pub fn with_registry(mut self, change: impl FnOnce(&mut registry::RegistryOptions)) -> Self {
        change(&mut self.registry);
        self
    }
}
