//! Whose data a folder holds. A folder belongs to one node of one cluster for
//! good, and to one process at a time.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::storage::{draft_of, write_durably};

/// Version of the data folder's layout.
const FORMAT: u32 = 1;
const IDENTITY_FILE: &str = "identity.json";
const LOCK_FILE: &str = "lock";

/// What is fixed when a cluster is born.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    pub(super) slots: u32,
    pub(super) shards: u32,
}

/// What a data folder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    format: u32,
    pub(super) node_id: String,
    pub(super) cluster_id: String,
    /// Number of slots of the cluster.
    pub(super) slots: u32,
    /// Number of shards it was born with.
    pub(super) shards: u32,
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
    identity: Identity,
    /// Locked for as long as it is open.
    _lock: File,
}

impl DataFolder {
    /// Takes the folder for this process. A new one becomes `node_id`'s, with a
    /// new cluster in it.
    pub(super) fn open(folder: &Path, node_id: &str, birth: Birth) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let lock = lock(folder)?;
        let file = folder.join(IDENTITY_FILE);
        let identity = match fs::read(&file) {
            Ok(bytes) => parse(folder, &file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_foreign(folder)?;
                let identity = Identity {
                    format: FORMAT,
                    node_id: node_id.to_owned(),
                    cluster_id: format!("{:032x}", rand::random::<u128>()),
                    slots: birth.slots,
                    shards: birth.shards,
                };
                let bytes = serde_json::to_vec_pretty(&identity).map_err(io::Error::from);
                bytes.and_then(|bytes| write_durably(&file, &bytes)).map_err(io)?;
                identity
            }
            Err(error) => return Err(io(error)),
        };
        if identity.node_id != node_id {
            return Err(IdentityError::OtherNode {
                folder: folder.to_owned(),
                owner: identity.node_id,
                node_id: node_id.to_owned(),
            });
        }
        Ok(DataFolder { identity, _lock: lock })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }
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
    // A start that was interrupted leaves the lock and the file's draft.
    let left_over = [folder.join(LOCK_FILE), draft_of(&folder.join(IDENTITY_FILE))];
    for entry in fs::read_dir(folder).map_err(io)? {
        if !left_over.contains(&entry.map_err(io)?.path()) {
            return Err(IdentityError::NotANode { folder: folder.to_owned() });
        }
    }
    Ok(())
}

fn parse(folder: &Path, file: &Path, bytes: &[u8]) -> Result<Identity, IdentityError> {
    let identity: Identity = serde_json::from_slice(bytes).map_err(|error| {
        IdentityError::Damaged { file: file.to_owned(), reason: error.to_string() }
    })?;
    if identity.format != FORMAT {
        let (folder, found) = (folder.to_owned(), identity.format);
        return Err(IdentityError::Format { folder, found });
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIRTH: Birth = Birth { slots: 256, shards: 4 };

    #[test]
    fn a_folder_keeps_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataFolder::open(folder.path(), "node1", BIRTH).unwrap();
        let born = first.identity().clone();
        drop(first);
        let later = Birth { slots: 8, shards: 1 };
        let again = DataFolder::open(folder.path(), "node1", later).unwrap();
        assert_eq!(*again.identity(), born);
    }

    #[test]
    fn a_folder_belongs_to_one_node_and_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let held = DataFolder::open(folder.path(), "node1", BIRTH).unwrap();
        let second = DataFolder::open(folder.path(), "node1", BIRTH);
        assert!(matches!(second, Err(IdentityError::InUse { .. })));
        drop(held);
        let other = DataFolder::open(folder.path(), "node2", BIRTH);
        assert!(matches!(other, Err(IdentityError::OtherNode { .. })));
    }

    #[test]
    fn strange_folders_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("holiday.jpg"), b"x").unwrap();
        let opened = DataFolder::open(folder.path(), "node1", BIRTH);
        assert!(matches!(opened, Err(IdentityError::NotANode { .. })));

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(IDENTITY_FILE), b"{").unwrap();
        let opened = DataFolder::open(folder.path(), "node1", BIRTH);
        assert!(matches!(opened, Err(IdentityError::Damaged { .. })));
    }
}
