//! Benchmark environment of each group of rows: folders, registry, main image, and the rights of this run.

use std::cell::{Ref, RefCell};
use std::env;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::image::Image;
use crate::measure::{drop_page_cache, need};
use crate::mounted::{Mounted, Options, Scratch, clear_leftovers};
use crate::peers::Unpacked;
use crate::registry::Registry;
use crate::report::Row;

/// Rows that are measured together.
pub(crate) trait Group {
    /// One run: ours and what stands beside it, one after the other.
    fn run(&mut self, lab: &Lab) -> Result<()>;

    /// More runs would take longer than they are worth.
    fn most_runs(&self) -> usize {
        usize::MAX
    }

    /// What the runs gave.
    fn rows(&self) -> Vec<Row>;
}

/// Everything that is there before the first run.
pub(crate) struct Lab {
    // Before the registry: on drop the mounts end while it still answers.
    pub(crate) scratch: Scratch,
    pub(crate) registry: Registry,
    /// The folder for what is made once.
    pub(crate) data: PathBuf,
    pub(crate) options: Options,
    pub(crate) image: Image,
    unpacked: RefCell<Unpacked>,
}

/// The name of the main image in the registry.
pub(crate) const GZIP: &str = "wheels-1-gzip";

impl Lab {
    pub(crate) fn new(data: &Path) -> Result<Self> {
        need(&["docker-registry", "skopeo", "curl", "fusermount3", "find", "tar"])?;
        clear_leftovers(data)?;
        let image = Image::debian(data)?;
        let registry = Registry::on_loopback(data)?;
        registry.push(&image, GZIP, &[])?;
        let scratch = Scratch::new(data)?;
        let (options, unpacked) = (Options::of_mount()?, RefCell::default());
        Ok(Self { scratch, registry, data: data.to_owned(), options, image, unpacked })
    }

    /// Fetches and unpacks the gzip image once more, until that has been measured often enough.
    pub(crate) fn unpack_again(&self) -> Result<()> {
        let mut unpacked = self.unpacked.borrow_mut();
        if unpacked.is_enough() { Ok(()) } else { unpacked.measure(self) }
    }

    /// The gzip image by the usual tools: what groups share, as it takes longer than everything else.
    pub(crate) fn unpacked(&self) -> Result<Ref<'_, Unpacked>> {
        if self.unpacked.borrow().is_empty() {
            self.unpack_again()?;
        }
        Ok(self.unpacked.borrow())
    }

    /// Mounts something of the loopback registry.
    pub(crate) fn mount(&self, reference: &str, cache: &Path, options: &[&str]) -> Result<Mounted> {
        Mounted::new(&self.scratch, reference, cache, options)
    }
}

/// Whether rows that need an empty page cache are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageCache {
    /// It is emptied, for everybody on this machine.
    Dropped,
    /// `OCIFS_BENCH_PAGE_CACHE=keep`, or this user may not empty it.
    Kept,
}

/// Why a row that needs an empty page cache is not measured.
pub(crate) const KEPT: &str = "the page cache is kept (OCIFS_BENCH_PAGE_CACHE=keep, or not root)";

impl PageCache {
    pub(crate) fn of_environment() -> Self {
        match env::var_os("OCIFS_BENCH_PAGE_CACHE") {
            Some(value) if value == "keep" => Self::Kept,
            _ if OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches").is_err() => Self::Kept,
            _ => Self::Dropped,
        }
    }

    /// Empties it, or says why a cold figure cannot be had.
    pub(crate) fn empty(self) -> Result<()> {
        match self {
            Self::Dropped => drop_page_cache(),
            Self::Kept => Err(KEPT.into()),
        }
    }
}
