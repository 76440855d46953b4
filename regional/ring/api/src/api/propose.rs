//! Proposes requests to the ring, within the size limits of etcd and of the Raft log.

use std::fmt::Debug;

use prost::encoding::encoded_len_varint;
use satrap_merkle::codec::Canonical;
use satrap_proto::etcdserverpb::ResponseHeader;
use satrap_ring_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_ring_core::{Caller, Proposal, Refusal, Request, Response};
use tonic::Status;

use super::Api;
use crate::backend::Backend;
use crate::calls::{Applied, Failure, Unavailable};
use crate::peer::Credentials;

/// The response to a committed request.
#[derive(Debug)]
pub struct Answered {
    /// The response of the keyspace.
    pub response: Response,
    /// The term in which the request was committed.
    pub term: u64,
    /// The response header, with the keyspace's revision after the request.
    pub header: ResponseHeader,
}

impl Api {
    /// Proposes one request and waits until this member has applied it.
    ///
    /// # Errors
    ///
    /// The refusal, or [`Unavailable`].
    pub async fn propose(&self, caller: Caller, request: Request) -> Result<Answered, Failure> {
        let Proposal { caller, request } = bounded(Proposal { caller, request })?;
        answered(self.backend.clone(), self.backend.propose(caller, request)).await
    }

    /// Proposes the request of one message, unless its entry would exceed
    /// [`RequestLimits::bytes_max`](crate::limits::RequestLimits::bytes_max). The caller has bounded the elements of
    /// the message.
    ///
    /// # Errors
    ///
    /// The refusal, or [`Unavailable`].
    pub fn propose_message(
        &self,
        credentials: &Credentials,
        message_bytes: usize,
        request: Request,
    ) -> impl Future<Output = Result<Answered, Failure>> + use<> {
        let proposed = self.submit(credentials, message_bytes, request);
        let backend = self.backend.clone();
        async move { answered(backend, proposed?).await }
    }

    /// The request is in the ring's queue when this returns.
    fn submit(
        &self,
        credentials: &Credentials,
        message_bytes: usize,
        request: Request,
    ) -> Result<impl Future<Output = Result<Applied, Unavailable>> + use<>, Failure> {
        let caller = self.identify(credentials)?;
        // etcd puts the common name of the certificate into the entry, even while authentication is off.
        let user = caller.user.as_deref().or(credentials.common_name());
        let header = user.map(|user| (user, caller.auth_revision.max(1)));
        if entry_bytes(&self.backend, header, message_bytes) > self.requests.bytes_max {
            return Err(Refusal::RequestTooLarge.into());
        }
        Ok(self.backend.propose(caller, request))
    }
}

async fn answered(
    backend: Backend,
    proposed: impl Future<Output = Result<Applied, Unavailable>>,
) -> Result<Answered, Failure> {
    let Applied { reply, term } = proposed.await?;
    if reply == Err(Refusal::NoSpace) {
        Box::pin(raise_no_space(&backend)).await;
    }
    let response = reply?;
    let header = backend.header(response.revision(), term);
    Ok(Answered { response, term, header })
}

/// Raises NOSPACE for this member after a request was refused because the quota is used up, unless the alarm is raised
/// already. As in etcd, the client gets its refusal after that. If the ring cannot raise the alarm, the next refusal
/// tries again. The ring clears the alarm.
pub(crate) async fn raise_no_space(backend: &Backend) {
    if backend.inspect(|keyspace| keyspace.alarms().any(AlarmKind::NoSpace)) {
        return;
    }
    let alarm = AlarmMember { kind: AlarmKind::NoSpace, member: backend.identity().member_id };
    let request = Request::Alarm(AlarmRequest::Activate(alarm));
    match backend.propose(Caller::default(), request).await {
        Ok(_) => {
            tracing::error!(
                "the quota is used up: the ring refuses writes until keys are deleted or the quota is raised"
            );
        }
        Err(error) => {
            tracing::warn!(%error, "cannot raise NOSPACE although the quota is used up; the next refused write tries again");
        }
    }
}

/// Refuses a request that members could not decode from the log, because a name or a key exceeds its limit. An entry
/// that no member can decode would stop the ring.
fn bounded(proposal: Proposal) -> Result<Proposal, Refusal> {
    Proposal::from_canonical(&proposal.to_canonical()).map_err(|_| Refusal::RequestTooLarge)
}

/// The size of the entry that etcd would make of a request, which is the size that etcd limits: the message as a field of
/// `InternalRaftRequest`, after a header with a request id and the user. The id begins with the last two bytes of the
/// member's id, so the sizes of the members of one cluster differ by a byte or two.
fn entry_bytes(backend: &Backend, user: Option<(&str, u64)>, message_bytes: usize) -> usize {
    let number = |number: u64| 1 + encoded_len_varint(number);
    let field = |bytes: usize| number(bytes as u64) + bytes;
    let mut header = number(backend.identity().member_id << 48 | 0xffff_ffff_ffff);
    if let Some((user, auth_revision)) = user {
        header += field(user.len()) + number(auth_revision);
    }
    // The tag of the header field takes two bytes.
    1 + field(header) + field(message_bytes)
}

/// The error for a response of another type than the request asks for.
pub(crate) fn mismatch(answer: &impl Debug) -> Status {
    tracing::error!(?answer, "BUG: the ring answered with the response of another request");
    Status::internal("the ring answered with the response of another request")
}
