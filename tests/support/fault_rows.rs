//! Rows of the fault table that come over the network, as data: the fault, and the required result.
//!
//! Never opens or reads anything: one test runs the rows through the library in all combinations, another through a mount.
//! The idea: a row is a fault of the fault registry at a place that a seed chooses.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::time::Duration;

use ocifs::io::FaultClass as Whose;

use crate::fault_registry::{Fault, FaultRegistry};

/// How the registry is when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Setup {
    /// Anybody may read.
    Open,
    /// Whoever has a token may read.
    Tokens,
    /// Whoever has a token is sent to another host by signed URLs.
    Signed,
}

impl Setup {
    /// All of them.
    pub(crate) const ALL: [Setup; 3] = [Setup::Open, Setup::Tokens, Setup::Signed];

    /// Makes a registry so.
    pub(crate) fn apply(self, registry: &FaultRegistry) {
        if self != Setup::Open {
            registry.set(Fault::RequireBearer { token_lifetime: Duration::from_secs(600) });
        }
        if self == Setup::Signed {
            registry.set(Fault::RedirectTo307SecondHost);
        }
    }
}

/// What happens once the reference is open.
#[derive(Clone, Debug)]
pub(crate) enum Happens {
    /// This many requests meet this fault.
    Times(Fault, u32),
    /// Every request meets this fault.
    Always(Fault),
    /// Every request but this many first ones for blobs meets this fault.
    After(u64, Fault),
    /// Nothing.
    Nothing,
    /// The registry is gone.
    Down,
    /// The registry is gone, and what was open is opened again by its digest.
    DownAndOpenedAgain,
    /// The tag means another image.
    TagMoved,
    /// No blob is there any longer.
    BlobsDeleted,
}

/// What must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The right bytes.
    Right,
    /// An error of this kind for what was not read before, and the right bytes once the fault is over.
    Error(Whose),
    /// Bytes that no digest covers may be wrong until the blob was fetched whole; then they are errors.
    NotTwice,
}

/// One row, or a part of one.
pub(crate) struct Row {
    /// The row of the table.
    pub(crate) number: u8,
    /// In words.
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    pub(crate) happens: Happens,
    pub(crate) then: Then,
}

/// The rows that are faults of somebody else; `chance` gives numbers below its argument.
pub(crate) fn rows(mut chance: impl FnMut(u64) -> u64) -> Vec<Row> {
    use Happens::{After, Always, BlobsDeleted, Down, DownAndOpenedAgain, Nothing, TagMoved, Times};
    use Setup::{Open, Signed, Tokens};
    use Then::{Error, NotTwice, Right};
    let status = |code, retry_after: Option<&str>| Fault::Status {
        code,
        times: u32::MAX,
        retry_after: retry_after.map(str::to_owned),
    };
    let cut = Fault::TruncateAfter { bytes: chance(200_000), times: u32::MAX };
    let lacks = Fault::ShortBody { by: 1 + chance(60_000) };
    let flip = Fault::FlipBitAt(chance(u64::MAX));
    let nowhere = Fault::RedirectTo("http://no-such-host.invalid/blob".to_owned());
    let listed = [
        (1, "the connection is reset in a body", Open, Times(Fault::ResetAfter(chance(200_000)), 2), Right),
        (1, "the registry dies", Open, Down, Error(Whose::Unavailable)),
        (2, "a body goes silent", Open, Times(Fault::StallAfter(chance(200_000)), 1), Right),
        (2, "every body is silent", Open, Always(Fault::StallAfter(0)), Error(Whose::Unavailable)),
        (2, "a body trickles", Open, Times(Fault::SlowBytesPerSecond(1_000_000), 1), Right),
        (3, "a body is cut", Open, Times(cut, 2), Right),
        (3, "a body lacks its end", Open, Times(lacks.clone(), 2), Right),
        (3, "every body lacks its end", Open, Always(lacks), Error(Whose::Misbehaved)),
        (4, "a bit is flipped", Open, Always(flip), NotTwice),
        (5, "ranges are ignored", Open, Always(Fault::IgnoreRange), Right),
        (6, "another range comes", Open, Times(Fault::WrongContentRange, 2), Right),
        (6, "always another range", Open, Always(Fault::WrongContentRange), Error(Whose::Misbehaved)),
        (6, "a multipart comes", Open, Times(Fault::Multipart, 1), Right),
        (6, "always a multipart", Open, Always(Fault::Multipart), Error(Whose::Misbehaved)),
        (7, "416", Open, Always(Fault::Unsatisfiable { size: 10 }), Error(Whose::Misbehaved)),
        (8, "503 twice", Open, Times(status(503, None), 2), Right),
        (8, "429, again in 1 s", Open, Times(status(429, Some("1")), 1), Right),
        (8, "503 always", Open, Always(status(503, None)), Error(Whose::Unavailable)),
        (8, "503 after the first", Open, After(1, status(503, None)), Error(Whose::Unavailable)),
        (8, "429, again in an hour", Open, Always(status(429, Some("3600"))), Error(Whose::Unavailable)),
        (9, "the token ends", Tokens, Times(Fault::TokensEnd, 1), Right),
        (10, "the signed URL ends", Signed, Times(Fault::SignedUrlsEnd, 1), Right),
        (11, "another host has the blobs", Signed, Nothing, Right),
        (11, "a redirect to itself", Open, Always(Fault::RedirectLoop), Error(Whose::Misbehaved)),
        (12, "a name does not resolve", Open, Always(nowhere), Error(Whose::Unavailable)),
        (21, "the tag moves", Open, TagMoved, Right),
        (21, "the blobs are deleted", Open, BlobsDeleted, Error(Whose::NotFound)),
        (22, "no registry at mount", Open, DownAndOpenedAgain, Error(Whose::Unavailable)),
    ];
    let row = |(number, name, setup, happens, then)| Row { number, name, setup, happens, then };
    listed.map(row).into()
}
