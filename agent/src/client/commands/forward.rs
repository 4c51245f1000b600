//! `fpagent forward`.

use std::{net::SocketAddr, rc::Rc};

use proto::v1::{
    ForwardRequest, ForwardResponse, ForwardStart, forward_request::Part as In,
    forward_response::Part as Out,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    signal::ctrl_c,
    sync::mpsc,
    task::LocalSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::client::{
    Context,
    args::work::{ForwardArgs, PortPair},
    failure::{Failure, FailureKind},
    reach::Reach,
};

/// Requests that are sent ahead of the guest.
const AHEAD: usize = 4;
/// How much is read at once, bytes.
const READ: usize = 32 << 10;

pub(crate) async fn run(context: &Context, args: ForwardArgs) -> Result<(), Failure> {
    let reach = Rc::new(context.reach()?);
    let all = LocalSet::new();
    for pair in args.ports {
        let listener = TcpListener::bind(&pair.local).await.map_err(|error| {
            let hint = "choose another local port, or 0 for one that is free";
            Failure::refused(format!("cannot listen on {}: {error}", pair.local), hint)
        })?;
        let address = listener.local_addr()?;
        context.say(format_args!(
            "forwarding {address} to port {} of {}; Ctrl-C ends it",
            pair.guest, args.vm
        ))?;
        let (reach, vm) = (Rc::clone(&reach), args.vm.clone());
        all.spawn_local(listen(reach, vm, pair, listener));
    }
    all.run_until(async { Ok(ctrl_c().await?) }).await
}

/// Takes connections up for as long as the program runs.
async fn listen(reach: Rc<Reach>, vm: String, pair: PortPair, listener: TcpListener) {
    loop {
        let (connection, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("fpagent: a connection could not be taken up: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (reach, vm, port) = (Rc::clone(&reach), vm.clone(), pair.guest);
        tokio::task::spawn_local(async move {
            if let Err(failure) = carry(&reach, &vm, port, connection).await {
                told(peer, &failure);
            }
        });
    }
}

fn told(peer: SocketAddr, failure: &Failure) {
    let line = failure.line();
    eprintln!("{line} (connection from {peer})");
}

type Opened = (mpsc::Sender<ForwardRequest>, Streaming<ForwardResponse>);

async fn open(reach: &Reach, vm: &str, port: u16) -> Result<Opened, Failure> {
    let opened = reach.call(async |attempt| {
        let (sender, inputs) = mpsc::channel(AHEAD);
        let start = ForwardStart {
            vm: vm.to_owned(),
            host: String::new(),
            port: u32::from(port),
        };
        let first = ForwardRequest {
            part: Some(In::Start(start)),
        };
        // There is room for it.
        let _kept = sender.try_send(first);
        let request = Request::new(ReceiverStream::new(inputs));
        let answer = attempt.guests().forward(request).await?;
        Ok(answer.map(|answers| (sender, answers)))
    });
    opened.await
}

/// Carries one connection until both sides have ended.
async fn carry(reach: &Reach, vm: &str, port: u16, connection: TcpStream) -> Result<(), Failure> {
    let (requests, mut answers) = open(reach, vm, port).await?;
    // Small things are said at once. It costs nothing where that cannot be set.
    let _as_it_is = connection.set_nodelay(true);
    let (mut from, mut to) = connection.into_split();
    let inward = async {
        let mut buffer = vec![0; READ];
        loop {
            let part = match from.read(&mut buffer).await? {
                0 => In::End(true),
                count => In::Data(buffer[..count].to_vec().into()),
            };
            let ends = matches!(part, In::End(_));
            let request = ForwardRequest { part: Some(part) };
            if requests.send(request).await.is_err() || ends {
                break;
            }
        }
        // Open until the other way has ended: the end of the requests breaks the connection.
        std::future::pending::<Result<(), Failure>>().await
    };
    let outward = async {
        loop {
            match answers.message().await {
                Ok(Some(ForwardResponse {
                    part: Some(Out::Data(bytes)),
                })) => to.write_all(&bytes).await?,
                Ok(Some(ForwardResponse {
                    part: Some(Out::End(_)),
                })) => to.shutdown().await?,
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(Failure::from(status)),
            }
        }
    };
    let outcome: Result<(), Failure> = tokio::select! {
        result = inward => result,
        result = outward => result,
    };
    match outcome {
        // The local side went first.
        Err(failure) if failure.kind == FailureKind::NoReader => Ok(()),
        other => other,
    }
}
