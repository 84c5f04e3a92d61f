//! Whether requests may come over io_uring here, and if not, why.

use std::fs;
use std::io;

use super::ring::Ring;

/// Of the module fuse; Linux 6.14 and later.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// The kernel wants an entry for each processor that there may ever be, each with memory for the largest payload.
const PROCESSORS_MAX: usize = 256;

/// Whether this process may make a ring, as sysctl kernel.io_uring_disabled and filters of system calls decide.
pub fn has_io_uring() -> bool {
    Ring::new().is_ok()
}

/// The number of queues that the kernel will have. Errors: why it is not to be tried, as text for an operator.
pub fn queues() -> Result<usize, String> {
    match fs::read_to_string(PARAMETER) {
        Ok(text) if text.starts_with('Y') => {}
        Ok(_) => return Err(format!("the kernel does not allow it; write Y to {PARAMETER} before mounting")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err("this kernel has no FUSE over io_uring (Linux 6.14)".into());
        }
        Err(error) => return Err(format!("{PARAMETER}: {error}")),
    }
    Ring::new().map_err(|error| format!("io_uring is refused: {error}"))?;
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")
        .map_err(|error| format!("the possible processors are unknown: {error}"))?;
    match processors(text.trim()) {
        Some(count) if count <= PROCESSORS_MAX => Ok(count),
        Some(count) => Err(format!("{count} possible processors; at most {PROCESSORS_MAX} have a ring each")),
        None => Err(format!("the possible processors are {}: their numbers have gaps", text.trim())),
    }
}

/// How many there are in a list like `0-3`, if it begins with 0 and has no gaps: the kernel numbers queues by processors,
/// and has as many.
fn processors(list: &str) -> Option<usize> {
    let (first, last) = list.split_once('-').unwrap_or((list, list));
    let last: usize = last.parse().ok()?;
    (first == "0").then_some(last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_where_their_numbers_have_no_gaps() {
        assert_eq!(processors("0"), Some(1));
        assert_eq!(processors("0-127"), Some(128));
        for list in ["", "1-3", "0-3,8-11", "0,2", "all"] {
            assert_eq!(processors(list), None, "{list}");
        }
    }
}
