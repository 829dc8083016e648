//! What the counter promises, without a node.

use raft_kv_plugin_counter::{Counter, NO_NUMBER};
use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{Random, codes};

fn add(host: &mut TestHost<Counter>, step: &str) -> String {
    let total = host.apply(step.as_bytes()).expect("a number can be added");
    String::from_utf8(total).expect("the total is text")
}

#[test]
fn steps_add_up() {
    let mut host = TestHost::new();
    assert_eq!(host.query(b""), Ok(b"0".to_vec()));
    assert_eq!(add(&mut host, "2"), "2");
    assert_eq!(add(&mut host, ""), "3");
    assert_eq!(add(&mut host, "0"), "3");
    assert_eq!(host.query(b"anything"), Ok(b"3".to_vec()));
}

#[test]
fn the_total_is_the_sum_of_all_steps_that_succeeded() {
    let mut host = TestHost::<Counter>::new();
    let mut random = Random::from_seed([5; 32]);
    let mut sum = 0;
    for _ in 0..1_000 {
        let step = random.next_u64() >> random.below(64);
        let result = host.apply(step.to_string().as_bytes());
        match u64::checked_add(sum, step) {
            Some(total) => {
                sum = total;
                assert_eq!(result, Ok(sum.to_string().into_bytes()));
            }
            None => assert_eq!(result.unwrap_err().code, codes::OVERFLOW),
        }
        assert_eq!(host.query(b""), Ok(sum.to_string().into_bytes()));
    }
}

#[test]
fn what_is_no_number_is_refused() {
    let mut host = TestHost::<Counter>::new();
    for command in ["two", "-1", "1.5", " 1", "18446744073709551616", "\u{661}"] {
        assert_eq!(host.apply(command.as_bytes()).unwrap_err().code, NO_NUMBER, "{command}");
    }
    assert_eq!(host.apply(b"\xff").unwrap_err().code, NO_NUMBER);
    assert_eq!(host.query(b""), Ok(b"0".to_vec()));
}

#[test]
fn each_slot_counts_for_itself() {
    let mut host = TestHost::new();
    add(&mut host, "5");
    host.set_slot(1);
    assert_eq!(add(&mut host, "1"), "1");
    host.set_slot(0);
    assert_eq!(host.query(b""), Ok(b"5".to_vec()));
}
