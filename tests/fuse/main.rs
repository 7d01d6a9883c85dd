//! End-to-end tests: the binary, a real registry, images by real tools, real mounts.
//!
//! They prove that the parts are wired together; what a part does in every corner is tested beside it. Never looks
//! inside the crate: what cannot be seen through the command line and the mount does not exist here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../support/artifact.rs"]
mod artifact;
#[path = "../support/byte_text.rs"]
mod byte_text;
#[path = "../support/chunked.rs"]
mod chunked;
#[path = "../support/compare.rs"]
mod compare;
#[path = "../support/containerd.rs"]
mod containerd;
#[path = "../support/corpus.rs"]
mod corpus;
#[path = "../support/debian.rs"]
mod debian;
#[path = "../support/encode.rs"]
mod encode;
#[path = "../support/erofs_reader.rs"]
mod erofs_reader;
#[path = "../support/fault_registry.rs"]
mod fault_registry;
#[path = "../support/fault_rows.rs"]
mod fault_rows;
#[path = "../support/golden.rs"]
mod golden;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/kept.rs"]
mod kept;
#[path = "../../src/oci/key_fixtures.rs"]
mod key_fixtures;
#[path = "../support/layout.rs"]
mod layout;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/other.rs"]
mod other;
#[path = "../support/proc_files.rs"]
mod proc_files;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/real_registry.rs"]
mod real_registry;
#[path = "../support/scratch.rs"]
mod scratch;
#[path = "../support/served.rs"]
mod served;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/service_manager.rs"]
mod service_manager;
#[path = "../support/shapes.rs"]
mod shapes;
#[path = "../support/shapes_lz4.rs"]
mod shapes_lz4;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/soci.rs"]
mod soci;
#[path = "../support/stage.rs"]
mod stage;
#[path = "../support/tarball.rs"]
mod tarball;
#[path = "../support/vm.rs"]
mod vm;
#[path = "../support/web.rs"]
mod web;
#[path = "../support/zran.rs"]
mod zran;

mod archives;
mod artifacts;
mod artifacts_archives;
mod artifacts_disks;
mod artifacts_evil;
mod artifacts_files;
mod artifacts_select;
mod artifacts_uses;
mod bad_content;
mod bad_machine;
mod bad_reference;
mod boot;
mod cache_commands;
mod command_line;
mod corpus_mounts;
mod cost;
#[cfg(feature = "csi")]
mod csi;
mod daily;
mod debian_image;
mod disks;
mod docs;
mod encodings;
mod exports;
mod exports_files;
mod fault_table;
mod faults;
mod file_calls;
mod foreign;
mod foreign_image;
mod foreign_lies;
mod index_repository;
mod indexes;
mod kernel_mount;
mod killed;
mod large_images;
mod laziness;
mod lifecycle;
mod limit;
mod local;
mod long_mount;
mod memory;
mod metrics;
mod models;
mod odd_images;
mod parts;
mod passthrough;
mod paths;
mod platforms;
mod qemu;
mod read_only;
mod real_servers;
mod rootfs;
mod roots;
mod run;
mod sandbox;
mod scarcity;
mod secrets;
mod signatures;
mod stale;
mod status;
mod survive;
mod system;
mod systemd;
mod unions;
mod unpacked;
mod verification;
mod views;
mod wedge;
mod worlds;
