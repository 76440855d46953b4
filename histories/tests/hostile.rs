//! Every principal of a realm attacks it with all it has, while an honest operator publishes and
//! honest edges follow.
//!
//! Real processes over loopback and mutual TLS. One test for each principal: what it takes from
//! others must be bounded, in time and memory, whatever it sends. A quick run leaves all of it out.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod program;

use std::time::Duration;

use satrap_histories::{
    RunError,
    failover::percentile,
    hostile::{
        Attack, Attacker, Honest, Realm, Report, Under, attacks,
        realm::{credentials_of, credentials_of_operator},
    },
};
use satrap_operator::keys;
use satrap_runtime::{clock, runtime};
use tokio::time::{sleep, timeout};

use self::program::{PROGRAM, alone};

/// Publishes of each phase.
const PUBLISHES: usize = 100;
/// How much slower the honest may be: all processes and the attacker share the processors of one
/// machine, which are not what is defended here.
const SLOWDOWN_MAX: u32 = 3;
/// A phase that takes longer has been stopped by the attack.
const ATTACK_WITHIN: Duration = Duration::from_secs(60);
/// The delay that the scheduler of a busy machine adds to half of the publishes, and to the slowest.
const NOISE: [(usize, Duration); 2] =
    [(50, Duration::from_millis(50)), (99, Duration::from_millis(500))];
/// The most memory that any process may have had.
const RESIDENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Attacks that hold what others of the same name ask for come later in a list: a name competes with
/// itself too.
async fn run(
    principal: &'static str,
    attacks: &[Attack],
    attacker: impl Fn(&Realm) -> Attacker,
) -> Result<Report, RunError> {
    let mut realm = Realm::start(&PROGRAM)?;
    let mut honest = Honest::start(&realm).await?;
    let quiet = honest.publish_many(PUBLISHES, "quiet").await?;
    let (before, started) = (realm.costs(), clock::monotonic());
    let under = Under::attack(attacker(&realm), attacks)?;
    let attacked = timeout(ATTACK_WITHIN, async {
        while !under.all_began() {
            sleep(Duration::from_millis(10)).await;
        }
        honest.publish_many(PUBLISHES, "attacked").await
    });
    let attacked = attacked.await.unwrap_or_else(|_| {
        let (sent, caused) = (Report::sent(&under), Report::caused(&before, realm.costs()));
        panic!("{principal}: {PUBLISHES} publishes took {ATTACK_WITHIN:?}: {quiet:?} {sent:?} {caused:?}")
    })?;
    assert!(under.goes_on(), "the attacks of {principal} ended before the publishes did");
    let lasted = clock::monotonic() - started;
    let sent = Report::sent(&under);
    drop(under);
    let caused = Report::caused(&before, realm.costs());
    let (certified, published) = honest.certified().await?;
    assert_eq!(certified, published, "the history of the honest is theirs");
    let ended: Vec<_> = realm
        .processes
        .iter_mut()
        .filter_map(|p| (!p.is_running()).then(|| p.name.clone()))
        .collect();
    assert!(ended.is_empty(), "{ended:?} ended");
    Ok(Report { principal, quiet, attacked, lasted, sent, caused })
}

fn judge(principal: &'static str, attacks: &[Attack], attacker: impl Fn(&Realm) -> Attacker) {
    let Some(_alone) = alone() else { return };
    let runtime = runtime::current_thread().unwrap();
    let report = runtime.block_on(run(principal, attacks, attacker)).unwrap();
    println!("{report}");
    for (what, quiet, attacked) in [
        ("decided", &report.quiet.decided, &report.attacked.decided),
        ("active", &report.quiet.active, &report.attacked.active),
    ] {
        for (percent, noise) in NOISE {
            let (quiet, attacked) = (percentile(quiet, percent), percentile(attacked, percent));
            assert!(
                attacked <= quiet * SLOWDOWN_MAX + noise,
                "{what}: p{percent} {quiet:?} alone, {attacked:?} under attack\n{report}"
            );
        }
    }
    let resident = report.resident_bytes_max();
    assert!(resident <= RESIDENT_BYTES_MAX, "{resident} bytes were resident\n{report}");
}

fn servers(realm: &Realm) -> Vec<String> {
    realm.member_urls().into_iter().chain(realm.validator_urls()).collect()
}

#[test]
fn a_stranger_delays_others_within_their_bounds() {
    judge("stranger", &[attacks::IDLE_SOCKETS, attacks::HALF_HELLOS], |realm| Attacker {
        credentials: None,
        key: None,
        genesis: realm.genesis.clone(),
        urls: servers(realm),
        mesh_urls: realm.mesh_urls(),
    });
}

#[test]
fn an_edge_delays_others_within_their_bounds() {
    let all = [
        attacks::POSITIONS,
        attacks::CONNECTIONS,
        attacks::STREAMS,
        attacks::GARBAGE,
        attacks::UNFINISHED,
    ];
    judge("edge", &all, |realm| Attacker {
        credentials: Some(credentials_of(realm.other_edge()).unwrap()),
        key: None,
        genesis: realm.genesis.clone(),
        urls: realm.member_urls(),
        mesh_urls: Vec::new(),
    });
}

#[test]
fn a_member_delays_other_regions_within_their_bounds() {
    let all = [
        attacks::POSITIONS,
        attacks::CONNECTIONS,
        attacks::STREAMS,
        attacks::GARBAGE,
        attacks::UNFINISHED,
        attacks::REFUSED,
        attacks::READS,
        attacks::LIGHT_BLOCKS,
    ];
    judge("member of another region", &all, |realm| Attacker {
        credentials: Some(credentials_of(realm.other_member()).unwrap()),
        key: None,
        genesis: realm.genesis.clone(),
        urls: servers(realm),
        mesh_urls: Vec::new(),
    });
}

#[test]
fn an_operator_delays_others_within_their_bounds() {
    let all = [
        attacks::CONNECTIONS,
        attacks::STREAMS,
        attacks::GARBAGE,
        attacks::UNFINISHED,
        attacks::REFUSED,
        attacks::VALID,
        attacks::READS,
        attacks::LIGHT_BLOCKS,
    ];
    judge("operator", &all, |realm| {
        let files = &realm.files.operators[1];
        Attacker {
            credentials: Some(credentials_of_operator(files).unwrap()),
            key: Some(keys::read_signer(&files.operator_key).unwrap()),
            genesis: realm.genesis.clone(),
            urls: servers(realm),
            mesh_urls: Vec::new(),
        }
    });
}

#[test]
fn a_validator_delays_others_within_their_bounds() {
    let all = [
        attacks::MESH,
        attacks::POSITIONS,
        attacks::CONNECTIONS,
        attacks::STREAMS,
        attacks::GARBAGE,
        attacks::UNFINISHED,
        attacks::READS,
        attacks::LIGHT_BLOCKS,
    ];
    judge("validator", &all, |realm| Attacker {
        credentials: Some(credentials_of(&realm.files.validators[3]).unwrap()),
        key: None,
        genesis: realm.genesis.clone(),
        urls: realm.validator_urls()[..3].to_vec(),
        mesh_urls: realm.mesh_urls()[..3].to_vec(),
    });
}
