//! What happened to VMs.

use super::{Audience, Event, EventKind, Subject, Teller};
use crate::state::model::{Phase, Power, Source, Vm};

impl Teller<'_> {
    pub(super) fn vms(&mut self) {
        for (_, then, now) in self.after.vms.all().differences(&self.before.vms) {
            match (then, now) {
                (None, Some(now)) => {
                    let how = match now.source {
                        Source::Image => "from its image",
                        Source::Snapshot(_) => "forked",
                    };
                    self.vm_event(EventKind::VmCreated, now, how.to_owned());
                    if now.phase != Phase::Pending {
                        self.phase(now);
                    }
                }
                (Some(then), None) => {
                    let is_given_up = !self.after.nodes.contains_key(&then.node);
                    let why = if is_given_up {
                        "given up with its node"
                    } else {
                        ""
                    };
                    self.vm_event(EventKind::VmDeleted, then, why.to_owned());
                }
                (Some(then), Some(now)) => self.vm(then, now),
                (None, None) => {}
            }
        }
    }

    pub(super) fn vm_event(&mut self, kind: EventKind, vm: &Vm, detail: String) {
        let audience = Audience::Of(vm.ownership.clone());
        let event = self.event(kind, Subject::Vm(vm.id), audience);
        self.tell(Event {
            name: vm.name.clone(),
            node: self.node_name(vm.node),
            detail,
            ..event
        });
    }

    fn vm(&mut self, then: &Vm, now: &Vm) {
        let told = self.told.len();
        if let Some(restored) = &now.restored
            && then.restored != now.restored
        {
            let (from, lost) = (self.node_name(restored.from), restored.lost());
            let seconds = lost / 1000;
            let detail = format!("from {from}: the last {seconds} s before that was lost are lost");
            self.vm_event(EventKind::VmRestored, now, detail);
        } else if then.node != now.node {
            let from = format!("from {}", self.node_name(then.node));
            self.vm_event(EventKind::VmMoved, now, from);
        }
        let run = |vm: &Vm| (vm.phase, vm.reported_boot, vm.restarts);
        let has_changed = run(then) != run(now);
        if then.power != now.power && (!has_changed || now.phase == Phase::Pending) {
            let power = match now.power {
                Power::Running => "running",
                Power::Paused => "paused",
                Power::Stopped { force: false } => "stopped",
                Power::Stopped { force: true } => "stopped at once",
                Power::Suspended => "suspended",
            };
            self.vm_event(EventKind::VmWanted, now, power.to_owned());
        }
        let goes = matches!(now.phase, Phase::Running | Phase::Paused);
        if then.is_going_back && now.boot > then.boot && goes {
            self.vm_event(EventKind::VmReset, now, String::new());
        } else if has_changed || (then.boot != now.boot && now.phase == Phase::Pending) {
            self.phase(now);
        }
        if !now.failed_steps.is_empty() && then.failed_steps != now.failed_steps {
            self.vm_event(EventKind::VmUnready, now, now.failed_steps.join("; "));
        }
        let sharing = (EventKind::VmShared, EventKind::VmUnshared);
        for (kind, with) in super::objects::sharing(&then.ownership, &now.ownership, sharing) {
            self.vm_event(kind, now, with);
        }
        if then.life != now.life {
            self.vm_event(EventKind::VmKept, now, super::objects::life_text(now.life));
        }
        let is_told = self.told.len() > told;
        // An operation marks what it works on; that is told as the operation.
        let unmarked = |vm: &Vm| Vm {
            is_going_back: false,
            ..vm.clone()
        };
        if !is_told && unmarked(then) != unmarked(now) {
            self.vm_event(EventKind::VmChanged, now, now.reason.clone());
        }
    }

    fn phase(&mut self, vm: &Vm) {
        let kind = match vm.phase {
            Phase::Pending => EventKind::VmStarting,
            Phase::Running => EventKind::VmRunning,
            Phase::Paused => EventKind::VmPaused,
            Phase::Stopped => EventKind::VmStopped,
            Phase::Failed => EventKind::VmFailed,
            Phase::Suspended => EventKind::VmSuspended,
            Phase::Restarting => EventKind::VmRestarting,
        };
        let ended = vm
            .ending
            .as_ref()
            .filter(|_| !matches!(vm.phase, Phase::Running | Phase::Pending));
        let why = match (vm.reason.as_str(), ended) {
            ("", Some(ending)) => ending.detail.clone(),
            (reason, _) => reason.to_owned(),
        };
        self.vm_event(kind, vm, why);
    }
}
