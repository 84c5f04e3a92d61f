//! Class `Ring`: many reads and writes in flight.

use std::os::fd::AsRawFd;
use std::time::Duration;

use pyo3::prelude::*;

use super::file::PyFile;
use super::forked::Forked;
use super::memory::placement;
use crate::client::Client;
use crate::error::Error;
use crate::ring::{Direction, Entry, Ring};

#[pyclass(frozen, name = "Ring", module = "luciola_core")]
pub struct PyRing {
    ring: Forked<Ring>,
}

/// (file, offset in the file, buffer, offset in the buffer, length, write, user data)
type Submission<'py> = (Bound<'py, PyFile>, u64, Bound<'py, PyAny>, usize, usize, bool, u64);

impl PyRing {
    pub fn new(client: &Client, entries: usize) -> Result<PyRing, Error> {
        Ok(PyRing { ring: Forked::new("ring", Ring::new(client.shared().clone(), entries)?) })
    }
}

fn entry(submission: Submission<'_>) -> PyResult<Entry> {
    let (file, offset, buffer, buffer_offset, length, write, user_data) = submission;
    let whole = placement(&buffer, !write)?;
    let end = buffer_offset.checked_add(length).filter(|end| *end <= whole.len());
    let end = end.ok_or_else(|| Error::invalid("the bytes do not lie in the buffer"))?;
    let direction = if write { Direction::Write } else { Direction::Read };
    let file = file.get().file()?.clone();
    Ok(Entry { file, offset, buffer: whole.slice(buffer_offset..end), direction, user_data })
}

#[pymethods]
impl PyRing {
    /// Takes as many as there is room for, in order; returns how many.
    fn submit(&self, py: Python<'_>, submissions: Vec<Submission<'_>>) -> PyResult<usize> {
        let ring = self.ring.get()?;
        let count = submissions.len();
        let entries: Vec<Entry> = submissions.into_iter().map(entry).collect::<PyResult<_>>()?;
        let rest = py.detach(|| ring.submit(entries))?;
        Ok(count - rest.len())
    }

    /// Up to `most` results (user data, bytes or negative errno), waiting for `least` of them, at most `timeout_s`.
    #[pyo3(signature = (most, least, timeout_s = None))]
    fn drain(
        &self,
        py: Python<'_>,
        most: usize,
        least: usize,
        timeout_s: Option<f64>,
    ) -> PyResult<Vec<(u64, i64)>> {
        let ring = self.ring.get()?;
        let timeout = timeout_s
            .map(Duration::try_from_secs_f64)
            .transpose()
            .map_err(|_| Error::invalid("a timeout is a number of seconds from zero on"))?;
        let completions = py.detach(|| ring.drain(most, least, timeout));
        let result = |result: Result<usize, Error>| {
            result.map_or_else(|error| -i64::from(error.errno()), |n| n as i64)
        };
        Ok(completions.into_iter().map(|done| (done.user_data, result(done.result))).collect())
    }

    /// A descriptor that is readable while there are results.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.ring.get()?.event().as_raw_fd())
    }

    #[getter]
    fn entries(&self) -> PyResult<usize> {
        Ok(self.ring.get()?.entries())
    }

    /// Submitted and not drained yet.
    #[getter]
    fn in_flight(&self) -> PyResult<usize> {
        Ok(self.ring.get()?.in_flight())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.ring.is_foreign() {
            return Ok(());
        }
        let ring = self.ring.get()?;
        py.detach(|| ring.close());
        Ok(())
    }
}

impl Drop for PyRing {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            Python::attach(|py| py.detach(|| drop(ring)));
        }
    }
}
