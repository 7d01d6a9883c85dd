//! The calls: which path of gRPC asks for what.
//!
//! Never does anything itself. The idea: a table from paths to answers; what is not in it is not implemented. A call that was
//! begun is finished also when who asked goes away, so that nothing is left half done, and asking again finds it done.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream;
use prost::Message;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::NAME;
use super::error::CsiError;
use super::messages::{
    Empty, GetVolumeStats, NodeCapabilities, NodeCapability, NodeInfo, NodeRpc, NodeRpcType, PluginInfo,
    Probed, PublishVolume, Truth, UnpublishVolume,
};
use super::node::Node;
use crate::meter;

/// How long to wait when no connection can be taken, mostly because there are too many open files.
const PAUSE: Duration = Duration::from_secs(1);
/// How long calls that were begun may take to end when the plugin is to end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// Calls at once on one connection.
const STREAMS: u32 = 256;

/// Answers calls on `listener` until `stop` is there; calls that were begun have a moment to be finished. What an earlier plugin left is taken
/// over meanwhile, and looked after.
pub async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), CsiError> {
    let failed = |error: io::Error| CsiError::Internal(format!("serving the socket: {error}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let incoming = stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok::<_, io::Error>(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    let looking_after = tokio::spawn({
        let node = node.clone();
        async move {
            if let Err(error) = node.recover().await {
                tracing::error!(
                    reason = crate::io::chain(&error),
                    "what an earlier plugin left is not taken over"
                );
            }
            node.watch().await;
        }
    });
    let calls = tower::service_fn(move |request| answer(node.clone(), request));
    let (tell, told) = oneshot::channel::<()>();
    let stop = async {
        stop.await;
        // Nobody listens any more when the server ended by itself.
        tell.send(()).ok();
    };
    let server =
        Server::builder().max_concurrent_streams(STREAMS).serve_with_incoming_shutdown(calls, incoming, stop);
    let served = tokio::select! {
        served = server => served,
        // Who keeps a connection open does not keep the plugin.
        _ = async { told.await.ok(); tokio::time::sleep(LAST_CALLS).await } => Ok(()),
    };
    looking_after.abort();
    served.map_err(|error| CsiError::Internal(format!("serving the socket: {}", crate::io::chain(&error))))
}

async fn answer(node: Arc<Node>, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/csi.v1.Identity/GetPluginInfo" => {
            unary("GetPluginInfo", request, |_: Empty| async {
                Ok(PluginInfo { name: NAME.to_owned(), vendor_version: env!("CARGO_PKG_VERSION").to_owned() })
            })
            .await
        }
        // There is no controller, and volumes are where their pods are: nothing to tell.
        "/csi.v1.Identity/GetPluginCapabilities" => {
            unary("GetPluginCapabilities", request, |_: Empty| async { Ok(Empty {}) }).await
        }
        "/csi.v1.Identity/Probe" => {
            unary("Probe", request, move |_: Empty| async move {
                node.probe().map(|()| Probed { ready: Some(Truth { value: true }) })
            })
            .await
        }
        "/csi.v1.Node/NodeGetInfo" => {
            unary("NodeGetInfo", request, move |_: Empty| async move {
                Ok(NodeInfo { node_id: node.id().to_owned() })
            })
            .await
        }
        "/csi.v1.Node/NodeGetCapabilities" => {
            unary("NodeGetCapabilities", request, |_: Empty| async { Ok(capabilities()) }).await
        }
        "/csi.v1.Node/NodePublishVolume" => {
            unary("NodePublishVolume", request, move |asked: PublishVolume| async move {
                node.publish(&asked).await.map(|()| Empty {})
            })
            .await
        }
        "/csi.v1.Node/NodeUnpublishVolume" => {
            unary("NodeUnpublishVolume", request, move |asked: UnpublishVolume| async move {
                node.unpublish(&asked.volume_id, &asked.target_path).await.map(|()| Empty {})
            })
            .await
        }
        "/csi.v1.Node/NodeGetVolumeStats" => {
            unary("NodeGetVolumeStats", request, move |asked: GetVolumeStats| async move {
                node.stats(&asked.volume_id, &asked.volume_path).await
            })
            .await
        }
        other => {
            meter::CALLS.note("other", name(Code::Unimplemented));
            Status::unimplemented(format!(
                "{other} is not implemented: this plugin mounts inline volumes on a node"
            ))
            .into_http()
        }
    })
}

fn capabilities() -> NodeCapabilities {
    let capabilities = [NodeRpcType::GetVolumeStats, NodeRpcType::VolumeCondition]
        .map(|kind| NodeCapability { rpc: Some(NodeRpc { r#type: kind.into() }) });
    NodeCapabilities { capabilities: capabilities.into() }
}

/// Reads one message, lets `call` answer it with another, and counts.
async fn unary<Q, A, F>(
    method: &'static str,
    request: http::Request<Body>,
    call: impl FnOnce(Q) -> F + Send + 'static,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
    F: Future<Output = Result<A, CsiError>> + Send + 'static,
{
    let mut call = Some(call);
    let service = tower::service_fn(move |request: Request<Q>| {
        let call = call.take();
        async move {
            // One request has one message; the service is called once.
            let call = call.ok_or_else(|| Status::internal("a second message in one call"))?;
            let began = Instant::now();
            let task = tokio::spawn(call(request.into_inner()));
            let answered = task.await.unwrap_or_else(|error| Err(CsiError::Internal(error.to_string())));
            let took = began.elapsed().as_millis();
            match answered {
                Ok(answer) => {
                    meter::CALLS.note(method, name(Code::Ok));
                    tracing::debug!(method, took, "answered");
                    Ok(Response::new(answer))
                }
                Err(error) => {
                    let status = Status::from(error);
                    meter::CALLS.note(method, name(status.code()));
                    tracing::warn!(
                        method,
                        took,
                        code = name(status.code()),
                        reason = status.message(),
                        "refused"
                    );
                    Err(status)
                }
            }
        }
    });
    Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
}

/// The names of the codes that this plugin answers with, as gRPC writes them.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::Unauthenticated => "UNAUTHENTICATED",
        _ => "OTHER",
    }
}
