//! Metadata that the metadata service is to be sent, beside deferred attributes and the bytes of a small file.

use super::bug::Bug;

/// Metadata that is to be sent, beside the length and the bytes themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    /// A length, or bytes in the inode.
    pub(super) size: bool,
    /// Time of the last write.
    pub(super) mtime_ns: Option<i64>,
    /// The file was changed by a user who may not keep the set-id bits.
    pub(super) clears_set_id: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.size && self.mtime_ns.is_none() && !self.clears_set_id
    }

    /// Return `self` with what is in `older` only.
    fn over(self, older: Pending) -> Pending {
        Pending {
            size: self.size || older.size,
            mtime_ns: self.mtime_ns.or(older.mtime_ns),
            clears_set_id: self.clears_set_id || older.clears_set_id,
        }
    }
}

/// Whether the metadata service has been sent what it must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Metadata {
    Clean,
    Dirty(Pending),
    /// `sent` is on its way; `newer` came since and is sent with the next update.
    Syncing {
        sent: Pending,
        newer: Pending,
    },
}

impl Metadata {
    fn dirty_or_clean(pending: Pending) -> Metadata {
        if pending.is_empty() { Metadata::Clean } else { Metadata::Dirty(pending) }
    }

    /// Add to what is to be sent.
    pub(super) fn mark(&mut self, change: impl FnOnce(&mut Pending)) {
        match self {
            Metadata::Syncing { newer, .. } => change(newer),
            Metadata::Dirty(pending) => change(pending),
            Metadata::Clean => {
                let mut pending = Pending::default();
                change(&mut pending);
                *self = Metadata::dirty_or_clean(pending);
            }
        }
    }

    /// Take something out of what is to be sent.
    pub(super) fn forget(&mut self, change: impl Fn(&mut Pending)) {
        match self {
            Metadata::Clean => {}
            Metadata::Dirty(pending) => {
                change(pending);
                *self = Metadata::dirty_or_clean(std::mem::take(pending));
            }
            Metadata::Syncing { sent, newer } => {
                change(sent);
                change(newer);
            }
        }
    }

    /// Forget the time of the last write: the metadata service was given one by the user.
    pub(super) fn forget_mtime(&mut self) {
        self.forget(|pending| pending.mtime_ns = None);
    }

    /// Forget all of it: what waits is given up.
    pub(super) fn discard(&mut self) {
        self.forget(|pending| *pending = Pending::default());
    }

    pub(super) fn begin_sync(&mut self) {
        *self = match std::mem::replace(self, Metadata::Clean) {
            Metadata::Clean => Metadata::Syncing { sent: Pending::default(), newer: Pending::default() },
            Metadata::Dirty(sent) => Metadata::Syncing { sent, newer: Pending::default() },
            Metadata::Syncing { .. } => panic!("metadata is sent under the metadata lock: once at a time"),
        };
    }

    pub(super) fn is_syncing(&self) -> bool {
        matches!(self, Metadata::Syncing { .. })
    }

    pub(super) fn end_sync(&mut self, is_taken: bool, bug: Bug) {
        *self = match std::mem::replace(self, Metadata::Clean) {
            Metadata::Syncing { .. } if is_taken && bug == Bug::SyncClearsNewer => Metadata::Clean,
            Metadata::Syncing { newer, .. } if is_taken => Metadata::dirty_or_clean(newer),
            Metadata::Syncing { sent, newer } => Metadata::dirty_or_clean(newer.over(sent)),
            Metadata::Clean | Metadata::Dirty(_) => panic!("a sync of metadata ends once"),
        };
    }

    /// Return all that is to be sent or is on its way.
    pub(super) fn pending(&self) -> Pending {
        match self {
            Metadata::Clean => Pending::default(),
            Metadata::Dirty(pending) => pending.clone(),
            Metadata::Syncing { sent, newer } => newer.clone().over(sent.clone()),
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pending().is_empty()
    }

    /// Whether it claims to be dirty and is not.
    pub(super) fn is_empty_dirty(&self) -> bool {
        matches!(self, Metadata::Dirty(pending) if pending.is_empty())
    }
}
