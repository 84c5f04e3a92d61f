//! Class `Client`: one connection to a cluster.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use crate::client::{Client, Options, Transport};
use crate::error::Error;
use crate::wire::pb::NodeKind;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyClient>()
}

/// One client of a cluster. `Mount` takes it too.
#[pyclass(frozen, name = "Client", module = "luciola_core")]
pub struct PyClient {
    client: Arc<Client>,
}

impl PyClient {
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

#[pymethods]
impl PyClient {
    #[new]
    #[pyo3(signature = (mgmtd, claims, key, *, description = String::new(), mount = false, deadline_ms = 60_000,
        retry_first_ms = 10, retry_max_ms = 1000, connections_per_node = 16, write_buffer_bytes = 64 << 20,
        read_ahead_bytes = 8 << 20, attribute_timeout_ms = 1000, transport = "auto"))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        mgmtd: Vec<String>,
        claims: Vec<u8>,
        key: Vec<u8>,
        description: String,
        mount: bool,
        deadline_ms: u64,
        retry_first_ms: u64,
        retry_max_ms: u64,
        connections_per_node: usize,
        write_buffer_bytes: usize,
        read_ahead_bytes: usize,
        attribute_timeout_ms: u64,
        transport: &str,
    ) -> PyResult<PyClient> {
        let key = key.try_into().map_err(|_| Error::invalid("a key has 32 bytes"))?;
        let mut options = Options::new(mgmtd, claims, key);
        options.description = description;
        options.kind = if mount { NodeKind::NodeMount } else { NodeKind::NodeClient };
        options.deadline = Duration::from_millis(deadline_ms);
        options.retry_first = Duration::from_millis(retry_first_ms);
        options.retry_max = Duration::from_millis(retry_max_ms);
        options.connections_per_node = connections_per_node;
        options.write_buffer_bytes = write_buffer_bytes;
        options.read_ahead_bytes = read_ahead_bytes;
        options.attribute_timeout = Duration::from_millis(attribute_timeout_ms);
        options.transport = transport.parse::<Transport>()?;
        let client = py.detach(|| Client::connect(options))?;
        Ok(PyClient { client })
    }

    /// The random number that names this client in the cluster.
    #[getter]
    fn id(&self) -> u64 {
        self.client.id().0
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.client.close())?)
    }
}
