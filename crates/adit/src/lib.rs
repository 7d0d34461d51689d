//! The program: what should be true, and the verbs that make it so.

pub mod bench;
pub mod check;
pub mod civil;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod device;
pub mod dial;
pub mod driver;
pub mod endpoint;
pub mod enrol;
pub mod events;
pub mod exclude;
pub mod export;
pub mod forwarder;
pub mod gateway;
pub mod grant;
pub mod heard;
pub mod home;
pub mod import;
pub mod init;
pub mod inside;
pub mod instance;
pub mod invite;
pub mod ip;
pub mod join;
pub mod keys;
pub mod lease;
pub mod limits;
pub mod lockdown;
pub mod log;
pub mod metrics;
pub mod peer;
pub mod plan;
pub mod private_file;
pub mod privilege;
pub mod profile;
pub mod proxy;
pub mod qr;
pub mod quota;
pub mod reload;
pub mod resolvers;
pub mod restore;
pub mod roaming;
pub mod run;
pub mod service;
pub mod settings;
pub mod socket;
pub mod stack;
pub mod state;
pub mod status;
pub mod stream;
pub mod table;
pub mod tunnel;
pub mod uapi;
pub mod upkeep;
pub mod usage;
pub mod verify;
pub mod wall_clock;
pub mod web;
pub mod wg;

use std::io::{self, Write};

pub use self::tunnel::Tunnel;

/// Writes a line to stdout. A reader that has had enough (`adit peer list | head -1`) is no error.
///
/// # Errors
/// Stdout is closed or its disk is full.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}
