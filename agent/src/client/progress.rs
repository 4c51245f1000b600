//! Shows that something is going on, on a terminal; quiet in a pipe.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line on standard error that goes when it is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Something whose end cannot be foreseen.
    pub fn spinner(text: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(None, target())
            .with_style(ProgressStyle::default_spinner())
            .with_message(text.into());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Nothing is shown.
    pub fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// So many bytes to be sent.
    pub fn bytes(text: impl Into<String>, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), target()).with_message(text.into());
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many things to be done.
    pub fn things(text: impl Into<String>, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), target()).with_message(text.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {pos} of {len}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Bytes of which it becomes known as they go how many there are.
    pub fn flow(text: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), target()).with_prefix(text.into());
        if let Ok(style) = ProgressStyle::with_template(
            "{spinner} {prefix} {msg} {bytes} of {total_bytes} {bytes_per_sec}",
        ) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many of so many bytes are there by now; and more about it.
    pub fn at_of(&self, bytes: u64, total: u64, more: String) {
        self.0.set_length(total.max(bytes));
        self.0.set_position(bytes);
        self.0.set_message(more);
        self.0.tick();
    }

    /// Prints something beside it.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    /// One more is done.
    pub fn another(&self) {
        self.0.inc(1);
    }

    /// So many bytes are sent by now.
    pub fn at(&self, bytes: u64) {
        self.0.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}
