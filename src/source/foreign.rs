//! Non-distributable layers: a source that names the addresses of missing blobs, and fetches from them on request.
//!
//! A blob that the source lacks is looked up at the addresses of its descriptor (image-spec descriptor.md, "urls"),
//! over https only. Content from an address is trusted only by its digest; no login and no client certificate is sent.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::io::{
    BoxFuture, ByteRange, FaultClass, LinkEstimate, LocalBytes, RangeDelivery, RangeFetch, ReadError,
};
use crate::oci::{Descriptor, Digest};
use crate::registry::{RegistryClient, WebAddress, WebFile};

use super::wrapped::{BlobWrapper, WrappedSource};
use super::{ImageLocation, ImageSource};

/// Maximum addresses of a layer that are tried, and named in an error.
const MAX_TRIED: usize = 4;

/// Whether layers are fetched from the addresses in their descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignLayers {
    /// No: an error names the addresses.
    #[default]
    Named,
    /// From https addresses, without credentials.
    Fetched,
}

/// Wraps `source`, the source of `location`: the addresses of missing blobs are named, or fetched from.
pub fn naming(
    source: Arc<dyn ImageSource>,
    location: &ImageLocation,
    registry: &RegistryClient,
    foreign: ForeignLayers,
) -> Arc<dyn ImageSource> {
    let home = match location {
        ImageLocation::Registry(reference) => Some(reference),
        ImageLocation::Layout { .. } | ImageLocation::Archive { .. } => None,
    };
    let registry = (foreign == ForeignLayers::Fetched).then(|| registry.for_addresses_of_images(home));
    Arc::new(WrappedSource { source, wrapper: LayerAddresses { registry } })
}

/// The addresses of layers that a source lacks.
struct LayerAddresses {
    /// The client that fetches from the addresses; `None` if they are only named.
    registry: Option<RegistryClient>,
}

impl BlobWrapper for LayerAddresses {
    fn wrap(&self, descriptor: &Descriptor, blob: Arc<dyn RangeFetch>) -> Arc<dyn RangeFetch> {
        if descriptor.urls.is_empty() && !descriptor.media_type.is_nondistributable() {
            return blob;
        }
        Arc::new(ForeignBlob {
            digest: descriptor.digest.clone(),
            urls: descriptor.urls.iter().take(MAX_TRIED).cloned().collect(),
            source: blob,
            registry: self.registry.clone(),
            elsewhere: OnceCell::new(),
        })
    }
}

/// A blob that may be stored elsewhere than the image.
struct ForeignBlob {
    digest: Digest,
    urls: Vec<String>,
    source: Arc<dyn RangeFetch>,
    registry: Option<RegistryClient>,
    /// The file at one of the addresses; empty before the first search.
    elsewhere: OnceCell<ForeignFile>,
}

/// The file at an address.
enum ForeignFile {
    Ranges(Arc<dyn RangeFetch>),
    /// A server without ranges: each read fetches all of the file.
    Whole(WebAddress),
}

impl ForeignBlob {
    /// The error for a missing blob, with its addresses.
    fn absent(&self, error: ReadError) -> ReadError {
        let shown: Vec<_> = self.urls.iter().map(|url| shown(url)).collect();
        let place = match &shown[..] {
            [] => "names no address of it".to_owned(),
            shown => format!("has it at {}", shown.join(", ")),
        };
        let how = match self.registry {
            Some(_) => "",
            None if self.urls.iter().any(|url| url.starts_with("https://")) => {
                "; only --foreign-layers fetches it from there"
            }
            None => "",
        };
        let message = format!("{} is non-distributable, and its author {place}{how}", self.digest);
        ReadError::caused(error.fault(), message, error)
    }

    /// Tries the addresses in order.
    async fn find(&self, registry: &RegistryClient) -> Result<ForeignFile, ReadError> {
        let mut last = ReadError::new(FaultClass::NotFound, "no address of it is one with https");
        for url in self.urls.iter().filter(|url| url.starts_with("https://")) {
            let Ok(address) = url.parse::<WebAddress>() else { continue };
            match registry.file(&address).await {
                Ok(WebFile::Ranges(file)) if file.size() == self.source.size() => {
                    tracing::info!(digest = %self.digest, %address, "a foreign layer is read from its address");
                    return Ok(ForeignFile::Ranges(file));
                }
                Ok(WebFile::Ranges(file)) => {
                    let (actual, size) = (file.size(), self.source.size());
                    let message = format!("{address} has {actual} bytes, the descriptor states {size}");
                    last = ReadError::new(FaultClass::Mismatch, message);
                }
                Ok(WebFile::Whole(_)) => return Ok(ForeignFile::Whole(address)),
                Err(error) => last = error.of_read(format!("foreign layer at {address}")),
            }
        }
        Err(last)
    }

    async fn fetch_elsewhere(
        &self,
        registry: &RegistryClient,
        range: ByteRange,
    ) -> Result<RangeDelivery, ReadError> {
        match self.elsewhere.get_or_try_init(|| self.find(registry)).await? {
            ForeignFile::Ranges(file) => file.fetch(range).await,
            ForeignFile::Whole(address) => {
                let file = registry.file(address).await;
                match file.map_err(|error| error.of_read(format!("foreign layer at {address}")))? {
                    WebFile::Ranges(file) => file.fetch(range).await,
                    WebFile::Whole(body) => {
                        Ok(RangeDelivery { range: ByteRange::new(0, self.source.size()), body })
                    }
                }
            }
        }
    }
}

/// An address for a message: without secrets and terminal control characters.
fn shown(url: &str) -> String {
    match url.parse::<WebAddress>() {
        Ok(address) => address.to_string(),
        Err(_) => format!("{:?}", url.chars().take(100).collect::<String>()),
    }
}

impl RangeFetch for ForeignBlob {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn may_be_local(&self) -> bool {
        self.source.may_be_local()
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        self.source.local()
    }

    fn link(&self) -> Option<Arc<LinkEstimate>> {
        self.source.link()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let error = match self.source.fetch(range).await {
                Err(error) if error.fault() == FaultClass::NotFound => error,
                fetched => return fetched,
            };
            match &self.registry {
                Some(registry) => {
                    self.fetch_elsewhere(registry, range).await.map_err(|error| self.absent(error))
                }
                None => Err(self.absent(error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::registry::RegistryOptions;

    use super::*;

    struct Absent;

    impl RangeFetch for Absent {
        fn size(&self) -> u64 {
            5
        }

        fn fetch(&self, _: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            Box::pin(std::future::ready(Err(ReadError::new(FaultClass::NotFound, "no such file"))))
        }
    }

    fn blob(urls: &[&str], registry: Option<RegistryClient>) -> ForeignBlob {
        ForeignBlob {
            digest: Digest::sha256(b"x"),
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            source: Arc::new(Absent),
            registry,
            elsewhere: OnceCell::new(),
        }
    }

    #[tokio::test]
    async fn an_absent_foreign_layer_is_named_with_its_addresses_and_no_other_than_https_is_asked() {
        let read = async |blob: ForeignBlob| blob.fetch(ByteRange::new(0, 1)).await.map(drop).unwrap_err();
        let secret = "https://h.example/layer?sig=secret";
        let error = read(blob(&[secret, "\u{1b}[31m"], None)).await;
        let said = error.chain();
        assert_eq!(error.fault(), FaultClass::NotFound);
        for part in ["non-distributable", "https://h.example/layer", "--foreign-layers", "no such file"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains("secret") && !said.contains('\u{1b}'), "{said}");
        let said = read(blob(&["http://127.0.0.1:1/layer"], None)).await.chain();
        assert!(said.contains("http://127.0.0.1:1/layer") && !said.contains("--foreign-layers"), "{said}");
        let registry = RegistryClient::new(RegistryOptions::default()).unwrap();
        let said =
            read(blob(&["http://127.0.0.1:1/layer", "file:///etc/passwd"], Some(registry))).await.chain();
        assert!(said.contains("no address of it is one with https"), "{said}");
    }
}
