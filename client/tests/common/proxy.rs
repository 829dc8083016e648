//! The network in front of a node: connections that can be cut, and a node that
//! takes connections and never answers.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// What the proxy does with what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    Hold,
}

/// A way to a node.
pub struct Proxy {
    pub address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cuts: Arc<watch::Sender<u32>>,
    task: AbortHandle,
}

impl Proxy {
    /// Passes everything on to `node`, from a free port.
    pub async fn before(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::channel(Mode::Pass).0);
        let cuts = Arc::new(watch::channel(0).0);
        let task = tokio::spawn(accept(listener, node, mode.clone(), cuts.clone()));
        Self { address, mode, cuts, task: task.abort_handle() }
    }

    /// Its address as host:port.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// From now on takes connections and bytes no further, like a stopped process.
    pub fn hang(&self) {
        self.mode.send_replace(Mode::Hold);
    }

    /// Goes on with all that came in meanwhile.
    pub fn go_on(&self) {
        self.mode.send_replace(Mode::Pass);
    }

    /// Breaks all connections. New ones are taken.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Breaks all connections and takes no more.
    pub fn kill(&self) {
        self.task.abort();
        self.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(
    listener: TcpListener,
    node: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cuts: Arc<watch::Sender<u32>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (mode, mut cuts) = (mode.subscribe(), cuts.subscribe());
        connections.spawn(async move {
            let server = TcpStream::connect(node).await.unwrap();
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                _ = cuts.changed() => {}
                () = pass(from_client, to_server, mode.clone()) => {}
                () = pass(from_server, to_client, mode) => {}
            }
        });
    }
}

async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if mode.wait_for(|mode| *mode == Mode::Pass).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
