//! A failed scheduled snapshot leaves no file; the members' start times are spread over the interval.

use tokio::sync::mpsc;

use super::*;
use crate::tests::register;

fn name_of(name: &str) -> MemberName {
    MemberName::new(name).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

fn snapshot_dir(dir: &Path) -> SnapshotDir {
    let names = Names::new("eu", "m1");
    SnapshotDir { dir: dir.to_owned(), keep: 1, names, state: register::config() }
}

/// A stream that announces `total_bytes` and sends `content`.
fn stream(total_bytes: u64, content: &'static [u8]) -> SnapshotStream {
    let (sender, chunks) = mpsc::channel(1);
    sender.try_send(Ok(content.into())).unwrap();
    SnapshotStream { total_bytes, chunks }
}

/// SNAPSHOT-1, SNAPSHOT-4
#[test]
fn a_failed_snapshot_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (target, no_shutdown) = (snapshot_dir(dir.path()), Shutdown::default());
    let save = |stream| target.save(stream, &no_shutdown).unwrap_err().to_string();
    let short = save(stream(9, b"noise"));
    assert_eq!(short, "the ring sent 5 of 9 bytes of its state and then ended the stream");
    let noise = save(stream(5, b"noise"));
    assert!(noise.contains("the file is cut short"), "{noise}");
    let large = save(stream(u64::MAX / 2, b""));
    assert!(large.contains("not enough disk space: "), "{large}");
    assert_eq!(names(dir.path()), [""; 0], "nothing is left of an attempt");
}

#[test]
fn offsets_of_members_are_spread_evenly() {
    let members: BTreeMap<_, _> =
        ["a", "b", "c"].map(|name| (name_of(name), String::new())).into_iter().collect();
    let offsets = ["a", "b", "c"].map(|name| offset(3600, &members, &name_of(name)));
    assert_eq!(offsets, [0, 1200, 2400]);
}
