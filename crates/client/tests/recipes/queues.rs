//! Elections: no contender is woken in vain, and none leads without a lease.

use satrap_client::election::{campaign, leader};
use satrap_client::{Error, Lost, Terms};
use tokio::task::JoinSet;

use crate::harness::{Member, Tap};

const CONTENDERS: u32 = 1_000;
/// Streams of one connection are bounded, and each contender has one.
const PER_CONNECTION: u32 = 50;

/// 001-44: with a thousand contenders each death of a leader wakes exactly one.
#[tokio::test]
async fn each_death_wakes_exactly_one() {
    let member = Member::start().await;
    let tap = Tap::default();
    let mut contenders = JoinSet::new();
    for n in 0..CONTENDERS / PER_CONNECTION {
        let ring = member.tapped(&tap).await;
        for m in 0..PER_CONNECTION {
            let (ring, value) = (ring.clone(), format!("{n}/{m}"));
            contenders.spawn(async move {
                campaign(&ring, "boss", value, Terms::of(600)).await.unwrap()
            });
        }
    }
    // Every contender but the first watches its predecessor before the first dies.
    tap.watches(CONTENDERS - 1).await;
    let ring = member.ring().await;
    let (mut reigns, mut created) = (0, 0);
    while let Some(elected) = contenders.join_next().await {
        let elected = elected.unwrap();
        assert!(contenders.try_join_next().is_none(), "two lead");
        let waited = elected.waited();
        let expected = u32::from(reigns > 0);
        assert_eq!((waited.predecessors, waited.notifications), (expected, expected));
        let shown = leader(&ring, "boss").await.unwrap().expect("an elected leader");
        assert_eq!((shown.created, shown.lease), (elected.created(), elected.lease()));
        assert!(elected.created() > created, "not in the order of arrival");
        (reigns, created) = (reigns + 1, elected.created());
        member.revoke(elected.lease()).await;
    }
    assert_eq!(reigns, CONTENDERS);
    assert_eq!(*tap.watches.borrow(), CONTENDERS - 1, "no contender watched twice");
    member.stop().await;
}

/// A contender whose lease ended during the wait does not lead, as it did in Jepsen's test of etcd.
#[tokio::test]
async fn a_contender_whose_lease_ended_while_waiting_does_not_lead() {
    let member = Member::start().await;
    let tap = Tap::default();
    let ring = member.tapped(&tap).await;
    let first = campaign(&ring, "boss", "first", Terms::of(600)).await.unwrap();
    let mut waiting = JoinSet::new();
    let contender = ring.clone();
    waiting.spawn(async move { campaign(&contender, "boss", "second", Terms::of(600)).await });
    tap.watches(1).await;
    let lease = member.backend.inspect(|keyspace| {
        use satrap_ring_core::kv::request::{KeyRange, RangeRequest};
        let range = RangeRequest::of(KeyRange::prefix("boss/"));
        let found = keyspace.store().range(&range).unwrap();
        found.kvs.iter().map(|kv| kv.lease).find(|lease| *lease != first.lease()).unwrap()
    });
    member.revoke(lease).await;
    first.proclaim("still here").await.unwrap();
    assert_eq!(leader(&ring, "boss").await.unwrap().unwrap().value, "still here");
    first.resign().await.unwrap();
    let ended = waiting.join_next().await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::Lost(Lost::Taken))), "{ended:?}");
    assert_eq!(leader(&ring, "boss").await.unwrap(), None);
    member.stop().await;
}
