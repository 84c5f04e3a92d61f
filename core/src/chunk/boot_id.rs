//! Whether the machine has been restarted since a directory was last open: only then can data that the kernel
//! had taken be missing.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use super::segments::sync_directory;

const KERNEL: &str = "/proc/sys/kernel/random/boot_id";
const FILE: &str = "boot";

/// Whether the kernel that runs is another than the one that last had `dir` open, or that is not known.
pub fn has_changed(dir: &Path) -> io::Result<bool> {
    match fs::read(dir.join(FILE)) {
        Ok(known) => Ok(known != fs::read(KERNEL)?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether some kernel had `dir` open: its making came to its end.
pub fn is_known(dir: &Path) -> io::Result<bool> {
    dir.join(FILE).try_exists()
}

/// Write down which kernel runs. The caller has made everything durable that an earlier one left.
pub fn remember(dir: &Path) -> io::Result<()> {
    let new = dir.join("boot.new");
    let mut file = File::create(&new)?;
    file.write_all(&fs::read(KERNEL)?)?;
    file.sync_all()?;
    fs::rename(new, dir.join(FILE))?;
    sync_directory(dir)
}
