//! A plugin that does whatever the first byte of its command says.

use raft_kv_client::{Error, PluginErrorKind};
use raft_kv_tests::{Node, NodeOptions};

/// What a command or query begins with, and what the plugin does then. Its bytes
/// lie at 1024, and `$len` is how many they are.
const BEHAVIOURS: &[(char, &str)] = &[
    // Well-behaved: echo; put what follows under itself; get what follows.
    ('e', "(call $respond (i32.const 1024) (local.get $len))"),
    ('p', "(call $put_rest (local.get $len))"),
    ('q', "(call $get_rest (local.get $len))"),
    // Adds one to the number under the key "n", and answers it.
    ('c', "(call $count)"),
    // Takes three quarters of the fuel, and succeeds.
    ('b', "(call $burn (i32.const 15000000)) (call $respond (i32.const 1024) (i32.const 1))"),
    // Traps.
    ('t', "(unreachable)"),
    ('m', "(drop (i32.load (i32.const 0x7ffffff0)))"),
    ('d', "(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
    ('i', "(call_indirect (type $entry) (i32.const 3))"),
    // Takes what it can get.
    ('l', "(loop $again (br $again))"),
    ('r', "(call $recurse)"),
    ('P', "(call $ping)"),
    ('I', "(call $by_table)"),
    ('z', "(loop $again (memory.fill (i32.const 0) (i32.const 0) (i32.const 200000)) (br $again))"),
    ('s', "(loop $again (call $open) (call $scan_close (i32.const 0)) (br $again))"),
    ('G', "(loop $again (call $log (i32.const 2) (i32.const 0) (i32.const 17)) (br $again))"),
    ('g', "(loop $again (drop (memory.grow (i32.const 16))) (br $again))"),
    // Breaks the ABI.
    ('o', "(call $put (i32.const 0x7fffff00) (i32.const 512) (i32.const 0) (i32.const 1))"),
    ('O', "(call $respond (i32.const -1) (i32.const -1))"),
    ('S', "(loop $again (call $open) (br $again))"),
    ('h', "(drop (call $scan_next (i32.const 77) (i32.const 1024) (i32.const 64)))"),
    ('k', "(call $put (i32.const 1024) (i32.const 65600) (i32.const 0) (i32.const 1))"),
    // Says no, in its own words or in its last ones.
    ('f', "(call $fail (i32.const 77) (i32.const 0) (i32.const 17))"),
    ('a', "(call $abort (i32.const 32) (i32.const 20))"),
    ('u', "(call $fail (i32.const 1) (i32.const 512) (i32.const 4))"),
    // Does something first and fails then.
    (
        'F',
        "(call $put_rest (local.get $len)) (call $fail (i32.const 77) (i32.const 0) (i32.const 17))",
    ),
    ('T', "(call $put_rest (local.get $len)) (unreachable)"),
    ('L', "(call $put_rest (local.get $len)) (loop $again (br $again))"),
    // Writes whether or not it may.
    ('w', "(call $put_rest (local.get $len))"),
    // Takes a response back by failing after it.
    ('R', "(call $respond (i32.const 1024) (local.get $len)) (unreachable)"),
    // Answers nonsense to the commands and queries of the key-value store.
    ('\u{1}', "(call $respond (i32.const 0) (i32.const 3))"),
    ('\u{2}', "(call $respond (i32.const 0) (i32.const 3))"),
    ('\u{10}', "(call $respond (i32.const 0) (i32.const 3))"),
    ('\u{11}', "(call $respond (i32.const 0) (i32.const 3))"),
];

const HEAD: &str = r#"
    (@custom "raftkv" "name=hostile\nversion=1.0.0\nabi=1\n")
    (type $entry (func))
    (import "raftkv_v1" "next_command" (func $next (param i32 i32) (result i64)))
    (import "raftkv_v1" "get" (func $get (param i32 i32 i32 i32) (result i64)))
    (import "raftkv_v1" "put" (func $put (param i32 i32 i32 i32)))
    (import "raftkv_v1" "scan_next" (func $scan_next (param i32 i32 i32) (result i64)))
    (import "raftkv_v1" "scan_open" (func $scan_open (param i32 i32 i32 i32 i32) (result i32)))
    (import "raftkv_v1" "scan_close" (func $scan_close (param i32)))
    (import "raftkv_v1" "log" (func $log (param i32 i32 i32)))
    (import "raftkv_v1" "respond" (func $respond (param i32 i32)))
    (import "raftkv_v1" "fail" (func $fail (param i32 i32 i32)))
    (import "raftkv_v1" "abort" (func $abort (param i32 i32)))
    (memory (export "memory") 4)
    (table 4 funcref)
    (data (i32.const 0) "no, said the stub")
    (data (i32.const 32) "the plugin fell over")
    (data (i32.const 64) "n")
    (data (i32.const 512) "\ff\fe\80x")

    (func $put_rest (param $len i32)
        (call $put
            (i32.const 1025) (i32.sub (local.get $len) (i32.const 1))
            (i32.const 1025) (i32.sub (local.get $len) (i32.const 1))))

    (func $get_rest (param $len i32) (local $found i64)
        (local.set $found
            (call $get
                (i32.const 1025) (i32.sub (local.get $len) (i32.const 1))
                (i32.const 131072) (i32.const 65536)))
        (if (i64.ge_s (local.get $found) (i64.const 0))
            (then (call $respond (i32.const 131072) (i32.wrap_i64 (local.get $found))))))

    (func $count
        (i64.store (i32.const 128) (i64.const 0))
        (drop (call $get (i32.const 64) (i32.const 1) (i32.const 128) (i32.const 8)))
        (i64.store (i32.const 128) (i64.add (i64.load (i32.const 128)) (i64.const 1)))
        (call $put (i32.const 64) (i32.const 1) (i32.const 128) (i32.const 8))
        (call $respond (i32.const 128) (i32.const 8)))

    ;; Five instructions a round, of which one is free.
    (func $burn (param $rounds i32)
        (loop $again
            (br_if $again
                (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1))))))

    (func $recurse (call $recurse) (call $recurse))
    (func $ping (call $pong))
    (func $pong (call $ping))
    (elem (i32.const 0) $by_table)
    (func $by_table (call_indirect (type $entry) (i32.const 0)))
    (func $open
        (drop (call $scan_open
            (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0))))
"#;

const TAIL: &str = r#"
    (func $run (local $len i32)
        (loop $again
            (local.set $len (i32.wrap_i64 (call $next (i32.const 1024) (i32.const 60000))))
            (if (i32.lt_s (local.get $len) (i32.const 0)) (then (return)))
            (call $carry_out (local.get $len))
            (br $again)))
    (func (export "apply") (call $run))
    (func (export "query") (call $run))
"#;

/// The module.
fn hostile() -> Vec<u8> {
    let cases = BEHAVIOURS.iter().map(|(first, body)| {
        let first = u32::from(*first);
        format!("(if (i32.eq (local.get $first) (i32.const {first})) (then {body} (return)))\n")
    });
    let text = format!(
        "(module {HEAD}
            (func $carry_out (param $len i32) (local $first i32)
                (local.set $first (i32.load8_u (i32.const 1024)))
                {})
            {TAIL})",
        cases.collect::<String>()
    );
    wat::parse_str(text).unwrap()
}

/// A node whose shards run the plugin.
pub fn hostile_node(shards: u32) -> Node {
    options().shards(shards).start()
}

/// How to start nodes with the plugin.
pub fn options() -> NodeOptions {
    NodeOptions::new().plugin_module(hostile())
}

/// Kind, code and message of a command's failure.
#[track_caller]
pub fn failure<T: std::fmt::Debug>(result: Result<T, Error>) -> (PluginErrorKind, u32, String) {
    match result {
        Err(Error::Plugin { kind, code, message }) => (kind, code, message),
        other => panic!("no failure of the plugin: {other:?}"),
    }
}
