//! What `etcdctl` does with the verbs that runbooks name, over the same API: where tests run there is
//! no etcdctl. That etcd's own program does the same with them is what `interop` shows.

use std::{future::Future, time::Duration};

use satrap_cli::{client::etcd::EtcdClient, realm::description::Client as Files};
use satrap_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, DefragmentRequest,
    DeleteRangeRequest, HashKvRequest, MoveLeaderRequest, PutRequest, RangeRequest, StatusRequest,
    StatusResponse, WatchCreateRequest, WatchRequest, WatchResponse, alarm_request::AlarmAction,
    kv_client::KvClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, transport::Channel};

/// As etcdctl has it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a watch has to end that must.
const WATCH_TIMEOUT: Duration = Duration::from_secs(60);

/// A watch that is open.
pub struct Watch {
    _requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

/// A client as `satrap etcd env` sets it up.
pub struct Etcdctl {
    runtime: Runtime,
    client: EtcdClient,
}

/// What a member says of itself.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: String,
    pub id: u64,
    pub leader: u64,
    pub revision: i64,
}

impl Etcdctl {
    /// Reads the `export` lines that `satrap etcd env` prints.
    pub fn of(environment: &str) -> Self {
        let value = |name: &str| {
            let start = format!("export ETCDCTL_{name}='");
            let line = environment.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
            line.strip_suffix('\'').unwrap().to_owned()
        };
        let [ca, cert, key] = ["CACERT", "CERT", "KEY"].map(|name| value(name).into());
        let endpoints = value("ENDPOINTS").split(',').map(str::to_owned).collect();
        let client = EtcdClient::open(&Files { ca, cert, key }, endpoints).unwrap();
        Self { runtime: satrap_host::runtime::current_thread().unwrap(), client }
    }

    /// One call to one member; an error is what etcdctl would print.
    fn at<T, F>(&self, url: &str, call: impl FnOnce(Channel) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.runtime.block_on(async {
            let called = async {
                let channel = self.client.connect(url).await.map_err(|error| error.to_string())?;
                call(channel).await.map_err(|status| status.message().to_owned())
            };
            let answer = timeout(COMMAND_TIMEOUT, called).await;
            answer.unwrap_or(Err("context deadline exceeded".into())).map(Response::into_inner)
        })
    }

    /// What the first member that answers does.
    fn first<T>(&self, ask: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
        let mut last = Err("no endpoints".to_owned());
        for url in &self.client.endpoints {
            last = ask(url);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// One call to whichever member answers first.
    fn any<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.first(|url| self.at(url, &call))
    }

    fn alarm(&self, action: AlarmAction) -> Result<Vec<AlarmMember>, String> {
        let request = AlarmRequest { action: action.into(), ..AlarmRequest::default() };
        let AlarmResponse { alarms, .. } = self
            .any(|channel| async move { MaintenanceClient::new(channel).alarm(request).await })?;
        Ok(alarms)
    }

    /// `alarm list`: members and what they raised.
    pub fn alarms(&self) -> Result<Vec<(u64, &'static str)>, String> {
        let raised = self.alarm(AlarmAction::Get)?;
        let name = |kind: i32| AlarmType::try_from(kind).unwrap().as_str_name();
        Ok(raised.into_iter().map(|alarm| (alarm.member_id, name(alarm.alarm))).collect())
    }

    /// `endpoint status`.
    pub fn status(&self) -> Result<Vec<Endpoint>, String> {
        let of = |url: &String| {
            let StatusResponse { header, leader, .. } = self.at(url, |channel| async move {
                MaintenanceClient::new(channel).status(StatusRequest {}).await
            })?;
            let header = header.unwrap();
            let (id, revision) = (header.member_id, header.revision);
            Ok(Endpoint { url: url.clone(), id, leader, revision })
        };
        self.client.endpoints.iter().map(of).collect()
    }

    /// `endpoint hashkv`: the hash and the revision it is of, by member.
    pub fn hashes(&self) -> Result<Vec<(u64, u32, i64)>, String> {
        let of = |url: &String| {
            let answer = self.at(url, |channel| async move {
                MaintenanceClient::new(channel).hash_kv(HashKvRequest { revision: 0 }).await
            })?;
            let header = answer.header.unwrap();
            Ok((header.member_id, answer.hash, header.revision))
        };
        self.client.endpoints.iter().map(of).collect()
    }

    /// `put`: the revision.
    pub fn put(&self, key: &str, value: &str) -> Result<i64, String> {
        self.first(|url| self.put_at(url, key, value))
    }

    /// `put` at one endpoint.
    pub fn put_at(&self, url: &str, key: &str, value: &str) -> Result<i64, String> {
        let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
        let request = PutRequest { key, value, ..PutRequest::default() };
        let answer =
            self.at(url, |channel| async move { KvClient::new(channel).put(request).await })?;
        Ok(answer.header.unwrap().revision)
    }

    /// `get`: the value.
    pub fn get(&self, key: &str) -> Result<Option<String>, String> {
        self.first(|url| self.get_at(url, key))
    }

    /// `get` at one endpoint.
    pub fn get_at(&self, url: &str, key: &str) -> Result<Option<String>, String> {
        let request = RangeRequest { key: key.as_bytes().to_vec().into(), ..Default::default() };
        let answer =
            self.at(url, |channel| async move { KvClient::new(channel).range(request).await })?;
        let value = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ok(answer.kvs.first().map(|kv| value(&kv.value)))
    }

    /// `del`: how many keys.
    pub fn del(&self, key: &str) -> Result<i64, String> {
        let key = key.as_bytes().to_vec().into();
        let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        let answer = self.any(|channel| {
            let request = request.clone();
            async move { KvClient::new(channel).delete_range(request).await }
        })?;
        Ok(answer.deleted)
    }

    /// `watch` at one endpoint, which is to end it when it has no leader, as etcd's clients ask.
    pub fn watch_at(&self, url: &str, key: &str) -> Result<Watch, String> {
        let create =
            WatchCreateRequest { key: key.as_bytes().to_vec().into(), ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let (requests, outgoing) = mpsc::channel(1);
        requests.try_send(create).unwrap();
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let responses =
            self.at(url, |channel| async move { WatchClient::new(channel).watch(request).await })?;
        Ok(Watch { _requests: requests, responses })
    }

    /// Why a watch ended, once it has.
    pub fn end_of(&self, mut watch: Watch) -> String {
        self.runtime.block_on(async {
            let end = async {
                loop {
                    match watch.responses.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => return "no reason given".to_owned(),
                        Err(status) => return status.message().to_owned(),
                    }
                }
            };
            timeout(WATCH_TIMEOUT, end).await.unwrap_or_else(|_| "it goes on".to_owned())
        })
    }

    /// Does what a line of a runbook says.
    pub fn run(&self, words: &[&str]) -> Result<(), String> {
        match words {
            ["alarm", "list"] => self.alarms().map(drop),
            ["alarm", "disarm"] => {
                for alarm in self.alarm(AlarmAction::Get)? {
                    let action = AlarmAction::Deactivate.into();
                    let AlarmMember { member_id, alarm } = alarm;
                    let request = AlarmRequest { action, member_id, alarm };
                    self.any(|channel| async move {
                        MaintenanceClient::new(channel).alarm(request).await
                    })?;
                }
                Ok(())
            }
            ["endpoint", "status"] => self.status().map(drop),
            ["endpoint", "hashkv"] => self.hashes().map(drop),
            ["compact", revision] => {
                let revision = revision.parse().unwrap();
                let request = CompactionRequest { revision, physical: false };
                self.any(|channel| async move { KvClient::new(channel).compact(request).await })
                    .map(drop)
            }
            ["defrag"] => self.client.endpoints.iter().try_for_each(|url| {
                let defragment = |channel| async move {
                    MaintenanceClient::new(channel).defragment(DefragmentRequest {}).await
                };
                self.at(url, defragment).map(drop)
            }),
            ["move-leader", id] => {
                let target_id = u64::from_str_radix(id, 16).unwrap();
                let leads = |endpoint: &Endpoint| endpoint.id == endpoint.leader;
                let leader = self.status()?.into_iter().find(leads).ok_or("no leader")?;
                let request = MoveLeaderRequest { target_id };
                self.at(&leader.url, |channel| async move {
                    MaintenanceClient::new(channel).move_leader(request).await
                })
                .map(drop)
            }
            other => panic!("a page wants `etcdctl {}`", other.join(" ")),
        }
    }
}
