//! The messages of the Container Storage Interface that a node plugin reads and writes, version 1 of the protocol.
//!
//! Never judges what they say. The idea: the numbers of the fields are what two programs have agreed on; they are written down
//! here by hand, for the fields that are used, and what else a message holds is passed over as protocol buffers have it.
//! Facts from: the CSI specification, package `csi.v1`.

use std::collections::HashMap;
use std::fmt;

use prost::Message;

/// A message without a field: many questions, and some answers.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// Who the plugin is.
#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    /// The name of the driver.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The version of the program.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// Whether the plugin can be asked already.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Probed {
    /// A wrapped truth value, which can be missing.
    #[prost(message, optional, tag = "1")]
    pub ready: Option<Truth>,
}

/// `google.protobuf.BoolValue`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Truth {
    /// The value.
    #[prost(bool, tag = "1")]
    pub value: bool,
}

/// Make a volume available at a path. Its secrets are not in what `Debug` shows.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct PublishVolume {
    /// What the volume is called from now on.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is to appear.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// How it is to be used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Whether nobody is to write to it.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// What nobody else may see.
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    /// The attributes of the volume.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

impl fmt::Debug for PublishVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishVolume")
            .field("volume_id", &self.volume_id)
            .field("target_path", &self.target_path)
            .field("readonly", &self.readonly)
            .field("secrets", &self.secrets.len())
            .finish_non_exhaustive()
    }
}

/// How a volume is to be used.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeCapability {
    /// As a block device, or as a directory.
    #[prost(oneof = "Access", tags = "1, 2")]
    pub access: Option<Access>,
}

/// What a volume looks like.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Access {
    /// A block device.
    #[prost(message, tag = "1")]
    Block(Empty),
    /// A directory.
    #[prost(message, tag = "2")]
    Mount(MountVolume),
}

/// A volume as a directory.
#[derive(Clone, PartialEq, Message)]
pub struct MountVolume {
    /// The type of file system that is wanted; empty: any.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Options of the mount.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
}

/// Take a volume away from a path.
#[derive(Clone, PartialEq, Message)]
pub struct UnpublishVolume {
    /// Which volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it appeared.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// How full is a volume?
#[derive(Clone, PartialEq, Message)]
pub struct GetVolumeStats {
    /// Which volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it appeared.
    #[prost(string, tag = "2")]
    pub volume_path: String,
}

/// How full a volume is, and whether it works.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeStats {
    /// In several units.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
    /// Whether it works.
    #[prost(message, optional, tag = "2")]
    pub condition: Option<VolumeCondition>,
}

/// How full a volume is, in one unit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VolumeUsage {
    /// What is left.
    #[prost(int64, tag = "1")]
    pub available: i64,
    /// All there is.
    #[prost(int64, tag = "2")]
    pub total: i64,
    /// What is taken.
    #[prost(int64, tag = "3")]
    pub used: i64,
    /// In which unit.
    #[prost(enumeration = "Unit", tag = "4")]
    pub unit: i32,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Unit {
    /// Nobody said.
    Unknown = 0,
    /// Bytes.
    Bytes = 1,
    /// Files.
    Inodes = 2,
}

/// Whether a volume works.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct VolumeCondition {
    /// It does not.
    #[prost(bool, tag = "1")]
    pub abnormal: bool,
    /// Why.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// What the plugin can do on a node.
#[derive(Clone, PartialEq, Message)]
pub struct NodeCapabilities {
    /// One entry for each thing.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<NodeCapability>,
}

/// One thing that the plugin can do on a node.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NodeCapability {
    /// A call that it answers.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<NodeRpc>,
}

/// A call that need not be answered.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NodeRpc {
    /// Which one.
    #[prost(enumeration = "NodeRpcType", tag = "1")]
    pub r#type: i32,
}

/// The calls of this kind that the plugin answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum NodeRpcType {
    /// None.
    Unknown = 0,
    /// How full a volume is.
    GetVolumeStats = 2,
    /// Whether a volume works, in the same answer.
    VolumeCondition = 4,
}

/// Which node this is.
#[derive(Clone, PartialEq, Message)]
pub struct NodeInfo {
    /// Its name.
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
        let read = PublishVolume::decode(&wire[..]).unwrap();
        assert_eq!((read.volume_id.as_str(), read.target_path.as_str(), read.readonly), ("v", "/t", true));
        assert_eq!(read.secrets["k"], "s3cret");
        assert!(!format!("{read:?}").contains("s3cret"), "{read:?}");
    }

    #[test]
    fn answers_are_written_as_the_protocol_numbers_them() {
        let info = PluginInfo { name: "a".into(), vendor_version: "b".into() };
        assert_eq!(info.encode_to_vec(), b"\x0a\x01a\x12\x01b");
        assert_eq!(Probed { ready: Some(Truth { value: true }) }.encode_to_vec(), b"\x0a\x02\x08\x01");
        assert_eq!(NodeInfo { node_id: "n".into() }.encode_to_vec(), b"\x0a\x01n");
        let usage = VolumeUsage { available: 1, total: 3, used: 2, unit: Unit::Inodes.into() };
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
            assert!(PublishVolume::decode(wire).is_err(), "{wire:?}");
        }
    }
}
