//! Class `Ring`: many reads and writes in flight.
//!
//! A signal handler of the program may raise while a call waits, and when one returns. So what a call takes over, or gives
//! up, is in the caller's list and dictionary before any Python code can run: nothing is lost between the two.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};

use super::file::PyFile;
use super::forked::Forked;
use super::memory::placement;
use super::signals::SLICE;
use crate::client::Client;
use crate::error::Error;
use crate::ring::{Direction, Entry, Ring};

#[pyclass(frozen, name = "Ring", module = "luciola_core")]
pub struct PyRing {
    ring: Forked<Ring>,
    /// Of the last entry. Never used again.
    number: AtomicU64,
}

/// (file, offset in the file, buffer, offset in the buffer, length, write, user data)
type Operation<'py> =
    (Bound<'py, PyAny>, u64, Bound<'py, PyAny>, usize, Option<usize>, bool, Bound<'py, PyAny>);

impl PyRing {
    pub fn new(client: &Client, entries: usize) -> Result<PyRing, Error> {
        let ring = Forked::new("ring", Ring::new(client.shared().clone(), entries)?);
        Ok(PyRing { ring, number: AtomicU64::new(0) })
    }
}

fn entry<'py>(operation: &Bound<'py, PyAny>, number: u64) -> PyResult<(Entry, Bound<'py, PyAny>)> {
    let (file, offset, buffer, buffer_offset, length, write, user_data) =
        operation.extract::<Operation<'_>>()?;
    let native = file.getattr("native")?;
    let whole = placement(&buffer, !write)?;
    let length = length.unwrap_or(whole.len().saturating_sub(buffer_offset));
    let end = buffer_offset.checked_add(length).filter(|end| *end <= whole.len());
    let end = end.ok_or_else(|| Error::invalid("the range is not inside the buffer"))?;
    let direction = if write { Direction::Write } else { Direction::Read };
    let file = native.cast::<PyFile>()?.get().file()?.clone();
    let entry = Entry { file, offset, buffer: whole.slice(buffer_offset..end), direction, user_data: number };
    Ok((entry, user_data))
}

/// A timeout in seconds; `None` for one that is longer than a `Duration` can be.
fn duration(timeout_s: f64) -> Result<Option<Duration>, Error> {
    match Duration::try_from_secs_f64(timeout_s) {
        Ok(timeout) => Ok(Some(timeout)),
        Err(_) if timeout_s > 0.0 => Ok(None),
        Err(_) => Err(Error::invalid("a timeout is a number of seconds from zero on")),
    }
}

/// Wait in slices, between which signal handlers run. Whether there is what is waited for.
fn wait(py: Python<'_>, ring: &Ring, least: usize, timeout: Option<Duration>) -> PyResult<bool> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    if ring.wait(least, Some(Duration::ZERO)) {
        return Ok(true);
    }
    loop {
        py.check_signals()?;
        let left = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if py.detach(|| ring.wait(least, Some(left.min(SLICE)))) {
            return Ok(true);
        }
        if left <= SLICE && deadline.is_some() {
            return Ok(false);
        }
    }
}

#[pymethods]
impl PyRing {
    /// Take operations from the front of a list, as many as there is room for, and remove them from it. What belongs
    /// to each is kept in `waiting`, by its number, until it is drained.
    fn submit(&self, queue: &Bound<'_, PyList>, waiting: &Bound<'_, PyDict>) -> PyResult<usize> {
        let ring = self.ring.get()?;
        let room = ring.entries().saturating_sub(ring.in_flight()).min(queue.len());
        let last = self.number.fetch_add(room as u64, Ordering::Relaxed) + room as u64;
        let numbers = last + 1 - room as u64..=last;
        let mut entries = Vec::with_capacity(room);
        let mut owners = Vec::with_capacity(room);
        for (place, number) in numbers.enumerate() {
            let (entry, user_data) = entry(&queue.get_item(place)?, number)?;
            entries.push(entry);
            owners.push((number, user_data));
        }
        // No Python code runs from here on.
        for (number, user_data) in &owners {
            waiting.set_item(number, user_data)?;
        }
        let outcome = ring.submit(entries);
        let taken = room - outcome.as_ref().map_or(room, Vec::len);
        for (number, _) in &owners[taken..] {
            waiting.del_item(number)?;
        }
        outcome?;
        queue.del_slice(0, taken)?;
        Ok(taken)
    }

    /// Append up to `most` results, each a `kind` of (what belongs to it, bytes or negative errno), to `into`, once there
    /// are `least` of them or `timeout_s` has passed.
    #[pyo3(signature = (into, waiting, kind, most, least, timeout_s = None))]
    #[allow(clippy::too_many_arguments)]
    fn drain(
        &self,
        py: Python<'_>,
        into: &Bound<'_, PyList>,
        waiting: &Bound<'_, PyDict>,
        kind: &Bound<'_, PyType>,
        most: usize,
        least: usize,
        timeout_s: Option<f64>,
    ) -> PyResult<()> {
        let ring = self.ring.get()?;
        let timeout = timeout_s.map(duration).transpose()?.flatten();
        let new = py.get_type::<PyTuple>().getattr("__new__")?;
        wait(py, ring, least.min(most), timeout)?;
        // No Python code runs from here on.
        for done in ring.take(most) {
            let user_data = waiting.get_item(done.user_data)?;
            let result = done.result.map_or_else(|error| -i64::from(error.errno()), |n| n as i64);
            into.append(new.call1((kind, (user_data, result)))?)?;
            waiting.del_item(done.user_data)?;
        }
        Ok(())
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
        ring.refuse();
        wait(py, ring, usize::MAX, None)?;
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
