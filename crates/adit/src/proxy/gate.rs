//! How many connections a proxy has at a time.
//!
//! ```text
//!   with a password:     waiting room ── the right one ──▶ inside
//!   without (loopback):  ─────────────────────────────────▶ inside
//! ```
//!
//! Who has said no password yet takes no place of those who have: the waiting room is small, and in a full one whoever
//! waits longest goes, first of those from the same source.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

/// The most, whatever the process may open.
const MOST: u64 = 4_096;
/// Descriptors for everything that is no client.
const RESERVED: u64 = 64;
/// The most that a client's connection opens: itself and a socket for datagrams.
const EACH: u64 = 2;
/// The most that wait, and of which share of the descriptors.
const WAITING_MOST: u64 = 512;
const WAITING_SHARE: u64 = 16;
/// Of those that wait, the share that one source may have.
const SOURCE_SHARE: usize = 4;

/// Clients come in one by one, and a new one is turned away at once when it is full.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    places: Arc<Semaphore>,
    room: Arc<Mutex<Room>>,
}

/// A place inside; given back when dropped.
#[derive(Debug)]
pub(super) struct Pass(#[allow(dead_code)] OwnedSemaphorePermit);

/// Those who wait, the longest first.
#[derive(Debug)]
struct Room {
    most: usize,
    next: u64,
    waiting: VecDeque<Guest>,
}

#[derive(Debug)]
struct Guest {
    number: u64,
    source: IpAddr,
    task: Option<AbortHandle>,
}

/// A place in the waiting room; given back when dropped.
#[derive(Debug)]
struct Waiting {
    number: u64,
    room: Arc<Mutex<Room>>,
}

/// Where a client is.
#[derive(Debug)]
pub(super) struct Place {
    gate: Gate,
    held: Mutex<Held>,
}

#[derive(Debug)]
enum Held {
    Waiting(#[allow(dead_code)] Waiting),
    Inside(#[allow(dead_code)] Pass),
}

impl Gate {
    pub(super) fn new(descriptors: u64) -> Self {
        let waiting = (descriptors / WAITING_SHARE).min(WAITING_MOST);
        let places = (descriptors.saturating_sub(RESERVED + waiting) / EACH).clamp(16, MOST);
        let room = Room {
            most: usize::try_from(waiting).unwrap_or(0).max(SOURCE_SHARE),
            next: 0,
            waiting: VecDeque::new(),
        };
        Self {
            places: Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(16))),
            room: Arc::new(Mutex::new(room)),
        }
    }

    pub(super) fn places(&self) -> usize {
        self.places.available_permits()
    }

    pub(super) fn enter(&self) -> Option<Pass> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(Pass)
    }

    /// A place inside, at once.
    pub(super) fn place_inside(&self) -> Option<Place> {
        let held = Held::Inside(self.enter()?);
        Some(Place { gate: self.clone(), held: Mutex::new(held) })
    }

    /// Serves, as a task of its own, a client that has still to say the password.
    pub(super) fn receive<F>(&self, from: IpAddr, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let source = source_of(from);
        let (number, gone) = self.room().take_in(source);
        if let Some(task) = gone {
            tracing::debug!(%source, "hung up on who said no password: others wait");
            task.abort();
        }
        let waiting = Waiting { number, room: Arc::clone(&self.room) };
        let place = Place { gate: self.clone(), held: Mutex::new(Held::Waiting(waiting)) };
        let task = tokio::spawn(serve(place)).abort_handle();
        if let Some(guest) = self.room().waiting.iter_mut().find(|guest| guest.number == number) {
            guest.task = Some(task);
        }
    }

    fn room(&self) -> std::sync::MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// The number of the new guest, and the task of who has to go for it.
    fn take_in(&mut self, source: IpAddr) -> (u64, Option<AbortHandle>) {
        let same = self.waiting.iter().filter(|guest| guest.source == source).count();
        let leaves = match same >= (self.most / SOURCE_SHARE).max(1) {
            true => self.waiting.iter().position(|guest| guest.source == source),
            false => (self.waiting.len() >= self.most).then_some(0),
        };
        let gone = leaves.and_then(|at| self.waiting.remove(at)).and_then(|guest| guest.task);
        let number = self.next;
        self.next += 1;
        self.waiting.push_back(Guest { number, source, task: None });
        (number, gone)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.waiting.retain(|guest| guest.number != self.number);
    }
}

impl Place {
    /// Takes a place inside for who may have one and has none yet; `false` when it is full.
    pub(super) fn come_in(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Held::Inside(_) => true,
            Held::Waiting(_) => match self.gate.enter() {
                Some(pass) => {
                    *held = Held::Inside(pass);
                    true
                }
                None => false,
            },
        }
    }
}

/// Who is counted as one: an address, or of IPv6 a network of 64 bits, which one machine has to itself.
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_when_it_is_full_is_turned_away_until_somebody_leaves() {
        let gate = Gate::new(200);
        let mut inside: Vec<_> = std::iter::from_fn(|| gate.enter()).collect();
        assert_eq!(inside.len(), 62);
        assert!(gate.enter().is_none());
        inside.pop();
        assert!(gate.enter().is_some());
        assert_eq!(Gate::new(u64::MAX).places(), 4_096);
    }

    #[tokio::test]
    async fn who_says_no_password_takes_no_place_inside_and_goes_first() {
        let gate = Gate::new(1_600);
        let places = gate.places();
        let [crowd, other]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|it| it.parse().unwrap());
        let (sender, mut seated) = tokio::sync::mpsc::unbounded_channel();
        // The one who comes first waits longest, but is of another source.
        gate.receive(other, |place| {
            let sender = sender.clone();
            async move {
                sender.send(place).unwrap();
            }
        });
        for _ in 0..2_000 {
            gate.receive(crowd, |place| async move {
                let _place = place;
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(gate.places(), places, "all places are free");
        assert_eq!(gate.room().waiting.len(), 25 + 1, "a quarter of the room, and the other");
        let place = seated.recv().await.unwrap();
        assert!(place.come_in() && place.come_in());
        assert_eq!((gate.places(), gate.room().waiting.len()), (places - 1, 25));
        drop(place);
        assert_eq!(gate.places(), places);
    }

    #[tokio::test]
    async fn of_many_sources_no_more_wait_than_there_is_room() {
        let gate = Gate::new(1_600);
        for number in 0..1_000_u32 {
            let from = IpAddr::V4((0x0a00_0000 + number).into());
            gate.receive(from, |place| async move {
                let _place = place;
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(gate.room().waiting.len(), 100);
        assert_eq!(
            gate.room().waiting[0].source,
            "10.0.3.132".parse::<IpAddr>().unwrap(),
            "the last hundred"
        );
    }

    #[test]
    fn a_machine_with_a_network_of_ipv6_addresses_is_one_source() {
        let source = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }
}
