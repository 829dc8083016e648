//! Looking at data folders, copying and damaging them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// All files below a folder, with paths relative to it, in order.
///
/// # Panics
/// If the folder cannot be read.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path.strip_prefix(folder).unwrap().to_owned()),
            }
        }
    }
    files.sort();
    files
}

/// The hash of every file below a folder.
///
/// # Panics
/// If one cannot be read.
pub fn fingerprint(folder: &Path) -> BTreeMap<PathBuf, String> {
    let hash = |path: PathBuf| {
        let bytes = fs::read(folder.join(&path)).expect("the file can be read");
        let hash = sha256(&bytes);
        (path, hash)
    };
    files_below(folder).into_iter().map(hash).collect()
}

/// The SHA-256 of bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a folder with all that is in it.
///
/// # Panics
/// If it cannot.
pub fn copy_folder(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().unwrap()).expect("the target is writable");
        fs::copy(from.join(&file), target).expect("the file can be copied");
    }
}

/// The file of Raft log that was begun last.
///
/// # Panics
/// If there is none.
pub fn newest_raft_log(data_dir: &Path) -> PathBuf {
    // Their names are numbers of equal length.
    let logs = files_with_suffix(data_dir, "raftlog").into_iter();
    logs.max_by_key(|file| file.file_name().map(ToOwned::to_owned)).expect("there is a Raft log")
}

/// The files below a folder whose names end in this suffix.
///
/// # Panics
/// If the folder cannot be read.
pub fn files_with_suffix(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let files = files_below(folder).into_iter();
    let files = files.filter(|file| file.extension().is_some_and(|found| found == suffix));
    files.map(|file| folder.join(file)).collect()
}

/// How much of a file is used: what comes after is zeros, set aside for later.
///
/// # Panics
/// If it cannot be read.
pub fn used_length(file: &Path) -> usize {
    let bytes = fs::read(file).expect("the file can be read");
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last + 1)
}

/// Changes one byte of a file.
///
/// # Panics
/// If the file is not that long.
pub fn flip_byte(file: &Path, offset: usize) {
    let mut bytes = fs::read(file).expect("the file can be read");
    bytes[offset] ^= 0x55;
    fs::write(file, bytes).expect("the file can be written");
}

/// Cuts a file to a length.
///
/// # Panics
/// If it cannot be cut.
pub fn cut(file: &Path, length: usize) {
    let file = fs::File::options().write(true).open(file);
    let cut = file.and_then(|file| file.set_len(length as u64));
    cut.expect("the file can be cut");
}
