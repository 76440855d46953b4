//! A workload sees one complete version, or the one before (S1, S2, S6), and no name leads
//! to another's files, nor to files that are not this agent's (S3, S4, S5).

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{activator, head, name, tree};
use satrap_certify::BundleName;
use satrap_edge_agent::{
    activate::{ActivateError, Activator},
    links::OnDisk,
};
use satrap_edge_core::Active;

fn bundle() -> BundleName {
    name("config/routing")
}

async fn activate(activator: &Activator, version: u64, value: &str) -> Result<(), ActivateError> {
    let tree = tree(&[("a", value), ("dir/b", value)]);
    activator.activate(&head(&bundle(), version, &tree), &tree, None).await
}

/// The version that the link leads to, read file by file.
fn seen(link: &Path) -> Option<(String, String)> {
    let directory: PathBuf = fs::read_link(link).ok()?;
    let a = fs::read_to_string(directory.join("a")).ok()?;
    Some((a, fs::read_to_string(directory.join("dir/b")).ok()?))
}

#[tokio::test]
async fn s1_the_link_always_leads_to_one_complete_version() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "", None);
    let link = activator.link(&bundle());
    activate(&activator, 1, "1").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
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
        activate(&activator, version, &value).await.unwrap();
        assert_eq!(seen(&link), Some((value.clone(), value)));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
}

#[tokio::test]
async fn s2_a_hook_that_fails_or_hangs_leaves_the_version_from_before() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let hook = format!(
        "cat \"$SATRAP_DIR/a\" >> '{}'; case $(cat \"$SATRAP_DIR/a\") in \
         bad*) exit 1;; slow*) exec sleep 60;; esac",
        log.display()
    );
    let activator = activator(dir.path(), &hook, None);
    let link = activator.link(&bundle());
    let failed = activate(&activator, 1, "bad1 ").await.unwrap_err();
    assert!(matches!(failed, ActivateError::Hook(_)), "{failed}");
    assert!(fs::symlink_metadata(&link).is_err(), "there was none before");
    activate(&activator, 2, "good2 ").await.unwrap();
    for (version, value) in [(3, "bad3 "), (4, "slow4 ")] {
        let failed = activate(&activator, version, value).await.unwrap_err();
        assert!(matches!(failed, ActivateError::Hook(_)), "{failed}");
        assert_eq!(seen(&link).unwrap().0, "good2 ");
    }
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told, "bad1 good2 bad3 good2 slow4 good2 ", "it is told to go back");
    activate(&activator, 5, "good5 ").await.unwrap();
    assert_eq!(seen(&link).unwrap().0, "good5 ");
}

#[tokio::test]
async fn s2_damaged_files_are_repaired_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "", None);
    let link = activator.link(&bundle());
    activate(&activator, 1, "1").await.unwrap();
    fs::write(link.join("a"), "altered").unwrap();
    let tree = tree(&[("a", "1"), ("dir/b", "1")]);
    activator.ensure(&bundle(), Active::of(&head(&bundle(), 1, &tree)), &tree).unwrap();
    assert_eq!(seen(&link).unwrap().0, "1");
}

#[tokio::test]
async fn s3_a_key_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "", None);
    for key in ["../x", "/x", "a/../../x", "a//b", "a/", "./a", "..", "."] {
        let tree = tree(&[("good", "1"), (key, "evil")]);
        let refused =
            activator.activate(&head(&bundle(), 1, &tree), &tree, None).await.unwrap_err();
        assert!(matches!(refused, ActivateError::Path(_)), "{key}: {refused}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "nothing was written: {left:?}");
    // The same files under names that cannot lead anywhere.
    let tree = tree(&[("..x", "1"), ("a/b.c/d", "2")]);
    activator.activate(&head(&bundle(), 1, &tree), &tree, None).await.unwrap();
    assert_eq!(fs::read_to_string(activator.link(&bundle()).join("a/b.c/d")).unwrap(), "2");
}

#[tokio::test]
async fn s4_no_bundle_meets_the_files_of_another() {
    // Every one of these was, or begins with, a path or a temporary name of another.
    let names = ["app", "app/conf", "app.new", "app/conf.new", "app/conf/x", "versions", "app.old"];
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "", None);
    let mut active: BTreeMap<BundleName, Active> = BTreeMap::new();
    for step in 0..60_usize {
        // Each order of updates of any two comes up.
        let bundle = name(names[(step * step + step / 7) % names.len()]);
        let version = active.get(&bundle).map_or(1, |active| active.version + 1);
        let value = format!("{bundle} {version}");
        let tree = tree(&[("conf", &value), ("conf.new", &value)]);
        let head = head(&bundle, version, &tree);
        activator.activate(&head, &tree, active.get(&bundle).copied()).await.unwrap();
        active.insert(bundle, Active::of(&head));
        for (bundle, version) in &active {
            assert_eq!(activator.on_disk(bundle, *version), OnDisk::Current, "{bundle}");
            let value = fs::read_to_string(activator.link(bundle).join("conf")).unwrap();
            assert_eq!(value, format!("{bundle} {}", version.version), "after step {step}");
        }
    }
    let links = fs::read_dir(dir.path().join("active")).unwrap().count();
    assert_eq!(links, active.len(), "one link for each bundle, and nothing temporary");
}

#[tokio::test]
async fn s4_keys_that_name_one_path_are_refused_before_anything_is_written() {
    let long = "x".repeat(256);
    for (keys, says) in [
        (["a", "a/b"], "keys `a` and `a/b` cannot both be files"),
        (["a/b", "a/b/c/d"], "keys `a/b` and `a/b/c/d` cannot both be files"),
        (["a", "all.pem"], "key `all.pem` and `activate.combined_file` `all.pem`"),
        (["a", "all.pem/b"], "key `all.pem/b` and `activate.combined_file` `all.pem`"),
        (["a", &long], "has a part of 256 bytes, file systems allow 255"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let activator = activator(dir.path(), "", Some("all.pem"));
        // `a.x` and `a-b` sort between `a` and `a/b` as bytes.
        let tree = tree(&[(keys[0], "1"), (keys[1], "2"), ("a.x", "3"), ("a-b", "4")]);
        let refused = activator.activate(&head(&bundle(), 1, &tree), &tree, None).await;
        let refused = refused.unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
        assert!(refused.blames_version());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
    }
}

#[tokio::test]
async fn s5_what_this_agent_did_not_make_is_left_as_it_is() {
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
            let activator = activator(dir.path(), "", None);
            let refused = activate(&activator, 1, "1").await.unwrap_err();
            assert!(matches!(refused, ActivateError::Foreign { .. }), "{what}: {refused}");
            assert!(!refused.blames_version(), "the same version is tried again");
            let after = fs::symlink_metadata(&path).unwrap().modified().unwrap();
            assert_eq!(before, after, "{what} is untouched");
            // Moved away, as the message says, it works.
            fs::rename(&path, dir.path().join("theirs")).unwrap();
            activate(&activator, 1, "1").await.unwrap();
        }
    }
}

#[tokio::test]
async fn s6_a_link_that_is_gone_or_leads_back_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "", None);
    let (bundle, link) = (bundle(), activator.link(&bundle()));
    let version = |number: u64| {
        let value = number.to_string();
        let tree = tree(&[("a", &value), ("dir/b", &value)]);
        Active::of(&head(&bundle, number, &tree))
    };
    activate(&activator, 1, "1").await.unwrap();
    let first = fs::read_link(&link).unwrap();
    activate(&activator, 2, "2").await.unwrap();
    let second = fs::read_link(&link).unwrap();
    let relink_to = |target: &Path| {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
    };

    fs::remove_file(&link).unwrap();
    assert_eq!(activator.on_disk(&bundle, version(2)), OnDisk::Missing);
    activator.relink(&bundle, version(2)).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), second);

    relink_to(&first);
    assert_eq!(activator.on_disk(&bundle, version(2)), OnDisk::Other);
    activator.relink(&bundle, version(2)).unwrap();
    assert_eq!(activator.on_disk(&bundle, version(2)), OnDisk::Current);

    // An activation of 2 that was cut short: 1 is active, and going back would be a rollback.
    activator.relink(&bundle, version(1)).unwrap();
    let one = tree(&[("a", "1"), ("dir/b", "1")]);
    activator.ensure(&bundle, version(1), &one).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), second);
    assert_eq!(activator.linked(&bundle), Some(version(2)));

    // Files that are gone cannot be linked to; with their content they can.
    fs::remove_file(&link).unwrap();
    fs::remove_dir_all(&second).unwrap();
    assert!(activator.relink(&bundle, version(2)).is_err());
    let two = tree(&[("a", "2"), ("dir/b", "2")]);
    activator.ensure(&bundle, version(2), &two).unwrap();
    assert_eq!(seen(&link).unwrap().0, "2");

    fs::remove_file(&link).unwrap();
    fs::write(&link, "theirs").unwrap();
    assert_eq!(activator.on_disk(&bundle, version(2)), OnDisk::Foreign);
    assert!(activator.relink(&bundle, version(2)).is_err());
    assert_eq!(fs::read_to_string(&link).unwrap(), "theirs");
}

#[tokio::test]
async fn s2_a_failed_hook_goes_back_to_what_is_active_not_to_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let quiet = activator(dir.path(), "", None);
    let failing = activator(dir.path(), "grep -q 1 \"$SATRAP_DIR/a\"", None);
    activate(&quiet, 1, "1").await.unwrap();
    let first = fs::read_link(quiet.link(&bundle())).unwrap();
    let one = Active::of(&head(&bundle(), 1, &tree(&[("a", "1"), ("dir/b", "1")])));
    // Power was lost after the link led to 2, before its hook ended: 2 is tried again, and fails.
    activate(&quiet, 2, "2").await.unwrap();
    let two = tree(&[("a", "2"), ("dir/b", "2")]);
    let refused = failing.activate(&head(&bundle(), 2, &two), &two, Some(one)).await.unwrap_err();
    assert!(matches!(refused, ActivateError::Hook(_)), "{refused}");
    assert_eq!(fs::read_link(quiet.link(&bundle())).unwrap(), first);
}

#[tokio::test]
async fn content_is_read_back_from_files_only_if_it_is_the_certified_one() {
    let dir = tempfile::tempdir().unwrap();
    let activator = activator(dir.path(), "", Some("all"));
    let tree = tree(&[("a", "1"), ("dir/b", "2")]);
    let head = head(&bundle(), 1, &tree);
    activator.activate(&head, &tree, None).await.unwrap();
    let version = Active::of(&head);
    let back = |activator: &Activator| activator.read_back(&bundle(), version);
    assert_eq!(back(&activator).unwrap().root(), tree.root());
    let directory: PathBuf = fs::read_link(activator.link(&bundle())).unwrap();
    for (path, bytes) in [("dir/b", "altered"), ("dir/more", "x"), ("a", "2")] {
        let path = directory.join(path);
        let before = fs::read(&path).ok();
        fs::write(&path, bytes).unwrap();
        assert!(back(&activator).is_none(), "{}", path.display());
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    symlink("/dev/zero", directory.join("endless")).unwrap();
    assert!(back(&activator).is_none(), "nothing but files is read");
    fs::remove_file(directory.join("endless")).unwrap();
    assert!(back(&activator).is_some());
}
