//! STATE-1, STATE-3, STATE-4, STATE-5: a state is a function of its log, and a checkpoint is that state.

use proptest::{collection::vec, prelude::*};
use satrap_ring_core::{
    Batch, Caller, Command, Keyspace, Proposal, Reply, Request, RingTime,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
    auth::{AuthRequest, Permission, PermissionKind, TokenDigest},
    fencing::{GrantRole, ReleaseRole},
    fencing_token::FencingToken,
    keyspace::{Pages, PutIfRevision, PutSequential},
    kv::{
        Compare, CompareResult, CompareTarget, DeleteRangeRequest, Event, KeyRange, PutRequest,
        RangeRequest, RequestOp, TxnRequest,
    },
    members::{MemberRequest, Published},
    quota::{PrefixLimits, QuotaRequest},
};

use crate::{fencing::recovery, ring::text};

const KEYS: [&str; 6] = ["a", "a/1", "a/2", "b", "b/1", "c"];

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&KEYS[..])
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0), 2 => 1..6_i64]
}

fn put() -> impl Strategy<Value = PutRequest> {
    (key(), "[xyz]{0,9}", lease(), 0..8_u8).prop_map(|(key, value, lease, flags)| PutRequest {
        lease,
        prev_kv: flags & 1 != 0,
        ignore_lease: flags == 6 && lease == 0,
        ignore_value: flags == 7,
        ..PutRequest::of(text(key), text(&value))
    })
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), prop_oneof![Just(""), Just("b"), Just("\0")], any::<bool>()).prop_map(
        |(start, end, prev_kv)| DeleteRangeRequest {
            range: KeyRange::between(text(start), text(end)),
            prev_kv,
        },
    )
}

fn op() -> impl Strategy<Value = RequestOp> {
    prop_oneof![
        put().prop_map(RequestOp::Put),
        delete().prop_map(RequestOp::DeleteRange),
        key().prop_map(|key| RequestOp::Range(RangeRequest::of(KeyRange::key(text(key))))),
    ]
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let compare = (key(), 0..4_i64).prop_map(|(key, version)| Compare {
        range: KeyRange::key(text(key)),
        result: CompareResult::Less,
        target: CompareTarget::Version(version),
    });
    (vec(compare, 0..2), vec(op(), 0..4), vec(op(), 0..3))
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
}

fn auth() -> impl Strategy<Value = AuthRequest> {
    let name = || prop::sample::select(vec!["root", "u", "v"]).prop_map(str::to_owned);
    let kind = prop::sample::select(vec![PermissionKind::Read, PermissionKind::ReadWrite]);
    let permission = (kind, key(), prop_oneof![Just(""), Just("c"), Just("\0")])
        .prop_map(|(kind, start, end)| Permission {
            kind,
            range: KeyRange::between(text(start), text(end)),
        })
        .boxed();
    prop_oneof![
        Just(AuthRequest::Enable),
        Just(AuthRequest::Disable),
        (name(), any::<bool>()).prop_map(|(name, has)| AuthRequest::UserAdd {
            name,
            password: has.then(|| "hash".into()),
        }),
        name().prop_map(|name| AuthRequest::UserDelete { name }),
        name().prop_map(|name| AuthRequest::UserChangePassword { name, password: "new".into() }),
        (name(), name()).prop_map(|(user, role)| AuthRequest::UserGrantRole { user, role }),
        (name(), name()).prop_map(|(name, role)| AuthRequest::UserRevokeRole { name, role }),
        name().prop_map(|name| AuthRequest::RoleAdd { name }),
        name().prop_map(|role| AuthRequest::RoleDelete { role }),
        (name(), permission.clone()).prop_map(|(name, permission)| {
            AuthRequest::RoleGrantPermission { name, permission: Some(permission) }
        }),
        (name(), permission).prop_map(|(role, permission)| AuthRequest::RoleRevokePermission {
            role,
            range: permission.range,
        }),
        (name(), any::<u8>(), 1..20_u64, 1..12_u64).prop_map(
            |(user, token, ttl_s, checked_revision)| AuthRequest::Authenticate {
                user,
                token: TokenDigest([token; 32]),
                ttl_s,
                checked_revision,
            }
        ),
    ]
}

fn keys_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        6 => put().prop_map(Request::Put),
        2 => delete().prop_map(Request::DeleteRange),
        3 => txn().prop_map(Request::Txn),
        1 => (1..40_i64).prop_map(|revision| Request::Compact { revision }),
        1 => (key(), 0..20_i64, any::<bool>()).prop_map(|(key, expected_revision, want_value)| {
            let (key, value) = (text(key), text("if"));
            Request::PutIfRevision(PutIfRevision {
                key, expected_revision, value, lease: 0, want_value,
            })
        }),
        1 => (key(), lease()).prop_map(|(prefix, lease)| {
            Request::PutSequential(PutSequential { prefix: text(prefix), value: text("s"), lease })
        }),
    ]
}

fn other_request() -> impl Strategy<Value = Request> {
    let role = || key().prop_map(str::to_owned);
    let alarm = (any::<bool>(), any::<bool>(), 0..3_u64).prop_map(|(raise, space, member)| {
        let kind = if space { AlarmKind::NoSpace } else { AlarmKind::Corrupt };
        let alarm = AlarmMember { kind, member };
        // Cleared more often than raised, so that other requests succeed too.
        Request::Alarm(if raise && member == 0 {
            AlarmRequest::Activate(alarm)
        } else {
            AlarmRequest::Deactivate(AlarmMember { member: 0, ..alarm })
        })
    });
    let quota = (key(), 0..40_u64, 0..4_u64).prop_map(|(prefix, bytes_max, keys_max)| {
        let limits = PrefixLimits { bytes_max, keys_max };
        Request::Quota(QuotaRequest::Prefix { prefix: text(prefix), limits })
    });
    prop_oneof![
        4 => (0..6_i64, 0..9_i64).prop_map(|(id, ttl_s)| Request::LeaseGrant { id, ttl_s }),
        1 => (1..6_i64).prop_map(|id| Request::LeaseRevoke { id }),
        2 => (1..6_i64).prop_map(|id| Request::LeaseRenew { id }),
        2 => (role(), 6..12_i64).prop_map(|(role, lease)| {
            Request::GrantRole(GrantRole { role, holder: "h".into(), ttl_s: 3, lease })
        }),
        1 => (role(), 1..4_u32).prop_map(|(role, counter)| {
            Request::ReleaseRole(ReleaseRole { role, token: FencingToken { epoch: 0, counter } })
        }),
        4 => auth().prop_map(Request::Auth),
        2 => alarm,
        1 => quota,
        1 => (0..5_000_u64).prop_map(|bytes_max| {
            Request::Quota(QuotaRequest::Total { bytes_max: bytes_max + 3_000 })
        }),
        1 => (1..4_u32, 0..60_i64).prop_map(|(epoch, leap)| {
            Request::Recovery(recovery(epoch, leap))
        }),
        1 => Just(Request::Tick),
        1 => (0..4_u64, any::<bool>()).prop_map(|(id, forget)| {
            let published = Published { client_urls: vec![format!("https://{id}")] };
            Request::Member(match forget {
                true => MemberRequest::Forget { id },
                false => MemberRequest::Publish { id, published },
            })
        }),
    ]
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let caller = (prop::sample::select(vec!["", "root", "u"]), 0..12_u64).prop_map(
        |(user, auth_revision)| Caller {
            user: (!user.is_empty()).then(|| user.into()),
            auth_revision,
        },
    );
    let request = prop_oneof![3 => keys_request(), 2 => other_request()];
    (caller, request).prop_map(|(caller, request)| Proposal { caller, request })
}

fn batch() -> impl Strategy<Value = Batch> {
    (0..40_000_u64, vec(proposal(), 0..6))
        .prop_map(|(time, proposals)| Batch { time: RingTime(time), proposals })
}

/// Batches whose times mostly grow, and sometimes do not.
fn log() -> impl Strategy<Value = Vec<Batch>> {
    vec(batch(), 1..40).prop_map(|mut batches| {
        for (n, batch) in batches.iter_mut().enumerate() {
            batch.time.0 = n as u64 * 700 + batch.time.0 % 1_400;
        }
        batches
    })
}

/// Everything observable that can distinguish two states, besides their next replies.
fn observed(keyspace: &Keyspace) -> String {
    let store = keyspace.store();
    let from = store.compacted().max(1);
    let history: Vec<_> = (from..=store.revision())
        .map(|revision| {
            let range = RangeRequest { revision, ..RangeRequest::of(KeyRange::all()) };
            store.range(&range)
        })
        .collect();
    let leases: Vec<_> = (0..12)
        .map(|id| {
            let keys: Vec<_> = keyspace.leases().keys(id).collect();
            (keyspace.leases().time_to_live(id, keyspace.now()), keys)
        })
        .collect();
    let auth = keyspace.auth();
    let root = auth.caller_of_user("root");
    let roles: Vec<_> = auth.users().map(|user| auth.user_roles(&root, user)).collect();
    let permissions: Vec<_> = auth.roles().map(|role| auth.role_permissions(&root, role)).collect();
    let held: Vec<_> = KEYS.iter().map(|role| keyspace.roles().get(role)).collect();
    format!(
        "{history:?} {leases:?} {roles:?} {permissions:?} {held:?} \
         {:?} {:?} {:?} {:?} {:?} {} {} {:?}",
        (0..4).map(|id| keyspace.members().published(id)).collect::<Vec<_>>(),
        keyspace.alarms().list(None).collect::<Vec<_>>(),
        keyspace.quotas().list().collect::<Vec<_>>(),
        keyspace.quotas().total_bytes_max(),
        keyspace.recoveries().collect::<Vec<_>>(),
        keyspace.now(),
        store.sizes().held_bytes,
        keyspace.next_expiry(),
    )
}

/// A disk: the newest page of each name, and every event ever written.
#[derive(Default)]
struct Disk {
    pages: Pages,
    events: Vec<Event>,
}

impl Disk {
    fn checkpoint(&mut self, keyspace: &mut Keyspace) {
        let changes = keyspace.take_changes();
        self.pages.extend(changes.pages);
        self.events.extend(changes.events);
        // Versions that the store no longer needs may be dropped, oldest first.
        let store = keyspace.store();
        let half = store.revision() / 2;
        self.events.retain(|event| {
            event.mod_revision > half || store.holds(event.key(), event.mod_revision)
        });
    }

    fn restore(&self) -> Keyspace {
        Keyspace::restore(&self.pages, self.events.iter().cloned()).unwrap()
    }
}

fn quotas_recounted(keyspace: &Keyspace) -> Result<(), TestCaseError> {
    for (prefix, _, used) in keyspace.quotas().list() {
        let all = RangeRequest::of(KeyRange::prefix(prefix.clone()));
        let live = keyspace.store().range(&all).unwrap().kvs;
        let bytes: usize = live.iter().map(|kv| kv.key_and_value().len()).sum();
        prop_assert_eq!((used.bytes, used.keys), (bytes as u64, live.len() as u64));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// STATE-1, through the encoding: the replayed log is the decoded one.
    #[test]
    fn the_same_log_gives_the_same_state_and_the_same_replies(log in log()) {
        let (mut one, mut other) = (Keyspace::new(), Keyspace::new());
        for batch in log {
            let entry = Command::Batch(batch.clone()).encode();
            let Command::Batch(decoded) = Command::decode(&entry.into()).unwrap() else { panic!() };
            prop_assert_eq!(&decoded, &batch);
            prop_assert_eq!(one.apply(&batch), other.apply(&decoded));
            // Members reclaim memory at their own pace, without an observable difference (KV-4).
            while one.reclaim(1) == satrap_ring_core::kv::Reclaimed::More {}
            prop_assert_eq!(one.digest(), other.digest());
        }
        prop_assert_eq!(observed(&one), observed(&other));
        quotas_recounted(&one)?;
    }

    /// STATE-5: a restart at any moment is not observable, then or later.
    #[test]
    fn a_restored_state_answers_as_the_one_that_was_saved(
        log in log(),
        restarts in vec(any::<bool>(), 40),
    ) {
        let (mut steady, mut restarted) = (Keyspace::new(), Keyspace::new());
        let mut disk = Disk::default();
        for (batch, restart) in log.iter().zip(restarts) {
            let replies: (Vec<Reply>, Vec<Reply>) = (steady.apply(batch), restarted.apply(batch));
            prop_assert_eq!(replies.0, replies.1);
            if restart {
                disk.checkpoint(&mut restarted);
                restarted = disk.restore();
                prop_assert_eq!(observed(&steady), observed(&restarted));
                quotas_recounted(&restarted)?;
            }
            prop_assert_eq!(steady.digest(), restarted.digest());
        }
    }

    /// STATE-3: a refused request has changed nothing.
    #[test]
    fn a_refusal_changes_nothing(log in log()) {
        let mut keyspace = Keyspace::new();
        for batch in log {
            keyspace.apply(&Batch { time: batch.time, proposals: vec![] });
            for proposal in batch.proposals {
                let before = (keyspace.digest(), observed(&keyspace));
                let one = Batch { time: batch.time, proposals: vec![proposal] };
                if keyspace.apply(&one)[0].is_err() {
                    prop_assert_eq!((keyspace.digest(), observed(&keyspace)), before);
                }
            }
        }
    }

    /// STATE-4: bytes of a hostile member decode to something harmless or to nothing.
    #[test]
    fn damaged_entries_never_panic(log in log(), place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut keyspace = Keyspace::new();
        for batch in log {
            let mut entry = Command::Batch(batch).encode();
            let place = place.index(entry.len());
            entry[place] ^= 1 << bit;
            if let Ok(Command::Batch(batch)) = Command::decode(&entry.into()) {
                keyspace.apply(&batch);
            }
        }
        let restored = Keyspace::restore(
            &keyspace.take_changes().pages,
            keyspace.store().events(0, usize::MAX).flatten().cloned(),
        );
        prop_assert!(restored.is_ok() || keyspace.store().compacted() >= 0);
    }
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let mut keyspace = Keyspace::new();
    let request = |request| Proposal { caller: Caller::default(), request };
    let put = PutRequest { lease: 7, ..PutRequest::of(text("k"), text("v")) };
    let proposals =
        vec![request(Request::LeaseGrant { id: 7, ttl_s: 100 }), request(Request::Put(put))];
    keyspace.apply(&Batch { time: RingTime(1), proposals });
    let changes = keyspace.take_changes();
    let restore = |change: &dyn Fn(&mut Pages)| {
        let mut pages = changes.pages.clone();
        change(&mut pages);
        Keyspace::restore(&pages, changes.events.iter().cloned()).map_err(|e| e.to_string())
    };
    assert!(restore(&|_| ()).is_ok());
    let forgotten = Keyspace::restore(&changes.pages, std::iter::empty()).unwrap_err();
    assert!(forgotten.to_string().starts_with("the state has digest"));
    let lost = restore(&|pages| pages.retain(|name, _| !name.starts_with("leases/")));
    assert_eq!(lost.unwrap_err(), "something lives by lease 7, which does not exist");
    let newer = restore(&|pages| {
        pages.insert("leases/1024".into(), vec![]);
    });
    assert!(newer.unwrap_err().contains("newer version"));
    let trailing = restore(&|pages| pages.get_mut("meta").unwrap().push(0));
    assert_eq!(trailing.unwrap_err(), "page meta: 1 bytes follow the value");
    let elsewhere = restore(&|pages| {
        let name = pages.keys().find(|name| name.starts_with("leases/")).unwrap().clone();
        let page = pages.remove(&name).unwrap();
        pages
            .insert(if name == "leases/0000" { "leases/0001" } else { "leases/0000" }.into(), page);
    });
    assert!(elsewhere.unwrap_err().contains("a row of another page"));
}
