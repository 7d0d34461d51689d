//! Where readers and writers leave word for the thread of the stack.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adit_io::poll::Waker;

use super::buffer::Budget;
use super::datagram::{Datagram, Inbound};
use super::flow::Flow;
use super::listener::Backlog;

/// Datagrams that wait to leave; what comes later is dropped.
const DATAGRAMS: usize = 1_024;

#[derive(Debug)]
pub(super) struct Desk {
    /// Our inside addresses.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mtu_bytes: usize,
    pub(super) budget: Budget,
    pub(super) waker: Waker,
    /// The thread sleeps, or is about to: word has to wake it.
    asleep: AtomicBool,
    word: Mutex<Word>,
    bound: Mutex<Bound>,
}

/// What was left for the thread.
#[derive(Debug, Default)]
pub(super) struct Word {
    pub(super) connects: Vec<(Arc<Flow>, SocketAddr)>,
    pub(super) flows: Vec<Arc<Flow>>,
    pub(super) datagrams: VecDeque<Datagram>,
    ended: bool,
}

/// Who waits for what comes unasked.
#[derive(Debug, Default)]
pub(super) struct Bound {
    pub(super) datagrams: HashMap<SocketAddr, Arc<Inbound>>,
    pub(super) listeners: HashMap<u16, Arc<Backlog>>,
}

impl Desk {
    pub(super) fn new(addresses: Vec<IpAddr>, mtu_bytes: usize) -> std::io::Result<Self> {
        Ok(Self {
            addresses,
            mtu_bytes,
            budget: Budget::default(),
            waker: Waker::new()?,
            asleep: AtomicBool::new(true),
            word: Mutex::default(),
            bound: Mutex::default(),
        })
    }

    /// The longest payload of a TCP segment, over either IP version.
    pub(super) fn segment_bytes(&self) -> usize {
        self.mtu_bytes.saturating_sub(60)
    }

    /// Asks for a connection. False when the stack has ended.
    pub(super) fn connect(&self, flow: Arc<Flow>, remote: SocketAddr) -> bool {
        self.leave(|word| word.connects.push((flow, remote)))
    }

    /// Has the thread look after a connection.
    pub(super) fn look_after(&self, flow: &Arc<Flow>) {
        if !flow.asked.swap(true, Ordering::AcqRel) {
            self.leave(|word| word.flows.push(Arc::clone(flow)));
        }
    }

    /// Sends a datagram, or drops it when too many wait. False when the stack has ended.
    pub(super) fn send(&self, datagram: Datagram) -> bool {
        self.leave(|word| {
            if word.datagrams.len() < DATAGRAMS {
                word.datagrams.push_back(datagram);
            }
        })
    }

    pub(super) fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Everything that was left so far.
    pub(super) fn take(&self) -> Word {
        let mut word = self.lock();
        let ended = word.ended;
        let taken = std::mem::take(&mut *word);
        word.ended = ended;
        for flow in &taken.flows {
            flow.asked.store(false, Ordering::Release);
        }
        taken
    }

    /// The thread goes to sleep unless word was left meanwhile: whether it may.
    pub(super) fn go_to_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let word = self.lock();
        let nothing = word.connects.is_empty() && word.flows.is_empty() && word.datagrams.is_empty();
        if !nothing {
            self.asleep.store(false, Ordering::SeqCst);
        }
        nothing
    }

    pub(super) fn stay_awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// No word is taken from now on.
    pub(super) fn end(&self) -> Word {
        self.lock().ended = true;
        self.take()
    }

    fn leave(&self, with: impl FnOnce(&mut Word)) -> bool {
        {
            let mut word = self.lock();
            if word.ended {
                return false;
            }
            with(&mut word);
        }
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
