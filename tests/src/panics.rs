//! What a panic says, kept: after it come the agents' logs, and of long outputs it is the end that is shown.

use std::{
    panic,
    sync::{Mutex, Once, PoisonError},
};

/// What the last panic said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps what panics say from now on.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            print(info);
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.to_string());
        }));
    });
}

/// Says once more what the last panic said, if there was one.
pub fn say_again() {
    if let Some(said) = &*PANIC.lock().unwrap_or_else(PoisonError::into_inner) {
        eprintln!("{said}");
    }
}
