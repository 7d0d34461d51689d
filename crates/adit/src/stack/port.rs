//! Local ports, chosen so that nobody outside can guess them (RFC 6056).

use std::io;
use std::ops::RangeInclusive;

/// The range of Linux.
const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// A random port that `is_free`.
///
/// # Errors
/// There is none.
pub(super) fn choose(is_free: impl Fn(u16) -> bool) -> io::Result<u16> {
    let mut random = [0; 2];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    let (first, count) = (*EPHEMERAL.start(), EPHEMERAL.end() - EPHEMERAL.start() + 1);
    let start = u16::from_ne_bytes(random) % count;
    (0..count)
        .map(|step| first + (start + step) % count)
        .find(|&port| is_free(port))
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, "every local port is in use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_free_port_is_found_and_none_is_an_error() {
        assert_eq!(choose(|port| port == 40_000).unwrap(), 40_000);
        assert_eq!(choose(|_| false).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        let chosen: std::collections::HashSet<u16> = (0..50).map(|_| choose(|_| true).unwrap()).collect();
        assert!(chosen.len() > 25 && chosen.iter().all(|port| EPHEMERAL.contains(port)), "{chosen:?}");
    }
}
