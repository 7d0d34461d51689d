//! Connections beside the one that carries the session, for flows that send little: one, and another when the way loses
//! packets.
//!
//! Each is opened once the first has stood for a moment, in the same way as that, and used when the gateway has answered
//! by it. Without any everything goes by the first one.

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
/// Where one of two ends so soon, it is because there were two.
const SOON: Duration = Duration::from_secs(10);
/// Between attempts.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// The connections beside one; they end with this.
pub(super) struct Asides {
    main: u64,
    one: Aside,
    /// Once packets get lost. It stays then: what is lossy now will be so again.
    other: Option<Aside>,
    /// Since when both are there.
    both: Option<Instant>,
    /// Something on the way, or the gateway, allows no more than one: the end of one soon followed on the other.
    only_one: bool,
}

impl Asides {
    pub(super) fn new(streams: Arc<Streams>, remote: Remote, peer: PublicKey, way: Way, main: u64) -> Self {
        let one = Aside::new(streams, remote, peer, way);
        Self { main, one, other: None, both: None, only_one: false }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Aside> {
        [&mut self.one].into_iter().chain(&mut self.other)
    }

    /// What is due; to be called every now and then.
    pub(super) async fn tend(&mut self, link: &Link) {
        let Aside { streams, remote, peer, way, .. } = &self.one;
        if self.other.is_none() && !self.only_one && self.one.is_open() {
            let mut numbers = [Some(self.main), self.one.number()].into_iter().flatten();
            if numbers.any(|number| streams.loses_either_way(number)) {
                tracing::debug!("packets get lost; opening another connection for what sends little");
                self.other = Some(Aside::new(Arc::clone(streams), remote.clone(), *peer, *way));
            }
        }
        for aside in self.each() {
            aside.tend(link).await;
        }
    }

    /// The gateway has answered a challenge by this way.
    pub(super) fn answered(&mut self, by: &Endpoint) {
        self.each().for_each(|aside| aside.answered(by));
        let both = self.each().filter(|aside| aside.is_open()).count() == 2;
        self.both = both.then(|| self.both.unwrap_or_else(Instant::now));
    }

    /// Where to ask whether they still work: an answer has to come from now on. None when none is in use.
    pub(super) fn ask_again(&mut self) -> Vec<Endpoint> {
        self.each().filter_map(Aside::ask_again).collect()
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, number: u64) {
        let is_ours = self.each().any(|aside| aside.number() == Some(number));
        self.each().for_each(|aside| aside.ended(number));
        if is_ours && self.both.take().is_some_and(|since| since.elapsed() < SOON) {
            tracing::debug!("another connection made one end; what sends little keeps to one");
            (self.only_one, self.other) = (true, None);
        }
    }

    /// Their numbers; they do not end with this any more.
    pub(super) fn take_numbers(mut self) -> Vec<u64> {
        self.each().filter_map(Aside::take_number).collect()
    }
}

/// One of them.
struct Aside {
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
    fn new(streams: Arc<Streams>, remote: Remote, peer: PublicKey, way: Way) -> Self {
        let state = State::Due(Instant::now() + LATER);
        Self { streams, remote, peer, way, state, pause: PAUSE_MIN }
    }

    /// What is due; to be called every now and then.
    async fn tend(&mut self, link: &Link) {
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
                tracing::debug!("the gateway does not answer by a connection beside the first");
                self.later();
            }
            State::Open(_, asked) if asked.are_in_vain() => {
                tracing::debug!("the gateway does not answer by a connection beside the first any more");
                self.later();
            }
            State::Due(_) | State::Opening(_) | State::Asked(..) | State::Open(..) => {}
        }
    }

    /// The gateway has answered a challenge by this way.
    fn answered(&mut self, by: &Endpoint) {
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
    fn ask_again(&mut self) -> Option<Endpoint> {
        let State::Open(endpoint, asked) = &mut self.state else { return None };
        asked.note();
        Some(*endpoint)
    }

    /// A connection has ended.
    fn ended(&mut self, number: u64) {
        if self.number() == Some(number) {
            self.later();
        }
    }

    /// Its number; it does not end with this any more.
    fn take_number(&mut self) -> Option<u64> {
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

    fn is_open(&self) -> bool {
        matches!(self.state, State::Open(..))
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
