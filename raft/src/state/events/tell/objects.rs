//! What happened to images, snapshots and operations.

use super::{Audience, Event, EventKind, Subject, Teller};
use crate::state::{
    model::{Image, Life, Operation, OperationKind, OperationState, Safety, Snapshot},
    owners::{Captured, EVERYONE, Ownership},
};

/// Who may see an object from now on (the first kind), and who may not any more (the second).
pub(super) fn sharing(
    then: &Ownership,
    now: &Ownership,
    (more, fewer): (EventKind, EventKind),
) -> Vec<(EventKind, String)> {
    let mut told = Vec::new();
    match (then.everyone, now.everyone) {
        (false, true) => told.push((more, EVERYONE.to_owned())),
        (true, false) => told.push((fewer, EVERYONE.to_owned())),
        _ => {}
    }
    let added = now.shared_with.difference(&then.shared_with);
    let removed = then.shared_with.difference(&now.shared_with);
    told.extend(added.map(|owner| (more, owner.clone())));
    told.extend(removed.map(|owner| (fewer, owner.clone())));
    told
}

/// How long something is kept, for people.
pub(super) fn life_text(life: Life) -> String {
    match life {
        Life::Unbounded => "until somebody deletes it".to_owned(),
        Life::Until(_) => "for a time".to_owned(),
        Life::Leased(lease) => format!("as long as lease {lease}"),
    }
}

impl Teller<'_> {
    pub(super) fn images(&mut self) {
        for (_, then, now) in self.after.images.differences(&self.before.images) {
            match (then, now) {
                (None, Some(now)) => {
                    let nodes = now.nodes.iter().map(|node| self.node_name(*node));
                    let node = nodes.collect::<Vec<_>>().join(",");
                    self.image_event(EventKind::ImageImported, now, String::new(), node);
                }
                (Some(then), None) => {
                    let none = String::new;
                    self.image_event(EventKind::ImageDeleted, then, none(), none());
                }
                (Some(then), Some(now)) => self.image(then, now),
                (None, None) => {}
            }
        }
    }

    fn image_event(&mut self, kind: EventKind, image: &Image, detail: String, node: String) {
        let audience = Audience::Of(image.ownership.clone());
        let event = self.event(kind, Subject::Image(image.id), audience);
        self.tell(Event {
            name: image.name.clone(),
            node,
            detail,
            ..event
        });
    }

    fn image(&mut self, then: &Image, now: &Image) {
        let told = self.told.len();
        for node in now.nodes.difference(&then.nodes) {
            let node = self.node_name(*node);
            self.image_event(EventKind::ImageHeld, now, String::new(), node);
        }
        let kinds = (EventKind::ImageShared, EventKind::ImageUnshared);
        for (kind, with) in sharing(&then.ownership, &now.ownership, kinds) {
            self.image_event(kind, now, with, String::new());
        }
        if self.told.len() == told {
            let none = String::new;
            self.image_event(EventKind::ImageChanged, now, none(), none());
        }
    }

    pub(super) fn snapshots(&mut self) {
        for (_, then, now) in self.after.snapshots.differences(&self.before.snapshots) {
            match (then, now) {
                (None, Some(now)) => {
                    self.snapshot_event(EventKind::SnapshotBegun, now, String::new());
                    if now.content.is_some() {
                        self.snapshot_event(EventKind::SnapshotReady, now, String::new());
                    }
                }
                (Some(then), None) => {
                    self.snapshot_event(EventKind::SnapshotDeleted, then, String::new());
                }
                (Some(then), Some(now)) => self.snapshot(then, now),
                (None, None) => {}
            }
        }
    }

    fn snapshot_event(&mut self, kind: EventKind, snapshot: &Snapshot, detail: String) {
        self.snapshot_event_on(kind, snapshot, detail, String::new());
    }

    fn snapshot_event_on(
        &mut self,
        kind: EventKind,
        snapshot: &Snapshot,
        detail: String,
        node: String,
    ) {
        let audience = Audience::Of(snapshot.ownership.clone());
        let event = self.event(kind, Subject::Snapshot(snapshot.id), audience);
        self.tell(Event {
            name: snapshot.name.clone().unwrap_or_default(),
            node,
            detail,
            vm: Some(snapshot.vm.clone()),
            ..event
        });
    }

    fn snapshot(&mut self, then: &Snapshot, now: &Snapshot) {
        let told = self.told.len();
        let is_new = then.content.is_none() && now.content.is_some();
        if is_new && let Some(content) = &now.content {
            let pause = match content.report.pause_us {
                0 => String::new(),
                us => format!("its VM stood still for {:.1} ms", us as f64 / 1e3),
            };
            let nodes = now.nodes.iter().map(|node| self.node_name(*node));
            let node = nodes.collect::<Vec<_>>().join(",");
            self.snapshot_event_on(EventKind::SnapshotReady, now, pause, node);
        }
        match (&then.name, &now.name) {
            (then, now) if then == now => {}
            (_, Some(_)) => self.snapshot_event(EventKind::SnapshotNamed, now, String::new()),
            (Some(name), None) => {
                self.snapshot_event(EventKind::SnapshotUnnamed, now, format!("it was {name}"));
            }
            (None, None) => {}
        }
        for node in now.nodes.difference(&then.nodes).filter(|_| !is_new) {
            let node = self.node_name(*node);
            self.snapshot_event_on(EventKind::SnapshotHeld, now, String::new(), node);
        }
        for node in then.nodes.difference(&now.nodes) {
            let node = self.node_name(*node);
            self.snapshot_event_on(EventKind::SnapshotLost, now, now.lost.clone(), node);
        }
        let is_on_disk = |snapshot: &Snapshot| {
            let content = snapshot.content.as_ref();
            content.is_some_and(|content| content.safety != Safety::Memory)
        };
        if is_on_disk(now) && !is_on_disk(then) {
            self.snapshot_event(EventKind::SnapshotSecured, now, String::new());
        }
        if then.warm != now.warm {
            self.snapshot_event(EventKind::SnapshotWarmed, now, now.warm.to_string());
        }
        let kinds = (EventKind::SnapshotShared, EventKind::SnapshotUnshared);
        for (kind, with) in sharing(&then.ownership, &now.ownership, kinds) {
            self.snapshot_event(kind, now, with);
        }
        if then.life != now.life {
            self.snapshot_event(EventKind::SnapshotKept, now, life_text(now.life));
        }
        if self.told.len() == told {
            self.snapshot_event(EventKind::SnapshotChanged, now, String::new());
        }
    }

    pub(super) fn operations_begun(&mut self) {
        for (_, then, now) in self.after.operations.differences(&self.before.operations) {
            if let (None, Some(now)) = (then, now) {
                self.operation_event(EventKind::OperationBegun, now, String::new());
            }
        }
    }

    pub(super) fn operations_changed(&mut self) {
        for (_, then, now) in self.after.operations.differences(&self.before.operations) {
            let Some(now) = now else {
                // It ended before, and is forgotten now.
                continue;
            };
            let is_open = then.is_none_or(|then| then.state == OperationState::Open);
            match &now.state {
                OperationState::Complete if is_open => {
                    let failed = now.results.values().filter(|one| !one.error.is_empty());
                    let detail = match failed.count() {
                        0 => String::new(),
                        failed => format!("{failed} of {} failed", now.count),
                    };
                    self.operation_event(EventKind::OperationComplete, now, detail);
                }
                OperationState::Failed { reason, .. } if is_open => {
                    self.operation_event(EventKind::OperationFailed, now, reason.clone());
                }
                _ => self.progress(then.map(|then| &**then), now),
            }
        }
    }

    fn progress(&mut self, then: Option<&Operation>, now: &Operation) {
        let Some(then) = then else {
            return;
        };
        if now.cancel_requested && !then.cancel_requested {
            self.operation_event(EventKind::OperationCancelling, now, String::new());
            return;
        }
        let known = format!("{} of {} known", now.results.len(), now.count);
        self.operation_event(EventKind::OperationProgressed, now, known);
    }

    fn operation_event(&mut self, kind: EventKind, operation: &Operation, more: String) {
        let what = match operation.kind {
            OperationKind::Snapshot => "snapshot".to_owned(),
            OperationKind::Fork => format!("fork, {} VMs", operation.count),
            OperationKind::Reset => "reset".to_owned(),
            OperationKind::Suspend => "suspend".to_owned(),
            OperationKind::Move => "move".to_owned(),
        };
        let detail = match more.as_str() {
            "" => what,
            more => format!("{what}: {more}"),
        };
        let vm = operation.vm.and_then(|vm| {
            let vms = self.after.vms.get(&vm);
            vms.or_else(|| self.before.vms.get(&vm))
        });
        let audience = Audience::Of(Ownership::of(&*operation.owner));
        let event = self.event(kind, Subject::Operation(operation.id), audience);
        self.tell(Event {
            node: self.node_name(operation.node),
            detail,
            vm: vm.map(|vm| Captured::of(vm)),
            ..event
        });
    }
}
