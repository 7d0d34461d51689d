//! Tables of our own, loaded in one transaction each. Another table's drop is final in nftables, so nothing here can
//! open what Docker, ufw or firewalld close; it only closes, translates and marks.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField, Prefix, RT, RTKey, Range, SetItem, TcpOption,
};
use nftables::schema::{Chain, NfListObject, Rule, Table};
use nftables::stmt::{Mangle, Match, NAT, NATFlag, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::HostError;
use crate::guard::Outcome;
use crate::program;

const RAW: i32 = -300;
const MANGLE: i32 = -150;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// A table of our own, by what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firewall {
    Gateway(GatewayFirewall),
    Client(ClientFirewall),
}

/// Masquerades the inside networks, and lets through only what belongs to the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayFirewall {
    pub link: String,
    /// The networks behind the tunnel.
    pub inside: Vec<IpNet>,
    /// Our own ports, which no masqueraded connection may ever get.
    pub listeners: Vec<Listener>,
    /// Our own addresses and ports inside, TCP and UDP, which only the tunnel may reach.
    #[serde(default)]
    pub services: Vec<SocketAddr>,
    /// Inside addresses that may speak with the services over TCP, and with nothing else.
    #[serde(default)]
    pub invited: Vec<IpAddr>,
    pub masquerade: bool,
    pub client_to_client: bool,
    /// Destinations that clients may not reach through the gateway.
    pub denied: Vec<IpNet>,
}

/// Guards a full tunnel: our address answers only through the tunnel, and replies keep the mark of their connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientFirewall {
    pub link: String,
    pub addresses: Vec<IpAddr>,
    pub fwmark: u32,
}

/// A port we listen on, outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    pub transport: Transport,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Udp,
    Tcp,
}

impl Firewall {
    /// The name of the table in the `inet` family.
    pub fn table(&self) -> String {
        let link = match self {
            Firewall::Gateway(it) => &it.link,
            Firewall::Client(it) => &it.link,
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
        format!("adit_{}", link.chars().map(plain).collect::<String>())
    }

    /// The transaction that puts the table in place of any former one of its name, as `nft -j -f` reads it.
    pub fn ruleset(&self) -> Value {
        let mut table = Builder::new(self.table());
        match self {
            Firewall::Gateway(it) => it.build(&mut table),
            Firewall::Client(it) => it.build(&mut table),
        }
        json(table.batch)
    }
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table inet {}:", self.table())?;
        match self {
            Firewall::Gateway(it) => {
                if it.masquerade {
                    let (low, high) = it.masquerade_ports();
                    let inside: Vec<String> = it.inside.iter().map(ToString::to_string).collect();
                    write!(f, " masquerade {} to ports {low}-{high},", inside.join(" "))?;
                }
                let between = if it.client_to_client { "may" } else { "may not" };
                write!(f, " new connections only from {}, clients {between} reach each other", it.link)?;
                if !it.services.is_empty() {
                    let services: Vec<String> = it.services.iter().map(ToString::to_string).collect();
                    write!(f, ", only {} reaches {}", it.link, services.join(" "))?;
                }
                if !it.invited.is_empty() {
                    let invited: Vec<String> = it.invited.iter().map(ToString::to_string).collect();
                    write!(f, ", {} nothing else", invited.join(" "))?;
                }
                if !it.denied.is_empty() {
                    let denied: Vec<String> = it.denied.iter().map(ToString::to_string).collect();
                    write!(f, ", nor {}", denied.join(" "))?;
                }
                Ok(())
            }
            Firewall::Client(it) => {
                let addresses: Vec<String> = it.addresses.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    " {} only through {}, replies keep mark {:#x}",
                    addresses.join(" "),
                    it.link,
                    it.fwmark
                )
            }
        }
    }
}

/// The chains of others, as `FAMILY TABLE CHAIN`, that drop what is forwarded unless a rule accepts it, and that have
/// no accepting rule for `link`. Empty where nftables cannot be asked; tables of the legacy iptables are not seen.
pub fn foreign_forward_drops(link: &str) -> Vec<String> {
    let Some(nft) = program::find("nft") else { return Vec::new() };
    let told = program::ask(&nft, &["-j", "list", "ruleset"], "list the nftables rules");
    let ruleset = told.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    ruleset.map(|ruleset| forward_drops(&ruleset, link)).unwrap_or_default()
}

fn forward_drops(ruleset: &Value, link: &str) -> Vec<String> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let is_ours = |it: &Value| {
        it["family"] == "inet" && it["table"].as_str().is_some_and(|table| table.starts_with("adit_"))
    };
    // The rule may stand in a chain that this one jumps to, so any in the table counts.
    let is_let_through = |chain: &Value| {
        objects().filter_map(|it| it.get("rule")).any(|rule| {
            rule["family"] == chain["family"] && rule["table"] == chain["table"] && accepts_from(rule, link)
        })
    };
    objects()
        .filter_map(|it| it.get("chain"))
        .filter(|it| it["hook"] == "forward" && it["policy"] == "drop" && !is_ours(it) && !is_let_through(it))
        .map(|it| ["family", "table", "name"].map(|key| it[key].as_str().unwrap_or_default()).join(" "))
        .collect()
}

fn accepts_from(rule: &Value, link: &str) -> bool {
    let statements = || rule["expr"].as_array().into_iter().flatten();
    let is_from_link = |it: &Value| {
        let of = &it["match"];
        of["op"] == "==" && of["left"]["meta"]["key"] == "iifname" && of["right"] == link
    };
    statements().any(is_from_link) && statements().any(|it| it.get("accept").is_some())
}

/// A table we loaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct MadeFirewall {
    table: String,
}

impl MadeFirewall {
    pub(crate) fn new(firewall: &Firewall) -> MadeFirewall {
        MadeFirewall { table: firewall.table() }
    }
}

impl fmt::Display for MadeFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table inet {}", self.table)
    }
}

pub(crate) fn load(firewall: &Firewall, lock: &File) -> Result<(), HostError> {
    run(&firewall.ruleset(), &format!("load the nftables table {}", firewall.table()), lock)
}

pub(crate) fn undo(made: &MadeFirewall, lock: &File) -> Result<Outcome, HostError> {
    let mut batch = Batch::new();
    batch.delete(table(&made.table));
    match run(&json(batch), &format!("remove the nftables table {}", made.table), lock) {
        Ok(()) => Ok(Outcome::Undone),
        Err(HostError::ProgramFailed { said, .. }) if said.contains("No such file or directory") => {
            Ok(Outcome::Gone)
        }
        Err(error) => Err(error),
    }
}

/// One transaction: all of it is done, or none.
fn run(transaction: &Value, doing: &str, lock: &File) -> Result<(), HostError> {
    let Some(nft) = program::find("nft") else {
        return Err(HostError::ProgramMissing {
            doing: doing.to_owned(),
            program: "nft",
            install: "apt install nftables (Debian, Ubuntu), dnf install nftables (Fedora), pacman -S nftables (Arch)",
        });
    };
    match program::run_locked(&nft, &["-j", "-f", "-"], &transaction.to_string(), doing, lock) {
        Err(HostError::ProgramFailed { said, .. }) if said.contains("Operation not permitted") => {
            Err(HostError::PermissionDenied { doing: doing.to_owned() })
        }
        result => result,
    }
}

impl GatewayFirewall {
    fn build(&self, table: &mut Builder) {
        let from_tunnel = || meta_is(MetaKey::Iifname, &self.link);
        let into_tunnel = || meta_is(MetaKey::Oifname, &self.link);
        let ports = |transport| {
            let of = self.listeners.iter().filter(move |it| it.transport == transport);
            of.map(|it| number(it.port.into())).collect::<Vec<_>>()
        };

        table.chain("raw_prerouting", NfChainType::Filter, NfHook::Prerouting, RAW);
        table.chain("raw_output", NfChainType::Filter, NfHook::Output, RAW);
        for (transport, protocol) in [(Transport::Udp, "udp"), (Transport::Tcp, "tcp")] {
            let ports = ports(transport);
            if ports.is_empty() {
                continue;
            }
            let to_us = is(fib(FibFlag::Daddr), string("local"));
            let to_port = is(payload(protocol, "dport"), set(ports.clone()));
            // A tunnel inside itself is a loop, or a client probing for the port shadow (CVE-2021-3773).
            table.rule(
                "raw_prerouting",
                [from_tunnel(), to_us.clone(), to_port.clone(), Statement::Drop(None)],
            );
            if transport == Transport::Udp {
                let outside = meta_is_not(MetaKey::Iifname, &self.link);
                table.rule("raw_prerouting", [outside, to_us, to_port, Statement::Notrack]);
                let from_us = is(fib(FibFlag::Saddr), string("local"));
                let from_port = is(payload(protocol, "sport"), set(ports));
                let outside = meta_is_not(MetaKey::Oifname, &self.link);
                table.rule("raw_output", [outside, from_us, from_port, Statement::Notrack]);
            }
        }

        for service in &self.services {
            // A neighbour may send to an inside address as well, and so may a program of this host.
            for protocol in ["tcp", "udp"] {
                let elsewhere = meta_is_not(MetaKey::Iifname, &self.link);
                let to_service = in_network("daddr", IpNet::from(service.ip()));
                let to_port = is(payload(protocol, "dport"), number(service.port().into()));
                table.rule("raw_prerouting", [elsewhere, to_service, to_port, Statement::Drop(None)]);
            }
        }

        self.confine_the_invited(table);

        table.chain("forward_mangle", NfChainType::Filter, NfHook::Forward, MANGLE);
        for direction in [from_tunnel(), into_tunnel()] {
            table.rule("forward_mangle", [direction, is_syn(), clamp_mss()]);
        }

        table.chain("forward", NfChainType::Filter, NfHook::Forward, FILTER);
        self.keep_others_from_the_invited(table);
        let between_clients =
            if self.client_to_client { Statement::Accept(None) } else { Statement::Drop(None) };
        table.rule("forward", [from_tunnel(), into_tunnel(), between_clients]);
        for net in &self.denied {
            table.rule("forward", [from_tunnel(), in_network("daddr", *net), Statement::Drop(None)]);
        }
        table.rule("forward", [from_tunnel(), Statement::Accept(None)]);
        table.rule("forward", [into_tunnel(), is_reply(), Statement::Accept(None)]);
        table.rule("forward", [into_tunnel(), Statement::Drop(None)]);

        if self.masquerade {
            table.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, SRCNAT);
            let (low, high) = self.masquerade_ports();
            for net in &self.inside {
                let leaving = || {
                    let here = vec![string("lo"), string(&self.link)];
                    [is_not(meta(MetaKey::Oifname), set(here)), in_network("saddr", *net)]
                };
                let [out, from] = leaving();
                let with_ports = is(meta(MetaKey::L4proto), set(vec![string("tcp"), string("udp")]));
                table.rule("postrouting", [out, from, with_ports, masquerade(Some((low, high)))]);
                let [out, from] = leaving();
                table.rule("postrouting", [out, from, masquerade(None)]);
            }
        }
    }

    /// The widest run of the ephemeral ports without one of our own: a masqueraded connection that got a listening
    /// port would steal other clients' packets (CVE-2021-3773).
    fn masquerade_ports(&self) -> (u16, u16) {
        const FIRST: u16 = 32768;
        const LAST: u16 = 60999;
        let mut taken: Vec<u16> = self.listeners.iter().map(|it| it.port).collect();
        taken.retain(|port| (FIRST..=LAST).contains(port));
        taken.sort_unstable();
        let starts = std::iter::once(FIRST).chain(taken.iter().map(|port| port + 1));
        let ends = taken.iter().map(|port| port - 1).chain(std::iter::once(LAST));
        let runs = starts.zip(ends).filter(|(start, end)| start <= end);
        runs.max_by_key(|(start, end)| end - start).unwrap_or((FIRST, LAST))
    }
}

impl ClientFirewall {
    fn build(&self, table: &mut Builder) {
        table.chain("raw_prerouting", NfChainType::Filter, NfHook::Prerouting, RAW);
        for address in &self.addresses {
            // Nobody on the local network may probe for the inside address (CVE-2019-14899).
            let elsewhere = meta_is_not(MetaKey::Iifname, &self.link);
            let to_us = in_network("daddr", IpNet::from(*address));
            let not_from_us = is_not(fib(FibFlag::Saddr), string("local"));
            table.rule("raw_prerouting", [elsewhere, to_us, not_from_us, Statement::Drop(None)]);
        }
        let carried = || is(meta(MetaKey::L4proto), set(vec![string("tcp"), string("udp")]));
        let mark = || number(self.fwmark);

        table.chain("mark_prerouting", NfChainType::Filter, NfHook::Prerouting, MANGLE);
        let ours = is(ct("mark"), mark());
        table.rule("mark_prerouting", [carried(), ours, assign(meta(MetaKey::Mark), mark())]);

        table.chain("mark_postrouting", NfChainType::Filter, NfHook::Postrouting, MANGLE);
        let ours = is(meta(MetaKey::Mark), mark());
        table.rule("mark_postrouting", [carried(), ours, assign(ct("mark"), mark())]);
    }
}

struct Builder {
    name: String,
    batch: Batch<'static>,
}

impl Builder {
    /// Adding first makes the deletion succeed whether or not a former table is there.
    fn new(name: String) -> Builder {
        let mut batch = Batch::new();
        batch.add(table(&name));
        batch.delete(table(&name));
        batch.add(table(&name));
        Builder { name, batch }
    }

    fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
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

    fn rule<const N: usize>(&mut self, chain: &'static str, statements: [Statement<'static>; N]) {
        self.batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: self.name.clone().into(),
            chain: chain.into(),
            expr: Cow::Owned(statements.into()),
            ..Rule::default()
        }));
    }
}

fn json(batch: Batch<'_>) -> Value {
    let mut transaction = serde_json::json!(batch.to_nftables());
    let objects = transaction["nftables"].as_array_mut().into_iter().flatten();
    let statements = objects.filter_map(|it| it.pointer_mut("/add/rule/expr")?.as_array_mut()).flatten();
    // The crate writes this one statement as a string, which nft does not take.
    for notrack in statements.filter(|it| *it == "notrack") {
        *notrack = serde_json::json!({ "notrack": null });
    }
    transaction
}

type Expr = Expression<'static>;
type Stmt = Statement<'static>;

fn table(name: &str) -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: name.to_owned().into(), handle: None })
}

fn string(text: &str) -> Expr {
    Expression::String(text.to_owned().into())
}

fn number(value: u32) -> Expr {
    Expression::Number(value)
}

fn set(items: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct(key: &'static str) -> Expr {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), ..CT::default() }))
}

fn fib(flag: FibFlag) -> Expr {
    Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: HashSet::from([flag]) }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn matches(left: Expr, op: Operator, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op })
}

fn is(left: Expr, right: Expr) -> Stmt {
    matches(left, Operator::EQ, right)
}

fn is_not(left: Expr, right: Expr) -> Stmt {
    matches(left, Operator::NEQ, right)
}

fn meta_is(key: MetaKey, value: &str) -> Stmt {
    is(meta(key), string(value))
}

fn meta_is_not(key: MetaKey, value: &str) -> Stmt {
    is_not(meta(key), string(value))
}

fn in_network(field: &'static str, net: IpNet) -> Stmt {
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

fn is_reply() -> Stmt {
    let states = Expression::List(vec![string("established"), string("related")]);
    matches(ct("state"), Operator::IN, states)
}

fn is_syn() -> Stmt {
    let mask = Expression::List(vec![string("syn"), string("rst")]);
    let masked = BinaryOperation::AND(payload("tcp", "flags"), mask);
    is(Expression::BinaryOperation(Box::new(masked)), string("syn"))
}

fn clamp_mss() -> Stmt {
    let option = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
    let value = Expression::Named(NamedExpression::RT(RT { key: RTKey::MTU, family: None }));
    assign(Expression::Named(NamedExpression::TcpOption(option)), value)
}

fn assign(key: Expr, value: Expr) -> Stmt {
    Statement::Mangle(Mangle { key, value })
}

fn masquerade(ports: Option<(u16, u16)>) -> Stmt {
    let port = ports.map(|(low, high)| {
        Expression::Range(Box::new(Range { range: [number(low.into()), number(high.into())] }))
    });
    let flags = Some(HashSet::from([NATFlag::FullyRandom]));
    Statement::Masquerade(Some(NAT { addr: None, family: None, port, flags }))
}

mod invited;
#[cfg(test)]
mod tests;
