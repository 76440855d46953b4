//! What followers share. The streams are tested where they are served, over mutual TLS.

use satrap_certify::{BundleName, Interest, Replica};
use satrap_host::follow::UpdateCache;
use satrap_sim::SimRealm;

#[test]
fn followers_at_one_position_share_one_encoded_update() {
    let mut realm = SimRealm::new("test", 4);
    let bundles = Interest::Bundles(vec![BundleName::new("config/motd").unwrap()]);
    let edge = Replica::genesis(&realm.genesis, bundles).position();
    let mut relay = Replica::genesis(&realm.genesis, Interest::Everything);
    let cache = UpdateCache::default();
    assert_eq!(cache.update_for(&relay, &edge).unwrap(), None, "nothing newer yet");
    let mut before = None;
    for value in ["1", "2"] {
        let change = realm.publish("config/motd", &[("a", value)]);
        let update = realm.decide(&[change]).unwrap();
        let advance = relay.verify(&update, realm.now).unwrap();
        relay.advance(advance);
        let first = cache.update_for(&relay, &edge).unwrap().unwrap();
        let second = cache.update_for(&relay, &edge).unwrap().unwrap();
        assert_eq!(first.as_ptr(), second.as_ptr(), "the same bytes in memory");
        assert_ne!(before.as_ref(), Some(&first), "of the newest height");
        before = Some(first);
    }
    let mut stranger = edge;
    stranger.genesis_hash = [0; 32];
    let refused = cache.update_for(&relay, &stranger).unwrap_err();
    assert_eq!(refused.rule(), "C1");
}
