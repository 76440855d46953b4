//! The JSON that `satrap status --json` prints keeps its names: scripts and pages read it.

use satrap_status::RealmView;

/// Every field, in the order in which it is printed. A field that goes, is renamed or is added makes
/// the text differ.
#[test]
fn the_fields_of_the_json_are_stable() {
    let expected = include_str!("realm.json");
    let realm: RealmView = serde_json::from_str(expected).unwrap();
    let mut printed = serde_json::to_string_pretty(&realm).unwrap();
    printed.push('\n');
    assert_eq!(printed, expected);
}
