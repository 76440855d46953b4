//! Permissions of all calls. `permissions.txt` has a line for every call and kind of caller;
//! its first six columns are equal to what etcd 3.7.3 answered to the same calls.
//!
//! `off`: authentication is off. Then, while it is on: `root`; `with` and `without` permission for the
//! keys concerned; `none` without a token; `bad token`. In `root*` and `with*` users change between
//! the moment we look at the token and the moment the request takes effect.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use satrap_proto::{authpb, etcdserverpb as pb};
use tonic::Status;

use crate::calls;
use crate::harness::{Listening, Member, Remote, run};

const EXPECTED: &str = include_str!("permissions.txt");
const COLUMNS: [&str; 8] =
    ["off", "root", "with", "without", "none", "bad token", "root*", "with*"];
/// The beginnings of etcd's texts.
const ETCD: &str = "etcdserver: ";

/// One call by one caller.
pub struct Call {
    pub name: &'static str,
    pub make: Box<dyn Fn(Remote) -> LocalBoxFuture<'static, Result<(), Status>>>,
}

impl Call {
    pub fn new<F>(name: &'static str, make: impl Fn(Remote) -> F + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + 'static,
    {
        Self { name, make: Box::new(move |client| make(client).boxed_local()) }
    }
}

/// Users `root`, `alice` who may do everything below `a/`, `bob` who may do nothing; two keys and two
/// leases.
async fn furnish(member: &Member) {
    let auth = || member.anyone().auth();
    for name in ["root", "ra", "rx"] {
        auth().role_add(pb::AuthRoleAddRequest { name: name.to_owned() }).await.unwrap();
    }
    let perm = authpb::Permission {
        perm_type: authpb::permission::Type::Readwrite.into(),
        key: "a/".into(),
        range_end: "a0".into(),
    };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "ra".to_owned(), perm: Some(perm) };
    auth().role_grant_permission(grant).await.unwrap();
    for name in ["root", "alice", "bob"] {
        let password = "pw".to_owned();
        let add = pb::AuthUserAddRequest { name: name.to_owned(), password, ..Default::default() };
        auth().user_add(add).await.unwrap();
    }
    for (user, role) in [("root", "root"), ("alice", "ra")] {
        let grant = pb::AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
        auth().user_grant_role(grant).await.unwrap();
    }
    for id in [100, 101] {
        let wanted = pb::LeaseGrantRequest { id, ttl: 1_000 };
        member.anyone().leases().lease_grant(wanted).await.unwrap();
    }
    member.put("a/1", "v", 100).await;
    member.put("b/1", "v", 0).await;
}

/// The caller of this column.
async fn enter(member: &Member, listening: &Listening, column: &str) -> Remote {
    if column == "off" {
        return listening.client(None);
    }
    member.anyone().auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let user = match column {
        "none" => return listening.client(None),
        "bad token" => return listening.client(Some("bad.1")),
        "root" | "root*" => "root",
        "with" | "with*" => "alice",
        _ => "bob",
    };
    let asked = pb::AuthenticateRequest { name: user.to_owned(), password: "pw".to_owned() };
    let given = member.anyone().auth().authenticate(asked).await.unwrap();
    member.levers.users_change.store(column.ends_with('*'), Relaxed);
    listening.client(Some(&given.into_inner().token))
}

fn text(outcome: Result<(), Status>) -> String {
    match outcome {
        Ok(()) => "OK".to_owned(),
        Err(status) => {
            format!("{:?}: {}", status.code(), status.message().replace(ETCD, ""))
        }
    }
}

/// The first outcome, and who gets another.
fn line(name: &str, outcomes: &[String]) -> String {
    let mut others: BTreeMap<usize, (&String, Vec<&str>)> = BTreeMap::new();
    for (column, outcome) in COLUMNS.iter().zip(outcomes).skip(1) {
        if *outcome == outcomes[0] {
            continue;
        }
        let first = outcomes.iter().position(|other| other == outcome).expect("it is one of them");
        others.entry(first).or_insert((outcome, Vec::new())).1.push(column);
    }
    let others = others.into_values();
    let others = others.map(|(outcome, columns)| format!(" | {} = {outcome}", columns.join(", ")));
    format!("{name} | {}{}\n", outcomes[0], others.collect::<String>())
}

#[test]
fn every_caller_is_answered_as_by_etcd() {
    let mut table = String::new();
    for row in 0..calls::all().len() {
        let mut outcomes = Vec::new();
        for column in COLUMNS {
            run(async {
                let member = Member::start();
                furnish(&member).await;
                let listening = Listening::of(&member).await;
                let client = enter(&member, &listening, column).await;
                let call = calls::all().swap_remove(row);
                outcomes.push(text((call.make)(client).await));
            });
        }
        table += &line(calls::all()[row].name, &outcomes);
    }
    let expected = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    assert!(table.lines().eq(expected), "permissions.txt should be:\n{table}");
}
