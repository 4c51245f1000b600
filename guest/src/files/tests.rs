use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use proptest::prelude::*;

use super::*;

/// What came of a copy, on both sides.
struct Outcome {
    sent: Result<(), CopyError>,
    received: Result<(), CopyError>,
    meter: Arc<Meter>,
}

/// Moves what is said between two threads; breaks off after so many bytes of content.
fn copy_until(from: From, to: To, limits: Limits, most: u64, broken: Broken) -> Outcome {
    let (mut sender, Mover { mut said, heard }) = sender();
    let (mut receiver, back) = receiver();
    let meter = Arc::new(Meter::default());
    let counted = Arc::clone(&meter);
    let Mover {
        said: mut replies,
        heard: pieces,
    } = back;
    let sending = thread::spawn(move || send(from, &mut sender, &Meter::default()));
    let receiving = thread::spawn(move || receive(to, limits, &mut receiver, &counted));
    let answering = thread::spawn(move || {
        while let Some(reply) = replies.blocking_recv() {
            if heard.blocking_send(Ok(reply)).is_err() {
                return;
            }
        }
    });
    let mut bytes = 0;
    while let Some(next) = said.blocking_recv() {
        if let Said::Content(content) = &next {
            bytes += content.bytes.len() as u64;
        }
        if bytes > most {
            // The receiver may have failed.
            let _failed = pieces.blocking_send(Err(broken));
            break;
        }
        if pieces.blocking_send(Ok(next)).is_err() {
            break;
        }
    }
    drop((said, pieces));
    let received = receiving.join().unwrap();
    answering.join().unwrap();
    Outcome {
        sent: sending.join().unwrap(),
        received,
        meter,
    }
}

fn copy(from: &Path, to: &Path, name: &str, limits: Limits) -> Outcome {
    let to = To::Path {
        path: to.to_owned(),
        name: name.into(),
    };
    let from = From::Path(from.to_owned());
    copy_until(from, to, limits, u64::MAX, Broken::Cancelled)
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

/// What is in a folder: kinds, permissions, times, contents.
fn listed(root: &Path) -> BTreeMap<PathBuf, String> {
    fn look(root: &Path, path: &Path, all: &mut BTreeMap<PathBuf, String>) {
        let metadata = fs::symlink_metadata(path).unwrap();
        let (mode, time) = (
            metadata.permissions().mode(),
            (metadata.mtime(), metadata.mtime_nsec()),
        );
        let content = if metadata.is_symlink() {
            format!("{:?}", fs::read_link(path).unwrap())
        } else if metadata.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                look(root, &entry.unwrap().path(), all);
            }
            String::new()
        } else {
            format!("{:x?}", fs::read(path).unwrap())
        };
        let line = format!("{mode:o} {time:?} {content}");
        all.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    let mut all = BTreeMap::new();
    look(root, root, &mut all);
    all
}

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Folder(BTreeMap<String, Node>, u32),
    Link(String),
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,3}", "\\.[ -.0-~]{1,8}", "[äöü \n]{1,4}"]
        .prop_filter("no name", |name| check::is_name(name.as_bytes()))
}

fn tree() -> impl Strategy<Value = BTreeMap<String, Node>> {
    let mode = || prop_oneof![Just(0o644u32), Just(0o755), Just(0o600), Just(0o4711)];
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (CHUNK - 1..2 * CHUNK + 2).prop_map(|length| vec![length as u8; length]),
    ];
    let leaf = prop_oneof![
        (content, mode()).prop_map(|(content, mode)| Node::File(content, mode)),
        name().prop_map(Node::Link),
    ];
    let node = leaf.prop_recursive(4, 24, 5, move |inner| {
        (prop::collection::btree_map(name(), inner, 0..5), 0u32..8)
            .prop_map(|(nodes, mode)| Node::Folder(nodes, 0o700 | mode))
    });
    prop::collection::btree_map(name(), node, 0..6)
}

fn make(folder: &Path, nodes: &BTreeMap<String, Node>) {
    let set = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for (name, node) in nodes {
        let path = folder.join(name);
        match node {
            Node::File(content, mode) => {
                fs::write(&path, content).unwrap();
                set(&path, *mode);
            }
            Node::Folder(nodes, mode) => {
                fs::create_dir(&path).unwrap();
                make(&path, nodes);
                set(&path, *mode);
            }
            Node::Link(target) => symlink(target, &path).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_tree_is_the_same_on_the_other_side(nodes in tree(), cut in 0u64..200_000) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        make(&from, &nodes);
        // Broken off once, wherever that is; then it goes on.
        let source = || From::Path(from.clone());
        let target = || To::Path { path: to.clone(), name: b"from".to_vec() };
        let first = copy_until(source(), target(), Limits::OF_HOSTS, cut, Broken::Lost(String::new()));
        // What was merged into has its own name by then.
        let target = match first.received {
            Ok(()) => To::Path { path: folder.path().to_owned(), name: b"to".to_vec() },
            Err(_) if to.exists() => To::Path { path: folder.path().to_owned(), name: b"to".to_vec() },
            Err(_) => target(),
        };
        let second = copy_until(source(), target, Limits::OF_HOSTS, u64::MAX, Broken::Cancelled);
        second.sent.unwrap();
        second.received.unwrap();
        let mut there = listed(&to);
        prop_assert_eq!(there.remove(Path::new("")).is_some(), true);
        let mut expected = listed(&from);
        expected.remove(Path::new(""));
        prop_assert_eq!(there, expected);
        // And once more: nothing but what is empty goes over.
        let third = copy_until(source(), To::Path { path: folder.path().to_owned(), name: b"to".to_vec() }, Limits::OF_HOSTS, u64::MAX, Broken::Cancelled);
        third.received.unwrap();
        prop_assert_eq!(get(&third.meter.bytes), 0);
    }
}

#[test]
fn more_files_go_over_than_may_be_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    for number in 0..3 * AHEAD {
        fs::write(from.join(number.to_string()), number.to_string()).unwrap();
    }
    let outcome = copy(&from, folder.path(), "to", Limits::OF_HOSTS);
    outcome.sent.and(outcome.received).unwrap();
    assert_eq!(listed(&to), listed(&from));
}

#[test]
fn it_goes_where_cp_would_put_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("f"), "content").unwrap();
    fs::create_dir_all(at("d/in")).unwrap();
    fs::create_dir(at("there")).unwrap();
    let copy = |from: &str, to: &str, name: &str| {
        copy(&at(from), &at(to), name, Limits::OF_HOSTS).received
    };
    copy("f", "there", "f").unwrap();
    copy("f", "g", "f").unwrap();
    copy("d", "there", "d").unwrap();
    copy("d", "e", "d").unwrap();
    copy("d", "there", "").unwrap();
    for path in ["there/f", "g", "there/d/in", "e/in", "there/in"] {
        assert!(at(path).exists(), "{path}");
    }
    // A link that the user names is followed, to a folder and to a file.
    symlink("there", at("l")).unwrap();
    symlink("g", at("k")).unwrap();
    copy("f", "l", "other").unwrap();
    fs::write(at("f"), "other").unwrap();
    copy("f", "k", "f").unwrap();
    assert!(at("there/other").exists() && at("k").is_symlink());
    assert_eq!(fs::read(at("g")).unwrap(), b"other");
    for (from, to, words) in [
        ("f", "no/such", "no: there is no such file or folder"),
        ("f", "no/", "there is no such folder"),
        ("f", "g/", "Not a directory"),
        ("d", "g", "is no folder"),
        ("f", "/dev/null", "is not replaced"),
    ] {
        let name = from;
        let error = copy(from, to, name).unwrap_err();
        assert!(error.to_string().contains(words), "{to}: {error}");
    }
    let missing = self::copy(&at("missing"), &at("x"), "missing", Limits::OF_HOSTS);
    let error = missing.sent.unwrap_err().to_string();
    assert!(
        error.ends_with("missing: there is no such file or folder"),
        "{error}"
    );
}

#[test]
fn a_file_over_a_folder_is_refused_and_one_over_a_link_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("from")).unwrap();
    fs::create_dir_all(at("to/from/a")).unwrap();
    fs::write(at("from/a"), "new").unwrap();
    let error = copy(&at("from"), &at("to"), "from", Limits::OF_HOSTS).received;
    assert!(error.unwrap_err().to_string().contains("is a folder"));
    fs::remove_dir(at("to/from/a")).unwrap();
    fs::write(at("secret"), "untouched").unwrap();
    symlink("../../secret", at("to/from/a")).unwrap();
    copy(&at("from"), &at("to"), "from", Limits::OF_HOSTS)
        .received
        .unwrap();
    assert_eq!(fs::read(at("to/from/a")).unwrap(), b"new");
    assert!(!at("to/from/a").is_symlink());
    assert_eq!(fs::read(at("secret")).unwrap(), b"untouched");
}

#[test]
fn a_file_goes_on_where_it_was_if_it_still_begins_so() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("f"), folder.path().join("t"));
    let part = folder.path().join(".t.fpcp-part");
    let content: Vec<u8> = (0..10 * CHUNK).map(|n| (n * 7 / 5) as u8).collect();
    fs::write(&from, &content).unwrap();
    let begin = |broken: Broken| {
        let target = To::Path {
            path: to.clone(),
            name: b"f".to_vec(),
        };
        let source = From::Path(from.clone());
        let most = 4 * CHUNK as u64;
        copy_until(source, target, Limits::OF_HOSTS, most, broken).received
    };
    let finish = || {
        let outcome = copy(&from, &to, "f", Limits::OF_HOSTS);
        outcome.received.unwrap();
        assert!(!part.exists());
        get(&outcome.meter.bytes)
    };
    begin(Broken::Lost(String::new())).unwrap_err();
    assert_eq!(fs::metadata(&part).unwrap().len(), 4 * CHUNK as u64);
    assert!(!to.exists());
    assert_eq!(finish(), 6 * CHUNK as u64);
    assert_eq!(fs::read(&to).unwrap(), content);
    assert_eq!(finish(), 0);

    // Another file by then: from its beginning.
    fs::remove_file(&to).unwrap();
    begin(Broken::Cancelled).unwrap_err();
    let mut other = content.clone();
    other[0] ^= 1;
    fs::write(&from, &other).unwrap();
    assert_eq!(finish(), content.len() as u64);
    assert_eq!(fs::read(&to).unwrap(), other);

    // What is no interruption leaves nothing; nor does the fork of a VM, in the child.
    fs::remove_file(&to).unwrap();
    for broken in [Broken::Failed("x".to_owned()), Broken::Forked] {
        begin(broken).unwrap_err();
        assert!(!part.exists() && !to.exists());
    }
}

#[test]
fn what_became_shorter_is_told_and_what_became_longer_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("f");
    for (length, fails) in [(CHUNK / 2, true), (9 * CHUNK, false)] {
        fs::write(&from, vec![1; 8 * CHUNK]).unwrap();
        let (mut sender, Mover { mut said, heard }) = sender();
        let source = From::Path(from.clone());
        let sending = thread::spawn(move || send(source, &mut sender, &Meter::default()));
        let Some(Said::Piece(piece)) = said.blocking_recv() else {
            panic!("no piece");
        };
        assert_eq!(piece.bytes, Some(8 * CHUNK as u64));
        let file = fs::File::options().write(true).open(&from).unwrap();
        file.set_len(length as u64).unwrap();
        let answer = |reply| heard.blocking_send(Ok(reply)).unwrap();
        answer(Reply::Wanted(Wanted::default()));
        let mut bytes = 0;
        while let Some(Said::Content(content)) = said.blocking_recv() {
            bytes += content.bytes.len();
        }
        if !fails {
            answer(Reply::Done(Done::default()));
        }
        let outcome = sending.join().unwrap();
        if fails {
            assert!(outcome.unwrap_err().to_string().contains("became shorter"));
        } else {
            outcome.unwrap();
            assert_eq!(bytes, 8 * CHUNK);
        }
    }
}

#[test]
fn standard_streams_carry_one_file() {
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    let content = vec![9; 3 * CHUNK + 1];
    let reader = From::Reader(Box::new(io::Cursor::new(content.clone())));
    let to = To::Path {
        path: file.clone(),
        name: Vec::new(),
    };
    let outcome = copy_until(reader, to, Limits::OF_HOSTS, u64::MAX, Broken::Cancelled);
    outcome.received.unwrap();
    assert_eq!(fs::read(&file).unwrap(), content);

    let kept = Kept::default();
    let out = |from: &Path| {
        let to = To::Writer(Box::new(kept.clone()));
        let from = From::Path(from.to_owned());
        copy_until(from, to, Limits::OF_GUESTS, u64::MAX, Broken::Cancelled).received
    };
    out(&file).unwrap();
    assert_eq!(*kept.0.lock().unwrap(), content);
    out(Path::new("/proc/self/status")).unwrap();
    assert!(
        kept.0.lock().unwrap().ends_with(b"\n"),
        "what the kernel makes up has no size"
    );
    assert!(
        out(folder.path())
            .unwrap_err()
            .to_string()
            .contains("is a folder")
    );
    let to = To::Path {
        path: folder.path().to_owned(),
        name: Vec::new(),
    };
    let reader = From::Reader(Box::new(io::empty()));
    let nameless = copy_until(reader, to, Limits::OF_HOSTS, u64::MAX, Broken::Cancelled);
    assert!(
        nameless
            .received
            .unwrap_err()
            .to_string()
            .contains("no name")
    );
}

#[test]
fn what_is_no_file_is_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    fs::write(from.join(".f.fpcp-part"), "of another copy").unwrap();
    fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o6755)).unwrap();
    for (name, target) in [("in", "file"), ("out", "../x"), ("root", "/etc/passwd")] {
        symlink(target, from.join(name)).unwrap();
    }
    let outcome = copy(&from, &to, "from", Limits::OF_GUESTS);
    outcome.received.unwrap();
    assert_eq!(
        (
            get(&outcome.meter.left_out),
            get(&outcome.meter.links_left_out)
        ),
        (1, 2)
    );
    let there: Vec<_> = listed(&to).into_keys().collect();
    assert_eq!(there, ["", "file", "in"].map(PathBuf::from));
    let mode = fs::metadata(to.join("file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

/// A receiver that is told whatever a test says.
struct Victim {
    folder: tempfile::TempDir,
    heard: mpsc::Sender<Result<Said, Broken>>,
    said: mpsc::Receiver<Reply>,
    work: thread::JoinHandle<Result<(), CopyError>>,
}

impl Victim {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        let to = To::Path {
            path: folder.path().join("tree"),
            name: Vec::new(),
        };
        let (mut ends, Mover { said, heard }) = receiver();
        let work = thread::spawn(move || receive(to, limits, &mut ends, &Meter::default()));
        Self {
            folder,
            heard,
            said,
            work,
        }
    }

    /// Says this for as long as it listens; how it ended, and that nothing lies outside.
    fn told(
        self,
        pieces: impl IntoIterator<Item = Said>,
    ) -> (Result<(), CopyError>, tempfile::TempDir) {
        let Self {
            folder,
            heard,
            mut said,
            work,
        } = self;
        let answers = thread::spawn(move || while said.blocking_recv().is_some() {});
        for piece in pieces {
            if heard.blocking_send(Ok(piece)).is_err() {
                break;
            }
        }
        drop(heard);
        let outcome = work.join().unwrap();
        answers.join().unwrap();
        let outside = fs::read_dir(folder.path().join("outside")).unwrap();
        assert_eq!(outside.count(), 0);
        let beside = fs::read_dir(folder.path()).unwrap();
        assert!(beside.count() <= 2, "something lies beside the tree");
        (outcome, folder)
    }
}

fn piece(path: &[&str], kind: PieceKind) -> Piece {
    Piece {
        path: path.iter().map(|part| part.as_bytes().to_vec()).collect(),
        kind: kind.into(),
        mode: 0o755,
        ..Piece::default()
    }
}

fn folder(path: &[&str]) -> Said {
    Said::Piece(piece(path, PieceKind::Folder))
}

fn file(path: &[&str], bytes: u64) -> Said {
    Said::Piece(Piece {
        bytes: Some(bytes),
        ..piece(path, PieceKind::File)
    })
}

fn link(path: &[&str], target: &str) -> Said {
    Said::Piece(Piece {
        target: target.into(),
        ..piece(path, PieceKind::Link)
    })
}

fn content(offset: u64, bytes: &'static [u8], last: bool) -> Said {
    Said::Content(Content {
        offset,
        bytes: bytes.into(),
        last,
        gone: false,
    })
}

fn end() -> Said {
    Said::End(TreeEnd::default())
}

#[test]
fn hostile_trees_stay_where_they_belong() {
    let cases: Vec<(&str, Vec<Said>)> = vec![
        ("is no name", vec![folder(&[]), file(&[".."], 0)]),
        (
            "is no name",
            vec![folder(&[]), folder(&[".."]), file(&["..", "x"], 0)],
        ),
        ("is no name", vec![folder(&[]), file(&["../outside/x"], 0)]),
        ("is no name", vec![folder(&[]), file(&["/etc/x"], 0)]),
        ("is no name", vec![folder(&[]), file(&[""], 0)]),
        ("root is a link", vec![link(&[], "outside")]),
        ("two roots", vec![folder(&[]), folder(&[])]),
        ("before its folder", vec![file(&["x"], 0)]),
        ("before its folder", vec![folder(&[]), file(&["a", "x"], 0)]),
        ("before its folder", vec![file(&[], 0), file(&["x"], 0)]),
        (
            "before its folder",
            vec![
                folder(&[]),
                folder(&["a"]),
                folder(&["b"]),
                file(&["a", "x"], 0),
            ],
        ),
        (
            "before its folder",
            vec![folder(&[]), link(&["a"], "."), file(&["a", "x"], 0)],
        ),
        (
            "no folder",
            vec![folder(&[]), link(&["a"], "."), folder(&["a"])],
        ),
        ("of no file", vec![folder(&[]), content(0, b"x", true)]),
        ("longer than", vec![file(&[], 2), content(0, b"abc", true)]),
        ("shorter than", vec![file(&[], 2), content(0, b"a", true)]),
        ("in the middle", vec![file(&[], 2), content(1, b"b", true)]),
        (
            "not in its order",
            vec![
                file(&[], 9),
                content(0, b"a", false),
                content(2, b"c", false),
            ],
        ),
        ("is empty", vec![file(&[], 9), content(0, b"", false)]),
        (
            "before all content",
            vec![file(&[], 9), content(0, b"a", false), end()],
        ),
        ("nothing came", vec![end()]),
    ];
    for (words, pieces) in cases {
        let case = format!("{pieces:?}");
        let (outcome, folder) = Victim::new(Limits::OF_GUESTS).told(pieces);
        let error = outcome.expect_err(&case);
        assert!(error.to_string().contains(words), "{case}: {error}");
        // What is not sound is no interruption.
        let parts = listed(folder.path()).into_keys();
        assert!(
            !parts
                .into_iter()
                .any(|path| path.to_string_lossy().contains("fpcp"))
        );
    }
}

#[test]
fn nothing_is_written_through_a_link_that_was_there() {
    let victim = Victim::new(Limits::OF_GUESTS);
    let tree = victim.folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    symlink("../outside", tree.join("a")).unwrap();
    // The part of a file, and the file, lead elsewhere; so does a hard link.
    symlink("../outside/x", tree.join(".f.fpcp-part")).unwrap();
    symlink("../outside/y", tree.join("f")).unwrap();
    fs::write(tree.join("other"), "untouched").unwrap();
    fs::hard_link(tree.join("other"), tree.join(".g.fpcp-part")).unwrap();
    let pieces = vec![
        folder(&[]),
        file(&["f"], 1),
        content(0, b"f", true),
        file(&["g"], 1),
        content(0, b"g", true),
        link(&["out"], "../outside"),
        link(&["up"], "x/../.."),
        folder(&["a"]),
    ];
    let (outcome, folder) = victim.told(pieces);
    assert!(outcome.unwrap_err().to_string().contains("no folder"));
    let tree = folder.path().join("tree");
    assert_eq!(fs::read(tree.join("other")).unwrap(), b"untouched");
    for name in ["f", "g"] {
        let there = fs::symlink_metadata(tree.join(name)).unwrap();
        assert!(there.is_file() && there.len() == 1, "{name}");
    }
    assert!(!tree.join("out").is_symlink() && !tree.join("up").is_symlink());
}

#[test]
fn what_a_hostile_sender_can_have_kept_is_bounded() {
    // Files that are offered, and never sent.
    let files = (0..).map(|number: u64| file(&[&format!("f{number}")], 1));
    let offers = std::iter::once(folder(&[])).chain(files);
    let (outcome, _) = Victim::new(Limits::OF_GUESTS).told(offers);
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("too much comes before")
    );
    // Folders after one.
    let folders = (0..).map(|number: u64| folder(&[&format!("d{number}")]));
    let offers = [folder(&[]), file(&["f"], 1)].into_iter().chain(folders);
    let (outcome, _) = Victim::new(Limits::OF_GUESTS).told(offers);
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("too much comes before")
    );
    // More than there may be.
    let limits = Limits {
        pieces: 1000,
        ..Limits::OF_GUESTS
    };
    let links = (0..).map(|_| link(&["l"], "x"));
    let (outcome, _) = Victim::new(limits).told(std::iter::once(folder(&[])).chain(links));
    assert!(outcome.unwrap_err().to_string().contains("too many files"));
    // Deeper than a tree may be.
    let mut path = Vec::new();
    let deeper = std::iter::repeat_with(move || {
        let said = folder(&path);
        path.push("d");
        said
    });
    let (outcome, _) = Victim::new(Limits::OF_GUESTS).told(deeper);
    assert!(outcome.unwrap_err().to_string().contains("deeper than"));
}

#[test]
fn a_sender_has_only_so_much_ahead() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..1000 {
        fs::write(folder.path().join(format!("f{number:04}")), "x").unwrap();
    }
    let (mut sender, Mover { mut said, heard }) = sender();
    let source = From::Path(folder.path().to_owned());
    let sending = thread::spawn(move || send(source, &mut sender, &Meter::default()));
    let mut offered = 0;
    let mut answered = 0;
    while let Some(said) = said.blocking_recv() {
        match said {
            Said::Piece(_) => offered += 1,
            Said::Content(_) => panic!("nothing was wanted"),
            Said::End(_) => {
                heard
                    .blocking_send(Ok(Reply::Done(Done::default())))
                    .unwrap();
            }
        }
        // The root, and then one after the other.
        assert!(offered - answered <= AHEAD + 1);
        if offered - answered == AHEAD || offered == 1001 && answered < 1000 {
            let same = Wanted {
                same: true,
                have: None,
            };
            heard.blocking_send(Ok(Reply::Wanted(same))).unwrap();
            answered += 1;
            while offered == 1001 && answered < 1000 {
                heard.blocking_send(Ok(Reply::Wanted(same))).unwrap();
                answered += 1;
            }
        }
    }
    sending.join().unwrap().unwrap();
    assert_eq!((offered, answered), (1001, 1000));
}
