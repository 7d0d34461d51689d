//! Small datagrams, sent back: how long a round trip takes, and how many are lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use adit_proto::key::PublicKey;
use tokio::net::UdpSocket;

use super::caller::Callers;

/// The size of a probe and of its answer, in bytes.
pub const PROBE_BYTES: usize = 64;

const MAGIC: &[u8; 4] = b"adit";
const QUESTION: u8 = b'Q';
const ANSWER: u8 = b'A';
/// Enough for any measurement; more would be work for nothing.
const ANSWERS_PER_SECOND: u32 = 1_000;

/// A probe: `adit`, `Q`, three zeros, the sequence number (big-endian), zeros.
pub fn probe(sequence: u64) -> [u8; PROBE_BYTES] {
    let mut probe = [0; PROBE_BYTES];
    probe[..4].copy_from_slice(MAGIC);
    probe[4] = QUESTION;
    probe[8..16].copy_from_slice(&sequence.to_be_bytes());
    probe
}

/// The sequence number of the probe that `datagram` answers; `None` if it answers none.
pub fn sequence_of_answer(datagram: &[u8]) -> Option<u64> {
    let is_answer =
        datagram.len() == PROBE_BYTES && datagram.starts_with(MAGIC) && datagram.get(4) == Some(&ANSWER);
    is_answer.then(|| datagram.get(8..16)?.try_into().ok().map(u64::from_be_bytes)).flatten()
}

/// The answer is as long as the question and is never a question itself: nothing is amplified, and two echoes cannot
/// be made to talk to each other.
fn answer_to(datagram: &mut [u8]) -> bool {
    let is_question =
        datagram.len() == PROBE_BYTES && datagram.starts_with(MAGIC) && datagram.get(4) == Some(&QUESTION);
    if let (true, Some(kind)) = (is_question, datagram.get_mut(4)) {
        *kind = ANSWER;
    }
    is_question
}

/// How many answers each peer got in this second.
#[derive(Default)]
struct Ration {
    since: Option<Instant>,
    given: HashMap<PublicKey, u32>,
}

impl Ration {
    fn allows(&mut self, peer: PublicKey, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.given.clear();
        }
        let given = self.given.entry(peer).or_default();
        *given = given.saturating_add(1);
        *given <= ANSWERS_PER_SECOND
    }
}

pub(super) async fn answer(socket: UdpSocket, callers: Callers) {
    let mut buffer = [0; PROBE_BYTES + 1];
    let mut ration = Ration::default();
    loop {
        // Errors are those of earlier answers, which ICMP says did not arrive.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(datagram) = buffer.get_mut(..len) else { continue };
        if !answer_to(datagram) {
            continue;
        }
        let Some(peer) = callers.key_of(from.ip()) else { continue };
        if ration.allows(peer, Instant::now()) {
            // A full socket buffer loses the answer, as any network may.
            let _ = socket.try_send_to(datagram, from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_becomes_its_answer_and_an_answer_becomes_nothing() {
        let mut datagram = probe(7);
        assert_eq!(sequence_of_answer(&datagram), None);
        assert!(answer_to(&mut datagram));
        assert_eq!(sequence_of_answer(&datagram), Some(7));
        assert!(!answer_to(&mut datagram));
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let good = probe(1);
        let long = [&good[..], &[0]].concat();
        let mut other = good;
        other[0] = b'x';
        for bad in [&[][..], &good[..63], &long, &other, &[0; 64]] {
            assert!(!answer_to(&mut bad.to_vec()), "{bad:?}");
        }
        assert!(answer_to(&mut good.to_vec()));
    }

    #[test]
    fn a_peer_gets_its_ration_each_second_and_takes_nothing_from_others() {
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let start = Instant::now();
        let mut ration = Ration::default();
        assert!((0..ANSWERS_PER_SECOND).all(|_| ration.allows(a, start)));
        assert!(!ration.allows(a, start));
        assert!(ration.allows(b, start));
        assert!(ration.allows(a, start + Duration::from_secs(1)));
        assert_eq!(ration.given.len(), 1);
    }
}
