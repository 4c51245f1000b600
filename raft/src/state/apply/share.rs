//! Who else may see and use an object.

use std::sync::Arc;

use crate::state::{
    command::ObjectName,
    model::State,
    names,
    owners::{Actor, Owned, Ownership},
    response::{Outcome, Rejection, Response},
};

/// With how many owners an object may be shared one by one.
const MAX_SHARED: usize = 64;

pub(super) fn share(
    state: &mut State,
    by: &Actor,
    object: &ObjectName,
    with: Option<&str>,
    stop: bool,
) -> Outcome {
    if let Some(with) = with {
        names::check_owner("with", with)?;
    }
    match object {
        ObjectName::Image(name) => {
            let id = ruled(names::image(state, by, name)?, by, with, stop)?.id;
            if let Some(image) = state.images.get_mut(&id) {
                set(Arc::make_mut(image).ownership_mut(), with, stop);
            }
            Ok(Response::Image(id))
        }
        ObjectName::Vm(name) => {
            let id = ruled(names::vm(state, by, name)?, by, with, stop)?.id;
            state
                .vms
                .change(&id, |vm| set(vm.ownership_mut(), with, stop));
            Ok(Response::Vm(id))
        }
        ObjectName::Snapshot(name) => {
            let id = ruled(names::snapshot(state, by, name)?, by, with, stop)?.id;
            if let Some(snapshot) = state.snapshots.get_mut(&id) {
                set(Arc::make_mut(snapshot).ownership_mut(), with, stop);
            }
            Ok(Response::Snapshot(id))
        }
    }
}

/// The object, unless it is another's or is shared with too many.
fn ruled<'a, T: Owned>(
    found: &'a Arc<T>,
    by: &Actor,
    with: Option<&str>,
    stop: bool,
) -> Result<&'a Arc<T>, Rejection> {
    found.check_ruled_by(by)?;
    let shared = &found.ownership().shared_with;
    let is_more = with.is_some_and(|with| !stop && !shared.contains(with));
    if is_more && shared.len() >= MAX_SHARED {
        return Err(super::invalid(
            "with",
            format!("it is shared with {MAX_SHARED} owners already: share it with everyone"),
        ));
    }
    Ok(found)
}

fn set(ownership: &mut Ownership, with: Option<&str>, stop: bool) {
    match (with, stop) {
        (None, stop) => ownership.everyone = !stop,
        // Its owner sees it in any case.
        (Some(with), false) if with != ownership.owner => {
            ownership.shared_with.insert(with.to_owned());
        }
        (Some(_), false) => {}
        (Some(with), true) => {
            ownership.shared_with.remove(with);
        }
    }
}
