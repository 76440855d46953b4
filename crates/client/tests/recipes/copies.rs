//! A copy that follows, falls behind compaction, and catches up.

use std::collections::BTreeMap;

use bytes::Bytes;
use satrap_client::mirror::{Change, Held, Mirror, Range};

use crate::harness::Member;

/// The keys of the ring under `k/`.
fn truth(member: &Member) -> BTreeMap<Bytes, Held> {
    member.backend.inspect(|keyspace| {
        let keys = (0..3_000).map(|n| format!("k/{n:04}"));
        let held = keys.filter_map(|key| keyspace.store().get(key.as_bytes()));
        held.map(|kv| {
            let held = Held { value: kv.value_bytes(), mod_revision: kv.mod_revision };
            (kv.key_bytes(), held)
        })
        .collect()
    })
}

#[tokio::test]
async fn a_copy_is_listed_and_then_follows() {
    let member = Member::start().await;
    for n in 0..1_500 {
        member.put(&format!("k/{n:04}"), "v").await;
    }
    let mut mirror = Mirror::open(&member.ring().await, Range::prefix("k/")).await.unwrap();
    assert_eq!((mirror.content(), mirror.revision()), (&truth(&member), member.revision()));
    member.put("k/0001", "new").await;
    member.delete("k/0002").await;
    member.put("elsewhere", "of no interest").await;
    member.put("k/2000", "born").await;
    mirror.follow_to(member.revision()).await.unwrap();
    assert_eq!(mirror.content(), &truth(&member));
    member.stop().await;
}

/// A copy that is behind compaction gets what differs and nothing else, then goes on; so does one
/// that was stored and handed over.
#[tokio::test]
async fn a_copy_behind_compaction_gets_the_difference() {
    let member = Member::start().await;
    for n in 0..1_500 {
        member.put(&format!("k/{n:04}"), "old").await;
    }
    let ring = member.ring().await;
    let mut mirror = Mirror::open(&ring, Range::prefix("k/")).await.unwrap();
    let stored = (mirror.content().clone(), (mirror.epoch(), mirror.revision()));
    for n in [3, 500, 1_499] {
        member.put(&format!("k/{n:04}"), "new").await;
    }
    member.delete("k/0007").await;
    member.put("k/2000", "born").await;
    member.compact().await;
    let change = mirror.next().await.unwrap();
    assert_eq!(change, Change::Resynced { received: 4, forgotten: 1 });
    assert_eq!((mirror.content(), mirror.revision()), (&truth(&member), member.revision()));

    member.put("k/0007", "again").await;
    member.delete("k/2000").await;
    mirror.follow_to(member.revision()).await.unwrap();
    assert_eq!(mirror.content(), &truth(&member));

    let mut resumed = Mirror::resume(&ring, Range::prefix("k/"), stored.0, stored.1);
    resumed.follow_to(member.revision()).await.unwrap();
    assert_eq!(resumed.content(), mirror.content());
    member.stop().await;
}
