//! Cryptokey routing: which peer an inside address belongs to.
//!
//! The engine edits one [`AllowedIps`]; every edit is published to the lanes as new [`Routes`], which
//! never change. Publishing flattens the nested prefixes into disjoint ranges, so that the longest
//! match is the last range that starts at or before an address:
//!
//! ```text
//! prefixes    ├──────────── 10.0.0.0/8 → A ────────────┤
//!                    ├─ 10.64.0.0/10 → B ─┤
//! ranges      A      B                    A             none
//! ```

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use std::collections::{BTreeMap, BTreeSet};

/// An IP prefix with no bit set beyond its length. Sorts IPv4 first, then by address, then short first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why a text or a pair of values is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// The part before the slash is no IP address.
    BadAddress,
    /// The part after the slash is no number, or more than the bits of the address.
    BadLength,
}

impl Prefix {
    /// The prefix of `len` bits that `address` is in.
    ///
    /// # Errors
    /// [`PrefixError::BadLength`] above 32 (IPv4) or 128 (IPv6).
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        if len > Self::host(address).len {
            return Err(PrefixError::BadLength);
        }
        let address = match address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !host_mask_v4(len)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !host_mask_v6(len)).into(),
        };
        Ok(Self { address, len })
    }

    /// The prefix that is just `address`.
    pub const fn host(address: IpAddr) -> Self {
        let len = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self { address, len }
    }

    /// The first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub const fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether `address` is in this prefix. An IPv4-mapped IPv6 address is IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.len).is_ok_and(|prefix| prefix == *self)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Reads `10.0.0.0/8`, `fd00::/64`, or a bare address, which is a prefix of full length.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let parse = |address: &str| address.parse().map_err(|_| PrefixError::BadAddress);
        match text.split_once('/') {
            None => parse(text).map(Self::host),
            Some((address, len)) => {
                let address = parse(address)?;
                let digits = (1..=3).contains(&len.len()) && len.bytes().all(|byte| byte.is_ascii_digit());
                Self::new(address, len.parse().ok().filter(|_| digits).ok_or(PrefixError::BadLength)?)
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadAddress => {
                "not an IP address; write an address like 10.0.0.1 or a prefix like 10.0.0.0/24"
            }
            Self::BadLength => {
                "not a prefix length; write 0 to 32 after the slash for IPv4, 0 to 128 for IPv6"
            }
        })
    }
}

impl core::error::Error for PrefixError {}

/// The master table of allowed IPs. Each prefix belongs to one peer, named by its slot.
#[derive(Clone, Debug, Default)]
pub struct AllowedIps {
    owners: BTreeMap<Prefix, u32>,
    by_peer: BTreeMap<u32, BTreeSet<Prefix>>,
}

impl AllowedIps {
    /// Gives `prefix` to `peer`, taking it from any other; returns that other.
    pub fn insert(&mut self, prefix: Prefix, peer: u32) -> Option<u32> {
        let previous = self.owners.insert(prefix, peer).filter(|&owner| owner != peer);
        if let Some(previous) = previous {
            self.forget(prefix, previous);
        }
        self.by_peer.entry(peer).or_default().insert(prefix);
        previous
    }

    /// Takes `prefix` from `peer`; false when it was not the peer's.
    pub fn remove(&mut self, prefix: Prefix, peer: u32) -> bool {
        let owned = self.owner(prefix) == Some(peer);
        if owned {
            self.owners.remove(&prefix);
            self.forget(prefix, peer);
        }
        owned
    }

    /// Takes every prefix from `peer`.
    pub fn remove_peer(&mut self, peer: u32) {
        for prefix in self.by_peer.remove(&peer).unwrap_or_default() {
            self.owners.remove(&prefix);
        }
    }

    /// The peer that exactly this prefix belongs to.
    pub fn owner(&self, prefix: Prefix) -> Option<u32> {
        self.owners.get(&prefix).copied()
    }

    /// The prefixes of `peer`, sorted.
    pub fn prefixes_of(&self, peer: u32) -> impl Iterator<Item = Prefix> + '_ {
        self.by_peer.get(&peer).into_iter().flatten().copied()
    }

    /// Every prefix with its peer, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, u32)> + '_ {
        self.owners.iter().map(|(&prefix, &peer)| (prefix, peer))
    }

    /// How many prefixes there are.
    pub fn count(&self) -> usize {
        self.owners.len()
    }

    /// The table as the lanes read it. Costs time and memory in proportion to the prefixes.
    pub fn publish(&self) -> Routes {
        let v4 = self.iter().filter_map(|(prefix, peer)| match prefix.address {
            IpAddr::V4(first) => Some((first.to_bits(), first.to_bits() | host_mask_v4(prefix.len), peer)),
            IpAddr::V6(_) => None,
        });
        let v6 = self.iter().filter_map(|(prefix, peer)| match prefix.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(first) => Some((first.to_bits(), first.to_bits() | host_mask_v6(prefix.len), peer)),
        });
        Routes { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    fn forget(&mut self, prefix: Prefix, peer: u32) {
        if let Some(prefixes) = self.by_peer.get_mut(&peer) {
            prefixes.remove(&prefix);
            if prefixes.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
    }
}

/// A published table of allowed IPs.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    v4: Ranges<u32, 16>,
    v6: Ranges<u128, 8>,
}

impl Routes {
    /// The peer of the longest prefix that holds `address`. An IPv4-mapped IPv6 address is IPv6.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => self.v4.lookup(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.lookup(v6.to_bits()),
        }
    }
}

/// Disjoint ranges that cover every address, searched as an implicit B+ tree: `levels` holds the starts
/// of all ranges in nodes of `N` (last level), the first start of each such node (level before), and so
/// on up to a single node. A node is one or two cache lines, compared as a whole without a branch.
#[derive(Clone, Debug)]
struct Ranges<K, const N: usize> {
    levels: Vec<Vec<[K; N]>>,
    peers: Vec<Option<u32>>,
}

impl<K, const N: usize> Default for Ranges<K, N> {
    fn default() -> Self {
        Self { levels: Vec::new(), peers: Vec::new() }
    }
}

impl<K: Address, const N: usize> Ranges<K, N> {
    /// Flattens prefixes, given as (first address, last address, peer) and sorted as [`Prefix`] sorts:
    /// the outer before the inner.
    fn new(prefixes: impl Iterator<Item = (K, K, u32)>) -> Self {
        let mut ranges = Flat { starts: vec![K::MIN], peers: vec![None] };
        let mut open: Vec<(K, u32)> = Vec::new();
        for (first, last, peer) in prefixes {
            while let Some((end, _)) = open.pop_if(|(end, _)| *end < first) {
                ranges.close(end, &open);
            }
            ranges.start(first, Some(peer));
            open.push((last, peer));
        }
        while let Some((end, _)) = open.pop() {
            ranges.close(end, &open);
        }
        if ranges.peers == [None] {
            return Self::default();
        }
        Self { levels: levels(&ranges.starts), peers: ranges.peers }
    }

    #[inline]
    fn lookup(&self, address: K) -> Option<u32> {
        if address == K::MAX {
            return *self.peers.last()?;
        }
        let mut at = 0_usize;
        for level in &self.levels {
            let node: &[K; N] = level.get(at)?;
            let starts_before =
                node.iter().map(|start| usize::from(*start <= address)).fold(0, usize::wrapping_add);
            at = at.wrapping_mul(N).wrapping_add(starts_before).wrapping_sub(1);
        }
        *self.peers.get(at)?
    }
}

/// The ranges in order while they are made.
struct Flat<K> {
    starts: Vec<K>,
    peers: Vec<Option<u32>>,
}

impl<K: Address> Flat<K> {
    /// Ends the range at `end`: the innermost prefix still open goes on after it.
    fn close(&mut self, end: K, open: &[(K, u32)]) {
        if let Some(next) = end.next() {
            self.start(next, open.last().map(|(_, peer)| *peer));
        }
    }

    fn start(&mut self, start: K, peer: Option<u32>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.peers.pop();
        }
        if self.peers.last() != Some(&peer) {
            self.starts.push(start);
            self.peers.push(peer);
        }
    }
}

fn levels<K: Address, const N: usize>(starts: &[K]) -> Vec<Vec<[K; N]>> {
    let mut levels = vec![nodes(starts)];
    while let Some(below) = levels.last().filter(|level| level.len() > 1) {
        let firsts: Vec<K> = below.iter().filter_map(|node| node.first().copied()).collect();
        levels.push(nodes(&firsts));
    }
    levels.reverse();
    levels
}

/// Fills nodes with `keys`, and the rest of the last node with a key that only [`Address::MAX`] reaches.
fn nodes<K: Address, const N: usize>(keys: &[K]) -> Vec<[K; N]> {
    keys.chunks(N)
        .map(|chunk| {
            let mut node = [K::MAX; N];
            node.iter_mut().zip(chunk).for_each(|(slot, key)| *slot = *key);
            node
        })
        .collect()
}

/// An address as a number.
trait Address: Copy + Ord {
    const MIN: Self;
    const MAX: Self;
    /// The address after this one.
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// The bits beyond the first `len`.
fn host_mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shr(len.into()).unwrap_or(0)
}

/// The bits beyond the first `len`.
fn host_mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shr(len.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
