//! One question to a DNS server and what it answers (RFC 1035).

use std::net::IpAddr;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question as DnsQuestion, RCODE, TYPE};

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// A question, and the number that its answer has to bear.
#[derive(Debug)]
pub(super) struct Question {
    id: u16,
    name: String,
    family: Family,
    /// The message to send.
    pub(super) message: Vec<u8>,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Addresses, perhaps none, good for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NoSuchName,
    /// The answer is too long for a datagram: ask again by TCP.
    Truncated,
    /// The server cannot say.
    Failed,
}

/// Aliases followed in one answer.
const ALIASES: usize = 16;

impl Question {
    /// `None` when it is no DNS name, or the system gives no random numbers.
    pub(super) fn new(name: &str, family: Family) -> Option<Self> {
        if plain(name).split('.').any(str::is_empty) {
            return None;
        }
        let mut id = [0; 2];
        aws_lc_rs::rand::fill(&mut id).ok()?;
        let id = u16::from_ne_bytes(id);
        let kind = match family {
            Family::V4 => TYPE::A,
            Family::V6 => TYPE::AAAA,
        };
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(DnsQuestion::new(Name::new(name).ok()?, kind.into(), CLASS::IN.into(), false));
        let message = packet.build_bytes_vec().ok()?;
        Some(Self { id, name: plain(name), family, message })
    }

    /// Reads an answer. `None` when it answers something else, which a forger's would.
    pub(super) fn read(&self, message: &[u8]) -> Option<Answer> {
        let packet = Packet::parse(message).ok()?;
        let asked = packet.questions.first()?;
        let fits = packet.id() == self.id
            && packet.has_flags(PacketFlag::RESPONSE)
            && packet.questions.len() == 1
            && plain(&asked.qname.to_string()) == self.name;
        if !fits {
            return None;
        }
        Some(match packet.rcode() {
            _ if packet.has_flags(PacketFlag::TRUNCATION) => Answer::Truncated,
            RCODE::NoError => self.addresses(&packet),
            RCODE::NameError => Answer::NoSuchName,
            _ => Answer::Failed,
        })
    }

    /// The addresses of the name, or of what it is an alias of.
    fn addresses(&self, packet: &Packet<'_>) -> Answer {
        let mut names = vec![self.name.clone()];
        for _ in 0..ALIASES {
            let next = packet.answers.iter().find_map(|record| match &record.rdata {
                RData::CNAME(alias) if names.last() == Some(&plain(&record.name.to_string())) => {
                    Some(plain(&alias.0.to_string()))
                }
                _ => None,
            });
            match next {
                Some(next) if !names.contains(&next) => names.push(next),
                _ => break,
            }
        }
        let mut ttl_secs = u32::MAX;
        let mut addresses = Vec::new();
        for record in packet.answers.iter().filter(|it| names.contains(&plain(&it.name.to_string()))) {
            let address: Option<IpAddr> = match (&record.rdata, self.family) {
                (RData::A(a), Family::V4) => Some(IpAddr::V4(a.address.into())),
                (RData::AAAA(aaaa), Family::V6) => Some(IpAddr::V6(aaaa.address.into())),
                _ => None,
            };
            ttl_secs = ttl_secs.min(record.ttl);
            addresses.extend(address);
        }
        Answer::Addresses(addresses, ttl_secs)
    }
}

/// Names are the same in any case, with or without the last dot.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};

    use super::*;

    fn answer(id: u16, asked: &str, records: &[(&str, RData<'static>)]) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        packet.questions.push(DnsQuestion::new(
            Name::new(asked).unwrap().into_owned(),
            TYPE::A.into(),
            CLASS::IN.into(),
            false,
        ));
        for (name, data) in records {
            let name = Name::new(name).unwrap().into_owned();
            packet.answers.push(ResourceRecord::new(name, CLASS::IN, 60, data.clone()));
        }
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn a(last: u8) -> RData<'static> {
        RData::A(A { address: u32::from_be_bytes([203, 0, 113, last]) })
    }

    fn alias(of: &'static str) -> RData<'static> {
        RData::CNAME(CNAME(Name::new(of).unwrap()))
    }

    #[test]
    fn only_the_answer_to_this_question_is_taken() {
        let question = Question::new("Web.example.", Family::V4).unwrap();
        let good = answer(question.id, "web.EXAMPLE", &[("web.example", a(80))]);
        let expected = Answer::Addresses(vec!["203.0.113.80".parse().unwrap()], 60);
        assert_eq!(question.read(&good), Some(expected));
        let another_id = answer(question.id.wrapping_add(1), "web.example", &[("web.example", a(80))]);
        let another_name = answer(question.id, "evil.example", &[("evil.example", a(66))]);
        assert_eq!(question.read(&another_id), None);
        assert_eq!(question.read(&another_name), None);
        assert_eq!(question.read(&question.message), None, "a question is no answer");
    }

    #[test]
    fn aliases_are_followed_and_strangers_in_the_answer_passed_over() {
        let question = Question::new("www.example", Family::V4).unwrap();
        let records =
            [("b.example", a(2)), ("www.example", alias("a.example")), ("a.example", alias("b.example"))];
        let seen = question.read(&answer(question.id, "www.example", &records));
        assert_eq!(seen, Some(Answer::Addresses(vec!["203.0.113.2".parse().unwrap()], 60)));
        let circle =
            [("www.example", alias("a.example")), ("a.example", alias("www.example")), ("x.example", a(9))];
        let seen = question.read(&answer(question.id, "www.example", &circle));
        assert_eq!(seen, Some(Answer::Addresses(Vec::new(), 60)));
    }

    #[test]
    fn what_is_no_name_is_no_question() {
        assert!(Question::new("web.example", Family::V6).is_some());
        for name in ["", &"a".repeat(64), &["a"; 200].join("."), "a..b"] {
            assert!(Question::new(name, Family::V6).is_none(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_whatever_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let question = Question::new("www.example", Family::V4).unwrap();
            let _ = question.read(&bytes);
            let mut good = answer(question.id, "www.example", &[("www.example", a(1)), ("www.example", alias("a.example"))]);
            good.truncate(cut);
            for (at, byte) in bytes.drain(..).enumerate().take(8) {
                if let Some(target) = good.get_mut(usize::from(byte) + at) {
                    *target ^= byte;
                }
            }
            let _ = question.read(&good);
        }
    }
}
