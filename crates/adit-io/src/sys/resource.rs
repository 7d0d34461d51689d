//! Limits of the process: descriptors and memory.

use std::io;

use super::check;

/// Raises the number of descriptors this process may open to the most it may ask for, and returns it.
///
/// # Errors
/// The kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
    }
    Ok(limit.rlim_cur)
}

/// From now on the allocator takes blocks of 128 KiB and more from the kernel one by one, and gives them back when they are
/// freed. By default glibc keeps freed blocks up to 32 MiB, and a later buffer of zeros is then written out in full
/// where fresh pages would have cost nothing (`mallopt(3)`, M_MMAP_THRESHOLD).
pub fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers; an unknown parameter changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_high_as_it_may_be() {
        let raised = raise_descriptor_limit().unwrap();
        assert!(raised >= 256, "{raised}");
        assert_eq!(raise_descriptor_limit().unwrap(), raised);
    }
}
