//! Frames, lane messages, protobuf and credentials: bytes in memory, no sockets.

pub mod credential;
/// Generated from `proto/` by `make proto`. Do not edit.
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic)]
pub mod pb;
