//! The mirror's side of a resync: answers in the words of the wire, and what to do at the end.

use std::collections::BTreeMap;

use bytes::Bytes;
use satrap_merkle::keyset::{Answer, Keyset, Mirror, Node, Verdict};
use satrap_proto::{mvccpb, v1};

use super::Held;
use crate::error::Error;

/// A comparison under way.
#[derive(Debug)]
pub(super) struct Comparison {
    mirror: Mirror,
    /// By place in the mirror.
    keys: Vec<Bytes>,
    /// To be removed at the end.
    pub forgotten: Vec<Bytes>,
    /// To be put at the end.
    pub received: Vec<mvccpb::KeyValue>,
}

impl Comparison {
    /// Begins with what to say first.
    pub fn begin(content: &BTreeMap<Bytes, Held>) -> (Self, v1::MirrorAnswer) {
        let mut set = Keyset::new();
        for (key, held) in content {
            set.add(key, held.mod_revision);
        }
        let mirror = Mirror::new(set);
        let first = to_wire(mirror.start());
        let keys = content.keys().cloned().collect();
        (Self { mirror, keys, forgotten: Vec::new(), received: Vec::new() }, first)
    }

    /// The next message to the ring, or `None` if the ring asked nothing.
    pub fn follow(
        &mut self,
        verdict: v1::ResyncVerdict,
    ) -> Result<Option<v1::MirrorAnswer>, Error> {
        let instructions = self.mirror.follow(&from_wire(verdict)?);
        self.forgotten
            .extend(instructions.forget.into_iter().map(|place| self.keys[place].clone()));
        Ok(instructions.answer.map(to_wire))
    }
}

fn from_wire(verdict: v1::ResyncVerdict) -> Result<Verdict, Error> {
    let node = |node: v1::MirrorNode| Node::new(node.prefix, node.level);
    let nodes = |nodes: Vec<v1::MirrorNode>| {
        let nodes: Option<Vec<_>> = nodes.into_iter().map(node).collect();
        nodes.ok_or(Error::Nonsense("a node that does not exist"))
    };
    let gone: Result<_, _> = verdict.gone.iter().map(|hash| hash[..].try_into()).collect();
    Ok(Verdict {
        descend: nodes(verdict.descend)?,
        list: nodes(verdict.list)?,
        clear: nodes(verdict.clear)?,
        gone: gone.map_err(|_| Error::Nonsense("a hash of another length"))?,
        ..Verdict::default()
    })
}

fn to_wire(answer: Answer) -> v1::MirrorAnswer {
    let node = |node: Node| Some(v1::MirrorNode { prefix: node.prefix(), level: node.level() });
    let summaries = answer.summaries.into_iter().map(|summary| v1::NodeSummary {
        node: node(summary.node),
        keys: summary.keys,
        digest: summary.digest.to_vec().into(),
    });
    let lists = answer.lists.into_iter().map(|(of, entries)| v1::NodeEntries {
        node: node(of),
        entries: entries
            .into_iter()
            .map(|entry| v1::MirrorEntry {
                key_hash: entry.hash.to_vec().into(),
                mod_revision: entry.revision,
            })
            .collect(),
    });
    v1::MirrorAnswer { summaries: summaries.collect(), lists: lists.collect() }
}
