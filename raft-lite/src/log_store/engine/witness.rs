//! Tells a torn tail from a lost one.
//!
//! Raft-engine cuts its newest file at the first batch that it cannot read, and
//! does not ask whether the rest was ever durable. After a crash in the middle of
//! a write that is right; after a bit flipped in the middle of the file, synced
//! votes and entries would be gone without a word, and with them agreement.
//!
//! So every write carries a number and the number of the newest write that was
//! synced before it, behind a random nonce that nobody outside knows. Before
//! raft-engine opens the log, the newest file is searched for these claims, whole
//! batch or not; the highest is put on record in a file of its own. The log must
//! then hold at least the write claimed.
//!
//! What this cannot see is damage to the very last write, since nothing after it
//! claims it. Closing and reclaiming therefore end the log with a write that
//! carries nothing but a claim.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

const FILE_NAME: &str = "WITNESS";
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 8;
const MARKER_BYTES: usize = NONCE_BYTES + 16;
const FILE_BYTES: usize = 1 + NONCE_BYTES + 8;
const SEARCH_CHUNK_BYTES: u64 = 1 << 20;
const APPEND_FILE_SUFFIX: &str = ".raftlog";

/// What a write says of itself and of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// The write's number; they rise by one.
    pub(super) write: u64,
    /// The newest write known to be durable when this one was made.
    pub(super) synced: u64,
}

/// Recognises the markers of one log and knows which write it must hold.
#[derive(Debug)]
pub(super) struct Witness {
    nonce: [u8; NONCE_BYTES],
    /// The newest write that is known to have been durable.
    floor: u64,
}

impl Witness {
    /// Reads, or for a new log creates, the witness of the log in `folder`, and
    /// puts on record what the newest file claims. To be called before raft-engine
    /// opens the log and cuts it.
    pub(super) fn open(folder: &Path) -> Result<Witness, String> {
        let newest = newest_append_file(folder).map_err(|error| error.to_string())?;
        let path = folder.join(FILE_NAME);
        let mut witness = match fs::read(&path) {
            Ok(content) => Witness::decode(&content)
                .ok_or_else(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if newest.is_some() {
                    return Err(format!("{} is missing", path.display()));
                }
                let witness = Witness {
                    nonce: rand::random(),
                    floor: 0,
                };
                witness.save(folder).map_err(|error| error.to_string())?;
                witness
            }
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        if let Some(newest) = newest {
            let claim = witness.highest_claim(&newest);
            let claim = claim.map_err(|error| format!("{}: {error}", newest.display()))?;
            if claim > witness.floor {
                witness.floor = claim;
                witness.save(folder).map_err(|error| error.to_string())?;
            }
        }
        Ok(witness)
    }

    /// Encodes the marker of a write.
    pub(super) fn encode(&self, marker: Marker) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MARKER_BYTES);
        bytes.extend(self.nonce);
        bytes.extend(marker.write.to_be_bytes());
        bytes.extend(marker.synced.to_be_bytes());
        bytes
    }

    /// Given the marker of the last write that raft-engine recovered, its number
    /// (zero if there is none), or what is wrong with the log.
    pub(super) fn check(&self, recovered: Option<&[u8]>) -> Result<u64, String> {
        let last_write = match recovered {
            None => 0,
            Some(marker) => match self.find(marker) {
                Some(marker) => marker.write,
                None => return Err("its writes do not belong to its WITNESS file".to_owned()),
            },
        };
        if last_write < self.floor {
            return Err(format!(
                "it is damaged: write {} was durable, but writes are readable only up to \
                 {last_write}; remove the folder and rebuild this node's replicas from their peers",
                self.floor,
            ));
        }
        Ok(last_write)
    }

    /// The highest `synced` of all markers in a file.
    fn highest_claim(&self, path: &Path) -> io::Result<u64> {
        let mut file = File::open(path)?;
        let mut window = Vec::new();
        let mut highest = 0;
        while file.by_ref().take(SEARCH_CHUNK_BYTES).read_to_end(&mut window)? > 0 {
            let claims = window
                .windows(MARKER_BYTES)
                .filter_map(|bytes| self.find(bytes))
                .map(|marker| marker.synced);
            highest = claims.fold(highest, u64::max);
            let kept = window.len().min(MARKER_BYTES - 1);
            window.drain(..window.len() - kept);
        }
        Ok(highest)
    }

    /// The marker that these bytes are, if they are one.
    fn find(&self, bytes: &[u8]) -> Option<Marker> {
        let numbers = bytes.strip_prefix(&self.nonce)?;
        let (write, synced) = numbers.split_at_checked(8)?;
        let marker = Marker {
            write: u64::from_be_bytes(write.try_into().ok()?),
            synced: u64::from_be_bytes(synced.try_into().ok()?),
        };
        // No write knows of its own success.
        (marker.synced < marker.write).then_some(marker)
    }

    fn decode(content: &[u8]) -> Option<Witness> {
        let rest = content.strip_prefix(&[VERSION])?;
        let (nonce, floor) = rest.split_at_checked(NONCE_BYTES)?;
        Some(Witness {
            nonce: nonce.try_into().ok()?,
            floor: u64::from_be_bytes(floor.try_into().ok()?),
        })
    }

    fn save(&self, folder: &Path) -> io::Result<()> {
        let mut content = Vec::with_capacity(FILE_BYTES);
        content.push(VERSION);
        content.extend(self.nonce);
        content.extend(self.floor.to_be_bytes());
        let temporary = folder.join(format!("{FILE_NAME}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(temporary, folder.join(FILE_NAME))?;
        File::open(folder)?.sync_all()
    }
}

/// The file raft-engine appended to last.
pub(super) fn newest_append_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy());
        if name.is_some_and(|name| name.ends_with(APPEND_FILE_SUFFIX)) {
            // Names are numbers of a fixed width, so they sort as numbers.
            newest = newest.max(Some(path));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_across_chunks_and_only_with_the_right_nonce() {
        let folder = tempfile::tempdir().unwrap();
        let witness = Witness::open(folder.path()).unwrap();
        let stranger = Witness {
            nonce: [7; NONCE_BYTES],
            floor: 0,
        };
        let claim = |witness: &Witness, synced| {
            let marker = Marker {
                write: synced + 1,
                synced,
            };
            witness.encode(marker)
        };
        for before in [0, 1, SEARCH_CHUNK_BYTES - 23, SEARCH_CHUNK_BYTES - 1] {
            let mut content = vec![0; before as usize];
            content.extend(claim(&witness, 4));
            content.extend(claim(&stranger, 9));
            content.extend(&claim(&witness, 8)[..MARKER_BYTES - 1]);
            let path = folder.path().join("file");
            fs::write(&path, content).unwrap();
            assert_eq!(witness.highest_claim(&path).unwrap(), 4);
        }
    }

    #[test]
    fn floor_and_nonce_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let witness = Witness::open(folder.path()).unwrap();
        let marker = Marker {
            write: 6,
            synced: 5,
        };
        let log = folder.path().join("0000000000000001.raftlog");
        fs::write(&log, witness.encode(marker)).unwrap();
        assert_eq!(Witness::open(folder.path()).unwrap().floor, 5);
        fs::write(&log, []).unwrap();
        let witness = Witness::open(folder.path()).unwrap();
        assert_eq!(witness.floor, 5);
        assert_eq!(witness.check(Some(&witness.encode(marker))), Ok(6));
        witness.check(None).unwrap_err();
        fs::remove_file(folder.path().join(FILE_NAME)).unwrap();
        Witness::open(folder.path()).unwrap_err();
    }
}
