//! Owners: on whose behalf something is asked for, whose an object is, and who else may see it.
//!
//! An owner is a name. Nothing has to be made of one: it is there as soon as a certificate or an object says it.

use std::collections::BTreeSet;

use super::{
    ids::VmId,
    model::{Image, Map, Operation, Snapshot, State, Vm},
    response::{Kind, Rejection},
};

/// Whose is what is asked for through the Unix socket, and what nodes do by themselves.
pub const LOCAL_OWNER: &str = "admin";

/// What stands for all owners where one can be named.
pub const EVERYONE: &str = "everyone";

/// On whose behalf something is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The owner that it is for: what is made is this one's, and bare names are this one's first.
    pub owner: String,
    /// Whether everybody's objects are there for it, as they are for an administrator.
    pub is_admin: bool,
}

impl Actor {
    /// A user of an owner.
    pub fn user(owner: impl Into<String>) -> Self {
        Self {
            owner: owner.into(),
            is_admin: false,
        }
    }

    /// An administrator on behalf of an owner.
    pub fn admin(owner: impl Into<String>) -> Self {
        Self {
            owner: owner.into(),
            is_admin: true,
        }
    }

    /// The cluster itself: what its nodes report and have to do.
    pub fn cluster() -> Self {
        Self::admin(LOCAL_OWNER)
    }

    /// Whether something of an owner is there for it that is shared with nobody.
    pub fn sees(&self, owner: &str) -> bool {
        self.is_admin || self.owner == owner
    }
}

/// Whose an object is, and who else may see it and use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// Whose it is.
    pub owner: String,
    /// Whether everybody may see it.
    pub everyone: bool,
    /// The owners that may see it.
    pub shared_with: BTreeSet<String>,
}

impl Ownership {
    /// Of an object that is shared with nobody.
    pub fn of(owner: impl Into<String>) -> Self {
        Self {
            owner: owner.into(),
            everyone: false,
            shared_with: BTreeSet::new(),
        }
    }

    /// Whether the object is there for somebody: it can be looked at, and used as far as a role allows.
    pub fn is_seen_by(&self, by: &Actor) -> bool {
        by.sees(&self.owner) || self.everyone || self.shared_with.contains(&by.owner)
    }

    /// Whether somebody may change the object, delete it, and say who sees it.
    pub fn is_ruled_by(&self, by: &Actor) -> bool {
        by.sees(&self.owner)
    }
}

/// What has an owner and a name.
pub trait Owned {
    /// What it is.
    const KIND: Kind;
    /// Whose it is.
    fn ownership(&self) -> &Ownership;
    /// The same, to change it.
    fn ownership_mut(&mut self) -> &mut Ownership;
    /// Its name among those of its owner; its id when it has none.
    fn shown_name(&self) -> String;

    /// Its name as somebody has to say it.
    fn name_for(&self, by: &Actor) -> String {
        let name = self.shown_name();
        match &self.ownership().owner {
            owner if *owner == by.owner => name,
            owner => format!("{owner}/{name}"),
        }
    }

    /// Refuses what only its owner and administrators may do. For whom it is not there at all that has been said before.
    ///
    /// # Errors
    /// `NotOwner`.
    fn check_ruled_by(&self, by: &Actor) -> Result<(), Rejection> {
        if self.ownership().is_ruled_by(by) {
            return Ok(());
        }
        Err(Rejection::NotOwner {
            kind: Self::KIND,
            name: self.name_for(by),
        })
    }
}

impl Owned for Image {
    const KIND: Kind = Kind::Image;
    fn ownership(&self) -> &Ownership {
        &self.ownership
    }
    fn ownership_mut(&mut self) -> &mut Ownership {
        &mut self.ownership
    }
    fn shown_name(&self) -> String {
        self.name.clone()
    }
}

impl Owned for Vm {
    const KIND: Kind = Kind::Vm;
    fn ownership(&self) -> &Ownership {
        &self.ownership
    }
    fn ownership_mut(&mut self) -> &mut Ownership {
        &mut self.ownership
    }
    fn shown_name(&self) -> String {
        self.name.clone()
    }
}

impl Owned for Snapshot {
    const KIND: Kind = Kind::Snapshot;
    fn ownership(&self) -> &Ownership {
        &self.ownership
    }
    fn ownership_mut(&mut self) -> &mut Ownership {
        &mut self.ownership
    }
    fn shown_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.id.to_string())
    }
}

impl Owned for Map {
    const KIND: Kind = Kind::Map;
    fn ownership(&self) -> &Ownership {
        &self.ownership
    }
    fn ownership_mut(&mut self) -> &mut Ownership {
        &mut self.ownership
    }
    fn shown_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.id.to_string())
    }
}

/// The VM that something was captured from, as it was then. It may be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Its id.
    pub vm: VmId,
    /// Its name then.
    pub name: String,
    /// Whose it was.
    pub owner: String,
}

impl Captured {
    /// A VM as it is.
    pub fn of(vm: &Vm) -> Self {
        Self {
            vm: vm.id,
            name: vm.name.clone(),
            owner: vm.ownership.owner.clone(),
        }
    }

    /// Whether somebody may know of it. One that is gone is its owner's only, whoever it was shared with.
    pub fn is_seen_by(&self, state: &State, by: &Actor) -> bool {
        match state.vms.get(&self.vm) {
            Some(vm) => vm.ownership.is_seen_by(by),
            None => by.sees(&self.owner),
        }
    }
}

impl Operation {
    /// Whether somebody may know of it: what comes of it is its owner's.
    pub fn is_seen_by(&self, by: &Actor) -> bool {
        by.sees(&self.owner)
    }
}
