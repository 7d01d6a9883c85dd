//! Processes that share one cache at its limit, and do to it what processes do: read blobs, decoded streams, gzip and zstd layers and
//! a disk of parts; prune, collect, scrub, count, end, and are killed.

use std::time::Instant;

use ocifs::cache::{PrunePolicy, ScannedFile, VerificationState};
use ocifs::io::{ConcatReader, ReadAt as _, SharedReader};
use ocifs::layer::{LayerOptions, StoredLayer};

use super::*;

const CROWD: &str = "OCIFS_TEST_CROWD";
const LIMIT: u64 = 6 * MIB;
/// Reads of an item at a turn.
const AT_A_TURN: u64 = 50;
/// Reads between two notes of how far a process is.
const NOTED: u64 = 50;

/// What an item of the shelf is read through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Blob,
    /// A decoded stream with the checksums of its blocks.
    Stream,
    /// A layer that is stored compressed.
    Packed,
    /// A disk whose parts are blobs.
    Parts,
}

/// What the processes read, and one blob that is not what its digest says.
struct ShelfItem {
    form: Form,
    /// The digests and the bytes of what is stored.
    stored: Vec<(Digest, Bytes)>,
    /// The bytes that a reader gets.
    bytes: Bytes,
    lies: bool,
}

impl ShelfItem {
    fn new(form: Form, stored: Vec<Bytes>, bytes: Bytes) -> Self {
        let stored = stored.into_iter().map(|one| (Digest::sha256(&one), one)).collect();
        Self { form, stored, bytes, lies: false }
    }
}

/// Bytes that become a little shorter when they are packed.
fn packable(seed: u64) -> Bytes {
    let bytes: Vec<u8> = noise(3 * MIB + 1234, seed).iter().map(|byte| byte & 0x7f).collect();
    bytes.into()
}

fn shelf() -> Vec<ShelfItem> {
    let blob = |seed| {
        let bytes = noise(3 * MIB + 7, seed);
        ShelfItem::new(Form::Blob, vec![bytes.clone()], bytes)
    };
    let stream = |seed: u64| {
        let mut bytes = noise(3 * MIB + 99, seed).to_vec();
        for page in (0..bytes.len() - 4096).step_by(4096 * (2 + seed as usize % 3)) {
            bytes[page..page + 4096].fill(0);
        }
        let bytes = Bytes::from(bytes);
        let stored = vec![(Digest::sha256(&seed.to_le_bytes()), bytes.clone())];
        ShelfItem { form: Form::Stream, stored, bytes, lies: false }
    };
    let gzip = |seed| {
        let bytes = packable(seed);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        ShelfItem::new(Form::Packed, vec![encoder.finish().unwrap().into()], bytes)
    };
    let zstd = |seed, frame: usize| {
        let bytes = packable(seed);
        let frames: Vec<Vec<u8>> =
            bytes.chunks(frame).map(|part| zstd::stream::encode_all(part, 1).unwrap()).collect();
        ShelfItem::new(Form::Packed, vec![frames.concat().into()], bytes)
    };
    let disk = |seed| {
        let parts: Vec<Bytes> = (0..3).map(|part| noise(MIB + 513 * part, seed + part)).collect();
        let bytes = parts.concat().into();
        ShelfItem::new(Form::Parts, parts, bytes)
    };
    let mut liar = ShelfItem::new(Form::Blob, vec![noise(2 * MIB, 54)], noise(2 * MIB, 54));
    liar.stored[0].0 = Digest::sha256(b"another");
    liar.lies = true;
    let (one_frame, frames) = (usize::MAX, 400_000);
    vec![
        blob(50),
        blob(51),
        stream(52),
        stream(53),
        gzip(55),
        zstd(56, one_frame),
        zstd(57, frames),
        disk(58),
        liar,
    ]
}

/// An item that a process holds open.
#[derive(Clone)]
struct OpenItem {
    bytes: SharedReader,
    blobs: Vec<Arc<CachedFile>>,
    _layer: Option<Arc<StoredLayer>>,
}

/// `None` where its files are in the hands of a process that was stopped, or of one that removes them.
async fn open(cache: &BlockCache, item: &ShelfItem) -> Option<OpenItem> {
    let mut blobs = Vec::new();
    for (name, stored) in &item.stored {
        let source = Source::new(stored, None);
        let opened = match item.form {
            Form::Stream => {
                let sums: Vec<[u8; 32]> =
                    stored.chunks(BLOCK as usize).map(|block| blake3::hash(block).into()).collect();
                cache.stream(name, sums.into(), source)
            }
            Form::Blob | Form::Packed | Form::Parts => cache.blob(name, source),
        };
        blobs.push(opened.ok()?);
    }
    match item.form {
        Form::Blob | Form::Stream => Some(OpenItem { bytes: blobs.first()?.clone(), blobs, _layer: None }),
        Form::Parts => {
            let joined = ConcatReader::of(blobs.iter().map(|part| Arc::clone(part) as SharedReader));
            Some(OpenItem { bytes: Arc::new(joined), blobs, _layer: None })
        }
        Form::Packed => {
            let layer = StoredLayer::packed(blobs.first()?.clone(), cache.clone(), LayerOptions::default());
            if let Err(error) = layer.index().await {
                panic!("a layer cannot be decoded: {}", error.chain());
            }
            Some(OpenItem { bytes: layer.stream()?, blobs, _layer: Some(Arc::new(layer)) })
        }
    }
}

/// Not a test of its own: the life of one process of the crowd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member() {
    let Ok(orders) = std::env::var(CROWD) else { return };
    let parts: Vec<&str> = orders.lines().collect();
    let (dir, seed) = (PathBuf::from(parts[0]), parts[1].parse::<u64>().unwrap());
    let end = Instant::now() + Duration::from_millis(parts[2].parse().unwrap());
    let mut dice = Random::of(seed);
    let shelf = shelf();
    let mut cache = BlockCache::open_limited(&dir, SizeLimit::Bytes(LIMIT)).unwrap();
    let mut held: Vec<Option<OpenItem>> = shelf.iter().map(|_| None).collect();
    let mut reads = 0;
    while Instant::now() < end {
        let at = dice.below(shelf.len() as u64) as usize;
        let one = &shelf[at];
        match dice.below(1000) {
            0..900 => {
                if held[at].is_none() {
                    held[at] = open(&cache, one).await;
                }
                let Some(opened) = held[at].clone() else { continue };
                let size = opened.bytes.size();
                assert_eq!(size, one.bytes.len() as u64);
                for _ in 0..AT_A_TURN {
                    let start = dice.below(size);
                    // Most reads are those of programs, some touch three blocks.
                    let longest = if dice.below(8) == 0 { 2 * BLOCK } else { BLOCK / 8 };
                    let len = (1 + dice.below(longest)).min(size - start);
                    let read = read_vec(&*opened.bytes, ByteRange::at(start, len)).await;
                    let right = &one.bytes[start as usize..(start + len) as usize];
                    match read {
                        Ok(bytes) => assert!(bytes == right, "{at}: wrong bytes at {start}, {len} long"),
                        Err(error) => assert!(one.lies, "{at}: {}", error.chain()),
                    }
                }
                reads += AT_A_TURN;
                if reads % NOTED == 0 {
                    // A full disk takes no note.
                    let log = OpenOptions::new().append(true).create(true).open(dir.join("log"));
                    drop(log.and_then(|mut log| log.write_all(b"x")));
                }
            }
            900..950 => held[at] = None,
            950..970 => {
                let keep = Some(dice.below(2 * LIMIT));
                cache.inventory().prune(PrunePolicy { older_than: None, keep }, |_, _| {}).unwrap();
            }
            970..980 => {
                cache.inventory().collect(|_, _, _| {}).unwrap();
            }
            980..990 => scrub(&cache),
            990..994 => {
                held.iter_mut().for_each(|one| *one = None);
                cache = BlockCache::open_limited(&dir, SizeLimit::Bytes(LIMIT)).unwrap();
            }
            994..996 => {
                // The next one finds no account, and counts.
                drop(fs::write(dir.join("v1/account"), b"lost"));
            }
            _ => {
                let opened =
                    shelf.iter().zip(&held).filter_map(|(one, opened)| Some((one, opened.as_ref()?)));
                for (one, state) in
                    opened.flat_map(|(one, opened)| opened.blobs.iter().map(move |blob| (one, blob.state())))
                {
                    assert!(one.lies || state != VerificationState::Poisoned, "right content is poisoned");
                    assert!(!one.lies || state != VerificationState::Verified, "wrong content is verified");
                }
            }
        }
    }
}

fn scrub(cache: &BlockCache) {
    let inventory = cache.inventory();
    let used = inventory.used().unwrap();
    let walked = inventory.walk(|found| {
        if let ScannedFile::Content(entry) = found {
            // What a killed process was writing is found damaged, rightly.
            inventory.scrub(&entry, &used)?;
        }
        Ok(std::ops::ControlFlow::<()>::Continue(()))
    });
    walked.unwrap();
}

fn member_of(dir: &Path, seed: u64, time: Duration) -> Reaped {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crowd::member", "--nocapture", "--test-threads=1"])
        .env(CROWD, format!("{}\n{seed}\n{}", dir.display(), time.as_millis()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Reaped(child)
}

/// What the account says and what the files take, when the two can be compared.
fn account(cache: &BlockCache, root: &Path) -> Option<(u64, u64)> {
    let before = cache.used()?;
    let here = occupied(root);
    Some((cache.used()?.max(before), here))
}

/// Lets `processes` of them work at once; a hundred times, or every few hundred milliseconds, one is killed and another one comes.
fn run(dir: &Path, seed: u64, processes: u64, time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut next = seed * 1000;
    let mut come = || {
        next += 1;
        member_of(dir, next, end.saturating_duration_since(Instant::now()))
    };
    let mut members: Vec<Reaped> = (0..processes).map(|_| come()).collect();
    let mut dice = Random::of(seed);
    let watched = BlockCache::open(dir).unwrap();
    let (mut low, mut most) = (0, (0, 0));
    let between = |dice: &mut Random| Duration::from_millis(300 + dice.below(600)).max(time / 100);
    let mut kill = Instant::now() + Duration::from_millis(700);
    // On a busy machine a process may need longer than that to begin: none is killed before another note.
    let noted = || fs::metadata(dir.join("log")).map_or(0, |log| log.len());
    let mut known = 0;
    while Instant::now() < end {
        let seen = account(&watched, &dir.join("v1"));
        // A file that goes, or gets another name, while others are looked at may be seen where it is no more.
        low = if seen.is_some_and(|(used, here)| here > used) { low + 1 } else { 0 };
        assert!(low < 20, "the account says less than the files take: {seen:?}");
        if low == 0
            && let Some((used, here)) = seen
        {
            most = (most.0.max(used), most.1.max(here));
        }
        if Instant::now() > kill && noted() > known {
            known = noted();
            kill = Instant::now() + between(&mut dice);
            let victim = dice.below(processes) as usize;
            members[victim].0.kill().unwrap();
            members[victim] = come();
        }
        for member in &mut members {
            if let Some(status) = member.0.try_wait().unwrap()
                && !status.success()
            {
                let mut stderr = String::new();
                member.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                panic!("seed {seed}: {stderr}");
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    members.into_iter().for_each(Reaped::succeeds);
    let reads = noted() * NOTED;
    eprintln!("{processes} processes: {reads} reads, at most {} accounted, {} in files", most.0, most.1);
    reads
}

/// When all is at rest, the account is what the files take, or a block for each process more, whatever was killed.
fn rests(dir: &Path, processes: u64) {
    let cache = BlockCache::open_limited(dir, SizeLimit::Bytes(64 * MIB)).unwrap();
    let patience = Instant::now() + Duration::from_secs(120);
    loop {
        let seen = account(&cache, &dir.join("v1"));
        if seen.is_some_and(|(used, here)| (here..=here + processes * BLOCK).contains(&used)) {
            return;
        }
        assert!(Instant::now() < patience, "account and files: {seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_process_of_a_crowd_at_the_limit_reads_a_wrong_byte() {
    let long = std::env::var("OCIFS_LONG").ok();
    let (crowds, time) = match &long {
        Some(counts) if counts != "1" => {
            (counts.split(',').map(|count| count.parse().unwrap()).collect(), Duration::from_secs(600))
        }
        Some(_) => (vec![2, 4, 8], Duration::from_secs(600)),
        None => (vec![3], Duration::from_secs(12)),
    };
    for processes in crowds {
        let dir = tempfile::tempdir().unwrap();
        let reads = run(dir.path(), 60 + processes, processes, time);
        assert!(reads >= if long.is_some() { 5000 } else { 100 }, "only {reads} reads");
        rests(dir.path(), processes);
    }
}

#[test]
fn a_crowd_on_a_full_disk_reads_no_wrong_byte() {
    let Some(disk) = Tmpfs::new("size=5m,mode=0700") else { return };
    run(disk.0.path(), 70, 3, Duration::from_secs(4));
}
