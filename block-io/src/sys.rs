//! System calls that neither std nor nix wraps: block device ioctls, `statx` for direct I/O, and
//! reads that do not wait.
#![expect(unsafe_code, reason = "raw system calls")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use nix::libc;

mod ioctl {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, nix::libc::size_t);
    nix::ioctl_read_bad!(blksszget, nix::libc::BLKSSZGET, nix::libc::c_int);
    nix::ioctl_read_bad!(blkpbszget, nix::libc::BLKPBSZGET, nix::libc::c_uint);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
}

/// Size of a block device in bytes.
pub(crate) fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes: libc::size_t = 0;
    // SAFETY: BLKGETSIZE64 stores one 64-bit number, which `bytes` is on the 64-bit hosts that we
    // run on.
    unsafe { ioctl::blkgetsize64(file.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes as u64)
}

/// Logical sector of a block device in bytes.
pub(crate) fn logical_block_bytes(file: &File) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores one int.
    unsafe { ioctl::blksszget(file.as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(io::Error::other)
}

/// Physical sector of a block device in bytes.
pub(crate) fn physical_block_bytes(file: &File) -> io::Result<u32> {
    let mut bytes: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET stores one unsigned int.
    unsafe { ioctl::blkpbszget(file.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// Discards a range of a block device, in bytes.
pub(crate) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two 64-bit numbers, start and length.
    unsafe { ioctl::blkdiscard(file.as_raw_fd(), &raw const *&[offset, len]) }?;
    Ok(())
}

/// Reads what is in the page cache, without waiting for a disk: so many bytes, maybe none.
pub(crate) fn read_cached(file: &File, buf: &mut [u8], offset: u64) -> usize {
    let Ok(offset) = libc::off_t::try_from(offset) else { return 0 };
    let vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: one vector, of memory that is ours alone while the call lasts; the kernel writes
    // within its length.
    let read =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
    // Nothing there, or a filesystem that cannot tell.
    usize::try_from(read).unwrap_or(0)
}

/// What O_DIRECT asks of memory addresses and of file offsets, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlign {
    pub(crate) memory: u32,
    pub(crate) offset: u32,
}

/// `None` where the kernel does not tell; `offset` is 0 where direct I/O is not possible.
pub(crate) fn direct_align(file: &File) -> Option<DirectAlign> {
    let mut buf = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string; the kernel writes at most one `statx` into `buf`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            buf.as_mut_ptr(),
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: all-zero is a valid `statx`, and the kernel has filled in the rest.
    let stat = unsafe { buf.assume_init() };
    (stat.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectAlign {
        memory: stat.stx_dio_mem_align,
        offset: stat.stx_dio_offset_align,
    })
}
