//! What the test host, and with it the native backend, promises to plugins.

use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{
    Buffer, Context, Failure, Level, MAX_KEY_LEN, MAX_OPEN_SCANS, QueryContext, Response,
    StateMachine,
};

/// Runs a little script: lines of words, each an operation; the response collects what they saw.
struct Script;

impl StateMachine for Script {
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
        let mut seen = Buffer::new();
        for line in text(command).lines() {
            match *line.split(' ').collect::<Vec<_>>() {
                ["put", key, value] => context.put(key.as_bytes(), value.as_bytes()),
                ["delete", key] => context.delete(key.as_bytes()),
                ["delete-while-scanning", prefix] => {
                    let mut rows = context.scan().prefix(prefix.as_bytes()).rows();
                    while let Some(row) = rows.next_row() {
                        context.delete(row.key);
                        context.put(&[row.key, b"!"].concat(), b"late");
                        seen.extend_from_slice(row.key);
                        seen.push(b' ');
                    }
                }
                ["fail"] => return Err(Failure::new(7, "as told")),
                _ => read(context, line, &mut seen),
            }
        }
        Ok(seen.into())
    }

    fn query(context: &QueryContext<'_>, request: &[u8]) -> Result<Response, Failure> {
        let mut seen = Buffer::new();
        text(request).lines().for_each(|line| read(context, line, &mut seen));
        Ok(seen.into())
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("a script is text")
}

/// The operations that commands and queries share.
fn read(context: &QueryContext<'_>, line: &str, seen: &mut Buffer) {
    match *line.split(' ').collect::<Vec<_>>() {
        ["get", key] => match context.get(key.as_bytes()) {
            Some(value) => seen.extend_from_slice(&value),
            None => seen.extend_from_slice(b"none"),
        },
        ["contains", key] => {
            seen.extend_from_slice(context.contains(key.as_bytes()).to_string().as_bytes());
        }
        ["get-many", ref keys @ ..] => {
            for value in context.get_many(keys).iter() {
                seen.extend_from_slice(value.unwrap_or(b"none"));
                seen.push(b' ');
            }
        }
        ["scan", ref limits @ ..] => {
            let mut scan = context.scan();
            for limit in limits {
                scan = match limit.split_once('=') {
                    Some(("prefix", key)) => scan.prefix(key.as_bytes()),
                    Some(("start", key)) => scan.start(key.as_bytes()),
                    Some(("after", key)) => scan.after(key.as_bytes()),
                    Some(("end", key)) => scan.end(key.as_bytes()),
                    _ => scan.reverse(),
                };
            }
            let mut rows = scan.rows();
            while let Some(row) = rows.next_row() {
                seen.extend_from_slice(row.key);
                seen.push(b' ');
            }
        }
        ["facts"] => {
            let seed = context.seed()[0];
            let facts =
                (context.log_index(), context.time_ms(), context.slot(), context.position());
            context.log(Level::Info, "facts asked for");
            seen.extend_from_slice(format!("{facts:?} {seed}").as_bytes());
        }
        _ => panic!("no such operation: {line}"),
    }
}

fn apply(host: &mut TestHost<Script>, script: &str) -> String {
    let response = host.apply(script.as_bytes()).expect("the script succeeds");
    String::from_utf8(response).expect("it answers with text")
}

fn query(host: &mut TestHost<Script>, script: &str) -> String {
    let response = host.query(script.as_bytes()).expect("the script succeeds");
    String::from_utf8(response).expect("it answers with text")
}

fn host_with(keys: &[&str]) -> TestHost<Script> {
    let mut host = TestHost::new();
    for key in keys {
        host.stored().insert(key.as_bytes().to_vec(), b"v".to_vec());
    }
    host
}

#[test]
fn a_command_sees_its_own_writes_and_those_before_it() {
    let mut host = TestHost::new();
    assert_eq!(apply(&mut host, "put a 1\nget a\nput a 2\nget a\ndelete a\nget a"), "12none");
    assert_eq!(apply(&mut host, "put a 3"), "");
    assert_eq!(query(&mut host, "get a\ncontains a\ncontains b"), "3truefalse");
}

#[test]
fn a_failed_command_leaves_no_trace() {
    let mut host = host_with(&["kept", "changed"]);
    let before = host.stored().clone();
    let failed =
        host.apply(b"put changed 1\nput changed 2\ndelete kept\nput new 1\ndelete new\nfail");
    assert_eq!(failed, Err(Failure::new(7, "as told")));
    assert_eq!(*host.stored(), before);
    assert_eq!(host.log_index(), 1, "a failure is an entry of the log like any other");
}

#[test]
fn commands_of_one_entry_share_its_index_and_see_each_other_unless_failed() {
    let mut host = TestHost::<Script>::new();
    let results = host.apply_entry(&["put a 1\nfacts", "put a 2\nfail", "get a\nfacts"]);
    assert_eq!(results.len(), 3);
    let answers: Vec<_> =
        results.into_iter().map(|result| result.map(|r| text(&r).to_owned())).collect();
    assert!(matches!(&answers[0], Ok(facts) if facts.starts_with("(1, 0, 0, 0)")));
    assert_eq!(answers[1], Err(Failure::new(7, "as told")));
    assert!(matches!(&answers[2], Ok(facts) if facts.starts_with("1(1, 0, 0, 2)")));
}

#[test]
fn a_slot_is_a_key_space_of_its_own() {
    let mut host = TestHost::new();
    apply(&mut host, "put a here");
    host.set_slot(5);
    assert_eq!(apply(&mut host, "get a\nput a there\nscan"), "nonea ");
    host.set_slot(0);
    assert_eq!(query(&mut host, "get a"), "here");
}

#[test]
fn facts_follow_the_log() {
    let mut host = TestHost::new();
    host.set_time_ms(1_000);
    host.set_slot(3);
    let first = apply(&mut host, "facts");
    host.set_time_ms(2_000);
    let second = apply(&mut host, "facts");
    assert!(first.starts_with("(1, 1000, 3, 0) "), "{first}");
    assert!(second.starts_with("(2, 2000, 3, 0) "), "{second}");
    assert_ne!(first.split(' ').next_back(), second.split(' ').next_back(), "seeds differ");
    assert!(query(&mut host, "facts").starts_with("(2, 2000, 3, 0) "));
    assert_eq!(host.logs().len(), 3);
    assert_eq!(host.logs()[0], (Level::Info, "facts asked for".to_owned()));
}

#[test]
#[should_panic(expected = "replicated time does not go back")]
fn time_does_not_go_back() {
    let mut host = TestHost::<Script>::new();
    host.set_time_ms(2);
    host.set_time_ms(1);
}

#[test]
fn many_values_come_in_the_order_asked() {
    let mut host = TestHost::new();
    apply(&mut host, "put a 1\nput b \nput c 3");
    assert_eq!(query(&mut host, "get-many c x a b c"), "3 none 1  3 ");
    assert_eq!(query(&mut host, "get-many"), "");
}

#[test]
fn limits_narrow_a_scan_in_any_order() {
    let mut host = host_with(&["a", "b1", "b2", "b3", "c"]);
    for (script, expected) in [
        ("scan", "a b1 b2 b3 c "),
        ("scan reverse", "c b3 b2 b1 a "),
        ("scan prefix=b", "b1 b2 b3 "),
        ("scan prefix=b reverse", "b3 b2 b1 "),
        ("scan prefix=b after=b1", "b2 b3 "),
        ("scan after=b1 prefix=b", "b2 b3 "),
        ("scan after=a prefix=b", "b1 b2 b3 "),
        ("scan prefix=b after=c", ""),
        ("scan start=b2", "b2 b3 c "),
        ("scan start=b2 end=c", "b2 b3 "),
        ("scan end=b2 end=c", "a b1 "),
        ("scan start=c end=a", ""),
        ("scan end=", ""),
        ("scan prefix=x", ""),
    ] {
        assert_eq!(query(&mut host, script), expected, "{script}");
    }
}

#[test]
fn a_long_scan_crosses_many_times_and_loses_no_row() {
    let mut host = TestHost::new();
    let keys: Vec<_> = (0..5_000).map(|number| format!("key{number:05}")).collect();
    for (number, key) in keys.iter().enumerate() {
        // Now and then a row that is larger than any chunk.
        let size = if number % 1_000 == 7 { 100_000 } else { number % 300 };
        host.stored().insert(key.as_bytes().to_vec(), vec![1; size]);
    }
    let forward = query(&mut host, "scan");
    assert!(forward.split_terminator(' ').eq(keys.iter()));
    let backward = query(&mut host, "scan reverse");
    assert!(backward.split_terminator(' ').eq(keys.iter().rev()));
}

#[test]
fn a_scan_does_not_see_what_is_written_while_it_runs() {
    let mut host = host_with(&["a1", "a2", "b"]);
    assert_eq!(apply(&mut host, "delete-while-scanning a"), "a1 a2 ");
    assert_eq!(query(&mut host, "scan"), "a1! a2! b ");
}

#[test]
fn scanning_after_the_longest_key_goes_on_with_the_next() {
    struct After;
    impl StateMachine for After {
        fn apply(_: &Context<'_>, _: &[u8]) -> Result<Response, Failure> {
            Ok(Response::empty())
        }
        fn query(context: &QueryContext<'_>, after: &[u8]) -> Result<Response, Failure> {
            let mut rows = context.scan().after(after).rows();
            Ok(rows.next_row().map_or(Response::empty(), |row| row.key.into()))
        }
    }
    let mut host = TestHost::<After>::new();
    let longest = vec![b'a'; MAX_KEY_LEN];
    host.stored().insert(longest.clone(), Vec::new());
    host.stored().insert(b"b".to_vec(), Vec::new());
    assert_eq!(host.query(&longest), Ok(b"b".to_vec()));
    assert_eq!(host.query(&vec![0xff; MAX_KEY_LEN]), Ok(Vec::new()));
}

#[test]
#[should_panic(expected = "bad call: more than 16 scans")]
fn too_many_open_scans_are_a_bad_call() {
    struct Greedy;
    impl StateMachine for Greedy {
        fn apply(context: &Context<'_>, _: &[u8]) -> Result<Response, Failure> {
            let _one_after_the_other: Vec<_> =
                (0..100).map(|_| drop(context.scan().rows())).collect();
            let _open: Vec<_> = (0..=MAX_OPEN_SCANS).map(|_| context.scan().rows()).collect();
            Ok(Response::empty())
        }
        fn query(_: &QueryContext<'_>, _: &[u8]) -> Result<Response, Failure> {
            Ok(Response::empty())
        }
    }
    let _ = TestHost::<Greedy>::new().apply(b"");
}
