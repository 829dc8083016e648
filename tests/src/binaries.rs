//! The programs under test.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::workspace;

/// The program of this name, built with the profile of the running test.
///
/// # Panics
/// If it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| match env::var_os("RAFTKV_TEST_BINARIES") {
        Some(folder) => folder.into(),
        None => build(),
    });
    let path = folder.join(name);
    assert!(path.is_file(), "there is no program {}", path.display());
    path
}

/// Builds all programs and gives their folder.
///
/// The selection is the whole workspace's, so that cargo resolves features as it
/// does for a build of everything, and compiles no dependency a second time.
fn build() -> PathBuf {
    let test = env::current_exe().expect("the system knows the running program");
    let [_, _, folder, target] = test.ancestors().take(4).collect::<Vec<&Path>>()[..] else {
        panic!("{} is not in a target folder", test.display());
    };
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} is not in the folder of a profile", test.display()),
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--workspace", "--profile", profile])
        .args(["--bin", "raft-kv", "--bin", "raft-kv-client", "--bin", "raft-kv-plugin"])
        .arg("--target-dir")
        .arg(target)
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the programs under test do not build");
    folder.to_owned()
}
