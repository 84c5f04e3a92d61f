//! Which addresses of a port are used, and which ports of two machines go together. Pure.

use crate::wire::rdma::{LinkLayer, Offer};

/// What a GID table says of one of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidType {
    InfiniBand,
    RoceV1,
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    pub index: u8,
    pub gid: [u8; 16],
    pub kind: GidType,
}

/// How two IPv4 addresses, or two others, must agree to count as one network; more does not make them closer.
const NETWORK_BITS_V4: u32 = 96 + 24;
const NETWORK_BITS_V6: u32 = 64;
const LINK_LOCAL: [u8; 2] = [0xfe, 0x80];

/// The entry to use. With `wanted` that index and no other; else, on Ethernet, RoCE version 2 with an IPv4 address
/// before a global IPv6 address before a link-local one; on InfiniBand the first.
pub fn choose_gid(link: LinkLayer, table: &[GidEntry], wanted: Option<u8>) -> Result<GidEntry, String> {
    let used = |entry: &&GidEntry| entry.gid != [0; 16];
    if let Some(wanted) = wanted {
        let entry = table.iter().filter(used).find(|entry| entry.index == wanted);
        let entry = entry.ok_or_else(|| format!("its GID table has nothing at index {wanted}"))?;
        if link == LinkLayer::Ethernet && entry.kind != GidType::RoceV2 {
            return Err(format!("the GID at index {wanted} is not of RoCE version 2"));
        }
        return Ok(*entry);
    }
    let fits = |entry: &&GidEntry| match link {
        LinkLayer::InfiniBand => true,
        LinkLayer::Ethernet => entry.kind == GidType::RoceV2,
    };
    let best = table.iter().filter(used).filter(fits).min_by_key(|entry| (rank(&entry.gid), entry.index));
    best.copied().ok_or_else(|| match link {
        LinkLayer::InfiniBand => "its GID table is empty".into(),
        LinkLayer::Ethernet => "it has no GID of RoCE version 2 (an address on its network interface)".into(),
    })
}

fn rank(gid: &[u8; 16]) -> u8 {
    match gid {
        gid if is_v4(gid) => 0,
        gid if gid.starts_with(&LINK_LOCAL) => 2,
        _ => 1,
    }
}

fn is_v4(gid: &[u8; 16]) -> bool {
    gid[..10] == [0; 10] && gid[10..12] == [0xff; 2]
}

/// The pair of ports (ours, theirs) that a connection uses; `None` if no two can reach each other. Among equally close
/// pairs `turn` chooses, so that connections spread over all of them.
pub fn choose_pair(ours: &[Offer], theirs: &[Offer], turn: usize) -> Option<(usize, usize)> {
    let mut best: Vec<(usize, usize)> = Vec::new();
    let mut highest = 0;
    for (our, a) in ours.iter().enumerate() {
        for (their, b) in theirs.iter().enumerate() {
            let Some(closeness) = closeness(a, b) else { continue };
            if closeness > highest {
                highest = closeness;
                best.clear();
            }
            if closeness == highest {
                best.push((our, their));
            }
        }
    }
    let count = best.len();
    (count > 0).then(|| best[turn % count])
}

/// How near two ports are, at least 1; `None` if they cannot reach each other.
fn closeness(a: &Offer, b: &Offer) -> Option<u32> {
    if a.link != b.link {
        return None;
    }
    let bits = (u128::from_be_bytes(a.gid) ^ u128::from_be_bytes(b.gid)).leading_zeros();
    match a.link {
        // One subnet has one prefix. Before Ethernet, where a machine has both.
        LinkLayer::InfiniBand => (bits >= 64).then_some(1000),
        LinkLayer::Ethernet if rank(&a.gid) != rank(&b.gid) => None,
        LinkLayer::Ethernet => {
            let network = if is_v4(&a.gid) { NETWORK_BITS_V4 } else { NETWORK_BITS_V6 };
            Some(1 + bits.min(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(address: [u8; 4]) -> [u8; 16] {
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&address);
        gid
    }

    fn v6(first: u16, last: u8) -> [u8; 16] {
        let mut gid = [0; 16];
        gid[..2].copy_from_slice(&first.to_be_bytes());
        gid[15] = last;
        gid
    }

    fn entry(index: u8, gid: [u8; 16], kind: GidType) -> GidEntry {
        GidEntry { index, gid, kind }
    }

    /// As a NIC with one IPv4 and one IPv6 address shows them: every address twice, once for each version.
    fn nic() -> Vec<GidEntry> {
        vec![
            entry(0, v6(0xfe80, 1), GidType::RoceV1),
            entry(1, v6(0xfe80, 1), GidType::RoceV2),
            entry(2, v6(0x2001, 1), GidType::RoceV1),
            entry(3, v6(0x2001, 1), GidType::RoceV2),
            entry(4, v4([10, 0, 0, 1]), GidType::RoceV1),
            entry(5, v4([10, 0, 0, 1]), GidType::RoceV2),
            entry(6, [0; 16], GidType::RoceV2),
        ]
    }

    #[test]
    fn an_ipv4_address_of_version_2_comes_first() {
        let chosen =
            |table: &[GidEntry]| choose_gid(LinkLayer::Ethernet, table, None).map(|entry| entry.index);
        assert_eq!(chosen(&nic()), Ok(5));
        assert_eq!(chosen(&nic()[..4]), Ok(3));
        assert_eq!(chosen(&nic()[..2]), Ok(1));
        assert!(chosen(&nic()[..1]).unwrap_err().contains("version 2"));
        assert!(chosen(&nic()[6..]).is_err());
    }

    #[test]
    fn the_override_is_taken_or_refused() {
        let chosen = |index| choose_gid(LinkLayer::Ethernet, &nic(), Some(index)).map(|entry| entry.index);
        assert_eq!(chosen(3), Ok(3));
        assert!(chosen(4).unwrap_err().contains("not of RoCE version 2"));
        assert!(chosen(6).unwrap_err().contains("nothing at index 6"));
        assert!(chosen(77).is_err());
    }

    #[test]
    fn infiniband_takes_the_first_entry() {
        let table =
            [entry(0, v6(0xfe80, 9), GidType::InfiniBand), entry(1, v6(0xfe80, 8), GidType::InfiniBand)];
        assert_eq!(choose_gid(LinkLayer::InfiniBand, &table, None).unwrap().index, 0);
        assert!(choose_gid(LinkLayer::InfiniBand, &[], None).is_err());
    }

    fn roce(gid: [u8; 16]) -> Offer {
        Offer { gid, link: LinkLayer::Ethernet, mtu: 5, lid: 0 }
    }

    fn infiniband(prefix: u16, lid: u16) -> Offer {
        Offer { gid: v6(prefix, lid as u8), link: LinkLayer::InfiniBand, mtu: 5, lid }
    }

    #[test]
    fn rails_are_matched_and_taken_in_turn() {
        let ours = [roce(v4([10, 1, 0, 9])), roce(v4([10, 2, 0, 9]))];
        let theirs = [roce(v4([10, 2, 0, 200])), roce(v4([10, 1, 0, 3]))];
        let pairs: Vec<_> = (0..4).map(|turn| choose_pair(&ours, &theirs, turn).unwrap()).collect();
        assert_eq!(pairs, [(0, 1), (1, 0), (0, 1), (1, 0)]);
    }

    #[test]
    fn a_routed_network_is_better_than_none() {
        let pair = choose_pair(&[roce(v4([10, 1, 0, 9]))], &[roce(v4([172, 16, 0, 1]))], 3);
        assert_eq!(pair, Some((0, 0)));
    }

    #[test]
    fn different_fabrics_do_not_meet() {
        let v4_port = roce(v4([10, 0, 0, 1]));
        assert_eq!(choose_pair(&[v4_port], &[roce(v6(0x2001, 5))], 0), None);
        assert_eq!(choose_pair(&[v4_port], &[infiniband(0xfe80, 5)], 0), None);
        assert_eq!(choose_pair(&[infiniband(0xfe80, 4)], &[infiniband(0x2001, 5)], 0), None);
        assert_eq!(choose_pair(&[v4_port], &[], 0), None);
        let both = [v4_port, infiniband(0xfe80, 4)];
        assert_eq!(choose_pair(&both, &[roce(v4([10, 0, 0, 2])), infiniband(0xfe80, 5)], 0), Some((1, 1)));
    }
}
