//! What a host makes of what a guest says of itself: it may be a lie, too long, or meant for somebody's terminal. Pure.

use bytes::Bytes;
use prost::Message as _;

use super::message::{Failed, NEWEST, OLDEST, Welcome};

/// The longest text of a guest that is kept, characters.
pub const LONGEST_TEXT: usize = 200;
/// The most steps that may have failed.
pub const MOST_FAILED: usize = 64;

/// An answer to a greeting with which no session begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is no answer.
    #[error("its answer cannot be read: {0}")]
    Unreadable(#[from] prost::DecodeError),
    /// It speaks no form of the protocol that is spoken here.
    #[error(
        "it speaks no form of the protocol that this agent knows ({OLDEST} to {NEWEST}); it is version {0:?}"
    )]
    Version(String),
    /// It is not who it was told that it is.
    #[error("it says that it is another VM")]
    Another,
}

/// The answer of a guest that was told that it is this incarnation, fit to be kept and shown.
///
/// # Errors
/// No session begins with it.
pub fn welcome(payload: Bytes, incarnation: &str) -> Result<Welcome, Unfit> {
    let said = Welcome::decode(payload)?;
    let agent_version = shown(&said.agent_version);
    if !(OLDEST..=NEWEST).contains(&said.version) {
        return Err(Unfit::Version(agent_version));
    }
    if said.incarnation != incarnation && !planted::planted("messages.another-vm") {
        return Err(Unfit::Another);
    }
    Ok(Welcome {
        agent_version,
        failed: failed(said.failed),
        os: shown(&said.os),
        kernel: shown(&said.kernel),
        ..said
    })
}

/// Steps that failed, fit to be kept and shown.
pub fn failed(steps: Vec<Failed>) -> Vec<Failed> {
    let kept = steps.into_iter().take(MOST_FAILED).map(|step| Failed {
        step: shown(&step.step),
        reason: shown(&step.reason),
    });
    kept.collect()
}

/// A text of a guest, fit to be shown: one line, and nothing that a terminal obeys.
pub fn shown(text: &str) -> String {
    let fit = text.chars().filter(|c| !c.is_control());
    fit.take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(change: impl FnOnce(&mut Welcome)) -> Result<Welcome, Unfit> {
        let mut said = Welcome {
            version: NEWEST,
            incarnation: "vm.1".to_owned(),
            ..Welcome::default()
        };
        change(&mut said);
        welcome(said.encode_to_vec().into(), "vm.1")
    }

    #[test]
    fn an_answer_is_cut_to_what_may_be_kept() {
        let long = "\u{1b}[2J".repeat(1000);
        let kept = said(|said| {
            said.os = long.clone();
            said.failed = vec![
                Failed {
                    step: long.clone(),
                    reason: String::new(),
                };
                1000
            ];
        });
        let kept = kept.unwrap();
        assert_eq!(kept.failed.len(), MOST_FAILED);
        for text in [&kept.os, &kept.failed[0].step] {
            assert_eq!(*text, "[2J".repeat(1000)[..LONGEST_TEXT]);
        }
    }

    #[test]
    fn whoever_lies_is_found_out() {
        for version in [0, NEWEST + 1] {
            let unfit = said(|said| said.version = version).unwrap_err();
            assert!(matches!(unfit, Unfit::Version(_)));
        }
        let unfit = said(|said| said.incarnation = "vm.10".to_owned());
        assert_eq!(unfit, Err(Unfit::Another));
        let unfit = welcome(Bytes::from_static(&[255; 9]), "vm.1");
        assert!(matches!(unfit, Err(Unfit::Unreadable(_))));
    }
}
