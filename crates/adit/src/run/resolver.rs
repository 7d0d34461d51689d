//! Who answers the command's questions for names: the DNS servers of the profile, and nobody on this machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::warn;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH: &str = "/etc/nsswitch.conf";

/// Programs that answer questions for names over a Unix socket, from the network of the host.
const ANSWERING: [&str; 4] = ["/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/avahi-daemon"];

/// Where files may be written while they are not yet in place; of the mount namespace of this process alone.
const DESKS: [&str; 3] = ["/tmp", "/run", "/var"];

/// Puts the resolver of the tunnel in place, in the mount namespace of this process.
///
/// # Errors
/// The system refused.
pub fn install(layout: &Layout) -> io::Result<()> {
    let hidden: Vec<&Path> =
        ANSWERING.iter().map(Path::new).filter(|path| path.is_dir() && !path.is_symlink()).collect();
    for directory in &hidden {
        adit_io::sys::cover(directory)?;
    }
    let desk = DESKS.map(Path::new).into_iter().find(|path| path.is_dir());
    let desk = desk.ok_or_else(|| io::Error::other("there is no directory /tmp"))?;
    let switch = fs::read_to_string(NSSWITCH).map(|text| switch(&text)).unwrap_or_default();
    let resolver = resolv_conf(layout);

    // Where the real file is decides before the desk covers it.
    let places = [(RESOLV_CONF, resolver), (NSSWITCH, switch)]
        .map(|(path, text)| (path, place_of(Path::new(path), &hidden), text));
    adit_io::sys::cover(desk)?;
    let outcome = places.iter().try_for_each(|(path, place, text)| match place {
        Place::There => {
            let file = desk.join(Path::new(path).file_name().unwrap_or_default());
            fs::write(&file, text)?;
            adit_io::sys::bind_file(&file, Path::new(path))
        }
        Place::Covered(target) => fs::write(target, text),
        Place::Nowhere => Ok(()),
    });
    adit_io::sys::uncover(desk)?;
    outcome?;
    if matches!(places[0].1, Place::Nowhere) && !layout.dns.is_empty() {
        warn(&format!(
            "there is no {RESOLV_CONF} to put the DNS servers of the profile in; names will not resolve"
        ));
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    There,
    /// A link into a directory that is covered, and empty now.
    Covered(PathBuf),
    Nowhere,
}

fn place_of(path: &Path, hidden: &[&Path]) -> Place {
    if path.exists() {
        return Place::There;
    }
    let Ok(link) = fs::read_link(path) else { return Place::Nowhere };
    let target = path.parent().unwrap_or(Path::new("/")).join(link);
    let (Some(directory), Some(name)) = (target.parent(), target.file_name()) else { return Place::Nowhere };
    match directory.canonicalize() {
        Ok(directory) if hidden.contains(&directory.as_path()) => Place::Covered(directory.join(name)),
        _ => Place::Nowhere,
    }
}

/// resolv.conf(5). Without a server in it, the C library asks 127.0.0.1, where nobody is.
fn resolv_conf(layout: &Layout) -> String {
    let mut text = String::from("# by adit run: the DNS servers of the tunnel\n");
    for server in &layout.dns {
        text += &format!("nameserver {server}\n");
    }
    if !layout.search_domains.is_empty() {
        text += &format!("search {}\n", layout.search_domains.join(" "));
    }
    text
}

/// nsswitch.conf(5) with names of hosts only from /etc/hosts and DNS.
fn switch(text: &str) -> String {
    let keep = |line: &&str| !line.trim_start().starts_with("hosts:");
    let rest = text.lines().filter(keep).fold(String::new(), |text, line| text + line + "\n");
    rest + "hosts: files dns\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dns: &[&str], search: &[&str]) -> Layout {
        Layout {
            mtu_bytes: 1420,
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: dns.iter().map(|server| server.parse().unwrap()).collect(),
            search_domains: search.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_servers_and_domains_of_the_profile_are_named() {
        let text = resolv_conf(&layout(&["10.86.0.1", "fd86::1"], &["example.org", "example.net"]));
        assert!(text.ends_with("nameserver 10.86.0.1\nnameserver fd86::1\nsearch example.org example.net\n"));
        assert!(resolv_conf(&layout(&[], &[])).lines().all(|line| line.starts_with('#')));
    }

    #[test]
    fn hosts_come_from_files_and_dns_alone_and_the_rest_stays() {
        let text =
            "passwd: files systemd\nhosts: files mymachines resolve [!UNAVAIL=return] mdns4 dns\nrpc: db";
        assert_eq!(switch(text), "passwd: files systemd\nrpc: db\nhosts: files dns\n");
        assert_eq!(switch(""), "hosts: files dns\n");
    }

    #[test]
    fn a_link_into_a_covered_directory_is_filled_there_and_any_other_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (covered, path) = (root.join("resolve"), root.join("resolv.conf"));
        assert_eq!(place_of(&path, &[&covered]), Place::Nowhere);
        fs::create_dir(&covered).unwrap();
        std::os::unix::fs::symlink("resolve/stub.conf", &path).unwrap();
        assert_eq!(place_of(&path, &[&covered]), Place::Covered(covered.join("stub.conf")));
        assert_eq!(place_of(&path, &[]), Place::Nowhere);
        fs::write(covered.join("stub.conf"), "").unwrap();
        assert_eq!(place_of(&path, &[&covered]), Place::There);
    }
}
