mod repair;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::mem::discriminant;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::address::{self, MadeAddress};
use crate::dns::{self, MadeDns};
use crate::error::HostError;
use crate::firewall::passage::{self, MadePassage};
use crate::firewall::{self, MadeFirewall, Shown, Twins};
use crate::group::{self, MadeGroup};
use crate::journal::{Journal, Leftover};
use crate::link::{self, MadeLink};
use crate::namespace;
use crate::netlink::Netlink;
use crate::plan::{Change, Plan};
use crate::route::{self, MadeRoute};
use crate::rule::{self, MadeRule};
use crate::sysctl::{self, MadeSysctl};

pub use self::repair::{Extent as RepairExtent, Repaired, Repairs};

/// Makes the host match `plan`, in the calling thread's network namespace.
///
/// Each change, with what was there before, is on the disk in the journal before it is made. What already is as the
/// plan says is not touched, now or when undoing. Of what an earlier process left in the journal, sysctls and firewall
/// tables that the plan asks for again are taken over, so that connections through them live on; the rest is undone
/// first. After an error nothing made here remains.
pub fn apply(plan: &Plan, journal_path: &Path) -> Result<Guard, HostError> {
    let (mut journal, mut leftover) = Journal::open(journal_path)?;
    let mut changes: Vec<Change> = plan.changes().collect();
    let entries = take_over(&mut leftover, &mut changes);
    // Rules and routes go below, and what keeps traffic in has to be there before.
    for entry in entries.iter().filter(|it| it.blocks()) {
        if let Change::Firewall(firewall) = &entry.change {
            firewall::load(firewall, journal.lock())?;
        }
    }
    let report = undo_leftover(&mut journal, leftover, Extent::Everything)?;
    report.log();
    if entries.is_empty() {
        journal.begin()?;
    }
    // A host that was closed stays closed until somebody says otherwise.
    let on_failure = match entries.iter().any(Entry::blocks) {
        true => Extent::EverythingButBlocks,
        false => Extent::Everything,
    };
    let mut guard = Guard {
        journal: Some(journal),
        entries,
        namespace: namespace::current(),
        on_failure,
        shown: HashMap::new(),
        twins: Twins::default(),
        unrepaired: RepairExtent::default(),
    };
    match guard.renew().and_then(|()| guard.make_all(&changes)) {
        Ok(()) => {
            guard.hold();
            Ok(guard)
        }
        Err(cause) => Err(match guard.undo_all(on_failure) {
            Ok(_) => cause,
            Err(undo) => HostError::RollbackIncomplete { cause: Box::new(cause), undo: Box::new(undo) },
        }),
    }
}

/// Undoes what a crashed or killed process left in its journal. Without a journal there is nothing to do.
pub fn undo_journal(path: &Path) -> Result<Report, HostError> {
    undo_journal_to(path, Extent::Everything)
}

/// Like [`undo_journal`], but a firewall that [blocks](crate::Firewall::blocks) stays, and so does its record, for
/// [`apply`] to take over.
pub fn undo_journal_but_blocks(path: &Path) -> Result<Report, HostError> {
    undo_journal_to(path, Extent::EverythingButBlocks)
}

/// Undoes what is left of an earlier run of this machine: files, which outlive a reboot. `None` where there is nothing
/// of an earlier run.
pub fn undo_journal_of_former_boot(path: &Path) -> Result<Option<Report>, HostError> {
    // A tunnel that is up would have us wait for its journal.
    if Journal::boot_of(path).is_none_or(|boot| boot == namespace::boot()) {
        return Ok(None);
    }
    match undo_journal(path) {
        Ok(report) => Ok(Some(report)),
        Err(HostError::JournalBusy { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether what an earlier process left in its journal keeps traffic in. One that is in use is its user's affair.
pub fn blocks_left(path: &Path) -> Result<bool, HostError> {
    match Journal::open_existing(path) {
        Ok(Some((_, leftover))) => {
            Ok(leftover.place.is_here() && leftover.changes.iter().any(|(_, made)| made.blocks()))
        }
        Ok(None) | Err(HostError::JournalBusy { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn undo_journal_to(path: &Path, extent: Extent) -> Result<Report, HostError> {
    let Some((mut journal, leftover)) = Journal::open_existing(path)? else { return Ok(Report::default()) };
    let report = undo_leftover(&mut journal, leftover, extent)?;
    if report.kept.is_empty() {
        journal.finish()?;
    }
    Ok(report)
}

/// How much of what was made is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Everything,
    /// Not the firewalls that keep traffic in.
    EverythingButBlocks,
}

/// What undoing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The changes taken back, one line each.
    pub undone: Vec<String>,
    /// What others changed since, and why it was not touched.
    pub left_alone: Vec<String>,
    /// What other gateways and tunnels still need; the last of them takes it back.
    pub shared: Vec<String>,
    /// What still keeps traffic in, because nobody has said that it may leave.
    pub kept: Vec<String>,
    pub warnings: Vec<String>,
}

impl Report {
    fn log(&self) {
        for line in &self.undone {
            tracing::info!("undid {line}");
        }
        for line in &self.shared {
            tracing::info!("{line}");
        }
        for line in self.left_alone.iter().chain(&self.warnings) {
            tracing::warn!("{line}");
        }
    }
}

/// Changes made to the host. Undone by [`Guard::undo`], or when dropped.
#[derive(Debug)]
#[must_use = "dropping the guard undoes the changes"]
pub struct Guard {
    journal: Option<Journal>,
    entries: Vec<Entry>,
    namespace: String,
    /// What dropping it undoes.
    on_failure: Extent,
    /// How the kernel shows our tables, by name, as we last loaded them.
    shown: HashMap<String, Shown>,
    twins: Twins,
    /// What others broke and could not be made again.
    unrepaired: RepairExtent,
}

#[derive(Debug)]
struct Entry {
    change: Change,
    /// `None` when the host was that way already.
    made: Option<(u64, Made)>,
}

impl Entry {
    fn blocks(&self) -> bool {
        self.made.as_ref().is_some_and(|(_, made)| made.blocks())
    }
}

impl Guard {
    /// Puts back everything, last change first, and removes the journal. What others changed since is left alone.
    ///
    /// After an error the journal still holds what could not be undone, for [`undo_journal`].
    pub fn undo(mut self) -> Result<Report, HostError> {
        self.undo_all(Extent::Everything)
    }

    /// Like [`Guard::undo`], for an end that nobody asked for: what keeps traffic in stays, with its record, until
    /// [`apply`] takes it over or [`undo_journal`] takes it back.
    pub fn undo_but_blocks(mut self) -> Result<Report, HostError> {
        self.undo_all(Extent::EverythingButBlocks)
    }

    /// Puts back what is not needed to keep a host closed that was closed when [`apply`] came: for a start that failed.
    pub fn roll_back(mut self) -> Result<Report, HostError> {
        self.undo_all(self.on_failure)
    }

    /// From now on what keeps traffic in stays when the guard is dropped or [rolled back](Guard::roll_back).
    pub fn stay_closed(&mut self) {
        self.on_failure = Extent::EverythingButBlocks;
    }

    /// Ends the guard and leaves the changes and their journal in place, for [`undo_journal`].
    pub fn leave(mut self) {
        self.journal = None;
    }

    /// Goes over to another plan: undoes what it no longer says, makes what is new, and does not touch the rest.
    ///
    /// After an error the guard holds exactly what is made, so that the former plan can be asked for again.
    pub fn change_to(&mut self, plan: &Plan) -> Result<Report, HostError> {
        let wanted: Vec<Change> = plan.changes().collect();
        let mut report = Report::default();
        let mut failures = Vec::new();
        let mut position = self.entries.len();
        while position > 0 {
            position -= 1;
            let change = &self.entries[position].change;
            if wanted.iter().any(|it| it == change || it.replaces(change)) {
                continue;
            }
            let entry = self.entries.remove(position);
            if let Err(error) = self.undo_entry(&entry, &mut report) {
                failures.push(error.to_string());
                self.entries.insert(position, entry);
            }
        }
        if !failures.is_empty() {
            return Err(self.incomplete(failures));
        }
        let mut missing = Vec::new();
        for change in wanted {
            match self.entries.iter().position(|it| it.change == change || change.replaces(&it.change)) {
                Some(position) if self.entries[position].change == change => {}
                Some(position) => self.replace(position, change)?,
                None => missing.push(change),
            }
        }
        self.make_all(&missing)?;
        self.hold();
        Ok(report)
    }

    /// Where the changes are recorded.
    pub fn journal_path(&self) -> Option<PathBuf> {
        self.journal.as_ref().map(|journal| journal.path().to_owned())
    }

    /// Has a copy of what blocks that others cannot flush.
    fn hold(&mut self) {
        self.twins.follow(self.entries.iter().filter_map(|entry| match &entry.change {
            Change::Firewall(firewall) => Some(firewall),
            _ => None,
        }));
    }

    /// Makes sure of what was taken over, tables anew in one transaction each: the plan may want other rules in them.
    fn renew(&self) -> Result<(), HostError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.entries.iter().try_for_each(|entry| match (&entry.change, &entry.made) {
            (Change::Firewall(firewall), _) => firewall::load(firewall, journal.lock()),
            (_, Some((_, Made::Sysctl(made)))) => sysctl::make(made, journal.path()),
            _ => Ok(()),
        })
    }

    /// Makes changes of one kind at a time: a kind is looked up once, recorded and synced once, then made.
    fn make_all(&mut self, changes: &[Change]) -> Result<(), HostError> {
        changes.chunk_by(|a, b| discriminant(a) == discriminant(b)).try_for_each(|kind| self.make_kind(kind))
    }

    fn make_kind(&mut self, changes: &[Change]) -> Result<(), HostError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let mut netlink = Netlink::open()?;
        let prepared = Made::prepare(&mut netlink, changes)?;
        let mut recorded = journal.record(prepared.iter().flatten())?;
        for (change, made) in changes.iter().cloned().zip(prepared) {
            let Some(made) = made else {
                tracing::debug!("already so: {change}");
                self.entries.push(Entry { change, made: None });
                continue;
            };
            let Some(seq) = recorded.next() else { break };
            let result = made.make(&mut netlink, &change, journal);
            if result.is_err() {
                recorded.try_for_each(|seq| journal.forget(seq))?;
            }
            match &result {
                Err(error) if made.is_all_or_nothing() && !error.leaves_doubt() => journal.forget(seq)?,
                _ => self.entries.push(Entry { change, made: Some((seq, made)) }),
            }
            result?;
        }
        Ok(())
    }

    /// Makes a change in the place of one it [replaces](Change::replaces).
    fn replace(&mut self, position: usize, change: Change) -> Result<(), HostError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let entry = &mut self.entries[position];
        match (&change, &mut entry.made) {
            (Change::Link(wanted), Some((seq, Made::Link(made)))) => {
                let again = made.again(wanted);
                let new_seq = journal.record([&Made::Link(again.clone())])?.start;
                let result = link::make(&mut Netlink::open()?, &again);
                let old_seq = std::mem::replace(seq, new_seq);
                *made = again;
                result?;
                journal.forget(old_seq)?;
            }
            (Change::Firewall(firewall), Some((seq, Made::Firewall(made)))) => {
                let again = MadeFirewall::new(firewall);
                // Whether it blocks has to be on the disk before it does.
                let new_seq = match again == *made {
                    true => *seq,
                    false => journal.record([&Made::Firewall(again.clone())])?.start,
                };
                let old_seq = std::mem::replace(seq, new_seq);
                *made = again;
                firewall::load(firewall, journal.lock())?;
                self.shown.remove(&firewall.table());
                if old_seq != new_seq {
                    journal.forget(old_seq)?;
                }
            }
            _ => {
                self.entries.remove(position);
                return self.make_kind(&[change]);
            }
        }
        entry.change = change;
        Ok(())
    }

    fn undo_all(&mut self, extent: Extent) -> Result<Report, HostError> {
        let mut report = Report::default();
        let mut failures = Vec::new();
        let here = namespace::current();
        if let Some(journal) = self.journal.as_ref().filter(|_| here != self.namespace) {
            return Err(HostError::OtherNamespace {
                journal: journal.path().to_owned(),
                made_in: self.namespace.clone(),
                here,
            });
        }
        for entry in std::mem::take(&mut self.entries).iter().rev() {
            if extent == Extent::EverythingButBlocks && entry.blocks() {
                report.kept.push(entry.change.to_string());
            } else if let Err(error) = self.undo_entry(entry, &mut report) {
                failures.push(error.to_string());
            }
        }
        self.twins = Twins::default();
        if !failures.is_empty() {
            let error = self.incomplete(failures);
            self.journal = None;
            return Err(error);
        }
        match self.journal.take() {
            Some(journal) if report.kept.is_empty() => journal.finish().map(|()| report),
            _ => Ok(report),
        }
    }

    fn undo_entry(&mut self, entry: &Entry, report: &mut Report) -> Result<(), HostError> {
        match (&entry.made, &mut self.journal) {
            (Some((seq, made)), Some(journal)) => undo_one(journal, *seq, made, report),
            _ => Ok(()),
        }
    }

    fn incomplete(&self, failures: Vec<String>) -> HostError {
        let journal = self.journal_path().unwrap_or_default();
        HostError::UndoIncomplete { journal, failures }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.journal.is_none() {
            return;
        }
        match self.undo_all(self.on_failure) {
            Ok(report) => report.log(),
            Err(error) => tracing::error!("{error}"),
        }
    }
}

impl Change {
    /// Whether making this one takes the place of `other` in one step.
    fn replaces(&self, other: &Change) -> bool {
        match (self, other) {
            (Change::Firewall(new), Change::Firewall(old)) => new.table() == old.table(),
            // Taking a link down would take everything on it away.
            (Change::Link(new), Change::Link(old)) => new.name == old.name,
            _ => false,
        }
    }
}

/// Moves what `changes` ask for again, and what is still as it was left, out of `leftover` and `changes`.
fn take_over(leftover: &mut Leftover, changes: &mut Vec<Change>) -> Vec<Entry> {
    if !leftover.place.is_here() {
        return Vec::new();
    }
    let mut entries = Vec::new();
    for (seq, made) in std::mem::take(&mut leftover.changes) {
        let position = changes.iter().position(|change| match (&made, change) {
            (Made::Sysctl(made), Change::Sysctl(wanted)) => made.stands_as(wanted),
            (Made::Firewall(made), Change::Firewall(wanted)) => made.is_replaced_by(wanted),
            _ => false,
        });
        match position {
            Some(position) => {
                entries.push(Entry { change: changes.remove(position), made: Some((seq, made)) })
            }
            None => leftover.changes.push((seq, made)),
        }
    }
    entries
}

fn undo_leftover(journal: &mut Journal, leftover: Leftover, extent: Extent) -> Result<Report, HostError> {
    let mut report = Report { warnings: leftover.warnings, ..Report::default() };
    let here = namespace::current();
    let place = leftover.place;
    let nothing_left = leftover.changes.is_empty();
    let lives_elsewhere = || {
        place.boot == namespace::boot() && place.namespace != here && namespace::is_alive(&place.namespace)
    };
    if !nothing_left && lives_elsewhere() {
        return Err(HostError::OtherNamespace {
            journal: journal.path().to_owned(),
            made_in: place.namespace,
            here,
        });
    }
    // What the kernel held is gone with its boot or its namespace; what stands there now is not ours.
    let kernel_remembers = place.is_here();
    let mut failures = Vec::new();
    if kernel_remembers && extent == Extent::EverythingButBlocks {
        for (_, made) in &leftover.changes {
            if let Made::Firewall(firewall) = made
                && firewall.blocks()
            {
                firewall::close_again(firewall, journal.lock())?;
            }
        }
    }
    for (seq, made) in leftover.changes.iter().rev() {
        if !kernel_remembers && !made.is_on_disk() {
            journal.forget(*seq)?;
        } else if extent == Extent::EverythingButBlocks && made.blocks() {
            report.kept.push(made.to_string());
        } else if let Err(error) = undo_one(journal, *seq, made, &mut report) {
            failures.push(error.to_string());
        }
    }
    match failures.is_empty() {
        true => Ok(report),
        false => Err(HostError::UndoIncomplete { journal: journal.path().to_owned(), failures }),
    }
}

fn undo_one(journal: &mut Journal, seq: u64, made: &Made, report: &mut Report) -> Result<(), HostError> {
    match made.undo(&mut Netlink::open()?, journal)? {
        Outcome::Undone => report.undone.push(made.to_string()),
        Outcome::Gone => {}
        Outcome::LeftAlone(why) => report.left_alone.push(why),
        Outcome::Shared(why) => report.shared.push(why),
    }
    journal.forget(seq)
}

/// How undoing one change ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Undone,
    /// It was no longer there.
    Gone,
    /// Somebody else changed it since.
    LeftAlone(String),
    /// Others of us still need it.
    Shared(String),
}

/// A change about to be made or made, with all that undoing needs: what the journal records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Made {
    Group(MadeGroup),
    Firewall(MadeFirewall),
    Passage(MadePassage),
    Sysctl(MadeSysctl),
    Link(MadeLink),
    Address(MadeAddress),
    Route(MadeRoute),
    Rule(MadeRule),
    Dns(MadeDns),
}

impl Made {
    /// Looks at the host; `None` for what already is as the change says. The changes are of one kind.
    fn prepare(netlink: &mut Netlink, changes: &[Change]) -> Result<Vec<Option<Made>>, HostError> {
        let routes = match changes.first() {
            Some(Change::Route(_)) => route::Tables::list(netlink)?,
            _ => route::Tables::default(),
        };
        let mut prepared: Vec<Option<Made>> = Vec::with_capacity(changes.len());
        let mut said = HashSet::new();
        for change in changes {
            let made = match change {
                again if !said.insert(again) => None,
                Change::Group(it) => Some(Made::Group(group::prepare(it))),
                Change::Firewall(it) => Some(Made::Firewall(MadeFirewall::new(it))),
                Change::Passage(it) => passage::prepare(it)?.map(Made::Passage),
                Change::Sysctl(it) => sysctl::prepare(it)?.map(Made::Sysctl),
                Change::Link(it) => link::prepare(netlink, it)?.map(Made::Link),
                Change::Address(it) => address::prepare(netlink, it)?.map(Made::Address),
                Change::Route(it) => route::prepare(netlink, &routes, it)?.map(Made::Route),
                Change::Rule(it) => rule::prepare(netlink, it)?.map(Made::Rule),
                Change::Dns(it) => dns::prepare(it)?.map(Made::Dns),
            };
            prepared.push(made);
        }
        Ok(prepared)
    }

    fn make(&self, netlink: &mut Netlink, change: &Change, journal: &Journal) -> Result<(), HostError> {
        match (self, change) {
            (Made::Firewall(_), Change::Firewall(firewall)) => firewall::load(firewall, journal.lock()),
            (Made::Firewall(_), _) => Ok(()),
            (Made::Group(it), _) => group::make(it),
            (Made::Passage(it), _) => passage::make(it, journal.lock()),
            (Made::Sysctl(it), _) => sysctl::make(it, journal.path()),
            (Made::Link(it), _) => link::make(netlink, it),
            (Made::Address(it), _) => address::make(netlink, it),
            (Made::Route(it), _) => route::make(netlink, it),
            (Made::Rule(it), _) => rule::make(netlink, it),
            (Made::Dns(it), _) => dns::make(it),
        }
    }

    fn undo(&self, netlink: &mut Netlink, journal: &Journal) -> Result<Outcome, HostError> {
        match self {
            Made::Group(it) => group::undo(it),
            Made::Firewall(it) => firewall::undo(it, journal.lock()),
            Made::Passage(it) => passage::undo(it, journal.lock()),
            Made::Sysctl(it) => sysctl::undo(it, journal.path()),
            Made::Link(it) => link::undo(netlink, it),
            Made::Address(it) => address::undo(netlink, it),
            Made::Route(it) => route::undo(netlink, it),
            Made::Rule(it) => rule::undo(netlink, it),
            Made::Dns(it) => dns::undo(it),
        }
    }

    /// Whether a failure to make it means that nothing was made.
    fn is_all_or_nothing(&self) -> bool {
        !matches!(self, Made::Link(_) | Made::Dns(_))
    }

    /// Whether undoing it lets traffic out.
    fn blocks(&self) -> bool {
        matches!(self, Made::Firewall(firewall) if firewall.blocks())
    }

    /// Whether it outlives the kernel that holds everything else.
    fn is_on_disk(&self) -> bool {
        match self {
            Made::Dns(dns) => dns.is_on_disk(),
            // It belongs to no network namespace.
            Made::Group(_) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Made::Group(it) => write!(f, "group {it}"),
            Made::Firewall(it) => write!(f, "nft {it}"),
            Made::Passage(it) => write!(f, "nft {it}"),
            Made::Sysctl(it) => write!(f, "sysctl {it}"),
            Made::Link(it) => write!(f, "link {it}"),
            Made::Address(it) => write!(f, "address {it}"),
            Made::Route(it) => write!(f, "route {it}"),
            Made::Rule(it) => write!(f, "rule {it}"),
            Made::Dns(it) => write!(f, "dns {it}"),
        }
    }
}
