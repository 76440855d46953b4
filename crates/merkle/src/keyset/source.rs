//! The side that knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use core::fmt;

use super::{
    Answer, Entry, KeyHash, Keyset, LEVEL_MAX, LIST_MAX, NODES_MAX, Node, START_LEVEL, Summary,
};

/// Finds out what a mirror lacks.
#[derive(Debug)]
pub struct Source {
    set: Keyset,
    /// Asked and not answered.
    asked: Asked,
    /// To be asked.
    waiting: VecDeque<(Node, Ask)>,
    started: bool,
}

#[derive(Debug, Default)]
struct Asked {
    descend: BTreeSet<Node>,
    list: BTreeSet<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Descend,
    List,
}

/// What a source says to an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Nodes to be divided.
    pub descend: Vec<Node>,
    /// Nodes whose entries are wanted.
    pub list: Vec<Node>,
    /// Nodes in which there are no keys any more.
    pub clear: Vec<Node>,
    /// Keys that are no more.
    pub gone: Vec<KeyHash>,
    /// Places of keys the mirror needs, each once; for the source to send with their values.
    pub put: Vec<usize>,
    /// Nothing is left to ask: with this verdict the mirror is complete.
    pub done: bool,
}

/// The mirror answered something it was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confused;

impl fmt::Display for Confused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mirror's answer is not about what was asked")
    }
}

impl core::error::Error for Confused {}

impl Source {
    /// A source of these keys.
    #[must_use]
    pub fn new(mut set: Keyset) -> Self {
        set.sort();
        Self { set, asked: Asked::default(), waiting: VecDeque::new(), started: false }
    }

    /// Takes the mirror's answer to everything that was asked.
    ///
    /// # Errors
    ///
    /// [`Confused`]: the mirror is faulty or hostile, and the state is of no use any more.
    pub fn judge(&mut self, answer: Answer) -> Result<Verdict, Confused> {
        let mut verdict = Verdict::default();
        let mut summaries = BTreeMap::new();
        for summary in answer.summaries {
            if summary.keys == 0 || summaries.insert(summary.node, summary).is_some() {
                return Err(Confused);
            }
        }
        for node in self.expected(&summaries)? {
            self.compare(node, summaries.remove(&node), &mut verdict);
        }
        if !summaries.is_empty() {
            return Err(Confused);
        }
        for (node, entries) in answer.lists {
            if !self.asked.list.remove(&node) {
                return Err(Confused);
            }
            self.merge(node, &entries, &mut verdict)?;
        }
        if !self.asked.list.is_empty() {
            return Err(Confused);
        }
        self.ask(&mut verdict);
        Ok(verdict)
    }

    /// The nodes that the summaries must be about.
    fn expected(&mut self, given: &BTreeMap<Node, Summary>) -> Result<Vec<Node>, Confused> {
        if self.started {
            let asked = std::mem::take(&mut self.asked.descend);
            return Ok(asked.into_iter().flat_map(|node| node.descendants(1)).collect());
        }
        self.started = true;
        let small = given.keys().next().is_none_or(|node| node.level() == 0);
        let level = if small { 0 } else { START_LEVEL };
        let known = given.keys().all(|node| node.level() == u32::from(level));
        if known { Ok(Node::ROOT.descendants(level).collect()) } else { Err(Confused) }
    }

    fn compare(&mut self, node: Node, theirs: Option<Summary>, verdict: &mut Verdict) {
        let Some(theirs) = theirs else {
            verdict.put.extend(self.set.within(node).map(|(_, place)| *place as usize));
            return;
        };
        let ours = self.set.summary(node);
        if ours == theirs {
            return;
        }
        if ours.keys == 0 {
            verdict.clear.push(node);
        } else if theirs.keys <= LIST_MAX as u64 || node.level >= LEVEL_MAX {
            self.waiting.push_back((node, Ask::List));
        } else {
            self.waiting.push_back((node, Ask::Descend));
        }
    }

    /// Compares the entries of one node, one by one.
    fn merge(&self, node: Node, theirs: &[Entry], verdict: &mut Verdict) -> Result<(), Confused> {
        let sorted = theirs.is_sorted_by(|a, b| a.hash < b.hash);
        if !sorted || theirs.iter().any(|entry| !node.contains(&entry.hash)) {
            return Err(Confused);
        }
        for (ours, place) in self.set.within(node) {
            let at = theirs.binary_search_by_key(&ours.hash, |entry| entry.hash);
            if at.map_or(true, |at| theirs[at].revision != ours.revision) {
                verdict.put.push(*place as usize);
            }
        }
        let gone = theirs.iter().filter(|entry| self.set.find(&entry.hash).is_none());
        verdict.gone.extend(gone.map(|entry| entry.hash));
        Ok(())
    }

    fn ask(&mut self, verdict: &mut Verdict) {
        for (node, ask) in self.waiting.drain(..self.waiting.len().min(NODES_MAX)) {
            match ask {
                Ask::Descend => {
                    verdict.descend.push(node);
                    self.asked.descend.insert(node);
                }
                Ask::List => {
                    verdict.list.push(node);
                    self.asked.list.insert(node);
                }
            }
        }
        verdict.done = verdict.descend.is_empty() && verdict.list.is_empty();
    }
}
