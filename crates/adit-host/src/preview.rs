//! What a plan would change here and now, without changing anything.

use std::fmt;

use serde::Serialize;

use crate::error::HostError;
use crate::firewall::{Shown, passage};
use crate::netlink::Netlink;
use crate::plan::{Change, Plan};
use crate::{address, dns, group, link, route, rule, sysctl};

/// One change of a plan beside what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Preview {
    pub step: Step,
    pub change: Change,
    /// The change as `adit plan` prints it.
    pub text: String,
    /// What stands in its place now.
    pub now: Option<String>,
}

/// What making a change would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It is that way already.
    Nothing,
    Add,
    /// Something else is in its place, and comes back with undoing.
    Replace,
    /// It cannot be made as things are.
    Refused,
}

/// Compares `plan` with the host, in the calling thread's network namespace.
pub fn preview(plan: &Plan) -> Result<Vec<Preview>, HostError> {
    let mut netlink = Netlink::open()?;
    let tables = route::Tables::list(&mut netlink)?;
    plan.changes()
        .map(|change| {
            let (step, now) = compare(&mut netlink, &tables, &change)?;
            Ok(Preview { step, text: change.to_string(), change, now })
        })
        .collect()
}

fn compare(
    netlink: &mut Netlink,
    tables: &route::Tables,
    change: &Change,
) -> Result<(Step, Option<String>), HostError> {
    // What is made on a link that the plan's owner has yet to create is new.
    let looked = |looked: Result<bool, HostError>| match looked {
        Ok(true) => Ok((Step::Nothing, None)),
        Ok(false) | Err(HostError::LinkMissing { .. }) => Ok((Step::Add, None)),
        Err(HostError::Conflict { other, .. }) => Ok((Step::Refused, Some(other))),
        Err(error @ HostError::DnsTaken { .. }) => Ok((Step::Refused, Some(error.to_string()))),
        Err(error) => Err(error),
    };
    match change {
        Change::Group(it) => looked(Ok(group::exists(it))),
        Change::Firewall(it) => {
            let is_there = Shown::now(it)?.is_there();
            let now = is_there.then(|| format!("table inet {}", it.table()));
            Ok((if is_there { Step::Replace } else { Step::Add }, now))
        }
        Change::Passage(it) => looked(passage::prepare(it).map(|made| made.is_none())),
        Change::Sysctl(it) => match sysctl::read(&it.key) {
            Ok(now) if now == it.value => Ok((Step::Nothing, None)),
            Ok(now) => Ok((Step::Replace, Some(now))),
            Err(error) => Ok((Step::Refused, Some(error.to_string()))),
        },
        Change::Link(it) => match link::find(netlink, &it.name)? {
            None => Ok((Step::Add, None)),
            Some(_) => looked(link::prepare(netlink, it).map(|made| made.is_none())),
        },
        Change::Address(it) => looked(address::prepare(netlink, it).map(|made| made.is_none())),
        Change::Route(it) => looked(route::prepare(netlink, tables, it).map(|made| made.is_none())),
        Change::Rule(it) => looked(rule::prepare(netlink, it).map(|made| made.is_none())),
        Change::Dns(it) => match dns::prepare(it) {
            Ok(None) => Ok((Step::Nothing, None)),
            Ok(Some(made)) => Ok((Step::Replace, Some(format!("by {}", made.by())))),
            Err(error) => looked(Err(error)),
        },
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.step {
            Step::Nothing => '=',
            Step::Add => '+',
            Step::Replace => '~',
            Step::Refused => '!',
        };
        write!(f, "{sign} {}", self.text)?;
        match (self.step, &self.now) {
            (Step::Refused, Some(why)) => write!(f, "  (refused: {why})"),
            (Step::Replace, Some(now)) => write!(f, "  (now {now})"),
            _ => Ok(()),
        }
    }
}
