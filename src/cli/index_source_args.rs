//! Arguments that name index repositories, for reading and for publishing.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::image::ImageError;
use crate::oci::{OciError, PublicKey, Reference};
use crate::registry::RegistryClient;

use super::exit::CliError;
use super::verify_args::read_key;

/// The repositories that are asked for indexes of layers.
#[derive(Args, Debug)]
pub(super) struct IndexSourceArgs {
    /// Ask this repository for the index of a layer that has none, by the layer's digest. May be repeated: the first that has it is
    /// used.
    #[arg(long, value_name = "HOST/REPO", env = "OCIFS_INDEX_FROM", value_delimiter = ',')]
    index_from: Vec<RepositoryArg>,

    /// Take only indexes of --index-from whose manifest has a cosign signature of this public key (PEM file). May be repeated: one
    /// of the keys has to match.
    #[arg(long, value_name = "KEY", requires = "index_from")]
    index_key: Vec<PathBuf>,
}

impl IndexSourceArgs {
    /// The files that hold the keys.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        // An invalid path is reported when the key is read.
        self.index_key.iter().filter_map(|file| std::path::absolute(file).ok())
    }

    /// The accepted keys: one of them must have signed an index.
    pub(super) fn keys(&self) -> Result<Vec<PublicKey>, CliError> {
        self.index_key.iter().map(|file| read_key(file)).collect()
    }

    /// The repositories by their full names.
    pub(super) fn repositories(&self, registry: &RegistryClient) -> Result<Vec<Reference>, CliError> {
        self.index_from.iter().map(|from| from.in_full(registry)).collect()
    }
}

/// A repository: a reference without tag and digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepositoryArg(Reference);

impl RepositoryArg {
    /// The repository by its full name.
    pub(super) fn in_full(&self, registry: &RegistryClient) -> Result<Reference, CliError> {
        registry.expand(&self.0).map_err(|error| ImageError::Source(error.into()).into())
    }
}

impl FromStr for RepositoryArg {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let reference: Reference = text.parse()?;
        let last = text.rsplit('/').next().unwrap_or(text);
        match last.contains([':', '@']) {
            false => Ok(Self(reference)),
            true => Err(OciError::Reference {
                reference: text.to_owned(),
                reason: "a repository has no tag and no digest".into(),
            }),
        }
    }
}

/// The repository that gets the indexes of this machine.
#[derive(Args, Debug)]
pub(super) struct IndexPublishArgs {
    /// Publish the indexes in this repository too, for --index-from of other machines. Those that are there are not sent.
    #[arg(long, value_name = "HOST/REPO")]
    pub(super) publish_index: Option<RepositoryArg>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_neither_tag_nor_digest() {
        for good in ["ghcr.io/a/indexes", "localhost:5000/i", "docker://h.test/a/b", "indexes"] {
            assert!(good.parse::<RepositoryArg>().is_ok(), "{good}");
        }
        let digest = format!("h.test/a@sha256:{}", "0".repeat(64));
        for bad in ["ghcr.io/a/indexes:v1", &digest, "", "h.test/A"] {
            assert!(bad.parse::<RepositoryArg>().is_err(), "{bad}");
        }
    }
}
