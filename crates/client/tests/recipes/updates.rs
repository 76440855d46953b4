//! Read, compute, write, and again.

use bytes::Bytes;
use satrap_client::update::{Updated, update};
use tokio::task::JoinSet;

use crate::harness::Member;

fn plus_one(value: Option<&[u8]>) -> Option<Bytes> {
    let count: u32 = value.map_or(0, |v| std::str::from_utf8(v).unwrap().parse().unwrap());
    Some((count + 1).to_string().into())
}

/// 000-37: a refused writer computes again from the current value, so that no change is undone.
#[tokio::test]
async fn no_update_is_lost() {
    let member = Member::start().await;
    let mut writers = JoinSet::new();
    for _ in 0..4 {
        let ring = member.ring().await;
        writers.spawn(async move {
            let mut conflicts = 0;
            for _ in 0..5 {
                conflicts += update(&ring, "count", plus_one).await.unwrap().conflicts;
            }
            conflicts
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    assert_eq!(member.value("count").unwrap(), "20");
    member.stop().await;
}

/// 000-37, exactly: the second computation sees the other's value, and may decide otherwise.
#[tokio::test]
async fn a_conflict_is_computed_again_from_what_is_there() {
    let member = Member::start().await;
    let ring = member.ring().await;
    member.put("k", "before").await;
    let mut seen = Vec::new();
    let updated = update(&ring, "k", |value| {
        let value = value.map(|v| String::from_utf8(v.to_vec()).unwrap());
        seen.push(value.clone());
        if seen.len() == 1 {
            // Another writer, between our reading and our writing.
            let rival = std::thread::scope(|scope| {
                let rival = scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .unwrap();
                    runtime.block_on(member.put("k", "rival"));
                });
                rival.join()
            });
            rival.unwrap();
        }
        Some(format!("{}+ours", value.unwrap()).into())
    });
    let updated = updated.await.unwrap();
    let mod_revision = member.revision();
    assert_eq!(updated, Updated { mod_revision, written: true, conflicts: 1 });
    assert_eq!(seen, [Some("before".to_owned()), Some("rival".to_owned())]);
    assert_eq!(member.value("k").unwrap(), "rival+ours");

    let left = update(&ring, "k", |_| None).await.unwrap();
    assert_eq!(left, Updated { mod_revision, written: false, conflicts: 0 });
    member.stop().await;
}
