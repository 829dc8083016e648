//! A plugin in many versions, each of which keeps its state under another key, so that one that was
//! not carried over is found at once.
//!
//! `i` counts, and answers which version did it, at which index, and the count; so does every query,
//! without counting. `t` traps. `s` writes down how many such commands this instance has seen, which is
//! what a plugin must not do: replicas differ then.

/// How a version misbehaves when state is carried over to it or from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Migrate {
    /// It does what it should.
    #[default]
    Well,
    /// It exports none.
    Missing,
    /// It traps if there is a count above this.
    TrapsAbove(u64),
    /// It goes on for ever.
    Forever,
}

/// One version.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its version is 0.N.0, of one digit.
    pub number: u8,
    pub name: &'static str,
    pub migrate: Migrate,
    /// Whether counting traps.
    pub traps: bool,
    /// Makes another module of the same version.
    pub salt: u32,
}

impl Version {
    pub fn new(number: u8) -> Self {
        assert!(number < 10);
        Version { number, name: "vers", migrate: Migrate::Well, traps: false, salt: 0 }
    }

    /// What it calls its version.
    pub fn text(&self) -> String {
        format!("0.{}.0", self.number)
    }

    /// The module.
    pub fn module(&self) -> Vec<u8> {
        let Version { number, name, traps, salt, .. } = self;
        let digit = b'0' + number;
        let trap = if *traps { "(unreachable)" } else { "" };
        let migrate = self.migrate();
        let text = format!(
            r#"(module
    (@custom "raftkv" "name={name}\nversion=0.{number}.0\nabi=1\n")
    (import "raftkv_v1" "next_command" (func $next (param i32 i32) (result i64)))
    (import "raftkv_v1" "get" (func $get (param i32 i32 i32 i32) (result i64)))
    (import "raftkv_v1" "put" (func $put (param i32 i32 i32 i32)))
    (import "raftkv_v1" "delete" (func $delete (param i32 i32)))
    (import "raftkv_v1" "context" (func $context (param i32 i32) (result i64)))
    (import "raftkv_v1" "respond" (func $respond (param i32 i32)))
    (memory (export "memory") 2)
    (data (i32.const 0) "k{number}")
    (data (i32.const 16) "k_")
    (data (i32.const 24) "k_")
    (data (i32.const 32) "s")
    (global $seen (mut i64) (i64.const {salt}))

    (func $load
        (i64.store (i32.const 128) (i64.const 0))
        (drop (call $get (i32.const 0) (i32.const 2) (i32.const 128) (i32.const 8))))
    (func $answer
        (i32.store8 (i32.const 200) (i32.const {digit}))
        (drop (call $context (i32.const 256) (i32.const 64)))
        (i64.store (i32.const 201) (i64.load (i32.const 256)))
        (i64.store (i32.const 209) (i64.load (i32.const 128)))
        (call $respond (i32.const 200) (i32.const 17)))
    (func $count
        {trap}
        (call $load)
        (i64.store (i32.const 128) (i64.add (i64.load (i32.const 128)) (i64.const 1)))
        (call $put (i32.const 0) (i32.const 2) (i32.const 128) (i32.const 8))
        (call $answer))
    (func $remember
        (global.set $seen (i64.add (global.get $seen) (i64.const 1)))
        (i64.store (i32.const 128) (global.get $seen))
        (call $put (i32.const 32) (i32.const 1) (i32.const 128) (i32.const 8)))
    (func $pull (result i32)
        (i32.wrap_i64 (call $next (i32.const 1024) (i32.const 4096))))
    (func (export "apply") (local $first i32)
        (loop $again
            (if (i32.lt_s (call $pull) (i32.const 0)) (then (return)))
            (local.set $first (i32.load8_u (i32.const 1024)))
            (if (i32.eq (local.get $first) (i32.const {t})) (then (unreachable)))
            (if (i32.eq (local.get $first) (i32.const {s}))
                (then (call $remember)) (else (call $count)))
            (br $again)))
    (func (export "query")
        (loop $again
            (if (i32.lt_s (call $pull) (i32.const 0)) (then (return)))
            (call $load)
            (call $answer)
            (br $again)))
    {migrate})"#,
            t = b't',
            s = b's',
        );
        wat::parse_str(text).unwrap()
    }

    fn migrate(&self) -> String {
        let body = match self.migrate {
            Migrate::Missing => return String::new(),
            Migrate::Well => String::new(),
            Migrate::Forever => "(loop $ever (br $ever))".to_owned(),
            Migrate::TrapsAbove(count) => format!(
                "(if (i64.gt_u (i64.load (i32.const 128)) (i64.const {count})) (then (unreachable)))"
            ),
        };
        // Where in the request the digits of the two versions are, if it goes up.
        let from = "direction=up\nfrom-name=vers\nfrom-version=0.".len();
        let to = from + "0.0\nto-name=vers\nto-version=0.".len();
        let (up, from, to) = (b'u', 1024 + from, 1024 + to);
        format!(
            r#"(func (export "migrate") (local $shift i32)
        (loop $again
            (if (i32.lt_s (call $pull) (i32.const 0)) (then (return)))
            (local.set $shift
                (select (i32.const 0) (i32.const 2)
                    (i32.eq (i32.load8_u (i32.const 1034)) (i32.const {up}))))
            (i32.store8 (i32.const 17)
                (i32.load8_u (i32.add (i32.const {from}) (local.get $shift))))
            (i32.store8 (i32.const 25)
                (i32.load8_u (i32.add (i32.const {to}) (local.get $shift))))
            (if (i64.ge_s
                    (call $get (i32.const 16) (i32.const 2) (i32.const 128) (i32.const 8))
                    (i64.const 0))
                (then
                    {body}
                    (call $put (i32.const 24) (i32.const 2) (i32.const 128) (i32.const 8))
                    (call $delete (i32.const 16) (i32.const 2))))
            (br $again)))"#
        )
    }
}

/// What a command or query answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// N of version 0.N.0.
    pub version: u8,
    pub index: u64,
    pub count: u64,
}

impl Answer {
    pub fn read(response: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(response[at..at + 8].try_into().unwrap());
        Answer { version: response[0] - b'0', index: number(1), count: number(9) }
    }
}
