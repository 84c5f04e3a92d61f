//! What a node counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Totals since the start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    reads,
    read_bytes,
    /// Reads that met a pending version.
    reads_unsettled,
    /// Updates of clients, and the bytes they brought.
    updates,
    update_bytes,
    /// Updates that a predecessor brought.
    chain_updates,
    /// Updates sent to successors, those sent whole, and sends that were not taken.
    forwards,
    forwards_whole,
    forwards_failed,
    pushes,
    /// Pending versions that no caller drove.
    redriven,
    timeouts,
    syncs,
    checksum_errors,
    repairs,
    repairs_failed,
    io_errors,
    lease_refusals,
}

pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
