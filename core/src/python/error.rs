//! Errors of the crate as exceptions of `luciola.errors`: one class for each kind.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, Kind};

/// The class in `luciola.errors`. Exhaustive: a new kind does not compile before it has a class.
fn class_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Other => "Error",
        Kind::NotFound => "NotFound",
        Kind::AlreadyExists => "AlreadyExists",
        Kind::NotADirectory => "NotADirectory",
        Kind::IsADirectory => "IsADirectory",
        Kind::NotEmpty => "NotEmpty",
        Kind::PermissionDenied => "PermissionDenied",
        Kind::Unauthenticated => "Unauthenticated",
        Kind::InvalidArgument => "InvalidArgument",
        Kind::NoSpace => "NoSpace",
        Kind::Unsupported => "Unsupported",
        Kind::CorruptData => "CorruptData",
        Kind::Unavailable => "Unavailable",
        Kind::Timeout => "Timeout",
        Kind::Busy => "Busy",
        Kind::Conflict => "Conflict",
        Kind::MaybeCommitted => "MaybeCommitted",
        Kind::StaleRouting => "StaleRouting",
        Kind::ConfigError => "ConfigError",
    }
}

/// The exception that `error` is in Python.
pub fn exception(py: Python<'_>, error: &Error) -> PyErr {
    instance(py, error).map_or_else(|failure| failure, PyErr::from_value)
}

fn instance<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let class = py.import("luciola.errors")?.getattr(class_name(error.kind()))?;
    let named = PyDict::new(py);
    named.set_item("errno", error.errno())?;
    let value = class.call((error.message(),), Some(&named))?;
    let fields = PyDict::new(py);
    for (name, field) in error.fields() {
        fields.set_item(name, field)?;
    }
    value.setattr("fields", fields)?;
    Ok(value)
}

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        Python::attach(|py| exception(py, &error))
    }
}
