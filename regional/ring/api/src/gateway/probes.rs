//! Answers health probes and collects metrics: `/health`, `/livez`, `/readyz`, `/version` and `/metrics`. Paths, texts and
//! metric names are etcd's, so that load balancers, supervisors and monitoring made for etcd work unchanged.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Uri, header};
use satrap_ring_core::alarm::AlarmKind;
use satrap_runtime::meters::Text;

use super::{GatewayBody, JSON, TEXT, respond};
use crate::api::Api;
use crate::services::{ETCD_CLUSTER_VERSION, ETCD_VERSION};

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

const CLIENT_LISTENER_ENDED: &str = "the client listener ended; restart this member";

/// Answers a request that is not a gRPC call. `figures` makes the text of `/metrics`, as [`metrics`] does.
pub(crate) async fn answer(
    api: &Api,
    method: &Method,
    uri: &Uri,
    figures: impl FnOnce() -> Bytes,
) -> Response<GatewayBody> {
    let probe = match uri.path() {
        "/health" => Probe::Health,
        "/livez" => Probe::Checks(&LIVEZ),
        "/readyz" => Probe::Checks(&READYZ),
        "/version" => Probe::Version,
        "/metrics" => Probe::Metrics,
        path => match one_check(path) {
            Some(check) => Probe::Checks(std::slice::from_ref(check)),
            None => return plain(StatusCode::NOT_FOUND, "404 page not found\n"),
        },
    };
    if method != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let query = Query::of(uri);
    match probe {
        Probe::Health => health(api, &query).await,
        Probe::Checks(checks) => run(api, checks, &query).await,
        Probe::Version => respond(StatusCode::OK, JSON, version()),
        Probe::Metrics => respond(StatusCode::OK, METRICS, figures()),
    }
}

enum Probe {
    Health,
    Checks(&'static [Check]),
    Version,
    Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

/// In etcd's order of importance.
const READYZ: [Check; 4] =
    [Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];
const LIVEZ: [Check; 1] = [Check::SerializableRead];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, api: &Api) -> Result<(), String> {
        match self {
            Self::DataCorruption => match alarms(api).contains(&AlarmKind::Corrupt) {
                true => Err("alarm activated: CORRUPT".to_owned()),
                false => Ok(()),
            },
            // No client can read from this member then.
            Self::SerializableRead if api.client_listener_ended() => {
                Err(CLIENT_LISTENER_ENDED.to_owned())
            }
            Self::SerializableRead => {
                api.backend.inspect(|keyspace| keyspace.store().revision());
                Ok(())
            }
            Self::LinearizableRead => {
                api.backend.linearizable().await.map(drop).map_err(|error| error.to_string())
            }
            Self::NonLearner => match api.check_voter() {
                Ok(()) => Ok(()),
                Err(_) => Err("not supported for learner".to_owned()),
            },
        }
    }
}

/// The check that a path such as `/livez/serializable_read` names.
fn one_check(path: &str) -> Option<&'static Check> {
    let (checks, name) = match path.split_at_checked(1)?.1.split_once('/')? {
        ("livez", name) => (&LIVEZ[..], name),
        ("readyz", name) => (&READYZ[..], name),
        _ => return None,
    };
    checks.iter().find(|check| check.name() == name)
}

async fn run(api: &Api, checks: &[Check], query: &Query<'_>) -> Response<GatewayBody> {
    let (mut report, mut failed) = (String::new(), false);
    for check in checks {
        if query.all("exclude").any(|name| name == check.name()) {
            continue;
        }
        match check.run(api).await {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
            Err(reason) => {
                failed = true;
                report.push_str(&format!("[-]{} failed: {reason}\n", check.name()));
            }
        }
    }
    if failed {
        return plain(StatusCode::SERVICE_UNAVAILABLE, report + "\n");
    }
    let verbose = query.all("verbose").next().is_some();
    plain(StatusCode::OK, if verbose { report + "ok\n" } else { "ok\n".to_owned() })
}

async fn health(api: &Api, query: &Query<'_>) -> Response<GatewayBody> {
    let reason = unhealthy(api, query).await;
    let (status, well) = match reason {
        None => (StatusCode::OK, "true"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false"),
    };
    let reason = reason.unwrap_or_default();
    respond(status, TEXT, serde_json::json!({ "health": well, "reason": reason }).to_string())
}

async fn unhealthy(api: &Api, query: &Query<'_>) -> Option<String> {
    if api.client_listener_ended() {
        return Some(CLIENT_LISTENER_ENDED.to_owned());
    }
    for alarm in alarms(api) {
        let name = match alarm {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        };
        if !query.all("exclude").any(|excluded| excluded == name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if query.all("serializable").next() == Some("true") {
        return None;
    }
    if api.backend.status().leader == 0 {
        return Some("RAFT NO LEADER".to_owned());
    }
    api.backend.linearizable().await.err().map(|error| format!("RANGE ERROR:{error}"))
}

fn alarms(api: &Api) -> Vec<AlarmKind> {
    api.backend.inspect(|keyspace| keyspace.alarms().list(None).map(|alarm| alarm.kind).collect())
}

fn version() -> String {
    let of_ring = format!("{ETCD_CLUSTER_VERSION}.0");
    format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{of_ring}","storage":"{of_ring}"}}"#)
}

/// The metrics of this member in the text format of Prometheus.
pub(crate) fn metrics(api: &Api) -> Bytes {
    let (ring, mark) = (api.backend.status(), api.backend.mark());
    let (keys, held, leases) = api.backend.inspect(|keyspace| {
        let store = keyspace.store();
        (store.live_keys(), store.sizes().held_bytes, keyspace.leases().len() as u64)
    });
    let me = api.backend.identity().member_id;
    let revision = u64::try_from(mark.revision).unwrap_or(0);
    let gauges: [(&str, &str, u64); 11] = [
        (
            "etcd_server_has_leader",
            "Whether this member knows a leader of the ring.",
            u64::from(ring.leader != 0),
        ),
        (
            "etcd_server_is_leader",
            "Whether this member is the leader of the ring.",
            u64::from(ring.leader == me),
        ),
        (
            "etcd_server_is_learner",
            "Whether this member is a learner, without a vote.",
            u64::from(api.is_learner()),
        ),
        // Alert rules compare this metric with the quota, so it is what the quota counts. Free memory inside it is
        // used again, so all of it counts as in use.
        (
            "etcd_mvcc_db_total_size_in_bytes",
            "Bytes of keys and values, with their history; the quota limits them.",
            held,
        ),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "As etcd_mvcc_db_total_size_in_bytes: unused memory inside it is used again.",
            held,
        ),
        ("etcd_debugging_mvcc_current_revision", "Revision of the keyspace.", revision),
        ("satrap_store_disk_bytes", "Bytes of the state on disk.", ring.disk_bytes),
        (
            "satrap_store_disk_used_bytes",
            "Bytes in use of satrap_store_disk_bytes.",
            ring.disk_bytes_used,
        ),
        ("satrap_keys", "Keys at the current revision.", keys),
        ("satrap_leases", "Leases that have not expired.", leases),
        (
            "process_resident_memory_bytes",
            "Resident memory of this process, in bytes.",
            resident_bytes().unwrap_or(0),
        ),
    ];
    let mut text = Text::default();
    for (name, help, value) in gauges {
        text.gauge(name, help, value);
    }
    let applied = "Raft index of the last entry that this member has applied.";
    text.counter("etcd_server_proposals_applied_total", applied, mark.index);
    api.meters.write(&mut text);
    let of_ring = api.ring_metrics.as_ref().map(|metrics| metrics.0());
    (text.finish() + &of_ring.unwrap_or_default()).into()
}

/// `None` if the system has no `/proc`.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<GatewayBody> {
    let mut response = respond(status, TEXT, text);
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// The query of a URI, without unescaping: none of the names and values in use needs escapes.
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn of(uri: &'a Uri) -> Self {
        Self(uri.query().unwrap_or_default())
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(move |(found, _)| *found == name).map(|(_, value)| value)
    }
}
