//! The daemon: what `fpagent run` starts.

pub mod options;
