//! What was done to each object and what came of it, and which objects there are to do something to.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration, time::Instant};

use crate::linear::{Model, Span};

/// An object: nothing, or a value.
#[derive(Debug)]
pub struct Cell;

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It becomes this, whatever it was.
    Write(u64),
    /// It becomes this if it was nothing.
    Create(u64),
    /// It becomes nothing, if it was something.
    Remove,
    /// It becomes nothing, whatever it was.
    Clear,
    /// If it is this, it becomes nothing: what was begun came to nothing later.
    Vanish(u64),
    /// It is looked at.
    Read,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// There was something already, or nothing.
    Refused,
    /// It was this.
    Value(Option<u64>),
    /// Nobody knows.
    Unknown,
}

/// An operation on an object.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// What was done.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
}

impl Model for Cell {
    type State = Option<u64>;
    type Operation = Operation;

    fn step(state: &Option<u64>, operation: &Operation) -> Option<Option<u64>> {
        use Action::{Clear, Create, Read, Remove, Vanish, Write};
        use Outcome::{Done, Refused, Unknown, Value};
        match (operation.action, operation.outcome) {
            (Write(value), Done | Unknown) => Some(Some(value)),
            (Create(value), Done) => state.is_none().then_some(Some(value)),
            (Create(value), Unknown) => Some(state.or(Some(value))),
            (Create(_), Refused) => state.is_some().then_some(*state),
            (Remove, Done) => state.is_some().then_some(None),
            (Remove, Unknown) | (Clear, Done | Unknown) => Some(None),
            (Remove, Refused) => state.is_none().then_some(None),
            (Vanish(value), Unknown) => Some(state.filter(|now| *now != value)),
            (Read, Value(value)) => (*state == value).then_some(value),
            (Read, Unknown) => Some(*state),
            (Write(_) | Clear | Vanish(_) | Read, Refused)
            | (Vanish(_) | Read, Done)
            | (Write(_) | Create(_) | Remove | Clear | Vanish(_), Value(_)) => None,
        }
    }
}

/// What was done, by object.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    objects: BTreeMap<String, Vec<Span<Operation>>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// One that begins now.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            objects: BTreeMap::new(),
        }
    }

    /// Its time now.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Adds what was begun at a time and is answered now, or never.
    pub(super) fn add(&mut self, object: &str, begun: Duration, action: Action, outcome: Outcome) {
        // Nobody can tell what it saw.
        if (action, outcome) == (Action::Read, Outcome::Unknown) {
            return;
        }
        let ended = (outcome != Outcome::Unknown).then(|| self.now());
        let spans = self.objects.entry(object.to_owned()).or_default();
        spans.push(Span {
            operation: Operation { action, outcome },
            begun,
            ended,
        });
    }

    /// The history of each object.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &[Span<Operation>])> {
        let all = self.objects.iter();
        all.map(|(object, spans)| (object.as_str(), spans.as_slice()))
    }

    /// How many operations were answered.
    pub fn answered(&self) -> usize {
        self.count(true)
    }

    /// How many were not.
    pub fn unanswered(&self) -> usize {
        self.count(false)
    }

    fn count(&self, answered: bool) -> usize {
        let all = self.objects.values().flatten();
        all.filter(|span| span.ended.is_some() == answered).count()
    }

    /// How many of one kind were done.
    pub fn done(&self, is: impl Fn(&Action) -> bool) -> usize {
        let all = self.objects.values().flatten();
        all.filter(|span| is(&span.operation.action) && span.ended.is_some())
            .count()
    }
}

/// The end of the order that was found, and what cannot follow on it.
pub(super) fn told(spans: &[Span<Operation>], order: &[usize]) -> String {
    const SHOWN: usize = 12;
    let mut text = String::new();
    let mut line = |what: &str, at: usize| {
        let Span {
            operation: Operation { action, outcome },
            begun,
            ended,
        } = &spans[at];
        let ended = ended.map_or("never".to_owned(), |at| format!("{:.6}", at.as_secs_f64()));
        let begun = begun.as_secs_f64();
        let _ = writeln!(
            text,
            "  {what} {begun:.6} to {ended}: {action:?} {outcome:?}"
        );
    };
    for at in order.iter().skip(order.len().saturating_sub(SHOWN)) {
        line("then", *at);
    }
    let left = |at: &usize| !order.contains(at) && spans[*at].ended.is_some();
    let mut left: Vec<usize> = (0..spans.len()).filter(left).collect();
    left.sort_by_key(|at| spans[*at].begun);
    for at in left.into_iter().take(SHOWN) {
        line("but not", at);
    }
    text
}

/// Which objects are worked on now: each kind has a few places, and each place another object after a while. So histories stay
/// short, and so do those in which something was never answered.
#[derive(Debug)]
pub(super) struct Keys {
    places: Vec<Place>,
    nodes: usize,
    seed: u64,
}

/// Names of VMs that are created, of such that are forked, and labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vm,
    Fork,
    Label,
}

#[derive(Debug)]
struct Place {
    kind: Kind,
    number: usize,
    epoch: u64,
    used: usize,
    unknown: usize,
}

/// How often an object is worked on before there is another.
const USES: usize = 300;
/// How many operations on it may have been without an answer.
const UNKNOWN: usize = 6;

/// After so many others nobody works on an object any more, whatever was slow.
const OLD: u64 = 4;

/// An object that is worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// The VM's name, or the label's key.
    pub(super) name: String,
    /// The node whose label it is.
    pub(super) node: String,
    /// A label of it that nobody works on any more: a node has only so many.
    pub(super) old: Option<String>,
}

impl Key {
    /// As the history calls it.
    pub(super) fn object(&self) -> String {
        match self.kind {
            Kind::Vm | Kind::Fork => format!("VM {}", self.name),
            Kind::Label => format!("label {} of {}", self.name, self.node),
        }
    }
}

impl Keys {
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        let kinds = [(Kind::Vm, 3), (Kind::Fork, 2), (Kind::Label, 4)];
        let places = kinds.into_iter().flat_map(|(kind, count)| {
            (0..count).map(move |number| Place {
                kind,
                number,
                epoch: 0,
                used: 0,
                unknown: 0,
            })
        });
        Self {
            places: places.collect(),
            nodes,
            seed,
        }
    }

    fn key(&self, place: &Place) -> Key {
        let kind = match place.kind {
            Kind::Vm => "vm",
            Kind::Fork => "fork",
            Kind::Label => "key",
        };
        let name = |epoch| format!("{kind}-{}-{}-{epoch}", self.seed, place.number);
        Key {
            kind: place.kind,
            name: name(place.epoch),
            node: format!("node{}", place.number % self.nodes + 1),
            old: place.epoch.checked_sub(OLD).map(name),
        }
    }

    /// One of the objects of a kind, to be used once.
    pub(super) fn take(&mut self, kind: Kind, number: u64) -> Key {
        let mut all = self.of(kind);
        let key = all.swap_remove(number as usize % all.len());
        if let Some(place) = self.find(&key.name) {
            place.used += 1;
            if place.used > USES {
                next(place);
            }
        }
        key
    }

    /// Those of a kind.
    pub(super) fn of(&self, kind: Kind) -> Vec<Key> {
        let places = self.places.iter().filter(|place| place.kind == kind);
        places.map(|place| self.key(place)).collect()
    }

    /// Something that was done to an object was not answered.
    pub(super) fn unknown(&mut self, key: &Key) {
        if let Some(place) = self.find(&key.name) {
            place.unknown += 1;
            if place.unknown >= UNKNOWN {
                next(place);
            }
        }
    }

    fn find(&mut self, name: &str) -> Option<&mut Place> {
        let at = self
            .places
            .iter()
            .position(|place| self.key(place).name == name)?;
        self.places.get_mut(at)
    }
}

fn next(place: &mut Place) {
    place.epoch += 1;
    (place.used, place.unknown) = (0, 0);
}
