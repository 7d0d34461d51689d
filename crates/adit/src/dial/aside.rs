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
    company: Company,
}

impl Asides {
    pub(super) fn new(streams: Arc<Streams>, remote: Remote, peer: PublicKey, way: Way, main: u64) -> Self {
        let one = Aside::new(streams, remote, peer, way);
        Self { main, one, other: None, company: Company::default() }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Aside> {
        [&mut self.one].into_iter().chain(&mut self.other)
    }

    /// What is due; to be called every now and then.
    pub(super) async fn tend(&mut self, link: &Link) {
        // That one ended is told, but news can be lost.
        let is_gone = |aside: &mut Aside| aside.number().filter(|number| !aside.streams.is_open(*number));
        let gone: Vec<u64> = self.each().filter_map(is_gone).collect();
        gone.into_iter().for_each(|number| self.ended(number));
        let Aside { streams, remote, peer, way, .. } = &self.one;
        if self.other.is_none() && !self.company.only_one && self.one.is_open() {
            let mut numbers = [Some(self.main), self.one.number()].into_iter().flatten();
            if numbers.any(|number| streams.loses_either_way(number)) {
                tracing::debug!("packets get lost; opening another connection for what sends little");
                self.other = Some(Aside::new(Arc::clone(streams), remote.clone(), *peer, *way));
            }
        }
        for aside in self.each() {
            aside.tend(link).await;
        }
        let there = self.each().filter(|aside| aside.number().is_some()).count();
        self.company.note(there, Instant::now());
    }

    /// The gateway has answered a challenge by this way.
    pub(super) fn answered(&mut self, by: &Endpoint) {
        self.each().for_each(|aside| aside.answered(by));
    }

    /// Where to ask whether they still work: an answer has to come from now on. None when none is in use.
    pub(super) fn ask_again(&mut self) -> Vec<Endpoint> {
        self.each().filter_map(Aside::ask_again).collect()
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, number: u64) {
        if !self.each().any(|aside| aside.number() == Some(number)) {
            return;
        }
        self.each().for_each(|aside| aside.ended(number));
        self.company.ended(Instant::now());
        if self.company.only_one
            && let Some(other) = self.other.take()
            && self.one.number().is_none()
        {
            tracing::debug!("one connection made another end; what sends little keeps to one");
            self.one = other;
        }
    }

    /// Their numbers; they do not end with this any more.
    pub(super) fn take_numbers(mut self) -> Vec<u64> {
        self.each().filter_map(Aside::take_number).collect()
    }
}

/// Whether there may be two: something on the way, or the gateway, may allow one.
#[derive(Debug, Default)]
struct Company {
    /// Since when there are.
    both: Option<Instant>,
    only_one: bool,
}

impl Company {
    fn note(&mut self, there: usize, now: Instant) {
        self.both = (there == 2).then(|| self.both.unwrap_or(now));
    }

    /// One has ended.
    fn ended(&mut self, now: Instant) {
        let soon = self.both.take().is_some_and(|since| now.saturating_duration_since(since) < SOON);
        self.only_one |= soon;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_one_of_two_ends_soon_there_is_only_one_from_then_on() {
        let now = Instant::now();
        let only_one_after = |notes: &[(usize, u64)], ended: u64| {
            let mut company = Company::default();
            for (there, secs) in notes {
                company.note(*there, now + Duration::from_secs(*secs));
            }
            company.ended(now + Duration::from_secs(ended));
            company.only_one
        };
        assert!(!only_one_after(&[(1, 0)], 1), "it was alone");
        assert!(only_one_after(&[(1, 0), (2, 1)], 2));
        assert!(only_one_after(&[(2, 0), (2, 9)], 9));
        assert!(!only_one_after(&[(2, 0), (2, 9)], 10), "they were there for long");
        assert!(!only_one_after(&[(2, 0), (1, 1)], 2), "they were not both there any more");
    }
}
