//! Compiled modules as files, so that a module is compiled once and not at every start.
//!
//! Loading compiled code is unsafe: what is loaded runs as part of the node. So an artifact says which
//! module it was compiled from, by which engine with which settings, and carries a checksum of itself.
//! One that does not fit, or is damaged, is refused, and the module is compiled anew.

use std::hash::Hash;

use wasmtime::{Engine, Module};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::check::check;
use super::engine::PluginEngine;
use super::error::ModuleError;
use super::module::{ModuleHash, PluginModule};

/// What an artifact begins with. The last byte is the version of what is done to a module before it is
/// compiled, and of this layout.
const MAGIC: [u8; 16] = *b"raftkv-compiled\x01";

/// Bytes before the code: the magic, engine and settings, module, checksum.
const HEADER_BYTES: usize = 16 + 16 + 32 + 16;

/// Why an artifact can not be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// It is of another module, engine, or version.
    #[error("it was compiled from another module, or by another version of this program")]
    Other,
    /// Its bytes changed.
    #[error("it is damaged")]
    Damaged,
    /// The engine does not take it.
    #[error("the engine refuses it: {0}")]
    Refused(wasmtime::Error),
    /// The module itself is refused.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

impl PluginModule {
    /// The compiled code, for [`PluginModule::load`].
    ///
    /// # Errors
    /// If the engine can not write it down.
    pub fn artifact(&self) -> Result<Vec<u8>, ModuleError> {
        let module = self.pre().module();
        let code = module.serialize().map_err(ModuleError::Compile)?;
        let mut artifact = Vec::with_capacity(HEADER_BYTES + code.len());
        artifact.extend_from_slice(&MAGIC);
        artifact.extend_from_slice(&settings(module.engine()));
        artifact.extend_from_slice(&self.hash().0);
        artifact.extend_from_slice(&xxh3_128(&code).to_le_bytes());
        artifact.extend_from_slice(&code);
        Ok(artifact)
    }

    /// The module with these `bytes`, compiled earlier.
    ///
    /// # Errors
    /// If the artifact is not this module's, not this engine's, or damaged.
    pub fn load(
        engine: &PluginEngine,
        bytes: &[u8],
        artifact: &[u8],
    ) -> Result<PluginModule, ArtifactError> {
        let (header, code) = artifact.split_at_checked(HEADER_BYTES).ok_or(ArtifactError::Other)?;
        let hash = ModuleHash::of(bytes);
        let expected = [&MAGIC[..], &settings(engine.engine()), &hash.0].concat();
        let (origin, checksum) = header.split_at(expected.len());
        if origin != expected {
            return Err(ArtifactError::Other);
        }
        if checksum != xxh3_128(code).to_le_bytes() {
            return Err(ArtifactError::Damaged);
        }
        let module = deserialize(engine.engine(), code)?;
        Ok(PluginModule::of(engine, hash, check(bytes)?, &module)?)
    }
}

#[allow(unsafe_code)]
fn deserialize(engine: &Engine, code: &[u8]) -> Result<Module, ArtifactError> {
    // SAFETY: the bytes were written by `artifact` of this program with these settings, which the
    // header says and the engine checks again, into the node's own data folder; the checksum says that
    // they are still those. Whoever can write other ones there, checksum and all, can change the
    // node's data and its program as well.
    unsafe { Module::deserialize(engine, code) }.map_err(ArtifactError::Refused)
}

/// Names the engine's version and all settings that compiled code depends on.
fn settings(engine: &Engine) -> [u8; 16] {
    let mut hasher = Xxh3::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.digest128().to_le_bytes()
}
