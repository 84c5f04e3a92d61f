//! Write sessions of this client at the metadata service.

use std::sync::Arc;

use rustix::io::Errno;

use crate::client::identity::Identity;
use crate::error::{Error, Kind};

#[derive(Clone, Default)]
pub(super) struct Sessions {
    /// How many the metadata service has ended by itself.
    pub(super) lost: u64,
    /// Sessions, and who opened them.
    pub(super) open: Vec<(u64, Arc<Identity>)>,
    /// The one of them whose close is under way: if the metadata service does not know it any more, it has closed it, or
    /// its reply to the close says so.
    pub(super) closing: Option<u64>,
}

impl Sessions {
    pub(super) fn first(&self) -> Option<(u64, Arc<Identity>)> {
        self.open.first().cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn has(&self, session: u64) -> bool {
        self.open.iter().any(|(known, _)| *known == session)
    }
}

/// Error of a handle whose write session has ended without it.
pub fn lost() -> Error {
    let reason = "the cluster did not hear this client for its session timeout and ended its write session; open the file again";
    Error::new(Kind::NotFound, reason).with_errno(Errno::STALE)
}
