//! Power loss at every change that a disk sees: recorded workloads are cut before each write, change of length, rename
//! and flush; of each cut several states that the disk may then hold (`examples/power_disk/crash.rs` has the model) are
//! opened again, and everything that was promised before the cut is checked. Needs root and /dev/fuse; where they are
//! missing the tests say so and pass.
//!
//! Workloads are a function of their seed, also where rounds of `sync` run beside updates: the recorded disk lets a
//! flush wait until the updates that shall happen meanwhile are done. A failure prints the environment that repeats it.
//!
//! `LUCIOLA_POWER_MINUTES=60` goes on with further seeds for so long; `make sim` does.

#[path = "../../examples/power_disk/crash.rs"]
mod crash;
#[path = "../../examples/power_disk/disk.rs"]
mod disk;
#[path = "../../examples/power_disk/image.rs"]
mod image;

#[path = "../storage_cluster/mod.rs"]
mod storage_cluster;

mod chains;
mod chunks;
mod enumerate;

use std::path::Path;
use std::time::{Duration, Instant};

/// Whether this machine can mount the recorded disk.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

/// The seeds to try: `first`, the one asked for, or as many as the minutes asked for allow.
fn seeds(first: u64) -> impl Iterator<Item = u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    let first = number("LUCIOLA_POWER_SEED").unwrap_or(first);
    let end = Instant::now() + Duration::from_secs(60 * number("LUCIOLA_POWER_MINUTES").unwrap_or(0));
    (first..)
        .enumerate()
        .take_while(move |(count, _)| *count == 0 || Instant::now() < end)
        .map(|(_, seed)| seed)
}
