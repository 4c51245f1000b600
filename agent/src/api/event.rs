//! What happens in the cluster, told from any position on. Readers take it from the state at their own pace: nothing is kept for one that is
//! slow, and nobody waits for it.

use std::sync::Arc;

use prost::Message as _;
use proto::v1::{self, ReadEventsRequest, ReadEventsResponse, event_service_server::EventService};
use raft::{
    node::Published,
    state::{Actor, Audience, BadPosition, Event, EventKind, State, Subject, VmId},
};
use tokio::{sync::watch, task::yield_now};
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::{
    Api,
    asker::asked,
    carry::Answers,
    follow::{Follows, told, until_news},
};
use crate::{audit, convert, errors::ApiError, node::Node};

/// How many events a message has at most, and how many bytes until it gets no more.
const PART: usize = 64;
const ENOUGH: usize = 256 << 10;
/// How many events are looked at, at most, before other calls have their turn; and how many pass, that are not told, before their reader
/// hears of the position.
const AT_ONCE: usize = 1_024;
/// How much is repeated of a text that is refused, bytes.
const SHOWN: usize = 64;

#[tonic::async_trait]
impl EventService for Api {
    type ReadEventsStream = Answers<ReadEventsResponse>;

    async fn read_events(
        &self,
        request: Request<ReadEventsRequest>,
    ) -> Result<Response<Self::ReadEventsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        if !request.vm.is_empty() {
            audit::about(|| format!("VM {}", request.vm));
        }
        let is_known = |text: &String| EventKind::ALL.iter().any(|kind| kind.is_meant_by(text));
        if let Some(unknown) = request.kinds.iter().find(|text| !is_known(text)) {
            let unknown = &unknown[..unknown.floor_char_boundary(SHOWN)];
            let problem = format!("{unknown:?} is no kind of event: see `fpagent events --help`");
            return Err(ApiError::InvalidField {
                field: "kinds",
                problem,
            }
            .into());
        }
        let state = self.read(deadline).await?;
        let vm = match request.vm.as_str() {
            "" => None,
            vm => Some(state.vm_of_events(&by, vm).map_err(ApiError::from)?),
        };
        let incarnation = self.node.identity.incarnation;
        let position = match (request.since.as_str(), request.follow) {
            ("oldest", _) | ("", false) => state.events.before_oldest(),
            ("newest", _) | ("", true) => state.events.newest(),
            (since, _) => parse(since, incarnation)?,
        };
        state
            .events
            .after(position)
            .map(drop)
            .map_err(out_of_range)?;
        let reader = Reader {
            node: Arc::clone(&self.node),
            published: self.node.raft.published(),
            by,
            vm,
            kinds: request.kinds,
            until: (!request.follow).then(|| state.events.newest()),
            position,
            told: None,
        };
        Ok(Response::new(told(reader)))
    }
}

fn out_of_range(problem: BadPosition) -> ApiError {
    ApiError::PositionOutOfRange(problem)
}

/// A position as it is written: `INCARNATION.NUMBER`, or a number of this incarnation.
fn parse(text: &str, incarnation: Ulid) -> Result<u64, ApiError> {
    let (of, number) = match text.split_once('.') {
        Some((of, number)) => (Some(of), number),
        None => (None, text),
    };
    let number = number.parse().ok();
    let of = of.map(Ulid::from_string).transpose().ok();
    let (Some(number), Some(of)) = (number, of) else {
        let text = &text[..text.floor_char_boundary(SHOWN)];
        let problem =
            format!("{text:?} is no position: \"oldest\", \"newest\", or one that was told");
        return Err(ApiError::BadPosition(problem));
    };
    if of.is_some_and(|of| of != incarnation) {
        return Err(ApiError::BadPosition(format!(
            "the position {text} is of another incarnation of the cluster, which was recovered or restored since and is in {incarnation}"
        )));
    }
    Ok(number)
}

/// One that reads.
struct Reader {
    node: Arc<Node>,
    published: watch::Receiver<Published>,
    by: Actor,
    vm: Option<VmId>,
    kinds: Vec<String>,
    /// The last position that it wants; `None` for one that follows.
    until: Option<u64>,
    /// All up to here was looked at.
    position: u64,
    /// The position that it heard of last.
    told: Option<u64>,
}

impl Follows for Reader {
    type Part = ReadEventsResponse;

    async fn next(&mut self) -> Result<Option<ReadEventsResponse>, Status> {
        loop {
            // The state is let go of before anything is waited for.
            let (events, is_behind) = {
                let state = Arc::clone(&self.published.borrow_and_update().view);
                let events = self.look(&state).map_err(out_of_range)?;
                let until = self.until.unwrap_or(state.events.newest());
                (events, self.position < until)
            };
            let passed = self.told.map(|told| self.position - told);
            let is_due = match passed {
                None => true,
                Some(0) => false,
                Some(passed) => passed >= AT_ONCE as u64 || (!is_behind && self.until.is_some()),
            };
            if !events.is_empty() || is_due {
                self.told = Some(self.position);
                return Ok(Some(ReadEventsResponse {
                    events,
                    position: self.shown(self.position),
                }));
            }
            if is_behind {
                yield_now().await;
            } else if self.until.is_some() {
                return Ok(None);
            } else {
                until_news(&self.node, &mut self.published).await?;
            }
        }
    }
}

impl Reader {
    /// Events from the position on, as many as fit into a message, and goes on to behind them.
    fn look(&mut self, state: &State) -> Result<Vec<v1::Event>, BadPosition> {
        let (mut events, mut bytes, mut position) = (Vec::new(), 0, self.position);
        for (number, event) in state.events.after(position)?.take(AT_ONCE) {
            let is_over = self.until.is_some_and(|until| number > until);
            if is_over || events.len() == PART || bytes >= ENOUGH {
                break;
            }
            position = number;
            if self.wants(event) && state.shows_event(event, &self.by) {
                let event = self.message(state, number, event);
                bytes += event.encoded_len();
                events.push(event);
            }
        }
        self.position = position;
        Ok(events)
    }

    fn wants(&self, event: &Event) -> bool {
        let kinds = &self.kinds;
        self.vm.is_none_or(|vm| event.is_about(vm))
            && (kinds.is_empty() || kinds.iter().any(|kind| event.kind.is_meant_by(kind)))
    }

    fn shown(&self, position: u64) -> String {
        format!("{}.{position}", self.node.identity.incarnation)
    }

    fn message(&self, state: &State, position: u64, event: &Event) -> v1::Event {
        let owner = match &event.audience {
            Audience::Of(ownership) => ownership.owner.clone(),
            Audience::Everybody | Audience::Administrators => String::new(),
        };
        let vm = event
            .vm
            .as_ref()
            .filter(|vm| vm.is_seen_by(state, &self.by));
        v1::Event {
            position: self.shown(position),
            at: Some(convert::timestamp(event.at)),
            kind: event.kind.word().to_owned(),
            id: id(event.subject),
            name: event.name.clone(),
            owner,
            node: event.node.clone(),
            vm: vm.map(|vm| vm.vm.to_string()).unwrap_or_default(),
            detail: event.detail_for(&self.by).to_owned(),
        }
    }
}

fn id(subject: Subject) -> String {
    match subject {
        Subject::Cluster | Subject::Quota => String::new(),
        Subject::Node(id) => id.to_string(),
        Subject::Token(id) => id.to_string(),
        Subject::Certificate(id) => id.to_string(),
        Subject::Lease(id) => id.to_string(),
        Subject::Image(id) => id.to_string(),
        Subject::Vm(id) => id.to_string(),
        Subject::Snapshot(id) => id.to_string(),
        Subject::Operation(id) => id.to_string(),
        Subject::Map(id) => id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_of_one_incarnation() {
        let (own, other) = (Ulid::from_parts(3, 4), Ulid::from_parts(3, 5));
        let read = |text: &str| parse(text, own).map_err(|error| error.to_string());
        assert_eq!(read(&format!("{own}.17")), Ok(17));
        assert_eq!(read("17"), Ok(17));
        let problem = read(&format!("{other}.17")).unwrap_err();
        assert!(problem.contains("another incarnation"), "{problem}");
        for text in [
            "x",
            "-1",
            "1.2.3",
            "now",
            &format!("{own}."),
            &format!("{own}.x"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains("no position"), "{problem}");
        }
    }
}
