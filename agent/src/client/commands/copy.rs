//! `fpagent cp`.

use std::{
    fs,
    io::{self, Read},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use guest::{
    channel::mux::Broken,
    files::{self, CopyError, From as Source, Limits, Meter, Mover, To},
};
use proto::v1::{
    CopyInRequest, CopyInResponse, CopyInStart, CopyOutRequest, CopyOutResponse, CopyOutStart,
    copy_in_request::Part as In, copy_out_request::Part as Out,
};
use tokio::{
    signal::ctrl_c,
    sync::{mpsc, oneshot},
    time::{interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::{
    client::{
        Context,
        args::work::{CopySide, CpArgs, name_at},
        failure::{Failure, FailureKind},
        progress::Progress,
        reach::broken,
        terminal,
        views::copy::CopyView,
    },
    convert::files as convert,
};

/// Requests that are sent ahead of the guest.
const AHEAD: usize = 4;
/// How often it is shown how far it is.
const SHOWN: Duration = Duration::from_millis(100);
/// How long the other side may take to hear the last word.
const LAST_WORD: Duration = Duration::from_secs(2);
/// What to do about a copy that was interrupted.
const GO_ON: &str = "run the command again, and it goes on where it was";

pub(crate) async fn run(context: &Context, args: CpArgs) -> Result<(), Failure> {
    let (source, destination) = (CopySide::of(&args.source), CopySide::of(&args.destination));
    let progress = Progress::flow(format!(
        "{} to {}",
        args.source.to_string_lossy(),
        args.destination.to_string_lossy()
    ));
    let to_standard_output = destination == CopySide::Standard;
    let view = match (source, destination) {
        (CopySide::Here(path), CopySide::In { vm, path: to }) => {
            let name = name_at(path.as_os_str().as_bytes());
            check_here(&path)?;
            copy_in(context, Source::Path(path), name, vm, to, &progress).await?
        }
        (CopySide::Standard, CopySide::In { vm, path: to }) => {
            let input = Input {
                pieces: terminal::input(),
                rest: Vec::new(),
            };
            let source = Source::Reader(Box::new(input));
            copy_in(context, source, Vec::new(), vm, to, &progress).await?
        }
        (CopySide::In { vm, path }, CopySide::Here(to)) => {
            let name = name_at(&path);
            let to = To::Path { path: to, name };
            copy_out(context, vm, path, to, &progress).await?
        }
        (CopySide::In { vm, path }, CopySide::Standard) => {
            let to = To::Writer(Box::new(io::stdout()));
            copy_out(context, vm, path, to, &progress).await?
        }
        _ => {
            return Err(Failure::usage(
                "one of SRC and DST is in a VM, and only one",
                "write it VM:PATH",
            ));
        }
    };
    drop(progress);
    for warning in view.warnings() {
        eprintln!("fpagent: {warning}");
    }
    match (to_standard_output, context.for_people()) {
        (true, _) => Ok(()),
        (false, true) => context.say(view.line()),
        (false, false) => context.data(&view),
    }
}

/// What is not there is told before anybody is asked.
fn check_here(path: &PathBuf) -> Result<(), Failure> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::refused(
            format!("{} cannot be read: {error}", path.display()),
            "check the path",
        )),
    }
}

/// This command's input, for a thread that may wait for it.
struct Input {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: Vec<u8>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let Some(piece) = self.pieces.blocking_recv() else {
                return Ok(0);
            };
            self.rest = piece?;
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

async fn copy_in(
    context: &Context,
    source: Source,
    name: Vec<u8>,
    vm: String,
    path: Vec<u8>,
    progress: &Progress,
) -> Result<CopyView, Failure> {
    let start = CopyInStart {
        vm,
        path: path.into(),
        name: name.into(),
    };
    let reach = context.reach()?;
    let opened = reach.call(async |attempt| {
        let (sender, inputs) = mpsc::channel(AHEAD);
        let first = CopyInRequest {
            part: Some(In::Start(start.clone())),
        };
        // There is room for it.
        let _kept = sender.try_send(first);
        // Without a deadline: the call has no end of its own.
        let request = Request::new(ReceiverStream::new(inputs));
        let answer = attempt.guests().copy_in(request).await?;
        Ok(answer.map(|answers| (sender, answers)))
    });
    let (requests, answers) = opened.await?;
    let (mut ends, mover) = files::sender();
    let work = Work::start(move |meter| files::send(source, &mut ends, meter));
    let call = Call {
        requests,
        answers,
        to_request: |said| CopyInRequest {
            part: Some(convert::copy_in(said)),
        },
        from_answer: |answer: CopyInResponse| answer.part.map(convert::reply),
        // The other side has what there is of a file, and is to know whether that is of any use.
        failed: Some(|why| CopyInRequest {
            part: Some(In::Failed(why)),
        }),
    };
    converse(call, mover, work, progress).await
}

/// Copies out of a VM.
pub(in crate::client) async fn copy_out(
    context: &Context,
    vm: String,
    path: Vec<u8>,
    to: To,
    progress: &Progress,
) -> Result<CopyView, Failure> {
    let start = CopyOutStart {
        vm,
        path: path.into(),
    };
    let reach = context.reach()?;
    let opened = reach.call(async |attempt| {
        let (sender, inputs) = mpsc::channel(AHEAD);
        let first = CopyOutRequest {
            part: Some(Out::Start(start.clone())),
        };
        let _kept = sender.try_send(first);
        let request = Request::new(ReceiverStream::new(inputs));
        let answer = attempt.guests().copy_out(request).await?;
        Ok(answer.map(|answers| (sender, answers)))
    });
    let (requests, answers) = opened.await?;
    let (mut ends, mover) = files::receiver();
    let work = Work::start(move |meter| files::receive(to, Limits::OF_GUESTS, &mut ends, meter));
    let call = Call {
        requests,
        answers,
        to_request: |reply| CopyOutRequest {
            part: Some(convert::copy_out_reply(reply)),
        },
        from_answer: |answer: CopyOutResponse| answer.part.map(convert::said),
        failed: None,
    };
    converse(call, mover, work, progress).await
}

/// The thread that reads or writes the files here. Not waited for where the command fails: nothing ends a read of a terminal but a key.
struct Work {
    meter: Arc<Meter>,
    outcome: oneshot::Receiver<Result<(), CopyError>>,
}

impl Work {
    fn start(work: impl FnOnce(&Meter) -> Result<(), CopyError> + Send + 'static) -> Self {
        let (done, outcome) = oneshot::channel();
        let meter = Arc::new(Meter::default());
        let counted = Arc::clone(&meter);
        thread::spawn(move || {
            // Whoever waits may have given up.
            let _gone = done.send(work(&counted));
        });
        Self { meter, outcome }
    }
}

/// A call about files, and how what is said goes over it.
struct Call<Q, A, Out, In> {
    requests: mpsc::Sender<Q>,
    answers: Streaming<A>,
    to_request: fn(Out) -> Q,
    from_answer: fn(A) -> Option<In>,
    /// Says that this side cannot go on.
    failed: Option<fn(String) -> Q>,
}

/// Moves what is said between the thread and the call, until both have ended.
async fn converse<Q, A, Out, In>(
    call: Call<Q, A, Out, In>,
    mover: Mover<Out, In>,
    mut work: Work,
    progress: &Progress,
) -> Result<CopyView, Failure> {
    let Mover { mut said, heard } = mover;
    let (last_word, last_heard) = (call.requests.clone(), heard.clone());
    let (requests, mut answers) = (call.requests, call.answers);
    let (to_request, from_answer) = (call.to_request, call.from_answer);
    let mut outward = pin!(async move {
        while let Some(next) = said.recv().await {
            if requests.send(to_request(next)).await.is_err() {
                return;
            }
        }
    });
    let mut inward = pin!(async move {
        loop {
            match answers.message().await {
                // Where it says nothing it is of a newer agent; and a thread that has ended hears nothing more.
                Ok(Some(answer)) => {
                    if let Some(next) = from_answer(answer) {
                        drop(heard.send(Ok(next)).await);
                    }
                }
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    });
    let mut ticks = interval(SHOWN);
    let mut all_said = false;
    let outcome = loop {
        tokio::select! {
            outcome = &mut work.outcome => break outcome,
            () = &mut outward, if !all_said => all_said = true,
            ended = &mut inward => {
                // A sender that is told of a failure has nothing to put in order, and may be waiting for its input.
                let waits = ended.is_none() || call.failed.is_none();
                let (reason, failure) = ending(ended);
                // It may have heard that all is well. Or it keeps what there is of a file, or does not, by the reason.
                let told = async {
                    let telling = last_heard.send(Err(reason));
                    if all_said {
                        drop(telling.await);
                    } else {
                        drop(tokio::join!(telling, outward));
                    }
                    (&mut work.outcome).await
                };
                if waits && let Ok(Ok(Ok(()))) = timeout(LAST_WORD, told).await {
                    return Ok(CopyView::from(&*work.meter));
                }
                return Err(failure);
            }
            interrupted = ctrl_c() => {
                interrupted?;
                return Err(Failure::refused("the copy was interrupted", GO_ON));
            }
            _ = ticks.tick() => show(progress, &work.meter),
        }
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(_) => return Err(Failure::refused("the copy failed without a reason", "")),
    };
    if let Err(CopyError::Broken(_)) = &outcome {
        // Not of itself, but with the call: that says why.
        let ended = timeout(LAST_WORD, inward).await.unwrap_or(None);
        return Err(ending(ended).1);
    }
    if let (Err(error), Some(failed)) = (&outcome, call.failed) {
        // Where the call has ended nobody needs to know.
        drop(last_word.send(failed(error.to_string())).await);
    }
    drop(last_word);
    if outcome.is_ok() || call.failed.is_some() {
        let rest = async {
            if !all_said {
                outward.await;
            }
            drop(inward.await);
        };
        // All that was to be done is done.
        let _in_time = timeout(LAST_WORD, rest).await;
    }
    match outcome {
        Ok(()) => Ok(CopyView::from(&*work.meter)),
        Err(CopyError::NoReader) => Err(Failure::new(FailureKind::NoReader, "", "")),
        Err(error) => Err(Failure::refused(error, "")),
    }
}

fn show(progress: &Progress, meter: &Meter) {
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    let done = get(&meter.bytes) + get(&meter.spared);
    let files = get(&meter.files) + get(&meter.same);
    progress.at_of(done, get(&meter.total), format!("{files} files"));
}

/// What the end of a call means, for the thread and for the user.
fn ending(status: Option<Status>) -> (Broken, Failure) {
    let lost = || Broken::Lost("the call ended".to_owned());
    let Some(status) = status else {
        let failure = Failure::refused("the agent ended the call before all was copied", GO_ON);
        return (lost(), failure);
    };
    if std::error::Error::source(&status).is_some() {
        return (lost(), broken(&status, GO_ON));
    }
    match status.code() {
        Code::Aborted | Code::Cancelled => (lost(), Failure::refused(status.message(), GO_ON)),
        Code::Unavailable => {
            let failure = Failure::new(FailureKind::Unreachable, status.message(), GO_ON);
            (lost(), failure)
        }
        _ => (
            Broken::Failed(status.message().to_owned()),
            Failure::from(status),
        ),
    }
}
