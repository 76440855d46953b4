//! The largest values there can be, encoded: what the sums in `limits.rs` are made of.

use satrap_certify::{
    BundleName, Class, ClassKind, Delta, Governance, Head, Key, Label, Operator, PublicKey, Report,
    SignedReport, Timestamp, Update, ValidatorInfo,
    limits::{
        BUNDLE_ENTRIES_MAX, BUNDLE_NAME_BYTES_MAX, CERTIFICATE_BYTES_MAX, CLASSES_MAX,
        ENTRY_WIRE_BYTES, GOVERNANCE_BYTES_MAX, GOVERNANCE_ITEMS_MAX, LABEL_BYTES_MAX,
        REPORT_BYTES_MAX, REPORT_REFUSALS_MAX, REPORT_VERSIONS_MAX, UPDATE_ENTRIES_MAX,
        URL_BYTES_MAX, VALIDATORS_MAX,
    },
};
use satrap_merkle::codec::{Canonical as _, DecodeError};

fn label(n: usize) -> Label {
    Label::new(&format!("{n:0>width$}", width = LABEL_BYTES_MAX)).expect("digits are a label")
}

fn key(n: usize) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    PublicKey(bytes)
}

/// As many items of the largest size as the limits allow.
fn governance() -> Governance {
    let operator = |n| (key(n), Operator { public: key(n), principal: label(n) });
    let class = |n: usize| {
        let prefix = format!("{n:0>width$}", width = BUNDLE_NAME_BYTES_MAX);
        (prefix.clone(), Class::new(&prefix, 1, ClassKind::Opaque))
    };
    let validator = |n| ValidatorInfo {
        name: label(n),
        public: key(n),
        power: 1,
        jurisdiction: label(n),
        url: "x".repeat(URL_BYTES_MAX),
    };
    Governance {
        version: 1,
        approvals: 1,
        operators: (0..GOVERNANCE_ITEMS_MAX).map(operator).collect(),
        classes: (0..CLASSES_MAX).map(class).collect(),
        // A region takes more bytes than a key.
        region_keys: (0..GOVERNANCE_ITEMS_MAX / 2).map(|n| (label(n), [key(n)].into())).collect(),
        validators: (0..VALIDATORS_MAX).map(validator).collect(),
        retired_version: 0,
        accounts: [0; 32],
    }
}

#[test]
fn the_largest_governance_state_fits_its_limit_and_one_more_item_does_not_decode() {
    let full = governance();
    let bytes = full.to_canonical();
    assert!(bytes.len() <= GOVERNANCE_BYTES_MAX, "{} bytes", bytes.len());
    assert!(bytes.len() > GOVERNANCE_BYTES_MAX / 2, "{} bytes: the limit is far off", bytes.len());
    assert_eq!(Governance::from_canonical(&bytes).as_ref(), Ok(&full));

    let refused = |alter: &dyn Fn(&mut Governance)| {
        let mut one_more = full.clone();
        alter(&mut one_more);
        let decoded = Governance::from_canonical(&one_more.to_canonical());
        assert!(matches!(decoded, Err(DecodeError::TooLong { .. })), "{decoded:?}");
    };
    let n = GOVERNANCE_ITEMS_MAX;
    refused(&|g| {
        g.operators.insert(key(n), Operator { public: key(n), principal: label(n) });
    });
    refused(&|g| {
        g.classes.insert("z".into(), Class::new("z", 1, ClassKind::Opaque));
    });
    refused(&|g| {
        g.region_keys.insert(label(n), [key(n)].into());
    });
    refused(&|g| {
        let last = g.region_keys.keys().next_back().expect("there are regions").clone();
        g.region_keys.get_mut(&last).expect("just found").insert(key(n));
    });
    refused(&|g| {
        let twin = ValidatorInfo { name: label(n), public: key(n), ..g.validators[0].clone() };
        g.validators.push(twin);
    });
}

#[test]
fn an_entry_costs_on_the_wire_what_the_limits_say() {
    let bundle = BundleName::new("a").expect("a name");
    let delta = |puts| Delta { bundle: bundle.clone(), base: 0, puts, deletes: Vec::new() };
    let entry = (Key::new(b"k").expect("a key"), std::sync::Arc::<[u8]>::from(&b"v"[..]));
    let empty = delta(Vec::new()).to_canonical().len();
    let one = delta(vec![entry]).to_canonical().len();
    assert_eq!((one - empty) as u64, 2 + ENTRY_WIRE_BYTES);
}

/// A bundle's name of 128 bytes.
/// Entries of six bytes took seven times as much memory: over 300 MB for an update of 48 MiB.
#[test]
fn an_update_has_so_many_entries_and_no_more() {
    let entry = |n: usize| Key::new(format!("{n:05}").as_bytes()).expect("digits are a key");
    let delta = |n: usize, entries: usize| Delta {
        bundle: BundleName::new(&format!("b{n}")).expect("a name"),
        base: 0,
        puts: (0..entries / 2).map(|n| (entry(n), [].into())).collect(),
        deletes: (0..entries.div_ceil(2)).map(entry).collect(),
    };
    let bundles = UPDATE_ENTRIES_MAX / BUNDLE_ENTRIES_MAX;
    let contents = (0..bundles).map(|n| delta(n, BUNDLE_ENTRIES_MAX)).collect();
    let genesis_hash = [7; 32];
    let mut update =
        Update { genesis_hash, steps: Vec::new(), history: None, heads: None, contents };
    let decoded = |update: &Update| Update::from_canonical(&update.to_canonical());
    assert_eq!(decoded(&update).as_ref(), Ok(&update));
    update.contents.push(delta(bundles, 1));
    let (claimed, max) = (UPDATE_ENTRIES_MAX + 1, UPDATE_ENTRIES_MAX);
    assert_eq!(decoded(&update), Err(DecodeError::TooLong { claimed, max }));
}

fn longest_name() -> BundleName {
    let name = ["a"; BUNDLE_NAME_BYTES_MAX / 2].join("/") + "b";
    BundleName::new(&name).expect("128 bytes")
}

#[test]
fn the_largest_status_report_fits_its_limit_and_one_more_item_does_not_decode() {
    let version = (longest_name(), 1, [0; 32]);
    let refused = ("R".repeat(LABEL_BYTES_MAX), 1);
    let full = Report {
        genesis_hash: [0; 32],
        region: label(1),
        edge: label(2),
        time: Timestamp(2),
        started: Timestamp(1),
        height: 1,
        certified_time: Timestamp(1),
        running: vec![version.clone(); REPORT_VERSIONS_MAX],
        failed: vec![version.clone(); REPORT_VERSIONS_MAX],
        refusals: vec![refused.clone(); REPORT_REFUSALS_MAX],
    };
    let sign = |report: Report, certificate| {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        report.sign(&key, vec![0; certificate]).to_canonical()
    };
    let bytes = sign(full.clone(), CERTIFICATE_BYTES_MAX);
    assert!(bytes.len() <= REPORT_BYTES_MAX, "{} bytes", bytes.len());
    assert!(bytes.len() > REPORT_BYTES_MAX / 2, "{} bytes: the limit is far off", bytes.len());
    assert_eq!(SignedReport::from_canonical(&bytes).expect("it decodes").report, full);

    let [mut running, mut failed, mut refusals] = [(); 3].map(|()| full.clone());
    running.running.push(version.clone());
    failed.failed.push(version);
    refusals.refusals.push(refused);
    for (one_more, certificate) in
        [(running, 0), (failed, 0), (refusals, 0), (full, CERTIFICATE_BYTES_MAX + 1)]
    {
        let decoded = SignedReport::from_canonical(&sign(one_more, certificate));
        assert!(matches!(decoded, Err(DecodeError::TooLong { .. })), "{decoded:?}");
    }
}

#[test]
fn the_longest_head_is_as_long_as_the_limits_say() {
    let name = longest_name();
    let head = Head { name, version: 1, root: [0; 32], entries: 1, bytes: 1, height: 1 };
    let length = 4 + "satrap/head/v1".len() + 4 + BUNDLE_NAME_BYTES_MAX + 8 + 32 + 3 * 8;
    assert_eq!(head.to_canonical().len(), length);
}
