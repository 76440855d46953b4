//! A naive model of the ring's state and of its clients.
//!
//! The model keeps every event forever and knows which events each watch must receive.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::super::*;
use crate::{
    caller::Caller,
    kv::{
        request::{KeyRange, Revision},
        response::{Event, KeyValue, Stamp},
    },
    refusal::Refusal,
};

/// The state of the ring.
#[derive(Default)]
pub(super) struct World {
    /// Events by revision; the first two are empty, as in etcd.
    log: Vec<Vec<Event>>,
    pub(super) compacted: Revision,
    pub(super) auth_revision: u64,
    /// User `reader` may not read keys below this one.
    pub(super) forbidden_below: Vec<u8>,
}

impl World {
    pub(super) fn new() -> Self {
        Self { log: vec![Vec::new(), Vec::new()], ..Self::default() }
    }

    fn at(&self, key: &[u8], revision: Revision) -> Option<Event> {
        let upto = usize::try_from(revision + 1).unwrap().min(self.log.len());
        let found = self.log[..upto].iter().rev().flat_map(|events| events.iter().rev());
        let last = found.into_iter().find(|event| event.key() == key)?;
        (last.version != 0).then(|| last.clone())
    }

    /// Writes one revision: `None` deletes.
    pub(super) fn write(&mut self, writes: &BTreeMap<Vec<u8>, Option<Bytes>>) {
        let revision = self.log.len() as Revision;
        let mut events: Vec<Event> = Vec::new();
        for (key, value) in writes {
            let old = self.at(key, revision - 1);
            if value.is_none() && old.is_none() {
                continue;
            }
            let version = old.as_ref().map_or(0, |old| old.version) + 1;
            let created = old.as_ref().map_or(revision, |old| old.create_revision);
            let stamp = Stamp {
                create_revision: if value.is_some() { created } else { 0 },
                mod_revision: revision,
                sub_revision: events.len() as u32,
                version: if value.is_some() { version } else { 0 },
                lease: 0,
            };
            events.push(Arc::new(KeyValue::new(key, value.as_deref().unwrap_or_default(), stamp)));
        }
        if !events.is_empty() {
            self.log.push(events);
        }
    }

    fn may(&self, caller: &Caller, start: &[u8]) -> Result<(), Refusal> {
        let free = caller.user.is_none() || *start >= self.forbidden_below[..];
        if free { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }
}

impl View for World {
    fn revision(&self) -> Revision {
        self.log.len() as Revision - 1
    }
    fn compacted(&self) -> Revision {
        self.compacted
    }
    fn events(&self, revision: Revision) -> &[Event] {
        assert!(revision >= self.compacted, "the log below the compaction is gone");
        &self.log[usize::try_from(revision).unwrap()]
    }
    fn next_write(&self, key: &[u8], from: Revision) -> Option<Event> {
        assert!(from >= self.compacted, "the log below the compaction is gone");
        let mut later = self.log.iter().skip(usize::try_from(from).unwrap()).flatten();
        later.find(|event| event.key() == key).cloned()
    }
    fn previous(&self, event: &Event) -> Option<Event> {
        let revision = event.mod_revision - 1;
        if revision < self.compacted { None } else { self.at(event.key(), revision) }
    }
    fn auth_revision(&self) -> u64 {
        self.auth_revision
    }
    fn may_open(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.may(caller, &range.start)
    }
    fn may_watch(&self, caller: &Caller, range: &KeyRange) -> Result<(), Refusal> {
        self.may(caller, &range.start)
    }
}

pub(super) fn caller(restricted: bool) -> Caller {
    Caller { user: restricted.then(|| Arc::from("reader")), auth_revision: 0 }
}

/// The client's record of one of its watches.
struct Watch {
    open: Open,
    /// The first revision that it must receive.
    from: Revision,
    told: Vec<(Revision, Bytes)>,
    last: Revision,
    progress: Revision,
    ended: bool,
}

/// A client with one stream; messages wait in `wire` until it reads.
struct Client {
    stream: StreamId,
    restricted: bool,
    wire: Vec<Message>,
    watches: BTreeMap<i64, Watch>,
    opening: Vec<Open>,
}

pub(super) struct Run {
    world: World,
    hub: Hub,
    clients: Vec<Client>,
    rng: u64,
    now_ms: u64,
}

const INTERVAL_MS: u64 = 1_000;

impl Run {
    pub(super) fn new(seed: u64) -> Self {
        let mut run = Self {
            world: World::new(),
            hub: Hub::new(1),
            clients: Vec::new(),
            rng: seed,
            now_ms: 0,
        };
        for n in 0..4 {
            let restricted = n % 2 == 1;
            let stream = run.hub.open_stream(caller(restricted), 0, INTERVAL_MS + n);
            let (wire, watches, opening) = Default::default();
            run.clients.push(Client { stream, restricted, wire, watches, opening });
        }
        run
    }

    fn next(&mut self, below: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn key(&mut self) -> Vec<u8> {
        let n = self.next(12);
        format!("k{n:02}").into_bytes()
    }

    pub(super) fn act(&mut self) {
        match self.next(20) {
            0..=9 => self.write(),
            10..=11 => self.open(),
            12 => self.cancel(),
            13 => self.compact(),
            14 => self.authorize(),
            15 => {
                let client = self.next(4) as usize;
                self.hub.ask_progress(&self.world, self.clients[client].stream);
            }
            16 => {
                self.now_ms += self.next(900);
                self.hub.tick(self.now_ms);
            }
            17 => {
                let client = self.next(4) as usize;
                self.read(client);
            }
            _ => _ = self.hub.step(&self.world),
        }
        self.deliver();
    }

    fn write(&mut self) {
        for _ in 0..=self.next(4) * self.next(4) {
            let mut writes = BTreeMap::new();
            for _ in 0..=self.next(3) {
                // Large values fill buffers soon.
                let value = match self.next(8) {
                    0..=1 => None,
                    2 => Some(Bytes::from_static(&[7; 400_000])),
                    _ => Some(Bytes::from_static(b"v")),
                };
                writes.insert(self.key(), value);
            }
            self.world.write(&writes);
        }
    }

    fn open(&mut self) {
        let newest = self.world.revision();
        let start = self.key();
        let end = match self.next(4) {
            0 => vec![0],
            1 => self.key(),
            _ => Vec::new(),
        };
        let open = Open {
            watch_id: self.next(3) as i64 * self.next(9) as i64,
            range: KeyRange { start: start.into(), end: end.into() },
            start: match self.next(4) {
                0 => 0,
                1 => newest + self.next(6) as Revision,
                _ => 1 + self.next(newest as u64) as Revision,
            },
            no_put: self.next(6) == 0,
            no_delete: self.next(6) == 0,
            prev_kv: self.next(2) == 0,
            progress_notify: self.next(2) == 0,
            fragment: false,
        };
        let at = self.next(4) as usize;
        let client = &mut self.clients[at];
        client.opening.push(open.clone());
        self.hub.open(&self.world, client.stream, caller(client.restricted), open);
    }

    fn cancel(&mut self) {
        let at = self.next(4) as usize;
        let pick = self.next(8) as usize;
        let client = &mut self.clients[at];
        let Some(id) = client.watches.keys().nth(pick).copied() else { return };
        self.hub.cancel(&self.world, client.stream, id);
    }

    fn compact(&mut self) {
        if self.next(3) == 0 {
            let newest = self.world.revision();
            let back = self.next(40) as Revision;
            self.world.compacted = self.world.compacted.max(newest - back);
        }
    }

    fn authorize(&mut self) {
        if self.next(3) == 0 {
            self.world.auth_revision += 1;
            self.world.forbidden_below = if self.next(2) == 0 { Vec::new() } else { self.key() };
        }
    }

    /// Checks each message when it is sent, and puts it on its client's wire.
    fn deliver(&mut self) {
        let outbox = self.hub.take_outbox();
        for (stream, message) in &outbox {
            let client = self.clients.iter_mut().find(|c| c.stream == *stream).unwrap();
            if let Message::Events { batch, .. } = message {
                for told in &batch.events {
                    check_told(&self.world, client, told);
                }
            }
            client.wire.push(message.clone());
        }
        self.hub.reuse_outbox(outbox);
    }

    /// The client reads all messages on its wire.
    fn read(&mut self, at: usize) {
        let client = &mut self.clients[at];
        assert_eq!(
            self.hub.buffered(client.stream),
            client.wire.iter().map(Message::cost).sum::<usize>()
        );
        for message in std::mem::take(&mut client.wire) {
            self.hub.sent(client.stream, message.cost());
            client.take(&self.world, message);
        }
    }

    /// All clients read until there is nothing more; then every watch must have received everything
    /// (WATCH-1).
    pub(super) fn finish(&mut self) {
        loop {
            let more = self.hub.step(&self.world);
            self.deliver();
            let waiting = self.clients.iter().any(|client| !client.wire.is_empty());
            for at in 0..self.clients.len() {
                self.read(at);
            }
            if !more && !waiting {
                break;
            }
        }
        assert_eq!(self.hub.behind(), 0);
        for client in &self.clients {
            for (id, watch) in client.watches.iter().filter(|(_, watch)| !watch.ended) {
                let due = expected(&self.world, watch, self.world.revision());
                assert_eq!(watch.told, due, "watch {id}: {:?}", watch.open);
            }
        }
        for client in &self.clients {
            self.hub.close_stream(client.stream);
        }
        assert_eq!(self.hub.watchers(), 0);
    }
}

/// WATCH-6: the reader may see the event now, and the previous version is that of the model.
fn check_told(world: &World, client: &Client, told: &WatchEvent) {
    let event = &told.event;
    // A watch may begin above the forbidden keys, so the start of its range decides.
    if client.restricted {
        assert!(*event.key() >= world.forbidden_below[..], "told {event:?}");
    }
    let before = world.at(event.key(), event.mod_revision - 1);
    assert_eq!(told.is_create(), event.version != 0 && before.is_none());
    if told.before.is_some() {
        assert_eq!(told.before, before);
    }
}

fn expected(world: &World, watch: &Watch, upto: Revision) -> Vec<(Revision, Bytes)> {
    let (start, end) = (&watch.open.range.start, &watch.open.range.end);
    let from = usize::try_from(watch.from).unwrap();
    world
        .log
        .iter()
        .skip(from)
        .flatten()
        .filter(|event| event.mod_revision <= upto)
        .filter(|event| match &end[..] {
            [] => event.key() == start,
            [0] => event.key() >= &start[..],
            end => event.key() >= &start[..] && event.key() < end,
        })
        .filter(|event| {
            !(if event.version == 0 { watch.open.no_delete } else { watch.open.no_put })
        })
        .map(|event| (event.mod_revision, event.key_bytes()))
        .collect()
}

impl Client {
    fn take(&mut self, world: &World, message: Message) {
        match message {
            Message::Created { watch_id, revision } => {
                let open = self.opening.remove(0);
                let from = if open.start == 0 { revision + 1 } else { open.start };
                let told = Vec::new();
                let last = from - 1;
                let watch = Watch { open, from, told, last, progress: 0, ended: false };
                let old = self.watches.insert(watch_id, watch);
                assert!(old.is_none(), "an id in use was given away");
            }
            Message::Refused { reason, .. } => {
                let open = self.opening.remove(0);
                match reason {
                    Reason::DuplicateId => assert!(open.watch_id != 0),
                    Reason::EmptyRange => assert!(open.range.start >= open.range.end),
                    Reason::Denied(_) => assert!(self.restricted),
                    other => panic!("{other:?}"),
                }
            }
            Message::Canceled { watch_id, .. } => {
                self.watches.remove(&watch_id).expect("told of the watch before");
            }
            Message::Denied { watch_id, refusal, .. } => {
                assert_eq!(refusal, Refusal::PermissionDenied);
                assert!(self.restricted);
                self.watches.get_mut(&watch_id).unwrap().ended = true;
            }
            Message::Compacted { watch_id, compacted } => {
                let watch = self.watches.get_mut(&watch_id).unwrap();
                assert!(watch.last < compacted && watch.progress < compacted);
                watch.ended = true;
            }
            Message::Events { watch_id, batch, .. } => {
                let watch = self.watches.get_mut(&watch_id).expect("opened before");
                watch.take(world, &batch);
            }
            Message::Progress { of: Progress::Watch(watch_id), revision } => {
                let watch = self.watches.get_mut(&watch_id).unwrap();
                assert!(watch.open.progress_notify);
                watch.progressed(world, revision);
            }
            Message::Progress { of: Progress::All, revision } => {
                for watch in self.watches.values_mut().filter(|watch| !watch.ended) {
                    watch.progressed(world, revision);
                }
            }
        }
    }
}

impl Watch {
    fn take(&mut self, world: &World, batch: &Batch) {
        assert!(!self.ended);
        let first = batch.events.first().unwrap().event.mod_revision;
        assert!(first > self.last, "a revision was split or told twice");
        assert!(first >= self.from, "told too early");
        for told in &batch.events {
            assert!(told.before.is_none() || self.open.prev_kv);
            self.last = told.event.mod_revision;
            self.told.push((told.event.mod_revision, told.event.key_bytes()));
        }
        assert!(first > self.progress, "told after progress beyond it");
        assert_eq!(self.told, expected(world, self, self.last));
    }

    fn progressed(&mut self, world: &World, revision: Revision) {
        assert!(revision >= self.progress && revision >= self.last);
        assert!(self.open.start == 0 || revision + 1 >= self.from);
        self.progress = revision;
        assert_eq!(self.told, expected(world, self, revision), "progress before an event");
    }
}
