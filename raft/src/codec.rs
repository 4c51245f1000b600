//! Records: how everything is encoded that is written to disk or sent to another member. A version byte, then bincode.
//!
//! The only user of bincode. Called by the log, the state machine and the transport.

use bincode::Options as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    state::{Outcome, Proposal, State},
    stored::{Mirror, v1},
    version::{FIRST, newest},
};

/// The form of what is not replicated: of the log's own records and of messages. Readers know all that were ever released.
const V1: u8 = 1;

/// The most that one record from the network may decode to, bytes.
pub const NETWORK_LIMIT: u64 = 32 << 20;

/// The most that one proposal may take, bytes.
pub const PROPOSAL_LIMIT: u64 = 4 << 20;

/// The most that a stored state may take, bytes.
const STATE_LIMIT: u64 = 4 << 30;

/// A record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// It has no version byte.
    #[error("the record is empty")]
    Empty,
    /// A newer agent wrote it.
    #[error("the record has version {0}, which this agent does not know: a newer one is needed")]
    Version(u8),
    /// It is not what it should be, or too large.
    #[error("the record cannot be read")]
    Malformed(#[source] bincode::Error),
}

/// Encodes a record that every version of this program understands.
///
/// # Panics
///
/// When a type says that it cannot be encoded; none of ours does.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    record(V1, value)
}

/// Encodes what is replicated in the form of a version.
fn encode_in<T: Serialize>(version: u32, value: &T) -> Vec<u8> {
    // Every version there is has had this form.
    record(u8::try_from(version).unwrap_or(u8::MAX), value)
}

fn record<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut record = vec![version];
    #[allow(clippy::expect_used)]
    options()
        .serialize_into(&mut record, value)
        .expect("no limit is set, a vector takes all, and our types hold only what bincode knows");
    record
}

/// Decodes a record of at most `limit` bytes.
pub fn decode<T: DeserializeOwned>(record: &[u8], limit: u64) -> Result<T, CodecError> {
    match record.split_first() {
        None => Err(CodecError::Empty),
        Some((&V1, body)) if planted::planted("stored.rest") || planted::planted("peers.rest") => {
            let options = options().allow_trailing_bytes().with_limit(limit);
            options.deserialize(body).map_err(CodecError::Malformed)
        }
        Some((&version, body)) if (FIRST..=newest()).contains(&version.into()) => options()
            .with_limit(limit)
            .deserialize(body)
            .map_err(CodecError::Malformed),
        Some((&version, _)) => Err(CodecError::Version(version)),
    }
}

fn options() -> impl bincode::Options {
    bincode::DefaultOptions::new()
        .with_varint_encoding()
        .reject_trailing_bytes()
}

/// A proposal's record, in the form of a version.
pub fn encode_proposal(proposal: &Proposal, version: u32) -> Vec<u8> {
    encode_in(version, &v1::Proposal::store(proposal))
}

/// Reads a proposal's record.
pub fn decode_proposal(record: &[u8]) -> Result<Proposal, CodecError> {
    decode::<v1::Proposal>(record, PROPOSAL_LIMIT).map(Mirror::load)
}

/// An outcome's record.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    encode(&v1::Outcome::store(outcome))
}

/// Reads an outcome's record.
pub fn decode_outcome(record: &[u8]) -> Result<Outcome, CodecError> {
    decode::<v1::Outcome>(record, NETWORK_LIMIT).map(Mirror::load)
}

/// A state's record, in the form of the version that it has reached.
pub fn encode_state(state: &State) -> Vec<u8> {
    encode_in(state.version, &v1::State::store(state))
}

/// Reads a state's record.
pub fn decode_state(record: &[u8]) -> Result<State, CodecError> {
    let state: State = decode::<v1::State>(record, STATE_LIMIT).map(Mirror::load)?;
    if record.first().map(|version| u32::from(*version)) != Some(state.version) {
        let problem = "the state has reached another version than its record is of";
        let problem = bincode::ErrorKind::Custom(problem.to_owned());
        return Err(CodecError::Malformed(problem.into()));
    }
    Ok(state)
}
