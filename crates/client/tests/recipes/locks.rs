//! Fenced locks and hints.

use std::time::Duration;

use satrap_client::Terms;
use satrap_client::lock::{fenced_lock, run_as_leader, try_hint};
use satrap_client::role::Exit;
use tokio::task::JoinSet;

use crate::harness::{Member, candidate};

/// 000-07: contenders get the role one after the other, each with a greater token.
#[tokio::test]
async fn fenced_locks_are_granted_in_turn() {
    let member = Member::start().await;
    let ring = member.ring().await;
    let mut contenders = JoinSet::new();
    let first = fenced_lock(&ring, &candidate("c0", 30)).await.unwrap();
    for n in 1..5 {
        let (ring, candidate) = (ring.clone(), candidate(&format!("c{n}"), 30));
        contenders.spawn(async move { fenced_lock(&ring, &candidate).await.unwrap() });
        member.until_keys("billing/", n + 1).await;
    }
    let (mut holder, mut tokens) = (first, Vec::new());
    loop {
        tokens.push(holder.token());
        assert!(contenders.try_join_next().is_none(), "two hold it");
        holder.release().await.unwrap();
        match contenders.join_next().await {
            Some(next) => holder = next.unwrap(),
            None => break,
        }
    }
    assert_eq!(tokens.len(), 5);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    member.until_keys("billing/", 0).await;
    member.stop().await;
}

#[tokio::test]
async fn leaders_follow_each_other() {
    let member = Member::start().await;
    let ring = member.ring().await;
    let mut last = None;
    for name in ["one", "two"] {
        let never = std::future::pending();
        let me = candidate(name, 30);
        let work = |leader: satrap_client::role::Leadership| async move { leader.token() };
        let exit = run_as_leader(&ring, &me, never, Duration::ZERO, work).await.unwrap();
        let Exit::Ended(token) = exit else { panic!("{exit:?}") };
        assert!(Some(token) > last);
        last = Some(token);
    }
    let holder = fenced_lock(&ring, &candidate("three", 30)).await.unwrap();
    let asked = std::future::ready(());
    let me = candidate("four", 30);
    let exit = run_as_leader(&ring, &me, asked, Duration::ZERO, |_| async {}).await.unwrap();
    assert_eq!(exit, Exit::Stopped(None), "stopped while it waited");
    holder.release().await.unwrap();
    member.stop().await;
}

/// 001-50: a hint says so by its type: it has nothing that a guard would take.
#[tokio::test]
async fn a_hint_is_had_by_one_and_has_no_token() {
    let member = Member::start().await;
    let ring = member.ring().await;
    let hint = try_hint(&ring, "cleanup", Terms::of(30)).await.unwrap().expect("it is free");
    assert!(hint.is_probably_held());
    assert!(try_hint(&ring, "cleanup", Terms::of(30)).await.unwrap().is_none());
    member.until_keys("cleanup/", 1).await;
    hint.release().await.unwrap();
    let again = try_hint(&ring, "cleanup", Terms::of(30)).await.unwrap();
    again.expect("it is free again").release().await.unwrap();
    member.stop().await;
}
