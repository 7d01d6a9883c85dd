//! Raw disk of a qcow2: images by the real `qemu-img` against its own output, images made by hand, and false images.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its input has failed")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use ocifs::disk::Qcow2Raw;
use ocifs::io::{ByteRange, FaultClass, ReadAt, read_all, read_vec};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::observed_reader::ObservedReader;
use crate::qcow2::{KINDS, Kind, L1, L2, put, raw, raw_in_memory, survives};
use crate::random::Random;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap().block_on(future)
}

fn range(random: &mut Random, size: u64, longest: u64) -> ByteRange {
    let start = random.below(size);
    ByteRange::at(start, random.below(longest.min(size - start)) + 1)
}

/// The runs of data that the holes leave.
fn data_runs(disk: &dyn ReadAt) -> Vec<ByteRange> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Some(start) = disk.next_data(at) {
        at = disk.next_hole(start);
        assert!(start < at && at <= disk.size(), "{start}..{at}");
        assert_eq!((disk.next_data(start), disk.next_hole(at)), (Some(start), at));
        runs.push(ByteRange::new(start, at));
    }
    assert_eq!(disk.next_hole(at), at, "the rest is a hole, or the end");
    runs
}

/// A tool of QEMU in a directory.
struct Qemu(TempDir);

impl Qemu {
    /// None, with a word, on a machine without the tools.
    fn new() -> Option<Self> {
        let found = ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("-V").output().is_ok());
        if !found {
            eprintln!("skipped: no qemu-img or no qemu-io on this machine");
        }
        found.then(|| Self(TempDir::new().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, tool: &str, args: &[&str]) -> Output {
        let output = Command::new(tool).args(args).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn img(&self, args: &[&str]) -> Output {
        self.run("qemu-img", args)
    }

    /// Runs commands of `qemu-io` on `disk`.
    fn io(&self, commands: &[&str]) {
        let mut args = vec!["-f", "qcow2", "-d", "unmap", "disk"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        let output = self.run("qemu-io", &args);
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(!text.contains("failed") && !text.contains("error"), "{commands:?}: {text}");
    }

    /// Writes a raw disk `source` of some megabytes and a sector: noise, text, zeros, each of odd lengths.
    fn source(&self) {
        let mut random = Random(42);
        let mut bytes = Vec::new();
        while bytes.len() < SOURCE {
            let len = random.below(400_000) as usize;
            match random.below(4) {
                0 => bytes.extend((0..len).map(|_| random.below(256) as u8)),
                1 => bytes.extend(b"all work and no play\n".iter().cycle().take(len)),
                _ => bytes.resize(bytes.len() + len, 0),
            }
        }
        bytes.truncate(SOURCE);
        bytes[SOURCE - 100..].fill(7);
        std::fs::write(self.path("source"), bytes).unwrap();
    }

    /// Compares the raw view of `disk` with what the tools say is in it. Says how many oracles there were.
    fn compare(&self, what: &str) -> usize {
        self.img(&["convert", "-f", "qcow2", "-O", "raw", "disk", "expected"]);
        let expected = std::fs::read(self.path("expected")).unwrap();
        let image = std::fs::read(self.path("disk")).unwrap();
        let far = raw(&image, ObservedReader::new(image.clone())).unwrap();
        let near = raw_in_memory(&image).unwrap();
        assert_eq!(far.size(), expected.len() as u64, "{what}");
        block_on(async {
            for disk in [&far, &near] {
                for (at, part) in (0..).step_by(3 << 20).zip(expected.chunks(3 << 20)) {
                    let read = read_vec(disk, ByteRange::at(at, part.len() as u64)).await.unwrap();
                    assert!(read == part, "{what}: bytes at {at}");
                }
            }
            let (mut random, mut buf, mut ready) = (Random(1), Vec::new(), 0);
            let fresh = raw_in_memory(&image).unwrap();
            for turn in 0..1000 {
                let range = range(&mut random, far.size(), if turn % 2 == 0 { 5000 } else { 150_000 });
                let part = &expected[range.start as usize..range.end as usize];
                assert!(read_vec(&far, range).await.unwrap() == part, "{what}: {range}");
                buf.resize(part.len(), 0xee);
                if fresh.read_ready(range.start, &mut buf).unwrap() {
                    assert!(buf == part, "{what}: {range} at once");
                    ready += 1;
                } else {
                    // A large compressed cluster is at hand when somebody has waited for it.
                    fresh.read_at(range.start, &mut buf).await.unwrap();
                    assert!(buf == part, "{what}: {range} after all");
                }
            }
            assert!(ready > 300, "{what}: {ready} of 1000 reads of memory were answered at once");
        });
        self.compare_map(what, &far, &expected);
        1 + usize::from(self.compare_imago(what, &expected))
    }

    fn compare_map(&self, what: &str, disk: &Qcow2Raw, expected: &[u8]) {
        assert_eq!((disk.next_hole(0), disk.data_bytes()), (disk.size(), None), "{what}: unknown is data");
        block_on(disk.prepare_map()).unwrap();
        let output = self.img(&["map", "--output=json", "-f", "qcow2", "disk"]);
        let map: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let mut theirs: Vec<ByteRange> = Vec::new();
        for entry in map.iter().filter(|entry| entry["data"] == true) {
            let run = ByteRange::at(entry["start"].as_u64().unwrap(), entry["length"].as_u64().unwrap());
            match theirs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => theirs.push(run),
            }
        }
        let ours = data_runs(disk);
        assert_eq!(ours, theirs, "{what}");
        assert_eq!(disk.data_bytes(), Some(ours.iter().map(|run| run.len()).sum()), "{what}");
        let ends = ours.iter().map(|run| run.end).chain([0]);
        let mut starts: Vec<u64> = ends.collect();
        starts.sort_unstable();
        for start in starts {
            let end = disk.next_data(start).unwrap_or(disk.size());
            let hole = &expected[start as usize..end as usize];
            assert!(hole.iter().all(|byte| *byte == 0), "{what}: hole {start}..{end} is not zeros");
        }
    }

    /// A reader that other people wrote, where it can open the image.
    fn compare_imago(&self, what: &str, expected: &[u8]) -> bool {
        use imago::FormatDriverBuilder as _;
        let builder = imago::qcow2::Qcow2::<imago::file::File>::builder_path(self.path("disk"));
        let Ok(disk) = builder.open(imago::PermissiveImplicitOpenGate::default()) else { return false };
        let disk = imago::FormatAccess::new(disk);
        let mut read = vec![0xee; expected.len()];
        disk.read(&mut read[..], 0).unwrap();
        assert!(read == expected, "{what}: the oracles do not agree");
        true
    }
}

const SOURCE: usize = (5 << 20) + (1 << 17) + 512;

#[test]
fn every_cluster_size_version_and_compression_reads_as_qemu_reads_it() {
    let Some(qemu) = Qemu::new() else { return };
    qemu.source();
    let mut oracles = 0;
    for cluster in ["512", "4k", "64k", "2M"] {
        for options in [
            "compat=0.10",
            "compat=0.10,packed",
            "compat=1.1",
            "compat=1.1,packed",
            "compat=1.1,compression_type=zstd,packed",
            "compat=1.1,extended_l2=on",
            "compat=1.1,extended_l2=on,compression_type=zstd,packed",
        ] {
            if options.contains("extended") && matches!(cluster, "512" | "4k") {
                continue;
            }
            let what = format!("cluster_size={cluster},{}", options.trim_end_matches(",packed"));
            let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &what];
            args.extend(options.ends_with("packed").then_some("-c"));
            qemu.img(&[&args[..], &["source", "disk"]].concat());
            oracles += qemu.compare(&format!("{what}, {options}"));
        }
    }
    assert!(oracles > 30, "{oracles}: the second oracle opens what is neither zstd nor extended");
}

#[test]
fn rewritten_zeroed_and_discarded_clusters_read_as_in_qemu() {
    let Some(qemu) = Qemu::new() else { return };
    qemu.source();
    for options in [
        "compat=0.10,cluster_size=4k",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=64k",
        "compat=1.1,cluster_size=64k,preallocation=metadata",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,cluster_size=64k,extended_l2=on",
        "compat=1.1,cluster_size=16k,extended_l2=on,preallocation=metadata",
        "compat=1.1,cluster_size=64k,lazy_refcounts=on",
    ] {
        qemu.img(&["create", "-q", "-f", "qcow2", "-o", options, "disk", "10486272"]);
        qemu.compare(&format!("{options}, empty"));
        qemu.io(&[
            "write -P 1 0 200k",
            "write -P 2 1M 3000k",
            "write -P 3 8M 512",
            "write -P 4 10485760 512",
        ]);
        qemu.compare(&format!("{options}, written"));
        qemu.io(&[
            "write -z 64k 64k",
            "write -z 1100k 5k",
            "write -z 6M 1M",
            "discard 2M 256k",
            "discard 3000k 3k",
            "write -P 5 2100k 1k",
            "write -zu 3M 128k",
        ]);
        qemu.compare(&format!("{options}, changed"));
        qemu.img(&["snapshot", "-c", "first", "disk"]);
        qemu.io(&["write -P 6 0 100k", "write -z 1200k 100k", "write -P 7 9M 70k", "discard 1M 64k"]);
        qemu.compare(&format!("{options}, behind a snapshot"));
    }
}

#[test]
fn compressed_and_plain_clusters_stand_in_one_image() {
    let Some(qemu) = Qemu::new() else { return };
    qemu.source();
    for options in ["compression_type=zlib", "compression_type=zstd", "compression_type=zstd,extended_l2=on"]
    {
        qemu.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "source", "disk"]);
        qemu.io(&["write -P 1 70k 200k", "write -z 1M 1M", "discard 4M 256k", "write -c -P 9 4M 64k"]);
        qemu.compare(options);
    }
}

#[test]
fn an_image_that_was_not_closed_is_read() {
    let Some(qemu) = Qemu::new() else { return };
    qemu.img(&["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "disk", "1M"]);
    let mut image = std::fs::read(qemu.path("disk")).unwrap();
    image[79] |= 1;
    let disk = raw_in_memory(&image).unwrap();
    assert_eq!(block_on(read_all(&disk)).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn a_large_disk_with_little_data_costs_its_tables_and_its_data() {
    let Some(qemu) = Qemu::new() else { return };
    qemu.img(&["create", "-q", "-f", "qcow2", "disk", "1G"]);
    qemu.io(&["write -P 1 0 1M", "write -P 2 600M 100k", "write -P 3 1073676288 64k"]);
    let image = std::fs::read(qemu.path("disk")).unwrap();
    let file = ObservedReader::new(image.clone());
    let disk = raw(&image, file.clone()).unwrap();
    assert_eq!(file.cost(), (0, 0), "opening reads nothing");
    block_on(async {
        let mut buf = vec![1; 1 << 20];
        disk.read_at(0, &mut buf).await.unwrap();
        assert_eq!(buf, vec![1; 1 << 20]);
        assert_eq!(
            file.cost(),
            (3, 2 * 65536 + (1 << 20)),
            "a page of each table, and one read for all data"
        );
        disk.read_at(100 << 20, &mut buf).await.unwrap();
        assert_eq!((file.cost(), &buf), ((0, 0), &vec![0; 1 << 20]), "what nobody wrote costs nothing");
        buf.fill(1);
        assert!(disk.read_ready(200 << 20, &mut buf).unwrap() && buf == vec![0; 1 << 20]);
        assert!(!disk.read_ready(0, &mut buf).unwrap());
        for at in (1..1024).map(|megabyte| megabyte << 20) {
            disk.read_at(at, &mut buf).await.unwrap();
        }
        // 100 KiB are two clusters; the second L2 table is new.
        assert_eq!(file.cost().1, 3 * 65536 + 65536);
        disk.prepare_map().await.unwrap();
        assert_eq!((disk.data_bytes(), file.cost().1), (Some((1 << 20) + 3 * 65536), 16 + 2 * 65536));
    });
}

#[test]
fn many_readers_load_a_table_and_decompress_a_cluster_once() {
    let Some(qemu) = Qemu::new() else { return };
    qemu.source();
    let options = "cluster_size=2M,compression_type=zstd";
    qemu.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "source", "disk"]);
    let image = std::fs::read(qemu.path("disk")).unwrap();
    let file = ObservedReader::new(image.clone());
    let disk = raw(&image, file.clone()).unwrap();
    block_on(async {
        read_vec(&disk, ByteRange::at(0, 512)).await.unwrap();
        let (_, first) = file.cost();
        assert!(first < image.len() as u64);
        for at in (0..2 << 20).step_by(128 << 10) {
            read_vec(&disk, ByteRange::at(at, 128 << 10)).await.unwrap();
        }
        assert_eq!(file.cost(), (0, 0), "the cluster is kept");
        let other = Arc::new(raw(&image, file.clone()).unwrap());
        let readers = (0..16).map(|_| {
            let other = other.clone();
            tokio::spawn(async move { read_vec(&*other, ByteRange::at(2 << 20, 512)).await.unwrap() })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
        let pages = file.take().iter().filter(|read| read.len() == 65536).count();
        assert_eq!(pages, 2, "one page of each table, for all");
    });
}

#[test]
fn compressed_neighbours_are_one_read() {
    let (image, disk) = KINDS[2].make();
    let file = ObservedReader::new(image.clone());
    let view = raw(&image, file.clone()).unwrap();
    let cluster = KINDS[2].cluster();
    block_on(async {
        let range = ByteRange::at(4 * cluster as u64, 2 * cluster as u64);
        assert_eq!(read_vec(&view, range).await.unwrap(), disk[4 * cluster..6 * cluster]);
        assert_eq!(file.cost().0, 3, "two tables, and both clusters at once");
    });
}

#[test]
fn images_made_by_hand_read_as_they_were_made() {
    for kind in KINDS {
        let (image, disk) = kind.make();
        let view = raw_in_memory(&image).unwrap();
        assert!(block_on(read_all(&view)).unwrap() == disk, "{kind:?}");
        block_on(view.prepare_map()).unwrap();
        let cluster = kind.cluster() as u64;
        let part = if kind.extended { cluster / 4 } else { cluster };
        assert_eq!(view.data_bytes(), Some(3 * part + 2 * cluster), "{kind:?}");
        assert_eq!(view.next_data(2 * cluster), Some(4 * cluster));
        assert_eq!((view.next_data(7 * cluster), view.next_hole(u64::MAX)), (None, view.size()));
        let past = read_vec(&view, ByteRange::at(view.size(), 1));
        assert_eq!(block_on(past).unwrap_err().fault(), FaultClass::Usage);
    }
}

/// Asserts that the cluster is an error, and every other one what it was.
fn only_this_cluster_fails(kind: Kind, image: &[u8], disk: &[u8], guest: usize, word: &str) {
    let view = raw_in_memory(image).unwrap();
    let cluster = kind.cluster();
    block_on(async {
        for (at, part) in disk.chunks(cluster).enumerate() {
            let range = ByteRange::at((at * cluster) as u64, part.len() as u64);
            match read_vec(&view, range).await {
                Ok(bytes) => assert!(at != guest && bytes == part, "{kind:?}: cluster {at}, {word}"),
                Err(error) => {
                    let chain = error.chain();
                    assert!(at == guest && chain.contains(word), "{kind:?}: cluster {at}: {chain}");
                    assert_eq!(error.fault(), FaultClass::Malformed);
                    let mut buf = vec![0; part.len()];
                    assert!(view.read_ready(range.start, &mut buf).is_err());
                }
            }
        }
        view.prepare_map().await.unwrap();
        let at = (guest * cluster) as u64;
        assert_eq!(view.next_data(at), Some(at), "{kind:?}: what cannot be read is no hole");
    });
}

#[test]
fn an_entry_that_lies_is_an_error_of_its_cluster_only() {
    for kind in KINDS {
        let (image, disk) = kind.make();
        let (size, cluster) = (image.len() as u64, kind.cluster() as u64);
        let packed = |at: u64| 1 << 62 | 1 << (70 - kind.bits) | at;
        let mut lies = vec![
            (0, size.next_multiple_of(cluster), "past the end"),
            (1, 0x00ff_ffff_ffff_ffff & !(cluster - 1), "past the end"),
            (6, (1 << 56) | (3 * cluster), "reserved"),
            (6, (3 * cluster) | 2, "reserved"),
            (4, packed(size), "past the end"),
            (4, packed((1 << (70 - kind.bits)) - 1), "past the end"),
            (5, packed(cluster), "cannot be decompressed"),
        ];
        if cluster > 512 {
            lies.push((0, 3 * cluster + 512, "start of a cluster"));
        }
        if kind.version == 2 || kind.extended {
            lies.push((0, (3 * cluster) | 1, "reserved"));
        }
        for (guest, entry, word) in lies {
            let mut image = image.clone();
            kind.entry(&mut image, guest, entry);
            only_this_cluster_fails(kind, &image, &disk, guest, word);
        }
    }
    let kind = KINDS[3];
    let (image, disk) = kind.make();
    for (guest, bitmap) in [(0, 1u64 << 32 | 1), (2, 1)] {
        let mut image = image.clone();
        put(&mut image, L2 * kind.cluster() + guest * 16 + 8, bitmap, 8);
        only_this_cluster_fails(kind, &image, &disk, guest, "contradictory");
    }
}

#[test]
fn invalid_table_entry_fails_reads_of_its_clusters() {
    for kind in KINDS {
        let (image, _) = kind.make();
        let cluster = kind.cluster() as u64;
        let size = image.len() as u64;
        for (entry, word) in [
            (size / cluster * cluster, "passes the end"),
            (0x00ff_ffff_ffff_ffff & !(cluster - 1), "passes the end"),
            ((L2 as u64 * cluster) | 1, "reserved"),
            ((1 << 56) | (L2 as u64 * cluster), "reserved"),
        ] {
            let mut image = image.clone();
            put(&mut image, L1 * kind.cluster(), entry, 8);
            let view = raw_in_memory(&image).unwrap();
            let error = block_on(read_vec(&view, ByteRange::at(0, 1))).unwrap_err();
            assert!(error.chain().contains(word), "{kind:?}: {}", error.chain());
            assert_eq!(error.fault(), FaultClass::Malformed);
            block_on(view.prepare_map()).unwrap();
            assert_eq!(view.data_bytes(), Some(view.size()));
        }
    }
}

#[test]
fn a_file_may_end_inside_of_its_last_cluster() {
    let kind = KINDS[1];
    let (mut image, mut disk) = kind.make();
    let cluster = kind.cluster();
    let end = image.len().next_multiple_of(cluster);
    image.resize(end, 0);
    image.extend([9; 100]);
    kind.entry(&mut image, 8, end as u64);
    disk[8 * cluster..8 * cluster + 100].fill(9);
    assert!(block_on(read_all(&raw_in_memory(&image).unwrap())).unwrap() == disk);
}

/// Tables that all say the same are no work without end, and no memory without bound.
#[test]
fn a_table_that_is_named_a_million_times_is_looked_at_once() {
    let kind = KINDS[1];
    let (image, _) = kind.make();
    let cluster = kind.cluster();
    let tables = 1 << 20;
    let l1 = image.len().next_multiple_of(cluster);
    let mut evil = image.clone();
    evil.resize(l1 + tables * 8, 0);
    put(&mut evil, 24, (tables as u64) << 15, 8);
    put(&mut evil, 36, tables as u32, 4);
    put(&mut evil, 40, l1 as u64, 8);
    for table in 0..tables {
        put(&mut evil, l1 + table * 8, (L2 * cluster) as u64, 8);
    }
    let file = ObservedReader::new(evil.clone());
    let view = raw(&evil, file.clone()).unwrap();
    block_on(view.prepare_map()).unwrap();
    assert!(file.cost().1 <= 2 * evil.len() as u64);
    assert_eq!(view.next_hole((tables as u64) << 14), view.size(), "what was not looked at counts as data");
}

#[test]
fn refused_raw_disk_is_reported_with_its_reason() {
    let (image, _) = KINDS[1].make();
    let reason = |at: usize, value: u64, len: usize| {
        let mut image = image.clone();
        put(&mut image, at, value, len);
        raw_in_memory(&image).map(|_| ()).unwrap_err()
    };
    for (at, value, len, word) in [
        (0, 0, 4, "no signature"),
        (4, 4, 4, "version 4"),
        (20, 22, 4, "cluster_bits 22"),
        (24, 0, 8, "virtual size is 0"),
        (24, 1 << 63, 8, "2^63 - 1"),
        (32, 1, 4, "encrypted"),
        (36, u64::from(u32::MAX), 4, "is more than"),
        (40, 1 << 20, 8, "passes the end"),
        (72, 1 << 1, 8, "corrupt"),
        (72, 1 << 2, 8, "external"),
        (72, 1 << 3, 8, "contradicts"),
        (72, 1 << 5, 8, "0x20"),
        (104, 1, 1, "contradicts"),
    ] {
        let text = reason(at, value, len);
        assert!(text.contains(word), "{at}: {text}");
    }
    let mut unknown = image.clone();
    put(&mut unknown, 72, 1u64 << 3, 8);
    unknown[104] = 2;
    assert!(raw_in_memory(&unknown).map(|_| ()).unwrap_err().contains("type 2 is unknown"));
    let mut backed = image.clone();
    put(&mut backed, 8, 200u64, 8);
    put(&mut backed, 16, 3u32, 4);
    assert!(raw_in_memory(&backed).map(|_| ()).unwrap_err().contains("backing file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn wild_numbers_in_headers_and_tables_never_panic(
        kind in prop::sample::select(KINDS.to_vec()),
        header in prop::collection::vec((2usize..30, prop_oneof![any::<u32>(), 0u32..4096]), 0..2),
        entries in prop::collection::vec((0usize..24, entry()), 0..6),
        first in prop::option::of(entry()),
        cut in prop::option::of(0usize..4096),
    ) {
        let (mut image, _) = kind.make();
        for (at, value) in header {
            put(&mut image, at * 4, value, 4);
        }
        for (at, value) in entries {
            put(&mut image, L2 * kind.cluster() + at * 8, value, 8);
        }
        if let Some(value) = first {
            put(&mut image, L1 * kind.cluster(), value, 8);
        }
        if let Some(cut) = cut {
            image.truncate(image.len() - cut.min(image.len()));
        }
        block_on(survives(&image));
    }
}

/// A number that could stand in a table: anything, or a place in the file with some flags.
fn entry() -> impl Strategy<Value = u64> {
    let near = (0u64..80, 0u32..4, 0u64..2, 0u64..1024);
    prop_oneof![
        any::<u64>(),
        near.prop_map(|(sector, flags, zero, more)| {
            u64::from(flags) << 62 | sector << 9 | zero | (more * u64::from(flags & 1)) << 56
        }),
    ]
}

#[test]
fn every_single_bit_of_the_metadata_may_be_wrong() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for kind in [KINDS[0], KINDS[1]] {
        let (image, _) = kind.make();
        let tables = [0..112, 512..520, 1024..1024 + 11 * 8];
        for at in tables.into_iter().flatten() {
            for bit in 0..8 {
                let mut image = image.clone();
                image[at] ^= 1 << bit;
                runtime.block_on(survives(&image));
            }
        }
    }
}
