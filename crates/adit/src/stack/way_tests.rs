//! Connections over ways that are long, narrow, lossy or disorderly, on virtual time.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tests::{Wire, network};
use super::*;

/// What a way does to packets, in either direction.
#[derive(Clone, Copy, Debug)]
struct Way {
    one_way_micros: u64,
    bytes_per_second: u64,
    /// What waits longer than this for the narrow place is dropped.
    queue_micros: u64,
    lost_per_mille: u32,
    twice_per_mille: u32,
    late_per_mille: u32,
    /// Nobody is told of what arrived out of order: the options of acknowledgements are erased.
    plain: bool,
    seed: u64,
}

const CLEAN: Way = Way {
    one_way_micros: 10_000,
    bytes_per_second: 12_500_000,
    queue_micros: 40_000,
    lost_per_mille: 0,
    twice_per_mille: 0,
    late_per_mille: 0,
    plain: false,
    seed: 1,
};

struct Link {
    way: Way,
    dice: u64,
    free_at: u64,
    number: u64,
    under_way: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Link {
    fn new(way: Way, salt: u64) -> Self {
        Self { way, dice: way.seed ^ salt, free_at: 0, number: 0, under_way: BTreeMap::new() }
    }

    fn roll(&mut self, per_mille: u32) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % 1_000 < u64::from(per_mille)
    }

    fn send(&mut self, now: u64, mut packet: Vec<u8>) {
        let takes = packet.len() as u64 * 1_000_000 / self.way.bytes_per_second;
        let leaves = self.free_at.max(now) + takes;
        if self.roll(self.way.lost_per_mille) || leaves > now + self.way.queue_micros + takes {
            return;
        }
        self.free_at = leaves;
        if self.way.plain {
            erase_options(&mut packet);
        }
        let late = if self.roll(self.way.late_per_mille) { self.way.one_way_micros / 4 } else { 0 };
        let copies = 1 + u64::from(self.roll(self.way.twice_per_mille));
        for copy in 0..copies {
            self.number += 1;
            let at = leaves + self.way.one_way_micros + late + copy * 500;
            self.under_way.insert((at, self.number), packet.clone());
        }
    }

    fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        let entry = self.under_way.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

/// Options of IPv4 segments but the first are overwritten by nothing, the permission of selective acknowledgements too.
fn erase_options(packet: &mut [u8]) {
    let end = 20 + usize::from(packet[32] >> 4) * 4;
    let mut at = 40;
    while at < end {
        let len = match packet[at] {
            0 => break,
            1 => 1,
            _ => usize::from(packet[at + 1]),
        };
        if matches!(packet[at], 4 | 5) {
            packet[at..at + len].fill(1);
        }
        at += len;
    }
    packet[36..38].fill(0);
    let sum = adit_io::tun::checksum::Checksum::new()
        .add_bytes(&packet[12..20])
        .add_u16(6)
        .add_u16((packet.len() - 20) as u16)
        .add_bytes(&packet[20..])
        .complement();
    packet[36..38].copy_from_slice(&sum);
}

/// Two hosts, `a` sends to `b`.
struct World {
    stacks: [Stack; 2],
    links: [Link; 2],
    now: u64,
    turns: usize,
}

impl World {
    /// One step of time, at most a millisecond as in a poller, less when something happens before.
    fn turn(&mut self) {
        self.turns += 1;
        let mut wires = [Wire::default(), Wire::default()];
        for (at, stack) in self.stacks.iter_mut().enumerate() {
            while stack.serve(self.now, &mut wires[at]) {
                self.links[at].take(self.now, &mut wires[at]);
            }
            while let Some(packet) = self.links[1 - at].arrived(self.now) {
                stack.take_in(self.now, &packet, &mut wires[at]);
            }
            stack.serve(self.now, &mut wires[at]);
            self.links[at].take(self.now, &mut wires[at]);
        }
        let sleeps = self.stacks.iter().filter_map(|stack| match stack.sleep_until() {
            Some(Sleep::Until { micros }) => Some(micros.next_multiple_of(1_000)),
            Some(Sleep::NotAtAll) => Some(self.now),
            None => None,
        });
        let arrivals = self.links.iter().filter_map(|link| Some(link.under_way.first_key_value()?.0.0));
        let next = sleeps.chain(arrivals).min().unwrap_or(self.now + 1_000_000);
        self.now = next.clamp(self.now + 10, self.now + 1_000_000);
    }
}

impl Link {
    fn take(&mut self, now: u64, wire: &mut Wire) {
        for packet in std::mem::take(&mut wire.0) {
            self.send(now, packet);
        }
    }
}

/// A connection over a way, and the world it is in.
fn connected(way: Way, to: &str) -> (World, TcpStream, TcpStream) {
    let ((stack_a, a), (stack_b, b)) = (network(1), network(2));
    let links = [Link::new(way, 0), Link::new(way, 77)];
    let mut world = World { stacks: [stack_a, stack_b], links, now: 1_000_000, turns: 0 };
    let listener = b.tcp_listen(80).unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let mut connecting = pin!(a.tcp_connect(to.parse().unwrap()));
    let mut accepting = pin!(listener.accept());
    let (mut client, mut server) = (None, None);
    while client.is_none() || server.is_none() {
        assert!(world.now < 3_600_000_000, "no connection");
        if client.is_none()
            && let Poll::Ready(stream) = connecting.as_mut().poll(&mut context)
        {
            client = Some(stream.unwrap());
        }
        if server.is_none()
            && let Poll::Ready(stream) = accepting.as_mut().poll(&mut context)
        {
            server = Some(stream.unwrap());
        }
        world.turn();
    }
    (world, client.unwrap(), server.unwrap())
}

/// Sends so many bytes and takes them in, `read_bytes_a_turn` at most: how long it took, and what arrived.
fn carry(way: Way, to: &str, content: &[u8], read_bytes_a_turn: usize) -> (Duration, Vec<u8>) {
    carry_after_words(0, way, to, content, read_bytes_a_turn)
}

/// The same on a connection that has carried so many words one by one.
fn carry_after_words(
    words: usize,
    way: Way,
    to: &str,
    content: &[u8],
    read_bytes_a_turn: usize,
) -> (Duration, Vec<u8>) {
    let (mut world, mut client, mut server) = connected(way, to);
    let mut context = Context::from_waker(Waker::noop());
    let limit = world.now + 3_600_000_000;
    let mut buffer = vec![0; read_bytes_a_turn];
    for _ in 0..words {
        assert!(client.try_write(b"word").unwrap() == 4);
        let mut heard = 0;
        while heard < 4 {
            world.turn();
            let mut read = ReadBuf::new(&mut buffer);
            if Pin::new(&mut server).poll_read(&mut context, &mut read).is_ready() {
                heard += read.filled().len();
            }
        }
    }
    let (started, mut sent, mut arrived) = (world.now, 0, Vec::new());
    loop {
        assert!(world.now < limit, "{} of {} bytes after an hour", arrived.len(), content.len());
        while sent < content.len() {
            match Pin::new(&mut client).poll_write(&mut context, &content[sent..]) {
                Poll::Ready(written) => sent += written.unwrap(),
                Poll::Pending => break,
            }
            if sent == content.len() {
                client.shut_down();
            }
        }
        let mut read = ReadBuf::new(&mut buffer);
        if let Poll::Ready(result) = Pin::new(&mut server).poll_read(&mut context, &mut read) {
            result.unwrap();
            if read.filled().is_empty() {
                return (Duration::from_micros(world.now - started), arrived);
            }
            arrived.extend(read.filled());
        }
        world.turn();
    }
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|number| ((number * 31) >> 3) as u8 ^ (number >> 11) as u8).collect()
}

fn mbits_per_second(way: Way, bytes: usize) -> f64 {
    let content = content(bytes);
    let (took, arrived) = carry(way, "10.0.0.2:80", &content, 1 << 20);
    assert!(arrived == content, "{} of {bytes} bytes", arrived.len());
    let rate = bytes as f64 * 8.0 / 1e6 / took.as_secs_f64();
    println!("{way:?}: {rate:.1} Mbit/s");
    rate
}

#[test]
fn one_packet_in_a_hundred_lost_each_way_costs_less_than_half_of_a_hundred_mbits() {
    for one_way_micros in [200, 10_000, 50_000] {
        let way = Way { one_way_micros, lost_per_mille: 10, ..CLEAN };
        let rate = mbits_per_second(way, 20_000_000);
        assert!(rate > 50.0, "{rate} Mbit/s at {one_way_micros} us");
    }
}

#[test]
fn a_clean_way_is_filled_and_its_queue_is_not() {
    for one_way_micros in [200, 10_000, 50_000] {
        let rate = mbits_per_second(Way { one_way_micros, ..CLEAN }, 20_000_000);
        assert!(rate > 50.0, "{rate} Mbit/s at {one_way_micros} us, the start included");
    }
    // A narrow place with little room before it.
    let shallow = Way { queue_micros: 5_000, bytes_per_second: 1_250_000, ..CLEAN };
    let rate = mbits_per_second(shallow, 3_000_000);
    assert!(rate > 6.0, "{rate} Mbit/s of 10");
}

#[test]
fn who_waits_for_a_reader_sleeps_and_wakes_up_when_it_reads() {
    let (mut world, client, mut server) = connected(CLEAN, "10.0.0.2:80");
    let content = content(8 << 20);
    let mut sent = client.try_write(&content).unwrap();
    let full = world.now + 10_000_000;
    while world.now < full {
        world.turn();
        sent += client.try_write(&content[sent..]).unwrap();
    }
    assert!(sent < content.len(), "nobody has read");
    let (turns, until) = (world.turns, world.now + 60_000_000);
    while world.now < until {
        world.turn();
    }
    let turns = world.turns - turns;
    assert!(turns < 600, "{turns} turns in a minute of nothing");
    let (mut arrived, mut buffer) = (Vec::<u8>::new(), vec![0; 1 << 20]);
    let mut context = Context::from_waker(Waker::noop());
    let late = world.now + 60_000_000;
    while arrived.len() < content.len() {
        assert!(world.now < late, "{} bytes", arrived.len());
        sent += client.try_write(&content[sent..]).unwrap();
        let mut read = ReadBuf::new(&mut buffer);
        if Pin::new(&mut server).poll_read(&mut context, &mut read).is_ready() {
            arrived.extend(read.filled());
        }
        world.turn();
    }
    assert!(arrived == content);
}

#[test]
fn a_conversation_that_becomes_an_upload_is_not_held_to_its_old_pace() {
    let content = content(10_000_000);
    let (fresh, _) = carry(CLEAN, "10.0.0.2:80", &content, 1 << 20);
    let (later, arrived) = carry_after_words(200, CLEAN, "10.0.0.2:80", &content, 1 << 20);
    assert!(arrived == content);
    println!("{fresh:?} at once, {later:?} after a conversation");
    assert!(later < fresh * 3 / 2, "{fresh:?} at once, {later:?} after a conversation");
}

#[test]
fn without_selective_acknowledgements_a_lossy_way_still_carries() {
    let way = Way { plain: true, lost_per_mille: 10, ..CLEAN };
    let rate = mbits_per_second(way, 3_000_000);
    assert!(rate > 2.0, "{rate} Mbit/s");
}

#[test]
fn a_reader_that_is_slow_slows_the_writer_and_loses_nothing() {
    let content = content(6_000_000);
    let (_, arrived) = carry(Way { lost_per_mille: 5, ..CLEAN }, "10.0.0.2:80", &content, 3_000);
    assert!(arrived == content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is lost, doubled or late: the same bytes arrive, in order, and then the end.
    #[test]
    fn what_arrives_is_what_was_sent(
        one_way_micros in 50_u64..80_000,
        kilobytes_per_second in 100_u64..50_000,
        queue_micros in 2_000_u64..100_000,
        lost_per_mille in 0_u32..150,
        twice_per_mille in 0_u32..100,
        late_per_mille in 0_u32..200,
        plain: bool,
        v6: bool,
        seed: u64,
        bytes in 0_usize..400_000,
        read_bytes_a_turn in 500_usize..200_000,
    ) {
        let way = Way {
            one_way_micros,
            bytes_per_second: kilobytes_per_second * 1_000,
            queue_micros,
            lost_per_mille,
            twice_per_mille,
            late_per_mille,
            plain: plain && !v6,
            seed,
        };
        let content = content(bytes);
        let to = if v6 { "[fd00::2]:80" } else { "10.0.0.2:80" };
        let (_, arrived) = carry(way, to, &content, read_bytes_a_turn);
        prop_assert!(arrived == content, "{} of {bytes} bytes", arrived.len());
    }
}
