//! Sessions against the real kernel: mounting, unmounting in every way, errors, limits. Needs root and /dev/fuse; where
//! they are missing the tests say so and pass, as `tests/posix` does. `fuse_session_uring.rs` has the same over io_uring.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use luciola_core::buffer::Placement;
use luciola_core::fuse::*;
use rustix::io::Errno;

#[path = "../examples/memory_mount/content.rs"]
mod content;
#[path = "../examples/memory_mount/file_system.rs"]
mod file_system;
#[path = "rings/mod.rs"]
mod rings;

use file_system::MemoryFileSystem;

/// What this program tests: the device, or as `fuse_session_uring` io_uring.
const RINGS_ARE_USED: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"fuse_session_uring");

/// A mounted session that runs in a thread.
struct Running {
    directory: tempfile::TempDir,
    fs: Arc<MemoryFileSystem>,
    handle: SessionHandle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can && (!RINGS_ARE_USED || rings::can_be_allowed(has_io_uring()))
}

/// Mount over what this program tests. A session that cannot is an error, here or of its `run`.
fn mount(fs: Arc<dyn FileSystem>, mut options: SessionOptions) -> std::io::Result<Session> {
    if !RINGS_ARE_USED {
        options.io_uring = IoUring::Never;
        return Session::mount(fs, options);
    }
    options.io_uring = IoUring::Always;
    rings::with_rings_allowed(|| Session::mount(fs, options))
}

impl Running {
    fn start(change: impl FnOnce(&mut SessionOptions)) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let fs = Arc::new(MemoryFileSystem::default());
        let mut options = SessionOptions {
            mountpoint: directory.path().to_owned(),
            grace: Duration::from_millis(500),
            ..Default::default()
        };
        change(&mut options);
        let session = mount(fs.clone(), options).unwrap();
        let handle = session.handle();
        let thread = Some(std::thread::spawn(move || session.run()));
        Running { directory, fs, handle, thread }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn join(&mut self) -> std::io::Result<()> {
        self.thread.take().expect("joined once").join().unwrap()
    }

    fn is_mounted(&self) -> bool {
        let place = self.directory.path().to_str().unwrap();
        fs::read_to_string("/proc/self/mountinfo").unwrap().lines().any(|line| line.contains(place))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.abort().unwrap();
            thread.join().unwrap().unwrap();
        }
        assert!(!self.is_mounted());
    }
}

#[test]
fn a_file_is_written_and_read_back() {
    if !can_mount() {
        return;
    }
    let mount = Running::start(|_| {});
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    fs::write(mount.path("file"), &bytes).unwrap();
    assert!(fs::read(mount.path("file")).unwrap() == bytes);
    let file = OpenOptions::new().read(true).write(true).open(mount.path("file")).unwrap();
    file.write_all_at(b"hello", 1_999_998).unwrap();
    let mut part = [0; 9];
    file.read_exact_at(&mut part, 1_999_996).unwrap();
    assert_eq!(&part[2..7], b"hello");
    assert_eq!(part[..2], bytes[1_999_996..1_999_998]);
}

#[test]
fn unmounting_by_the_handle_ends_the_session_and_destroys_once() {
    if !can_mount() {
        return;
    }
    let mut mount = Running::start(|_| {});
    fs::write(mount.path("file"), b"x").unwrap();
    mount.handle.unmount().unwrap();
    mount.join().unwrap();
    assert!(mount.fs.destroyed.load(Ordering::SeqCst));
    assert!(!mount.is_mounted());
    mount.handle.unmount().unwrap();
}

#[test]
fn unmounting_from_outside_ends_the_session() {
    if !can_mount() {
        return;
    }
    for command in [&["umount"][..], &["fusermount3", "-u"], &["umount", "-l"]] {
        let mut mount = Running::start(|_| {});
        fs::write(mount.path("file"), b"x").unwrap();
        let status =
            Command::new(command[0]).args(&command[1..]).arg(mount.directory.path()).status().unwrap();
        assert!(status.success(), "{command:?}");
        mount.join().unwrap();
        assert!(mount.fs.destroyed.load(Ordering::SeqCst));
    }
}

#[test]
fn a_busy_mount_is_given_its_grace_and_then_cut_off() {
    if !can_mount() {
        return;
    }
    // Under load the grace may be over before the file is written.
    let served_within = |grace| {
        let mut mount = Running::start(|options| options.grace = grace);
        let mut file = File::create(mount.path("file")).unwrap();
        let began = Instant::now();
        let served = std::thread::scope(|scope| {
            let unmounting = scope.spawn(|| mount.handle.unmount());
            std::thread::sleep(Duration::from_millis(100));
            let served = file.write_all(b"still served").is_ok();
            unmounting.join().unwrap().unwrap();
            served
        });
        assert!(began.elapsed() >= grace);
        mount.join().unwrap();
        let error = file.write_all(b"too late").unwrap_err();
        assert!(matches!(
            Errno::from_io_error(&error),
            Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO)
        ));
        served
    };
    assert!([500, 5000, 50_000].map(Duration::from_millis).into_iter().any(served_within));
}

#[test]
fn a_busy_mount_ends_as_soon_as_its_last_user_does() {
    if !can_mount() {
        return;
    }
    // Far beyond what a loaded machine takes.
    let grace = Duration::from_secs(600);
    let mount = Running::start(|options| options.grace = grace);
    let mut file = File::create(mount.path("file")).unwrap();
    let (ended, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || ended.send(mount.handle.unmount().map(|()| mount)).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        file.write_all(b"last words").unwrap();
        drop(file);
        let mut mount = wait.recv_timeout(grace / 5).expect("it ends before its grace does").unwrap();
        mount.join().unwrap();
    });
}

#[test]
fn a_session_that_never_ran_leaves_no_mount() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let fs = Arc::new(MemoryFileSystem::default());
    let options = SessionOptions { mountpoint: directory.path().to_owned(), ..Default::default() };
    drop(mount(fs.clone(), options).unwrap());
    assert!(fs.destroyed.load(Ordering::SeqCst));
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
}

#[test]
fn a_session_that_has_ended_leaves_its_successor_alone() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let options = SessionOptions { mountpoint: directory.path().to_owned(), ..Default::default() };
    let mount = || mount(Arc::new(MemoryFileSystem::default()), options.clone()).unwrap();
    let first = mount();
    let thread = std::thread::spawn(move || {
        first.run().unwrap();
        first
    });
    assert!(Command::new("umount").arg(directory.path()).status().unwrap().success());
    let first = thread.join().unwrap();
    // The kernel gives it the number that the first one had.
    let second = mount();
    let handle = second.handle();
    let thread = std::thread::spawn(move || second.run());
    first.handle().unmount().unwrap();
    first.handle().abort().unwrap();
    drop(first);
    fs::write(directory.path().join("file"), b"x").unwrap();
    assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"x");
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_connection_that_is_cut_leaves_no_dead_mount() {
    if !can_mount() {
        return;
    }
    let mut mount = Running::start(|_| {});
    fs::write(mount.path("file"), b"x").unwrap();
    mount.handle.abort().unwrap();
    mount.join().unwrap();
    assert!(!mount.is_mounted());
    assert!(fs::read_dir(mount.directory.path()).unwrap().next().is_none());
}

#[test]
fn a_mountpoint_that_is_no_directory_is_refused() {
    if !can_mount() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    for mountpoint in [file.path().to_owned(), "/no/such/directory".into()] {
        let options = SessionOptions { mountpoint, ..Default::default() };
        let fs = Arc::new(MemoryFileSystem::default());
        let error = mount(fs, options).err().expect("refused");
        assert!(
            matches!(Errno::from_io_error(&error), None | Some(Errno::NOTDIR | Errno::NOENT)),
            "{error:?}"
        );
    }
}

#[test]
fn a_read_only_mount_refuses_writers() {
    if !can_mount() {
        return;
    }
    let mount = Running::start(|options| options.read_only = true);
    let error = fs::write(mount.path("file"), b"x").unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::ROFS));
}

#[test]
fn names_survive_every_operation_of_a_directory() {
    if !can_mount() {
        return;
    }
    let mount = Running::start(|_| {});
    for number in 0..2000 {
        File::create(mount.path(&format!("file-{number:04}"))).unwrap();
    }
    // Removing what was listed while listing skips nothing.
    let mut seen = 0;
    for entry in fs::read_dir(mount.directory.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 2000);
    assert_eq!(fs::read_dir(mount.directory.path()).unwrap().count(), 0);
}

#[test]
fn more_readers_than_threads_all_get_their_bytes() {
    if !can_mount() {
        return;
    }
    let mount = Running::start(|options| options.threads_max = 2);
    let bytes: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 4096) as u8).collect();
    fs::write(mount.path("file"), &bytes).unwrap();
    std::thread::scope(|scope| {
        for reader in 0..12_u64 {
            let (path, bytes) = (mount.path("file"), &bytes);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut part = vec![0; 100_000];
                for round in 0..50 {
                    let offset = (reader * 601_001 + round * 77_777) % (8_000_000 - 100_000);
                    file.read_exact_at(&mut part, offset).unwrap();
                    assert!(part == bytes[offset as usize..][..100_000]);
                }
            });
        }
    });
}

#[test]
fn sparse_files_report_their_holes() {
    if !can_mount() {
        return;
    }
    let mount = Running::start(|_| {});
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).open(mount.path("sparse")).unwrap();
    file.write_all_at(b"end", 5 << 20).unwrap();
    let seek = |place| rustix::fs::seek(&file, place).unwrap();
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), 0);
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), 5 << 20);
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    let mut zeros = [1; 4096];
    file.read_exact(&mut zeros).unwrap();
    assert!(zeros.iter().all(|&byte| byte == 0));
}

/// Forwards to the memory file system, except for what a test plants.
struct Planted {
    inner: MemoryFileSystem,
    /// Calls that hang or have hung: look-ups of names that begin with "slow", opens, reads, writes.
    hanging: AtomicUsize,
    /// Files opened, and those of them that are not released.
    opened: AtomicUsize,
    open: AtomicUsize,
    opens_hang: AtomicBool,
    writes_hang: AtomicBool,
    written: AtomicUsize,
    read: AtomicUsize,
    /// Of this inode.
    reads_hang: AtomicU64,
    release: AtomicBool,
    /// Payloads of writes, while they are kept.
    kept: Mutex<Option<Vec<Placement>>>,
}

impl Planted {
    fn note_open(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.opened.fetch_add(1, Ordering::SeqCst);
    }
}

#[rustfmt::skip]
impl FileSystem for Planted {
    fn lookup(&self, caller: &Caller, parent: u64, name: &[u8]) -> Reply<Entry> {
        match name {
            b"panic" => panic!("planted"),
            _ if name.starts_with(b"slow") => {
                self.hanging.fetch_add(1, Ordering::SeqCst);
                while !self.release.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::NOENT)
            }
            _ => self.inner.lookup(caller, parent, name),
        }
    }
    fn forget(&self, inode: u64, count: u64) { self.inner.forget(inode, count) }
    fn getattr(&self, c: &Caller, inode: u64, handle: Option<u64>) -> Reply<AttributeReply> { self.inner.getattr(c, inode, handle) }
    fn setattr(&self, c: &Caller, inode: u64, change: &SetAttributes) -> Reply<AttributeReply> { self.inner.setattr(c, inode, change) }
    fn readlink(&self, c: &Caller, inode: u64) -> Reply<Vec<u8>> { self.inner.readlink(c, inode) }
    fn mknod(&self, c: &Caller, parent: u64, name: &[u8], kind: FileKind, permissions: u32, device: u32) -> Reply<Entry> { self.inner.mknod(c, parent, name, kind, permissions, device) }
    fn mkdir(&self, c: &Caller, parent: u64, name: &[u8], permissions: u32) -> Reply<Entry> { self.inner.mkdir(c, parent, name, permissions) }
    fn unlink(&self, c: &Caller, parent: u64, name: &[u8]) -> Reply<()> { self.inner.unlink(c, parent, name) }
    fn rmdir(&self, c: &Caller, parent: u64, name: &[u8]) -> Reply<()> { self.inner.rmdir(c, parent, name) }
    fn symlink(&self, c: &Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Entry> { self.inner.symlink(c, parent, name, target) }
    fn rename(&self, c: &Caller, source: (u64, &[u8]), target: (u64, &[u8]), mode: RenameMode) -> Reply<()> { self.inner.rename(c, source, target, mode) }
    fn link(&self, c: &Caller, inode: u64, parent: u64, name: &[u8]) -> Reply<Entry> { self.inner.link(c, inode, parent, name) }
    fn open(&self, c: &Caller, inode: u64, flags: i32) -> Reply<Opened> {
        if self.opens_hang.load(Ordering::SeqCst) {
            self.hanging.fetch_add(1, Ordering::SeqCst);
            while !self.release.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.note_open();
        self.inner.open(c, inode, flags)
    }
    fn create(&self, c: &Caller, parent: u64, name: &[u8], permissions: u32, flags: i32) -> Reply<(Entry, Opened)> {
        self.note_open();
        self.inner.create(c, parent, name, permissions, flags)
    }
    fn read(&self, c: &Caller, request: &ReadRequest, into: &Placement) -> Reply<ReadOutcome> {
        if self.reads_hang.load(Ordering::SeqCst) == request.inode {
            self.hanging.fetch_add(1, Ordering::SeqCst);
            while !self.release.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let result = self.inner.read(c, request, into);
        self.read.fetch_add(1, Ordering::SeqCst);
        result
    }
    fn write(&self, c: &Caller, request: &WriteRequest, payload: Placement) -> Reply<usize> {
        if self.writes_hang.load(Ordering::SeqCst) {
            self.hanging.fetch_add(1, Ordering::SeqCst);
        }
        while self.writes_hang.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(kept) = &mut *self.kept.lock().unwrap() {
            kept.push(payload.clone());
        }
        let result = self.inner.write(c, request, payload);
        self.written.fetch_add(1, Ordering::SeqCst);
        result
    }
    fn has_cached_pages(&self, _: u64, _: i32) -> bool { true }
    fn flush(&self, _: &Caller, _: u64, _: u64) -> Reply<()> { Err(Errno::DQUOT) }
    fn release(&self, inode: u64, handle: u64) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.inner.release(inode, handle)
    }
    fn fsync(&self, _: &Caller, _: u64, _: u64, _: bool) -> Reply<()> { Err(Errno::NOSPC) }
    fn opendir(&self, c: &Caller, inode: u64) -> Reply<Opened> { self.inner.opendir(c, inode) }
    fn readdir(&self, c: &Caller, inode: u64, handle: u64, after: u64, sink: &mut DirectorySink<'_>) -> Reply<()> { self.inner.readdir(c, inode, handle, after, sink) }
    fn releasedir(&self, inode: u64, handle: u64) { self.inner.releasedir(inode, handle) }
    fn statfs(&self, c: &Caller, inode: u64) -> Reply<FileSystemStatistics> { self.inner.statfs(c, inode) }
}

fn planted(
    change: impl FnOnce(&mut SessionOptions),
) -> (tempfile::TempDir, Arc<Planted>, SessionHandle, JoinHandle<std::io::Result<()>>) {
    let directory = tempfile::tempdir().unwrap();
    let fs = Arc::new(Planted {
        inner: MemoryFileSystem::default(),
        hanging: AtomicUsize::new(0),
        opened: AtomicUsize::new(0),
        open: AtomicUsize::new(0),
        opens_hang: AtomicBool::new(false),
        writes_hang: AtomicBool::new(false),
        written: AtomicUsize::new(0),
        read: AtomicUsize::new(0),
        reads_hang: AtomicU64::new(0),
        release: AtomicBool::new(false),
        kept: Mutex::default(),
    });
    let mut options = SessionOptions { mountpoint: directory.path().to_owned(), ..Default::default() };
    change(&mut options);
    let session = mount(fs.clone(), options).unwrap();
    let handle = session.handle();
    (directory, fs, handle, std::thread::spawn(move || session.run()))
}

#[test]
fn an_operation_that_panics_costs_its_caller_an_error_and_others_nothing() {
    if !can_mount() {
        return;
    }
    let (directory, _, handle, thread) = planted(|_| {});
    for _ in 0..20 {
        let error = fs::metadata(directory.path().join("panic")).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    }
    fs::write(directory.path().join("fine"), b"x").unwrap();
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

/// Far beyond what a loaded machine takes.
const LIMIT: Duration = Duration::from_secs(100);

/// Polls until `condition` holds; false if it does not within the limit.
fn until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn killed_program_ends_while_its_call_still_waits() {
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|_| {});
    let mut children: Vec<_> = ["slow-1", "slow-2"]
        .map(|name| Command::new("stat").arg(directory.path().join(name)).spawn().unwrap())
        .into();
    assert!(until(|| fs.hanging.load(Ordering::SeqCst) == 2), "both look a name up");
    children[0].kill().unwrap();
    let ended = until(|| children[0].try_wait().unwrap().is_some());
    let other_waits = children[1].try_wait().unwrap().is_none();
    // Lets them end, if the signal did not.
    fs.release.store(true, Ordering::SeqCst);
    for child in &mut children {
        child.wait().unwrap();
    }
    assert!(ended, "the killed program waits");
    assert!(other_waits, "the other one waits for its answer");
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn signal_that_a_program_handles_ends_no_call() {
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|_| {});
    let script = "import os,signal,sys\nsignal.signal(signal.SIGUSR1, lambda *_: None)\n\
                  try: os.stat(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)";
    let mut child =
        Command::new("python3").args(["-c", script]).arg(directory.path().join("slow")).spawn().unwrap();
    assert!(until(|| fs.hanging.load(Ordering::SeqCst) == 1), "it looks the name up");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    // The signal is pending once the kernel shows it; it stays so while the call waits.
    let pending = || {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        status.lines().any(|line| line.starts_with("ShdPnd:") && line.ends_with("200"))
    };
    assert!(until(pending), "the signal waits for the call");
    fs.release.store(true, Ordering::SeqCst);
    assert_eq!(child.wait().unwrap().code(), Some(Errno::NOENT.raw_os_error()));
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn calls_that_wait_do_not_stop_others() {
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|options| options.threads_max = 2);
    check_that_one_is_answered_beside(9, directory.path(), &fs);
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

/// Check that a look-up is answered while `waiting` others, of processes of their own, hang.
fn check_that_one_is_answered_beside(waiting: usize, directory: &Path, fs: &Planted) {
    let mut children: Vec<_> = (0..waiting)
        .map(|number| directory.join(format!("slow-{number}")))
        .map(|path| Command::new("stat").arg(path).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    let begun = until(|| fs.hanging.load(Ordering::SeqCst) == waiting);
    let (answered, answer) = mpsc::channel();
    let path = directory.join("other");
    let asking = std::thread::spawn(move || answered.send(fs::metadata(path).unwrap_err().kind()));
    let answer = answer.recv_timeout(LIMIT);
    fs.release.store(true, Ordering::SeqCst);
    for child in &mut children {
        child.wait().unwrap();
    }
    asking.join().unwrap().unwrap();
    assert!(begun, "more look-ups wait than there are threads at first");
    assert_eq!(answer, Ok(std::io::ErrorKind::NotFound));
}

/// Do `work` in a thread of one processor, as all processes that it starts: their requests go the same way.
fn on_one_processor<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|&number| allowed.is_set(number)).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(first);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn calls_that_wait_on_one_processor_do_not_stop_others_there() {
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|options| options.threads_max = 2);
    on_one_processor(|| check_that_one_is_answered_beside(11, directory.path(), &fs));
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

fn open_direct(path: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().create(true).write(true).custom_flags(direct).open(path).unwrap()
}

#[test]
fn file_system_that_keeps_every_buffer_stops_no_look_up_and_keeps_what_was_written() {
    if !can_mount() {
        return;
    }
    // One request each, wherever their memory begins.
    const BYTES: usize = 512 << 10;
    let (directory, fs, handle, thread) = planted(|options| {
        (options.threads_max, options.buffers_kept_max) = (2, 2);
    });
    *fs.kept.lock().unwrap() = Some(Vec::new());
    let writers: Vec<_> = (1..=24_u8)
        .map(|number| {
            let path = directory.path().join(format!("file-{number}"));
            std::thread::spawn(move || open_direct(&path).write_all_at(&vec![number; BYTES], 0).unwrap())
        })
        .collect();
    let (answered, answer) = mpsc::channel();
    let path = directory.path().join("other");
    // More than the first buffers are kept.
    let many = until(|| fs.written.load(Ordering::SeqCst) >= 9);
    let asking = std::thread::spawn(move || answered.send(fs::metadata(path).unwrap_err().kind()));
    let answer = answer.recv_timeout(LIMIT);
    let all = until(|| fs.written.load(Ordering::SeqCst) == writers.len());
    let kept = fs.kept.lock().unwrap().take().unwrap();
    let torn = kept.iter().map(Placement::to_vec).filter(|bytes| bytes.iter().any(|byte| *byte != bytes[0]));
    let (torn, count) = (torn.count(), kept.len());
    drop(kept);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    asking.join().unwrap().unwrap();
    assert!(many && all, "all writes reach the file system");
    assert_eq!(answer, Ok(std::io::ErrorKind::NotFound));
    assert_eq!((torn, count), (0, 24), "payloads that are kept do not change");
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn read_of_a_killed_program_changes_nothing_of_a_later_write() {
    use std::os::unix::fs::MetadataExt;
    if !can_mount() {
        return;
    }
    const BYTES: usize = 512 << 10;
    let (directory, fs, handle, thread) = planted(|_| {});
    let (read, written) = (directory.path().join("read"), directory.path().join("written"));
    fs::write(&read, vec![b'r'; BYTES]).unwrap();
    fs.reads_hang.store(fs::metadata(&read).unwrap().ino(), Ordering::SeqCst);
    on_one_processor(|| {
        let mut command = Command::new("dd");
        command.arg(format!("if={}", read.display())).args(["of=/dev/null", "bs=512k", "iflag=direct"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let reads = until(|| fs.hanging.load(Ordering::SeqCst) == 1);
        child.kill().unwrap();
        let ended = until(|| child.try_wait().unwrap().is_some());
        fs.writes_hang.store(true, Ordering::SeqCst);
        let writing = std::thread::spawn({
            let written = written.clone();
            move || open_direct(&written).write_all_at(&[b'w'; BYTES], 0)
        });
        let writes = until(|| fs.hanging.load(Ordering::SeqCst) == 2);
        // The read continues, into its memory.
        fs.release.store(true, Ordering::SeqCst);
        let read_on = until(|| fs.read.load(Ordering::SeqCst) > 0);
        fs.writes_hang.store(false, Ordering::SeqCst);
        writing.join().unwrap().unwrap();
        child.wait().unwrap();
        assert!(reads && ended && writes && read_on, "{reads} {ended} {writes} {read_on}");
    });
    assert!(fs::read(&written).unwrap() == [b'w'; BYTES], "the write is as it was written");
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn file_opened_for_a_killed_program_is_released() {
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|_| {});
    let path = directory.path().join("opened");
    fs::write(&path, b"x").unwrap();
    assert!(until(|| fs.open.load(Ordering::SeqCst) == 0));
    fs.opens_hang.store(true, Ordering::SeqCst);
    let mut child = Command::new("cat").arg(&path).spawn().unwrap();
    assert!(until(|| fs.hanging.load(Ordering::SeqCst) == 1), "it opens the file");
    child.kill().unwrap();
    let ended = until(|| child.try_wait().unwrap().is_some());
    fs.release.store(true, Ordering::SeqCst);
    child.wait().unwrap();
    assert!(ended, "the killed program waits");
    assert!(until(|| fs.opened.load(Ordering::SeqCst) == 2 && fs.open.load(Ordering::SeqCst) == 0));
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

/// Submits a direct write, reads the same page through the cache while it is under way, and again when it is done.
#[cfg(target_arch = "x86_64")]
const READ_BESIDE_ASYNCHRONOUS_WRITE: &str = r#"
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
IO_SETUP, IO_GETEVENTS, IO_SUBMIT = 206, 208, 209
class Block(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16), ("priority", ctypes.c_int16), ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("offset", ctypes.c_int64),
        ("more", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("event", ctypes.c_uint32)]
page = mmap.mmap(-1, 4096)
page.write(b"n" * 4096)
direct = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
buffered = os.open(sys.argv[1], os.O_RDONLY)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
block = Block(opcode=1, descriptor=direct, buffer=address, bytes=4096)
context = ctypes.c_ulong()
assert libc.syscall(IO_SETUP, 1, ctypes.byref(context)) == 0
assert libc.syscall(IO_SUBMIT, context, 1, ctypes.byref(ctypes.pointer(block))) == 1
print(os.pread(buffered, 1, 0).decode(), flush=True)
events = ctypes.create_string_buffer(32)
assert libc.syscall(IO_GETEVENTS, context, 1, 1, events, None) == 1
print(os.pread(buffered, 1, 0).decode(), flush=True)
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn reads_after_an_asynchronous_direct_write_are_new() {
    use std::io::{BufRead, BufReader};
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|_| {});
    let path = directory.path().join("file");
    fs::write(&path, [b'o'; 8192]).unwrap();
    fs.writes_hang.store(true, Ordering::SeqCst);
    let mut command = Command::new("python3");
    command.args(["-c", READ_BESIDE_ASYNCHRONOUS_WRITE]).arg(&path).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let during = lines.next().unwrap().unwrap();
    fs.writes_hang.store(false, Ordering::SeqCst);
    let after = lines.next().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((during.as_str(), after.as_str()), ("o", "n"));
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn direct_write_is_answered_while_a_read_of_another_file_hangs() {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    if !can_mount() {
        return;
    }
    let (directory, fs, handle, thread) = planted(|_| {});
    // Direct, so that nothing of them is in the page cache.
    let made = |name: &str| {
        let mut options = OpenOptions::new();
        options.create(true).write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
        let file = options.open(directory.path().join(name)).unwrap();
        file.write_all_at(&[b'o'; 4096], 0).unwrap();
        file
    };
    let (hangs, other) = (made("hangs"), made("other"));
    let reader = File::open(directory.path().join("hangs")).unwrap();
    // The kernel drops pages before it writes; the read brings one back while the write is under way.
    fs.writes_hang.store(true, Ordering::SeqCst);
    let blocked = std::thread::spawn(move || hangs.write_all_at(&[b'n'; 4096], 0));
    assert!(until(|| fs.hanging.load(Ordering::SeqCst) == 1), "the write reaches the file system");
    fs.reads_hang.store(reader.metadata().unwrap().ino(), Ordering::SeqCst);
    let reading = std::thread::spawn(move || reader.read_exact_at(&mut [0; 4096], 0));
    assert!(until(|| fs.hanging.load(Ordering::SeqCst) == 2), "the read reaches the file system");
    let before = fs.written.load(Ordering::SeqCst);
    fs.writes_hang.store(false, Ordering::SeqCst);
    assert!(until(|| fs.written.load(Ordering::SeqCst) > before), "only its answer waits");
    // Several, so that the blocked one has been begun before the last of them.
    let writing = std::thread::spawn(move || {
        (0..64).for_each(|_| other.write_all_at(&[b'n'; 4096], 0).unwrap());
    });
    let written = until(|| writing.is_finished());
    let is_blocked = !blocked.is_finished();
    fs.release.store(true, Ordering::SeqCst);
    writing.join().unwrap();
    blocked.join().unwrap().unwrap();
    reading.join().unwrap().unwrap();
    assert!(written, "the write of the other file waits for the read");
    assert!(is_blocked, "the write of the same file does not: nothing was dropped");
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn errors_of_flush_and_fsync_reach_the_program() {
    if !can_mount() {
        return;
    }
    let (directory, _, handle, thread) = planted(|_| {});
    let file = File::create(directory.path().join("file")).unwrap();
    assert_eq!(rustix::fs::fsync(&file), Err(Errno::NOSPC));
    // A descriptor that cannot write has nothing to report, and its close is not asked about.
    assert_eq!(error_of_close(&file, "O_RDONLY"), None);
    assert_eq!(error_of_close(&file, "O_WRONLY"), Some(Errno::DQUOT.raw_os_error()));
    handle.unmount().unwrap();
    thread.join().unwrap().unwrap();
}

/// The error of close(2) of another descriptor of the file, which `drop` hides: Python reports it.
fn error_of_close(file: &File, flags: &str) -> Option<i32> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let script = "import os,sys\nfd=os.open(sys.argv[1],getattr(os, sys.argv[2]))\ntry: os.close(fd)\nexcept OSError as e: print(e.errno)";
    let output = Command::new("python3").args(["-c", script, &path, flags]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().parse().ok()
}
