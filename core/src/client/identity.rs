//! Whom a client acts for.

use prost::Message;

use crate::error::{Error, Result};
use crate::wire::pb;

/// On whose behalf a call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Identity {
    /// Who the token says its bearer is.
    pub fn of_claims(claims: &[u8]) -> Result<Identity> {
        let claims =
            pb::Claims::decode(claims).map_err(|_| Error::invalid("the token's claims make no sense"))?;
        Ok(Identity { uid: claims.uid, gid: claims.gid, groups: claims.groups })
    }
}
