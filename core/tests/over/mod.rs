//! What tests go over: sockets and TCP, or RDMA where the laboratory asks for that.

use std::sync::{Arc, OnceLock};

use luciola_core::rdma::{Fabric, RdmaOptions};

/// What takes the place of TCP and of sockets with `LUCIOLA_TEST_TRANSPORT=rdma`: the same tests over RDMA.
pub fn fabric() -> Option<Arc<Fabric>> {
    static FABRIC: OnceLock<Option<Arc<Fabric>>> = OnceLock::new();
    let wanted = || std::env::var("LUCIOLA_TEST_TRANSPORT").is_ok_and(|transport| transport == "rdma");
    FABRIC.get_or_init(|| wanted().then(|| Fabric::new(RdmaOptions::default()))).clone()
}
