//! The words of nftables' JSON that our tables are written in.

use std::borrow::Cow;
use std::collections::HashSet;

use ipnet::IpNet;
use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField, Prefix, RT, RTKey, Range, SetItem, TcpOption,
};
use nftables::schema::{Chain, NfListObject, Rule, Table};
use nftables::stmt::{Mangle, Match, NAT, NATFlag, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::Value;

pub(super) const RAW: i32 = -300;
pub(super) const MANGLE: i32 = -150;
pub(super) const FILTER: i32 = 0;
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

    pub(super) fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: self.name.clone().into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }

    pub(super) fn rule<const N: usize>(&mut self, chain: &'static str, statements: [Statement<'static>; N]) {
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
    // The crate writes this one statement as a string, which nft does not take.
    for notrack in statements.filter(|it| *it == "notrack") {
        *notrack = serde_json::json!({ "notrack": null });
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
    if net.prefix_len() == 0 {
        return meta_is(MetaKey::Nfproto, family);
    }
    let net = net.trunc();
    let address = string(&net.addr().to_string());
    let right = match net.prefix_len() == net.max_prefix_len() {
        true => address,
        false => Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(address),
            len: net.prefix_len().into(),
        })),
    };
    is(payload(protocol, field), right)
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
