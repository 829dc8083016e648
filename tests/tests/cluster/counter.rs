//! A plugin that counts: each command adds one to the count of its slot and answers
//! it, or fails if it says so. A query answers the count.

use raft_kv_tests::NodeOptions;

const MODULE: &str = r#"(module
    (@custom "raftkv" "name=counter\nversion=1.0.0\nabi=1\n")
    (import "raftkv_v1" "next_command" (func $next (param i32 i32) (result i64)))
    (import "raftkv_v1" "get" (func $get (param i32 i32 i32 i32) (result i64)))
    (import "raftkv_v1" "put" (func $put (param i32 i32 i32 i32)))
    (import "raftkv_v1" "respond" (func $respond (param i32 i32)))
    (import "raftkv_v1" "fail" (func $fail (param i32 i32 i32)))
    (memory (export "memory") 2)
    (data (i32.const 0) "n")
    (data (i32.const 8) "as told")
    (func $load
        (i64.store (i32.const 64) (i64.const 0))
        (drop (call $get (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 8))))
    (func $run (param $writes i32) (local $len i32)
        (loop $again
            (local.set $len (i32.wrap_i64 (call $next (i32.const 1024) (i32.const 60000))))
            (if (i32.lt_s (local.get $len) (i32.const 0)) (then (return)))
            (call $load)
            (if (local.get $writes) (then
                (i64.store (i32.const 64) (i64.add (i64.load (i32.const 64)) (i64.const 1)))
                (call $put (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 8))))
            (call $respond (i32.const 64) (i32.const 8))
            ;; A command that begins with "f" fails after all.
            (if (i32.and
                    (i32.gt_s (local.get $len) (i32.const 0))
                    (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 102)))
                (then (call $fail (i32.const 7) (i32.const 8) (i32.const 7))))
            (br $again)))
    (func (export "apply") (call $run (i32.const 1)))
    (func (export "query") (call $run (i32.const 0))))"#;

/// How to start nodes with the plugin.
pub fn options() -> NodeOptions {
    NodeOptions::new().plugin_module(wat::parse_str(MODULE).unwrap())
}

/// The count in an answer.
#[track_caller]
pub fn count(answer: &[u8]) -> u64 {
    u64::from_le_bytes(answer.try_into().unwrap())
}
