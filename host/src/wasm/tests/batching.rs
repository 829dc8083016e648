//! The property that everything here is for: results and writes do not depend on how commands were
//! cut into batches, nor on what the instances did before.

use super::support::*;
use crate::wasm::{Executor, FailureKind, Limits, PluginModule, PluginResult, Reuse};

/// One kind of command a row: the payload's first byte, and what it does. The key is the payload's
/// second byte, the value the rest. `$count`, `$cap`, `$evil`, `$leave` and `$ready` are statics.
const COMMANDS: &[(char, &str)] = &[
    ('p', "(call $store_it) (call $respond (i32.const 4096) (local.get $n))"),
    ('d', "(call $delete (i32.const 4097) (i32.const 1))"),
    ('g', "(call $fetch_it)"),
    ('s', "(call $scan_all)"),
    (
        'c',
        "(drop (call $context (i32.const 0) (i32.const 64))) (call $respond (i32.const 0) (i32.const 64))",
    ),
    // Failures of each kind, after a write.
    ('f', "(call $store_it) (call $fail (i32.const 3) (i32.const 4096) (local.get $n))"),
    ('a', "(call $store_it) (call $abort (i32.const 4096) (local.get $n))"),
    ('t', "(call $store_it) unreachable"),
    ('l', "(call $store_it) (loop $l (br $l))"),
    ('r', "(call $store_it) (drop (call $deep (i32.const 1)))"),
    ('b', "(call $store_it) (loop $l (drop (memory.grow (i32.const 1))) (br $l))"),
    ('w', "(call $store_it) (call $respond (i32.const -1) (i32.const 2))"),
    ('v', "(call $store_it) (loop $l (call $open) (br $l))"),
    // Traps after it responded, but before it pulls: still its own fault.
    ('q', "(call $store_it) (call $respond (i32.const 4096) (local.get $n)) unreachable"),
    // Poisons the code that runs once the batch is over.
    ('o', "(call $store_it) (global.set $evil (i32.const 1))"),
    // Returns from `apply` instead of pulling on.
    ('x', "(call $store_it) (global.set $leave (i32.const 1))"),
    // Leaks memory and tells whether it got any.
    (
        'm',
        "(call $store_it)
         (call $respond (i32.const 0) (i32.eq (memory.grow (i32.const 3)) (i32.const -1)))",
    ),
    // Takes longer with each command that the instance ran.
    ('z', "(call $store_it) (call $spin (i32.mul (global.get $count) (i32.const 2000)))"),
    // Sets itself up once an instance. With that, the second needs more than the fuel there is, but
    // not on an instance that is set up.
    ('j', "(call $set_up)"),
    ('i', "(call $set_up) (call $store_it) (call $spin (i32.const 45000))"),
    // More than half of the fuel, more than half of the memory.
    ('h', "(call $store_it) (call $spin (i32.const 45000))"),
    ('n', "(call $store_it) (drop (memory.grow (i32.const 20)))"),
];

const HELPERS: &str = r#"
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))
  (global $cap (mut i32) (i32.const 8))
  (global $evil (mut i32) (i32.const 0))
  (global $leave (mut i32) (i32.const 0))
  (global $ready (mut i32) (i32.const 0))
  (global $n (mut i32) (i32.const 0))
  (func $store_it
    (call $put (i32.const 4097) (i32.const 1) (i32.const 4098) (i32.sub (global.get $n) (i32.const 2))))
  (func $fetch_it (local $size i64)
    (local.set $size (call $get (i32.const 4097) (i32.const 1) (i32.const 8192) (i32.const 1000)))
    (if (i64.ge_s (local.get $size) (i64.const 0))
      (then (call $respond (i32.const 8192) (i32.wrap_i64 (local.get $size))))))
  (func $open
    (drop (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0))))
  (func $scan_all (local $at i32) (local $size i32)
    (call $open)
    (local.set $at (i32.const 8192))
    (loop $more
      (local.set $size (i32.wrap_i64 (call $scan_next (i32.const 0) (local.get $at) (i32.const 600))))
      (local.set $at (i32.add (local.get $at) (local.get $size)))
      (br_if $more (local.get $size)))
    (call $respond (i32.const 8192) (i32.sub (local.get $at) (i32.const 8192))))
  (func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))
  (func $spin (param $i i32)
    (loop $l
      (br_if $l (i32.gt_s (local.tee $i (i32.sub (local.get $i) (i32.const 1))) (i32.const 0)))))
  (func $set_up
    (if (global.get $ready) (then return))
    (global.set $ready (i32.const 1))
    (call $spin (i32.const 25000)))
  (func $run (local $n i64)
    (loop $pull
      (local.set $n (call $next_command (i32.const 4096) (global.get $cap)))
      (if (i64.lt_s (local.get $n) (i64.const 0))
        (then (if (global.get $evil) (then unreachable)) return))
      (if (i64.gt_u (local.get $n) (i64.extend_i32_u (global.get $cap)))
        (then (global.set $cap (i32.wrap_i64 (local.get $n))) (br $pull)))
      (global.set $n (i32.wrap_i64 (local.get $n)))
      (global.set $count (i32.add (global.get $count) (i32.const 1)))
      (call $command (global.get $n))
      (if (global.get $leave) (then (global.set $leave (i32.const 0)) return))
      (br $pull)))
  (export "apply" (func $run))
  (export "query" (func $run))
"#;

fn nasty() -> PluginModule {
    let arms: String = COMMANDS
        .iter()
        .map(|(op, body)| {
            let op = u32::from(*op);
            format!("(if (i32.eq (local.get $op) (i32.const {op})) (then {body} return))")
        })
        .collect();
    module(&format!(
        "{HELPERS} (func $command (param $n i32) (local $op i32)
           (local.set $op (i32.load8_u (i32.const 4096))) {arms})"
    ))
}

/// SplitMix64: small, and the same for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn payload(&mut self) -> Vec<u8> {
        // Half of the commands are harmless, so that instances get old.
        let kinds = if self.below(2) == 0 { 5 } else { COMMANDS.len() };
        let op = COMMANDS[self.below(kinds)].0 as u8;
        let key = b'a' + self.below(6) as u8;
        let mut payload = vec![op, key];
        payload.resize(2 + self.below(60), b'0' + self.below(10) as u8);
        payload.resize(payload.len().max(2), 0);
        payload
    }
}

fn small_limits() -> Limits {
    Limits { fuel_per_command: 400_000, memory_bytes: 32 << 16 }
}

/// Applies `payloads` in batches of the sizes that `cut` gives.
fn run(
    executor: &mut Executor,
    module: &PluginModule,
    payloads: &[Vec<u8>],
    mut cut: impl FnMut() -> usize,
) -> (Vec<PluginResult>, TestStorage) {
    let mut storage = TestStorage::default();
    let mut results = Vec::new();
    let mut rest = payloads;
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(cut().clamp(1, rest.len()));
        let calls = batch.iter().map(call).collect();
        let outcome = executor.apply(module, &small_limits(), calls, Box::new(storage)).unwrap();
        results.extend(outcome.results);
        storage = TestStorage::back(outcome.storage);
        rest = after;
    }
    (results, storage)
}

#[test]
fn results_and_writes_do_not_depend_on_batching() {
    let module = nasty();
    let mut alone = Executor::new(engine(), Reuse::Never).unwrap();
    // This one's instances live on from one round to the next.
    let mut kept = executor();
    for seed in 0..60 {
        let mut random = Random(seed);
        let payloads: Vec<_> = (0..60).map(|_| random.payload()).collect();
        let expected = run(&mut alone, &module, &payloads, || 1);
        for max_batch in [1, 3, 10, 100] {
            let mut cuts = Random(seed ^ 0xdead_beef);
            let found = run(&mut kept, &module, &payloads, || 1 + cuts.below(max_batch));
            for (position, (found, expected)) in found.0.iter().zip(&expected.0).enumerate() {
                let payload = String::from_utf8_lossy(&payloads[position]);
                assert_eq!(
                    found, expected,
                    "seed {seed}, batches to {max_batch}, command {payload}"
                );
            }
            assert_eq!(found, expected, "seed {seed}, batches to {max_batch}");
        }
    }
}

#[test]
fn each_kind_of_command_comes_to_what_it_should() {
    use FailureKind::*;
    let module = nasty();
    let mut executor = executor();
    for (op, _) in COMMANDS {
        let payloads = [format!("{op}k").into_bytes()];
        let (results, _) = run(&mut executor, &module, &payloads, || 1);
        let kind = results[0].as_ref().err().map(|failure| failure.kind);
        let expected = match op {
            'f' => Some(Failed),
            'a' => Some(Panic),
            't' | 'q' => Some(Trap),
            'l' | 'i' => Some(OutOfFuel),
            'r' => Some(CallDepth),
            'b' => Some(MemoryLimit),
            'w' | 'v' => Some(BadCall),
            _ => None,
        };
        assert_eq!(kind, expected, "command {op}");
    }
}
