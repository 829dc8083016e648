//! What the locks promise, without a node.

use std::collections::{BTreeMap, BTreeSet};

use raft_kv_plugin_lock::Locks;
use raft_kv_plugin_lock::protocol::{
    Answer, Command, Lease, MAX_NAME_LEN, MAX_TTL_MS, Query, failure,
};
use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{Failure, Random, Typed, codes};

type Host = TestHost<Typed<Locks>>;

fn acquire(host: &mut Host, lock: &str, owner: &str, ttl_ms: u64) -> Result<Lease, Failure> {
    let (lock, owner) = (lock.to_owned(), owner.to_owned());
    let lease = host.send(&Command::Acquire { lock, owner, ttl_ms })?;
    Ok(lease.expect("an acquisition answers with the lease"))
}

fn renew(host: &mut Host, lock: &str, token: u64, ttl_ms: u64) -> Result<Lease, Failure> {
    let lease = host.send(&Command::Renew { lock: lock.to_owned(), token, ttl_ms })?;
    Ok(lease.expect("a renewal answers with the lease"))
}

fn release(host: &mut Host, lock: &str, token: u64) -> Result<(), Failure> {
    let reply = host.send(&Command::Release { lock: lock.to_owned(), token })?;
    assert_eq!(reply, None);
    Ok(())
}

fn holder(host: &mut Host, lock: &str) -> Option<Lease> {
    match host.ask(&Query::Holder { lock: lock.to_owned() }).expect("one can ask") {
        Answer::Holder { holder } => holder,
        Answer::Held { .. } => panic!("the answer to another question"),
    }
}

fn held(host: &mut Host, after: &str, limit: usize) -> Vec<String> {
    match host.ask(&Query::Held { after: after.to_owned(), limit }).expect("one can ask") {
        Answer::Held { held } => held.into_iter().map(|held| held.lock).collect(),
        Answer::Holder { .. } => panic!("the answer to another question"),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> u32 {
    result.expect_err("it is refused").code
}

#[test]
fn a_lock_is_held_by_one_until_it_is_given_back() {
    let mut host = Host::new();
    let lease = acquire(&mut host, "door", "ann", 1_000).expect("nobody holds it");
    assert_eq!(lease, Lease { owner: "ann".to_owned(), token: 1, expires_ms: 1_000 });
    assert_eq!(holder(&mut host, "door"), Some(lease));
    let refused = acquire(&mut host, "door", "bob", 1_000).unwrap_err();
    assert_eq!(refused, Failure::new(failure::HELD, "ann holds the lock `door` until 1000"));
    assert_eq!(code(acquire(&mut host, "door", "ann", 1_000)), failure::HELD);
    release(&mut host, "door", 1).expect("ann holds it");
    assert_eq!(holder(&mut host, "door"), None);
    assert_eq!(code(release(&mut host, "door", 1)), failure::NOT_HELD);
    assert_eq!(acquire(&mut host, "door", "bob", 1_000).expect("it is free").token, 2);
}

#[test]
fn a_lease_ends_at_its_time_and_not_before() {
    let mut host = Host::new();
    host.set_time_ms(5_000);
    acquire(&mut host, "door", "ann", 1_000).expect("nobody holds it");
    host.set_time_ms(5_999);
    assert_eq!(code(acquire(&mut host, "door", "bob", 1)), failure::HELD);
    host.set_time_ms(6_000);
    assert_eq!(holder(&mut host, "door"), None);
    assert_eq!(code(renew(&mut host, "door", 1, 1_000)), failure::NOT_HELD);
    assert_eq!(acquire(&mut host, "door", "bob", 1).expect("it has ended").token, 2);
}

#[test]
fn the_holder_of_an_ended_lease_cannot_touch_the_next_one() {
    let mut host = Host::new();
    let old = acquire(&mut host, "door", "ann", 10).expect("nobody holds it");
    host.advance_ms(10);
    let new = acquire(&mut host, "door", "bob", 10).expect("it has ended");
    assert_eq!(code(renew(&mut host, "door", old.token, 99)), failure::NOT_HELD);
    assert_eq!(code(release(&mut host, "door", old.token)), failure::NOT_HELD);
    assert_eq!(holder(&mut host, "door"), Some(new));
}

#[test]
fn a_renewed_lease_keeps_its_token() {
    let mut host = Host::new();
    acquire(&mut host, "door", "ann", 100).expect("nobody holds it");
    host.advance_ms(50);
    let renewed = renew(&mut host, "door", 1, 100).expect("it is held");
    assert_eq!(renewed, Lease { owner: "ann".to_owned(), token: 1, expires_ms: 150 });
    host.advance_ms(99);
    assert_eq!(holder(&mut host, "door"), Some(renewed));
    assert_eq!(renew(&mut host, "door", 1, 1).expect("it is held").expires_ms, 150);
    host.advance_ms(1);
    assert_eq!(holder(&mut host, "door"), None);
}

#[test]
fn held_locks_come_in_pages_and_in_order() {
    let mut host = Host::new();
    for lock in ["c", "a", "b", "ended"] {
        acquire(&mut host, lock, "ann", if lock == "ended" { 1 } else { 10 }).expect("it is free");
    }
    host.advance_ms(1);
    assert_eq!(held(&mut host, "", 100), ["a", "b", "c"]);
    assert_eq!(held(&mut host, "", 2), ["a", "b"]);
    assert_eq!(held(&mut host, "b", 2), ["c"]);
    assert_eq!(host.query(br#"{"op":"held","limit":0}"#), Ok(br#"{"held":[]}"#.to_vec()));
}

#[test]
fn a_person_can_type_it() {
    let mut host = Host::new();
    assert_eq!(
        host.apply(br#"{"op": "acquire", "lock": "door", "owner": "ann", "ttl_ms": 1000}"#),
        Ok(br#"{"owner":"ann","token":1,"expires_ms":1000}"#.to_vec())
    );
    assert_eq!(
        host.query(br#"{"op": "holder", "lock": "door"}"#),
        Ok(br#"{"holder":{"owner":"ann","token":1,"expires_ms":1000}}"#.to_vec())
    );
    assert_eq!(
        host.apply(br#"{"op": "release", "lock": "door", "token": 1}"#),
        Ok(b"null".to_vec())
    );
    assert_eq!(code(host.apply(br#"{"op": "release", "lock": "door"}"#)), codes::MALFORMED);
}

#[test]
fn what_is_out_of_range_is_refused() {
    let mut host = Host::new();
    let long = "n".repeat(MAX_NAME_LEN + 1);
    for (lock, owner, ttl_ms) in [
        ("", "ann", 1),
        (long.as_str(), "ann", 1),
        ("door", "", 1),
        ("door", long.as_str(), 1),
        ("door", "ann", 0),
        ("door", "ann", MAX_TTL_MS + 1),
    ] {
        assert_eq!(code(acquire(&mut host, lock, owner, ttl_ms)), failure::OUT_OF_RANGE);
    }
    assert!(host.stored().is_empty());
    acquire(&mut host, &long[1..], &long[1..], MAX_TTL_MS).expect("that is within the range");
}

#[test]
fn ended_leases_do_not_stay() {
    let mut host = Host::new();
    for number in 0..100 {
        acquire(&mut host, &format!("lock-{number}"), "ann", 1).expect("it is free");
        host.advance_ms(1);
    }
    // The last lease, its place in the index, the token; nothing else has ended unnoticed.
    assert_eq!(host.stored().len(), 3);
}

/// Any commands at all, against a model: who holds a lock is whom the model says, and tokens go up.
#[test]
fn a_lock_never_has_two_holders_and_tokens_go_up() {
    for seed in 0..20 {
        let mut random = Random::from_seed([seed; 32]);
        let mut host = Host::new();
        let mut model = BTreeMap::<String, Lease>::new();
        let mut tokens = BTreeSet::from([0]);
        for _ in 0..300 {
            host.advance_ms(random.below(20));
            let now = host.time_ms();
            model.retain(|_, lease| lease.expires_ms > now);
            let lock = ["a", "b", "c"][random.below(3) as usize].to_owned();
            let token = random.below(tokens.len() as u64 + 1);
            let ttl_ms = random.below(60) + 1;
            let holds = model.get(&lock).is_some_and(|lease| lease.token == token);
            match random.below(4) {
                0 | 1 => {
                    let result = acquire(&mut host, &lock, "x", ttl_ms);
                    assert_eq!(result.is_ok(), !model.contains_key(&lock));
                    if let Ok(lease) = result {
                        assert!(Some(&lease.token) > tokens.last(), "tokens go up");
                        tokens.insert(lease.token);
                        model.insert(lock, lease);
                    }
                }
                2 => {
                    let result = renew(&mut host, &lock, token, ttl_ms);
                    assert_eq!(result.is_ok(), holds);
                    result.map(|lease| model.insert(lock, lease)).ok();
                }
                _ => {
                    assert_eq!(release(&mut host, &lock, token).is_ok(), holds);
                    model.retain(|name, _| !(holds && *name == lock));
                }
            }
            assert_eq!(held(&mut host, "", 9), model.keys().cloned().collect::<Vec<_>>());
            for (lock, lease) in &model {
                assert_eq!(holder(&mut host, lock).as_ref(), Some(lease));
            }
        }
    }
}
