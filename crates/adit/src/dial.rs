//! Choosing the carrier to a gateway, and changing it without the session noticing.
//!
//! ```text
//!   start ─ UDP answers in 1.5 s ─▶ on UDP ◀──────── two answers over UDP in a row ───────┐
//!             │ silence                │ 5 s of silence, and no answer to challenges       │
//!             ▼                        ▼                                                  │
//!          racing TCP, TLS, WebSocket: the first that the gateway answers by ─▶ on a stream
//!                                      ▲                                           │ it ended, or is silent
//!                                      └───────────────────────────────────────────┘
//! ```
//!
//! Nothing moves before the gateway has answered by the new way: a challenge within the session, or the handshake where
//! there is none. What is under way on the old one still arrives.

mod target;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_proto::endpoint::{Carrier, Endpoint};
use adit_proto::event::{Command, Event, PeerUpdate};
use adit_proto::forward::Forwarding;
use adit_proto::key::PublicKey;
use adit_proto::path::Path;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::config::CarrierChoice;
use crate::config::stream::TlsVerify;
use crate::driver::{self, Driver, DriverEvent, NewStream, Remote, Streams};
use crate::stream::{LinkError, Way, connect};

pub use self::target::Target;
pub(crate) use self::target::{begin, by_datagrams, choice_of, targets};

/// How long UDP has at the start before streams are tried beside it.
const HEAD_START: Duration = Duration::from_millis(1_500);
/// How long a WebSocket waits for what is simpler.
const WEBSOCKET_LATER: Duration = Duration::from_millis(700);
/// How often the way is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Unanswered for so long: challenge the gateway.
const DOUBT: Duration = Duration::from_millis(2_500);
/// Unanswered for so long, challenges included: the way is dead.
const DEAD: Duration = Duration::from_secs(5);
/// How long the gateway has to answer by a new way.
const PROOF: Duration = Duration::from_secs(3);
/// Between attempts while no way works.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Between looks whether UDP works again.
const RETURN_MIN: Duration = Duration::from_secs(3);
const RETURN_MAX: Duration = Duration::from_secs(30);
/// UDP that dies so soon after we came back to it is tried more rarely.
const RELAPSE: Duration = Duration::from_secs(60);
/// Answers over UDP before it is trusted again, and the time between.
const RETURN_ANSWERS: u32 = 2;
const RETURN_STEP: Duration = Duration::from_secs(1);
/// How long the old connection stays after the move to UDP.
const FAREWELL: Duration = Duration::from_secs(5);

/// Keeps gateways reached, until it is dropped.
#[derive(Debug)]
pub struct Dial {
    callers: Vec<(PublicKey, mpsc::Sender<News>)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Clone, Debug)]
enum News {
    Established(Endpoint),
    Answered(Endpoint),
    Silent,
    Ended(u64),
    Address(SocketAddr),
    NetworkChanged,
}

/// News that wait for a caller; what is lost shows again by its consequences.
const NEWS: usize = 64;

impl Dial {
    /// Starts to keep `targets` reached. With [`CarrierChoice::Udp`] there is nothing to do.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(driver: &Driver, choice: CarrierChoice, targets: Vec<Target>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let updates = targets.iter().map(|target| {
            let mut update = PeerUpdate::new(target.peer);
            update.update_only = true;
            update.carrier_chosen = Some(true);
            Command::SetPeer(update)
        });
        driver.apply(updates.collect());
        let mut callers = Vec::new();
        let mut tasks = Vec::new();
        for target in targets {
            let (sender, news) = mpsc::channel(NEWS);
            callers.push((target.peer, sender));
            tasks.push(Caller {
                target,
                choice,
                remote: driver.remote(),
                streams: driver.streams(),
                forwarding: driver.forwarding(),
                news,
                pause: PAUSE_MIN,
                return_pause: RETURN_MIN,
                returned: None,
                told: None,
            });
        }
        let run = async move {
            let mut all = JoinSet::new();
            tasks.into_iter().for_each(|caller| drop(all.spawn(caller.run())));
            while all.join_next().await.is_some() {}
        };
        let thread =
            std::thread::Builder::new().name("dial".to_owned()).spawn(move || runtime.block_on(run))?;
        Ok(Self { callers, thread: Some(thread) })
    }

    /// Tells what happened in the driver.
    pub fn tell(&self, event: &DriverEvent) {
        let (peer, news) = match event {
            DriverEvent::StreamEnded(number) => (None, News::Ended(*number)),
            DriverEvent::Protocol(Event::SessionEstablished { peer, endpoint, .. }) => {
                (Some(peer), News::Established(*endpoint))
            }
            DriverEvent::Protocol(Event::WayAnswered { peer, endpoint, .. }) => {
                (Some(peer), News::Answered(*endpoint))
            }
            DriverEvent::Protocol(Event::EndpointSilent { peer, .. }) => (Some(peer), News::Silent),
            _ => return,
        };
        self.send(peer, &news);
    }

    /// The name of a gateway has another address now. Whether that is our business.
    pub fn has_moved(&self, peer: &PublicKey, address: SocketAddr) -> bool {
        self.send(Some(peer), &News::Address(address))
    }

    /// Another network: what worked may not any more.
    pub fn network_changed(&self) {
        self.send(None, &News::NetworkChanged);
    }

    fn send(&self, peer: Option<&PublicKey>, news: &News) -> bool {
        let concerned = self.callers.iter().filter(|(it, _)| peer.is_none_or(|peer| peer == it));
        concerned.map(|(_, sender)| drop(sender.try_send(news.clone()))).count() > 0
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        self.callers.clear();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps one gateway reached.
struct Caller {
    target: Target,
    choice: CarrierChoice,
    remote: Remote,
    streams: Arc<Streams>,
    forwarding: Arc<Forwarding>,
    news: mpsc::Receiver<News>,
    pause: Duration,
    return_pause: Duration,
    /// When we last came back to UDP.
    returned: Option<Instant>,
    /// The last failure that was logged.
    told: Option<String>,
}

/// The way in use.
#[derive(Clone, Copy, Debug)]
enum At {
    Nowhere,
    Udp,
    Stream(Endpoint),
}

/// The owner of this is gone.
struct Over;

impl Caller {
    async fn run(mut self) {
        let _ = self.run_until_over().await;
    }

    async fn run_until_over(&mut self) -> Result<(), Over> {
        let mut at = At::Nowhere;
        if self.choice == CarrierChoice::Auto {
            at = self.wait_for_udp(Instant::now() + HEAD_START).await?;
        }
        loop {
            at = match at {
                At::Nowhere => self.race().await?,
                At::Udp => self.watch_udp().await?,
                At::Stream(endpoint) => self.watch_stream(endpoint).await?,
            };
        }
    }

    /// Whether a session comes about over UDP.
    async fn wait_for_udp(&mut self, until: Instant) -> Result<At, Over> {
        while let Some(news) = self.next(until).await? {
            match news {
                News::Established(endpoint) if endpoint.carrier == Carrier::Udp => return Ok(At::Udp),
                _ => {}
            }
        }
        Ok(At::Nowhere)
    }

    async fn watch_udp(&mut self) -> Result<At, Over> {
        let (mut answered, mut staged_since, mut silent) = (None, None, false);
        loop {
            match self.next(Instant::now() + LOOK).await? {
                Some(News::Answered(endpoint)) if endpoint.carrier == Carrier::Udp => {
                    answered = Some(Instant::now());
                }
                Some(News::Established(endpoint)) if endpoint.carrier == Carrier::Udp => {
                    (answered, silent) = (Some(Instant::now()), false);
                }
                Some(News::Silent) => silent = true,
                Some(News::NetworkChanged) => self.challenge(self.udp()),
                Some(News::Address(_)) => {
                    self.remote.apply(vec![Command::Move(self.target.peer, self.udp())]);
                }
                Some(_) => {}
                None => {
                    let Some(path) = self.path() else { continue };
                    staged_since = (path.staged_len() > 0).then(|| staged_since.unwrap_or_else(Instant::now));
                    let waits = staged_since.is_some_and(|since| since.elapsed() > HEAD_START);
                    let silence = silence_of(&path);
                    if silence > DOUBT {
                        self.challenge(self.udp());
                    }
                    let unanswered = answered.is_none_or(|at| at.elapsed() > DOUBT);
                    if silent || waits || silence > DEAD && unanswered {
                        tracing::info!("no answer over UDP; trying connections to {}", self.target.link.name);
                        self.note_relapse();
                        return Ok(At::Nowhere);
                    }
                }
            }
        }
    }

    async fn watch_stream(&mut self, endpoint: Endpoint) -> Result<At, Over> {
        let Some(number) = endpoint.carrier.connection() else { return Ok(At::Udp) };
        let (mut answered, mut answers) = (None, 0);
        let mut next_probe = Instant::now() + self.return_pause;
        loop {
            match self.next(Instant::now() + LOOK).await? {
                Some(News::Ended(ended)) if ended == number => return Ok(At::Nowhere),
                Some(News::Answered(by)) if by.carrier == endpoint.carrier => answered = Some(Instant::now()),
                Some(News::Answered(by)) if by.carrier == Carrier::Udp => {
                    answers += 1;
                    next_probe = Instant::now() + RETURN_STEP;
                    if answers >= RETURN_ANSWERS && self.choice == CarrierChoice::Auto {
                        tracing::info!("UDP works again; moving back to it");
                        self.remote.apply(vec![Command::Move(self.target.peer, self.udp())]);
                        self.returned = Some(Instant::now());
                        let streams = Arc::clone(&self.streams);
                        tokio::spawn(async move {
                            tokio::time::sleep(FAREWELL).await;
                            streams.close(number);
                        });
                        return Ok(At::Udp);
                    }
                }
                Some(News::NetworkChanged) => {
                    self.streams.close(number);
                    return Ok(At::Nowhere);
                }
                Some(_) => {}
                None => {
                    let silence = self.path().map_or(Duration::ZERO, |path| silence_of(&path));
                    if silence > DOUBT {
                        self.challenge(endpoint);
                    }
                    if silence > DEAD && answered.is_none_or(|at: Instant| at.elapsed() > DOUBT) {
                        tracing::info!(
                            "the connection to {} is dead; opening another",
                            self.target.link.name
                        );
                        self.streams.close(number);
                        return Ok(At::Nowhere);
                    }
                    if self.choice == CarrierChoice::Auto && Instant::now() >= next_probe {
                        self.challenge(self.udp());
                        self.return_pause = (self.return_pause * 2).min(RETURN_MAX);
                        next_probe = Instant::now() + self.return_pause;
                    }
                }
            }
        }
    }

    /// Tries every way at once until one works.
    async fn race(&mut self) -> Result<At, Over> {
        loop {
            let mut attempts = JoinSet::new();
            for way in self.ways() {
                let link = self.target.link.clone();
                let later = if way == Way::Wss && self.choice == CarrierChoice::Auto {
                    WEBSOCKET_LATER
                } else {
                    Duration::ZERO
                };
                attempts.spawn(async move {
                    tokio::time::sleep(later).await;
                    (way, connect(&link, way).await)
                });
            }
            while !attempts.is_empty() {
                tokio::select! {
                    biased;
                    Some(attempt) = attempts.join_next() => match attempt {
                        Ok((way, Ok(new))) => {
                            let outcome = self.prove(way, new).await?;
                            if !matches!(outcome, At::Nowhere) {
                                self.pause = PAUSE_MIN;
                                self.told = None;
                                return Ok(outcome);
                            }
                        }
                        Ok((way, Err(error))) => self.complain(way, &error),
                        Err(_) => {}
                    },
                    news = self.news.recv() => {
                        if let Some(at) = self.udp_came_back(&news.ok_or(Over)?) {
                            return Ok(at);
                        }
                    }
                }
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
                if let Some(at) = self.udp_came_back(&news) {
                    return Ok(at);
                }
            }
        }
    }

    /// Moves to a new connection once the gateway has answered by it.
    async fn prove(&mut self, way: Way, new: NewStream) -> Result<At, Over> {
        let Some(endpoint) = self.streams.adopt(new) else { return Ok(At::Nowhere) };
        let until = Instant::now() + PROOF;
        let had_session = self.has_session();
        if had_session {
            self.challenge(endpoint);
        } else {
            self.remote.apply(vec![Command::Restart(self.target.peer, endpoint)]);
        }
        while let Some(news) = self.next(until).await? {
            match news {
                News::Answered(by) if by.carrier == endpoint.carrier => {
                    self.remote.apply(vec![Command::Move(self.target.peer, endpoint)]);
                    return Ok(self.arrived(way, endpoint));
                }
                News::Established(by) if by.carrier == endpoint.carrier => {
                    return Ok(self.arrived(way, endpoint));
                }
                News::Ended(number) if Some(number) == endpoint.carrier.connection() => break,
                news => {
                    if let Some(at) = self.udp_came_back(&news) {
                        self.close(endpoint);
                        return Ok(at);
                    }
                }
            }
        }
        self.close(endpoint);
        if had_session {
            // The gateway may have been started anew, and know nothing of the session.
            return self.prove_anew(way).await;
        }
        Ok(At::Nowhere)
    }

    async fn prove_anew(&mut self, way: Way) -> Result<At, Over> {
        let new = match connect(&self.target.link.clone(), way).await {
            Ok(new) => new,
            Err(error) => {
                self.complain(way, &error);
                return Ok(At::Nowhere);
            }
        };
        let Some(endpoint) = self.streams.adopt(new) else { return Ok(At::Nowhere) };
        self.remote.apply(vec![Command::Restart(self.target.peer, endpoint)]);
        let until = Instant::now() + PROOF;
        while let Some(news) = self.next(until).await? {
            match news {
                News::Established(by) if by.carrier == endpoint.carrier => {
                    return Ok(self.arrived(way, endpoint));
                }
                News::Ended(number) if Some(number) == endpoint.carrier.connection() => break,
                // A gateway that was started anew calls us, by the way it remembers.
                news => {
                    if let Some(at) = self.udp_came_back(&news) {
                        self.close(endpoint);
                        return Ok(at);
                    }
                }
            }
        }
        self.close(endpoint);
        self.complain_of(way, "the gateway does not answer by it");
        Ok(At::Nowhere)
    }

    fn close(&self, endpoint: Endpoint) {
        if let Some(number) = endpoint.carrier.connection() {
            self.streams.close(number);
        }
    }

    fn arrived(&self, way: Way, endpoint: Endpoint) -> At {
        tracing::info!(
            carrier = way.name(),
            "the gateway {} is reached by a connection",
            self.target.link.name
        );
        At::Stream(endpoint)
    }

    /// Where there was no way, UDP may be the first to work.
    fn udp_came_back(&mut self, news: &News) -> Option<At> {
        let by = match news {
            News::Established(by) | News::Answered(by) => by,
            News::Address(address) => {
                self.target.udp = *address;
                self.target.link.address = SocketAddr::new(address.ip(), self.target.link.address.port());
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

    /// UDP that has come and gone again is not trusted as soon as before.
    fn note_relapse(&mut self) {
        let relapsed = self.returned.take().is_some_and(|at| at.elapsed() < RELAPSE);
        self.return_pause = if relapsed { (self.return_pause * 2).min(RETURN_MAX * 8) } else { RETURN_MIN };
    }

    fn ways(&self) -> Vec<Way> {
        let link = &self.target.link;
        match self.choice {
            CarrierChoice::Tcp => vec![Way::Tcp],
            CarrierChoice::Tls => vec![Way::Tls],
            CarrierChoice::Wss => vec![Way::Wss],
            CarrierChoice::Auto if link.verify == TlsVerify::Pin && link.pin.is_none() => vec![Way::Tcp],
            CarrierChoice::Auto => vec![Way::Tcp, Way::Tls, Way::Wss],
            CarrierChoice::Udp => Vec::new(),
        }
    }

    /// What happens before `until`. A new address of the gateway is noted here.
    async fn next(&mut self, until: Instant) -> Result<Option<News>, Over> {
        match timeout_at(until, self.news.recv()).await {
            Ok(Some(News::Address(address))) => {
                let _ = self.udp_came_back(&News::Address(address));
                Ok(Some(News::Address(address)))
            }
            Ok(Some(news)) => Ok(Some(news)),
            Ok(None) => Err(Over),
            Err(_) => Ok(None),
        }
    }

    fn challenge(&self, endpoint: Endpoint) {
        let mut chosen = [0; 8];
        let _ = aws_lc_rs::rand::fill(&mut chosen);
        self.remote.apply(vec![Command::Challenge(self.target.peer, endpoint, chosen)]);
    }

    fn udp(&self) -> Endpoint {
        Endpoint::udp(self.target.udp)
    }

    fn path(&self) -> Option<Arc<Path>> {
        self.forwarding.path_of_peer(&self.target.peer)
    }

    fn has_session(&self) -> bool {
        let now = driver::now();
        self.path().and_then(|path| path.current()).is_some_and(|keypair| keypair.is_usable(now))
    }

    fn complain(&mut self, way: Way, error: &LinkError) {
        self.complain_of(way, &error.to_string());
    }

    /// Once, and again when the reason changes.
    fn complain_of(&mut self, way: Way, problem: &str) {
        let problem = format!("{}: {problem}", way.name());
        if self.told.as_ref() == Some(&problem) {
            return;
        }
        if self.choice == CarrierChoice::Auto {
            tracing::debug!("{problem}");
        } else {
            tracing::warn!("{problem}; it is tried again");
        }
        self.told = Some(problem);
    }
}

/// How long data is unanswered.
fn silence_of(path: &Path) -> Duration {
    path.activity.awaiting_reply_since().map_or(Duration::ZERO, |since| driver::now().since(since))
}
