//! Whom a server believes: the cluster's keys, and the tokens that are void before they expire.
//!
//! `luciola.wire.authority` is the same for the lane and gRPC.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::credential::{ChannelKind, Key, Nonces, Refusal, Secret};
use super::pb::{self, Claims, claims::Role};
use crate::lock::RwLock;

#[derive(Default)]
struct Revoked {
    tokens: HashSet<Vec<u8>>,
    /// By key: tokens that were minted earlier are void.
    minted_before: HashMap<u32, u64>,
    /// The id of the cluster; empty until routing has named it.
    cluster: String,
}

/// Says of tokens whether they are valid.
pub struct Authority {
    keys: RwLock<Vec<(u32, Secret)>>,
    revoked: RwLock<Arc<Revoked>>,
    /// Grows when tokens may have become void: connections then look again.
    generation: AtomicU64,
}

impl Authority {
    /// Of a cluster with that secret, whose id is 0; nothing is revoked yet.
    pub fn new(secret: Secret) -> Authority {
        let keys = RwLock::new(vec![(0, secret)]);
        Authority { keys, revoked: RwLock::default(), generation: AtomicU64::new(0) }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// From now on these tokens are revoked, and no others.
    pub fn set_revocations(&self, revocations: pb::Revocations) {
        let mut revoked = self.revoked.write();
        *revoked = Arc::new(Revoked {
            tokens: revocations.tokens.into_iter().map(|token| token.id).collect(),
            minted_before: revocations
                .minted_before
                .into_iter()
                .map(|each| (each.key_id, each.minted_unix_s))
                .collect(),
            cluster: revoked.cluster.clone(),
        });
        assert!(!revoked.tokens.contains(&Vec::new()), "a token without an id cannot be revoked by it");
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The cluster is this one; tokens for another are void.
    pub fn set_cluster(&self, cluster: &str) {
        let mut revoked = self.revoked.write();
        if revoked.cluster == cluster {
            return;
        }
        *revoked = Arc::new(Revoked {
            tokens: revoked.tokens.clone(),
            minted_before: revoked.minted_before.clone(),
            cluster: cluster.to_owned(),
        });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Check a client's proof and its claims; `peer` is where it calls from, `None` a socket on this host. Return the
    /// claims and the key for the server's proof.
    pub fn verify(
        &self,
        kind: ChannelKind,
        nonces: &Nonces,
        claims: &[u8],
        proof: &[u8; 32],
        peer: Option<IpAddr>,
    ) -> Result<(Claims, Key), Refusal> {
        let found = self.keys.read().iter().find_map(|(key_id, secret)| {
            match secret.verify_as(*key_id, kind, nonces, claims, proof, now_unix_s()) {
                Err(Refusal::WrongKey) => None,
                other => Some(other),
            }
        });
        let (claims, key) = found.unwrap_or(Err(Refusal::WrongKey))?;
        self.check(&claims)?;
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_canonical();
        if !claims.networks.is_empty() && !claims.networks.iter().any(|network| contains(network, peer)) {
            return Err(Refusal::Elsewhere);
        }
        Ok((claims, key))
    }

    /// Whether proved claims are valid now.
    pub fn check(&self, claims: &Claims) -> Result<(), Refusal> {
        if claims.expires_unix_s != 0 && claims.expires_unix_s <= now_unix_s() {
            return Err(Refusal::Expired);
        }
        let revoked = self.revoked.read().clone();
        let is_service = claims.role == Role::Service as i32;
        let floor = revoked.minted_before.get(&claims.key_id).copied().unwrap_or(0);
        if revoked.tokens.contains(&claims.nonce) || (claims.minted_unix_s < floor && !is_service) {
            return Err(Refusal::Revoked);
        }
        // Until routing has come nothing is served.
        let is_known = !revoked.cluster.is_empty() && !claims.audience.is_empty();
        if is_known && claims.audience != revoked.cluster {
            return Err(Refusal::WrongCluster);
        }
        Ok(())
    }
}

fn now_unix_s() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(u64::MAX, |since| since.as_secs())
}

/// Whether `address` is in `network`, "10.0.0.0/8" or one address. What is no network holds nothing.
fn contains(network: &str, address: IpAddr) -> bool {
    let (base, bits) = network.split_once('/').unwrap_or((network, "128"));
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    let (shared, length) = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => ((base.to_bits() ^ address.to_bits()).leading_zeros(), 32),
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            ((base.to_bits() ^ address.to_bits()).leading_zeros(), 128)
        }
        _ => return false,
    };
    shared >= bits.min(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::credential::Token;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_hold_what_their_bits_say() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.2"),
            ("192.168.4.0/23", "192.168.5.255", "192.168.6.0"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::1", "::1", "::2"),
        ] {
            assert!(contains(network, address(inside)), "{network} {inside}");
            assert!(!contains(network, address(outside)), "{network} {outside}");
        }
        assert!(contains("0.0.0.0/0", address("1.2.3.4")));
        for nonsense in ["", "/", "10.0.0.0/", "10.0.0.0/x", "10.0.0/8", "ten"] {
            assert!(!contains(nonsense, address("10.0.0.1")), "{nonsense}");
        }
        assert!(!contains("0.0.0.0/0", address("::1")));
    }

    /// tests/unit/wire/test_authority.py has the same test.
    #[test]
    fn vectors_are_read_as_the_services_read_them() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.trim_matches('-').as_bytes();
            digits
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        let authority = Authority::new(Secret::new(std::array::from_fn(|index| index as u8)));
        authority.keys.write().push((5, Secret::new([0; 32])));
        authority.set_cluster("here");
        let nonces = Nonces { server: [1; 32], client: [2; 32] };
        let lines = include_str!("../../../tests/unit/wire/tokens.txt").lines();
        let mut count = 0;
        for line in lines.filter(|line| !line.starts_with('#')) {
            let [name, says, claims, key] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let claims = bytes(claims);
            let proof = match Token::new(claims.clone(), bytes(key).try_into().unwrap()) {
                Ok(token) => token.client_proof(ChannelKind::Data, &nonces),
                Err(_) => [0; 32],
            };
            let found = match authority.verify(ChannelKind::Data, &nonces, &claims, &proof, None) {
                Ok((claims, _)) => format!(
                    "role={},uid={},read_only={},root={}",
                    claims.role, claims.uid, claims.read_only as u8, claims.root
                ),
                Err(_) => "refused".to_owned(),
            };
            assert_eq!(says, found, "{name}");
            count += 1;
        }
        assert!(count > 10, "{count} vectors");
    }

    #[test]
    fn revoked_tokens_and_those_of_another_cluster_are_void() {
        let authority = Authority::new(Secret::new([7; 32]));
        let token = Claims { nonce: vec![1; 16], minted_unix_s: 100, ..Claims::default() };
        assert_eq!(authority.check(&token), Ok(()));
        let before = authority.generation();
        authority.set_revocations(pb::Revocations {
            tokens: vec![pb::RevokedToken { id: vec![1; 16], expires_unix_s: 0 }],
            minted_before: vec![pb::MintedBefore { key_id: 0, minted_unix_s: 100 }],
        });
        assert!(authority.generation() > before);
        assert_eq!(authority.check(&token), Err(Refusal::Revoked));
        let other = Claims { nonce: vec![2; 16], ..token.clone() };
        assert_eq!(authority.check(&other), Ok(()));
        assert_eq!(authority.check(&Claims { minted_unix_s: 99, ..other.clone() }), Err(Refusal::Revoked));
        let service = Claims { role: Role::Service as i32, minted_unix_s: 0, ..other.clone() };
        assert_eq!(authority.check(&service), Ok(()), "services mint theirs again and again");
        let elsewhere = Claims { audience: "b".into(), ..other };
        assert_eq!(authority.check(&elsewhere), Ok(()), "nothing is served before routing names the cluster");
        authority.set_cluster("a");
        assert_eq!(authority.check(&elsewhere), Err(Refusal::WrongCluster));
        assert_eq!(authority.check(&token), Err(Refusal::Revoked), "still");
    }
}
