//! The IKpsk2 handshake in typed steps (WireGuard paper section 5.4).
//!
//! ```text
//! initiator                                    responder
//! Initiation::create ── initiation 148 B ──▶ OpenedInitiation::open        1 DH: who is it?
//!                                            .authenticate(ss)             0 DH: is it really?
//! AwaitingResponse                           .respond()                    2 DH
//!   .consume_response ◀── response 92 B ──── SessionKeys
//! SessionKeys
//! ```
//!
//! A step that fails leaves the step before it intact, so a forged message destroys nothing.

use zeroize::Zeroizing;

use crate::key::{LowOrderPoint, PresharedKey, PublicKey, StaticSecret};
use crate::noise::SymmetricState;
use crate::suite::Suite;
use crate::time::Tai64n;
use crate::wire;

/// Our key pair.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The private key.
    pub secret: StaticSecret,
    /// The public key.
    pub public: PublicKey,
}

impl Identity {
    /// The identity of a private key.
    pub fn new(secret: StaticSecret) -> Self {
        let public = secret.public_key();
        Self { secret, public }
    }
}

/// The keys of a new session.
#[derive(Debug)]
pub struct SessionKeys {
    /// The suite both keys are for.
    pub suite: Suite,
    /// Whether we sent the initiation.
    pub initiator: bool,
    /// The index the peer puts into messages to us.
    pub local_index: u32,
    /// The index we put into messages to the peer.
    pub remote_index: u32,
    /// Our sending key.
    pub sending: Zeroizing<[u8; 32]>,
    /// Our receiving key.
    pub receiving: Zeroizing<[u8; 32]>,
}

/// Why a handshake message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl From<LowOrderPoint> for Refused {
    fn from(_: LowOrderPoint) -> Self {
        Self
    }
}

impl From<crate::aead::Unauthentic> for Refused {
    fn from(_: crate::aead::Unauthentic) -> Self {
        Self
    }
}

/// The initiator after sending its initiation.
#[derive(Debug)]
pub struct AwaitingResponse {
    state: SymmetricState,
    ephemeral: StaticSecret,
    local_index: u32,
}

impl AwaitingResponse {
    /// Creates an initiation to `remote`; both MACs are left zero.
    ///
    /// `ss` is the precomputed Diffie-Hellman result of the two static keys.
    ///
    /// # Errors
    /// [`Refused`] when `remote` is a low-order point.
    pub fn create_initiation(
        suite: Suite,
        identity: &Identity,
        remote: &PublicKey,
        ss: &[u8; 32],
        ephemeral: StaticSecret,
        local_index: u32,
        timestamp: Tai64n,
    ) -> Result<(Self, [u8; wire::INITIATION_LEN]), Refused> {
        let mut state = SymmetricState::new(suite, remote);
        let ephemeral_public = ephemeral.public_key();
        state.mix_chaining_key(&ephemeral_public.0);
        state.mix_hash(&ephemeral_public.0);
        let key = state.mix_key(&ephemeral.diffie_hellman(remote)?[..]);
        let mut encrypted_static = [0; 48];
        state.encrypt_and_hash(&key, &identity.public.0, &mut encrypted_static).ok_or(Refused)?;
        let key = state.mix_key(ss);
        let mut encrypted_timestamp = [0; 28];
        state.encrypt_and_hash(&key, timestamp.as_bytes(), &mut encrypted_timestamp).ok_or(Refused)?;
        let message = wire::initiation(
            suite,
            local_index,
            &ephemeral_public.0,
            &encrypted_static,
            &encrypted_timestamp,
        );
        Ok((Self { state, ephemeral, local_index }, message))
    }

    /// Consumes a response and derives the session keys.
    ///
    /// # Errors
    /// [`Refused`] when the response is not the answer to our initiation; nothing is lost then.
    pub fn consume_response(
        &self,
        identity: &Identity,
        psk: &PresharedKey,
        response: &wire::Response<'_>,
    ) -> Result<SessionKeys, Refused> {
        let mut state = self.state.clone();
        let ephemeral = PublicKey(*response.ephemeral);
        state.mix_chaining_key(&ephemeral.0);
        state.mix_hash(&ephemeral.0);
        state.mix_chaining_key(&self.ephemeral.diffie_hellman(&ephemeral)?[..]);
        state.mix_chaining_key(&identity.secret.diffie_hellman(&ephemeral)?[..]);
        let key = state.mix_key_and_hash(psk.as_bytes());
        state.decrypt_and_hash::<0>(&key, response.encrypted_nothing)?;
        let [sending, receiving] = state.split();
        Ok(SessionKeys {
            suite: state.suite(),
            initiator: true,
            local_index: self.local_index,
            remote_index: response.sender,
            sending,
            receiving,
        })
    }

    /// The index that the response must name.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }
}

/// An initiation whose sender's static key is known but not yet proven.
#[derive(Debug)]
pub struct OpenedInitiation {
    /// The static key the sender claims.
    pub remote: PublicKey,
    state: SymmetricState,
    remote_ephemeral: PublicKey,
    remote_index: u32,
    encrypted_timestamp: [u8; 28],
}

impl OpenedInitiation {
    /// Reads the sender's static key, at the cost of one Diffie-Hellman.
    ///
    /// # Errors
    /// [`Refused`] when the message was not made for our key, or holds a low-order point.
    pub fn open(suite: Suite, identity: &Identity, message: &wire::Initiation<'_>) -> Result<Self, Refused> {
        let mut state = SymmetricState::new(suite, &identity.public);
        let remote_ephemeral = PublicKey(*message.ephemeral);
        state.mix_chaining_key(&remote_ephemeral.0);
        state.mix_hash(&remote_ephemeral.0);
        let key = state.mix_key(&identity.secret.diffie_hellman(&remote_ephemeral)?[..]);
        let remote = state.decrypt_and_hash::<32>(&key, message.encrypted_static)?;
        Ok(Self {
            remote: PublicKey(*remote),
            state,
            remote_ephemeral,
            remote_index: message.sender,
            encrypted_timestamp: *message.encrypted_timestamp,
        })
    }

    /// Proves the sender with `ss`, the precomputed Diffie-Hellman result of the two static keys.
    ///
    /// # Errors
    /// [`Refused`] when the sender does not hold the private key.
    pub fn authenticate(self, ss: &[u8; 32]) -> Result<AuthenticInitiation, Refused> {
        let Self { remote, mut state, remote_ephemeral, remote_index, encrypted_timestamp } = self;
        let key = state.mix_key(ss);
        let timestamp = state.decrypt_and_hash::<12>(&key, &encrypted_timestamp)?;
        let timestamp = Tai64n::from_bytes(*timestamp);
        Ok(AuthenticInitiation { timestamp, remote, state, remote_ephemeral, remote_index })
    }
}

/// An initiation proven to come from its sender; its freshness is for the caller to judge.
#[derive(Debug)]
pub struct AuthenticInitiation {
    /// When the sender says it was made.
    pub timestamp: Tai64n,
    remote: PublicKey,
    state: SymmetricState,
    remote_ephemeral: PublicKey,
    remote_index: u32,
}

impl AuthenticInitiation {
    /// Creates the response (both MACs left zero) and derives the session keys.
    ///
    /// # Errors
    /// [`Refused`] when a Diffie-Hellman result is zero.
    pub fn respond(
        self,
        psk: &PresharedKey,
        ephemeral: StaticSecret,
        local_index: u32,
    ) -> Result<(SessionKeys, [u8; wire::RESPONSE_LEN]), Refused> {
        let mut state = self.state;
        let ephemeral_public = ephemeral.public_key();
        state.mix_chaining_key(&ephemeral_public.0);
        state.mix_hash(&ephemeral_public.0);
        state.mix_chaining_key(&ephemeral.diffie_hellman(&self.remote_ephemeral)?[..]);
        state.mix_chaining_key(&ephemeral.diffie_hellman(&self.remote)?[..]);
        let key = state.mix_key_and_hash(psk.as_bytes());
        let mut encrypted_nothing = [0; 16];
        state.encrypt_and_hash(&key, &[], &mut encrypted_nothing).ok_or(Refused)?;
        let [receiving, sending] = state.split();
        let suite = state.suite();
        let message =
            wire::response(suite, local_index, self.remote_index, &ephemeral_public.0, &encrypted_nothing);
        let keys = SessionKeys {
            suite,
            initiator: false,
            local_index,
            remote_index: self.remote_index,
            sending,
            receiving,
        };
        Ok((keys, message))
    }
}
