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

mod aside;
mod race;
mod target;
mod way_back;

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
use crate::driver::{self, Driver, DriverEvent, Remote, Streams};
use crate::stream::{LinkError, Way};

use self::aside::Asides;
pub use self::target::Target;
pub(crate) use self::target::{begin, by_datagrams, choice_of, proxy_of, targets};
use self::way_back::WayBack;

/// How long UDP has at the start before streams are tried beside it.
const HEAD_START: Duration = Duration::from_millis(1_500);
/// How often the way is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Unanswered for so long: challenge the gateway.
const DOUBT: Duration = Duration::from_millis(2_500);
/// Unanswered for so long, challenges included: the way is dead.
const DEAD: Duration = Duration::from_secs(5);
/// How often the connections in use are asked whether they work, and what they carry when they are not in use.
const WATCH: Duration = Duration::from_secs(2);
const WATCH_BYTES: u64 = 512;
/// Between attempts while no way works.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
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
                way_back: WayBack::new(Instant::now()),
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
    way_back: WayBack,
    /// The last failure that was logged.
    told: Option<String>,
}

/// The way in use.
#[derive(Clone, Copy, Debug)]
enum At {
    Nowhere,
    Udp,
    Stream(Way, Endpoint),
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
                At::Stream(way, endpoint) => self.watch_stream(way, endpoint).await?,
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
                    self.remote.apply(vec![Command::Restart(self.target.peer, self.udp())]);
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
                        self.way_back.note_death(Instant::now());
                        return Ok(At::Nowhere);
                    }
                }
            }
        }
    }

    async fn watch_stream(&mut self, way: Way, endpoint: Endpoint) -> Result<At, Over> {
        let Some(number) = endpoint.carrier.connection() else { return Ok(At::Udp) };
        let mut answered = None;
        let (streams, remote) = (Arc::clone(&self.streams), self.remote.clone());
        let mut asides = Asides::new(streams, remote, self.target.peer, way, number);
        self.streams.settle(&self.target.peer, endpoint);
        let mut watch = Watch::new();
        self.way_back.begin(Instant::now());
        loop {
            asides.tend(&self.target.link).await;
            match self.next(Instant::now() + LOOK).await? {
                Some(News::Ended(ended)) if ended == number => return Ok(At::Nowhere),
                Some(News::Ended(ended)) => asides.ended(ended),
                Some(News::Answered(by)) if by.carrier == endpoint.carrier => {
                    (answered, watch.asked) = (Some(Instant::now()), Questions::default());
                }
                Some(News::Answered(by)) if by.carrier == Carrier::Udp => {
                    if self.choice == CarrierChoice::Auto && self.way_back.answered(Instant::now()) {
                        tracing::info!("UDP works again; moving back to it");
                        self.remote.apply(vec![Command::Move(self.target.peer, self.udp())]);
                        let streams = Arc::clone(&self.streams);
                        let beside = asides.take_numbers();
                        tokio::spawn(async move {
                            tokio::time::sleep(FAREWELL).await;
                            [number].into_iter().chain(beside).for_each(|it| streams.close(it));
                        });
                        return Ok(At::Udp);
                    }
                }
                Some(News::NetworkChanged) => {
                    tracing::info!(
                        "another network; opening a connection to {} from it",
                        self.target.link.name
                    );
                    self.way_back.forget(Instant::now());
                    // The old one goes when the new one has proven itself, or when it is found dead.
                    return Ok(At::Nowhere);
                }
                Some(News::Answered(by)) => asides.answered(&by),
                Some(_) => {}
                // That it ended is told, but news can be lost.
                None if !self.streams.is_open(number) => return Ok(At::Nowhere),
                None => {
                    let silence = self.path().map_or(Duration::ZERO, |path| silence_of(&path));
                    if silence > DOUBT {
                        self.challenge(endpoint);
                    }
                    // Each of several connections hides that another is dead: what is in use is asked for itself.
                    let carried = self.path().map_or(0, |path| path.traffic.carried());
                    if watch.is_due(carried) && self.has_session() {
                        let beside = asides.ask_again();
                        if !beside.is_empty() {
                            watch.asked.note();
                            [endpoint].into_iter().chain(beside).for_each(|it| self.challenge(it));
                        }
                    }
                    if watch.asked.are_in_vain()
                        || silence > DEAD && answered.is_none_or(|at: Instant| at.elapsed() > DOUBT)
                    {
                        tracing::info!(
                            "the connection to {} is dead; opening another",
                            self.target.link.name
                        );
                        self.streams.close(number);
                        return Ok(At::Nowhere);
                    }
                    if self.choice == CarrierChoice::Auto && self.way_back.is_due(Instant::now()) {
                        self.challenge(self.udp());
                    }
                }
            }
        }
    }

    /// What happens before `until`. A new address of the gateway is noted here.
    async fn next(&mut self, until: Instant) -> Result<Option<News>, Over> {
        match timeout_at(until, self.news.recv()).await {
            Ok(Some(News::Address(address))) => {
                self.target.move_to(address);
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

/// When several connections are asked whether they work: now and then while something is carried.
struct Watch {
    next: Instant,
    carried: u64,
    /// What the first has not answered.
    asked: Questions,
}

/// Questions without an answer: the first, and how many.
#[derive(Clone, Copy, Debug, Default)]
struct Questions(Option<(Instant, u32)>);

impl Questions {
    fn note(&mut self) {
        let (first, asked) = self.0.unwrap_or((Instant::now(), 0));
        self.0 = Some((first, asked + 1));
    }

    /// One could have got lost in the program; none of several has to be.
    fn are_in_vain(&self) -> bool {
        self.0.is_some_and(|(first, asked)| asked > 1 && first.elapsed() > DEAD)
    }
}

impl Watch {
    fn new() -> Self {
        Self { next: Instant::now() + WATCH, carried: 0, asked: Questions::default() }
    }

    /// Whether it is time, and more was carried since the last time than question and answer.
    fn is_due(&mut self, carried: u64) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        self.next = Instant::now() + WATCH;
        carried.saturating_sub(std::mem::replace(&mut self.carried, carried)) > WATCH_BYTES
    }
}

/// How long data is unanswered.
fn silence_of(path: &Path) -> Duration {
    path.activity.awaiting_reply_since().map_or(Duration::ZERO, |since| driver::now().since(since))
}
