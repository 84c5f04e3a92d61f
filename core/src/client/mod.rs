//! One client of a cluster: programs, rings and the mount all stand on it.
//!
//! `data` sends chunk operations to storage nodes and `meta` metadata calls, both over `cluster`; this module, `file`,
//! `open_file` and `metadata_cache` keep what a process knows of the files it uses.

mod chunk_slice;
mod chunk_store;
mod close_batcher;
pub mod data;
mod deferred_setattr;
mod dirty;
mod dirty_files;
mod dirty_limit;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod fake_server;
mod fence;
mod file;
#[cfg(test)]
mod file_tests;
mod identity;
#[cfg(test)]
mod interleaving_tests;
mod meta;
mod metadata_cache;
mod open_file;
mod open_files;
mod options;
mod readahead;
mod sequences;
mod session;
mod shared;
mod staging;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::buffer::BufferPool;
use crate::cluster::routing::RoutingTable;
use crate::cluster::rpc::{Lane, LaneOptions};
use crate::cluster::{Endpoints, Transport};
use crate::error::{Error, Result};
use crate::net::{Certificates, Role};
use crate::rdma;
use crate::types::ClientId;
use crate::wire::credential::{Credential, Token};
use crate::wire::pb;

use chunk_store::ChainStore;
pub use chunk_store::ChunkStore;
use data::{DataClient, DataOptions};
pub use file::{
    CreateOptions, File, OpenOptions, WriteAt, set_attributes, set_attributes_deferred, set_length,
    write_many,
};
pub use identity::Identity;
use meta::Channel;
pub use meta::{Meta, inode_path, name_path};
pub use metadata_cache::{LISTED_MAX, MetadataCache, NameLookup};
pub use open_file::{IoMode, OpenInode, WriteOffset, now_ns};
pub use open_files::OpenFiles;
pub use options::Options;
use session::Session;
pub use shared::Shared;

/// A cluster that has not answered for this long is not merely restarting: connect fails.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// Size of a buffer for dirty bytes: the longest piece.
const POOL_BUFFER_BYTES: usize = dirty::RUN_BYTES as usize;

/// One client process's view of a cluster. `mount::MountedFs` makes it a `fuse::FileSystem`.
pub struct Client {
    id: ClientId,
    options: Options,
    endpoints: Endpoints,
    identity: Arc<Identity>,
    credential: Credential,
    files: Arc<OpenFiles>,
    data: Arc<DataClient>,
    session: Arc<Session>,
    closed: AtomicBool,
}

impl Client {
    /// Reaches a cluster manager, fetches routing and opens a session.
    ///
    /// Errors: `Unavailable` if no manager answers within the deadline or 20 s, `Unauthenticated` for a wrong token.
    pub fn connect(options: Options) -> Result<Arc<Client>> {
        let deadline = Instant::now() + options.deadline.min(CONNECT_MAX);
        let endpoints = Endpoints::new(options.transport, options.rdma.clone())?;
        let mut bytes = [0u8; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let id = ClientId(u64::from_le_bytes(bytes) | 1);
        let identity = Arc::new(Identity::of_claims(&options.claims)?);
        let token = Token::new(options.claims.clone(), options.key).map_err(|_| senseless())?;
        let credential = Credential::new(token, options.token_source.clone());
        let credential = credential.with_certificates(options.certificates.clone());
        let lane_options = LaneOptions {
            retry_first: options.retry_first,
            retry_max: options.retry_max,
            connections_max: options.connections_per_node,
            ..LaneOptions::default()
        };
        let mgmtd = Lane::new(options.mgmtd.clone(), credential.clone(), lane_options.clone());
        let routing = RoutingTable::start(mgmtd.clone(), deadline)?;
        let lane_options = LaneOptions { role: Role::Meta, ..lane_options };
        let meta_lane = Lane::new(routing.current().meta_addresses(), credential.clone(), lane_options);
        let data_options = DataOptions {
            client: id,
            retry_first: options.retry_first,
            retry_max: options.retry_max,
            connections_per_node: options.connections_per_node,
            endpoints: endpoints.clone(),
        };
        let data = DataClient::new(routing.clone(), credential.clone(), data_options);
        let meta = Meta::new(Channel::Lane(meta_lane.clone()), id, options.deadline);
        // Dirty bytes, what is in flight besides, and blocks read ahead.
        let buffers = (options.write_buffer_bytes + 2 * options.read_ahead_bytes) / POOL_BUFFER_BYTES + 16;
        let pool = BufferPool::new(POOL_BUFFER_BYTES, buffers)?;
        let staging = (options.transport != Transport::Tcp).then(|| pool.clone());
        let shared = Shared::new(
            meta,
            Box::new(ChainStore { data: data.clone(), deadline: options.deadline, staging }),
            pool,
            options.write_buffer_bytes,
            options.read_ahead_bytes,
            options.attribute_timeout,
        );
        let files = OpenFiles::new(shared);
        let session = Session::start(
            id,
            &options,
            files.clone(),
            identity.clone(),
            routing,
            mgmtd,
            meta_lane,
            deadline,
        )?;
        credential.wait_for_renewal();
        Ok(Arc::new(Client {
            id,
            options,
            endpoints,
            identity,
            credential,
            files,
            data,
            session,
            closed: AtomicBool::new(false),
        }))
    }

    pub fn id(&self) -> ClientId {
        self.id
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The RDMA of this client; `None` where its transport excludes it.
    pub fn fabric(&self) -> Option<&Arc<rdma::Fabric>> {
        self.endpoints.fabric()
    }

    /// Who the token says its bearer is.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// What protects connections to other machines.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.credential.certificates()
    }

    /// From now on connections are opened with this token, and those that stand are used for no other request.
    ///
    /// Errors: `InvalidArgument` if it is not of the same role and user.
    pub fn set_token(&self, claims: Vec<u8>, key: [u8; 32]) -> Result<()> {
        let token = Token::new(claims, key).map_err(|_| senseless())?;
        let (before, after) = (self.credential.token().0.described(), token.described());
        if (before.role, before.uid) != (after.role, after.uid) {
            return Err(Error::invalid(format!(
                "the new token is of uid {} and role {}, this client's of uid {} and role {}: connect again",
                after.uid,
                after.role().as_str_name().to_lowercase(),
                before.uid,
                before.role().as_str_name().to_lowercase(),
            )));
        }
        self.credential.replace(token);
        Ok(())
    }

    /// Whether a server has refused the token: it has expired, or was revoked.
    pub fn is_token_refused(&self) -> bool {
        self.credential.is_refused()
    }

    /// The metadata service, for calls that concern no open file.
    pub fn meta(&self) -> &Meta {
        &self.shared().meta
    }

    /// The chunks of all files, for who knows their names.
    pub fn data(&self) -> &DataClient {
        &self.data
    }

    /// What this client has counted since the start, and holds now, by name.
    pub fn counters(&self) -> [(&'static str, u64); 8] {
        let shared = self.shared();
        let (cache, write_back) = (&shared.metadata_cache.counters, &shared.write_back);
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("name_cache_hits", total(&cache.name_hits)),
            ("name_cache_misses", total(&cache.name_misses)),
            ("attribute_cache_hits", total(&cache.attribute_hits)),
            ("attribute_cache_misses", total(&cache.attribute_misses)),
            ("written_back_bytes", total(&write_back.bytes)),
            ("write_back_failures", total(&write_back.failures)),
            ("dirty_bytes", shared.dirty_limit.used() as u64),
            ("open_files", self.files.count() as u64),
        ]
    }

    /// What is open.
    pub fn files(&self) -> &Arc<OpenFiles> {
        &self.files
    }

    pub fn shared(&self) -> &Arc<Shared> {
        self.files.shared()
    }

    /// Name of the cluster, as its manager reports it.
    pub fn cluster_id(&self) -> String {
        self.session.cluster_id()
    }

    pub fn open(&self, identity: &Arc<Identity>, path: pb::Path, options: OpenOptions) -> Result<Arc<File>> {
        File::open(&self.files, identity, path, options)
    }

    pub fn create(
        &self,
        identity: &Arc<Identity>,
        path: pb::Path,
        options: OpenOptions,
        create: CreateOptions,
    ) -> Result<Arc<File>> {
        File::create(&self.files, identity, path, options, create)
    }

    /// Return attributes, with what was written here and is not synced yet.
    pub fn stat(&self, identity: &Identity, path: pb::Path, follow: bool) -> Result<pb::Inode> {
        self.shared().meta.stat_exactly(identity, path, follow).map(|inode| self.local_view(&inode))
    }

    /// Return attributes as the metadata service described them, with what was written here and is not synced yet.
    pub fn local_view(&self, inode: &pb::Inode) -> pb::Inode {
        self.files.local_view(inode)
    }

    /// Write back and sync everything written through this client so far.
    pub fn flush(&self) -> Result<()> {
        let results: Vec<_> = self.files.all().iter().map(|inode| inode.sync()).collect();
        results.into_iter().collect()
    }

    /// Write back what is dirty, end all sessions and leave the cluster. Idempotent.
    pub fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let flushed = self.flush();
        self.session.stop();
        self.shared().background.stop();
        self.shared().send_closes();
        self.shared().workers.stop();
        self.session.leave();
        flushed
    }
}

fn senseless() -> Error {
    Error::invalid("the token's claims make no sense")
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::warn!("client {}: close failed: {error}; what was dirty is lost", self.id);
        }
    }
}
