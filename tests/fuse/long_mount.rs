//! An hour of a mount in a minute: tokens of 30 s and signed URLs of 60 s, which end by the registry's clock.
//!
//! Never waits for a clock: the registry's is moved on between the rounds. The idea: before each round the clock passes the end of
//! a token, then 64 readers ask at once for bytes that nobody has, and the requests for tokens are counted.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::artifact::Piece;
use crate::cost::push_files;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::process::{Need, able};
use crate::site::Site;
use crate::tarball::noise;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const TOKEN: Duration = Duration::from_secs(30);
const SIGNED_URL: Duration = Duration::from_secs(60);
/// As many tokens as an hour has.
const ROUNDS: usize = 120;
const READERS: usize = 64;
/// Parts of a file that are read in one round; readers share them.
const PARTS: usize = 4;
const PART: usize = 256 << 10;

#[test]
fn an_hour_of_short_tokens_and_signed_urls_is_one_refresh_for_each_end_and_no_error() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    registry.set(Fault::RequireBearer { token_lifetime: TOKEN });
    registry.set(Fault::RedirectTo307SecondHost);
    registry.set(Fault::SignedUrlsLive(SIGNED_URL));
    // The first file lasts for the whole hour, so its signed URL ends under it again and again; the others are new each round.
    let long = noise(ROUNDS * PART, 1);
    let mut files = vec![Piece::new("long", "application/x.file", long)];
    for round in 0..ROUNDS {
        let bytes = noise((PARTS - 1) * PART, 2 + round as u64);
        files.push(Piece::new(&format!("new-{round}"), "application/x.file", bytes));
    }
    let mount = site.mount(&push_files(&registry, &files), &["--view", "files"]);
    registry.reset_counts();
    for round in 0..ROUNDS {
        registry.advance(TOKEN);
        let before = registry.token_requests().len();
        let together = Barrier::new(READERS);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (mount, files, together) = (&mount, &files, &together);
                scope.spawn(move || {
                    let (file, part) = match reader % PARTS {
                        // From the end to the beginning: nothing of it is fetched ahead.
                        0 => (&files[0], ROUNDS - 1 - round),
                        part => (&files[1 + round], part - 1),
                    };
                    let opened = fs::File::open(mount.join(&file.title)).unwrap();
                    let mut bytes = vec![0; 4096];
                    let at = part * PART + reader * 4096 % PART;
                    together.wait();
                    let read = opened.read_exact_at(&mut bytes, at as u64);
                    assert!(read.is_ok(), "round {round}: {read:?}");
                    assert!(bytes == file.bytes[at..at + 4096], "round {round}: {} at {at}", file.title);
                });
            }
        });
        let tokens = registry.token_requests().len() - before;
        assert_eq!(tokens, 1, "round {round} of {ROUNDS}");
    }
    let refused = registry.requests().iter().filter(|request| request.status == 403).count();
    // The URL of the long file ends in every second round; the readers of one round share what they ask for.
    assert!((ROUNDS / 2 - 1..=ROUNDS).contains(&refused), "{refused} signed URLs had ended");
}
