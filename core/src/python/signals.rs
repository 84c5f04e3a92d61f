//! Waits during which signal handlers of the program run.

use std::cell::RefCell;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use pyo3::prelude::*;

pub use crate::cancel::SLICE;
use crate::cancel::watch;
use crate::error::{Error, Result};

thread_local! {
    /// What a signal handler has raised while this thread waited.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Do `work`, which only reads, without the GIL. An exception of a signal handler ends its waits, and is the error.
pub fn watched<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let result = py.detach(|| watch(has_raised, work));
    match RAISED.take() {
        Some(error) => Err(error),
        None => Ok(result?),
    }
}

fn has_raised() -> bool {
    if RAISED.with_borrow(Option::is_some) {
        return true;
    }
    // None while the interpreter ends: its handlers run no more.
    match Python::try_attach(|py| py.check_signals()) {
        None | Some(Ok(())) => false,
        Some(Err(error)) => {
            RAISED.set(Some(error));
            true
        }
    }
}

/// What `work` returns, from a thread of its own. If a signal handler raises meanwhile, the result is dropped there.
pub fn apart<T: Send + 'static>(py: Python<'_>, work: impl FnOnce() -> T + Send + 'static) -> PyResult<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let builder = thread::Builder::new().name("luciola-apart".to_owned());
    // No receiver is left after a signal handler has raised.
    builder.spawn(move || drop(sender.send(work()))).map_err(Error::from)?;
    let receiver = std::sync::Mutex::new(receiver);
    loop {
        match py.detach(|| receiver.lock().expect("of one thread").recv_timeout(SLICE)) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::invalid("the thread of a call has panicked: see the log").into());
            }
        }
    }
}
