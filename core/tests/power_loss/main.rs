//! Power loss at every change that a disk sees: recorded workloads are cut before each write, change of length, rename
//! and flush; of each cut several states that the disk may then hold (`examples/power_disk/crash.rs` has the model) are
//! opened again, and everything that was promised before the cut is checked. Needs root and /dev/fuse; where they are
//! missing the tests say so and pass.
//!
//! Workloads are a function of their seed, also where rounds of `sync` run beside updates: the recorded disk lets a
//! flush wait until the updates that are to happen meanwhile are done. A failure prints the environment that repeats it.
//!
//! `LUCIOLA_SEED` chooses the workload, `LUCIOLA_CUT` one cut of it; `LUCIOLA_TRACE=1` shows the recording of a failure.
//! With `LUCIOLA_MINUTES` each test continues with further seeds for so long, as `make sim` does.

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
use std::time::{Duration, Instant, SystemTime};

use enumerate::Report;

/// Whether this machine can mount the recorded disk.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

/// What the environment says under this name, if anything.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not {text}")))
}

/// The seed of every run of the suite.
const FIRST: u64 = 1;

/// Runs `test` with the first seed or the one asked for, or with as many as the minutes asked for allow.
fn for_each_seed(mut test: impl FnMut(u64) -> Report) {
    let minutes = number("LUCIOLA_MINUTES").unwrap_or(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let other = if minutes > 0 { now.as_secs() } else { FIRST };
    let mut seed = number("LUCIOLA_SEED").unwrap_or(other);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut total = test(seed);
    while Instant::now() < end {
        seed += 1;
        total += test(seed);
    }
    eprintln!("{}: in all, {total}; no fault found", std::thread::current().name().unwrap_or_default());
}
