//! The plugin modules a node holds: files named by their SHA-256, compiled once.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::{
    storage::{PluginId, write_durably},
    wasm::{HostError, ModuleError, ModuleHash, PluginEngine, PluginModule},
};

/// The key-value store, the plugin of every cluster that names no other.
pub const DEFAULT_PLUGIN: &[u8] = include_bytes!("../../../plugins/dist/kv.wasm");

/// Why a plugin can not be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginFileError {
    /// The file can not be read or written.
    #[error("cannot access the plugin file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The module is none that can be run.
    #[error("the plugin in {path} cannot be used: {source}")]
    Module {
        /// The file, or what the module is called.
        path: PathBuf,
        /// What is the matter with it.
        source: ModuleError,
    },
    /// The file's content changed since it was stored.
    #[error(
        "the plugin file {path} is damaged: its SHA-256 is not its name; put the module back with the same content"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The sandbox can not be set up.
    #[error(transparent)]
    Engine(#[from] HostError),
}

/// The folder of plugin modules and what was compiled of it.
pub struct PluginStore {
    folder: PathBuf,
    engine: PluginEngine,
    compiled: Mutex<BTreeMap<PluginId, PluginModule>>,
}

impl PluginStore {
    /// The plugins in `folder`, which is made if there is none, to be run by at
    /// most so many executors at once.
    pub fn open(folder: PathBuf, max_executors: usize) -> Result<Self, PluginFileError> {
        fs::create_dir_all(&folder)
            .map_err(|source| PluginFileError::Io { path: folder.clone(), source })?;
        Ok(PluginStore {
            folder,
            engine: PluginEngine::new(max_executors)?,
            compiled: Mutex::default(),
        })
    }

    pub(super) fn engine(&self) -> &PluginEngine {
        &self.engine
    }

    /// Checks, compiles and stores a module, durably.
    pub fn add(&self, bytes: &[u8], origin: &Path) -> Result<PluginId, PluginFileError> {
        let module = PluginModule::compile(&self.engine, bytes)
            .map_err(|source| PluginFileError::Module { path: origin.to_owned(), source })?;
        let ModuleHash(id) = module.hash();
        let path = self.path(&id);
        let error = |source| PluginFileError::Io { path: path.clone(), source };
        if fs::read(&path).ok().as_deref() != Some(bytes) {
            write_durably(&path, bytes).map_err(error)?;
        }
        self.compiled.lock().insert(id, module);
        Ok(id)
    }

    /// A stored module, compiled.
    pub fn module(&self, id: &PluginId) -> Result<PluginModule, PluginFileError> {
        if let Some(module) = self.compiled.lock().get(id) {
            return Ok(module.clone());
        }
        let bytes = self.bytes(id)?;
        let module = PluginModule::compile(&self.engine, &bytes)
            .map_err(|source| PluginFileError::Module { path: self.path(id), source })?;
        self.compiled.lock().insert(*id, module.clone());
        Ok(module)
    }

    /// A stored module as it was added.
    pub fn bytes(&self, id: &PluginId) -> Result<Vec<u8>, PluginFileError> {
        let path = self.path(id);
        let bytes =
            fs::read(&path).map_err(|source| PluginFileError::Io { path: path.clone(), source })?;
        match ModuleHash::of(&bytes).0 == *id {
            true => Ok(bytes),
            false => Err(PluginFileError::Damaged { path }),
        }
    }

    fn path(&self, id: &PluginId) -> PathBuf {
        let mut name = id.iter().fold(String::new(), |mut name, byte| {
            // Writing to a string can not fail.
            let _ = write!(name, "{byte:02x}");
            name
        });
        name.push_str(".wasm");
        self.folder.join(name)
    }
}

/// The hash that a module is named by, from hex.
pub fn plugin_id(sha256: &str) -> PluginId {
    let mut id = PluginId::default();
    let (digits, _) = sha256.as_bytes().as_chunks::<2>();
    for (byte, digits) in id.iter_mut().zip(digits) {
        let text = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(text, 16).unwrap_or_default();
    }
    id
}
