//! The checks that a module passes before anything of it is compiled: flat, named, in this order.
//!
//! What passes here can be linked and entered; what a plugin does at run time is left to the
//! sandbox. The compiler's work is bounded too, by the module's size and by the size, locals and
//! blocks of one function; and so is the native stack, together with the limit on recursion.

use wasmparser::{ExternalKind, FuncType, FunctionBody, Parser, TypeRef, Validator, WasmFeatures};

use super::abi;
use super::call_graph::StackPlan;
use super::engine::FEATURES;
use super::error::ModuleError;
use super::limits::{
    MAX_FRAME_BYTES, MAX_MERGES, MAX_MERGING_WORK, MAX_STRAIGHT_STACK_BYTES, MAX_TABLE_ELEMENTS,
};
use super::manifest::Manifest;
use super::outline::Outline;

/// The largest module that can be uploaded.
pub const MAX_MODULE_BYTES: usize = 16 << 20;
/// The largest memory that a module may ask for at its start; a shard's limit may be lower.
const MAX_INITIAL_MEMORY_BYTES: u64 = 1 << 30;
const MAX_FUNCTIONS: u64 = 100_000;
const MAX_FUNCTION_BYTES: u64 = 1 << 20;
const MAX_LOCALS: u64 = 4_096;
const MAX_GLOBALS: u64 = 10_000;
const MAX_TYPES: u64 = 10_000;
const MAX_EXPORTS: u64 = 10_000;
/// Bytes of a name that a message shows.
const MAX_SHOWN_BYTES: usize = 100;
/// Tables of one module; compilers make one.
pub(super) const MAX_TABLES: u64 = 4;

/// What the checks found out about a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its custom section.
    pub manifest: Manifest,
    /// The memory that every instance starts with, in bytes. More than a shard's limit means that
    /// each of its commands fails.
    pub initial_memory_bytes: u64,
    /// Whether it exports `migrate`.
    pub has_migrate: bool,
}

/// Checks a module without compiling it.
///
/// # Errors
/// The first thing that is the matter.
pub fn check(bytes: &[u8]) -> Result<ModuleInfo, ModuleError> {
    examine(bytes).map(|examined| examined.info)
}

/// A module that passed all checks, and what the next step needs of it.
pub(super) struct Examined<'a> {
    pub(super) info: ModuleInfo,
    pub(super) outline: Outline<'a>,
    pub(super) stack: StackPlan,
}

/// [`check`], keeping what it read.
pub(super) fn examine(bytes: &[u8]) -> Result<Examined<'_>, ModuleError> {
    check_size(bytes)?;
    check_is_core_module(bytes)?;
    check_features(bytes)?;
    let outline = Outline::read(bytes).map_err(invalid)?;
    let manifest = check_manifest(&outline)?;
    check_imports(&outline)?;
    check_exports(&outline)?;
    check_start(&outline)?;
    check_memory(&outline)?;
    check_counts(&outline)?;
    check_functions(&outline)?;
    let stack = StackPlan::of(bytes, &outline).map_err(invalid)?;
    check_stack(&stack)?;
    let info = ModuleInfo {
        manifest,
        initial_memory_bytes: outline.initial_memory_bytes(),
        has_migrate: outline.export(abi::MIGRATE).is_some(),
    };
    Ok(Examined { info, outline, stack })
}

fn invalid(error: wasmparser::Error) -> ModuleError {
    ModuleError::Invalid(error.message().to_owned())
}

fn check_size(bytes: &[u8]) -> Result<(), ModuleError> {
    if bytes.len() <= MAX_MODULE_BYTES {
        return Ok(());
    }
    Err(ModuleError::TooLarge { size: bytes.len(), limit: MAX_MODULE_BYTES })
}

fn check_is_core_module(bytes: &[u8]) -> Result<(), ModuleError> {
    if Parser::is_component(bytes) { Err(ModuleError::Component) } else { Ok(()) }
}

/// Valid with the allowed features; if not, the message depends on whether any features would do.
fn check_features(bytes: &[u8]) -> Result<(), ModuleError> {
    let Err(error) = Validator::new_with_features(FEATURES).validate_all(bytes) else {
        return Ok(());
    };
    let message = format!("{} (at offset {:#x})", error.message(), error.offset());
    let mut anything = Validator::new_with_features(WasmFeatures::all());
    if anything.validate_all(bytes).is_ok() {
        Err(ModuleError::Feature(message))
    } else {
        Err(ModuleError::Invalid(message))
    }
}

fn check_manifest(outline: &Outline<'_>) -> Result<Manifest, ModuleError> {
    match outline.manifests[..] {
        [] => Err(ModuleError::NoManifest),
        [section] => Manifest::parse(section),
        _ => Err(ModuleError::Manifest("it occurs more than once".to_owned())),
    }
}

fn check_imports(outline: &Outline<'_>) -> Result<(), ModuleError> {
    for &(module, name, ty) in &outline.imports {
        let allowed = abi::IMPORTS.iter().find(|import| import.name == name);
        let (Some(allowed), true) = (allowed, module == abi::IMPORT_MODULE) else {
            return Err(ModuleError::Import {
                module: shown(module),
                name: shown(name),
                help: import_help(module).to_owned(),
            });
        };
        let expected =
            FuncType::new(allowed.params.iter().copied(), allowed.results.iter().copied());
        let found = match ty {
            TypeRef::Func(ty) => outline.type_at(ty),
            _ => None,
        };
        if found != Some(&expected) {
            return Err(ModuleError::ImportType {
                module: shown(module),
                name: shown(name),
                found: found.map_or("something that is not a function".to_owned(), signature),
                expected: signature(&expected),
            });
        }
    }
    Ok(())
}

/// A name out of the module, at a length that a message can have.
pub(super) fn shown(name: &str) -> String {
    let cut = name.floor_char_boundary(MAX_SHOWN_BYTES);
    let rest = if cut < name.len() { "…" } else { "" };
    format!("{}{rest}", &name[..cut])
}

/// How modules usually come to import from there, and how to get rid of it.
fn import_help(module: &str) -> &'static str {
    if module.starts_with("wasi") {
        "there is no WASI here: build for `wasm32-unknown-unknown` rather than a `wasip1` target, \
         and leave out what needs files, clocks, randomness or the network"
    } else if module.starts_with("__wbindgen") || module == "wbg" {
        "it is made by wasm-bindgen for browsers: find the dependency that pulls it in with `cargo \
         tree -i wasm-bindgen` and switch off its `js` feature"
    } else if module == "env" {
        "it is an undefined symbol: link its definition in (AssemblyScript: `--use abort=`), or \
         declare it in the module `raftkv_v1`"
    } else if module == abi::IMPORT_MODULE {
        "ABI 1 does not have it; see docs/plugin-abi.md for those it has"
    } else {
        "all imports come from the module `raftkv_v1`; see docs/plugin-abi.md"
    }
}

fn signature(ty: &FuncType) -> String {
    let list = |types: &[wasmparser::ValType]| {
        types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    format!("({}) -> ({})", list(ty.params()), list(ty.results()))
}

fn check_exports(outline: &Outline<'_>) -> Result<(), ModuleError> {
    if outline.export(abi::STACK_LEFT).is_some() {
        let problem = "is the host's own: give that export another name".to_owned();
        return Err(ModuleError::Export { name: abi::STACK_LEFT, problem });
    }
    check_entry(outline, abi::APPLY, true)?;
    check_entry(outline, abi::QUERY, true)?;
    check_entry(outline, abi::MIGRATE, false)?;
    let problem = match outline.export(abi::MEMORY) {
        Some((ExternalKind::Memory, _)) => return Ok(()),
        Some(_) => "is not a memory: give that export another name",
        None => "is missing: export the linear memory (wasm-ld does unless told otherwise)",
    };
    Err(ModuleError::Export { name: abi::MEMORY, problem: problem.to_owned() })
}

fn check_entry(
    outline: &Outline<'_>,
    name: &'static str,
    required: bool,
) -> Result<(), ModuleError> {
    let problem = match outline.export(name) {
        None if !required => return Ok(()),
        None => "is missing: export a function of type () -> () (in Rust, use the SDK's macro)"
            .to_owned(),
        Some((ExternalKind::Func, index)) => match outline.function_type(index) {
            Some(ty) if ty.params().is_empty() && ty.results().is_empty() => return Ok(()),
            Some(ty) => format!("has the type {}, the ABI says () -> ()", signature(ty)),
            None => "has no type".to_owned(),
        },
        Some(_) => "is not a function: give that export another name".to_owned(),
    };
    Err(ModuleError::Export { name, problem })
}

fn check_start(outline: &Outline<'_>) -> Result<(), ModuleError> {
    if outline.has_start { Err(ModuleError::StartFunction) } else { Ok(()) }
}

fn check_memory(outline: &Outline<'_>) -> Result<(), ModuleError> {
    at_most(
        "the initial memory in bytes",
        outline.initial_memory_bytes(),
        MAX_INITIAL_MEMORY_BYTES,
        "ask for less with the linker's `--initial-memory`, and keep state in storage",
    )
}

fn check_counts(outline: &Outline<'_>) -> Result<(), ModuleError> {
    const SPLIT: &str = "a plugin of that size is several plugins";
    at_most("the number of functions", outline.functions.len() as u64, MAX_FUNCTIONS, SPLIT)?;
    at_most("the number of globals", outline.globals, MAX_GLOBALS, SPLIT)?;
    at_most("the number of types", outline.types.len() as u64, MAX_TYPES, SPLIT)?;
    at_most("the number of exports", outline.exports.len() as u64, MAX_EXPORTS, SPLIT)?;
    at_most("the number of tables", outline.tables.len() as u64, MAX_TABLES, SPLIT)?;
    for table in &outline.tables {
        let limit = MAX_TABLE_ELEMENTS as u64;
        at_most("the number of elements of a table", table.initial, limit, SPLIT)?;
    }
    Ok(())
}

fn check_functions(outline: &Outline<'_>) -> Result<(), ModuleError> {
    const OPTIMISE: &str = "build with optimisation, or split the function";
    let imported = outline.functions.len() - outline.bodies.len();
    for (position, body) in outline.bodies.iter().enumerate() {
        let index = imported + position;
        let bytes = body.range().len() as u64;
        at_most(&format!("the size of function {index}"), bytes, MAX_FUNCTION_BYTES, OPTIMISE)?;
        let locals = count_locals(body).map_err(invalid)?;
        at_most(
            &format!("the number of locals of function {index}"),
            locals,
            MAX_LOCALS,
            OPTIMISE,
        )?;
    }
    Ok(())
}

/// Together with the limit on recursion, this is less than the native stack that plugins run on.
fn check_stack(stack: &StackPlan) -> Result<(), ModuleError> {
    let (merges, function) = stack.most_merges;
    at_most(
        &format!(
            "the number of locals that the blocks of function {function} set, over all blocks,"
        ),
        merges,
        MAX_MERGES,
        "split the function",
    )?;
    at_most(
        "the square of the number of locals that the blocks of a function set, over all functions,",
        stack.merging_work,
        MAX_MERGING_WORK,
        "split the functions that have many blocks and locals",
    )?;
    let (bytes, function) = stack.largest_frame;
    at_most(
        &format!("the stack frame of function {function}, as the host reckons it in bytes,"),
        bytes,
        MAX_FRAME_BYTES,
        "split the function",
    )?;
    at_most(
        "the stack that nested calls take without recursion, as the host reckons it in bytes,",
        stack.others_bytes,
        MAX_STRAIGHT_STACK_BYTES,
        "let functions call each other less deeply, or split those with many variables",
    )
}

fn count_locals(body: &FunctionBody<'_>) -> wasmparser::Result<u64> {
    let mut locals = 0;
    for group in body.get_locals_reader()? {
        locals += u64::from(group?.0);
    }
    Ok(locals)
}

fn at_most(what: &str, found: u64, limit: u64, help: &'static str) -> Result<(), ModuleError> {
    if found <= limit {
        return Ok(());
    }
    Err(ModuleError::Limit { what: what.to_owned(), found, limit, help })
}
