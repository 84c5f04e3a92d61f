//! Serves the fakes of `fake.rs` to the suite that asks them and the metadata service the same (`tests/unit/meta`).
//!
//! A request is a number, a length (little-endian, 32 bits each) and so many bytes; the number is a method's, or one of
//! those below. A reply has 0 or, with an `Error`, 1 in place of the number.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use prost::Message;

use super::fake::{FakeChunks, FakeMeta};
use crate::error::Result;
use crate::wire::pb::{self, Method};

/// Everything is as at the start.
const START: u32 = 0;
/// A content and an offset (64 bits each), and bytes that a client writes there.
const WRITE: u32 = 1 << 16;
/// A content, whose bytes are the reply.
const READ: u32 = WRITE + 1;

struct Fakes {
    chunks: Arc<FakeChunks>,
    meta: Arc<FakeMeta>,
}

impl Fakes {
    fn new() -> Fakes {
        let chunks = Arc::new(FakeChunks::default());
        Fakes { meta: FakeMeta::new(chunks.clone()), chunks }
    }

    fn answer(&mut self, number: u32, request: &[u8]) -> Result<Vec<u8>> {
        let word = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        match number {
            START => *self = Fakes::new(),
            WRITE => self.chunks.write(word(0), word(8), &request[16..]),
            READ => return Ok(self.chunks.content(word(0))),
            method => {
                let method = Method::try_from(method as i32).expect("the suite knows the methods");
                return self.meta.carry_out(method, request);
            }
        }
        Ok(Vec::new())
    }
}

fn read_request(stream: &mut UnixStream) -> io::Result<(u32, Vec<u8>)> {
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let mut request = vec![0; word(4) as usize];
    stream.read_exact(&mut request)?;
    Ok((word(0), request))
}

#[test]
#[ignore = "serves the suite of tests/unit/meta/test_contract.py, which starts it"]
fn serve_the_fakes() {
    let socket = std::env::var_os("LUCIOLA_FAKES").expect("LUCIOLA_FAKES names the suite's socket");
    let mut stream = UnixStream::connect(socket).expect("the suite listens");
    let mut fakes = Fakes::new();
    while let Ok((number, request)) = read_request(&mut stream) {
        let (failed, reply) = match fakes.answer(number, &request) {
            Ok(reply) => (0u32, reply),
            Err(error) => (1, pb::Error::from(&error).encode_to_vec()),
        };
        let head = [failed, reply.len() as u32].map(u32::to_le_bytes).concat();
        stream.write_all(&[head, reply].concat()).expect("the suite waits for the reply");
    }
}
