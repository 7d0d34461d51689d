use core::time::Duration;

use adit_proto::suite::Suite;
use adit_sim::eve::Kind;
use adit_sim::topology::gateway;

use crate::traffic::*;

const CLIENTS: usize = 200;

#[test]
fn two_hundred_clients_reach_the_gateway_and_each_other() {
    for suite in Suite::ALL {
        let (mut world, gateway, clients) = gateway(1, suite, CLIENTS);
        for &client in &clients {
            world.send(client, gateway);
        }
        world.run_for(SECOND);
        for n in 0..CLIENTS {
            world.send(clients[n], clients[(n + 1) % CLIENTS]);
            world.send(gateway, clients[n]);
        }
        world.run_for(SECOND);
        assert_eq!(world.probes.totals(), (3 * CLIENTS as u64, 3 * CLIENTS as u64));
        assert_eq!(world.eve.count(gateway, Kind::Response), CLIENTS as u64);
        assert_eq!(world.host(gateway).engine.indices_in_use(), CLIENTS);
        world.run_for(600 * SECOND);
        assert_eq!(world.host(gateway).engine.indices_in_use(), 0, "and an idle gateway forgets them all");
        assert_eq!(world.audit(), 0);
    }
}

#[test]
fn two_hundred_clients_come_back_to_a_restarted_gateway_spread_in_time() {
    let (mut world, gateway, clients) = gateway(2, Suite::Aes256Gcm, CLIENTS);
    let flows: Vec<_> = clients.iter().map(|&client| (client, gateway)).collect();
    steady(&mut world, &flows, 500 * MS, 20 * SECOND);
    world.restart(gateway);
    let restarted = world.now;
    steady(&mut world, &flows, 500 * MS, 17 * SECOND);
    let before: Vec<_> = flows.iter().map(|&(from, to)| world.probes.flow(from, to).delivered).collect();
    steady(&mut world, &flows, 500 * MS, 2 * SECOND);
    for (&(from, to), before) in flows.iter().zip(before) {
        assert!(world.probes.flow(from, to).delivered > before, "{from:?} is back");
    }
    let times: Vec<Duration> = clients
        .iter()
        .flat_map(|&client| world.eve.times(client, Kind::Initiation))
        .filter(|&at| at > restarted)
        .map(|at| at.since(restarted))
        .collect();
    assert_eq!(times.len(), CLIENTS);
    let spread = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    assert!(spread > 250 * MS, "{spread:?}");
    assert_eq!(world.audit(), 0);
}
