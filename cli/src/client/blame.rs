//! Names the party at fault when there is no answer.

use satrap_certify::{Genesis, Timestamp};
use satrap_host::{
    clock,
    mtls::{self, Credentials},
    pki::Role,
};
use tonic::Status;

/// Refuses, in words, what every server would refuse without any.
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

/// Splits `V4: text` or `[C1] text`, the two forms in which servers name a rule.
pub(super) fn named_rule(message: &str) -> (Option<&str>, &str) {
    let split = match message.strip_prefix('[') {
        Some(rest) => rest.split_once("] "),
        None => message.split_once(": "),
    };
    let is_rule = |word: &str| {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_uppercase());
        word.len() - digits.len() == 1
            && (1..=2).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
    };
    match split {
        Some((rule, text)) if is_rule(rule) => (Some(rule), text),
        _ => (None, message),
    }
}

/// A server's words, or why there are none.
pub(crate) fn status_text(status: &Status) -> String {
    use std::error::Error as _;
    match (status.source(), status.message()) {
        (Some(cause), _) => mtls::causes(cause),
        (None, "") => format!("it answered {:?} and no reason", status.code()),
        (None, text) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_in_both_forms_and_invented_in_none() {
        assert_eq!(named_rule("V4: stale"), (Some("V4"), "stale"));
        assert_eq!(named_rule("[C10] late"), (Some("C10"), "late"));
        for plain in ["", "no rule", "error: V4", "VV4: x", "V: x", "V123: x", "[C1]x", "v4: x"] {
            assert_eq!(named_rule(plain), (None, plain));
        }
    }
}
