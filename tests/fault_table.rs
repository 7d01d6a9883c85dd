//! The table of faults: every fault that comes over the network, for bytes of a blob, of a merged tree and of a joined disk,
//! when nothing was read before and when half was, from five seeds.
//!
//! Never asserts seconds: what a fault costs is counted in requests. The idea: one faultless run for each combination is the
//! measure for all others; the table is printed with `cargo test --test integration fault_table -- --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its table"
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ocifs::cache::{BlockCache, VERIFY_FIRST_BYTES};
use ocifs::image::{ImageSet, OpenOptions};
use ocifs::io::{ByteRange, FaultClass, ReadAt as _, read_vec};
use ocifs::registry::{RegistryClient, RegistryOptions};
use ocifs::view::{MountNamespace, ViewScope};
use tokio::runtime::Runtime;

use crate::encode::Encoding;
use crate::fault_registry::{self, Fault as RegistryFault, FaultRegistry};
use crate::fault_rows::{Happens, Row, Setup, Then, rows};
use crate::layout::{CONFIG, Layer, MANIFEST};
use crate::random::Random;
use crate::served::{Content, VIEWS};
use crate::tarball;

/// One by one, blobs are given out as they come.
const SEEDS: u64 = 5;
/// The seed with which the small blobs are compared as a whole first, as usual.
const WHOLE: u64 = SEEDS + 1;
/// Requests of one chain of redirects. A read that fails may meet three: its own, that of its readahead, and that of the
/// readahead of the read before, which begins on its own and may fail first.
const CHAIN: usize = 6;
/// Chains that are always allowed beside the usual requests.
const CHAINS: usize = 3;
/// How much is read at once.
const PIECE: u64 = 64 * 1024;
/// Most of a run is waiting.
const AT_ONCE: usize = 24;

/// Whether something was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Before {
    Cold,
    Warm,
}

/// One combination.
#[derive(Clone, Copy, Debug)]
struct Run {
    row: usize,
    view: usize,
    before: Before,
    seed: u64,
}

impl Run {
    /// Bytes up to which a blob is compared as a whole first.
    fn small(self) -> u64 {
        if self.seed + 1 == WHOLE { VERIFY_FIRST_BYTES } else { 0 }
    }
}

/// What came of one.
struct Came {
    outcome: String,
    requests: usize,
}

/// A run and what came of it, or what was wrong.
type Done = (Run, Result<Came, String>);

/// The budget of reads that end only with their budget: most of the test is spent in them.
const SHORT_BUDGET: Duration = Duration::from_secs(5);
/// The budget of all other reads. Five tries wait for three seconds, and on a busy machine each of them takes its time.
const LONG_BUDGET: Duration = Duration::from_secs(60);

/// How long a body may be silent where one goes silent.
const SHORT_STALL: Duration = Duration::from_millis(200);
/// How long any other may be: a body that a busy machine delays is not asked for again, which would be counted.
const LONG_STALL: Duration = Duration::from_secs(30);

fn client(read_budget: Duration, stall_timeout: Duration) -> RegistryClient {
    let options = RegistryOptions {
        anonymous: true,
        read_budget,
        connect_timeout: Duration::from_secs(1),
        stall_timeout,
        ..RegistryOptions::default()
    };
    RegistryClient::new(options).unwrap()
}

/// A registry with the content, and one that reads it.
struct Scene<'a> {
    content: &'a Content,
    registry: FaultRegistry,
    cache: tempfile::TempDir,
    view: usize,
    /// Bytes up to which a blob is compared as a whole first.
    small: u64,
    budget: Duration,
    stall: Duration,
}

/// Bytes that are not the ones that were pushed.
#[derive(Debug)]
#[allow(dead_code, reason = "shown by Debug")]
enum Failure {
    Error(FaultClass, String),
    Wrong(ByteRange),
}

impl Scene<'_> {
    async fn open(&self, reference: &str) -> Result<MountNamespace, Failure> {
        let options = OpenOptions { small: self.small, ..OpenOptions::new(reference.parse().unwrap()) };
        let cache = BlockCache::open(self.cache.path()).unwrap();
        let family = ImageSet::open(&options, &client(self.budget, self.stall), cache).await;
        let family = family.map_err(|error| Failure::Error(error.fault(), error.to_string()))?;
        let opened = MountNamespace::open(Arc::new(family), &ViewScope::default()).await;
        opened.map_err(|error| Failure::Error(error.fault(), error.to_string()))
    }

    /// Reads the first `parts` of two halves of the view's file, up to the first failure.
    async fn read(&self, namespace: &MountNamespace, parts: u64) -> Result<(), Failure> {
        let file = self.content.file(self.view);
        let node = namespace.resolve(file.path.as_bytes()).await;
        let node = node.map_err(|error| Failure::Error(error.fault(), error.to_string()))?;
        let of_read = |error: ocifs::io::ReadError| Failure::Error(error.fault(), error.chain());
        let bytes = namespace.open_file(node).await.map_err(of_read)?.bytes;
        assert_eq!(bytes.size(), file.bytes.len() as u64);
        let end = bytes.size() * parts / 2;
        for start in (0..end).step_by(PIECE as usize) {
            let range = ByteRange::new(start, (start + PIECE).min(end));
            let read = read_vec(&*bytes, range).await.map_err(of_read)?;
            if read != file.bytes[range.start as usize..range.end as usize] {
                return Err(Failure::Wrong(range));
            }
        }
        Ok(())
    }

    /// Reads everything, right or wrong, to its end.
    async fn read_over(&self, namespace: &MountNamespace) {
        let Ok(node) = namespace.resolve(self.content.file(self.view).path.as_bytes()).await else { return };
        let Ok(opened) = namespace.open_file(node).await else { return };
        let size = opened.bytes.size();
        for start in (0..size).step_by(PIECE as usize) {
            // An error is as good as bytes: the end is what has to be reached.
            read_vec(&*opened.bytes, ByteRange::new(start, (start + PIECE).min(size))).await.ok();
        }
    }

    /// Whether everything can be read right soon.
    async fn recovers(&self, namespace: &MountNamespace) -> Result<(), Failure> {
        let mut last = Ok(());
        for _ in 0..200 {
            last = self.read(namespace, 2).await;
            if last.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        last
    }
}

/// The requests of a run in which nothing is wrong.
async fn measure(content: &Content, setup: Setup, view: usize, before: Before, small: u64) -> usize {
    let scene = scene(content, setup, view, small, (LONG_BUDGET, LONG_STALL));
    let namespace = scene.open(&content.reference(&scene.registry)).await.unwrap();
    if before == Before::Warm {
        scene.read(&namespace, 1).await.unwrap();
    }
    scene.read(&namespace, 2).await.unwrap();
    scene.registry.requests().len()
}

fn scene(
    content: &Content,
    setup: Setup,
    view: usize,
    small: u64,
    (budget, stall): (Duration, Duration),
) -> Scene<'_> {
    let registry = FaultRegistry::start();
    content.push(&registry);
    setup.apply(&registry);
    Scene { content, registry, cache: tempfile::tempdir().unwrap(), view, small, budget, stall }
}

async fn happen(
    content: &Content,
    row: &Row,
    view: usize,
    before: Before,
    small: u64,
) -> Result<Came, String> {
    let is_waited_for = row.then == Then::Error(FaultClass::Unavailable);
    let budget = if is_waited_for { SHORT_BUDGET } else { LONG_BUDGET };
    let is_silent = matches!(
        row.happens,
        Happens::Times(RegistryFault::StallAfter(_), _) | Happens::Always(RegistryFault::StallAfter(_))
    );
    let stall = if is_silent { SHORT_STALL } else { LONG_STALL };
    let scene = scene(content, row.setup, view, small, (budget, stall));
    let registry = &scene.registry;
    let reference = content.reference(registry);
    let mut namespace = scene.open(&reference).await.unwrap();
    if before == Before::Warm {
        scene.read(&namespace, 1).await.unwrap();
    }
    match &row.happens {
        Happens::Times(fault, times) => registry.set_for(fault.clone(), *times),
        Happens::Always(fault) => registry.set(fault.clone()),
        Happens::After(requests, fault) => registry.set_after(*requests, fault.clone()),
        Happens::Nothing => {}
        Happens::Down => registry.go_down(),
        Happens::DownAndOpenedAgain => {
            registry.go_down();
            drop(namespace);
            let opened = scene.open(&content.pinned(registry)).await;
            namespace = opened.map_err(|failure| format!("is not opened again: {failure:?}"))?;
        }
        Happens::TagMoved => content.move_tag(registry),
        Happens::BlobsDeleted => content.delete_blobs(registry),
    }
    if before == Before::Warm && row.then != Then::NotTwice {
        // What was read stays readable, whatever happens.
        scene.read(&namespace, 1).await.map_err(|failure| format!("what was read: {failure:?}"))?;
    }
    if row.then == Then::NotTwice {
        scene.read_over(&namespace).await;
    }
    let read = scene.read(&namespace, 2).await;
    let requests = registry.requests().len();
    let outcome = match (&row.then, read) {
        (Then::Right, Ok(())) => "right bytes".to_owned(),
        (Then::Error(expected), Err(Failure::Error(fault, _)))
            // A disk whose parts are gone is not itself absent.
            if *expected == fault || (VIEWS[view], *expected) == ("disk", FaultClass::NotFound) =>
        {
            registry.clear();
            row.setup.apply(registry);
            match row.happens {
                Happens::Down | Happens::DownAndOpenedAgain => registry.come_up(),
                Happens::BlobsDeleted => content.push(registry),
                _ => {}
            }
            let back = scene.recovers(&namespace).await;
            back.map_err(|failure| format!("does not come back: {failure:?}"))?;
            format!("{fault:?}, then right bytes")
        }
        // All of it may have come before the fault.
        (Then::Error(_), Ok(())) if before == Before::Warm => "cached".to_owned(),
        // A small blob is asked for without a range, and comes whole where only ranges go wrong.
        (Then::Error(_), Ok(()))
            if small > 0
                && matches!(row.happens, Happens::Always(RegistryFault::WrongContentRange | RegistryFault::Multipart)) =>
        {
            "whole, without a range".to_owned()
        }
        // The first request has brought the whole blob.
        (Then::Error(_), Ok(())) if small > 0 && matches!(row.happens, Happens::After(..)) => "whole at once".to_owned(),
        (Then::NotTwice, Err(Failure::Error(FaultClass::Mismatch, _))) => "Mismatch".to_owned(),
        (Then::NotTwice, Ok(())) if before == Before::Warm => "cached".to_owned(),
        (_, other) => return Err(format!("{other:?} after {requests} requests")),
    };
    Ok(Came { outcome, requests })
}

#[test]
fn every_network_fault_ends_as_in_the_table() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let contents: Vec<Content> = (1..=WHOLE).map(Content::new).collect();
    let rows_of: Vec<Vec<Row>> = (1..=WHOLE)
        .map(|seed| {
            let mut random = Random(seed);
            rows(move |bound| random.below(bound))
        })
        .collect();
    let usual = usual_requests(&runtime, &contents[0]);
    let wrong = printed(&rows_of[0], &usual, every_run(&runtime, &contents, &rows_of));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Requests without a fault, by what they depend on.
type UsualRequests = HashMap<(Setup, usize, Before, u64), usize>;

fn usual_requests(runtime: &Runtime, content: &Content) -> UsualRequests {
    let mut usual: UsualRequests = HashMap::new();
    for setup in Setup::ALL {
        for view in 0..VIEWS.len() {
            for before in [Before::Cold, Before::Warm] {
                for small in [0, VERIFY_FIRST_BYTES] {
                    let requests = runtime.block_on(measure(content, setup, view, before, small));
                    usual.insert((setup, view, before, small), requests);
                }
            }
        }
    }
    usual
}

/// Every row in every view, cold and warm, from every seed.
fn every_run(runtime: &Runtime, contents: &[Content], rows_of: &[Vec<Row>]) -> Vec<Done> {
    let mut runs = Vec::new();
    for row in 0..rows_of[0].len() {
        for view in 0..VIEWS.len() {
            for before in [Before::Cold, Before::Warm] {
                runs.extend((0..WHOLE).map(|seed| Run { row, view, before, seed }));
            }
        }
    }
    let todo = Mutex::new(runs.clone());
    let done: Mutex<Vec<Done>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(run) = { todo.lock().unwrap().pop() } {
                    let (content, rows) = (&contents[run.seed as usize], &rows_of[run.seed as usize]);
                    let came =
                        runtime.block_on(happen(content, &rows[run.row], run.view, run.before, run.small()));
                    done.lock().unwrap().push((run, came));
                }
            });
        }
    });
    done.into_inner().unwrap()
}

/// Prints the table; the result is all that is not as in it.
fn printed(rows: &[Row], usual: &UsualRequests, done: Vec<Done>) -> Vec<String> {
    let mut table: BTreeMap<(usize, usize, Before, u64), Vec<Done>> = BTreeMap::new();
    for (run, came) in done {
        table.entry((run.row, run.view, run.before, run.small())).or_default().push((run, came));
    }
    let mut wrong = Vec::new();
    println!(
        "{:>3} {:34} {:7} {:5} {:5} {:>5}  {:32} {:>8} {:>6}",
        "row", "fault", "view", "", "", "seeds", "outcome", "requests", "factor"
    );
    for ((row, view, before, small), came) in table {
        let row = &rows[row];
        let usual = usual[&(row.setup, view, before, small)];
        let (mut most, mut outcomes) = (0, Vec::new());
        for (run, came) in &came {
            match came {
                Ok(came) => {
                    most = most.max(came.requests);
                    if !outcomes.contains(&came.outcome) {
                        outcomes.push(came.outcome.clone());
                    }
                }
                Err(error) => wrong.push(format!("{} {:?}: {error}", row.name, run)),
            }
        }
        let factor = most as f64 / usual as f64;
        println!(
            "{:>3} {:34} {:7} {:5} {:5} {:>5}  {:32} {:>8} {:>6.1}",
            row.number,
            row.name,
            VIEWS[view],
            format!("{before:?}").to_lowercase(),
            if small == 0 { "lazy" } else { "whole" },
            came.len(),
            outcomes.join(", or "),
            most,
            factor
        );
        if most > (3 * usual).max(usual + CHAINS * CHAIN) {
            wrong.push(format!(
                "{} in {} {before:?}: {most} requests, usually {usual}",
                row.name, VIEWS[view]
            ));
        }
    }
    wrong
}

#[test]
fn a_layer_whose_first_pass_broke_is_read_right_by_the_next() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let body = tarball::noise(900_000, 77);
    let tar = tarball::Tarball::new().file("inside", &body).bytes();
    for encoding in [Encoding::Gzip, Encoding::GzipMembers, Encoding::Zstd, Encoding::ZstdFrames] {
        let (registry, cache) = (FaultRegistry::start(), tempfile::tempdir().unwrap());
        let layer = Layer::of(&tar, encoding);
        registry.push_blob(b"{}");
        registry.push_blob(layer.stored.clone());
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": ocifs::oci::Digest::sha256(b"{}"), "size": 2},
            "layers": [{"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.stored.len()}]});
        registry.push_manifest("an/image", "v1", MANIFEST, manifest.to_string().as_bytes());
        runtime.block_on(async {
            let location = format!("{}/an/image:v1", registry.host()).parse().unwrap();
            let options = OpenOptions { small: 0, ..OpenOptions::new(location) };
            let cache = BlockCache::open(cache.path()).unwrap();
            let family =
                Arc::new(ImageSet::open(&options, &client(SHORT_BUDGET, LONG_STALL), cache).await.unwrap());
            let namespace = MountNamespace::open(family, &ViewScope::default()).await.unwrap();
            // The beginning is here, so that it is known what the layer is stored as; then nothing comes any more.
            let blob = format!("blobs/{}", layer.digest().replace(':', "/"));
            let node = namespace.resolve(blob.as_bytes()).await.unwrap();
            let opened = namespace.open_file(node).await.unwrap();
            read_vec(&*opened.bytes, ByteRange::new(0, 100)).await.unwrap();
            registry.set(fault_registry::Fault::Status { code: 503, times: u32::MAX, retry_after: None });
            let error = namespace.resolve(b"merged/inside").await.unwrap_err();
            assert_eq!(error.fault(), FaultClass::Unavailable, "{error}");
            registry.clear();
            let node = namespace.resolve(b"merged/inside").await.unwrap();
            let opened = namespace.open_file(node).await.unwrap();
            let read = read_vec(&*opened.bytes, ByteRange::new(0, body.len() as u64)).await;
            assert!(read.unwrap() == body, "{encoding:?}");
        });
    }
}

#[test]
fn the_pages_about_faults_have_the_same_rows_and_name_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let described = std::fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let page = std::fs::read_to_string(root.join("tests/faults.md")).unwrap();
    // `1. **the fault**: its result` beside `| 1 | the fault | its tests |`.
    let described: Vec<(&str, &str)> = described
        .lines()
        .filter_map(|line| line.split_once(". **"))
        .filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
        .map(|(number, rest)| (number, rest.split_once("**").expect("the name of the fault ends").0))
        .collect();
    let rows: Vec<(&str, &str)> = page
        .lines()
        .filter(|line| line.contains(".rs::"))
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | "))
        .map(|(number, rest)| (number, rest.split_once(" | ").expect("the row has three cells").0))
        .collect();
    assert_eq!(rows, described);
    assert_eq!(rows.len(), 23);
    for (number, (row, _)) in (1..).zip(&rows) {
        assert_eq!(*row, number.to_string());
    }
    let mut named = 0;
    for proof in page.split('`').filter(|quoted| quoted.contains(".rs::")) {
        let (file, test) = proof.split_once("::").unwrap();
        let source =
            std::fs::read_to_string(root.join(file)).unwrap_or_else(|_| panic!("there is no {file}"));
        let lines: Vec<&str> = source.lines().map(str::trim).collect();
        let at = lines.iter().position(|line| line.contains(&format!("fn {test}(")));
        let at = at.unwrap_or_else(|| panic!("{file} has no {test}"));
        assert!(lines[..at].iter().rev().take(3).any(|line| line.contains("test")), "{proof} is no test");
        named += 1;
    }
    assert!(named > rows.len(), "{named}");
}

#[test]
fn waits_and_deadlines_are_not_measured_by_the_wall_clock() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // Dates of certificates, tokens and responses; times of use and of files, which other processes and later ones compare.
    const WALL_CLOCK: [&str; 10] = [
        "auth",
        "certificate",
        "response",
        "retry",
        "copy_number",
        "eviction_scan",
        "gc",
        "sidecar",
        "store",
        "usage",
    ];
    for folder in ["registry", "cache"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.extension().is_some_and(|end| end == "rs") && !WALL_CLOCK.contains(&&name[..]) {
                assert!(
                    !std::fs::read_to_string(&path).unwrap().contains("SystemTime"),
                    "{}",
                    path.display()
                );
            }
        }
    }
}
