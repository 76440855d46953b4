//! The calls that run a ring, made by the thread that torments it.
//!
//! Each goes to one member and is given little time; a caller that needs more asks again.

use std::{future::Future, time::Duration};

use satrap_history::Digest;
use satrap_proto::etcdserverpb::{
    DefragmentRequest, HashKvRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MoveLeaderRequest, SnapshotRequest, StatusRequest, StatusResponse,
    cluster_client::ClusterClient, maintenance_client::MaintenanceClient,
};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};

use crate::session::Dialer;

/// A member as the ring knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: u64,
    /// Its addresses.
    pub peer_urls: Vec<String>,
    /// Whether it has no vote yet.
    pub learner: bool,
}

/// A client for one call at a time.
pub struct Admin {
    dialer: Dialer,
}

impl Admin {
    /// A client on the calling thread.
    #[must_use]
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer }
    }

    /// Connects, calls, and takes any failure for no answer. The connection ends with the runtime of
    /// the call: a member that stops waits for connections that are open.
    fn call<T, F: Future<Output = Result<T, Status>>>(
        &self,
        url: &str,
        limit: Duration,
        call: impl FnOnce(Channel) -> F,
    ) -> Option<T> {
        satrap_runtime::runtime::current_thread().ok()?.block_on(async {
            let channel = self.dialer.connect(url).await?;
            timeout(limit, call(channel)).await.ok()?.ok()
        })
    }

    /// A member's view of itself and its leader.
    #[must_use]
    pub fn status(&self, url: &str) -> Option<StatusResponse> {
        self.call(url, Duration::from_millis(400), |channel| async {
            let answer = MaintenanceClient::new(channel).status(StatusRequest {}).await;
            answer.map(tonic::Response::into_inner)
        })
    }

    /// The members of the ring.
    #[must_use]
    pub fn members(&self, url: &str) -> Option<Vec<Known>> {
        self.call(url, Duration::from_secs(1), |channel| async {
            let request = MemberListRequest { linearizable: true };
            let answer = ClusterClient::new(channel).member_list(request).await?.into_inner();
            let known = answer.members.into_iter().map(|member| Known {
                id: member.id,
                peer_urls: member.peer_ur_ls,
                learner: member.is_learner,
            });
            Ok(known.collect())
        })
    }

    /// Adds a member without a vote.
    #[must_use]
    pub fn add_learner(&self, url: &str, peer_url: String) -> bool {
        self.call(url, Duration::from_secs(2), |channel| async {
            let request = MemberAddRequest { peer_ur_ls: vec![peer_url], is_learner: true };
            ClusterClient::new(channel).member_add(request).await
        })
        .is_some()
    }

    /// Gives a member its vote, if it has caught up.
    #[must_use]
    pub fn promote(&self, url: &str, id: u64) -> bool {
        self.call(url, Duration::from_secs(2), |channel| async move {
            ClusterClient::new(channel).member_promote(MemberPromoteRequest { id }).await
        })
        .is_some()
    }

    /// Removes a member.
    #[must_use]
    pub fn remove(&self, url: &str, id: u64) -> bool {
        self.call(url, Duration::from_secs(2), |channel| async move {
            ClusterClient::new(channel).member_remove(MemberRemoveRequest { id }).await
        })
        .is_some()
    }

    /// Hands leadership to another member; only the leader does that.
    #[must_use]
    pub fn move_leader(&self, url: &str, target_id: u64) -> bool {
        self.call(url, Duration::from_secs(2), |channel| async move {
            MaintenanceClient::new(channel).move_leader(MoveLeaderRequest { target_id }).await
        })
        .is_some()
    }

    /// Defragments a member.
    #[must_use]
    pub fn defragment(&self, url: &str) -> bool {
        self.call(url, Duration::from_secs(5), |channel| async {
            MaintenanceClient::new(channel).defragment(DefragmentRequest {}).await
        })
        .is_some()
    }

    /// Takes a whole snapshot, and returns how many bytes came.
    #[must_use]
    pub fn snapshot(&self, url: &str) -> Option<usize> {
        self.call(url, Duration::from_secs(5), |channel| async {
            let mut client = MaintenanceClient::new(channel);
            let mut pieces = client.snapshot(SnapshotRequest {}).await?.into_inner();
            let mut bytes = 0;
            while let Some(piece) = pieces.message().await? {
                bytes += piece.blob.len();
            }
            Ok(bytes)
        })
    }

    /// A digest of a member's state at a revision.
    #[must_use]
    pub fn digest(&self, url: &str, revision: i64) -> Option<Digest> {
        self.call(url, Duration::from_secs(2), |channel| async move {
            let request = HashKvRequest { revision };
            let answer = MaintenanceClient::new(channel).hash_kv(request).await?.into_inner();
            Ok(Digest {
                member: answer.header.map_or(0, |header| header.member_id),
                revision,
                compacted: answer.compact_revision,
                hash: answer.hash.into(),
            })
        })
    }
}
