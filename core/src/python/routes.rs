//! Which token goes where, in memory that Python can see: flat or two-dimensional buffers of numbers, all contiguous.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

use crate::buffer::routes::{self, NoRoute};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(routes_heads, module)?)?;
    module.add_function(wrap_pyfunction!(routes_keep_own, module)?)?;
    module.add_function(wrap_pyfunction!(routes_layout, module)?)?;
    module.add_function(wrap_pyfunction!(routes_sort, module)?)
}

/// Fill in where tokens go.
#[pyfunction]
pub fn routes_layout(
    py: Python<'_>,
    topk_idx: &Bound<'_, PyAny>,
    in_rank: &Bound<'_, PyAny>,
    per_rank: &Bound<'_, PyAny>,
    per_expert: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let chosen = buffer::<i64>(topk_idx)?;
    let (in_rank, per_rank, per_expert) = (buffer::<u8>(in_rank)?, buffer(per_rank)?, buffer(per_expert)?);
    let (experts, ranks) = (per_expert.item_count(), per_rank.item_count());
    let found = routes::layout(&chosen.to_vec(py)?, columns(&chosen), experts, ranks).map_err(refused)?;
    in_rank.copy_from_slice(py, &found.in_rank)?;
    per_rank.copy_from_slice(py, &found.per_rank)?;
    per_expert.copy_from_slice(py, &found.per_expert)
}

/// Fill in the number of each token among those for a rank, and counts by channels.
#[pyfunction]
#[pyo3(signature = (member, heads, prefix=None))]
pub fn routes_heads(
    py: Python<'_>,
    member: &Bound<'_, PyAny>,
    heads: &Bound<'_, PyAny>,
    prefix: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (member, heads) = (buffer::<u8>(member)?, buffer::<i64>(heads)?);
    let prefix = prefix.map(buffer::<i32>).transpose()?;
    let channels = prefix.as_ref().map_or(0, columns);
    let (numbers, counts) =
        routes::heads(&member.to_vec(py)?, columns(&member), channels).map_err(refused)?;
    heads.copy_from_slice(py, &numbers)?;
    prefix.map_or(Ok(()), |prefix| prefix.copy_from_slice(py, &counts))
}

/// Change expert numbers to those of the rank that owns them from a first one on, and weights of others to zero.
#[pyfunction]
pub fn routes_keep_own(
    py: Python<'_>,
    topk_idx: &Bound<'_, PyAny>,
    weights: Option<&Bound<'_, PyAny>>,
    first: i64,
    owned: i64,
) -> PyResult<()> {
    let chosen = buffer::<i64>(topk_idx)?;
    let weights = weights.map(buffer::<f32>).transpose()?;
    let mut numbers = chosen.to_vec(py)?;
    let mut factors = weights.as_ref().map(|all| all.to_vec(py)).transpose()?;
    if factors.as_ref().is_some_and(|all| all.len() != numbers.len()) {
        return Err(PyValueError::new_err("there must be as many weights as experts"));
    }
    routes::keep_own(&mut numbers, factors.as_deref_mut(), first, owned);
    chosen.copy_from_slice(py, &numbers)?;
    match (weights, factors) {
        (Some(weights), Some(factors)) => weights.copy_from_slice(py, &factors),
        _ => Ok(()),
    }
}

/// Fill in the tokens of each expert in turn, and how many it has; return how many that are.
#[pyfunction]
pub fn routes_sort(
    py: Python<'_>,
    topk_idx: &Bound<'_, PyAny>,
    tokens: &Bound<'_, PyAny>,
    counts: &Bound<'_, PyAny>,
) -> PyResult<usize> {
    let (chosen, tokens, counts) = (buffer::<i64>(topk_idx)?, buffer::<i64>(tokens)?, buffer::<i64>(counts)?);
    let (mut sorted, found) =
        routes::sort(&chosen.to_vec(py)?, columns(&chosen), counts.item_count()).map_err(refused)?;
    let count = sorted.len();
    sorted.resize(chosen.item_count(), 0);
    tokens.copy_from_slice(py, &sorted)?;
    counts.copy_from_slice(py, &found)?;
    Ok(count)
}

fn buffer<T: Element>(object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<T>> {
    let view = PyBuffer::<T>::get(object).map_err(|_| {
        PyBufferError::new_err(format!("routes are buffers of {}", std::any::type_name::<T>()))
    })?;
    if !view.is_c_contiguous() {
        return Err(PyBufferError::new_err("routes are contiguous buffers"));
    }
    Ok(view)
}

/// How many numbers there are for each token, or for each rank.
fn columns<T: Element>(view: &PyBuffer<T>) -> usize {
    view.shape().last().copied().unwrap_or(0)
}

fn refused(reason: NoRoute) -> PyErr {
    PyValueError::new_err(reason.0)
}
