//! Failing disks, for tests: the next calls of a kind fail with a chosen error. And a hook within a round of `sync`.

use std::io;
use std::sync::atomic::AtomicUsize;

use crate::lock::Mutex;

use crate::types::Status;

#[derive(Default)]
pub struct Faults {
    pub read: Mutex<Fault>,
    pub write: Mutex<Fault>,
    pub sync: Mutex<Fault>,
    pub index: Mutex<Fault>,
    /// Called at each moment of a round, outside of all locks.
    pub hook: Mutex<Option<Hook>>,
    /// Bytes of which write-back has begun before a sync.
    pub write_back_bytes: AtomicUsize,
}

pub type Hook = Box<dyn FnMut(Moment) + Send>;

/// How far a round of `sync` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It has begun, and nothing is flushed.
    Begun,
    /// The block files are flushed, and the index does not say so.
    Flushed,
    /// The index says so, and is not flushed.
    Recorded,
}

/// After `skip` calls that succeed, `count` calls fail with `errno`.
#[derive(Clone, Copy, Default)]
pub struct Fault {
    pub skip: u32,
    pub count: u32,
    pub errno: i32,
}

impl Faults {
    pub fn reach(&self, moment: Moment) {
        let hook = self.hook.lock().take();
        if let Some(mut hook) = hook {
            hook(moment);
            self.hook.lock().get_or_insert(hook);
        }
    }

    pub fn on_read(&self) -> io::Result<()> {
        strike(&self.read)
    }

    pub fn on_write(&self) -> io::Result<()> {
        strike(&self.write)
    }

    pub fn on_sync(&self) -> io::Result<()> {
        strike(&self.sync)
    }

    /// As the index reports its own errors.
    pub fn on_index(&self) -> Result<(), Status> {
        strike(&self.index).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => Status::NoSpace,
            _ => Status::Io,
        })
    }
}

fn strike(fault: &Mutex<Fault>) -> io::Result<()> {
    let mut fault = fault.lock();
    if fault.count == 0 {
        return Ok(());
    }
    if fault.skip > 0 {
        fault.skip -= 1;
        return Ok(());
    }
    fault.count -= 1;
    Err(io::Error::from_raw_os_error(fault.errno))
}

/// For tests of those who use an engine.
impl super::Engine {
    /// Take the block files out of the page cache. False where they are nowhere else.
    pub(crate) fn drop_cached(&self) -> bool {
        self.sync().unwrap();
        self.core.segments.drop_cached()
    }

    pub(crate) fn fail_next(&self, which: &str, count: u32, errno: rustix::io::Errno) {
        let faults = &self.core.segments.faults;
        let fault = match which {
            "read" => &faults.read,
            "write" => &faults.write,
            "sync" => &faults.sync,
            "index" => &faults.index,
            other => panic!("no such fault: {other}"),
        };
        *fault.lock() = Fault { skip: 0, count, errno: errno.raw_os_error() };
    }
}
