//! The process behind a request.

use std::fs;

/// Who asks. Built by the session for each request.
pub struct Caller {
    /// File-system uid and gid of the calling thread. Zero for write-back from the page cache.
    pub uid: u32,
    pub gid: u32,
    /// Thread id of the caller in the session's pid name space; 0 if it has none there.
    pub pid: u32,
}

/// Most supplementary groups that are passed on: what NFS servers take, far above what people have.
pub const GROUPS_MAX: usize = 64;

impl Caller {
    /// The caller's supplementary groups as /proc tells them: about 20 µs, so ask only where they matter. Empty if
    /// the process has gone.
    pub fn groups(&self) -> Vec<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        groups.split_whitespace().filter_map(|group| group.parse().ok()).take(GROUPS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_this_process_are_those_of_the_kernel() {
        let caller = Caller { uid: 0, gid: 0, pid: std::process::id() };
        let mut expected: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let mut groups = caller.groups();
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn a_process_that_is_gone_has_no_groups() {
        let caller = Caller { uid: 0, gid: 0, pid: u32::MAX };
        assert!(caller.groups().is_empty());
    }
}
