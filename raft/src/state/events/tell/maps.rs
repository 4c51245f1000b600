//! What happened to maps that are left to the cluster.

use super::{Event, EventKind, Subject, Teller};
use crate::state::{
    events::Audience,
    model::{Map, MapState},
};

impl Teller<'_> {
    pub(super) fn maps_started(&mut self) {
        for (_, then, now) in self.after.maps.differences(&self.before.maps) {
            if let (None, Some(now)) = (then, now) {
                let detail = format!("{} items of {}", now.job.count, now.job.source);
                self.map_event(EventKind::MapStarted, now, detail);
            }
        }
    }

    pub(super) fn maps_changed(&mut self) {
        for (_, then, now) in self.after.maps.differences(&self.before.maps) {
            match (then, now) {
                (Some(then), None) => self.map_event(EventKind::MapDeleted, then, String::new()),
                (Some(then), Some(now)) => self.map(then, now),
                (None, _) => {}
            }
        }
    }

    fn map(&mut self, then: &Map, now: &Map) {
        if now.lease.is_some() && now.lease != then.lease {
            let left = now.job.count as usize - now.results.len();
            let detail = format!("{left} items are left");
            self.map_event(EventKind::MapDriven, now, detail);
        }
        if then.state == now.state {
            return;
        }
        let known = format!("{} of {} items", now.results.len(), now.job.count);
        match &now.state {
            MapState::Running => {}
            MapState::Finished => {
                let detail = match now.failures().count() {
                    0 => known,
                    failed => format!("{known}, {failed} failed"),
                };
                self.map_event(EventKind::MapFinished, now, detail);
            }
            MapState::Cancelled => self.map_event(EventKind::MapCancelled, now, known),
            MapState::Failed { reason } => {
                self.map_event(EventKind::MapFailed, now, reason.clone());
            }
        }
    }

    fn map_event(&mut self, kind: EventKind, map: &Map, detail: String) {
        let audience = Audience::Of(map.ownership.clone());
        let event = self.event(kind, Subject::Map(map.id), audience);
        let node = map.driver.map(|node| self.node_name(node));
        self.tell(Event {
            name: map.name.clone().unwrap_or_default(),
            node: node.unwrap_or_default(),
            detail,
            ..event
        });
    }
}
