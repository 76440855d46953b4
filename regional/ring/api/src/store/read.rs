//! Reads that say how they were served.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use satrap_proto::v1;
use satrap_ring_core::Refusal;
use satrap_ring_core::kv::request::{KeyRange, RangeRequest};
use satrap_ring_core::kv::{Budget, Event, Progress, Scan};
use tonic::Status;

use super::{header, header_now};
use crate::api::Api;
use crate::calls::{Failure, ReadMode, ReadPoint, Served};
use crate::convert::kv::key_value;
use crate::grpc::Room;
use crate::kv::{Answer, begin, decode};
use crate::limits::{PAGE_BYTES_MAX, PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX, READ_KEYS_AT_ONCE};
use crate::peer::Credentials;
use crate::status::unavailable;

/// Reads one key.
///
/// # Errors
///
/// The error that etcd returns for a range.
pub async fn get(api: &Api, credentials: &Credentials, message: Bytes, room: &mut Room) -> Answer {
    let wanted: v1::GetRequest = decode(message)?;
    if wanted.key.is_empty() {
        return Err(Failure::from(Refusal::EmptyKey).into());
    }
    let point = wait(api, wanted.mode).await?;
    let mut request = RangeRequest::of(KeyRange::key(wanted.key));
    request.revision = wanted.revision;
    let caller = api.identify(credentials)?;
    let found = api.read(|keyspace| keyspace.range(&caller, &request))?;
    let header = Some(header(api, found.revision, point.term));
    let framed = room.frame(|| v1::GetResponse {
        header,
        served: Some(served(point)),
        kv: found.kvs.first().map(|kv| key_value(kv, request.shape())),
    });
    framed.await.map_err(unavailable)
}

/// Reads one page of a range; all pages are of one revision.
///
/// # Errors
///
/// The error that etcd returns for a range; `OutOfRange` too if the revision of the first page has been
/// compacted meanwhile, or was of another epoch: the listing must start again.
pub async fn list_page(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
    room: &mut Room,
) -> Answer {
    let wanted: v1::ListPageRequest = decode(message)?;
    if wanted.key.is_empty() {
        return Err(Failure::from(Refusal::EmptyKey).into());
    }
    let token = match wanted.page_token.is_empty() {
        true => None,
        false => Some(Token::decode(wanted.page_token)?),
    };
    let point = wait(api, wanted.mode).await?;
    let mut request = RangeRequest::of(KeyRange { start: wanted.key, end: wanted.range_end });
    let epoch = api.backend.inspect(|keyspace| keyspace.epoch());
    if let Some(token) = token {
        if token.epoch != epoch {
            let compacted = api.backend.mark().revision;
            return Err(Failure::from(Refusal::Compacted { compacted }).into());
        }
        if !request.range.contains(&token.key) {
            return Err(Status::invalid_argument(
                "the page token is of another range; start the listing again without a token",
            ));
        }
        request.range.start = token.key;
        request.revision = token.revision;
    }
    request.keys_only = wanted.keys_only;
    let keys = match wanted.limit as usize {
        0 => PAGE_KEYS_DEFAULT,
        limit => limit.min(PAGE_KEYS_MAX),
    };
    let mut scan = begin(api, credentials, &request)?;
    let (list_revision, mut kvs) = (scan.revision(), Vec::new());
    let next = collect(api, &mut scan, keys, &mut kvs).await?;
    let token = next.map(|key| Token { epoch, revision: list_revision, key }.encode());
    let header = Some(v1::StoreHeader { raft_term: point.term, ..header_now(api) });
    let framed = room.frame(|| v1::ListPageResponse {
        header,
        served: Some(served(point)),
        kvs: kvs.iter().map(|kv| key_value(kv, request.shape())).collect(),
        list_revision,
        next_page_token: token.clone().unwrap_or_default(),
    });
    framed.await.map_err(unavailable)
}

/// Reads until the page is full. Returns the first key of the next page, if there is one.
async fn collect(
    api: &Api,
    scan: &mut Scan,
    keys: usize,
    kvs: &mut Vec<Event>,
) -> Result<Option<Bytes>, Status> {
    let mut bytes = 0;
    loop {
        let at_once =
            Budget { keys: READ_KEYS_AT_ONCE.min(keys - kvs.len()), bytes: PAGE_BYTES_MAX - bytes };
        let progress = api.read(|keyspace| scan.step(keyspace.store(), at_once))?;
        let found = scan.take();
        bytes += found.iter().map(|kv| kv.key_and_value().len()).sum::<usize>();
        kvs.extend(found);
        match progress {
            Progress::Done => return Ok(None),
            Progress::More if kvs.len() >= keys || bytes >= PAGE_BYTES_MAX => {
                return Ok(kvs.last().map(|last| successor(last.key())));
            }
            Progress::More => tokio::task::yield_now().await,
        }
    }
}

/// The key right after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The start of the next page of a listing.
struct Token {
    epoch: u32,
    revision: i64,
    key: Bytes,
}

impl Token {
    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(12 + self.key.len());
        bytes.put_u32(self.epoch);
        bytes.put_i64(self.revision);
        bytes.put_slice(&self.key);
        bytes.freeze()
    }

    fn decode(mut bytes: Bytes) -> Result<Self, Status> {
        let bad = |_| {
            Status::invalid_argument(
                "the page token is malformed; use the token of the page before, unchanged",
            )
        };
        let (epoch, revision) =
            (bytes.try_get_u32().map_err(bad)?, bytes.try_get_i64().map_err(bad)?);
        Ok(Self { epoch, revision, key: bytes })
    }
}

/// Waits until the local state is as fresh as the mode requires.
pub(super) async fn wait(api: &Api, mode: i32) -> Result<ReadPoint, Status> {
    let mode = match v1::ReadMode::try_from(mode) {
        Ok(v1::ReadMode::Linearizable) => ReadMode::Linearizable,
        Ok(v1::ReadMode::Lease) => ReadMode::Lease,
        Ok(v1::ReadMode::Stale) => return Ok(api.backend.local()),
        Err(_) => {
            return Err(Status::invalid_argument(
                "unknown read mode; use one of satrap.v1.ReadMode",
            ));
        }
    };
    api.check_voter()?;
    Ok(api.backend.fresh(mode).await.map_err(Failure::from)?)
}

/// The fields of an answer about how it was obtained.
pub(super) fn served(point: ReadPoint) -> v1::Served {
    let mode = match point.served {
        Served::Quorum => v1::ReadMode::Linearizable,
        Served::Lease => v1::ReadMode::Lease,
        Served::Local => v1::ReadMode::Stale,
    };
    v1::Served { mode: mode.into(), stale_ms_max: point.stale_ms_max.unwrap_or(u64::MAX) }
}
