//! How a session is mounted and served.

use std::path::PathBuf;
use std::time::Duration;

/// Whether requests come over io_uring (`uring`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoUring {
    /// Where the kernel allows it, else from /dev/fuse.
    Auto,
    /// A mount without is an error.
    Always,
    Never,
}

impl IoUring {
    /// The choice of that name in a configuration.
    pub fn from_name(name: &str) -> Option<IoUring> {
        match name {
            "auto" => Some(IoUring::Auto),
            "always" => Some(IoUring::Always),
            "never" => Some(IoUring::Never),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// First column of mount(8) and df(1).
    pub source: String,
    /// Other users than the one who mounts may use it; access is by mode bits in either case.
    pub allow_other: bool,
    pub read_only: bool,
    /// No page cache: every read and write reaches the file system.
    pub bypass_cache: bool,
    /// Most requests worked on at once. Threads are started as they are needed.
    pub threads_max: usize,
    /// Largest read or write. A power of two between `REQUEST_BYTES_MIN` and `REQUEST_BYTES_MAX`.
    pub request_bytes: usize,
    /// Most write payloads that the file system keeps at one time; beyond, writers wait.
    pub buffers_kept_max: usize,
    /// How far the kernel reads ahead of a sequential reader; beyond 128 KiB only where sysfs may be written.
    pub read_ahead_bytes: usize,
    /// Most requests without a waiting program (read-ahead, write-back, release) in flight.
    pub background_max: u16,
    /// How long the kernel believes that a name is absent; zero asks every time.
    pub negative_ttl: Duration,
    /// After an unmount, how long operations that are under way, and programs that still hold files open after a
    /// lazy unmount, are waited for before the connection is cut.
    pub grace: Duration,
    pub io_uring: IoUring,
}

/// What Linux allows without a change of sysctl fs.fuse.max_pages_limit.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What the kernel reads ahead at least, in one request.
pub const REQUEST_BYTES_MIN: usize = 128 << 10;
const _: () = assert!(REQUEST_BYTES_MIN.is_power_of_two() && REQUEST_BYTES_MAX.is_power_of_two());
const _: () = assert!(REQUEST_BYTES_MIN <= REQUEST_BYTES_MAX);

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            mountpoint: PathBuf::new(),
            source: "luciola".into(),
            allow_other: false,
            read_only: false,
            bypass_cache: false,
            threads_max: 16,
            request_bytes: REQUEST_BYTES_MAX,
            buffers_kept_max: 112,
            read_ahead_bytes: 4 << 20,
            background_max: 64,
            negative_ttl: Duration::ZERO,
            grace: Duration::from_secs(10),
            io_uring: IoUring::Never,
        }
    }
}
