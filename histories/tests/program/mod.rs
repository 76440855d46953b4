//! The programs that tests of rings run, and a lock that gives each test the machine for itself.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// The program, built anew: a test of this package alone may find an old one.
///
/// It is built with an example and in the whole workspace, because cargo then chooses the features that
/// all tests have, and compiles nothing a second time.
#[allow(dead_code, reason = "each test file uses a part")]
pub static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let example = ["--example", "export_light_blocks"];
    let built = Command::new(env!("CARGO"))
        .args(["build", "-q", "--locked", "--workspace", "--bin", "satrap"])
        .args(example)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .status();
    assert!(built.unwrap().success());
    // Beside the programs of this package.
    Path::new(env!("CARGO_BIN_EXE_satrap-histories")).with_file_name("satrap")
});

/// etcd's own command line program, as the interop suite builds it.
#[allow(dead_code, reason = "each test file uses a part")]
pub static ETCDCTL: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = Path::new(env!("CARGO_BIN_EXE_satrap-histories")).with_file_name("etcdctl");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("go.etcd.io/etcd/etcdctl/v3")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop/etcdctl-3.6"))
        .status();
    assert!(built.expect("the Go toolchain is installed").success());
    program
});

/// Leave to run alone; none if this run is quick and leaves the test out.
///
/// Tests of one file run one after the other, because some measure.
pub fn alone() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    let needs = "root, network namespaces, loop devices and the machine for itself";
    (!satrap_effort::leaves_out(needs)).then(|| ONE.lock().unwrap_or_else(PoisonError::into_inner))
}
