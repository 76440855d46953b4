//! A small disk for each member, which can be slow, full or broken.
//!
//! An ext4 file system in a file behind a loop device. Slow is a limit of the kernel on the
//! writes of a control group; full is a file that takes all space; broken is what the kernel does
//! after an error of the medium: the file system turns read-only under the running process. All
//! three hit any program alike, whatever it is written in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{RunError, error::tool};

/// Room for the data of a member and for what an operator keeps of it. Sparse.
const IMAGE_BYTES: u64 = 1 << 30;
const GROUPS: &str = "/sys/fs/cgroup/blkio";

/// One member's disk.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    device: String,
    mount: PathBuf,
    /// The control group whose writes can be slowed.
    group: PathBuf,
}

impl Disk {
    /// Makes and mounts a disk in `directory`. Needs root.
    ///
    /// # Errors
    ///
    /// If the operating system has no loop device, ext4 or control group to offer.
    pub fn new(directory: &Path, name: &str, group: &str) -> Result<Self, RunError> {
        let image = directory.join(format!("{name}.ext4"));
        let mount = directory.join(name);
        let group = Path::new(GROUPS).join(group);
        let file = fs::File::create(&image).map_err(RunError::io("creating a disk image"))?;
        file.set_len(IMAGE_BYTES).map_err(RunError::io("sizing a disk image"))?;
        fs::create_dir_all(&mount).map_err(RunError::io("creating a mount point"))?;
        fs::create_dir_all(&group).map_err(RunError::io("creating a control group"))?;
        tool("mkfs.ext4", &["-q", "-F", text(&image)])?;
        let device = tool("losetup", &["-f", "--show", text(&image)])?.trim().to_owned();
        let disk = Self { image, device, mount, group };
        disk.mount()?;
        Ok(disk)
    }

    /// Removes the disks that a process which is gone had in `directory`.
    pub(crate) fn sweep(directory: &Path) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                drop(tool("umount", &["-l", text(&path)]));
            } else if let Ok(shown) = tool("losetup", &["-n", "-O", "NAME", "-j", text(&path)]) {
                for device in shown.lines() {
                    drop(tool("losetup", &["-d", device.trim()]));
                }
            }
        }
    }

    fn mount(&self) -> Result<(), RunError> {
        let options = "errors=remount-ro,noatime";
        tool("mount", &["-t", "ext4", "-o", options, &self.device, text(&self.mount)]).map(drop)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Puts a process under the limits of this disk.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn adopt(&self, pid: u32) -> Result<(), RunError> {
        let list = self.group.join("cgroup.procs");
        fs::write(list, pid.to_string()).map_err(RunError::io("joining a control group"))
    }

    /// Allows so many writes a second; 0 for as many as there are.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn limit(&self, writes_per_second: u32) -> Result<(), RunError> {
        let rule = format!("{} {writes_per_second}", self.number()?);
        let file = self.group.join("blkio.throttle.write_iops_device");
        fs::write(file, rule).map_err(RunError::io("limiting a disk"))
    }

    /// The writes that the kernel has let through from the processes of the control group.
    ///
    /// # Errors
    ///
    /// If the kernel does not count them.
    pub fn writes(&self) -> Result<u64, RunError> {
        let file = self.group.join("blkio.throttle.io_serviced");
        let counts = fs::read_to_string(file).map_err(RunError::io("counting the writes"))?;
        let label = format!("{} Write ", self.number()?);
        let count = counts.lines().find_map(|line| line.strip_prefix(&label)?.parse().ok());
        // The kernel lists no device that the group has not used.
        Ok(count.unwrap_or(0))
    }

    /// The major and the minor number of the loop device.
    fn number(&self) -> Result<String, RunError> {
        let short = self.device.trim_start_matches("/dev/");
        let number = fs::read_to_string(format!("/sys/class/block/{short}/dev"));
        let number = number.map_err(RunError::io("the number of a loop device"))?;
        Ok(number.trim().to_owned())
    }

    /// Takes all free space. Returns whether there was any.
    ///
    /// # Errors
    ///
    /// If the disk cannot be asked for its space.
    pub fn fill(&self) -> Result<bool, RunError> {
        let filler = self.mount.join("filler");
        let mut took = false;
        // Ever smaller pieces, until not even a block is left.
        for bytes in ["64M", "8M", "1M", "64K", "4K"] {
            for piece in 0..64 {
                let name = format!("{}.{bytes}.{piece}", text(&filler));
                if tool("fallocate", &["-l", bytes, &name]).is_err() {
                    break;
                }
                took = true;
            }
        }
        Ok(took)
    }

    /// Gives the space back.
    ///
    /// # Errors
    ///
    /// If a file cannot be removed.
    pub fn free(&self) -> Result<(), RunError> {
        let entries = fs::read_dir(&self.mount).map_err(RunError::io("listing a disk"))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler") {
                fs::remove_file(entry.path()).map_err(RunError::io("freeing a disk"))?;
            }
        }
        // A file system that breaks before its next commit would have the files again.
        let directory = fs::File::open(&self.mount).map_err(RunError::io("opening a disk"))?;
        directory.sync_all().map_err(RunError::io("freeing a disk"))
    }

    /// Breaks the medium: from now on every write and every sync fails.
    ///
    /// # Errors
    ///
    /// If the file system took it lightly.
    pub fn break_medium(&self) -> Result<(), RunError> {
        let short = self.device.trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{short}/trigger_fs_error");
        fs::write(trigger, "a medium error of the test")
            .map_err(RunError::io("breaking a disk"))?;
        match fs::write(self.mount.join("probe"), "x") {
            Err(_) => Ok(()),
            Ok(()) => Err(RunError::Inconclusive("a broken disk still takes writes".into())),
        }
    }

    /// Repairs the file system. No process may use it.
    ///
    /// # Errors
    ///
    /// If it is still in use, or beyond repair.
    pub fn repair(&self) -> Result<(), RunError> {
        tool("umount", &[text(&self.mount)])?;
        // It exits with 1 when it repaired something, which is what it is called for.
        drop(tool("e2fsck", &["-p", "-f", &self.device]));
        self.mount()
    }

    /// Removes everything on it. No process may use it.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub fn wipe(&self) -> Result<(), RunError> {
        let entries = fs::read_dir(&self.mount).map_err(RunError::io("listing a disk"))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(RunError::io("wiping a disk"))?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(tool("umount", &["-l", text(&self.mount)]));
        drop(tool("losetup", &["-d", &self.device]));
        drop(fs::remove_dir(&self.group));
        drop(fs::remove_file(&self.image));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("a path that is not UTF-8")
}
