//! Class `StorageNode`: the storage server as the Python process of a node drives it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::RwLock;
use prost::Message;
use pyo3::prelude::*;

use super::client::{Pem, certificates_of, replace};
use crate::clock::now_ns;
use crate::error::{Error, Kind};
use crate::net::{Certificates, Secret};
use crate::storage::{NodeOptions, StorageServer};
use crate::types::{
    ChainId, ChainVersion, ChunkId, ClientId, ContentId, NodeId, RequestTag, Stamp, TargetState, Version,
};
use crate::wire::pb::{self, PublicState};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyStorageNode>()
}

type Name = (u64, u32);

/// One storage node: the chunks in a directory, served over the data plane.
#[pyclass(frozen, name = "StorageNode", module = "luciola_core")]
pub struct PyStorageNode {
    /// `None` after `stop`.
    server: RwLock<Option<Arc<StorageServer>>>,
    tcp_address: String,
    certificates: Option<Certificates>,
}

impl PyStorageNode {
    fn server(&self) -> PyResult<Arc<StorageServer>> {
        let server = self.server.read().clone();
        Ok(server.ok_or_else(|| Error::new(Kind::Unavailable, "the storage node has stopped"))?)
    }

    /// What `work` returns, without the GIL.
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&StorageServer) -> crate::error::Result<T> + Send,
    ) -> PyResult<T> {
        let server = self.server()?;
        Ok(py.detach(move || work(&server))?)
    }
}

#[pymethods]
impl PyStorageNode {
    #[new]
    #[pyo3(signature = (node_id, directory, *, secret, tcp = "127.0.0.1:0", socket = None, threads_max = 512,
        reserve_bytes = 256 << 20, durability = "write", index_cache_bytes = 128 << 20,
        identity = 0, create = true,
        transport = "auto", rdma_devices = Vec::new(), rdma_gid_index = None,
        certificates = None, wire = "encrypt"))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        node_id: u32,
        directory: PathBuf,
        secret: &[u8],
        tcp: &str,
        socket: Option<PathBuf>,
        threads_max: usize,
        reserve_bytes: u64,
        durability: &str,
        index_cache_bytes: usize,
        identity: u128,
        create: bool,
        transport: &str,
        rdma_devices: Vec<String>,
        rdma_gid_index: Option<u8>,
        certificates: Option<Pem>,
        wire: &str,
    ) -> PyResult<PyStorageNode> {
        let secret = secret.try_into().map_err(|_| Error::invalid("a cluster secret has 32 bytes"))?;
        let mut options = NodeOptions::new(NodeId(node_id), directory, Secret::new(secret));
        let address =
            tcp.parse().map_err(|_| Error::invalid(format!("{tcp:?} is not an address and a port")))?;
        options.tcp = Some(address);
        options.unix = socket;
        if threads_max < 2 {
            return Err(Error::invalid(format!("threads_max is 2 or more, not {threads_max}")).into());
        }
        options.threads_max = threads_max;
        options.transport = transport.parse()?;
        options.rdma.devices = rdma_devices;
        options.rdma.gid_index = rdma_gid_index;
        let certificates = certificates.map(|pem| certificates_of(&pem)).transpose()?;
        options.certificates = certificates.clone();
        options.wire = wire.parse()?;
        options.engine.reserve_bytes = reserve_bytes;
        options.engine.cache_bytes = index_cache_bytes;
        options.engine.identity = identity;
        options.engine.create = create;
        options.sync_updates = match durability {
            "write" => false,
            "sync" => true,
            other => return Err(Error::invalid(format!("durability {other:?} is not write or sync")).into()),
        };
        let server = py.detach(|| StorageServer::start(options))?;
        let tcp_address = server.tcp_address().map_or_else(String::new, |address| address.to_string());
        Ok(PyStorageNode { server: RwLock::new(Some(Arc::new(server))), tcp_address, certificates })
    }

    fn tcp_address(&self) -> &str {
        &self.tcp_address
    }

    fn set_certificates(&self, certificates: Pem) -> PyResult<()> {
        replace(self.certificates.as_ref(), &certificates)
    }

    fn set_routing(&self, py: Python<'_>, routing: &[u8]) -> PyResult<u64> {
        let routing = pb::Routing::decode(routing)
            .map_err(|error| Error::new(Kind::CorruptData, format!("routing cannot be decoded: {error}")))?;
        self.run(py, move |server| server.set_routing(routing))
    }

    fn set_lease(&self, until_s: f64, routing_version: u64) -> PyResult<()> {
        // A time before the clock's start, or no number, is a lease that has ended.
        self.server()?.set_lease((until_s.max(0.0) * 1e9) as u64, routing_version);
        Ok(())
    }

    fn oldest_access_s(&self) -> PyResult<f64> {
        Ok(self.server()?.oldest_access().as_secs_f64())
    }

    fn give_up_disk(&self) -> PyResult<()> {
        self.server()?.give_up_disk();
        Ok(())
    }

    fn drop_lease(&self) -> PyResult<()> {
        self.server()?.drop_lease();
        Ok(())
    }

    fn lease_left_s(&self) -> PyResult<f64> {
        Ok(self.server()?.lease_left().as_secs_f64())
    }

    #[allow(clippy::type_complexity)]
    fn targets(&self, py: Python<'_>) -> PyResult<Vec<(u64, u32, u64, u64, u64, u64, bool)>> {
        self.run(py, |server| {
            let reports = server.targets().into_iter();
            Ok(reports
                .map(|report| {
                    let (target, chain) = (report.target.0, report.chain.0);
                    let version = report.chain_version.0;
                    let (used, updates) = (report.used_bytes, report.updates);
                    (target, chain, version, report.chunks, used, updates, report.bad)
                })
                .collect())
        })
    }

    fn chain_states(&self, py: Python<'_>) -> PyResult<Vec<(u32, u64, i32, usize)>> {
        self.run(py, |server| {
            let states = server.chain_states().into_iter();
            Ok(states
                .map(|state| {
                    (state.chain.0, state.version.0, public_state(state.state) as i32, state.pending)
                })
                .collect())
        })
    }

    #[pyo3(signature = (chain, after, limit, since = 0))]
    #[allow(clippy::type_complexity)]
    fn list_chunks(
        &self,
        py: Python<'_>,
        chain: u32,
        after: Option<Name>,
        limit: usize,
        since: u64,
    ) -> PyResult<Vec<(u64, u32, u64, u64, u32, u32, bool, bool, u64)>> {
        self.run(py, |server| {
            let lines = server.list_chunks(ChainId(chain), after.map(chunk_id), limit, since)?.into_iter();
            Ok(lines
                .map(|line| {
                    let (content, index) = name(line.chunk);
                    let (version, chain_version) = (line.stamp.version.0, line.stamp.chain_version.0);
                    let pending = line.pending.map_or(0, |version| version.0);
                    let has_pending = line.pending.is_some();
                    let (length, crc) = (line.length, line.crc32c);
                    (content, index, version, chain_version, length, crc, has_pending, line.removed, pending)
                })
                .collect())
        })
    }

    fn hold_updates(&self, py: Python<'_>, holder: u64, limit_s: f64) -> PyResult<()> {
        let limit = Duration::try_from_secs_f64(limit_s).map_err(|_| Error::invalid("not a duration"))?;
        self.run(py, |server| server.hold_updates(holder, limit))
    }

    fn release_updates(&self, holder: u64) -> PyResult<bool> {
        Ok(self.server()?.release_updates(holder))
    }

    fn last_chunk(
        &self,
        py: Python<'_>,
        chain: u32,
        chain_version: u64,
        content: u64,
    ) -> PyResult<Option<(u32, u32)>> {
        self.run(py, |server| {
            server.last_chunk(ChainId(chain), ChainVersion(chain_version), ContentId(content))
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn remove_chunks(
        &self,
        py: Python<'_>,
        chain: u32,
        chain_version: u64,
        removals: Vec<(u64, u32)>,
        limit: usize,
        client: u64,
        sequence: u64,
        expires_s: f64,
    ) -> PyResult<(usize, Option<(usize, u32)>)> {
        let expires = moment(expires_s)?;
        let tag = RequestTag { client: ClientId(client), sequence };
        let chain = (ChainId(chain), ChainVersion(chain_version));
        let removals: Vec<_> =
            removals.into_iter().map(|(content, index)| (ContentId(content), index)).collect();
        self.run(py, |server| server.remove_chunks(chain, &removals, limit, tag, expires))
    }

    fn sync_chain(&self, py: Python<'_>, chain: u32, chain_version: u64) -> PyResult<()> {
        self.run(py, |server| server.sync_chain(ChainId(chain), ChainVersion(chain_version)))
    }

    #[allow(clippy::too_many_arguments)]
    fn truncate_chunk(
        &self,
        py: Python<'_>,
        chain: u32,
        chain_version: u64,
        content: u64,
        index: u32,
        length: u32,
        client: u64,
        sequence: u64,
        expires_s: f64,
    ) -> PyResult<()> {
        let expires = moment(expires_s)?;
        let tag = RequestTag { client: ClientId(client), sequence };
        let (chain, version) = (ChainId(chain), ChainVersion(chain_version));
        let chunk = chunk_id((content, index));
        self.run(py, |server| server.truncate_chunk(chain, version, chunk, length, tag, expires))
    }

    #[allow(clippy::type_complexity)]
    fn sync_chunks(
        &self,
        py: Python<'_>,
        chain: u32,
        chain_version: u64,
        chunks: Vec<Name>,
    ) -> PyResult<(usize, Vec<(u64, u32, String)>)> {
        let chunks: Vec<ChunkId> = chunks.into_iter().map(chunk_id).collect();
        self.run(py, |server| {
            let report = server.sync_chunks(ChainId(chain), ChainVersion(chain_version), &chunks)?;
            let failed = report.failed.into_iter().map(|(chunk, status)| {
                let (content, index) = name(chunk);
                (content, index, format!("{status:?}"))
            });
            Ok((report.equal, failed.collect()))
        })
    }

    #[pyo3(signature = (chain, timeout_s = 10.0))]
    fn commit_pending(&self, py: Python<'_>, chain: u32, timeout_s: f64) -> PyResult<usize> {
        let timeout = Duration::try_from_secs_f64(timeout_s)
            .map_err(|_| Error::invalid(format!("{timeout_s} is not a timeout")))?;
        self.run(py, |server| Ok(server.commit_pending(ChainId(chain), timeout)))
    }

    #[pyo3(signature = (chain, after, limit, repair))]
    #[allow(clippy::type_complexity)]
    fn scrub(
        &self,
        py: Python<'_>,
        chain: u32,
        after: Option<Name>,
        limit: usize,
        repair: bool,
    ) -> PyResult<(u64, u64, Vec<(u64, u32, u64)>, u64, Option<Name>)> {
        self.run(py, |server| {
            let report = server.scrub(ChainId(chain), after.map(chunk_id), limit, repair)?;
            let damaged = report.damaged.into_iter().map(|(chunk, version)| {
                let (content, index) = name(chunk);
                (content, index, version.0)
            });
            Ok((report.chunks, report.bytes, damaged.collect(), report.repaired, report.last.map(name)))
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn quarantine(
        &self,
        py: Python<'_>,
        chain: u32,
        chain_version: u64,
        chunk: Name,
        stamp: (u64, u64),
        folder: PathBuf,
    ) -> PyResult<bool> {
        let stamp = Stamp { chain_version: ChainVersion(stamp.0), version: Version(stamp.1) };
        self.run(py, |server| {
            server.quarantine(ChainId(chain), ChainVersion(chain_version), chunk_id(chunk), stamp, &folder)
        })
    }

    fn stored_chains(&self) -> PyResult<Vec<u32>> {
        Ok(self.server()?.stored_chains().into_iter().map(|chain| chain.0).collect())
    }

    fn wipe_chain(&self, py: Python<'_>, chain: u32) -> PyResult<()> {
        self.run(py, |server| server.wipe_chain(ChainId(chain)))
    }

    fn round(&self) -> PyResult<u64> {
        Ok(self.server()?.round())
    }

    fn rounds(&self) -> PyResult<(u64, u64)> {
        Ok(self.server()?.rounds())
    }

    fn confirm(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |server| server.confirm())
    }

    #[pyo3(signature = (chain, after, round, limit))]
    fn purge_tombstones(
        &self,
        py: Python<'_>,
        chain: u32,
        after: Option<Name>,
        round: u64,
        limit: usize,
    ) -> PyResult<(usize, Option<Name>)> {
        self.run(py, |server| {
            let (count, last) = server.purge_tombstones(ChainId(chain), after.map(chunk_id), round, limit)?;
            Ok((count, last.map(name)))
        })
    }

    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, StorageServer::sync)
    }

    fn space(&self, py: Python<'_>) -> PyResult<(u64, u64, u64)> {
        self.run(py, |server| {
            let space = server.space()?;
            Ok((space.capacity_bytes, space.free_bytes, space.used_bytes))
        })
    }

    fn counters(&self, py: Python<'_>) -> PyResult<std::collections::HashMap<&'static str, u64>> {
        self.run(py, |server| Ok(server.counters().into_iter().collect()))
    }

    fn slow_ops(&self, py: Python<'_>, seconds: f64) -> PyResult<Vec<String>> {
        let limit = Duration::try_from_secs_f64(seconds)
            .map_err(|_| Error::invalid(format!("{seconds} is no length of time")))?;
        self.run(py, |server| Ok(server.slow_ops(limit)))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.server.write().take().map_or(Ok(()), |server| server.stop()))?)
    }
}

/// A moment on the boot clock. Errors: `Timeout` if it has passed.
fn moment(at_s: f64) -> PyResult<Instant> {
    let left_s = at_s - now_ns() as f64 / 1e9;
    let left = Duration::try_from_secs_f64(left_s);
    Ok(left.map(|left| Instant::now() + left).map_err(|_| Error::timeout("the request has expired"))?)
}

fn chunk_id((content, index): Name) -> ChunkId {
    ChunkId { content: ContentId(content), index }
}

fn name(chunk: ChunkId) -> Name {
    (chunk.content.0, chunk.index)
}

fn public_state(state: TargetState) -> PublicState {
    match state {
        TargetState::Serving => PublicState::Serving,
        TargetState::LastServing => PublicState::Lastsrv,
        TargetState::Syncing => PublicState::Syncing,
        TargetState::Waiting => PublicState::Waiting,
        TargetState::Offline => PublicState::Offline,
    }
}
