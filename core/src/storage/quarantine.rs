//! Setting a chunk aside that a returning replica holds in a state which its chain never had.
//!
//! Its bytes may be the only copy of something that was acknowledged and never synced, so they are kept in a file until
//! an operator has looked at them, or some days have passed; the chunk itself then comes from the predecessor.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::node::Node;
use super::server::StorageServer;
use crate::buffer::Placement;
use crate::chunk::Committed;
use crate::craq::{Place, Replica};
use crate::error::{Error, Kind, Result};
use crate::types::{ChainId, ChainVersion, ChunkId, ChunkKey, PAGE_BYTES, Stamp, Status};

/// Read at once: one page of the engine, so that a damaged one costs no other.
const STEP: u32 = 16 << 10;
const _: () = assert!(STEP == PAGE_BYTES);

impl StorageServer {
    /// Put the bytes of a chunk into a file of `folder` and forget the chunk; whether it did: a chunk that is not in
    /// the state `stamp` any more stays. No stamp: the predecessor cannot read its record; if nothing is committed here
    /// either, the chunk becomes unreadable. A tombstone has no bytes. Pages that cannot be read are zeros in the file.
    /// Errors: `StaleRouting` if this replica is not SYNCING under that chain version, `Busy` while an update is under
    /// way, `NoSpace`.
    pub fn quarantine(
        &self,
        chain: ChainId,
        chain_version: ChainVersion,
        chunk: ChunkId,
        stamp: Stamp,
        folder: &Path,
    ) -> Result<bool> {
        let (node, key) = (&self.node, ChunkKey { chain, chunk });
        let slot = node.table.slot(key);
        // Under the lock of the chunk's machine, so that no update comes in between (S1).
        let mut state = slot.state.lock();
        node.check_syncing(chain, chain_version)?;
        if !state.callers.is_empty() || !state.machine.as_ref().is_none_or(Replica::is_at_rest) {
            return Err(Status::Busy.into());
        }
        if stamp == Stamp::default() {
            node.table.awake(&key);
            state.machine = None;
            return Ok(node.engine.set_unreadable(key)?);
        }
        let found = node.engine.lookup(key)?.and_then(|state| state.committed);
        let Some(committed) = found.filter(|committed| committed.stamp == stamp) else {
            return Ok(false);
        };
        if !committed.removed {
            node.keep_aside(key, &committed, folder)?;
        }
        node.engine.erase(key)?;
        node.table.awake(&key);
        state.machine = None;
        Ok(true)
    }
}

impl Node {
    fn check_syncing(&self, chain: ChainId, version: ChainVersion) -> Result<()> {
        let view = self.view(chain);
        match self.refusal(chain) {
            Some(status) => Err(status.into()),
            None if view.chain_version != version => Err(Status::WrongChainVersion.into()),
            None if view.place != Place::Syncing => Err(Status::NotServing.into()),
            None => Ok(()),
        }
    }

    fn keep_aside(&self, key: ChunkKey, committed: &Committed, folder: &Path) -> Result<()> {
        if self.engine.space()?.free_bytes < u64::from(committed.length) {
            return Err(Error::new(
                Kind::NoSpace,
                format!(
                    "no space to set {key:?} aside; delete files in {} that are not needed",
                    folder.display()
                ),
            ));
        }
        let ChunkKey { chain, chunk } = key;
        let Stamp { chain_version, version } = committed.stamp;
        let name = format!("{chain}-{:x}.{}-{chain_version}.{version}", chunk.content.0, chunk.index);
        write_durably(folder, &name, |file| self.copy_to(key, committed.length, file))?;
        Ok(())
    }

    fn copy_to(&self, key: ChunkKey, length: u32, file: &File) -> io::Result<()> {
        file.set_len(u64::from(length))?;
        let page = Placement::private(STEP as usize)?;
        for offset in (0..length).step_by(STEP as usize) {
            let into = page.slice(0..STEP.min(length - offset) as usize);
            match self.engine.read(key, offset, &mut &into) {
                Ok(_) => file.write_all_at(&into.to_vec(), u64::from(offset))?,
                Err(status) => log::error!(
                    "{key:?}: quarantine: page at {offset} cannot be read: {status}; zeros in its place"
                ),
            }
        }
        Ok(())
    }
}

/// A file that is there whole or not at all.
fn write_durably(folder: &Path, name: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let new = folder.join(format!("{name}.new"));
    let file = File::create(&new)?;
    fill(&file)?;
    file.sync_all()?;
    fs::rename(&new, folder.join(name))?;
    File::open(folder)?.sync_all()
}
