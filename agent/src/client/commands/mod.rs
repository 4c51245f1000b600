//! What each command does: a file for each of them, or for those about one kind of object.

pub mod authority;
pub mod backup;
pub mod cert;
pub mod console;
pub mod copy;
pub mod events;
pub mod exec;
pub mod fork;
pub mod forward;
pub mod image;
pub mod init;
pub mod join;
pub mod keep;
pub mod logs;
pub mod node;
pub mod operation;
pub mod owner;
pub mod recover;
pub mod restore;
pub mod snapshot;
pub mod status;
pub mod token;
pub mod tree;
pub mod upload;
pub mod vm;
pub mod wait;
