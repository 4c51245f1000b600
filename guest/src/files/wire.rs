//! A conversation about files on a stream of the guest's channel: content goes over lane 0, all else as messages, which say how much
//! of it is what. Used by either end: the guest's agent and the host's.

use bytes::Bytes;

use super::{CHUNK, Content, Reply, Said};
use crate::channel::{
    link::Stream,
    message::{FromReceiver, FromSender, Run, from_sender::What},
    mux::Broken,
};

/// What goes over a lane at once.
const PIECE: usize = 32 << 10;

/// Says something as the sender, once there is room for it.
///
/// # Errors
/// The stream has ended.
pub async fn say(stream: &Stream, said: Said) -> Result<(), Broken> {
    let (what, mut content) = match said {
        Said::Piece(piece) => (What::Piece(piece), Bytes::new()),
        Said::End(end) => (What::End(end), Bytes::new()),
        Said::Content(content) => {
            let run = Run {
                offset: content.offset,
                bytes: content.bytes.len() as u64,
                last: content.last,
                gone: content.gone,
            };
            (What::Run(run), content.bytes)
        }
    };
    stream.tell(&FromSender { what: Some(what) }).await?;
    while !content.is_empty() {
        let piece = content.split_to(content.len().min(PIECE));
        stream.send(0, piece).await?;
    }
    Ok(())
}

/// Answers as the receiver, once there is room for it.
///
/// # Errors
/// The stream has ended.
pub async fn answer(stream: &Stream, reply: Reply) -> Result<(), Broken> {
    stream.tell(&FromReceiver { what: Some(reply) }).await
}

/// The receiver's next answer.
///
/// # Errors
/// The stream has ended.
pub async fn hear_answer(stream: &Stream) -> Result<Reply, Broken> {
    loop {
        let heard = stream.hear::<FromReceiver>().await?;
        // One that says nothing is of a newer side.
        if let Some(reply) = heard.ok_or(Broken::Closed)?.what {
            return Ok(reply);
        }
    }
}

/// Puts together what a sender says.
#[derive(Debug, Default)]
pub struct Hearing {
    /// What is left of a run.
    run: Option<Run>,
    /// Content that came and was not yet given on.
    rest: Bytes,
}

impl Hearing {
    /// What is said next. Nothing is lost when it is not waited for to the end.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn next(&mut self, stream: &Stream) -> Result<Said, Broken> {
        loop {
            if let Some(run) = &mut self.run {
                if run.bytes > 0 && self.rest.is_empty() {
                    let ended = || Broken::Failed("content is missing".to_owned());
                    self.rest = stream.take(0).await?.ok_or_else(ended)?;
                }
                let left = usize::try_from(run.bytes).unwrap_or(usize::MAX);
                let bytes = self.rest.split_to(self.rest.len().min(left).min(CHUNK));
                let count = bytes.len() as u64;
                run.bytes -= count;
                let content = Content {
                    offset: run.offset,
                    bytes,
                    last: run.last && run.bytes == 0,
                    gone: run.gone,
                };
                run.offset = run.offset.saturating_add(count);
                if run.bytes == 0 {
                    self.run = None;
                }
                return Ok(Said::Content(content));
            }
            let heard = stream.hear::<FromSender>().await?;
            match heard.ok_or(Broken::Closed)?.what {
                Some(What::Piece(piece)) => return Ok(Said::Piece(piece)),
                Some(What::End(end)) => return Ok(Said::End(end)),
                Some(What::Run(run)) => self.run = Some(run),
                // Of a newer side.
                None => {}
            }
        }
    }
}
