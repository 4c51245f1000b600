//! Who asks: on whose behalf a call is, and until when its caller waits.

use raft::state::{Actor, LOCAL_OWNER, Role, names};
use tokio::time::Instant;
use tonic::Request;

use super::{deadline, role};
use crate::{audit, errors::ApiError, trust::tls::server::PeerRole};

/// On whose behalf a call is; `None` for those of nodes and newcomers, which speak for nobody.
pub fn actor(role: &PeerRole) -> Option<Actor> {
    match role {
        PeerRole::Local => Some(Actor::admin(LOCAL_OWNER)),
        PeerRole::User(user) => Some(Actor {
            owner: user.owner.clone(),
            is_admin: user.role == Role::Admin,
        }),
        PeerRole::Node(_) | PeerRole::Joiner { .. } => None,
    }
}

/// On whose behalf a call is, and when its caller stops waiting.
///
/// # Errors
/// `NotAllowed`: it is nobody's. Such a call does not come this far.
pub fn asked<T>(request: &Request<T>) -> Result<(Actor, Instant), ApiError> {
    let by = role(request).and_then(actor).ok_or_else(|| {
        ApiError::NotAllowed("only users of the cluster have VMs, images and snapshots".to_owned())
    })?;
    Ok((by, deadline(request)))
}

/// For whom something is made: the caller, or the owner whom an administrator says.
///
/// # Errors
/// Somebody else says another owner, or it is no name.
pub fn for_owner(by: Actor, owner: &str) -> Result<Actor, ApiError> {
    if owner.is_empty() || owner == by.owner {
        return Ok(by);
    }
    if !by.is_admin {
        audit::about(|| format!("owner {owner}"));
        let problem = format!(
            "only administrators make something for others than {}",
            by.owner
        );
        return Err(ApiError::NotAllowed(problem));
    }
    names::check_owner("owner", owner)?;
    Ok(Actor::admin(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_administrators_make_something_for_others() {
        let made_for = |by: Actor, owner: &str| for_owner(by, owner).map(|by| by.owner);
        assert_eq!(made_for(Actor::user("ann"), "").unwrap(), "ann");
        assert_eq!(made_for(Actor::user("ann"), "ann").unwrap(), "ann");
        assert_eq!(made_for(Actor::admin("ada"), "ann").unwrap(), "ann");
        let refused = made_for(Actor::user("ann"), "bob").unwrap_err();
        assert!(matches!(refused, ApiError::NotAllowed(_)), "{refused}");
        assert!(made_for(Actor::admin("ada"), "A b").is_err());
    }
}
