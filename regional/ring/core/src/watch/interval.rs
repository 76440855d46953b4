//! The interval tree of watched ranges, which finds the ranges that contain a key.
//!
//! An AVL tree ordered by range, where each node knows the greatest end below it, so that a lookup
//! visits only subtrees that can contain an answer. It is balanced by its shape and not by chance:
//! clients choose the ranges and the order of their insertion, and must not be able to slow down
//! every later event.
//!
//! # Invariants
//!
//! - **RANGETREE-1** The heights of two siblings differ by at most one, so recursion is at most
//!   `1.45 * log2(limits::WATCHERS_MAX)` deep.
//! - **RANGETREE-2** `reach` of a node is the greatest end in its subtree.

use std::{cmp::Ordering, sync::Arc};

use super::members::{Members, Slot};

/// The end of a range. `None` is the end of the keyspace.
type End = Option<Arc<[u8]>>;

const NIL: u32 = u32::MAX;

/// Ranges and their watchers.
#[derive(Debug)]
pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
}

#[derive(Debug)]
struct Node {
    start: Arc<[u8]>,
    end: End,
    reach: End,
    members: Members,
    left: u32,
    right: u32,
    height: u8,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NIL }
    }
}

impl Intervals {
    /// Adds a watcher; `start` and `end` become the allocations shared with its equals.
    pub(super) fn insert(&mut self, start: &mut Arc<[u8]>, end: &mut End, slot: Slot) -> u32 {
        if let Some(at) = self.find(start, end.as_ref()) {
            let node = &mut self.nodes[at as usize];
            *start = node.start.clone();
            end.clone_from(&node.end);
            return node.members.push(slot);
        }
        let node = Node {
            start: start.clone(),
            end: end.clone(),
            reach: end.clone(),
            members: Members::One(slot),
            left: NIL,
            right: NIL,
            height: 1,
        };
        let fresh = self.allocate(node);
        self.root = self.insert_below(self.root, fresh);
        0
    }

    /// Removes the watcher at `position` of this range; returns the watcher that moved there.
    pub(super) fn remove(&mut self, start: &[u8], end: &End, position: u32) -> Option<Slot> {
        let at = self.find(start, end.as_ref())?;
        let members = &mut self.nodes[at as usize].members;
        let moved = members.remove(position);
        if members.slots().is_empty() {
            self.root = self.remove_below(self.root, at);
            self.free.push(at);
        }
        moved
    }

    /// Calls `hit` for every watcher whose range contains `key`.
    pub(super) fn stab(&self, key: &[u8], hit: &mut impl FnMut(Slot)) {
        self.stab_below(self.root, key, hit);
    }

    fn stab_below(&self, at: u32, key: &[u8], hit: &mut impl FnMut(Slot)) {
        let Some(node) = self.nodes.get(at as usize) else { return };
        if !ends_after(&node.reach, key) {
            return;
        }
        self.stab_below(node.left, key, hit);
        if *node.start > *key {
            return;
        }
        if ends_after(&node.end, key) {
            node.members.slots().iter().copied().for_each(&mut *hit);
        }
        self.stab_below(node.right, key, hit);
    }

    fn find(&self, start: &[u8], end: Option<&Arc<[u8]>>) -> Option<u32> {
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at as usize) {
            at = match order((start, end), (&node.start, node.end.as_ref())) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return Some(at),
            };
        }
        None
    }

    fn allocate(&mut self, node: Node) -> u32 {
        if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            return at;
        }
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("limits::WATCHERS_MAX fits")
    }

    fn compare(&self, a: u32, b: u32) -> Ordering {
        let (a, b) = (&self.nodes[a as usize], &self.nodes[b as usize]);
        order((&a.start, a.end.as_ref()), (&b.start, b.end.as_ref()))
    }

    fn insert_below(&mut self, at: u32, fresh: u32) -> u32 {
        if at == NIL {
            return fresh;
        }
        if self.compare(fresh, at) == Ordering::Less {
            let left = self.insert_below(self.nodes[at as usize].left, fresh);
            self.nodes[at as usize].left = left;
        } else {
            let right = self.insert_below(self.nodes[at as usize].right, fresh);
            self.nodes[at as usize].right = right;
        }
        self.balance(at)
    }

    fn remove_below(&mut self, at: u32, target: u32) -> u32 {
        if at == target {
            let (left, right) = (self.nodes[at as usize].left, self.nodes[at as usize].right);
            if left == NIL || right == NIL {
                return if left == NIL { right } else { left };
            }
            let (next, rest) = self.take_first(right);
            self.nodes[next as usize].left = left;
            self.nodes[next as usize].right = rest;
            return self.balance(next);
        }
        if self.compare(target, at) == Ordering::Less {
            let left = self.remove_below(self.nodes[at as usize].left, target);
            self.nodes[at as usize].left = left;
        } else {
            let right = self.remove_below(self.nodes[at as usize].right, target);
            self.nodes[at as usize].right = right;
        }
        self.balance(at)
    }

    /// The first node of a subtree, and the subtree without it.
    fn take_first(&mut self, at: u32) -> (u32, u32) {
        let left = self.nodes[at as usize].left;
        if left == NIL {
            return (at, self.nodes[at as usize].right);
        }
        let (first, rest) = self.take_first(left);
        self.nodes[at as usize].left = rest;
        (first, self.balance(at))
    }

    fn height(&self, at: u32) -> u8 {
        self.nodes.get(at as usize).map_or(0, |node| node.height)
    }

    /// Restores RANGETREE-1 and RANGETREE-2 at one node whose children satisfy them; returns the
    /// subtree's new root.
    fn balance(&mut self, at: u32) -> u32 {
        let (left, right) = (self.nodes[at as usize].left, self.nodes[at as usize].right);
        let (l, r) = (self.height(left), self.height(right));
        if l > r + 1 {
            let inner = &self.nodes[left as usize];
            if self.height(inner.right) > self.height(inner.left) {
                let lifted = self.rotate_left(left);
                self.nodes[at as usize].left = lifted;
            }
            return self.rotate_right(at);
        }
        if r > l + 1 {
            let inner = &self.nodes[right as usize];
            if self.height(inner.left) > self.height(inner.right) {
                let lifted = self.rotate_right(right);
                self.nodes[at as usize].right = lifted;
            }
            return self.rotate_left(at);
        }
        self.refresh(at);
        at
    }

    fn rotate_left(&mut self, at: u32) -> u32 {
        let top = self.nodes[at as usize].right;
        self.nodes[at as usize].right = self.nodes[top as usize].left;
        self.refresh(at);
        self.nodes[top as usize].left = at;
        self.refresh(top);
        top
    }

    fn rotate_right(&mut self, at: u32) -> u32 {
        let top = self.nodes[at as usize].left;
        self.nodes[at as usize].left = self.nodes[top as usize].right;
        self.refresh(at);
        self.nodes[top as usize].right = at;
        self.refresh(top);
        top
    }

    fn refresh(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let mut reach = &node.end;
        let mut height = 0;
        for child in [node.left, node.right] {
            let Some(child) = self.nodes.get(child as usize) else { continue };
            height = height.max(child.height);
            if later(&child.reach, reach) {
                reach = &child.reach;
            }
        }
        let reach = reach.clone();
        let node = &mut self.nodes[at as usize];
        node.reach = reach;
        node.height = height + 1;
    }
}

fn ends_after(end: &End, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| **end > *key)
}

fn later(a: &End, b: &End) -> bool {
    match (a, b) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
        (_, None) => false,
    }
}

fn order(
    (a, a_end): (&[u8], Option<&Arc<[u8]>>),
    (b, b_end): (&[u8], Option<&Arc<[u8]>>),
) -> Ordering {
    a.cmp(b).then_with(|| match (a_end, b_end) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: u64) -> Arc<[u8]> {
        Arc::from(&n.to_be_bytes()[6..])
    }

    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *state >> 33
    }

    /// RANGETREE-1, RANGETREE-2, and the same answers as a plain list, through random insertions and removals.
    #[test]
    fn agrees_with_a_list() {
        for seed in 0..20 {
            let mut state = seed;
            let mut tree = Intervals::default();
            let mut list: Vec<(Arc<[u8]>, End, Slot)> = Vec::new();
            let mut places = std::collections::BTreeMap::new();
            for slot in 0..600 {
                if next(&mut state).is_multiple_of(3) && !list.is_empty() {
                    let index = next(&mut state) as usize % list.len();
                    let (start, end, gone) = list.swap_remove(index);
                    let place = places.remove(&gone).unwrap();
                    if let Some(moved) = tree.remove(&start, &end, place) {
                        places.insert(moved, place);
                    }
                } else {
                    let from = next(&mut state) % 200;
                    let mut start = bytes(from);
                    let mut end = (!next(&mut state).is_multiple_of(10))
                        .then(|| bytes(from + 1 + next(&mut state) % 60));
                    places.insert(slot, tree.insert(&mut start, &mut end, slot));
                    list.push((start, end, slot));
                }
                check(&tree, tree.root);
                let key = bytes(next(&mut state) % 300);
                let mut found = Vec::new();
                tree.stab(&key, &mut |slot| found.push(slot));
                found.sort_unstable();
                let mut expected: Vec<_> = list
                    .iter()
                    .filter(|(start, end, _)| *start <= key && ends_after(end, &key))
                    .map(|(_, _, slot)| *slot)
                    .collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {seed}");
            }
        }
    }

    /// A client that opens nested ranges in sorted order does not degrade the tree.
    #[test]
    fn sorted_insertion_stays_shallow() {
        let mut tree = Intervals::default();
        for n in 0..4_096 {
            tree.insert(&mut bytes(n), &mut None, n as Slot);
        }
        assert!(tree.height(tree.root) <= 18, "{}", tree.height(tree.root));
    }

    fn check(tree: &Intervals, at: u32) -> (u8, Option<End>) {
        let Some(node) = tree.nodes.get(at as usize) else { return (0, None) };
        let (left, left_reach) = check(tree, node.left);
        let (right, right_reach) = check(tree, node.right);
        assert!(left.abs_diff(right) <= 1);
        assert_eq!(node.height, left.max(right) + 1);
        let mut reach = node.end.clone();
        for other in [left_reach, right_reach].into_iter().flatten() {
            if later(&other, &reach) {
                reach = other;
            }
        }
        assert_eq!(node.reach, reach);
        (node.height, Some(reach))
    }
}
