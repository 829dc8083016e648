//! Whose data a folder holds. A folder belongs to one node of one cluster for
//! good, and to one process at a time.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::storage::{draft_of, write_durably};

/// Version of the data folder's layout.
const FORMAT: u32 = 2;
const IDENTITY_FILE: &str = "identity.json";
/// There until the folder belongs to a cluster.
const UNBORN_FILE: &str = "unborn.json";
const LOCK_FILE: &str = "lock";

/// What a data folder that belongs to a cluster says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) node_id: String,
    pub(super) cluster_id: String,
    /// Number of slots of the cluster.
    pub(super) slots: u32,
    /// Number of shards it was born with.
    pub(super) shards: u32,
    /// SHA-256 of the plugin it was born with, in hex.
    pub(super) plugin: String,
    /// The nodes it was born with, in the order of their ids.
    pub(super) members: Vec<MemberRecord>,
    /// The cluster was born with another folder of this node, which was lost: this
    /// one began without replicas.
    #[serde(default)]
    pub(super) came_back: bool,
    /// It joined a cluster that was running: it began without replicas.
    #[serde(default)]
    pub(super) joined: bool,
    /// Groups below this may have had replicas in an earlier data folder of the node.
    #[serde(default)]
    pub(super) fresh_from: u64,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberRecord {
    pub(super) node_id: String,
    /// `host:port`.
    pub(super) address: String,
    /// The random number of its data folder.
    pub(super) folder: u64,
}

/// What a folder says of itself before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unborn {
    node_id: String,
    /// A random number: tells the folder from another of the same node.
    folder: u64,
}

/// A file of the folder, which says first how to read it.
#[derive(Serialize, Deserialize)]
struct Stored<T> {
    format: u32,
    #[serde(flatten)]
    content: T,
}

/// Why a data folder can not be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It belongs to another node.
    #[error(
        "the data folder {folder} belongs to node {owner}, not {node_id}; \
         start with --node-id {owner} or name another --data-dir"
    )]
    OtherNode {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who asked for it.
        node_id: String,
    },
    /// A process uses it.
    #[error(
        "the data folder {folder} is in use by a running node; stop it or name another --data-dir"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// It was written by a program with another layout.
    #[error("the data folder {folder} has format {found}, this program knows {FORMAT}")]
    Format {
        /// The folder.
        folder: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its identity makes no sense.
    #[error("the file {file} is damaged: {reason}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is the matter.
        reason: String,
    },
    /// There is something in it, but not a node's data.
    #[error(
        "the data folder {folder} holds other files and no node's data; name an empty --data-dir"
    )]
    NotANode {
        /// The folder.
        folder: PathBuf,
    },
    /// The system refuses it.
    #[error("cannot use the data folder {folder}: {source}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl IdentityError {
    pub(super) fn is_usage(&self) -> bool {
        matches!(
            self,
            IdentityError::OtherNode { .. }
                | IdentityError::NotANode { .. }
                | IdentityError::Format { .. }
        )
    }
}

/// A data folder that this process holds.
#[derive(Debug)]
pub(super) struct DataFolder {
    path: PathBuf,
    content: Content,
    /// Locked for as long as it is open.
    _lock: File,
}

#[derive(Debug)]
enum Content {
    Unborn(Unborn),
    Born(Identity),
}

impl DataFolder {
    /// Takes the folder for this process. A new one becomes `node_id`'s, and gets
    /// a number of its own.
    pub(super) fn open(folder: &Path, node_id: &str) -> Result<Self, IdentityError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
        let lock = lock(folder)?;
        let content = match read::<Identity>(folder, IDENTITY_FILE)? {
            Some(identity) => Content::Born(identity),
            None => match read::<Unborn>(folder, UNBORN_FILE)? {
                Some(unborn) => Content::Unborn(unborn),
                None => {
                    refuse_foreign(folder)?;
                    // 0 stands for a number that is not known.
                    let number = rand::random_range(1..=u64::MAX);
                    let unborn = Unborn { node_id: node_id.to_owned(), folder: number };
                    write(folder, UNBORN_FILE, &unborn)?;
                    Content::Unborn(unborn)
                }
            },
        };
        let owner = match &content {
            Content::Born(identity) => &identity.node_id,
            Content::Unborn(unborn) => &unborn.node_id,
        };
        if owner != node_id {
            return Err(IdentityError::OtherNode {
                folder: folder.to_owned(),
                owner: owner.clone(),
                node_id: node_id.to_owned(),
            });
        }
        Ok(DataFolder { path: folder.to_owned(), content, _lock: lock })
    }

    /// Whom the folder belongs to, if to any cluster.
    pub(super) fn identity(&self) -> Option<&Identity> {
        match &self.content {
            Content::Born(identity) => Some(identity),
            Content::Unborn(_) => None,
        }
    }

    /// The folder's number.
    pub(super) fn number(&self) -> u64 {
        match &self.content {
            Content::Unborn(unborn) => unborn.folder,
            Content::Born(identity) => {
                let mut members = identity.members.iter();
                members.find(|m| m.node_id == identity.node_id).map_or(0, |member| member.folder)
            }
        }
    }

    /// The folder belongs to a cluster from now on, whatever happens.
    pub(super) fn join(&mut self, identity: Identity) -> Result<(), IdentityError> {
        write(&self.path, IDENTITY_FILE, &identity)?;
        self.content = Content::Born(identity);
        // What is left of it after a crash does no harm.
        match fs::remove_file(self.path.join(UNBORN_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(&self.path, error))
            }
            _ => Ok(()),
        }
    }
}

fn io_error(folder: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io { folder: folder.to_owned(), source }
}

fn write<T: Serialize>(folder: &Path, name: &str, content: &T) -> Result<(), IdentityError> {
    let stored = Stored { format: FORMAT, content };
    let bytes = serde_json::to_vec_pretty(&stored).map_err(io::Error::from);
    bytes
        .and_then(|bytes| write_durably(&folder.join(name), &bytes))
        .map_err(|source| io_error(folder, source))
}

/// Reads one of the folder's own files, if it is there.
fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, IdentityError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let file = folder.join(name);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(folder, error)),
    };
    let damaged = |error: serde_json::Error| {
        let file = file.clone();
        IdentityError::Damaged { file, reason: error.to_string() }
    };
    let Format { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(IdentityError::Format { folder: folder.to_owned(), found: format });
    }
    let stored: Stored<T> = serde_json::from_slice(&bytes).map_err(damaged)?;
    Ok(Some(stored.content))
}

fn lock(folder: &Path) -> Result<File, IdentityError> {
    let io = |source| IdentityError::Io { folder: folder.to_owned(), source };
    let path = folder.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(IdentityError::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// A folder without an identity must hold nothing that looks like somebody's.
fn refuse_foreign(folder: &Path) -> Result<(), IdentityError> {
    let io = |source| IdentityError::Io { folder: folder.to_owned(), source };
    // A start that was interrupted leaves the lock and a file's draft.
    let left_over = [folder.join(LOCK_FILE), draft_of(&folder.join(UNBORN_FILE))];
    for entry in fs::read_dir(folder).map_err(io)? {
        if !left_over.contains(&entry.map_err(io)?.path()) {
            return Err(IdentityError::NotANode { folder: folder.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(folder: u64) -> Identity {
        let member =
            MemberRecord { node_id: "node1".into(), address: "127.0.0.1:1".into(), folder };
        Identity {
            node_id: "node1".into(),
            cluster_id: "c".into(),
            slots: 256,
            shards: 4,
            plugin: "p".into(),
            members: vec![member],
            came_back: false,
            joined: false,
            fresh_from: 0,
        }
    }

    #[test]
    fn a_folder_keeps_its_number_and_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataFolder::open(folder.path(), "node1").unwrap();
        let number = first.number();
        assert!(number != 0 && first.identity().is_none());
        drop(first);
        let mut again = DataFolder::open(folder.path(), "node1").unwrap();
        assert_eq!(again.number(), number);
        again.join(identity(number)).unwrap();
        drop(again);
        let born = DataFolder::open(folder.path(), "node1").unwrap();
        assert_eq!((born.identity(), born.number()), (Some(&identity(number)), number));
    }

    #[test]
    fn a_folder_belongs_to_one_node_and_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = DataFolder::open(folder.path(), "node1").unwrap();
        let second = DataFolder::open(folder.path(), "node1");
        assert!(matches!(second, Err(IdentityError::InUse { .. })));
        held.join(identity(1)).unwrap();
        drop(held);
        let other = DataFolder::open(folder.path(), "node2");
        assert!(matches!(other, Err(IdentityError::OtherNode { .. })));
    }

    #[test]
    fn strange_folders_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("holiday.jpg"), b"x").unwrap();
        let opened = DataFolder::open(folder.path(), "node1");
        assert!(matches!(opened, Err(IdentityError::NotANode { .. })));

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(IDENTITY_FILE), b"{").unwrap();
        let opened = DataFolder::open(folder.path(), "node1");
        assert!(matches!(opened, Err(IdentityError::Damaged { .. })));
    }
}
