//! A network of namespaces: one for the clients with a bridge, one for each member.
//!
//! ```text
//!   clients: br0 10.77.0.254 ──┬── member 0: 10.77.0.1
//!                              ├── member 1: 10.77.0.2
//!                              └── ...
//! ```
//!
//! Packets are dropped where they leave a namespace, by a packet filter that sends them into a
//! device with no other end. So each direction is cut by itself: asymmetric and non-transitive
//! networks are just lists of pairs. Everything is undone when the network is dropped, also by a
//! panic, and the leftovers of a process that was killed are swept by the next one.

use std::{
    collections::BTreeMap,
    fs, process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{RunError, error::tool};

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// The namespace of all clients.
    Clients,
    /// A member's.
    Member(usize),
}

/// The treatment of packets in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// All are lost.
    Cut,
    /// So many of a hundred are lost.
    Loss(u32),
}

/// The network of one run.
#[derive(Debug)]
pub struct Network {
    name: String,
    members: usize,
    rules: BTreeMap<(Node, Node), Rule>,
    /// Packets lost by rules that are gone.
    lost: u64,
}

/// Names of namespaces start with this, the process id, and the number of the network.
const PREFIX: &str = "satrap-h";
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Network {
    /// Makes the namespaces and links. Needs root.
    ///
    /// # Errors
    ///
    /// If the operating system refuses any of them.
    pub fn new(members: usize) -> Result<Self, RunError> {
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", process::id());
        let network = Self { name, members, rules: BTreeMap::new(), lost: 0 };
        let hub = network.namespace(Node::Clients);
        add_namespace(&hub)?;
        tool("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        tool("ip", &["-n", &hub, "addr", "add", "10.77.0.254/24", "dev", "br0"])?;
        tool("ip", &["-n", &hub, "link", "set", "br0", "up"])?;
        for member in 0..members {
            network.connect(&hub, member)?;
        }
        network.prepare(&hub, "br0")?;
        Ok(network)
    }

    fn connect(&self, hub: &str, member: usize) -> Result<(), RunError> {
        let space = self.namespace(Node::Member(member));
        let (port, address) = (format!("m{member}"), format!("{}/24", address(member)));
        add_namespace(&space)?;
        let link = ["link", "add", "v0", "netns", &space, "type", "veth", "peer", "name", &port];
        tool("ip", &[&link[..], &["netns", hub]].concat())?;
        tool("ip", &["-n", hub, "link", "set", &port, "master", "br0", "up"])?;
        tool("ip", &["-n", &space, "addr", "add", &address, "dev", "v0"])?;
        tool("ip", &["-n", &space, "link", "set", "v0", "up"])?;
        self.prepare(&space, "v0")
    }

    /// Adds the device that swallows packets, and the place for filters.
    fn prepare(&self, space: &str, device: &str) -> Result<(), RunError> {
        let hole = ["link", "add", "hole", "type", "veth", "peer", "name", "hole2"];
        tool("ip", &[&["-n", space], &hole[..]].concat())?;
        tool("ip", &["-n", space, "link", "set", "hole", "up"])?;
        let clsact = ["qdisc", "add", "dev", device, "clsact"];
        tool("tc", &[&["-n", space], &clsact[..]].concat()).map(drop)
    }

    /// The name of a node's namespace.
    #[must_use]
    pub fn namespace(&self, node: Node) -> String {
        match node {
            Node::Clients => format!("{}c", self.name),
            Node::Member(member) => format!("{}m{member}", self.name),
        }
    }

    /// The prefix of all names of this network, which no other run shares.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets what happens to packets from one node to another.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the filter.
    pub fn set(&mut self, from: Node, to: Node, rule: Rule) -> Result<(), RunError> {
        self.rules.insert((from, to), rule);
        self.apply(from)
    }

    /// Sets both directions between two nodes.
    ///
    /// # Errors
    ///
    /// As [`Self::set`].
    pub fn set_both(&mut self, one: Node, other: Node, rule: Rule) -> Result<(), RunError> {
        self.set(one, other, rule)?;
        self.set(other, one, rule)
    }

    /// Lets all packets through, and returns how many were lost so far.
    ///
    /// # Errors
    ///
    /// As [`Self::set`].
    pub fn heal(&mut self) -> Result<u64, RunError> {
        let from: Vec<_> = self.rules.keys().map(|(from, _)| *from).collect();
        self.rules.clear();
        for node in from {
            self.apply(node)?;
        }
        Ok(self.lost)
    }

    fn apply(&mut self, from: Node) -> Result<(), RunError> {
        let space = self.namespace(from);
        let device = if from == Node::Clients { "br0" } else { "v0" };
        let place = ["-n", &space, "filter"];
        let shown = tool("tc", &["-n", &space, "-s", "filter", "show", "dev", device, "egress"])?;
        self.lost += lost_packets(&shown);
        tool("tc", &[&place[..1], &[&space, "filter", "del", "dev", device, "egress"]].concat())?;
        for ((_, to), rule) in self.rules.iter().filter(|((node, _), _)| *node == from) {
            let program = program(*to, *rule);
            let filter = ["add", "dev", device, "egress", "protocol", "ip", "bpf", "bytecode"];
            let action = [&program, "action", "mirred", "egress", "redirect", "dev", "hole"];
            tool("tc", &[&place[..], &filter[..], &action[..]].concat())?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let members = (0..self.members).map(Node::Member);
        for node in members.chain([Node::Clients]) {
            // A namespace that was never made cannot be removed.
            drop(tool("ip", &["netns", "del", &self.namespace(node)]));
        }
    }
}

/// A member's address.
#[must_use]
pub fn address(member: usize) -> String {
    format!("10.77.0.{}", member + 1)
}

fn add_namespace(name: &str) -> Result<(), RunError> {
    tool("ip", &["netns", "add", name])?;
    tool("ip", &["-n", name, "link", "set", "lo", "up"]).map(drop)
}

/// A packet filter that matches packets to `to`, or a share of them.
fn program(to: Node, rule: Rule) -> String {
    let last = match to {
        Node::Clients => 254,
        Node::Member(member) => member as u32 + 1,
    };
    let destination = u32::from_be_bytes([10, 77, 0, 0]) + last;
    let percent = match rule {
        Rule::Cut => 100,
        Rule::Loss(percent) => percent.min(100),
    };
    let bar = u64::from(u32::MAX) * u64::from(percent) / 100;
    // Load the destination address behind the 14 bytes of the Ethernet header, compare; load a
    // random number, compare; match or not.
    let random = 0xffff_f000_u32 + 56;
    format!(
        "6,32 0 0 30,21 0 3 {destination},32 0 0 {random},37 1 0 {bar},6 0 0 4294967295,6 0 0 0,"
    )
}

/// The packets that the shown filters swallowed.
fn lost_packets(shown: &str) -> u64 {
    let counts = shown.lines().filter_map(|line| {
        let mut words = line.trim().strip_prefix("Sent ")?.split_whitespace();
        words.nth(2)?.parse::<u64>().ok()
    });
    counts.sum()
}

/// Removes the namespaces of processes that are gone.
fn sweep() {
    let Ok(spaces) = fs::read_dir("/run/netns") else { return };
    for space in spaces.flatten() {
        let name = space.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            // The groups of its processes have the names of its namespaces.
            drop(fs::remove_dir(format!("/sys/fs/cgroup/blkio/{name}")));
            drop(tool("ip", &["netns", "del", &name]));
        }
    }
}
