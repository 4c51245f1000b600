//! How much owners may have.

use crate::state::{
    model::State,
    names,
    quotas::Quota,
    response::{Kind, Outcome, Response},
};

pub(super) fn set(state: &mut State, owner: &str, said: Quota) -> Outcome {
    names::check_owner("owner", owner)?;
    let quota = state.quotas.entry(owner.to_owned()).or_default();
    *quota = quota.with(said);
    Ok(Response::Done)
}

pub(super) fn delete(state: &mut State, owner: &str) -> Outcome {
    match state.quotas.remove(owner) {
        Some(_) => Ok(Response::Done),
        None => Err(names::not_found(Kind::Quota, owner)),
    }
}
