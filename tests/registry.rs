//! Registry client against a misbehaving registry: delivered bytes, and the requests and bytes that they cost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use ocifs::io::{ByteRange, FaultClass, FetchAll, RangeDelivery, RangeFetch, ReadError, read_all, read_vec};
use ocifs::oci::{Descriptor, Digest, MAX_DOCUMENT, ManifestSelector, MediaType, Reference};
use ocifs::registry::{
    ConfigPaths, PushOutcome, RedactedSecret, RegistryClient, RegistryError, RegistryOptions, UserCredential,
};

use crate::fault_registry::{Fault as Bad, FaultRegistry, Place, Request};
use crate::random::Random;

#[path = "registry_client/authentication.rs"]
mod authentication;
#[path = "registry_client/concessions.rs"]
mod concessions;
#[path = "registry_client/config.rs"]
mod config;
#[path = "registry_client/foreign_layers.rs"]
mod foreign_layers;
#[path = "registry_client/interruptions.rs"]
mod interruptions;
#[path = "registry_client/labels.rs"]
mod labels;
#[path = "registry_client/manifests.rs"]
mod manifests;
#[path = "registry_client/matrix.rs"]
mod matrix;
#[path = "registry_client/messages.rs"]
mod messages;
#[path = "registry_client/mirrors.rs"]
mod mirrors;
#[path = "registry_client/proxies.rs"]
mod proxies;
#[path = "registry_client/pushes.rs"]
mod pushes;
#[path = "registry_client/ranges.rs"]
mod ranges;
#[path = "registry_client/real.rs"]
mod real;
#[path = "registry_client/redirects.rs"]
mod redirects;
#[path = "registry_client/referrers.rs"]
mod referrers;
#[path = "registry_client/tls.rs"]
mod tls;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PASSWORD: &str = "5ecret-password";

/// Options without the credentials of the user, for exact counts: a server that the machine lets stand still is waited
/// for, and not asked again.
fn options() -> RegistryOptions {
    RegistryOptions {
        anonymous: true,
        places: ConfigPaths::default(),
        read_budget: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(20),
        ..RegistryOptions::default()
    }
}

/// The same for servers that are silent.
fn impatient() -> RegistryOptions {
    RegistryOptions { stall_timeout: Duration::from_millis(800), ..options() }
}

fn with_password() -> RegistryOptions {
    let creds = UserCredential { user: "user".into(), secret: RedactedSecret::new(PASSWORD) };
    RegistryOptions { anonymous: false, creds: Some(creds), ..options() }
}

fn client() -> RegistryClient {
    RegistryClient::new(options()).unwrap()
}

fn reference(server: &FaultRegistry) -> Reference {
    format!("{}/team/app:v1", server.host()).parse().unwrap()
}

fn descriptor(digest: &Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: MediaType::from("application/octet-stream"),
        digest: digest.clone(),
        size,
        annotations: BTreeMap::new(),
        platform: None,
        artifact_type: None,
        data: None,
        urls: Vec::new(),
        name: None,
    }
}

/// Longer than any time limit of these tests: a read that takes this long has hung.
const HUNG: Duration = Duration::from_secs(120);

/// Bytes without a period that a shifted range could hide in.
fn noise(len: usize) -> Vec<u8> {
    Random::of(1).bytes(len)
}

/// A server with one blob, and a client's view of it.
struct Scene {
    server: FaultRegistry,
    registry: RegistryClient,
    bytes: Vec<u8>,
    blob: Arc<dyn RangeFetch>,
}

fn scene_of(len: usize, options: RegistryOptions) -> Scene {
    let server = FaultRegistry::start();
    let bytes = noise(len);
    let digest = server.push_blob(bytes.clone());
    let registry = RegistryClient::new(options).unwrap();
    let blob = registry.blob(&reference(&server), &descriptor(&digest, len as u64));
    Scene { server, registry, bytes, blob }
}

fn scene(len: usize) -> Scene {
    scene_of(len, options())
}

impl Scene {
    async fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, ReadError> {
        let (reader, range) = (FetchAll(self.blob.clone()), ByteRange::new(start, end));
        tokio::time::timeout(HUNG, read_vec(&reader, range))
            .await
            .unwrap_or_else(|_| panic!("the read hangs"))
    }

    /// Reads and compares.
    async fn expect(&self, start: u64, end: u64) {
        let read = self.read(start, end).await.unwrap_or_else(|error| panic!("{}", error.chain()));
        assert!(read == self.bytes[start as usize..end as usize], "wrong bytes in {start}..{end}");
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        self.server.blob_requests().iter().map(|request| request.range.unwrap()).collect()
    }
}

async fn collect(delivery: RangeDelivery) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let mut body = delivery.body;
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

fn statuses(requests: &[Request]) -> Vec<u16> {
    requests.iter().map(|request| request.status).collect()
}

fn tag(name: &str) -> ManifestSelector {
    ManifestSelector::Tag(name.into())
}

/// The whole chain of an error, with its debug form, to search for what must not be there.
fn everything(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error:?} {error:#?}");
    let mut next = Some(error);
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}
