//! What the trivial file system holds, for both of its Rust doors: the file `big` (inode 2), and files without bytes
//! that are created in the root.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

pub const BIG: u64 = 2;
pub const BIG_BYTES: usize = 256 << 20;

pub struct Names {
    by_name: RwLock<HashMap<Vec<u8>, u64>>,
    next: AtomicU64,
}

impl Default for Names {
    fn default() -> Self {
        Names { by_name: RwLock::new(HashMap::from([(b"big".to_vec(), BIG)])), next: AtomicU64::new(BIG + 1) }
    }
}

impl Names {
    pub fn find(&self, name: &[u8]) -> Option<u64> {
        self.by_name.read().get(name).copied()
    }

    pub fn add(&self, name: &[u8]) -> u64 {
        let inode = self.next.fetch_add(1, Ordering::Relaxed);
        self.by_name.write().insert(name.to_vec(), inode);
        inode
    }
}

/// Length of an inode.
pub fn length(inode: u64) -> u64 {
    if inode == BIG { BIG_BYTES as u64 } else { 0 }
}

/// The part of a request that is inside `big`.
pub fn inside(offset: u64, length: usize) -> std::ops::Range<usize> {
    let start = (offset as usize).min(BIG_BYTES);
    start..(start + length).min(BIG_BYTES)
}
