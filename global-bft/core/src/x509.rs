//! What may stand in a bundle of trust roots (rules V9 and V10).
//!
//! Edges hand these values to TLS stacks. A value no parser accepts makes some stacks refuse the
//! whole file, and a private key published by mistake would be signed by the quorum and copied to
//! every edge; so a value is PEM, every block is a certificate, and every certificate may issue.

use x509_parser::{pem::Pem, prelude::X509Version};

/// Checks one value.
///
/// # Errors
///
/// What is wrong, in words.
pub fn check_trust_root(value: &[u8]) -> Result<(), String> {
    let mut certificates = 0_usize;
    for pem in Pem::iter_from_buffer(value) {
        let pem = pem.map_err(|e| format!("not PEM: {e}"))?;
        if pem.label != "CERTIFICATE" {
            return Err(format!("a PEM block is `{}`, expected `CERTIFICATE`", pem.label));
        }
        certificates += 1;
        let (rest, certificate) = x509_parser::parse_x509_certificate(&pem.contents)
            .map_err(|e| format!("certificate {certificates} does not parse: {e}"))?;
        if !rest.is_empty() {
            return Err(format!("bytes follow certificate {certificates}"));
        }
        // Version 1 has no extensions, so it cannot say that it may issue.
        let may_issue = certificate.version() == X509Version::V1
            || certificate.basic_constraints().is_ok_and(|c| c.is_some_and(|c| c.value.ca));
        if !may_issue {
            return Err(format!("certificate {certificates} has no CA:TRUE, it cannot issue"));
        }
    }
    if certificates == 0 {
        return Err("no PEM certificate in it".into());
    }
    Ok(())
}
