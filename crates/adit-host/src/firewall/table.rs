//! The words of nftables' JSON that our tables are written in.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField, Prefix, RT, RTKey, Range, SetItem, TcpOption,
};
use nftables::schema::{Chain, NfListObject, Rule, Set, SetFlag, SetType, SetTypeValue, Table};
use nftables::stmt::{Mangle, Match, NAT, NATFamily, NATFlag, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::Value;

use crate::plan::Family;

pub(super) const RAW: i32 = -300;
pub(super) const MANGLE: i32 = -150;
pub(super) const FILTER: i32 = 0;
pub(super) const DSTNAT: i32 = -100;
pub(super) const SRCNAT: i32 = 100;

/// A table being written.
pub(super) struct Builder {
    name: String,
    pub(super) batch: Batch<'static>,
}

impl Builder {
    /// Adding first makes the deletion succeed whether or not a former table is there.
    pub(super) fn new(name: String) -> Builder {
        let mut batch = Batch::new();
        batch.add(table(&name));
        batch.delete(table(&name));
        batch.add(table(&name));
        Builder { name, batch }
    }

    /// For more in a table that is there.
    pub(super) fn in_table(name: String) -> Builder {
        Builder { name, batch: Batch::new() }
    }

    pub(super) fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        self.chain_with(name, kind, hook, priority, NfChainPolicy::Accept);
    }

    /// What no rule accepts is dropped.
    pub(super) fn closed_chain(&mut self, name: &'static str, hook: NfHook, priority: i32) {
        self.chain_with(name, NfChainType::Filter, hook, priority, NfChainPolicy::Drop);
    }

    fn chain_with(
        &mut self,
        name: &'static str,
        kind: NfChainType,
        hook: NfHook,
        priority: i32,
        policy: NfChainPolicy,
    ) {
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: self.name.clone().into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(policy),
            ..Chain::default()
        }));
    }

    /// A set of addresses, each with a time of its own.
    pub(super) fn address_set(&mut self, name: &'static str, family: Family) {
        let kind = match family {
            Family::Ipv4 => SetType::Ipv4Addr,
            Family::Ipv6 => SetType::Ipv6Addr,
        };
        self.batch.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: self.name.clone().into(),
            name: name.into(),
            set_type: SetTypeValue::Single(kind),
            flags: Some(HashSet::from([SetFlag::Timeout])),
            ..Set::default()
        })));
    }

    pub(super) fn rule(&mut self, chain: &'static str, statements: impl Into<Vec<Stmt>>) {
        self.batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: self.name.clone().into(),
            chain: chain.into(),
            expr: Cow::Owned(statements.into()),
            ..Rule::default()
        }));
    }
}

pub(super) fn json(batch: Batch<'_>) -> Value {
    let mut transaction = serde_json::json!(batch.to_nftables());
    let objects = transaction["nftables"].as_array_mut().into_iter().flatten();
    let statements = objects.filter_map(|it| it.pointer_mut("/add/rule/expr")?.as_array_mut()).flatten();
    for statement in statements {
        // The crate writes this one statement as a string, which nft does not take.
        if statement == "notrack" {
            *statement = serde_json::json!({ "notrack": null });
        }
        // And flags in any order.
        if let Some(flags) = statement.pointer_mut("/match/left/fib/flags").and_then(Value::as_array_mut) {
            flags.sort_by_key(|it| it.as_str().map(str::to_owned));
        }
    }
    transaction
}

pub(super) type Expr = Expression<'static>;
pub(super) type Stmt = Statement<'static>;

pub(super) fn table(name: &str) -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: name.to_owned().into(), handle: None })
}

pub(super) fn string(text: &str) -> Expr {
    Expression::String(text.to_owned().into())
}

pub(super) fn number(value: u32) -> Expr {
    Expression::Number(value)
}

pub(super) fn set(items: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

pub(super) fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn ct(key: &'static str) -> Expr {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), ..CT::default() }))
}

pub(super) fn fib(flag: FibFlag) -> Expr {
    Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: HashSet::from([flag]) }))
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn matches(left: Expr, op: Operator, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op })
}

pub(super) fn is(left: Expr, right: Expr) -> Stmt {
    matches(left, Operator::EQ, right)
}

pub(super) fn is_not(left: Expr, right: Expr) -> Stmt {
    matches(left, Operator::NEQ, right)
}

pub(super) fn meta_is(key: MetaKey, value: &str) -> Stmt {
    is(meta(key), string(value))
}

pub(super) fn meta_is_not(key: MetaKey, value: &str) -> Stmt {
    is_not(meta(key), string(value))
}

pub(super) fn in_network(field: &'static str, net: IpNet) -> Stmt {
    let (protocol, family) = if net.addr().is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
    match net.prefix_len() {
        0 => meta_is(MetaKey::Nfproto, family),
        _ => is(payload(protocol, field), network(&net)),
    }
}

pub(super) fn is_reply() -> Stmt {
    let states = Expression::List(vec![string("established"), string("related")]);
    matches(ct("state"), Operator::IN, states)
}

pub(super) fn is_syn() -> Stmt {
    let mask = Expression::List(vec![string("syn"), string("rst")]);
    let masked = BinaryOperation::AND(payload("tcp", "flags"), mask);
    is(Expression::BinaryOperation(Box::new(masked)), string("syn"))
}

pub(super) fn clamp_mss() -> Stmt {
    let option = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
    let value = Expression::Named(NamedExpression::RT(RT { key: RTKey::MTU, family: None }));
    assign(Expression::Named(NamedExpression::TcpOption(option)), value)
}

pub(super) fn assign(key: Expr, value: Expr) -> Stmt {
    Statement::Mangle(Mangle { key, value })
}

pub(super) fn masquerade(ports: Option<(u16, u16)>) -> Stmt {
    let port = ports.map(|(low, high)| {
        Expression::Range(Box::new(Range { range: [number(low.into()), number(high.into())] }))
    });
    let flags = Some(HashSet::from([NATFlag::FullyRandom]));
    Statement::Masquerade(Some(NAT { addr: None, family: None, port, flags }))
}

/// Whether the way back to the source leads through another interface, or nowhere (RFC 3704).
pub(super) fn source_is_elsewhere() -> Stmt {
    let flags = HashSet::from([FibFlag::Saddr, FibFlag::Iif]);
    let way = Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Oif, flags }));
    is(way, Expression::Boolean(false))
}

/// Whether the way back to the source leads through `link`.
pub(super) fn source_is_behind(link: &str) -> Stmt {
    let flags = HashSet::from([FibFlag::Saddr]);
    let way = Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Oifname, flags }));
    is(way, string(link))
}

pub(super) fn source_is_ours() -> Stmt {
    is(fib(FibFlag::Saddr), string("local"))
}

pub(super) fn is_translated() -> Stmt {
    matches(ct("status"), Operator::IN, string("dnat"))
}

/// The networks of one family, each only once.
pub(super) fn nets_of(nets: &[IpNet], family: Family) -> Vec<IpNet> {
    let of_family = nets.iter().filter(|net| Family::of(net.addr()) == family).map(IpNet::trunc).collect();
    IpNet::aggregate(&of_family)
}

/// The condition that an address is in any of these networks of one family; `None` for no networks.
pub(super) fn any_of(field: &'static str, nets: &[IpNet]) -> Option<Stmt> {
    match nets {
        [] => None,
        [net] => Some(in_network(field, *net)),
        [first, ..] => {
            let protocol = if first.addr().is_ipv4() { "ip" } else { "ip6" };
            Some(is(payload(protocol, field), set(nets.iter().map(network).collect())))
        }
    }
}

pub(super) fn network(net: &IpNet) -> Expr {
    let address = string(&net.network().to_string());
    match net.prefix_len() == net.max_prefix_len() {
        true => address,
        false => Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(address),
            len: net.prefix_len().into(),
        })),
    }
}

/// A port, or the ports from `first` to `last`.
pub(super) fn in_range(first: u16, last: u16) -> Expr {
    match first == last {
        true => number(first.into()),
        false => Expression::Range(Box::new(Range { range: [number(first.into()), number(last.into())] })),
    }
}

pub(super) fn translate_to(to: IpAddr, port: u16) -> Stmt {
    let family = if to.is_ipv4() { NATFamily::IP } else { NATFamily::IP6 };
    Statement::DNAT(Some(NAT {
        addr: Some(string(&to.to_string())),
        family: Some(family),
        port: Some(number(port.into())),
        flags: None,
    }))
}

/// Lowers the MSS of a SYN to `bytes`; a lower one stays.
pub(super) fn clamp_mss_to(bytes: u32) -> Stmt {
    let option = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
    assign(Expression::Named(NamedExpression::TcpOption(option)), number(bytes))
}
