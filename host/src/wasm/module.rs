//! A module that passed all checks and is compiled, ready to be instantiated.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::{InstancePre, Module};

use super::check::{self, ModuleInfo};
use super::engine::PluginEngine;
use super::error::ModuleError;
use super::instrument::instrument;
use super::state::GuestState;

/// A module's name in the whole system: the SHA-256 of its bytes, as they were uploaded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleHash(pub [u8; 32]);

impl ModuleHash {
    /// The name of the module with these bytes.
    pub fn of(bytes: &[u8]) -> ModuleHash {
        ModuleHash(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModuleHash({self})")
    }
}

/// A compiled plugin. Cheap to clone; all clones share the machine code.
#[derive(Clone)]
pub struct PluginModule {
    inner: Arc<Inner>,
}

struct Inner {
    hash: ModuleHash,
    info: ModuleInfo,
    label: Arc<str>,
    pre: InstancePre<GuestState>,
}

impl PluginModule {
    /// Checks and compiles a module. Takes seconds for large ones; never on a thread that applies.
    ///
    /// # Errors
    /// [`ModuleError`] says what is the matter with the module and how to get rid of it.
    pub fn compile(engine: &PluginEngine, bytes: &[u8]) -> Result<PluginModule, ModuleError> {
        let check::Examined { info, outline, stack } = check::examine(bytes)?;
        let limited = instrument(bytes, &outline, &stack)
            .map_err(|error| ModuleError::Invalid(error.message().to_owned()))?;
        let module =
            Module::from_binary(engine.engine(), &limited).map_err(ModuleError::Compile)?;
        PluginModule::of(engine, ModuleHash::of(bytes), info, &module)
    }

    /// A module that was checked and compiled.
    pub(super) fn of(
        engine: &PluginEngine,
        hash: ModuleHash,
        info: ModuleInfo,
        module: &Module,
    ) -> Result<PluginModule, ModuleError> {
        let pre = engine.linker().instantiate_pre(module).map_err(ModuleError::Compile)?;
        let label = format!("{} {}", info.manifest.name, info.manifest.version).into();
        let inner = Inner { hash, info, label, pre };
        Ok(PluginModule { inner: Arc::new(inner) })
    }

    /// The module's name.
    pub fn hash(&self) -> ModuleHash {
        self.inner.hash
    }

    /// What the checks found out about it.
    pub fn info(&self) -> &ModuleInfo {
        &self.inner.info
    }

    /// Name and version, for logs.
    pub(super) fn label(&self) -> &Arc<str> {
        &self.inner.label
    }

    pub(super) fn pre(&self) -> &InstancePre<GuestState> {
        &self.inner.pre
    }
}

impl fmt::Display for PluginModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.label)
    }
}

impl fmt::Debug for PluginModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PluginModule({}, {})", self.inner.label, self.inner.hash)
    }
}
