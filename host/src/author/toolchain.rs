//! Makes a module of a project, with whichever compiler for WebAssembly there is.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use super::compare::RECORD_FOLDER;

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// A small stack keeps the memory small; as the first thing in it, its overflow traps instead of
/// overwriting data.
const LINK: &str = "-Clink-arg=-zstack-size=262144 -Clink-arg=--stack-first";
/// Small and fast modules, whatever the project's own profile says.
const PROFILE: [(&str, &str); 6] = [
    ("OPT_LEVEL", "3"),
    ("LTO", "fat"),
    ("CODEGEN_UNITS", "1"),
    ("PANIC", "abort"),
    ("STRIP", "true"),
    ("DEBUG", "false"),
];

/// Why there is no module.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The folder holds no project.
    #[error("{0} holds no Cargo.toml: go to the plugin's folder, or make one with `new`")]
    NoProject(String),
    /// The project cannot be read.
    #[error("cannot read {path}: {problem}")]
    Read {
        /// The file.
        path: String,
        /// What is the matter.
        problem: String,
    },
    /// Its crate makes no module.
    #[error("{0} makes no module: it needs crate-type = [\"cdylib\", \"rlib\"] under [lib]")]
    NoModule(String),
    /// No compiler.
    #[error(
        "there is no compiler for wasm32-unknown-unknown here. Get one in either way:\n    rustup \
         target add wasm32-unknown-unknown\n    apt-get install rustc-web cargo-web rust-web-src lld"
    )]
    NoToolchain,
    /// The compiler cannot be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It found errors, and told them.
    #[error("the plugin does not compile")]
    Failed,
    /// Its own tests fail.
    #[error("the plugin's tests fail")]
    TestsFail,
}

/// A compiler that makes modules.
struct Toolchain {
    cargo: PathBuf,
    sysroot: PathBuf,
    /// Debian's: it builds the standard library from source.
    is_debian: bool,
}

impl Toolchain {
    fn find() -> Option<Self> {
        Self::installed().or_else(Self::debian)
    }

    /// What `rustc` and `cargo` mean, if they can make modules.
    fn installed() -> Option<Self> {
        let sysroot = sysroot("rustc")?;
        let has_target = sysroot.join("lib/rustlib").join(TARGET).is_dir();
        has_target.then(|| Self { cargo: "cargo".into(), sysroot, is_debian: false })
    }

    fn debian() -> Option<Self> {
        let sysroot = sysroot(DEBIAN_RUSTC)?;
        let library = sysroot.join("lib/rustlib/src/rust/library/Cargo.toml");
        let has_linker = env::var_os("PATH")
            .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join("wasm-ld").is_file()));
        let is_whole = library.is_file() && Path::new(DEBIAN_CARGO).is_file() && has_linker;
        is_whole.then(|| Self { cargo: DEBIAN_CARGO.into(), sysroot, is_debian: true })
    }

    /// The command that builds the project in `folder`.
    fn build(&self, folder: &Path, source_hash: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(folder).args(["build", "--release", "--lib", "--target", TARGET]);
        command.arg("--target-dir").arg(folder.join("target"));
        for (key, value) in PROFILE {
            command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        // No path of this machine gets into the module.
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cargo_home = env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from);
        let remap =
            |from: PathBuf, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let flags = [
            LINK.replace(' ', "\u{1f}"),
            remap(folder.to_owned(), "."),
            remap(cargo_home.join("registry/src"), "registry"),
            remap(self.sysroot.join("lib/rustlib/src/rust"), "rust"),
        ];
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        command.env("RAFTKV_SOURCE_HASH", source_hash);
        // What another cargo has set that runs this program does not hold for the one it runs.
        for inherited in
            ["RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTUP_TOOLCHAIN"]
        {
            command.env_remove(inherited);
        }
        if self.is_debian {
            command.args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features="]);
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld");
        }
        command
    }
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let said = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let path = String::from_utf8(said.stdout).ok()?;
    said.status.success().then(|| PathBuf::from(path.trim()))
}

/// Builds the project in `folder`. Returns where the module is: `target/NAME.wasm`.
///
/// # Errors
/// If the folder holds no plugin, there is no compiler, or it finds errors; it tells them itself.
pub fn build(folder: &Path) -> Result<PathBuf, BuildError> {
    let shown = folder.display().to_string();
    let folder = folder.canonicalize().map_err(|_| BuildError::NoProject(shown.clone()))?;
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        return Err(BuildError::NoProject(shown));
    }
    let (package, library) = names(&manifest)?;
    let toolchain = Toolchain::find().ok_or(BuildError::NoToolchain)?;
    let mut command = toolchain.build(&folder, &source_hash(&folder)?);
    let program = toolchain.cargo.display().to_string();
    let status = command.status().map_err(|source| BuildError::Run { program, source })?;
    if !status.success() {
        return Err(BuildError::Failed);
    }
    let built = folder.join("target").join(TARGET).join("release").join(format!("{library}.wasm"));
    let module = folder.join("target").join(format!("{package}.wasm"));
    fs::copy(&built, &module).map_err(|_| BuildError::NoModule(manifest.display().to_string()))?;
    Ok(module)
}

/// Runs the tests of the project in `folder`, whose test hosts write what they do into `records`.
///
/// # Errors
/// If the folder holds no project, there is no cargo, or a test fails; it is told then.
pub fn test(folder: &Path, records: &Path) -> Result<(), BuildError> {
    if !folder.join("Cargo.toml").is_file() {
        return Err(BuildError::NoProject(folder.display().to_string()));
    }
    let status = Command::new("cargo")
        .current_dir(folder)
        .arg("test")
        .env(RECORD_FOLDER, records)
        .status()
        .map_err(|source| BuildError::Run { program: "cargo".to_owned(), source })?;
    if status.success() { Ok(()) } else { Err(BuildError::TestsFail) }
}

/// The names of a project's package and of its library.
fn names(manifest: &Path) -> Result<(String, String), BuildError> {
    let path = manifest.display().to_string();
    let wrong = |problem: String| BuildError::Read { path: path.clone(), problem };
    let text = fs::read_to_string(manifest).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let name_in = |section: &str| Some(table.get(section)?.get("name")?.as_str()?.to_owned());
    let package =
        name_in("package").ok_or_else(|| wrong("there is no package in it".to_owned()))?;
    let library = name_in("lib").unwrap_or_else(|| package.replace('-', "_"));
    Ok((package, library))
}

/// SHA-256 of the project's manifest and sources, in hex: of the lines "hash  path", sorted.
fn source_hash(folder: &Path) -> Result<String, BuildError> {
    let mut files = vec![folder.join("Cargo.toml")];
    gather(&folder.join("src"), &mut files)?;
    files.sort();
    let mut lines = String::new();
    for file in files {
        let bytes = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
        let path = file.strip_prefix(folder).unwrap_or(&file);
        lines += &format!("{:x}  {}\n", Sha256::digest(bytes), path.display());
    }
    Ok(format!("{:x}", Sha256::digest(lines)))
}

fn gather(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    let entries = fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        match path.is_dir() {
            true => gather(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> BuildError {
    BuildError::Read { path: path.display().to_string(), problem: error.to_string() }
}
