//! What the work on one chunk waits for, for people who look at a node.

use std::fmt;

use super::Successor;
use crate::types::{RequestTag, Stamp};

/// How far a machine has got with what holds its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Of the update, or of the committed state that is being pushed.
    pub stamp: Stamp,
    /// Whose request it is; client 0 for what no client asked for.
    pub tag: RequestTag,
    pub step: Step,
    /// Updates that wait behind it.
    pub queued: usize,
    /// Reads that wait for it.
    pub readers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Staging,
    /// Sent so many times. `None`: the chain has no successor any more.
    Forwarding {
        to: Option<Successor>,
        sends: u32,
    },
    /// On disk; it is tried again after a pause, or when the chain changes.
    Stalled {
        sends: u32,
    },
    Committing,
    Dropping,
    Pushing {
        to: Option<Successor>,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress { stamp, tag, step, queued, readers } = self;
        write!(f, "version {}.{}", stamp.chain_version, stamp.version)?;
        if tag.client.0 != 0 {
            write!(f, " (request {} of client {})", tag.sequence, tag.client)?;
        }
        write!(f, " {step}; behind it {queued} updates and {readers} reads")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Staging => f.write_str("waits for the disk, to be staged"),
            Step::Forwarding { to, sends } => write!(f, "waits for {}, send {sends}", Name(to)),
            Step::Stalled { sends } => write!(f, "is stalled after {sends} sends"),
            Step::Committing => f.write_str("waits for the disk, to be committed"),
            Step::Dropping => f.write_str("waits for the disk, to be dropped"),
            Step::Pushing { to } => write!(f, "is pushed to {}", Name(to)),
        }
    }
}

struct Name<'a>(&'a Option<Successor>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(to) => write!(f, "node {}", to.node),
            None => f.write_str("a successor that is gone"),
        }
    }
}
