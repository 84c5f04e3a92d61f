//! Rows in memory that Python can see: two-dimensional buffers of bytes, whose rows may lie apart.
//!
//! `unsafe` is allowed here for the reason that `memory` gives: the buffer protocol is made of raw pointers.
#![allow(unsafe_code)]

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

use crate::buffer::rows::{self, Number, Rows, Unfit};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rows_cast, module)?)?;
    module.add_function(wrap_pyfunction!(rows_copy, module)?)?;
    module.add_function(wrap_pyfunction!(rows_pack_logs, module)?)?;
    module.add_function(wrap_pyfunction!(rows_sum, module)?)?;
    module.add_function(wrap_pyfunction!(rows_sum_logs, module)?)?;
    module.add_function(wrap_pyfunction!(rows_turn, module)?)
}

/// Copy rows by their numbers, without the GIL.
#[pyfunction]
#[pyo3(signature = (target, source, *, target_rows=None, source_rows=None))]
pub fn rows_copy(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    source: &Bound<'_, PyAny>,
    target_rows: Option<&Bound<'_, PyAny>>,
    source_rows: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    move_rows(py, rows::copy, target, source, target_rows, source_rows)
}

/// Sum rows of several parts by their numbers, without the GIL.
#[pyfunction]
#[pyo3(signature = (target, parts, places, weights=None, *, number))]
pub fn rows_sum(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    parts: Vec<Bound<'_, PyAny>>,
    places: &Bound<'_, PyAny>,
    weights: Option<&Bound<'_, PyAny>>,
    number: &str,
) -> PyResult<()> {
    add_up(py, rows::sum, target, &parts, places, weights, number)
}

/// Sum rows that `rows_pack_logs` has packed, without the GIL.
#[pyfunction]
#[pyo3(signature = (target, parts, places, weights=None, *, number))]
pub fn rows_sum_logs(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    parts: Vec<Bound<'_, PyAny>>,
    places: &Bound<'_, PyAny>,
    weights: Option<&Bound<'_, PyAny>>,
    number: &str,
) -> PyResult<()> {
    add_up(py, rows::sum_logs, target, &parts, places, weights, number)
}

/// Cast rows of bfloat16 to e4m3 with scales, without the GIL.
#[pyfunction]
#[pyo3(signature = (values, scales, source, *, round_scale))]
pub fn rows_cast(
    py: Python<'_>,
    values: &Bound<'_, PyAny>,
    scales: &Bound<'_, PyAny>,
    source: &Bound<'_, PyAny>,
    round_scale: bool,
) -> PyResult<()> {
    let (values, scales, source) =
        (View::of(values, true)?, View::of(scales, true)?, View::of(source, false)?);
    let (to, with, from) = (values.rows, scales.rows, source.rows);
    py.detach(|| rows::cast(to, with, from, round_scale)).map_err(refused)
}

/// Pack rows of bfloat16 as logarithms of ten bits, by their numbers, without the GIL.
#[pyfunction]
#[pyo3(signature = (target, source, *, target_rows=None, source_rows=None))]
pub fn rows_pack_logs(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    source: &Bound<'_, PyAny>,
    target_rows: Option<&Bound<'_, PyAny>>,
    source_rows: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    move_rows(py, rows::pack_logs, target, source, target_rows, source_rows)
}

/// Turn rows of words into columns, by their numbers, without the GIL.
#[pyfunction]
#[pyo3(signature = (target, source, *, target_rows=None, source_rows=None))]
pub fn rows_turn(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    source: &Bound<'_, PyAny>,
    target_rows: Option<&Bound<'_, PyAny>>,
    source_rows: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    move_rows(py, rows::turn, target, source, target_rows, source_rows)
}

type Move = fn(Rows, Option<&[i64]>, Rows, Option<&[i64]>) -> Result<(), Unfit>;

fn move_rows(
    py: Python<'_>,
    act: Move,
    target: &Bound<'_, PyAny>,
    source: &Bound<'_, PyAny>,
    target_rows: Option<&Bound<'_, PyAny>>,
    source_rows: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (target, source) = (View::of(target, true)?, View::of(source, false)?);
    let targets = target_rows.map(numbers::<i64>).transpose()?;
    let sources = source_rows.map(numbers::<i64>).transpose()?;
    let (to, from) = (target.rows, source.rows);
    py.detach(|| act(to, targets.as_deref(), from, sources.as_deref())).map_err(refused)
}

type Sum = fn(Number, Rows, &[Rows], &[i64], Option<&[f32]>) -> Result<(), Unfit>;

fn add_up(
    py: Python<'_>,
    act: Sum,
    target: &Bound<'_, PyAny>,
    parts: &[Bound<'_, PyAny>],
    places: &Bound<'_, PyAny>,
    weights: Option<&Bound<'_, PyAny>>,
    number: &str,
) -> PyResult<()> {
    let number = match number {
        "bfloat16" => Number::Bfloat16,
        "float32" => Number::Float32,
        _ => {
            return Err(PyValueError::new_err(format!(
                "number is {number:?}; it must be bfloat16 or float32"
            )));
        }
    };
    let target = View::of(target, true)?;
    let parts = parts.iter().map(|part| View::of(part, false)).collect::<PyResult<Vec<_>>>()?;
    let (places, weights) = (numbers::<i64>(places)?, weights.map(numbers::<f32>).transpose()?);
    let (to, from) = (target.rows, parts.iter().map(|part| part.rows).collect::<Vec<_>>());
    py.detach(|| act(number, to, &from, &places, weights.as_deref())).map_err(refused)
}

/// Rows, and the view that holds them.
struct View {
    rows: Rows,
    _view: PyBuffer<u8>,
}

impl View {
    fn of(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<View> {
        let view = PyBuffer::<u8>::get(object)
            .map_err(|_| PyBufferError::new_err("rows are a two-dimensional buffer of single bytes"))?;
        let (&[count, width], &[stride, step]) = (view.shape(), view.strides()) else {
            return Err(PyBufferError::new_err(format!(
                "rows are a two-dimensional buffer of bytes; this one has {} dimensions",
                view.dimensions()
            )));
        };
        let is_dense = width < 2 || step == 1;
        let is_in_order = count < 2 || stride >= if writable { width as isize } else { 0 };
        if !is_dense || !is_in_order || view.suboffsets().is_some() {
            return Err(PyBufferError::new_err(format!(
                "rows lie one after the other and are contiguous; strides are {:?}",
                view.strides()
            )));
        }
        if writable && view.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        let stride = if count < 2 { 0 } else { stride as usize };
        // SAFETY: shape and strides of a buffer tell which bytes it holds valid, writable ones if it is not read-only,
        // as long as the view is held. The GIL keeps them neither unchanged nor private, which rows do not ask for.
        let rows = unsafe { Rows::from_raw(view.buf_ptr().cast(), count, width, stride) };
        Ok(View { rows, _view: view })
    }
}

fn numbers<T: Element>(object: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    PyBuffer::<T>::get(object)
        .map_err(|_| {
            PyBufferError::new_err(format!("numbers must be a buffer of {}", std::any::type_name::<T>()))
        })?
        .to_vec(object.py())
}

fn refused(reason: Unfit) -> PyErr {
    PyValueError::new_err(reason.0)
}
