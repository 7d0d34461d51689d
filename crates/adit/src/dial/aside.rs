//! A second connection beside the one that carries the session, for flows that send little.
//!
//! It is opened once the first has stood for a moment, in the same way as that, and used when the gateway has answered by
//! it. Without it everything goes by the first one.

use std::sync::Arc;
use std::time::Duration;

use adit_proto::endpoint::Endpoint;
use adit_proto::event::Command;
use adit_proto::key::PublicKey;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Questions;
use crate::driver::{NewStream, Remote, Streams};
use crate::stream::{Link, LinkError, Way, connect};

/// How long the first connection is alone.
const LATER: Duration = Duration::from_millis(500);
/// How long the gateway has to answer.
const PROOF: Duration = Duration::from_secs(3);
/// Between attempts.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// The connection beside one; it ends with this.
pub(super) struct Aside {
    streams: Arc<Streams>,
    remote: Remote,
    peer: PublicKey,
    way: Way,
    state: State,
    pause: Duration,
}

enum State {
    /// To be opened then.
    Due(Instant),
    Opening(JoinHandle<Result<NewStream, LinkError>>),
    /// The gateway is to answer by then.
    Asked(Endpoint, Instant),
    /// In use, and whether it was asked for itself.
    Open(Endpoint, Questions),
}

impl Aside {
    pub(super) fn new(streams: Arc<Streams>, remote: Remote, peer: PublicKey, way: Way) -> Self {
        let state = State::Due(Instant::now() + LATER);
        Self { streams, remote, peer, way, state, pause: PAUSE_MIN }
    }

    /// What is due; to be called every now and then.
    pub(super) async fn tend(&mut self, link: &Link) {
        // That it ended is told, but news can be lost.
        if self.number().is_some_and(|number| !self.streams.is_open(number)) {
            self.later();
        }
        match &mut self.state {
            State::Due(at) if Instant::now() >= *at => {
                let (link, way) = (link.clone(), self.way);
                self.state = State::Opening(tokio::spawn(async move { connect(&link, way).await }));
            }
            State::Opening(attempt) if attempt.is_finished() => match attempt.await {
                Ok(Ok(new)) => self.ask(new),
                _ => self.later(),
            },
            State::Asked(_, until) if Instant::now() >= *until => {
                tracing::debug!("the gateway does not answer by a second connection");
                self.later();
            }
            State::Open(_, asked) if asked.are_in_vain() => {
                tracing::debug!("the gateway does not answer by the second connection any more");
                self.later();
            }
            State::Due(_) | State::Opening(_) | State::Asked(..) | State::Open(..) => {}
        }
    }

    /// The gateway has answered a challenge by this way.
    pub(super) fn answered(&mut self, by: &Endpoint) {
        if let State::Asked(endpoint, _) = self.state
            && endpoint.carrier == by.carrier
        {
            self.streams.accompany(&self.peer, endpoint);
            self.state = State::Open(endpoint, Questions::default());
            self.pause = PAUSE_MIN;
        } else if let State::Open(endpoint, asked) = &mut self.state
            && endpoint.carrier == by.carrier
        {
            *asked = Questions::default();
        }
    }

    /// Where to ask whether it still works, when it is in use: an answer has to come from now on.
    pub(super) fn ask_again(&mut self) -> Option<Endpoint> {
        let State::Open(endpoint, asked) = &mut self.state else { return None };
        asked.note();
        Some(*endpoint)
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, number: u64) {
        if self.number() == Some(number) {
            self.later();
        }
    }

    /// Its number; it does not end with this any more.
    pub(super) fn take_number(mut self) -> Option<u64> {
        let number = self.number();
        if number.is_some() {
            self.state = State::Due(Instant::now());
        }
        number
    }

    fn ask(&mut self, new: NewStream) {
        let Some(endpoint) = self.streams.adopt_aside(new) else { return self.later() };
        let mut chosen = [0; 8];
        let _ = aws_lc_rs::rand::fill(&mut chosen);
        self.remote.apply(vec![Command::Accompany(self.peer, endpoint, chosen)]);
        self.state = State::Asked(endpoint, Instant::now() + PROOF);
    }

    fn later(&mut self) {
        self.end();
        self.state = State::Due(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn number(&self) -> Option<u64> {
        match self.state {
            State::Asked(endpoint, _) | State::Open(endpoint, _) => endpoint.carrier.connection(),
            State::Due(_) | State::Opening(_) => None,
        }
    }

    fn end(&self) {
        if let State::Opening(attempt) = &self.state {
            attempt.abort();
        }
        if let Some(number) = self.number() {
            self.streams.close(number);
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.end();
    }
}
