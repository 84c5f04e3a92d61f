//! Class `File`: one open file.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::forked::Forked;
use super::memory::placement;
use super::signals::watched;
use super::stat::{Stat, stat};
use crate::buffer::Placement;
use crate::client::{File, WriteOffset};
use crate::error::Error;

/// Most bytes that `read` returns: what a bytes object may hold.
const READ_BYTES_MAX: usize = isize::MAX as usize;

#[pyclass(frozen, name = "File", module = "luciola_core")]
pub struct PyFile {
    file: Forked<Arc<File>>,
}

impl PyFile {
    pub fn new(file: Arc<File>) -> PyFile {
        PyFile { file: Forked::new("file", file) }
    }

    pub fn file(&self) -> Result<&Arc<File>, Error> {
        self.file.get()
    }
}

#[pymethods]
impl PyFile {
    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, offset: u64) -> PyResult<usize> {
        let into = placement(buffer, true)?;
        let file = self.file()?;
        watched(py, || file.read_ahead_at(offset, &into))
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let file = self.file()?;
        let known = watched(py, || file.length_for(offset.saturating_add(length as u64)))?;
        let left = usize::try_from(known.saturating_sub(offset)).unwrap_or(READ_BYTES_MAX);
        let length = length.min(left);
        let mut count = 0;
        let bytes = PyBytes::new_with(py, length, |target| {
            count = watched(py, || Placement::scoped(target, |into| file.read_ahead_at(offset, into)))?;
            Ok(())
        })?;
        if count == length {
            return Ok(bytes);
        }
        Ok(PyBytes::new(py, &bytes.as_bytes()[..count]))
    }

    /// `offset` None: at the end of the file. Returns where the bytes went.
    #[pyo3(signature = (data, offset))]
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>, offset: Option<u64>) -> PyResult<u64> {
        let payload = placement(data, false)?;
        let file = self.file()?;
        let place = offset.map_or(WriteOffset::Append, WriteOffset::At);
        let written = py.detach(|| file.write(place, &payload, false));
        Ok(written?)
    }

    fn truncate(&self, py: Python<'_>, length: u64) -> PyResult<()> {
        let file = self.file()?;
        py.detach(|| file.truncate(length))?;
        Ok(())
    }

    /// Other clients that open the file now see everything.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let file = self.file()?;
        Ok(py.detach(|| file.flush())?)
    }

    #[pyo3(signature = (*, data_only = false))]
    fn fsync(&self, py: Python<'_>, data_only: bool) -> PyResult<()> {
        let file = self.file()?;
        Ok(py.detach(|| file.fsync(data_only))?)
    }

    fn length(&self) -> PyResult<u64> {
        Ok(self.file()?.inode().length())
    }

    /// The length, asked again: another client may have written.
    fn refresh(&self, py: Python<'_>) -> PyResult<u64> {
        let file = self.file()?;
        watched(py, || file.refresh())?;
        Ok(file.inode().length())
    }

    fn stat(&self) -> PyResult<Stat> {
        Ok(stat(&self.file()?.inode().local_view()))
    }

    #[getter]
    fn inode(&self) -> PyResult<u64> {
        Ok(self.file()?.inode().id())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        // A forked child only forgets it.
        if self.file.is_foreign() {
            return Ok(());
        }
        let file = self.file()?;
        Ok(py.detach(|| file.close())?)
    }
}

impl Drop for PyFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Closing may wait for the network: never with the GIL.
            Python::attach(|py| py.detach(|| drop(file)));
        }
    }
}
