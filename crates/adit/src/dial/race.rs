//! Trying every way at once, until the gateway answers by one.

use std::time::Duration;

use adit_proto::endpoint::{Carrier, Endpoint};
use adit_proto::event::{Command, PeerUpdate};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{At, Caller, News, Over, PAUSE_MAX, PAUSE_MIN};
use crate::config::CarrierChoice;
use crate::driver::NewStream;
use crate::stream::{LinkError, Way, connect};

/// How long a WebSocket waits for what is simpler.
const WEBSOCKET_LATER: Duration = Duration::from_millis(700);
/// How long the gateway has to answer by a new way.
const PROOF: Duration = Duration::from_secs(3);

type Attempts = JoinSet<(Way, Result<NewStream, LinkError>)>;

/// A connection by which the gateway was asked within the session.
struct Candidate {
    way: Way,
    endpoint: Endpoint,
    until: Instant,
}

impl Caller {
    pub(super) async fn race(&mut self) -> Result<At, Over> {
        loop {
            let at = self.race_once().await?;
            if !matches!(at, At::Nowhere) {
                self.pause = PAUSE_MIN;
                self.told = None;
                return Ok(at);
            }
            if self.choice == CarrierChoice::Auto {
                // Nothing but UDP is left to hope for.
                if self.has_session() {
                    self.challenge(self.udp());
                } else {
                    self.remote.apply(vec![Command::Restart(self.target.peer, self.udp())]);
                }
            }
            let until = Instant::now() + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            while let Some(news) = self.next(until).await? {
                if let News::NetworkChanged = news {
                    self.is_elsewhere();
                    break;
                }
                if let Some(at) = self.udp_came_back(&news) {
                    return Ok(at);
                }
            }
        }
    }

    async fn race_once(&mut self) -> Result<At, Over> {
        let mut attempts = self.attempts();
        let mut candidates = Vec::new();
        let mut unanswered = Vec::new();
        loop {
            let first = candidates.iter().map(|it: &Candidate| it.until).min();
            if attempts.is_empty() && first.is_none() {
                break;
            }
            tokio::select! {
                biased;
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok((way, Ok(new))) if self.has_session() => {
                        if let Some(endpoint) = self.streams.adopt(new) {
                            self.challenge(endpoint);
                            candidates.push(Candidate { way, endpoint, until: Instant::now() + PROOF });
                        }
                    }
                    Ok((way, Ok(new))) => match self.shake(way, new).await? {
                        At::Nowhere => {}
                        at => {
                            self.leave(candidates);
                            return Ok(at);
                        }
                    },
                    Ok((way, Err(error))) => self.complain(way, &error),
                    Err(_) => {}
                },
                news = self.news.recv() => match news.ok_or(Over)? {
                    News::NetworkChanged => {
                        // What was begun there leads nowhere; it would be waited for in vain.
                        self.is_elsewhere();
                        self.leave(std::mem::take(&mut candidates));
                        unanswered.clear();
                        attempts = self.attempts();
                    }
                    News::Answered(by) if candidates.iter().any(|it| it.endpoint.carrier == by.carrier) => {
                        let (mut won, others): (Vec<_>, Vec<_>) =
                            candidates.into_iter().partition(|it| it.endpoint.carrier == by.carrier);
                        self.leave(others);
                        let Some(Candidate { way, endpoint, .. }) = won.pop() else { return Ok(At::Nowhere) };
                        self.remote.apply(vec![Command::Move(self.target.peer, endpoint)]);
                        return Ok(self.arrived(way, endpoint));
                    }
                    News::Ended(number) => {
                        let ended = |it: &mut Candidate| it.endpoint.carrier.connection() == Some(number);
                        unanswered.extend(candidates.extract_if(.., ended).map(|it| it.way));
                    }
                    // Also a gateway that was started anew calls, by the way it remembers.
                    news => {
                        if let Some(at) = self.udp_came_back(&news) {
                            self.leave(candidates);
                            return Ok(at);
                        }
                    }
                },
                () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {
                    let now = Instant::now();
                    let late: Vec<_> = candidates.extract_if(.., |it| it.until <= now).collect();
                    unanswered.extend(late.iter().map(|it| it.way));
                    self.leave(late);
                }
            }
        }
        // The gateway may have been started anew, and know nothing of the session.
        for way in unanswered {
            let at = match connect(&self.target.link.clone(), way).await {
                Ok(new) => self.shake(way, new).await?,
                Err(error) => {
                    self.complain(way, &error);
                    At::Nowhere
                }
            };
            if !matches!(at, At::Nowhere) {
                // It was the gateway that was gone, and not UDP.
                self.way_back.forget(Instant::now());
                return Ok(at);
            }
        }
        Ok(At::Nowhere)
    }

    fn attempts(&self) -> Attempts {
        let mut attempts = JoinSet::new();
        for way in self.ways() {
            let link = self.target.link.clone();
            let is_later = way == Way::Wss && self.choice == CarrierChoice::Auto;
            let later = if is_later { WEBSOCKET_LATER } else { Duration::ZERO };
            attempts.spawn(async move {
                tokio::time::sleep(later).await;
                (way, connect(&link, way).await)
            });
        }
        attempts
    }

    /// Moves to a new connection by a handshake over it.
    async fn shake(&mut self, way: Way, new: NewStream) -> Result<At, Over> {
        let Some(endpoint) = self.streams.adopt(new) else { return Ok(At::Nowhere) };
        self.remote.apply(vec![Command::Restart(self.target.peer, endpoint)]);
        let until = Instant::now() + PROOF;
        let mut by_udp = None;
        while let Some(news) = self.next(until).await? {
            match news {
                News::Established(by) if by.carrier == endpoint.carrier => {
                    return Ok(self.arrived(way, endpoint));
                }
                News::Ended(number) if Some(number) == endpoint.carrier.connection() => break,
                News::NetworkChanged => {
                    self.is_elsewhere();
                    break;
                }
                news => {
                    by_udp = self.udp_came_back(&news).or(by_udp);
                    if by_udp.is_some() {
                        break;
                    }
                }
            }
        }
        self.streams.close(endpoint.carrier.connection().unwrap_or_default());
        if by_udp.is_none() {
            self.complain_of(way, "the gateway does not answer by it");
            if self.choice == CarrierChoice::Auto {
                // Nothing is to go where nobody has answered.
                let mut update = PeerUpdate::new(self.target.peer);
                (update.update_only, update.endpoint) = (true, Some(self.udp()));
                self.remote.apply(vec![Command::SetPeer(update)]);
            }
        }
        Ok(by_udp.unwrap_or(At::Nowhere))
    }

    fn leave(&self, candidates: Vec<Candidate>) {
        for number in candidates.iter().filter_map(|it| it.endpoint.carrier.connection()) {
            self.streams.close(number);
        }
    }

    /// Another network: what was learnt of the one before counts no more.
    fn is_elsewhere(&mut self) {
        self.pause = PAUSE_MIN;
        self.way_back.forget(Instant::now());
    }

    fn arrived(&self, way: Way, endpoint: Endpoint) -> At {
        tracing::info!(
            carrier = way.name(),
            "the gateway {} is reached by a connection",
            self.target.link.name
        );
        At::Stream(way, endpoint)
    }

    /// Where there was no way, UDP may be the first to work.
    fn udp_came_back(&mut self, news: &News) -> Option<At> {
        let by = match news {
            News::Established(by) | News::Answered(by) => by,
            News::Address(address) => {
                self.target.move_to(*address);
                return None;
            }
            _ => return None,
        };
        if by.carrier != Carrier::Udp || self.choice != CarrierChoice::Auto {
            return None;
        }
        self.remote.apply(vec![Command::Move(self.target.peer, self.udp())]);
        tracing::info!("the gateway {} answers over UDP", self.target.link.name);
        Some(At::Udp)
    }

    fn ways(&self) -> Vec<Way> {
        let link = &self.target.link;
        match self.choice {
            CarrierChoice::Tcp => vec![Way::Tcp],
            CarrierChoice::Tls => vec![Way::Tls],
            CarrierChoice::Wss => vec![Way::Wss],
            CarrierChoice::Auto
                if link.verify == crate::config::stream::TlsVerify::Pin && link.pin.is_none() =>
            {
                vec![Way::Tcp]
            }
            CarrierChoice::Auto => vec![Way::Tcp, Way::Tls, Way::Wss],
            CarrierChoice::Udp => Vec::new(),
        }
    }
}
