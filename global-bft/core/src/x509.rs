//! The contents of a bundle of trust roots (rule V9).
//!
//! Edges hand these values to TLS stacks. A value no parser accepts makes some stacks refuse the
//! whole file, and a private key published by mistake would be signed by the quorum and copied to
//! every edge. Parsers of PEM differ in what they skip, so nothing may be left to skip: a value is
//! blocks of certificates in the strict form of RFC 7468 and blank lines, each certificate parses to
//! its last byte, and each may issue.

use x509_parser::{certificate::X509Certificate, pem::Pem, prelude::X509Version};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
/// RFC 7468 wraps at exactly this many characters.
const LINE_CHARS: usize = 64;

/// Checks one value.
///
/// # Errors
///
/// The fault, in words.
pub fn check_trust_root(value: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(value).map_err(|_| "it is not text".to_owned())?;
    check_lines(text)?;
    let mut certificates = 0_usize;
    for pem in Pem::iter_from_buffer(value) {
        let pem = pem.map_err(|e| format!("not PEM: {e}"))?;
        certificates += 1;
        let (rest, certificate) = x509_parser::parse_x509_certificate(&pem.contents)
            .map_err(|e| format!("certificate {certificates} does not parse: {e}"))?;
        if !rest.is_empty() {
            return Err(format!("bytes follow certificate {certificates}"));
        }
        if !may_issue(&certificate) {
            return Err(format!("certificate {certificates} has no CA:TRUE, it cannot issue"));
        }
    }
    // Both readers must have seen the same blocks.
    match text.lines().filter(|line| *line == BEGIN).count() {
        0 => Err("no PEM certificate in it".into()),
        blocks if blocks == certificates => Ok(()),
        blocks => Err(format!("{blocks} PEM blocks, but {certificates} certificates")),
    }
}

/// Refuses every line but those of certificates in strict form, and blank ones.
fn check_lines(text: &str) -> Result<(), String> {
    let mut body: Option<Body> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let refuse = |why: &str| Err(format!("line {number}: {why}"));
        match &mut body {
            None if line.is_empty() => {}
            None if line == BEGIN => body = Some(Body::default()),
            None => return refuse("expected a PEM block of a CERTIFICATE, and nothing beside it"),
            Some(lines) if line == END => {
                if !lines.is_whole() {
                    return refuse("the block ends before its base64 does");
                }
                body = None;
            }
            Some(lines) => {
                if !lines.take(line) {
                    return refuse(
                        "expected base64 of 64 characters, the last line may be shorter",
                    );
                }
            }
        }
    }
    if body.is_some() { Err("the last PEM block has no end".into()) } else { Ok(()) }
}

/// The lines of one block.
#[derive(Default)]
struct Body {
    lines: usize,
    ended: bool,
}

impl Body {
    /// Takes the next line; `false` if it cannot be in a block.
    fn take(&mut self, line: &str) -> bool {
        let digits = line.trim_end_matches('=');
        let padding = line.len() - digits.len();
        let is_base64 =
            digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'));
        let fits =
            (1..=LINE_CHARS).contains(&line.len()) && line.len().is_multiple_of(4) && padding <= 2;
        let follows = !self.ended;
        self.lines += 1;
        self.ended = line.len() < LINE_CHARS || padding > 0;
        is_base64 && fits && follows
    }

    fn is_whole(&self) -> bool {
        self.lines > 0
    }
}

/// Whether a certificate may issue others. Version 1 has no extensions and cannot say so; a root
/// of that version is issued by itself, and whatever has extensions is not of that version.
fn may_issue(certificate: &X509Certificate<'_>) -> bool {
    if certificate.version() == X509Version::V1 {
        return certificate.extensions().is_empty()
            && certificate.subject().as_raw() == certificate.issuer().as_raw();
    }
    certificate.basic_constraints().is_ok_and(|c| c.is_some_and(|c| c.value.ca))
}
