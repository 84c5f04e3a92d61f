//! Reading ahead for readers that have no page cache below them.
//!
//! A handle that reads sequentially in small steps gets the blocks that follow before it asks for them, one at first
//! and up to `read_ahead_bytes` later. Random and strided reads cause nothing. Blocks are dropped when the file is
//! written here, and when they get older than names and attributes may be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};

use super::identity::Identity;
use super::open_file::{IoMode, OpenInode};
use super::shared::Shared;
use crate::buffer::Placement;
use crate::cancel;
use crate::error::{Error, Result};

/// What is read at a time.
const BLOCK_BYTES: u64 = 1 << 20;
/// Requests of at least this size gain nothing from reading ahead.
const LARGE_BYTES: usize = 1 << 20;
/// How long a reader waits for a block before it looks whether its call is cancelled.
const WAIT: Duration = Duration::from_secs(1);
/// Consecutive sequential requests before the first block.
const RUN_MIN: u32 = 2;

/// What reading in advance gave; `Some(None)`: the reader has to ask for itself.
type Outcome = Option<Option<Result<Placement>>>;
/// Filled by the thread that reads.
type Slot = Arc<(Mutex<Outcome>, Condvar)>;

struct Block {
    start: u64,
    asked: Instant,
    writes: u64,
    outcome: Slot,
}

#[derive(Default)]
struct Window {
    /// Where a sequential reader continues.
    next: u64,
    run: u32,
    /// Blocks to have in advance.
    depth: usize,
    blocks: VecDeque<Block>,
}

#[derive(Default)]
pub struct Readahead {
    window: Mutex<Window>,
}

impl Readahead {
    pub fn new() -> Readahead {
        Readahead::default()
    }

    pub fn read(
        &self,
        shared: &Arc<Shared>,
        inode: &Arc<OpenInode>,
        identity: &Arc<Identity>,
        offset: u64,
        into: &Placement,
    ) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let block = self.block(shared, inode, identity, at, into.len());
            let rest = into.slice(done..into.len());
            let Some((start, block)) = block else {
                let count = inode.read(identity, at, &rest, IoMode::Buffered)?;
                done += count;
                break;
            };
            let bytes = wait(&block)?.transpose()?;
            assert!((start..start + BLOCK_BYTES).contains(&at), "the block has the byte that is read");
            let from = (at - start) as usize;
            let Some(bytes) = bytes.filter(|bytes| from < bytes.len()) else {
                // The file may have grown since; ask.
                done += inode.read(identity, at, &rest, IoMode::Buffered)?;
                break;
            };
            let count = rest.len().min(bytes.len() - from);
            bytes.slice(from..from + count).copy_into(&rest);
            done += count;
        }
        assert!(done <= into.len(), "a read fills at most what it was given");
        self.advance(offset, done);
        Ok(done)
    }

    fn advance(&self, offset: u64, count: usize) {
        let mut window = self.window.lock();
        if window.next == offset {
            window.run = window.run.saturating_add(1);
        } else {
            window.run = 0;
            window.depth = 0;
            window.blocks.clear();
        }
        window.next = offset + count as u64;
    }

    /// The block with byte `at`, if this reader deserves one; the following ones are asked for as well.
    fn block(
        &self,
        shared: &Arc<Shared>,
        inode: &Arc<OpenInode>,
        identity: &Arc<Identity>,
        at: u64,
        length: usize,
    ) -> Option<(u64, Slot)> {
        let mut window = self.window.lock();
        let known = window.blocks.front().is_some_and(|first| at >= first.start);
        if !known && (window.next != at || window.run < RUN_MIN || length >= LARGE_BYTES) {
            return None;
        }
        let writes = inode.writes();
        window.blocks.retain(|block| {
            block.start + BLOCK_BYTES > at
                && block.writes == writes
                && block.asked.elapsed() < shared.attribute_timeout
        });
        let most = (shared.read_ahead_bytes as u64 / BLOCK_BYTES).max(1) as usize;
        let first = at / BLOCK_BYTES * BLOCK_BYTES;
        let end = inode.length();
        if window.blocks.front().is_none_or(|block| block.start != first) {
            window.blocks.clear();
            window.depth = (window.depth * 2).clamp(1, most);
        } else if window.blocks.len() <= window.depth / 2 {
            window.depth = (window.depth * 2).min(most);
        }
        while window.blocks.len() < window.depth {
            let start = window.blocks.back().map_or(first, |last| last.start + BLOCK_BYTES);
            if start >= end {
                break;
            }
            match ask(shared, inode, identity, start, writes) {
                Some(block) => window.blocks.push_back(block),
                None => break,
            }
        }
        assert!(window.blocks.len() <= most, "no more is read ahead than the configuration allows");
        let block = window.blocks.front()?;
        Some((block.start, block.outcome.clone()))
    }
}

/// Starts to read one block. `None`: there is no buffer or no thread for it.
fn ask(
    shared: &Arc<Shared>,
    inode: &Arc<OpenInode>,
    identity: &Arc<Identity>,
    start: u64,
    writes: u64,
) -> Option<Block> {
    let buffer = shared.pool.try_take()?.into_placement();
    let buffer = buffer.slice(0..buffer.len().min(BLOCK_BYTES as usize));
    let outcome = Arc::new((Mutex::new(None), Condvar::new()));
    let block = Block { start, asked: Instant::now(), writes, outcome: outcome.clone() };
    let (inode, identity) = (inode.clone(), identity.clone());
    let job = move || {
        let result = inode.read_in_advance(&identity, start, &buffer);
        *outcome.0.lock() = Some(result);
        outcome.1.notify_all();
    };
    shared.background.submit(job).then_some(block)
}

/// Errors: `Timeout` if the call is cancelled.
fn wait(block: &(Mutex<Outcome>, Condvar)) -> Result<Option<Result<Placement>>> {
    loop {
        let mut outcome = block.0.lock();
        if outcome.is_none() {
            block.1.wait_for(&mut outcome, cancel::slice(WAIT));
        }
        if let Some(known) = &*outcome {
            return Ok(known.clone());
        }
        drop(outcome);
        if cancel::is_cancelled() {
            return Err(Error::timeout("the read was given up"));
        }
    }
}
