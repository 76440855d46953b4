//! AUTH-1, AUTH-2, AUTH-3: permissions, with etcd's errors.

use std::time::Instant;

use proptest::prelude::*;
use satrap_ring_core::{
    Caller, Keyspace, Refusal, Request, RingTime,
    auth::{
        AuthRequest, Permission,
        PermissionKind::{Read, ReadWrite, Write},
        TokenDigest,
    },
    keyspace::PutIfRevision,
    kv::{self, KeyRange, RangeRequest, RequestOp, TxnRequest},
    limits,
};

use crate::ring::{Ring, put, text};

fn add(name: &str) -> AuthRequest {
    AuthRequest::UserAdd { name: name.into(), password: Some("hash".into()) }
}

fn give(user: &str, role: &str) -> AuthRequest {
    AuthRequest::UserGrantRole { user: user.into(), role: role.into() }
}

fn take(name: &str, role: &str) -> AuthRequest {
    AuthRequest::UserRevokeRole { name: name.into(), role: role.into() }
}

fn read(ring: &Ring, start: &str, end: &str) -> Result<i64, Refusal> {
    let request = RangeRequest::of(KeyRange::between(text(start), text(end)));
    ring.keyspace.range(&ring.caller, &request).map(|found| found.count)
}

#[test]
fn auth_1_enabling_needs_a_root_user_with_the_root_role() {
    let mut ring = Ring::new();
    assert_eq!(ring.keyspace.auth().revision(), 1);
    assert_eq!(ring.auth(AuthRequest::Enable), Err(Refusal::RootUserNotExist));
    ring.auth(add("root")).unwrap();
    assert_eq!(ring.auth(AuthRequest::Enable), Err(Refusal::RootRoleNotExist));
    ring.auth(give("root", "root")).unwrap();
    assert_eq!(ring.keyspace.auth().revision(), 3);
    ring.auth(AuthRequest::Enable).unwrap();
    assert_eq!(ring.keyspace.auth().revision(), 3, "as in etcd");
    ring.by("root");
    for refused in [
        AuthRequest::UserDelete { name: "root".into() },
        AuthRequest::RoleDelete { role: "root".into() },
        take("root", "root"),
    ] {
        assert_eq!(ring.auth(refused), Err(Refusal::InvalidAuthMgmt));
    }
    ring.auth(AuthRequest::Disable).unwrap();
    assert_eq!(ring.keyspace.auth().revision(), 4);
    ring.auth(AuthRequest::Disable).unwrap();
    assert_eq!(ring.keyspace.auth().revision(), 4);
    ring.auth(AuthRequest::UserDelete { name: "root".into() }).unwrap();
}

#[test]
fn users_and_roles_are_managed_by_etcds_rules() {
    let mut ring = Ring::new();
    let name = |name: &str| name.to_owned();
    assert_eq!(ring.auth(add("")), Err(Refusal::UserEmpty));
    ring.auth(add("u")).unwrap();
    assert_eq!(ring.auth(add("u")), Err(Refusal::UserAlreadyExists));
    assert_eq!(ring.auth(give("v", "r")), Err(Refusal::UserNotFound));
    assert_eq!(ring.auth(give("u", "r")), Err(Refusal::RoleNotFound));
    assert_eq!(ring.auth(AuthRequest::RoleAdd { name: name("") }), Err(Refusal::RoleEmpty));
    ring.auth(AuthRequest::RoleAdd { name: name("r") }).unwrap();
    let again = AuthRequest::RoleAdd { name: name("r") };
    assert_eq!(ring.auth(again), Err(Refusal::RoleAlreadyExists));
    ring.auth(give("u", "r")).unwrap();
    let revision = ring.keyspace.auth().revision();
    ring.auth(give("u", "r")).unwrap();
    assert_eq!(ring.keyspace.auth().revision(), revision, "granting twice changes nothing");
    let grant =
        |role: &str, permission| AuthRequest::RoleGrantPermission { name: name(role), permission };
    let on = |start: &str, end: &str| {
        Some(Permission { kind: Read, range: KeyRange::between(text(start), text(end)) })
    };
    assert_eq!(ring.auth(grant("r", None)), Err(Refusal::PermissionNotGiven));
    assert_eq!(ring.auth(grant("r", on("b", "a"))), Err(Refusal::InvalidAuthMgmt));
    assert_eq!(ring.auth(grant("s", on("a", "b"))), Err(Refusal::RoleNotFound));
    ring.auth(grant("r", on("b", ""))).unwrap();
    ring.auth(grant("r", on("a", "b"))).unwrap();
    let anonymous = Caller::default();
    let seen = ring.keyspace.auth().role_permissions(&anonymous, "r").unwrap();
    assert_eq!(seen.iter().map(|p| p.range.start.clone()).collect::<Vec<_>>(), ["a", "b"]);
    let revoke = |end: &str| AuthRequest::RoleRevokePermission {
        role: name("r"),
        range: KeyRange::between(text("a"), text(end)),
    };
    assert_eq!(ring.auth(revoke("c")), Err(Refusal::PermissionNotGranted));
    ring.auth(revoke("b")).unwrap();
    assert_eq!(ring.auth(take("u", "s")), Err(Refusal::RoleNotGranted));
    ring.auth(AuthRequest::RoleDelete { role: name("r") }).unwrap();
    assert_eq!(ring.keyspace.auth().user_roles(&anonymous, "u"), Ok(&[][..]));
    let seen = ring.keyspace.auth().role_permissions(&anonymous, "r");
    assert_eq!(seen, Err(Refusal::RoleNotFound));
    assert_eq!(ring.keyspace.auth().users().collect::<Vec<_>>(), ["u"]);
}

#[test]
fn only_root_manages_and_everyone_may_look_at_themselves() {
    let mut ring = Ring::guarded(&[]);
    for (user, refusal) in [
        ("", Refusal::UserEmpty),
        ("u", Refusal::PermissionDenied),
        ("ghost", Refusal::UserNotFound),
    ] {
        assert_eq!(ring.by(user).auth(add("x")), Err(refusal));
    }
    let auth = ring.by("u").keyspace.auth();
    let u = auth.caller_of_user("u");
    assert_eq!(auth.user_roles(&u, "u"), Ok(&["r".to_owned()][..]));
    assert_eq!(auth.user_roles(&u, "root"), Err(Refusal::PermissionDenied));
    assert!(auth.role_permissions(&u, "r").is_ok());
    assert_eq!(auth.role_permissions(&u, "root"), Err(Refusal::PermissionDenied));
    ring.by("root").auth(add("x")).unwrap();
}

#[test]
fn an_old_revision_and_an_anonymous_caller_are_refused() {
    let mut ring = Ring::guarded(&[(ReadWrite, "a", "")]);
    ring.by("u").put("a", "1").unwrap();
    assert_eq!(ring.put("b", "1"), Err(Refusal::PermissionDenied));
    let u = ring.caller.clone();
    ring.by("root").auth(add("x")).unwrap();
    ring.caller = u;
    assert_eq!(ring.put("a", "2"), Err(Refusal::AuthOldRevision));
    assert_eq!(read(&ring, "a", ""), Err(Refusal::AuthOldRevision));
    ring.by("u").put("a", "2").unwrap();
    assert_eq!(ring.by("").put("a", "3"), Err(Refusal::UserEmpty));
    assert_eq!(ring.grant(1, 5), Err(Refusal::UserEmpty));
    assert_eq!(ring.value("a").as_deref(), Some("2"));
}

#[test]
fn seeing_what_was_there_needs_permission_to_read() {
    let mut ring = Ring::guarded(&[(Write, "a", "")]);
    ring.by("u").put("a", "1").unwrap();
    let prev = kv::PutRequest { prev_kv: true, ..put("a", "2") };
    assert_eq!(ring.ask(Request::Put(prev)), Err(Refusal::PermissionDenied));
    let delete = kv::DeleteRangeRequest { range: KeyRange::key(text("a")), prev_kv: true };
    assert_eq!(ring.ask(Request::DeleteRange(delete.clone())), Err(Refusal::PermissionDenied));
    let txn = |op| Request::Txn(TxnRequest { failure: vec![op], ..Default::default() });
    let nested = RequestOp::Txn(TxnRequest {
        success: vec![RequestOp::DeleteRange(delete)],
        ..Default::default()
    });
    assert_eq!(ring.ask(txn(nested)), Err(Refusal::PermissionDenied), "nor in a branch not taken");
    let conditional = PutIfRevision {
        key: text("a"),
        expected_revision: 9,
        value: text("x"),
        lease: 0,
        want_value: true,
    };
    let asked = ring.ask(Request::PutIfRevision(conditional.clone()));
    assert_eq!(asked, Err(Refusal::PermissionDenied));
    let blind = PutIfRevision { want_value: false, ..conditional };
    let conflict = Refusal::Conflict { at: 2, current: 2, value: None };
    assert_eq!(ring.ask(Request::PutIfRevision(blind)), Err(conflict));
    let compare = TxnRequest {
        compare: vec![kv::Compare {
            range: KeyRange::key(text("a")),
            result: kv::CompareResult::Equal,
            target: kv::CompareTarget::Version(0),
        }],
        ..Default::default()
    };
    let compared = ring.keyspace.read_txn(&ring.caller, &compare);
    assert_eq!(compared, Err(Refusal::PermissionDenied));
    assert_eq!(ring.value("a").as_deref(), Some("1"));
}

#[test]
fn sharing_a_lease_needs_permission_to_delete_its_keys() {
    let mut ring = Ring::guarded(&[(ReadWrite, "a", "b")]);
    ring.by("root").grant(7, 100).unwrap();
    ring.put_by("secret", "1", 7).unwrap();
    ring.by("u");
    let denied = Err(Refusal::PermissionDenied);
    assert_eq!(ring.put_by("a", "1", 7), denied);
    assert_eq!(ring.ask(Request::LeaseRevoke { id: 7 }).map(|_| 0), denied);
    assert_eq!(ring.renew(7).map(|_| 0), denied);
    let at = RingTime(0);
    let keys = ring.keyspace.time_to_live_with_keys(&ring.caller, 7, at);
    assert_eq!(keys.map(|_| 0), denied);
    assert!(ring.keyspace.time_to_live(&ring.caller, 7, at).is_ok(), "as in etcd");
    assert_eq!(ring.keyspace.lease_list(&ring.caller).map(|_| 0), denied);
    ring.by("root").delete("secret").unwrap();
    ring.by("u").put_by("a", "1", 7).unwrap();
    assert_eq!(ring.renew(7), Ok(100));
    assert_eq!(ring.keyspace.lease_list(&ring.caller), Ok(vec![7]));
    ring.ask(Request::LeaseRevoke { id: 7 }).unwrap();
    // A fenced role has the permissions of the key with its name.
    assert!(ring.role("a-role", "u", 8).is_ok());
    assert_eq!(ring.role("db", "u", 9).map(|_| 0), denied);
}

/// Reading a fenced role shows its lease, which only those end or renew who may take the role.
#[test]
fn the_lease_of_a_role_has_the_permissions_of_the_role() {
    let mut ring = Ring::guarded(&[(Read, "db", ""), (ReadWrite, "a", "b")]);
    ring.by("root").role("db", "root", 7).unwrap();
    ring.by("u");
    let role = ring.keyspace.role_status(&ring.caller, "db", RingTime(0)).unwrap();
    assert_eq!(role.holder.unwrap().lease, 7);
    let denied = Err(Refusal::PermissionDenied);
    let revoke = || Request::LeaseRevoke { id: 7 };
    assert_eq!(ring.ask(revoke()).map(|_| 0), denied);
    assert_eq!(ring.renew(7).map(|_| 0), denied);
    // Attached, the key would keep the holder from renewing.
    assert_eq!(ring.put_by("a", "1", 7), denied);
    let attached = RequestOp::Put(kv::PutRequest { lease: 7, ..put("a", "1") });
    let txn = TxnRequest { success: vec![attached], ..Default::default() };
    assert_eq!(ring.ask(Request::Txn(txn)).map(|_| 0), denied);
    ring.by("root").allow(ReadWrite, "db", "");
    assert_eq!(ring.by("u").renew(7), Ok(5));
    ring.put_by("a", "1", 7).unwrap();
    ring.ask(revoke()).unwrap();
    assert!(ring.role("db", "u", 8).is_ok());
}

fn names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-c]{1,3}", 0..6)
}

proptest! {
    /// The permissions on a lease are those on each of its keys.
    #[test]
    fn a_lease_is_judged_by_its_keys(keys in names(), starts in names(), ends in names()) {
        let ranges = starts.iter().zip(&ends).filter(|(start, end)| start < end);
        let ranges = ranges.map(|(start, end)| (Write, &**start, &**end));
        let points = starts.iter().skip(ends.len()).map(|start| (Write, &**start, ""));
        let mut ring = Ring::guarded(&ranges.chain(points).collect::<Vec<_>>());
        ring.by("root").grant(7, 100).unwrap();
        ring.grant(8, 100).unwrap();
        for key in &keys {
            ring.put_by(key, "", 7).unwrap();
            ring.put_by(&format!("{key}d"), "", 8).unwrap();
        }
        ring.by("u");
        let auth = ring.keyspace.auth();
        let key = |key: &String| auth.check_write(&ring.caller, &KeyRange::key(text(key)));
        let expected = keys.iter().try_for_each(key);
        prop_assert_eq!(ring.renew(7).map(|_| ()), expected);
    }
}

/// A check of every key of the lease took two thousand times as long.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test compares the time of puts")]
fn a_put_with_a_lease_takes_no_time_for_the_other_keys_of_the_lease() {
    let mut ring = Ring::guarded(&[(ReadWrite, "a", "b")]);
    ring.by("root").grant(7, 100).unwrap();
    ring.grant(8, 100).unwrap();
    for n in 0..50_000 {
        ring.put_by(&format!("a{n}"), "", 8).unwrap();
    }
    ring.by("u");
    let mut puts = |lease| {
        let began = Instant::now();
        for _ in 0..20 {
            ring.put_by("a", "", lease).unwrap();
        }
        began.elapsed()
    };
    let mut least = |lease| (0..10).map(|_| puts(lease)).min().unwrap();
    let (none, many) = (least(7), least(8));
    assert!(many < 50 * none, "{none:?} beside no key, {many:?} beside 50000");
}

/// GHSA-xg4h-6gfc-h4m8: a watch outlived the permission it was opened with.
#[test]
fn auth_3_a_watch_is_judged_by_what_its_user_may_read_now() {
    let mut ring = Ring::guarded(&[(Read, "a", "c")]);
    let u = ring.keyspace.auth().caller_of_user("u");
    let range = KeyRange::between(text("a"), text("c"));
    assert!(ring.keyspace.auth().check_read(&u, &range).is_ok());
    assert!(ring.keyspace.auth().watch_allowed(&u, b"b"));
    assert!(!ring.keyspace.auth().watch_allowed(&u, b"c"));
    // An unrelated change makes the revision old; the watch continues.
    ring.by("root").auth(add("x")).unwrap();
    assert!(ring.keyspace.auth().watch_allowed(&u, b"b"));
    let revoke = AuthRequest::RoleRevokePermission { role: "r".into(), range };
    ring.by("root").auth(revoke).unwrap();
    assert!(!ring.keyspace.auth().watch_allowed(&u, b"b"));
    ring.by("root").allow(ReadWrite, "\0", "\0");
    assert!(ring.keyspace.auth().watch_allowed(&u, b"b"));
    ring.by("root").auth(AuthRequest::UserDelete { name: "u".into() }).unwrap();
    assert!(!ring.keyspace.auth().watch_allowed(&u, b"b"));
    assert!(!ring.keyspace.auth().watch_allowed(&Caller::default(), b"b"));
    ring.by("root").auth(AuthRequest::Disable).unwrap();
    assert!(ring.keyspace.auth().watch_allowed(&Caller::default(), b"b"));
}

fn log_in(ring: &mut Ring, token: &str, ttl_s: u64) -> Result<(), Refusal> {
    let (_, checked_revision) = ring.keyspace.auth().password_hash("u")?;
    let token = TokenDigest::of(token);
    ring.auth(AuthRequest::Authenticate { user: "u".into(), token, ttl_s, checked_revision })
}

#[test]
fn auth_2_tokens_work_everywhere_until_their_time_or_their_user_ends() {
    let mut ring = Ring::guarded(&[]);
    ring.by("root").auth(add("v")).unwrap();
    ring.by("");
    assert_eq!(ring.keyspace.auth().password_hash("u").unwrap().0, "hash of u");
    assert_eq!(ring.keyspace.auth().password_hash("ghost"), Err(Refusal::AuthFailed));
    let who = |ring: &Ring, token: &str, at: u64| {
        let caller = ring.keyspace.auth().caller_of_token(token, RingTime(at))?;
        Ok(caller.user.map(|user| user.to_string()))
    };
    let invalid = Err(Refusal::InvalidAuthToken);
    assert_eq!(who(&ring, "t", 0), invalid);
    log_in(&mut ring, "t", 300).unwrap();
    assert_eq!(who(&ring, "t", 299_999), Ok(Some("u".into())));
    assert_eq!(who(&ring, "t", 300_000), invalid);
    // The token is in the replicated state, so it survives a restart and a change of leader.
    let changes = ring.keyspace.take_changes();
    let copy = Keyspace::restore(&changes.pages, std::iter::empty());
    assert!(copy.unwrap().auth().caller_of_token("t", RingTime(1)).is_ok());
    let change = |password: &str| AuthRequest::UserChangePassword {
        name: "u".into(),
        password: password.into(),
    };
    ring.by("root").auth(change("new")).unwrap();
    assert_eq!(who(&ring, "t", 1), invalid);
    for ending in [AuthRequest::UserDelete { name: "u".into() }, AuthRequest::Disable] {
        if ring.by("root").auth(add("u")).is_ok() {
            ring.auth(give("u", "r")).unwrap();
        }
        log_in(&mut ring, "t", 300).unwrap();
        ring.by("root").auth(ending).unwrap();
        ring.auth(AuthRequest::Enable).unwrap();
        assert_eq!(who(&ring, "t", 1), invalid);
    }
}

#[test]
fn logging_in_counts_only_while_what_the_rim_checked_still_holds() {
    let mut ring = Ring::guarded(&[]);
    let checked_revision = ring.keyspace.auth().password_hash("u").unwrap().1;
    ring.by("root").auth(add("x")).unwrap();
    let late = |user: &str, checked_revision| AuthRequest::Authenticate {
        user: user.into(),
        token: TokenDigest::of("t"),
        ttl_s: 300,
        checked_revision,
    };
    assert_eq!(ring.by("").auth(late("u", checked_revision)), Err(Refusal::AuthOldRevision));
    let certified = AuthRequest::UserAdd { name: "c".into(), password: None };
    ring.by("root").auth(certified).unwrap();
    let now = ring.keyspace.auth().revision();
    assert_eq!(ring.by("").auth(late("c", now)), Err(Refusal::AuthFailed));
    assert_eq!(ring.keyspace.auth().password_hash("c"), Err(Refusal::NoPasswordUser));
    ring.by("root").auth(AuthRequest::Disable).unwrap();
    assert_eq!(ring.by("").auth(late("u", now + 1)), Err(Refusal::AuthNotEnabled));
}

#[test]
fn tokens_past_their_time_are_forgotten_also_after_a_restart() {
    let mut ring = Ring::guarded(&[]);
    let empty = ring.keyspace.digest();
    log_in(&mut ring, "t", 5).unwrap();
    assert_ne!(ring.keyspace.digest(), empty);
    let changes = ring.keyspace.take_changes();
    let keyspace = Keyspace::restore(&changes.pages, std::iter::empty()).unwrap();
    let mut restarted = Ring { keyspace, ..Ring::new() };
    assert_eq!(restarted.at(5_000).keyspace.digest(), ring.at(5_000).keyspace.digest());
    let pages = restarted.keyspace.take_changes().pages;
    assert!(pages.keys().any(|name| name.starts_with("tokens/")), "and from the disk");
}

#[test]
fn tokens_of_one_user_are_bounded_and_the_oldest_gives_way() {
    let mut ring = Ring::guarded(&[]);
    for n in 0..=limits::USER_TOKENS_MAX {
        log_in(&mut ring, &n.to_string(), 300 + n as u64).unwrap();
    }
    let valid = |token: &str| ring.keyspace.auth().caller_of_token(token, RingTime(0)).is_ok();
    assert!(!valid("0") && valid("1") && valid(&limits::USER_TOKENS_MAX.to_string()));
}
