//! What goes beside a tunnel that is up, because a command was started so.

use std::path::PathBuf;

use adit_host::{Firewall, Group, GroupFirewall};
use anyhow::bail;

use super::Client;
use crate::control::{Answer, Asked};

impl Client {
    /// Answers whoever wants to start a process beside the tunnel.
    pub(super) fn exclude(&mut self, asked: Asked) {
        let failed = |error: anyhow::Error| Answer::Failed(format!("{error:#}"));
        asked.answer(self.way_beside().map_or_else(failed, Answer::Beside));
    }

    /// The plan has the group and its table from the first time on.
    fn way_beside(&mut self) -> anyhow::Result<PathBuf> {
        let interface = &self.instance.interface;
        let mark = self.instance.driver.snapshot().fwmark;
        if mark == 0 {
            bail!(
                "{interface} takes only {}, and nothing else; there is nothing to lead a command out of. Where that is \
                 not so, `exclude` in the profile makes the difference",
                self.file
                    .peers
                    .iter()
                    .flat_map(|it| &it.allowed_ips)
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        let group = Group::beside(interface)?;
        if !self.plan.groups.contains(&group) {
            let mut plan = self.plan.clone();
            plan.firewalls.push(Firewall::Group(GroupFirewall {
                link: interface.clone(),
                addresses: plan.addresses.iter().map(|it| it.address.addr()).collect(),
                group: group.clone(),
                mark,
                name_servers: plan.dns.as_ref().map(|dns| dns.servers.clone()).unwrap_or_default(),
            }));
            plan.groups.push(group.clone());
            if let Err(error) = self.guard.change_to(&plan) {
                // What was made of it goes again.
                self.guard.change_to(&self.plan)?;
                return Err(error.into());
            }
            self.plan = plan;
        }
        Ok(group.processes())
    }
}
