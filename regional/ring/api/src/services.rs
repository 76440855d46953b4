//! The services that carry little load, through tonic: leases, members, maintenance, users, and the
//! lock and election services.
//!
//! The core decides where a request takes effect. This module makes the decisions that etcd makes
//! before: who asks ([`Api::caller`]), what is wrong with the request in itself, and which
//! requests need an administrator although no key is concerned. The order of these checks is etcd's,
//! because a client sees which one failed first; `tests/services/permissions.txt` has it for every
//! call, as recorded from etcd.
//!
//! # Deliberately absent
//!
//! KV and Watch, which go straight on HTTP/2. Of these services only the stream of lease renewals
//! carries load; [`lease::renew`] is all it costs.

mod admin;
pub mod auth;
pub mod cluster;
mod deletions;
pub mod election;
pub mod lease;
pub mod lock;
pub mod maintenance;
mod observe;
mod password;
mod recipe;

use std::sync::Arc;

use satrap_proto::etcdserverpb::auth_server::AuthServer;
use satrap_proto::etcdserverpb::cluster_server::ClusterServer;
use satrap_proto::etcdserverpb::lease_server::LeaseServer;
use satrap_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use satrap_proto::v3electionpb::election_server::ElectionServer;
use satrap_proto::v3lockpb::lock_server::LockServer;
use tonic::service::Routes;

use crate::api::Api;

pub use password::PasswordCost;

/// The version of etcd's API that is spoken here; clients decide by it what they may ask.
pub const ETCD_VERSION: &str = "3.7.0";
/// The same without its last part, as etcd names the version of a cluster.
pub const ETCD_CLUSTER_VERSION: &str = "3.7";

/// The settings of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cost of guessing a password, for this member and for a thief of the hashes.
    pub password_cost: PasswordCost,
    /// How long a bearer token lives, in seconds of ring time.
    pub token_ttl_s: u64,
}

/// Long enough for clients that authenticate once in the morning.
const TOKEN_TTL_S: u64 = 24 * 3600;

impl Default for Settings {
    fn default() -> Self {
        Self { password_cost: PasswordCost::default(), token_ttl_s: TOKEN_TTL_S }
    }
}

/// All services of this module. Each request must carry its [`crate::peer::Credentials`] among
/// its extensions.
#[must_use]
pub fn routes(api: &Arc<Api>, settings: Settings) -> Routes {
    let deletions = deletions::Deletions::new(api.backend.clone());
    let auth = auth::AuthService::new(api.clone(), settings);
    let lock = lock::LockService::new(api.clone(), deletions.clone());
    let election = election::ElectionService::new(api.clone(), deletions);
    // A lock's name is a key and an election's value is a value, so these two may be longer.
    // The front bounds what comes in.
    let election = ElectionServer::new(election).max_decoding_message_size(usize::MAX);
    Routes::new(LeaseServer::new(lease::LeaseService::new(api.clone())))
        .add_service(ClusterServer::new(cluster::ClusterService::new(api.clone())))
        .add_service(MaintenanceServer::new(maintenance::MaintenanceService::new(api.clone())))
        .add_service(AuthServer::new(auth))
        .add_service(LockServer::new(lock))
        .add_service(election)
}
