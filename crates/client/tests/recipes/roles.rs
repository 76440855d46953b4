//! Roles and the three exits of a leader.

use std::time::Duration;

use satrap_client::guard::Guard;
use satrap_client::role::{Attempt, Exit, RoleHolder, try_role};
use satrap_client::{Lost, Ring};
use satrap_runtime::clock;
use tokio::sync::oneshot;
use tonic::service::Interceptor;

use crate::harness::{Member, Tap, candidate};

async fn granted(ring: &Ring, name: &str) -> RoleHolder {
    match try_role(ring, &candidate(name, 2)).await.unwrap() {
        Attempt::Granted(holder) => holder,
        Attempt::Held { by, .. } => panic!("held by {by}"),
    }
}

#[tokio::test]
async fn a_role_has_one_holder_and_growing_tokens() {
    let member = Member::start().await;
    let ring = member.ring().await;
    let first = granted(&ring, "one").await;
    match try_role(&ring, &candidate("two", 2)).await.unwrap() {
        Attempt::Held { by, remaining } => {
            assert_eq!(by, "one");
            assert!(remaining <= Duration::from_secs(2));
        }
        Attempt::Granted(_) => panic!("granted twice"),
    }
    let (token, leadership) = (first.token(), first.leadership());
    assert!(leadership.is_current());
    let request = leadership.clone().call(tonic::Request::new(())).unwrap();
    assert_eq!(request.metadata().get("satrap-fencing-token").unwrap(), &token.to_string());
    first.release().await.unwrap();
    assert!(!leadership.is_current());
    assert!(leadership.clone().call(tonic::Request::new(())).is_err(), "no request without role");
    assert!(granted(&ring, "two").await.token() > token);
    member.stop().await;
}

/// The first exit: the work ends, and the next need not wait for the time to live.
#[tokio::test]
async fn work_that_ends_gives_the_role_back() {
    let member = Member::start().await;
    let ring = member.ring().await;
    let holder = granted(&ring, "one").await;
    let never = std::future::pending();
    let exit = holder.run(never, Duration::ZERO, |leader| async move { leader.token() }).await;
    let Exit::Ended(token) = exit else { panic!("{exit:?}") };
    assert!(granted(&ring, "two").await.token() > token);
    member.stop().await;
}

/// The second exit, 000-38, 001-54: when the keepalive stalls the work is cut off before the ring
/// gives the role to another, and what it still sends is refused (000-56).
#[tokio::test]
async fn a_stalled_keepalive_cuts_the_work_off_before_the_next_holder() {
    let member = Member::start().await;
    let tap = Tap::default();
    let holder = granted(&member.tapped(&tap).await, "one").await;
    let (token, leadership) = (holder.token(), holder.leadership());
    tap.stall();
    let begun = clock::monotonic();
    let never = std::future::pending();
    let work = |_| std::future::pending::<()>();
    let watched = async {
        leadership.ended().await;
        clock::monotonic()
    };
    let (exit, told) = tokio::join!(holder.run(never, Duration::ZERO, work), watched);
    assert_eq!(exit, Exit::Lost(Lost::OutOfTime));
    assert!(told - begun <= Duration::from_secs(2), "{:?}", told - begun);
    assert!(!leadership.is_current());
    let held = member.backend.inspect(|keyspace| {
        keyspace.roles().get("billing").is_some_and(|role| role.held.is_some())
    });
    assert!(held, "the ring still kept the role when its holder had stopped");

    let ring = member.ring().await;
    let next = satrap_client::lock::fenced_lock(&ring, &candidate("two", 2)).await.unwrap();
    let mut guard = Guard::new();
    guard.admit(next.token()).unwrap();
    assert!(guard.admit(token).is_err());
    member.stop().await;
}

/// A view ends by the clock alone, although the holder is neither renewed nor polled.
#[tokio::test]
async fn a_view_ends_although_its_holder_is_not_polled() {
    let member = Member::start().await;
    let holder = granted(&member.ring().await, "one").await;
    holder.leadership().ended().await;
    assert!(!holder.leadership().is_current());
    member.stop().await;
}

/// The second exit again: the holder notices at its next renewal that it was deposed.
#[tokio::test]
async fn a_role_that_was_taken_is_lost() {
    let member = Member::start().await;
    let holder = granted(&member.ring().await, "one").await;
    member.revoke(holder.lease()).await;
    let never = std::future::pending();
    let exit = holder.run(never, Duration::ZERO, |_| std::future::pending::<()>()).await;
    assert_eq!(exit, Exit::Lost(Lost::Taken));
    member.stop().await;
}

/// The third exit: the work is asked to stop, has its time, and the role outlives its first term.
#[tokio::test]
async fn a_leader_that_is_asked_to_stop_winds_down() {
    let member = Member::start().await;
    let ring = member.ring().await;
    let (ask, asked) = oneshot::channel::<()>();
    let stop = async { asked.await.unwrap() };
    let holder = granted(&ring, "one").await;
    let token = holder.token();
    let exit = holder.run(stop, Duration::from_secs(60), |leader| async move {
        // Longer than the time to live: it must have been renewed.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert!(leader.is_current());
        ask.send(()).unwrap();
        leader.ended().await;
        "wound down"
    });
    assert_eq!(exit.await, Exit::Stopped(Some("wound down")));
    let next = granted(&ring, "two").await;
    assert!(next.token() > token);
    let asked = std::future::ready(());
    let exit = next.run(asked, Duration::ZERO, |_| std::future::pending::<()>()).await;
    assert_eq!(exit, Exit::Stopped(None), "work that does not listen is dropped");
    granted(&ring, "three").await;
    member.stop().await;
}
