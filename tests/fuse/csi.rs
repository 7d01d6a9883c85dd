//! Volumes of pods: a client of gRPC that plays kubelet, against the plugin over its socket.
//!
//! Never looks into the plugin but through its socket, its mounts and its files. The idea: what kubelet does to a plugin in a year,
//! repeated calls, crashes and secrets among it, done in a minute.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use nix::sys::statfs::statfs;
use ocifs::csi::messages::{
    AccessType, EmptyMessage, GetVolumeStats, MountVolumeCapability, NodeCapabilities, NodeInfo,
    NodePublishVolumeRequest, PluginInfo, ProbeResponse, UnpublishVolume, VolumeCapability, VolumeStats,
};
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::artifact::Piece;
use crate::cost::{push_files, push_image};
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::kernel_mount;
use crate::layout::Layer;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, sh, signal};
use crate::scratch::{mounted_at, mounts};
use crate::site::{Site, daemons, unmounts};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// A node: a plugin, what kubelet knows of it, and a registry.
struct Cluster {
    site: Site,
    registry: FaultRegistry,
    plugin: Option<Child>,
    options: Vec<String>,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// A node whose plugin was started with these options.
    fn new(options: &[&str]) -> Self {
        let site = Site::new();
        site.scratch().subdir("pods");
        let mut cluster = Self {
            site,
            registry: FaultRegistry::start(),
            plugin: None,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
        };
        cluster.start();
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.scratch().join(name)
    }

    /// Starts the plugin, and waits until it answers.
    #[track_caller]
    fn start(&mut self) {
        let mut command = self.site.command();
        command.arg("csi").arg(format!("--endpoint=unix://{}", self.path("csi.sock").display()));
        command.arg("--node-id=node-1").arg("--state-dir").arg(self.path("state"));
        command.args(&self.options).env("OCIFS_LOG", "trace").env("OCIFS_CREDS", "someone:else");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("plugin.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.plugin = Some(child);
        let answers = || self.ask::<_, ProbeResponse>("/csi.v1.Identity/Probe", EmptyMessage {}).is_ok();
        assert!(becomes_true(CONDITION_TIMEOUT, answers), "{}", self.log());
    }

    /// Ends the plugin as a crash does.
    fn crash(&mut self) {
        let mut plugin = self.plugin.take().unwrap();
        plugin.kill().unwrap();
        plugin.wait().unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("plugin.log")).unwrap()
    }

    fn channel(&self) -> Channel {
        let socket = self.path("csi.sock");
        let _inside = self.runtime.enter();
        Endpoint::from_static("http://plugin.invalid").connect_with_connector_lazy(tower::service_fn(
            move |_: http::Uri| {
                let socket = socket.clone();
                async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
            },
        ))
    }

    fn ask<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.runtime.block_on(ask(self.channel(), path, message))
    }

    /// Where kubelet wants the volume of a pod; the directory above is there.
    fn target(&self, pod: &str) -> PathBuf {
        self.site.scratch().subdir(format!("pods/{pod}")).join("mount")
    }

    fn request(&self, pod: &str, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut volume_context: HashMap<String, String> = attributes.iter().map(owned).collect();
        volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "true".into());
        volume_context.insert("csi.storage.k8s.io/pod.name".into(), pod.into());
        NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).to_str().unwrap().to_owned(),
            volume_capability: Some(VolumeCapability {
                access: Some(AccessType::Mount(MountVolumeCapability::default())),
            }),
            readonly: true,
            secrets: HashMap::new(),
            volume_context,
        }
    }

    fn publish(&self, request: &NodePublishVolumeRequest) -> Result<(), Status> {
        self.ask::<_, EmptyMessage>("/csi.v1.Node/NodePublishVolume", request.clone()).map(drop)
    }

    #[track_caller]
    fn published(&self, pod: &str, attributes: &[(&str, &str)]) -> PathBuf {
        let done = self.publish(&self.request(pod, attributes));
        done.unwrap_or_else(|status| panic!("{status:?}\n{}", self.log()));
        self.target(pod)
    }

    #[track_caller]
    fn refused(&self, request: &NodePublishVolumeRequest, code: Code, words: &[&str]) {
        let status = self.publish(request).unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        for word in words {
            assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
        }
    }

    /// A publish whose mount waits for the registry, which granted it and does not answer any more, and what becomes of it.
    #[track_caller]
    fn waiting(
        &self,
        request: &NodePublishVolumeRequest,
    ) -> tokio::task::JoinHandle<Result<EmptyMessage, Status>> {
        self.registry.set(Fault::SilentTo("GET"));
        let asked = ask(self.channel(), "/csi.v1.Node/NodePublishVolume", request.clone());
        let asked = self.runtime.spawn(asked);
        let target = Path::new(&request.target_path);
        // The command and the process that is to mount.
        assert!(becomes_true(CONDITION_TIMEOUT, || daemons(target).len() == 2), "{}", self.log());
        asked
    }

    /// Lets the registry answer again, also those that wait.
    fn answered(&self, asked: tokio::task::JoinHandle<Result<EmptyMessage, Status>>) -> Result<(), Status> {
        self.registry.clear();
        self.registry.go_down();
        self.registry.come_up();
        self.runtime.block_on(asked).unwrap().map(drop)
    }

    fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let request = UnpublishVolume {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).to_str().unwrap().to_owned(),
        };
        self.ask::<_, EmptyMessage>("/csi.v1.Node/NodeUnpublishVolume", request).map(drop)
    }

    fn stats(&self, pod: &str) -> Result<VolumeStats, Status> {
        let request = GetVolumeStats {
            volume_id: format!("csi-{pod}"),
            volume_path: self.target(pod).to_str().unwrap().to_owned(),
        };
        self.ask("/csi.v1.Node/NodeGetVolumeStats", request)
    }

    /// Takes a volume away, and makes sure that nothing is left of it.
    #[track_caller]
    fn gone(&self, pod: &str) {
        self.unpublish(pod).unwrap();
        self.nothing_at(pod);
    }

    #[track_caller]
    fn nothing_at(&self, pod: &str) {
        let target = self.target(pod);
        assert!(fs::symlink_metadata(&target).is_err(), "{target:?} is still there");
        assert!(mounted_at(&target).is_none(), "{target:?} is still mounted");
        assert!(
            becomes_true(CONDITION_TIMEOUT, || daemons(&target).is_empty()),
            "a process is left for {target:?}"
        );
    }

    /// Kills the process of a mount as a crash would.
    #[track_caller]
    fn kill_mount(&self, target: &Path) {
        let pid = served_by_one(target);
        signal(pid, Signal::SIGKILL);
        // A process is gone a moment before its connection is; and the plugin may have put another in its place already.
        let is_gone = || {
            let now = daemons(target);
            !now.contains(&pid) && (!now.is_empty() || statfs(target).is_err())
        };
        assert!(becomes_true(CONDITION_TIMEOUT, is_gone), "{target:?} is still served");
    }

    fn records(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("state/volumes")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// The process that serves a volume. The command that started it ends a moment after the mount is there.
#[track_caller]
fn served_by_one(target: &Path) -> u32 {
    let mut pids = Vec::new();
    let is_one = becomes_true(CONDITION_TIMEOUT, || {
        pids = daemons(target);
        pids.len() == 1
    });
    assert!(is_one, "{target:?} is served by {pids:?}");
    pids[0]
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(plugin) = &mut self.plugin {
            plugin.kill().ok();
            plugin.wait().ok();
        }
        for mount in mounts().iter().rev().filter(|mount| mount.dir.starts_with(self.path("pods"))) {
            Command::new("umount").arg("-l").arg(&mount.dir).status().ok();
        }
    }
}

async fn ask<Q, A>(channel: Channel, path: &'static str, message: Q) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    Ok(client.unary(tonic::Request::new(message), path, codec).await?.into_inner())
}

fn alive(target: &Path) -> bool {
    statfs(target).is_ok() && mounted_at(target).is_some()
}

#[test]
fn kubelet_publishes_a_volume_looks_at_it_and_takes_it_away() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let reference = push_files(&cluster.registry, &[Piece::new("small", "text/plain", *b"hello\n")]);
    let info: PluginInfo = cluster.ask("/csi.v1.Identity/GetPluginInfo", EmptyMessage {}).unwrap();
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("csi.ocifs", env!("CARGO_PKG_VERSION")));
    cluster.ask::<_, EmptyMessage>("/csi.v1.Identity/GetPluginCapabilities", EmptyMessage {}).unwrap();
    let node: NodeInfo = cluster.ask("/csi.v1.Node/NodeGetInfo", EmptyMessage {}).unwrap();
    assert_eq!(node.node_id, "node-1");
    let can: NodeCapabilities = cluster.ask("/csi.v1.Node/NodeGetCapabilities", EmptyMessage {}).unwrap();
    let can: Vec<i32> = can.capabilities.iter().map(|one| one.rpc.unwrap().r#type).collect();
    assert_eq!(can, [2, 4]);
    assert_eq!(fs::metadata(cluster.path("csi.sock")).unwrap().mode() & 0o777, 0o600);

    let attributes = [("reference", reference.as_str()), ("view", "files")];
    let target = cluster.published("a", &attributes);
    assert_eq!(fs::read(target.join("small")).unwrap(), b"hello\n");
    let line = mounted_at(&target).unwrap();
    assert_eq!(line.fstype, "fuse.ocifs");
    for option in ["ro", "nosuid", "nodev"] {
        assert!(line.options.split(',').any(|is| is == option), "{line:?}");
    }
    // Again, as kubelet does when it is not sure: the same mount, by the same process.
    let pids = [served_by_one(&target)];
    cluster.publish(&cluster.request("a", &attributes)).unwrap();
    assert_eq!(daemons(&target), pids);
    // The same volume with something else in it, and another volume at the same place.
    let other = [("reference", reference.as_str()), ("view", "blobs")];
    cluster.refused(&cluster.request("a", &other), Code::AlreadyExists, &["csi-a", "other attributes"]);
    let stranger =
        NodePublishVolumeRequest { volume_id: "csi-b".into(), ..cluster.request("a", &attributes) };
    cluster.refused(&stranger, Code::AlreadyExists, &["csi-a"]);

    let stats = cluster.stats("a").unwrap();
    let bytes = stats.usage[0];
    assert!(
        bytes.unit == 1 && bytes.total > 0 && bytes.used == bytes.total && bytes.available == 0,
        "{stats:?}"
    );
    assert!(!stats.condition.unwrap().abnormal);
    assert_eq!(cluster.stats("nobody").unwrap_err().code(), Code::NotFound);

    // Somebody else's volume at this target is not taken away, and says nothing.
    let wrong = UnpublishVolume { volume_id: "csi-b".into(), target_path: stranger.target_path };
    cluster.ask::<_, EmptyMessage>("/csi.v1.Node/NodeUnpublishVolume", wrong).unwrap();
    assert!(alive(&target));
    cluster.gone("a");
    assert_eq!(cluster.records(), Vec::<PathBuf>::new());
    cluster.gone("a");
    cluster.gone("never-there");
}

#[test]
fn invalid_volume_requests_fail_with_their_grpc_code() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&["--", "--timeout=5"]);
    let reference = push_files(&cluster.registry, &[Piece::new("small", "text/plain", *b"hello\n")]);
    let with = |attributes: &[(&str, &str)]| cluster.request("a", attributes);
    let fine = with(&[("reference", &reference)]);
    let invalid = [
        (with(&[("reference", &reference), ("pullsecret", "x")]), "\"pullsecret\""),
        (with(&[]), "reference is missing"),
        (with(&[("reference", "oci:/etc:x")]), "registry"),
        (with(&[("reference", &reference), ("pullSecret", "x")]), "--pull-secrets"),
        (NodePublishVolumeRequest { readonly: false, ..fine.clone() }, "readOnly: true"),
        (NodePublishVolumeRequest { volume_id: String::new(), ..fine.clone() }, "volume id"),
        (NodePublishVolumeRequest { target_path: "a/b".into(), ..fine.clone() }, "target path"),
    ];
    for (request, word) in &invalid {
        cluster.refused(request, Code::InvalidArgument, &[word]);
    }
    let absent = reference.replace(":v1", ":v2");
    cluster.refused(&with(&[("reference", &absent)]), Code::NotFound, &["v2"]);
    let no_view = with(&[("reference", &reference), ("view", "no-such-view")]);
    cluster.refused(&no_view, Code::NotFound, &["no-such-view", "files"]);
    cluster.registry.set(Fault::RequireBasic { user: "u".into(), pass: "p".into() });
    cluster.refused(&fine, Code::Unauthenticated, &["docker login"]);
    cluster.registry.clear();
    cluster.registry.go_down();
    cluster.refused(&fine, Code::Unavailable, &["check the host name and the network"]);
    cluster.registry.come_up();
    cluster.nothing_at("a");
    assert_eq!(cluster.records(), Vec::<PathBuf>::new());

    for path in ["/csi.v1.Node/NodeStageVolume", "/csi.v1.Controller/CreateVolume", "/x.y/Z"] {
        assert_eq!(
            cluster.ask::<_, EmptyMessage>(path, EmptyMessage {}).unwrap_err().code(),
            Code::Unimplemented,
            "{path}"
        );
    }
    // What is at the target and not ours stays.
    let target = cluster.target("a");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("theirs"), "x").unwrap();
    cluster.refused(&fine, Code::Internal, &["not empty"]);
    assert_eq!(cluster.unpublish("a").unwrap_err().code(), Code::Internal);
    assert_eq!(fs::read(target.join("theirs")).unwrap(), b"x");
    fs::remove_file(target.join("theirs")).unwrap();
    cluster.publish(&fine).unwrap();
    cluster.gone("a");
}

#[test]
fn a_plugin_that_crashed_finds_its_volumes_alive_and_mounts_dead_ones_again() {
    if !able(&NEEDS) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"old\n")]);
    let attributes = [("reference", reference.as_str()), ("view", "files")];
    let (lives, dies) = (cluster.published("lives", &attributes), cluster.published("dies", &attributes));
    let lost = cluster.published("lost", &attributes);
    let pids = [served_by_one(&lives)];
    cluster.crash();
    // The mounts outlive the plugin.
    assert_eq!(fs::read(lives.join("f")).unwrap(), b"old\n");
    cluster.kill_mount(&dies);
    unmounts(Command::new("umount").arg(&lost));
    // A tag that moves meanwhile does not move the volume of a pod that runs.
    assert_eq!(push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"new\n")]), reference);
    cluster.start();
    assert!(becomes_true(CONDITION_TIMEOUT, || alive(&dies)), "{}", cluster.log());
    assert_eq!(fs::read(dies.join("f")).unwrap(), b"old\n");
    assert_eq!(daemons(&lives), pids);
    // What nobody has mounted any more is forgotten.
    assert!(becomes_true(CONDITION_TIMEOUT, || cluster.records().len() == 2), "{:?}", cluster.records());
    // kubelet asks again after a restart of its own.
    for pod in ["lives", "dies", "lost"] {
        cluster.published(pod, &attributes);
    }
    assert_eq!(daemons(&lives), pids);
    assert_eq!(fs::read(lost.join("f")).unwrap(), b"new\n");
    // A mount that dies while the plugin lives is found by the next call, or by itself.
    cluster.kill_mount(&lives);
    cluster.published("lives", &attributes);
    assert_eq!(fs::read(lives.join("f")).unwrap(), b"old\n");
    // And one that is dead can be taken away.
    cluster.crash();
    cluster.kill_mount(&lost);
    cluster.start();
    for pod in ["lives", "dies", "lost"] {
        cluster.gone(pod);
    }
}

#[test]
fn a_publish_that_its_plugin_crashes_in_ends_with_it_and_can_be_repeated() {
    if !able(&NEEDS) {
        return;
    }
    let mut cluster = Cluster::new(&["--", "--timeout=3600"]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"data\n")]);
    let request = cluster.request("a", &[("reference", &reference), ("view", "files")]);
    let target = cluster.target("a");
    let asked = cluster.waiting(&request);
    cluster.crash();
    cluster.runtime.block_on(asked).unwrap().unwrap_err();
    // Nobody is left who would mount when nobody knows of it any more.
    assert!(
        becomes_true(CONDITION_TIMEOUT, || daemons(&target).is_empty()),
        "{:?} are left",
        daemons(&target)
    );
    cluster.registry.clear();
    cluster.start();
    for _ in 0..2 {
        cluster.publish(&request).unwrap_or_else(|status| panic!("{status:?}\n{}", cluster.log()));
    }
    assert_eq!(fs::read(target.join("f")).unwrap(), b"data\n");
    assert_eq!(mounts().iter().filter(|line| line.dir == target).count(), 1);
    assert_eq!(cluster.records().len(), 1);
    cluster.gone("a");
}

#[test]
fn mount_without_a_record_is_replaced_by_the_requested_one() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"old\n")]);
    let attributes = [("reference", reference.as_str()), ("view", "files")];
    let target = cluster.published("a", &attributes);
    let [record] = &cluster.records()[..] else { panic!("{:?}", cluster.records()) };
    fs::remove_file(record).unwrap();
    assert_eq!(push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"new\n")]), reference);
    cluster.published("a", &attributes);
    assert_eq!(fs::read(target.join("f")).unwrap(), b"new\n");
    assert_eq!(mounts().iter().filter(|line| line.dir == target).count(), 1);
    assert_eq!(cluster.records(), std::slice::from_ref(record));
    cluster.gone("a");
}

#[test]
fn record_is_forgotten_only_after_its_unmount() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let pieces = [Piece::new("f", "text/plain", *b"data\n")];
    let reference = push_files(&cluster.registry, &pieces);
    let attributes = [("reference", reference.as_str()), ("view", "files")];
    let request = cluster.request("a", &attributes);
    let target = cluster.target("a");

    // Somebody else mounts there meanwhile, as the process that a crash left behind could.
    let asked = cluster.waiting(&request);
    let elsewhere = FaultRegistry::start();
    let other = push_files(&elsewhere, &pieces);
    assert!(cluster.site.command().args(["mount", &other]).arg(&target).status().unwrap().success());
    let status = cluster.answered(asked).unwrap_err();
    assert!(status.message().contains("already a mount point"), "{status:?}");
    cluster.nothing_at("a");
    assert_eq!(cluster.records(), Vec::<PathBuf>::new());

    // The mount is there, and cannot be written down.
    cluster.published("a", &attributes);
    let in_the_way = cluster.records()[0].with_extension("new");
    cluster.gone("a");
    let asked = cluster.waiting(&request);
    fs::create_dir(&in_the_way).unwrap();
    let status = cluster.answered(asked).unwrap_err();
    assert!(status.message().contains("writing"), "{status:?}");
    cluster.nothing_at("a");
    assert_eq!(cluster.records(), std::slice::from_ref(&in_the_way));
    fs::remove_dir(&in_the_way).unwrap();
    cluster.published("a", &attributes);
    cluster.gone("a");
}

#[test]
fn a_container_that_runs_sees_the_volume_again_where_mounts_are_handed_on_to_it() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare")]) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    // As the directory of kubelet is on a node: what is mounted below it is handed on.
    let pods = cluster.path("pods");
    sh("mount -t tmpfs none $1 && mount --make-shared $1", &[&pods]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"data\n")]);
    let target = cluster.published("a", &[("reference", &reference), ("view", "files")]);
    // As a container is started with mountPropagation: HostToContainer.
    let room = cluster.site.scratch().subdir("container");
    let script = "mount --make-rslave $1; mkdir $2/v; mount --rbind $1/a/mount $2/v; mount --make-rslave $2/v
        cat $2/v/f > $2/before; touch $2/runs
        for _ in {1..6000}; do [ ! -e $2/go ] || break; sleep 0.02; done
        cat $2/v/f > $2/after";
    let mut container = Command::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "bash", "-euc", script, "sh"])
        .args([&pods, &room])
        .spawn()
        .unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || room.join("runs").exists()));
    for _ in 0..2 {
        cluster.crash();
        cluster.kill_mount(&target);
        cluster.start();
        // The command that mounts ends when its mount is there.
        let is_back = || alive(&target) && daemons(&target).len() == 1;
        assert!(becomes_true(CONDITION_TIMEOUT, is_back), "{}", cluster.log());
    }
    fs::write(room.join("go"), "").unwrap();
    assert!(container.wait().unwrap().success());
    assert_eq!(fs::read(room.join("before")).unwrap(), b"data\n");
    assert_eq!(fs::read(room.join("after")).unwrap(), b"data\n");
    // The dead one below goes with the one above it, and not more than one was kept.
    assert_eq!(mounts().iter().filter(|line| line.dir == target).count(), 2);
    cluster.gone("a");
}

#[test]
fn two_pods_of_one_image_fetch_each_block_once() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let body = noise(3 << 20, 5);
    let pieces = [Piece::new("big", "application/x.big", body.clone())];
    let reference = push_files(&cluster.registry, &pieces);
    let attributes = [("reference", reference.as_str()), ("view", "files")];
    let targets = ["a", "b"].map(|pod| cluster.published(pod, &attributes));
    std::thread::scope(|scope| {
        for target in &targets {
            let body = &body;
            scope.spawn(move || assert!(fs::read(target.join("big")).unwrap() == *body, "{target:?}"));
        }
    });
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for request in cluster.registry.blob_requests() {
        ranges.extend(request.range);
    }
    ranges.sort_unstable();
    let twice: Vec<_> = ranges.windows(2).filter(|pair| pair[0].1 > pair[1].0).collect();
    assert!(twice.is_empty(), "fetched twice: {twice:?}");
    assert_eq!(cluster.registry.blob_bytes(), body.len() as u64);
    cluster.gone("a");
    // The other pod's volume is another mount.
    assert!(fs::read(targets[1].join("big")).unwrap() == body);
    cluster.gone("b");
}

#[test]
fn publishes_of_one_target_at_once_make_one_mount() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"data\n")]);
    let request = cluster.request("a", &[("reference", &reference)]);
    let channel = cluster.channel();
    let call = || ask::<_, EmptyMessage>(channel.clone(), "/csi.v1.Node/NodePublishVolume", request.clone());
    let answers = cluster.runtime.block_on(async { tokio::join!(call(), call(), call(), call()) });
    assert!(answers.0.is_ok() && answers.1.is_ok() && answers.2.is_ok() && answers.3.is_ok(), "{answers:?}");
    let target = cluster.target("a");
    assert_eq!(mounts().iter().filter(|line| line.dir == target).count(), 1);
    served_by_one(&target);
    // Who asks and goes away leaves nothing half done: asking again finds it.
    let request = cluster.request("b", &[("reference", &reference)]);
    let call = ask::<_, EmptyMessage>(channel.clone(), "/csi.v1.Node/NodePublishVolume", request.clone());
    cluster.runtime.block_on(async { tokio::time::timeout(Duration::from_millis(20), call).await.ok() });
    cluster.publish(&request).unwrap();
    served_by_one(&cluster.target("b"));
    cluster.gone("a");
    cluster.gone("b");
}

#[test]
fn secrets_of_a_volume_reach_the_registry_alone() {
    if !able(&NEEDS) {
        return;
    }
    const PASSWORD: &str = "s3cret-of-a-pod";
    let secrets_dir = tempfile::tempdir().unwrap();
    let shown = secrets_dir.path().join("metrics");
    let pulls = format!("--pull-secrets={}", secrets_dir.path().display());
    let mut cluster = Cluster::new(&[&pulls, &format!("--metrics=unix:{}", shown.display())]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"data\n")]);
    cluster.registry.set(Fault::RequireBasic { user: "pod".into(), pass: PASSWORD.into() });
    let auth = STANDARD.encode(format!("pod:{PASSWORD}"));
    let config = format!(
        r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}, "credsStore": "must-not-run"}}"#,
        cluster.registry.host()
    );
    let attributes = [("reference", reference.as_str()), ("view", "files")];
    let mut request = cluster.request("a", &attributes);
    cluster.refused(&request, Code::Unauthenticated, &[]);
    request.secrets.insert(".dockerconfigjson".into(), config.clone());
    cluster.publish(&request).unwrap_or_else(|status| panic!("{status:?}"));
    let target = cluster.target("a");
    assert_eq!(fs::read(target.join("f")).unwrap(), b"data\n");

    // A secret that is mounted into the plugin, by its name.
    let folder = secrets_dir.path().join("team");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(".dockerconfigjson"), &config).unwrap();
    let named = [attributes[0], attributes[1], ("pullSecret", "team")];
    assert_eq!(fs::read(cluster.published("b", &named).join("f")).unwrap(), b"data\n");
    let other = [attributes[0], attributes[1], ("pullSecret", "nobody")];
    cluster.refused(&cluster.request("c", &other), Code::NotFound, &["nobody"]);

    let clean = |place: &str, bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        for needle in [PASSWORD, auth.as_str(), "must-not-run", "someone:else"] {
            assert!(!text.contains(needle), "{needle} is in {place}");
        }
    };
    for pod in ["a", "b"] {
        let pid = served_by_one(&cluster.target(pod));
        for file in ["cmdline", "environ"] {
            clean(file, &fs::read(format!("/proc/{pid}/{file}")).unwrap());
        }
    }
    for record in cluster.records() {
        clean("a record", &fs::read(&record).unwrap());
        assert_eq!(fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let counted = crate::metrics::shown(&shown);
    clean("the counters", counted.as_bytes());
    for line in [
        "ocifs_csi_calls_total{method=\"NodePublishVolume\",code=\"OK\"} 2",
        "ocifs_csi_calls_total{method=\"NodePublishVolume\",code=\"UNAUTHENTICATED\"} 1",
    ] {
        assert!(counted.contains(line), "{counted}");
    }
    // The login is a file for root alone, from which a dead mount is made again.
    let logins: Vec<_> = fs::read_dir(cluster.path("state/logins")).unwrap().flatten().collect();
    assert_eq!(logins.len(), 1);
    assert_eq!(fs::metadata(logins[0].path()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(logins[0].path().join("config.json")).unwrap().mode() & 0o777, 0o600);
    cluster.crash();
    cluster.kill_mount(&target);
    cluster.start();
    assert!(becomes_true(CONDITION_TIMEOUT, || alive(&target)), "{}", cluster.log());
    assert_eq!(fs::read(target.join("f")).unwrap(), b"data\n");
    cluster.gone("a");
    cluster.gone("b");
    assert_eq!(fs::read_dir(cluster.path("state/logins")).unwrap().count(), 0);
    let log = cluster.log();
    assert!(log.contains("TRACE"), "not everything is logged");
    clean("the log", log.as_bytes());
}

#[test]
fn a_cached_image_is_shown_only_to_a_login_that_its_registry_grants_now() {
    if !able(&NEEDS) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"data\n")]);
    cluster.registry.set(Fault::RequireBasic { user: "pod".into(), pass: "pw".into() });
    let auth = STANDARD.encode("pod:pw");
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, cluster.registry.host());
    let mut request = cluster.request("a", &[("reference", &reference), ("view", "files")]);
    request.secrets.insert(".dockerconfigjson".into(), config.clone());
    cluster.publish(&request).unwrap_or_else(|status| panic!("{status:?}"));
    assert_eq!(fs::read(cluster.target("a").join("f")).unwrap(), b"data\n");

    // Everything of it is in the cache, and its digest is no secret.
    let record = fs::read(&cluster.records()[0]).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pinned = record["pinned"].as_str().unwrap().to_owned();
    assert!(pinned.contains("@sha256:"), "{record}");
    let attributes = [("reference", pinned.as_str()), ("view", "files")];
    cluster.registry.reset_counts();
    cluster.refused(&cluster.request("b", &attributes), Code::Unauthenticated, &["docker login"]);
    let mut granted = cluster.request("c", &attributes);
    granted.secrets.insert(".dockerconfigjson".into(), config.clone());
    cluster.registry.reset_counts();
    cluster.publish(&granted).unwrap_or_else(|status| panic!("{status:?}"));
    let heads: Vec<_> =
        cluster.registry.manifest_requests().iter().map(|it| (it.method.clone(), it.status)).collect();
    assert_eq!(heads, [("HEAD".into(), 401), ("HEAD".into(), 200)]);

    // Where no registry answers, the policy decides.
    cluster.registry.go_down();
    cluster.refused(&cluster.request("d", &attributes), Code::Unavailable, &["check the host name"]);
    cluster.crash();
    cluster.options = vec!["--when-unreachable=show".into()];
    cluster.start();
    cluster.publish(&cluster.request("d", &attributes)).unwrap_or_else(|status| panic!("{status:?}"));
    cluster.registry.come_up();
    cluster.refused(&cluster.request("e", &attributes), Code::Unauthenticated, &[]);
    for pod in ["a", "c", "d"] {
        cluster.gone(pod);
    }
}

#[test]
fn volumes_whose_registry_is_silent_hold_no_place_of_others() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&["--", "--timeout=3600"]);
    let silent = FaultRegistry::start();
    let pit = push_files(&silent, &[Piece::new("f", "text/plain", *b"never\n")]);
    silent.set(Fault::Silent);
    let reference = push_files(&cluster.registry, &[Piece::new("f", "text/plain", *b"data\n")]);
    const PLACES_OF_A_NODE: usize = 64;
    const WAITING: usize = 80;
    let waiting: Vec<_> = (0..WAITING)
        .map(|number| {
            let request = cluster.request(&format!("w{number}"), &[("reference", &pit), ("view", "files")]);
            let asked = ask::<_, EmptyMessage>(cluster.channel(), "/csi.v1.Node/NodePublishVolume", request);
            cluster.runtime.spawn(asked)
        })
        .collect();
    // A process for each, on few cores.
    assert!(becomes_true(CONDITION_TIMEOUT * 5, || silent.unanswered() >= WAITING), "{}", cluster.log());
    let target = cluster.published("a", &[("reference", &reference), ("view", "files")]);
    assert_eq!(fs::read(target.join("f")).unwrap(), b"data\n");
    // On a slow machine the first of them may have waited for as long as the plugin waits for a mount.
    let still = waiting.iter().filter(|asked| !asked.is_finished()).count();
    assert!(still > PLACES_OF_A_NODE, "{still} wait");
    silent.go_down();
    cluster.gone("a");
}

#[test]
fn a_volume_that_the_kernel_serves_is_published_and_mounted_again_as_every_other() {
    if !able(&NEEDS) || !kernel_mount::kernel_can() {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let tar = Tarball::new().dir("d").file("d/f", b"of the kernel\n").bytes();
    let reference = push_image(&cluster.registry, &[Layer::of(&tar, Encoding::Gzip)]);
    let attributes = |kernel| [("reference", reference.as_str()), ("view", "merged"), ("kernel", kernel)];
    let target = cluster.published("on", &attributes("on"));
    let is_right = || {
        let line = mounted_at(&target).unwrap();
        line.fstype == "erofs" && fs::read(target.join("d/f")).is_ok_and(|read| read == b"of the kernel\n")
    };
    assert!(is_right(), "{}", cluster.log());
    for option in ["ro", "nosuid", "nodev"] {
        let line = mounted_at(&target).unwrap();
        assert!(line.options.split(',').any(|is| is == option), "{line:?}");
    }
    // Again: the same mount, by the same process; with another value it is another volume.
    let pids = [served_by_one(&target)];
    cluster.publish(&cluster.request("on", &attributes("on"))).unwrap();
    assert_eq!(daemons(&target), pids);
    cluster.refused(&cluster.request("on", &attributes("off")), Code::AlreadyExists, &["other attributes"]);
    assert!(!cluster.stats("on").unwrap().condition.unwrap().abnormal);
    // The same meaning as of the option.
    for (value, served) in [("off", "fuse.ocifs"), ("auto", "erofs")] {
        let target = cluster.published(value, &attributes(value));
        assert_eq!(mounted_at(&target).unwrap().fstype, served, "{value}");
        cluster.gone(value);
    }
    let wrong = cluster.request("wrong", &attributes("yes"));
    cluster.refused(&wrong, Code::InvalidArgument, &["kernel", "auto, on or off"]);
    let blobs = [("reference", reference.as_str()), ("view", "blobs"), ("kernel", "on")];
    cluster.refused(&cluster.request("blobs", &blobs), Code::InvalidArgument, &["--view merged"]);
    cluster.nothing_at("blobs");
    // The next plugin finds the mount alive, and one whose process is gone is mounted again.
    cluster.crash();
    cluster.start();
    cluster.published("on", &attributes("on"));
    assert_eq!(daemons(&target), pids);
    cluster.crash();
    signal(pids[0], Signal::SIGKILL);
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&target).is_empty()), "process {} survived", pids[0]);
    cluster.start();
    cluster.published("on", &attributes("on"));
    assert_ne!([served_by_one(&target)], pids);
    assert!(is_right(), "{}", cluster.log());
    cluster.gone("on");
}

#[test]
fn plugin_that_cannot_work_fails_at_start() {
    if !able(&NEEDS) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let socket = format!("--endpoint=unix://{}", cluster.path("csi.sock").display());
    let own = format!("--endpoint=unix://{}", cluster.path("other.sock").display());
    let state = format!("--state-dir={}", cluster.path("state").display());
    let fresh = format!("--state-dir={}", cluster.path("fresh").display());
    let ocifs = |words: &[&str]| cluster.site.ocifs(&[&["csi", "--node-id=n"], words].concat());
    ocifs(&[&own, &state]).refused(&[1], &["another ocifs csi", "--state-dir"]);
    ocifs(&[&socket, &fresh]).refused(&[1], &["csi.sock", "another process listens on it"]);
    ocifs(&[&own, &fresh, "--", "--cache-dri=/c"]).refused(&[2], &["--cache-dri"]);
    ocifs(&[&own, &fresh, "--", "--creds=a:b"]).refused(&[2], &["--creds"]);
    ocifs(&["--endpoint=tcp://1.2.3.4:1", &fresh]).refused(&[2], &["unix:///PATH"]);
    // The one that works was not disturbed, and ends when it is told to.
    cluster.ask::<_, ProbeResponse>("/csi.v1.Identity/Probe", EmptyMessage {}).unwrap();
    let plugin = cluster.plugin.as_ref().unwrap().id();
    signal(plugin, Signal::SIGTERM);
    assert!(becomes_true(CONDITION_TIMEOUT, || !cluster.path("csi.sock").exists()));
}
