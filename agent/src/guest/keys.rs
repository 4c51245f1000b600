//! SSH host keys for guests that want their own in each fork.

use guest::channel::message::HostKeys;
use ring::rand::{SecureRandom as _, SystemRandom};
use ssh_key::{
    LineEnding, PrivateKey,
    private::{Ed25519Keypair, KeypairData},
};

/// Keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The host has no random numbers.
    #[error("the host has no random numbers")]
    NoRandomness,
    /// They could not be written down.
    #[error("a key could not be written down")]
    Form(#[from] ssh_key::Error),
}

/// New ones. It takes some fifty microseconds: they need not be kept ready.
pub fn new_host_keys() -> Result<HostKeys, KeysError> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut seed[..])
        .map_err(|_| KeysError::NoRandomness)?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, "forkypig")?;
    Ok(HostKeys {
        ed25519: key.to_openssh(LineEnding::LF)?.to_string(),
        ed25519_public: format!("{}\n", key.public_key().to_openssh()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_and_never_the_same() {
        let (one, other) = (new_host_keys().unwrap(), new_host_keys().unwrap());
        assert_ne!(one.ed25519, other.ed25519);
        let private = PrivateKey::from_openssh(&one.ed25519).unwrap();
        let public = private.public_key().to_openssh().unwrap();
        assert_eq!(one.ed25519_public.trim_end(), public);
    }
}
