//! How many connections a proxy has at a time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most, whatever the process may open.
const MOST: u64 = 4_096;
/// Descriptors for everything that is no client.
const RESERVED: u64 = 64;
/// The most that a client's connection opens: itself and a socket for datagrams.
const EACH: u64 = 2;

/// Clients come in one by one, and a new one is turned away at once when it is full.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Semaphore>);

/// A place inside; given back when dropped.
#[derive(Debug)]
pub(super) struct Pass(#[allow(dead_code)] OwnedSemaphorePermit);

impl Gate {
    pub(super) fn new(descriptors: u64) -> Self {
        let places = (descriptors.saturating_sub(RESERVED) / EACH).clamp(16, MOST);
        Self(Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(16))))
    }

    pub(super) fn places(&self) -> usize {
        self.0.available_permits()
    }

    pub(super) fn enter(&self) -> Option<Pass> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_when_it_is_full_is_turned_away_until_somebody_leaves() {
        let gate = Gate::new(100);
        let mut inside: Vec<_> = std::iter::from_fn(|| gate.enter()).collect();
        assert_eq!(inside.len(), 18);
        assert!(gate.enter().is_none());
        inside.pop();
        assert!(gate.enter().is_some());
        assert_eq!(Gate::new(u64::MAX).places(), 4_096);
    }
}
