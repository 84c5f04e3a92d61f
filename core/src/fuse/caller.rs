//! The process behind a request.

use std::fs;

use super::abi::{self, InHeader};
use super::body::Body;

/// The caller of a request. Built by the session for each request.
pub struct Caller {
    /// File-system uid and gid of the calling thread. Zero for write-back from the page cache.
    pub uid: u32,
    pub gid: u32,
    /// Thread id of the caller in the session's pid name space; 0 if it has none there.
    pub pid: u32,
    /// Where the kernel names groups (Linux 6.2) and something is made: the group of the directory, if it is one of the
    /// caller's supplementary groups. `None`: the kernel does not say.
    pub named_group: Option<Option<u32>>,
}

impl Caller {
    /// Those of the caller's supplementary groups that count where it makes something: the one that the kernel names, or
    /// else all that /proc shows, which takes about 20 µs. `None` if the process cannot be seen from here.
    pub fn groups(&self) -> Option<Vec<u32>> {
        match self.named_group {
            Some(named) => Some(named.into_iter().collect()),
            None => self.all_groups(),
        }
    }

    /// The caller's supplementary groups as /proc shows them. `None` if the process cannot be seen from here.
    pub fn all_groups(&self) -> Option<Vec<u32>> {
        if self.pid == 0 {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
        Some(groups.split_whitespace().filter_map(|group| group.parse().ok()).collect())
    }
}

/// The group in the extensions that follow a request.
pub(super) fn named_group(header: &InHeader, body: &[u8]) -> Option<u32> {
    let length = usize::from(header.total_extlen) * abi::EXT_UNIT;
    let mut extensions = Body(&body[body.len().checked_sub(length)?..]);
    while let Ok(extension) = extensions.take::<abi::ExtHeader>() {
        let content = (extension.size as usize).checked_sub(size_of::<abi::ExtHeader>())?;
        let mut content = Body(extensions.bytes(content).ok()?);
        if extension.kind == abi::EXT_GROUPS {
            let count: u32 = content.take().ok()?;
            return if count == 0 { None } else { content.take().ok() };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_this_process_are_those_of_the_kernel() {
        let caller = Caller { uid: 0, gid: 0, pid: std::process::id(), named_group: None };
        let mut expected: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let mut groups = caller.groups().unwrap();
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn groups_of_a_process_that_cannot_be_seen_are_unknown() {
        for pid in [0, u32::MAX] {
            let caller = Caller { uid: 0, gid: 0, pid, named_group: None };
            assert_eq!(caller.groups(), None);
        }
    }

    #[test]
    fn named_group_is_the_one_after_the_request() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let find = |units: u16, extension: &[u32]| {
            let header = InHeader { total_extlen: units, ..Default::default() };
            named_group(&header, &[b"name\0".as_slice(), &words(extension)].concat())
        };
        assert_eq!(find(2, &[16, 32, 1, 5099]), Some(5099));
        assert_eq!(find(4, &[16, 31, 0, 0, 16, 32, 1, 7]), Some(7));
        assert_eq!(find(0, &[16, 32, 1, 5099]), None);
        assert_eq!(find(2, &[16, 32, 0, 0]), None);
        assert_eq!(find(200, &[16, 32, 1, 7]), None);
        assert_eq!(find(2, &[4, 32, 1, 7]), None);
        assert_eq!(find(2, &[4000, 32, 1, 7]), None);
    }
}
