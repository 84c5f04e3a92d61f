//! The kernel's leave for sessions over io_uring, which tests take for as long as they mount.

use std::fs::File;
use std::io::{Read, Seek, Write};

/// Of the module fuse.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

fn parameter() -> std::io::Result<File> {
    File::options().read(true).write(true).open(PARAMETER)
}

/// Whether this kernel has FUSE over io_uring and this process may allow it; `has_io_uring`: whether it may use it.
pub fn can_be_allowed(has_io_uring: bool) -> bool {
    let can = has_io_uring && parameter().is_ok();
    if !can {
        eprintln!("skipped: needs root, Linux 6.14 and io_uring");
    }
    can
}

/// Puts the parameter back, also after a panic.
struct Restore(File, u8);

impl Restore {
    fn set(&mut self, value: u8) {
        self.0.rewind().unwrap();
        self.0.write_all(&[value]).unwrap();
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.set(self.1);
    }
}

/// Do `work` while the kernel offers io_uring to sessions that begin. One process and thread at a time, for as long as it
/// takes to mount: what is mounted stays as it is, and other tests say which way they want.
pub fn with_rings_allowed<R>(work: impl FnOnce() -> R) -> R {
    let mut file = parameter().unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut before = [0];
    file.read_exact(&mut before).unwrap();
    let mut restore = Restore(file, before[0]);
    restore.set(b'Y');
    work()
}
