//! Why a connection could not be made, and what another token does about it.

use std::io;
use std::time::Instant;

use crate::types::Status;
use crate::wire::credential::{Credential, Token};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("authentication failed: the token is wrong or has expired")]
    Refused,
    #[error("the server has too many connections")]
    Busy,
    #[error("the peer is not a server of this cluster")]
    NotOurs,
    /// It is not the service that was dialled, by its certificate, or is none with TLS.
    #[error("{0}")]
    Untrusted(String),
    #[error("no RDMA: {0}")]
    NoRdma(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ConnectError {
    /// The status of a batch that could not be sent.
    pub fn status(&self) -> Status {
        match self {
            ConnectError::Refused => Status::Denied,
            ConnectError::Busy => Status::Busy,
            // Another process may have got a dead server's port; the server may come back elsewhere.
            ConnectError::NotOurs
            | ConnectError::Untrusted(_)
            | ConnectError::NoRdma(_)
            | ConnectError::Io(_) => Status::Disconnected,
        }
    }
}

/// What `open` opens with the token of now, and the generation of that. A token that is refused, and soon replaced, gives
/// way to the new one, which may be refused as well.
pub fn with_current_token<T>(
    credential: &Credential,
    deadline: Instant,
    open: impl Fn(&Token) -> Result<T, ConnectError>,
) -> Result<(T, u64), ConnectError> {
    loop {
        let (token, generation) = credential.token();
        match open(&token) {
            Err(ConnectError::Refused) if credential.is_replaced_after(generation, deadline) => {}
            result => return Ok((result?, generation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::credential::Secret;
    use crate::wire::pb::Claims;

    fn token(uid: u32) -> Token {
        Secret::new([7; 32]).mint(&Claims { uid, ..Claims::default() })
    }

    #[test]
    fn a_replacement_that_is_refused_as_well_is_replaced_or_known_as_refused() {
        let soon = || Instant::now() + Duration::from_millis(20);
        let credential = Credential::new(token(1), Some("the token in /run/token".into()));
        credential.wait_for_renewal();
        // Each attempt finds that the token was replaced meanwhile, up to the last.
        let refuse_until = |last: u32| {
            with_current_token(&credential, soon(), |shown| {
                let uid = shown.described().uid;
                if uid == last {
                    return Ok(uid);
                }
                if uid < 4 {
                    credential.replace(token(uid + 1));
                }
                Err(ConnectError::Refused)
            })
        };
        assert_eq!(refuse_until(3).unwrap(), (3, 2));
        assert!(matches!(refuse_until(9), Err(ConnectError::Refused)));
        assert_eq!(credential.token().0.described().uid, 4);
        assert!(credential.is_refused());
    }
}
