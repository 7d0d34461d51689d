//! What a stranger on the network can do to a tunnel with datagrams: be dropped, counted, and nothing else.

mod common;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_lab::{Capture, Host, Lab, wait_for};
use adit_proto::cookie::CookieJar;
use adit_proto::handshake::{AwaitingResponse, Identity};
use adit_proto::key::{PublicKey, StaticSecret};
use adit_proto::noise::SymmetricState;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Instant, Tai64n, UnixTime};
use adit_proto::wire;

use common::device::{Device, Program};
use common::peer::{Interface, PORT, Peer, place, secret};
use common::tunnel::Tunnel;
use common::wire::{IpPacket, datagrams, ip_packets};
use common::{Family, SOON, flood, inside, lab, on, outside, outside_end, pair};

use Family::{V4, V6};
use Suite::{Aes256Gcm, ChaCha20Poly1305};

/// The points whose X25519 result is zero with every private key.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn low_order_points() -> [PublicKey; 7] {
    LOW_ORDER.map(|hex| {
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        let point = PublicKey(std::array::from_fn(byte));
        assert!(secret().diffie_hellman(&point).is_err(), "{hex} is of low order");
        point
    })
}

/// The victim `b`, its honest peer `a`, and Eve on the same network; she holds the keys of two more peers.
struct Scene {
    _left: Device,
    victim: Tunnel,
    capture: Capture,
    a: Host,
    eve: Host,
    a_public: PublicKey,
    b_public: PublicKey,
    /// What the victim and its honest peer speak.
    suite: Suite,
    /// Eve's, one pinned to each suite.
    insiders: [Identity; 2],
    _lab: Lab,
}

const EVE: u8 = 66;

impl Scene {
    fn new(prefix: &str, suite: Suite) -> Self {
        let lab = lab(prefix);
        let [a, b, eve] = ["a", "b", "eve"].map(|name| lab.host(name).unwrap());
        lab.switch("lan", vec![outside_end(&a, 1), outside_end(&b, 2), outside_end(&eve, EVE)]).unwrap();
        let (a_key, b_key) = (secret(), secret());
        let insiders = [(); 2].map(|()| Identity::new(secret()));
        let mut peers = vec![Peer::new(&a_key, 1).suite(suite)];
        for (number, (insider, theirs)) in (3..).zip(insiders.iter().zip(Suite::ALL)) {
            peers.push(Peer::new(&insider.secret, number).suite(theirs));
        }
        // A file with the first of them, all zeros, is refused.
        for (number, point) in (10..).zip(low_order_points()).skip(1) {
            peers.push(Peer { public: point, ..Peer::new(&a_key, number).suite(suite) });
        }
        let victim = Tunnel::up(&b, &Interface::new(&b_key, 2, peers));
        let capture = Capture::start(&b, "eth0").unwrap();
        let b_public = b_key.public_key();
        let a_interface = Interface::new(&a_key, 1, [Peer::new(&b_key, 2).suite(suite).at(place(V4, 2))]);
        let left = Device::start(Program::Adit, &a, &a_interface);
        flood(&a, inside(V4, 2), 5);
        Self {
            _left: left,
            victim,
            capture,
            a,
            eve,
            a_public: a_key.public_key(),
            b_public,
            suite,
            insiders,
            _lab: lab,
        }
    }

    /// What `a` has sent to the victim so far: messages of this type.
    fn overheard(&self, kind: u8) -> Vec<Vec<u8>> {
        let seen = datagrams(&self.capture.frames().unwrap()).into_iter();
        let wanted = seen.filter(|it| it.source == place(V4, 1) && it.payload[0] == kind);
        wanted.map(|it| it.payload).collect()
    }

    /// What the victim has sent to Eve so far; the neighbour protocols of IPv6 are not its doing.
    fn answers(&self) -> Vec<IpPacket> {
        let is_neighbour_talk = |it: &IpPacket| it.protocol == 58 && matches!(it.payload[0], 133..=137);
        let all = ip_packets(&self.capture.frames().unwrap()).into_iter();
        let to_eve = all.filter(|it| [V4, V6].map(|family| outside(family, EVE)).contains(&it.destination));
        to_eve.filter(|it| !is_neighbour_talk(it)).collect()
    }

    /// The victim counts for its peer what went between the two, and nothing that Eve made of it.
    fn assert_only_the_honest_count(&self) {
        let compared = || {
            let seen = datagrams(&self.capture.frames().unwrap());
            let sum = |from: u8, to: u8| -> u64 {
                let ends = [from, to].map(|number| place(V4, number));
                let between = seen.iter().filter(|it| [it.source, it.destination] == ends);
                between.map(|it| it.payload.len() as u64).sum()
            };
            let peer = self.victim.peer(&self.a_public);
            (peer["rx_bytes"].as_u64() == Some(sum(1, 2)) && peer["tx_bytes"].as_u64() == Some(sum(2, 1)))
                .then_some(())
        };
        wait_for("the counters to be those of the honest peer", SOON, compared).unwrap();
    }

    /// Drops of what came from outside.
    fn drops(&self) -> BTreeMap<String, u64> {
        use DropReason::{HandshakeTimeout, NoEndpoint, NoRoute, SendFailed, StagedOverflow, TunFailed};
        let ours = [HandshakeTimeout, NoEndpoint, NoRoute, SendFailed, StagedOverflow, TunFailed];
        let mut drops = self.victim.drops();
        ours.iter().for_each(|reason| drops.retain(|label, _| label != reason.label()));
        drops
    }

    /// Everything Eve tries, by the reason it has to be dropped for.
    fn attacks(&self) -> Vec<Attack> {
        let attack = |name, reason, datagrams| Attack { name, reason, datagrams };
        let mut attacks = shapeless();
        attacks.extend(forgeries(&self.b_public, &self.a_public, self.suite));

        let [chacha, aes] = &self.insiders;
        let crossed = [(Aes256Gcm, chacha), (ChaCha20Poly1305, aes)];
        let crossed =
            crossed.map(|(suite, insider)| initiation(suite, insider, &self.b_public, now()).to_vec());
        attacks.push(attack("an initiation in the other suite", DropReason::SuiteMismatch, crossed.to_vec()));
        let old = Tai64n::from_unix(UnixTime { secs: 1_000_000_000, nanos: 0 });
        let old = initiation(ChaCha20Poly1305, chacha, &self.b_public, old).to_vec();
        attacks.push(attack("an initiation older than the last", DropReason::StaleTimestamp, vec![old]));

        let types = self.suite.message_types();
        let [honest] = self.overheard(types.initiation).try_into().unwrap();
        attacks.push(attack("the honest initiation again", DropReason::StaleTimestamp, vec![honest; 5]));
        let mut data = self.overheard(types.transport);
        data.retain(|it| it.len() > 48);
        assert!(data.len() >= 5);
        let edited =
            |edit: fn(&mut Vec<u8>)| data.iter().cloned().map(|mut it| (edit(&mut it), it).1).collect();
        attacks.push(attack("honest data again", DropReason::Replay, data.clone()));
        attacks.push(attack(
            "honest data in the other suite",
            DropReason::SuiteMismatch,
            edited(|it| it[0] ^= 0x20),
        ));
        attacks.push(attack(
            "honest data with one bit changed",
            DropReason::BadTag,
            edited(|it| it[40] ^= 1),
        ));
        attacks.push(attack("honest data with another counter", DropReason::BadTag, edited(|it| it[9] = 1)));
        attacks.push(attack("honest data cut short", DropReason::BadTag, edited(|it| it.truncate(48))));
        attacks
    }
}

struct Attack {
    name: &'static str,
    reason: DropReason,
    datagrams: Vec<Vec<u8>>,
}

const TYPES: [u8; 8] = [1, 2, 3, 4, 0x21, 0x22, 0x23, 0x24];

/// The size of a message of the type, the smallest one for data.
fn proper_len(kind: u8) -> usize {
    [0, wire::INITIATION_LEN, wire::RESPONSE_LEN, wire::COOKIE_REPLY_LEN, 32][usize::from(kind & 0x0f)]
}

/// A message of type `kind` that is noise behind its header.
fn noise(kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    adit_lab::Content { seed: len as u64, bytes: len as u64 }.read_at(0, &mut bytes);
    bytes.iter_mut().zip([kind, 0, 0, 0]).for_each(|(to, from)| *to = from);
    bytes
}

/// What is no message at all, or says nothing that makes sense.
fn shapeless() -> Vec<Attack> {
    use DropReason::{BadMac1, MalformedDatagram, UnexpectedReply, UnknownIndex, UnknownType};
    let is_data = |kind: u8| kind & 0x0f == 4;
    let (data, handshake): (Vec<u8>, Vec<u8>) = TYPES.into_iter().partition(|kind| is_data(*kind));
    let wrong_lens = TYPES.into_iter().flat_map(|kind| {
        let lens = 4..if is_data(kind) { 32 } else { 180 };
        lens.filter(move |len| *len != proper_len(kind)).map(move |len| noise(kind, len))
    });
    let unknown = (0..=255).filter(|kind| !TYPES.contains(kind));
    let unknown = unknown.flat_map(|kind| [4, 32, 64, 92, 148].map(|len| noise(kind, len)));
    let reserved = TYPES.into_iter().flat_map(|kind| {
        [1, 2, 3].map(|at| {
            let mut bytes = noise(kind, proper_len(kind));
            bytes[at] = 1;
            bytes
        })
    });
    let of = |kinds: &[u8], len: Option<usize>| -> Vec<Vec<u8>> {
        kinds.iter().map(|kind| noise(*kind, len.unwrap_or(proper_len(*kind)))).collect()
    };
    let all = [
        ("nothing", MalformedDatagram, vec![Vec::new(); 3]),
        (
            "too little for a type",
            MalformedDatagram,
            (1..4).flat_map(|len| TYPES.map(|kind| noise(kind, len))).collect(),
        ),
        ("the wrong length for its type", MalformedDatagram, wrong_lens.collect()),
        ("an unknown type", UnknownType, unknown.collect()),
        ("a reserved byte that is set", UnknownType, reserved.collect()),
        ("the largest handshake message", MalformedDatagram, of(&handshake, Some(65_507))),
        ("the largest data", UnknownIndex, of(&data, Some(65_507))),
        ("the largest of no type", UnknownType, vec![noise(0, 65_507), noise(0xff, 65_507)]),
        ("data of no session", UnknownIndex, (32..200).flat_map(|len| of(&data, Some(len))).collect()),
        ("handshake messages of noise", BadMac1, of(&[1, 2, 0x21, 0x22], None)),
        ("cookie replies of noise", UnexpectedReply, of(&[3, 0x23], None)),
    ];
    all.map(|(name, reason, datagrams)| Attack { name, reason, datagrams }).into()
}

/// Handshake messages that are well made but for one thing.
fn forgeries(victim: &PublicKey, honest: &PublicKey, pinned: Suite) -> Vec<Attack> {
    let stranger = Identity::new(secret());
    let mut all = Vec::new();
    for suite in Suite::ALL {
        let mut attack = |name, reason, datagrams| all.push(Attack { name, reason, datagrams });
        let good = initiation(suite, &stranger, victim, now());
        attack("an initiation of nobody we know", DropReason::UnknownPeer, vec![good.to_vec(); 5]);
        let flipped = (116..132).map(|at| (at, good)).map(|(at, mut bytes)| {
            bytes[at] ^= 0x10;
            bytes.to_vec()
        });
        attack("an initiation with a wrong mac1", DropReason::BadMac1, flipped.collect());
        let to_another = initiation(suite, &stranger, honest, now()).to_vec();
        attack("an initiation to another", DropReason::BadMac1, vec![to_another]);
        let mut changed = [good; 4];
        for (at, bytes) in [8, 40, 90, 115].into_iter().zip(&mut changed) {
            bytes[at] ^= 1;
            stamp(suite, victim, bytes);
        }
        let [ephemeral, opaque, mac, timestamp] = changed.map(|bytes| bytes.to_vec());
        let unreadable = vec![ephemeral, opaque];
        attack("an initiation that does not open", DropReason::BadHandshake, unreadable);
        attack("a stranger's broken timestamp", DropReason::UnknownPeer, vec![mac, timestamp]);
        let mut reply = wire::response(suite, 1, 0x1234_5678, &stranger.public.0, &[0; 16]);
        stamp(suite, victim, &mut reply);
        attack("a response to nothing", DropReason::UnexpectedReply, vec![reply.to_vec(); 5]);
        let points = low_order_points();
        let ephemerals = points.iter().map(|point| {
            let mut bytes = good;
            bytes[8..40].copy_from_slice(&point.0);
            stamp(suite, victim, &mut bytes);
            bytes.to_vec()
        });
        attack("a low-order ephemeral key", DropReason::BadHandshake, ephemerals.collect());
    }
    // Of the pinned suite: a message of the other is dropped before its claim is looked into.
    let claim = |key: &PublicKey| without_static_key(pinned, key, victim).to_vec();
    let impostor =
        Attack { name: "an impostor", reason: DropReason::BadHandshake, datagrams: vec![claim(honest)] };
    let [zero, others @ ..] = low_order_points();
    let zero = Attack {
        name: "a static key of zeros",
        reason: DropReason::UnknownPeer,
        datagrams: vec![claim(&zero)],
    };
    let datagrams = others.iter().map(claim).collect();
    let low_order = Attack { name: "a low-order static key", reason: DropReason::BadHandshake, datagrams };
    all.extend([impostor, zero, low_order]);
    all
}

fn now() -> Tai64n {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Tai64n::from_unix(UnixTime { secs: wall.as_secs(), nanos: wall.subsec_nanos() })
}

fn stamp<const N: usize>(suite: Suite, to: &PublicKey, message: &mut [u8; N]) {
    CookieJar::new(suite, to).stamp(message, Instant::ZERO);
}

fn initiation(suite: Suite, from: &Identity, to: &PublicKey, time: Tai64n) -> [u8; wire::INITIATION_LEN] {
    let ss = from.secret.diffie_hellman(to).unwrap();
    let created = AwaitingResponse::create_initiation(suite, from, to, &ss, secret(), 0x0e7e_0e7e, time);
    let mut message = created.unwrap().1;
    stamp(suite, to, &mut message);
    message
}

/// Claims a static key without having it: the result of the two static keys is taken to be zero, which for a key of
/// low order is what it would be.
fn without_static_key(suite: Suite, claimed: &PublicKey, to: &PublicKey) -> [u8; wire::INITIATION_LEN] {
    let ephemeral: StaticSecret = secret();
    let public = ephemeral.public_key();
    let mut state = SymmetricState::new(suite, to);
    state.mix_chaining_key(&public.0);
    state.mix_hash(&public.0);
    let key = state.mix_key(&ephemeral.diffie_hellman(to).unwrap()[..]);
    let (mut sealed_static, mut sealed_time) = ([0; 48], [0; 28]);
    state.encrypt_and_hash(&key, &claimed.0, &mut sealed_static).unwrap();
    let key = state.mix_key(&[0; 32]);
    state.encrypt_and_hash(&key, now().as_bytes(), &mut sealed_time).unwrap();
    let mut message = wire::initiation(suite, 0x0e7e_0e7e, &public.0, &sealed_static, &sealed_time);
    stamp(suite, to, &mut message);
    message
}

fn socket(host: &Host, family: Family) -> UdpSocket {
    let any = if family == V4 { "0.0.0.0:0" } else { "[::]:0" };
    let socket = on(host, || UdpSocket::bind(any).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

fn attack_everything(suite: Suite) {
    let mut scene = Scene::new("hostile", suite);
    let mut answers = 0;
    for family in [V4, V6] {
        let (eve, target) = (socket(&scene.eve, family), place(family, 2));
        for (insider, theirs) in scene.insiders.iter().zip(Suite::ALL) {
            eve.send_to(&initiation(theirs, insider, &scene.b_public, now()), target).unwrap();
            let mut answer = [0; 2000];
            let (len, from) =
                eve.recv_from(&mut answer).expect("the control: an honest initiation is answered");
            assert_eq!((answer[0], len, from), (theirs.message_types().response, wire::RESPONSE_LEN, target));
            answers += 1;
        }
        wait_for("the capture", SOON, || (scene.answers().len() == answers).then_some(())).unwrap();

        for Attack { name, reason, datagrams } in scene.attacks() {
            let mut expected = scene.drops();
            *expected.entry(reason.label().to_owned()).or_default() += datagrams.len() as u64;
            for datagram in &datagrams {
                eve.send_to(datagram, target).unwrap();
            }
            let counted = wait_for(name, SOON, || (scene.drops() == expected).then_some(()));
            assert!(counted.is_ok(), "{suite} {family:?}: {name}: {:?} is not {expected:?}", scene.drops());
        }
    }
    assert_eq!(scene.answers().len(), answers, "not a word to anything but the honest initiations");
    assert!(scene.victim.process.ended().is_none());
    assert_eq!(scene.victim.peer(&scene.a_public)["endpoint"], place(V4, 1).to_string());
    scene.assert_only_the_honest_count();
    flood(&scene.a, inside(V4, 2), 10);
    scene.assert_only_the_honest_count();
    assert_eq!(scene.overheard(suite.message_types().initiation).len(), 1, "the session lives on");
}

#[test]
fn whatever_a_stranger_sends_is_dropped_in_silence_and_counted_under_its_reason() {
    attack_everything(ChaCha20Poly1305);
}

#[test]
fn whatever_a_stranger_sends_in_the_other_suite_is_dropped_and_counted_too() {
    attack_everything(Aes256Gcm);
}

#[test]
fn a_flood_of_rubbish_costs_no_memory_and_the_honest_get_through() {
    let mut scene = Scene::new("rubbish", ChaCha20Poly1305);
    let eve = socket(&scene.eve, V4);
    let rubbish: Vec<Vec<u8>> =
        shapeless().into_iter().flat_map(|attack| attack.datagrams).filter(|it| it.len() < 1_500).collect();
    let pour = || {
        for _ in 0..5 {
            for datagram in &rubbish {
                eve.send_to(datagram, place(V4, 2)).unwrap();
            }
            flood(&scene.a, inside(V4, 2), 5);
        }
    };
    pour();
    let before = (scene.victim.resident_kib(), scene.drops().values().sum::<u64>());
    pour();
    pour();
    let after = (scene.victim.resident_kib(), scene.drops().values().sum::<u64>());
    println!("resident KiB and drops: {before:?}, then {after:?}");
    assert!(after.1 - before.1 > rubbish.len() as u64, "the flood did arrive");
    assert!(after.0 <= before.0 + 512, "{before:?} {after:?}");
    assert_eq!(scene.answers(), []);
    assert!(scene.victim.process.ended().is_none());
}

#[test]
fn a_peer_with_a_key_of_low_order_is_never_spoken_to() {
    for suite in Suite::ALL {
        let pair = pair("loworder");
        let (key, honest) = (secret(), secret());
        let capture = Capture::start(&pair.a, "eth0").unwrap();
        let at = |number: u16| SocketAddr::new(outside(V4, 2), PORT + number);
        let mut peers: Vec<Peer> = (10..)
            .zip(low_order_points())
            .map(|(number, public)| Peer { public, ..Peer::new(&key, number) })
            .map(|peer| peer.suite(suite).keepalive(1).at(at(1)))
            .collect();
        let device = Device::start(Program::Adit, &pair.a, &Interface::new(&key, 1, peers.clone()));
        // Packets for all of them, and then two seconds and their keepalives.
        for number in 10..17 {
            for family in [V4, V6] {
                let address = inside(family, number).to_string();
                let _ = pair.a.attempt(["ping", "-n", "-c", "1", "-W", "0.1", &address]).unwrap();
            }
        }
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(datagrams(&capture.frames().unwrap()), [], "{suite}");

        peers.push(Peer::new(&honest, 20).suite(suite).keepalive(1).at(at(2)));
        device.configure(&Interface::new(&key, 1, peers));
        let seen = wait_for("the control: an honest key", SOON, || {
            let seen = datagrams(&capture.frames().unwrap());
            (!seen.is_empty()).then_some(seen)
        });
        let seen: Vec<_> = seen.unwrap().iter().map(|it| (it.destination, it.payload[0])).collect();
        assert_eq!(seen, [(at(2), suite.message_types().initiation)]);
    }
}
