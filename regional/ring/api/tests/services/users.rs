//! Users, passwords, tokens and certificates.

use satrap_proto::{authpb, etcdserverpb as pb};
use tonic::{Code, Status};

use crate::harness::{Client, Member, run};

fn s(text: &str) -> String {
    text.to_owned()
}

async fn add(client: &Client, name: &str, password: &str) -> Result<(), Status> {
    let (name, password) = (s(name), s(password));
    let add = pb::AuthUserAddRequest { name, password, ..Default::default() };
    client.auth().user_add(add).await.map(drop)
}

async fn login(member: &Member, name: &str, password: &str) -> Result<Client, Status> {
    let asked = pb::AuthenticateRequest { name: s(name), password: s(password) };
    let given = member.anyone().auth().authenticate(asked).await?;
    Ok(member.with_token(&given.into_inner().token))
}

async fn roles(client: &Client, name: &str) -> Result<Vec<String>, Status> {
    let answer = client.auth().user_get(pb::AuthUserGetRequest { name: s(name) }).await?;
    Ok(answer.into_inner().roles)
}

/// A member with authentication on, and its administrator.
async fn guarded() -> (Member, Client) {
    let member = Member::start();
    let anyone = member.anyone();
    add(&anyone, "root", "secret").await.unwrap();
    add(&anyone, "alice", "pw").await.unwrap();
    let grant = pb::AuthUserGrantRoleRequest { user: s("root"), role: s("root") };
    anyone.auth().user_grant_role(grant).await.unwrap();
    anyone.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let root = login(&member, "root", "secret").await.unwrap();
    (member, root)
}

#[test]
fn authentication_needs_a_root_before_it_is_enabled() {
    run(async {
        let member = Member::start();
        let mut auth = member.anyone().auth();
        let enabled = auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap_err();
        assert_eq!(enabled.message(), "etcdserver: root user does not exist");
        add(&member.anyone(), "root", "secret").await.unwrap();
        let enabled = auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap_err();
        assert_eq!(enabled.message(), "etcdserver: root user does not have root role");
        let status = auth.auth_status(pb::AuthStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.enabled, status.auth_revision), (false, 2));
    });
}

#[test]
fn only_the_present_password_gives_a_token() {
    run(async {
        let (member, root) = guarded().await;
        let alice = login(&member, "alice", "pw").await.unwrap();
        assert_eq!(roles(&alice, "alice").await.unwrap(), Vec::<String>::new());
        let change = |password: &str| pb::AuthUserChangePasswordRequest {
            name: s("alice"),
            password: s(password),
            ..Default::default()
        };
        root.auth().user_change_password(change("new")).await.unwrap();
        let old = roles(&alice, "alice").await.unwrap_err();
        assert_eq!(
            (old.code(), old.message()),
            (Code::Unauthenticated, "etcdserver: invalid auth token")
        );
        let refused = login(&member, "alice", "pw").await.err().unwrap();
        assert_eq!(
            refused.message(),
            "etcdserver: authentication failed, invalid user ID or password"
        );
        login(&member, "alice", "new").await.unwrap();
        root.auth().user_change_password(change("")).await.unwrap();
        for password in ["", "new"] {
            assert_eq!(
                login(&member, "alice", password).await.err().unwrap().code(),
                Code::InvalidArgument
            );
        }
    });
}

#[test]
fn a_user_without_password_comes_with_a_certificate() {
    run(async {
        let (member, root) = guarded().await;
        let options = Some(authpb::UserAddOptions { no_password: true });
        let add = pb::AuthUserAddRequest { name: s("carol"), options, ..Default::default() };
        root.auth().user_add(add).await.unwrap();
        let refused = login(&member, "carol", "").await.err().unwrap();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unknown, "auth: authentication failed, password was given for no password user")
        );
        let carol = member.with_certificate("carol");
        assert_eq!(roles(&carol, "carol").await.unwrap(), Vec::<String>::new());
        assert_eq!(roles(&carol, "alice").await.unwrap_err().code(), Code::PermissionDenied);
        // A certificate of a name that is no user gives nothing.
        let mallory = member.with_certificate("mallory");
        assert_eq!(
            roles(&mallory, "alice").await.unwrap_err().message(),
            "etcdserver: user name not found"
        );
    });
}

#[test]
fn neither_passwords_nor_tokens_are_in_the_state() {
    run(async {
        let (member, root) = guarded().await;
        let asked = pb::AuthenticateRequest { name: s("root"), password: s("secret") };
        let token = member.anyone().auth().authenticate(asked).await.unwrap().into_inner().token;
        assert_eq!(token.len(), 64);
        let bearer = member.with_token(&format!("Bearer {token}"));
        assert_eq!(roles(&bearer, "root").await.unwrap(), ["root"]);
        let state = member.backend.inspect(|keyspace| format!("{:?}", keyspace.auth()));
        assert!(state.contains("root") && !state.contains("secret") && !state.contains(&token));
        assert_eq!(roles(&root, "root").await.unwrap(), ["root"]);
    });
}

#[test]
fn a_token_ends_with_its_time_and_with_its_user() {
    run(async {
        let (member, root) = guarded().await;
        let alice = login(&member, "alice", "pw").await.unwrap();
        root.auth().user_delete(pb::AuthUserDeleteRequest { name: s("alice") }).await.unwrap();
        assert_eq!(roles(&alice, "alice").await.unwrap_err().code(), Code::Unauthenticated);
        let day_ms = 24 * 3600 * 1000;
        member.levers.ahead_ms.store(day_ms - 60_000, std::sync::atomic::Ordering::Relaxed);
        member.put("a", "", 0).await;
        assert!(roles(&root, "root").await.is_ok());
        member.levers.ahead_ms.store(day_ms + 1, std::sync::atomic::Ordering::Relaxed);
        member.put("a", "", 0).await;
        assert_eq!(roles(&root, "root").await.unwrap_err().code(), Code::Unauthenticated);
    });
}

#[test]
fn names_and_passwords_that_no_member_could_read_back_are_refused() {
    run(async {
        let member = Member::start();
        let anyone = member.anyone();
        add(&anyone, &"n".repeat(1024), "pw").await.unwrap();
        let long = add(&anyone, &"n".repeat(1025), "pw").await.unwrap_err();
        assert_eq!(long.message(), "etcdserver: request is too large");
        assert!(add(&anyone, "n", &"p".repeat(1025)).await.is_err());
        let status = anyone.auth().auth_status(pb::AuthStatusRequest {}).await.unwrap();
        assert_eq!(status.into_inner().auth_revision, 2, "only the first was added");
    });
}
