//! Who has come in and not shown yet why: few from one place, not many in all, and the oldest goes first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Unproven connections in all.
pub(super) const IN_ALL: usize = 1_000;
/// Unproven connections from one IPv4 address or IPv6 /64.
pub(super) const OF_A_SOURCE: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Lobby(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, (Source, Option<AbortHandle>)>,
    sources: HashMap<Source, usize>,
}

/// An IPv4 address, or the first half of an IPv6 one.
type Source = [u8; 8];

/// A place in the lobby, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    lobby: Lobby,
    number: u64,
}

impl Lobby {
    /// Takes somebody in, and shows the oldest out when it is full.
    pub(super) fn enter(&self, from: IpAddr) -> Place {
        let source = source_of(from);
        let mut waiting = self.lock();
        let crowded = waiting.sources.get(&source).copied().unwrap_or(0) >= OF_A_SOURCE;
        let full = waiting.connections.len() >= IN_ALL;
        let oldest = waiting
            .connections
            .iter()
            .find(|(_, (of, _))| full || crowded && *of == source)
            .map(|(number, _)| *number);
        let gone = oldest.filter(|_| full || crowded).and_then(|number| waiting.remove(number));
        let number = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(number, (source, None));
        *waiting.sources.entry(source).or_default() += 1;
        drop(waiting);
        // Aborting may drop the place of the one that goes, which needs the lock.
        if let Some(task) = gone {
            task.abort();
        }
        Place { lobby: self.clone(), number }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().connections.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn remove(&mut self, number: u64) -> Option<AbortHandle> {
        let (source, task) = self.connections.remove(&number)?;
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
        task
    }
}

impl Place {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Lobby {
    /// What ends when the one with this place has to go.
    pub(super) fn set_task(&self, number: u64, task: AbortHandle) {
        match self.lock().connections.get_mut(&number) {
            Some((_, slot)) => *slot = Some(task),
            // It left, or was shown out before it was known how.
            None => task.abort(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.lock().remove(self.number);
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
    use super::*;

    #[test]
    fn one_source_pushes_out_only_its_own_oldest() {
        let lobby = Lobby::default();
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
    fn a_crowd_from_everywhere_pushes_out_the_oldest() {
        let lobby = Lobby::default();
        let crowd: Vec<_> = (0..IN_ALL as u32).map(|n| lobby.enter(IpAddr::from(n.to_be_bytes()))).collect();
        let _late = lobby.enter("203.0.113.1".parse().unwrap());
        assert_eq!(lobby.len(), IN_ALL);
        assert!(!lobby.lock().connections.contains_key(&crowd[0].number));
    }
}
