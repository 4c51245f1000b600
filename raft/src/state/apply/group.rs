//! Groups: VMs that live together, with a network between them, and are forked together, at one instant.
//!
//! There is nothing of a group but its members ([`InGroup`]): it begins with the first and goes with the last. Its fork is one fork for
//! each member, which the state has as operations of their own; they begin in one entry, what was captured is told in one, what became of all
//! children in one, and when one fails all do.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    fork::{self, Begun, Origin},
    invalid, life, operation,
    placement::{self, Wanted},
    schedule, vm,
};
use crate::state::{
    MAX_CHILDREN, MAX_MEMBERS,
    command::{Command, Constraints, Placing},
    ids::{NodeId, OperationId, VmId},
    model::{
        ChildResult, Content, Image, InGroup, Labels, Millis, OperationKind, Phase, Power, State,
        Vm, VmSpec,
    },
    names,
    owners::{Actor, Owned as _},
    response::{Kind, Outcome, Rejection, Response},
};

/// The place of a VM that is to be in a group.
pub(super) struct Joined {
    pub(super) group: InGroup,
    /// Where the others are; `None` for the first.
    pub(super) node: Option<NodeId>,
}

/// The place of a new VM in a group of its owner's, which it begins where there is none.
pub(super) fn join(state: &State, by: &Actor, name: &str, vm: VmId) -> Result<Joined, Rejection> {
    let members = members(state, &by.owner, name);
    let taken: BTreeSet<u32> = members.iter().map(|(group, _)| group.number).collect();
    let free = (1..=MAX_MEMBERS).find(|number| !taken.contains(number));
    let number = free.ok_or_else(|| Rejection::WrongState {
        kind: Kind::Group,
        name: name.to_owned(),
        problem: format!("has {MAX_MEMBERS} members, and may not have more"),
    })?;
    let first = members.first();
    Ok(Joined {
        group: InGroup {
            id: first.map_or(vm, |(group, _)| group.id),
            name: name.to_owned(),
            number,
        },
        node: first.map(|(_, vm)| vm.node),
    })
}

/// The members of an owner's group, in the order of their ids.
fn members<'a>(state: &'a State, owner: &str, name: &str) -> Vec<(&'a InGroup, &'a Arc<Vm>)> {
    let all = state.vms.values().filter(|vm| vm.ownership.owner == owner);
    let of_it = all.filter_map(|vm| Some((vm.group.as_ref()?, vm)));
    of_it.filter(|(group, _)| group.name == name).collect()
}

/// The node of a VM whose group is there already.
pub(super) fn beside(
    state: &State,
    wanted: &Wanted<'_>,
    asked: Option<&str>,
    with: NodeId,
    spec: &VmSpec,
    image: &Image,
) -> Result<NodeId, Rejection> {
    let node = state.nodes.get(&with);
    let name = node.map_or_else(|| with.to_string(), |node| node.name.clone());
    if let Some(asked) = asked
        && names::node(state, asked)?.id != with
    {
        let problem =
            format!("the group's members are on node {name}, and all of them live together");
        return Err(invalid("node", problem));
    }
    placement::of_vm(state, wanted, Some(&name), spec, image)
}

/// Refuses what would take a member away from the others.
pub(super) fn check_alone(vm: &Vm) -> Result<(), Rejection> {
    match &vm.group {
        None => Ok(()),
        Some(group) => Err(Rejection::WrongState {
            kind: Kind::Vm,
            name: vm.name.clone(),
            problem: group.why_it_stays(),
        }),
    }
}

pub(super) fn fork(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::ForkGroup {
        operation,
        group,
        count,
        name,
        mode,
        life: how_long,
        candidates,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    if !(1..=MAX_CHILDREN).contains(count) {
        return Err(invalid("count", format!("must be 1 to {MAX_CHILDREN}")));
    }
    if let Some(name) = name {
        names::check_name("name", name)?;
    }
    names::check_owner("owner", &by.owner)?;
    life::check(state, by, &by.owner, now, *how_long)?;
    let members: Vec<Arc<Vm>> = names::group(state, by, group)?
        .into_iter()
        .map(Arc::clone)
        .collect();
    let found = members.first().and_then(|vm| vm.group.clone());
    let group = found.ok_or_else(|| names::not_found(Kind::Group, group))?;
    let copies = copies(state, &by.owner, &group, &members, name.as_deref(), *count)?;
    let (labels, constraints) = (Labels::new(), Constraints::default());
    // What the members before it take counts for each. Nothing is kept of it when one is refused.
    let mut next = state.clone();
    for (part, member) in (0..).zip(&members) {
        let id = operation.part(part);
        fork::check_operation_id(&next, id, *count)?;
        fork::check_capturable(&next, member)?;
        let origin = Origin::of_vm(Arc::clone(member), id);
        let moment = origin.moment(&next);
        let wanted = Wanted {
            by,
            labels: &labels,
            constraints: &constraints,
            candidates,
            count: *count,
        };
        let places = placement::of_forks(&next, &moment, &Placing::WithSource, &wanted)?;
        let template = Vm {
            life: *how_long,
            own_bytes: moment.own_bytes(),
            power: match member.power {
                Power::Paused => Power::Paused,
                Power::Running | Power::Stopped { .. } | Power::Suspended => Power::Running,
            },
            ..origin.first_child(id, &by.owner, now)
        };
        next.check_quota(&by.owner, origin.usage(*count))?;
        let children = (0..*count).zip(places).zip(&copies);
        let children = children.map(|((index, node), copy)| Vm {
            name: copy.member(member),
            node,
            group: member.group.as_ref().map(|of| InGroup {
                id: operation.child(index),
                name: copy.name.clone(),
                number: of.number,
            }),
            ..template.clone()
        });
        let begun = Begun {
            kind: OperationKind::Fork,
            owner: by.owner.clone(),
            mode: *mode,
            count: *count,
            paused: false,
            to: None,
            expires_at: *expires_at,
            group: Some(*operation),
        };
        fork::make(&mut next, now, id, &origin, children.collect(), begun)?;
    }
    *state = next;
    Ok(Response::Operation(*operation))
}

/// A copy of a group that is to be made.
struct CopyOf {
    name: String,
    /// What is behind the names of its members, or before them.
    how: Naming,
}

/// How the members of a copy are called.
enum Naming {
    /// `MEMBER-NUMBER`.
    Numbered(u32),
    /// `COPY-MEMBER`.
    Prefixed,
}

impl CopyOf {
    fn member(&self, vm: &Vm) -> String {
        match self.how {
            Naming::Numbered(number) => format!("{}-{number}", vm.name),
            Naming::Prefixed => format!("{}-{}", self.name, vm.name),
        }
    }
}

/// The copies of a group: with a name, that one with numbers behind it, or alone for a single one, before their members' names; without, the
/// group's own and its members', with the numbers behind them that are free for all of these.
fn copies(
    state: &State,
    owner: &str,
    group: &InGroup,
    members: &[Arc<Vm>],
    asked: Option<&str>,
    count: u32,
) -> Result<Vec<CopyOf>, Rejection> {
    let groups: BTreeSet<&str> = state
        .vms
        .values()
        .filter(|vm| vm.ownership.owner == owner)
        .filter_map(|vm| Some(vm.group.as_ref()?.name.as_str()))
        .collect();
    let taken = |copy: &CopyOf| {
        if groups.contains(copy.name.as_str()) {
            return Some((Kind::Group, copy.name.clone()));
        }
        let mut names = members.iter().map(|vm| copy.member(vm));
        let vm = names.find(|name| state.vms.named(owner, name).is_some())?;
        Some((Kind::Vm, vm))
    };
    let copies: Vec<CopyOf> = match asked {
        Some(name) => {
            let named = (1..=count).map(|number| CopyOf {
                name: match count {
                    1 => name.to_owned(),
                    _ => format!("{name}-{number}"),
                },
                how: Naming::Prefixed,
            });
            let named: Vec<CopyOf> = named.collect();
            if let Some((kind, name)) = named.iter().find_map(taken) {
                return Err(Rejection::NameTaken { kind, name });
            }
            named
        }
        None => {
            let numbered = (1u32..).map(|number| CopyOf {
                name: format!("{}-{number}", group.name),
                how: Naming::Numbered(number),
            });
            let free = numbered.filter(|copy| taken(copy).is_none());
            free.take(count as usize).collect()
        }
    };
    let of_copy = |copy: &CopyOf| members.iter().map(|vm| copy.member(vm)).collect::<Vec<_>>();
    let mut all: Vec<String> = copies.iter().flat_map(of_copy).collect();
    all.sort();
    // Members may be called so that those of one copy would meet another's.
    if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        let problem = format!("two members of the copies would be called {:?}", twice[0]);
        return Err(invalid("name", problem));
    }
    all.extend(copies.iter().map(|copy| copy.name.clone()));
    fork::check_names(&all)?;
    Ok(copies)
}

/// The other operations that fork a group with this one.
pub(super) fn others(state: &State, id: OperationId) -> Vec<OperationId> {
    let group = state.operations.get(&id).and_then(|one| one.group);
    let parts = state.parts_of_group(group);
    parts.into_iter().filter(|part| *part != id).collect()
}

impl State {
    /// The operations that fork a group together, of which this is the first; none for none.
    pub fn parts_of_group(&self, first: Option<OperationId>) -> Vec<OperationId> {
        let Some(first) = first else {
            return Vec::new();
        };
        let all = self.operations.range(first..first.part(MAX_MEMBERS));
        let of_it = all.filter(|(_, one)| one.group == Some(first));
        of_it.map(|(id, _)| *id).collect()
    }
}

/// What all members of a group were captured as, at one instant: all of it is taken, or nothing.
pub(super) fn captured(
    state: &mut State,
    now: Millis,
    captured: &[(OperationId, Content)],
) -> Outcome {
    let Some((first, _)) = captured.first() else {
        return Err(invalid("captured", "must name operations"));
    };
    let mut expected = others(state, *first);
    expected.push(*first);
    let told: BTreeSet<OperationId> = captured.iter().map(|(id, _)| *id).collect();
    if told != expected.into_iter().collect() || told.len() != captured.len() {
        return Err(invalid("captured", "must be of all members of one group"));
    }
    let mut next = state.clone();
    for (id, content) in captured {
        operation::ready(&mut next, now, *id, content, true)?;
    }
    *state = next;
    Ok(Response::Done)
}

/// Never refused: the operations may have ended.
pub(super) fn report(
    state: &mut State,
    now: Millis,
    results: &[(OperationId, Vec<(u32, ChildResult)>)],
) -> Outcome {
    for (id, results) in results {
        operation::report_children(state, now, *id, results)?;
    }
    Ok(Response::Done)
}

pub(super) fn delete(
    state: &mut State,
    by: &Actor,
    now: Millis,
    group: &str,
    force: bool,
) -> Outcome {
    let members: Vec<Arc<Vm>> = names::group(state, by, group)?
        .into_iter()
        .map(Arc::clone)
        .collect();
    for member in &members {
        member.check_ruled_by(by)?;
        let ended = matches!(member.phase, Phase::Stopped | Phase::Failed);
        if !force && !ended && matches!(member.power, Power::Running | Power::Paused) {
            return Err(Rejection::WrongState {
                kind: Kind::Group,
                name: group.to_owned(),
                problem: format!(
                    "has a member that is running, {}: stop it first, or use --force",
                    member.name
                ),
            });
        }
    }
    for member in members {
        schedule::forget(state, now, member.id);
        vm::remove(state, now, member.id);
    }
    Ok(Response::Done)
}
