//! The plugin modules a node holds: files named by their SHA-256, compiled once.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    compiler::{CompileError, Compiler},
    meter::PluginMeter,
};
use crate::{
    storage::{PluginId, write_durably},
    wasm::{HostError, ModuleError, ModuleHash, PluginEngine, PluginModule, check_module},
};

/// How often it is looked again whether a module that is waited for has come.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

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
    /// The module passed the checks, and was not compiled.
    #[error("the plugin in {path} cannot be used: {source}")]
    Compile {
        /// The file, or what the module is called.
        path: PathBuf,
        /// Why.
        source: Box<CompileError>,
    },
    /// The node stops while the module is waited for.
    #[error("the node stops")]
    Stopping,
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

/// The folder of plugin modules, what was compiled of them, and what was counted of each.
pub struct PluginStore {
    folder: PathBuf,
    engine: PluginEngine,
    compiler: Compiler,
    /// Held while a module is compiled: one at a time.
    compiling: Mutex<()>,
    loaded: Mutex<Loaded>,
    /// A module was loaded, or the node stops.
    news: Condvar,
}

#[derive(Default)]
struct Loaded {
    modules: BTreeMap<PluginId, PluginModule>,
    meters: BTreeMap<PluginId, Arc<PluginMeter>>,
    is_closed: bool,
}

impl PluginStore {
    /// The plugins in `folder`, which is made if there is none, to be run by at
    /// most so many executors at once.
    pub fn open(
        folder: PathBuf,
        max_executors: usize,
        compiler: Compiler,
    ) -> Result<Self, PluginFileError> {
        fs::create_dir_all(&folder)
            .map_err(|source| PluginFileError::Io { path: folder.clone(), source })?;
        Ok(PluginStore {
            folder,
            engine: PluginEngine::new(max_executors)?,
            compiler,
            compiling: Mutex::default(),
            loaded: Mutex::default(),
            news: Condvar::new(),
        })
    }

    pub(super) fn engine(&self) -> &PluginEngine {
        &self.engine
    }

    /// Checks, stores and compiles a module, durably. One that is refused is not kept.
    pub fn add(&self, bytes: &[u8], origin: &Path) -> Result<PluginId, PluginFileError> {
        check_module(bytes)
            .map_err(|source| PluginFileError::Module { path: origin.to_owned(), source })?;
        let ModuleHash(id) = ModuleHash::of(bytes);
        if self.loaded(&id).is_some() && self.bytes(&id).is_ok() {
            return Ok(id);
        }
        let path = self.path(&id);
        let error = |source| PluginFileError::Io { path: path.clone(), source };
        let was_here = fs::read(&path).is_ok_and(|stored| stored == bytes);
        if !was_here {
            write_durably(&path, bytes).map_err(error)?;
        }
        match self.module(&id) {
            Ok(_) => Ok(id),
            Err(refusal) => {
                if !was_here {
                    // It stays as a file that nobody asks for.
                    let _ = fs::remove_file(&path);
                }
                Err(match refusal {
                    PluginFileError::Compile { source, .. } => {
                        PluginFileError::Compile { path: origin.to_owned(), source }
                    }
                    other => other,
                })
            }
        }
    }

    /// A stored module, compiled.
    pub fn module(&self, id: &PluginId) -> Result<PluginModule, PluginFileError> {
        if let Some(module) = self.loaded(id) {
            return Ok(module);
        }
        let _turn = self.compiling.lock();
        if let Some(module) = self.loaded(id) {
            return Ok(module);
        }
        let bytes = self.bytes(id)?;
        let module = match self.load(id, &bytes) {
            Some(module) => module,
            None => self.compile(id, &bytes)?,
        };
        self.loaded.lock().modules.insert(*id, module.clone());
        self.news.notify_all();
        Ok(module)
    }

    /// A module that was compiled earlier, if it still fits.
    fn load(&self, id: &PluginId, bytes: &[u8]) -> Option<PluginModule> {
        let path = self.artifact_path(id);
        let artifact = fs::read(&path).ok()?;
        match PluginModule::load(&self.engine, bytes, &artifact) {
            Ok(module) => Some(module),
            Err(error) => {
                tracing::info!("{} is not used: {error}; compiling anew", path.display());
                None
            }
        }
    }

    fn compile(&self, id: &PluginId, bytes: &[u8]) -> Result<PluginModule, PluginFileError> {
        let (path, artifact_path) = (self.path(id), self.artifact_path(id));
        let started = Instant::now();
        let refused = |error: CompileError| PluginFileError::Compile {
            path: path.clone(),
            source: Box::new(error),
        };
        self.compiler.compile(&self.engine, &path, &artifact_path).map_err(refused)?;
        let artifact = fs::read(&artifact_path)
            .map_err(|source| PluginFileError::Io { path: artifact_path, source })?;
        let module = PluginModule::load(&self.engine, bytes, &artifact);
        let module = module.map_err(|error| refused(CompileError::Process(error.to_string())))?;
        let milliseconds = started.elapsed().as_millis();
        tracing::info!("compiled plugin {module} in {milliseconds} ms");
        Ok(module)
    }

    /// A module that is compiled already.
    pub fn loaded(&self, id: &PluginId) -> Option<PluginModule> {
        self.loaded.lock().modules.get(id).cloned()
    }

    /// A module that a log says has to run from now on: one that is not here is waited for, as
    /// long as the node runs.
    pub fn wait_for(&self, id: &PluginId) -> Result<PluginModule, PluginFileError> {
        let mut told = false;
        loop {
            match self.module(id) {
                Ok(module) => return Ok(module),
                Err(error) if !told => {
                    tracing::warn!("a shard waits for a plugin: {error}");
                    told = true;
                }
                Err(_) => {}
            }
            let mut loaded = self.loaded.lock();
            if loaded.is_closed {
                return Err(PluginFileError::Stopping);
            }
            if !loaded.modules.contains_key(id) {
                self.news.wait_for(&mut loaded, LOOK_AGAIN);
            }
        }
    }

    /// Nobody waits for modules any more: the node stops.
    pub fn close(&self) {
        self.loaded.lock().is_closed = true;
        self.news.notify_all();
    }

    /// Whether a module is stored here and compiled, or was.
    pub fn has(&self, id: &PluginId) -> bool {
        self.loaded(id).is_some() || (self.path(id).exists() && self.artifact_path(id).exists())
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

    /// Forgets a module and removes its files.
    pub fn remove(&self, id: &PluginId) {
        let _turn = self.compiling.lock();
        let mut loaded = self.loaded.lock();
        loaded.modules.remove(id);
        loaded.meters.remove(id);
        drop(loaded);
        for path in [self.artifact_path(id), self.path(id)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }

    /// The plugins that are stored here.
    pub fn stored(&self) -> Vec<PluginId> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let ids = names.filter_map(|name| {
            let hash = name.strip_suffix(".wasm")?;
            (hash.len() == 64).then(|| plugin_id(hash))
        });
        ids.collect()
    }

    /// Where a plugin is counted.
    pub(super) fn meter(&self, id: &PluginId) -> Arc<PluginMeter> {
        Arc::clone(self.loaded.lock().meters.entry(*id).or_default())
    }

    /// What was counted of each plugin that ran here.
    pub fn meters(&self) -> Vec<(PluginModule, Arc<PluginMeter>)> {
        let loaded = self.loaded.lock();
        let counted = loaded
            .meters
            .iter()
            .filter_map(|(id, meter)| Some((loaded.modules.get(id)?.clone(), Arc::clone(meter))));
        counted.collect()
    }

    fn path(&self, id: &PluginId) -> PathBuf {
        self.folder.join(format!("{}.wasm", ModuleHash(*id)))
    }

    fn artifact_path(&self, id: &PluginId) -> PathBuf {
        self.folder.join(format!("{}.compiled", ModuleHash(*id)))
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
