//! A workload sees one complete version, or the one before (ACTIVATE-1, ACTIVATE-2, ACTIVATE-6), and no name leads
//! to another's files, nor to files that are not this agent's (ACTIVATE-3, ACTIVATE-4, ACTIVATE-5).

mod common;

use std::{
    collections::BTreeMap,
    fs,
    future::poll_fn,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::Poll,
    thread,
    time::Duration,
};

use common::{head, name, run, sink, tree};
use satrap_certify::BundleName;
use satrap_edge_agent::{
    activate::FileSink,
    config::Activate,
    links::OnDisk,
    sink::{Sink as _, SinkError},
};
use satrap_edge_core::Active;
use satrap_runtime::runtime;

fn bundle() -> BundleName {
    name("config/routing")
}

async fn activate(sink: &Arc<FileSink>, version: u64, value: &str) -> Result<(), SinkError> {
    let tree = tree(&[("a", value), ("dir/b", value)]);
    run(sink, &head(&bundle(), version, &tree), &tree, None).await
}

/// Panics unless the version is at fault, and the error says `expected`.
#[track_caller]
fn blames_version(error: &SinkError, expected: &str) {
    assert!(matches!(error, SinkError::Version(why) if why.contains(expected)), "{error:?}");
}

/// Panics unless the host is at fault: the same version is tried again.
#[track_caller]
fn blames_host(error: &SinkError, expected: &str) {
    assert!(matches!(error, SinkError::Host(why) if why.contains(expected)), "{error:?}");
}

/// The version that the link leads to, read file by file.
fn seen(link: &Path) -> Option<(String, String)> {
    let directory: PathBuf = fs::read_link(link).ok()?;
    let a = fs::read_to_string(directory.join("a")).ok()?;
    Some((a, fs::read_to_string(directory.join("dir/b")).ok()?))
}

#[tokio::test]
async fn activate_1_the_link_always_leads_to_one_complete_version() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "", None);
    let link = sink.link(&bundle());
    activate(&sink, 1, "1").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = thread::spawn({
        let (stop, link) = (stop.clone(), link.clone());
        move || {
            let mut reads = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                assert!(fs::symlink_metadata(&link).is_ok(), "the link is always there");
                // A reader that is two versions late finds its directory gone, not mixed.
                if let Some((a, b)) = seen(&link) {
                    assert_eq!(a, b);
                    reads += 1;
                }
            }
            reads
        }
    });
    for version in 2..=40 {
        let value = version.to_string();
        activate(&sink, version, &value).await.unwrap();
        assert_eq!(seen(&link), Some((value.clone(), value)));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
}

#[tokio::test]
async fn activate_2_a_hook_that_fails_or_hangs_leaves_the_version_from_before() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let hook = format!(
        "cat \"$SATRAP_DIR/a\" >> '{}'; case $(cat \"$SATRAP_DIR/a\") in \
         bad*) exit 1;; slow*) exec sleep 60;; esac",
        log.display()
    );
    let sink = sink(dir.path(), &hook, None);
    let link = sink.link(&bundle());
    let failed = activate(&sink, 1, "bad1 ").await.unwrap_err();
    blames_version(&failed, "hook failed");
    assert!(fs::symlink_metadata(&link).is_err(), "there was none before");
    activate(&sink, 2, "good2 ").await.unwrap();
    for (version, value) in [(3, "bad3 "), (4, "slow4 ")] {
        let failed = activate(&sink, version, value).await.unwrap_err();
        blames_version(&failed, "hook failed");
        assert_eq!(seen(&link).unwrap().0, "good2 ");
    }
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told, "bad1 good2 bad3 good2 slow4 good2 ", "the hook runs again after a rollback");
    activate(&sink, 5, "good5 ").await.unwrap();
    assert_eq!(seen(&link).unwrap().0, "good5 ");
}

/// Each of them stayed on the disk until one worked.
#[tokio::test]
async fn activate_2_versions_that_fail_one_after_the_other_do_not_fill_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "! grep -q bad \"$SATRAP_DIR/a\"", None);
    activate(&sink, 1, "good").await.unwrap();
    let versions = fs::read_link(sink.link(&bundle())).unwrap().parent().unwrap().to_owned();
    for version in 2..8 {
        let failed = activate(&sink, version, &format!("bad{version}")).await.unwrap_err();
        blames_version(&failed, "hook failed");
        let left = fs::read_dir(&versions).unwrap().count();
        assert_eq!(left, 2, "the active version and the last one that failed");
    }
    assert_eq!(seen(&sink.link(&bundle())).unwrap().0, "good");
}

/// A hook that the host could not start kept a good version away for good.
#[tokio::test]
async fn activate_2_a_hook_that_cannot_be_started_is_no_fault_of_the_version() {
    let dir = tempfile::tempdir().unwrap();
    let works = sink(dir.path(), "", None);
    activate(&works, 1, "1").await.unwrap();
    let config = Activate {
        dir: dir.path().join("active"),
        combined_file: None,
        hook: vec![dir.path().join("missing").display().to_string()],
        hook_timeout: Duration::from_secs(2),
    };
    let broken = Arc::new(FileSink::new(config, dir.path()));
    let failed = activate(&broken, 2, "2").await.unwrap_err();
    blames_host(&failed, "did not start");
    assert_eq!(seen(&works.link(&bundle())).unwrap().0, "1");
    activate(&works, 2, "2").await.unwrap();
}

/// The files of a version were written while the edge did nothing else: not even stop.
#[test]
fn a_version_is_written_while_the_edge_goes_on() {
    let (done, is_done) = mpsc::channel();
    let body = async {
        let dir = tempfile::tempdir().unwrap();
        let sink = sink(dir.path(), "", None);
        activate(&sink, 1, "1").await.unwrap();
        // A pipe among the files that the next version is compared with: reading it takes as long as
        // the test likes.
        let pipe = sink.link(&bundle()).join("a");
        fs::remove_file(&pipe).unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut second = Box::pin(activate(&sink, 2, "1"));
        let waits = poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_pending())).await;
        assert!(waits, "other events come meanwhile");
        fs::write(&pipe, "altered").unwrap();
        second.await.unwrap();
        assert_eq!(seen(&sink.link(&bundle())).unwrap().0, "1");
    };
    // As the edge runs, on one thread; it would not come back to a deadline of its own.
    thread::spawn(move || {
        runtime::current_thread().unwrap().block_on(body);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(60)).expect("the edge waits for a file");
}

#[tokio::test]
async fn activate_2_damaged_files_are_repaired_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "", None);
    let link = sink.link(&bundle());
    activate(&sink, 1, "1").await.unwrap();
    fs::write(link.join("a"), "altered").unwrap();
    let tree = tree(&[("a", "1"), ("dir/b", "1")]);
    sink.ensure(&bundle(), Active::of(&head(&bundle(), 1, &tree)), Some(&tree)).unwrap();
    assert_eq!(seen(&link).unwrap().0, "1");
}

#[tokio::test]
async fn activate_3_a_key_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "", None);
    for key in ["../x", "/x", "a/../../x", "a//b", "a/", "./a", "..", "."] {
        let tree = tree(&[("good", "1"), (key, "evil")]);
        let refused = run(&sink, &head(&bundle(), 1, &tree), &tree, None).await.unwrap_err();
        blames_version(&refused, "is not a relative file path");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "nothing was written: {left:?}");
    // The same files under names that cannot lead anywhere.
    let tree = tree(&[("..x", "1"), ("a/b.c/d", "2")]);
    run(&sink, &head(&bundle(), 1, &tree), &tree, None).await.unwrap();
    assert_eq!(fs::read_to_string(sink.link(&bundle()).join("a/b.c/d")).unwrap(), "2");
}

#[tokio::test]
async fn activate_4_no_bundle_meets_the_files_of_another() {
    // Every one of these was, or begins with, a path or a temporary name of another.
    let names = ["app", "app/conf", "app.new", "app/conf.new", "app/conf/x", "versions", "app.old"];
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "", None);
    let mut active: BTreeMap<BundleName, Active> = BTreeMap::new();
    for step in 0..60_usize {
        // Each order of updates of any two comes up.
        let bundle = name(names[(step * step + step / 7) % names.len()]);
        let version = active.get(&bundle).map_or(1, |active| active.version + 1);
        let value = format!("{bundle} {version}");
        let tree = tree(&[("conf", &value), ("conf.new", &value)]);
        let head = head(&bundle, version, &tree);
        run(&sink, &head, &tree, active.get(&bundle).copied()).await.unwrap();
        active.insert(bundle, Active::of(&head));
        for (bundle, version) in &active {
            assert_eq!(sink.on_disk(bundle, *version), OnDisk::Current, "{bundle}");
            let value = fs::read_to_string(sink.link(bundle).join("conf")).unwrap();
            assert_eq!(value, format!("{bundle} {}", version.version), "after step {step}");
        }
    }
    let links = fs::read_dir(dir.path().join("active")).unwrap().count();
    assert_eq!(links, active.len(), "one link for each bundle, and nothing temporary");
}

#[tokio::test]
async fn activate_4_keys_that_name_one_path_are_refused_before_anything_is_written() {
    let long = "x".repeat(256);
    for (keys, says) in [
        (["a", "a/b"], "keys `a` and `a/b` cannot both be files"),
        (["a/b", "a/b/c/d"], "keys `a/b` and `a/b/c/d` cannot both be files"),
        (["a", "all.pem"], "key `all.pem` and `activate.combined_file` `all.pem`"),
        (["a", "all.pem/b"], "key `all.pem/b` and `activate.combined_file` `all.pem`"),
        (["a", &long], "has a part of 256 bytes, file systems allow 255"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let sink = sink(dir.path(), "", Some("all.pem"));
        // `a.x` and `a-b` sort between `a` and `a/b` as bytes.
        let tree = tree(&[(keys[0], "1"), (keys[1], "2"), ("a.x", "3"), ("a-b", "4")]);
        let refused = run(&sink, &head(&bundle(), 1, &tree), &tree, None).await;
        let refused = refused.unwrap_err();
        blames_version(&refused, says);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
    }
}

#[tokio::test]
async fn activate_5_what_this_agent_did_not_make_is_left_as_it_is() {
    type Put = fn(&Path);
    const ELSEWHERE: &str = "/nowhere/versions/other/1-0000000000000000";
    let name = "config+routing";
    let put: [(&str, Put); 4] = [
        ("a file", |path| fs::write(path, "theirs").unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a link", |path| symlink("/dev/null", path).unwrap()),
        ("a link to another bundle", |path| symlink(ELSEWHERE, path).unwrap()),
    ];
    for (what, put) in put {
        for place in [name.to_owned(), format!(".{name}.new")] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("active").join(&place);
            fs::create_dir(dir.path().join("active")).unwrap();
            put(&path);
            let before = fs::symlink_metadata(&path).unwrap().modified().unwrap();
            let sink = sink(dir.path(), "", None);
            let refused = activate(&sink, 1, "1").await.unwrap_err();
            blames_host(&refused, "is not a link of this agent");
            let after = fs::symlink_metadata(&path).unwrap().modified().unwrap();
            assert_eq!(before, after, "{what} is untouched");
            // Moved away, as the message says, it works.
            fs::rename(&path, dir.path().join("theirs")).unwrap();
            activate(&sink, 1, "1").await.unwrap();
        }
    }
}

#[tokio::test]
async fn activate_6_a_link_that_is_gone_or_leads_back_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "", None);
    let (bundle, link) = (bundle(), sink.link(&bundle()));
    let version = |number: u64| {
        let value = number.to_string();
        let tree = tree(&[("a", &value), ("dir/b", &value)]);
        Active::of(&head(&bundle, number, &tree))
    };
    activate(&sink, 1, "1").await.unwrap();
    let first = fs::read_link(&link).unwrap();
    activate(&sink, 2, "2").await.unwrap();
    let second = fs::read_link(&link).unwrap();
    let relink_to = |target: &Path| {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
    };

    fs::remove_file(&link).unwrap();
    assert_eq!(sink.on_disk(&bundle, version(2)), OnDisk::Missing);
    sink.keep(&bundle, version(2), None).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), second);

    relink_to(&first);
    assert_eq!(sink.on_disk(&bundle, version(2)), OnDisk::Other);
    sink.keep(&bundle, version(2), None).unwrap();
    assert_eq!(sink.on_disk(&bundle, version(2)), OnDisk::Current);

    // An activation of 2 that was cut short: 1 is active, and going back would be a rollback.
    sink.keep(&bundle, version(1), None).unwrap();
    let one = tree(&[("a", "1"), ("dir/b", "1")]);
    sink.ensure(&bundle, version(1), Some(&one)).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), second);
    assert_eq!(sink.found(&bundle), Some(version(2)));

    // Files that are gone cannot be linked to; with their content they can.
    fs::remove_file(&link).unwrap();
    fs::remove_dir_all(&second).unwrap();
    assert!(sink.keep(&bundle, version(2), None).is_err());
    let two = tree(&[("a", "2"), ("dir/b", "2")]);
    sink.ensure(&bundle, version(2), Some(&two)).unwrap();
    assert_eq!(seen(&link).unwrap().0, "2");

    fs::remove_file(&link).unwrap();
    fs::write(&link, "theirs").unwrap();
    assert_eq!(sink.on_disk(&bundle, version(2)), OnDisk::Foreign);
    assert!(sink.keep(&bundle, version(2), None).is_err());
    assert_eq!(fs::read_to_string(&link).unwrap(), "theirs");
}

#[tokio::test]
async fn activate_2_a_failed_hook_goes_back_to_what_is_active_not_to_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let quiet = sink(dir.path(), "", None);
    let told = dir.path().join("told");
    let hook = format!(
        "echo $SATRAP_VERSION $(cat $SATRAP_DIR/a) >> '{}'; grep -q 1 $SATRAP_DIR/a",
        told.display()
    );
    let failing = common::sink(dir.path(), &hook, None);
    activate(&quiet, 1, "1").await.unwrap();
    let first = fs::read_link(quiet.link(&bundle())).unwrap();
    let one = Active::of(&head(&bundle(), 1, &tree(&[("a", "1"), ("dir/b", "1")])));
    // Power was lost after the link led to 2, before its hook ended: 2 is tried again, and fails.
    activate(&quiet, 2, "2").await.unwrap();
    let two = tree(&[("a", "2"), ("dir/b", "2")]);
    let refused = run(&failing, &head(&bundle(), 2, &two), &two, Some(one)).await.unwrap_err();
    blames_version(&refused, "hook failed");
    assert_eq!(fs::read_link(quiet.link(&bundle())).unwrap(), first);
    // The hook hears of the version that the link leads to.
    assert_eq!(fs::read_to_string(told).unwrap(), "2 2\n1 1\n");
}

#[tokio::test]
async fn content_is_read_back_from_files_only_if_it_is_the_certified_one() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path(), "", Some("all"));
    let tree = tree(&[("a", "1"), ("dir/b", "2")]);
    let head = head(&bundle(), 1, &tree);
    run(&sink, &head, &tree, None).await.unwrap();
    let version = Active::of(&head);
    let back = |sink: &FileSink| sink.read_back(&bundle(), version);
    assert_eq!(back(&sink).unwrap().root(), tree.root());
    let directory: PathBuf = fs::read_link(sink.link(&bundle())).unwrap();
    for (path, bytes) in [("dir/b", "altered"), ("dir/more", "x"), ("a", "2")] {
        let path = directory.join(path);
        let before = fs::read(&path).ok();
        fs::write(&path, bytes).unwrap();
        assert!(back(&sink).is_none(), "{}", path.display());
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    symlink("/dev/zero", directory.join("endless")).unwrap();
    assert!(back(&sink).is_none(), "nothing but files is read");
    fs::remove_file(directory.join("endless")).unwrap();
    assert!(back(&sink).is_some());
}
