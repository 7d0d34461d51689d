//! The one question that somebody invited may ask: to become a peer.

use std::sync::Arc;

use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes};
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};

use super::request::{Answer, page_of, refusal};
use super::seats::Seats;
use crate::config::parse_suite;
use crate::enrol::{Application, Office, Outcome, Untouched};
use crate::keys;

/// The path of the question.
pub const PATH: &str = "/v1/enrol";

const BODY_BYTES_MAX: usize = 4096;
/// Each waits for the disk and the lock of the configuration.
const ENROLMENTS_IN_ALL: usize = 8;

/// Where the invited are dealt with.
#[derive(Debug)]
pub(super) struct Enrolment {
    office: Option<Arc<Office>>,
    seats: Seats,
}

/// What the invited sends.
#[derive(Debug, Serialize, Deserialize)]
struct Page {
    schema: u32,
    public_key: String,
    suites: Vec<String>,
}

/// The question as the asking side sends it.
///
/// # Errors
/// Never in practice: it is text and numbers.
pub fn question(application: &Application) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Page {
        schema: 1,
        public_key: keys::public_text(&application.public_key),
        suites: application.suites.iter().map(|suite| suite.name().to_owned()).collect(),
    })
}

impl Enrolment {
    pub(super) fn new(office: Option<Arc<Office>>) -> Self {
        Self { office, seats: Seats::new(1, ENROLMENTS_IN_ALL) }
    }

    pub(super) async fn answer<B>(&self, request: Request<B>, invited: PublicKey) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(office) = self.office.clone() else {
            return refusal(StatusCode::NOT_FOUND, "nobody can join here");
        };
        let Some(seat) = self.seats.take(invited) else {
            return refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "somebody joins with this invite right now; try again",
            );
        };
        let Ok(body) = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await else {
            return refusal(StatusCode::BAD_REQUEST, "the question is too long or broke off");
        };
        let application = match read(&body.to_bytes()) {
            Ok(application) => application,
            Err(reason) => return refusal(StatusCode::BAD_REQUEST, &reason),
        };
        let outcome = tokio::task::spawn_blocking(move || {
            // The seat is taken until the work is done, also when the asking side has hung up.
            let _seat = seat;
            office.enrol(&invited, &application)
        });
        let lease = match outcome.await {
            Ok(Ok(Outcome::Joined(lease))) => {
                tracing::info!(peer = %lease.name, suite = %lease.suite, "joined with an invite");
                lease.to_json()
            }
            Ok(Ok(Outcome::Refused(reason))) => {
                tracing::warn!("an invite was refused: {reason}");
                return refusal(StatusCode::GONE, &reason);
            }
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error.into()),
        };
        match lease {
            Ok(lease) => page_of(StatusCode::OK, Bytes::copy_from_slice(&lease)),
            Err(error) => {
                tracing::error!("somebody with an invite could not join: {error:#}");
                let status = match error.is::<Untouched>() {
                    true => StatusCode::INSUFFICIENT_STORAGE,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                refusal(status, "the gateway cannot add peers now; its log tells why")
            }
        }
    }
}

fn read(body: &[u8]) -> Result<Application, String> {
    let page: Page = serde_json::from_slice(body).map_err(|error| format!("this is no question: {error}"))?;
    if page.schema != 1 {
        return Err(format!("this gateway speaks schema 1, not {}", page.schema));
    }
    let public_key = keys::parse_public(&page.public_key).map_err(|error| error.to_string())?;
    // A suite that a newer adit adds is one that this gateway does not choose.
    let suites: Vec<Suite> = page.suites.iter().take(16).filter_map(|name| parse_suite(name).ok()).collect();
    Ok(Application { public_key, suites })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let asked = Application { public_key: PublicKey([7; 32]), suites: vec![Suite::Aes256Gcm] };
        assert_eq!(read(&question(&asked).unwrap()), Ok(asked.clone()));
        let text = String::from_utf8(question(&asked).unwrap()).unwrap();
        assert_eq!(read(text.replace("aes-256-gcm", "aegis").as_bytes()).unwrap().suites, []);
        for (from, to) in [("\"schema\":1", "\"schema\":2"), ("BwcH", "BwcHBw"), ("}", "")] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text);
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
