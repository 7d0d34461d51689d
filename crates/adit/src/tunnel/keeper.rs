//! Keeps a tunnel reached: follows peers that move, asks for their names again when they are silent.

use std::collections::HashSet;
use std::thread::JoinHandle;
use std::time::Duration;

use adit_proto::endpoint::Carrier;
use adit_proto::event::{Command, Event, PeerUpdate};
use adit_proto::key::PublicKey;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use tokio::sync::watch;

use crate::dial::Dial;
use crate::driver::{Driver, DriverEvent};
use crate::endpoint::Endpoints;

/// Whether the tunnel carries anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// No peer has answered yet.
    Waiting,
    /// A peer has answered.
    Up,
    /// No peer answers.
    Silent,
    /// The tunnel has ended, for this reason.
    Ended(String),
}

/// Ends the tunnel when dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

struct Watch {
    // The first to go: it changes the driver.
    dial: Option<Dial>,
    driver: Driver,
    endpoints: Endpoints,
    heard: HashSet<PublicKey>,
    link: watch::Sender<Link>,
}

impl Keeper {
    pub(super) fn start(
        driver: Driver,
        dial: Option<Dial>,
        endpoints: Endpoints,
    ) -> std::io::Result<(Self, watch::Receiver<Link>)> {
        let (stop, stopped) = bounded(1);
        let (link, watched) = watch::channel(Link::Waiting);
        let watch = Watch { dial, driver, endpoints, heard: HashSet::new(), link };
        let thread = std::thread::Builder::new().name("tunnel".into()).spawn(move || watch.run(&stopped))?;
        Ok((Self { stop, thread: Some(thread) }, watched))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Watch {
    fn run(mut self, stopped: &Receiver<()>) {
        let (events, answers) = (self.driver.events(), self.endpoints.answers());
        loop {
            select! {
                recv(stopped) -> _ => return,
                recv(events) -> event => match event {
                    Ok(DriverEvent::Protocol(event)) => self.happened(event),
                    Ok(event @ DriverEvent::StreamEnded(_)) => self.dial.iter().for_each(|it| it.tell(&event)),
                    Ok(DriverEvent::DeviceGone) => {}
                    Ok(DriverEvent::Failed(reason)) => {
                        tracing::error!("the tunnel ends: {reason}");
                        self.link.send_replace(Link::Ended(reason));
                        return;
                    }
                    Err(_) => return,
                },
                recv(answers) -> answer => {
                    if let Some((peer, address)) = answer.ok().and_then(|answer| self.endpoints.answered(answer)) {
                        tracing::info!(%address, "trying another endpoint");
                        if self.dial.as_ref().is_some_and(|dial| dial.has_moved(&peer, address)) {
                            continue;
                        }
                        let mut update = PeerUpdate::new(peer);
                        update.update_only = true;
                        update.endpoint = Some(adit_proto::endpoint::Endpoint::udp(address));
                        self.driver.apply(vec![Command::SetPeer(update), Command::Initiate(peer)]);
                    }
                }
                default(Duration::from_secs(5)) => self.endpoints.ask_for_missing(),
            }
        }
    }

    fn happened(&mut self, event: Event) {
        let event = DriverEvent::Protocol(event);
        if let Some(dial) = &self.dial {
            dial.tell(&event);
        }
        let DriverEvent::Protocol(event) = &event else { return };
        match event {
            Event::SessionEstablished { peer, endpoint, handshake_time } => {
                if endpoint.carrier == Carrier::Udp {
                    self.endpoints.heard(peer, endpoint.remote);
                }
                if self.heard.insert(*peer) {
                    let millis = handshake_time.map(|took| took.as_millis());
                    tracing::info!(endpoint = %endpoint.remote, millis, "session established");
                }
                self.become_link(Link::Up);
            }
            Event::Roamed { peer, endpoint } if endpoint.carrier == Carrier::Udp => {
                self.endpoints.heard(peer, endpoint.remote);
            }
            Event::Roamed { .. } | Event::WayAnswered { .. } => {}
            Event::EndpointSilent { peer, .. } | Event::HandshakeGaveUp { peer } => {
                self.endpoints.silent(peer);
                self.heard.remove(peer);
                if self.heard.is_empty() {
                    self.become_link(Link::Silent);
                }
            }
            Event::KeysErased { .. } | Event::AccessChanged { .. } => {}
        }
    }

    fn become_link(&self, link: Link) {
        self.link.send_if_modified(|now| {
            let changed = *now != link;
            if changed && link == Link::Silent {
                tracing::warn!("the gateway does not answer; connections are refused until it does");
            }
            *now = link;
            changed
        });
    }
}
