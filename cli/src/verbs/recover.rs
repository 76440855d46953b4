//! `satrap recover`: brings a ring back whose majority is gone for good.
//!
//! No survivor knows what the lost members acknowledged, so nothing here is automatic: `plan` compares
//! the survivors, `apply` makes the one that an operator chose into a ring, with a signed record, and
//! `status` shows that record.

use std::{
    collections::BTreeSet,
    fmt,
    net::{TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use satrap_identity::signer::Signer;
use satrap_operator::{
    Error,
    client::{Client, Connection},
    keys,
};
use satrap_region_server::Config;
use satrap_ring_raft::offline::{self, Decision, Survivor};
use satrap_status::{RecoveryView, gather};
use serde::Serialize;

use crate::{
    output::{Output, table},
    verbs::{block_on, snapshot::blame, status::Recovery},
};

/// How long to wait for an answer of a member that is listed as lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The subcommand.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Compare what survivors have on their disks; none of them may run
    Plan(Plan),
    /// Make one survivor a ring of its own, with all that its disk holds
    Apply(Apply),
    /// Show the recoveries that discarded writes of a ring
    Status(Status),
}

/// Arguments of `plan`.
#[derive(clap::Args, Debug)]
pub struct Plan {
    /// Configuration of a survivor (repeatable)
    #[arg(long = "config", value_name = "FILE", required = true)]
    configs: Vec<PathBuf>,
}

/// Arguments of `apply`.
#[derive(clap::Args, Debug)]
pub struct Apply {
    /// Configuration of the trusted survivor
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Its name: what its disk holds is the history from now on
    #[arg(long, value_name = "MEMBER")]
    trust: String,
    /// The members that are gone for good, separated by commas
    #[arg(long, value_name = "MEMBERS", value_delimiter = ',', required = true)]
    lost: Vec<String>,
    /// The cause, for later readers of the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Sign with this key (repeatable), as often as governance changes are approved
    #[arg(long = "operator-key", value_name = "FILE", required = true)]
    operator_keys: Vec<PathBuf>,
}

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct Status {
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
///
/// # Errors
///
/// If the data cannot be used, or the recovery is not needed, not explicit or not signed.
pub fn run(verb: &Verb, output: &Output) -> Result<(), Error> {
    match verb {
        Verb::Plan(args) => {
            let survivors =
                args.configs.iter().map(|path| survey(path)).collect::<Result<Vec<_>, _>>()?;
            output.show(&PlanView::of(survivors.into_iter().map(|(_, found)| found).collect()))
        }
        Verb::Apply(args) => apply(args, output),
        Verb::Status(args) => status(args, output),
    }
}

fn survey(path: &Path) -> Result<(Config, Survivor), Error> {
    let config = Config::load(path).map_err(Error::usage)?;
    let found = offline::survey(&config.ring_setup()).map_err(|error| {
        let Error { kind, rule, message } = blame(&error);
        Error { kind, rule, message: format!("member `{}`: {message}", config.name) }
    })?;
    Ok((config, found))
}

async fn signatures(signers: &[Arc<dyn Signer>], bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut signatures = Vec::new();
    for signer in signers {
        signatures.extend(keys::sign(&**signer, bytes).await?);
    }
    Ok(signatures)
}

fn apply(args: &Apply, output: &Output) -> Result<(), Error> {
    let signers = keys::read_signers(&args.operator_keys)?;
    let (config, survivor) = survey(&args.config)?;
    if config.name.as_str() != args.trust {
        return Err(Error::usage(format!(
            "{} is the configuration of `{}`, not of `{}`; apply on the machine of the member that \
             you trust",
            args.config.display(),
            config.name,
            args.trust
        )));
    }
    check_lost(&survivor, &args.lost)?;
    let others = survivor.voters.iter().map(|(name, _)| name.clone());
    let decision = Decision {
        lost: others.filter(|name| *name != survivor.member).collect(),
        reason: args.reason.clone(),
        epoch: offline::epoch_now().map_err(|e| blame(&e))?.max(survivor.epoch + 1),
    };
    // A record without signatures is refused, and the signer that gave none is the reason.
    let mut unsigned = None;
    let sign = |bytes: &[u8]| match block_on(signatures(&signers, bytes)) {
        Ok(signatures) => signatures,
        Err(error) => {
            unsigned = Some(error);
            Vec::new()
        }
    };
    let setup = config.ring_setup();
    let forced = offline::force(&setup, &decision, sign);
    let forced = forced.map_err(|e| unsigned.unwrap_or_else(|| blame(&e)))?;
    let signers = setup.state.signatories.signers(&forced.record).into_iter().collect();
    output.show(&Applied {
        member: survivor.member,
        epoch: forced.record.epoch,
        kept: forced.record.kept,
        at_risk_from: survivor.committed_revision + 1,
        revision: forced.rebuilt.revision,
        lost: forced.record.lost,
        signers,
        aside: forced.aside,
    })
}

/// Refuses the recovery of a ring that still has a majority.
fn check_lost(survivor: &Survivor, lost: &[String]) -> Result<(), Error> {
    let voters: BTreeSet<_> = survivor.voters.iter().map(|(name, _)| name.as_str()).collect();
    let lost: BTreeSet<_> = lost.iter().map(String::as_str).collect();
    if let Some(stranger) = lost.iter().find(|name| !voters.contains(**name)) {
        let voters: Vec<_> = voters.into_iter().collect();
        return Err(Error::usage(format!(
            "`{stranger}` does not vote in this ring; its voters are {}",
            voters.join(", ")
        )));
    }
    if lost.contains(survivor.member.as_str()) {
        let member = &survivor.member;
        return Err(Error::usage(format!("`{member}` cannot be both trusted and lost")));
    }
    let alive = voters.difference(&lost).count();
    if alive * 2 > voters.len() {
        return Err(Error::refused(format!(
            "{alive} of {} voters are not lost, which is a majority: start them, and use `satrap \
             member replace` for the others; nothing is lost then",
            voters.len()
        )));
    }
    for (name, url) in survivor.voters.iter().filter(|(name, _)| lost.contains(name.as_str())) {
        if answers(url) {
            return Err(Error::refused(format!(
                "`{name}` is listed as lost, but a process answers at {url}; stop it for good \
                 first, or two rings may take writes"
            )));
        }
    }
    Ok(())
}

fn answers(url: &str) -> bool {
    let target = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    let addresses = target.to_socket_addrs().into_iter().flatten();
    let mut tried = addresses.map(|address| TcpStream::connect_timeout(&address, ANSWER_WITHIN));
    tried.any(|connected| connected.is_ok())
}

fn status(args: &Status, output: &Output) -> Result<(), Error> {
    let client = Client::open(&args.connection)?;
    let realm = block_on(async { Ok(gather(&client).await) })?;
    if realm.regions.is_empty() {
        return Err(Error::unavailable(
            "no member of any region answers; `satrap status` shows why each does not",
        ));
    }
    let of = |region: satrap_status::RegionView| Cuts {
        region: region.name,
        recoveries: region.recoveries,
    };
    output.show(&CutsView { regions: realm.regions.into_iter().map(of).collect() })
}

/// The state of each survivor.
#[derive(Serialize)]
struct PlanView {
    survivors: Vec<Row>,
    voters: Vec<String>,
    quorum: usize,
    /// The survivor with the longest log: it has every write that any survivor acknowledged.
    furthest: String,
    needs_recovery: bool,
}

#[derive(Serialize)]
struct Row {
    member: String,
    instance: String,
    term: u64,
    voted_for: Option<String>,
    log: [u64; 2],
    last_term: u64,
    committed_index: u64,
    applied_index: u64,
    committed_revision: i64,
    last_revision: i64,
    /// Revisions in its log that it does not know to be committed, if any.
    uncertain: Option<[i64; 2]>,
    /// Revisions that no other survivor has, if any.
    only_here: Option<[i64; 2]>,
    committed_digest: String,
    last_digest: String,
    epoch: u32,
}

fn range(after: i64, last: i64) -> Option<[i64; 2]> {
    (last > after).then_some([after + 1, last])
}

impl PlanView {
    fn of(survivors: Vec<Survivor>) -> Self {
        let furthest = survivors.iter().max_by_key(|s| (s.last_term, s.last_index));
        let voters = furthest.map(|s| s.voters.iter().map(|(name, _)| name.clone()).collect());
        let voters: Vec<String> = voters.unwrap_or_default();
        let quorum = voters.len() / 2 + 1;
        let alive = survivors.iter().filter(|s| voters.contains(&s.member)).count();
        let furthest = furthest.map(|s| s.member.clone()).unwrap_or_default();
        let row = |s: &Survivor| {
            let others = survivors.iter().filter(|other| other.member != s.member);
            let known_elsewhere = others.map(|other| other.last_revision).max().unwrap_or(0);
            Row {
                member: s.member.clone(),
                instance: s.instance.clone(),
                term: s.term,
                voted_for: s.voted_for.clone(),
                log: [s.first_index, s.last_index],
                last_term: s.last_term,
                committed_index: s.committed_index,
                applied_index: s.applied_index,
                committed_revision: s.committed_revision,
                last_revision: s.last_revision,
                uncertain: range(s.committed_revision, s.last_revision),
                only_here: range(known_elsewhere, s.last_revision),
                committed_digest: s.committed_digest.clone(),
                last_digest: s.last_digest.clone(),
                epoch: s.epoch,
            }
        };
        let rows = survivors.iter().map(row).collect();
        Self { survivors: rows, voters, quorum, furthest, needs_recovery: alive < quorum }
    }
}

impl fmt::Display for PlanView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading =
            ["SURVIVOR", "VOTED IN", "LOG", "LAST TERM", "COMMITTED", "REVISION", "STATE"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.survivors.iter().map(|s| {
            let [first, last] = s.log;
            vec![
                s.member.clone(),
                s.term.to_string(),
                format!("{first}..={last}"),
                s.last_term.to_string(),
                format!("{}, at least", s.committed_index),
                s.last_revision.to_string(),
                s.last_digest.chars().take(16).collect(),
            ]
        }));
        write!(f, "{}", table(&rows))?;
        for s in &self.survivors {
            if let Some([first, last]) = s.uncertain {
                let member = &s.member;
                writeln!(
                    f,
                    "  `{member}` does not know whether revisions {first} to {last} were \
                     acknowledged; trusting it keeps them"
                )?;
            }
            if let Some([first, last]) = s.only_here {
                writeln!(f, "  only `{}` has revisions {first} to {last}", s.member)?;
            }
        }
        let Self { voters, quorum, furthest, .. } = self;
        let all = voters.join(", ");
        if !self.needs_recovery {
            return writeln!(
                f,
                "{quorum} of {all} are a majority, and as many are here: start them, and replace the \
                 others with `satrap member replace`; nothing is lost then"
            );
        }
        let gone: Vec<_> = voters
            .iter()
            .filter(|name| !self.survivors.iter().any(|s| s.member == **name))
            .map(String::as_str)
            .collect();
        let gone = gone.join(",");
        writeln!(
            f,
            "  the others ({gone}) may have acknowledged writes behind the end of every log here; \
             those are lost, and no survivor knows how many\n\
             `{furthest}` has everything that a survivor acknowledged. If {gone} are gone for good:\n  \
             satrap recover apply --config ... --trust {furthest} --lost {gone} --reason ... \
             --operator-key ..."
        )
    }
}

#[derive(Serialize)]
struct Applied {
    member: String,
    epoch: u32,
    kept: i64,
    at_risk_from: i64,
    revision: i64,
    lost: Vec<String>,
    signers: Vec<String>,
    aside: PathBuf,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, epoch, kept, revision, signers, aside, .. } = self;
        let lost = self.lost.join(", ");
        writeln!(
            f,
            "`{member}` is a ring of its own, in epoch {epoch}, signed by {}",
            signers.join(", ")
        )?;
        writeln!(f, "  kept up to revision {kept}; the history goes on above {revision}")?;
        writeln!(f, "  what {lost} acknowledged behind that is lost")?;
        writeln!(f, "  the old directory is {}", aside.display())?;
        writeln!(
            f,
            "next: start `{member}`; then, for each of {lost}: empty its data directory, `satrap \
             member add NAME --peer-url URL`, start it"
        )
    }
}

#[derive(Serialize)]
struct Cuts {
    region: String,
    recoveries: Vec<RecoveryView>,
}

#[derive(Serialize)]
struct CutsView {
    regions: Vec<Cuts>,
}

impl fmt::Display for CutsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Cuts { region, recoveries } in &self.regions {
            match recoveries.as_slice() {
                [] => writeln!(f, "{region}: no recovery discarded a write")?,
                cuts => {
                    cuts.iter().try_for_each(|cut| writeln!(f, "{region}: {}", Recovery(cut)))?
                }
            }
        }
        Ok(())
    }
}
