//! Class `Client`: one connection to a cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use super::error::exception;
use super::file::PyFile;
use super::forked::Forked;
use super::memory::{PyMemory, crc32c, crc32s, flag_raise, flag_wait, placement};
use super::ring::PyRing;
use super::signals::apart;
use super::stat::{Stat, stat};
use crate::client::{Client, CreateOptions, OpenOptions, Options, inode_path, set_attributes};
use crate::cluster::Transport;
use crate::error::{Error, Kind};
use crate::net::Certificates;
use crate::rdma;
use crate::types::{ChainId, ChunkId, ContentId};
use crate::wire::pb::{self, NodeKind};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyClient>()?;
    module.add_class::<PyFile>()?;
    module.add_class::<PyMemory>()?;
    module.add_function(wrap_pyfunction!(crc32c, module)?)?;
    module.add_function(wrap_pyfunction!(crc32s, module)?)?;
    module.add_function(wrap_pyfunction!(flag_raise, module)?)?;
    module.add_function(wrap_pyfunction!(flag_wait, module)?)?;
    module.add_class::<PyRing>()
}

/// One client of a cluster. `Mount` takes it too.
#[pyclass(frozen, name = "Client", module = "luciola_core")]
pub struct PyClient {
    client: Forked<Arc<Client>>,
}

/// (table, chunk bytes, stripe, inline bytes); `None`: not said.
pub type Layout = (Option<u32>, Option<u32>, Option<u32>, Option<u32>);

/// (name, inode, type, attributes)
type Listed<'py> = (Bound<'py, PyBytes>, u64, i32, Option<Stat>);

/// Entries, and whether there are more.
type Page<'py> = (Vec<Listed<'py>>, bool);

fn layout(layout: &pb::Layout) -> Layout {
    let said = |number: u32| (number != 0).then_some(number);
    let inline_bytes = Some(layout.inline_bytes());
    (said(layout.table), said(layout.chunk_bytes), said(layout.stripe), inline_bytes)
}

fn wanted((table, chunk_bytes, stripe, inline_bytes): Layout) -> pb::Layout {
    pb::Layout {
        table: table.unwrap_or(0),
        chunk_bytes: chunk_bytes.unwrap_or(0),
        stripe: stripe.unwrap_or(0),
        inline_bytes,
        ..Default::default()
    }
}

fn key_of(key: Vec<u8>) -> Result<[u8; 32], Error> {
    key.try_into().map_err(|_| Error::invalid("a key has 32 bytes"))
}

/// (id of the cluster; PEM of its authority, of the key and of the certificate)
pub type Pem = (String, PyBackedBytes, PyBackedBytes, PyBackedBytes);

pub fn certificates_of((cluster, authority, key, certificate): &Pem) -> Result<Certificates, Error> {
    Certificates::new(cluster, authority, key, certificate)
        .map_err(|error| Error::new(Kind::ConfigError, error.to_string()))
}

/// Errors: `InvalidArgument` if there were none from the start.
pub fn replace(before: Option<&Certificates>, newer: &Pem) -> PyResult<()> {
    let before = before.ok_or_else(|| Error::invalid("connections without certificates stay without"))?;
    before.replace(&certificates_of(newer)?);
    Ok(())
}

/// A path from the root.
fn path(path: &[u8]) -> pb::Path {
    pb::Path { at: 1, path: path.to_vec() }
}

impl PyClient {
    /// Errors: `InvalidArgument` in a process that was forked from its own.
    pub fn client(&self) -> Result<&Arc<Client>, Error> {
        self.client.get()
    }
}

#[pymethods]
impl PyClient {
    #[new]
    #[pyo3(signature = (mgmtd, claims, key, *, token_source = None, certificates = None, description = String::new(), mount = false, deadline_ms = 60_000,
        retry_first_ms = 10, retry_max_ms = 1000, connections_per_node = 16, write_buffer_bytes = 64 << 20,
        read_ahead_bytes = 8 << 20, attribute_timeout_ms = 1000, transport = "auto",
        rdma_devices = Vec::new(), rdma_gid_index = None, rdma_transmissions = None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        mgmtd: Vec<String>,
        claims: Vec<u8>,
        key: Vec<u8>,
        token_source: Option<String>,
        certificates: Option<Pem>,
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
        rdma_devices: Vec<String>,
        rdma_gid_index: Option<u8>,
        rdma_transmissions: Option<usize>,
    ) -> PyResult<PyClient> {
        let mut options = Options::new(mgmtd, claims, key_of(key)?);
        options.token_source = token_source;
        options.certificates = certificates.map(|pem| certificates_of(&pem)).transpose()?;
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
        options.rdma = rdma::RdmaOptions {
            devices: rdma_devices,
            gid_index: rdma_gid_index,
            transmissions_max: rdma_transmissions,
        };
        let client = apart(py, move || Client::connect(options))??;
        Ok(PyClient { client: Forked::new("client", client) })
    }

    /// The random number that names this client in the cluster.
    #[getter]
    fn id(&self) -> PyResult<u64> {
        Ok(self.client()?.id().0)
    }

    #[getter]
    fn cluster_id(&self) -> PyResult<String> {
        Ok(self.client()?.cluster_id())
    }

    /// Open connections with this token from now on.
    fn set_token(&self, claims: Vec<u8>, key: Vec<u8>) -> PyResult<()> {
        Ok(self.client()?.set_token(claims, key_of(key)?)?)
    }

    /// Open connections with these certificates from now on.
    fn set_certificates(&self, certificates: Pem) -> PyResult<()> {
        replace(self.client()?.certificates(), &certificates)
    }

    /// Whether a server has refused the token.
    #[getter]
    fn is_token_refused(&self) -> PyResult<bool> {
        Ok(self.client()?.is_token_refused())
    }

    /// What this client has counted, and holds now.
    fn counters(&self) -> PyResult<std::collections::HashMap<&'static str, u64>> {
        Ok(self.client()?.counters().into_iter().collect())
    }

    /// What travelled by RDMA, and what could not; empty where the transport excludes it.
    fn rdma_counters(&self) -> PyResult<std::collections::HashMap<&'static str, u64>> {
        let client = self.client()?;
        Ok(client.fabric().map(|fabric| fabric.counters().all().into_iter().collect()).unwrap_or_default())
    }

    /// `permissions`: of a new file, umask applied; `None`: it must exist. `layout`: of a new file.
    #[pyo3(signature = (name, *, read = false, write = false, append = false, truncate = false, direct = false,
        follow = true, permissions = None, exclusive = false, layout = None))]
    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        py: Python<'_>,
        name: &[u8],
        read: bool,
        write: bool,
        append: bool,
        truncate: bool,
        direct: bool,
        follow: bool,
        permissions: Option<u32>,
        exclusive: bool,
        layout: Option<Layout>,
    ) -> PyResult<PyFile> {
        let client = self.client()?;
        let options = OpenOptions { read, write, append, truncate, direct, follow };
        let identity = client.identity();
        let file = py.detach(|| match permissions {
            None => client.open(identity, path(name), options),
            Some(permissions) => {
                let create = CreateOptions { permissions, exclusive, layout: layout.map(wanted) };
                client.create(identity, path(name), options, create)
            }
        })?;
        Ok(PyFile::new(file))
    }

    #[pyo3(signature = (name, *, follow = true))]
    fn stat(&self, py: Python<'_>, name: &[u8], follow: bool) -> PyResult<Stat> {
        let client = self.client()?;
        Ok(stat(&py.detach(|| client.stat(client.identity(), path(name), follow))?))
    }

    /// One page of a directory, after the name `after`: its entries, and whether there are more.
    #[pyo3(signature = (inode, after, *, with_attributes = false))]
    fn list<'py>(
        &self,
        py: Python<'py>,
        inode: u64,
        after: &[u8],
        with_attributes: bool,
    ) -> PyResult<Page<'py>> {
        let client = self.client()?;
        let request = pb::ListRequest {
            inode,
            after: after.to_vec(),
            with_inodes: with_attributes,
            ..Default::default()
        };
        let reply = py.detach(|| client.meta().list(client.identity(), request))?;
        let listed = |entry: pb::Dentry| {
            let name = PyBytes::new(py, &entry.name);
            (
                name,
                entry.inode,
                entry.r#type,
                entry.attributes.as_ref().map(|inode| stat(&client.local_view(inode))),
            )
        };
        Ok((reply.entries.into_iter().map(listed).collect(), reply.more))
    }

    #[pyo3(signature = (name, permissions, *, parents = false, layout = None))]
    fn mkdir(
        &self,
        py: Python<'_>,
        name: &[u8],
        permissions: u32,
        parents: bool,
        layout: Option<Layout>,
    ) -> PyResult<()> {
        let client = self.client()?;
        let request = pb::MkdirRequest {
            path: Some(path(name)),
            permissions,
            parents,
            layout: layout.map(wanted),
            ..Default::default()
        };
        py.detach(|| client.meta().mkdir(client.identity(), request))?;
        Ok(())
    }

    /// Make files with their whole contents, in one transaction: at most 64, with 1 MiB. Each has its outcome: `None`,
    /// or an exception.
    fn create_small(
        &self,
        py: Python<'_>,
        files: Vec<(PyBackedBytes, PyBackedBytes)>,
        permissions: u32,
    ) -> PyResult<Vec<Option<Py<PyAny>>>> {
        let client = self.client()?;
        let change = |(name, data): &(PyBackedBytes, PyBackedBytes)| pb::Change {
            change: Some(pb::change::Change::CreateSmall(pb::CreateSmall {
                path: Some(path(name)),
                permissions,
                data: data.to_vec(),
            })),
            ..pb::Change::default()
        };
        let changes = files.iter().map(change).collect();
        let made = py.detach(|| client.meta().apply(client.identity(), changes))?;
        let outcome =
            |made: Result<u64, Error>| made.err().map(|error| exception(py, &error).into_value(py).into());
        Ok(made.into_iter().map(outcome).collect())
    }

    /// That of a file, or what a directory hands on; `None`: it has none of its own.
    fn layout(&self, py: Python<'_>, name: &[u8]) -> PyResult<Option<Layout>> {
        let client = self.client()?;
        let inode = py.detach(|| client.meta().stat(client.identity(), path(name), true))?;
        match inode.r#type() {
            pb::FileType::Regular | pb::FileType::Directory => Ok(inode.layout.as_ref().map(layout)),
            _ => Err(Error::invalid("only files and directories have a layout").into()),
        }
    }

    /// What new files get in a directory that has none of its own.
    fn default_layout(&self, py: Python<'_>) -> PyResult<Layout> {
        let client = self.client()?;
        let space = py.detach(|| client.meta().stat_fs(client.identity()))?;
        Ok(layout(&space.default_layout.unwrap_or_default()))
    }

    /// Change what a directory hands on to new files and directories. `None`: it has no layout of its own any more.
    fn set_layout(&self, py: Python<'_>, name: &[u8], layout: Option<Layout>) -> PyResult<()> {
        let client = self.client()?;
        let request = pb::SetAttrRequest {
            path: Some(path(name)),
            follow: true,
            clear_layout: layout.is_none(),
            layout: layout.map(wanted),
            ..Default::default()
        };
        py.detach(|| client.meta().set_attr(client.identity(), request))?;
        Ok(())
    }

    fn unlink(&self, py: Python<'_>, name: &[u8]) -> PyResult<()> {
        let client = self.client()?;
        py.detach(|| client.meta().unlink(client.identity(), path(name)))?;
        Ok(())
    }

    fn rmdir(&self, py: Python<'_>, name: &[u8]) -> PyResult<()> {
        let client = self.client()?;
        Ok(py.detach(|| client.meta().rmdir(client.identity(), path(name)))?)
    }

    /// Remove a directory and everything below it, at the metadata service.
    fn remove_tree(&self, py: Python<'_>, name: &[u8]) -> PyResult<()> {
        let client = self.client()?;
        Ok(py.detach(|| client.meta().remove_tree(client.identity(), path(name)))?)
    }

    #[pyo3(signature = (source, target, *, no_replace = false, exchange = false))]
    fn rename(
        &self,
        py: Python<'_>,
        source: &[u8],
        target: &[u8],
        no_replace: bool,
        exchange: bool,
    ) -> PyResult<()> {
        let client = self.client()?;
        let request = pb::RenameRequest {
            source: Some(path(source)),
            target: Some(path(target)),
            no_replace,
            exchange,
            ..Default::default()
        };
        py.detach(|| client.meta().rename(client.identity(), request))?;
        Ok(())
    }

    fn symlink(&self, py: Python<'_>, target: &[u8], name: &[u8]) -> PyResult<()> {
        let client = self.client()?;
        py.detach(|| client.meta().symlink(client.identity(), path(name), target))?;
        Ok(())
    }

    fn readlink<'py>(&self, py: Python<'py>, name: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let client = self.client()?;
        let inode = py.detach(|| client.meta().stat(client.identity(), path(name), false))?;
        if inode.r#type() != pb::FileType::Symlink {
            return Err(Error::invalid("not a symbolic link").into());
        }
        Ok(PyBytes::new(py, &inode.symlink_target))
    }

    #[pyo3(signature = (source, target, *, follow = false))]
    fn link(&self, py: Python<'_>, source: &[u8], target: &[u8], follow: bool) -> PyResult<()> {
        let client = self.client()?;
        py.detach(|| client.meta().link(client.identity(), path(source), path(target), follow))?;
        Ok(())
    }

    /// Changes what is given. Times in nanoseconds; `times_now`: both become the service's now.
    #[pyo3(signature = (name, *, follow = true, permissions = None, uid = None, gid = None, length = None,
        atime_ns = None, mtime_ns = None, times_now = false))]
    #[allow(clippy::too_many_arguments)]
    fn set_attributes(
        &self,
        py: Python<'_>,
        name: &[u8],
        follow: bool,
        permissions: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        length: Option<u64>,
        atime_ns: Option<i64>,
        mtime_ns: Option<i64>,
        times_now: bool,
    ) -> PyResult<()> {
        let client = self.client()?;
        py.detach(|| {
            let inode = client.meta().stat(client.identity(), path(name), follow)?;
            let request = pb::SetAttrRequest {
                path: Some(inode_path(inode.id)),
                permissions,
                uid,
                gid,
                length,
                atime_ns,
                mtime_ns,
                atime_now: times_now,
                mtime_now: times_now,
                ..Default::default()
            };
            set_attributes(client.files(), client.identity(), request)
        })?;
        Ok(())
    }

    /// (capacity, free bytes, inodes)
    fn statfs(&self, py: Python<'_>) -> PyResult<(u64, u64, u64)> {
        let client = self.client()?;
        let space = py.detach(|| client.meta().stat_fs(client.identity()))?;
        Ok((space.capacity_bytes, space.free_bytes, space.inode_count))
    }

    #[pyo3(signature = (name, attribute, *, follow = true))]
    fn get_xattr<'py>(
        &self,
        py: Python<'py>,
        name: &[u8],
        attribute: &[u8],
        follow: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let client = self.client()?;
        let value = py.detach(|| {
            let inode = client.meta().stat(client.identity(), path(name), follow)?.id;
            client.meta().get_xattr(client.identity(), inode, attribute)
        })?;
        Ok(PyBytes::new(py, &value))
    }

    /// `flags` of setxattr(2): 1 must not exist, 2 must exist.
    #[pyo3(signature = (name, attribute, value, *, flags = 0, follow = true))]
    fn set_xattr(
        &self,
        py: Python<'_>,
        name: &[u8],
        attribute: &[u8],
        value: &[u8],
        flags: u32,
        follow: bool,
    ) -> PyResult<()> {
        let client = self.client()?;
        Ok(py.detach(|| {
            let inode = client.meta().stat(client.identity(), path(name), follow)?.id;
            client.meta().set_xattr(client.identity(), inode, attribute, value, flags)
        })?)
    }

    #[pyo3(signature = (name, *, follow = true))]
    fn list_xattr<'py>(
        &self,
        py: Python<'py>,
        name: &[u8],
        follow: bool,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let client = self.client()?;
        let names = py.detach(|| {
            let inode = client.meta().stat(client.identity(), path(name), follow)?.id;
            client.meta().list_xattr(client.identity(), inode)
        })?;
        Ok(names.iter().map(|name| PyBytes::new(py, name)).collect())
    }

    #[pyo3(signature = (name, attribute, *, follow = true))]
    fn remove_xattr(&self, py: Python<'_>, name: &[u8], attribute: &[u8], follow: bool) -> PyResult<()> {
        let client = self.client()?;
        Ok(py.detach(|| {
            let inode = client.meta().stat(client.identity(), path(name), follow)?.id;
            client.meta().remove_xattr(client.identity(), inode, attribute)
        })?)
    }

    /// The path without symbolic links, "." and "..".
    fn real_path<'py>(&self, py: Python<'py>, name: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let client = self.client()?;
        let real = py.detach(|| {
            let inode = client.meta().stat(client.identity(), path(name), true)?;
            if inode.r#type() != pb::FileType::Directory {
                return Err(Error::new(Kind::NotADirectory, "only a directory has one real path"));
            }
            client.meta().real_path(client.identity(), inode.id)
        })?;
        Ok(PyBytes::new(py, &real))
    }

    /// The first bytes of one chunk, as many as fit; (how many there are, version of the chunk).
    fn read_chunk(
        &self,
        py: Python<'_>,
        chain: u32,
        content: u64,
        index: u32,
        into: &Bound<'_, PyAny>,
    ) -> PyResult<(usize, u64)> {
        let client = self.client()?;
        let into = placement(into, true)?;
        let chunk = ChunkId { content: ContentId(content), index };
        let deadline = Instant::now() + client.options().deadline;
        let (length, version) =
            py.detach(|| client.data().read_chunk(ChainId(chain), chunk, &into, deadline))?;
        Ok((length, version.0))
    }

    /// Write the first bytes of one chunk.
    fn write_chunk(
        &self,
        py: Python<'_>,
        chain: u32,
        content: u64,
        index: u32,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let client = self.client()?;
        let data = placement(data, false)?;
        let chunk = ChunkId { content: ContentId(content), index };
        let deadline = Instant::now() + client.options().deadline;
        Ok(py.detach(|| client.data().write_chunk(ChainId(chain), chunk, data, deadline))?)
    }

    /// Make everything acknowledged on these chains durable against power loss on every replica.
    fn sync_chains(&self, py: Python<'_>, chains: Vec<u32>) -> PyResult<()> {
        let client = self.client()?;
        let chains = chains.into_iter().map(ChainId).collect();
        let deadline = Instant::now() + client.options().deadline;
        Ok(py.detach(|| client.data().sync_chains(chains, deadline))?)
    }

    fn ring(&self, entries: usize) -> PyResult<PyRing> {
        Ok(PyRing::new(self.client()?, entries)?)
    }

    /// Everything written through this client so far is acknowledged and seen by others.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.client()?;
        Ok(py.detach(|| client.flush())?)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.client.is_foreign() {
            return Ok(());
        }
        let client = self.client()?;
        Ok(py.detach(|| client.close())?)
    }
}

impl Drop for PyClient {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            // Closing waits for threads and the network: never with the GIL.
            Python::attach(|py| py.detach(|| drop(client)));
        }
    }
}
