//! The messages of the Container Storage Interface (CSI) that a node plugin reads and writes, version 1 of the
//! protocol.
//!
//! The field numbers are the protocol. They are written by hand, for the fields in use; unknown fields are skipped,
//! as protocol buffers require. Values are checked elsewhere.
//! Facts from: the CSI specification, package `csi.v1`.

use std::collections::HashMap;
use std::fmt;

use prost::Message;

/// A message without fields: many requests, and some responses.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct EmptyMessage {}

/// Name and version of the plugin.
#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    /// The name of the driver.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The version of the program.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// Whether the plugin is ready.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ProbeResponse {
    /// A wrapped boolean; `None` means ready.
    #[prost(message, optional, tag = "1")]
    pub ready: Option<BoolValue>,
}

/// `google.protobuf.BoolValue`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BoolValue {
    /// The value.
    #[prost(bool, tag = "1")]
    pub value: bool,
}

/// Make a volume available at a path. `Debug` omits the secrets.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct NodePublishVolumeRequest {
    /// The id of the volume in later calls.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// The absolute path of the mount point.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// Access type and mount options.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Read-only.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// Secrets; never logged.
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    /// The volume attributes of the pod, and kubelet's own.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

impl fmt::Debug for NodePublishVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishVolume")
            .field("volume_id", &self.volume_id)
            .field("target_path", &self.target_path)
            .field("readonly", &self.readonly)
            .field("secrets", &self.secrets.len())
            .finish_non_exhaustive()
    }
}

/// The way a volume is used.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeCapability {
    /// Block device or directory.
    #[prost(oneof = "AccessType", tags = "1, 2")]
    pub access: Option<AccessType>,
}

/// The access type of a volume.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum AccessType {
    /// A block device.
    #[prost(message, tag = "1")]
    Block(EmptyMessage),
    /// A directory.
    #[prost(message, tag = "2")]
    Mount(MountVolumeCapability),
}

/// A volume as a directory.
#[derive(Clone, PartialEq, Message)]
pub struct MountVolumeCapability {
    /// The requested type of file system; empty: any.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Options of the mount.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
}

/// Unmount a volume from a path.
#[derive(Clone, PartialEq, Message)]
pub struct UnpublishVolume {
    /// The id from the publish request.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// The path from the publish request.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// Ask for usage and condition of a volume.
#[derive(Clone, PartialEq, Message)]
pub struct GetVolumeStats {
    /// The id from the publish request.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// The path from the publish request.
    #[prost(string, tag = "2")]
    pub volume_path: String,
}

/// Usage and condition of a volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeStats {
    /// One entry for each unit.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
    /// `None`: unknown.
    #[prost(message, optional, tag = "2")]
    pub condition: Option<VolumeCondition>,
}

/// Usage of a volume in one unit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VolumeUsage {
    /// Available amount.
    #[prost(int64, tag = "1")]
    pub available: i64,
    /// Capacity.
    #[prost(int64, tag = "2")]
    pub total: i64,
    /// Used amount.
    #[prost(int64, tag = "3")]
    pub used: i64,
    /// The [`UsageUnit`].
    #[prost(enumeration = "UsageUnit", tag = "4")]
    pub unit: i32,
}

/// The unit of a usage entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum UsageUnit {
    /// Unspecified.
    Unknown = 0,
    /// Bytes.
    Bytes = 1,
    /// Files.
    Inodes = 2,
}

/// The condition of a volume.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct VolumeCondition {
    /// Whether the volume is broken.
    #[prost(bool, tag = "1")]
    pub abnormal: bool,
    /// The reason.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The capabilities of the plugin on a node.
#[derive(Clone, PartialEq, Message)]
pub struct NodeCapabilities {
    /// One entry for each capability.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<NodeCapability>,
}

/// One capability of the plugin on a node.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NodeCapability {
    /// The call it stands for.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<NodeRpc>,
}

/// An optional call of the node service.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NodeRpc {
    /// The [`NodeRpcType`].
    #[prost(enumeration = "NodeRpcType", tag = "1")]
    pub r#type: i32,
}

/// The optional calls that the plugin implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum NodeRpcType {
    /// Unspecified.
    Unknown = 0,
    /// Usage of a volume.
    GetVolumeStats = 2,
    /// Condition of a volume, in the same response.
    VolumeCondition = 4,
}

/// Identifies this node.
#[derive(Clone, PartialEq, Message)]
pub struct NodeInfo {
    /// The name of the node.
    #[prost(string, tag = "1")]
    pub node_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_the_protocol_numbers_it_and_shows_no_secret() {
        // Field 1 "v", field 4 "/t", field 6 true, field 7 {"k": "s3cret"}, field 9 (unknown) 1.
        let wire = b"\x0a\x01v\x22\x02/t\x30\x01\x3a\x0b\x0a\x01k\x12\x06s3cret\x48\x01";
        let read = NodePublishVolumeRequest::decode(&wire[..]).unwrap();
        assert_eq!((read.volume_id.as_str(), read.target_path.as_str(), read.readonly), ("v", "/t", true));
        assert_eq!(read.secrets["k"], "s3cret");
        assert!(!format!("{read:?}").contains("s3cret"), "{read:?}");
    }

    #[test]
    fn answers_are_written_as_the_protocol_numbers_them() {
        let info = PluginInfo { name: "a".into(), vendor_version: "b".into() };
        assert_eq!(info.encode_to_vec(), b"\x0a\x01a\x12\x01b");
        assert_eq!(
            ProbeResponse { ready: Some(BoolValue { value: true }) }.encode_to_vec(),
            b"\x0a\x02\x08\x01"
        );
        assert_eq!(NodeInfo { node_id: "n".into() }.encode_to_vec(), b"\x0a\x01n");
        let usage = VolumeUsage { available: 1, total: 3, used: 2, unit: UsageUnit::Inodes.into() };
        let condition = VolumeCondition { abnormal: true, message: "x".into() };
        let stats = VolumeStats { usage: vec![usage], condition: Some(condition) };
        assert_eq!(
            stats.encode_to_vec(),
            b"\x0a\x08\x08\x01\x10\x03\x18\x02\x20\x02\x12\x05\x08\x01\x12\x01x"
        );
        let rpc = Some(NodeRpc { r#type: NodeRpcType::GetVolumeStats.into() });
        let can = NodeCapabilities { capabilities: vec![NodeCapability { rpc }] };
        assert_eq!(can.encode_to_vec(), b"\x0a\x04\x0a\x02\x08\x02");
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        for wire in [&b"\x0a\xff\xff\xff\xff\x0fv"[..], b"\x0a\x05v", b"\x00", b"\x0a\x01\xff"] {
            assert!(NodePublishVolumeRequest::decode(wire).is_err(), "{wire:?}");
        }
    }
}
