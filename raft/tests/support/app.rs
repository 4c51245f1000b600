//! A state machine for tests: a list of texts, and who belongs to the cluster.

use std::{collections::BTreeMap, sync::Arc};

use raft::consensus::{App, AppError, Member, Members};
use serde::{Deserialize, Serialize};

/// What the state holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// In the order they were applied.
    pub list: Vec<String>,
    /// The place of each request, by its id.
    pub requests: BTreeMap<u64, usize>,
    /// Each with its zone.
    pub members: BTreeMap<u64, String>,
}

/// A proposal.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Adds a text, once for a request id. The outcome is its place.
    Text(u64, String),
    /// Sets who belongs to the cluster.
    Members(BTreeMap<u64, String>),
    /// Looks fine, and cannot be applied.
    Poison,
}

impl Ask {
    pub fn bytes(&self) -> Vec<u8> {
        raft::codec::encode(self)
    }
}

#[derive(Default)]
pub struct TextApp(Arc<Texts>);

fn failed(error: raft::codec::CodecError) -> AppError {
    AppError(Box::new(error))
}

impl App for TextApp {
    type View = Arc<Texts>;

    fn is_readable(proposal: &[u8]) -> bool {
        raft::codec::decode::<Ask>(proposal, 1 << 24).is_ok()
    }

    fn apply(&mut self, proposal: &[u8]) -> Result<Vec<u8>, AppError> {
        let ask: Ask = raft::codec::decode(proposal, 1 << 24).map_err(failed)?;
        let texts = Arc::make_mut(&mut self.0);
        let place = match ask {
            Ask::Poison => return Err(AppError("it is poisoned".into())),
            Ask::Members(members) => {
                texts.members = members;
                0
            }
            Ask::Text(request, text) => {
                let Texts { list, requests, .. } = texts;
                *requests.entry(request).or_insert_with(|| {
                    list.push(text);
                    list.len() - 1
                })
            }
        };
        Ok(u64::try_from(place).unwrap().to_be_bytes().to_vec())
    }

    fn view(&self) -> Arc<Texts> {
        Arc::clone(&self.0)
    }

    fn snapshot(view: &Arc<Texts>) -> Vec<u8> {
        raft::codec::encode(&**view)
    }

    fn restore(snapshot: &[u8]) -> Result<Self, AppError> {
        let texts = raft::codec::decode(snapshot, 1 << 30).map_err(failed)?;
        Ok(Self(Arc::new(texts)))
    }

    fn members(&self) -> Members {
        let member = |zone: &String| Member {
            zone: zone.clone(),
            is_expected: false,
        };
        let members = self.0.members.iter();
        members.map(|(id, zone)| (*id, member(zone))).collect()
    }
}
