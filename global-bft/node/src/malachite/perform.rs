//! Performs the effects of the consensus core: timers, rounds and decisions; messages to log, sign,
//! verify and send; certificates to verify.

use arc_malachitebft_core_consensus::{
    ConsensusMsg, Effect, Input, LivenessMsg, Resumable as _, Resume, SignedConsensusMsg,
    VoteExtensionError,
};
use arc_malachitebft_core_types::{CertificateError, Timeout, TimeoutKind};
use arc_malachitebft_signing::VerifierExt as _;
use futures::FutureExt as _;

use super::{
    context::{Ctx, Height},
    effects::{EngineEffect, Fatal},
    frame::Frame,
    host::Host,
    signing::{RealmVerifier, bytes_of, stand_in_proposal, stand_in_vote},
    timing::TimerId,
};

impl Host {
    /// Performs one effect of the core and returns the value that resumes it.
    pub fn perform(&mut self, effect: Effect<Ctx>) -> Result<Resume<Ctx>, Fatal> {
        Ok(match effect {
            Effect::CancelAllTimeouts(r) => {
                self.height.deferred = None;
                self.step.effect(EngineEffect::CancelAll);
                r.resume_with(())
            }
            Effect::CancelTimeout(timeout, r) => {
                self.cancel(&timeout);
                r.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, r) => {
                self.schedule(&timeout);
                r.resume_with(())
            }
            Effect::StartRound(_, round, _, _, r) => {
                self.height.round = round.as_u32().expect("the core starts rounds from 0 up");
                self.height.wanted = None;
                self.journal.flush();
                r.resume_with(())
            }
            Effect::GetValue(_, round, _, r) => {
                // ENGINE-3: answered by `drive`, which does not run during the replay.
                self.height.wanted = round.as_u32();
                r.resume_with(())
            }
            // The proposal that follows carries the block.
            Effect::RestreamProposal(.., r) => r.resume_with(()),
            // `Finalize` follows at once, since no height has a target time.
            Effect::Decide(_, _, r) => r.resume_with(()),
            Effect::Finalize(certificate, _, evidence, r) => {
                self.finalize(&certificate, &evidence)?;
                r.resume_with(())
            }
            Effect::CertVerifiedSyncValue(response, proposer, r) => {
                self.sync_value_certified(&response, proposer)?;
                r.resume_with(())
            }
            Effect::CertRejectedSyncValue(_, _, error, r) => {
                tracing::warn!(
                    %error,
                    "the certificate of a block from value sync does not verify; asking another \
                     validator"
                );
                self.step.junk = true;
                if let Some(peer) = &self.step.source {
                    self.catchup.not_delivered(peer, self.step.now.monotonic);
                }
                r.resume_with(())
            }
            other => return self.perform_message(other),
        })
    }

    /// Effects that log, sign, verify or publish messages.
    fn perform_message(&mut self, effect: Effect<Ctx>) -> Result<Resume<Ctx>, Fatal> {
        Ok(match effect {
            Effect::WalAppend(height, input, r) => {
                self.append(height, &input);
                r.resume_with(())
            }
            // JOURNAL-1, JOURNAL-3: the signature comes later, as `EngineInput::Signed`.
            Effect::SignVote(vote, r) => {
                self.journal.request(ConsensusMsg::Vote(vote.clone()));
                r.resume_with(stand_in_vote(vote))
            }
            Effect::SignProposal(proposal, r) => {
                self.journal.request(ConsensusMsg::Proposal(proposal.clone()));
                r.resume_with(stand_in_proposal(proposal))
            }
            Effect::PublishConsensusMsg(message, r) => {
                self.publish_message(message);
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(LivenessMsg::Vote(vote), r)
            | Effect::RepublishVote(vote, r) => {
                self.publish_message(SignedConsensusMsg::Vote(vote));
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(LivenessMsg::PolkaCertificate(certificate), r) => {
                self.publish(Frame::Polka(certificate));
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(LivenessMsg::SkipRoundCertificate(certificate), r)
            | Effect::RepublishRoundCertificate(certificate, r) => {
                self.publish(Frame::Round(certificate));
                r.resume_with(())
            }
            Effect::VerifySignature(message, public, r) => {
                let bytes = bytes_of(&self.realm, &message.message);
                let valid = public.verifies(&bytes, &message.signature);
                self.step.junk |= !valid;
                r.resume_with(valid)
            }
            other => self.perform_certificate(other),
        })
    }

    /// Effects that verify certificates. The verifier never waits, so its futures are ready.
    fn perform_certificate(&mut self, effect: Effect<Ctx>) -> Resume<Ctx> {
        const READY: &str = "verification performs no IO, so it never suspends";
        let verified = |result: &Result<(), CertificateError<Ctx>>, junk: &mut bool| {
            *junk |= result.is_err();
        };
        let verifier = RealmVerifier(self.realm.clone());
        match effect {
            Effect::VerifyCommitCertificate(certificate, set, thresholds, r) => {
                let verify =
                    verifier.verify_commit_certificate(&Ctx, &certificate, &set, thresholds);
                r.resume_with(verify.now_or_never().expect(READY))
            }
            Effect::VerifyExtendedCommitCertificate(certificate, set, thresholds, policy, r) => {
                let verify = verifier.verify_extended_commit_certificate(
                    &Ctx,
                    &certificate,
                    &set,
                    thresholds,
                    policy,
                );
                r.resume_with(verify.now_or_never().expect(READY))
            }
            Effect::VerifyPolkaCertificate(certificate, set, thresholds, r) => {
                let verify =
                    verifier.verify_polka_certificate(&Ctx, &certificate, &set, thresholds);
                let result = verify.now_or_never().expect(READY);
                verified(&result, &mut self.step.junk);
                r.resume_with(result)
            }
            Effect::VerifyRoundCertificate(certificate, set, thresholds, r) => {
                let verify =
                    verifier.verify_round_certificate(&Ctx, &certificate, &set, thresholds);
                let result = verify.now_or_never().expect(READY);
                verified(&result, &mut self.step.junk);
                r.resume_with(result)
            }
            // Extensions are disabled at every height.
            Effect::ExtendVote(.., r) => r.resume_with(None),
            Effect::VerifyVoteExtension(.., r) => {
                r.resume_with(Err(VoteExtensionError::InvalidVoteExtension))
            }
            other => unreachable!("BUG: {other:?} is performed elsewhere"),
        }
    }

    fn append(&mut self, height: Height, input: &Input<Ctx>) {
        if height.0 != self.height.number {
            return;
        }
        // CANDIDATE-1: the core has verified each input that it logs.
        for proposal in self.height.candidates.count(input, &self.height.electorate) {
            self.hand_over(None, proposal);
        }
        self.journal.append(input);
    }

    fn schedule(&mut self, timeout: &Timeout) {
        let Some(timer) = TimerId::of(self.height.number, timeout) else { return };
        if timeout.kind == TimeoutKind::Propose && !self.has_work() {
            self.height.deferred = Some(timer);
        } else {
            self.step.effect(EngineEffect::Schedule(timer, self.timing.of(timer)));
        }
    }

    fn cancel(&mut self, timeout: &Timeout) {
        let Some(timer) = TimerId::of(self.height.number, timeout) else { return };
        if self.height.deferred == Some(timer) {
            self.height.deferred = None;
        }
        self.step.effect(EngineEffect::Cancel(timer));
    }
}
