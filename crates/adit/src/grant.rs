//! What the gateway lets us use: asked of its inside API, and remembered, because a peer whose access has ended can
//! ask no more.
//!
//! It is asked when a session begins and when somebody wants to know; nothing is sent while the tunnel is idle.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::inside;
use crate::instance::unix_secs;
use crate::limits::LimitsReport;
use crate::private_file;

/// How long `status` waits for news.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The gateway's word, kept up to date by a thread of its own that ends when this is dropped.
#[derive(Debug)]
pub struct Grant {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    told: Option<LimitsReport>,
    /// How often the gateway was asked, and which of the questions is over, with or without an answer.
    begun: u64,
    over: u64,
    wanted: bool,
    ends: bool,
}

impl Grant {
    /// Starts to ask the inside APIs `apis` of the gateway behind `interface`, and remembers in the file at `path`.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(interface: &str, apis: Vec<SocketAddr>, path: PathBuf) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().told = remembered(&path);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (asker, interface) = (Arc::clone(&shared), interface.to_owned());
        let thread = std::thread::Builder::new().name("grant".into()).spawn(move || {
            while asker.wait_until_wanted() {
                let answer = runtime.block_on(inside::whoami(&interface, &apis));
                let told = match answer {
                    Ok((_, who)) => {
                        remember(&path, who.limits.as_ref(), asker.lock().told.as_ref());
                        Some(who.limits)
                    }
                    Err(reason) => {
                        tracing::debug!("the gateway does not say what we may use: {reason}");
                        None
                    }
                };
                asker.answered(told);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Asks in the background.
    pub fn ask(&self) {
        self.shared.lock().wanted = true;
        self.shared.changed.notify_all();
    }

    /// Asks, and waits for the answer for a moment at most.
    pub fn refresh(&self) {
        let mut state = self.shared.lock();
        state.wanted = true;
        // The answer to a question that is under way may be older than what is asked for.
        let question = state.begun + 1;
        self.shared.changed.notify_all();
        drop(self.shared.changed.wait_timeout_while(state, PATIENCE, |state| state.over < question));
    }

    /// What we may use now, as far as known.
    pub fn known(&self) -> Option<LimitsReport> {
        self.shared.lock().told.clone().map(|told| told.at(unix_secs(SystemTime::now())))
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when there is nobody to ask for any more.
    fn wait_until_wanted(&self) -> bool {
        let waited = self.changed.wait_while(self.lock(), |state| !state.wanted && !state.ends);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.wanted = false;
        state.begun += 1;
        !state.ends
    }

    fn answered(&self, told: Option<Option<LimitsReport>>) {
        let mut state = self.lock();
        state.over = state.begun;
        if let Some(told) = told {
            state.told = told;
        }
        drop(state);
        self.changed.notify_all();
    }
}

fn remembered(path: &Path) -> Option<LimitsReport> {
    let bytes = std::fs::read(path).ok()?;
    // Without limits there is nothing in it.
    serde_json::from_slice::<Option<LimitsReport>>(&bytes)
        .inspect_err(|error| tracing::debug!(%error, "{} is passed over", path.display()))
        .ok()
        .flatten()
}

/// Only the terms are worth a write, not how much was used since.
fn remember(path: &Path, new: Option<&LimitsReport>, old: Option<&LimitsReport>) {
    let terms = |report: Option<&LimitsReport>| {
        report.map(|report| {
            (report.state, report.expires_unix_secs, report.schedule.clone(), report.quota_bytes)
        })
    };
    if terms(new) == terms(old) && path.exists() {
        return;
    }
    let written = serde_json::to_vec(&new).map_err(anyhow::Error::from);
    if let Err(error) = written.and_then(|bytes| private_file::write(path, &bytes)) {
        tracing::warn!("what we may use could not be written down: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitState;

    fn report(expires: u64) -> LimitsReport {
        LimitsReport {
            state: LimitState::Within,
            rate_up: None,
            rate_down: None,
            quota_bytes: None,
            used_bytes: None,
            quota_renews_unix_secs: None,
            expires_unix_secs: Some(expires),
            schedule: None,
            refused: Default::default(),
        }
    }

    #[test]
    fn what_the_gateway_said_is_known_after_a_restart_and_judged_by_the_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grant.json");
        let grant = || Grant::start("lo", Vec::new(), path.clone()).unwrap();
        assert_eq!(grant().known(), None);
        remember(&path, Some(&report(5)), None);
        assert_eq!(grant().known().unwrap().state, LimitState::AccessExpired);
        remember(&path, Some(&report(u64::MAX)), Some(&report(5)));
        assert_eq!(grant().known().unwrap().state, LimitState::Within);
        remember(&path, None, Some(&report(u64::MAX)));
        assert_eq!(grant().known(), None);
    }

    #[test]
    fn a_gateway_that_cannot_be_asked_costs_no_more_than_a_moment() {
        let directory = tempfile::tempdir().unwrap();
        let grant = Grant::start("lo", Vec::new(), directory.path().join("grant.json")).unwrap();
        let before = std::time::Instant::now();
        grant.refresh();
        assert_eq!(grant.known(), None);
        assert!(before.elapsed() < Duration::from_secs(30));
    }
}
