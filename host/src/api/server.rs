//! The server: one port, HTTP/1.1 and HTTP/2, gRPC among the latter.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{interval, timeout},
};
use tonic_health::server::HealthReporter;

use super::{Doors, grpc, http};
use crate::{
    network::{Coalesced, Introduction},
    service::Service,
};

/// Time that requests under way are given when the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// Time that those who look for their cluster are given then.
const BIRTH_DRAIN_TIME: Duration = Duration::from_millis(200);
/// How often the health service learns whether the node can serve.
const HEALTH_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes a client may send ahead on one HTTP/2 stream, and on one connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of a request's headers: room for the longest key, percent-encoded.
const MAX_HEADER_BYTES: u32 = 256 << 10;
/// Requests that may run at once on one connection.
const MAX_CONCURRENT_STREAMS: u32 = 4096;

/// Serves on `listener` until `stop` resolves; then lets requests under way end.
pub async fn serve(
    doors: Doors,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let service = Arc::clone(&doors.service);
    let (health, health_service) = tonic_health::server::health_reporter();
    // The names must be known before anybody can ask for them.
    let ready = service.readiness().is_ok();
    grpc::set_health(&health, ready).await;
    let health_task = tokio::spawn(report_health(Arc::clone(&service), health.clone(), ready));
    let router = grpc::router(doors, health_service)?.merge(http::router(service));
    let connections = accept(router, &listener, stop).await;
    drop(listener);
    health_task.abort();
    grpc::set_health(&health, false).await;
    if timeout(DRAIN_TIME, connections.shutdown()).await.is_err() {
        tracing::info!("stopped with requests under way after {DRAIN_TIME:?}");
    }
    Ok(())
}

/// Serves, while the node looks for its cluster, those who look for theirs; until
/// `stop` resolves.
pub async fn serve_birth(
    introduction: Introduction,
    listener: &TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let router = grpc::birth_router(introduction.clone())?.merge(http::birth_router(introduction));
    let connections = accept(router, listener, stop).await;
    // Whoever is cut off asks again.
    let _ = timeout(BIRTH_DRAIN_TIME, connections.shutdown()).await;
    Ok(())
}

/// Takes connections until `stop` resolves. Returns those there are then.
async fn accept(
    router: Router,
    listener: &TcpListener,
    stop: impl Future<Output = ()>,
) -> GracefulShutdown {
    let router = TowerToHyperService::new(router.fallback(http::not_found));
    let builder = connection_builder();
    let connections = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return connections,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    prepare(&stream);
                    let connection = builder.serve_connection(TokioIo::new(Coalesced::new(stream)), router.clone());
                    let connection = connections.watch(connection.into_owned());
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!("a connection ended: {error}");
                        }
                    });
                }
                // Out of file handles, most likely: the next one may go better.
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
}

fn prepare(stream: &TcpStream) {
    // Without it small answers wait for the client's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

/// Keeps `grpc.health.v1` at what `/readyz` says.
async fn report_health(service: Arc<Service>, health: HealthReporter, mut was_ready: bool) {
    let mut interval = interval(HEALTH_INTERVAL);
    loop {
        interval.tick().await;
        let ready = service.readiness().is_ok();
        if was_ready != ready {
            grpc::set_health(&health, ready).await;
            was_ready = ready;
        }
    }
}
