//! Tells a torn tail from a lost one.
//!
//! Raft-engine cuts its newest file at the first batch that it cannot read, and
//! does not ask whether the rest was ever durable. After a crash in the middle of
//! a write that is right; after a bit flipped in the middle of the file, synced
//! votes and entries would be gone without a word, and with them agreement.
//!
//! So every write carries its number behind a random nonce that nobody outside
//! knows, and thereby claims that the one before it was durable: writes are synced
//! one by one. Before raft-engine opens the log, the newest file is searched for
//! these markers, whole batch or not; the highest claim is put on record in a file
//! of its own. The log must then hold at least the write claimed.
//!
//! What this cannot see is damage to the very last write, since nothing after it
//! claims it. Closing and reclaiming therefore end the log with a write that
//! carries nothing but a marker.
//!
//! Raft-engine's second queue, to which reclaiming moves what is still needed of
//! old files, is cut in the same way. Nothing is appended to it in between, so its
//! newest file and length are put on record after each reclaim.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

const FILE_NAME: &str = "WITNESS";
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 8;
const MARKER_BYTES: usize = NONCE_BYTES + 16;
const SEARCH_CHUNK_BYTES: u64 = 1 << 20;

/// Suffixes of the files of raft-engine's two queues: what is appended, and what
/// it rewrote from there.
const APPENDED: &str = ".raftlog";
const REWRITTEN: &str = ".rewrite";

/// A secret of one log by which its markers are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonce([u8; NONCE_BYTES]);

impl Nonce {
    /// The marker of the write with this number; they begin with one. The number
    /// is in it twice, so that half a marker claims nothing.
    pub(super) fn marker(&self, write: u64) -> Vec<u8> {
        [self.0, write.to_be_bytes(), (!write).to_be_bytes()].concat()
    }

    /// The number in a marker, if these bytes are one.
    fn write_of(&self, bytes: &[u8]) -> Option<u64> {
        let numbers = bytes.strip_prefix(&self.0)?;
        let (write, inverted) = numbers.split_at_checked(8)?;
        let write = u64::from_be_bytes(write.try_into().ok()?);
        (inverted == (!write).to_be_bytes()).then_some(write)
    }

    /// The highest write that a marker in a file claims to have been durable.
    fn highest_claim(&self, path: &Path) -> io::Result<u64> {
        let file = File::open(path)?;
        let mut window = Vec::new();
        let mut highest = 0;
        while (&file).take(SEARCH_CHUNK_BYTES).read_to_end(&mut window)? > 0 {
            let claims = window
                .windows(MARKER_BYTES)
                .filter_map(|bytes| self.write_of(bytes))
                .map(|write| write.saturating_sub(1));
            highest = claims.fold(highest, u64::max);
            let kept = window.len().min(MARKER_BYTES - 1);
            window.drain(..window.len() - kept);
        }
        Ok(highest)
    }
}

/// Knows what a log must hold, and keeps it in a file.
#[derive(Debug)]
pub(super) struct Witness {
    folder: PathBuf,
    nonce: Nonce,
    /// The newest write that is known to have been durable.
    durable_write: u64,
    /// The number of a file of rewritten entries, and how much of it is durable.
    rewritten: (u64, u64),
}

impl Witness {
    /// Reads, or for a new log creates, the witness of the log in `folder`, and
    /// puts on record what the newest file claims. To be called before raft-engine
    /// opens the log and cuts it.
    pub(super) fn open(folder: &Path) -> Result<Witness, String> {
        let newest = newest_append_file(folder).map_err(|error| error.to_string())?;
        let path = folder.join(FILE_NAME);
        let mut witness = match fs::read(&path) {
            Ok(content) => Witness::decode(folder, &content)
                .ok_or_else(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot read {}: {error}", path.display()));
            }
            Err(_) if newest.is_some() => return Err(format!("{} is missing", path.display())),
            Err(_) => Witness::create(folder).map_err(|error| error.to_string())?,
        };
        if let Some(newest) = newest {
            let claim = witness.nonce.highest_claim(&newest);
            let claim = claim.map_err(|error| format!("{}: {error}", newest.display()))?;
            if claim > witness.durable_write {
                witness.durable_write = claim;
                witness.save().map_err(|error| error.to_string())?;
            }
        }
        Ok(witness)
    }

    fn create(folder: &Path) -> io::Result<Witness> {
        let witness = Witness {
            folder: folder.to_owned(),
            nonce: Nonce(rand::random()),
            durable_write: 0,
            rewritten: (0, 0),
        };
        witness.save()?;
        Ok(witness)
    }

    pub(super) fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// Checks what raft-engine recovered, given the marker of the last write in it.
    /// Returns the number of that write, zero if there is none.
    pub(super) fn check(&self, last_marker: Option<&[u8]>) -> Result<u64, String> {
        let last_write = match last_marker {
            None => 0,
            Some(marker) => {
                self.nonce.write_of(marker).ok_or("its writes do not belong to its WITNESS file")?
            }
        };
        let advice = "remove the folder and rebuild this node's replicas from their peers";
        if last_write < self.durable_write {
            let durable = self.durable_write;
            return Err(format!(
                "it is damaged: write {durable} was durable, but writes are readable only up to \
                 {last_write}; {advice}"
            ));
        }
        let newest = newest(&self.folder, REWRITTEN).map_err(|error| error.to_string())?;
        let (number, bytes) = match newest {
            Some((number, path)) => {
                let metadata = path.metadata().map_err(|error| error.to_string())?;
                (number, metadata.len())
            }
            None => (0, 0),
        };
        if (number, bytes) < self.rewritten {
            let (expected_number, expected_bytes) = self.rewritten;
            return Err(format!(
                "it is damaged: file {expected_number}{REWRITTEN} had {expected_bytes} bytes, but \
                 file {number} is the last and readable up to {bytes}; {advice}"
            ));
        }
        Ok(last_write)
    }

    /// Makes what raft-engine has rewritten so far durable and puts it on record.
    pub(super) fn note_rewritten(&mut self) -> io::Result<()> {
        let Some((number, path)) = newest(&self.folder, REWRITTEN)? else {
            return Ok(());
        };
        let mut file = File::open(path)?;
        file.sync_data()?;
        let rewritten = (number, content_bytes(&mut file)?);
        if rewritten != self.rewritten {
            self.rewritten = rewritten;
            self.save()?;
        }
        Ok(())
    }

    fn decode(folder: &Path, content: &[u8]) -> Option<Witness> {
        let content = content.strip_prefix(&[VERSION])?;
        let (nonce, numbers) = content.split_at_checked(NONCE_BYTES)?;
        let (numbers, rest) = numbers.as_chunks::<8>();
        let &[durable_write, file, bytes] = numbers else {
            return None;
        };
        rest.is_empty().then_some(Witness {
            folder: folder.to_owned(),
            nonce: Nonce(nonce.try_into().ok()?),
            durable_write: u64::from_be_bytes(durable_write),
            rewritten: (u64::from_be_bytes(file), u64::from_be_bytes(bytes)),
        })
    }

    fn save(&self) -> io::Result<()> {
        let mut content = vec![VERSION];
        content.extend(self.nonce.0);
        for number in [self.durable_write, self.rewritten.0, self.rewritten.1] {
            content.extend(number.to_be_bytes());
        }
        let temporary = self.folder.join(format!("{FILE_NAME}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(temporary, self.folder.join(FILE_NAME))?;
        File::open(&self.folder)?.sync_all()
    }
}

/// The file raft-engine appended to last.
pub(super) fn newest_append_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    Ok(newest(folder, APPENDED)?.map(|(_, path)| path))
}

/// The newest file of a queue, and its number.
fn newest(folder: &Path, suffix: &str) -> io::Result<Option<(u64, PathBuf)>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(suffix)?.parse().ok());
        if let Some(number) = number {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest)
}

/// Where the content of a file ends: raft-engine allocates ahead, which reads as
/// zeros.
fn content_bytes(file: &mut File) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(SEARCH_CHUNK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.take(end - start).read_to_end(&mut chunk)?;
        if let Some(last) = chunk.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_file(folder: &Path, suffix: &str) -> PathBuf {
        folder.join(format!("0000000000000001{suffix}"))
    }

    #[test]
    fn claims_are_found_across_chunks_and_only_with_the_right_nonce() {
        let folder = tempfile::tempdir().unwrap();
        let (nonce, other) = (Nonce([3; NONCE_BYTES]), Nonce([7; NONCE_BYTES]));
        for before in [0, 1, SEARCH_CHUNK_BYTES - 23, SEARCH_CHUNK_BYTES - 1] {
            let mut content = vec![0; before as usize];
            content.extend(nonce.marker(5));
            content.extend(other.marker(9));
            content.extend(&nonce.marker(8)[..MARKER_BYTES - 1]);
            let path = folder.path().join("file");
            fs::write(&path, content).unwrap();
            assert_eq!(nonce.highest_claim(&path).unwrap(), 4);
        }
    }

    #[test]
    fn content_ends_before_what_is_allocated_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (used, length) in [(0, 0), (0, 9), (7, 7), (7, 3 << 20), (1 << 20, 2 << 20)] {
            let mut content = vec![1; used];
            content.resize(length, 0);
            fs::write(&path, content).unwrap();
            let found = content_bytes(&mut File::open(&path).unwrap()).unwrap();
            assert_eq!(found, used as u64, "{used} of {length}");
        }
    }

    #[test]
    fn claimed_write_must_be_there_whenever_the_log_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let nonce = Witness::open(folder.path()).unwrap().nonce();
        let log = log_file(folder.path(), APPENDED);
        fs::write(&log, nonce.marker(6)).unwrap();
        Witness::open(folder.path()).unwrap();
        fs::write(&log, []).unwrap();
        let witness = Witness::open(folder.path()).unwrap();
        assert_eq!(witness.check(Some(&nonce.marker(5))), Ok(5));
        witness.check(Some(&nonce.marker(4))).unwrap_err();
        witness.check(None).unwrap_err();
        let foreign = Nonce([7; NONCE_BYTES]);
        witness.check(Some(&foreign.marker(5))).unwrap_err();
    }

    #[test]
    fn rewritten_file_must_not_shrink_or_vanish() {
        let folder = tempfile::tempdir().unwrap();
        let rewritten = log_file(folder.path(), REWRITTEN);
        fs::write(&rewritten, [1, 2, 3, 0, 0]).unwrap();
        Witness::open(folder.path()).unwrap().note_rewritten().unwrap();
        let witness = Witness::open(folder.path()).unwrap();
        for (content, is_sound) in [(vec![1; 3], true), (vec![1; 9], true), (vec![1; 2], false)] {
            fs::write(&rewritten, content).unwrap();
            assert_eq!(witness.check(None).is_ok(), is_sound);
        }
        fs::remove_file(rewritten).unwrap();
        witness.check(None).unwrap_err();
        fs::write(folder.path().join(format!("2{REWRITTEN}")), []).unwrap();
        witness.check(None).unwrap();
    }

    #[test]
    fn missing_or_damaged_witness_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        Witness::open(folder.path()).unwrap();
        fs::write(log_file(folder.path(), APPENDED), []).unwrap();
        let path = folder.path().join(FILE_NAME);
        let content = fs::read(&path).unwrap();
        for length in 0..content.len() {
            fs::write(&path, &content[..length]).unwrap();
            Witness::open(folder.path()).unwrap_err();
        }
        fs::remove_file(path).unwrap();
        Witness::open(folder.path()).unwrap_err();
    }
}
