//! Errors of a connection: which party is at fault, and the text of a gRPC status.

use satrap_certify::{Genesis, Timestamp};
use satrap_identity::{mtls::Credentials, pki::Role};
use satrap_runtime::clock;

/// Refuses credentials that every server would refuse in the TLS handshake, without a reason.
pub(super) fn check_certificate(
    credentials: &Credentials,
    genesis: &Genesis,
) -> Result<(), String> {
    let identity = credentials.current();
    let (id, realm) = (&identity.id, genesis.realm().chain_id());
    if id.chain() != realm {
        let theirs = id.chain();
        return Err(format!(
            "the certificate is of realm `{theirs}`, the genesis of realm `{realm}`; name both of \
             one realm"
        ));
    }
    if matches!(id.role(), Role::Edge { .. }) {
        return Err(format!(
            "the certificate names {id}; servers answer operators, so name the certificate and key \
             of one"
        ));
    }
    let expired_ns = u64::try_from(identity.not_after_s).unwrap_or(0).saturating_mul(1_000_000_000);
    if expired_ns < clock::now() {
        return Err(format!(
            "the certificate expired at {}; have a new one issued for {id}",
            Timestamp(expired_ns)
        ));
    }
    Ok(())
}
