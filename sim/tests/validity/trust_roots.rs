//! V9 and V10: what may stand in a bundle of trust roots, and how it may change.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use satrap_sim::SimRealm;

use crate::{altered, bundle, realm, rule};

const ROOTS: &str = "pki/edge-trust";

fn certificate(is_ca: IsCa) -> (String, KeyPair) {
    let mut params = CertificateParams::new(vec!["root.invalid".to_owned()]).unwrap();
    params.is_ca = is_ca;
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key)
}

fn ca() -> String {
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
    assert_eq!(value_rule(&format!("# comment\n{one}\n{two}")), Ok(()));
    let constrained = certificate(IsCa::Ca(BasicConstraints::Constrained(0))).0;
    assert_eq!(value_rule(&constrained), Ok(()), "a CA for leaves only is a CA");
    for leaf in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let leaf = certificate(leaf).0;
        assert_eq!(value_rule(&leaf), Err("V9"), "anybody who holds a leaf could be a root");
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
