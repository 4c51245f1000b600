//! A fingerprint of the state, by which members compare theirs. Called by the agent's status.

use sha2::{Digest as _, Sha256};

use super::model::State;
use crate::codec;

/// SHA-256 of the state's stored form, in hexadecimal. Equal states have equal digests on every member.
pub fn digest(state: &State) -> String {
    let hash = Sha256::digest(codec::encode_state(state));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
