use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::netlink::Netlink;
use crate::plan::{Family, Fwmark, Rule};
use crate::route::{self, PROTOCOL};

/// The priority of the rule that asks the main table.
const MAIN_PRIORITY: u32 = 32766;

/// The first of `count` free rule priorities right before all others (but the local table), in both families.
pub fn find_free_priority(count: u32) -> Result<u32, HostError> {
    let rules = list(&mut Netlink::open()?)?;
    let priorities: Vec<u32> = rules.into_iter().map(|it| it.rule.priority).filter(|it| *it > 0).collect();
    Ok(free_priority(&priorities, count))
}

fn free_priority(taken: &[u32], count: u32) -> u32 {
    let first = taken.iter().copied().min().unwrap_or(MAIN_PRIORITY).min(MAIN_PRIORITY);
    if first > count {
        return first - count;
    }
    let fits = |start: &u32| taken.iter().all(|it| !(*start..*start + count).contains(it));
    (1..MAIN_PRIORITY).find(fits).unwrap_or(1)
}

/// A rule we added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeRule {
    #[serde(flatten)]
    rule: Rule,
}

impl fmt::Display for MadeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) rule: Rule,
    ours: bool,
    /// Nothing about it that [`Rule`] cannot say.
    plain: bool,
}

pub(crate) fn prepare(netlink: &mut Netlink, rule: &Rule) -> Result<Option<MadeRule>, HostError> {
    let there = list(netlink)?.into_iter().any(|it| it.plain && it.rule == *rule);
    Ok((!there).then(|| MadeRule { rule: rule.clone() }))
}

pub(crate) fn make(netlink: &mut Netlink, made: &MadeRule) -> Result<(), HostError> {
    netlink
        .create(RouteNetlinkMessage::NewRule(message(&made.rule)))
        .map_err(|error| HostError::kernel(format!("add the rule {}", made.rule), error))
}

pub(crate) fn undo(netlink: &mut Netlink, made: &MadeRule) -> Result<Outcome, HostError> {
    if !list(netlink)?.into_iter().any(|it| it.ours && it.rule == made.rule) {
        return Ok(Outcome::Gone);
    }
    match netlink.set(RouteNetlinkMessage::DelRule(message(&made.rule))) {
        Ok(()) => Ok(Outcome::Undone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Outcome::Gone),
        Err(error) => Err(HostError::kernel(format!("remove the rule {}", made.rule), error)),
    }
}

pub(crate) fn list(netlink: &mut Netlink) -> Result<Vec<Found>, HostError> {
    let mut found = Vec::new();
    for family in Family::BOTH {
        let mut ask = RuleMessage::default();
        ask.header.family = route::family(family);
        let items = netlink.dump(RouteNetlinkMessage::GetRule(ask));
        let items = match items {
            Ok(items) => items,
            // A kernel booted without IPv6 has no IPv6 rules to list.
            Err(error) if family == Family::Ipv6 && error.kind() != io::ErrorKind::PermissionDenied => {
                continue;
            }
            Err(error) => return Err(HostError::kernel("list the rules", error)),
        };
        for item in items {
            if let RouteNetlinkMessage::NewRule(message) = item {
                found.extend(Found::read(family, &message));
            }
        }
    }
    Ok(found)
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let length = |net: Option<IpNet>| net.map_or(0, |net| net.prefix_len());
    message.header = RuleHeader {
        family: route::family(rule.family),
        dst_len: length(rule.to),
        src_len: length(rule.from),
        table: u8::try_from(rule.table).unwrap_or_default(),
        action: if rule.unreachable { RuleAction::Unreachable } else { RuleAction::ToTable },
        flags: if rule.invert { RuleFlags::Invert } else { RuleFlags::empty() },
        ..RuleHeader::default()
    };
    let mut attributes = vec![RuleAttribute::Priority(rule.priority), RuleAttribute::Protocol(PROTOCOL)];
    if !rule.unreachable {
        attributes.push(RuleAttribute::Table(rule.table));
    }
    if let Some(Fwmark { mark, mask }) = rule.fwmark {
        attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    attributes.extend(rule.suppress_prefix_len.map(RuleAttribute::SuppressPrefixLen));
    attributes.extend(rule.to.map(|net| RuleAttribute::Destination(net.trunc().addr())));
    attributes.extend(rule.from.map(|net| RuleAttribute::Source(net.trunc().addr())));
    attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    message.attributes = attributes;
    message
}

impl Found {
    fn read(family: Family, message: &RuleMessage) -> Option<Found> {
        let unreachable = match message.header.action {
            RuleAction::ToTable => false,
            RuleAction::Unreachable => true,
            _ => return None,
        };
        if message.header.family == AddressFamily::Unspec {
            return None;
        }
        let net = |address: &IpAddr, length| IpNet::new(*address, length).ok();
        let mut rule = Rule { unreachable, ..Rule::new(family, 0, message.header.table.into()) };
        let mut ours = false;
        let mut plain = true;
        let mut mark = None;
        let mut mask = u32::MAX;
        rule.invert = message.header.flags.contains(RuleFlags::Invert);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(it) => rule.priority = *it,
                RuleAttribute::Table(it) => rule.table = *it,
                RuleAttribute::Protocol(it) => ours = *it == PROTOCOL,
                RuleAttribute::FwMark(it) => mark = Some(*it),
                RuleAttribute::FwMask(it) => mask = *it,
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                RuleAttribute::SuppressPrefixLen(it) => rule.suppress_prefix_len = Some(*it),
                RuleAttribute::Destination(it) => rule.to = net(it, message.header.dst_len),
                RuleAttribute::Source(it) => rule.from = net(it, message.header.src_len),
                RuleAttribute::Iifname(it) => rule.iif = Some(it.clone()),
                _ => plain = false,
            }
        }
        rule.fwmark = mark.map(|mark| Fwmark { mark, mask });
        if unreachable {
            rule.table = 0;
        }
        Some(Found { rule, ours, plain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_priorities_come_right_before_all_others() {
        assert_eq!(free_priority(&[32766, 32767], 2), 32764);
        assert_eq!(free_priority(&[32764, 32765, 32766, 32767], 2), 32762);
        assert_eq!(free_priority(&[5210, 32766], 2), 5208);
        assert_eq!(free_priority(&[40000], 1), 32765);
    }

    #[test]
    fn free_priorities_are_found_even_when_the_front_is_taken() {
        assert_eq!(free_priority(&[1, 32766], 2), 2);
        assert_eq!(free_priority(&[1, 3, 32766], 2), 4);
    }
}
