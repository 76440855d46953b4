//! The source's side of a comparison: decides from a mirror's answers which nodes to ask about next, and which keys the
//! mirror lacks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use core::fmt;

use super::{
    Answer, Entry, KeyHash, Keyset, LEVEL_MAX, LIST_MAX, NODES_MAX, Node, START_LEVEL, Summary,
};

/// Finds out what a mirror lacks.
#[derive(Debug)]
pub struct Source {
    set: Keyset,
    /// Nodes in the last question.
    asked: Asked,
    /// Nodes for later questions.
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

/// The reply of a source to an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Nodes to be divided.
    pub descend: Vec<Node>,
    /// Nodes whose entries are wanted.
    pub list: Vec<Node>,
    /// Nodes in which the source has no keys.
    pub clear: Vec<Node>,
    /// Keys that the source does not have.
    pub gone: Vec<KeyHash>,
    /// Places of keys the mirror needs, each once; for the source to send with their values.
    pub put: Vec<usize>,
    /// Nothing is left to ask: with this verdict the mirror is complete.
    pub done: bool,
}

/// A mirror's answer that does not match the source's question: the mirror is faulty or hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnexpectedAnswer;

impl fmt::Display for UnexpectedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mirror's answer does not match the last question")
    }
}

impl core::error::Error for UnexpectedAnswer {}

impl Source {
    /// A source of these keys.
    #[must_use]
    pub fn new(mut set: Keyset) -> Self {
        set.sort();
        Self { set, asked: Asked::default(), waiting: VecDeque::new(), started: false }
    }

    /// Judges the mirror's answer to the last question.
    ///
    /// # Errors
    ///
    /// [`UnexpectedAnswer`]; this source must then be dropped.
    pub fn judge(&mut self, answer: Answer) -> Result<Verdict, UnexpectedAnswer> {
        let mut verdict = Verdict::default();
        let mut summaries = BTreeMap::new();
        for summary in answer.summaries {
            if summary.keys == 0 || summaries.insert(summary.node, summary).is_some() {
                return Err(UnexpectedAnswer);
            }
        }
        for node in self.expected(&summaries)? {
            self.compare(node, summaries.remove(&node), &mut verdict);
        }
        if !summaries.is_empty() {
            return Err(UnexpectedAnswer);
        }
        for (node, entries) in answer.lists {
            if !self.asked.list.remove(&node) {
                return Err(UnexpectedAnswer);
            }
            self.merge(node, &entries, &mut verdict)?;
        }
        if !self.asked.list.is_empty() {
            return Err(UnexpectedAnswer);
        }
        self.ask(&mut verdict);
        Ok(verdict)
    }

    /// The nodes that the summaries must be about.
    fn expected(&mut self, given: &BTreeMap<Node, Summary>) -> Result<Vec<Node>, UnexpectedAnswer> {
        if self.started {
            let asked = std::mem::take(&mut self.asked.descend);
            return Ok(asked.into_iter().flat_map(|node| node.descendants(1)).collect());
        }
        self.started = true;
        let small = given.keys().next().is_none_or(|node| node.level() == 0);
        let level = if small { 0 } else { START_LEVEL };
        let known = given.keys().all(|node| node.level() == u32::from(level));
        if known { Ok(Node::ROOT.descendants(level).collect()) } else { Err(UnexpectedAnswer) }
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
    fn merge(
        &self,
        node: Node,
        theirs: &[Entry],
        verdict: &mut Verdict,
    ) -> Result<(), UnexpectedAnswer> {
        let sorted = theirs.is_sorted_by(|a, b| a.hash < b.hash);
        if !sorted || theirs.iter().any(|entry| !node.contains(&entry.hash)) {
            return Err(UnexpectedAnswer);
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
