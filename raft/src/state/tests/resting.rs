//! Nodes whose VMs are suspended while their host is restarted.

use super::*;

impl World {
    fn rest(&mut self, node: &str) {
        self.ok(Command::DrainNode {
            node: node.into(),
            voters: vec![1, 2, 3],
            silent: Vec::new(),
            force: false,
            rest: true,
        });
    }

    fn suspend(&mut self, vm: &str) {
        let operation = OperationId(self.id());
        self.ok(Command::SuspendVm {
            operation,
            vm: vm.into(),
            mode: CaptureMode::Auto,
            expires_at: self.now + 60_000,
        });
        self.ready(operation);
        self.children(operation, &[(0, "")]);
    }

    fn is_drained(&self) -> bool {
        self.state.is_drained(&self.state.nodes[&1])
    }
}

fn world() -> World {
    let mut world = World::new();
    world.ok(Command::CordonNode {
        node: "n2".into(),
        schedulable: false,
    });
    for vm in ["a", "b", "c"] {
        world.running(vm);
    }
    world
}

#[test]
fn what_is_suspended_for_that_is_known_until_it_goes_on() {
    let mut world = world();
    world.suspend("c");
    world.power("b", PowerAction::Pause).unwrap();
    let b = world.find("b").id;
    world.report(b, Phase::Paused);
    world.rest("n1");
    assert!(!world.state.nodes[&1].schedulable && !world.is_drained());
    world.suspend("a");
    assert!(!world.is_drained());
    world.suspend("b");
    assert!(world.is_drained());
    let from = |world: &World| ["a", "b", "c"].map(|vm| world.find(vm).rests_from);
    let (running, paused) = (Some(Power::Running), Some(Power::Paused));
    assert_eq!(from(&world), [running, paused, None]);

    world.ok(Command::WakeNode { node: 1 });
    assert!(world.state.nodes[&1].schedulable && world.state.nodes[&1].drain.is_none());
    assert_eq!(from(&world), [running, paused, None]);
    // Somebody is quicker.
    world.power("b", PowerAction::Stop).unwrap();
    let operation = OperationId(world.id());
    world.ok(Command::ResetVm {
        operation,
        vm: "a".into(),
        to: None,
        paused: false,
        expires_at: world.now + 60_000,
    });
    world.children(operation, &[(0, "")]);
    assert_eq!(from(&world), [None, None, None]);
}

#[test]
fn it_is_as_it_was_before_and_a_drain_is_not_woken() {
    let mut world = world();
    let cordon = |schedulable| Command::CordonNode {
        node: "n1".into(),
        schedulable,
    };
    let wake = Command::WakeNode { node: 1 };
    world.ok(cordon(false));
    world.rest("n1");
    world.rest("n1");
    world.ok(wake.clone());
    assert!(!world.state.nodes[&1].schedulable && world.state.nodes[&1].drain.is_none());
    world.ok(cordon(true));
    world.drain("n1");
    world.ok(wake.clone());
    assert!(world.state.nodes[&1].drain.is_some());
    world.rest("n1");
    world.ok(cordon(true));
    world.ok(wake);
    assert!(world.state.nodes[&1].schedulable);
}
