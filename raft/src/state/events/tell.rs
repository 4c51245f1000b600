//! What a command did, told by comparing the state before it with the one after it. So no command can forget to tell, and what is told
//! is what really changed. Called by `apply` for each command that was accepted.
//!
//! Silent are: what keeps something as it is (a lease that is renewed), records of what is over and is forgotten (operations,
//! tombstones, requests), marks that go with an operation, and a map's results, which are asked for by themselves.

mod maps;
mod objects;
mod vm;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Audience, Event, EventKind, Subject};
use crate::state::{
    authority::{Replacement, ReplacementPhase},
    ids::{
        CertificateId, ClusterId, ImageId, LeaseId, MapId, NodeId, OperationId, SnapshotId,
        TokenId, VmId,
    },
    model::{DrainHow, Image, Map, Millis, Node, Operation, Snapshot, State, Vm},
    owners::Ownership,
    quotas::Quota,
    shared_map::SharedMap,
};

/// How long a detail may be, bytes: objects have the whole text, and events are many.
const MOST_DETAIL: usize = 300;

/// A state before a command, as far as its changes are told. Making one costs what copying the state does, or less.
pub struct Before {
    cluster: Option<ClusterId>,
    version: u32,
    replacement: Option<Arc<Replacement>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Those that are drained and have no VM any more.
    drained: BTreeSet<NodeId>,
    tokens: BTreeMap<TokenId, Option<NodeId>>,
    /// Whether each was revoked.
    certificates: BTreeMap<CertificateId, bool>,
    quotas: BTreeMap<String, Quota>,
    /// Their owners.
    leases: BTreeMap<LeaseId, String>,
    images: SharedMap<ImageId, Arc<Image>>,
    vms: SharedMap<VmId, Arc<Vm>>,
    snapshots: SharedMap<SnapshotId, Arc<Snapshot>>,
    operations: SharedMap<OperationId, Arc<Operation>>,
    maps: SharedMap<MapId, Arc<Map>>,
}

impl Before {
    /// A state as it is.
    pub fn of(state: &State) -> Self {
        let leases = state.leases.iter();
        let certificates = state.certificates.iter();
        let is_revoked = certificates.map(|(id, one)| (*id, one.revoked_at.is_some()));
        Self {
            cluster: state.cluster,
            version: state.version,
            replacement: state.replacement.clone(),
            nodes: state.nodes.clone(),
            drained: drained(state),
            tokens: state
                .tokens
                .iter()
                .map(|(id, one)| (*id, one.node))
                .collect(),
            certificates: is_revoked.collect(),
            quotas: state.quotas.clone(),
            leases: leases
                .map(|(id, lease)| (*id, lease.owner.clone()))
                .collect(),
            images: (*state.images).clone(),
            vms: state.vms.all().clone(),
            snapshots: (*state.snapshots).clone(),
            operations: state.operations.clone(),
            maps: (*state.maps).clone(),
        }
    }

    /// Notes in the state what has happened since, at this time.
    pub fn tell(self, state: &mut State, at: Millis) {
        let mut teller = Teller {
            before: &self,
            after: state,
            at,
            told: Vec::new(),
        };
        teller.all();
        for event in teller.told {
            state.events.push(event);
        }
    }
}

fn drained(state: &State) -> BTreeSet<NodeId> {
    let nodes = state.nodes.values();
    nodes
        .filter(|node| state.is_drained(node))
        .map(|node| node.id)
        .collect()
}

struct Teller<'a> {
    before: &'a Before,
    after: &'a State,
    at: Millis,
    told: Vec<Event>,
}

impl Teller<'_> {
    /// Causes come before what follows from them: an operation's beginning is the first, its end the last.
    fn all(&mut self) {
        self.cluster();
        self.trust();
        self.nodes();
        self.quotas();
        self.leases_made();
        self.images();
        self.maps_started();
        self.operations_begun();
        self.snapshots();
        self.vms();
        self.drained();
        self.operations_changed();
        self.maps_changed();
        self.leases_ended();
    }

    fn event(&self, kind: EventKind, subject: Subject, audience: Audience) -> Event {
        Event {
            at: self.at,
            kind,
            subject,
            name: String::new(),
            node: String::new(),
            detail: String::new(),
            audience,
            vm: None,
        }
    }

    fn tell(&mut self, mut event: Event) {
        let detail = &mut event.detail;
        detail.truncate(detail.floor_char_boundary(MOST_DETAIL));
        self.told.push(event);
    }

    /// A node's name, also of one that has just gone.
    fn node_name(&self, id: NodeId) -> String {
        let node = self
            .after
            .nodes
            .get(&id)
            .or_else(|| self.before.nodes.get(&id));
        node.map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    fn cluster(&mut self) {
        let (before, after) = (self.before, self.after);
        let mut told = Vec::new();
        if before.cluster != after.cluster {
            told.push((EventKind::ClusterFounded, String::new()));
        }
        if before.version != after.version {
            let detail = format!("version {}", after.version);
            told.push((EventKind::ClusterUpgraded, detail));
        }
        if let Some(now) = &after.replacement {
            let then = before.replacement.as_ref();
            if then.is_none_or(|then| (then.number, then.phase) != (now.number, now.phase)) {
                let kind = match now.phase {
                    ReplacementPhase::Spreading => EventKind::AuthoritySpreading,
                    ReplacementPhase::Renewing => EventKind::AuthorityRenewing,
                    ReplacementPhase::Finished => EventKind::AuthorityFinished,
                };
                told.push((kind, format!("replacement {}", now.number)));
            }
            if now.is_compromised && !then.is_some_and(|then| then.is_compromised) {
                told.push((EventKind::AuthorityCompromised, String::new()));
            }
        }
        for (kind, detail) in told {
            let event = self.event(kind, Subject::Cluster, Audience::Everybody);
            self.tell(Event { detail, ..event });
        }
    }

    /// Tokens and certificates. Nothing that lets anybody in is told.
    fn trust(&mut self) {
        let (before, after) = (self.before, self.after);
        let by = Audience::Administrators;
        for (id, token) in &after.tokens {
            let (kind, node) = match (before.tokens.get(id), token.node) {
                (None, None) => (EventKind::TokenCreated, None),
                (then, Some(node)) if then != Some(&Some(node)) => {
                    (EventKind::TokenUsed, Some(node))
                }
                _ => continue,
            };
            let event = self.event(kind, Subject::Token(*id), by.clone());
            let node = node.map(|node| self.node_name(node)).unwrap_or_default();
            self.tell(Event { node, ..event });
        }
        for id in before.tokens.keys() {
            if !after.tokens.contains_key(id) {
                let event = self.event(EventKind::TokenEnded, Subject::Token(*id), by.clone());
                self.tell(event);
            }
        }
        for (id, certificate) in &after.certificates {
            let is_revoked = certificate.revoked_at.is_some();
            let kind = match before.certificates.get(id) {
                None => EventKind::CertificateIssued,
                Some(false) if is_revoked => EventKind::CertificateRevoked,
                Some(_) => continue,
            };
            let event = self.event(kind, Subject::Certificate(*id), by.clone());
            self.tell(Event {
                name: certificate.name.clone(),
                detail: format!("owner {}, {:?}", certificate.owner, certificate.role)
                    .to_lowercase(),
                ..event
            });
        }
        for id in before.certificates.keys() {
            if !after.certificates.contains_key(id) {
                let subject = Subject::Certificate(*id);
                let event = self.event(EventKind::CertificateEnded, subject, by.clone());
                self.tell(event);
            }
        }
    }

    fn quotas(&mut self) {
        let (before, after) = (self.before, self.after);
        let set = after.quotas.iter();
        let set = set.filter(|(owner, quota)| before.quotas.get(*owner) != Some(quota));
        let gone = before.quotas.keys();
        let gone = gone.filter(|owner| !after.quotas.contains_key(*owner));
        let all = set.map(|(owner, _)| (EventKind::QuotaSet, owner));
        for (kind, owner) in all.chain(gone.map(|owner| (EventKind::QuotaDeleted, owner))) {
            self.of_owner(kind, Subject::Quota, owner, owner.clone());
        }
    }

    fn leases_made(&mut self) {
        for (id, lease) in &self.after.leases {
            if !self.before.leases.contains_key(id) {
                let subject = Subject::Lease(*id);
                self.of_owner(
                    EventKind::LeaseCreated,
                    subject,
                    &lease.owner,
                    String::new(),
                );
            }
        }
    }

    fn leases_ended(&mut self) {
        for (id, owner) in &self.before.leases {
            if !self.after.leases.contains_key(id) {
                self.of_owner(
                    EventKind::LeaseEnded,
                    Subject::Lease(*id),
                    owner,
                    String::new(),
                );
            }
        }
    }

    /// What happened to something that is one owner's only.
    fn of_owner(&mut self, kind: EventKind, subject: Subject, owner: &str, name: String) {
        let audience = Audience::Of(Ownership::of(owner));
        let event = self.event(kind, subject, audience);
        self.tell(Event { name, ..event });
    }

    fn nodes(&mut self) {
        let (before, after) = (self.before, self.after);
        for (id, now) in &after.nodes {
            match before.nodes.get(id) {
                Some(then) if then == now => {}
                Some(then) => self.node(then, now),
                None => self.node_event(EventKind::NodeJoined, now, now.address.clone()),
            }
        }
        for (id, then) in &before.nodes {
            if !after.nodes.contains_key(id) {
                self.node_event(EventKind::NodeRemoved, then, String::new());
            }
        }
    }

    fn node_event(&mut self, kind: EventKind, node: &Node, detail: String) {
        let event = self.event(kind, Subject::Node(node.id), Audience::Everybody);
        self.tell(Event {
            name: node.name.clone(),
            node: node.name.clone(),
            detail,
            ..event
        });
    }

    fn node(&mut self, then: &Node, now: &Node) {
        let mut told = |kind, detail: &str| self.node_event(kind, now, detail.to_owned());
        let has_started = then.capacity.is_none() && now.capacity.is_some();
        if then.address != now.address {
            told(EventKind::NodeMoved, &now.address);
        }
        if has_started {
            told(EventKind::NodeStarted, "");
        }
        if then.labels != now.labels {
            let keys: BTreeSet<&String> = then.labels.keys().chain(now.labels.keys()).collect();
            let changed = keys
                .into_iter()
                .filter(|key| then.labels.get(*key) != now.labels.get(*key));
            let changed: Vec<&str> = changed.map(String::as_str).collect();
            told(EventKind::NodeLabelled, &changed.join(","));
        }
        let since = |node: &Node| node.drain.as_ref().map(|drain| drain.since);
        if since(now).is_some() && since(now) != since(then) {
            let rests = now
                .drain
                .as_ref()
                .is_some_and(|drain| drain.how != DrainHow::Move);
            let how = if rests { "its VMs are suspended" } else { "" };
            told(EventKind::NodeDraining, how);
        } else if now.schedulable && (!then.schedulable || then.drain.is_some()) {
            told(EventKind::NodeUncordoned, "");
        } else if then.schedulable && !now.schedulable {
            told(EventKind::NodeCordoned, "");
        } else if then.drain.is_some() && now.drain.is_none() {
            // It takes nothing new, and goes on with what it has.
            told(EventKind::NodeCordoned, "not drained any more");
        }
        if !has_started && then.capacity != now.capacity {
            told(EventKind::NodeChanged, "what it has");
        }
        if then.trust != now.trust {
            told(EventKind::NodeChanged, "its certificate");
        }
        let stays = now.drain.iter().flat_map(|drain| &drain.stays);
        let knew = |vm: &VmId| then.drain.as_ref().and_then(|drain| drain.stays.get(vm));
        let new: Vec<_> = stays.filter(|(vm, why)| knew(vm) != Some(why)).collect();
        for (vm, why) in new {
            if let Some(vm) = self.after.vms.get(vm) {
                self.vm_event(EventKind::VmStays, vm, why.clone());
            }
        }
    }

    fn drained(&mut self) {
        for id in drained(self.after).difference(&self.before.drained) {
            if let Some(node) = self.after.nodes.get(id) {
                self.node_event(EventKind::NodeDrained, node, String::new());
            }
        }
    }
}
