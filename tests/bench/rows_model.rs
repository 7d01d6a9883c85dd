//! A model that is mapped into memory from a cold mount, beside a copy of it that is made first and mapped then.
//!
//! The package of its format reads it, as a program that loads the model does: every tensor once, in the order of the
//! file. A page fault asks for little, so the figure shows what the kernel and ocifs read ahead of it.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;
use crate::artifact::{FILES, Piece, push};
use crate::image::once;
use crate::lab::{Group, Lab};
use crate::measure::{need, run, settle, tool};
use crate::report::{Row, Samples, Target, Unit};

/// Tensors of 32 MiB each, 1 GiB together.
const TENSORS: u64 = 32;
const TENSOR: u64 = 32 << 20;

/// The packages that read it.
const PACKAGES: [&str; 2] = ["safetensors==0.8.0", "numpy>=1.26"];

/// Reads every tensor and prints a number that depends on each page of each.
const READ: &str = "
import sys, safetensors
total = 0
with safetensors.safe_open(sys.argv[1], framework='np') as model:
    for name in model.keys():
        total += int(model.get_tensor(name).reshape(-1)[::512].sum())
print(total)
";

struct Model {
    file: Piece,
    packages: PathBuf,
    reference: String,
    mapped: Samples,
    copied: Samples,
    copying: Samples,
    requests: Samples,
}

pub(crate) fn ready(lab: &Lab) -> Result<Box<dyn Group>> {
    need(&["python3", "cp"])?;
    let (file, packages) = model(&lab.data)?;
    let reference = push(&lab.registry, "model-1", &FILES, std::slice::from_ref(&file))?;
    let none = Samples::default;
    let (mapped, copied, copying, requests) = (none(), none(), none(), none());
    Ok(Box::new(Model { file, packages, reference, mapped, copied, copying, requests }))
}

/// The model, and where the packages are that read it.
fn model(data: &Path) -> Result<(Piece, PathBuf)> {
    let home = data.join("model-1");
    once(&home, |home| {
        run(tool("python3")
            .args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--root-user-action=ignore"])
            .arg("--target")
            .arg(home.join("packages"))
            .args(PACKAGES))?;
        write(&home.join("model.safetensors"))
    })?;
    Ok((Piece::of(home.join("model.safetensors"))?, home.join("packages")))
}

/// A safetensors file: the length of the header, the header as JSON, the tensors one behind the other.
fn write(path: &Path) -> Result<()> {
    let tensors = (0..TENSORS).map(|number| {
        let (start, end, values) = (number * TENSOR, (number + 1) * TENSOR, TENSOR / 8);
        format!(r#""layer.{number:02}":{{"dtype":"I64","shape":[{values}],"data_offsets":[{start},{end}]}}"#)
    });
    let mut header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..TENSORS * TENSOR / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Small, so that no sum overflows.
        file.write_all(&(state >> 20).to_le_bytes())?;
    }
    Ok(file.flush()?)
}

impl Model {
    fn read(&self, file: &Path) -> Result<Duration> {
        run(tool("python3").env("PYTHONPATH", &self.packages).args(["-c", READ]).arg(file))
    }

    /// A cold mount: its file, read by `work`.
    fn cold<T>(&self, lab: &Lab, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let cache = lab.scratch.fresh("cache")?;
        settle()?;
        let mounted = lab.mount(&self.reference, &cache, &[])?;
        let done = work(&mounted.join("files").join(&self.file.title))?;
        mounted.end()?;
        lab.scratch.gone("cache")?;
        Ok(done)
    }
}

impl Group for Model {
    fn run(&mut self, lab: &Lab) -> Result<()> {
        let copy = lab.scratch.gone("copy")?;
        let (copying, reading) = self.cold(lab, |file| {
            let copying = run(tool("cp").arg(file).arg(&copy))?;
            Ok((copying, self.read(&copy)?))
        })?;
        fs::remove_file(&copy)?;
        let start = lab.registry.now()?;
        let mapped = self.cold(lab, |file| self.read(file))?;
        self.requests.add(lab.registry.since(start)?.blob_requests as f64);
        self.mapped.add_time(mapped);
        self.copied.add_time(copying + reading);
        self.copying.add_time(copying);
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row::new("P13", "a 1 GiB model mapped into memory, cold", &self.mapped, Unit::Seconds)
                .against("`cp` from a cold mount, then mapped", &self.copied)
                .target(Target::Ratio(1.0 / 0.8)),
            Row::new("P13", "(that `cp` alone)", &self.copying, Unit::Seconds),
            Row::new("P13", "blob requests", &self.requests, Unit::Count),
        ]
    }
}
