//! What happens to an open file: each event is a type, and its transition changes the machine.

pub(super) mod appending;
pub(super) mod attributes;
pub(super) mod direct;
pub(super) mod exclusive;
pub(super) mod fsync;
pub(super) mod metadata_sync;
pub(super) mod sessions;
pub(super) mod write_back;
pub(super) mod writing;
