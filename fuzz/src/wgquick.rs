//! wg-quick files: any bytes give a tunnel, or a report that can be shown; what is written reads back.

use adit::config::Source;
use adit::config::wgquick::{Hooks, WgQuick};
use zeroize::Zeroizing;

/// The bytes of a `.conf` file.
pub fn run(data: &[u8]) {
    let source = match Source::from_bytes("wg0.conf", Zeroizing::new(data.to_vec())) {
        Ok(source) => source,
        Err(report) => return crate::config::check(&report),
    };
    let strict = WgQuick::parse(&source, Hooks::Refused);
    match WgQuick::parse(&source, Hooks::Allowed) {
        Ok(tunnel) => {
            match strict {
                Ok(same) => assert!(same == tunnel && tunnel.interface.hooks.is_empty()),
                Err(report) => crate::config::check(&report),
            }
            let written = Source::new("wg0.conf", tunnel.to_text().as_str());
            let again = WgQuick::parse(&written, Hooks::Allowed);
            assert!(
                again.is_ok_and(|again| again == tunnel),
                "what was written reads back as another tunnel"
            );
        }
        Err(report) => {
            assert!(strict.is_err(), "only the caller who allows hooks is refused");
            crate::config::check(&report);
        }
    }
}
