//! What is said while files are copied: see [`crate::files`] for who says what when.

use prost::{Message, Oneof};

/// Asks for files.
#[derive(Clone, PartialEq, Message)]
pub struct Send {
    /// What to send: a file, or a folder with all that is in it. Where it does not begin with `/`, it is below root's home.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// Brings files.
#[derive(Clone, PartialEq, Message)]
pub struct Receive {
    /// Where to: a folder that is there, into which it is put under its own name, or the name that it gets. See [`Send::path`].
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// The name that it has at its source; empty where the source is a folder of which only what is in it is meant.
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
}

/// What the one that has the files says.
#[derive(Clone, PartialEq, Message)]
pub struct FromSender {
    /// What.
    #[prost(oneof = "from_sender::What", tags = "1, 2, 3")]
    pub what: Option<from_sender::What>,
}

/// What a [`FromSender`] says.
pub mod from_sender {
    use super::{Oneof, Piece, Run, TreeEnd};

    /// See there.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum What {
        /// There is this.
        #[prost(message, tag = "1")]
        Piece(Piece),
        /// So much content follows on lane 0.
        #[prost(message, tag = "2")]
        Run(Run),
        /// That was all.
        #[prost(message, tag = "3")]
        End(TreeEnd),
    }
}

/// What the one that wants the files says.
#[derive(Clone, PartialEq, Message)]
pub struct FromReceiver {
    /// What.
    #[prost(oneof = "from_receiver::What", tags = "1, 2")]
    pub what: Option<from_receiver::What>,
}

/// What a [`FromReceiver`] says.
pub mod from_receiver {
    use super::{Done, Oneof, Wanted};

    /// See there.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum What {
        /// What is wanted of a file.
        #[prost(message, tag = "1")]
        Wanted(Wanted),
        /// Everything is in its place.
        #[prost(message, tag = "2")]
        Done(Done),
    }
}

/// What a piece of a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum PieceKind {
    /// A file. Its content follows where it is wanted.
    File = 0,
    /// A folder.
    Folder = 1,
    /// A symbolic link.
    Link = 2,
}

/// One file, folder or link of a tree.
#[derive(Clone, PartialEq, Message)]
pub struct Piece {
    /// Its path below the tree's root, by parts; none for the root itself.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub path: Vec<Vec<u8>>,
    /// What it is.
    #[prost(enumeration = "PieceKind", tag = "2")]
    pub kind: i32,
    /// Its permissions.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    /// When it was changed last: nanoseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub modified_ns: i64,
    /// How long a file is, where that is known.
    #[prost(uint64, optional, tag = "5")]
    pub bytes: Option<u64>,
    /// Where a link points.
    #[prost(bytes = "vec", tag = "6")]
    pub target: Vec<u8>,
}

/// Some content of a file.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Run {
    /// Where in the file it begins.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// How many bytes it is.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Whether the file ends after it.
    #[prost(bool, tag = "3")]
    pub last: bool,
    /// The file was deleted since it was offered: it is to be forgotten.
    #[prost(bool, tag = "4")]
    pub gone: bool,
}

/// A tree has been sent whole.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TreeEnd {
    /// What was left out since it can be no piece: devices, sockets and pipes.
    #[prost(uint64, tag = "1")]
    pub left_out: u64,
}

/// The beginning of a file that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Have {
    /// So many bytes.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Their CRC-32 (ISO-HDLC).
    #[prost(uint32, tag = "2")]
    pub crc32: u32,
}

/// What is wanted of a file that was offered: an answer to each, in their order.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Wanted {
    /// Nothing: the same is there.
    #[prost(bool, tag = "1")]
    pub same: bool,
    /// All but this, if it begins so.
    #[prost(message, optional, tag = "2")]
    pub have: Option<Have>,
}

/// All that came is in its place.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {
    /// Links that were left out since they point out of the tree.
    #[prost(uint64, tag = "1")]
    pub links_left_out: u64,
}
