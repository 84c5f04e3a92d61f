//! INIT: what kernel and session agree on before anything else.

use std::io;

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{self, init};
use super::options::SessionOptions;

/// What we use of what a kernel offers; docs/decisions/0003-fuse.md says what each is worth.
///
/// Not used: WRITEBACK_CACHE (our own coalescing reports errors at fsync and close, and lengths stay ours),
/// AUTO_INVAL_DATA (it drops all pages of a file whose time of change has moved, be it by an own write; without it the
/// kernel drops them at another length only, and `FileSystem::outdates_pages` says when else), POSIX_ACL, NO_OPEN_SUPPORT
/// (close-to-open needs the open), POSIX_LOCKS and FLOCK_LOCKS (the kernel keeps locks among the processes of this mount),
/// SPLICE_* (payloads go to registered memory, not through pipes).
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::EXPORT_SUPPORT
    | init::BIG_WRITES
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2
    | init::INIT_EXT
    | init::CREATE_SUPP_GROUP
    | init::HAS_EXPIRE_ONLY
    | init::DIRECT_IO_ALLOW_MMAP;

/// Result of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    pub minor: u32,
    /// Capabilities in use: bits of `abi::init`.
    pub flags: u64,
    pub request_bytes: usize,
}

impl Agreement {
    /// Whether requests wait for the rings of all processors.
    pub fn is_over_io_uring(&self) -> bool {
        self.flags & init::OVER_IO_URING != 0
    }

    /// Whether requests that make something name the caller's group, where it is a supplementary one that counts.
    pub fn names_groups(&self) -> bool {
        self.flags & init::CREATE_SUPP_GROUP != 0
    }
}

/// What to answer INIT with; `rings`: whether io_uring is wanted. Kernels with another major version send INIT again after
/// an answer with ours; none exists.
pub fn answer(body: &[u8], options: &SessionOptions, rings: bool) -> io::Result<(abi::InitOut, Agreement)> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let (init, rest) =
        abi::InitIn::read_from_prefix(body).map_err(|_| invalid("INIT is too short".into()))?;
    if init.major != abi::MAJOR || init.minor < abi::MINOR_MIN {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "the kernel speaks FUSE {}.{}; {}.{} or later is needed (Linux 5.4)",
                init.major,
                init.minor,
                abi::MAJOR,
                abi::MINOR_MIN
            ),
        ));
    }
    let extended = u64::from(init.flags) & init::INIT_EXT != 0;
    let high = if extended { u32::read_from_prefix(rest).map_or(0, |(high, _)| high) } else { 0 };
    let offered = u64::from(init.flags) | u64::from(high) << 32;
    let flags = offered & (WANTED | if rings { init::OVER_IO_URING } else { 0 });
    let page_bytes = rustix::param::page_size();
    let request_bytes = options.request_bytes;
    let out = abi::InitOut {
        major: abi::MAJOR,
        minor: init.minor.min(abi::MINOR),
        max_readahead: init.max_readahead.max(options.read_ahead_bytes as u32),
        flags: flags as u32,
        max_background: options.background_max,
        congestion_threshold: options.background_max - options.background_max / 4,
        max_write: request_bytes as u32,
        time_gran: 1,
        max_pages: (request_bytes / page_bytes) as u16,
        flags2: (flags >> 32) as u32,
        ..Default::default()
    };
    Ok((out, Agreement { minor: out.minor, flags, request_bytes }))
}

/// The answer as bytes.
pub fn bytes(out: &abi::InitOut) -> &[u8] {
    out.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(major: u32, minor: u32, flags: u64) -> Vec<u8> {
        let init = abi::InitIn { major, minor, max_readahead: 131_072, flags: flags as u32 };
        let mut body = init.as_bytes().to_vec();
        body.extend_from_slice(&((flags >> 32) as u32).to_ne_bytes());
        body.extend_from_slice(&[0; 44]);
        body
    }

    #[test]
    fn only_what_the_kernel_offers_is_used() {
        let offered =
            init::INIT_EXT | init::ASYNC_READ | init::DIRECT_IO_ALLOW_MMAP | init::OVER_IO_URING | 1 << 42;
        let (out, agreement) = answer(&body(7, 44, offered), &SessionOptions::default(), false).unwrap();
        assert_eq!(agreement.flags, init::INIT_EXT | init::ASYNC_READ | init::DIRECT_IO_ALLOW_MMAP);
        assert_eq!(u64::from(out.flags2), init::DIRECT_IO_ALLOW_MMAP >> 32);
        assert_eq!(out.minor, abi::MINOR);
        assert_eq!(usize::from(out.max_pages) * rustix::param::page_size(), 1 << 20);
    }

    #[test]
    fn the_second_word_counts_only_with_its_flag() {
        let offered = init::ASYNC_READ | init::DIRECT_IO_ALLOW_MMAP;
        let (_, agreement) = answer(&body(7, 31, offered), &SessionOptions::default(), false).unwrap();
        assert_eq!(agreement.flags, init::ASYNC_READ);
    }

    #[test]
    fn rings_are_used_where_they_are_wanted_and_offered() {
        for (offered, wanted) in [(false, false), (false, true), (true, false), (true, true)] {
            let flags = init::INIT_EXT | if offered { init::OVER_IO_URING } else { 0 };
            let (out, agreement) = answer(&body(7, 44, flags), &SessionOptions::default(), wanted).unwrap();
            assert_eq!(agreement.is_over_io_uring(), offered && wanted);
            assert_eq!(u64::from(out.flags2) == init::OVER_IO_URING >> 32, offered && wanted);
        }
    }

    #[test]
    fn kernels_that_are_too_old_are_refused_with_their_version() {
        let error = answer(&body(7, 23, 0), &SessionOptions::default(), false).unwrap_err();
        assert!(error.to_string().contains("7.23"), "{error}");
        assert!(answer(&[1, 2, 3], &SessionOptions::default(), false).is_err());
    }
}
