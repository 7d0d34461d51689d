//! The inside API: what the gateway tells and does for its peers, on its inside addresses only.
//! `docs/inside-api.md` is its contract.
//!
//! ```text
//!   peer ─► tunnel ─► lane: cryptokey routing ─► TUN ─► door (address, port, interface) ─► caller ─► answer
//! ```
//!
//! A caller is known by its inside address: a packet that a lane lets out of the TUN device comes from the peer whose
//! allowed IPs hold its source. The doors are bound to the TUN device, so nothing else reaches them.

mod caller;
mod door;
mod echo;
mod enrolment;
mod question;
mod request;
mod seats;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use adit_proto::forward::Forwarding;
use adit_proto::key::PublicKey;
use tokio::sync::watch;

use self::caller::Callers;
use self::door::Kind;
use self::enrolment::Enrolment;
use self::request::Desk;
use crate::enrol::Office;

pub use self::caller::Facts;
pub use self::echo::{PROBE_BYTES, probe, sequence_of_answer};
pub use self::enrolment::{PATH as ENROL_PATH, question as enrol_question};
pub use self::question::{WhoAmI, whoami};
pub use self::request::TRANSFER_HEADER;
pub use self::transfer::{Filler, SECONDS_MAX as TRANSFER_SECONDS_MAX};

/// Where the API answers, and what it knows about peers.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The tunnel interface.
    pub interface: String,
    /// Our own inside addresses, each with the port.
    pub addresses: Vec<SocketAddr>,
    /// The peers that may call.
    pub peers: Arc<HashMap<PublicKey, Facts>>,
    /// Those who are invited, and may ask to become peers.
    pub invited: Arc<HashSet<PublicKey>>,
}

/// The running API: one thread for HTTP, one for echoes, so that a transfer does not delay them. It ends when dropped.
#[derive(Debug)]
pub struct InsideApi {
    wanted: Option<watch::Sender<Wanted>>,
    threads: Vec<JoinHandle<()>>,
}

impl InsideApi {
    /// Starts the threads. Nobody can join without an office. Addresses that cannot be had now are tried again until they can.
    ///
    /// # Errors
    /// The system has no more threads or descriptors.
    pub fn start(
        forwarding: &Arc<Forwarding>,
        first: Wanted,
        office: Option<Arc<Office>>,
    ) -> io::Result<Self> {
        let desk = Arc::new(Desk::new(Enrolment::new(office)));
        let (sender, wanted) = watch::channel(first);
        let mut threads = Vec::new();
        for (name, kind) in [("inside-api", Kind::Http(desk)), ("inside-echo", Kind::Echo)] {
            let callers = Callers::new(Arc::clone(forwarding), wanted.clone());
            let wanted = wanted.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(name.into());
            threads.push(thread.spawn(move || {
                runtime.block_on(door::keep_open(kind, callers, wanted));
                // An enrolment may wait for the very thread that ends this one.
                runtime.shutdown_background();
            })?);
        }
        Ok(Self { wanted: Some(sender), threads })
    }

    /// Moves to other addresses, or learns about other peers. Conversations at addresses that stay go on.
    pub fn change(&self, wanted: Wanted) {
        if let Some(sender) = &self.wanted {
            sender.send_replace(wanted);
        }
    }
}

impl Drop for InsideApi {
    fn drop(&mut self) {
        self.wanted = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
