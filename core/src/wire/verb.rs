//! What the methods of the metadata service have in common; `verbs` has a constant for each.

use std::marker::PhantomData;

use prost::Message;

use super::pb::{Caller, Method};

/// A request that says on whose behalf it is made.
pub trait MetaRequest: Message {
    /// The inode that it is about, or where its path begins; 0 if it is about none, or the path begins at the root.
    fn inode(&self) -> u64;
    fn set_caller(&mut self, caller: Caller);
}

/// What `Q` asks for, and `R` answers.
pub struct Verb<Q, R> {
    pub method: Method,
    /// A request without side effects needs no sequence number.
    pub has_side_effects: bool,
    messages: PhantomData<fn(&Q) -> R>,
}

impl<Q, R> Verb<Q, R> {
    pub(super) const fn new(method: Method, has_side_effects: bool) -> Verb<Q, R> {
        Verb { method, has_side_effects, messages: PhantomData }
    }
}
