//! What belongs to one process and is useless in a child that was forked from it: threads and sockets are gone there.

use std::mem;
use std::process;

use rustix::io::Errno;

use crate::error::{Error, Result};

/// A value that refuses use in another process than its own, and is not dropped there: dropping would wait for
/// threads that do not exist.
pub struct Forked<T> {
    process: u32,
    what: &'static str,
    value: Option<T>,
}

impl<T> Forked<T> {
    pub fn new(what: &'static str, value: T) -> Forked<T> {
        Forked { process: process::id(), what, value: Some(value) }
    }

    pub fn get(&self) -> Result<&T> {
        let value = self.value.as_ref().expect("taken only when dropped");
        if self.is_foreign() {
            return Err(Error::invalid(format!(
                "this {} belongs to process {} and cannot be used after fork: open it in the child, or start \
                 processes with the 'spawn' method",
                self.what, self.process
            ))
            .with_errno(Errno::BADF));
        }
        Ok(value)
    }

    pub fn is_foreign(&self) -> bool {
        self.process != process::id()
    }

    /// Take the value out, to be dropped without the GIL; nothing in a forked child.
    pub fn take(&mut self) -> Option<T> {
        let value = self.value.take();
        if self.is_foreign() {
            mem::forget(value);
            return None;
        }
        value
    }
}

impl<T> Drop for Forked<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
