//! Shared memory: a sealed memfd and its mapping.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::lock::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{ALIGNMENT, page_align};

/// Largest region that is created or that a peer may hand us. Address space is cheap, mistakes are not.
pub const REGION_BYTES_MAX: usize = 4 << 30;
const _: () =
    assert!(REGION_BYTES_MAX / ALIGNMENT <= u32::MAX as usize, "a pool numbers its buffers in 32 bits");

/// Names a region between processes. Random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub [u8; 16]);

impl fmt::Debug for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionId({:032x})", u128::from_be_bytes(self.0))
    }
}

/// Pages mapped read and write; unmapped on drop.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range of this process, valid in every thread until `drop`; it has no thread
// affinity, and the module's rule for placements covers concurrent access to its bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out only the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn shared(fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapping> {
        // SAFETY: a null hint lets the kernel choose an unused range, so nothing that exists is replaced;
        // `fd` is open and at least `len` long, which the callers have checked.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        Ok(Mapping { start: NonNull::new(start.cast()).expect("mmap never returns null"), len })
    }

    /// Zeroed memory of this process alone, page-aligned.
    pub(super) fn anonymous(len: usize) -> io::Result<Mapping> {
        let len = page_align(len.max(1));
        // SAFETY: a null hint lets the kernel choose an unused range, so nothing that exists is replaced.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        Ok(Mapping { start: NonNull::new(start.cast()).expect("mmap never returns null"), len })
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn advise_huge_pages(&self) {
        // SAFETY: the range is exactly our mapping, and this advice changes no content. A kernel without huge
        // pages for shared memory refuses, which costs nothing.
        let _ = unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what mmap gave us, and by B1 no reference to it is left.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        if let Err(error) = unmapped {
            // The kernel may have merged it with its neighbours, and have no mapping left to split them.
            log::warn!("unmapping {} bytes failed: {error}; the process keeps them", self.len);
        }
    }
}

/// A memfd that cannot shrink, mapped into this process; ours, or registered by a peer.
pub struct Region {
    /// What devices know this memory by. First, so that they let go of it before it is unmapped.
    #[cfg_attr(not(feature = "rdma"), allow(dead_code, reason = "only devices attach something"))]
    attachments: Mutex<Vec<(usize, Result<Attachment, String>)>>,
    id: RegionId,
    fd: OwnedFd,
    mapping: Mapping,
    len: usize,
    exclusive: bool,
}

type Attachment = Arc<dyn Any + Send + Sync>;

impl Region {
    /// A new region of at least `bytes` (whole pages), zeroed; memory is used as it is touched.
    pub fn create(bytes: usize) -> io::Result<Arc<Region>> {
        Region::new(bytes, false)
    }

    /// As [`Region::create`]; no other process will write to it but as this one asks it to.
    pub fn create_exclusive(bytes: usize) -> io::Result<Arc<Region>> {
        Region::new(bytes, true)
    }

    fn new(bytes: usize, exclusive: bool) -> io::Result<Arc<Region>> {
        let len = page_align(bytes);
        if len == 0 || len > REGION_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        let fd = rustix::fs::memfd_create(
            "luciola-region",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL,
        )
        // Kernels before 6.3 do not know NOEXEC_SEAL.
        .or_else(|_| {
            rustix::fs::memfd_create("luciola-region", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        })?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        assert!(len.is_multiple_of(ALIGNMENT) && len >= bytes, "a region has whole pages");
        let mapping = Mapping::shared(fd.as_fd(), len)?;
        mapping.advise_huge_pages();
        let attachments = Mutex::default();
        Ok(Arc::new(Region { attachments, id: RegionId(id), fd, mapping, len, exclusive }))
    }

    /// Map a region that a peer sent. Errors: `InvalidData` if it could shrink, or is not as long as said.
    pub fn map_peer(fd: OwnedFd, id: RegionId, len: usize) -> io::Result<Arc<Region>> {
        if len == 0 || len > REGION_BYTES_MAX || !len.is_multiple_of(ALIGNMENT) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a region of that length is not allowed"));
        }
        // Fails for everything that is not a memfd (or another file that can be sealed).
        let seals = rustix::fs::fcntl_get_seals(&fd)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the region is not a memfd"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the region could shrink"));
        }
        if (rustix::fs::fstat(&fd)?.st_size as u64) < len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the region is shorter than said"));
        }
        let mapping = Mapping::shared(fd.as_fd(), len)?;
        Ok(Arc::new(Region { attachments: Mutex::default(), id, fd, mapping, len, exclusive: false }))
    }

    pub fn id(&self) -> RegionId {
        self.id
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// A region is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.start.as_ptr()
    }

    /// Whether no other process writes to it unasked.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// What `owner` keeps with this region for as long as that lives, made when first asked for. Errors: why it could not
    /// be made; that is not tried again.
    #[cfg_attr(not(feature = "rdma"), allow(dead_code, reason = "only devices attach something"))]
    pub(crate) fn attachment<T: Any + Send + Sync>(
        &self,
        owner: usize,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<Arc<T>> {
        let mut attachments = self.attachments.lock();
        if let Some((_, kept)) = attachments.iter().find(|(of, _)| *of == owner) {
            let kept = kept.clone().map_err(io::Error::other)?;
            return Ok(kept.downcast().expect("an owner attaches one type of thing"));
        }
        let made = make().map(Arc::new);
        let kept = made.as_ref().map(|made| made.clone() as Attachment).map_err(io::Error::to_string);
        attachments.push((owner, kept));
        made
    }

    /// Identity of the memory behind a mapping: device and inode of the memfd.
    pub fn identity(fd: impl AsFd) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(fd)?;
        Ok((stat.st_dev as u64, stat.st_ino as u64))
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region {{ id: {:?}, len: {} }}", self.id, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_can_neither_shrink_nor_grow() {
        let region = Region::create(10_000).unwrap();
        assert_eq!(region.len(), 12_288);
        assert!(rustix::fs::ftruncate(&region.fd, 4096).is_err());
        assert!(rustix::fs::ftruncate(&region.fd, 1 << 20).is_err());
    }

    #[test]
    fn a_peer_sees_the_same_bytes() {
        let ours = Region::create(8192).unwrap();
        let theirs = Region::map_peer(ours.fd.try_clone().unwrap(), ours.id(), ours.len()).unwrap();
        ours.placement(5000, 5).unwrap().copy_from(b"hello");
        assert_eq!(theirs.placement(5000, 5).unwrap().to_vec(), b"hello");
        assert_eq!(Region::identity(&ours.fd).unwrap(), Region::identity(&theirs.fd).unwrap());
    }

    #[test]
    fn memory_that_could_shrink_is_not_mapped() {
        let fd = rustix::fs::memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        let error = Region::map_peer(fd, RegionId([1; 16]), 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_region_is_not_mapped_beyond_its_end_nor_a_plain_file_at_all() {
        let region = Region::create(4096).unwrap();
        assert!(Region::map_peer(region.fd.try_clone().unwrap(), region.id(), 8192).is_err());
        assert!(Region::map_peer(region.fd.try_clone().unwrap(), region.id(), 0).is_err());
        assert!(Region::map_peer(region.fd.try_clone().unwrap(), region.id(), 100).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(Region::map_peer(file.into(), RegionId([2; 16]), 4096).is_err());
    }

    #[test]
    fn an_attachment_is_made_once_and_goes_with_its_region() {
        let region = Region::create_exclusive(4096).unwrap();
        let first = region.attachment(1, || Ok(5u32)).unwrap();
        assert_eq!(*region.attachment(1, || Ok(6u32)).unwrap(), 5);
        assert_eq!(*region.attachment(2, || Ok(7u32)).unwrap(), 7);
        let refused = || Err::<u32, _>(io::ErrorKind::OutOfMemory.into());
        assert_eq!(region.attachment(3, refused).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert!(region.attachment(3, || Ok(8u32)).is_err(), "not tried again");
        drop(region);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn placements_outside_the_region_do_not_exist() {
        let region = Region::create(4096).unwrap();
        assert!(region.placement(0, 4096).is_some());
        assert!(region.placement(4096, 0).is_some());
        assert!(region.placement(1, 4096).is_none());
        assert!(region.placement(usize::MAX, 2).is_none());
    }
}
