//! The one function that changes the state. Called by the state machine for every committed proposal, in order.
//!
//! Each command validates everything first and changes the state after that, so that a refusal leaves it as it was.

mod authority;
mod drain;
mod fork;
mod group;
mod ha;
mod image;
mod leaving;
mod life;
mod map;
mod membership;
mod moving;
mod operation;
mod placement;
mod quota;
mod removal;
mod replicas;
mod reset;
mod schedule;
mod settings;
mod share;
mod snapshot;
mod vm;

use super::{
    command::{Command, Proposal},
    events::Before,
    model::{Labels, Millis, State},
    owners::Actor,
    requests::RequestRecord,
    response::{Outcome, Rejection},
};

pub(super) use authority::revoke;
pub use fork::places_of_fork;
pub(super) use membership::add_node;
pub use placement::Wanted;
pub use removal::{dependents_of_image, dependents_of_snapshot};

/// How long a request id may be.
const MAX_REQUEST_ID: usize = 64;

/// How many labels an object may have.
const MAX_LABELS: usize = 64;

/// How long a label's key and value may be.
const MAX_LABEL: (usize, usize) = (63, 255);

/// How long a command line and the like may be.
const MAX_LINE: usize = 4096;

/// Applies a proposal.
///
/// A request that is known already is answered as it was the first time, accepted or refused, and does nothing. A refusal
/// leaves the state as it was, but for the record of the request.
pub fn apply(state: &mut State, proposal: &Proposal) -> Outcome {
    let Some(key) = &proposal.request else {
        return command(state, &proposal.by, proposal.now, &proposal.command);
    };
    if !is_request_id(&key.id) {
        return Err(invalid(
            "requestId",
            "must be 1 to 64 of A-Z, a-z, 0-9, _ and -",
        ));
    }
    if let Some(known) = state.requests.get(&proposal.by.owner, &key.id) {
        if known.body == key.body {
            return known.outcome.clone();
        }
        return Err(Rejection::RequestIdReused { id: key.id.clone() });
    }
    let outcome = command(state, &proposal.by, proposal.now, &proposal.command);
    state.requests.insert(
        &proposal.by.owner,
        &key.id,
        RequestRecord {
            body: key.body,
            outcome: outcome.clone(),
        },
    );
    outcome
}

/// Whether a request id has the right form.
fn is_request_id(id: &str) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Carries out a command, and notes what happened.
fn command(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let before = Before::of(state);
    let outcome = carry_out(state, by, now, command);
    // A refusal leaves the state as it was.
    if outcome.is_ok() {
        before.tell(state, now);
    }
    outcome
}

/// Sends each command to its place.
fn carry_out(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    match command {
        Command::Found {
            cluster,
            name,
            address,
        } => membership::found(state, now, *cluster, name, address),
        Command::CreateToken {
            id,
            key_hash,
            expires_at,
            authority,
        } => membership::create_token(state, now, *id, key_hash, *expires_at, *authority),
        Command::RevokeToken { id } => membership::revoke_token(state, id),
        Command::IssueCertificate { .. } => membership::issue_certificate(state, now, command),
        Command::RevokeCertificate { certificate } => {
            membership::revoke_certificate(state, now, certificate)
        }
        Command::ReplaceAuthority {
            old,
            new,
            cross,
            is_compromised,
        } => authority::replace(state, now, old, new, cross, *is_compromised),
        Command::SignWithNewAuthority { number, absent } => {
            authority::sign_with_new(state, *number, absent)
        }
        Command::FinishAuthority { force } => authority::finish(state, now, *force),
        Command::ReportTrust { node, trust } => authority::report_trust(state, *node, trust),
        Command::Join {
            key_hash,
            name,
            address,
            newest_version,
            start_by,
        } => membership::join(
            state,
            now,
            key_hash,
            name,
            address,
            *newest_version,
            *start_by,
        ),
        Command::WithdrawJoin { key_hash } => membership::withdraw_join(state, key_hash),
        Command::ForgetNewcomers => leaving::forget_newcomers(state, now),
        Command::ReportNode {
            node,
            address,
            capacity,
        } => membership::report_node(state, *node, address, capacity),
        Command::RaiseVersion { to } => membership::raise_version(state, *to),
        Command::MoveNode { node, address } => membership::move_node(state, *node, address),
        Command::DeleteNode { node, force } => leaving::delete_node(state, by, now, node, *force),
        Command::LabelNode { node, set, remove } => {
            membership::label_node(state, node, set, remove)
        }
        Command::CordonNode { node, schedulable } => {
            membership::cordon_node(state, node, *schedulable)
        }
        Command::DrainNode {
            node,
            voters,
            silent,
            force,
            rest,
        } => drain::drain_node(state, now, node, (voters, silent), *force, *rest),
        Command::WakeNode { node } => drain::wake(state, *node),
        Command::StayOnNode { node, vm, reason } => moving::stay_on_node(state, *node, *vm, reason),

        Command::ImportImage { .. } => image::import(state, by, now, command),
        Command::ReportImage { image, node } => image::report(state, *image, *node),
        Command::DeleteImage { image } => image::delete(state, by, now, image),

        Command::CreateVm { .. } => vm::create(state, by, now, command),
        Command::SetPower { vm, action } => vm::set_power(state, by, now, vm, *action),
        Command::DeleteVm { vm, force } => vm::delete(state, by, now, vm, *force),
        Command::ReportVms { node, reports } => vm::report(state, *node, reports),
        Command::ReportSteps { vm, boot, failed } => vm::report_steps(state, *vm, *boot, failed),

        Command::CreateSnapshot { .. } => fork::create_snapshot(state, by, now, command),
        Command::Fork { .. } => fork::fork(state, by, now, command),
        Command::ForkGroup { .. } => group::fork(state, by, now, command),
        Command::GroupCaptured { captured } => group::captured(state, now, captured),
        Command::ReportGroup { results } => group::report(state, now, results),
        Command::DeleteGroup { group, force } => group::delete(state, by, now, group, *force),
        Command::ResetVm { .. } => reset::reset(state, by, now, command),
        Command::SuspendVm { .. } => reset::suspend(state, by, now, command),
        Command::MoveVm { .. } => moving::begin(state, by, now, command),
        Command::Arrive { .. } => moving::arrive(state, now, command),
        Command::SnapshotReady { operation, content } => {
            operation::snapshot_ready(state, now, *operation, content)
        }
        Command::ReportChildren { operation, results } => {
            operation::report_children(state, now, *operation, results)
        }
        Command::FailOperation {
            operation,
            reason,
            cancelled,
        } => operation::give_up(state, now, *operation, reason, *cancelled),
        Command::CloseParts { node, reason } => operation::close_parts(state, now, *node, reason),
        Command::CancelOperation { operation } => operation::cancel_operation(state, by, operation),
        Command::TagSnapshot { snapshot, name } => snapshot::tag(state, by, snapshot, name),
        Command::WarmSnapshot {
            snapshot,
            vm,
            count,
        } => snapshot::warm(state, by, snapshot, vm.as_deref(), *count),
        Command::ReplicateSnapshot { .. } => replicas::replicate(state, by, command),
        Command::ProtectVm { .. } => ha::protect(state, by, now, command),
        Command::GuardVms { node, vms } => ha::guarded(state, *node, vms),
        Command::RestoreVms {
            node,
            silent_for,
            candidates,
        } => ha::restore(state, now, *node, *silent_for, candidates),
        Command::TakeScheduled { .. } => schedule::take(state, now, command),
        Command::PlaceCopies { candidates, lost } => replicas::place(state, candidates, lost),
        Command::DeleteSnapshot { snapshot } => removal::delete_snapshot(state, by, now, snapshot),
        Command::LostSnapshot {
            snapshot,
            node,
            reason,
        } => removal::lost_snapshot(state, now, *snapshot, *node, reason),
        Command::HoldSnapshot { snapshot, node } => snapshot::hold(state, now, *snapshot, *node),
        Command::SecureSnapshot {
            snapshot,
            node,
            checksums,
        } => snapshot::secure(state, now, *snapshot, *node, checksums),

        Command::CreateLease { id, ttl } => life::create(state, by, now, *id, *ttl),
        Command::RenewLease { lease } => life::renew(state, by, now, lease),
        Command::EndLease { lease } => life::end(state, by, now, lease),
        Command::SetLife { object, life } => life::set(state, by, now, object, *life),
        Command::Expire => life::expire(state, now),

        Command::StartMap { .. } => map::start(state, by, now, command),
        Command::PlaceMap {
            map,
            epoch,
            candidates,
        } => map::place(state, now, *map, *epoch, candidates),
        Command::TakeMap {
            map,
            node,
            epoch,
            lease,
        } => map::take(state, now, *map, (*node, *epoch), *lease),
        Command::ReportMap {
            map,
            epoch,
            results,
            note,
        } => map::report(state, *map, *epoch, results, note),
        Command::EndMap {
            map,
            epoch,
            failure,
            reduced,
        } => map::finish(
            state,
            now,
            (*map, *epoch),
            failure.as_deref(),
            reduced.as_ref(),
        ),
        Command::CancelMap { map } => map::cancel(state, by, now, map),
        Command::DeleteMap { map, force } => map::delete(state, by, now, map, *force),

        Command::Share { object, with, stop } => {
            share::share(state, by, object, with.as_deref(), *stop)
        }

        Command::SetQuota { owner, quota } => quota::set(state, owner, *quota),
        Command::DeleteQuota { owner } => quota::delete(state, owner),

        Command::Purged { node, objects } => removal::purged(state, *node, objects),
    }
}

fn invalid(field: &str, problem: impl Into<String>) -> Rejection {
    Rejection::InvalidField {
        field: field.to_owned(),
        problem: problem.into(),
    }
}

/// HOST:PORT, where a host in brackets may have colons of its own.
fn check_address(address: &str) -> Result<(), Rejection> {
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && address.len() <= 300
            && host.chars().all(|c| c.is_ascii_graphic())
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if good {
        Ok(())
    } else {
        Err(invalid("address", "must be HOST:PORT"))
    }
}

/// One line of text that goes onto a command line.
fn check_line(field: &str, line: &str) -> Result<(), Rejection> {
    if line.len() > MAX_LINE {
        return Err(invalid(field, format!("must be at most {MAX_LINE} bytes")));
    }
    if line.chars().any(char::is_control) {
        return Err(invalid(
            field,
            "must not hold line breaks or other control characters",
        ));
    }
    Ok(())
}

fn check_labels(labels: &Labels) -> Result<(), Rejection> {
    check_labels_in("labels", labels)
}

fn check_labels_in(field: &str, labels: &Labels) -> Result<(), Rejection> {
    if labels.len() > MAX_LABELS {
        return Err(invalid(field, format!("must be at most {MAX_LABELS}")));
    }
    let printable = |text: &str| !text.chars().any(char::is_control);
    for (key, value) in labels {
        if key.is_empty() || key.len() > MAX_LABEL.0 || !printable(key) {
            return Err(invalid(
                field,
                format!("a key must be 1 to {} printable bytes", MAX_LABEL.0),
            ));
        }
        if value.len() > MAX_LABEL.1 || !printable(value) {
            return Err(invalid(
                field,
                format!("a value must be at most {} printable bytes", MAX_LABEL.1),
            ));
        }
    }
    Ok(())
}
