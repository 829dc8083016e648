//! Watches how much room the data folder's disk has. A disk that is nearly full ends
//! writes in good time: one that is full would end the node.

use std::{path::PathBuf, sync::Arc, time::Duration};

use raft_lite::MultiRaft;
use tokio::{task::AbortHandle, time::sleep};

use crate::metrics::Metrics;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Unless told otherwise so much is kept free, or a twentieth of a smaller disk.
const RESERVE_BYTES: u64 = 1 << 30;
const RESERVE_SHARE: u64 = 20;
/// So much more has to be free for writes to be taken again, or an eighth of the
/// reserve.
const RECOVERY_BYTES: u64 = 128 << 20;

/// What is watched.
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    /// Bytes that have to stay free.
    pub(super) reserve_bytes: Option<u64>,
}

struct Room {
    total: u64,
    free: u64,
}

impl Disk {
    fn room(&self) -> std::io::Result<Room> {
        let found = rustix::fs::statvfs(&self.folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Room { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }

    /// Whether there is too little room, given whether there was before: so that it
    /// does not change all the time, some more has to come free first.
    fn is_nearly_full(&self, room: &Room, was: bool) -> bool {
        let usual = RESERVE_BYTES.min(room.total / RESERVE_SHARE);
        let reserve = self.reserve_bytes.unwrap_or(usual);
        room.free
            < if was { reserve.saturating_add(RECOVERY_BYTES.min(reserve / 8)) } else { reserve }
    }
}

/// Watches a disk until it is aborted.
pub(super) fn watch(disk: Disk, raft: Arc<MultiRaft>, metrics: Arc<Metrics>) -> AbortHandle {
    let (mut is_full, mut is_blind) = (false, false);
    let mut look = move || {
        let room = match disk.room() {
            Ok(room) => {
                is_blind = false;
                room
            }
            Err(error) => {
                // The same trouble is told once.
                if !std::mem::replace(&mut is_blind, true) {
                    let folder = disk.folder.display();
                    tracing::warn!("cannot tell how much room {folder} has: {error}");
                }
                return;
            }
        };
        let was_full = is_full;
        is_full = disk.is_nearly_full(&room, was_full);
        let (free, folder) = (room.free >> 20, disk.folder.display());
        match (was_full, is_full) {
            (false, true) => tracing::error!(
                "the disk of {folder} is nearly full, {free} MiB are left: its shards take \
                 reads and deletes only until there is more room"
            ),
            (true, false) => tracing::info!("the disk of {folder} has {free} MiB left again"),
            _ => {}
        }
        raft.set_disk_full(is_full);
        metrics.set_disk(room.free, is_full);
    };
    look();
    let watching = tokio::spawn(async move {
        loop {
            sleep(INTERVAL).await;
            look();
        }
    });
    watching.abort_handle()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_has_to_come_free_than_was_missing() {
        let disk = |reserve_bytes| Disk { folder: PathBuf::new(), reserve_bytes };
        let room = |free| Room { total: 100 << 30, free };
        let own = disk(Some(800));
        assert!(!own.is_nearly_full(&room(800), false));
        assert!(own.is_nearly_full(&room(799), false));
        assert!(own.is_nearly_full(&room(899), true));
        assert!(!own.is_nearly_full(&room(900), true));
        let usual = disk(None);
        assert!(usual.is_nearly_full(&room((1 << 30) - 1), false));
        assert!(!usual.is_nearly_full(&room(1 << 30), false));
        let small = Room { total: 1 << 30, free: 60 << 20 };
        assert!(!usual.is_nearly_full(&small, false), "a small disk needs less room");
    }
}
