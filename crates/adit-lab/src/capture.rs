use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pcap::{self, Frame};
use crate::{Host, LabError, Process, Result};

/// Every frame that crosses one interface of a host, written to a capture file.
pub struct Capture {
    process: Process,
    path: PathBuf,
}

impl Capture {
    /// Starts to capture; when this returns, the next frame will be in the file.
    pub fn start(host: &Host, interface: &str) -> Result<Self> {
        let path = host.directory().join(format!("{interface}.pcap"));
        Self::start_at(host, interface, &path)
    }

    /// Like [`Self::start`], with a place for the file.
    pub fn start_at(host: &Host, interface: &str, path: &Path) -> Result<Self> {
        let mut process = host.agent(["capture", interface, &path.display().to_string()]).spawn()?;
        process.wait_for_text("capturing", Duration::from_secs(5))?;
        Ok(Self { process, path: path.to_owned() })
    }

    /// The capture file, for tcpdump or Wireshark.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The frames captured so far.
    pub fn frames(&self) -> Result<Vec<Frame>> {
        let file =
            std::fs::read(&self.path).map_err(LabError::io(format!("read {}", self.path.display())))?;
        pcap::parse(&file)
    }

    /// Writes out what the kernel still holds, stops, and returns all frames.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.process.close_input();
        self.process.finish(Duration::from_secs(10))?;
        self.frames()
    }
}
