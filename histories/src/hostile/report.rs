//! The cost of an attack to its attacker and to honest clients.

use std::{fmt, time::Duration};

use super::{attack::Under, honest::Times, realm::Cost};
use crate::failover::percentile;

/// One principal's attacks.
pub struct Report {
    /// The attacking principal.
    pub principal: &'static str,
    /// Honest times before.
    pub quiet: Times,
    /// Honest times meanwhile.
    pub attacked: Times,
    /// For how long the attacks ran.
    pub lasted: Duration,
    /// By attack: what was sent, its bytes, and how much of it was refused.
    pub sent: Vec<(&'static str, (u64, u64, u64))>,
    /// By process: processor time meanwhile, and the peak of its memory.
    pub caused: Vec<(String, Cost)>,
}

impl Report {
    /// The tallies of attacks that are over.
    #[must_use]
    pub fn sent(under: &Under) -> Vec<(&'static str, (u64, u64, u64))> {
        under.tallies.iter().map(|(name, tally)| (*name, tally.counts())).collect()
    }

    /// The cost of processes between two looks.
    #[must_use]
    pub fn caused(before: &[(String, Cost)], after: Vec<(String, Cost)>) -> Vec<(String, Cost)> {
        let since = |(name, cost): (String, Cost)| {
            let known = before.iter().find(|(other, _)| *other == name);
            let earlier = known.map_or(0, |(_, cost)| cost.cpu_ms);
            (name, Cost { cpu_ms: cost.cpu_ms.saturating_sub(earlier), ..cost })
        };
        after.into_iter().map(since).collect()
    }

    /// The most memory that one process took.
    #[must_use]
    pub fn resident_bytes_max(&self) -> u64 {
        self.caused.iter().map(|(_, cost)| cost.resident_bytes_max).max().unwrap_or(0)
    }
}

const MIB: u64 = 1024 * 1024;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { principal, lasted, .. } = self;
        writeln!(f, "{principal}, for {lasted:.1?}")?;
        for (attack, (sent, bytes, refused)) in &self.sent {
            let kib = bytes / 1024;
            writeln!(f, "  {attack:<22} {sent:>8} sent {kib:>8} KiB {refused:>8} refused")?;
        }
        for (process, cost) in &self.caused {
            let (cpu, mib) = (cost.cpu_ms, cost.resident_bytes_max / MIB);
            writeln!(f, "  {process:<22} {cpu:>8} ms of a processor {mib:>5} MiB at most")?;
        }
        for (what, quiet, attacked) in [
            ("decided", &self.quiet.decided, &self.attacked.decided),
            ("active on all edges", &self.quiet.active, &self.attacked.active),
        ] {
            let (q50, q99) = (percentile(quiet, 50), percentile(quiet, 99));
            let (a50, a99) = (percentile(attacked, 50), percentile(attacked, 99));
            writeln!(f, "  {what:<22} p50 {q50:.0?} and {a50:.0?}, p99 {q99:.0?} and {a99:.0?}")?;
        }
        Ok(())
    }
}
