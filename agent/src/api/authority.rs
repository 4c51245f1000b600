//! The cluster's authority and its replacement.

use std::{sync::Arc, time::SystemTime};

use proto::v1::{
    Authority as Message, AuthorityPhase, FinishAuthorityRequest, GetAuthorityRequest,
    NodeAuthority, ReplaceAuthorityRequest,
};
use qemu::failpoint;
use raft::state::{AuthorityCertificate, Command, Kind, Rejection, ReplacementPhase, State};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Api, asker::asked, cluster::internal, deadline, request_key};
use crate::{
    audit, convert,
    errors::ApiError,
    node::Node,
    trust::{
        authority::Authority,
        identity::DataDir,
        replacement::{self, Known},
    },
};

/// So long before the authority ends that is a problem, milliseconds: people's certificates have to be made anew, too.
const AHEAD_MS: u64 = 90 * 24 * 3_600_000;

impl Api {
    pub(super) async fn authority_of(
        &self,
        request: Request<GetAuthorityRequest>,
    ) -> Result<Response<Message>, Status> {
        let deadline = deadline(&request);
        Ok(Response::new(self.authority(deadline).await?))
    }

    pub(super) async fn replace(
        &self,
        request: Request<ReplaceAuthorityRequest>,
    ) -> Result<Response<Message>, Status> {
        let (by, deadline) = asked(&request)?;
        self.can_sign()?;
        let request = request.into_inner();
        let is_compromised = request.compromised;
        let key = request_key(&request, |request| &mut request.request_id);
        // One at a time, and not while the keeper is at it: each lays its key where the other's would be.
        let _turn = self.node.replacing.lock().await;
        let state = self.read(deadline).await?;
        let own = self.node.authority();
        let (new, cross) = own.successor().map_err(internal)?;
        let replacement = state.replacement.as_deref();
        let further = replacement.filter(|one| one.phase == ReplacementPhase::Renewing);
        let data = DataDir::new(self.node.vms.engine().layout.root());
        // Else it is refused, and what lies there may be what this node is about to sign with.
        let is_signing =
            replacement.is_none_or(|one| one.signing().fingerprint == own.fingerprint());
        let is_made = further.is_none() && is_signing && !self.was_carried_out(&by, &key);
        // The key is on disk before anybody counts on it.
        if is_made {
            data.stage_authority(&new).map_err(internal)?;
            failpoint::reached("authority.laid");
        }
        let command = Command::ReplaceAuthority {
            old: stated(own.certificate().to_vec())?,
            new: match further {
                Some(further) => further.new.clone(),
                None => stated(new.certificate().to_vec())?,
            },
            cross: cross.to_vec(),
            is_compromised,
        };
        let changed = self.change(&by, key, command, deadline).await;
        if is_made && matches!(changed, Err(ApiError::Rejected(_))) {
            data.unstage_authority().map_err(internal)?;
        }
        changed?;
        tracing::info!(is_compromised, "the cluster's authority is to be replaced");
        Ok(Response::new(self.authority(deadline).await?))
    }

    pub(super) async fn finish(
        &self,
        request: Request<FinishAuthorityRequest>,
    ) -> Result<Response<Message>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let force = request.force;
        audit::about(|| match force {
            true => "nodes that are not renewed are given up".to_owned(),
            false => "every node is renewed".to_owned(),
        });
        let key = request_key(&request, |request| &mut request.request_id);
        self.change(&by, key, Command::FinishAuthority { force }, deadline)
            .await?;
        Ok(Response::new(self.authority(deadline).await?))
    }

    async fn authority(&self, deadline: Instant) -> Result<Message, ApiError> {
        let state = self.read(deadline).await?;
        let own = stated(self.node.authority().certificate().to_vec())?;
        let online = self.node.leases.online();
        let is_online = |id| online.as_ref().is_some_and(|online| online.contains(&id));
        let node = |node: &Arc<raft::state::Node>| NodeAuthority {
            node: node.name.clone(),
            certificate: hex(node.trust.as_ref().map(|trust| trust.authority)),
            holds: hex(node.trust.as_ref().map(|trust| trust.holds)),
            online: is_online(node.id),
        };
        let mut message = Message {
            signing: Some(convert::authority_certificate(&own)),
            phase: AuthorityPhase::First.into(),
            nodes: state.nodes.values().map(node).collect(),
            ..Message::default()
        };
        if let Some(one) = &state.replacement {
            let phase = match one.phase {
                ReplacementPhase::Spreading => AuthorityPhase::Spreading,
                ReplacementPhase::Renewing => AuthorityPhase::Renewing,
                ReplacementPhase::Finished => AuthorityPhase::Finished,
            };
            let (signing, other) = match one.phase {
                ReplacementPhase::Spreading => (&one.old, &one.new),
                ReplacementPhase::Renewing | ReplacementPhase::Finished => (&one.new, &one.old),
            };
            message.signing = Some(convert::authority_certificate(signing));
            message.other = Some(convert::authority_certificate(other));
            message.phase = phase.into();
            message.compromised = one.is_compromised;
            message.began_at = Some(convert::timestamp(one.began_at));
            message.finished_at = one.finished_at.map(convert::timestamp);
        }
        Ok(message)
    }
}

fn hex(fingerprint: Option<[u8; 32]>) -> String {
    fingerprint.map_or_else(String::new, |bytes| crate::blobs::hex(&bytes))
}

fn stated(der: Vec<u8>) -> Result<AuthorityCertificate, ApiError> {
    replacement::certificate(der).map_err(ApiError::Internal)
}

/// What is wrong with the authority as a node knows it, one sentence each with what to do.
pub fn problems(node: &Node, state: &State) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(by) = node.peers.outdated() {
        problems.push(format!(
            "node {by} says that the cluster's authority was replaced without this node, whose certificate counts no more: on another node \
             remove it (fpagent node rm {} --force), take what you need out of its data directory, empty that, and join with a new token",
            node.identity.name
        ));
    }
    let known = state.replacement.as_deref();
    let signing = known.map(|one| one.signing().expires_at);
    let own = replacement::certificate(node.authority().certificate().to_vec());
    let ends = signing.or(own.ok().map(|own| own.expires_at));
    let is_open = known.is_some_and(raft::state::Replacement::is_open);
    problems.extend(
        ends.filter(|_| !is_open)
            .and_then(|ends| end_nears(ends, node.now())),
    );
    if let Some(one) = known.filter(|one| one.is_open()) {
        problems.push(under_way(one, state));
    }
    problems
}

/// What is to be said when the authority's end is near.
fn end_nears(ends_at: u64, now: u64) -> Option<String> {
    let ends = prost_types::Timestamp::from(
        SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(ends_at),
    );
    let what_to_do = "replace it (fpagent authority replace), see docs/authority.md";
    // Agents and `fpagent` go on: of whom they trust they ask no end.
    let and_then = "other programs refuse its certificates from then on";
    match ends_at.saturating_sub(now) {
        0 => Some(format!(
            "the cluster's authority ended on {ends}, and {and_then}: {what_to_do}"
        )),
        left => (left <= AHEAD_MS).then(|| {
            format!("the cluster's authority ends on {ends}, and {and_then}: {what_to_do}")
        }),
    }
}

fn under_way(one: &raft::state::Replacement, state: &State) -> String {
    let new = one.new.fingerprint;
    let is_behind = |node: &&Arc<raft::state::Node>| match one.phase {
        ReplacementPhase::Spreading => node.trust.as_ref().map(|trust| trust.holds) != Some(new),
        _ => node.trust.as_ref().map(|trust| trust.authority) != Some(new),
    };
    let behind = state.nodes.values().filter(is_behind);
    let behind: Vec<&str> = behind.map(|node| node.name.as_str()).collect();
    match (one.phase, behind.is_empty()) {
        (ReplacementPhase::Spreading, true) => {
            "the cluster's authority is being replaced, and every node has the new one: it signs in a moment".to_owned()
        }
        (ReplacementPhase::Spreading, false) => format!(
            "the cluster's authority is being replaced, and these nodes do not have the new one: {}; those that are offline are not waited for",
            behind.join(", ")
        ),
        (_, false) => format!(
            "the cluster's authority is being replaced, and these nodes have certificates of the old one: {}; start their agents (fpagent \
             run), or remove them (fpagent node rm)",
            behind.join(", ")
        ),
        (_, true) => "the cluster's authority is being replaced, and every node is renewed: have people's certificates made anew (fpagent \
                      cert ls), then fpagent authority finish"
            .to_owned(),
    }
}

/// Refuses while this node signs with another authority than the cluster: it takes that over by itself.
pub(super) fn check_signs(own: &Authority, known: Option<&Known>) -> Result<(), ApiError> {
    let signing = known.map(|known| known.replacement.signing().fingerprint);
    if signing.is_none_or(|signing| signing == own.fingerprint()) {
        return Ok(());
    }
    Err(ApiError::Rejected(Rejection::WrongState {
        kind: Kind::Authority,
        name: hex(Some(own.fingerprint())).chars().take(16).collect(),
        problem:
            "is the one before, and this node takes the new one over within seconds: try again"
                .to_owned(),
    }))
}

/// What is known of the authority's replacement: by a state, or by the node's own disk where that knows more.
pub fn known(node: &Node, state: &State) -> Option<Known> {
    let own = node.own.trusted.known();
    match (&state.replacement, own) {
        (None, own) => own,
        (Some(one), Some(own)) if own.replacement.is_newer(one) => Some(own),
        (Some(_), _) => Known::of(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_signs_with_the_one_before_is_told_to_wait() {
        use crate::trust::replacement::tests::replaced;
        let old = Authority::create(ulid::Ulid::from_parts(1, 1)).unwrap();
        assert!(check_signs(&old, None).is_ok());
        for (phase, is_old_good) in [
            (ReplacementPhase::Spreading, true),
            (ReplacementPhase::Renewing, false),
            (ReplacementPhase::Finished, false),
        ] {
            let (known, new) = replaced(&old, phase, true, &[]);
            assert_eq!(check_signs(&old, Some(&known)).is_ok(), is_old_good);
            assert_eq!(check_signs(&new, Some(&known)).is_ok(), !is_old_good);
        }
    }

    #[test]
    fn an_end_that_is_near_is_a_problem() {
        let now = 1_700_000_000_000;
        assert_eq!(end_nears(now + AHEAD_MS + 1, now), None);
        let near = end_nears(now + AHEAD_MS, now).unwrap();
        assert!(
            near.contains("ends on 2024-02-12") && near.contains("authority replace"),
            "{near}"
        );
        assert!(end_nears(now, now).unwrap().contains("ended on"));
    }
}
