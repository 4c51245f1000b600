//! Keeps a node's certificate good, and carries the authority's replacement out on it: what the replicated state says of that goes to disk,
//! the new authority's key is fetched from whoever has it, and the node's certificate is signed anew. The node that leads has the new
//! authority sign once all that are online have it.
//!
//! Each step is on disk before it is reported, and can be taken again: an agent that is killed goes on where it was.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::peer::FetchAuthorityRequest;
use qemu::failpoint;
use raft::node::Published;
use raft::state::{Command, Fingerprint, NodeId, NodeTrust, Replacement, ReplacementPhase, State};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    errors::chain,
    node::Node,
    trust::{
        TrustError,
        authority::{Authority, Credentials, key_hash},
        identity::DataDir,
        renewal,
        replacement::Known,
    },
};

/// How often is looked, when nothing is heard of.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a report, or another node's answer, may take until it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A step could not be taken; it is tried again.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// It cannot be written, or signed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The others would not believe what is signed.
    #[error("the node's certificate is not renewed: {0}; synchronise it (NTP)")]
    WrongClock(String),
    /// No other node gives the new authority's key.
    #[error(
        "no node that can be reached gives the new authority's key: if that stays so, begin anew (fpagent authority replace)"
    )]
    NobodyHasIt,
}

struct Keeper {
    data: DataDir,
    node: Arc<Node>,
    /// What the node shows of itself.
    own: Credentials,
    /// What its disk has of a replacement.
    kept: Option<Known>,
    /// What went wrong last: it is said once.
    said: String,
}

/// Does so until the node ends.
pub async fn run(data: DataDir, node: Arc<Node>, own: Credentials) {
    let mut published = node.raft.published();
    let mut keeper = Keeper {
        data,
        node: Arc::clone(&node),
        own,
        kept: node.own.trusted.known(),
        said: String::new(),
    };
    loop {
        let state = Arc::clone(&published.borrow_and_update().view);
        // Of a step that waits for another node nothing is half done.
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = keeper.look(&state) => {}
        }
        let is_news = |now: &Published| now.view.replacement != state.replacement;
        let news = async { published.wait_for(is_news).await.is_ok() };
        tokio::select! {
            () = node.cancel.cancelled() => return,
            goes_on = news => if !goes_on {
                return;
            },
            () = sleep(PAUSE) => {}
        }
    }
}

impl Keeper {
    async fn look(&mut self, state: &State) {
        match self.step(state).await {
            Ok(()) => self.said.clear(),
            Err(error) => {
                let said = chain(&error);
                if said != self.said {
                    tracing::error!(error = %said, "this node's certificates are not as they should be; it is tried again");
                }
                self.said = said;
            }
        }
        if self.node.raft.status().leader == Some(self.node.id()) {
            self.go_on(state).await;
        }
    }

    async fn step(&mut self, state: &State) -> Result<(), StepError> {
        self.follow(state)?;
        let own = self.node.authority().fingerprint();
        let had = match self.wanted() {
            Some(_) => self.have().await,
            None => Ok(own),
        };
        // Whatever became of that.
        self.renew()?;
        let holds = match &had {
            Ok(holds) => *holds,
            Err(_) => own,
        };
        self.report(state, holds).await?;
        had.map(|_| ())
    }

    /// The replacement whose new authority this node does not sign with.
    fn wanted(&self) -> Option<Arc<Replacement>> {
        let known = self.node.own.trusted.known()?;
        let own = self.node.authority().fingerprint();
        Some(known.replacement).filter(|one| one.new.fingerprint != own)
    }

    /// Takes over what the state says of a replacement.
    fn follow(&mut self, state: &State) -> Result<(), StepError> {
        let trusted = &self.node.own.trusted;
        let Some(now) = Known::of(state) else {
            return Ok(());
        };
        let before = trusted.known();
        // Whom to trust does not wait for a disk that is full.
        if is_news(&now, before.as_ref()) {
            let phase = now.replacement.phase;
            trusted.set(self.node.authority().certificate(), now.clone())?;
            self.node.own.set(&self.own)?;
            if before.is_none_or(|before| before.replacement.phase != phase) {
                tracing::info!(?phase, "the replacement of the cluster's authority goes on");
                // What was believed by the old one is shown anew before that ends, or when it has.
                self.node.redial();
            }
        }
        if is_news(&now, self.kept.as_ref()) {
            self.data.keep_replacement(&now)?;
            failpoint::reached("authority.noted");
            self.kept = Some(now);
        }
        Ok(())
    }

    /// Has the new authority on disk, and where it signs already, in its place. Returns its fingerprint.
    async fn have(&mut self) -> Result<Fingerprint, StepError> {
        // Whoever begins a replacement lays its key there, too: what is wanted may be another one by now.
        let node = Arc::clone(&self.node);
        let _turn = node.replacing.lock().await;
        self.follow(&node.state())?;
        let own = self.node.authority();
        let Some(replacement) = self.wanted() else {
            return Ok(own.fingerprint());
        };
        let staged = self.data.staged_authority(&own)?;
        let is_it = |one: &Authority| one.fingerprint() == replacement.new.fingerprint;
        let new = match staged.filter(is_it) {
            Some(new) => new,
            None => {
                let new = fetch(&self.node, &replacement).await?;
                self.data.stage_authority(&new)?;
                new
            }
        };
        if replacement.phase != ReplacementPhase::Spreading {
            self.data.take_staged_authority()?;
            failpoint::reached("authority.in-place");
            self.node.set_authority(new);
        }
        Ok(replacement.new.fingerprint)
    }

    fn renew(&mut self) -> Result<(), StepError> {
        let authority = self.node.authority();
        let identity = &self.node.identity;
        let clock = &self.node.clock;
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(clock.now());
        if !renewal::is_due(&authority, &self.own, now)? {
            return Ok(());
        }
        if let Some(problem) = clock.problem() {
            return Err(StepError::WrongClock(problem));
        }
        let renewed = renewal::renew(&self.data, identity, &authority, &self.own)?;
        failpoint::reached("authority.renewed");
        let certificate = authority.certificate().clone();
        self.node.own.set_under(&renewed, certificate)?;
        self.own = renewed;
        self.node.redial();
        Ok(())
    }

    /// Tells the cluster where this node stands, where that is news.
    async fn report(&self, state: &State, holds: Fingerprint) -> Result<(), StepError> {
        let trust = NodeTrust {
            key: key_hash(&self.own.certificate)?,
            authority: self.node.authority().fingerprint(),
            holds,
        };
        let node = self.node.id();
        let known = state.nodes.get(&node);
        // A newcomer is noted as started first.
        let is_news =
            known.is_some_and(|known| known.has_started() && known.trust.as_ref() != Some(&trust));
        if is_news {
            self.propose(Command::ReportTrust { node, trust }).await;
        }
        Ok(())
    }

    /// Has the new authority sign, when every node that is online has it. One that is away believes the others all the same.
    async fn go_on(&self, state: &State) {
        let Some(online) = self.node.leases.online() else {
            return;
        };
        if let Some((number, absent)) = ready(state, &online) {
            self.propose(Command::SignWithNewAuthority { number, absent })
                .await;
        }
    }

    async fn propose(&self, command: Command) {
        let deadline = Instant::now() + PATIENCE;
        if let Err(error) = self.node.propose(None, command, deadline).await {
            tracing::debug!(%error, "a step of the authority's replacement did not get through yet");
        }
    }
}

/// Whether what a state says is more than what is known, or the same with other keys: nodes came or went.
fn is_news(now: &Known, known: Option<&Known>) -> bool {
    let has_other_keys =
        |known: &Known| known.replacement == now.replacement && known.keys != now.keys;
    now.is_newer(known) || known.is_some_and(has_other_keys)
}

/// The replacement that can go on, and the nodes that are absent from it.
fn ready(state: &State, online: &BTreeSet<NodeId>) -> Option<(u64, Vec<NodeId>)> {
    let replacement = state.replacement.as_ref()?;
    if replacement.phase != ReplacementPhase::Spreading {
        return None;
    }
    let mut absent = Vec::new();
    for node in state.nodes.values().filter(|node| node.has_started()) {
        let holds = node.trust.as_ref().map(|trust| trust.holds);
        match online.contains(&node.id) {
            _ if holds == Some(replacement.new.fingerprint) => {}
            true => return None,
            false => absent.push(node.id),
        }
    }
    Some((replacement.number, absent))
}

/// Asks the others in turn.
async fn fetch(node: &Node, replacement: &Replacement) -> Result<Authority, StepError> {
    let new = &replacement.new;
    for other in node.peers.others(node.id()) {
        let Ok(mut client) = node.peers.client(other).await else {
            continue;
        };
        let request = FetchAuthorityRequest {
            fingerprint: new.fingerprint.to_vec().into(),
        };
        let answer = match timeout(PATIENCE, client.fetch_authority(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                tracing::debug!(other, %status, "it does not give the new authority's key");
                continue;
            }
            Err(_) => continue,
        };
        match Authority::from_der(node.identity.cluster, &new.der, &answer.key) {
            Ok(authority) => return Ok(authority),
            Err(error) => tracing::warn!(other, %error, "it gives a key that is another's"),
        }
    }
    Err(StepError::NobodyHasIt)
}

#[cfg(test)]
mod tests {
    use raft::state::{AuthorityCertificate, Labels, Node as Member};

    use super::*;

    fn state(phase: ReplacementPhase, holds: &[Option<u8>]) -> State {
        let certificate = |byte| AuthorityCertificate {
            fingerprint: [byte; 32],
            der: vec![byte],
            expires_at: 9,
        };
        let node = |(index, holds): (usize, &Option<u8>)| {
            let id = index as u64 + 1;
            let node = Member {
                id,
                name: format!("n{id}"),
                address: "h:1".into(),
                schedulable: true,
                labels: Labels::new(),
                created_at: 0,
                capacity: None,
                start_by: None,
                trust: holds.map(|byte| NodeTrust {
                    key: [0; 32],
                    authority: [1; 32],
                    holds: [byte; 32],
                }),
                drain: None,
            };
            (id, Arc::new(node))
        };
        State {
            nodes: holds.iter().enumerate().map(node).collect(),
            replacement: Some(Arc::new(Replacement {
                number: 4,
                phase,
                old: certificate(1),
                new: certificate(2),
                cross: Vec::new(),
                is_compromised: false,
                began_at: 1,
                finished_at: None,
            })),
            ..State::new()
        }
    }

    #[test]
    fn what_is_further_is_news_and_so_are_other_keys() {
        use crate::trust::replacement::tests::replaced;
        let old = Authority::create(ulid::Ulid::from_parts(1, 1)).unwrap();
        let (known, _) = replaced(&old, ReplacementPhase::Spreading, true, &[(1, [1; 32])]);
        assert!(is_news(&known, None));
        assert!(!is_news(&known, Some(&known)));
        let mut grown = known.clone();
        grown.keys.insert(2, [2; 32]);
        assert!(is_news(&grown, Some(&known)) && is_news(&known, Some(&grown)));
        let mut further = known.clone();
        Arc::make_mut(&mut further.replacement).phase = ReplacementPhase::Renewing;
        assert!(is_news(&further, Some(&known)));
        assert!(!is_news(&grown, Some(&further)), "it is from before");
    }

    #[test]
    fn it_goes_on_when_all_that_are_online_have_the_new_one() {
        use ReplacementPhase::{Renewing, Spreading};
        let two = |holds: &[Option<u8>]| ready(&state(Spreading, holds), &[1, 2].into());
        assert_eq!(two(&[Some(2), Some(2)]), Some((4, vec![])));
        assert_eq!(two(&[Some(2), Some(1)]), None);
        assert_eq!(two(&[Some(2), None]), None);
        assert_eq!(two(&[Some(2), Some(2), Some(1)]), Some((4, vec![3])));
        assert_eq!(ready(&state(Renewing, &[Some(2)]), &[1].into()), None);
        assert_eq!(ready(&State::new(), &[1].into()), None);
    }
}
