//! The mirror's side of a comparison: answers the source's questions from the keys that the mirror has.

use super::{
    Answer, Entry, Keyset, LEVEL_MAX, LIST_MAX, NODES_MAX, Node, START_LEVEL, source::Verdict,
};

/// The keys of a mirror that is compared with its source.
#[derive(Clone, Debug)]
pub struct Mirror {
    set: Keyset,
}

/// The consequence of a verdict for the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// Places of keys that the source does not have, each once.
    pub forget: Vec<usize>,
    /// The next message; none if the source asks nothing.
    pub answer: Option<Answer>,
}

impl Mirror {
    /// A mirror that has these keys.
    #[must_use]
    pub fn new(mut set: Keyset) -> Self {
        set.sort();
        Self { set }
    }

    /// The first message.
    #[must_use]
    pub fn start(&self) -> Answer {
        let small = self.set.len() <= LIST_MAX;
        let level = if small { 0 } else { START_LEVEL };
        Answer { summaries: self.summaries(Node::ROOT.descendants(level)), lists: Vec::new() }
    }

    /// The work after a verdict.
    #[must_use]
    pub fn follow(&self, verdict: &Verdict) -> Instructions {
        let cleared = verdict.clear.iter().flat_map(|node| self.set.within(*node));
        let gone = verdict.gone.iter().filter_map(|hash| self.set.find(hash));
        let places = cleared.map(|(_, place)| *place).chain(gone.map(|(_, place)| place));
        let mut forget: Vec<_> = places.map(|place| place as usize).collect();
        forget.sort_unstable();
        forget.dedup();
        if verdict.descend.is_empty() && verdict.list.is_empty() {
            return Instructions { forget, answer: None };
        }
        let children = verdict.descend.iter().take(NODES_MAX);
        let children =
            children.filter(|node| node.level < LEVEL_MAX).flat_map(|n| n.descendants(1));
        let summaries = self.summaries(children);
        let lists = verdict.list.iter().take(NODES_MAX);
        let lists = lists.map(|node| (*node, self.entries(*node))).collect();
        Instructions { forget, answer: Some(Answer { summaries, lists }) }
    }

    fn summaries(&self, nodes: impl Iterator<Item = Node>) -> Vec<super::Summary> {
        nodes.map(|node| self.set.summary(node)).filter(|summary| summary.keys > 0).collect()
    }

    fn entries(&self, node: Node) -> Vec<Entry> {
        self.set.within(node).map(|(entry, _)| *entry).collect()
    }
}
