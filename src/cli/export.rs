//! `ocifs export`: whole references as archives, layouts, or files.
//!
//! Output to a file or a directory appears whole or not at all, also when the command is interrupted. Output to a
//! pipe ends with its reader.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::export::{self, ExportError, ReplacementFile};
use crate::image::{ArchiveForm, ArchiveOptions, ArchiveSelection, ArchiveView};
use crate::oci::is_tar_name;
use crate::source::ImageLocation;
use crate::view::{MountNamespace, ViewScope};

use super::again::{OutputBuffer, OutputGuard, once_more};
use super::args::{ImageArgs, PlatformChoice};
use super::exit::CliError;
use super::output::{self, printed, stdout, stdout_fd};
use super::preserve::{PreserveArgs, left_out};
use super::progress::{ProgressArgs, ProgressLine};
use super::setup::{self, StopSignals, open, start};

/// The arguments of `export`.
#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// More references for the same archive or layout. Shared blobs are written once.
    #[arg(value_name = "REF")]
    more: Vec<ImageLocation>,

    /// Write to this file or directory; - is standard output.
    #[arg(short, long, value_name = "DEST", default_value = "-")]
    output: PathBuf,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "oci-archive")]
    format: ExportFormat,

    /// Take every platform of an index, as --platform=all.
    #[arg(long)]
    all_platforms: bool,

    /// Leave out manifest.json, which Docker needs to load an OCI archive.
    #[arg(long)]
    skip_manifest_json: bool,

    /// Leave out nondistributable layers.
    #[arg(long)]
    skip_non_distributable: bool,

    /// Leave out manifests that are missing, or of which a blob is missing; with --offline, missing from the cache.
    #[arg(long)]
    skip_missing: bool,

    /// Name the image in the output: a reference with a tag.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Choose the view that --format=tar and --format=dir write: merged, files, disk, layers or blobs. Default: merged.
    #[arg(long, value_name = "VIEW")]
    view: Option<String>,

    #[command(flatten)]
    preserve: PreserveArgs,

    #[command(flatten)]
    progress: ProgressArgs,
}

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// A tar of an OCI image layout, with Docker's manifest.json.
    OciArchive,
    /// An OCI image layout, as a directory; more images are added to an existing one.
    OciLayout,
    /// A tar in the form of docker save before OCI layouts.
    DockerArchive,
    /// A tar of the files of one view.
    Tar,
    /// The files of one view, in a new or empty directory.
    Dir,
    /// A disk of the merged tree: an EROFS image, which the kernel and virtual machines mount.
    Erofs,
}

/// Runs the command.
pub(super) fn export(args: &ExportArgs) -> Result<(), CliError> {
    let is_stream = args.output.as_os_str() == "-";
    match args.format {
        ExportFormat::OciLayout | ExportFormat::Dir if is_stream => {
            return Err(CliError::usage("a directory has to be named: --output DIR"));
        }
        ExportFormat::Tar | ExportFormat::Dir | ExportFormat::Erofs if !args.more.is_empty() => {
            return Err(CliError::usage("--format=tar, --format=dir and --format=erofs write one reference"));
        }
        ExportFormat::OciArchive | ExportFormat::DockerArchive | ExportFormat::Tar | ExportFormat::Erofs
            if is_stream && std::io::stdout().is_terminal() =>
        {
            return Err(CliError::usage(
                "refusing to write an archive or a disk to a terminal: name a file with --output FILE",
            ));
        }
        _ => {}
    }
    if args.name.is_some() && !args.more.is_empty() {
        return Err(CliError::usage("--name is for one reference"));
    }
    refuse_meaningless_options(args)?;
    let runtime = start(&args.image)?;
    let door = OutputGuard::default();
    runtime.block_on(async {
        let written = once_more(&door, async || write(args, &door).await);
        if is_stream {
            // A stream leaves no partial file behind, so signals keep their default action, which also ends a blocked
            // write.
            return written.await;
        }
        let mut stop = StopSignals::new()?;
        tokio::select! {
            written = written => written,
            () = stop.wait() => Err(CliError::interrupted()),
        }
    })
}

/// Rejects options without effect on the format, and a second reference that was meant as a file.
fn refuse_meaningless_options(args: &ExportArgs) -> Result<(), CliError> {
    let is_tree = matches!(args.format, ExportFormat::Tar | ExportFormat::Dir | ExportFormat::Erofs);
    if args.view.is_some() && !matches!(args.format, ExportFormat::Tar | ExportFormat::Dir) {
        return Err(CliError::usage(
            "--view is for --format=tar and --format=dir; archives and layouts are whole, a disk is the merged tree",
        ));
    }
    if !is_tree {
        setup::refuse_selection(
            &args.image,
            "an archive or a layout is whole; --format=tar, --format=dir and --format=erofs take them",
        )?;
    }
    if args.preserve.is_given() && args.format != ExportFormat::Dir {
        return Err(CliError::usage(
            "--preserve is for --format=dir; archives hold everything that is recorded",
        ));
    }
    let of_archives = [
        ("--all-platforms", args.all_platforms),
        ("--skip-manifest-json", args.skip_manifest_json),
        ("--skip-non-distributable", args.skip_non_distributable),
        ("--skip-missing", args.skip_missing),
        ("--name", args.name.is_some()),
    ];
    if let Some((option, _)) = of_archives.iter().find(|(_, given)| is_tree && *given) {
        return Err(CliError::usage(format!(
            "{option} is for archives and layouts, not for --format=tar, --format=dir and --format=erofs"
        )));
    }
    let names = args.more.iter().filter_map(|location| location.reference()?.short_name());
    for name in names {
        if is_tar_name(name) || Path::new(name).exists() {
            return Err(CliError::usage(format!(
                "{name} would be a second reference; to write there: -o {name}"
            )));
        }
    }
    Ok(())
}

async fn write(args: &ExportArgs, door: &OutputGuard) -> Result<(), CliError> {
    let form = match args.format {
        ExportFormat::Tar | ExportFormat::Dir => return write_tree(args, door).await,
        ExportFormat::Erofs => return write_disk(args, door).await,
        ExportFormat::DockerArchive => ArchiveForm::Docker,
        ExportFormat::OciArchive if !args.skip_manifest_json => ArchiveForm::Oci,
        ExportFormat::OciArchive | ExportFormat::OciLayout => ArchiveForm::OciAlone,
    };
    let options = archive_options(args)?;
    let selections = select(&args.image, &args.more, &options).await?;
    if !args.progress.quiet {
        report_left_out(&selections);
    }
    let archive = ArchiveView::of(&selections, form)?;
    let progress = ProgressLine::start(&args.progress, Some(archive.size()));
    let advance = |bytes| progress.advance(bytes);
    if args.format == ExportFormat::OciLayout {
        export::write_layout(&archive, &args.output, &advance).await?;
        progress.finish(&args.output.display().to_string());
        let mut out = stdout();
        let written = selections.iter().try_for_each(|selection| writeln!(out, "{}", selection.pinned()));
        return printed(written.and_then(|()| out.flush()));
    }
    match ExportOutput::open(&args.output, door)? {
        ExportOutput::Stream(mut out) => export::write_archive(&archive, &mut out, &advance).await?,
        ExportOutput::File(file) => {
            let mut out = BufWriter::with_capacity(BUFFER, file.file());
            export::write_archive(&archive, &mut out, &advance).await?;
            drop(out);
            file.commit()?;
        }
    }
    progress.finish(&args.output.display().to_string());
    Ok(())
}

async fn write_tree(args: &ExportArgs, door: &OutputGuard) -> Result<(), CliError> {
    let family = Arc::new(open(&args.image).await?);
    let scope = ViewScope {
        view: Some(args.view.clone().unwrap_or_else(|| "merged".into())),
        ..ViewScope::default()
    };
    let namespace = MountNamespace::open(family, &scope).await?;
    let progress = ProgressLine::start(&args.progress, None);
    let advance = |bytes| progress.advance(bytes);
    if args.format == ExportFormat::Dir {
        let report =
            export::write_tree(&namespace, b"", &args.output, args.preserve.chosen(), &advance).await?;
        progress.finish(&format!("{}: {} names", args.output.display(), report.names));
        if !args.progress.quiet {
            report_incomplete(&report);
            output::warn(&namespace.family().warnings());
        }
        return Ok(());
    }
    match ExportOutput::open(&args.output, door)? {
        ExportOutput::Stream(mut out) => export::write_tree_tar(&namespace, b"", &mut out, &advance).await?,
        ExportOutput::File(file) => {
            let mut out = BufWriter::with_capacity(BUFFER, file.file());
            export::write_tree_tar(&namespace, b"", &mut out, &advance).await?;
            drop(out);
            file.commit()?;
        }
    }
    progress.finish(&args.output.display().to_string());
    if !args.progress.quiet {
        output::warn(&namespace.family().warnings());
    }
    Ok(())
}

/// Writes the disk of the merged tree. In a file its holes are holes.
async fn write_disk(args: &ExportArgs, door: &OutputGuard) -> Result<(), CliError> {
    const DISK: &[u8] = b"export/rootfs.erofs";
    let family = Arc::new(open(&args.image).await?);
    let namespace = MountNamespace::open(family, &ViewScope::default()).await?;
    let progress = ProgressLine::start(&args.progress, None);
    let advance = |bytes| progress.advance(bytes);
    if args.output.as_os_str() == "-" {
        let mut out = door.outgoing(File::from(stdout_fd()?));
        return Ok(export::cat(&namespace, DISK, &mut out).await?);
    }
    Ok(export::copy_file(&namespace, DISK, &args.output, &advance).await?)
}

/// Size of the write buffer in bytes.
const BUFFER: usize = 1024 * 1024;

/// The destination of an archive.
enum ExportOutput<'a> {
    Stream(OutputBuffer<'a>),
    File(ReplacementFile),
}

impl<'a> ExportOutput<'a> {
    fn open(path: &Path, door: &'a OutputGuard) -> Result<Self, CliError> {
        if path.as_os_str() == "-" {
            // Not line buffered, and not locked: the writer moves between threads.
            return Ok(ExportOutput::Stream(door.outgoing(File::from(stdout_fd()?))));
        }
        Ok(ExportOutput::File(
            ReplacementFile::begin(path).map_err(|error: ExportError| CliError::from(error))?,
        ))
    }
}

fn archive_options(args: &ExportArgs) -> Result<ArchiveOptions, CliError> {
    let mut options = platforms(&args.image, args.all_platforms);
    if args.format == ExportFormat::DockerArchive
        && (is_all(&args.image, args.all_platforms) || args.image.platform.len() > 1)
    {
        return Err(CliError::usage(
            "a Docker archive holds one platform of an image; --format=oci-archive holds several",
        ));
    }
    if args.skip_non_distributable {
        options = options.skip_nondistributable();
    }
    if args.skip_missing {
        options = options.skip_missing();
    }
    if args.image.referrers {
        options = options.with_referrers();
    }
    if let Some(name) = &args.name {
        options = options.named(name);
    }
    Ok(options)
}

fn is_all(args: &ImageArgs, all: bool) -> bool {
    all || args.platform.contains(&PlatformChoice::All)
}

/// The platforms that the arguments select.
pub(super) fn platforms(args: &ImageArgs, all: bool) -> ArchiveOptions {
    let mut options = ArchiveOptions::new();
    if is_all(args, all) {
        options = options.all_platforms();
    }
    for platform in &args.platform {
        if let PlatformChoice::One(platform) = platform {
            options = options.platform(platform.clone());
        }
    }
    options
}

/// The selection of each reference, in the order of the references.
pub(super) async fn select(
    args: &ImageArgs,
    more: &[ImageLocation],
    options: &ArchiveOptions,
) -> Result<Vec<ArchiveSelection>, CliError> {
    let registry = setup::registry(args)?;
    let cache = setup::cache(args)?;
    let mut selections = Vec::new();
    for location in std::iter::once(&args.location).chain(more) {
        let opened = setup::options(args, location, &registry)?;
        selections.push(ArchiveSelection::open(&opened, &registry, cache.clone(), options).await?);
    }
    Ok(selections)
}

/// Reports content that was requested and left out.
pub(super) fn report_left_out(selections: &[ArchiveSelection]) {
    for left in selections.iter().flat_map(ArchiveSelection::left_out) {
        say(&format!("left out {}: {}", left.digest, left.reason));
    }
}

/// Reports differences of a written tree from the recorded one.
pub(super) fn report_incomplete(report: &export::DirReport) {
    if report.unowned {
        say("the files are yours: only root may give them to the owners that are recorded");
    }
    if let Some(line) = left_out(&report.withheld) {
        say(&line);
    }
    for (path, reason) in &report.listed {
        say(&format!("{path}: {reason}"));
    }
    let rest = report.incomplete.saturating_sub(report.listed.len() as u64);
    if rest > 0 {
        say(&format!("{rest} more names are missing or incomplete"));
    }
}

fn say(message: &str) {
    // Standard error may be closed.
    std::io::stderr().write_all(format!("ocifs: {}\n", crate::io::message(message)).as_bytes()).ok();
}
