//! Appending (see `append_trust` for what it promises).

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::super::append_trust::{TRUST_NS, WAIT_NS};
use super::super::transitions::appending::Alone;
use super::OpenInode;
use crate::clock;
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    ThisClient,
    Others,
}

impl OpenInode {
    /// Learn where the file ends, unless this client is known to be its only writer.
    pub(super) fn learn_end(self: &Arc<Self>) -> Result<Writers> {
        let (writer, opened_ns) = {
            let machine = self.machine.lock();
            if clock::now_ns() < machine.append_trust.alone_until_ns {
                return Ok(Writers::ThisClient);
            }
            (machine.sessions.first(), machine.append_trust.opened_ns)
        };
        let identity = writer
            .map(|(_, identity)| identity)
            .ok_or_else(|| Error::invalid("append without a write session: open the file for writing"))?;
        loop {
            let asked_ns = clock::now_ns();
            let inode = self.ask(&identity)?;
            self.apply_server_inode(&inode);
            if !inode.others_write {
                self.apply(Alone { until_ns: asked_ns + TRUST_NS });
                return Ok(Writers::ThisClient);
            }
            assert!(opened_ns <= asked_ns, "E2: a writer asks with a session");
            let may_append_ns = opened_ns + WAIT_NS;
            if asked_ns >= may_append_ns {
                return Ok(Writers::Others);
            }
            thread::sleep(Duration::from_nanos(may_append_ns - asked_ns));
        }
    }
}
