//! Authentication: the cluster secret, tokens derived from it, and the proofs of the handshake.
//!
//! docs/protocol.md, "Credentials" and "Handshake", is the definition. The key of a token never travels.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use prost::Message;
use sha2::Sha256;

use super::pb::{Claims, claims::Role};

pub use super::bearer::Credential;

/// Longest serialized `Claims` that a handshake may carry.
pub const CLAIMS_BYTES_MAX: usize = 1024;

/// Version of claims with limits, which releases before them would not obey; 0: of all others.
pub const VERSION: u32 = 2;
/// Before such claims where their key is derived, so that those releases refuse it.
const VERSION_2: &[u8] = b"luciola claims 2\0";

/// What the handshake is for; part of every proof, so that one cannot be replayed as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChannelKind {
    Lane = 1,
    Data = 2,
}

/// Why a token was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token was not made with this cluster's secret")]
    WrongKey,
    #[error("the token has expired")]
    Expired,
    #[error("the token has been revoked")]
    Revoked,
    #[error("the token is for another cluster")]
    WrongCluster,
    #[error("the token may not be used from there")]
    Elsewhere,
}

/// 32 bytes that never show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// The cluster secret. Its holder can mint any token.
#[derive(Clone, Debug)]
pub struct Secret(Key);

impl Secret {
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(Key(bytes))
    }

    /// The secret written as 64 hex digits; white space around them is ignored. `None` if it is anything else.
    pub fn from_hex(text: &str) -> Option<Secret> {
        let text = text.trim().as_bytes();
        if text.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
            let high = (pair[0] as char).to_digit(16)?;
            let low = (pair[1] as char).to_digit(16)?;
            *byte = (high * 16 + low) as u8;
        }
        Some(Secret::new(bytes))
    }

    fn key_of(&self, claims: &[u8], version: u32) -> Key {
        let prefix: &[u8] = if version == 0 { &[] } else { VERSION_2 };
        Key(sign(&self.0, &[prefix, claims]))
    }

    /// A token for `claims`, whose `version` must be the one that they need.
    pub fn mint(&self, claims: &Claims) -> Token {
        assert_eq!(
            claims.version,
            version_of(claims),
            "limits are of a version that is refused without them"
        );
        let version = claims.version;
        let claims = claims.encode_to_vec();
        let key = self.key_of(&claims, version);
        Token { claims, key }
    }

    /// A token of any bytes: what the holder of the secret could sign.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn sign_any(&self, claims: &[u8], version: u32) -> Token {
        Token { claims: claims.to_vec(), key: self.key_of(claims, version) }
    }

    /// As `verify_as` with the key that has the id 0.
    pub fn verify(
        &self,
        kind: ChannelKind,
        nonces: &Nonces,
        claims: &[u8],
        proof: &[u8; 32],
        now_unix_s: u64,
    ) -> Result<(Claims, Key), Refusal> {
        self.verify_as(0, kind, nonces, claims, proof, now_unix_s)
    }

    /// Check a client's proof and its claims' expiry; return the claims and the key for the server's proof. `key_id`: of
    /// this secret.
    pub fn verify_as(
        &self,
        key_id: u32,
        kind: ChannelKind,
        nonces: &Nonces,
        claims: &[u8],
        proof: &[u8; 32],
        now_unix_s: u64,
    ) -> Result<(Claims, Key), Refusal> {
        let parts: [&[u8]; 4] = [b"client", &[kind as u8], &nonces.server, &nonces.client];
        let (version, key) = [0, VERSION]
            .into_iter()
            .map(|version| (version, self.key_of(claims, version)))
            .find(|(_, key)| verify(key, &parts, proof).is_ok())
            .ok_or(Refusal::WrongKey)?;
        // Decoded only after the proof: unauthenticated bytes reach no parser.
        let claims = Claims::decode(claims).map_err(|_| Refusal::Malformed)?;
        Role::try_from(claims.role).map_err(|_| Refusal::Malformed)?;
        if claims.version != version || version != version_of(&claims) || claims.key_id != key_id {
            return Err(Refusal::Malformed);
        }
        if claims.expires_unix_s != 0 && claims.expires_unix_s <= now_unix_s {
            return Err(Refusal::Expired);
        }
        Ok((claims, key))
    }
}

/// The version that claims need: an earlier release would take those with limits for claims without.
fn version_of(claims: &Claims) -> u32 {
    let has_limits = claims.read_only
        || claims.root != 0
        || !claims.path.is_empty()
        || !claims.audience.is_empty()
        || !claims.networks.is_empty();
    if has_limits || claims.key_id != 0 { VERSION } else { 0 }
}

/// What both sides threw in.
#[derive(Clone, Copy, Debug)]
pub struct Nonces {
    pub server: [u8; 32],
    pub client: [u8; 32],
}

/// A token: who its bearer is, and the key that shows it.
#[derive(Clone, Debug)]
pub struct Token {
    claims: Vec<u8>,
    key: Key,
}

impl Token {
    /// The token of serialized `claims` and their key. Errors: `Malformed` if they cannot be claims.
    pub fn new(claims: Vec<u8>, key: [u8; 32]) -> Result<Token, Refusal> {
        if claims.len() > CLAIMS_BYTES_MAX || Claims::decode(claims.as_slice()).is_err() {
            return Err(Refusal::Malformed);
        }
        Ok(Token { claims, key: Key(key) })
    }

    pub fn claims(&self) -> &[u8] {
        &self.claims
    }

    /// What the claims say, which only a server can check.
    pub fn described(&self) -> Claims {
        Claims::decode(self.claims.as_slice()).expect("it was decoded when the token was made")
    }

    pub fn client_proof(&self, kind: ChannelKind, nonces: &Nonces) -> [u8; 32] {
        sign(&self.key, &["client".as_bytes(), &[kind as u8], &nonces.server, &nonces.client])
    }

    /// Whether the server holds the cluster secret.
    pub fn check_server(&self, kind: ChannelKind, nonces: &Nonces, proof: &[u8; 32]) -> Result<(), Refusal> {
        verify(&self.key, &["server".as_bytes(), &[kind as u8], &nonces.server, &nonces.client], proof)
    }
}

/// What a server answers a client that it believes.
pub fn server_proof(key: &Key, kind: ChannelKind, nonces: &Nonces) -> [u8; 32] {
    sign(key, &["server".as_bytes(), &[kind as u8], &nonces.server, &nonces.client])
}

fn mac(key: &Key, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

fn sign(key: &Key, parts: &[&[u8]]) -> [u8; 32] {
    mac(key, parts).finalize().into_bytes().into()
}

fn verify(key: &Key, parts: &[&[u8]], proof: &[u8; 32]) -> Result<(), Refusal> {
    // Constant time.
    mac(key, parts).verify_slice(proof).map_err(|_| Refusal::WrongKey)
}

/// 32 random bytes.
pub fn nonce() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCES: Nonces = Nonces { server: [3; 32], client: [4; 32] };

    fn claims(expires_unix_s: u64) -> Claims {
        Claims { role: Role::Client as i32, uid: 1000, expires_unix_s, ..Claims::default() }
    }

    #[test]
    fn a_minted_token_is_believed_and_shows_its_claims() {
        let secret = Secret::new([7; 32]);
        let token = secret.mint(&claims(0));
        let proof = token.client_proof(ChannelKind::Data, &NONCES);
        let (seen, key) = secret.verify(ChannelKind::Data, &NONCES, token.claims(), &proof, 1 << 40).unwrap();
        assert_eq!(seen, claims(0));
        token
            .check_server(ChannelKind::Data, &NONCES, &server_proof(&key, ChannelKind::Data, &NONCES))
            .unwrap();
    }

    #[test]
    fn another_secret_another_kind_and_other_claims_are_refused() {
        let secret = Secret::new([7; 32]);
        let token = secret.mint(&claims(0));
        let proof = token.client_proof(ChannelKind::Data, &NONCES);
        let now = 0;
        let other = Secret::new([8; 32]);
        assert_eq!(
            other.verify(ChannelKind::Data, &NONCES, token.claims(), &proof, now).unwrap_err(),
            Refusal::WrongKey
        );
        assert_eq!(
            secret.verify(ChannelKind::Lane, &NONCES, token.claims(), &proof, now).unwrap_err(),
            Refusal::WrongKey
        );
        let mut admin = claims(0);
        admin.role = Role::Admin as i32;
        let forged = admin.encode_to_vec();
        assert_eq!(
            secret.verify(ChannelKind::Data, &NONCES, &forged, &proof, now).unwrap_err(),
            Refusal::WrongKey
        );
        let replayed = Nonces { server: [9; 32], ..NONCES };
        assert!(secret.verify(ChannelKind::Data, &replayed, token.claims(), &proof, now).is_err());
    }

    #[test]
    fn an_expired_token_is_refused_at_its_second() {
        let secret = Secret::new([7; 32]);
        let token = secret.mint(&claims(100));
        let proof = token.client_proof(ChannelKind::Data, &NONCES);
        assert!(secret.verify(ChannelKind::Data, &NONCES, token.claims(), &proof, 99).is_ok());
        let refusal = secret.verify(ChannelKind::Data, &NONCES, token.claims(), &proof, 100).unwrap_err();
        assert_eq!(refusal, Refusal::Expired);
    }

    #[test]
    fn a_server_without_the_secret_is_noticed() {
        let token = Secret::new([7; 32]).mint(&claims(0));
        let squatter = Secret::new([8; 32]).key_of(token.claims(), 0);
        let proof = server_proof(&squatter, ChannelKind::Data, &NONCES);
        assert_eq!(token.check_server(ChannelKind::Data, &NONCES, &proof), Err(Refusal::WrongKey));
    }

    #[test]
    fn a_secret_is_64_hex_digits() {
        assert!(Secret::from_hex(&"0a".repeat(32)).is_some());
        assert!(Secret::from_hex(&format!("{}\n", "Ff".repeat(32))).is_some());
        assert!(Secret::from_hex(&"0a".repeat(31)).is_none());
        assert!(Secret::from_hex(&"zz".repeat(32)).is_none());
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let token = Secret::new([0x5a; 32]).mint(&claims(0));
        assert!(!format!("{:?} {:?}", token.key, Secret::new([0x5a; 32])).contains("90"));
    }
}
