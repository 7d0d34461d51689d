//! Who has come in and not proved to be a peer yet: few from one place, not many in all, and the oldest goes first.
//!
//! A place is kept from the moment a connection is taken until a message on it has authenticated, or it ends. A first message that
//! looks right is no proof: anybody who has recorded one can send it again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Unproven connections in all.
const IN_ALL: usize = 1_000;
/// Unproven connections from one IPv4 address or IPv6 /64.
const OF_A_SOURCE: usize = 64;
/// A visitor takes a descriptor for itself and perhaps one for what it is shown; the other half is not for strangers.
const SHARE_OF_DESCRIPTORS: u64 = 4;

/// How many may wait.
#[derive(Clone, Copy, Debug)]
struct Caps {
    in_all: usize,
    of_a_source: usize,
}

impl Caps {
    /// For a process that may have so many descriptors.
    fn of(descriptors: u64) -> Self {
        let share = usize::try_from(descriptors / SHARE_OF_DESCRIPTORS).unwrap_or(IN_ALL);
        let in_all = share.clamp(1, IN_ALL);
        // Nobody alone takes all of it.
        Self { in_all, of_a_source: OF_A_SOURCE.min(in_all.div_ceil(4)) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Lobby {
    caps: Caps,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, (Source, Option<Exit>)>,
    sources: HashMap<Source, usize>,
}

/// Ends a connection.
struct Exit(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exit")
    }
}

/// An IPv4 address, or the first half of an IPv6 one.
type Source = [u8; 8];

/// A place among those who have proved nothing yet, until dropped.
#[derive(Debug)]
pub struct Place {
    lobby: Lobby,
    number: u64,
}

impl Lobby {
    /// For a process that may have so many descriptors.
    pub(super) fn new(descriptors: u64) -> Self {
        Self { caps: Caps::of(descriptors), waiting: Arc::default() }
    }

    /// Takes somebody in, and shows the oldest out when it is full.
    pub(super) fn enter(&self, from: IpAddr) -> Place {
        let source = source_of(from);
        let mut waiting = self.lock();
        // Behind a web server on this host everybody comes from it.
        let crowded = !from.to_canonical().is_loopback()
            && waiting.sources.get(&source).copied().unwrap_or(0) >= self.caps.of_a_source;
        let full = waiting.connections.len() >= self.caps.in_all;
        // Whoever comes from a crowded place pushes out one of its own, even where all is full.
        let oldest = waiting
            .connections
            .iter()
            .find(|(_, (of, _))| if crowded { *of == source } else { full })
            .map(|(number, _)| *number);
        let gone = oldest.and_then(|number| waiting.remove(number));
        let number = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(number, (source, None));
        *waiting.sources.entry(source).or_default() += 1;
        drop(waiting);
        // What goes may drop its place, which needs the lock.
        if let Some(Exit(end)) = gone {
            end();
        }
        Place { lobby: self.clone(), number }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().connections.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What ends the connection with this place when it has to go. Whether it may stay.
    pub(super) fn set_exit(&self, number: u64, end: impl FnOnce() + Send + 'static) -> bool {
        match self.lock().connections.get_mut(&number) {
            Some((_, exit)) => {
                *exit = Some(Exit(Box::new(end)));
                true
            }
            None => false,
        }
    }
}

impl Waiting {
    fn remove(&mut self, number: u64) -> Option<Exit> {
        let (source, exit) = self.connections.remove(&number)?;
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
        exit
    }
}

impl Place {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What ends the connection from now on when it has to go. Whether it may stay: it may have been shown out already.
    pub fn leave_by(&self, end: impl FnOnce() + Send + 'static) -> bool {
        self.lobby.set_exit(self.number, end)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let exit = self.lobby.lock().remove(self.number);
        drop(exit);
    }
}

fn source_of(address: IpAddr) -> Source {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0xff, 0xff, 0, 0]
        }
        IpAddr::V6(address) => address.octets().first_chunk().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    fn lobby() -> Lobby {
        Lobby::new(u64::MAX)
    }

    #[test]
    fn one_source_pushes_out_only_its_own_oldest() {
        let lobby = lobby();
        let other = lobby.enter("192.0.2.1".parse().unwrap());
        let mine: Vec<_> =
            (0..OF_A_SOURCE).map(|n| lobby.enter(format!("2001:db8::{n:x}").parse().unwrap())).collect();
        assert_eq!(lobby.len(), OF_A_SOURCE + 1);
        let _one_more = lobby.enter("2001:db8::ffff".parse().unwrap());
        assert_eq!(lobby.len(), OF_A_SOURCE + 1);
        assert!(!lobby.lock().connections.contains_key(&mine[0].number));
        assert!(lobby.lock().connections.contains_key(&other.number));
        drop((mine, other));
        assert_eq!(lobby.len(), 1);
        assert_eq!(lobby.lock().sources.len(), 1, "sources without connections take no memory");
    }

    #[test]
    fn what_a_web_server_on_this_host_passes_on_is_no_crowd_of_its_own() {
        let lobby = lobby();
        for (address, expected) in
            [("127.0.0.1", 100), ("::ffff:127.0.0.1", 200), ("::1", 300), ("192.0.2.1", 364)]
        {
            let all: Vec<_> = (0..100).map(|_| lobby.enter(address.parse().unwrap())).collect();
            assert_eq!(lobby.len(), expected, "{address}");
            std::mem::forget(all);
        }
    }

    #[test]
    fn a_crowd_from_everywhere_pushes_out_the_oldest() {
        let lobby = lobby();
        let crowd: Vec<_> = (0..IN_ALL as u32).map(|n| lobby.enter(IpAddr::from(n.to_be_bytes()))).collect();
        let _late = lobby.enter("203.0.113.1".parse().unwrap());
        assert_eq!(lobby.len(), IN_ALL);
        assert!(!lobby.lock().connections.contains_key(&crowd[0].number));
    }

    #[test]
    fn who_goes_leaves_by_the_last_exit_and_who_has_left_by_none() {
        let lobby = Lobby::new(8);
        let ended = Arc::new(AtomicUsize::new(0));
        let place = |last: u8| lobby.enter(IpAddr::from([192, 0, 2, last]));
        let add = |amount: usize| {
            let ended = Arc::clone(&ended);
            move || {
                ended.fetch_add(amount, Relaxed);
            }
        };
        let first = place(1);
        assert!(first.leave_by(add(1)) && first.leave_by(add(10)));
        let second = place(2);
        assert!(second.leave_by(add(100)));
        let _third = place(3);
        assert_eq!(ended.load(Relaxed), 10, "the oldest of three where two may wait");
        assert!(!first.leave_by(add(1_000)), "it is out");
        drop(second);
        let _fourth = place(4);
        assert_eq!((ended.load(Relaxed), lobby.len()), (10, 2), "there was room");
    }

    #[test]
    fn few_descriptors_make_a_small_lobby() {
        for (descriptors, in_all, of_a_source) in [
            (u64::MAX, 1_000, 64),
            (4_096, 1_000, 64),
            (1_024, 256, 64),
            (256, 64, 16),
            (20, 5, 2),
            (0, 1, 1),
        ] {
            let caps = Caps::of(descriptors);
            assert_eq!((caps.in_all, caps.of_a_source), (in_all, of_a_source), "{descriptors}");
        }
        let lobby = Lobby::new(256);
        let crowd: Vec<_> = (0..200u32).map(|n| lobby.enter(IpAddr::from(n.to_be_bytes()))).collect();
        assert_eq!((lobby.len(), crowd.len()), (64, 200));
    }
}
