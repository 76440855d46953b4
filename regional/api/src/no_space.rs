//! Decides when the quota is used up: at the first write that is refused for it, as in etcd. Who clears
//! the alarm again is the ring's affair.

use satrap_regional_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_regional_core::{Caller, Request};

use crate::backend::Backend;

impl Backend {
    /// Raises NOSPACE for this member once a client was refused for want of room, unless it is raised
    /// already. As in etcd, the client hears of its refusal after that. If the ring cannot do it, the
    /// next refusal tries again.
    pub async fn raise_no_space(&self) {
        if self.read(|keyspace| keyspace.alarms().any(AlarmKind::NoSpace)) {
            return;
        }
        let alarm = AlarmMember { kind: AlarmKind::NoSpace, member: self.identity().member_id };
        let request = Request::Alarm(AlarmRequest::Activate(alarm));
        match self.propose(Caller::default(), request).await {
            Ok(_) => {
                tracing::error!("the quota is used up: the ring refuses writes until there is room")
            }
            Err(error) => {
                tracing::warn!(%error, "the quota is used up, but NOSPACE cannot be raised")
            }
        }
    }
}
