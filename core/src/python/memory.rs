//! Memory of Python objects as placements, and the class `Buffer`: shared memory that Python can see.
//!
//! `unsafe` is allowed here because the buffer protocol is made of raw pointers: a bytes-like object promises, as
//! long as its view is held, that its memory stays where it is. That promise becomes a placement's `keep`.
//! Bytes may change while they are moved if the program writes to its own buffer meanwhile: it then gets torn bytes.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::lock::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::buffer::{Flag, Placement, Region, page_align};
use crate::error::Error;

/// Regions of living `Buffer`s by address: a view of one, by any library, is recognised.
static REGIONS: Mutex<BTreeMap<usize, Weak<Region>>> = Mutex::new(BTreeMap::new());

/// Page-aligned memory in a region that storage nodes on this host place bytes into directly.
#[pyclass(frozen, name = "Buffer", module = "luciola_core")]
pub struct PyMemory {
    region: Arc<Region>,
    length: usize,
}

#[pymethods]
impl PyMemory {
    #[new]
    fn new(length: usize) -> PyResult<PyMemory> {
        if length == 0 {
            return Err(PyValueError::new_err("a buffer has at least one byte"));
        }
        let region = Region::create(page_align(length)).map_err(Error::from)?;
        REGIONS.lock().insert(region.as_ptr() as usize, Arc::downgrade(&region));
        Ok(PyMemory { region, length })
    }

    fn __len__(&self) -> usize {
        self.length
    }

    /// The descriptor of the memory, for other processes to map; the `Buffer` keeps it open.
    fn fileno(&self) -> c_int {
        self.region.as_fd().as_raw_fd()
    }

    /// # Safety
    /// Called by Python with a valid `view`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view"));
        }
        let memory = slf.get();
        let (start, length) = (memory.region.as_ptr(), memory.length as ffi::Py_ssize_t);
        // SAFETY: the region holds at least `length` bytes and lives as long as `slf`, which the view refers to.
        let outcome = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), length, 0, flags) };
        if outcome == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

impl Drop for PyMemory {
    fn drop(&mut self) {
        REGIONS.lock().remove(&(self.region.as_ptr() as usize));
    }
}

/// CRC32C of a bytes-like object, without the GIL.
#[pyfunction]
pub fn crc32c(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<u32> {
    let bytes = placement(data, false)?;
    Ok(py.detach(|| bytes.crc32c()))
}

/// CRC32 (zlib's) of many pieces of a bytes-like object, without the GIL.
#[pyfunction]
pub fn crc32s(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    offsets: Vec<usize>,
    lengths: Vec<usize>,
) -> PyResult<Vec<u32>> {
    let bytes = placement(data, false)?;
    if offsets.len() != lengths.len() {
        let message = format!("{} offsets and {} lengths", offsets.len(), lengths.len());
        return Err(PyValueError::new_err(message));
    }
    let is_inside =
        |start: usize, length: usize| start.checked_add(length).is_some_and(|end| end <= bytes.len());
    if let Some((start, length)) =
        offsets.iter().zip(&lengths).find(|&(&start, &length)| !is_inside(start, length))
    {
        let message = format!("{length} bytes at {start} are not inside {}", bytes.len());
        return Err(PyValueError::new_err(message));
    }
    let pieces = offsets.iter().zip(&lengths);
    Ok(py.detach(|| pieces.map(|(&start, &length)| bytes.slice(start..start + length).crc32()).collect()))
}

/// Raise the flag at `offset` of shared memory to `value`: what was written before is seen by all who see it.
#[pyfunction]
pub fn flag_raise(memory: &Bound<'_, PyAny>, offset: usize, value: u64) -> PyResult<()> {
    with_flag(memory, offset, |flag| flag.raise(value))
}

/// Wait for a flag, without the GIL: until it is at least `value` or `timeout_s` have passed. Returns what it is.
#[pyfunction]
pub fn flag_wait(
    py: Python<'_>,
    memory: &Bound<'_, PyAny>,
    offset: usize,
    value: u64,
    timeout_s: f64,
) -> PyResult<u64> {
    let limit = Duration::try_from_secs_f64(timeout_s)
        .map_err(|_| PyValueError::new_err(format!("timeout_s is {timeout_s}; it must be zero or more")))?;
    with_flag(memory, offset, |flag| {
        let seen = flag.load();
        if seen >= value || limit.is_zero() { seen } else { py.detach(|| flag.wait(value, limit)) }
    })
}

fn with_flag<T>(memory: &Bound<'_, PyAny>, offset: usize, act: impl FnOnce(Flag<'_>) -> T) -> PyResult<T> {
    let view = PyBuffer::<u8>::get(memory)
        .map_err(|_| PyBufferError::new_err("memory of flags must be a writable buffer of single bytes"))?;
    let address = (view.buf_ptr() as usize).wrapping_add(offset);
    let is_inside = offset.checked_add(8).is_some_and(|end| end <= view.len_bytes());
    if view.readonly() || !view.is_c_contiguous() || !is_inside || !address.is_multiple_of(8) {
        return Err(PyValueError::new_err(format!(
            "no flag at byte {offset} of {}: flags are 8 bytes, aligned, in writable memory",
            view.len_bytes()
        )));
    }
    // SAFETY: the eight bytes are in the view, which is held until `act` returns, and are aligned. Other bytes of the
    // memory are shared freely; that flags are touched only as flags is the contract of the processes that share it.
    let flag = unsafe { Flag::from_ptr(address as *mut u64) };
    Ok(act(flag))
}

/// The bytes of `object` as a placement that keeps them alive. Memory of a `Buffer` is recognised, also through a
/// view (memoryview, numpy, torch).
pub fn placement(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Placement> {
    let view = PyBuffer::<u8>::get(object)
        .map_err(|_| PyBufferError::new_err("a bytes-like object of single bytes is expected"))?;
    if !view.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer must be contiguous"));
    }
    if writable && view.readonly() {
        return Err(PyBufferError::new_err("the buffer is read-only"));
    }
    let (start, length) = (view.buf_ptr() as usize, view.len_bytes());
    let known = region_at(start, length);
    let pointer = NonNull::new(view.buf_ptr().cast::<u8>()).unwrap_or(NonNull::dangling());
    let keep = Arc::new(view);
    if let Some((region, offset)) = known
        && let Some(placement) = region.placement(offset, length)
    {
        return Ok(placement.kept_by(keep));
    }
    // SAFETY: the view holds `length` bytes at `pointer` (none if it is empty) until it is released, which `keep`
    // does; Python hands out no references into them.
    Ok(unsafe { Placement::from_raw(pointer, length, writable, keep) })
}

fn region_at(start: usize, length: usize) -> Option<(Arc<Region>, usize)> {
    let regions = REGIONS.lock();
    let (&first, region) = regions.range(..=start).next_back()?;
    let region = region.upgrade()?;
    (start + length <= first + region.len()).then(|| (region, start - first))
}
