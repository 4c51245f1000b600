//! Images.

use std::{collections::BTreeSet, sync::Arc};

use super::{check_line, invalid, removal};
use crate::state::{
    command::Command,
    ids::{ImageId, NodeId},
    model::{Image, Millis, ObjectId, State},
    names,
    owners::{Actor, Owned as _, Ownership},
    quotas::Usage,
    response::{Kind, Outcome, Rejection, Response},
};

/// The longest time that a guest may be given to boot, milliseconds.
const MAX_BOOT_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) fn import(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::ImportImage {
        id,
        name,
        kernel,
        initrd,
        disk,
        cmdline,
        ready_line,
        boot_timeout_ms,
        guest_agent,
        node,
    } = command
    else {
        unreachable!("called for this command only");
    };
    names::check_name("name", name)?;
    names::check_owner("owner", &by.owner)?;
    if kernel.is_none() && disk.is_none() {
        return Err(invalid("image", "has neither a kernel nor a disk"));
    }
    if initrd.is_some() && kernel.is_none() {
        return Err(invalid("initrd", "needs a kernel"));
    }
    if disk.as_ref().is_some_and(|disk| disk.virtual_bytes == 0) {
        return Err(invalid("disk", "is empty"));
    }
    check_line("cmdline", cmdline)?;
    if let Some(line) = ready_line {
        check_line("readyLine", line)?;
        if line.is_empty() {
            return Err(invalid("readyLine", "must not be empty"));
        }
    }
    if *boot_timeout_ms > MAX_BOOT_TIMEOUT_MS {
        return Err(invalid("bootTimeout", "must be at most a day"));
    }
    let node = names::node(state, &node.to_string())?.id;
    let is_taken = |image: &Arc<Image>| image.name == *name && image.ownership.owner == by.owner;
    if state.images.values().any(is_taken) {
        return Err(Rejection::NameTaken {
            kind: Kind::Image,
            name: name.clone(),
        });
    }
    if state.images.contains_key(id) || state.tombstones.contains_key(&ObjectId::Image(*id)) {
        return Err(removal::id_taken(Kind::Image, id));
    }
    state.check_quota(&by.owner, Usage::of_image())?;
    let image = Image {
        id: *id,
        name: name.clone(),
        ownership: Ownership::of(by.owner.as_str()),
        kernel: kernel.clone(),
        initrd: initrd.clone(),
        disk: disk.clone(),
        cmdline: cmdline.clone(),
        ready_line: ready_line.clone(),
        boot_timeout_ms: *boot_timeout_ms,
        guest_agent: *guest_agent,
        nodes: BTreeSet::from([node]),
        created_at: now,
    };
    state.images.insert(*id, Arc::new(image));
    Ok(Response::Image(*id))
}

/// Never refused: the image may be gone.
pub(super) fn report(state: &mut State, image: ImageId, node: NodeId) -> Outcome {
    if !state.nodes.contains_key(&node) {
        return Ok(Response::Done);
    }
    if let Some(image) = state.images.get_mut(&image) {
        Arc::make_mut(image).nodes.insert(node);
    } else if let Some(tombstone) = state.tombstones.get_mut(&ObjectId::Image(image)) {
        // Fetched while it was being deleted: this node has to delete it, too.
        tombstone.nodes.insert(node);
    }
    Ok(Response::Done)
}

pub(super) fn delete(state: &mut State, by: &Actor, now: Millis, image: &str) -> Outcome {
    let image = Arc::clone(names::image(state, by, image)?);
    image.check_ruled_by(by)?;
    let dependents = removal::dependents_of_image(state, by, image.id);
    removal::refuse_dependents(Kind::Image, &image.name, dependents)?;
    state.images.remove(&image.id);
    removal::bury(
        state,
        now,
        ObjectId::Image(image.id),
        &image.name,
        &image.nodes,
    );
    Ok(Response::Done)
}
