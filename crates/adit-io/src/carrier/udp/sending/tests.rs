use std::collections::VecDeque;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use adit_proto::endpoint::Endpoint;
use proptest::prelude::*;

use super::*;

#[test]
fn gso_pauses_at_once_when_the_device_cannot_and_later_when_a_path_cannot() {
    let errno = io::Error::from_raw_os_error;
    let mut gso = Gso::new(true);
    gso.refused(&errno(libc::EIO));
    assert!(!gso.is_on());

    let mut gso = Gso::new(true);
    for _ in 0..100 {
        for _ in 1..GSO_REFUSALS {
            gso.refused(&errno(libc::EINVAL));
        }
        gso.taken();
    }
    assert!(gso.is_on(), "other paths take runs");
    for _ in 0..GSO_REFUSALS {
        gso.refused(&errno(libc::EINVAL));
    }
    assert!(!gso.is_on());
    for _ in 0..GSO_PAUSE {
        assert!(!gso.is_on());
        gso.next_batch();
    }
    assert!(gso.is_on(), "tried again");
    assert!(!Gso::new(false).is_on());
}

#[test]
fn patience_ends() {
    let mut patience = Patience::new();
    let start = Instant::now();
    while patience.wait(|left_ms| {
        assert!(i64::from(left_ms) <= PATIENCE.as_millis() as i64);
        std::thread::sleep(Duration::from_millis(1));
    }) {}
    assert!(start.elapsed() >= PATIENCE);
    assert!(!patience.wait(|_| panic!("no time is left")));
}

proptest! {
    #[test]
    fn pieces_are_the_transmits_cut_at_datagrams(
        transmits in prop::collection::vec((any::<bool>(), 0usize..3000, 0usize..40_000), 0..6),
        gso: bool,
    ) {
        let endpoints = ["1.2.3.4:5", "[2001:db8::1]:5"].map(|remote| Endpoint::udp(remote.parse().unwrap()));
        let contents = vec![0; 40_000];
        let batch: Vec<_> = transmits
            .iter()
            .map(|&(v6, segment_size, len)| Transmit {
                endpoint: &endpoints[usize::from(v6)],
                ecn: Ecn::NotEct,
                hop_limit: None,
                segment_size,
                contents: &contents[..len],
            })
            .collect();
        for (family, wants_v6) in [(Family::V4, false), (Family::V6, true)] {
            let mut cursor = Cursor { family, transmit: 0, offset: 0 };
            let pieces: Vec<_> = std::iter::from_fn(|| cursor.next(&batch, gso)).collect();
            let mut datagrams = Vec::new();
            for piece in &pieces {
                let size = batch[piece.transmit].segment_size.max(1);
                let most = if gso { SEGMENTS_MAX } else { 1 };
                prop_assert!(piece.datagrams <= most);
                prop_assert!(piece.len <= PIECE_MAX);
                for number in 0..piece.datagrams {
                    let offset = piece.offset + number * size;
                    datagrams.push((piece.transmit, offset, size.min(piece.offset + piece.len - offset)));
                }
            }
            let mut expected = Vec::new();
            for (number, &(_, size, len)) in transmits.iter().enumerate().filter(|(_, t)| t.0 == wants_v6) {
                let size = size.max(1);
                expected.extend((0..len.max(1)).step_by(size).map(|at| (number, at, size.min(len - at))));
            }
            prop_assert_eq!(datagrams, expected);
        }
    }
}

/// What a kernel may do with a call.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Take this many messages at most.
    Take(usize),
    /// Take none, with this `errno`.
    Refuse(i32),
}

/// The kernel, but it answers the first calls as it is told.
struct Faulty {
    answers: VecDeque<Answer>,
    calls: usize,
}

impl Wire for &mut Faulty {
    fn take(&mut self, socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
        self.calls += 1;
        match self.answers.pop_front() {
            Some(Answer::Refuse(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Answer::Take(most)) => {
                let most = most.clamp(1, headers.len());
                send_messages(socket, &mut headers[..most])
            }
            None => send_messages(socket, headers),
        }
    }
}

struct Outcome {
    report: SendReport,
    /// What arrived, in order.
    received: Vec<Vec<u8>>,
    calls: usize,
    uses_gso: bool,
}

/// Sends numbered datagrams of 100 bytes in runs of these lengths to a socket of the loopback interface.
fn send_runs(runs: &[usize], answers: &[Answer]) -> (Vec<Vec<u8>>, Outcome) {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::udp(receiver.local_addr().unwrap());
    let mut number = 0u32;
    let mut datagram = || {
        number += 1;
        let mut datagram = [0; 100];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        datagram
    };
    let contents: Vec<Vec<u8>> =
        runs.iter().map(|&count| (0..count).flat_map(|_| datagram()).collect()).collect();
    let batch: Vec<_> = contents
        .iter()
        .map(|contents| Transmit {
            endpoint: &endpoint,
            ecn: Ecn::NotEct,
            hop_limit: None,
            segment_size: 100,
            contents,
        })
        .collect();
    let mut wire = Faulty { answers: answers.iter().copied().collect(), calls: 0 };
    let (mut gso, mut stale, mut report) = (Gso::new(true), Vec::new(), SendReport::default());
    let sending = Sending {
        wire: &mut wire,
        socket: Some(sender.as_fd()),
        family: Family::V4,
        batch: &batch,
        gso: &mut gso,
        stale: &mut stale,
        report: &mut report,
        patience: &mut Patience::new(),
    };
    sending.run(&mut Outbox::new());
    let mut buffer = [0; 2000];
    let received = std::iter::from_fn(|| receiver.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec()));
    let received = received.collect();
    let sent = contents.concat().chunks(100).map(<[u8]>::to_vec).collect();
    (sent, Outcome { report, received, calls: wire.calls, uses_gso: gso.is_on() })
}

#[test]
fn a_refused_run_goes_out_datagram_by_datagram_and_nothing_is_lost_or_sent_twice() {
    for (errno, pauses) in [(libc::EIO, true), (libc::EINVAL, false), (libc::EMSGSIZE, false)] {
        let (sent, outcome) = send_runs(&[5, 7, 1], &[Answer::Refuse(errno)]);
        assert_eq!(outcome.received, sent, "errno {errno}");
        assert_eq!(outcome.report, SendReport { sent: 13, bytes: 1300, split: 1, ..SendReport::default() });
        assert_eq!(outcome.uses_gso, !pauses, "errno {errno}");
    }
    let (sent, outcome) = send_runs(&[5, 7, 1], &[]);
    assert_eq!((outcome.received, outcome.report.split, outcome.calls), (sent, 0, 1), "the control");
}

#[test]
fn a_run_refused_behind_others_is_the_one_that_is_split() {
    let (sent, outcome) = send_runs(&[3, 4, 5], &[Answer::Take(1), Answer::Refuse(libc::EINVAL)]);
    assert_eq!(outcome.received, sent);
    assert_eq!((outcome.report.sent, outcome.report.split), (12, 1));
    // The first run, the refusal, four datagrams, the last run.
    assert_eq!(outcome.calls, 7);
}

#[test]
fn a_full_queue_is_waited_for_and_the_run_stays_whole() {
    for errno in [libc::ENOBUFS, libc::ENOMEM, libc::EAGAIN, libc::EINTR] {
        let (sent, outcome) = send_runs(&[5, 7], &[Answer::Refuse(errno)]);
        assert_eq!(outcome.received, sent, "errno {errno}");
        assert_eq!((outcome.report.sent, outcome.report.split, outcome.calls), (12, 0, 2), "errno {errno}");
        assert!(outcome.uses_gso);
    }
}

#[test]
fn a_queue_that_stays_full_costs_what_is_counted() {
    let (sent, outcome) = send_runs(&[5, 7], &[Answer::Refuse(libc::ENOBUFS); 10_000]);
    assert_eq!((outcome.received.len(), sent.len()), (0, 12));
    assert_eq!((outcome.report.sent, outcome.report.no_buffer), (0, 12));
}

#[test]
fn a_batch_taken_in_part_goes_on_where_it_stopped() {
    for most in 1..6 {
        let (sent, outcome) = send_runs(&[1, 2, 3, 4, 5], &[Answer::Take(most); 5]);
        assert_eq!(outcome.received, sent, "{most} at a time");
        assert_eq!((outcome.report.sent, outcome.calls), (15, 5usize.div_ceil(most)));
    }
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    const REFUSALS: [i32; 9] = [
        libc::EIO,
        libc::EINVAL,
        libc::EMSGSIZE,
        libc::ENOBUFS,
        libc::EAGAIN,
        libc::EINTR,
        libc::EPERM,
        libc::ENETUNREACH,
        libc::ECONNREFUSED,
    ];
    let take = (1usize..5).prop_map(Answer::Take);
    let refuse = prop::sample::select(REFUSALS.to_vec()).prop_map(Answer::Refuse);
    prop::collection::vec(prop_oneof![take, refuse], 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_kernel_refuses_each_datagram_arrives_once_and_in_order_or_is_counted(
        runs in prop::collection::vec(1usize..8, 1..8),
        answers in answers(),
    ) {
        let (sent, outcome) = send_runs(&runs, &answers);
        prop_assert_eq!(outcome.report.sent as usize, outcome.received.len());
        prop_assert_eq!(outcome.report.sent + outcome.report.dropped(), sent.len() as u64);
        let mut rest = sent.iter();
        let in_order = outcome.received.iter().all(|datagram| rest.any(|sent| sent == datagram));
        prop_assert!(in_order, "something overtook, or came twice");
    }
}
