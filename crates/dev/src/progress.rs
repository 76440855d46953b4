//! Shows a person how a config travels: three bars on a terminal, plain lines elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal as _,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::witness::{Sighting, Tier};

/// The processes that must reach the version.
pub type Expected = BTreeSet<(Tier, String)>;

/// The event that `dev` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every process is up.
    Start,
    /// A version has arrived everywhere.
    Travel,
}

/// How the progress of a phase is shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Which phase.
    pub phase: Phase,
    /// As JSON for a script, instead of lines and bars for a person.
    pub json: bool,
}

/// Follows one version from submission to the last edge.
#[derive(Debug)]
pub struct Progress {
    shown: Shown,
    expected: Expected,
    version: u64,
    started: Duration,
    arrived: BTreeMap<(Tier, String), Duration>,
    bars: Option<Bars>,
}

#[derive(Debug)]
struct Bars {
    _all: MultiProgress,
    tiers: BTreeMap<Tier, ProgressBar>,
}

impl Progress {
    /// Begins at `started` (monotonic), waiting for `version` everywhere.
    #[must_use]
    pub fn new(expected: Expected, version: u64, started: Duration, shown: Shown) -> Self {
        let watched = std::io::stdout().is_terminal() && !shown.json;
        let bars = watched.then(|| Bars::new(&expected, shown.phase));
        Self { shown, expected, version, started, arrived: BTreeMap::new(), bars }
    }

    /// Records a sighting; returns whether it changed anything.
    pub fn saw(&mut self, sighting: &Sighting) -> bool {
        if sighting.version < self.version {
            return false;
        }
        let key = (sighting.tier, sighting.name.clone());
        if self.arrived.contains_key(&key) {
            return false;
        }
        let took = sighting.at.saturating_sub(self.started);
        self.arrived.insert(key, took);
        let ms = took.as_secs_f64() * 1e3;
        match &self.bars {
            Some(bars) => {
                let bar = &bars.tiers[&sighting.tier];
                bar.inc(1);
                bar.set_message(format!("{} after {ms:.0} ms", sighting.name));
            }
            None if self.shown.json => {
                let (tier, name) = (word(sighting.tier), &sighting.name);
                let line = serde_json::json!({
                    "tier": tier, "name": name, "version": sighting.version, "ms": ms,
                });
                println!("{line}");
            }
            None => {
                let (tier, name) = (word(sighting.tier), &sighting.name);
                let did = match self.shown.phase {
                    Phase::Start => "is up".to_owned(),
                    Phase::Travel => {
                        format!("{} version {}", verb(sighting.tier), sighting.version)
                    }
                };
                println!("{tier} {name} {did} after {ms:.0} ms");
            }
        }
        true
    }

    /// The phase that this shows.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shown.phase
    }

    /// Whether every process of every tier has arrived.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.expected.iter().all(|process| self.arrived.contains_key(process))
    }

    fn count(&self, tier: Tier) -> usize {
        self.arrived.keys().filter(|(t, _)| *t == tier).count()
    }

    /// The names of the processes that are missing.
    #[must_use]
    pub fn missing(&self) -> String {
        let missing = self.expected.iter().filter(|process| !self.arrived.contains_key(*process));
        let missing = missing.map(|(tier, name)| format!("{} {name}", word(*tier)));
        missing.collect::<Vec<_>>().join(", ")
    }

    /// First and last arrival of each tier, as lines for people.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let line = |tier: &Tier| {
            let times = self.arrived.iter().filter(|((t, _), _)| t == tier).map(|(_, d)| *d);
            let ms = |d: Option<Duration>| d.unwrap_or_default().as_secs_f64() * 1e3;
            let (first, last) = (ms(times.clone().min()), ms(times.max()));
            let (count, total) = (self.count(*tier), of(&self.expected, *tier));
            format!(
                "{count} of {total} {}s {} it, the first after {first:.0} ms, the last after \
                 {last:.0} ms",
                word(*tier),
                verb(*tier)
            )
        };
        Tier::ALL.iter().map(line).collect()
    }

    /// Leaves the bars as they are and gives the terminal back.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.tiers.values().for_each(ProgressBar::abandon);
            // The cursor is behind the last bar.
            println!();
        }
    }
}

impl Tier {
    const ALL: [Self; 3] = [Self::Validator, Self::Member, Self::Edge];
}

fn word(tier: Tier) -> &'static str {
    match tier {
        Tier::Validator => "validator",
        Tier::Member => "member",
        Tier::Edge => "edge",
    }
}

fn verb(tier: Tier) -> &'static str {
    match tier {
        Tier::Validator => "decided",
        Tier::Member => "adopted",
        Tier::Edge => "activated",
    }
}

fn of(expected: &Expected, tier: Tier) -> usize {
    expected.iter().filter(|(t, _)| *t == tier).count()
}

impl Bars {
    fn new(expected: &Expected, phase: Phase) -> Self {
        let all = MultiProgress::new();
        let style =
            ProgressStyle::with_template("{prefix:>20} {bar:32.green/dim} {pos}/{len} {msg}")
                .expect("the template is a constant");
        let bar = |tier: &Tier| {
            let bar = all.add(ProgressBar::new(of(expected, *tier) as u64));
            bar.set_style(style.clone());
            bar.set_prefix(match (phase, tier) {
                (Phase::Start, Tier::Validator) => "validators up",
                (Phase::Start, Tier::Member) => "members up",
                (Phase::Start, Tier::Edge) => "edges up",
                (Phase::Travel, Tier::Validator) => "validators decide",
                (Phase::Travel, Tier::Member) => "regions adopt",
                (Phase::Travel, Tier::Edge) => "edges activate",
            });
            bar.tick();
            (*tier, bar)
        };
        let tiers = Tier::ALL.iter().map(bar).collect();
        Self { _all: all, tiers }
    }
}
