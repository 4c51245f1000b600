//! What pieces of trees may be. Nothing that comes from a guest is believed, neither by its host's agent, which passes it on, nor by
//! whoever writes it down.

use super::{CHUNK, Content, Piece, PieceKind};

/// How deep a tree may be.
pub const MAX_DEPTH: usize = 200;
/// The longest path below a tree's root, and the longest target of a link, bytes.
pub const MAX_PATH: usize = 4095;
/// The longest name, bytes.
pub const MAX_NAME: usize = 255;
/// The largest file, bytes: what an offset can say.
const MAX_BYTES: u64 = i64::MAX as u64;

/// What came is no piece of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is nothing that is known.
    #[error("a piece is neither a file nor a folder nor a link")]
    Kind,
    /// It lies too deep.
    #[error("a path is deeper than {MAX_DEPTH} folders")]
    Depth,
    /// Its path is too long.
    #[error("a path is longer than {MAX_PATH} bytes")]
    Path,
    /// A part of its path is no name.
    #[error("a part of a path is no name")]
    Name,
    /// It has permissions that there are not.
    #[error("a piece has permissions that there are not")]
    Mode,
    /// It is larger than any file.
    #[error("a file is larger than files can be")]
    Size,
    /// It points nowhere, or points and is no link.
    #[error("a link's target is none")]
    Target,
    /// A tree's root is a link.
    #[error("the tree's root is a link")]
    Root,
    /// More content came at once than may.
    #[error("more than {} KiB of content came at once", CHUNK >> 10)]
    Chunk,
}

/// Whether this is a name that something in a folder can have.
pub fn is_name(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// Checks a piece, and says what it is.
///
/// # Errors
/// What is wrong with it.
pub fn piece(piece: &Piece) -> Result<PieceKind, Malformed> {
    let kind = PieceKind::try_from(piece.kind).map_err(|_| Malformed::Kind)?;
    if piece.path.len() > MAX_DEPTH {
        return Err(Malformed::Depth);
    }
    if !piece.path.iter().all(|part| is_name(part)) {
        return Err(Malformed::Name);
    }
    let length = piece.path.iter().map(|part| part.len() + 1).sum::<usize>();
    if length > MAX_PATH {
        return Err(Malformed::Path);
    }
    if piece.mode > 0o7777 {
        return Err(Malformed::Mode);
    }
    let may_have_bytes = kind == PieceKind::File;
    if piece
        .bytes
        .is_some_and(|bytes| bytes > MAX_BYTES || !may_have_bytes)
    {
        return Err(Malformed::Size);
    }
    let target = &piece.target;
    let points = !target.is_empty() && target.len() <= MAX_PATH && !target.contains(&0);
    match kind {
        PieceKind::Link if piece.path.is_empty() => Err(Malformed::Root),
        PieceKind::Link if !points => Err(Malformed::Target),
        PieceKind::File | PieceKind::Folder if !target.is_empty() => Err(Malformed::Target),
        _ => Ok(kind),
    }
}

/// Checks some content.
///
/// # Errors
/// It is too much.
pub fn content(content: &Content) -> Result<(), Malformed> {
    if content.bytes.len() > CHUNK {
        return Err(Malformed::Chunk);
    }
    let end = content.offset.checked_add(content.bytes.len() as u64);
    match end {
        Some(end) if end <= MAX_BYTES => Ok(()),
        _ => Err(Malformed::Size),
    }
}

/// Whether a link so deep in a tree points to something in it, whatever else is in there: it goes up only at its beginning, where what it goes up
/// are the folders that it lies in, and not beyond the root. (What goes up later may go up from where another link led.)
pub fn stays_within(depth: usize, target: &[u8]) -> bool {
    if target.first() == Some(&b'/') {
        return false;
    }
    let mut parts = target
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .peekable();
    let mut up = 0;
    while parts.next_if_eq(&&b".."[..]).is_some() {
        up += 1;
    }
    up <= depth && parts.all(|part| part != b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &[&str]) -> Piece {
        Piece {
            path: path.iter().map(|part| part.as_bytes().to_vec()).collect(),
            mode: 0o644,
            bytes: Some(1),
            ..Piece::default()
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        assert_eq!(piece(&file(&["a", "b"])), Ok(PieceKind::File));
        let long = "x".repeat(MAX_NAME + 1);
        for part in ["", ".", "..", "a/b", "/a", "a\0b", &long] {
            assert_eq!(piece(&file(&["a", part])), Err(Malformed::Name), "{part:?}");
        }
        let deep = vec!["d"; MAX_DEPTH + 1];
        assert_eq!(piece(&file(&deep)), Err(Malformed::Depth));
        let wide = vec![&long[1..]; 16];
        assert_eq!(piece(&file(&wide)), Err(Malformed::Path));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let change = |change: fn(&mut Piece)| {
            let mut changed = file(&["a"]);
            change(&mut changed);
            piece(&changed)
        };
        assert_eq!(change(|piece| piece.kind = 9), Err(Malformed::Kind));
        assert_eq!(change(|piece| piece.mode = 0o10_000), Err(Malformed::Mode));
        assert_eq!(
            change(|piece| piece.bytes = Some(u64::MAX)),
            Err(Malformed::Size)
        );
        assert_eq!(
            change(|piece| piece.target = b"x".to_vec()),
            Err(Malformed::Target)
        );
        let link = |path: &[&str], target: &str| {
            piece(&Piece {
                kind: PieceKind::Link.into(),
                bytes: None,
                target: target.into(),
                ..file(path)
            })
        };
        assert_eq!(link(&["a"], "../b"), Ok(PieceKind::Link));
        assert_eq!(link(&["a"], ""), Err(Malformed::Target));
        assert_eq!(link(&["a"], "b\0"), Err(Malformed::Target));
        assert_eq!(link(&[], "b"), Err(Malformed::Root));
        let end = |offset, bytes: &'static [u8]| {
            content(&Content {
                offset,
                bytes: bytes.into(),
                last: false,
                gone: false,
            })
        };
        assert_eq!(end(0, &[0; CHUNK]), Ok(()));
        assert_eq!(end(0, &[0; CHUNK + 1]), Err(Malformed::Chunk));
        assert_eq!(end(u64::MAX, &[0]), Err(Malformed::Size));
    }

    #[test]
    fn links_stay_within_their_tree_or_do_not() {
        for (depth, target) in [
            (0, "a"),
            (0, "./a/b"),
            (1, "../a"),
            (2, ".././../a"),
            (1, "a..b"),
            (1, ".."),
        ] {
            assert!(stays_within(depth, target.as_bytes()), "{depth} {target}");
        }
        for (depth, target) in [
            (0, "/a"),
            (0, ".."),
            (1, "../.."),
            (1, "../../a"),
            // Where `x` is a link to the root, this is the root's own folder.
            (1, "x/.."),
            (1, "x/../../a"),
        ] {
            assert!(!stays_within(depth, target.as_bytes()), "{depth} {target}");
        }
    }
}
