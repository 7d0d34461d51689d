//! The two cipher suites: one state machine, two sets of names, labels and AEADs.

/// A cipher suite. It is pinned per peer and never negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Suite {
    /// WireGuard's own: `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`, byte-exact.
    #[default]
    ChaCha20Poly1305,
    /// `Noise_IKpsk2_25519_AESGCM_BLAKE2s` between adit peers.
    Aes256Gcm,
}

/// The first byte of each message of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageTypes {
    /// Handshake initiation.
    pub initiation: u8,
    /// Handshake response.
    pub response: u8,
    /// Cookie reply.
    pub cookie: u8,
    /// Transport data.
    pub transport: u8,
}

impl Suite {
    /// Both suites.
    pub const ALL: [Self; 2] = [Self::ChaCha20Poly1305, Self::Aes256Gcm];

    /// The name used in configuration, `status` and the UAPI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }

    /// The suite of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }

    /// The message types on the wire.
    pub const fn message_types(self) -> MessageTypes {
        match self {
            Self::ChaCha20Poly1305 => MessageTypes { initiation: 1, response: 2, cookie: 3, transport: 4 },
            Self::Aes256Gcm => {
                MessageTypes { initiation: 0x21, response: 0x22, cookie: 0x23, transport: 0x24 }
            }
        }
    }

    /// The Noise protocol name that starts the chaining key.
    pub const fn noise_name(self) -> &'static [u8] {
        match self {
            Self::ChaCha20Poly1305 => b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
            Self::Aes256Gcm => b"Noise_IKpsk2_25519_AESGCM_BLAKE2s",
        }
    }

    /// The Noise prologue.
    pub const fn prologue(self) -> &'static [u8] {
        match self {
            Self::ChaCha20Poly1305 => b"WireGuard v1 zx2c4 Jason@zx2c4.com",
            Self::Aes256Gcm => b"adit v1 aes-256-gcm",
        }
    }

    /// The label that derives the mac1 key from a public key.
    pub const fn mac1_label(self) -> &'static [u8; 8] {
        match self {
            Self::ChaCha20Poly1305 => b"mac1----",
            Self::Aes256Gcm => b"adit-m1-",
        }
    }

    /// The label that derives the cookie encryption key from a public key.
    pub const fn cookie_label(self) -> &'static [u8; 8] {
        match self {
            Self::ChaCha20Poly1305 => b"cookie--",
            Self::Aes256Gcm => b"adit-ck-",
        }
    }
}

impl core::fmt::Display for Suite {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_share_no_name_label_or_message_type() {
        let [a, b] = Suite::ALL;
        assert_ne!(a.noise_name(), b.noise_name());
        assert_ne!(a.prologue(), b.prologue());
        assert_ne!(a.mac1_label(), b.mac1_label());
        assert_ne!(a.cookie_label(), b.cookie_label());
        assert_ne!(a.message_types().transport, b.message_types().transport);
        assert!(Suite::ALL.iter().all(|suite| Suite::from_name(suite.name()) == Some(*suite)));
    }
}
