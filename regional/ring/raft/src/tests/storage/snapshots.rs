//! Tests of snapshots between two members' disks.

use super::*;

/// All frames of a snapshot that is to be sent.
pub(super) fn frames(snapshot: &SnapshotContent) -> Vec<Vec<u8>> {
    let SnapshotContent::Stored(reader) = snapshot else {
        panic!("a snapshot to be sent is stored");
    };
    let mut reader = reader.lock().unwrap();
    reader.seek(0).unwrap();
    std::iter::from_fn(|| reader.frame().unwrap().map(|frame| frame.bytes)).collect()
}

/// Receives `frames` at the other member.
pub(super) async fn receive(
    to: &Checkpoints,
    inbox: &Inbox,
    frames: &[Vec<u8>],
) -> Result<Transfer, InboxError> {
    let frames = frames.iter().map(|frame| Ok(Bytes::copy_from_slice(frame)));
    inbox.take::<Real, _>(to.state(), futures::stream::iter(frames)).await
}

pub(super) fn all(taken: Transfer) -> SnapshotContent {
    match taken {
        Transfer::All(arrived) => SnapshotContent::Arrived(arrived),
        Transfer::Next(frame) => panic!("frame {frame} is missing"),
    }
}

#[test]
fn a_snapshot_carries_both_states_and_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let written = register::write(&[1; 100_000]);
    block_on(async {
        let mut member = open(&dir.path().join("leader")).unwrap();
        apply(&mut member.machine, command(1, 0, &written)).await;
        for index in 1..=20 {
            apply(&mut member.machine, put(index, &format!("k{index}"), &[5; 100_000])).await;
        }
        let snapshot = member.snapshot().await;
        let sent = frames(&snapshot.snapshot);
        assert!(sent.len() > 4, "it takes several frames");

        let mut other = open(&dir.path().join("follower")).unwrap();
        let arrived = all(other.receive(&sent).await.unwrap());
        other.machine.install_snapshot(&snapshot.meta, arrived).await.unwrap();
        assert_eq!(other.machine.applied_state().await.unwrap().0, Some(log_id(1, 20)));
        assert_eq!((other.version(), other.digest()), (1, member.digest()));
        // Later entries are applied to it, and are in the next snapshot.
        for member in [&mut member, &mut other] {
            apply(&mut member.machine, put(21, "k1", b"again")).await;
        }
        assert_eq!(other.digest(), member.digest());
        let newest = other.snapshot().await;
        assert_eq!(newest.meta.last_log_id, Some(log_id(1, 21)));
        drop((newest, snapshot));
        let digest = other.digest();
        member.close();
        other.close();

        let mut other = open(&dir.path().join("follower")).unwrap();
        assert_eq!((other.version(), other.digest()), (1, digest));
        assert_eq!(other.value("k1").unwrap(), b"again");
        let held = other.machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(held.meta.last_log_id, Some(log_id(1, 21)));
        drop(held);
        other.close();
    });
}

#[test]
fn a_snapshot_that_is_not_what_it_says_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let written = register::write(b"1");
    block_on(async {
        let mut member = open(&dir.path().join("leader")).unwrap();
        apply(&mut member.machine, command(1, 0, &written)).await;
        apply(&mut member.machine, put(1, "k", b"1")).await;
        let mut snapshot = member.snapshot().await;
        let sent = frames(&snapshot.snapshot);

        let mut other = open(&dir.path().join("follower")).unwrap();
        // Any flipped bit is refused before it becomes state, and costs one frame.
        for (number, frame) in sent.iter().enumerate() {
            let mut evil = frame.clone();
            let middle = evil.len() / 2;
            evil[middle] ^= 1;
            let error = other.receive(&[evil]).await.err().unwrap();
            assert!(matches!(error, InboxError::Frame(_)), "{error}");
            match other.receive(std::slice::from_ref(frame)).await.unwrap() {
                Transfer::Next(next) => assert_eq!(next, number as u64 + 1),
                Transfer::All(arrived) => drop(arrived),
            }
        }
        let stranger = Owner { ring: [3; 32], ..owner() };
        let stranger = open_as(&dir.path().join("stranger"), &stranger).unwrap();
        let error = stranger.receive(&sent).await.err().unwrap();
        assert!(error.to_string().contains(&Refused::Ring.to_string()), "{error}");
        stranger.close();

        // A head with another index than the rows have.
        let arrived = all(other.receive(&sent).await.unwrap());
        snapshot.meta.last_log_id = Some(log_id(1, 9));
        let error = other.machine.install_snapshot(&snapshot.meta, arrived).await.unwrap_err();
        assert!(error.to_string().contains("of different states"), "{error}");
        assert_eq!(other.machine.applied_state().await.unwrap().0, None);
        assert_eq!((other.version(), other.value("k")), (0, None));
        drop(snapshot);
        member.close();
        other.close();
    });
}

/// INBOX-1: two leaders in a row send the same state at the same time.
#[test]
fn one_snapshot_arrives_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut member = open(&dir.path().join("leader")).unwrap();
        apply(&mut member.machine, put(0, "k", b"1")).await;
        let snapshot = member.snapshot().await;
        let sent = frames(&snapshot.snapshot);
        let mut other = open(&dir.path().join("follower")).unwrap();
        let first = other.receive(&sent).await.unwrap();
        let (checkpoints, inbox) = (other.checkpoints.clone(), other.inbox.clone());
        let second = Box::pin(receive(&checkpoints, &inbox, &sent));
        let Either::Right((first, second)) = select(second, ready(first)).await else {
            panic!("the file of the first was taken by the second");
        };
        other.machine.install_snapshot(&snapshot.meta, all(first)).await.unwrap();
        drop(second.await.unwrap());
        assert_eq!(other.value("k").unwrap(), b"1");
        drop(snapshot);
        member.close();
        other.close();
    });
}
