//! Executes the operators' requests: membership changes, snapshots and defragmentation.

use satrap_ring_api::backend::{AdminReply, AdminRequest, Failure, SnapshotStream, Unavailable};
use satrap_ring_core::{Refusal, alarm::AlarmKind};
use satrap_ring_storage::StorageError;
use tokio::{
    sync::mpsc,
    task,
    time::{Instant, sleep},
};

use super::{
    changes::{ChangeReply, MemberChange},
    platform::Platform,
    ring::Ring,
};
use crate::limits::{DEFRAGMENT_PATIENCE, DEFRAGMENT_PAUSE, SNAPSHOT_CHUNKS_MAX};

impl<P: Platform> Ring<P> {
    /// Executes an operator's request about the ring as a whole.
    ///
    /// # Errors
    ///
    /// [`Failure`] names the party at fault.
    pub async fn administer(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        let change = match request {
            AdminRequest::Defragment => return self.defragment().await,
            AdminRequest::Snapshot => return self.snapshot().await,
            AdminRequest::AddMember { peer_urls, is_learner } => {
                MemberChange::Invite { peer_urls, learner: is_learner }
            }
            AdminRequest::PromoteMember(id) => MemberChange::Promote(id),
            AdminRequest::RemoveMember(id) => MemberChange::Remove(id),
            AdminRequest::UpdateMember { id, peer_urls } => MemberChange::Update { id, peer_urls },
            AdminRequest::MoveLeader(id) => {
                self.members.request(&MemberChange::Lead(id)).await?;
                return Ok(AdminReply::Done);
            }
        };
        match self.members.request(&change).await? {
            ChangeReply::Invited(id) => {
                let members = self.members.list();
                let added = members.iter().find(|member| member.id == id).cloned();
                let added = added.ok_or(Unavailable::Timeout)?;
                Ok(AdminReply::Added(added, members))
            }
            _ => Ok(AdminReply::Members(self.members.list())),
        }
    }

    /// Shrinks the state's file; waits for readers of the old state, such as a snapshot being sent.
    async fn defragment(&self) -> Result<AdminReply, Failure> {
        let deadline = Instant::now() + DEFRAGMENT_PATIENCE;
        loop {
            let state = self.checkpoints.state();
            match P::off_thread(move || state.shrink()).await {
                Ok(Ok(_)) => return Ok(AdminReply::Done),
                Ok(Err(StorageError::Order(_))) if Instant::now() < deadline => {
                    sleep(DEFRAGMENT_PAUSE).await;
                }
                Ok(Err(StorageError::Order(why))) => {
                    tracing::info!(why, "cannot defragment the state; it is in use");
                    return Err(Unavailable::TooManyRequests.into());
                }
                failed => {
                    tracing::error!(?failed, "defragmentation failed");
                    return Err(Unavailable::Stopped.into());
                }
            }
        }
    }

    /// Streams the newest checkpoint, after writing one that covers everything applied. A member whose copy is
    /// known to be corrupt makes none: the snapshot would be restored as the ring's state, or push out a good one.
    async fn snapshot(&self) -> Result<AdminReply, Failure> {
        let own = self.node.own_id();
        let is_corrupt = self.node.read(|keyspace| {
            keyspace.alarms().list(Some(AlarmKind::Corrupt)).any(|alarm| Some(alarm.member) == own)
        });
        if is_corrupt {
            return Err(Refusal::Corrupt.into());
        }
        let stopped = |_| Failure::Unavailable(Unavailable::Stopped);
        let checkpoints = self.checkpoints.clone();
        let reader = P::off_thread(move || {
            checkpoints.complete()?;
            let Some(mut reader) = checkpoints.state().reader()? else { return Ok(None) };
            // The reply to clients starts with the size, which includes the frames' own bytes.
            let mut total_bytes = 0;
            while let Some(frame) = reader.frame()? {
                total_bytes += frame.bytes.len() as u64;
            }
            reader.seek(0)?;
            Ok::<_, StorageError>(Some((reader, total_bytes)))
        });
        let reader = reader.await.map_err(stopped)?.map_err(|error| {
            tracing::error!(%error, "cannot read the state");
            Failure::Unavailable(Unavailable::Stopped)
        })?;
        let (mut reader, total_bytes) = reader.ok_or(Unavailable::NoLeader)?;
        let (sender, chunks) = mpsc::channel(SNAPSHOT_CHUNKS_MAX);
        task::spawn_blocking(move || {
            loop {
                let chunk = match reader.frame() {
                    Ok(Some(frame)) => Ok(frame.bytes.into()),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::error!(%error, "cannot read the snapshot; it ends early");
                        Err(Unavailable::Stopped)
                    }
                };
                // The client may have closed the stream.
                if sender.blocking_send(chunk).is_err() {
                    return;
                }
            }
        });
        Ok(AdminReply::Snapshot(SnapshotStream { total_bytes, chunks }))
    }
}
