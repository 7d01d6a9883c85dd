//! The union of layers against two oracles: a naive model that unpacks onto a map of paths, and the corpus of archives
//! for which reference appliers gave the answer.
//!
//! No code is shared with `src/tree`: the model knows paths, not inodes and arenas.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that fails or is skipped says so")]

mod corpus;
mod memory;
#[path = "../support/proc_files.rs"]
#[allow(dead_code, clippy::expect_used, reason = "shared with the tests of mounts")]
mod proc_files;
mod reference;
mod union;
