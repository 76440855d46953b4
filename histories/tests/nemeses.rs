//! The faults are real: packets are lost in the directions asked for, disks refuse, and nothing is
//! left behind. All of it needs root, as the runs do, and a quick run leaves it out. One test runs at a
//! time: a process that another one starts holds open files for a moment, and keeps a disk from being unmounted.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod program;

use std::{
    fs,
    io::Write as _,
    net::UdpSocket,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use satrap_histories::{
    disk::Disk,
    error::tool,
    net::{Network, Node, Rule, address},
    run::enter,
    shared::now_ns,
};
use satrap_ring_storage::{
    Owner, Record, Recovered, Reserve, SpaceConfig, Wal, WalConfig,
    files::{DirFiles, Files},
};

use self::program::alone;

const ONE: Node = Node::Member(0);
const TWO: Node = Node::Member(1);
const THREE: Node = Node::Member(2);
/// How often a disk breaks under a log.
const BROKEN_ROUNDS: u64 = 40;

/// A socket in the namespace of a node.
fn socket(network: &Network, node: Node) -> UdpSocket {
    thread::scope(|scope| {
        let opened = scope.spawn(|| {
            enter(network, node).unwrap();
            let host = match node {
                Node::Clients => "10.77.0.254".to_owned(),
                Node::Member(member) => address(member),
            };
            let socket = UdpSocket::bind((host, 7)).unwrap();
            // Longer than any packet takes; it only delays the count of those that were lost.
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            socket
        });
        opened.join().unwrap()
    })
}

/// How many of `count` packets arrive.
fn arrive(from: &UdpSocket, to: &UdpSocket, count: usize) -> usize {
    let mut arrived = 0;
    let mut buffer = [0; 8];
    // In portions that fit the queue of a socket.
    for portion in 0..count.div_ceil(50) {
        for _ in portion * 50..count.min((portion + 1) * 50) {
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        }
        while to.recv_from(&mut buffer).is_ok() {
            arrived += 1;
        }
    }
    arrived
}

#[test]
fn packets_are_lost_in_the_direction_asked_for() {
    let Some(_alone) = alone() else { return };
    let mut network = Network::new(3).unwrap();
    let [one, two, three, clients] =
        [ONE, TWO, THREE, Node::Clients].map(|node| socket(&network, node));
    assert_eq!((arrive(&one, &two, 50), arrive(&two, &one, 50)), (50, 50));

    // Asymmetric, and not transitive.
    network.set(ONE, TWO, Rule::Cut).unwrap();
    assert_eq!((arrive(&one, &two, 50), arrive(&two, &one, 50)), (0, 50));
    assert_eq!((arrive(&one, &three, 50), arrive(&three, &two, 50)), (50, 50));
    assert_eq!(arrive(&clients, &one, 50), 50);

    network.set_both(THREE, Node::Clients, Rule::Cut).unwrap();
    assert_eq!((arrive(&three, &clients, 50), arrive(&clients, &three, 50)), (0, 0));
    assert_eq!(arrive(&one, &clients, 50), 50);

    network.set(ONE, TWO, Rule::Loss(30)).unwrap();
    let arrived = arrive(&one, &two, 1_000);
    assert!((620..=780).contains(&arrived), "of 1000 packets {arrived} arrived at 30 % loss");

    let lost = network.heal().unwrap();
    assert!(lost >= 300, "the network counted {lost} lost packets");
    assert_eq!((arrive(&one, &two, 50), arrive(&three, &clients, 50)), (50, 50));
}

#[test]
fn a_disk_is_full_then_broken_then_well_again() {
    let Some(_alone) = alone() else { return };
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(directory.path(), "disk", "satrap-h-test-full").unwrap();
    let file = disk.path().join("file");
    fs::write(&file, "before").unwrap();

    assert!(disk.fill().unwrap());
    fs::write(disk.path().join("more"), vec![1; 1 << 16]).unwrap_err();
    disk.free().unwrap();
    fs::write(disk.path().join("more"), vec![1; 1 << 16]).unwrap();

    let open = fs::File::options().append(true).open(&file).unwrap();
    open.sync_all().unwrap();
    disk.break_medium().unwrap();
    // A program with an open file learns of it at the next write or sync.
    assert!((&open).write_all(b"after").and_then(|()| open.sync_all()).is_err());
    drop(open);
    disk.repair().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    fs::write(&file, "after").unwrap();
}

/// WAL-5: ext4 reports success for a sync during which it turns read-only, and may have lost the
/// bytes of extents that were allocated but never written. A log of one sync for each commit in such
/// extents lost an acknowledged commit in about one of twenty rounds.
#[test]
fn an_acknowledged_commit_survives_a_disk_that_breaks_during_the_sync() {
    let Some(_alone) = alone() else { return };
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(directory.path(), "disk", "satrap-h-test-log").unwrap();
    let mut acknowledged = 0;
    for round in 0..BROKEN_ROUNDS {
        let (mut wal, held) = open_log(&disk);
        let held = held.entries.last().map_or(0, |(index, _)| *index);
        assert!(held >= acknowledged, "round {round}: {acknowledged} acknowledged, {held} held");
        acknowledged = held;
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(5 + 3 * round));
                disk.break_medium().unwrap();
            });
            let entry = |index| Record::Append { index, bytes: vec![7; 400].into() };
            while wal.commit(&[entry(acknowledged + 1)]).is_ok() {
                acknowledged += 1;
            }
        });
        drop(wal);
        disk.repair().unwrap();
    }
    assert!(acknowledged > BROKEN_ROUNDS, "only {acknowledged} commits");
}

fn open_log(disk: &Disk) -> (Wal, Recovered) {
    let files: Arc<dyn Files> = Arc::new(DirFiles::open(&disk.path().join("log")).unwrap());
    let space = SpaceConfig { reserve_bytes: 0, low_bytes: 0 };
    let reserve = Arc::new(Reserve::open(files.clone(), space).unwrap());
    let owner = Owner { ring: [1; 32], member: "m1".into() };
    Wal::open(files, reserve, WalConfig::default(), &owner, [7; 16]).unwrap()
}

#[test]
fn a_slow_disk_is_slow_for_its_members_only_while_it_is() {
    let Some(_alone) = alone() else { return };
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(directory.path(), "disk", "satrap-h-test-slow").unwrap();
    let target = disk.path().join("synced");
    let twenty_syncs = || {
        let script = format!(
            "read go; exec dd if=/dev/zero of={} bs=4k count=20 oflag=dsync status=none",
            target.display()
        );
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        disk.adopt(child.id()).unwrap();
        let begun = now_ns();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert!(child.wait().unwrap().success());
        Duration::from_nanos(now_ns() - begun)
    };
    let before = twenty_syncs();
    let writes = disk.writes().unwrap();
    disk.limit(15).unwrap();
    let slow = twenty_syncs();
    disk.limit(0).unwrap();
    let slow_writes = disk.writes().unwrap() - writes;
    let after = twenty_syncs();
    println!("twenty syncs: {before:?}, limited {slow:?}, then {after:?}");
    assert!(slow_writes >= 20, "the kernel counted {slow_writes} writes for twenty syncs");
    // At 15 writes a second and at least one for each sync.
    assert!(slow > Duration::from_secs(1), "a slow disk took {slow:?}");
    assert!(slow > before.max(after) * 2, "{before:?}, {slow:?}, {after:?}");
}

#[test]
fn nothing_is_left_behind_by_a_panic_or_by_the_dead() {
    let Some(_alone) = alone() else { return };
    let mut name = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let network = Network::new(1).unwrap();
        name = network.namespace(ONE);
        assert!(fs::exists(format!("/run/netns/{name}")).unwrap());
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert!(!fs::exists(format!("/run/netns/{name}")).unwrap());

    // No process has this id.
    let dead = "satrap-h999999999-0c";
    tool("ip", &["netns", "add", dead]).unwrap();
    drop(Network::new(1).unwrap());
    assert!(!fs::exists(format!("/run/netns/{dead}")).unwrap());
}
