//! Class `Mount`: a cluster on a directory, served without the GIL.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::lock::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use super::client::PyClient;
use crate::fuse::{IoUring, OperationDurations, Session, SessionHandle, SessionOptions};
use crate::mount::{Consistency, MountedFs};

/// Most payloads that wait for their write-back: bounds their region at 2 GiB.
const BUFFERS_MAX: usize = 2048;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyMount>()
}

/// A mount: made by the constructor, served by `run`.
#[pyclass(frozen, name = "Mount", module = "luciola_core")]
pub struct PyMount {
    /// Taken by `run`.
    session: Mutex<Option<Session>>,
    handle: SessionHandle,
    mountpoint: PathBuf,
}

#[pymethods]
impl PyMount {
    #[new]
    #[pyo3(signature = (client, mountpoint, *, source = "luciola".to_owned(), allow_other = false,
        read_only = false, strict = false, threads = 16, request_bytes = 1 << 20, read_ahead_bytes = 4 << 20,
        grace_ms = 10_000, io_uring = "never"))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        client: &PyClient,
        mountpoint: PathBuf,
        source: String,
        allow_other: bool,
        read_only: bool,
        strict: bool,
        threads: usize,
        request_bytes: usize,
        read_ahead_bytes: usize,
        grace_ms: u64,
        io_uring: &str,
    ) -> PyResult<PyMount> {
        let client = client.client()?.clone();
        let defaults = SessionOptions::default();
        let io_uring = IoUring::from_name(io_uring).ok_or_else(|| {
            PyValueError::new_err(format!("io_uring is auto, always or never, not {io_uring}"))
        })?;
        // The client keeps at most its write buffer, and a few payloads that are on their way.
        let kept = client.options().write_buffer_bytes.div_ceil(request_bytes.max(1)) + threads;
        let options = SessionOptions {
            buffers_kept_max: kept.max(defaults.buffers_kept_max).min(BUFFERS_MAX),
            mountpoint: mountpoint.clone(),
            source,
            allow_other,
            read_only,
            bypass_cache: strict,
            threads_max: threads,
            request_bytes,
            read_ahead_bytes,
            grace: Duration::from_millis(grace_ms),
            io_uring,
            ..defaults
        };
        let consistency = if strict { Consistency::Strict } else { Consistency::CloseToOpen };
        let session = py
            .detach(|| Session::mount(std::sync::Arc::new(MountedFs::new(client, consistency)), options))
            .map_err(|error| os_error(&error, &mountpoint))?;
        let handle = session.handle();
        Ok(PyMount { session: Mutex::new(Some(session)), handle, mountpoint })
    }

    /// Serve the mount until it is gone, then write back what is dirty.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.session.lock().take();
        let session = session.ok_or_else(|| PyOSError::new_err("a mount runs once"))?;
        py.detach(|| session.run()).map_err(|error| os_error(&error, &self.mountpoint))
    }

    /// Where requests come from, and why not over io_uring.
    fn channel(&self, py: Python<'_>) -> (String, String) {
        let channel = py.detach(|| self.handle.channel());
        let (name, reason) = channel.described();
        (name.to_owned(), reason.to_owned())
    }

    /// (operation, outcome, how many) of the requests that were answered.
    fn requests(&self) -> Vec<(String, &'static str, u64)> {
        self.handle.counters().requests()
    }

    /// Upper bounds in seconds, and for each operation how many requests took at most so long and longer than the bound
    /// before, then those above the last one, and the sum in seconds.
    fn durations(&self) -> (Vec<f64>, Vec<OperationDurations>) {
        self.handle.counters().durations()
    }

    /// Bytes that programs have read through the kernel, and written.
    fn bytes(&self) -> (u64, u64) {
        self.handle.counters().bytes()
    }

    fn unmount(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.handle.unmount()).map_err(|error| os_error(&error, &self.mountpoint))
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.handle.abort()).map_err(|error| os_error(&error, &self.mountpoint))
    }
}

/// The OSError (of the subclass that belongs to its errno) about `mountpoint`.
fn os_error(error: &io::Error, mountpoint: &std::path::Path) -> PyErr {
    match error.raw_os_error() {
        Some(number) => {
            let text = io::Error::from_raw_os_error(number).to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            PyOSError::new_err((number, text, mountpoint.to_owned()))
        }
        None => PyOSError::new_err((
            match error.kind() {
                io::ErrorKind::Unsupported => rustix::io::Errno::OPNOTSUPP,
                _ => rustix::io::Errno::IO,
            }
            .raw_os_error(),
            error.to_string(),
            mountpoint.to_owned(),
        )),
    }
}
