//! Waits during which signal handlers of the program run.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use crate::error::Error;

/// How long a call waits before it looks for signals.
pub const SLICE: Duration = Duration::from_millis(50);

/// What `work` returns, from a thread of its own. If a signal handler raises meanwhile, the result is dropped there.
pub fn apart<T: Send + 'static>(py: Python<'_>, work: impl FnOnce() -> T + Send + 'static) -> PyResult<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let builder = thread::Builder::new().name("luciola-apart".to_owned());
    // Nobody receives after a signal handler has raised.
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
