//! `adit.toml` as text: changed where it must be, with comments and order kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};
use zeroize::Zeroizing;

use super::{Config, Layers, Peer, PeerLimits, PeerName, Report, Source};
use crate::keys;
use crate::private_file;

/// The file of one gateway, to be changed. Hold the lock of the home meanwhile.
pub struct Document {
    path: PathBuf,
    toml: DocumentMut,
}

impl Document {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read or is no TOML.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let source = super::read_source(path)?;
        // A syntax error has a better report than `toml_edit` gives; both read the same grammar.
        let toml = source.text().parse().map_err(|error: toml_edit::TomlError| {
            match Config::parse(&source, Path::new("."), &Layers::default()) {
                Err(report) => anyhow::Error::new(report),
                Ok(_) => anyhow!("{}: {}", path.display(), error.message()),
            }
        })?;
        Ok(Self { path: path.to_owned(), toml })
    }

    /// A file that is not there yet.
    ///
    /// # Errors
    /// `text` is no TOML.
    pub fn of_text(path: &Path, text: &str) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_owned(), toml: text.parse()? })
    }

    /// Whether there is a section of that name.
    pub fn has(&self, section: &str) -> bool {
        self.toml.contains_key(section)
    }

    /// The version that the file claims to be of.
    pub fn version(&self) -> Option<i64> {
        self.toml.get("config_version").and_then(Item::as_integer)
    }

    /// Writes the version as the first line.
    pub fn set_version(&mut self, version: u32) {
        let mut new = DocumentMut::new();
        new["config_version"] = value(i64::from(version));
        let old = self.toml.to_string();
        let text = format!("{new}\n{old}");
        if let Ok(toml) = text.parse() {
            self.toml = toml;
        }
    }

    /// Sets a text value of `[gateway]`.
    ///
    /// # Errors
    /// `gateway` is not a table.
    pub fn set_gateway(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let gateway = self.toml.entry("gateway").or_insert_with(toml_edit::table);
        let gateway = gateway.as_table_like_mut().context("`gateway` is not a section")?;
        match gateway.get_mut(name).and_then(Item::as_value_mut) {
            Some(old) => {
                let decor = old.decor().clone();
                *old = Value::from(text);
                *old.decor_mut() = decor;
            }
            None => {
                gateway.insert(name, value(text));
            }
        }
        Ok(())
    }

    /// Appends a peer; comments at the end of the file, such as the keys of the last section that keep their
    /// default, stay above it.
    ///
    /// # Errors
    /// `peer` is not a list of sections.
    pub fn add_peer(&mut self, peer: &Peer) -> anyhow::Result<()> {
        self.toml.entry("peer").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        let is_last = self.toml.iter().last().is_some_and(|(key, _)| key == "peer");
        let mut above = self.toml.trailing().as_str().filter(|_| is_last).unwrap_or_default().to_owned();
        let peers = self.toml.get_mut("peer").and_then(Item::as_array_of_tables_mut).context(
            "`peer` is written as an inline array; write each peer as a [[peer]] section, then try again",
        )?;
        let mut table = peer_table(peer);
        if !above.is_empty() && !above.ends_with('\n') {
            above.push('\n');
        }
        table.decor_mut().set_prefix(format!("{above}\n"));
        peers.push(table);
        if is_last {
            self.toml.set_trailing("");
        }
        Ok(())
    }

    /// Sets a value of the peer of that name.
    ///
    /// # Errors
    /// The peer is not written as a section of its own.
    pub fn set_peer(&mut self, name: &PeerName, key: &str, new: Value) -> anyhow::Result<()> {
        let table = self.peer(name)?;
        match table.get_mut(key).and_then(Item::as_value_mut) {
            Some(old) => {
                let decor = old.decor().clone();
                *old = new;
                *old.decor_mut() = decor;
            }
            None => {
                table.insert(key, value(new));
            }
        }
        Ok(())
    }

    /// Takes a value of the peer of that name away, so that its default counts.
    ///
    /// # Errors
    /// The peer is not written as a section of its own.
    pub fn unset_peer(&mut self, name: &PeerName, key: &str) -> anyhow::Result<()> {
        self.peer(name)?.remove(key);
        Ok(())
    }

    fn peer(&mut self, name: &PeerName) -> anyhow::Result<&mut Table> {
        let path = self.path.display().to_string();
        let peers = self.toml.get_mut("peer").and_then(Item::as_array_of_tables_mut);
        let mut tables = peers.into_iter().flat_map(ArrayOfTables::iter_mut);
        tables.find(|table| table.get("name").and_then(Item::as_str) == Some(name.as_str())).with_context(
            || format!("peer `{name}` is not a [[peer]] section of {path}; change it there by hand"),
        )
    }

    /// Removes the peer of that name; says whether there was one. Comments right above it go too, those
    /// above an empty line stay.
    pub fn remove_peer(&mut self, name: &PeerName) -> bool {
        let is_it = |table: &Table| table.get("name").and_then(Item::as_str) == Some(name.as_str());
        let Some(peers) = self.toml.get_mut("peer").and_then(Item::as_array_of_tables_mut) else {
            return false;
        };
        let Some(index) = peers.iter().position(is_it) else { return false };
        let staying = peers.get(index).map(comments_above).unwrap_or_default();
        peers.remove(index);
        match peers.get_mut(index) {
            _ if staying.is_empty() => {}
            Some(next) => {
                let own = prefix(next).to_owned();
                next.decor_mut().set_prefix(staying + &own);
            }
            None => {
                let after = self.toml.trailing().as_str().unwrap_or_default().to_owned();
                self.toml.set_trailing(staying + &after);
            }
        }
        true
    }

    /// The file as it would be written, and what it means.
    ///
    /// # Errors
    /// The changes made the configuration wrong.
    pub fn check(&self) -> Result<(Zeroizing<String>, Config), Report> {
        let text = Zeroizing::new(self.toml.to_string());
        let source: Arc<Source> = Source::new(self.path.display().to_string(), text.as_str());
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let config = Config::parse(&source, directory, &Layers::default())?;
        Ok((text, config))
    }

    /// Checks the changed configuration and replaces the file with it at once.
    ///
    /// # Errors
    /// The changes made the configuration wrong, or the file cannot be written; it is as it was.
    pub fn save(&self) -> anyhow::Result<Config> {
        let (text, config) = self.check()?;
        private_file::write(&self.path, text.as_bytes())?;
        Ok(config)
    }
}

/// What stands between a section and the one before, down to the last empty line, when there is a comment
/// in it.
fn comments_above(table: &Table) -> String {
    let text = prefix(table);
    let end = text.rfind("\n\n").map_or(0, |at| at + 1);
    let above = text.get(..end).unwrap_or_default();
    if above.trim().is_empty() { String::new() } else { above.to_owned() }
}

fn prefix(table: &Table) -> &str {
    table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default()
}

fn peer_table(peer: &Peer) -> Table {
    let list = |items: Vec<String>| {
        let mut array = Array::new();
        array.extend(items);
        value(array)
    };
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    table["name"] = value(peer.name.as_str());
    table["public_key"] = value(keys::public_text(&peer.public_key));
    if let Some(key) = &peer.preshared_key {
        table["preshared_key"] = value(keys::secret_text(key.as_bytes()).as_str());
    }
    table["addresses"] = list(peer.addresses.iter().map(ToString::to_string).collect());
    if !peer.extra_allowed_ips.is_empty() {
        table["allowed_ips"] = list(peer.extra_allowed_ips.iter().map(ToString::to_string).collect());
    }
    table["suite"] = value(peer.suite.name());
    if let Some(endpoint) = &peer.endpoint {
        table["endpoint"] = value(endpoint.to_string());
    }
    if peer.persistent_keepalive_secs != 0 {
        table["persistent_keepalive_secs"] = value(i64::from(peer.persistent_keepalive_secs));
    }
    if !peer.enabled {
        table["enabled"] = value(false);
    }
    if !peer.tags.is_empty() {
        table["tags"] = list(peer.tags.clone());
    }
    write_limits(&mut table, &peer.limits);
    table
}

fn write_limits(table: &mut Table, limits: &PeerLimits) {
    let mut write = |name: &str, text: Option<String>| {
        if let Some(text) = text {
            table[name] = value(text);
        }
    };
    write("expires", limits.expires.map(|moment| moment.to_string()));
    if limits.rate_up == limits.rate_down {
        write("rate", limits.rate_up.map(|rate| rate.to_string()));
    } else {
        write("rate_up", limits.rate_up.map(|rate| rate.to_string()));
        write("rate_down", limits.rate_down.map(|rate| rate.to_string()));
    }
    write("quota", limits.quota.map(|quota| quota.to_string()));
    write("schedule", limits.schedule.as_ref().map(ToString::to_string));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use adit_proto::suite::Suite;

    use super::*;

    const FILE: &str = "config_version = 1\n\n[gateway]\n\
                        private_key = \"eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\"\n\
                        network = \"10.9.0.0/24\"\n# masquerade = true\n\n[log]\n# level\n# level = \"info\"\n";

    fn document(text: &str) -> Document {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(file.path(), text).unwrap();
        Document::open(file.path()).unwrap()
    }

    fn peer(number: u8) -> Peer {
        Peer {
            addresses: vec![[10, 9, 0, number].into()],
            suite: Suite::Aes256Gcm,
            ..Peer::new(format!("p{number}").parse().unwrap(), adit_proto::key::PublicKey([number; 32]))
        }
    }

    #[test]
    fn limits_are_written_as_they_are_read() {
        let mut document = document(FILE);
        let limits = PeerLimits {
            expires: Some("2026-12-31T18:00".parse().unwrap()),
            schedule: Some("Mon-Fri 08:00-18:00 +01:00".parse().unwrap()),
            rate_up: Some("512k".parse().unwrap()),
            rate_down: Some("20M".parse().unwrap()),
            quota: Some("50GiB".parse().unwrap()),
        };
        let same = PeerLimits { rate_up: limits.rate_down, ..limits.clone() };
        document.add_peer(&Peer { limits: limits.clone(), ..peer(2) }).unwrap();
        document.add_peer(&Peer { limits: same.clone(), ..peer(3) }).unwrap();
        let (text, config) = document.check().unwrap();
        assert_eq!((&config.peers[0].limits, &config.peers[1].limits), (&limits, &same), "{}", *text);
        assert!(text.contains("rate = \"20M\"") && text.contains("rate_up = \"512k\""), "{}", *text);
    }

    #[test]
    fn a_peer_is_appended_below_the_commented_keys_of_the_last_section() {
        let mut document = document(FILE);
        for number in [2, 3] {
            document.add_peer(&peer(number)).unwrap();
        }
        let (text, config) = document.check().unwrap();
        assert!(text.starts_with(&format!("{FILE}\n[[peer]]\nname = \"p2\"\n")), "{}", *text);
        assert!(text.contains("\n\n[[peer]]\nname = \"p3\"\n"), "{}", *text);
        assert_eq!(config.peers.len(), 2);
        let uncommented = text.replace("# level = \"info\"", "level = \"debug\"");
        let source = Source::new("adit.toml", &*uncommented);
        assert!(Config::parse(&source, Path::new("."), &Layers::default()).is_ok(), "{uncommented}");
        for (first, second) in [(2, 3), (3, 2)] {
            let mut again = self::document(&text);
            assert!(again.remove_peer(&peer(first).name) && again.remove_peer(&peer(second).name));
            assert!(!again.remove_peer(&peer(second).name));
            assert_eq!(again.toml.to_string(), FILE);
        }
    }

    #[test]
    fn a_value_of_a_peer_changes_and_its_comments_stay() {
        let mut document = document(FILE);
        for number in [2, 3] {
            document.add_peer(&peer(number)).unwrap();
        }
        let before = document.toml.to_string().replace("\"p2\"\n", "\"p2\" # of Bob\n");
        let mut document = self::document(&before);
        document.set_peer(&peer(2).name, "tags", Value::Array(["a"].into_iter().collect())).unwrap();
        document.set_peer(&peer(2).name, "name", "bob".into()).unwrap();
        let (text, config) = document.check().unwrap();
        assert!(text.contains("name = \"bob\" # of Bob\n"), "{}", *text);
        assert_eq!(
            (config.peers[0].name.as_str(), config.peers[0].tags.as_slice()),
            ("bob", &["a".to_owned()][..])
        );
        document.set_peer(&"bob".parse().unwrap(), "name", "p2".into()).unwrap();
        document.unset_peer(&peer(2).name, "tags").unwrap();
        assert_eq!(document.toml.to_string(), before);
        assert!(document.set_peer(&"nobody".parse().unwrap(), "enabled", false.into()).is_err());
    }

    #[test]
    fn a_comment_goes_with_the_peer_it_stands_on() {
        let mut own = document(FILE);
        own.add_peer(&peer(2)).unwrap();
        let text = own.toml.to_string().replace("[[peer]]", "# of Bob\n[[peer]]");
        let mut document = document(&text);
        assert!(document.remove_peer(&peer(2).name));
        assert_eq!(document.toml.to_string(), FILE);
    }
}
