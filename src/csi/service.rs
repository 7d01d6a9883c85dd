//! The gRPC service: one table from paths to calls.
//!
//! A path without an entry is not implemented. A call that has begun runs to its end even if the client disconnects,
//! so nothing is left half done and a repeated call finds the result.

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
    BoolValue, EmptyMessage, GetVolumeStats, NodeCapabilities, NodeCapability, NodeInfo,
    NodePublishVolumeRequest, NodeRpc, NodeRpcType, PluginInfo, ProbeResponse, UnpublishVolume,
};
use super::node::VolumeNode;
use crate::metrics;

/// Pause after a connection could not be accepted, mostly because of too many open files.
const CSI_ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time limit for running calls once the plugin is to end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// Concurrent calls on one connection.
const STREAMS: u32 = 256;

/// Answers calls on `listener` until `stop` resolves; running calls then have `LAST_CALLS` to end. Volumes of an
/// earlier plugin are recovered and watched meanwhile.
pub async fn serve(
    node: Arc<VolumeNode>,
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
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(CSI_ACCEPT_RETRY_DELAY).await;
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
                    "cannot take over the mounts of an earlier plugin"
                );
            }
            node.watch().await;
        }
    });
    let calls = tower::service_fn(move |request| answer(node.clone(), request));
    let (shutdown, stopped) = oneshot::channel::<()>();
    let stop = async {
        stop.await;
        // The receiver is gone when the server ended by itself.
        shutdown.send(()).ok();
    };
    let server =
        Server::builder().max_concurrent_streams(STREAMS).serve_with_incoming_shutdown(calls, incoming, stop);
    let served = tokio::select! {
        served = server => served,
        // A client with an open connection must not hold up the plugin.
        _ = async { stopped.await.ok(); tokio::time::sleep(LAST_CALLS).await } => Ok(()),
    };
    looking_after.abort();
    served.map_err(|error| CsiError::Internal(format!("serving the socket: {}", crate::io::chain(&error))))
}

async fn answer(
    node: Arc<VolumeNode>,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/csi.v1.Identity/GetPluginInfo" => {
            unary("GetPluginInfo", request, |_: EmptyMessage| async {
                Ok(PluginInfo { name: NAME.to_owned(), vendor_version: env!("CARGO_PKG_VERSION").to_owned() })
            })
            .await
        }
        // The plugin has no controller and no topology, so it has no plugin capabilities.
        "/csi.v1.Identity/GetPluginCapabilities" => {
            unary("GetPluginCapabilities", request, |_: EmptyMessage| async { Ok(EmptyMessage {}) }).await
        }
        "/csi.v1.Identity/Probe" => {
            unary("Probe", request, move |_: EmptyMessage| async move {
                node.probe().map(|()| ProbeResponse { ready: Some(BoolValue { value: true }) })
            })
            .await
        }
        "/csi.v1.Node/NodeGetInfo" => {
            unary("NodeGetInfo", request, move |_: EmptyMessage| async move {
                Ok(NodeInfo { node_id: node.id().to_owned() })
            })
            .await
        }
        "/csi.v1.Node/NodeGetCapabilities" => {
            unary("NodeGetCapabilities", request, |_: EmptyMessage| async { Ok(capabilities()) }).await
        }
        "/csi.v1.Node/NodePublishVolume" => {
            unary("NodePublishVolume", request, move |asked: NodePublishVolumeRequest| async move {
                node.publish(&asked).await.map(|()| EmptyMessage {})
            })
            .await
        }
        "/csi.v1.Node/NodeUnpublishVolume" => {
            unary("NodeUnpublishVolume", request, move |asked: UnpublishVolume| async move {
                node.unpublish(&asked.volume_id, &asked.target_path).await.map(|()| EmptyMessage {})
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
            metrics::CALLS.note("other", name(Code::Unimplemented));
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

/// Decodes one message, answers it with `call`, and counts the call.
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
            // A unary request has one message, so the service is called once.
            let call = call.ok_or_else(|| Status::internal("a second message in one call"))?;
            let began = Instant::now();
            let task = tokio::spawn(call(request.into_inner()));
            let answered = task.await.unwrap_or_else(|error| Err(CsiError::Internal(error.to_string())));
            let took = began.elapsed().as_millis();
            match answered {
                Ok(answer) => {
                    metrics::CALLS.note(method, name(Code::Ok));
                    tracing::debug!(method, took, "answered");
                    Ok(Response::new(answer))
                }
                Err(error) => {
                    let status = Status::from(error);
                    metrics::CALLS.note(method, name(status.code()));
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

/// The gRPC names of the codes that this plugin answers with.
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
