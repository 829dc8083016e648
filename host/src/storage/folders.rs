//! Where the files of snapshots are, those made for others and those fetched from
//! others, and how they are described.
//!
//! Each snapshot has a folder of its own below `snapshots`, which is emptied when
//! the node starts: what was not taken in by then is made again.

use std::{fs, io, path::PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

/// What a snapshot's description says of its data.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotData {
    /// Names the snapshot on the node that made it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its files.
    #[prost(message, repeated, tag = "2")]
    pub files: Vec<SnapshotFile>,
    /// The shard's record on the node that made it, as stored.
    #[prost(bytes = "vec", tag = "3")]
    pub record: Vec<u8>,
    /// How far the shard had got, as stored.
    #[prost(bytes = "vec", tag = "4")]
    pub state: Vec<u8>,
    /// The state of the cluster's own group, in a snapshot of that.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub meta: Option<Vec<u8>>,
}

/// A file of a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotFile {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its length.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// The folders of snapshots that come and go.
#[derive(Debug)]
pub struct SnapshotFolders {
    path: PathBuf,
    next: Mutex<u64>,
}

impl SnapshotFolders {
    /// Below `path`, which is emptied.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&path)?;
        // Others may still ask for those that were made before the node started.
        Ok(SnapshotFolders { path, next: Mutex::new(rand::random_range(1..u64::MAX / 2)) })
    }

    /// A new, empty folder and its number.
    pub fn create(&self) -> io::Result<(u64, PathBuf)> {
        let mut next = self.next.lock();
        *next += 1;
        let folder = self.folder(*next);
        fs::create_dir(&folder)?;
        Ok((*next, folder))
    }

    /// The folder of a snapshot.
    pub fn folder(&self, id: u64) -> PathBuf {
        self.path.join(format!("{id:016x}"))
    }

    /// Where a file of a snapshot is; `None` if the name is not that of one.
    pub fn file(&self, id: u64, name: &str) -> Option<PathBuf> {
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        (is_plain && !name.starts_with('.')).then(|| self.folder(id).join(name))
    }

    /// Removes a snapshot.
    pub fn remove(&self, id: u64) {
        if let Err(error) = fs::remove_dir_all(self.folder(id)) {
            tracing::warn!("cannot remove a snapshot: {error}");
        }
    }
}

/// What names fetched data to the machine: the number of its folder.
pub fn fetched(id: u64) -> Bytes {
    Bytes::copy_from_slice(&id.to_le_bytes())
}

/// The folder that fetched data is in, if it names one.
pub fn folder_of(fetched: &[u8]) -> Option<u64> {
    fetched.try_into().ok().map(u64::from_le_bytes)
}
