//! Samples, rows and the table.
//!
//! A row without samples says why there are none. A ratio is that of two medians of the same runs.

use std::fmt::Write as _;
use std::time::Duration;

use crate::Result;

/// The samples of one quantity, in seconds or bytes or whatever the row says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    pub(crate) fn of(value: f64) -> Self {
        Self(vec![value])
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle one, or nothing when there are none.
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// `median (least - most) unit`.
    fn shown(&self, unit: Unit, runs: usize) -> String {
        let Some(median) = self.median() else { return "-".into() };
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shown = unit.shown(median);
        let fewer = match self.0.len() {
            count if count < runs => format!("; {count} runs"),
            _ => String::new(),
        };
        if self.0.len() < 2 {
            shown
        } else {
            format!("{shown} ({} - {}{fewer})", unit.bare(least), unit.bare(most))
        }
    }
}

/// What samples count.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Samples are seconds.
    Seconds,
    /// Samples are bytes, shown in the network's unit.
    MegaBytes,
    /// Samples are bytes, shown in the memory's unit.
    MebiBytes,
    /// Samples are numbers of something.
    Count,
}

impl Unit {
    fn bare(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 0.1 => format!("{value:.4}"),
            Self::Seconds => format!("{value:.2}"),
            Self::MegaBytes => format!("{:.2}", value / 1e6),
            Self::MebiBytes => format!("{:.1}", value / (1 << 20) as f64),
            Self::Count => format!("{value:.0}"),
        }
    }

    fn shown(self, value: f64) -> String {
        let bare = self.bare(value);
        match self {
            Self::Seconds => format!("{bare} s"),
            Self::MegaBytes => format!("{bare} MB"),
            Self::MebiBytes => format!("{bare} MiB"),
            Self::Count => bare,
        }
    }
}

/// What a row must reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Nothing: the row explains another one.
    Nothing,
    /// So many times the figure beside it, at most.
    Ratio(f64),
    /// So much, at most.
    AtMost(f64),
}

/// What ours is held against.
#[derive(Clone)]
struct Against {
    name: String,
    figure: Samples,
    origin: Origin,
}

/// Where a figure beside ours comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The same runs on the same machine.
    SameRun,
    /// Somebody's publication: another machine, and another day.
    Published,
}

/// One line of the table.
#[derive(Clone)]
pub(crate) struct Row {
    number: &'static str,
    work: String,
    ours: Samples,
    unit: Unit,
    against: Option<Against>,
    target: Target,
    /// Why there is no figure.
    missing: Option<String>,
}

impl Row {
    /// A figure of ours. `number` is that of the target in `docs/performance.md`.
    pub(crate) fn new(number: &'static str, work: impl Into<String>, ours: &Samples, unit: Unit) -> Self {
        let (work, ours) = (work.into(), ours.clone());
        Self { number, work, ours, unit, against: None, target: Target::Nothing, missing: None }
    }

    /// A row that could not be measured.
    pub(crate) fn missing(number: &'static str, work: impl Into<String>, why: impl Into<String>) -> Self {
        let mut row = Self::new(number, work, &Samples::default(), Unit::Count);
        row.missing = Some(why.into());
        row
    }

    /// Beside that figure, in the same unit.
    pub(crate) fn against(self, name: impl Into<String>, figure: &Samples) -> Self {
        self.against_of(Origin::SameRun, name, figure)
    }

    /// Beside a figure of this origin. A ratio to a published one meets and misses nothing.
    pub(crate) fn against_of(mut self, origin: Origin, name: impl Into<String>, figure: &Samples) -> Self {
        self.against = Some(Against { name: name.into(), figure: figure.clone(), origin });
        self
    }

    fn is_published(&self) -> bool {
        self.against.as_ref().is_some_and(|against| against.origin == Origin::Published)
    }

    /// With something to reach.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.ours.median()? / self.against.as_ref()?.figure.median()?)
    }

    /// The target, and whether it is met.
    fn verdict(&self) -> (String, &'static str) {
        let mark = |value: Option<f64>, most: f64| match value {
            Some(value) if value <= most => "met",
            Some(_) => "MISSED",
            None => "-",
        };
        match self.target {
            Target::Nothing => ("".into(), ""),
            Target::Ratio(most) if self.is_published() => (format!("{most:.2} x"), "NOT A SAME-RUN RATIO"),
            Target::Ratio(most) => (format!("{most:.2} x"), mark(self.ratio(), most)),
            Target::AtMost(most) => (self.unit.shown(most), mark(self.ours.median(), most)),
        }
    }

    fn write(&self, table: &mut String, runs: usize) -> Result<()> {
        let Self { number, work, unit, .. } = self;
        if let Some(why) = &self.missing {
            let why = why.lines().next().unwrap_or_default().replace('|', "/");
            writeln!(table, "| {number} | {work} | not measured: {why} | | | | | |")?;
            return Ok(());
        }
        let (name, figure) = match &self.against {
            Some(against) => (against.name.as_str(), against.figure.shown(*unit, runs)),
            None => ("", String::new()),
        };
        let mut ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        if self.is_published() {
            ratio.push_str(" (two machines)");
        }
        let (target, mark) = self.verdict();
        let ours = self.ours.shown(*unit, runs);
        writeln!(table, "| {number} | {work} | {ours} | {name} | {figure} | {ratio} | {target} | {mark} |")?;
        Ok(())
    }
}

/// All rows in Markdown.
pub(crate) fn table(rows: &[Row], runs: usize) -> Result<String> {
    let mut table = String::from(
        "| # | work | ocifs | beside it | its figure | ratio | at most | |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        row.write(&mut table, runs)?;
    }
    Ok(table)
}
