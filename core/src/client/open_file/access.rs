//! Access to a file: shared by all that write, or exclusive for a truncation.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    Shared,
    /// Nothing new begins; the thread that wants to be alone waits for what is under way.
    Draining,
    /// One thread replaces content at the metadata service (I4).
    Exclusive,
}
