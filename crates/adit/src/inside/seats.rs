use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use adit_proto::key::PublicKey;

/// Places that are taken and given back: so many for each peer, so many in all. Whoever finds none is turned away.
#[derive(Clone, Debug)]
pub(super) struct Seats {
    taken: Arc<Mutex<HashMap<PublicKey, usize>>>,
    of_a_peer: usize,
    in_all: usize,
}

/// A place, until dropped.
#[derive(Debug)]
pub(super) struct Seat {
    taken: Arc<Mutex<HashMap<PublicKey, usize>>>,
    peer: PublicKey,
}

impl Seats {
    pub(super) fn new(of_a_peer: usize, in_all: usize) -> Self {
        Self { taken: Arc::default(), of_a_peer, in_all }
    }

    pub(super) fn take(&self, peer: PublicKey) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = taken.get(&peer).copied().unwrap_or(0);
        if mine >= self.of_a_peer || taken.values().sum::<usize>() >= self.in_all {
            return None;
        }
        taken.insert(peer, mine + 1);
        Some(Seat { taken: Arc::clone(&self.taken), peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PublicKey = PublicKey([1; 32]);
    const B: PublicKey = PublicKey([2; 32]);
    const C: PublicKey = PublicKey([3; 32]);

    #[test]
    fn a_peer_has_its_share_and_leaves_the_rest_to_others() {
        let seats = Seats::new(2, 3);
        let mine = [seats.take(A).unwrap(), seats.take(A).unwrap()];
        assert!(seats.take(A).is_none());
        let _other = seats.take(B).unwrap();
        assert!(seats.take(C).is_none(), "all are taken");
        drop(mine);
        assert!(seats.take(C).is_some() && seats.take(A).is_some());
    }

    #[test]
    fn peers_without_a_seat_take_no_memory() {
        let seats = Seats::new(2, 3);
        drop([seats.take(A), seats.take(A), seats.take(B)]);
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
