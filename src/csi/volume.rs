//! Publish requests: parsed and checked before anything is done.
//!
//! Every pod author can set these attributes, and they become arguments of a command that runs as root on the node.
//! So a reference must name a registry, not a file of the node, and no value can be taken for an option. Checking
//! touches nothing on the machine.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::CsiError;
use super::messages::{AccessType, NodePublishVolumeRequest};
use super::pull_secret::PullLogins;
use crate::oci::Platform;
use crate::source::ImageLocation;

/// The prefix of the attributes that kubelet adds.
const KUBELETS: &str = "csi.storage.k8s.io/";
/// Whether the volume lives as long as its pod; other volumes are refused.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// The namespace of the pod.
const NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
/// The supported attributes, for error messages.
const KNOWN_ATTRIBUTES: &str = "reference, view, subdir, platform, kernel, pullSecret";
/// The values of the attribute `kernel`, as of the option `--kernel` of `ocifs mount`.
const KERNEL_VALUES: [&str; 3] = ["auto", "on", "off"];
/// Mount options that are always in effect, or that only make the mount stricter.
const HARMLESS: [&str; 6] = ["ro", "nosuid", "nodev", "noatime", "nodiratime", "relatime"];
/// The file system types of ocifs.
const TYPES: [&str; 3] = ["", "ocifs", "fuse.ocifs"];
/// The longest volume id, in bytes.
const MAX_NAME: usize = 1024;
/// The longest path or attribute, in bytes (PATH_MAX of Linux).
const MAX_PATH: usize = 4096;

/// The attributes that the pod author sets. Together with the target they identify the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeAttributes {
    pub(super) reference: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) view: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subdir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pull_secret: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) noexec: bool,
}

/// A checked publish request.
pub(super) struct RequestedVolume {
    pub(super) id: String,
    pub(super) target: PathBuf,
    pub(super) attributes: VolumeAttributes,
    /// The logins in the request's secrets; `None` without secrets.
    pub(super) login: Option<PullLogins>,
    /// The namespace of the pod; empty if requests carry no pod information.
    pub(super) namespace: String,
}

/// Parses and checks a request.
pub(super) fn wanted(request: &NodePublishVolumeRequest) -> Result<RequestedVolume, CsiError> {
    let id = id(&request.volume_id)?;
    let target = target(&request.target_path)?;
    if !request.readonly {
        return Err(CsiError::Invalid(
            "volumes are read-only: set readOnly: true on the csi volume of the pod".into(),
        ));
    }
    let noexec = usable(request)?;
    let mut attributes = attributes(&request.volume_context)?;
    attributes.noexec = noexec;
    let login = PullLogins::of_secrets(&request.secrets)?;
    if login.is_some() && attributes.pull_secret.is_some() {
        return Err(CsiError::Invalid(
            "a volume has nodePublishSecretRef or the attribute pullSecret, and not both".into(),
        ));
    }
    let namespace = request.volume_context.get(NAMESPACE).cloned().unwrap_or_default();
    Ok(RequestedVolume { id, target, attributes, login, namespace })
}

/// Checks a volume id: not empty, within bounds, no control characters.
pub(super) fn id(text: &str) -> Result<String, CsiError> {
    plain("the volume id", text, MAX_NAME)
}

/// Checks a path for a mount point: absolute and without `..`.
pub(super) fn target(text: &str) -> Result<PathBuf, CsiError> {
    let text = plain("the target path", text, MAX_PATH)?;
    let path: PathBuf = Path::new(&text).components().collect();
    let is_plain = path.components().skip(1).all(|component| matches!(component, Component::Normal(_)));
    if !path.is_absolute() || !is_plain || path.parent().is_none() {
        return Err(CsiError::Invalid(format!("the target path {text:?} is no absolute path without ..")));
    }
    Ok(path)
}

fn plain(what: &str, text: &str, limit: usize) -> Result<String, CsiError> {
    if text.is_empty() {
        return Err(CsiError::Invalid(format!("{what} is missing")));
    }
    if text.len() > limit {
        return Err(CsiError::Invalid(format!("{what} is longer than {limit} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(CsiError::Invalid(format!("{what} has control characters in it: {text:?}")));
    }
    Ok(text.to_owned())
}

/// Whether the volume forbids execution (`noexec`). Unsupported capabilities are refused.
fn usable(request: &NodePublishVolumeRequest) -> Result<bool, CsiError> {
    let access = request.volume_capability.as_ref().and_then(|capability| capability.access.as_ref());
    let mount = match access {
        None => return Err(CsiError::Invalid("the volume capability is missing".into())),
        Some(AccessType::Block(_)) => {
            return Err(CsiError::Invalid("volumes are directories, not block devices".into()));
        }
        Some(AccessType::Mount(mount)) => mount,
    };
    if !TYPES.contains(&mount.fs_type.as_str()) {
        return Err(CsiError::Invalid(format!(
            "the file system type {:?} is not ours: leave fsType out",
            mount.fs_type
        )));
    }
    let mut noexec = false;
    for flag in mount.mount_flags.iter().flat_map(|flags| flags.split(',')) {
        match flag {
            "noexec" => noexec = true,
            "rw" => return Err(CsiError::Invalid("mount option rw: volumes are read-only".into())),
            flag if HARMLESS.contains(&flag) => {}
            flag => return Err(CsiError::Invalid(format!("mount option {flag:?} is not supported"))),
        }
    }
    Ok(noexec)
}

fn attributes(context: &HashMap<String, String>) -> Result<VolumeAttributes, CsiError> {
    let mut unknown: Vec<&str> = context
        .keys()
        .map(String::as_str)
        .filter(|key| !key.starts_with(KUBELETS) && !KNOWN_ATTRIBUTES.split(", ").any(|known| known == *key))
        .collect();
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(CsiError::Invalid(format!(
            "unknown volume attributes: {}; the known ones are {KNOWN_ATTRIBUTES}",
            unknown.iter().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ")
        )));
    }
    if let Some(ephemeral) = context.get(EPHEMERAL).filter(|ephemeral| *ephemeral != "true") {
        return Err(CsiError::Invalid(format!(
            "{EPHEMERAL} is {ephemeral:?}: volumes are inline in a pod and live as long as it does"
        )));
    }
    let given = |name: &str| {
        let value = context.get(name).filter(|value| !value.is_empty());
        value.map(|value| plain(&format!("the attribute {name}"), value, MAX_PATH)).transpose()
    };
    let reference = given("reference")?
        .ok_or_else(|| CsiError::Invalid("the attribute reference is missing: it names the image".into()))?;
    let platform = given("platform")?;
    if let Some(platform) = platform.as_deref().filter(|platform| *platform != "all") {
        platform
            .parse::<Platform>()
            .map_err(|error| CsiError::Invalid(format!("the attribute platform: {error}")))?;
    }
    let subdir = given("subdir")?;
    let climbs = |path: &str| Path::new(path).components().any(|part| part == Component::ParentDir);
    if subdir.as_deref().is_some_and(climbs) {
        return Err(CsiError::Invalid("the attribute subdir is a path inside the tree, without ..".into()));
    }
    let kernel = given("kernel")?;
    if let Some(value) = kernel.as_deref().filter(|value| !KERNEL_VALUES.contains(value)) {
        return Err(CsiError::Invalid(format!("the attribute kernel is {value:?}, not auto, on or off")));
    }
    let pull_secret = given("pullSecret")?;
    if let Some(name) = pull_secret.as_deref().filter(|name| !is_secret_name(name)) {
        return Err(CsiError::Invalid(format!("the attribute pullSecret: {name:?} is no name of a secret")));
    }
    Ok(VolumeAttributes {
        reference: registry_reference(&reference)?,
        view: given("view")?,
        subdir,
        platform,
        kernel,
        pull_secret,
        noexec: false,
    })
}

/// Checks that a reference names a registry: files of the node are out of a pod's reach.
fn registry_reference(text: &str) -> Result<String, CsiError> {
    let bad = |reason: String| CsiError::Invalid(format!("the attribute reference: {reason}"));
    match text.parse::<ImageLocation>() {
        Ok(ImageLocation::Registry(_)) => Ok(text.to_owned()),
        Ok(_) => Err(bad(format!("{text:?} is not in a registry"))),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// Whether a name is a Kubernetes secret name: lower-case letters, digits, dots and hyphens. No such name leads out
/// of a directory.
fn is_secret_name(name: &str) -> bool {
    let ends = |at: Option<char>| at.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    name.len() <= 253
        && name.chars().all(inside)
        && ends(name.chars().next())
        && ends(name.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::super::messages::{EmptyMessage, MountVolumeCapability, VolumeCapability};
    use super::*;

    fn request(context: &[(&str, &str)]) -> NodePublishVolumeRequest {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let access = Some(AccessType::Mount(MountVolumeCapability::default()));
        NodePublishVolumeRequest {
            volume_id: "csi-1".into(),
            target_path: "/var/lib/kubelet/pods/1/mount".into(),
            volume_capability: Some(VolumeCapability { access }),
            readonly: true,
            secrets: HashMap::new(),
            volume_context: context.iter().map(owned).collect(),
        }
    }

    fn refused(request: &NodePublishVolumeRequest) -> String {
        match wanted(request) {
            Err(CsiError::Invalid(reason)) => reason,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{request:?} is accepted"),
        }
    }

    #[test]
    fn request_of_kubelet_for_an_inline_volume_is_parsed() {
        let read = wanted(&request(&[
            ("reference", "registry.example/team/app:v1"),
            ("view", "merged"),
            ("subdir", "etc"),
            ("platform", "linux/arm64"),
            ("kernel", "auto"),
            ("pullSecret", "team-a.login"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web-0"),
            ("csi.storage.k8s.io/pod.namespace", "team-a"),
            ("csi.storage.k8s.io/serviceAccount.tokens", "{}"),
        ]))
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.attributes.reference, "registry.example/team/app:v1");
        assert_eq!(read.attributes.pull_secret.as_deref(), Some("team-a.login"));
        assert_eq!(read.attributes.kernel.as_deref(), Some("auto"));
        assert_eq!(read.target, Path::new("/var/lib/kubelet/pods/1/mount"));
        assert_eq!(read.namespace, "team-a");
    }

    #[test]
    fn attributes_that_are_not_known_are_named() {
        let message = refused(&request(&[("reference", "r.example/a"), ("refrence", "x"), ("--creds", "x")]));
        assert!(message.contains("\"--creds\", \"refrence\"") && message.contains("pullSecret"), "{message}");
    }

    #[test]
    fn a_volume_that_could_be_written_to_is_refused() {
        let fine = request(&[("reference", "r.example/a")]);
        assert!(
            refused(&NodePublishVolumeRequest { readonly: false, ..fine.clone() }).contains("readOnly: true")
        );
        let with = |mount_flags: Vec<String>, fs_type: &str| NodePublishVolumeRequest {
            volume_capability: Some(VolumeCapability {
                access: Some(AccessType::Mount(MountVolumeCapability {
                    fs_type: fs_type.into(),
                    mount_flags,
                })),
            }),
            ..fine.clone()
        };
        assert!(refused(&with(vec!["rw".into()], "")).contains("read-only"));
        assert!(refused(&with(vec!["ro,suid".into()], "")).contains("\"suid\""));
        assert!(refused(&with(vec![], "ext4")).contains("ext4"));
        assert!(
            wanted(&with(vec!["ro".into(), "noexec".into()], "fuse.ocifs"))
                .is_ok_and(|w| w.attributes.noexec)
        );
        let block = Some(VolumeCapability { access: Some(AccessType::Block(EmptyMessage {})) });
        assert!(
            refused(&NodePublishVolumeRequest { volume_capability: block, ..fine }).contains("block devices")
        );
    }

    #[test]
    fn nothing_of_the_node_can_be_named() {
        for reference in ["oci:/etc:x", "/etc/passwd", "./a", "oci-archive:/a.tar", "-", "--help", ""] {
            let message = refused(&request(&[("reference", reference)]));
            assert!(message.contains("reference"), "{reference}: {message}");
        }
        for name in ["../x", "a/b", "..", ".", "A", "-a", "a.", &"a".repeat(254)] {
            refused(&request(&[("reference", "r.example/a"), ("pullSecret", name)]));
        }
        for (key, value) in
            [("subdir", "a/../../b"), ("platform", "nonsense"), ("view", "a\nb"), ("kernel", "yes")]
        {
            refused(&request(&[("reference", "r.example/a"), (key, value)]));
        }
        for target in ["", "/", "relative", "/a/../b", "/a\0b", "/a\nb"] {
            let request = NodePublishVolumeRequest {
                target_path: target.into(),
                ..request(&[("reference", "r.example/a")])
            };
            refused(&request);
        }
    }

    #[test]
    fn a_path_has_one_name() {
        assert_eq!(target("/a//b/./c/").unwrap(), Path::new("/a/b/c"));
    }
}
