//! Between what is said while files are copied and the API's messages for it, both ways: agents and their clients use the same.

use guest::files::{Content, Done, Have, Piece, PieceKind, Reply, Said, TreeEnd, Wanted};
use proto::v1;

/// What a sender says, on its way into a VM.
pub fn copy_in(said: Said) -> v1::copy_in_request::Part {
    use v1::copy_in_request::Part;
    match said {
        Said::Piece(piece) => Part::Piece(piece_message(piece)),
        Said::Content(content) => Part::Content(content_message(content)),
        Said::End(end) => Part::End(end_message(end)),
    }
}

/// What a sender says, on its way out of a VM.
pub fn copy_out(said: Said) -> v1::copy_out_response::Part {
    use v1::copy_out_response::Part;
    match said {
        Said::Piece(piece) => Part::Piece(piece_message(piece)),
        Said::Content(content) => Part::Content(content_message(content)),
        Said::End(end) => Part::End(end_message(end)),
    }
}

/// What came out of a VM.
pub fn said(part: v1::copy_out_response::Part) -> Said {
    use v1::copy_out_response::Part;
    match part {
        Part::Piece(piece) => Said::Piece(self::piece(piece)),
        Part::Content(content) => Said::Content(self::content(content)),
        Part::End(end) => Said::End(self::end(end)),
    }
}

/// What a receiver says, on its way out of a VM.
pub fn copy_in_reply(reply: Reply) -> v1::copy_in_response::Part {
    use v1::copy_in_response::Part;
    match reply {
        Reply::Wanted(wanted) => Part::Wanted(wanted_message(wanted)),
        Reply::Done(done) => Part::Done(done_message(done)),
    }
}

/// What a receiver says, on its way into a VM.
pub fn copy_out_reply(reply: Reply) -> v1::copy_out_request::Part {
    use v1::copy_out_request::Part;
    match reply {
        Reply::Wanted(wanted) => Part::Wanted(wanted_message(wanted)),
        Reply::Done(done) => Part::Done(done_message(done)),
    }
}

/// What a receiver in a VM said.
pub fn reply(part: v1::copy_in_response::Part) -> Reply {
    use v1::copy_in_response::Part;
    match part {
        Part::Wanted(wanted) => Reply::Wanted(self::wanted(wanted)),
        Part::Done(done) => Reply::Done(self::done(done)),
    }
}

/// A piece of a tree.
pub fn piece(piece: v1::FilePiece) -> Piece {
    let kind = match piece.kind() {
        v1::FileKind::File => PieceKind::File.into(),
        v1::FileKind::Folder => PieceKind::Folder.into(),
        v1::FileKind::Link => PieceKind::Link.into(),
        // No piece is of this kind: it is refused.
        v1::FileKind::Unspecified => -1,
    };
    Piece {
        path: piece.path.into_iter().map(Vec::from).collect(),
        kind,
        mode: piece.mode,
        modified_ns: piece.modified_ns,
        bytes: piece.bytes,
        target: piece.target.into(),
    }
}

fn piece_message(piece: Piece) -> v1::FilePiece {
    let kind = match PieceKind::try_from(piece.kind) {
        Ok(PieceKind::File) => v1::FileKind::File,
        Ok(PieceKind::Folder) => v1::FileKind::Folder,
        Ok(PieceKind::Link) => v1::FileKind::Link,
        Err(_) => v1::FileKind::Unspecified,
    };
    v1::FilePiece {
        path: piece.path.into_iter().map(Into::into).collect(),
        kind: kind.into(),
        mode: piece.mode,
        modified_ns: piece.modified_ns,
        bytes: piece.bytes,
        target: piece.target.into(),
    }
}

/// Some content of a file.
pub fn content(content: v1::FileContent) -> Content {
    Content {
        offset: content.offset,
        bytes: content.data,
        last: content.last,
        gone: content.gone,
    }
}

fn content_message(content: Content) -> v1::FileContent {
    v1::FileContent {
        offset: content.offset,
        data: content.bytes,
        last: content.last,
        gone: content.gone,
    }
}

/// A tree's end.
pub fn end(end: v1::FilesEnd) -> TreeEnd {
    TreeEnd {
        left_out: end.left_out,
    }
}

fn end_message(end: TreeEnd) -> v1::FilesEnd {
    v1::FilesEnd {
        left_out: end.left_out,
    }
}

/// What is wanted of a file.
pub fn wanted(wanted: v1::FileWanted) -> Wanted {
    Wanted {
        same: wanted.same,
        have: wanted.have.map(|have| Have {
            bytes: have.bytes,
            crc32: have.crc32,
        }),
    }
}

fn wanted_message(wanted: Wanted) -> v1::FileWanted {
    v1::FileWanted {
        same: wanted.same,
        have: wanted.have.map(|have| v1::FileBeginning {
            bytes: have.bytes,
            crc32: have.crc32,
        }),
    }
}

/// All is in its place.
pub fn done(done: v1::FilesDone) -> Done {
    Done {
        links_left_out: done.links_left_out,
    }
}

fn done_message(done: Done) -> v1::FilesDone {
    v1::FilesDone {
        links_left_out: done.links_left_out,
    }
}

#[cfg(test)]
mod tests {
    use guest::files::check;

    use super::*;

    #[test]
    fn what_is_said_is_the_same_on_the_other_side() {
        let said = [
            Said::Piece(Piece {
                path: vec![b"a".to_vec(), b"\xff".to_vec()],
                kind: PieceKind::Link.into(),
                mode: 0o777,
                modified_ns: -1,
                bytes: None,
                target: b"../b".to_vec(),
            }),
            Said::Content(Content {
                offset: 7,
                bytes: "x".into(),
                last: true,
                gone: false,
            }),
            Said::End(TreeEnd { left_out: 3 }),
        ];
        for one in said {
            assert_eq!(super::said(copy_out(one.clone())), one);
        }
        let have = Some(Have { bytes: 1, crc32: 2 });
        for one in [
            Reply::Wanted(Wanted { same: false, have }),
            Reply::Done(Done { links_left_out: 4 }),
        ] {
            assert_eq!(reply(copy_in_reply(one.clone())), one);
        }
    }

    #[test]
    fn a_piece_of_no_kind_that_is_known_is_refused() {
        let message = v1::FilePiece {
            kind: 99,
            ..v1::FilePiece::default()
        };
        assert_eq!(check::piece(&piece(message)), Err(check::Malformed::Kind));
    }
}
