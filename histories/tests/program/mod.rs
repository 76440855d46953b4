//! What all tests of rings need: the program, and the machine for themselves.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// The program, as it is now: whoever tests this package alone has perhaps an old one.
pub static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = Command::new(env!("CARGO")).args(["build", "-q", "-p", "satrap"]).status();
    assert!(built.unwrap().success());
    // Beside the programs of this package.
    Path::new(env!("CARGO_BIN_EXE_satrap-histories")).with_file_name("satrap")
});

/// Tests of one file run one after the other, because some measure.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
