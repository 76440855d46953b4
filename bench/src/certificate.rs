//! A certificate's size on the wire and the time to verify it, beside Tendermint's light block.

use std::{error::Error, time::Duration};

use satrap_certify::{
    BundleName, Clock, Interest, Linkage, Replica, StepRules, Trusted, light_block,
};
use satrap_merkle::codec::Canonical as _;
use satrap_runtime::clock;
use satrap_sim::SimRealm;
use tendermint_light_client_verifier::{
    ProdVerifier, Verdict, Verifier as _,
    options::Options,
    types::{TrustThreshold, TrustedBlockState, UntrustedBlockState},
};

use crate::stats::Samples;

/// Enough runs for a stable median.
const ROUNDS: usize = 2_000;

/// Prints the table.
///
/// # Errors
///
/// If a certificate does not verify.
pub fn run() -> Result<(), Box<dyn Error>> {
    println!("validators  certificate  head proof  light block (Tendermint)");
    for validators in [4, 7, 22] {
        sizes(validators)?;
    }
    println!();
    Samples::print_head();
    for validators in [4, 7, 22] {
        times(validators)?;
    }
    Ok(())
}

fn realm(validators: usize) -> Result<(SimRealm, Replica, Replica), Box<dyn Error>> {
    let mut realm = SimRealm::new("bench", validators);
    let bundle = BundleName::new("config/bench")?;
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let mut edge = Replica::genesis(&realm.genesis, Interest::Bundles(vec![bundle]));
    for value in ["one", "two"] {
        // Two more bundles, so that the head needs a proof.
        let changes = ["config/bench", "config/other", "config/third"]
            .map(|name| realm.publish(name, &[("key", value)]));
        let update = realm.decide(&changes)?;
        let advance = relay.verify(&update, realm.now)?;
        relay.advance(advance);
        if value == "one" {
            let update = relay.answer(&edge.position())?.ok_or("the edge is behind")?.update;
            let advance = edge.verify(&update, realm.now)?;
            edge.advance(advance);
        }
    }
    Ok((realm, relay, edge))
}

fn sizes(validators: usize) -> Result<(), Box<dyn Error>> {
    let (realm, relay, edge) = realm(validators)?;
    let update = relay.answer(&edge.position())?.ok_or("the edge is behind")?.update;
    let step = update.steps.last().ok_or("a step")?;
    let certificate = step.checkpoint.to_canonical().len() + step.commit.to_canonical().len();
    let proof = update.heads.as_ref().map_or(0, |heads| heads.to_canonical().len());
    let set = realm.ledger.validators();
    let block =
        light_block::light_block(realm.genesis.realm(), &step.checkpoint, &step.commit, set);
    println!("{validators:>10} {certificate:>10} B {proof:>9} B {:>13} B", block.len());
    Ok(())
}

fn times(validators: usize) -> Result<(), Box<dyn Error>> {
    let (realm, relay, edge) = realm(validators)?;
    let update = relay.answer(&edge.position())?.ok_or("the edge is behind")?.update;
    let step = update.steps.last().ok_or("a step")?;
    let trusted: &Trusted = edge.trusted();
    let (context, policy) = (realm.genesis.realm(), realm.genesis.policy);
    let set = realm.ledger.validators();

    // For comparison: Tendermint's own verifier on the same block.
    let (before, before_commit) = &realm.blocks[0];
    let old = light_block::signed_header(context, &before.checkpoint, before_commit, set);
    let new = light_block::signed_header(context, &step.checkpoint, &step.commit, set);
    let validators_of = set.to_tendermint(&step.checkpoint.proposer);
    let options = Options {
        trust_threshold: TrustThreshold::ONE_THIRD,
        trusting_period: policy.trusting_period,
        clock_drift: policy.clock_drift,
    };
    let trusted_block = || TrustedBlockState {
        chain_id: context.tendermint_chain_id(),
        header_time: old.header.time,
        height: old.header.height,
        next_validators: &validators_of,
        next_validators_hash: old.header.next_validators_hash,
    };
    let untrusted = || UntrustedBlockState {
        signed_header: &new,
        validators: &validators_of,
        next_validators: None,
    };
    let now = realm.now.to_tendermint();
    let rules = StepRules { clock: Clock::Now(realm.now), linkage: Linkage::Overlap };
    let (mut ours, mut whole, mut theirs) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        // Alternating, so that noise of the machine affects both alike.
        ours.push(timed(|| trusted.step(context, &policy, step, rules).is_ok())?);
        whole.push(timed(|| edge.verify(&update, realm.now).is_ok())?);
        theirs.push(timed(|| {
            let verifier = ProdVerifier::default();
            let verdict =
                verifier.verify_update_header(untrusted(), trusted_block(), &options, now);
            verdict == Verdict::Success
        })?);
    }
    ours.print(&format!("{validators} validators: certificate (satrap)"));
    whole.print(&format!("{validators} validators: whole update (satrap)"));
    theirs.print(&format!("{validators} validators: light block (tendermint-rs)"));
    Ok(())
}

fn timed(verify: impl Fn() -> bool) -> Result<Duration, Box<dyn Error>> {
    let started = clock::monotonic();
    let accepted = verify();
    let took = clock::monotonic().saturating_sub(started);
    if accepted { Ok(took) } else { Err("a valid certificate was refused".into()) }
}
