//! The metrics of a member's services: calls by method and code, network traffic of clients, open watches.
//!
//! Names, labels and buckets are those of etcd and of the Go library that it uses, so that alert rules and dashboards
//! for etcd work for the ring.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost_reflect::{DescriptorPool, MethodDescriptor};
use satrap_runtime::clock;
use satrap_runtime::meters::{Counter, Gauge, Histogram, Text};
use tonic::Code;

use crate::introspect::SERVICES;

/// Upper bounds of the buckets for durations of calls: the defaults of Prometheus' Go client.
static BOUNDS: [Duration; 11] = {
    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
    [
        ms(5),
        ms(10),
        ms(25),
        ms(50),
        ms(100),
        ms(250),
        ms(500),
        ms(1_000),
        ms(2_500),
        ms(5_000),
        ms(10_000),
    ]
};

/// gRPC's codes by number, as its Go implementation spells them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The metrics of one member.
#[derive(Debug)]
pub struct Meters {
    /// By `service/method`.
    calls: HashMap<String, Arc<MethodMeter>>,
    /// Bytes that clients sent on gRPC connections.
    pub received: Counter,
    /// Bytes that were sent to clients on gRPC connections.
    pub sent: Counter,
    /// Open watches of all streams; the watch loop sets it.
    pub watchers: Arc<Gauge>,
}

#[derive(Debug)]
struct MethodMeter {
    service: String,
    method: String,
    kind: &'static str,
    started: Counter,
    handled: [Counter; CODES.len()],
    seconds: Histogram,
}

/// Counts one call, by its code and duration, when dropped. Without a recorded code the call counts as cancelled by
/// its client.
#[derive(Debug)]
pub struct CallMeter {
    method: Arc<MethodMeter>,
    began: Duration,
    code: Code,
}

impl CallMeter {
    /// Records the code with which the call ends.
    pub fn record(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for CallMeter {
    fn drop(&mut self) {
        self.method.handled[self.code as usize].add_one();
        self.method.seconds.observe(clock::monotonic().saturating_sub(self.began));
    }
}

impl Default for Meters {
    /// All counters are zero.
    ///
    /// # Panics
    ///
    /// If the descriptors that were compiled in are damaged.
    fn default() -> Self {
        let pool = DescriptorPool::decode(satrap_proto::DESCRIPTORS)
            .expect("the build script wrote the descriptors");
        let services = pool.services().filter(|service| SERVICES.contains(&service.full_name()));
        let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
        let meters = methods.map(|method| MethodMeter::of(&method));
        let calls = meters
            .map(|meter| (format!("{}/{}", meter.service, meter.method), Arc::new(meter)))
            .collect();
        Self {
            calls,
            received: Counter::default(),
            sent: Counter::default(),
            watchers: Arc::default(),
        }
    }
}

impl Meters {
    /// Starts to count a call; `None` if there is no such method.
    #[must_use]
    pub fn begin(&self, path: &str) -> Option<CallMeter> {
        let method = self.calls.get(path.strip_prefix('/')?)?.clone();
        method.started.add_one();
        Some(CallMeter { method, began: clock::monotonic(), code: Code::Cancelled })
    }

    /// Writes all metrics.
    pub fn write(&self, text: &mut Text) {
        let watchers = self.watchers.get();
        text.untyped(
            "etcd_debugging_mvcc_watcher_total",
            "Watches that are open on this member.",
            watchers,
        );
        let mut calls: Vec<_> = self.calls.values().collect();
        calls.sort_by(|a, b| (&a.service, &a.method).cmp(&(&b.service, &b.method)));
        let name = "grpc_server_started_total";
        text.head(name, "counter", "gRPC calls that were started on this member.");
        for call in &calls {
            text.figure(name, &call.labels(), call.started.get());
        }
        let name = "grpc_server_handled_total";
        text.head(name, "counter", "gRPC calls that ended on this member, by status code.");
        for call in &calls {
            let [kind, service, method] = call.labels();
            for (code, count) in CODES.iter().zip(&call.handled) {
                // Codes with count zero too, or the rate of a first failure would be unknown. For methods that were
                // never called, code OK is enough.
                if *code == CODES[0] || call.started.get() > 0 {
                    let code = ("grpc_code", *code);
                    text.figure(name, &[code, kind, service, method], count.get());
                }
            }
        }
        let name = "grpc_server_handling_seconds";
        text.head(
            name,
            "histogram",
            "Duration of gRPC calls in seconds, for methods that were called.",
        );
        for call in calls.iter().filter(|call| call.started.get() > 0) {
            text.times(name, &call.labels(), &call.seconds);
        }
        text.counter(
            "etcd_network_client_grpc_received_bytes_total",
            "Bytes that clients sent on gRPC connections.",
            self.received.get(),
        );
        text.counter(
            "etcd_network_client_grpc_sent_bytes_total",
            "Bytes that were sent to clients on gRPC connections.",
            self.sent.get(),
        );
    }
}

impl MethodMeter {
    fn of(method: &MethodDescriptor) -> Self {
        Self {
            service: method.parent_service().full_name().to_owned(),
            method: method.name().to_owned(),
            kind: match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            },
            started: Counter::default(),
            handled: Default::default(),
            seconds: Histogram::new(&BOUNDS),
        }
    }

    fn labels(&self) -> [(&str, &str); 3] {
        let Self { service, method, kind, .. } = self;
        [("grpc_type", *kind), ("grpc_service", service), ("grpc_method", method)]
    }
}
