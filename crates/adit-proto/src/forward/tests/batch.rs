//! A batch against the slow obvious version: every message on its own.

use super::*;

/// What reaches the lane.
#[derive(Clone, Debug)]
enum Step {
    /// An inside packet.
    Packet(Sent),
    Keepalive,
    /// One of the messages before, once more.
    Again(usize),
    /// One of the messages before, with another bit.
    Forged(usize),
    /// A message that opens and holds this.
    Holds(Vec<u8>),
    /// Anything.
    Noise(Vec<u8>),
    /// The engine ends the session.
    Retire,
    /// The engine sets a quota of so many bytes.
    Limit(u64),
}

#[derive(Clone, Debug)]
struct Sent {
    host: u8,
    /// Under the session of the second peer, which has no part in 10.0.0.2.
    by_other: bool,
    from: Endpoint,
    outside: Ecn,
    inside: Ecn,
    unfinished: bool,
    payload_len: usize,
    padding: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hosts = prop_oneof![6 => Just(2), 2 => Just(3), 1 => Just(70), 1 => Just(200)];
    let ways = prop_oneof![
        20 => Just(home()),
        1 => Just(elsewhere()),
        1 => Just(Endpoint { interface: 7, ..home() }),
        1 => Just(Endpoint { local: Some(IpAddr::from([192, 0, 2, 9])), ..home() }),
    ];
    let ecn = || prop_oneof![4 => Just(Ecn::NotEct), 1 => Just(Ecn::Ce), 1 => Just(Ecn::Ect0), 1 => Just(Ecn::Ect1)];
    let lengths = (prop_oneof![9 => Just(12), 1 => Just(0)], prop_oneof![3 => Just(0), 1 => Just(16)]);
    let packet = (hosts, prop::bool::weighted(0.15), ways, ecn(), ecn(), any::<bool>(), lengths).prop_map(
        |(host, by_other, from, outside, inside, unfinished, (payload_len, padding))| {
            Step::Packet(Sent { host, by_other, from, outside, inside, unfinished, payload_len, padding })
        },
    );
    let mut v6 = vec![0x60; 40];
    v6[4..6].fill(0);
    let contents = prop_oneof![
        Just(Content::challenge(*b"chosen!!").to_vec()),
        Just(Content::answer(*b"chosen!!").to_vec()),
        Just([&Content::superpacket_header(1400)[..], &from_peer(2)].concat()),
        Just([&crate::content::ASIDE_HEADER[..], &from_peer(2)].concat()),
        Just(v6),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let step = prop_oneof![
        60 => packet,
        4 => Just(Step::Keepalive),
        5 => any::<prop::sample::Index>().prop_map(|at| Step::Again(at.index(64))),
        3 => any::<prop::sample::Index>().prop_map(|at| Step::Forged(at.index(64))),
        6 => contents.prop_map(Step::Holds),
        2 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Noise),
        2 => prop::sample::select(vec![1, 100, 500]).prop_map(Step::Limit),
        1 => Just(Step::Retire),
    ];
    prop::collection::vec(step, 0..40)
}

impl Sent {
    fn message(&self, lane: &Lane) -> Vec<u8> {
        let mut inside = packet([10, 0, 0, self.host], [10, 0, 9, 9], self.payload_len);
        inside[1] = self.inside as u8;
        if self.unfinished {
            unfinished::mark(&mut inside);
        }
        inside.resize(inside.len() + self.padding, 0);
        sealed_with(if self.by_other { &lane.other_remote } else { &lane.remote }, &inside)
    }
}

fn limit(lane: &Lane, left_bytes: u64) {
    let limits = crate::allowance::Limits { left_bytes: Some(left_bytes), ..Default::default() };
    lane.path.allowance.set(&limits, None, 0);
}

proptest! {
    #[test]
    fn a_batch_does_what_its_messages_do_one_by_one(
        suite in prop::sample::select(&Suite::ALL[..]),
        initiator: bool,
        now in prop::sample::select(vec![NOW, later(REKEY_BEFORE_REJECT)]),
        steps in steps(),
    ) {
        let [together, alone] = [(); 2].map(|()| Lane::new(suite, initiator).open());
        let mut batch = together.forwarding.batch(now);
        let [mut notices, mut expected_notices] = [Vec::new(), Vec::new()];
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for step in steps {
            let (mut from, mut outside) = (home(), Ecn::NotEct);
            let message = match step {
                Step::Packet(packet) => {
                    (from, outside) = (packet.from, packet.outside);
                    packet.message(&together)
                }
                Step::Keepalive => together.sealed(b""),
                Step::Holds(inside) => together.sealed(&inside),
                Step::Noise(message) => message,
                Step::Again(at) if !sent.is_empty() => sent[at % sent.len()].clone(),
                Step::Forged(at) if !sent.is_empty() => {
                    let mut message = sent[at % sent.len()].clone();
                    if let Some(last) = message.last_mut() {
                        *last ^= 1;
                    }
                    message
                }
                Step::Again(_) | Step::Forged(_) => continue,
                Step::Retire => {
                    together.keypair.retire();
                    alone.keypair.retire();
                    continue;
                }
                Step::Limit(left_bytes) => {
                    limit(&together, left_bytes);
                    limit(&alone, left_bytes);
                    continue;
                }
            };
            sent.push(message.clone());
            let [mut one, mut other] = [message.clone(), message];
            let inbound = batch.arrive(&from, outside, &mut one, &mut notices);
            let expected =
                alone.forwarding.batch(now).arrive(&from, outside, &mut other, &mut expected_notices);
            prop_assert_eq!(&inbound, &expected);
            if let Some(Inbound { packet, .. }) = inbound {
                prop_assert_eq!(&one[packet.clone()], &other[packet]);
            }
            prop_assert_eq!(kinds(&notices), kinds(&expected_notices));
            prop_assert_eq!(together.path.endpoint(), alone.path.endpoint());
            prop_assert_eq!(together.other.endpoint(), alone.other.endpoint());
        }
        drop(batch);
        let state = |lane: &Lane| {
            let of_path = |path: &Path| {
                let activity = &path.activity;
                (
                    path.traffic.packets(),
                    path.traffic.bytes(),
                    activity.last_received(),
                    activity.take_owing_another(),
                )
            };
            let drops: Vec<_> = lane.forwarding.drops.iter().collect();
            (drops, of_path(&lane.path), of_path(&lane.other), lane.keypair.numbered())
        };
        prop_assert_eq!(state(&together), state(&alone));
    }
}

/// What the lane makes of an inside packet in its batch.
fn arrives(batch: &mut Batch<'_>, from: &Endpoint, remote: &Keypair, host: u8) -> bool {
    let mut message = sealed_with(remote, &from_peer(host));
    batch.arrive(from, Ecn::NotEct, &mut message, &mut Vec::new()).is_some()
}

#[test]
fn a_source_belongs_to_its_peer_also_within_a_batch() {
    for suite in Suite::ALL {
        let lane = Lane::new(suite, true).open();
        let mut batch = lane.forwarding.batch(NOW);
        // Both peers behind one address.
        assert!(arrives(&mut batch, &home(), &lane.remote, 2));
        assert!(!arrives(&mut batch, &home(), &lane.other_remote, 2));
        assert!(arrives(&mut batch, &home(), &lane.other_remote, 70), "the control");
        assert!(!arrives(&mut batch, &home(), &lane.other_remote, 2));
        assert!(!arrives(&mut batch, &home(), &lane.remote, 70));
        assert!(arrives(&mut batch, &home(), &lane.remote, 2), "the control");
        assert_eq!(lane.dropped(DropReason::SpoofedSource), 3);
    }
}

#[test]
fn a_batch_notices_what_changes_in_the_midst_of_it() {
    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    let mut batch = lane.forwarding.batch(NOW);
    assert!((0..2).all(|_| arrives(&mut batch, &home(), &lane.remote, 2)));
    assert!(arrives(&mut batch, &elsewhere(), &lane.remote, 2));
    assert_eq!(lane.path.endpoint(), Some(elsewhere()), "it roamed between two messages");
    assert!((0..2).all(|_| arrives(&mut batch, &home(), &lane.remote, 2)));
    assert_eq!(lane.path.endpoint(), Some(home()));
    lane.keypair.retire();
    assert!(!arrives(&mut batch, &home(), &lane.remote, 2), "the end of the session holds at once");
    assert_eq!(lane.dropped(DropReason::ExpiredKeypair), 1);

    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    let mut batch = lane.forwarding.batch(NOW);
    assert!((0..2).all(|_| arrives(&mut batch, &home(), &lane.remote, 2)));
    limit(&lane, 150);
    assert!(!arrives(&mut batch, &home(), &lane.remote, 2), "so does a limit, and what came before counts");
    assert_eq!(lane.dropped(DropReason::OverQuota), 1);
}

#[test]
fn what_a_batch_received_is_counted_when_it_ends() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let mut batch = lane.forwarding.batch(NOW);
    let len = lane.sealed(&from_peer(2)).len();
    assert!(arrives(&mut batch, &home(), &lane.remote, 2) && arrives(&mut batch, &home(), &lane.remote, 3));
    batch.arrive(&home(), Ecn::NotEct, &mut lane.sealed(b""), &mut Vec::new());
    assert!(arrives(&mut batch, &home(), &lane.remote, 2));
    drop(batch);
    let bytes = 3 * len + TRANSPORT_MIN_LEN;
    assert_eq!((lane.path.traffic.packets(), lane.path.traffic.bytes()), ((4, 0), (bytes as u64, 0)));
    let numbered = lane.keypair.numbered();
    assert_eq!((numbered.sent, numbered.received), (5, 4), "the first was lost");
}
