//! ABI version 1 in constants: the one place in the host that repeats `docs/plugin-abi.md`.

use wasmparser::ValType::{self, I32, I64};

/// The ABI that this host speaks, as the manifest spells it.
pub(super) const ABI_VERSION: &str = "1";
/// The custom section with the plugin's name and version.
pub(super) const MANIFEST_SECTION: &str = "raftkv";
/// The module that all imports come from.
pub(super) const IMPORT_MODULE: &str = "raftkv_v1";

/// The linear memory's export name.
pub(super) const MEMORY: &str = "memory";
/// The export that carries out commands.
pub(super) const APPLY: &str = "apply";
/// The export that answers reads.
pub(super) const QUERY: &str = "query";
/// The optional export that carries state over from an older version.
pub(super) const MIGRATE: &str = "migrate";

/// An export that the host adds: the counter that recursion is limited by.
pub(super) const STACK_LEFT: &str = "raftkv:stack-left";

/// The result of a size call that found nothing.
pub(super) const NONE: i64 = -1;
/// The length that `get_many` writes for a key without a value.
pub(super) const NO_VALUE: u32 = u32::MAX;
/// `end_len` of a scan without an upper bound.
pub(super) const NO_END: u32 = u32::MAX;
/// The flag of `scan_open` that turns the order around.
pub(super) const SCAN_REVERSE: u32 = 1;

/// Scans that one command may have open at once.
pub(super) const MAX_OPEN_SCANS: usize = 16;
/// The longest key, in bytes.
pub(super) const MAX_KEY_BYTES: usize = 65_535 + 32;
/// The longest value, in bytes.
pub(super) const MAX_VALUE_BYTES: usize = 9 << 20;
/// The size of what `context` writes.
pub(super) const CONTEXT_BYTES: usize = 64;
/// The size of the part of it that `exchange` writes: where the command stands in the log.
pub(super) const PLACE_BYTES: usize = 24;
/// `place` of an `exchange` that is to write none.
pub(super) const NO_PLACE: u32 = 0;

/// The type of one import.
pub(super) struct ImportType {
    pub(super) name: &'static str,
    pub(super) params: &'static [ValType],
    pub(super) results: &'static [ValType],
}

const fn import(
    name: &'static str,
    params: &'static [ValType],
    results: &'static [ValType],
) -> ImportType {
    ImportType { name, params, results }
}

/// Every import there is.
pub(super) const IMPORTS: [ImportType; 14] = [
    import("next_command", &[I32, I32], &[I64]),
    import("exchange", &[I32, I32, I32, I32, I32], &[I64]),
    import("get", &[I32, I32, I32, I32], &[I64]),
    import("get_many", &[I32, I32, I32, I32], &[I64]),
    import("put", &[I32, I32, I32, I32], &[]),
    import("delete", &[I32, I32], &[]),
    import("scan_open", &[I32, I32, I32, I32, I32], &[I32]),
    import("scan_next", &[I32, I32, I32], &[I64]),
    import("scan_close", &[I32], &[]),
    import("respond", &[I32, I32], &[]),
    import("fail", &[I32, I32, I32], &[]),
    import("context", &[I32, I32], &[I64]),
    import("log", &[I32, I32, I32], &[]),
    import("abort", &[I32, I32], &[]),
];
