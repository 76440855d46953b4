//! A ring of three members that etcd clients reach, without the rest of its realm.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_operator::client::etcd::EtcdClient;
use satrap_proto::{
    etcdserverpb::{
        PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
        kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
    v1::{FencingToken, GrantRoleRequest, store_client::StoreClient},
};
use satrap_realm::{EtcdPlan, RealmPlan, description::Description};
use tokio::time::sleep;
use tonic::{Status, transport::Channel};

use super::{TestRealm, addresses, plan};

/// Between looks at something that is about to change.
pub const LOOK: Duration = Duration::from_millis(20);

/// One region with etcd listeners on free ports.
pub fn etcd_plan() -> RealmPlan {
    let mut plan = plan(1, &["eu"], 0);
    for member in plan.regions.iter_mut().flat_map(|region| &mut region.members) {
        let listen = addresses(1)[0];
        member.etcd = Some(EtcdPlan { listen, url: format!("https://{listen}") });
    }
    plan
}

/// The running ring.
pub struct Ring {
    pub realm: TestRealm,
    pub client: EtcdClient,
}

impl Ring {
    /// Starts the members, and waits until all of them hold a first write.
    pub async fn start() -> Self {
        let realm = TestRealm::start_of(etcd_plan(), |verb| verb == "region");
        realm.files.description(&realm.plan).store(&realm.files.dir).unwrap();
        let described = Description::load(&realm.files.dir).unwrap();
        let region = &described.regions[0];
        let urls = region.members.iter().filter_map(|member| member.etcd_url.clone()).collect();
        let client = EtcdClient::open(region.etcd.as_ref().unwrap(), urls).unwrap();
        let ring = Self { realm, client };
        let revision = ring.put("started", "").await;
        for member in 0..ring.client.endpoints.len() {
            ring.until_held(member, revision).await;
        }
        ring
    }

    pub fn dir(&self) -> &Path {
        &self.realm.files.dir
    }

    pub fn config(&self, member: usize) -> String {
        self.realm.files.members[member].config.display().to_string()
    }

    pub fn data_dir(&self, member: usize) -> PathBuf {
        self.realm.files.members[member].dir.join("data")
    }

    /// Kills members, at whatever instruction they are.
    pub async fn kill(&mut self, members: impl IntoIterator<Item = usize>) {
        for member in members {
            self.realm.processes[member].kill().await;
        }
    }

    pub fn wipe(&self, member: usize) {
        fs::remove_dir_all(self.data_dir(member)).unwrap();
    }

    async fn try_put(client: &EtcdClient, key: &str, value: &str) -> Result<i64, String> {
        let channel = client.any().await.map_err(|e| e.to_string())?;
        let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
        let request = PutRequest { key, value, ..PutRequest::default() };
        let put = KvClient::new(channel).put(request).await.map_err(|e| e.to_string())?;
        Ok(put.into_inner().header.unwrap().revision)
    }

    /// Writes, as soon as a member takes it; returns its revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        loop {
            match Self::try_put(&self.client, key, value).await {
                Ok(revision) => return revision,
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// Writes numbered keys until `done`, and returns those that were acknowledged.
    pub async fn put_until(client: &EtcdClient, done: &std::cell::Cell<bool>) -> Vec<String> {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            if done.get() {
                break;
            }
            let key = format!("load/{number}");
            if Self::try_put(client, &key, "x").await.is_ok() {
                acknowledged.push(key);
            }
        }
        acknowledged
    }

    /// Waits until a member has applied a revision.
    pub async fn until_held(&self, member: usize, revision: i64) {
        let held = async || {
            let channel = self.client.connect(&self.client.endpoints[member]).await.ok()?;
            let request =
                RangeRequest { key: vec![0].into(), serializable: true, ..Default::default() };
            let answer = KvClient::new(channel).range(request).await.ok()?.into_inner();
            Some(answer.header?.revision)
        };
        while held().await.is_none_or(|held| held < revision) {
            sleep(LOOK).await;
        }
    }

    /// All keys, as a linearizable read at one member shows them.
    pub async fn keys(&self, member: usize) -> Result<Vec<String>, Status> {
        let channel = self.client.connect(&self.client.endpoints[member]).await;
        let channel = channel.map_err(|e| Status::unavailable(e.to_string()))?;
        let all = vec![0].into();
        let request = RangeRequest { key: vec![0].into(), range_end: all, ..Default::default() };
        let found = KvClient::new(channel).range(request).await?.into_inner().kvs;
        Ok(found.into_iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect())
    }

    /// The first answer to a watch that goes on at `revision`, after that it was created.
    pub async fn watch_from(&self, start_revision: i64) -> WatchResponse {
        let create = WatchCreateRequest {
            key: b"k".to_vec().into(),
            start_revision,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::stream::iter([request]);
        let requests = futures::StreamExt::chain(requests, futures::stream::pending());
        let channel = self.client.any().await.unwrap();
        let stream = WatchClient::new(channel).watch(requests).await.unwrap();
        let mut stream = stream.into_inner();
        loop {
            let answer = stream.message().await.unwrap().unwrap();
            if !answer.created || answer.canceled {
                return answer;
            }
        }
    }

    /// Takes a fenced role.
    pub async fn token(&self, role: &str) -> FencingToken {
        let channel: Channel = self.client.any().await.unwrap();
        let (role, holder) = (role.into(), "test".into());
        let request = GrantRoleRequest { role, holder, ttl_s: 60 };
        let granted = StoreClient::new(channel).grant_role(request).await.unwrap();
        granted.into_inner().token.unwrap()
    }
}
