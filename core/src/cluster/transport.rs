//! The transports to storage nodes: shared memory on one host, RDMA where both ends have it, else TCP.

use std::str::FromStr;

use crate::error::{Error, Result};

/// How bytes travel to storage nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Shared memory where the node is on this host; else RDMA where that works, else TCP.
    #[default]
    Auto,
    Shm,
    Tcp,
    /// RDMA or not at all.
    Rdma,
}

impl FromStr for Transport {
    type Err = Error;

    fn from_str(text: &str) -> Result<Transport> {
        match text {
            "auto" => Ok(Transport::Auto),
            "shm" => Ok(Transport::Shm),
            "tcp" => Ok(Transport::Tcp),
            "rdma" => Ok(Transport::Rdma),
            _ => Err(Error::invalid(format!("no such transport: {text:?} (auto, shm, tcp or rdma)"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_parsed() {
        let parsed: Vec<Transport> = ["auto", "shm", "tcp", "rdma"].map(|text| text.parse().unwrap()).into();
        assert_eq!(parsed, [Transport::Auto, Transport::Shm, Transport::Tcp, Transport::Rdma]);
        assert!("pigeon".parse::<Transport>().unwrap_err().to_string().contains("pigeon"));
    }
}
