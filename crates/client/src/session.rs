//! A lease of etcd's API, kept alive while something is done with it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use satrap_proto::etcdserverpb as pb;
use satrap_runtime::clock;
use tonic::Status;

use crate::error::Error;
use crate::keep::{Kept, View};
use crate::ring::{Ring, answer};
use crate::tenure::{Lost, Tenure, Terms};

/// A lease that is ours.
#[derive(Debug)]
pub(crate) struct Session {
    ring: Ring,
    lease: i64,
    kept: Kept,
}

impl Session {
    pub async fn open(ring: &Ring, terms: Terms) -> Result<Self, Error> {
        let sent = clock::monotonic();
        let request = pb::LeaseGrantRequest { ttl: terms.ttl_s.into(), id: 0 };
        let granted = answer(ring.lease().lease_grant(request)).await?;
        let tenure = Tenure::begin(sent, seconds(granted.ttl), terms.margin);
        Ok(Self { ring: ring.clone(), lease: granted.id, kept: Kept::new(tenure) })
    }

    pub fn lease(&self) -> i64 {
        self.lease
    }

    pub fn view(&self) -> View {
        self.kept.view()
    }

    pub async fn keep(&mut self) -> Lost {
        let (ring, id) = (self.ring.clone(), self.lease);
        self.kept.keep(move || renew(ring.clone(), id)).await
    }

    /// Does something while the lease is ours.
    pub async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let work = pin!(work);
        tokio::select! {
            biased;
            lost = self.keep() => Err(lost.into()),
            done = work => done,
        }
    }

    /// Ends the lease and with it all that hangs on it.
    pub async fn revoke(self) -> Result<(), Error> {
        self.kept.end();
        answer(self.ring.lease().lease_revoke(pb::LeaseRevokeRequest { id: self.lease })).await?;
        Ok(())
    }
}

async fn renew(ring: Ring, id: i64) -> Result<Duration, Status> {
    let asked = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
    let mut answers = ring.lease().lease_keep_alive(asked).await?.into_inner();
    let answer = answers.message().await?;
    match answer.map(|answer| answer.ttl) {
        Some(ttl) if ttl > 0 => Ok(seconds(ttl)),
        Some(_) => Err(Status::not_found("the lease has ended")),
        None => Err(Status::unavailable("the stream ended without an answer")),
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0).unsigned_abs())
}
