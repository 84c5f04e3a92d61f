//! docs/protocol.md draws every struct that travels; this keeps the drawings and the structs equal.

use std::mem::{offset_of, size_of};

use super::handshake::*;
use super::lane::*;
use super::raw::*;

/// Offset, size and name of a field.
type Field = (usize, usize, String);

struct Drawn {
    name: &'static str,
    bytes: usize,
    fields: Vec<Field>,
}

macro_rules! drawn {
    ($name:literal, $type:ident { $($field:ident),* }) => {{
        fn size<T>(_: fn(&$type) -> &T) -> usize {
            size_of::<T>()
        }
        Drawn {
            name: $name,
            bytes: size_of::<$type>(),
            fields: vec![$((offset_of!($type, $field), size(|raw| &raw.$field), stringify!($field).to_owned())),*],
        }
    }};
}

fn structs() -> Vec<Drawn> {
    vec![
        drawn!("server hello", RawServerHello { magic, kind, version, busy, wire, nonce_s }),
        drawn!("client hello", RawClientHello { magic, kind, version, claims_len, nonce_c }),
        drawn!("verdict", RawVerdict { status, reserved, proof_s }),
        drawn!("lane header", RawLaneHeader { length, method, flags, id }),
        drawn!(
            "header",
            RawHeader {
                magic,
                version,
                kind,
                count,
                payload_bytes,
                deadline_ms,
                id,
                clock_ms,
                table_crc,
                header_crc
            }
        ),
        drawn!(
            "read",
            RawRead {
                chain,
                slot,
                reserved,
                chain_version,
                content,
                index,
                offset,
                length,
                reserved_2,
                region_offset
            }
        ),
        drawn!("read result", RawReadResult { status, flags, length, version, crc, reserved }),
        drawn!(
            "update",
            RawUpdate {
                chain,
                slot,
                op,
                chain_version,
                content,
                index,
                offset,
                length,
                crc,
                client,
                sequence,
                version,
                region_offset,
                flags,
                writers,
                decided,
                settled
            }
        ),
        drawn!("update result", RawUpdateResult { status, reserved, length, version }),
        drawn!("sync", RawSync { chain, reserved, chain_version }),
        drawn!("sync result", RawSyncResult { status, reserved }),
        drawn!("register", RawRegister { slot, reserved, region, length }),
        drawn!("offer", RawOffer { gid, link, mtu, lid, reserved }),
        drawn!(
            "rdma end",
            RawEnd { status, port, qpn, psn, lid, link, mtu, gid, window, reads, flags, reserved }
        ),
        drawn!("connected", RawConnected { status, grants, reserved }),
    ]
}

/// The drawings of the page in its order: names in backquotes with a number of bytes announce them.
fn drawings(page: &str) -> Vec<(String, usize, Vec<Field>)> {
    let mut announced: Vec<(String, usize)> = Vec::new();
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let parts: Vec<&str> = line.split('`').collect();
        for (name, after) in parts.iter().skip(1).step_by(2).zip(parts.iter().skip(2).step_by(2)) {
            let number = after.trim_start_matches(", ").split_once(" bytes");
            if let Some(bytes) = number.and_then(|(number, _)| number.parse().ok()) {
                announced.push(((*name).to_owned(), bytes));
            }
        }
        if line.starts_with("offset  size  field") {
            let rows = lines.by_ref().take_while(|row| !row.starts_with("```"));
            let fields = rows.map(|row| {
                let mut words = row.split_whitespace();
                let mut number = || words.next().expect("a column").parse().expect("a number");
                (number(), number(), words.next().expect("a name").to_owned())
            });
            let (name, bytes) = announced.remove(0);
            found.push((name, bytes, fields.collect()));
        }
    }
    found
}

#[test]
fn the_protocol_page_draws_what_travels() {
    let drawings = drawings(include_str!("../../../docs/protocol.md"));
    let structs = structs();
    let names: Vec<&str> = drawings.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, structs.iter().map(|drawn| drawn.name).collect::<Vec<_>>());
    for ((name, bytes, fields), drawn) in drawings.iter().zip(&structs) {
        assert_eq!(*bytes, drawn.bytes, "{name}");
        assert_eq!(*fields, drawn.fields, "{name}");
        let end = fields.iter().fold(0, |at, (offset, size, field)| {
            assert_eq!(*offset, at, "{name}.{field} begins where the field before it ends");
            offset + size
        });
        assert_eq!(end, *bytes, "{name} is drawn to its end");
    }
}
