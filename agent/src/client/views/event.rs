//! An event, as it is printed.

use proto::v1;
use serde::Serialize;

use super::{Moment, time, time_text};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct EventView {
    pub position: String,
    pub at: Option<Moment>,
    pub kind: String,
    pub id: String,
    pub name: String,
    pub owner: String,
    pub node: String,
    pub vm: String,
    pub detail: String,
}

impl From<v1::Event> for EventView {
    fn from(event: v1::Event) -> Self {
        Self {
            position: event.position,
            at: time(event.at),
            kind: event.kind,
            id: event.id,
            name: event.name,
            owner: event.owner,
            node: event.node,
            vm: event.vm,
            detail: event.detail,
        }
    }
}

impl EventView {
    /// The titles of the columns. They have fixed widths, since what comes next is not known.
    pub fn header(wide: bool) -> String {
        line(
            wide,
            [
                "POSITION", "AT", "KIND", "NAME", "NODE", "OWNER", "ID", "DETAIL",
            ],
        )
    }

    /// A line for people. The position is the number of this incarnation.
    pub fn text(&self, wide: bool) -> String {
        let number = self.position.rsplit('.').next().unwrap_or_default();
        let name = match self.name.as_str() {
            "" => &self.id,
            name => name,
        };
        let at = time_text(self.at);
        let [node, owner, id] =
            [&self.node, &self.owner, &self.id].map(|cell| match cell.as_str() {
                "" => "-",
                cell => cell,
            });
        line(
            wide,
            [number, &at, &self.kind, name, node, owner, id, &self.detail],
        )
    }
}

fn line(wide: bool, [number, at, kind, name, node, owner, id, detail]: [&str; 8]) -> String {
    let more = match wide {
        true => format!("{owner:12}  {id:26}  "),
        false => String::new(),
    };
    let line = format!("{number:<8}  {at:24}  {kind:21}  {name:26}  {node:12}  {more}{detail}");
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_and_an_object() {
        let event = v1::Event {
            position: "01X.17".into(),
            kind: "vm.failed".into(),
            id: "01Y".into(),
            name: "web".into(),
            owner: "ann".into(),
            node: "node1".into(),
            detail: "no memory".into(),
            ..Default::default()
        };
        let view = EventView::from(event);
        let words = |line: String| {
            let words = line.split_whitespace().map(str::to_owned);
            words.collect::<Vec<_>>()
        };
        assert_eq!(
            words(view.text(false)),
            ["17", "vm.failed", "web", "node1", "no", "memory"]
        );
        assert_eq!(
            words(view.text(true)),
            [
                "17",
                "vm.failed",
                "web",
                "node1",
                "ann",
                "01Y",
                "no",
                "memory"
            ]
        );
        let begins = |line: &str, what: &str| line.find(what);
        assert_eq!(
            begins(&EventView::header(false), "DETAIL"),
            begins(&view.text(false), "no memory")
        );
        assert_eq!(
            serde_json::to_value(&view).unwrap(),
            serde_json::json!({
                "position": "01X.17", "at": null, "kind": "vm.failed", "id": "01Y", "name": "web", "owner": "ann", "node": "node1",
                "vm": "", "detail": "no memory"
            })
        );
    }
}
