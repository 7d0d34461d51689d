//! What the lanes allocate while they carry packets: nothing.

mod common;

use std::thread;
use std::time::Duration;

use adit::driver::Driver;
use adit_io::counting::Counting;
use adit_proto::suite::Suite;

use common::SOON;
use common::drivers::{pair, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Messages that both drivers have sent.
fn messages(drivers: [&Driver; 2]) -> u64 {
    let sent = |driver: &Driver| {
        driver.forwarding().path_of([10, 0, 0, 1].into()).map(|path| path.traffic.packets())
    };
    let other = |driver: &Driver| {
        driver.forwarding().path_of([10, 0, 0, 2].into()).map(|path| path.traffic.packets())
    };
    drivers.into_iter().map(|driver| sent(driver).or(other(driver)).map_or(0, |(_, sent)| sent)).sum()
}

#[test]
fn lanes_allocate_nothing_per_packet() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (_lab, a, b) = pair("steady");
        let (left, right) = (start(&a, 1, suite, true, 1), start(&b, 2, suite, true, 1));
        assert_eq!(a.ping("10.0.0.2", 3).unwrap(), 3);
        let mut server = b.spawn(["iperf3", "-s", "-1", "--forceflush"]).unwrap();
        server.wait_for_text("Server listening", SOON).unwrap();
        let mut counter = b.agent(["udp-counter", "--listen", "10.0.0.2:5300"]).spawn().unwrap();
        counter.wait_for_text("listening on", SOON).unwrap();
        let mut flow = a.spawn(["iperf3", "-c", "10.0.0.2", "-t", "8", "--bidir"]).unwrap();
        let datagrams = ["udp-rate", "10.0.0.2:5300", "--per-sec", "5000", "--trial-ms", "8000"];
        let mut datagrams = a.agent(datagrams).spawn().unwrap();
        // Buffers grow to the size of a batch, and stay.
        thread::sleep(Duration::from_secs(3));

        // The engine's thread does allocate, a few times for each timer; so it is the lanes' packets that are many.
        let (packets_before, before) = (messages([&left, &right]), ALLOCATOR.allocations());
        thread::sleep(Duration::from_secs(3));
        let (allocations, packets) =
            (ALLOCATOR.allocations() - before, messages([&left, &right]) - packets_before);
        println!("{suite}: {allocations} allocations, {packets} messages");
        assert!(packets > 10_000, "{packets}");
        assert!(allocations < packets / 500, "{allocations} allocations for {packets} messages");
        let boxed = std::hint::black_box(Box::new(before));
        assert!(ALLOCATOR.allocations() > *boxed + allocations, "the counter counts");
        for process in [&mut flow, &mut datagrams, &mut server, &mut counter] {
            process.end();
        }
        left.stop();
        right.stop();
    }
}
