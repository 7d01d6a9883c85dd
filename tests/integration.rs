//! Tests that mount nothing, in one program: the support is compiled and the crate linked once for all of them.
//!
//! `Cargo.toml` names the other programs, each with a reason for a process of its own: `cache` and `cache_limit` start
//! themselves again, `fuzz` and `model` fill the memory budget of a process, `fuse` mounts, `layering` links nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and names what it skips on standard error"
)]

// Support, in the order of its files. Parts of what the mounts share are for them alone.
#[path = "support/apple_lz4.rs"]
mod apple_lz4;
#[path = "support/byte_text.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod byte_text;
#[path = "support/chunked.rs"]
mod chunked;
#[path = "support/compare.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod compare;
#[path = "support/encode.rs"]
mod encode;
#[path = "support/erofs_reader.rs"]
mod erofs_reader;
#[path = "support/erofs_trees.rs"]
mod erofs_trees;
#[path = "support/fault_registry.rs"]
mod fault_registry;
#[path = "support/fault_rows.rs"]
mod fault_rows;
#[path = "support/http.rs"]
mod http;
#[path = "support/layout.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod layout;
#[path = "support/observed_reader.rs"]
mod observed_reader;
#[path = "support/proc_files.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod proc_files;
#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod process;
#[path = "support/qcow2.rs"]
mod qcow2;
#[path = "support/random.rs"]
mod random;
#[path = "support/read_at_suite.rs"]
mod read_at_suite;
#[path = "support/real_registry.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod real_registry;
#[path = "support/scratch.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod scratch;
#[path = "support/served.rs"]
mod served;
#[path = "support/soci.rs"]
mod soci;
#[path = "support/tar_walk.rs"]
mod tar_walk;
#[path = "support/tarball.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod tarball;
#[path = "support/web.rs"]
mod web;
#[path = "support/zran.rs"]
mod zran;

mod cache_damage;
mod capabilities;
mod disk_headers;
mod disk_raw;
mod disk_split;
mod erofs_image;
mod fault_storm;
mod fault_table;
mod foreign_indexes;
mod library;
mod packaging;
mod packed_streams;
mod random_access;
mod random_foreign;
mod registry;
mod soci_index;
mod sources;
mod stale_model;
mod tar_corpus;
mod tar_differential;
