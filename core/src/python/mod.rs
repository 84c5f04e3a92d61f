//! The Python module `luciola_core`: it converts and releases the GIL, nothing else.
//!
//! Each file registers its classes; the stub is `core/stubs/luciola_core.pyi`.

pub mod client;
pub mod error;
mod file;
mod forked;
mod log;
mod memory;
pub mod mount;
mod rdma;
mod ring;
mod signals;
mod stat;
pub mod storage;

use pyo3::prelude::*;

#[pymodule]
fn luciola_core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    log::start();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    client::register(module)?;
    mount::register(module)?;
    rdma::register(module)?;
    storage::register(module)
}
