//! Arguments for the cache: its directory, and the subcommands of `ocifs cache`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};

use crate::cache::{self, BlobSharing, CACHE_DIR_VARIABLE, PrivateDir};
use crate::oci::Digest;
use crate::source::ImageLocation;

use super::exit::CliError;
use super::network::NetworkArgs;
use super::output_format::OutputFormat;

/// A path; an empty one, as of an emptied variable, counts as absent.
fn maybe_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The cache of a command that reads references.
#[derive(Args, Debug)]
pub(super) struct CacheArgs {
    /// Use this cache directory. Default: $XDG_CACHE_HOME/ocifs, or ~/.cache/ocifs.
    #[arg(long, value_name = "DIR", env = CACHE_DIR_VARIABLE, value_parser = maybe_empty())]
    cache_dir: Option<PathBuf>,

    /// Keep nothing: use a private cache below the cache directory, and remove it when the command or the mount ends.
    #[arg(long, conflicts_with = "offline")]
    no_cache: bool,

    /// Choose the repositories that a verified blob of another one serves.
    #[arg(long, hide = true, value_name = "POLICY", default_value = "always")]
    share_blobs: ShareBlobs,

    /// The private cache of `--no-cache`, created on first use.
    #[arg(skip)]
    private: OnceLock<PrivateDir>,
}

/// The repositories that a cached blob of another one serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ShareBlobs {
    /// All of them.
    Always,
    /// Those whose registry shows that it has the blob.
    Proven,
    /// Also those whose registry does not answer.
    ProvenOrSilent,
}

impl CacheArgs {
    /// The origins that verified blobs serve.
    pub(super) fn sharing(&self) -> BlobSharing {
        match self.share_blobs {
            ShareBlobs::Always => BlobSharing::Always,
            ShareBlobs::Proven => BlobSharing::Proven,
            ShareBlobs::ProvenOrSilent => BlobSharing::ProvenOrSilent,
        }
    }

    /// The directory to use. A private one lives as long as this value.
    pub(super) fn dir(&self) -> Result<PathBuf, CliError> {
        if !self.no_cache {
            return directory(self.cache_dir.as_deref());
        }
        // The variable sets the default for this machine, and does not contradict --no-cache.
        let from_variable = std::env::var_os(CACHE_DIR_VARIABLE).map(PathBuf::from);
        if self.cache_dir.is_some() && self.cache_dir != from_variable {
            return Err(CliError::usage("--no-cache and --cache-dir contradict each other"));
        }
        if let Some(private) = self.private.get() {
            return Ok(private.path().to_owned());
        }
        let made = PrivateDir::make(&directory(self.cache_dir.as_deref())?)?;
        Ok(self.private.get_or_init(|| made).path().to_owned())
    }

    /// Whether the cache is removed when the command ends.
    pub(super) fn is_private(&self) -> bool {
        self.no_cache
    }

    /// The directory in which this command writes. For a private cache the parent: the removal at the end changes it.
    pub(super) fn reach(&self) -> Result<PathBuf, CliError> {
        let dir = self.dir()?;
        Ok(match dir.parent() {
            Some(parent) if self.no_cache => parent.to_owned(),
            _ => dir,
        })
    }
}

/// `--cache-dir` (or `OCIFS_CACHE_DIR`), else the default directory of this user.
fn directory(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let named = given.unwrap_or_else(|| Path::new(""));
    cache::directory(given)
        .map_err(|error| CliError::local(format!("cache directory {}", named.display()), &error))
}

/// The subcommands of `cache`.
#[derive(Subcommand, Debug)]
pub(super) enum CacheCommand {
    /// List the content of the cache.
    Ls(CacheListArgs),
    /// Show how much of the disk the cache takes.
    Du(CacheListArgs),
    /// Remove a digest or a reference, unless a mount uses it.
    Rm(RemoveArgs),
    /// Remove the least recently used content, unless a mount uses it.
    Prune(PruneArgs),
    /// Verify all content, and drop damaged blocks; the next read fetches them again.
    Verify(CacheVerifyArgs),
    /// Remove content that nothing needs.
    Gc(CollectArgs),
}

/// The cache of a command that looks after it.
#[derive(Args, Debug)]
pub(super) struct ManagedCache {
    /// Use this cache directory. Default: $XDG_CACHE_HOME/ocifs, or ~/.cache/ocifs.
    #[arg(long, value_name = "DIR", env = CACHE_DIR_VARIABLE, value_parser = maybe_empty())]
    cache_dir: Option<PathBuf>,
}

impl ManagedCache {
    pub(super) fn dir(&self) -> Result<PathBuf, CliError> {
        directory(self.cache_dir.as_deref())
    }
}

#[derive(Args, Debug)]
pub(super) struct CacheListArgs {
    #[command(flatten)]
    pub(super) kept: ManagedCache,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) format: OutputFormat,
}

#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    pub(super) kept: ManagedCache,

    /// Digest as "ocifs cache ls" shows it, or a reference. Its registry resolves a tag.
    #[arg(value_name = "DIGEST|REF", required = true)]
    pub(super) names: Vec<CacheSubject>,

    #[command(flatten)]
    pub(super) network: NetworkArgs,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true, args = ["older_than", "keep"])]
pub(super) struct PruneArgs {
    #[command(flatten)]
    pub(super) kept: ManagedCache,

    /// Remove content not used for this long: 12h, 7d, 4w.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) older_than: Option<Duration>,

    /// Remove the least recently used content until this much remains: 500M, 20G; 0 removes all.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) keep: Option<u64>,
}

#[derive(Args, Debug)]
pub(super) struct CacheVerifyArgs {
    #[command(flatten)]
    pub(super) kept: ManagedCache,

    /// Verify these digests alone. Default: all.
    #[arg(value_name = "DIGEST")]
    pub(super) digests: Vec<Digest>,
}

#[derive(Args, Debug)]
pub(super) struct CollectArgs {
    #[command(flatten)]
    pub(super) kept: ManagedCache,
}

/// A name of cached content.
#[derive(Clone, Debug)]
pub(super) enum CacheSubject {
    Digest(Digest),
    Location(ImageLocation),
}

impl std::str::FromStr for CacheSubject {
    type Err = crate::oci::OciError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Digests first: one could also be parsed as the tag of a repository called sha256.
        match text.parse::<Digest>() {
            Ok(digest) => Ok(CacheSubject::Digest(digest)),
            Err(error) if text.starts_with("sha256:") || text.starts_with("sha512:") => Err(error.into()),
            Err(_) => text.parse().map(CacheSubject::Location),
        }
    }
}

/// A number and a unit: s, m, h, d or w.
fn time(text: &str) -> Result<Duration, String> {
    let unit = |letter| match letter {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        'w' => Some(7 * 86_400),
        _ => None,
    };
    split(text, unit)
        .map(Duration::from_secs)
        .ok_or_else(|| "write a number and s, m, h, d or w, for example 7d".to_owned())
}

/// A number and a unit of 1024: K, M, G or T, with or without iB.
fn size(text: &str) -> Result<u64, String> {
    let unit = |letter: char| match letter.to_ascii_uppercase() {
        'K' => Some(1 << 10),
        'M' => Some(1 << 20),
        'G' => Some(1 << 30),
        'T' => Some(1 << 40),
        _ => None,
    };
    let bare = text.strip_suffix("iB").unwrap_or(text);
    let plain = text.parse().ok();
    plain
        .or_else(|| split(bare, unit))
        .ok_or_else(|| "write a number of bytes, or one with K, M, G or T, for example 20G".to_owned())
}

fn split(text: &str, unit: impl Fn(char) -> Option<u64>) -> Option<u64> {
    let last = text.chars().last()?;
    let number: u64 = text.strip_suffix(last)?.parse().ok()?;
    number.checked_mul(unit(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_numbers_with_a_unit() {
        assert_eq!(time("7d").unwrap(), Duration::from_secs(604_800));
        assert_eq!(time("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(size("0").unwrap(), 0);
        assert_eq!(size("20G").unwrap(), 20 << 30);
        assert_eq!(size("3MiB").unwrap(), 3 << 20);
        for text in ["", "d", "7", "-1d", "7y", "99999999999999999999d", "99999999999999999w"] {
            assert!(time(text).is_err(), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "iB", "99999999T", "é"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
