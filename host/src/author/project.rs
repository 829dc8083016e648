//! A new project: a plugin that builds, with a test that passes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::wasm::is_plugin_name;

/// The files of a new project, with `{name}`, `{library}` and `{sdk}` to be filled in.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    ("src/lib.rs", include_str!("template/lib.rs.txt")),
    ("tests/counter.rs", include_str!("template/test.rs.txt")),
    ("commands.txt", include_str!("template/commands.txt")),
    ("README.md", include_str!("template/README.md")),
    (".gitignore", "/target\n"),
];

/// Why no project was made.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The name cannot be a plugin's.
    #[error(
        "{0:?} cannot be the name of a plugin: it has 1 to 64 characters of a-z, 0-9, - and _, and \
         begins with a letter"
    )]
    Name(String),
    /// Something is there already.
    #[error("{0} is there already: choose another name or folder")]
    Exists(String),
    /// The SDK is not where it should be.
    #[error(
        "there is no raft-kv-sdk in {0}: say where it is with --sdk DIR (RaftKV's folder `sdk`)"
    )]
    Sdk(String),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Where the SDK lies that this program was built with.
pub fn own_sdk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("sdk")
}

/// Makes a project in a new folder, which uses the SDK in `sdk`.
///
/// # Errors
/// If the name is none, the folder exists, there is no SDK, or a file cannot be written.
pub fn make(name: &str, folder: &Path, sdk: &Path) -> Result<(), ProjectError> {
    // The name of a crate begins with a letter.
    if !is_plugin_name(name) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err(ProjectError::Name(name.to_owned()));
    }
    if folder.exists() {
        return Err(ProjectError::Exists(folder.display().to_string()));
    }
    let no_sdk = || ProjectError::Sdk(sdk.display().to_string());
    let sdk = sdk.canonicalize().map_err(|_| no_sdk())?;
    let manifest = fs::read_to_string(sdk.join("Cargo.toml")).map_err(|_| no_sdk())?;
    if !manifest.contains("name = \"raft-kv-sdk\"") {
        return Err(no_sdk());
    }
    let sdk = sdk.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    let fill = |text: &str| {
        let library = name.replace('-', "_");
        text.replace("{name}", name).replace("{library}", &library).replace("{sdk}", &sdk)
    };
    FILES.iter().try_for_each(|(path, text)| write(&folder.join(path), &fill(text)))
}

fn write(path: &Path, text: &str) -> Result<(), ProjectError> {
    let written = match path.parent() {
        Some(folder) => fs::create_dir_all(folder).and_then(|()| fs::write(path, text)),
        None => fs::write(path, text),
    };
    written.map_err(|source| ProjectError::Write { path: path.display().to_string(), source })
}
