//! V9 and V10: the certificates that a bundle of trust roots may hold, and how it may change.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use satrap_sim::SimRealm;

use crate::{altered, bundle, realm, rule};

pub(crate) const ROOTS: &str = "pki/edge-trust";

fn certificate(is_ca: IsCa) -> (String, KeyPair) {
    let mut params = CertificateParams::new(vec!["root.invalid".to_owned()]).unwrap();
    params.is_ca = is_ca;
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key)
}

pub fn ca() -> String {
    certificate(IsCa::Ca(BasicConstraints::Unconstrained)).0
}

fn value_rule(value: &str) -> Result<(), &'static str> {
    let realm = realm();
    rule(&realm, &realm.publish(ROOTS, &[("root.pem", value)]))
}

#[test]
fn v9_a_value_is_one_or_more_certificates_that_may_issue() {
    let (one, two) = (ca(), ca());
    assert_eq!(value_rule(&one), Ok(()));
    assert_eq!(value_rule(&format!("\n{one}\n\n{two}\n")), Ok(()));
    assert_eq!(value_rule(&one.replace('\n', "\r\n")), Ok(()));
    let constrained = certificate(IsCa::Ca(BasicConstraints::Constrained(0))).0;
    assert_eq!(value_rule(&constrained), Ok(()), "a CA for leaves only is a CA");
    for leaf in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let leaf = certificate(leaf).0;
        assert_eq!(value_rule(&leaf), Err("V9"), "the holder of a leaf could be a root");
        assert_eq!(value_rule(&format!("{one}{leaf}")), Err("V9"), "hidden behind a root");
    }
}

#[test]
fn v9_a_private_key_is_not_published() {
    let (root, key) = certificate(IsCa::Ca(BasicConstraints::Unconstrained));
    let key = key.serialize_pem();
    assert!(key.contains("PRIVATE KEY"));
    for value in [key.clone(), format!("{root}{key}"), format!("{key}{root}")] {
        assert_eq!(value_rule(&value), Err("V9"));
    }
}

#[test]
fn v9_what_does_not_parse_is_refused() {
    let root = ca();
    let mut lines: Vec<_> = root.lines().collect();
    lines.remove(2);
    let torn = lines.join("\n");
    let cut = &root[..root.len() / 2];
    let renamed = root.replace("CERTIFICATE", "X509 CRL");
    for value in ["", "no PEM at all", &torn, cut, &renamed] {
        assert_eq!(value_rule(value), Err("V9"), "{value:?}");
    }
    // DER with bytes behind the certificate: parsers differ in what they make of it.
    let der = pem_body(&root);
    assert_eq!(value_rule(&pem_of(&der)), Ok(()), "the test's own encoder works");
    assert_eq!(value_rule(&pem_of(&[&der[..], &[0]].concat())), Err("V9"));
}

fn pem_body(pem: &str) -> Vec<u8> {
    x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap().contents
}

/// PEM around bytes that no certificate library would wrap.
fn pem_of(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bytes = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63] as char;
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|l| str::from_utf8(l).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[test]
fn v10_each_version_keeps_a_root_of_the_last_one() {
    let mut realm = realm();
    let [old, older, new] = [ca(), ca(), ca()];
    publish(&mut realm, &[("old", &old), ("older", &older)]).unwrap();
    assert_eq!(publish(&mut realm, &[("new", &new)]), Err("V10"), "swapped at once");
    assert_eq!(publish(&mut realm, &[]), Err("V10"), "emptied");
    assert_eq!(
        publish(&mut realm, &[("old", &new), ("older", &new)]),
        Err("V10"),
        "the names stay, the roots do not"
    );
    publish(&mut realm, &[("old", &old), ("new", &new)]).unwrap();
    publish(&mut realm, &[("new", &new)]).unwrap();
    assert_eq!(realm.ledger.heads()[&bundle(ROOTS)].version, 3);
}

fn publish(realm: &mut SimRealm, roots: &[(&str, &str)]) -> Result<(), &'static str> {
    let change = realm.publish(ROOTS, roots);
    realm.decide(&[change]).map(drop).map_err(|e| e.rule())
}

#[test]
fn v9_holds_for_trust_classes_only() {
    let realm = realm();
    let change = realm.publish("config/notes", &[("root.pem", "not a certificate")]);
    assert_eq!(rule(&realm, &change), Ok(()));
    // The class follows from the name that was signed, so a bundle cannot change class.
    let moved = altered(&realm, &change, |p| p.bundle = bundle(ROOTS));
    assert_eq!(rule(&realm, &moved), Err("V9"));
}

/// Parsers of PEM differ in what they skip: whatever one of them would skip is refused.
#[test]
fn v9_nothing_stands_beside_a_certificate() {
    let (root, key) = certificate(IsCa::Ca(BasicConstraints::Unconstrained));
    let key = key.serialize_pem();
    let body = key.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().join("\n");
    let indented: String = key.lines().map(|line| format!("  {line}\n")).collect();
    let renamed = key.replace("PRIVATE KEY", "CERTIFICATE");
    for beside in [&indented, &body, &renamed, "# comment", "x", " ", "\t", "\u{feff}", "-----"] {
        for value in [
            format!("{beside}\n{root}"),
            format!("{root}{beside}\n"),
            format!("{root}{beside}"),
            format!("{root}\n{beside}\n{root}"),
        ] {
            assert_eq!(value_rule(&value), Err("V9"), "{beside:?}");
        }
    }
    assert_eq!(value_rule(&format!("{root}{root}")), Ok(()));
}

#[test]
fn v9_a_block_is_in_strict_form() {
    let root = ca();
    let lines: Vec<&str> = root.lines().collect();
    let (body, end) = (&lines[1..lines.len() - 1], lines.len() - 1);
    let value = |body: &[&str]| format!("{}\n{}\n{}\n", lines[0], body.join("\n"), lines[end]);
    assert_eq!(value_rule(&value(body)), Ok(()));
    let one_line = body.concat();
    let rewrapped: Vec<&str> =
        one_line.as_bytes().chunks(60).map(|l| str::from_utf8(l).unwrap()).collect();
    let with = |extra: &'static str, at: usize| {
        let mut body = body.to_vec();
        body.insert(at, extra);
        value(&body)
    };
    for (what, value) in [
        ("one long line", value(&[&one_line])),
        ("short lines", value(&rewrapped)),
        ("a header", with("Proc-Type: 4,ENCRYPTED", 0)),
        ("a blank line", with("", 2)),
        ("a comment", with("# comment", 2)),
        ("no body", value(&[])),
        ("a begin line within", with("-----BEGIN CERTIFICATE-----", 2)),
        ("trailing space", root.replacen('\n', " \n", 1)),
        ("leading space", root.replace("-----END", " -----END")),
        ("lower case", root.replace("CERTIFICATE", "certificate")),
        ("no end", root.replace("-----END CERTIFICATE-----", "")),
        ("other label", root.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
        ("text and padding", with("AAA=", body.len())),
    ] {
        assert_eq!(value_rule(&value), Err("V9"), "{what}");
    }
}

/// The parts of a DER value: tag byte and content of each element in it.
fn elements(mut der: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let [tag, first, ..] = der {
        let (skip, length) = match usize::from(*first) {
            short @ ..0x80 => (2, short),
            long => {
                let digits = &der[2..2 + (long & 0x7F)];
                (2 + digits.len(), digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit)))
            }
        };
        found.push((*tag, der[skip..skip + length].to_vec()));
        der = &der[skip + length..];
    }
    found
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82, high, low], content].concat()
}

/// The certificate in `pem` without its version, which makes it one of version 1, and without the
/// elements of the signed part that have one of the tags in `dropped`.
fn version_1(pem: &str, dropped: &[u8]) -> String {
    let outer = elements(&pem_body(pem))[0].1.clone();
    let parts = elements(&outer);
    let kept = elements(&parts[0].1).into_iter().filter(|(tag, _)| !dropped.contains(tag));
    let signed: Vec<u8> = kept.flat_map(|(tag, content)| element(tag, &content)).collect();
    let rest = parts[1..].iter().flat_map(|(tag, content)| element(*tag, content));
    let whole: Vec<u8> = element(0x30, &signed).into_iter().chain(rest).collect();
    pem_of(&element(0x30, &whole))
}

#[test]
fn v9_version_1_is_for_roots_without_extensions() {
    const VERSION: u8 = 0xA0;
    const EXTENSIONS: u8 = 0xA3;
    let root = ca();
    assert_eq!(value_rule(&version_1(&root, &[VERSION, EXTENSIONS])), Ok(()));
    let leaf = certificate(IsCa::ExplicitNoCa).0;
    assert_eq!(value_rule(&leaf), Err("V9"));
    assert_eq!(value_rule(&version_1(&leaf, &[VERSION])), Err("V9"), "a leaf relabelled");
    assert_eq!(value_rule(&version_1(&root, &[VERSION])), Err("V9"), "extensions and version 1");
    // A leaf that a CA issued cannot pass for a root by losing its extensions.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["root.invalid".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = rcgen::Issuer::new(params, key);
    let mut params = CertificateParams::new(vec!["leaf.invalid".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
    let issued = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().pem();
    assert_eq!(value_rule(&version_1(&issued, &[VERSION, EXTENSIONS])), Err("V9"));
}

/// Every root that this machine trusts, one by one as `satrap publish` splits the file.
#[test]
fn v9_accepts_the_roots_of_an_operating_system() {
    const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
    let bundle = match std::fs::read(ROOTS) {
        Ok(bundle) => bundle,
        Err(_) if satrap_effort::leaves_out(&format!("the trusted roots in {ROOTS}")) => return,
        Err(error) => panic!("{ROOTS}: {error}"),
    };
    let mut roots = 0;
    for pem in x509_parser::pem::Pem::iter_from_buffer(&bundle) {
        let value = pem_of(&pem.unwrap().contents);
        assert_eq!(satrap_global_core::x509::check_trust_root(value.as_bytes()), Ok(()));
        roots += 1;
    }
    println!("{roots} roots");
    assert!(roots > 0, "the file holds roots");
}
