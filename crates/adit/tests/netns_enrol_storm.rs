//! Hundreds of machines join, are renamed and removed, while the gateway, and whoever changes it, is killed at random.

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit::config::wgquick::WgQuick;
use adit::config::{Config, Layers};
use adit::home::Home;
use adit::invite::{InviteUrl, Invites};
use adit::join::{AskError, ask};
use adit::lease::Lease;
use adit::tunnel::Tunnel;
use adit_lab::{Host, Process};
use adit_proto::key::{PublicKey, StaticSecret};
use common::internet::{GATEWAY, Internet, adit, home, stop_gateway, succeed};
use common::{ADIT, SOON, on};

const PEERS: usize = 500;
const WORKERS: usize = 3;
const KILLS: usize = 6;
/// Nothing may take longer, however often the gateway is killed meanwhile.
const LIMIT: Duration = Duration::from_secs(200);

/// A machine that joined, as the operator should see it.
#[derive(Clone)]
struct Machine {
    secret: StaticSecret,
    lease: Lease,
    name: String,
}

impl Machine {
    fn key(&self) -> PublicKey {
        self.secret.public_key()
    }
}

/// xorshift64*: the same seed gives the same choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

/// What every worker knows.
struct Storm<'a> {
    gateway: &'a Host,
    home: Home,
    joined: AtomicUsize,
    done: AtomicBool,
    started: Instant,
}

impl Storm<'_> {
    fn is_late(&self) -> bool {
        self.started.elapsed() > LIMIT
    }

    /// A command of the operator; one in six is killed within its first 60 ms. Whether it ended by itself and well.
    fn operate(&self, dice: &mut Dice, arguments: &[&str]) -> Option<String> {
        let home = self.home.chosen().unwrap().display().to_string();
        let mut process = self.gateway.spawn([&[ADIT, "--home", &home], arguments].concat()).unwrap();
        if dice.roll(6) == 0 {
            std::thread::sleep(Duration::from_millis(dice.roll(60)));
            process.crash();
            return None;
        }
        let status = process.wait(Duration::from_secs(60)).unwrap();
        status.success().then(|| process.stdout())
    }

    /// The configuration as it is on the disk at this moment; it always parses.
    fn config(&self) -> Config {
        Config::load_file(&self.home.config_file(), &Layers::default()).unwrap()
    }

    fn name_of(&self, key: &PublicKey) -> Option<String> {
        self.config().peers.iter().find(|peer| peer.public_key == *key).map(|peer| peer.name.to_string())
    }

    fn work(&self, number: usize, seed: u64) -> (Vec<Machine>, Vec<Machine>) {
        let mut dice = Dice(seed + number as u64);
        let (mut live, mut removed): (Vec<Machine>, Vec<Machine>) = (Vec::new(), Vec::new());
        let mut invited = 0;
        while self.joined.load(SeqCst) < PEERS {
            assert!(!self.is_late(), "{} joined in {LIMIT:?}", self.joined.load(SeqCst));
            invited += 1;
            let (name, uses) = (format!("w{number}-{invited}"), 1 + dice.roll(6));
            let invite = ["invite", &name, "--uses", &uses.to_string(), "--expires", "1h"];
            let Some(url) = self.operate(&mut dice, &invite) else { continue };
            let url = InviteUrl::parse(&url).unwrap();
            let mut with_it = HashSet::new();
            for _ in 0..uses {
                let machine = self.join(&url);
                self.joined.fetch_add(1, SeqCst);
                with_it.insert(machine.key());
                live.push(machine);
                match dice.roll(4) {
                    0 => {
                        let at = dice.roll(live.len() as u64) as usize;
                        let new = format!("r{number}-{invited}-{}", dice.roll(1 << 40));
                        self.operate(&mut dice, &["peer", "rename", &live[at].name.clone(), &new]);
                        // Killed, it was renamed or not; its key says which.
                        let is = self.name_of(&live[at].key()).expect("a peer is lost");
                        assert!(is == new || is == live[at].name, "{is}");
                        live[at].name = is;
                    }
                    1 => {
                        let machine = live.swap_remove(dice.roll(live.len() as u64) as usize);
                        while self.name_of(&machine.key()).is_some() {
                            self.operate(&mut dice, &["peer", "rm", &machine.name]);
                        }
                        let closes_the_invite = with_it.contains(&machine.key());
                        removed.push(machine);
                        if closes_the_invite {
                            break;
                        }
                    }
                    _ => {}
                }
            }
            if dice.roll(8) == 0 {
                let refused = ask(&url, &adit::keys::generate_private().unwrap());
                assert!(
                    refused.is_err(),
                    "the invite {name} was used {uses} times already, or one of its peers removed"
                );
            }
        }
        (live, removed)
    }

    /// Joins, again with the same key when the gateway was killed meanwhile.
    fn join(&self, url: &InviteUrl) -> Machine {
        let secret = adit::keys::generate_private().unwrap();
        loop {
            match ask(url, &secret) {
                Ok(lease) => return Machine { name: lease.name.to_string(), secret, lease },
                Err(AskError::Refused(reason)) => panic!("refused: {reason}"),
                Err(error) => assert!(!self.is_late(), "no answer for too long: {error:?}"),
            }
        }
    }

    /// Reads every state file again and again while they change.
    fn watch_files(&self) -> usize {
        let mut reads = 0;
        while !self.done.load(SeqCst) {
            let config = self.config();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let invites = Invites::load(&self.home, now).unwrap();
            let leases = fs::read(self.home.state_dir.join("leases.json")).unwrap_or_else(|_| b"{}".to_vec());
            serde_json::from_slice::<serde_json::Value>(&leases).unwrap();
            let open: HashSet<IpAddr> = invites.addresses();
            let given: HashSet<IpAddr> =
                config.peers.iter().flat_map(|peer| peer.addresses.clone()).collect();
            let count: usize = config.peers.iter().map(|peer| peer.addresses.len()).sum();
            assert_eq!(given.len(), count, "an address was given twice");
            assert_eq!(open.len(), invites.list.len());
            reads += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        reads
    }
}

/// `adit gateway` again, in the same place.
fn start(host: &Host) -> Process {
    let home = home(host).display().to_string();
    let mut process = host.spawn([ADIT, "--home", &home, "--quiet", "gateway"]).unwrap();
    // Quiet, it says nothing; its control socket answers when it is ready.
    adit_lab::wait_for("the gateway", Duration::from_secs(30), || {
        assert!(process.ended().is_none(), "{}", process.stderr());
        adit(host, &["status", "--json"]).stdout.contains("\"role\":\"gateway\"").then_some(())
    })
    .unwrap();
    process
}

/// Whether the gateway takes the key of `machine`.
fn is_taken(client: &Host, machine: &Machine) -> bool {
    let file: WgQuick = machine.lease.client_file(machine.secret.clone()).unwrap();
    on(client, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { Tunnel::open(&file).unwrap().wait_until_up().await.is_ok() })
    })
}

#[test]
fn five_hundred_machines_join_and_change_while_everything_is_killed() {
    let net = Internet::new("enrolstorm", 1);
    let client = &net.clients[0];
    succeed(&net.gateway, &["init", "--network", "10.86.0.0/21"]);
    let seed = u64::from(std::process::id()) * 7919 + 1;
    println!("seed {seed}");
    let storm = Storm {
        gateway: &net.gateway,
        home: Home::new(Some(&home(&net.gateway))).unwrap(),
        joined: AtomicUsize::new(0),
        done: AtomicBool::new(false),
        started: Instant::now(),
    };
    let gateway = Mutex::new(Some(start(&net.gateway)));
    let (live, removed) = std::thread::scope(|scope| {
        let storm = &storm;
        let watching = scope.spawn(|| storm.watch_files());
        let workers: Vec<_> =
            (0..WORKERS).map(|number| scope.spawn(move || on(client, || storm.work(number, seed)))).collect();
        let mut dice = Dice(seed ^ 0xdead_beef);
        for kill in 1..=KILLS {
            // Spread over the work, at a moment that nobody chose.
            while storm.joined.load(SeqCst) < PEERS * kill / (KILLS + 1)
                && workers.iter().all(|worker| !worker.is_finished())
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(dice.roll(300)));
            let mut running = gateway.lock().unwrap();
            running.take().unwrap().crash();
            *running = Some(start(&net.gateway));
        }
        let mut all = (Vec::new(), Vec::new());
        let mut failed = false;
        for worker in workers {
            match worker.join() {
                Ok((live, removed)) => {
                    all.0.extend(live);
                    all.1.extend(removed);
                }
                Err(_) => failed = true,
            }
        }
        storm.done.store(true, SeqCst);
        println!("{} reads of the files", watching.join().unwrap());
        assert!(!failed);
        all
    });
    println!("{} live, {} removed, in {:?}", live.len(), removed.len(), storm.started.elapsed());

    let config = storm.config();
    let by_key: HashMap<_, _> = config.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    for machine in &live {
        let peer = by_key.get(&machine.key()).unwrap_or_else(|| panic!("{} is lost", machine.name));
        assert_eq!(peer.name.as_str(), machine.name);
        assert_eq!(peer.addresses, machine.lease.addresses, "the lease of {} changed", machine.name);
        assert_eq!(peer.preshared_key, machine.lease.preshared_key);
    }
    assert!(removed.iter().all(|machine| !by_key.contains_key(&machine.key())), "a removed peer is back");
    assert_eq!(config.peers.len(), live.len(), "there is a peer that nobody is");
    let addresses: HashSet<_> = live.iter().flat_map(|machine| machine.lease.addresses.clone()).collect();
    assert_eq!(addresses.len(), 2 * live.len());
    assert!(live.len() + removed.len() >= PEERS && removed.len() > PEERS / 10);

    // Live keys are taken by the gateway that runs now, and those of removed peers are not.
    std::thread::scope(|scope| {
        let some = |machines: &[Machine]| {
            let step = (machines.len() / 8).max(1);
            machines.iter().step_by(step).take(8).cloned().collect::<Vec<_>>()
        };
        let checks: Vec<_> = some(&live)
            .into_iter()
            .map(|machine| (machine, true))
            .chain(some(&removed).into_iter().map(|machine| (machine, false)))
            .map(|(machine, expected)| {
                scope.spawn(move || assert_eq!(is_taken(client, &machine), expected, "{}", machine.name))
            })
            .collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
    stop_gateway(gateway.into_inner().unwrap().unwrap());
}

fn profiles(client: &Host) -> Vec<String> {
    let entries = fs::read_dir(Path::new(&home(client)).join("profiles")).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_join_that_is_killed_goes_on_when_it_is_run_again() {
    let net = Internet::new("enrolkill", 1);
    let client = &net.clients[0];
    succeed(&net.gateway, &["init", "--endpoint", &format!("{GATEWAY}:51820")]);
    let gateway = start(&net.gateway);
    let mut dice = Dice(u64::from(std::process::id()) + 99);
    const ROUNDS: usize = 15;
    let mut killed = 0;
    for round in 0..ROUNDS {
        let name = format!("p{round}");
        let url = succeed(&net.gateway, &["invite", &name]).stdout.trim().to_owned();
        let home_of_client = home(client).display().to_string();
        let words = [ADIT, "--home", &home_of_client, "join", &url, "--no-up", "--name", &name];
        let mut process = client.spawn(words).unwrap();
        std::thread::sleep(Duration::from_millis(dice.roll(160)));
        killed += usize::from(process.ended().is_none());
        process.crash();
        let again = adit(client, &["join", &url, "--no-up", "--name", &name]);
        let was_done = again.stderr.contains("there is a profile");
        assert!(again.ok() || was_done, "{}", again.stderr);
    }
    assert!(killed > ROUNDS / 3, "{killed} of {ROUNDS} were still at it");
    let list = succeed(&net.gateway, &["peer", "list", "--json"]).json().unwrap();
    let names: Vec<&str> =
        list["peers"].as_array().unwrap().iter().map(|peer| peer["name"].as_str().unwrap()).collect();
    assert_eq!(names, (0..ROUNDS).map(|round| format!("p{round}")).collect::<Vec<_>>(), "one peer each");
    let files = profiles(client);
    let stored = files.iter().filter(|name| name.ends_with(".conf")).count();
    assert_eq!(stored, ROUNDS, "{files:?}");
    // The last killed one may have left its key beside a profile that was stored already; nothing else is left.
    assert!(files.iter().filter(|name| name.starts_with(".joining-")).count() <= killed, "{files:?}");
    let mut up = client
        .spawn([ADIT, "--home", &home(client).display().to_string(), "up", "--foreground", "p3"])
        .unwrap();
    up.wait_for_text("tunnel ready", SOON).unwrap();
    assert_eq!(net.seen_from(client)[0], GATEWAY);
    up.terminate();
    stop_gateway(gateway);
}
