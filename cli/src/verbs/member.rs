//! `satrap member`: lists, adds, removes and replaces members of a running ring.
//!
//! These commands need a majority, so they never lose an acknowledged write. A ring that lost its
//! majority needs `satrap recover`, which can, and is a command of its own for that reason.

use std::fmt;

use satrap_identity::mtls;
use satrap_operator::{
    Error,
    client::etcd::{EtcdClient, answer, members},
};
use satrap_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberRemoveRequest, cluster_client::ClusterClient,
};
use serde::Serialize;
use tonic::transport::Channel;

use crate::{
    output::{Output, table},
    verbs::{block_on, etcd},
};

/// The subcommand.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Show the members
    List(List),
    /// Expect a member at an address; it learns, and votes once it has caught up
    Add(Add),
    /// Drop a member, or an invitation
    Remove(Remove),
    /// Drop a member that lost its disk and expect it back, empty, under the same name and address
    Replace(Replace),
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct List {
    #[command(flatten)]
    region: etcd::Args,
}

/// Arguments of `add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// The name in its certificate, which `satrap init` made, as no other command issues any
    name: String,
    /// Where the other members reach it
    #[arg(long, value_name = "URL", value_parser = peer_url)]
    peer_url: String,
    #[command(flatten)]
    region: etcd::Args,
}

/// Arguments of `remove`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    /// Its name, or its number in hex, as `member list` shows them; an invitation has only a number
    member: String,
    #[command(flatten)]
    region: etcd::Args,
}

/// Arguments of `replace`.
#[derive(clap::Args, Debug)]
pub struct Replace {
    /// Its name, or its number in hex, as `member list` shows them
    member: String,
    /// Where the other members will reach it, if elsewhere than before
    #[arg(long, value_name = "URL", value_parser = peer_url)]
    peer_url: Option<String>,
    #[command(flatten)]
    region: etcd::Args,
}

fn peer_url(text: &str) -> Result<String, String> {
    mtls::check_url(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

/// Runs the command.
///
/// # Errors
///
/// If no member answers, or the ring refuses.
pub fn run(verb: &Verb, output: &Output) -> Result<(), Error> {
    block_on(async {
        match verb {
            Verb::List(List { region }) => {
                let mut cluster = region.client()?.cluster().await?;
                output.show(&View::of(None, members(&mut cluster).await?))
            }
            Verb::Add(Add { name, peer_url, region }) => {
                let mut cluster = region.client()?.cluster().await?;
                let known = members(&mut cluster).await?;
                if known.iter().any(|member| member.name == *name) {
                    return Err(Error::refused(format!(
                        "`{name}` is a member; if it lost its disk: satrap member replace {name}"
                    )));
                }
                if let Some(taken) =
                    known.iter().find(|member| member.peer_ur_ls.contains(peer_url))
                {
                    let whose = match taken.name.as_str() {
                        "" => format!("the invitation {:x}", taken.id),
                        name => format!("member `{name}`"),
                    };
                    return Err(Error::refused(format!(
                        "{peer_url} is the address of {whose} already; remove that one first, or give \
                         another --peer-url"
                    )));
                }
                let after = add(&mut cluster, peer_url).await?;
                let next = format!(
                    "start `{name}` with an empty data directory at {peer_url}; it needs a directory \
                     that `satrap init` made for this name, as no other command of satrap issues \
                     certificates"
                );
                output.show(&View::of(Some(next), after))
            }
            Verb::Remove(Remove { member, region }) => {
                let mut client = region.client()?;
                let found = find(&members(&mut client.cluster().await?).await?, member)?;
                let mut cluster = others(&mut client, &found).await?;
                let after = remove(&mut cluster, found.id).await?;
                let name = found.name;
                // An invitation has no name, and no process yet.
                let next = (!name.is_empty()).then(|| {
                    format!(
                        "stop `{name}`, and take its `[[members]]` entry out of the region.toml of \
                         the other members"
                    )
                });
                output.show(&View::of(next, after))
            }
            Verb::Replace(args) => replace(args, output).await,
        }
    })
}

async fn replace(args: &Replace, output: &Output) -> Result<(), Error> {
    let Replace { member, peer_url, region } = args;
    let mut client = region.client()?;
    let known = members(&mut client.cluster().await?).await?;
    let found = match find(&known, member) {
        Ok(found) => found,
        // An earlier run ended between removing the member and inviting it again.
        Err(_) if peer_url.is_some() => Member { name: member.clone(), ..Member::default() },
        Err(error) => {
            let hint = "if an earlier `replace` removed it already, give --peer-url";
            return Err(Error::refused(format!("{}; {hint}", error.message)));
        }
    };
    let mut cluster = others(&mut client, &found).await?;
    let Member { id, name, peer_ur_ls, .. } = found;
    let peer_url = peer_url.clone().or_else(|| peer_ur_ls.into_iter().next()).ok_or_else(|| {
        Error::usage(format!("`{name}` has no known address; give --peer-url URL"))
    })?;
    if id != 0 {
        remove(&mut cluster, id).await?;
    }
    let after = add(&mut cluster, &peer_url).await.map_err(|error| Error {
        message: format!(
            "`{name}` was removed, and is not invited again: {}; go on with `satrap member replace \
             {name} --peer-url {peer_url}`",
            error.message
        ),
        ..error
    })?;
    let next = format!(
        "start `{name}` with an empty data directory at {peer_url}; it votes once it has caught up"
    );
    output.show(&View::of(Some(next), after))
}

/// The cluster service at another member than `leaving`, which answers nothing more once it has left.
async fn others(
    client: &mut EtcdClient,
    leaving: &Member,
) -> Result<ClusterClient<Channel>, Error> {
    client.leave_out(leaving.id).await;
    client.cluster().await
}

async fn add(cluster: &mut ClusterClient<Channel>, peer_url: &str) -> Result<Vec<Member>, Error> {
    let request = MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner: false };
    let added = cluster.member_add(request).await;
    added.map(|reply| reply.into_inner().members).map_err(|status| answer(&status))
}

async fn remove(cluster: &mut ClusterClient<Channel>, id: u64) -> Result<Vec<Member>, Error> {
    let removed = cluster.member_remove(MemberRemoveRequest { id }).await;
    removed.map(|reply| reply.into_inner().members).map_err(|status| answer(&status))
}

fn find(members: &[Member], wanted: &str) -> Result<Member, Error> {
    let number = u64::from_str_radix(wanted, 16).ok();
    let by_name = members.iter().find(|member| member.name == wanted);
    let by_number = || members.iter().find(|member| Some(member.id) == number);
    by_name.or_else(by_number).cloned().ok_or_else(|| {
        // A member that is expected has no name before it has come.
        let listed = members.iter().map(|member| match member.name.as_str() {
            "" => format!("{:x} (expected at {})", member.id, member.peer_ur_ls.join(",")),
            name => format!("`{name}`"),
        });
        let listed = listed.collect::<Vec<_>>().join(", ");
        Error::refused(format!("the ring has no member `{wanted}`; its members are {listed}"))
    })
}

#[derive(Serialize)]
struct View {
    next: Option<String>,
    members: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: String,
    /// Empty until it has come.
    name: String,
    role: &'static str,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
}

impl View {
    fn of(next: Option<String>, members: Vec<Member>) -> Self {
        let row = |member: Member| Row {
            id: format!("{:x}", member.id),
            role: match (member.name.is_empty(), member.is_learner) {
                (true, _) => "expected",
                (false, true) => "learner",
                (false, false) => "voter",
            },
            name: member.name,
            peer_urls: member.peer_ur_ls,
            client_urls: member.client_ur_ls,
        };
        Self { next, members: members.into_iter().map(row).collect() }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["ID", "NAME", "ROLE", "PEERS REACH IT AT", "CLIENTS REACH IT AT"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.members.iter().map(|Row { id, name, role, peer_urls, client_urls }| {
            let (peers, clients) = (peer_urls.join(","), client_urls.join(","));
            vec![id.clone(), name.clone(), (*role).to_owned(), peers, clients]
        }));
        write!(f, "{}", table(&rows))?;
        self.next.as_ref().map_or(Ok(()), |next| writeln!(f, "next: {next}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_member_is_answered_with_those_that_there_are() {
        let member = |id, name: &str| Member {
            id,
            name: name.to_owned(),
            peer_ur_ls: vec!["https://10.0.0.4:7".to_owned()],
            ..Member::default()
        };
        let members = [member(10, "a"), member(11, "b"), member(0xc, "")];
        let error = find(&members, "x").unwrap_err();
        assert_eq!(
            error.message,
            "the ring has no member `x`; its members are `a`, `b`, c (expected at \
             https://10.0.0.4:7)"
        );
        assert_eq!(find(&members, "c").unwrap().id, 0xc);
    }
}
