//! Attaches a connection to a directory and takes it off again: by mount(2) where we may, else by fusermount3.

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::device::FuseDevice;
use super::options::SessionOptions;

const FUSERMOUNT: &str = "fusermount3";

/// A mounted connection: the device, and where it is.
pub struct Mounted {
    pub device: FuseDevice,
    pub mountpoint: PathBuf,
    /// Minor number of the mount's device, which also names its connection in fusectl.
    pub connection: u32,
    /// By fusermount3 rather than by ourselves.
    helped: bool,
}

impl Mounted {
    /// Errors name what is wrong with the mountpoint in words.
    pub fn new(options: &SessionOptions) -> io::Result<Mounted> {
        let mountpoint = fs::canonicalize(&options.mountpoint)?;
        if !fs::metadata(&mountpoint)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let (device, helped) = match by_ourselves(&mountpoint, options) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                (by_fusermount(&mountpoint, options)?, true)
            }
            result => (result?, false),
        };
        let connection = device_minor(&mountpoint)?;
        Ok(Mounted { device, mountpoint, connection, helped })
    }

    /// Take the mount out of the tree. With `lazy` programs that use it may continue until they are done; without,
    /// `EBUSY` if there are any.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        // Somebody else may have unmounted it, and mounted another one in its place.
        if !self.is_ours() {
            return Ok(());
        }
        if self.helped {
            let mut command = Command::new(FUSERMOUNT);
            command.args(["-u", "-q"]).args(lazy.then_some("-z")).arg("--").arg(&self.mountpoint);
            let status = command.stdin(Stdio::null()).status()?;
            return if status.success() { Ok(()) } else { Err(Errno::BUSY.into()) };
        }
        let flags = UnmountFlags::NOFOLLOW | if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match rustix::mount::unmount(&self.mountpoint, flags) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_ours(&self) -> bool {
        device_minor(&self.mountpoint).is_ok_and(|minor| minor == self.connection)
    }

    /// Cut the connection: every program that still uses it gets an error, and every reader of the device ends.
    pub fn abort(&self) -> io::Result<()> {
        let path = format!("/sys/fs/fuse/connections/{}/abort", self.connection);
        match fs::write(path, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.abort_by_own_fusectl(),
            result => result,
        }
    }

    /// Where fusectl is not mounted (containers), a mount of it that only this function sees.
    fn abort_by_own_fusectl(&self) -> io::Result<()> {
        let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        let tree = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let path = format!("{}/abort", self.connection);
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        match rustix::fs::openat(&tree, path, flags, rustix::fs::Mode::empty()) {
            Ok(file) => rustix::io::write(file, b"1").map(|_| ()).map_err(Into::into),
            // The connection has ended already.
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Let the kernel read further ahead than its default of 128 KiB. Needs sysfs and root; otherwise nothing
    /// happens but slower sequential reads.
    pub fn set_read_ahead(&self, bytes: usize) {
        let path = format!("/sys/class/bdi/0:{}/read_ahead_kb", self.connection);
        if let Err(error) = fs::write(&path, (bytes / 1024).to_string()) {
            log::info!("setting read-ahead failed: {path}: {error}; the kernel's default applies");
        }
    }
}

fn mount_options(options: &SessionOptions) -> String {
    let mut text = format!("default_permissions,max_read={}", options.request_bytes);
    if options.allow_other {
        text.push_str(",allow_other");
    }
    text
}

fn by_ourselves(mountpoint: &Path, options: &SessionOptions) -> io::Result<FuseDevice> {
    let device = FuseDevice::open()?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{}\0",
        device.fd().as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        mount_options(options)
    );
    let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).map_err(io::Error::other)?;
    // The metadata service does not see reads, so there is no access time to be kept.
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount(&options.source, mountpoint, "fuse.luciola", flags, data)?;
    Ok(device)
}

fn by_fusermount(mountpoint: &Path, options: &SessionOptions) -> io::Result<FuseDevice> {
    // The child's end is inherited, ours is not.
    let (theirs, ours) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let text = format!(
        "{},{},noatime,fsname={source},subtype=luciola",
        mount_options(options),
        if options.read_only { "ro" } else { "rw" }
    );
    let mut command = Command::new(FUSERMOUNT);
    command.args(["-o", &text, "--"]).arg(mountpoint);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(
            |error| {
                io::Error::new(error.kind(), format!("mounting without root needs {FUSERMOUNT}: {error}"))
            },
        )?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut complaint);
    }
    child.wait()?;
    match received? {
        Some(fd) => {
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
            Ok(FuseDevice::from_fd(fd))
        }
        None => Err(io::Error::new(io::ErrorKind::PermissionDenied, complaint.trim().to_owned())),
    }
}

/// The descriptor that comes with the one byte fusermount3 sends; `None` if it closes without.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        match rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Minor device number of the topmost mount at `mountpoint`, from the kernel's table: asking the mount itself would
/// need a session that answers.
fn device_minor(mountpoint: &Path) -> io::Result<u32> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    table
        .lines()
        .rev()
        .find_map(|line| {
            let mut words = line.split(' ').skip(2);
            let device = words.next()?;
            let place = words.nth(1)?;
            (unescape(place) == mountpoint.as_os_str().as_encoded_bytes())
                .then(|| device.split(':').nth(1)?.parse().ok())?
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not in the table of mounts"))
}

/// Undo the kernel's `\040` for a space, and the like.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_found() {
        assert_eq!(unescape(r"/a\040b\134c"), b"/a b\\c");
        assert_eq!(unescape(r"/a\04"), br"/a\04");
    }

    #[test]
    fn the_root_is_in_the_table_of_mounts() {
        assert!(device_minor(Path::new("/proc")).is_ok());
        assert!(device_minor(Path::new("/no/such/place")).is_err());
    }
}
