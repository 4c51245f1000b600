//! What a fork's guest is told: its settings.

use super::{MAX_LABELS, invalid};
use crate::state::{model::Labels, names, response::Rejection};

/// How long a value may be, bytes.
const MAX_VALUE: usize = 4096;
/// How much all keys and values may be together, bytes.
const MAX_SETTINGS: usize = 16 << 10;

/// Refuses settings that are too many or too long, or that a guest's program could not be given.
pub(super) fn check(settings: &Labels) -> Result<(), Rejection> {
    if settings.len() > MAX_LABELS {
        return Err(invalid("settings", format!("must be at most {MAX_LABELS}")));
    }
    for (key, value) in settings {
        if !names::is_key(key) {
            return Err(invalid(
                "settings",
                format!("{} is not a key: {}", names::shown(key), names::KEY_RULE),
            ));
        }
        if value.len() > MAX_VALUE || value.contains('\0') {
            return Err(invalid(
                "settings",
                format!("the value of {key} must be at most {MAX_VALUE} bytes, without a NUL"),
            ));
        }
    }
    let bytes: usize = settings
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > MAX_SETTINGS {
        return Err(invalid(
            "settings",
            format!("must be at most {MAX_SETTINGS} bytes together, and are {bytes}"),
        ));
    }
    Ok(())
}
