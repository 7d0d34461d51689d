//! Makes the operating system match a [`Plan`], and puts it back exactly.
//!
//! ```text
//!   Plan ──► apply ──► Guard ──► undo
//!              │                  ▲
//!              ▼                  │
//!           journal ──► undo_journal   (after a crash or SIGKILL)
//! ```
//!
//! A plan is data. [`apply`] looks at the host, writes to the journal what it is about to change and what was there
//! before, and only then changes it. Everything runs in the network namespace of the calling thread, is synchronous,
//! and may be called from inside or outside an async runtime.

mod address;
mod bus;
mod client;
mod dns;
mod error;
mod firewall;
mod gateway;
mod group;
mod guard;
mod holds;
mod journal;
mod link;
mod monitor;
mod namespace;
mod netlink;
mod plan;
mod preview;
mod program;
mod room;
mod route;
mod rule;
mod surroundings;
mod sysctl;
mod ways;

pub use client::{Block, ClientHost, RULE_PRIORITIES, RouteTable, client_plan, is_everything};
pub use dns::watch_resolver;
pub use error::HostError;
pub use firewall::{
    Allowed, ClampFirewall, ClientFirewall, Exposed, Firewall, GatewayFirewall, GroupFirewall, KillSwitch,
    LOCKDOWN_MARK, Listener, Lockdown, OutageFirewall, Passage, Ports, Reach, Side as SplitSide,
    SplitFirewall, Transport, closes_host, foreign_forward_drops, is_locked_down, nft_is_installed,
    part_by_name, split_table,
};
pub use gateway::{GatewayHost, gateway_plan, private_networks};
pub use group::Group;
pub use guard::{
    Guard, RepairExtent, Repaired, Repairs, Report, apply, blocks_left, undo_journal,
    undo_journal_but_blocks, undo_journal_of_former_boot,
};
pub use link::{ethernet_links, link_exists, link_index, link_name};
pub use monitor::{HostEvent, watch};
pub use plan::{Address, Change, Dns, Family, Fwmark, Hop, Link, MAIN_TABLE, Plan, Route, Rule, Sysctl};
pub use preview::{Preview, Step, preview};
pub use room::furnish;
pub use route::{Way, auto_mtu, find_free_table, route_mtu, way_to};
pub use rule::find_free_priority;
pub use surroundings::{Surroundings, neighbour_networks, surroundings};
pub use sysctl::{
    answers_arp_for_all, forwards, has_ipv6, ipv6_enabled, links_accepting_router_advertisements,
};
pub use ways::watch_ways;
