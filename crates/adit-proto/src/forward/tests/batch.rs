//! A batch against the slow obvious version: every message on its own.

use super::*;

/// What reaches the lane.
#[derive(Clone, Debug)]
enum Step {
    /// A packet from this host, by one of two ways; its checksum may be left to us.
    Packet {
        host: u8,
        roams: bool,
        ecn: Ecn,
        unfinished: bool,
        payload_len: usize,
    },
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
    /// The engine sets limits that nobody keeps to.
    Limit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hosts = prop_oneof![6 => Just(2), 2 => Just(3), 1 => Just(70), 1 => Just(200)];
    let ecn = prop_oneof![4 => Just(Ecn::NotEct), 1 => Just(Ecn::Ce), 1 => Just(Ecn::Ect1)];
    let packet =
        (hosts, prop::bool::weighted(0.1), ecn, any::<bool>(), prop_oneof![9 => Just(12), 1 => Just(0)])
            .prop_map(|(host, roams, ecn, unfinished, payload_len)| Step::Packet {
                host,
                roams,
                ecn,
                unfinished,
                payload_len,
            });
    let contents = prop_oneof![
        Just(Content::challenge(*b"chosen!!").to_vec()),
        Just(Content::answer(*b"chosen!!").to_vec()),
        Just([&Content::superpacket_header(1400)[..], &from_peer(2)].concat()),
        Just([&crate::content::ASIDE_HEADER[..], &from_peer(2)].concat()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let step = prop_oneof![
        20 => packet,
        2 => Just(Step::Keepalive),
        2 => any::<prop::sample::Index>().prop_map(|at| Step::Again(at.index(64))),
        1 => any::<prop::sample::Index>().prop_map(|at| Step::Forged(at.index(64))),
        3 => contents.prop_map(Step::Holds),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Noise),
        1 => Just(Step::Limit),
        1 => prop::bool::weighted(0.2).prop_map(|ends| if ends { Step::Retire } else { Step::Keepalive }),
    ];
    prop::collection::vec(step, 0..40)
}

/// A quota that is used up by anything.
fn limit(lane: &Lane) {
    let limits = crate::allowance::Limits { left_bytes: Some(1), ..Default::default() };
    lane.path.allowance.set(&limits, None, 0);
}

proptest! {
    #[test]
    fn a_batch_does_what_its_messages_do_one_by_one(
        suite in prop::sample::select(&Suite::ALL[..]), initiator: bool, steps in steps(),
    ) {
        let [together, alone] = [(); 2].map(|()| Lane::new(suite, initiator).open());
        let mut batch = together.forwarding.batch(NOW);
        let [mut notices, mut expected_notices] = [Vec::new(), Vec::new()];
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for step in steps {
            let (mut from, mut outside) = (home(), Ecn::NotEct);
            let message = match step {
                Step::Packet { host, roams, ecn, unfinished, payload_len } => {
                    if roams {
                        from = elsewhere();
                    }
                    outside = ecn;
                    let mut inside = packet([10, 0, 0, host], [10, 0, 9, 9], payload_len);
                    if unfinished {
                        unfinished::mark(&mut inside);
                    }
                    together.sealed(&inside)
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
                    [&together, &alone].map(|lane| lane.keypair.retire());
                    continue;
                }
                Step::Limit => {
                    [&together, &alone].map(limit);
                    continue;
                }
            };
            sent.push(message.clone());
            let [mut one, mut other] = [message.clone(), message];
            let inbound = batch.arrive(&from, outside, &mut one, &mut notices);
            let expected =
                alone.forwarding.batch(NOW).arrive(&from, outside, &mut other, &mut expected_notices);
            prop_assert_eq!(&inbound, &expected);
            if let Some(Inbound { packet, .. }) = inbound {
                prop_assert_eq!(&one[packet.clone()], &other[packet]);
            }
            prop_assert_eq!(kinds(&notices), kinds(&expected_notices));
            prop_assert_eq!(together.path.endpoint(), alone.path.endpoint());
        }
        drop(batch);
        let state = |lane: &Lane| {
            let activity = &lane.path.activity;
            let drops: Vec<_> = lane.forwarding.drops.iter().collect();
            (drops, lane.path.traffic.packets(), lane.path.traffic.bytes(), activity.last_received(),
             activity.take_owing_another(), lane.keypair.numbered())
        };
        prop_assert_eq!(state(&together), state(&alone));
    }
}

#[test]
fn a_batch_notices_what_changes_in_the_midst_of_it() {
    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    let mut batch = lane.forwarding.batch(NOW);
    let mut notices = Vec::new();
    let mut arrives = |from: &Endpoint| {
        batch.arrive(from, Ecn::NotEct, &mut lane.sealed(&from_peer(2)), &mut notices).is_some()
    };
    assert!(arrives(&home()) && arrives(&home()));
    assert!(arrives(&elsewhere()));
    assert_eq!(lane.path.endpoint(), Some(elsewhere()), "it roamed between two messages");
    assert!(arrives(&home()));
    assert_eq!(lane.path.endpoint(), Some(home()));
    limit(&lane);
    assert!(!arrives(&home()), "a limit holds at once");
    lane.keypair.retire();
    assert!(!arrives(&home()), "and so does the end of the session");
    assert_eq!(lane.dropped(DropReason::ExpiredKeypair), 1);
}

#[test]
fn what_a_batch_received_is_counted_when_it_ends() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let mut batch = lane.forwarding.batch(NOW);
    let message = lane.sealed(&from_peer(2));
    for mut message in
        [message.clone(), lane.sealed(&from_peer(3)), lane.sealed(b""), lane.sealed(&from_peer(2))]
    {
        batch.arrive(&home(), Ecn::NotEct, &mut message, &mut Vec::new());
    }
    drop(batch);
    let bytes = 3 * message.len() + TRANSPORT_MIN_LEN;
    assert_eq!((lane.path.traffic.packets(), lane.path.traffic.bytes()), ((4, 0), (bytes as u64, 0)));
}
