//! Entries of the index in the order of keys, or against it, put together by chunk.

use fjall::UserValue;

use crate::types::{ChunkKey, Status};

/// A key and its value.
#[derive(Debug)]
pub struct IndexEntry {
    pub key: ChunkKey,
    pub is_delta: bool,
    pub value: UserValue,
}

/// All that stands in the index for one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkValues {
    pub key: ChunkKey,
    pub base: Option<UserValue>,
    pub delta: Option<UserValue>,
}

impl ChunkValues {
    fn of(entry: IndexEntry) -> ChunkValues {
        let IndexEntry { key, is_delta, value } = entry;
        match is_delta {
            true => ChunkValues { key, base: None, delta: Some(value) },
            false => ChunkValues { key, base: Some(value), delta: None },
        }
    }

    fn add(&mut self, entry: IndexEntry) {
        let place = if entry.is_delta { &mut self.delta } else { &mut self.base };
        assert!(place.replace(entry.value).is_none(), "{:?}: a key is there once", entry.key);
    }
}

/// The chunks of `entries`, of which those of one chunk follow each other.
pub struct Entries<I> {
    entries: I,
    /// Of the next chunk.
    next: Option<Result<IndexEntry, Status>>,
}

impl<I: Iterator<Item = Result<IndexEntry, Status>>> Entries<I> {
    pub fn new(mut entries: I) -> Entries<I> {
        let next = entries.next();
        Entries { entries, next }
    }
}

impl<I: Iterator<Item = Result<IndexEntry, Status>>> Iterator for Entries<I> {
    type Item = Result<ChunkValues, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut values = match self.next.take()? {
            Ok(entry) => ChunkValues::of(entry),
            Err(status) => {
                self.next = self.entries.next();
                return Some(Err(status));
            }
        };
        self.next = self.entries.next();
        if let Some(Ok(entry)) =
            self.next.take_if(|next| next.as_ref().is_ok_and(|next| next.key == values.key))
        {
            values.add(entry);
            self.next = self.entries.next();
        }
        Some(Ok(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ChainId, ChunkId, ContentId};

    fn key(index: u32) -> ChunkKey {
        ChunkKey { chain: ChainId(1), chunk: ChunkId { content: ContentId(1), index } }
    }

    fn entry(index: u32, is_delta: bool) -> Result<IndexEntry, Status> {
        Ok(IndexEntry { key: key(index), is_delta, value: vec![index as u8, u8::from(is_delta)].into() })
    }

    fn chunk(index: u32, has_base: bool, has_delta: bool) -> Result<ChunkValues, Status> {
        let base = has_base.then(|| vec![index as u8, 0].into());
        Ok(ChunkValues { key: key(index), base, delta: has_delta.then(|| vec![index as u8, 1].into()) })
    }

    #[test]
    fn a_delta_joins_its_base_in_either_direction() {
        let entries = || {
            let kinds = [(1, false), (2, false), (2, true), (3, true), (4, false), (5, false), (5, true)];
            kinds.map(|(index, is_delta)| entry(index, is_delta)).into_iter()
        };
        let chunks = [
            chunk(1, true, false),
            chunk(2, true, true),
            chunk(3, false, true),
            chunk(4, true, false),
            chunk(5, true, true),
        ];
        assert!(Entries::new(entries()).eq(chunks.clone()));
        assert!(Entries::new(entries().rev()).eq(chunks.into_iter().rev()));
    }

    #[test]
    fn an_error_stands_where_it_happened_and_loses_nothing() {
        let entries = [entry(1, false), Err(Status::Io), entry(1, true), entry(2, false)];
        let chunks = [chunk(1, true, false), Err(Status::Io), chunk(1, false, true), chunk(2, true, false)];
        assert!(Entries::new(entries.into_iter()).eq(chunks));
    }
}
