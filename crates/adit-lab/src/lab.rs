//! A lab is a set of named hosts. What it leaves on the machine is all derivable from its name, so that a later run can
//! sweep a lab whose process was killed:
//!
//! | what | where |
//! |---|---|
//! | a namespace for each host | `/run/netns/adit-PREFIX-PID-COUNT-HOST` |
//! | its resolver file, if it has one | `/etc/netns/adit-PREFIX-PID-COUNT-HOST/` |
//! | logs, captures and homes | `/run/adit-lab/adit-PREFIX-PID-COUNT/HOST/` |
//! | links | inside the namespaces, gone with them |

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::{Host, Invocation, LabError, Result};

const NAMESPACES: &str = "/run/netns";
const RESOLVERS: &str = "/etc/netns";
const DIRECTORIES: &str = "/run/adit-lab";
const KEPT: &str = "kept";
const END_GRACE: Duration = Duration::from_secs(3);

/// A set of hosts in network namespaces; dropping it ends their processes and removes everything.
pub struct Lab {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    /// The program and first arguments that lead to [`crate::agent_main`].
    pub(crate) agent: Vec<String>,
    pub(crate) kept: AtomicBool,
}

impl Lab {
    /// An empty lab whose names start with `adit-PREFIX-`; sweeps what killed labs left behind. PREFIX is 1 to 12
    /// lower-case letters or digits. Agents are this program called as `PROGRAM lab AGENT …`.
    pub fn new(prefix: &str) -> Result<Self> {
        let program = std::env::current_exe().map_err(LabError::io("find the running program"))?;
        Self::with_agent(prefix, [program.display().to_string(), "lab".to_owned()])
    }

    /// Like [`Self::new`] for programs whose way to [`crate::agent_main`] is another one: `AGENT… http-server …`.
    pub fn with_agent<I, S>(prefix: &str, agent: I) -> Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if prefix.is_empty() || prefix.len() > 12 || !prefix.chars().all(fits) {
            return Err(LabError::malformed(
                format!("the prefix {prefix:?}"),
                "1 to 12 of a-z and 0-9, please",
            ));
        }
        if !Uid::effective().is_root() {
            let stderr = "Operation not permitted".to_owned();
            let hint = crate::error::hint_for(&stderr);
            return Err(LabError::Failed {
                command: "ip netns add".into(),
                ended: "would fail".into(),
                stderr,
                hint,
            });
        }
        Self::sweep();
        let name = format!("adit-{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(DIRECTORIES).join(&name);
        make_directory(&directory)?;
        let agent = agent.into_iter().map(Into::into).collect();
        Ok(Self { shared: Arc::new(Shared { name, directory, agent, kept: AtomicBool::new(false) }) })
    }

    /// The lab's name, which every namespace of it starts with.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Where the lab's files are; removed with it.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// A new host with loopback up, forwarding off and no duplicate address detection (so addresses work at once).
    pub fn host(&self, name: &str) -> Result<Host> {
        Host::create(&self.shared, name)
    }

    /// Leaves everything in place when this lab and its processes are dropped, also for later sweeps; [`Self::remove`]
    /// takes it away.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.shared.directory.join(KEPT), "").map_err(LabError::io("mark the lab as kept"))?;
        self.shared.kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends every process inside the lab called `name` and removes its namespaces, links and files.
    pub fn remove(name: &str) -> Result<()> {
        if owner(name).is_none() {
            return Err(LabError::malformed(
                format!("the lab name {name:?}"),
                "not of the form adit-PREFIX-PID-COUNT",
            ));
        }
        let namespaces = namespaces_of(name);
        end_all(&namespaces);
        let mut outcome = Ok(());
        for namespace in &namespaces {
            let removed = Invocation::new(["ip", "netns", "delete", namespace]).exec();
            if Path::new(NAMESPACES).join(namespace).exists() {
                outcome = outcome.and(removed.map(drop));
            }
            let _ = fs::remove_dir_all(Path::new(RESOLVERS).join(namespace));
        }
        let _ = fs::remove_dir(RESOLVERS);
        let _ = fs::remove_dir_all(Path::new(DIRECTORIES).join(name));
        let _ = fs::remove_dir(DIRECTORIES);
        outcome
    }

    /// What of the lab called `name` is still on this machine: namespaces, files and processes, as readable lines.
    pub fn remains(name: &str) -> Vec<String> {
        let mut remains: Vec<String> =
            namespaces_of(name).iter().map(|it| format!("namespace {it}")).collect();
        for directory in [Path::new(RESOLVERS), Path::new(DIRECTORIES)] {
            remains.extend(
                entries(directory)
                    .into_iter()
                    .filter(|entry| belongs(entry, name))
                    .map(|entry| format!("directory {}", directory.join(entry).display())),
            );
        }
        remains
    }

    /// The ids of all processes inside the lab's hosts.
    pub fn processes(&self) -> Vec<u32> {
        processes_in(&namespaces_of(self.name()))
    }

    fn sweep() {
        let mut labs: Vec<String> = entries(Path::new(DIRECTORIES));
        labs.extend(entries(Path::new(NAMESPACES)).iter().filter_map(|namespace| lab_of(namespace)));
        labs.sort();
        labs.dedup();
        for lab in labs {
            let kept = Path::new(DIRECTORIES).join(&lab).join(KEPT).exists();
            if owner(&lab).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) && !kept {
                let _ = Self::remove(&lab);
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.shared.kept.load(Ordering::Relaxed)
            && let Err(error) = Self::remove(&self.shared.name)
        {
            eprintln!("the lab {} could not be removed: {error}", self.shared.name);
        }
    }
}

/// Asks `condition` again and again until it gives a value; `what` completes the sentence "waited for …".
pub fn wait_for<T>(
    what: impl Into<String>,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() > deadline {
            return Err(LabError::NeverHappened {
                what: what.into(),
                after: deadline,
                detail: String::new(),
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

pub(crate) fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(LabError::io(format!("create {}", path.display())))
}

pub(crate) fn resolver_directory(namespace: &str) -> PathBuf {
    Path::new(RESOLVERS).join(namespace)
}

/// The id of the process that made the lab `name`, when it is a lab's name.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.split('-');
    let (adit, _prefix, pid, count) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (adit == "adit" && parts.next().is_none() && count.parse::<u32>().is_ok()).then(|| pid.parse().ok())?
}

/// The lab that `namespace` is a host of.
fn lab_of(namespace: &str) -> Option<String> {
    let (end, _) = namespace.match_indices('-').nth(3)?;
    let lab = &namespace[..end];
    owner(lab).map(|_| lab.to_owned())
}

fn belongs(entry: &str, lab: &str) -> bool {
    entry == lab || lab_of(entry).as_deref() == Some(lab)
}

fn namespaces_of(lab: &str) -> Vec<String> {
    let mut found: Vec<String> =
        entries(Path::new(NAMESPACES)).into_iter().filter(|it| belongs(it, lab)).collect();
    found.sort();
    found
}

fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default()
}

fn processes_in(namespaces: &[String]) -> Vec<u32> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let inside: Vec<_> =
        namespaces.iter().filter_map(|namespace| identity(&Path::new(NAMESPACES).join(namespace))).collect();
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|entry| entry.parse::<u32>().ok())
        .filter(|pid| {
            identity(&PathBuf::from(format!("/proc/{pid}/ns/net"))).is_some_and(|it| inside.contains(&it))
        })
        .collect()
}

/// Ends whatever runs in `namespaces`; a process that forks meanwhile is found by the next look.
fn end_all(namespaces: &[String]) {
    let started = Instant::now();
    let mut asked = Vec::new();
    loop {
        let running = processes_in(namespaces);
        if running.is_empty() || started.elapsed() > 2 * END_GRACE {
            return;
        }
        for pid in running {
            let pid = Pid::from_raw(pid as i32);
            if started.elapsed() > END_GRACE {
                let _ = kill(pid, Signal::SIGKILL);
            } else if !asked.contains(&pid) {
                let _ = kill(pid, Signal::SIGTERM);
                asked.push(pid);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_an_owner() {
        assert_eq!(owner("adit-demo-4711-0"), Some(4711));
        assert_eq!(lab_of("adit-demo-4711-0-client-a").as_deref(), Some("adit-demo-4711-0"));
        for stranger in
            ["adit-demo-4711-0-client", "adit-demo-x-0", "adit-demo-4711", "other-demo-4711-0", "", "adit"]
        {
            assert_eq!(owner(stranger), None, "{stranger}");
        }
        assert_eq!(lab_of("adit-demo-4711-0"), None);
    }

    #[test]
    fn a_lab_does_not_claim_the_hosts_of_another_whose_name_it_begins() {
        assert!(belongs("adit-demo-4711-1-client", "adit-demo-4711-1"));
        assert!(!belongs("adit-demo-4711-10-client", "adit-demo-4711-1"));
    }

    #[test]
    fn waiting_ends_with_the_value_or_says_what_never_came() {
        let mut left = 3;
        let value = wait_for("three looks", Duration::from_secs(5), || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(value.unwrap(), "done");
        let error = wait_for("the impossible", Duration::from_millis(20), || None::<()>).unwrap_err();
        assert!(error.to_string().contains("for the impossible, in vain"), "{error}");
    }
}
