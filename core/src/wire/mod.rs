//! Frames, lane messages, protobuf and credentials: bytes in memory, no sockets.
//!
//! `docs/protocol.md` draws every byte of it; a test keeps the drawings and the structs equal.

pub mod authority;
mod bearer;
pub mod credential;
pub mod frame;
pub mod handshake;
pub mod lane;
/// Generated from `proto/` by `make proto`. Do not edit.
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic)]
pub mod pb;
mod raw;
pub mod rdma;
pub mod tls;
pub mod verb;
pub mod verbs;

#[cfg(test)]
mod drawings;
