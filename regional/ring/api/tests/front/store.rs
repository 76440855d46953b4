//! The `Store` service of `satrap.v1`.

use futures::StreamExt;
use satrap_proto::v1::store_client::StoreClient;
use satrap_proto::v1::{self, ReadMode};
use satrap_ring_api::backend::{AppliedMany, Call, RingEnd};
use satrap_ring_api::limits::STREAM_MESSAGES_IN_FLIGHT_MAX;
use satrap_ring_core::Refusal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::Member;

async fn client(member: &Member) -> StoreClient<Channel> {
    StoreClient::new(member.channel().await)
}

fn if_revision(key: &str, value: &str, mod_revision: i64) -> v1::PutIfRevisionRequest {
    v1::PutIfRevisionRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        mod_revision,
        want_value: true,
        ..Default::default()
    }
}

/// 000-31.
#[tokio::test]
async fn a_put_that_lost_says_what_won() {
    let member = Member::start().await;
    let mut store = client(&member).await;
    let created = store.put_if_revision(if_revision("k", "1", 0)).await.unwrap().into_inner();
    assert_eq!((created.written, created.mod_revision), (true, 2));
    let again = store.put_if_revision(if_revision("k", "2", 0)).await.unwrap().into_inner();
    assert_eq!((again.written, again.mod_revision), (false, 2));
    assert_eq!(again.value.as_deref(), Some(&b"1"[..]));
    let next = store.put_if_revision(if_revision("k", "2", 2)).await.unwrap().into_inner();
    assert_eq!((next.written, next.mod_revision), (true, 3));
    let gone = store.put_if_revision(if_revision("other", "2", 9)).await.unwrap().into_inner();
    assert_eq!((gone.written, gone.mod_revision, gone.value), (false, 0, None));
    let error = store.put_if_revision(if_revision("", "", 0)).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: key is not provided");
    member.stop().await;
}

/// 001-34.
#[tokio::test]
async fn sequential_keys_sort_as_they_were_made() {
    let member = Member::start().await;
    let mut store = client(&member).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let request = v1::PutSequentialRequest { prefix: "q/".into(), ..Default::default() };
        keys.push(store.put_sequential(request).await.unwrap().into_inner().key);
    }
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    assert!(keys.iter().all(|key| key.len() == keys[0].len() && key.starts_with(b"q/")));
    member.stop().await;
}

#[tokio::test]
async fn a_role_has_one_holder_and_a_growing_token() {
    let member = Member::start().await;
    let mut store = client(&member).await;
    let ask = |holder: &str| v1::GrantRoleRequest {
        role: "primary".to_owned(),
        holder: holder.to_owned(),
        ttl_s: 60,
    };
    let first = store.grant_role(ask("a")).await.unwrap().into_inner();
    assert!(first.granted && first.lease != 0 && first.ttl_ms == 60_000);
    let second = store.grant_role(ask("b")).await.unwrap().into_inner();
    assert_eq!((second.granted, second.holder.as_str()), (false, "a"));
    assert_eq!((second.token, second.lease), (first.token, first.lease));

    let role = "primary".to_owned();
    let renew = v1::RenewRoleRequest { role: role.clone(), token: first.token };
    assert_eq!(store.renew_role(renew.clone()).await.unwrap().into_inner().ttl_ms, 60_000);
    let release = v1::ReleaseRoleRequest { role: role.clone(), token: first.token };
    store.release_role(release.clone()).await.unwrap();
    for error in [
        store.renew_role(renew).await.map(drop).unwrap_err(),
        store.release_role(release).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    }
    let third = store.grant_role(ask("b")).await.unwrap().into_inner();
    let number = |token: Option<v1::FencingToken>| token.map(|token| (token.epoch, token.counter));
    assert!(third.granted && number(third.token) > number(first.token));
    let status = v1::RoleStatusRequest { role, mode: ReadMode::Stale.into() };
    let status = store.role_status(status).await.unwrap().into_inner();
    assert_eq!((status.holder.as_str(), status.token), ("b", third.token));
    let nameless = v1::GrantRoleRequest::default();
    assert_eq!(store.grant_role(nameless).await.unwrap_err().code(), Code::InvalidArgument);
    member.stop().await;
}

#[tokio::test]
async fn every_read_says_how_it_was_served() {
    let member = Member::start().await;
    let mut store = client(&member).await;
    store.put_if_revision(if_revision("k", "v", 0)).await.unwrap();
    for mode in [ReadMode::Linearizable, ReadMode::Lease, ReadMode::Stale] {
        let request = v1::GetRequest { key: "k".into(), mode: mode.into(), ..Default::default() };
        let answer = store.get(request).await.unwrap().into_inner();
        let served = answer.served.unwrap();
        assert_eq!(served.mode(), mode);
        assert!(mode == ReadMode::Stale || served.stale_ms_max == 0, "{served:?}");
        assert_ne!(served.stale_ms_max, u64::MAX, "this member has heard from the ring");
        assert_eq!(&answer.kv.unwrap().value[..], b"v");
    }
    let (mut stalled, _ring) = Member::stalled(1).await;
    let request = v1::GetRequest { key: "k".into(), mode: 2, ..Default::default() };
    let answer = stalled.raw().await.ask("/satrap.v1.Store/Get", &request).await.unwrap();
    let answer: v1::GetResponse = prost::Message::decode(answer).unwrap();
    assert_eq!(answer.served.unwrap().stale_ms_max, u64::MAX, "the staleness is unknown");
    member.stop().await;
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let member = Member::start().await;
    let mut store = client(&member).await;
    for key in ["a", "b", "c", "d", "e"] {
        store.put_if_revision(if_revision(key, "v", 0)).await.unwrap();
    }
    let mut request = v1::ListPageRequest {
        key: "a".into(),
        range_end: "z".into(),
        limit: 2,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = store.list_page(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.list_revision, 6);
        assert!(page.kvs.len() <= 2);
        found.extend(page.kvs.into_iter().map(|kv| kv.key));
        // Written while the listing is under way, hence in none of its pages.
        store.put_if_revision(if_revision("bb", "v", 0)).await.unwrap();
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, ["a", "b", "c", "d", "e"]);
    for token in [&b"x"[..], b"\0\0\0\0\0\0\0\0\0\0\0\x02zz"] {
        let request = v1::ListPageRequest { page_token: token.to_vec().into(), ..request.clone() };
        assert_eq!(store.list_page(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    member.stop().await;
}

/// PUTSTREAM-1: every put is answered once, in order, with its revision or why it was refused.
#[tokio::test]
async fn a_stream_of_puts_is_answered_in_order() {
    const MESSAGES: usize = 40;
    let member = Member::start().await;
    let mut store = client(&member).await;
    let (sender, requests) = mpsc::channel(4);
    let mut answers = store.put_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let puts = |message: usize| {
        let put = |n: usize| v1::StreamedPut {
            // Each seventh has no key, and each message one with a lease that does not exist.
            key: if n % 7 == 3 { String::new() } else { format!("{message}/{n}") }.into(),
            value: "v".into(),
            lease: if n == 5 { 99 } else { 0 },
        };
        v1::PutStreamRequest { puts: (0..10).map(put).collect() }
    };
    let sending = async {
        for message in 0..MESSAGES {
            sender.send(puts(message)).await.unwrap();
        }
        drop(sender);
    };
    let reading = async {
        let (mut requests, mut places, mut revision) = (0, Vec::new(), 0);
        while let Some(answer) = answers.next().await {
            let answer = answer.unwrap();
            let first = places.len() as u64;
            places.extend((first..first + answer.puts).map(|_| None));
            for refusal in &answer.refusals {
                places[first as usize + refusal.index as usize] = Some(refusal.message.clone());
            }
            assert_eq!(answer.revision_deltas.len() + answer.refusals.len(), answer.puts as usize);
            let mut last = 0;
            for delta in &answer.revision_deltas {
                last += *delta as i64;
                assert_eq!(last, if revision == 0 { 2 } else { revision + 1 });
                revision = last;
            }
            assert_eq!(answer.header.unwrap().revision, last);
            requests += answer.requests;
        }
        (requests, places)
    };
    let ((), (answered, places)) = tokio::join!(sending, reading);
    assert_eq!((answered, places.len()), (MESSAGES as u64, MESSAGES * 10));
    for (n, place) in places.iter().enumerate() {
        let expected = match n % 10 {
            3 => Some("etcdserver: key is not provided"),
            5 => Some("etcdserver: requested lease not found"),
            _ => None,
        };
        assert_eq!(place.as_deref(), expected, "put {n}");
    }
    member.stop().await;
}

/// PUTSTREAM-3: a ring that does not answer is not given more and more.
#[tokio::test]
async fn a_stream_of_puts_waits_when_the_ring_does() {
    let (member, mut ring) = Member::stalled(1024).await;
    let mut store = client(&member).await;
    let put = || v1::StreamedPut { key: "k".into(), ..Default::default() };
    let requests = (0..100).map(move |_| v1::PutStreamRequest { puts: vec![put()] });
    let mut answers = store.put_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut waiting = Vec::new();
    for _ in 0..STREAM_MESSAGES_IN_FLIGHT_MAX {
        let Some(Call::ProposeMany { reply, .. }) = ring.calls.recv().await else { panic!() };
        waiting.push(reply);
    }
    assert!(next_call(&mut ring).await.is_none(), "more than may wait");
    let done = AppliedMany { replies: vec![Err(Refusal::EmptyKey)], term: 1 };
    waiting.remove(0).send(Ok(done)).unwrap();
    let answer = answers.next().await.unwrap().unwrap();
    assert_eq!((answer.requests, answer.puts), (1, 1));
    assert!(matches!(ring.calls.recv().await, Some(Call::ProposeMany { .. })), "one may go on");
    assert!(next_call(&mut ring).await.is_none(), "and no other");
    drop((answers, waiting, ring, store));
    member.stop().await;
}

/// The calls that reach the ring before the server is idle.
async fn next_call(ring: &mut RingEnd) -> Option<Call> {
    let none_for = std::time::Duration::from_millis(300);
    tokio::time::timeout(none_for, ring.calls.recv()).await.ok().flatten()
}
