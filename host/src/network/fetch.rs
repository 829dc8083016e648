//! Snapshots on their way from node to node: on a connection of their own, in
//! checksummed chunks, no faster than a given rate. What broke off goes on where it
//! was.

use std::{io::SeekFrom, path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use parking_lot::Mutex;
use prost::Message;
use raft_kv_proto::v1::{
    FetchPluginRequest, FetchSnapshotRequest, Hello, SnapshotChunk, raft_client::RaftClient,
};
use raft_lite::{GroupId, NodeId};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Status, Streaming, transport::Channel};
use xxhash_rust::xxh3::xxh3_64;

use super::{Network, PeerConfig, dial};
use crate::storage::{SnapshotData, SnapshotFile, SnapshotFolders, fetched};

/// Bytes in a chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// Without a chunk for so long a transfer has broken off.
const CHUNK_WITHIN: Duration = Duration::from_secs(10);
/// So often in a row a transfer may break off without getting any further.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(300);
/// No module of a plugin is larger.
const MAX_MODULE_BYTES: usize = 64 << 20;

/// Chunks of a file.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<SnapshotChunk, Status>> + Send>>;

/// Keeps what is sent to a rate.
pub(super) struct Pace {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
}

impl Pace {
    /// Bytes a second, in all.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = bytes_per_second.max(1) as f64;
        Pace { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be sent.
    async fn wait(&self, bytes: usize) {
        let at = {
            let mut free_at = self.free_at.lock();
            let at = (*free_at).max(Instant::now());
            *free_at = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
            at
        };
        sleep_until(at).await;
    }
}

impl Network {
    /// Sends a file of a snapshot to another node.
    pub async fn send_snapshot(
        self: Arc<Self>,
        request: FetchSnapshotRequest,
    ) -> Result<Chunks, Status> {
        let hello = request.hello.unwrap_or_default();
        let refused = |error: super::hello::Refused| Status::failed_precondition(error.to_string());
        self.check_hello(&hello).map_err(refused)?;
        let path = self.snapshots.file(request.snapshot, &request.file);
        let gone = || Status::not_found("the snapshot is gone");
        let mut file = File::open(path.ok_or_else(gone)?).await.map_err(|_| gone())?;
        file.seek(SeekFrom::Start(request.offset)).await?;
        let chunks = stream::unfold((self, file), |(network, mut file)| async move {
            let mut data = vec![0; CHUNK_BYTES];
            let mut filled = 0;
            while filled < data.len() {
                match file.read(&mut data[filled..]).await {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) => return Some((Err(error.into()), (network, file))),
                }
            }
            data.truncate(filled);
            if data.is_empty() {
                return None;
            }
            network.pace.wait(filled).await;
            let checksum = xxh3_64(&data);
            Some((Ok(SnapshotChunk { data: data.into(), checksum }), (network, file)))
        });
        Ok(Box::pin(chunks))
    }
}

impl Network {
    /// Sends a plugin's module to another node.
    pub fn send_module(self: Arc<Self>, module: Bytes) -> Chunks {
        let chunks = stream::unfold((self, module), |(network, mut module)| async move {
            if module.is_empty() {
                return None;
            }
            let data = module.split_to(module.len().min(CHUNK_BYTES));
            network.pace.wait(data.len()).await;
            let checksum = xxh3_64(&data);
            Some((Ok(SnapshotChunk { data, checksum }), (network, module)))
        });
        Box::pin(chunks)
    }

    /// Fetches a plugin's module from another node.
    ///
    /// # Errors
    /// Why it did not come, for people.
    pub async fn fetch_plugin(&self, from: NodeId, plugin: &[u8]) -> Result<Vec<u8>, String> {
        let peer = self.peer(from).ok_or("it is not a node of the cluster")?;
        let hello = Some(self.hello(&peer.node_id));
        let request = FetchPluginRequest { hello, plugin: Bytes::copy_from_slice(plugin) };
        let fetched = receive_module(&peer, request).await;
        fetched.map_err(|status| format!("node {}: {}", peer.node_id, dial::describe(&status)))
    }
}

async fn receive_module(peer: &PeerConfig, request: FetchPluginRequest) -> Result<Vec<u8>, Status> {
    let mut chunks = connect(peer).await?.fetch_plugin(request).await?.into_inner();
    let mut module = Vec::new();
    while let Some(data) = next_chunk(&mut chunks, MAX_MODULE_BYTES - module.len()).await? {
        module.extend_from_slice(&data);
    }
    Ok(module)
}

/// Fetches all files of a snapshot. Returns what names them to the machine.
pub(super) async fn fetch(
    peer: &PeerConfig,
    hello: Hello,
    folders: &SnapshotFolders,
    group: GroupId,
    description: Bytes,
) -> Result<Bytes, String> {
    let data = SnapshotData::decode(description).map_err(|error| error.to_string())?;
    let (id, _) = folders.create().map_err(|error| error.to_string())?;
    let started = Instant::now();
    let mut bytes = 0;
    for file in &data.files {
        let fetched = match folders.file(id, &file.name) {
            Some(target) => fetch_file(peer, &hello, data.id, file, &target).await,
            None => Err(format!("a file of it is called {:?}", file.name)),
        };
        if let Err(reason) = fetched {
            folders.remove(id);
            return Err(format!("from node {}: {reason}", peer.node_id));
        }
        bytes += file.bytes;
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(
        group = group.0,
        "fetched a snapshot of {bytes} bytes from node {} in {seconds:.2} s",
        peer.node_id
    );
    Ok(fetched(id))
}

async fn fetch_file(
    peer: &PeerConfig,
    hello: &Hello,
    snapshot: u64,
    file: &SnapshotFile,
    target: &Path,
) -> Result<(), String> {
    let target = File::create(target).await;
    let mut target = target.map_err(|error| error.to_string())?;
    let mut offset = 0;
    let mut attempts = 0;
    loop {
        let request = FetchSnapshotRequest {
            hello: Some(hello.clone()),
            snapshot,
            file: file.name.clone(),
            offset,
        };
        let before = offset;
        let failure = match receive(peer, request, &mut target, &mut offset, file.bytes).await {
            Ok(()) => break,
            Err(status) => status,
        };
        attempts = if offset > before { 0 } else { attempts + 1 };
        if attempts >= ATTEMPTS || failure.code() == tonic::Code::NotFound {
            return Err(dial::describe(&failure));
        }
        sleep(PAUSE).await;
    }
    target.sync_all().await.map_err(|error| error.to_string())
}

/// Receives chunks until the file is whole, or the transfer breaks off.
async fn receive(
    peer: &PeerConfig,
    request: FetchSnapshotRequest,
    target: &mut File,
    offset: &mut u64,
    bytes: u64,
) -> Result<(), Status> {
    let mut chunks = connect(peer).await?.fetch_snapshot(request).await?.into_inner();
    while *offset < bytes {
        let room = usize::try_from(bytes - *offset).unwrap_or(usize::MAX);
        let data = next_chunk(&mut chunks, room).await?;
        let data = data.ok_or_else(|| Status::data_loss("the file is shorter than was said"))?;
        target.write_all(&data).await?;
        *offset += data.len() as u64;
    }
    Ok(())
}

/// A connection of its own to another node.
async fn connect(peer: &PeerConfig) -> Result<RaftClient<Channel>, Status> {
    let unreachable = |error: tonic::transport::Error| Status::from_error(error.into());
    let endpoint = dial::endpoint(&peer.dial).map_err(unreachable)?;
    Ok(dial::client(endpoint.connect().await.map_err(unreachable)?))
}

/// The next chunk, if there is one, of at most so many bytes.
async fn next_chunk(
    chunks: &mut Streaming<SnapshotChunk>,
    room: usize,
) -> Result<Option<Bytes>, Status> {
    let late = |_| Status::deadline_exceeded("no data came for a while");
    let chunk = timeout(CHUNK_WITHIN, chunks.message()).await.map_err(late)??;
    let Some(SnapshotChunk { data, checksum }) = chunk else { return Ok(None) };
    match xxh3_64(&data) == checksum && data.len() <= room {
        true => Ok(Some(data)),
        false => Err(Status::data_loss("a chunk was damaged on its way")),
    }
}
