//! `adit.toml` as text: changed where it must be, with comments and order kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};
use zeroize::Zeroizing;

use super::{Config, Layers, Peer, PeerName, Report, Source};
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

    /// Appends a peer.
    ///
    /// # Errors
    /// `peer` is not a list of sections.
    pub fn add_peer(&mut self, peer: &Peer) -> anyhow::Result<()> {
        let peers = self.toml.entry("peer").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        let peers = peers.as_array_of_tables_mut().context(
            "`peer` is written as an inline array; write each peer as a [[peer]] section, then try again",
        )?;
        peers.push(peer_table(peer));
        Ok(())
    }

    /// Removes the peer of that name; says whether there was one.
    pub fn remove_peer(&mut self, name: &PeerName) -> bool {
        let is_it = |table: &Table| table.get("name").and_then(Item::as_str) == Some(name.as_str());
        let Some(peers) = self.toml.get_mut("peer").and_then(Item::as_array_of_tables_mut) else {
            return false;
        };
        let before = peers.len();
        peers.retain(|table| !is_it(table));
        peers.len() < before
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
    table
}
