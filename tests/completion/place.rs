//! Where code and data lie, in this process and in the guest alike.

/// The size of a page.
pub const PAGE: u64 = 4096;
/// Two pages of code.
pub const CODE: u64 = 0x4000_0000;
/// Its size.
pub const CODE_SIZE: u64 = 2 * PAGE;
/// Three pages of data, with nothing before and behind them.
pub const DATA: u64 = 0x5000_0000;
/// Its size.
pub const DATA_SIZE: u64 = 3 * PAGE;
/// A page that can only be read, with nothing before and behind it.
pub const READ_ONLY: u64 = DATA + DATA_SIZE + PAGE;

/// Maps memory where nothing is mapped yet.
pub fn map(at: u64, size: u64, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the mapping replaces none that exists.
    let mapped = unsafe { libc::mmap(at as *mut libc::c_void, size as usize, protection, flags, -1, 0) };
    assert_eq!(mapped as u64, at, "{}", std::io::Error::last_os_error());
}
