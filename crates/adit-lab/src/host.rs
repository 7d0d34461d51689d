use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Shared, make_directory, resolver_directory};
use crate::{Invocation, LabError, Output, Process, Result};

/// A machine of the lab: a network namespace, a directory for its files and the programs run inside it. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    state: Arc<State>,
}

struct State {
    lab: Arc<Shared>,
    name: String,
    namespace: String,
    directory: PathBuf,
    environment: Mutex<Vec<(String, String)>>,
}

impl Host {
    pub(crate) fn create(lab: &Arc<Shared>, name: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || !name.chars().all(fits) {
            return Err(LabError::malformed(
                format!("the host name {name:?}"),
                "1 to 32 of a-z, 0-9 and -, please",
            ));
        }
        let namespace = format!("{}-{name}", lab.name);
        let directory = lab.directory.join(name);
        make_directory(&directory)?;
        Invocation::new(["ip", "netns", "add", &namespace]).exec()?;
        let state = State {
            lab: Arc::clone(lab),
            name: name.to_owned(),
            namespace,
            directory,
            environment: Mutex::default(),
        };
        let host = Self { state: Arc::new(state) };
        host.ip(["link", "set", "lo", "up"])?;
        const NEW_LINKS_SKIP_DAD: &str = "/proc/sys/net/ipv6/conf/default/accept_dad";
        host.command(["tee", NEW_LINKS_SKIP_DAD]).input("0").exec()?;
        Ok(host)
    }

    /// The name it has in the lab, such as `client`.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The name of its network namespace, for `ip netns exec`.
    pub fn namespace(&self) -> &str {
        &self.state.namespace
    }

    /// A directory for its files, removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.state.directory
    }

    /// Sets an environment variable for everything this host runs from now on.
    pub fn set_env(&self, key: &str, value: &str) {
        let mut environment = self.state.environment.lock().expect("no panic while held");
        environment.retain(|(known, _)| known != key);
        environment.push((key.to_owned(), value.to_owned()));
    }

    /// A program inside the host, to be refined and then run.
    pub fn command<I, S>(&self, argv: I) -> Invocation
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let wrapper = ["ip", "netns", "exec", self.namespace()].map(str::to_owned).to_vec();
        let environment = self.state.environment.lock().expect("no panic while held").clone();
        let invocation = Invocation::new(argv).wrapped(wrapper, self.directory());
        environment.into_iter().fold(invocation, |invocation, (key, value)| invocation.env(key, value))
    }

    /// One of this crate's own small programs inside the host, such as `["http-server", "--listen", "[::]:80"]`.
    pub fn agent<I, S>(&self, argv: I) -> Invocation
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.command(self.state.lab.agent.iter().cloned().chain(argv.into_iter().map(Into::into)))
    }

    /// Runs a program inside the host; anything but exit code 0 within 20 s is an error.
    pub fn exec<I, S>(&self, argv: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.command(argv).exec()
    }

    /// Runs a program inside the host for at most 20 s; any exit code is fine.
    pub fn attempt<I, S>(&self, argv: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.command(argv).attempt()
    }

    /// Starts a program inside the host and returns its guard.
    pub fn spawn<I, S>(&self, argv: I) -> Result<Process>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.command(argv).spawn()
    }

    /// `ip ARGUMENTS` on this host.
    pub fn ip<I, S>(&self, arguments: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let words = ["ip", "-n", self.namespace()].into_iter().map(str::to_owned);
        Invocation::new(words.chain(arguments.into_iter().map(Into::into))).exec()
    }

    /// Several `ip` commands, one per line, by one process.
    pub fn ip_batch(&self, lines: &str) -> Result<Output> {
        Invocation::new(["ip", "-n", self.namespace(), "-batch", "-"]).input(lines).exec()
    }

    /// `ip -json ARGUMENTS` on this host, as JSON.
    pub fn ip_json<I, S>(&self, arguments: I) -> Result<Value>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let words = ["ip", "-n", self.namespace(), "-json"].into_iter().map(str::to_owned);
        let output = Invocation::new(words.chain(arguments.into_iter().map(Into::into))).exec()?;
        if output.stdout.trim().is_empty() { Ok(Value::Array(Vec::new())) } else { output.json() }
    }

    /// `ip route add ROUTE`, in the family of the addresses in it.
    pub fn add_route(&self, route: &str) -> Result<()> {
        let family = if route.contains(':') { "-6" } else { "-4" };
        let words = [family, "route", "add"].into_iter().chain(route.split_whitespace());
        self.ip(words).map(drop)
    }

    /// Leads the IPv4 packets that come in by these interfaces out by `device`, which gives them back when it has done
    /// with them what it does; they are routed as usual then.
    pub fn lead_through(&self, device: &str, interfaces: &[&str]) -> Result<()> {
        for interface in ["all", device].iter().chain(interfaces) {
            self.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
        }
        self.ip(["route", "add", "default", "dev", device, "table", "100"])?;
        for interface in interfaces {
            self.ip(["rule", "add", "iif", interface, "lookup", "100"])?;
        }
        Ok(())
    }

    /// Adds ADDRESS/LENGTH to an interface, usable at once.
    pub fn add_address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
        self.ip(["address", "add", address, "dev", interface].iter().chain(nodad).copied()).map(drop)
    }

    /// The global addresses of an interface as ADDRESS/LENGTH, IPv4 first.
    pub fn addresses(&self, interface: &str) -> Result<Vec<String>> {
        let links = self.ip_json(["address", "show", "dev", interface])?;
        let mut addresses: Vec<(bool, String)> = links[0]["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|info| info["scope"] == "global")
            .filter_map(|info| {
                Some((info["family"] != "inet", info["local"].as_str()?, info["prefixlen"].as_u64()?))
            })
            .map(|(six, local, length)| (six, format!("{local}/{length}")))
            .collect();
        addresses.sort_by_key(|(six, _)| *six);
        Ok(addresses.into_iter().map(|(_, address)| address).collect())
    }

    /// The hardware address of an interface.
    pub fn mac(&self, interface: &str) -> Result<String> {
        let links = self.ip_json(["link", "show", "dev", interface])?;
        let mac = links[0]["address"].as_str();
        mac.map(str::to_owned)
            .ok_or_else(|| LabError::malformed(format!("`ip link show dev {interface}`"), "no address"))
    }

    /// True when an interface of this name exists.
    pub fn has_interface(&self, interface: &str) -> bool {
        self.ip(["link", "show", "dev", interface]).is_ok()
    }

    /// Which way a packet to `destination` would leave: `ip route get`, as its first JSON object.
    pub fn route_to(&self, destination: &str) -> Result<Value> {
        Ok(self.ip_json(["route", "get", destination])?[0].take())
    }

    /// Sets a sysctl written with dots (`net.ipv4.ip_forward`); a `/` stands for a dot inside a name.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.command(["tee".to_owned(), sysctl_path(key)]).input(value).exec().map(drop)
    }

    /// Reads a sysctl.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        Ok(self.exec(["cat".to_owned(), sysctl_path(key)])?.stdout.trim_end().to_owned())
    }

    /// Makes this host pass on packets that are not for itself, IPv4 and IPv6.
    pub fn enable_forwarding(&self) -> Result<()> {
        const SWITCHES: [&str; 2] =
            ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];
        self.command(["tee"].into_iter().chain(SWITCHES)).input("1").exec().map(drop)
    }

    /// Gives the host a `/etc/resolv.conf` of its own, seen by programs started from now on.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        let directory = resolver_directory(self.namespace());
        make_directory(&directory)?;
        let path = directory.join("resolv.conf");
        fs::write(&path, text).map_err(LabError::io(format!("write {}", path.display())))
    }

    /// Writes a file in the host's directory, readable by root alone, and returns where it is.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.directory().join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&path).and_then(|mut file| file.write_all(contents.as_ref()));
        written.map_err(LabError::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    /// Sends `count` echo requests 0.2 s apart and returns how many answers came; IPv4 or IPv6.
    ///
    /// Once it has seen one answer, ping waits for the last only twice as long as that took: on a busy machine late
    /// answers then count as lost. When only some came, it is asked once more.
    pub fn ping(&self, address: &str, count: u32) -> Result<u32> {
        let answers = self.ping_once(address, count)?;
        if answers == 0 || answers == count { Ok(answers) } else { self.ping_once(address, count) }
    }

    fn ping_once(&self, address: &str, count: u32) -> Result<u32> {
        let count = count.to_string();
        let argv = ["ping", "-n", "-q", "-c", &count, "-i", "0.2", "-W", "2", address];
        let output = self.command(argv).deadline(Duration::from_secs(30)).attempt()?;
        let answers = output.stdout.split(", ").find_map(|part| part.strip_suffix(" received")?.parse().ok());
        answers.ok_or_else(|| match output.success() {
            Ok(output) => LabError::malformed(format!("the output of `{}`", output.command), output.stdout),
            Err(error) => error,
        })
    }
}

fn sysctl_path(key: &str) -> String {
    let path: String = key
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    format!("/proc/sys/{path}")
}
