//! The handshake over a socket (docs/protocol.md).

use std::io;
use std::time::Instant;

use super::connect_error::ConnectError;
use super::records::Wire;
use super::stream::Stream;
use crate::wire::authority::Authority;
use crate::wire::credential::{self, ChannelKind, Nonces, Token};
use crate::wire::frame::Malformed;
use crate::wire::handshake::{
    CLIENT_HELLO_BYTES, PROOF_BYTES, SERVER_HELLO_BYTES, ServerHello, VERDICT_BYTES, Verdict,
    decode_client_hello, decode_server_hello, decode_verdict, encode_client_hello, encode_server_hello,
    encode_verdict,
};
use crate::wire::pb::Claims;

/// Show the server who we are, and make sure that it holds the cluster secret; return what protects the frames that
/// follow, which without TLS is nothing.
pub(crate) fn as_client(
    stream: &mut Stream,
    kind: ChannelKind,
    token: &Token,
    deadline: Instant,
) -> Result<Wire, ConnectError> {
    let mut hello = [0; SERVER_HELLO_BYTES];
    stream.receive(&mut hello, deadline).map_err(|error| without_greeting(stream, error))?;
    let (server, wire) = match decode_server_hello(kind, &hello).map_err(|_| ConnectError::NotOurs)? {
        ServerHello::Busy => return Err(ConnectError::Busy),
        ServerHello::Nonce { nonce, wire } => (nonce, Wire::of(wire).ok_or(ConnectError::NotOurs)?),
    };
    if wire != Wire::None && !stream.is_protected() {
        return Err(ConnectError::NotOurs);
    }
    let nonces = Nonces { server, client: credential::nonce()? };
    let proof = token.client_proof(kind, &nonces);
    stream.send(&encode_client_hello(kind, nonces.client, token.claims(), &proof), &[], None, deadline)?;
    let mut verdict = [0; VERDICT_BYTES];
    stream.receive(&mut verdict, deadline)?;
    let proof = match decode_verdict(&verdict) {
        Verdict::Welcome(proof) => proof,
        Verdict::Refused => return Err(ConnectError::Refused),
        Verdict::Busy => return Err(ConnectError::Busy),
    };
    token.check_server(kind, &nonces, &proof).map_err(|_| ConnectError::NotOurs)?;
    Ok(wire)
}

/// A server that wants TLS waits for it without a word; one that got a certificate which it does not want closes.
fn without_greeting(stream: &Stream, error: io::Error) -> ConnectError {
    use io::ErrorKind::{ConnectionReset, InvalidData, TimedOut, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | ConnectionReset | InvalidData if stream.is_protected() => {
            ConnectError::Untrusted(format!(
                "the server closed after the handshake of TLS ({error}): it does not accept this machine's or token's \
                 certificate (`luciola certificate show`), or has ended"
            ))
        }
        TimedOut | UnexpectedEof if !stream.is_protected() && !stream.shares_memory() => {
            let advice = "no greeting: it hangs, or wants TLS, for which the token's file has a certificate \
                (`luciola token create` on a machine of the cluster writes one)";
            io::Error::new(error.kind(), advice).into()
        }
        _ => error.into(),
    }
}

/// Authenticate a peer by its token of this cluster, say what protects the frames that follow, and ask `admit` for a place; return the claims. A peer that is
/// refused receives the reason.
pub(crate) fn as_server(
    stream: &mut Stream,
    kind: ChannelKind,
    authority: &Authority,
    wire: Wire,
    admit: impl FnOnce(&Claims) -> bool,
    deadline: Instant,
) -> io::Result<Claims> {
    assert!(wire == Wire::None || stream.is_protected(), "keys of frames come from TLS");
    let (server, peer) = (credential::nonce()?, stream.peer());
    let hello = ServerHello::Nonce { nonce: server, wire: wire as u8 };
    stream.send(&encode_server_hello(kind, hello), &[], None, deadline)?;
    let mut hello = [0; CLIENT_HELLO_BYTES];
    stream.receive(&mut hello, deadline)?;
    let (client, claims_len) = decode_client_hello(kind, &hello).map_err(invalid)?;
    let mut rest = vec![0; claims_len + PROOF_BYTES];
    stream.receive(&mut rest, deadline)?;
    let (claims, proof) = rest.split_at(claims_len);
    let proof = proof.try_into().expect("split at its length");
    let nonces = Nonces { server, client };
    match authority.verify(kind, &nonces, claims, proof, peer) {
        Ok((claims, _)) if !admit(&claims) => {
            stream.send(&encode_verdict(Verdict::Busy), &[], None, deadline)?;
            Err(io::Error::other("too many connections of clients"))
        }
        Ok((claims, key)) => {
            let proof = credential::server_proof(&key, kind, &nonces);
            stream.send(&encode_verdict(Verdict::Welcome(proof)), &[], None, deadline)?;
            Ok(claims)
        }
        Err(refusal) => {
            stream.send(&encode_verdict(Verdict::Refused), &[], None, deadline)?;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal))
        }
    }
}

pub(crate) fn invalid(malformed: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, malformed)
}
