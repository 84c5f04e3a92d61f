//! Frames, lane messages, protobuf and credentials: bytes in memory, no sockets.

/// Generated from `proto/` by `make proto`. Do not edit.
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic)]
pub mod pb;
